"""Encoder-decoders behind prompts equal Transformers' and PEFT's own computation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, PromptTuningConfig, get_peft_model
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    MarianConfig,
    MarianMTModel,
    MT5Config,
    MT5ForConditionalGeneration,
    PegasusConfig,
    PegasusForConditionalGeneration,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

import softprompt as sp
from softprompt.models.families import seq2seq
from softprompt.models.generation import _WAYS, find_way, generate
from softprompt.models.prompted import PromptedModel
from softprompt.models.scoring import score
from softprompt.tasks.encode import Encoder
from softprompt.tasks.tokens import TaskTokenizer
from tests.conftest import make_tokenizer

VOCABULARY = 258
_T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}
_BART = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 1,
    "decoder_start_token_id": 2,
    "init_std": 0.3,
}
FAMILIES: dict[str, tuple[type[PreTrainedModel], Any, dict[str, Any]]] = {
    "t5": (T5ForConditionalGeneration, T5Config, _T5),
    "flan-t5": (
        T5ForConditionalGeneration,
        T5Config,
        _T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    ),
    "mt5": (MT5ForConditionalGeneration, MT5Config, _T5),
    "bart": (BartForConditionalGeneration, BartConfig, _BART),
    "scaled bart": (BartForConditionalGeneration, BartConfig, _BART | {"scale_embedding": True}),
}
TASK = sp.Task(template="{text}:", labels=["yes", "no", "may be"])


def make(family: str, dtype: torch.dtype = torch.float32) -> sp.Base:
    kind, config, settings = FAMILIES[family]
    torch.manual_seed(0)
    model = kind(config(vocab_size=VOCABULARY, eos_token_id=0, **settings)).to(dtype).eval()
    if hasattr(model, "final_logits_bias"):
        model.final_logits_bias.normal_()
    return sp.Base(model, make_tokenizer(), family)


def prompt_of(base: sp.Base, length: int = 4, seed: int = 0) -> sp.SoftPrompt:
    return sp.SoftPrompt.from_vocabulary(base, length, seed=seed)


PAIRS = [([5, 6, 7, 8], [9, 10]), ([11], [12, 13, 14]), ([15, 16, 17, 18, 19, 20], [21]), ([5, 6, 7, 8], [22, 23])]


def ours(pairs: list[tuple[list[int], list[int]]]) -> dict[str, torch.Tensor]:
    width = max(len(text) + len(target) for text, target in pairs)
    ids, mask, labels = (torch.full((len(pairs), width), fill) for fill in (0, 0, -100))
    for row, (text, target) in enumerate(pairs):
        whole = text + target
        ids[row, : len(whole)], mask[row, : len(whole)] = torch.tensor(whole), 1
        labels[row, len(text) : len(whole)] = torch.tensor(target)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def peft_of(base: sp.Base, prompt: sp.SoftPrompt) -> Any:
    config = PromptTuningConfig(
        task_type="SEQ_2_SEQ_LM", num_virtual_tokens=prompt.num_virtual_tokens, num_transformer_submodules=1
    )
    model: Any = get_peft_model(base.model, config).eval()
    model.prompt_encoder["default"].embedding.weight.data.copy_(prompt.embeddings)
    return model


@pytest.mark.parametrize("max_tokens", [None, 8])
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradient_are_pefts(family: str, max_tokens: int | None) -> None:
    base = make(family)
    prompt = prompt_of(base)
    model = PromptedModel(base, [prompt], max_tokens=max_tokens)
    output = model(**ours(PAIRS))
    output.loss.backward()
    peft = peft_of(base, prompt)
    count = sum(len(target) for _, target in PAIRS)
    losses = [
        peft(
            input_ids=torch.tensor([text]), attention_mask=torch.ones(1, len(text)), labels=torch.tensor([target])
        ).loss
        * len(target)
        for text, target in PAIRS
    ]
    expected = sum(losses) / count
    expected.backward()  # type: ignore[union-attr]
    torch.testing.assert_close(output.loss, expected, rtol=1e-4, atol=1e-5)
    grad = peft.prompt_encoder["default"].embedding.weight.grad
    torch.testing.assert_close(model.prompts[0].grad, grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_several_prompts_in_a_batch_equal_one_by_one(family: str) -> None:
    base = make(family)
    prompts = [prompt_of(base, 3, 1), prompt_of(base, 6, 2)]
    index = [0, 1, 1, 0]
    together = PromptedModel(base, prompts)(**ours(PAIRS), prompt_index=torch.tensor(index)).row_loss
    for row, k in enumerate(index):
        alone = PromptedModel(base, [prompts[k]])(**ours([PAIRS[row]])).row_loss
        torch.testing.assert_close(together[row], alone[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_is_transformers_own(family: str) -> None:
    base = make(family)
    prompt, texts = prompt_of(base), [text for text, _ in PAIRS]
    found = generate(PromptedModel(base, [prompt]), texts, max_new_tokens=6, ends={0})
    for text, answer in zip(texts, found, strict=True):
        row = torch.cat([prompt.embeddings, base.embed(torch.tensor(text))])[None]
        start = torch.tensor([[seq2seq.start_token(base.model)]])
        own: list[int] = []
        while len(own) < 6:
            ids = torch.cat([start, torch.tensor([own], dtype=torch.long)], 1)
            with torch.no_grad():
                token = int(base.model(inputs_embeds=row, decoder_input_ids=ids).logits[0, -1].argmax())
            if token == 0:
                break
            own.append(token)
        assert answer == own


@pytest.mark.parametrize(
    ("kind", "config"), [(PegasusForConditionalGeneration, PegasusConfig), (MarianMTModel, MarianConfig)]
)
def test_one_that_scales_its_words_elsewhere_is_refused(kind: Any, config: Any) -> None:
    model = kind(config(vocab_size=VOCABULARY, eos_token_id=0, **_BART, scale_embedding=True)).eval()
    with pytest.raises(sp.SoftPromptError, match="computes something else from embeddings than from token ids"):
        PromptedModel(sp.Base(model, make_tokenizer(), "scaled"), [])


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_the_cached_way_is_taken(family: str) -> None:
    assert find_way(PromptedModel(make(family), [])) is _WAYS["decoder_cached"]


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_labels_share_one_pass_of_the_encoder(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    base = make(family)
    model, prompt = PromptedModel(base, [prompt_of(base)]), prompt_of(base)
    encoded = []
    real = seq2seq.encode
    monkeypatch.setattr(seq2seq, "encode", lambda m, p, texts: encoded.append(len(texts)) or real(m, p, texts))
    labels = [[5], [6, 7], [6, 8, 9]]
    found = score(model, [[11, 12], [13]], labels)
    assert encoded == [2]
    peft = peft_of(base, prompt)
    for row, text in enumerate([[11, 12], [13]]):
        for column, label in enumerate(labels):
            loss = peft(
                input_ids=torch.tensor([text]), attention_mask=torch.ones(1, len(text)), labels=torch.tensor([label])
            ).loss
            assert float(found[row, column]) == pytest.approx(-loss.item() * len(label), rel=1e-4)


def test_texts_end_as_the_tokenizer_ends_them_and_targets_stand_alone() -> None:
    tokenizer = make_tokenizer()
    apart = TaskTokenizer(tokenizer, TASK, apart=True)
    apart.special.end = [0]
    assert apart.texts([[("ab", True), (":", False)]]) == [[*tokenizer("ab:")["input_ids"], 0]]
    assert apart.following([[(" yes", False)]]) == [tokenizer("yes")["input_ids"]]


def test_peft_loads_ours_and_we_load_pefts(tmp_path: Path) -> None:
    base = make("t5")
    prompt = prompt_of(base)
    prompt.save(tmp_path / "ours")
    loaded: Any = PeftModel.from_pretrained(base.model, str(tmp_path / "ours"))
    assert loaded.peft_config["default"].task_type == "SEQ_2_SEQ_LM"
    assert torch.equal(loaded.prompt_encoder["default"].embedding.weight, prompt.embeddings)
    again = sp.SoftPrompt.load(tmp_path / "ours", base)
    assert torch.equal(again.embeddings, prompt.embeddings)
    whole: Any = get_peft_model(make("t5").model, PromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=5))
    whole.save_pretrained(str(tmp_path / "peft"))
    read = sp.SoftPrompt.load(tmp_path / "peft", base)
    assert torch.equal(read.embeddings, whole.prompt_encoder["default"].embedding.weight[:5])
    assert read.card.task_type == "SEQ_2_SEQ_LM"


@pytest.mark.parametrize("family", ["t5", "bart"])
@pytest.mark.parametrize("kind", ["words", "head", "text"])
def test_the_whole_story(family: str, kind: str, tmp_path: Path) -> None:
    base = make(family)
    task = (
        TASK.answered_by(kind) if kind != "text" else sp.Task(template="{text}:", target="{answer}", max_new_tokens=4)
    )
    rows = [
        sp.Row({"text": "mwz"[i % 3] + str(i)}, i % 3 if kind != "text" else None, (TASK.labels or [])[i % 3])
        for i in range(24)
    ]
    recipe = sp.Recipe(max_steps=4, batch_size=4, evaluate_every=2, warmup_steps=0)
    run = sp.train(
        base, prompt_of(base), task, train=rows[:16], validation=rows[16:], recipe=recipe, output=tmp_path / "r"
    )
    assert run.validation is not None
    again = sp.SoftPrompt.load(tmp_path / "r/prompt", base)
    assert sp.predict(base, again, task, ["m1"]) == sp.predict(base, run.prompt, task, ["m1"])


def test_in_bfloat16() -> None:
    base = make("t5", torch.bfloat16)
    wide = make("t5")
    prompt = prompt_of(wide)
    losses = [PromptedModel(one, [prompt])(**ours(PAIRS)).loss.item() for one in (base, wide)]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_loaded_from_a_folder(tmp_path: Path) -> None:
    base = make("t5")
    base.model.save_pretrained(tmp_path / "t5")
    base.tokenizer.save_pretrained(tmp_path / "t5")
    loaded = sp.load_base(str(tmp_path / "t5"), dtype="float32")
    assert loaded.identity.architecture == "T5ForConditionalGeneration"
    assert Encoder(loaded, TASK).answer.label_ids is not None
    assert sp.predict(loaded, prompt_of(loaded), TASK, ["a"])


def test_a_route_of_another_family() -> None:
    with pytest.raises(sp.SoftPromptError, match="route is 'packed': one of encoder_decoder"):
        PromptedModel(make("t5"), [], route="packed")
