"""Initialisers: which embeddings end up where, and which input is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from softprompt.bases.base import Base
from softprompt.bases.identity import BaseIdentity
from softprompt.errors import SoftPromptError
from softprompt.prompts.starts import examples, random, transfer, vocabulary
from softprompt.prompts.starts import labels as from_labels
from softprompt.prompts.starts import text as from_text

H = 8


@dataclass(frozen=True)
class Table:
    """An embedding table whose rows tell their ids: row i is i everywhere."""

    tokenizer: Any
    embedding_count: int = 258
    max_positions: int | None = None
    hidden_size: int = H

    @property
    def identity(self) -> BaseIdentity:
        return BaseIdentity(
            name="table",
            architecture="Table",
            hidden_size=H,
            vocab_size=self.embedding_count,
            fingerprint="00",
        )

    def embed(self, ids: Tensor) -> Tensor:
        return ids.float().unsqueeze(-1).expand(*ids.shape, H)


@pytest.fixture
def table(tiny_tokenizer: PreTrainedTokenizerFast) -> Table:
    return Table(tiny_tokenizer)


@pytest.fixture
def framing_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer that puts a special token before every text, unless told not to."""
    from tokenizers.processors import TemplateProcessing

    from tests.conftest import make_tokenizer

    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<eos> $A", special_tokens=[("<eos>", 0)])
    assert tokenizer("a")["input_ids"][0] == 0
    return tokenizer


def ids_of(rows: Tensor) -> list[float]:
    assert rows.dtype == torch.float32
    assert rows.shape[1] == H
    return rows[:, 0].tolist()


def encode(table: Table, text: str) -> list[int]:
    return table.tokenizer(text, add_special_tokens=False)["input_ids"]


def test_text_is_tiled_or_cut(table: Table) -> None:
    abc = encode(table, "abc")
    assert ids_of(from_text.make(table, 3, "abc")) == abc
    assert ids_of(from_text.make(table, 7, "abc")) == [*abc, *abc, abc[0]]
    assert ids_of(from_text.make(table, 2, "abc")) == abc[:2]


def test_text_slips_in_no_special_token(framing_tokenizer: PreTrainedTokenizerFast) -> None:
    table = Table(framing_tokenizer)
    assert ids_of(from_text.make(table, 2, "ab")) == encode(table, "ab")
    assert 0 not in ids_of(from_labels.make(table, 2, ["a", "b"]))


def test_examples_end_with_the_last_one(table: Table) -> None:
    abcd = encode(table, "abcd")
    assert ids_of(examples.make(table, 3, ["ab", "cd"])) == abcd[1:]
    assert ids_of(examples.make(table, 4, ["ab", "cd"])) == abcd
    assert ids_of(examples.make(table, 7, ["ab", "cd"])) == [*abcd[1:], *abcd]


def test_text_spread_over_a_longer_text(table: Table) -> None:
    letters = encode(table, "abcdefghi")
    assert ids_of(from_text.make(table, 3, "abcdefghi", spread=True)) == [
        letters[0],
        letters[4],
        letters[8],
    ]
    assert ids_of(from_text.make(table, 1, "abcdefghi", spread=True)) == [letters[0]]
    eight = ids_of(from_text.make(table, 8, "abcdefghi", spread=True))
    assert len(set(eight)) == 8
    assert (eight[0], eight[-1]) == (letters[0], letters[-1])
    assert torch.equal(from_text.make(table, 12, "abc", spread=True), from_text.make(table, 12, "abc"))


def test_text_equals_the_model_s_own_embeddings(tiny_base: Base) -> None:
    ids = tiny_base.tokenizer("a good film", return_tensors="pt")["input_ids"][0]
    expected = tiny_base.model.get_input_embeddings().weight[ids]
    assert torch.equal(from_text.make(tiny_base, len(ids), "a good film"), expected)


def test_labels_are_averaged_in_order_then_filled_by_text(table: Table) -> None:
    a, b, c = encode(table, "abc")
    rows = from_labels.make(table, 5, ["ab", "c"], fill_text="ba")
    assert ids_of(rows) == [(a + b) / 2, c, b, a, b]


def test_labels_are_filled_from_the_vocabulary(table: Table) -> None:
    rows = from_labels.make(table, 6, ["a", "b"], seed=3)
    assert ids_of(rows)[:2] == encode(table, "ab")
    assert torch.equal(rows[2:], vocabulary.make(table, 4, seed=3))


def test_more_labels_than_virtual_tokens_are_cut(table: Table) -> None:
    assert ids_of(from_labels.make(table, 2, list("abcd"))) == encode(table, "ab")


@pytest.mark.parametrize("labels", [[], "positive", ["a", ""], ["a", " "], ["a", 1], ["a", "b", ""]])
def test_bad_labels(table: Table, labels: Any) -> None:
    with pytest.raises(SoftPromptError, match="label"):
        from_labels.make(table, 2, labels)


def test_vocabulary_draws_each_token_once_and_no_special(table: Table) -> None:
    drawn = ids_of(vocabulary.make(table, 256))
    assert sorted(drawn) == list(range(2, 258))
    with pytest.raises(SoftPromptError, match="257 different virtual tokens cannot be drawn from 256 tokens"):
        vocabulary.make(table, 257)


def test_vocabulary_leaves_out_added_and_unused_ids() -> None:
    from tests.conftest import make_tokenizer

    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["added"])
    drawn = ids_of(vocabulary.make(Table(tokenizer, embedding_count=300), 256))
    assert sorted(drawn) == list(range(2, 258))  # 258 is the added token, and rows 259 to 299 belong to none
    smaller = ids_of(vocabulary.make(Table(tokenizer, embedding_count=100), 98))
    assert sorted(smaller) == list(range(2, 100))


def test_vocabulary_of_the_most_common(table: Table) -> None:
    assert sorted(ids_of(vocabulary.make(table, 10, most_common=10))) == list(range(2, 12))
    for bad in (0, 257):
        with pytest.raises(SoftPromptError, match=f"most_common is {bad}: it must be from 1 to 256"):
            vocabulary.make(table, 1, most_common=bad)
    with pytest.raises(SoftPromptError, match="larger most_common"):
        vocabulary.make(table, 11, most_common=10)


@pytest.mark.parametrize("initialise", [vocabulary.make, random.make])
def test_the_seed_decides(table: Table, initialise: Callable[..., Tensor]) -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, again, other = (initialise(table, 20, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)  # the caller's own random numbers are left alone
    for bad in (-1, 1.5, None, True):
        with pytest.raises(SoftPromptError, match="seed"):
            initialise(table, 20, seed=bad)


def test_random_has_the_table_s_mean_and_deviation(tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = tiny_base.model.get_input_embeddings().weight
    with torch.no_grad():
        weight.copy_(weight * torch.linspace(0.01, 3, 32) + torch.linspace(-2, 2, 32))
    monkeypatch.setattr(random, "_CHUNK", 100)  # so that several chunks are summed, the last one shorter
    noise = random.make(tiny_base, 200, distribution="normal", seed=4)
    expected = noise * weight.std(dim=0, correction=0) + weight.mean(dim=0)
    torch.testing.assert_close(random.make(tiny_base, 200, seed=4), expected)
    assert noise.mean().abs() < 0.05
    assert (noise.std() - 1).abs() < 0.05


def test_random_distribution_is_known_by_name(table: Table) -> None:
    with pytest.raises(SoftPromptError, match="'uniform': it must be 'table' or 'normal'"):
        random.make(table, 2, distribution="uniform")  # type: ignore[arg-type]


def test_transfer_tiles_or_cuts() -> None:
    rows = torch.arange(6.0, requires_grad=True).reshape(3, 2)
    assert torch.equal(transfer.make(rows, 3), rows)
    assert torch.equal(transfer.make(rows, 2), rows[:2])
    longer = transfer.make(rows, 7)
    assert torch.equal(longer, torch.cat([rows, rows, rows[:1]]))
    assert not longer.requires_grad


INITIALISERS: dict[str, Callable[[Table, Any], Tensor]] = {
    "text": lambda source, count: from_text.make(source, count, "abc"),
    "labels": lambda source, count: from_labels.make(source, count, ["a", "b"]),
    "vocabulary": vocabulary.make,
    "random": random.make,
}


@pytest.mark.parametrize("name", INITIALISERS)
@pytest.mark.parametrize("count", [0, -1, 2.0, True, None, "3"])
def test_a_count_that_is_none(table: Table, name: str, count: Any) -> None:
    with pytest.raises(SoftPromptError, match=r"^num_virtual_tokens is .* from 1 on$"):
        INITIALISERS[name](table, count)


def test_transfer_to_no_virtual_tokens() -> None:
    with pytest.raises(SoftPromptError, match="num_virtual_tokens is 0"):
        transfer.make(torch.zeros(2, 2), 0)


@pytest.mark.parametrize("name", INITIALISERS)
def test_a_prompt_must_leave_room_in_the_context(tiny_tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    source = Table(tiny_tokenizer, max_positions=100)
    assert INITIALISERS[name](source, 99).shape == (99, H)
    for count in (100, 10_000):
        with pytest.raises(SoftPromptError, match=f"{count} virtual tokens .* 100 positions of base 'table'"):
            INITIALISERS[name](source, count)


@pytest.mark.parametrize("text", ["", "  \n", None, 3])
def test_empty_text(table: Table, text: Any) -> None:
    with pytest.raises(SoftPromptError, match="the text to initialise from is empty"):
        from_text.make(table, 2, text)
    if text is not None:
        with pytest.raises(SoftPromptError, match="is empty"):
            from_labels.make(table, 2, ["a"], fill_text=text)


def test_a_text_that_the_tokenizer_cannot_see() -> None:
    blind = Table(tokenizer=lambda text, add_special_tokens: {"input_ids": []})
    with pytest.raises(SoftPromptError, match="the text to initialise from has no tokens"):
        from_text.make(blind, 2, "abc")


def test_a_token_without_an_embedding(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    source = Table(tiny_tokenizer, embedding_count=10)
    with pytest.raises(SoftPromptError, match="has no embedding: base 'table' has 10 embeddings"):
        from_text.make(source, 2, "~~")
