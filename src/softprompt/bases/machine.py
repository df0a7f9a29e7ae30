"""On which device, and in which dtype, a base is computed: what is asked for, or what fits the machine.

What the machine is decides, no measurement. Knows no base.
"""

from __future__ import annotations

import logging
import os
import platform
import sys
import time

import torch

from softprompt.bases.base import dtype_name
from softprompt.errors import SoftPromptError
from softprompt.text import first_line

logger = logging.getLogger(__name__)
DTYPE_VARIABLE = "SOFTPROMPT_DTYPE"


def fast_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where `device` has instructions for it, else float32: what the machine is decides, no measurement.

    A GPU's generation says so; of a CPU, AVX512-BF16 (which AMX comes with) or Arm's BF16. Without them a CPU emulates
    bfloat16, up to 100 times slower than float32. The environment variable SOFTPROMPT_DTYPE, float32 or bfloat16,
    says otherwise.

    Raises:
        SoftPromptError: SOFTPROMPT_DTYPE is something else.
    """
    forced = os.environ.get(DTYPE_VARIABLE)
    if forced:
        if forced not in ("float32", "bfloat16"):
            raise SoftPromptError(f"{DTYPE_VARIABLE} is {forced!r}: set it to float32 or bfloat16, or not at all")
        return torch.float32 if forced == "float32" else torch.bfloat16
    return torch.bfloat16 if _has_bfloat16(device) else torch.float32


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        with torch.cuda.device(device):
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():  # oneDNN has the kernels
        return False
    if platform.machine() in ("x86_64", "AMD64"):
        return bool(torch.cpu._is_avx512_bf16_supported())
    # oneDNN's own answer for x86 would include emulation.
    return sys.platform == "linux" and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _times_slower(device: torch.device) -> tuple[str, float]:
    """The device's kind, and the time of a small matrix product in bfloat16 over that in float32."""

    def took(dtype: torch.dtype) -> float:
        times, square = [], torch.ones(256, 256, dtype=dtype, device=device)
        for _ in range(4):
            start = time.perf_counter()
            (square @ square)[0, 0].item()
            times.append(time.perf_counter() - start)
        return min(times[1:])  # the first call is the warm-up

    return device.type, took(torch.bfloat16) / took(torch.float32)


def choose_device(device: str | torch.device) -> torch.device:
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.zeros(1, device=chosen).item()
    except (RuntimeError, AssertionError, TypeError) as error:  # torch raises all three
        raise SoftPromptError(
            f"device {str(device)!r} cannot be used: {first_line(error)}; 'auto' takes one that can"
        ) from error
    return chosen


def choose_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    if dtype == "auto":
        return fast_dtype(device)
    if isinstance(dtype, torch.dtype) and dtype.is_floating_point:
        return dtype
    if dtype in ("float32", "bfloat16", "float16", "float64"):
        chosen: torch.dtype = getattr(torch, str(dtype))
        return chosen
    raise SoftPromptError(
        f"dtype {str(dtype)!r} is not one for weights: use 'auto', 'float32', 'bfloat16' or 'float16'"
    )


def tell_dtype(asked: str | torch.dtype, dtype: torch.dtype, device: torch.device) -> None:
    """Log what was chosen automatically, and how much slower bfloat16 is where it is emulated."""
    if asked == "auto":
        why = f"as {DTYPE_VARIABLE} says" if os.environ.get(DTYPE_VARIABLE) else f"as fits this machine's {device.type}"
        logger.info("dtype auto is %s, %s", dtype_name(dtype), why)
    if dtype == torch.bfloat16 and not _has_bfloat16(device):
        times = _times_slower(device)
        logger.warning("bfloat16 is emulated on this %s: a product takes %.1f times as long as in float32", *times)
