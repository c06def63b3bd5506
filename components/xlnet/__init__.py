"""XLNet on your own text: data, model, training, evaluation and registry, without a pipeline engine."""

import os

__version__ = "0.1.0"

# After each parallel region libgomp's threads spin for milliseconds before they sleep. On a busy machine they take the
# processor from other work. This limit is as long as the usual pause between two regions, so that an idle machine loses
# nothing. libgomp reads it when torch is loaded. See tests/benchmarks/thread_spinning.py.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
