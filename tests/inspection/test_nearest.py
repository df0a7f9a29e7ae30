from __future__ import annotations

import pytest
import torch

from softprompt import Base, SoftPrompt
from softprompt.bases import words
from softprompt.bases.words import word_ids, word_norms, written
from softprompt.inspection.nearest import find_neighbours


@pytest.fixture(params=[4096, 7])
def _chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "_CHUNK", request.param)


@pytest.mark.usefixtures("_chunk")
def test_neighbours_are_those_of_the_whole_table(tiny_base: Base) -> None:
    vectors = torch.randn(5, 32, generator=torch.Generator().manual_seed(1))
    table, ids = tiny_base.model.get_input_embeddings().weight, word_ids(tiny_base)
    cosines = torch.cosine_similarity(vectors[:, None], table[ids][None], dim=2)
    distances = (vectors[:, None] - table[ids][None]).norm(dim=2)
    for row, found in enumerate(find_neighbours(tiny_base, vectors, 4)):
        best = cosines[row].topk(4)
        assert [word.token for word in found.by_cosine] == [
            written(tiny_base.tokenizer, int(ids[i])) for i in best.indices
        ]
        assert [word.value for word in found.by_cosine] == pytest.approx(best.values.tolist(), rel=1e-5)
        near = distances[row].topk(4, largest=False)
        assert [word.value for word in found.by_distance] == pytest.approx(near.values.tolist(), rel=1e-5)


def test_a_word_is_nearest_to_itself(tiny_base: Base) -> None:
    prompt = SoftPrompt.from_text(tiny_base, "mood", 4)
    found = find_neighbours(tiny_base, prompt.embeddings, 2)
    assert [around.by_cosine[0].token for around in found] == list("mood")
    assert [around.by_distance[0].token for around in found] == list("mood")
    assert all(around.by_cosine[0].value == pytest.approx(1) for around in found)
    assert all(around.by_distance[0].value == 0 for around in found)


def test_special_added_and_untrained_tokens_are_no_words(tiny_base: Base) -> None:
    table = tiny_base.model.get_input_embeddings().weight
    tiny_base.tokenizer.add_tokens(["<mine>"])  # an id beyond the table
    with torch.no_grad():
        table[7] = 0
    ids = word_ids(tiny_base).tolist()
    assert not {0, 1, 258} & set(ids)
    assert len(ids) == 256
    assert len(word_norms(tiny_base)) == 255
    found = find_neighbours(tiny_base, table[:2].clone(), 400)  # of the special tokens themselves
    assert len(found[0].by_cosine) == len(found[0].by_distance) == 255
    assert found[0].by_distance[0].value > 0


def test_a_part_of_a_character_is_written_by_its_name(tiny_base: Base) -> None:
    (part,) = set(tiny_base.tokenizer("é")["input_ids"][:1])
    assert written(tiny_base.tokenizer, part) == tiny_base.tokenizer.convert_ids_to_tokens(part)
