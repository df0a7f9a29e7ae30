"""A model and its tokenizer as Transformers reads them from a folder, a GGUF file or the hub, and why it cannot.

Owns the settings of `from_pretrained`, what is refused, and the one line for whatever a reader stumbles over. Does not
know where a base's files come from (`load.py`).
"""

from __future__ import annotations

import io
import logging
import mmap
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from huggingface_hub import errors as hub_errors
from huggingface_hub.utils import logging as hub_logging
from tokenizers import pre_tokenizers
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
from softprompt.bases.classifier import remove_classifier
from softprompt.bases.families import family_kind
from softprompt.bases.hub import UNREACHED, hub_or_cache
from softprompt.errors import SoftPromptError
from softprompt.text import causes, first_line

EMBEDDED = "smollm2-135m"

# What a GGUF file says of how its tokenizer splits texts: the key, then its type, its length and the value.
_GGUF_SPLIT, _GGUF_STRING, _GGUF_HEADER = b"tokenizer.ggml.pre", 8, 1 << 26
# llama.cpp's names for: first each digit alone, then as GPT-2 does.
_SINGLE_DIGITS = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}


@dataclass(frozen=True)
class Held:
    """Where and how a base's weights are held."""

    place: torch.device
    quantization: str | None = None
    device_map: str | dict[str, Any] | None = None


def read_config(name: str, source: str, **options: Any) -> PretrainedConfig:
    """The configuration, as Transformers reads it; `options` are for its call."""
    try:
        with quiet(show_progress=False):
            found: PretrainedConfig = AutoConfig.from_pretrained(source, **options)
            check_supported(name, found)
            return found
    except SoftPromptError:
        raise
    except Exception as error:
        raise SoftPromptError(_explain(name, error)) from error


def read(
    name: str, source: str, dtype: torch.dtype, show_progress: bool, held: Held | None = None, **options: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and the tokenizer, as transformers reads them; `options` are for each of its calls.

    The model is on the CPU, but where `held` has it quantised or dispatched. On the meta device one that is stored
    quantised is what it would be without that; its `_stored_as` says how.
    """
    settings: dict[str, Any] = {"quantization_config": GgufConfig(dequantize=True)} if "gguf_file" in options else {}
    try:
        with quiet(show_progress), hub_or_cache() if "revision" in options else nullcontext():
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
        return no_safetensors(name)
    return f"base {name!r} cannot be loaded: {type(error).__name__}: {first_line(error)}"


def no_safetensors(name: str) -> str:
    return (
        f"base {name!r} has no .safetensors weights; pickles (.bin), which can run code when they are read, "
        "are refused: save it with save_pretrained"
    )


def _no_tokenizer(name: str) -> str:
    return (
        f"base {name!r} has no tokenizer that can be read: put its tokenizer.json (or tokenizer.model, or vocab.json "
        "and merges.txt) beside its weights, as tokenizer.save_pretrained does"
    )


@contextmanager
def quiet(show_progress: bool) -> Iterator[None]:
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
