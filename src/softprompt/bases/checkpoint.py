"""A model's weights straight from its safetensors files, one after the other, the model itself being without any.

Owns how the files' names become the model's, with Transformers' own rules, and where that is not sure. Does not know
what the weights are for. At most one is in memory, and of one that is stored as it is used only the pages that are
looked at.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel

# What `from_pretrained` itself maps names with; PEFT uses the first, so that it changes with notice only.
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key
from transformers.utils.hub import cached_file, get_checkpoint_shard_files

_SAMPLE = 64  # elements of each weight


class UnsureError(Exception):
    """The files do not surely say what the loaded model's weights would be; the message says why."""


def sample(weight: Tensor) -> Tensor:
    """Elements of a weight at even distances, `[at most 64]`, rounded to bfloat16, on the CPU."""
    values = weight.detach().reshape(-1)
    return values[:: max(1, values.numel() // _SAMPLE)][:_SAMPLE].to("cpu", torch.bfloat16)


def find_files(source: str, revision: str | None = None) -> list[str]:
    """The safetensors files of a folder, or of a model on the hub (downloaded unless they are here).

    Raises:
        UnsureError: there are none of the usual names.
    """
    find = partial(cached_file, source, revision=revision, _raise_exceptions_for_missing_entries=False)
    if whole := find("model.safetensors"):
        return [whole]
    if index := find("model.safetensors.index.json"):
        files: list[str] = get_checkpoint_shard_files(source, index, revision=revision)[0]
        return files
    raise UnsureError("its weights are in files of unusual names")


def sample_stored(files: list[str]) -> dict[str, Tensor]:
    """What `sample` makes of all that files hold, by the files' own names: of weights that are stored quantised."""
    return {name: sample(part[...]) for name, part in sorted(_stored(files).items())}


def read_samples(model: PreTrainedModel, files: list[str], quantised: bool = False) -> dict[str, Tensor]:
    """What `sample` makes of each parameter that `model` would have if it were loaded from `files`, by name.

    Args:
        model: from `from_pretrained` with `device_map="meta"`. Its input embeddings are given their weights, mapped
            from the file, and weights that are tied because the files hold them twice are tied.
        quantised: the files hold quantised weights: the result is `sample_stored`'s.

    Raises:
        UnsureError: a weight is missing, of another shape, or not stored as an embedding is used.
    """
    plain, converters = _map(model, files)
    if quantised:
        _fill_embeddings(model, plain, all_names(model))
        return sample_stored(files)
    _tie_equal(model, plain)
    names = all_names(model)
    samples, shapes = {}, {}
    for name, weight in _each(model, plain, converters):
        samples[name], shapes[name] = sample(weight), tuple(weight.shape)
    result = {}
    for name, parameter in model.named_parameters():
        known = next((one for one in names[id(parameter)] if one in samples), None)
        if known is None or shapes[known] != tuple(parameter.shape):
            raise UnsureError(f"its files do not have {name} as the model has it")
        result[name] = samples[known]
    _fill_embeddings(model, plain, names)
    return result


def read_weights(model: PreTrainedModel, files: list[str]) -> Iterator[tuple[str, Tensor]]:
    """Each weight that `files` hold, by a name that `model` has for it: whole, as it is stored, on the CPU.

    Args:
        model: for which `read_samples` has shown that its files are sure.
        files: its files.
    """
    return _each(model, *_map(model, files))


def all_names(model: PreTrainedModel) -> dict[int, list[str]]:
    """The names of each parameter, by its `id`; tied ones have several."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return names


def set_weight(model: PreTrainedModel, names: list[str], value: Tensor) -> None:
    """Give a model a frozen parameter under all its names."""
    weight = torch.nn.Parameter(value, requires_grad=False)
    for name in names:
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, weight)


@dataclass(frozen=True)
class _Stored:
    """A weight in a file that is open only while it is read: the pages that were looked at stay in no process."""

    file: str
    key: str

    def __getitem__(self, index: Any) -> Tensor:
        with safe_open(self.file, "pt") as file:
            found: Tensor = file.get_slice(self.key)[index]
            return found


def _each(
    model: PreTrainedModel, plain: dict[str, _Stored], converters: dict[str, WeightConverter]
) -> Iterator[tuple[str, Tensor]]:
    for name, part in plain.items():
        yield name, part[...]
    for target, converter in converters.items():
        for name, value in converter.convert(target, model=model, config=model.config).items():
            yield name, value[0] if isinstance(value, list) else value


def _stored(files: list[str]) -> dict[str, _Stored]:
    found: dict[str, _Stored] = {}
    for file in files:
        with safe_open(file, "pt") as handle:
            found |= {key: _Stored(file, key) for key in handle.keys()}  # noqa: SIM118  # no mapping
    return found


def _map(model: PreTrainedModel, files: list[str]) -> tuple[dict[str, _Stored], dict[str, WeightConverter]]:
    """The stored weights by the model's names, and the converters, filled, that make the others of several."""
    stored = _stored(files)
    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    by_pattern = {pattern: rule for rule in converters for pattern in rule.source_patterns}
    expected, prefix = model.state_dict(), model.base_model_prefix
    plain: dict[str, _Stored] = {}
    filled: dict[str, WeightConverter] = {}
    for key in sorted(stored, key=dot_natural_key):
        name, pattern = rename_source_key(key, renamings, converters, prefix, expected)
        if name not in expected and key in expected:  # as Transformers: it need not have been renamed
            name, pattern = rename_source_key(key, [], [], prefix, expected)
        if name in expected and pattern is None:
            plain[name] = stored[key]
        elif name in expected and pattern is not None:
            converter = filled.setdefault(name, deepcopy(by_pattern[pattern]))
            read: Any = partial(stored[key].__getitem__, ...)  # called when it is converted
            converter.add_tensor(name, key, pattern, read)
    return plain, filled


def _tie_equal(model: PreTrainedModel, plain: dict[str, _Stored]) -> None:
    """Tie what Transformers would: weights to be tied that the files hold twice, and that are equal."""
    for target, source in model.all_tied_weights_keys.items():
        if target in plain and source in plain and torch.equal(plain[target][...], plain[source][...]):
            module, _, name = target.rpartition(".")
            setattr(model.get_submodule(module), name, model.get_parameter(source))


def _fill_embeddings(model: PreTrainedModel, plain: dict[str, _Stored], names: dict[int, list[str]]) -> None:
    embeddings = model.get_input_embeddings()
    known = [name for name in names[id(embeddings.weight)] if name in plain]
    if not known or len(list(embeddings.parameters())) > 1:
        raise UnsureError("its embeddings are not stored as they are used")
    set_weight(model, names[id(embeddings.weight)], plain[known[0]][...])
    for name, scale in list(embeddings.named_buffers()):
        embeddings.register_buffer(name, torch.full_like(scale, math.nan, device="cpu"), persistent=False)
    vars(embeddings.weight)["_is_hf_initialized"] = True  # so that Transformers fills the scales only
    model._init_weights(embeddings)
    if any(scale.isnan().any() for scale in embeddings.buffers()):
        raise UnsureError("its embeddings are scaled by what is not known without the weights")
