"""Chooses the type of a CPU's matrix products for ``training.precision = "auto"``. Does not import torch."""

from xlnet import processor

# Measured on a Xeon with AMX, one thread, updates of 64 rows of SST-2: 2.1 times the speed of float32 at width 768, 1.6
# times at 256; at 128, 1.2 times before float32 used AMX. Without AMX (oneDNN held to AVX512-bf16): 0.8 times at 768.
NARROWEST, GAIN = 256, 1.6


def on_cpu(precision: str, task: str, width: int) -> str:
    """Return ``"float32"`` or ``"bfloat16"`` for a recipe's precision, task and model width.

    ``auto`` means bfloat16 where the processor has AMX for it and the model is wide enough to gain by it. Pretraining
    has not been measured and stays float32.
    """
    if precision != "auto":
        return precision
    return "bfloat16" if has_amx() and width >= NARROWEST and task != "pretrain" else "float32"


def has_amx() -> bool:
    """Whether processor and operating system offer AMX's products of bfloat16."""
    return "amx_bf16" in processor.features()
