"""Tensors made on the CPU, brought to a base's device without anybody waiting.

What a step needs beside the base's weights is planned on the CPU and copied from pinned memory: a plain copy, or a
question such as `bool(tensor)`, would hold the CPU up until the device has done all that was asked of it before.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def to_device(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """The tensors, of one dtype, on `device` by one copy; on a CPU they are themselves."""
    if device.type == "cpu":
        return list(tensors)
    flat = torch.cat([one.reshape(-1) for one in tensors])
    if device.type == "cuda":
        flat = flat.pin_memory()
    moved = flat.to(device, non_blocking=True).split([one.numel() for one in tensors])
    return [part.view(one.shape) for part, one in zip(moved, tensors, strict=True)]
