from __future__ import annotations

from pathlib import Path

import pytest
import torch

from softprompt import Base, PromptLibrary, SoftPrompt, SoftPromptError
from softprompt.inspection.similarity import map_tasks, token_similarity
from tests.conftest import make_base


@pytest.fixture
def library(tiny_base: Base, tmp_path: Path) -> PromptLibrary:
    found = PromptLibrary(tmp_path / "library")
    found.add("mood", SoftPrompt.from_text(tiny_base, "mood", 4))
    found.add("moods", SoftPrompt.from_text(tiny_base, "moods", 5))
    found.add("noise", SoftPrompt.random(tiny_base, 3))
    return found


def test_virtual_tokens_are_compared_by_direction() -> None:
    tokens = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]])
    assert token_similarity(tokens) == [[1, 1, 0, -1], [1, 1, 0, -1], [0, 0, 1, 0], [-1, -1, 0, 1]]


def test_a_prompt_among_those_of_a_library(tiny_base: Base, library: PromptLibrary) -> None:
    asked = SoftPrompt.from_text(tiny_base, "mode", 4)
    found = map_tasks(asked, tiny_base.identity, library)
    assert found.names == ["this prompt", "mood@1", "moods@1", "noise@1"]
    assert found.asked == 0
    means = torch.stack([p.embeddings.mean(0) for p in (asked, *(library.get(n) for n in ("mood", "moods", "noise")))])
    expected = torch.cosine_similarity(means[:, None], means[None], dim=2)
    assert torch.allclose(torch.tensor(found.similarity), expected, atol=1e-6)
    # Principal components keep what they can of the distances, and these three lie near each other.
    places = torch.tensor(found.places)
    assert places.shape == (4, 2)
    assert (places[0] - places[1]).norm() < (places[0] - places[3]).norm()
    assert found.left_out == {}


def test_a_prompt_of_the_library_is_not_there_twice(tiny_base: Base, library: PromptLibrary) -> None:
    found = map_tasks(library.get("moods"), tiny_base.identity, library)
    assert found.names == ["mood@1", "moods@1", "noise@1"]
    assert found.names[found.asked] == "moods@1"


def test_what_cannot_be_compared_is_named(tiny_base: Base, library: PromptLibrary) -> None:
    library.add("other", SoftPrompt.from_text(make_base(seed=1), "mood", 4))
    library.add("unknown", SoftPrompt(torch.ones(2, 32)))
    (library.folder / "noise" / "1" / "card.json").write_text("{")
    found = map_tasks(library.get("mood"), tiny_base.identity, library)
    assert found.names == ["mood@1", "moods@1"]
    assert set(found.left_out) == {"other", "unknown", "noise"}
    assert "cannot be used with" in found.left_out["other"]
    assert "damaged" in found.left_out["noise"]


def test_alone_in_a_library(tiny_base: Base, tmp_path: Path) -> None:
    library = PromptLibrary(tmp_path / "library")
    with pytest.raises(SoftPromptError, match="holds no prompts to compare with"):
        map_tasks(SoftPrompt.random(tiny_base, 3), tiny_base.identity, library)
    library.add("mood", SoftPrompt.from_text(tiny_base, "mood", 4))
    found = map_tasks(library.get("mood"), tiny_base.identity, library)
    assert (found.names, found.asked, found.places) == (["mood@1"], 0, [[0.0, 0.0]])
