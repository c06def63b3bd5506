"""Training of one model: loop, devices, distributed ranks, checkpoints, and the model artifact."""

DEVICES = ("auto", "cpu", "cuda", "xla", "tpu")
