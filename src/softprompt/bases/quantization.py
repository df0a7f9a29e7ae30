"""Bases whose weights are held in 8 or 4 bits: which kinds there are, what each needs, and how Transformers is told.

A base is quantised as it is read, by Transformers with torchao or bitsandbytes, or its checkpoint is stored so (GPTQ,
AWQ, bitsandbytes and others), and stays so. Word embeddings and output head keep the base's dtype.

Owns the kinds' names, the checks that library and machine can, and the gradient where a library has none. Knows nothing
of where a base comes from, nor of prompts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import BitsAndBytesConfig, PretrainedConfig, PreTrainedModel, TorchAoConfig

from softprompt.bases.families import family_kind
from softprompt.errors import SoftPromptError

logger = logging.getLogger(__name__)

_GROUP = 64  # inputs that share a scale; a divisor of most models' widths, as 128 is not of SmolLM2-135M's


@dataclass(frozen=True)
class Kind:
    """A way to hold weights.

    Attributes:
        library: the package it needs, and softprompt's extra that brings it.
        make: Transformers' configuration for a dtype, a device and the names of what stays as it is.
        objection: why a dtype and a device can't; "" where they can.
    """

    library: str
    make: Callable[[torch.dtype, torch.device, list[str] | None], Any]
    objection: Callable[[torch.dtype, torch.device], str] = lambda dtype, device: ""


def _torchao_int8(dtype: torch.dtype, device: torch.device, skipped: list[str] | None) -> Any:
    from torchao.quantization import Int8WeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=skipped)


def _torchao_int4(dtype: torch.dtype, device: torch.device, skipped: list[str] | None) -> Any:
    if device.type == "cuda":
        from torchao.quantization import Int4WeightOnlyConfig

        own: Any = Int4WeightOnlyConfig(group_size=_GROUP, int4_packing_format="tile_packed_to_4d")
        return TorchAoConfig(own, modules_to_not_convert=skipped)
    from torchao.prototype.quantization.int4.inference_workflow import PrototypeInt4WeightOnlyConfig

    own = PrototypeInt4WeightOnlyConfig(group_size=_GROUP, set_inductor_config=False)
    return TorchAoConfig(own, modules_to_not_convert=skipped)


def _objection_to_int4(dtype: torch.dtype, device: torch.device) -> str:
    if device.type == "cuda":
        generation = torch.cuda.get_device_capability(device)
        if generation < (8, 0):
            return f"its kernels need compute capability 8.0, and {torch.cuda.get_device_name(device)} has less"
    elif device.type != "cpu":
        return f"it has no kernels for {device.type}"
    # In others its CPU kernel is hundreds of times slower, and on CUDA there is none.
    return "" if dtype == torch.bfloat16 else "its kernels are for bfloat16: choose that dtype"


def _bnb_8bit(dtype: torch.dtype, device: torch.device, skipped: list[str] | None) -> Any:
    return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)


def _bnb_4bit(dtype: torch.dtype, device: torch.device, skipped: list[str] | None) -> Any:
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=skipped,
    )


def _objection_to_bnb(dtype: torch.dtype, device: torch.device) -> str:
    import bitsandbytes

    if device.type not in bitsandbytes.supported_torch_devices:
        return f"bitsandbytes {bitsandbytes.__version__} does not run on {device.type}"
    return "" if dtype != torch.float64 else "it has no kernels for float64"


KINDS = {
    "bnb-4bit": Kind("bitsandbytes", _bnb_4bit, _objection_to_bnb),
    "bnb-8bit": Kind("bitsandbytes", _bnb_8bit, _objection_to_bnb),
    "torchao-int4": Kind("torchao", _torchao_int4, _objection_to_int4),
    "torchao-int8": Kind("torchao", _torchao_int8),
}


def check(quantization: str, dtype: torch.dtype, device: torch.device) -> None:
    """Make sure that a base can be held in a kind here.

    Raises:
        SoftPromptError: there is no such kind, its library is not installed, or this machine or dtype can't.
    """
    kind = KINDS.get(quantization)
    if kind is None:
        raise SoftPromptError(f"quantization {quantization!r} is not one: use {', '.join(KINDS)}")
    if find_spec(kind.library) is None:
        raise SoftPromptError(
            f"quantization {quantization} needs {kind.library}, which is not installed: "
            f'pip install "softprompt[{kind.library}]"'
        )
    if reason := kind.objection(dtype, device):
        raise SoftPromptError(f"quantization {quantization} can't be used here: {reason}")


def stored(config: PretrainedConfig) -> str | None:
    """How a checkpoint's weights are stored, such as "gptq-4bit" or "bnb-4bit"; None where they are not quantised."""
    found = getattr(config, "quantization_config", None)
    if found is None:
        return None
    about: dict[str, Any] = found if isinstance(found, dict) else found.to_dict()
    method = str(getattr(about.get("quant_method"), "value", about.get("quant_method")))
    if method == "bitsandbytes":
        return "bnb-4bit" if about.get("load_in_4bit") or about.get("_load_in_4bit") else "bnb-8bit"
    if method == "torchao":
        kind = str(about.get("quant_type", ""))
        return "torchao-int4" if "Int4" in kind else "torchao-int8" if "Int8Weight" in kind else "torchao"
    bits = about.get("bits") or about.get("w_bit")
    return f"{method}-{bits}bit" if bits else method


def settings(
    name: str, quantization: str | None, config: PretrainedConfig, dtype: torch.dtype, device: torch.device
) -> dict[str, Any]:
    """What `from_pretrained` has to be told, and where to put the weights: a quantised model may not be moved.

    Raises:
        SoftPromptError: the checkpoint is stored in another kind.
    """
    found = stored(config)
    if found is not None and quantization not in (None, found):
        raise SoftPromptError(f"base {name!r} is stored as {found}: it can't be held as {quantization}")
    if found is not None:
        return {"device_map": {"": device}}
    if quantization is None:
        return {}
    # A checkpoint may lack an encoder's pooling layer, which `remove_classifier` fills; None: Transformers' choice.
    skipped = None if family_kind(config).words else [".*classifier", ".*pooler", ".*head", ".*score"]
    return {"quantization_config": KINDS[quantization].make(dtype, device, skipped), "device_map": {"": device}}


def finish(name: str, model: PreTrainedModel, quantization: str) -> None:
    """Let gradients through a quantised model that was just read, and say how much of it is quantised.

    Raises:
        SoftPromptError: none of it is.
    """
    layers = _linear_layers(model)
    held = [layer for layer in layers if _is_quantised(layer)]
    if not held:
        raise SoftPromptError(
            f"base {name!r} has no weights that {quantization} can hold: its layers are of other kinds or widths"
        )
    for layer in held:
        if type(layer) is nn.Linear and type(layer.weight).__name__.startswith("Int4"):
            layer.__class__ = _Linear
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            # On a CPU with AVX512-BF16 bitsandbytes 0.50 packs 4-bit weights anew at the first pass without a gradient:
            # with rounded scales, and for a kernel without a gradient, which is then lost without an error.
            layer.support_avx512bf16_for_cpu = False
        if type(layer).__name__ == "Linear8bitLt" and layer.weight.device.type == "cpu":
            layer.register_forward_pre_hook(_dequantise)
    left = [layer for layer in layers if layer is not model.get_output_embeddings() and layer not in held]
    more = f"; {len(left)} are not, whose widths it can't" if left else ""
    logger.info("base %r is held as %s: %d of its linear layers are%s", name, quantization, len(held), more)


def _linear_layers(model: PreTrainedModel) -> list[Any]:
    # GPTQ's and AWQ's layers are no nn.Linear, and have packed buffers instead of a weight.
    return [one for one in model.modules() if isinstance(one, nn.Linear) or hasattr(one, "qweight")]


def _is_quantised(layer: Any) -> bool:
    weight: Any = getattr(layer, "weight", None)
    return not (type(weight) is nn.Parameter and weight.is_floating_point() and weight.element_size() > 1)


def _dequantise(layer: nn.Module, _: object) -> None:
    """Let bitsandbytes multiply by dequantised 8-bit weights, as it does on a CPU in training.

    Else it rounds to 8 bits what it multiplies with too, by which columns it finds large in a whole batch: a row's
    answer would depend on the rows beside it.
    """
    layer.training = True


def held_bytes(weight: Tensor) -> int:
    """Bytes of a weight as it is held: torchao's say the dtype that they compute in, and hold others within."""
    inner = getattr(weight, "tensor_data_names", None)
    if inner is None:
        return weight.numel() * weight.element_size()
    names = [*inner, *getattr(weight, "optional_tensor_data_names", [])]
    found = (getattr(weight, name, None) for name in names)
    return sum(part.numel() * part.element_size() for part in found if part is not None)


class _Linear(nn.Linear):
    """A linear layer of 4-bit weights whose kernel has no gradient.

    https://github.com/pytorch/ao: `_weight_int4pack_mm` and its CPU twin have no derivative in PyTorch 2.13.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # nn.Linear's own name
        if not (torch.is_grad_enabled() and input.requires_grad):
            return functional.linear(input, self.weight, self.bias)
        product: Tensor = _Product.apply(input, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return product


class _Product(torch.autograd.Function):
    """`[..., K]` times the transpose of a quantised `[N, K]`; backward by the dequantised weights, which none keeps."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: A002
        ctx.weight = weight
        return functional.linear(input, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad @ dequantised(ctx.weight, grad).T, None, None


def dequantised(weight: Tensor, like: Tensor) -> Tensor:
    """`[K, N]`, the transpose of quantised weights `[N, K]`: what their kernel makes of the identity."""
    unit = torch.eye(weight.shape[1], dtype=like.dtype, device=like.device)
    return functional.linear(unit, weight)
