"""The soft prompt: valid tensors, its initialisers' cards, PEFT's starting points, and whose base it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, MultitaskPromptTuningConfig, PromptTuningConfig, get_peft_model
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from softprompt.bases.base import Base
from softprompt.errors import SoftPromptError, WrongBaseError
from softprompt.prompts import Card, SoftPrompt
from softprompt.prompts.card import digest
from softprompt.prompts.starts import labels, random, text, vocabulary
from tests.conftest import make_base, make_tokenizer


def test_embeddings_are_a_copy_in_float32() -> None:
    given = torch.nn.Parameter(torch.arange(6, dtype=torch.bfloat16).reshape(2, 3).T)
    prompt = SoftPrompt(embeddings=given)
    with torch.no_grad():
        given.zero_()
    assert prompt.embeddings.tolist() == [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
    assert prompt.embeddings.dtype == torch.float32
    assert prompt.embeddings.is_contiguous()
    assert not prompt.embeddings.requires_grad
    assert (prompt.num_virtual_tokens, prompt.hidden_size) == (3, 2)
    assert repr(prompt) == "SoftPrompt(P=3, H=2, base=None)"
    with pytest.raises(AttributeError):
        prompt.embeddings = given  # type: ignore[misc]


@pytest.mark.parametrize(
    ("embeddings", "line"),
    [
        (torch.zeros(3), r"shape \[3\]: they must be \[P, H\]"),
        (torch.zeros(1, 3, 4), r"shape \[1, 3, 4\]: they must be \[P, H\]"),
        (torch.zeros(0, 4), r"shape \[0, 4\]"),
        (torch.zeros(4, 0), r"shape \[4, 0\]"),
        (torch.zeros(2, 2, dtype=torch.int64), r"torch\.int64"),
        ([[1.0]], "not list"),
        (
            torch.tensor([[1.0], [2.0], [float("nan")], [float("inf")]]),
            "virtual token 2 holds NaN or infinite",
        ),
        (torch.tensor([[1.0], [-float("inf")]]), "virtual token 1"),
        (torch.tensor([[1e300]], dtype=torch.float64), "virtual token 0 .* in float32"),
    ],
)
def test_what_is_not_a_prompt(embeddings: Any, line: str) -> None:
    with pytest.raises(SoftPromptError, match=line):
        SoftPrompt(embeddings=embeddings)


def test_width_of_another_base_names_both_shapes(tiny_base: Base) -> None:
    with pytest.raises(WrongBaseError, match=r"\[5, 16\] do not fit base 'tiny-llama' .* it takes \[P, 32\]"):
        SoftPrompt(torch.zeros(5, 16), Card(base=tiny_base.identity))


def test_sha256_follows_the_tensor() -> None:
    first = SoftPrompt(torch.ones(2, 3))
    second = SoftPrompt(torch.zeros(2, 3), first.card)
    assert first.card.sha256 == first.sha256 == digest(torch.ones(2, 3))
    assert second.card.sha256 == second.sha256 == digest(torch.zeros(2, 3))
    second.embeddings.add_(1)
    assert second.sha256 == first.sha256


def test_initialisers_reach_the_tensor_and_the_card(tiny_base: Base) -> None:
    cases = [
        (
            SoftPrompt.from_text(tiny_base, "abcdef", 3, spread=True),
            text.make(tiny_base, 3, "abcdef", spread=True),
            {"method": "text", "text": "abcdef", "spread": True},
        ),
        (
            SoftPrompt.from_labels(tiny_base, ("no", "yes"), 5, fill_text="z", seed=4),
            labels.make(tiny_base, 5, ["no", "yes"], fill_text="z"),
            {"method": "labels", "labels": ["no", "yes"], "fill_text": "z", "seed": 4},
        ),
        (
            SoftPrompt.from_labels(tiny_base, ["no"], 5, seed=4),
            labels.make(tiny_base, 5, ["no"], seed=4),
            {"method": "labels", "labels": ["no"], "fill_text": None, "seed": 4},
        ),
        (
            SoftPrompt.from_vocabulary(tiny_base, 5, seed=4, most_common=9),
            vocabulary.make(tiny_base, 5, seed=4, most_common=9),
            {"method": "vocabulary", "seed": 4, "most_common": 9},
        ),
        (
            SoftPrompt.random(tiny_base, 5, seed=4, distribution="normal"),
            random.make(tiny_base, 5, seed=4, distribution="normal"),
            {"method": "random", "seed": 4, "distribution": "normal"},
        ),
    ]
    for prompt, expected, initialisation in cases:
        assert torch.equal(prompt.embeddings, expected)
        assert prompt.card.initialisation == initialisation
        assert prompt.card.base == tiny_base.identity
    assert SoftPrompt.from_text(tiny_base, "abc").num_virtual_tokens == 16


def test_from_prompt_keeps_the_base_only(tiny_base: Base) -> None:
    source = SoftPrompt.random(tiny_base, 3)
    source = SoftPrompt(source.embeddings, source.card.replace(task={"name": "old"}, metrics={"accuracy": 1.0}))
    same, longer = SoftPrompt.from_prompt(source), SoftPrompt.from_prompt(source, 4)
    assert torch.equal(same.embeddings, source.embeddings)
    assert torch.equal(longer.embeddings, source.embeddings[[0, 1, 2, 0]])
    assert longer.card.initialisation == {"method": "prompt", "sha256": source.sha256}
    assert longer.card.base == tiny_base.identity
    assert longer.card.task is None
    assert longer.card.metrics == {}
    same.embeddings.zero_()
    assert source.embeddings.abs().sum() > 0


# --- PEFT's configuration


@pytest.fixture
def tokenizer_folder(tmp_path: Path) -> Path:
    """A tokenizer other than the tiny base's: it puts <eos> before every text."""
    tokenizer: PreTrainedTokenizerFast = make_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<eos> $A", special_tokens=[("<eos>", 0)])
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def peft_embeddings(config: PromptTuningConfig) -> torch.Tensor:
    base = make_base()
    torch.manual_seed(3)
    model = get_peft_model(base.model, config)
    return model.prompt_encoder["default"].embedding.weight.detach()


@pytest.mark.parametrize("text", ["Classify:", "Classify this review as positive or negative, please:"])
@pytest.mark.parametrize("arguments", [None, {"add_bos_token": False, "padding_side": "left"}])
def test_text_of_a_peft_config_equals_peft(
    tiny_base: Base, tokenizer_folder: Path, text: str, arguments: dict[str, Any] | None
) -> None:
    config = PromptTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=20,
        prompt_tuning_init="TEXT",
        prompt_tuning_init_text=text,
        tokenizer_name_or_path=str(tokenizer_folder),
        tokenizer_kwargs=arguments,
    )
    prompt = SoftPrompt.from_peft_config(tiny_base, config)
    assert torch.equal(prompt.embeddings, peft_embeddings(config))
    special = tiny_base.embed(torch.tensor(0))
    assert torch.equal(prompt.embeddings[0], special) == (arguments is None)  # the arguments are not ignored
    assert prompt.card.base == tiny_base.identity
    assert prompt.card.initialisation["method"] == "peft"
    assert prompt.card.initialisation["prompt_tuning_init_text"] == text


@pytest.mark.parametrize("kind", ["RANDOM", "SAMPLE_VOCAB"])
def test_drawn_prompts_of_a_peft_config_equal_peft(tiny_base: Base, kind: str) -> None:
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=12, prompt_tuning_init=kind)
    prompt = SoftPrompt.from_peft_config(tiny_base, config, seed=3)
    assert torch.equal(prompt.embeddings, peft_embeddings(config))
    assert not torch.equal(prompt.embeddings, SoftPrompt.from_peft_config(tiny_base, config, seed=4).embeddings)


def test_a_config_that_names_the_base_takes_the_base_s_tokenizer(tiny_base: Base) -> None:
    config = PromptTuningConfig(
        num_virtual_tokens=4,
        prompt_tuning_init="TEXT",
        prompt_tuning_init_text="abc",
        tokenizer_name_or_path="tiny-llama",  # no such file or hub id: loading it would fail
    )
    prompt = SoftPrompt.from_peft_config(tiny_base, config)
    assert torch.equal(prompt.embeddings, text.make(tiny_base, 4, "abc"))


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"task_type": "SEQ_CLS"}, "task_type is 'SEQ_CLS', but must be 'CAUSAL_LM'"),
        ({"token_dim": 64}, "token_dim is 64, but must be 32"),
        ({"num_transformer_submodules": 2}, "num_transformer_submodules is 2, but must be 1"),
        ({"modules_to_save": ["score"]}, "modules_to_save"),
        ({"inference_mode": True}, "inference_mode is True, but must be False"),
        ({"num_virtual_tokens": 0}, "num_virtual_tokens is 0"),
        ({"num_virtual_tokens": None}, "num_virtual_tokens is None"),
        ({"num_virtual_tokens": 10_000}, "10000 virtual tokens .* 256 positions"),
        ({"prompt_tuning_init": "MAGIC"}, "'MAGIC' is not known"),
        ({"prompt_tuning_init_text": " "}, "prompt_tuning_init_text is empty"),
        ({"tokenizer_kwargs": {"trust_remote_code": True}}, "trust_remote_code, which is refused"),
    ],
)
def test_an_unsupported_peft_config(tiny_base: Base, changes: dict[str, Any], line: str) -> None:
    config = PromptTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=4,
        prompt_tuning_init="TEXT",
        prompt_tuning_init_text="abc",
        tokenizer_name_or_path="tiny-llama",
    )
    for key, value in changes.items():
        setattr(config, key, value)
    with pytest.raises(SoftPromptError, match=line):
        SoftPrompt.from_peft_config(tiny_base, config)


def test_an_unloadable_tokenizer_is_one_line(tiny_base: Base, tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text("{")
    config = PromptTuningConfig(
        num_virtual_tokens=4,
        prompt_tuning_init="TEXT",
        prompt_tuning_init_text="abc",
        tokenizer_name_or_path=str(tmp_path),
    )
    with pytest.raises(SoftPromptError, match=rf"tokenizer '{tmp_path}' cannot be loaded: \S") as caught:
        SoftPrompt.from_peft_config(tiny_base, config)
    assert "\n" not in str(caught.value)


def test_another_method_s_config(tiny_base: Base) -> None:
    with pytest.raises(SoftPromptError, match=r"PromptTuningConfig is needed, not LoraConfig"):
        SoftPrompt.from_peft_config(tiny_base, LoraConfig())
    with pytest.raises(SoftPromptError, match=r"peft_type is .*'MULTITASK_PROMPT_TUNING'"):
        SoftPrompt.from_peft_config(tiny_base, MultitaskPromptTuningConfig(num_virtual_tokens=4))


# --- whose base


def test_check_base(tiny_base: Base) -> None:
    prompt = SoftPrompt.from_text(tiny_base, "abc", 4)
    prompt.check_base(tiny_base)
    foreign = tiny_base.identity.model_copy(update={"name": "other", "fingerprint": "ff"})
    with pytest.raises(WrongBaseError, match=r"this prompt was made for base 'other' .* with 'tiny-llama'"):
        SoftPrompt(prompt.embeddings, Card(base=foreign)).check_base(tiny_base)


def test_check_base_without_a_card_s_base(tiny_base: Base) -> None:
    SoftPrompt(torch.zeros(2, 32)).check_base(tiny_base)
    with pytest.raises(WrongBaseError, match=r"p has shape \[2, 31\] .* it takes \[P, 32\]"):
        SoftPrompt(torch.zeros(2, 31)).check_base(tiny_base, "p")


# --- through the folder


def test_save_refuses_a_tensor_spoilt_in_place(tmp_path: Path) -> None:
    prompt = SoftPrompt(torch.zeros(2, 3))
    prompt.save(tmp_path / "p")
    prompt.embeddings[1, 1] = float("nan")
    with pytest.raises(SoftPromptError, match="virtual token 1"):
        prompt.save(tmp_path / "p", force=True)
    assert torch.equal(SoftPrompt.load(tmp_path / "p").embeddings, torch.zeros(2, 3))


def test_save_stamps_a_tensor_changed_in_place(tmp_path: Path) -> None:
    prompt = SoftPrompt(torch.zeros(2, 3))
    prompt.embeddings.add_(1)
    prompt.save(tmp_path / "p")
    assert json.loads((tmp_path / "p/card.json").read_text())["sha256"] == prompt.sha256
    assert torch.equal(SoftPrompt.load(tmp_path / "p").embeddings, torch.ones(2, 3))


def test_load_checks_the_base(tiny_base: Base, tmp_path: Path) -> None:
    prompt = SoftPrompt.from_text(tiny_base, "abc", 4)
    assert SoftPrompt.load(prompt.save(tmp_path / "good"), base=tiny_base).card == prompt.card
    foreign = tiny_base.identity.model_copy(update={"name": "other", "vocab_size": 300})
    SoftPrompt(prompt.embeddings, Card(base=foreign)).save(tmp_path / "bad")
    with pytest.raises(WrongBaseError, match=r"prompt .*bad was made for base 'other' .*V=300.*'tiny-llama'.*V=258"):
        SoftPrompt.load(tmp_path / "bad", base=tiny_base)
    assert SoftPrompt.load(tmp_path / "bad").card.base == foreign


def test_the_hash_is_computed_only_where_the_tensor_was_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = SoftPrompt(torch.ones(2, 4))
    calls = []
    monkeypatch.setattr("softprompt.prompts.prompt.digest", lambda *tensors: calls.append(0) or digest(*tensors))
    assert prompt.sha256 == digest(torch.ones(2, 4))
    assert calls == []
    prompt.embeddings.mul_(2)
    assert prompt.sha256 == digest(torch.full((2, 4), 2.0))
    assert calls == [0]
    with torch.inference_mode():
        assert SoftPrompt(torch.ones(2, 4)).sha256 == digest(torch.ones(2, 4))
