"""Put on PYTHONPATH, changes a process of the test's.

``FAULT=RANK:STEP:WHAT`` makes one rank misbehave at one step: hang, stop, die, raise. ``TEST_POD_IDENTITY=DIRECTORY``
is where a pod of the test cluster finds its service account. ``TEST_GUARD_SECONDS=SECONDS`` is the guard's patience.
"""

import os


def _install(rank: str, step: int, what: str) -> None:
    import signal
    import time

    from xlnet.training import objective

    true_losses, calls = objective.losses, [0]

    def losses(*arguments):
        calls[0] += 1
        if calls[0] == step and what == "hang":
            time.sleep(600)
        if calls[0] == step and what == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        if calls[0] == step and what == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if calls[0] == step and what == "raise":
            raise ZeroDivisionError("the test divides by zero")
        return true_losses(*arguments)

    objective.losses = losses


if os.environ.get("FAULT") and os.environ.get("RANK") == os.environ["FAULT"].split(":")[0]:
    rank, step, what = os.environ["FAULT"].split(":")
    _install(rank, int(step), what)

if os.environ.get("TEST_POD_IDENTITY"):
    from pathlib import Path

    from xlnet_cluster import api

    api.IDENTITY = Path(os.environ["TEST_POD_IDENTITY"])

if os.environ.get("TEST_GUARD_SECONDS"):
    from xlnet_cluster import guard

    guard.PATIENCE, guard.POLL = float(os.environ["TEST_GUARD_SECONDS"]), 0.2
