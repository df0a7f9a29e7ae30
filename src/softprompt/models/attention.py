"""Attention over a packed row: the kernels, the choice between them, and how a model is made to use them.

Owns what happens inside one attention layer. Knows nothing of prompts, texts or losses: a `Layout` says which place
sees which.
"""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from softprompt.models.packed import Kept, Layout, Plan, Sequences

logger = logging.getLogger(__name__)

_PREFIX = "softprompt_"
# Keyword arguments of an attention call that change no number.
_HARMLESS = {"position_ids", "use_cache", "cache_position", "output_attentions", "output_hidden_states", "is_causal"}
# With more scores than this in one block, SDPA, which never holds them all, replaces the plain products.
_MOST_SCORES = 1 << 24
# FlashAttention's limits: the widest head, what its width is a multiple of, the oldest GPU (Ampere); backward it holds
# heads wider than 192 in the shared memory of A100, H100 and the like alone.
_WIDEST_HEAD, _HEAD_STEP, _OLDEST_GPU = 256, 8, (8, 0)
_WIDE_HEAD, _GPUS_OF_WIDE_HEADS = 192, ((8, 0), (9, 0), (10, 0))
# Places in its buffers are counted in 32 bits (https://github.com/Dao-AILab/flash-attention/pull/2260).
_MOST_PLACES = 2**31 - 1
_ROWS_AT_ONCE = 128  # the buffer of the queries' gradient has so many rows more for each sequence


class CannotPackError(RuntimeError):
    """The model asks for attention that the packed row does not offer; the caller falls back to another route."""


def choose_kernel(device: torch.device, scores: int) -> str:
    """Name the kernel for a block: "matmul" (batched products, softmax) or "sdpa" (PyTorch's fused attention).

    On a CPU plain products beat SDPA's backward until the scores no longer fit comfortably in memory;
    elsewhere SDPA's fused kernels win.

    Args:
        device: where the block is computed.
        scores: query heads times R * L * M of the largest block.
    """
    return "matmul" if device.type == "cpu" and scores <= _MOST_SCORES else "sdpa"


@lru_cache(maxsize=1)
def varlen_kernel() -> Callable[..., Any] | None:
    """`torch.nn.attention.varlen.varlen_attn`; None where PyTorch has none with grouped heads and a causal window.

    See https://docs.pytorch.org/docs/stable/nn.attention.varlen.html.
    """
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:  # before 2.10
        return None
    taken = inspect.signature(varlen_attn).parameters
    return varlen_attn if {"scale", "window_size", "enable_gqa"} <= set(taken) else None


@lru_cache
def objection_to_device(device: torch.device, dtype: torch.dtype) -> str:
    """Why the varlen kernel does not run on a device in a dtype; "" where it does. Found out and said once."""
    if device.type != "cuda":
        return "it is for CUDA"
    reason = ""
    if dtype not in (torch.bfloat16, torch.float16):
        reason = f"{str(dtype).removeprefix('torch.')} is not bfloat16 or float16"
    elif varlen_kernel() is None:
        reason = f"PyTorch {torch.__version__} has none with grouped heads: a newer one has"
    elif (generation := torch.cuda.get_device_capability(device)) < _OLDEST_GPU:
        name = torch.cuda.get_device_name(device)
        reason = f"{name} is too old for it: compute capability {generation[0]}.{generation[1]}, not 8.0 or newer"
    return _said(reason)


def _objection_to_row(layout: Layout, query: Tensor, key: Tensor, value: Tensor, reach: tuple[Any, Any]) -> str:
    """Why the varlen kernel does not compute this row; "" where it does. Of trees nothing is said: none does.

    Args:
        layout: the row.
        query: `[1, heads, N, d]`.
        key: `[1, key_heads, N, d]`.
        value: `[1, key_heads, N, e]`.
        reach: the layer's sliding window and its soft-capping, None for none.
    """
    if layout.spans is None:
        return "a tree"
    heads, width, key_heads = query.shape[1], query.shape[3], key.shape[1]
    window, softcap = reach
    if softcap is not None:
        return _said(f"its scores are soft-capped at {softcap:g}")
    if width != value.shape[3] or width > _WIDEST_HEAD or width % _HEAD_STEP:
        return _said(f"its heads are {width} and {value.shape[3]} wide, not equal multiples of 8 up to 256")
    if window is not None and layout.sequences.longest_key > window:
        return _said(f"rows are longer than its sliding window of {window}")
    if width > _WIDE_HEAD and query.requires_grad and not _takes_wide_heads(query.device):
        return _said(f"{torch.cuda.get_device_name(query.device)} has no room for heads of {width} backward")
    rows = query.shape[2] + _ROWS_AT_ONCE * len(layout.sequences.query_ends)
    widest = -(-width // 64) * 64  # the buffers' rows are rounded up
    if max(rows, len(layout.sequences.keys)) * heads * widest > _MOST_PLACES:
        return _said(f"{rows:,} rows of {heads} heads are more than it counts: lower max_tokens or the batch size")
    return "" if heads % key_heads == 0 else _said(f"{heads} heads do not share {key_heads} evenly")


@lru_cache
def _takes_wide_heads(device: torch.device) -> bool:
    return device.type != "cuda" or torch.cuda.get_device_capability(device) in _GPUS_OF_WIDE_HEADS


def _said(reason: str) -> str:
    if reason:
        _say(f"attention by SDPA, which is slower, instead of varlen_attn: {reason}")
    return reason


@lru_cache
def _say(line: str) -> None:
    logger.warning(line)


class _MatmulAttention(torch.autograd.Function):
    """softmax(q k^T * scaling + bias) v, block by block, in batched products; grouped-query heads stay unrepeated.

    query `[N * heads, d]`, key `[N * key_heads, d]`, value `[N * key_heads, e]` give `[N * heads, e]`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        plans: Sequence[Plan],
        scaling: float,
        softcap: float | None,
    ) -> Tensor:
        output = query.new_empty(query.shape[0], value.shape[1])
        wide = torch.promote_types(query.dtype, torch.float32)
        saved: list[Tensor | None] = []
        for plan in plans:
            rows, key_heads, group, length, width = plan.shape
            q = query.index_select(0, plan.query_rows).view(rows * key_heads, group * length, -1)
            k = key.index_select(0, plan.key_rows).view(rows * key_heads, width, -1)
            v = value.index_select(0, plan.key_rows).view(rows * key_heads, width, -1)
            scores = torch.bmm(q, k.transpose(1, 2)).to(wide).mul_(scaling)
            capped = None
            if softcap is not None:
                scores = scores.div_(softcap).tanh_()
                capped = scores.clone()
                scores.mul_(softcap)
            scores = scores.view(rows, key_heads * group, length, width).add_(plan.bias)
            weights = torch.softmax(scores, -1).to(q.dtype).view(rows * key_heads, group * length, width)
            plan.put(output, torch.bmm(weights, v).view(-1, v.shape[-1]))
            saved += [q, k, v, weights, capped]
        ctx.save_for_backward(*saved)
        ctx.plans, ctx.scaling, ctx.softcap = plans, scaling, softcap
        ctx.wide, ctx.shapes = wide, (query.shape, key.shape, value.shape)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query_grad, key_grad, value_grad = grad.new_empty(ctx.shapes[0]), *map(grad.new_zeros, ctx.shapes[1:])
        saved = ctx.saved_tensors
        for i, plan in enumerate(ctx.plans):
            q, k, v, weights, capped = saved[5 * i : 5 * i + 5]
            rows, key_heads, group, length, _ = plan.shape
            g = plan.take(grad).view(rows * key_heads, group * length, -1)
            value_grad.index_add_(0, plan.key_rows, torch.bmm(weights.transpose(1, 2), g).view(-1, v.shape[-1]))
            scores = torch.bmm(g, v.transpose(1, 2)).to(ctx.wide)
            scores = torch._softmax_backward_data(scores, weights.to(ctx.wide), -1, ctx.wide)
            if capped is not None:
                scores = scores.mul_(1 - capped.square())
            scores = scores.mul_(ctx.scaling).to(q.dtype)
            plan.put(query_grad, torch.bmm(scores, k).view(-1, q.shape[-1]))
            key_grad.index_add_(0, plan.key_rows, torch.bmm(scores.transpose(1, 2), q).view(-1, k.shape[-1]))
        return query_grad, key_grad, value_grad, None, None, None


def _sdpa_attention(query: Tensor, key: Tensor, value: Tensor, plans: Sequence[Plan], scaling: float) -> Tensor:
    """The same by PyTorch's scaled_dot_product_attention; shapes as in `_MatmulAttention`.

    A mask has as many numbers as there are scores, and those that nobody sees are computed. So long texts are given
    queries of zeros for what stands before them: the square that they make with these needs none.
    """
    output = query.new_zeros(query.shape[0], value.shape[1])
    for plan in plans:
        rows, key_heads, group, length, width = plan.shape
        q = query.index_select(0, plan.query_rows).view(rows, key_heads * group, length, -1)
        k = key.index_select(0, plan.key_rows).view(rows, key_heads, width, -1).repeat_interleave(group, 1)
        v = value.index_select(0, plan.key_rows).view(rows, key_heads, width, -1).repeat_interleave(group, 1)
        if plan.causal and width - length <= length:
            q = functional.pad(q, (0, 0, width - length, 0))
            answer = functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling)
            answer = answer[:, :, width - length :]
        else:
            answer = functional.scaled_dot_product_attention(q, k, v, plan.bias.to(q.dtype), scale=scaling)
        answer = answer.reshape(-1, v.shape[-1])
        output = output.index_copy(0, plan.places, answer if plan.real is None else answer[plan.real])
    return output


class _Gather(torch.autograd.Function):
    """Rows of `[C, heads, d]`, some of them several times; their gradients are added up in float32.

    All texts' gradients meet at their prompt's keys: rounded to bfloat16 one by one, their sum would lose small ones.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, places: Tensor) -> Tensor:
        ctx.places, ctx.shape = places, rows.shape
        return rows.index_select(0, places)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        wide = torch.promote_types(grad.dtype, torch.float32)
        total = torch.zeros(ctx.shape, dtype=wide, device=grad.device)
        return total.index_add_(0, ctx.places, grad.to(wide)).to(grad.dtype), None


def _varlen_attention(query: Tensor, key: Tensor, value: Tensor, row: Sequences, scaling: float) -> Tensor:
    """The same by one kernel that takes sequences of unequal lengths, without a mask and without repeated heads.

    query `[N, heads, d]`, key and value `[C, key_heads, d]` give `[N, heads, d]`. The window (-1, 0) is causal, aligned
    at the end: the last query sees all keys of its sequence.
    """
    kernel = varlen_kernel()
    assert kernel is not None, "see objection_to_device"
    key, value = (_Gather.apply(one, row.keys) for one in (key, value))  # type: ignore[no-untyped-call]
    lengths = (row.query_ends, row.key_ends, row.longest_query, row.longest_key)
    answer: Tensor = kernel(query, key, value, *lengths, scale=scaling, window_size=(-1, 0), enable_gqa=True)
    return answer


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    layout: Layout,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention of one layer over a packed row, in the form Transformers' attention interface asks for.

    Args:
        query: `[1, heads, N, d]`.
        key: `[1, key_heads, N, d]`.
        value: `[1, key_heads, N, e]`.
        layout: the packed row.
        scaling: what the products are multiplied by; default d ** -0.5.
        sliding_window: a query sees keys fewer than this many positions behind it; None for all.
        softcap: scores s become softcap * tanh(s / softcap) (Gemma 2); None for none.

    Returns:
        `[1, N, heads, e]`, and None where other attentions return weights.

    Raises:
        CannotPackError: the layer asks for something else (dropout, attention sinks, position biases, a window that
            only its mask knows).
    """
    unknown = sorted(k for k, v in others.items() if v is not None and k not in _HARMLESS)
    if unknown or dropout:
        raise CannotPackError(f"its attention takes {', '.join(unknown) or 'dropout'}")
    _check_window(module, sliding_window)
    _, heads, places, dim = query.shape
    key_heads = key.shape[1]
    scaling = dim**-0.5 if scaling is None else scaling
    if torch.is_autocast_enabled(query.device.type):  # rotary embeddings may have widened query and key
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    flat = [t.transpose(1, 2).reshape(places * t.shape[1], -1) for t in (query, key, value)]
    if layout.kept is not None:
        flat[1:] = _keep(layout.kept, module, key, value)
    if layout.kernel is None and not (
        objection_to_device(query.device, query.dtype)
        or _objection_to_row(layout, query, key, value, (sliding_window, softcap))
    ):
        q, k, v = (t.view(-1, count, t.shape[1]) for t, count in zip(flat, (heads, key_heads, key_heads), strict=True))
        return _varlen_attention(q, k, v, layout.sequences, scaling)[None], None
    plans = layout.plans(heads, key_heads, sliding_window)
    kernel = layout.kernel or choose_kernel(query.device, max(plan.seen.numel() for plan in plans) * heads)
    if kernel == "matmul" or softcap is not None:
        output = _MatmulAttention.apply(*flat, plans, scaling, softcap)  # type: ignore[no-untyped-call]
    else:
        output = _sdpa_attention(flat[0], flat[1], flat[2], plans, scaling)
    return output.view(1, places, heads, -1), None


def _keep(kept: Kept, module: torch.nn.Module, key: Tensor, value: Tensor) -> list[Tensor]:
    """Add a row's keys and values to those kept; all that this layer keeps, `[C * key_heads, d]` each."""
    layer = getattr(module, "layer_idx", None)
    if not isinstance(layer, int):
        raise CannotPackError("its attention layers have no numbers")
    for store, new in ((kept.keys[layer], key), (kept.values[layer], value)):
        store.index_copy_(0, kept.places, new[0].transpose(0, 1))
    return [store[layer].flatten(0, 1) for store in (kept.keys, kept.values)]


def _check_window(module: torch.nn.Module, asked: int | None) -> None:
    """Refuse a layer whose config restricts what it sees by a mask alone, since a packed row has its own.

    A short probe would not find this: the windows of real models are thousands of tokens long.
    """
    config, layer = getattr(module, "config", None), getattr(module, "layer_idx", None)
    kinds = getattr(config, "layer_types", None)
    declared = getattr(config, "sliding_window", None)
    if kinds and layer is not None:
        if kinds[layer] not in ("full_attention", "sliding_attention"):
            raise CannotPackError(f"its layer {layer} is of the kind {kinds[layer]}")
        declared = declared if kinds[layer] == "sliding_attention" else None
    if asked != declared:
        raise CannotPackError(f"its layer {layer} has a window of {declared} but asks for {asked}")


def attach(model: PreTrainedModel) -> None:
    """Let `model` take a `layout` in its forward call; calls without one go on exactly as before.

    The model's attention implementation becomes "softprompt_<what it was>"; attaching twice does nothing.

    Raises:
        CannotPackError: the model does not use Transformers' attention interface, or not for all that passes from token
            to token (state-space and hybrid models).
    """
    inner = str(model.config.get_text_config()._attn_implementation)
    if inner.startswith(_PREFIX):
        return
    if model._is_stateful:
        raise CannotPackError("it carries a state from token to token")
    if not model._can_set_attn_implementation():
        raise CannotPackError("it does not use Transformers' attention interface")
    name = _PREFIX + inner
    AttentionInterface.register(name, _dispatcher(inner))
    if inner in ALL_MASK_ATTENTION_FUNCTIONS:
        AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[inner])
    model.set_attn_implementation(name)


def detach(model: PreTrainedModel) -> None:
    """Undo `attach`; does nothing to a model that is not attached."""
    name = str(model.config.get_text_config()._attn_implementation)
    if name.startswith(_PREFIX):
        model.set_attn_implementation(name.removeprefix(_PREFIX))


def _dispatcher(inner: str) -> Callable[..., Any]:
    def attention(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("layout") is not None:
            return packed_attention(module, *args, **kwargs)
        eager: Any = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
        return ALL_ATTENTION_FUNCTIONS.get_interface(inner, eager)(module, *args, **kwargs)

    return attention
