"""XLNet on your own text: data, model, training, evaluation and registry, without a pipeline engine."""

import os

__version__ = "0.1.0"

# After each parallel part libgomp's threads spin for milliseconds before they sleep, and on a busy machine take the
# processor from those who have work. This is as long as the usual pause between two parts, so that an idle machine
# loses nothing; it is read when torch is loaded. See tests/benchmarks/thread_spinning.py.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
