"""The folder of a prompt: PEFT's format plus `card.json`; a kill at any moment leaves the old or the new one.

Owns the folder's layout, checks and the swap of folders. Does not know what makes a tensor a valid
prompt (`prompt`) nor what a card's fields mean (`card`).

A save writes `.NAME.softprompt-new-*` beside the folder and renames it. Where a prompt is replaced, the old one
is first renamed to `.NAME.softprompt-old`: for a moment it is the only version, so a load falls back to it and
the next save restores it.
"""

from __future__ import annotations

import json
import os
import shutil
import time
import uuid
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor

from softprompt.errors import SoftPromptError
from softprompt.files import sync, sync_all
from softprompt.prompts.card import FORMAT_VERSION, HEAD_TYPES, Card, timestamp
from softprompt.prompts.json_text import with_short_lists
from softprompt.prompts.names import CARD, CONFIG, FILES, WEIGHTS

TENSOR = "prompt_embeddings"
_HEAD_MODULES = ("score", "classifier", "classifier.out_proj", "qa_outputs")  # by PEFT's names
POOLING = "classifier.dense"  # the layer before a classifier.out_proj, which PEFT keeps with it
STATED_BY_PEFT = (
    "base_model_name_or_path",
    "prompt_tuning_init",
    "prompt_tuning_init_text",
    "tokenizer_kwargs",
    "tokenizer_name_or_path",
)  # what a card without a softprompt initialiser takes over from PEFT's configuration

_PICKLE = "adapter_model.bin"
_ABANDONED = 3600.0  # seconds after which an unfinished save is taken for the leftover of a killed one


def save(
    embeddings: Tensor,
    card: Card,
    path: str | Path,
    *,
    head: Tensor | None = None,
    pooling: Tensor | None = None,
    force: bool = False,
) -> Path:
    """Write the folder `path` for a float32 `[P, H]` tensor and return it; parent folders are made.

    Args:
        head: `[L, H]` or `[L, H + 1]`, where the task has one.
        pooling: `[H, H + 1]`, where the head has a layer before it.
        force: replace a prompt that is already there (default: an existing `path` is an error).

    Raises:
        SoftPromptError: `path` exists (without `force`), is not a prompt's folder or holds other files too;
            or the disk refuses. What was at `path` before is then still there.
    """
    target = Path(os.path.realpath(path))  # through a link, so that what it points to is replaced and not the link
    backup = _beside(target, "old")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if backup.is_dir() and not target.exists():
            os.rename(backup, target)
        _check_replaceable(target, force)
        _sweep(target)
        new = _beside(target, f"new-{uuid.uuid4().hex[:8]}")
        try:
            _write(new, embeddings, card, head, pooling)
            if force and target.exists():
                _swap(new, target, backup)
            else:  # fails where another process has just put a prompt there
                os.rename(new, target)
                sync(target.parent)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise
    except OSError as error:
        raise SoftPromptError(
            f"cannot save the prompt to {path}: {error.strerror or error}; what was there before is unchanged"
        ) from error
    return Path(path)


def load(path: str | Path) -> tuple[Tensor, Card, Tensor | None, Tensor | None]:
    """Read the folder `path`, written by `save` or by PEFT: the `[P, H]` tensor as stored, its card as it is, and the
    head `[L, H]`, or with a bias `[L, H + 1]`, of a prompt that has one; and the layer `[H, H + 1]` before that.

    Without a `card.json` the card names no base and its initialisation is what PEFT's configuration states.

    Raises:
        SoftPromptError: a file that is missing, damaged, a pickle, too new, or does not fit the others.
    """
    target = Path(os.path.realpath(path))
    try:
        folder = target if target.exists() else _beside(target, "old")
        if not folder.exists():
            raise SoftPromptError(f"no prompt at {path}: there is no such folder")
        if not folder.is_dir():
            raise SoftPromptError(f"{path} is not a folder: a prompt is a folder with {CONFIG} and {WEIGHTS}")
        config = _read_config(folder / CONFIG)
        embeddings, head, pooling, module = _read_weights(folder / WEIGHTS, config)
        if not (folder / CARD).exists():
            return embeddings, _card_from_peft(folder, config, module), head, pooling
        card = Card.parse(_read_json(folder / CARD), str(folder / CARD))
    except OSError as error:
        raise SoftPromptError(f"cannot read {error.filename or path}: {error.strerror or error}") from error
    return embeddings, card, head, pooling


def _beside(target: Path, what: str) -> Path:
    return target.parent / f".{target.name}.softprompt-{what}"


def _check_replaceable(target: Path, force: bool) -> None:
    if not os.path.lexists(target):
        return
    if not target.is_dir():
        raise SoftPromptError(f"{target} is a file: choose another path for the prompt's folder")
    if not force:
        raise SoftPromptError(f"{target} exists: choose another path, or replace it with force=True (--force)")
    names = {entry.name for entry in target.iterdir()}
    if CONFIG not in names:
        raise SoftPromptError(f"{target} is not a prompt (no {CONFIG}) and is not replaced: choose another path")
    if others := sorted(names - set(FILES)):
        raise SoftPromptError(
            f"{target} also holds '{others[0]}', which replacing the prompt would delete: move it away first"
        )


def _sweep(target: Path) -> None:
    """Remove what killed saves left beside `target`, but nothing that a save under way may be writing."""
    for leftover in target.parent.iterdir():
        ours = leftover.name.startswith(_beside(target, "new-").name)
        if ours and time.time() - leftover.stat().st_mtime > _ABANDONED:
            shutil.rmtree(leftover, ignore_errors=True)


def _write(folder: Path, embeddings: Tensor, card: Card, head: Tensor | None, pooling: Tensor | None) -> None:
    os.mkdir(folder)
    _peft_config(embeddings, card, head).save_pretrained(str(folder))
    tensors, width = {TENSOR: embeddings}, embeddings.shape[1]
    if head is not None:
        tensors |= _named(head, width, card.head_module)
    if pooling is not None:
        tensors |= _named(pooling, width, POOLING)
    (folder / WEIGHTS).write_bytes(to_safetensors(tensors, metadata={"format": "pt"}))
    card = card.replace(format_version=FORMAT_VERSION)
    (folder / CARD).write_text(with_short_lists(card.model_dump_json(indent=2)) + "\n", encoding="utf-8")
    sync_all(folder)


def _swap(new: Path, target: Path, backup: Path) -> None:
    if backup.exists():  # a save was killed after its swap: the target is the newer of the two
        shutil.rmtree(backup)
    os.rename(target, backup)
    try:
        os.rename(new, target)
    except BaseException:
        os.rename(backup, target)
        raise
    sync(target.parent)
    shutil.rmtree(backup, ignore_errors=True)


def _peft_config(embeddings: Tensor, card: Card, head: Tensor | None) -> Any:
    from peft import PromptTuningConfig

    stated: dict[str, Any] = {}
    if card.initialisation.get("method") == "peft":
        stated = {key: card.initialisation[key] for key in STATED_BY_PEFT if key in card.initialisation}
    elif card.initialisation.get("method") == "text" and card.base is not None:
        stated = {
            "prompt_tuning_init": "TEXT",
            "prompt_tuning_init_text": card.initialisation.get("text"),
            "tokenizer_name_or_path": card.base.name,
        }
    if head is not None:
        stated["modules_to_save"] = [card.head_module.partition(".")[0]]
    if card.base is not None:
        stated["base_model_name_or_path"] = card.base.name
    try:
        return PromptTuningConfig(
            task_type=card.task_type if head is None or card.task_type in HEAD_TYPES else "SEQ_CLS",
            inference_mode=True,
            num_virtual_tokens=embeddings.shape[0],
            token_dim=embeddings.shape[1],
            num_transformer_submodules=1,
            **stated,
        )
    except ValueError as error:
        raise SoftPromptError(f"the card's initialisation is not one that PEFT can have made: {error}") from error


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SoftPromptError(f"{file} is missing: {file.parent} is not a complete prompt") from None
    except (ValueError, RecursionError) as error:
        raise SoftPromptError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise SoftPromptError(f"{file} is not valid: a JSON object is needed, not {type(content).__name__}")
    return content


def _read_config(file: Path) -> dict[str, Any]:
    config = _read_json(file)
    supported: dict[str, tuple[object, ...]] = {
        "peft_type": ("PROMPT_TUNING",),
        "task_type": (None, *HEAD_TYPES, "FEATURE_EXTRACTION", "SEQ_2_SEQ_LM", "CAUSAL_LM"),
        # Of an encoder-decoder PEFT trains the encoder's half, and keeps another.
        "num_transformer_submodules": (None, 2, 1) if config.get("task_type") == "SEQ_2_SEQ_LM" else (None, 1),
    }
    for key, values in supported.items():
        if (found := config.get(key)) not in values:
            raise SoftPromptError(f"{file}: {key} is {found!r}; softprompt reads {values[-1]!r} only")
    return config


def _read_weights(file: Path, config: dict[str, Any]) -> tuple[Tensor, Tensor | None, Tensor | None, str]:
    """The prompt, its head, the layer before that, and what Transformers' class calls the head."""
    if not file.is_file():
        if (file.parent / _PICKLE).exists():
            raise SoftPromptError(
                f"{file.parent / _PICKLE} is a pickle, which can run code when it is read, and is refused: "
                f"save the prompt as {WEIGHTS}"
            )
        raise SoftPromptError(f"{file} is missing: {file.parent} is not a complete prompt")
    try:
        with safe_open(file, framework="pt") as tensors:
            names = set(tensors.keys())
            of = config.get("task_type")
            module = _head_module(names) if of in HEAD_TYPES else None
            modules = [] if module is None else [module, *([POOLING] if module == "classifier.out_proj" else [])]
            parts = [name for one in modules for name in _names(one) if name in names]
            if names != {TENSOR, *parts} or (module is None and of in HEAD_TYPES):
                also = f" and the head '{_names(module or 'score')[0]}'" if of in HEAD_TYPES else ""
                raise SoftPromptError(f"{file} holds {sorted(names)}: a prompt holds the one tensor '{TENSOR}'{also}")
            shape = list(tensors.get_slice(TENSOR).get_shape())
            count, halves = config.get("num_virtual_tokens"), config.get("num_transformer_submodules") or 1
            stated = [count * halves if isinstance(count, int) else count, config.get("token_dim")]
            if shape != stated:
                raise SoftPromptError(f"{file}: {TENSOR} has shape {shape}, but {CONFIG} says {stated}")
            embeddings: Tensor = tensors.get_tensor(TENSOR)[:count]
            head, pooling = (
                [tensors.get_tensor(name) for name in parts if name in _names(one)] for one in (module or "", POOLING)
            )
    except SafetensorError as error:
        with file.open("rb") as handle:
            start = handle.read(4)
        if start.startswith((b"PK\x03\x04", b"\x80")):  # torch.save's zip archive, or a bare pickle
            raise SoftPromptError(
                f"{file} is a pickle, which can run code when it is read, and is refused: "
                "save the prompt as safetensors"
            ) from None
        raise SoftPromptError(f"{file} is damaged or cut off, copy or save it anew: {error}") from error
    except RuntimeError as error:  # safetensors' word for a file that cannot be opened, or was deleted a moment ago
        raise SoftPromptError(f"{file} cannot be read: {error}") from error
    return embeddings, _joined(head), _joined(pooling), module or ""


def _joined(parts: list[Tensor]) -> Tensor | None:
    """A weight `[L, H]` and where there is one its bias as one tensor `[L, H + 1]`."""
    return torch.cat([part if part.ndim == 2 else part[:, None] for part in parts], dim=1) if parts else None


def _names(module: str) -> list[str]:
    """PEFT's names for the weight of a layer and for its bias."""
    return [f"base_model.{module}.{part}" for part in ("weight", "bias")]


def _head_module(names: set[str]) -> str | None:
    """The module that a folder's tensors are a head of; None where they are of none."""
    return next((module for module in _HEAD_MODULES if _names(module)[0] in names), None)


def _named(layer: Tensor, width: int, module: str) -> dict[str, Tensor]:
    """A layer `[L, H]` or `[L, H + 1]` as PEFT names its parts."""
    weight, bias = layer.split([width, layer.shape[1] - width], dim=1)
    parts = [weight.contiguous(), *([bias[:, 0].contiguous()] if bias.shape[1] else [])]
    return dict(zip(_names(module), parts, strict=False))


def _card_from_peft(folder: Path, config: dict[str, Any], module: str) -> Card:
    written = datetime.fromtimestamp((folder / WEIGHTS).stat().st_mtime, timezone.utc)
    stated = {key: config[key] for key in STATED_BY_PEFT if config.get(key) is not None}
    of = config.get("task_type") or "CAUSAL_LM"
    return Card.parse(
        {
            "format_version": FORMAT_VERSION,
            # Of a causal base with a head it is what the base does in words.
            "task_type": "CAUSAL_LM" if module == "score" and of == "SEQ_CLS" else of,
            "head_module": module or "score",
            "initialisation": {"method": "peft", **stated},
            "versions": {"peft": str(config.get("peft_version"))},
            "created": timestamp(written),
        },
        str(folder / CONFIG),
    )
