"""Stands in for CUDA graphs on a CPU: records torch's operators, and replays them on the same tensors.

As with a CUDA graph, numbers of the host that a recorded operator was given stay as they were, results go to the same
addresses, and work that needs a tensor's value on the host cannot be recorded.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
ON_THE_HOST = {aten.randint.default, aten.randint.low}  # random numbers are drawn on the host, which no graph repeats
SYNCHRONISES = {aten._local_scalar_dense.default, aten.nonzero.default}


class Recording(TorchDispatchMode):
    """A recorded list of operators."""

    def __init__(self):
        super().__init__()
        self.calls = []
        self.replays = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function not in SYNCHRONISES, f"{function} waits for the device, which a CUDA graph cannot record"
        out = function(*args, **(kwargs or {}))
        if function not in ON_THE_HOST:
            self.calls.append((function, args, kwargs or {}, out))
        return out

    def replay(self):
        self.replays += 1
        with torch.no_grad():
            for function, args, kwargs, recorded in self.calls:
                found = function(*args, **kwargs)
                for to, new in zip(tree_leaves(recorded), tree_leaves(found), strict=True):
                    if isinstance(to, torch.Tensor) and to.data_ptr() != new.data_ptr():
                        to.copy_(new)


class Recorder:
    """Has the interface of :class:`xlnet.training.cuda_graph.Recorder`; keeps what it recorded."""

    def __init__(self):
        self.recordings = []

    def rehearse(self, work):
        work()

    def record(self, work):
        recording = Recording()
        with recording:
            work()
        self.recordings.append(recording)
        return recording
