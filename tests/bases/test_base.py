"""What a base says of itself."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer, models

from softprompt.bases.base import Base, _vocabulary
from tests.conftest import make_tokenizer

WORDS = {"<unk>": 0, 'é\n\x01"\\': 1, "a b": 2}
KINDS = {
    "BPE": make_tokenizer().backend_tokenizer,
    "BPE with merges": Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")])),
    "WordLevel": Tokenizer(models.WordLevel(WORDS, unk_token="<unk>")),
    "WordPiece": Tokenizer(models.WordPiece(WORDS, unk_token="<unk>")),
    "Unigram": Tokenizer(models.Unigram([("a", -1.5), ("b", -0.25)])),
}


def other_form(tokenizer: Tokenizer) -> Any:
    """The same tokenizer in the hands of a release that orders its JSON, and writes its merges, in another way."""
    content = json.loads(tokenizer.to_str())
    model = content["model"]
    if "merges" in model:
        model["merges"] = [" ".join(pair) for pair in model["merges"]]
    content["model"] = dict(sorted(model.items(), reverse=True))
    if isinstance(model["vocab"], dict):
        content["model"]["vocab"] = dict(sorted(model["vocab"].items(), reverse=True))
    return SimpleNamespace(to_str=lambda: json.dumps(content, indent=1))


@pytest.mark.parametrize("kind", KINDS)
def test_the_vocabulary_is_written_as_the_fingerprint_has_always_had_it(kind: str) -> None:
    assert _vocabulary(KINDS[kind]) == KINDS[kind].to_str().partition('"vocab":')[2]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "Unigram"])
def test_however_a_release_orders_it(kind: str) -> None:
    assert _vocabulary(other_form(KINDS[kind])) == _vocabulary(KINDS[kind])


def test_room_is_what_a_prompt_leaves(tiny_base: Base) -> None:
    assert (tiny_base.room(), tiny_base.room(6)) == (256, 250)
