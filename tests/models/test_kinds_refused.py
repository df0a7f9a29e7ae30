"""What a base or a folder cannot do is said in one line, wherever it is asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoModelForSequenceClassification, T5Config, T5ForConditionalGeneration

import softprompt as sp
from softprompt.models.generation import generate
from softprompt.models.prompted import PromptedModel
from softprompt.prompts.library import PromptLibrary
from softprompt.serving.catalogue import Catalogue
from softprompt.tasks.encode import Encoder
from tests.conftest import make_base, make_tokenizer
from tests.models.encoders import base_of, whole

TAGS = sp.Task(template="{words}", labels=["O", "B-PER"], answer="tags")
SPANS = sp.Task(template="{question} {context}", target="{answer}", answer="span")
PAIRS = sp.Task(template="{question}", target="{context}", answer="embedding")


def encoder() -> sp.Base:
    return base_of(whole("bert", AutoModelForSequenceClassification), "tiny")


@pytest.mark.parametrize("task", [TAGS, SPANS, PAIRS], ids=["tags", "span", "embedding"])
def test_an_encoder_decoder_gives_no_states(task: sp.Task) -> None:
    config = T5Config(vocab_size=258, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0)
    base = sp.Base(T5ForConditionalGeneration(config).eval(), make_tokenizer(), "t5")
    with pytest.raises(sp.SoftPromptError, match=rf"gives no states .* can be words, head, text, not {task.kind}"):
        Encoder(base, task)


def test_an_encoder_does_not_generate() -> None:
    base = encoder()
    with pytest.raises(sp.SoftPromptError, match="is an encoder: it does not generate"):
        generate(PromptedModel(base, []), [[5, 6]], max_new_tokens=2, ends={0})


@pytest.mark.parametrize("kind", ["P_TUNING", "PREFIX_TUNING", "MULTITASK_PROMPT_TUNING"])
def test_another_kind_of_pefts_prompts_is_named(kind: str, tmp_path: Path) -> None:
    base = encoder()
    sp.SoftPrompt.from_vocabulary(base, 2).save(tmp_path / "prompt")
    file = tmp_path / "prompt/adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"peft_type": kind}))
    with pytest.raises(sp.SoftPromptError, match=f"peft_type is '{kind}'; softprompt reads 'PROMPT_TUNING' only"):
        sp.SoftPrompt.load(tmp_path / "prompt", base)


def test_a_head_of_other_labels() -> None:
    base = encoder()
    task = sp.Task(template="{text}", labels=["yes", "no"], answer="head")
    start = sp.SoftPrompt.from_vocabulary(base, 2).with_head(base, 2, "SEQ_CLS")
    prompt = sp.SoftPrompt(start.embeddings, start.card.replace(task=task.model_dump(exclude_none=True)), start.head)
    other = sp.Task(template="{text}", labels=["yes", "maybe"], answer="head")
    with pytest.raises(sp.SoftPromptError, match="head was learned for other labels"):
        sp.predict(base, prompt, other, ["a"])


def test_prompts_for_different_answers_are_asked_apart() -> None:
    base = encoder()
    start = sp.SoftPrompt.from_vocabulary(base, 2)
    with pytest.raises(sp.SoftPromptError, match=r"different kinds of answers \(SEQ_CLS, TOKEN_CLS\)"):
        PromptedModel(base, [start.with_head(base, 2, kind) for kind in ("SEQ_CLS", "TOKEN_CLS")])


def test_the_server_refuses_tags_without_a_task(tmp_path: Path) -> None:
    base = make_base()
    library = PromptLibrary(tmp_path)
    library.add("tags", sp.SoftPrompt.from_vocabulary(base, 2).with_head(base, 2, "TOKEN_CLS"))
    with pytest.raises(sp.SoftPromptError, match="it is for TOKEN_CLS, and no task says how: add it again with --task"):
        Catalogue(base, library).read("tags")
