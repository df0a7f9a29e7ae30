"""The frozen base: a language model with its tokenizer; how it is found, loaded and recognised.

Owns what a name stands for, how the weights are held, and what of that is said. Does not know how a prompt meets the
base (`prompted`), where the embedded base's file comes from (`sources`), nor how Transformers reads it (`reading`).
"""

from __future__ import annotations

import logging
import os
import sys
from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from softprompt.bases import quantization as quantizing
from softprompt.bases import shards, sources
from softprompt.bases.base import Base
from softprompt.bases.checkpoint import UnsureError, find_files, read_samples, sample, sample_stored
from softprompt.bases.decoder import reach
from softprompt.bases.families import FamilyKind, family_kind
from softprompt.bases.hub import hub_or_cache
from softprompt.bases.machine import choose_device, choose_dtype, tell_dtype
from softprompt.bases.reading import EMBEDDED, Held, no_safetensors, quiet, read, read_config
from softprompt.errors import SoftPromptError
from softprompt.text import first_line

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

logger = logging.getLogger(__name__)
_UNPACKED = f"{EMBEDDED}-1"  # counted up when `_unpack` makes something else of the same file


def load_base(
    name: str | os.PathLike[str],
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    trust_remote_code: bool = False,
    revision: str | None = None,
    mesh: DeviceMesh | None = None,
    quantization: str | None = None,
    device_map: str | dict[str, Any] | None = None,
) -> Base:
    """Load a language model, causal, an encoder-decoder or an encoder, and its tokenizer, frozen.

    Args:
        name: "smollm2-135m" (SmolLM2-135M-Instruct, downloaded once without the hub), a local folder, a GGUF
            file (its weights are dequantised) or a model on the hub; the first of these that it can be.
        dtype: "auto" (default: see `fast_dtype`; a log line says what it found), "float32", "bfloat16", "float16",
            "float64" or a torch.dtype.
        device: "auto" (default: CUDA, else MPS, else the CPU), or what torch.device takes.
        trust_remote_code: run the Python code that a folder or a model on the hub brings along (default: refuse).
        revision: the branch, tag or commit of a model on the hub (default: its main branch).
        mesh: processes, in one dimension, over which the layers' weights are spread by PyTorch's FSDP2 (see
            `shards.py`); each of them calls this and has to compute what the others compute. Each reads its own part
            of the files; where that can't be, a warning says that it reads all first. Default: the base is whole.
        quantization: hold the weights of linear layers as "torchao-int8", "torchao-int4", "bnb-8bit" or "bnb-4bit"
            (see `quantization.py`). Default: as they are stored; a checkpoint that is stored quantised stays so.
        device_map: where Accelerate puts the layers, as `from_pretrained` takes it: "auto" fills the GPUs, then
            memory, then the disk; a layer that is on no GPU is fetched when it is computed. Default: all on `device`.

    Raises:
        SoftPromptError: there is no such base, or it is damaged, of no family that is known, stored as pickles
            only, or in need of `trust_remote_code`; the hub cannot be reached; a dtype or device that isn't one; its
            layers can't be spread; a quantization that isn't one, or whose library is missing, or that this machine
            can't; a `device_map` that leaves the word embeddings on the disk.
    """
    name = os.fspath(name)
    place = choose_device(device)
    precision = choose_dtype(dtype, place)
    held = Held(place, quantization, device_map)
    if quantization is not None:
        quantizing.check(quantization, precision, place)
    if mesh is not None and (quantization or device_map):
        raise SoftPromptError(f"base {name!r} can't be spread over processes and have a quantization or a device_map")
    source, options = _locate(name, trust_remote_code, revision)
    if quantization is not None and "gguf_file" in options:
        raise SoftPromptError(
            f"base {name!r}: a GGUF file is dequantised as it is read: save it as a folder to hold it as {quantization}"
        )
    if sys.stderr.isatty():
        print(f"Loading {name}", file=sys.stderr)
    kind: str | None = None
    if mesh is None:
        model, tokenizer, samples, kind = _read_whole(name, source, precision, held, options)
    else:
        model, tokenizer, samples = _read_shards(name, source, precision, mesh, place, options)
    tell_dtype(dtype, precision, place)
    return _tell_reach(Base(model, tokenizer, name, samples, sharded=mesh is not None, quantization=kind))


def _read_whole(
    name: str, source: str, dtype: torch.dtype, held: Held, options: dict[str, Any]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict[str, Tensor] | None, str | None]:
    """The frozen model, the tokenizer, samples of its weights where it can't give them, and how it is quantised."""
    samples = None
    if held.quantization is not None or held.device_map is not None:
        samples = _sample_first(name, source, options)
    model, tokenizer = read(name, source, dtype, show_progress=name != EMBEDDED, held=held, **options)
    kind = quantizing.stored(model.config)
    if kind is not None:
        kind = held.quantization or kind
        quantizing.finish(name, model, kind)
        if samples is None:
            with _asking(options):
                samples = sample_stored(find_files(source, options.get("revision")))
    elif held.device_map is None:
        try:
            model.to(held.place)  # type: ignore[arg-type]  # transformers' wrapper hides the argument's type
        except (RuntimeError, ValueError) as error:
            raise SoftPromptError(f"base {name!r} cannot be moved to {held.place}: {first_line(error)}") from error
    if held.device_map is not None:
        _tell_places(name, model)
    return model.requires_grad_(False), tokenizer, samples, kind


def _tell_places(name: str, model: PreTrainedModel) -> None:
    """Say where a dispatched model's parts are.

    Raises:
        SoftPromptError: its word embeddings are nowhere: whoever computes begins with them.
    """
    embeddings: Any = model.get_input_embeddings()
    if embeddings.weight.is_meta:
        raise SoftPromptError(
            f"base {name!r}: device_map leaves the word embeddings where nothing is computed: put them on a device"
        )
    places = Counter(str(place) for place in getattr(model, "hf_device_map", {"": embeddings.weight.device}).values())
    said = ", ".join(f"{count} on {place}" for place, count in sorted(places.items()))
    logger.info("base %r is dispatched by parts: %s", name, said)


def _sample_first(name: str, source: str, options: dict[str, Any]) -> dict[str, Tensor]:
    """Samples of the weights as they are stored, by which the base is known however it is held."""
    try:
        return _read_outline(name, source, options, show_progress=False)[2]
    except SoftPromptError:
        raise
    except Exception as error:  # as in `load_outline`
        logger.warning("base %r is read twice, first for its identity: %s", name, _why(error))
    model, _ = read(name, source, torch.bfloat16, show_progress=False, **options)
    return {key: sample(weight) for key, weight in model.named_parameters()}


def _read_outline(
    name: str, source: str, options: dict[str, Any], *, show_progress: bool
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict[str, Tensor], str | None]:
    """The model without weights but its word embeddings, the tokenizer, samples, and how it is stored quantised.

    Raises:
        UnsureError: the files do not surely say what the samples are; or whatever Transformers stumbles over.
    """
    with _asking(options):
        if "gguf_file" in options:
            raise UnsureError("a GGUF file's weights are known when they are dequantised")
        model, tokenizer = read(name, source, torch.bfloat16, show_progress, device_map="meta", **options)
        files, kind = find_files(source, options.get("revision")), vars(model).pop("_stored_as", None)
        with quiet(show_progress):
            samples = read_samples(model, files, quantised=kind is not None)
    return model, tokenizer, samples, kind


def _asking(options: dict[str, Any]) -> AbstractContextManager[Any]:
    """Within it the hub is asked for a model of it, or the cache where the hub cannot be reached."""
    return hub_or_cache() if "revision" in options else nullcontext()


def _why(error: Exception) -> str:
    return str(error) if isinstance(error, UnsureError) else f"{type(error).__name__}: {first_line(error)}"


def _read_shards(
    name: str, source: str, dtype: torch.dtype, mesh: DeviceMesh, place: torch.device, options: dict[str, Any]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict[str, Tensor]]:
    """The model with this process's part of its layers, the tokenizer, and samples of all weights."""
    if place.type != mesh.device_type:
        raise SoftPromptError(f"base {name!r} can't be spread over processes on {mesh.device_type} and be on {place}")
    with _asking(options):
        try:
            if "gguf_file" in options:
                raise UnsureError("a GGUF file's weights are known when they are dequantised")
            model, tokenizer = read(name, source, dtype, show_progress=False, device_map="meta", **options)
            files = find_files(source, options.get("revision"))
            with quiet(show_progress=False):
                samples = read_samples(model, files)
                shards.shard(model.requires_grad_(False), mesh, place)
                shards.fill(model, files, mesh, place)
        except SoftPromptError:
            raise
        except Exception as error:  # as in `load_outline`
            logger.warning("base %r: each process reads all its weights before it keeps a part: %s", name, _why(error))
            model, tokenizer = read(name, source, dtype, show_progress=False, **options)
            samples = {key: sample(weight) for key, weight in model.named_parameters()}
            shards.shard(model.requires_grad_(False), mesh, place)
            model.to(place)  # type: ignore[arg-type]
    return model, tokenizer, samples


def load_outline(name: str | os.PathLike[str], *, trust_remote_code: bool = False, revision: str | None = None) -> Base:
    """A base for an engine that has the weights itself: tokenizer, configuration, embeddings and identity.

    All but the word embeddings, which stay in the file, is on the meta device; the identity is read from samples of
    the safetensors files and equals the loaded base's. Where that cannot be sure, and of a GGUF file, the weights are
    loaded, and a warning says why.

    Args:
        name, trust_remote_code, revision: as `load_base` takes them.

    Raises:
        SoftPromptError: as `load_base`.
    """
    name = os.fspath(name)
    source, options = _locate(name, trust_remote_code, revision)
    with _asking(options):  # the second try is told what the first has found out about the hub
        try:
            model, tokenizer, samples, kind = _read_outline(name, source, options, show_progress=True)
        except Exception as error:  # Transformers' rules of names are its own affair, and may fail in any way
            # The identity rounds weights to bfloat16, so that this halves the memory and changes nothing.
            base = load_base(
                name, dtype="bfloat16", device="cpu", trust_remote_code=trust_remote_code, revision=revision
            )
            logger.warning(
                "base %r was loaded only for its identity, which its files do not surely give: %s", name, _why(error)
            )
            return base
    return _tell_reach(Base(model.requires_grad_(False), tokenizer, name, samples, quantization=kind))


def find_family(name: str | os.PathLike[str]) -> FamilyKind:
    """The family of a base, from its configuration alone.

    Raises:
        SoftPromptError: as `load_base`.
    """
    name = os.fspath(name)
    source, options = _locate(name, False, None)
    with _asking(options):
        return family_kind(read_config(name, source, **options))


def _tell_reach(base: Base) -> Base:
    context = reach(base.model.config)
    if context.reason:
        logger.warning("base %r is used up to %s tokens: %s", base.name, f"{context.positions:,}", context.reason)
    return base


def _locate(name: str, trust_remote_code: bool, revision: str | None) -> tuple[str, dict[str, Any]]:
    """What Transformers reads the base from, and the options for each of its calls."""
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    path = Path(os.path.expanduser(name))  # os.path: it finds no fault with names that no file can have
    if revision is not None and (name == EMBEDDED or os.path.exists(path)):
        raise SoftPromptError(f"revision {revision!r} is for models on the hub, which base {name!r} is not")
    if name == EMBEDDED:
        source = str(sources.keep_folder(_UNPACKED, _unpack))
    elif os.path.isdir(path):
        _check_folder(name, path)
        source = str(path)
    elif path.suffix.lower() == ".gguf":
        if not os.path.isfile(path):
            raise SoftPromptError(f"base {name!r}: there is no such file")
        source, options["gguf_file"] = str(path.parent), str(path.absolute())
    elif os.path.isfile(path):
        raise SoftPromptError(f"base {name!r} is a file, but neither a folder nor a .gguf file")
    else:
        source, options["revision"] = name, revision
    return source, options


def _check_folder(name: str, folder: Path) -> None:
    if os.path.exists(folder / "adapter_config.json"):
        raise SoftPromptError(f"base {name!r} is an adapter's or a prompt's folder: name the base it is for")
    ggufs = sorted(folder.glob("*.gguf"))
    if ggufs and not any(folder.glob("*.safetensors")):
        raise SoftPromptError(
            f"base {name!r} is a folder with GGUF weights: name the file, such as {str(folder / ggufs[0].name)!r}"
        )
    if not os.path.exists(folder / "config.json"):
        raise SoftPromptError(f"base {name!r} is a folder without a config.json: it holds no model")
    if not any(folder.glob("*.safetensors")):
        raise SoftPromptError(no_safetensors(name))


def _unpack(folder: Path) -> None:
    """Write the embedded base into `folder`: float32 safetensors and the tokenizer."""
    file = sources.fetch_base_file()
    if sys.stderr.isatty():
        print(f"Unpacking {EMBEDDED}, once; this takes about half a minute.", file=sys.stderr)
    model, tokenizer = read(EMBEDDED, str(file.parent), torch.float32, True, gguf_file=str(file))
    tokenizer.model_max_length = model.config.max_position_embeddings
    try:
        with quiet(show_progress=False):
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    except SafetensorError as error:  # so it says that the disk is full, which `sources` knows as OSError
        raise OSError(str(error)) from error
