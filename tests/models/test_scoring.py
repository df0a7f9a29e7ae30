"""Likelihoods over the tree of continuations against plain forwards, one for each text and continuation."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import PreTrainedModel

from softprompt.errors import SoftPromptError
from softprompt.models import scoring
from softprompt.models.families.causal import Causal
from softprompt.models.prompted import PromptedModel
from softprompt.models.scoring import score
from tests.models.based import with_prompts
from tests.models.families import CONTEXT, PACKED, VOCABULARY, WIDTH, make_model, shared_model

TEXTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14, 15], []]
SETS = {
    "shared beginnings": [[3, 4], [3, 5, 6], [7], [3, 4, 8], [3, 5, 9]],
    "one the beginning of another": [[3], [3, 4], [3, 4, 5]],
    "single tokens": [[3], [4], [5]],
    "one": [[3, 4, 5]],
    "the same twice": [[3, 4], [5], [3, 4]],
    "a hundred": [[a, b, 7][: 1 + (a + b) % 3] for a in range(10) for b in range(20, 30)],
}


def make_prompts(*lengths: int) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(3)
    return [nn.Parameter(torch.randn(p, WIDTH, generator=generator)) for p in lengths]


@torch.no_grad()
def plain(
    model: PreTrainedModel,
    prompts: Sequence[Tensor],
    texts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
    index: Sequence[int],
) -> Tensor:
    """`[B, C]`: each text with each continuation by the base's own forward, summing the log-softmax."""
    answer = torch.zeros(len(texts), len(continuations))
    for row, text in enumerate(texts):
        for column, continuation in enumerate(continuations):
            tokens = model.get_input_embeddings()(torch.tensor([*text, *continuation]))
            whole = torch.cat([prompts[index[row]].to(tokens.dtype), tokens])[None] if prompts else tokens[None]
            logits = model(inputs_embeds=whole, use_cache=False).logits[0].log_softmax(-1)
            for i, token in enumerate(continuation, start=whole.shape[1] - len(continuation)):
                answer[row, column] += logits[i - 1, token].float()
    return answer


def assert_scores(model: PromptedModel, continuations: list[list[int]], texts=TEXTS, index=(0, 1, 0, 1)) -> None:
    expected = plain(model.base.model, list(model.prompts), texts, continuations, index)
    answer = score(model, texts, continuations, index if len(model.prompts) else None)
    assert answer.dtype == torch.float32
    torch.testing.assert_close(answer, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("route", Causal.routes)
def test_scores_equal_plain_forwards(route, name):
    assert_scores(with_prompts(shared_model("llama"), make_prompts(6, 2), route=route), SETS[name])


@pytest.mark.parametrize("family", [*PACKED, "falcon_alibi", "gpt_oss", "mamba"])
def test_every_family_scores(family):
    """With windows shorter than prompt, text and continuation, where the family has any."""
    assert_scores(with_prompts(shared_model(family), make_prompts(6, 2)), SETS["shared beginnings"])


@pytest.mark.parametrize("family", ["llama", "bloom", "mamba"])
def test_a_bare_base_scores(family):
    assert_scores(with_prompts(shared_model(family), []), SETS["shared beginnings"], TEXTS[:3], (0, 0, 0))


@given(
    texts=st.lists(st.lists(st.integers(0, VOCABULARY - 1), max_size=8), min_size=1, max_size=4),
    # Of three tokens only, so that beginnings are shared.
    continuations=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=4), min_size=1, max_size=6),
    seed=st.integers(0, 10),
)
@settings(max_examples=30, deadline=None)
def test_any_continuations_after_any_texts(texts, continuations, seed):
    index = [(row + seed) % 2 for row in range(len(texts))]
    assert_scores(with_prompts(shared_model("llama"), make_prompts(3, 5)), continuations, texts, index)


def test_an_empty_text_has_no_part_in_what_the_others_begin_with():
    model = with_prompts(shared_model("llama"), make_prompts(3, 5))
    assert_scores(model, [[3, 4]], [[], [5, 6], [5, 7]], (0, 1, 0))


def test_all_continuations_of_one_token_share_the_probability():
    model = with_prompts(shared_model("llama"), make_prompts(4))
    likelihoods = score(model, TEXTS, [[token] for token in range(VOCABULARY)])
    torch.testing.assert_close(likelihoods.exp().sum(1), torch.ones(len(TEXTS)))


@pytest.mark.parametrize("limit", ["_AT_ONCE", "_MOST_LOGITS"])
def test_batches_and_turns_of_any_size_give_the_same(monkeypatch, limit):
    model = with_prompts(shared_model("llama"), make_prompts(6, 2))
    texts, index = TEXTS * 5, [0, 1, 0, 1] * 5
    whole = score(model, texts, SETS["shared beginnings"], index)
    monkeypatch.setattr(scoring, limit, 20)
    done: list[int] = []
    parts = score(model, texts, SETS["shared beginnings"], index, progress=done.append)
    torch.testing.assert_close(parts, whole)
    assert sum(done) == len(texts)
    assert (len(done) > 1) == (limit == "_AT_ONCE")


@pytest.mark.parametrize(
    ("continuations", "nodes"),
    [
        ([[token] for token in range(50)], 0),  # single tokens cost nothing but the logits
        (SETS["shared beginnings"], 3),  # 3, 3 4 and 3 5: what has tokens after it
        (SETS["a hundred"], 10 + len({tuple(c[:2]) for c in SETS["a hundred"] if len(c) == 3})),
    ],
)
def test_each_text_is_computed_once_whatever_the_number_of_labels(continuations, nodes):
    model = make_model("llama")
    prompted_model = with_prompts(model, make_prompts(6, 2))
    lengths = []
    model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["inputs_embeds"].shape[:2].numel()), with_kwargs=True
    )
    score(prompted_model, TEXTS, continuations, [0, 1, 0, 1])
    assert lengths == [6 + 2 + sum(map(len, TEXTS)) + len(TEXTS) * nodes]


def test_no_gradient_is_kept():
    model = with_prompts(shared_model("llama"), make_prompts(3))
    assert not score(model, TEXTS, [[3]]).requires_grad


def test_no_texts_give_no_scores():
    assert score(with_prompts(shared_model("llama"), make_prompts(3)), [], [[3], [4]]).shape == (0, 2)


@pytest.mark.parametrize(
    ("prompts", "texts", "continuations", "index", "message"),
    [
        ((3,), TEXTS, [], None, "continuations to score, each of at least one token"),
        ((3,), TEXTS, [[3], []], None, "continuations to score, each of at least one token"),
        ((), TEXTS, [[3]], None, "row 3 is empty and has no prompt"),
        ((3, 3), TEXTS, [[3]], None, "prompt_index is needed"),
        ((3, 3), TEXTS, [[3]], [0, 1, 2, 0], "prompt_index of row 2 is 2"),
        ((3,), [[5] * (CONTEXT - 5)], [[3], [3, 4, 5]], None, f"row 0 has {CONTEXT - 2} tokens behind 3 virtual"),
        ((3,), [[5], [VOCABULARY]], [[3]], None, f"token {VOCABULARY} of text 1"),
        ((3,), [[5]], [[3], [-1]], None, "token -1 of continuation 1"),
    ],
)
def test_bad_input_is_refused_in_one_line(prompts, texts, continuations, index, message):
    model = with_prompts(shared_model("llama"), make_prompts(*prompts))
    with pytest.raises(SoftPromptError, match=message):
        score(model, texts, continuations, index)
