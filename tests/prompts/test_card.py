"""Cards and identities: what is kept, what is refused, and how two bases compare."""

from __future__ import annotations

import hashlib
import json
import struct
from datetime import datetime, timedelta
from importlib.metadata import PackageNotFoundError
from typing import Any

import pytest
import torch
import transformers
from pydantic import ValidationError

from softprompt.bases.identity import BaseIdentity
from softprompt.errors import SoftPromptError, WrongBaseError
from softprompt.prompts.card import Card, digest

IDENTITY = BaseIdentity(
    name="a/b",
    architecture="LlamaForCausalLM",
    hidden_size=32,
    vocab_size=258,
    fingerprint="0a1b2c3d4e5f6789",
)


def test_same_base_under_another_name() -> None:
    IDENTITY.check_same(IDENTITY.model_copy(update={"name": "/a/copy"}))


@pytest.mark.parametrize(
    ("field", "value", "shown"),
    [
        ("architecture", "GPT2LMHeadModel", "GPT2LMHeadModel"),
        ("hidden_size", 64, "H=64"),
        ("vocab_size", 300, "V=300"),
        ("fingerprint", "ff00ff00ff00ff00", "ff00ff00ff00"),
    ],
)
def test_another_base_is_refused_naming_both(field: str, value: object, shown: str) -> None:
    other = IDENTITY.model_copy(update={"name": "c/d", field: value})
    with pytest.raises(WrongBaseError) as caught:
        IDENTITY.check_same(other, "prompt x")
    message = str(caught.value)
    for part in ("prompt x", "'a/b'", "LlamaForCausalLM", "H=32", "V=258", "0a1b2c3d4e5f", "'c/d'", shown):
        assert part in message
    assert "\n" not in message


def test_identity_is_validated() -> None:
    for bad in ({"fingerprint": "xyz"}, {"hidden_size": 0}, {"vocab_size": 0}):
        with pytest.raises(ValidationError):
            BaseIdentity.model_validate(IDENTITY.model_dump() | bad)


def test_a_new_card_knows_when_and_with_what() -> None:
    card = Card()
    assert datetime.fromisoformat(card.created).utcoffset() == timedelta(0)
    assert set(card.versions) == {"peft", "softprompt", "torch", "transformers"}
    assert card.versions["transformers"] == transformers.__version__


def test_versions_from_a_tree_that_was_never_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(package: str) -> str:
        if package == "softprompt":
            raise PackageNotFoundError(package)
        return "1.0"

    monkeypatch.setattr("softprompt.prompts.card.version", version)
    assert Card().versions == {"peft": "1.0", "torch": "1.0", "transformers": "1.0"}


def test_json_round_trip() -> None:
    card = Card(base=IDENTITY, task={"labels": ["a", "b"]}, metrics={"accuracy": 0.5})
    assert Card.parse(json.loads(card.model_dump_json())) == card


def test_a_misspelt_key_is_said_where_a_card_is_read(caplog: pytest.LogCaptureFixture) -> None:
    content = json.loads(Card(base=IDENTITY).model_dump_json()) | {"taks": {"labels": ["a", "b"]}}
    content["base"]["nickname"] = "bee"
    for _ in range(2):  # once
        assert Card.parse(content, "here/card.json") == Card(**Card.parse(content, "here/card.json").model_dump())
    assert [record.getMessage() for record in caplog.records] == [
        "here/card.json: unknown keys are passed over: taks",
        "here/card.json: base: unknown keys are passed over: nickname",
    ]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Card(taks={}),
        lambda: Card().replace(taks={}),
        lambda: Card(base={**IDENTITY.model_dump(), "taks": 1}),
    ],
)
def test_a_misspelt_key_is_refused_where_a_card_is_made(make: Any) -> None:
    with pytest.raises(SoftPromptError, match=r"card: (base\.)?taks: unknown key"):
        make()


def test_replace_validates() -> None:
    assert Card().replace(recipe={"steps": 3}).recipe == {"steps": 3}
    with pytest.raises(SoftPromptError, match=r"card: recipe\.dtype"):
        Card().replace(recipe={"dtype": torch.float32})


def test_calibration_has_a_number_for_each_label() -> None:
    card = Card(calibration={"no": -0.5, "yes": -1.5})
    assert card.log_priors(["yes", "no"]) == [-1.5, -0.5]
    assert card.log_priors(None) is None
    assert Card().log_priors(["yes", "no"]) is None
    for others in (["yes"], ["yes", "no", "maybe"]):
        with pytest.raises(SoftPromptError, match="calibrated for the labels no, yes, not for yes"):
            card.log_priors(others)
    with pytest.raises(SoftPromptError, match=r"calibration\.yes"):
        Card.parse({"format_version": 1, "calibration": {"yes": float("-inf")}})


def test_not_a_number_stays_valid_json() -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    json.loads(Card(metrics={"loss": float("nan")}).model_dump_json(), parse_constant=refuse)


def test_newer_format_asks_for_an_upgrade() -> None:
    with pytest.raises(SoftPromptError, match=r"^here/card\.json has format version 3, .* upgrade softprompt$"):
        Card.parse({"format_version": 3, "unheard": "of"}, "here/card.json")


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ({}, " has no format_version"),
        ({"format_version": "one"}, ": format_version: "),
        ({"format_version": 0}, ": format_version: "),
        ({"format_version": 1, "metrics": [1]}, ": metrics: "),
        ({"format_version": 1, "base": {"name": "a"}}, r": base\.architecture: "),
    ],
)
def test_bad_card_is_one_line_naming_the_key(content: dict[str, object], line: str) -> None:
    with pytest.raises(SoftPromptError, match=rf"^here\.json{line}") as caught:
        Card.parse(content, "here.json")
    assert "\n" not in str(caught.value)


def test_digest_is_of_little_endian_float32() -> None:
    expected = hashlib.sha256(struct.pack("<4f", 1, 3, 2, 4)).hexdigest()
    tensor = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64, requires_grad=True).T
    assert digest(tensor) == expected
