"""A base whose layers are spread over processes, by PyTorch's FSDP2: each process holds a part of each layer's weights.

A layer's weights are gathered while it is computed, forwards and backwards, and given up after that. What is no layer's
(word embeddings, output head, final norm) is whole in each process: it is used at both ends of every step, so that it
would be gathered all the time. Nothing of the base is trained, so that no gradient of it crosses the network.

Owns which weights are spread and how each process reads its part. Knows nothing of prompts, nor of who started the
processes; all of them have to compute the same number of layers in the same order.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from softprompt.bases.checkpoint import UnsureError, all_names, read_weights, set_weight
from softprompt.bases.decoder import find_layers
from softprompt.errors import SoftPromptError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def shard(model: PreTrainedModel, mesh: DeviceMesh, device: torch.device) -> None:
    """Spread the weights of a frozen model's layers over the processes of a mesh.

    Args:
        model: whole on the CPU, or on the meta device, where its weights are read by `fill` after this.
        mesh: the processes, in one dimension.
        device: where the layers are computed, one of the mesh's type. They go there one by one.

    Raises:
        SoftPromptError: the model names no layers, some of them share weights, or PyTorch is older than 2.7.
    """
    from torch.distributed.fsdp import fully_shard  # not at the top: only runs that ask for it pay for its import

    name, layers = type(model).__name__, find_layers(model)
    if "ignored_params" not in inspect.signature(fully_shard).parameters:
        raise SoftPromptError("a base is spread over processes by PyTorch 2.7 or newer")
    owned = [id(weight) for layer in layers for weight in layer.parameters()]
    if not owned or len(owned) > len(set(owned)):
        why = "its layers share weights" if owned else "it names no layers"
        raise SoftPromptError(f"{name} can't be spread over processes: {why}")
    for layer in layers:
        if next(layer.parameters()).is_meta:
            fully_shard(layer, mesh=mesh)
            layer.to_empty(device=device)
        else:
            fully_shard(layer.to(device), mesh=mesh)
    # What holds layers has no weights in shards itself: it tells FSDP2 in which order they come.
    for holder in _holders(model, layers):
        whole = {weight for weight in holder.parameters() if id(weight) not in map(id, _sharded(holder))}
        fully_shard(holder, mesh=mesh, ignored_params=whole)


def fill(model: PreTrainedModel, files: list[str], mesh: DeviceMesh, device: torch.device) -> None:
    """Read a model's weights, of its layers' this process's part alone.

    Args:
        model: from `shard`, on the meta device before it; `read_samples` has shown that its files are sure.
        files: its safetensors files.
        mesh: the processes.
        device: where the model is computed.

    Raises:
        UnsureError: a buffer is not known without the loaded model.
    """
    names, sharded = all_names(model), {id(weight) for weight in _sharded(model)}
    for name, value in read_weights(model, files):
        owner, _, leaf = name.rpartition(".")
        module = model.get_submodule(owner)
        held = getattr(module, leaf)
        if id(held) in sharded:
            parts = value.chunk(mesh.size())  # as FSDP2 cuts it
            rank = mesh.get_local_rank()
            held.to_local().copy_(parts[rank] if rank < len(parts) else value[:0])
        elif leaf in module._buffers:
            module._buffers[leaf] = value.to(device, held.dtype)
        else:
            set_weight(model, names.get(id(held), [name]), value.to(device, held.dtype))
    _fill_buffers(model, device)


def _fill_buffers(model: PreTrainedModel, device: torch.device) -> None:
    """Make the buffers that no file holds, such as rotary frequencies, as `from_pretrained` does."""
    made: list[tuple[nn.Module, str]] = []
    for module in model.modules():
        vars(module).pop("_is_hf_initialized", None)
        for name in module._non_persistent_buffers_set & module._buffers.keys():
            if (buffer := module._buffers[name]) is not None:
                made.append((module, name))
                unknown = math.nan if buffer.is_floating_point() else 0
                module._buffers[name] = torch.full_like(buffer, unknown, device=device)
    for tensor in _state(model):
        vars(tensor)["_is_hf_initialized"] = True  # so that Transformers fills the others only
    model.initialize_weights()
    unknown_still = any(torch.isnan(getattr(module, name)).any() for module, name in made)
    if unknown_still or any(one.is_meta for one in _state(model)):
        raise UnsureError("it holds what is not known without the loaded model")


def _state(model: PreTrainedModel) -> Iterator[Tensor]:
    """Weights and buffers, but those that no file holds."""
    yield from model.parameters()
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in module._non_persistent_buffers_set:
                yield buffer


def _sharded(module: nn.Module) -> list[Tensor]:
    from torch.distributed.tensor import DTensor

    return [weight for weight in module.parameters() if isinstance(weight, DTensor)]


def _holders(model: PreTrainedModel, layers: list[nn.Module]) -> list[PreTrainedModel]:
    """The models within a model that layers are in, without those around them: of T5 its encoder and its decoder."""
    every = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    holders = [one for one in every if any(part in layers for part in one.modules())]
    return [one for one in holders if not any(other is not one and other in holders for other in one.modules())]
