"""Free text: whatever the base keeps and however texts are grouped, a token is the plain concatenation's likeliest."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from softprompt.errors import SoftPromptError
from softprompt.models import generation
from softprompt.models.generation import find_way, generate
from softprompt.models.prompted import PromptedModel
from softprompt.prompts import SoftPrompt
from tests.models.based import with_prompts
from tests.models.families import AWKWARD, CONFIGS, PACKED, VOCABULARY, WIDTH, make_model

POOLED, CACHED, PLAIN = generation._Pooled, generation._Cached, generation._Plain
NEW = 7
LENGTHS = [4, 1, 9, 3, 4, 1, 6]
INDEX = [0, 1, 2, 1, 0, 0, 1]


def greedy(model: PreTrainedModel, prompt: Tensor, ids: Sequence[int], count: int) -> list[int]:
    """The likeliest token after prompt and ids joined, computed anew, alone and without padding, for each token."""
    found: list[int] = []
    for _ in range(count):
        words = model.get_input_embeddings()(torch.tensor([[*ids, *found]], dtype=torch.long))
        row = torch.cat([prompt[None].to(words.dtype), words], 1)
        with torch.no_grad():
            found.append(int(model(inputs_embeds=row, use_cache=False).logits[0, -1].argmax()))
    return found


def texts_of(lengths: Sequence[int]) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]


def prompts_of(*lengths: int) -> list[SoftPrompt]:
    generator = torch.Generator().manual_seed(2)
    return [SoftPrompt(torch.randn(length, WIDTH, generator=generator)) for length in lengths]


@pytest.fixture(params=[*CONFIGS, *AWKWARD])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return make_model(request.param)


def test_texts_of_all_lengths_behind_different_prompts(model: PreTrainedModel) -> None:
    prompts, texts = prompts_of(3, 6, 1), texts_of(LENGTHS)
    found = generate(with_prompts(model, prompts), texts, max_new_tokens=NEW, ends=[], prompt_index=INDEX)
    assert found == [greedy(model, prompts[k].embeddings, ids, NEW) for k, ids in zip(INDEX, texts, strict=True)]


WAYS = dict.fromkeys(PACKED, POOLED) | {
    "ctrl": POOLED,
    "gemma3_of_images": POOLED,
    "openai_gpt": PLAIN,
    "rwkv": generation._OneByOne,
}


@pytest.mark.parametrize("family", WAYS)
def test_the_fastest_exact_way_is_found(family: str) -> None:
    assert find_way(with_prompts(make_model(family), prompts_of(2))) is WAYS[family]


@pytest.mark.parametrize("family", ["falcon_alibi", "bloom", "gpt_oss", "mamba", "bamba", "zamba2", "git", "diffllama"])
def test_what_cannot_be_packed_is_cached_all_the_same(family: str) -> None:
    assert find_way(with_prompts(make_model(family), prompts_of(2))) is CACHED


@pytest.mark.parametrize("way", [POOLED, CACHED, generation._OneByOne, PLAIN])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_ways_agree(monkeypatch: pytest.MonkeyPatch, way: type, dtype: torch.dtype) -> None:
    """Also with empty texts, without a prompt, where texts end at different times, and in several groups."""
    model, prompts, texts = make_model("llama", dtype), prompts_of(3, 6, 1), texts_of([*LENGTHS, 0, 0])
    index = [*INDEX, 0, 1]
    plain = [greedy(model, prompts[k].embeddings, ids, NEW) for k, ids in zip(index, texts, strict=True)]
    ends = {plain[0][2], plain[2][0], plain[5][5]}
    cut = [ids[: next((i for i, token in enumerate(ids) if token in ends), NEW)] for ids in plain]
    assert len(set(map(len, cut))) > 2
    monkeypatch.setattr(generation, "find_way", lambda model: way)
    monkeypatch.setattr("softprompt.models.scoring._AT_ONCE", 40)
    monkeypatch.setattr(generation, "_STEP_TOKENS", 17)
    finished: list[int] = []
    prompted = with_prompts(model, prompts)
    found = generate(prompted, texts, max_new_tokens=NEW, ends=ends, prompt_index=index, progress=finished.append)
    assert found == cut
    assert sum(finished) == len(texts)
    bare = generate(with_prompts(model, []), texts[:7], max_new_tokens=NEW, ends=[])
    assert bare == [greedy(model, prompts[0].embeddings[:0], ids, NEW) for ids in texts[:7]]


@pytest.mark.parametrize(
    "setting",
    [
        {"forced_eos_token_id": 5},
        {"forced_bos_token_id": 5},
        {"begin_suppress_tokens": [*range(40)]},
        {"sequence_bias": [[[5], 100.0]]},
        {"return_dict_in_generate": True, "output_scores": True},
        {"stop_strings": ["a"]},
        {"min_length": 60, "min_new_tokens": 7},
        {"num_return_sequences": 3, "num_beams": 3},
        {"repetition_penalty": 9.0, "no_repeat_ngram_size": 1, "bad_words_ids": [[7]]},
        {"cache_implementation": "static", "max_length": 3, "max_time": 0.0},
    ],
)
@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_nothing_else_of_the_generation_config_counts(family: str, setting: dict[str, object]) -> None:
    model, (prompt,), texts = make_model(family), prompts_of(3), texts_of([4, 6])
    ends = [greedy(model, prompt.embeddings, texts[0], 4)[3]]
    expected = generate(with_prompts(model, [prompt]), texts, max_new_tokens=NEW, ends=ends)
    for name, value in setting.items():
        setattr(model.generation_config, name, value)
    assert generate(with_prompts(model, [prompt]), texts, max_new_tokens=NEW, ends=ends) == expected


@pytest.mark.parametrize("family", ["llama", "bloom", "rwkv", "openai_gpt"])
def test_what_is_suppressed_never_comes(family: str) -> None:
    model, (prompt,), texts = make_model(family), prompts_of(3), texts_of([4, 6])
    first = generate(with_prompts(model, [prompt]), texts, max_new_tokens=NEW, ends=[])
    model.generation_config.suppress_tokens = [first[0][0], first[1][0], -1]
    found = generate(with_prompts(model, [prompt]), texts, max_new_tokens=NEW, ends=[])
    assert not {first[0][0], first[1][0]} & {token for ids in found for token in ids}
    assert list(map(len, found)) == [NEW, NEW]


def test_that_it_is_slow_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    model = with_prompts(make_model("openai_gpt"), prompts_of(3))
    with caplog.at_level(logging.WARNING, logger="softprompt"):
        for _ in range(2):
            generate(model, texts_of([3]), max_new_tokens=2, ends=[])
    assert [record.message for record in caplog.records if "every token" in record.message] == [
        "OpenAIGPTLMHeadModel computes free text anew for every token, which is slow (its cache: ValueError: it keeps "
        "nothing of what it has computed)"
    ]


@pytest.mark.parametrize("texts", [[[]], [[], [5], []]])
def test_a_prompt_without_finite_numbers_harms_nothing_but_its_answers(texts: list[list[int]]) -> None:
    base = with_prompts(make_model("llama"), []).base
    model = PromptedModel(base, [torch.nn.Parameter(torch.full((3, WIDTH), float("nan")))])
    found = generate(model, texts, max_new_tokens=2, ends=[])
    assert [len(answer) for answer in found] == [2] * len(texts)


def test_a_token_that_is_none_is_refused() -> None:
    with pytest.raises(SoftPromptError, match="token 61 of text 1"):
        generate(with_prompts(make_model("llama"), []), [[1], [61]], max_new_tokens=2, ends=[])
