"""Training."""

DEVICES = ("auto", "cpu", "cuda", "xla", "tpu")
