"""A stand-in for `torch.nn.attention.varlen.varlen_attn` in plain products, for machines without a GPU.

It refuses what the kernel would refuse, or read wrongly: https://docs.pytorch.org/docs/main/nn.attention.varlen.html.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from softprompt.models import attention


class Varlen:
    """The stand-in, which counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cu_seq_q: Tensor,
        cu_seq_k: Tensor,
        max_q: int,
        max_k: int,
        *,
        scale: float | None = None,
        window_size: tuple[int, int] = (-1, -1),
        enable_gqa: bool = False,
    ) -> Tensor:
        self.calls += 1
        assert query.ndim == key.ndim == value.ndim == 3
        assert query.dtype == key.dtype == value.dtype
        assert query.device == key.device == value.device == cu_seq_q.device == cu_seq_k.device
        heads, key_heads, width = query.shape[1], key.shape[1], query.shape[2]
        assert key.shape == value.shape
        assert key.shape[2] == width
        assert width % 8 == 0
        assert width <= 256
        assert all(one.stride(-1) == 1 for one in (query, key, value))
        assert heads % key_heads == 0
        assert heads == key_heads or enable_gqa
        assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
        assert cu_seq_q.shape == cu_seq_k.shape
        assert type(max_q) is type(max_k) is int, "a tensor would be asked for its number"
        queries, keys = cu_seq_q.tolist(), cu_seq_k.tolist()
        assert (queries[0], queries[-1], keys[0], keys[-1]) == (0, len(query), 0, len(key))
        assert max_q == max(b - a for a, b in pairwise(queries))
        assert max_k == max(b - a for a, b in pairwise(keys))
        assert window_size == (-1, 0), "another window than causal is not used"
        scale = width**-0.5 if scale is None else scale
        answers = []
        for (first, last), (begin, end) in zip(pairwise(queries), pairwise(keys), strict=True):
            q = query[first:last].transpose(0, 1)
            k, v = (t[begin:end].transpose(0, 1).repeat_interleave(heads // key_heads, 0) for t in (key, value))
            wide = torch.promote_types(query.dtype, torch.float32)
            scores = (q @ k.transpose(1, 2)).to(wide) * scale
            length, depth = last - first, end - begin
            # Aligned at the end: the last query sees every key.
            seen = torch.ones(length, depth, dtype=torch.bool, device=q.device).tril(depth - length)
            weights = scores.masked_fill(~seen, -torch.inf).softmax(-1).to(q.dtype)
            answers.append((weights @ v).transpose(0, 1))
        return torch.cat(answers)


@contextmanager
def varlen() -> Iterator[Varlen]:
    """Within it a CPU has the kernel, and takes it wherever a GPU would, in any dtype."""
    kernel = Varlen()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "varlen_kernel", lambda: kernel)
        patch.setattr(attention, "objection_to_device", lambda device, dtype: "")
        attention._say.cache_clear()
        yield kernel
    attention._say.cache_clear()
