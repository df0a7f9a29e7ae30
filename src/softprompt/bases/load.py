"""The frozen base: a language model with its tokenizer; how it is found, loaded and recognised.

Owns loading, the choice of device and dtype, the word embeddings and the identity. Does not know how a prompt
meets the base (`prompted`), nor where the embedded base's file comes from (`sources`).
"""

from __future__ import annotations

import io
import logging
import mmap
import os
import platform
import struct
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from huggingface_hub import errors as hub_errors
from huggingface_hub.utils import logging as hub_logging
from safetensors import SafetensorError
from tokenizers import pre_tokenizers
from torch import Tensor
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoTokenizer,
    GgufConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from softprompt.bases import quantization as quantizing
from softprompt.bases import shards, sources
from softprompt.bases.base import Base, dtype_name
from softprompt.bases.checkpoint import UnsureError, find_files, read_samples, sample, sample_stored
from softprompt.bases.classifier import remove_classifier
from softprompt.bases.decoder import reach
from softprompt.bases.families import family_kind
from softprompt.bases.hub import UNREACHED, hub_or_cache
from softprompt.errors import SoftPromptError
from softprompt.text import causes, first_line

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

logger = logging.getLogger(__name__)
EMBEDDED = "smollm2-135m"
DTYPE_VARIABLE = "SOFTPROMPT_DTYPE"

_UNPACKED = f"{EMBEDDED}-1"  # counted up when `_unpack` makes something else of the same file
# What a GGUF file says of how its tokenizer splits texts: the key, then its type, its length and the value.
_GGUF_SPLIT, _GGUF_STRING, _GGUF_HEADER = b"tokenizer.ggml.pre", 8, 1 << 26
# llama.cpp's names for: first each digit alone, then as GPT-2 does.
_SINGLE_DIGITS = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}


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
    place = _choose_device(device)
    precision = _choose_dtype(dtype, place)
    held = _Held(place, quantization, device_map)
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
    if dtype == "auto":
        why = f"as {DTYPE_VARIABLE} says" if os.environ.get(DTYPE_VARIABLE) else f"as fits this machine's {place.type}"
        logger.info("dtype auto is %s, %s", dtype_name(precision), why)
    if precision == torch.bfloat16 and not _has_bfloat16(place):
        times = _times_slower(place)
        logger.warning("bfloat16 is emulated on this %s: a product takes %.1f times as long as in float32", *times)
    return _tell_reach(Base(model, tokenizer, name, samples, sharded=mesh is not None, quantization=kind))


@dataclass(frozen=True)
class _Held:
    """Where and how a base's weights are held."""

    place: torch.device
    quantization: str | None = None
    device_map: str | dict[str, Any] | None = None


def _read_whole(
    name: str, source: str, dtype: torch.dtype, held: _Held, options: dict[str, Any]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict[str, Tensor] | None, str | None]:
    """The frozen model, the tokenizer, samples of its weights where it can't give them, and how it is quantised."""
    samples = None
    if held.quantization is not None or held.device_map is not None:
        samples = _sample_first(name, source, options)
    model, tokenizer = _read(name, source, dtype, show_progress=name != EMBEDDED, held=held, **options)
    kind = quantizing.stored(model.config)
    if kind is not None:
        kind = held.quantization or kind
        quantizing.finish(name, model, kind)
        if samples is None:
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
    model, _ = _read(name, source, torch.bfloat16, show_progress=False, **options)
    return {key: sample(weight) for key, weight in model.named_parameters()}


def _read_outline(
    name: str, source: str, options: dict[str, Any], *, show_progress: bool
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict[str, Tensor], str | None]:
    """The model without weights but its word embeddings, the tokenizer, samples, and how it is stored quantised.

    Raises:
        UnsureError: the files do not surely say what the samples are; or whatever Transformers stumbles over.
    """
    with hub_or_cache() if "revision" in options else nullcontext():
        if "gguf_file" in options:
            raise UnsureError("a GGUF file's weights are known when they are dequantised")
        model, tokenizer = _read(name, source, torch.bfloat16, show_progress, device_map="meta", **options)
        files, kind = find_files(source, options.get("revision")), vars(model).pop("_stored_as", None)
        with _quiet(show_progress):
            samples = read_samples(model, files, quantised=kind is not None)
    return model, tokenizer, samples, kind


def _why(error: Exception) -> str:
    return str(error) if isinstance(error, UnsureError) else f"{type(error).__name__}: {first_line(error)}"


def _read_shards(
    name: str, source: str, dtype: torch.dtype, mesh: DeviceMesh, place: torch.device, options: dict[str, Any]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict[str, Tensor]]:
    """The model with this process's part of its layers, the tokenizer, and samples of all weights."""
    if place.type != mesh.device_type:
        raise SoftPromptError(f"base {name!r} can't be spread over processes on {mesh.device_type} and be on {place}")
    with hub_or_cache() if "revision" in options else nullcontext():
        try:
            if "gguf_file" in options:
                raise UnsureError("a GGUF file's weights are known when they are dequantised")
            model, tokenizer = _read(name, source, dtype, show_progress=False, device_map="meta", **options)
            files = find_files(source, options.get("revision"))
            with _quiet(show_progress=False):
                samples = read_samples(model, files)
                shards.shard(model.requires_grad_(False), mesh, place)
                shards.fill(model, files, mesh, place)
        except SoftPromptError:
            raise
        except Exception as error:  # as in `load_outline`
            logger.warning("base %r: each process reads all its weights before it keeps a part: %s", name, _why(error))
            model, tokenizer = _read(name, source, dtype, show_progress=False, **options)
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
    with hub_or_cache() if "revision" in options else nullcontext():
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


def _choose_device(device: str | torch.device) -> torch.device:
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


def _choose_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
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
        raise SoftPromptError(_no_safetensors(name))


def _no_safetensors(name: str) -> str:
    return (
        f"base {name!r} has no .safetensors weights; pickles (.bin), which can run code when they are read, "
        "are refused: save it with save_pretrained"
    )


def _no_tokenizer(name: str) -> str:
    return (
        f"base {name!r} has no tokenizer that can be read: put its tokenizer.json (or tokenizer.model, or vocab.json "
        "and merges.txt) beside its weights, as tokenizer.save_pretrained does"
    )


def check_supported(name: str, config: PretrainedConfig) -> None:
    kind = type(config)
    loader = family_kind(config).loader
    brings_code = loader in (getattr(config, "auto_map", None) or {})
    if loader != "AutoModelForCausalLM":
        if kind not in getattr(transformers, loader)._model_mapping and not brings_code:
            raise SoftPromptError(f"base {name!r} ({config.model_type}) is none of Transformers' {loader}")
        return
    if any(
        getattr(one, "use_bidirectional_attention", None) in (True, "all") or getattr(one, "is_causal", None) is False
        for one in (config, config.get_text_config())
    ):
        raise SoftPromptError(
            f"base {name!r} ({config.model_type}) looks at what follows a token, as models for embeddings do: it is "
            "not a causal language model"
        )
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING and not brings_code:
        raise SoftPromptError(f"base {name!r} ({config.model_type}) is not a causal language model")


def _read(
    name: str, source: str, dtype: torch.dtype, show_progress: bool, held: _Held | None = None, **options: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and the tokenizer, as transformers reads them; `options` are for each of its calls.

    The model is on the CPU, but where `held` has it quantised or dispatched. On the meta device one that is stored
    quantised is what it would be without that; its `_stored_as` says how.
    """
    settings: dict[str, Any] = {"quantization_config": GgufConfig(dequantize=True)} if "gguf_file" in options else {}
    try:
        with _quiet(show_progress), hub_or_cache() if "revision" in options else nullcontext():
            config = AutoConfig.from_pretrained(source, **options)
            check_supported(name, config)
            kind = quantizing.stored(config)
            if held is not None:
                settings |= quantizing.settings(name, held.quantization, config, dtype, held.place)
                if held.device_map is not None:
                    settings["device_map"] = held.device_map
            elif kind is not None and options.get("device_map") == "meta":
                del config.quantization_config
                settings["ignore_mismatched_sizes"] = True  # packed weights under the names of plain ones
            # Transformers' SDPA, its default, leaves soft-capped scores (Gemma 2) uncapped.
            if getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None:
                settings["attn_implementation"] = "eager"
            loader: Any = getattr(transformers, family_kind(config).loader)
            model, report = loader.from_pretrained(
                source,
                config=config,
                dtype=dtype,
                use_safetensors=True,
                output_loading_info=True,
                **settings,
                **options,
            )
            tokenizer = AutoTokenizer.from_pretrained(source, **options)
            if "gguf_file" in options:
                _split_as_stated(tokenizer, options["gguf_file"])
    except SoftPromptError:
        raise
    except Exception as error:  # whatever a damaged file makes the readers stumble over
        if held is not None and held.quantization is not None and held.device_map is not None:
            raise SoftPromptError(
                f"base {name!r} can't be {held.quantization} over this device_map, whose parts have to be all on GPUs "
                f"or all on the CPU: {first_line(error)}"
            ) from error
        raise SoftPromptError(_explain(name, error)) from error
    missing = report["missing_keys"]  # transformers has filled them with random numbers
    if held is None and kind is not None:
        missing, vars(model)["_stored_as"] = [], kind
    if not family_kind(config).words:
        missing = remove_classifier(model, missing)
    if missing:
        raise SoftPromptError(f"base {name!r} lacks weights, such as {min(missing)}")
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):  # transformers' answer to files not found
        raise SoftPromptError(_no_tokenizer(name))
    return model, tokenizer


def _split_as_stated(tokenizer: PreTrainedTokenizerBase, file: str) -> None:
    """Let a GGUF file's tokenizer split texts as the file says, where transformers takes no notice of it.

    Digits stand alone, even before spaces are joined: "a  2" is "a", two spaces, "2".
    """
    with open(file, "rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as content:
        at = content.find(_GGUF_SPLIT, 0, _GGUF_HEADER)
        if at < 0:
            return
        start = at + len(_GGUF_SPLIT)
        kind, length = struct.unpack_from("<IQ", content, start)
        stated = content[start + 12 : start + 12 + length] if kind == _GGUF_STRING else b""
    if stated.decode(errors="replace") in _SINGLE_DIGITS and tokenizer.is_fast:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )


def _explain(name: str, error: BaseException) -> str:
    found = list(causes(error))

    def is_due_to(*kinds: type[Exception]) -> bool:
        return any(isinstance(cause, kinds) for cause in found)

    if is_due_to(hub_errors.GatedRepoError):
        return f"base {name!r} is gated: accept its terms on the hub, then log in with `hf auth login`"
    if is_due_to(hub_errors.RevisionNotFoundError):
        return f"base {name!r} has no such revision on the hub"
    if is_due_to(hub_errors.RepositoryNotFoundError, hub_errors.HFValidationError):
        return f"base {name!r} is no local folder, no .gguf file, no public model on the hub, nor {EMBEDDED!r}"
    if is_due_to(hub_errors.LocalEntryNotFoundError, hub_errors.OfflineModeIsEnabled):
        return f"base {name!r} {UNREACHED}, or use {EMBEDDED!r}"
    message = str(error)
    if "trust_remote_code" in message:
        return f"base {name!r} brings its own code: pass trust_remote_code=True if you trust its authors"
    if "backend tokenizer" in message:
        return _no_tokenizer(name)
    if "use_safetensors" in message:
        return _no_safetensors(name)
    return f"base {name!r} cannot be loaded: {type(error).__name__}: {first_line(error)}"


def _unpack(folder: Path) -> None:
    """Write the embedded base into `folder`: float32 safetensors and the tokenizer."""
    file = sources.fetch_base_file()
    if sys.stderr.isatty():
        print(f"Unpacking {EMBEDDED}, once; this takes about half a minute.", file=sys.stderr)
    model, tokenizer = _read(EMBEDDED, str(file.parent), torch.float32, True, gguf_file=str(file))
    tokenizer.model_max_length = model.config.max_position_embeddings
    try:
        with _quiet(show_progress=False):
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    except SafetensorError as error:  # so it says that the disk is full, which `sources` knows as OSError
        raise OSError(str(error)) from error


@contextmanager
def _quiet(show_progress: bool) -> Iterator[None]:
    """Silence transformers and the hub on stderr, but for progress bars on a terminal where they are wanted."""
    levels = transformers_logging.get_verbosity(), hub_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.ERROR)
    hub_logging.set_verbosity(logging.ERROR)
    try:
        with nullcontext() if show_progress and sys.stderr.isatty() else redirect_stderr(io.StringIO()):
            yield
    finally:
        transformers_logging.set_verbosity(levels[0])
        hub_logging.set_verbosity(levels[1])
