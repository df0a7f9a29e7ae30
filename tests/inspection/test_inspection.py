from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from softprompt import Base, PromptLibrary, SoftPrompt, SoftPromptError, WrongBaseError, inspect
from softprompt.bases.words import word_norms
from softprompt.evaluation import Evaluation
from softprompt.inspection.importance import Importance
from softprompt.inspection.inspection import continue_alone
from tests.conftest import make_base
from tests.training.runs import TASK, rows


def moved(base: Base) -> SoftPrompt:
    """A text's tokens, of which the second has gone 3 away."""
    start = SoftPrompt.from_text(base, "mood", 4)
    step = torch.zeros(4, 32)
    step[1, 0] = 3
    return SoftPrompt(start.embeddings + step, start.card.replace(task=TASK.model_dump(exclude_none=True)))


def test_the_document(tiny_base: Base, tmp_path: Path) -> None:
    prompt = moved(tiny_base)
    library = PromptLibrary(tmp_path / "library")
    library.add("mood", prompt)
    found = inspect(tiny_base, prompt, data=rows(8), library=library, nearest=3).to_json()
    assert json.loads(json.dumps(found)) == found
    tokens = found["tokens"]
    assert [token["index"] for token in tokens] == [0, 1, 2, 3]
    assert [token["norm"] for token in tokens] == pytest.approx(prompt.embeddings.norm(dim=1).tolist())
    assert [token["drift"] for token in tokens] == pytest.approx([0, 3, 0, 0])
    assert [token["start"] for token in tokens] == list("mood")
    assert tokens[0]["cosine_to_start"] == pytest.approx(1)
    assert tokens[1]["cosine_to_start"] < 0.9
    for token in tokens:
        assert [set(word) for word in token["nearest"]] == [{"token", "similarity"}] * 3
        assert [set(word) for word in token["nearest_by_distance"]] == [{"token", "distance"}] * 3
        assert isinstance(token["importance"], float)
    assert tokens[0]["nearest"][0] == {"token": "m", "similarity": pytest.approx(1)}
    norms = word_norms(tiny_base)
    assert tokens[0]["norm_z"] == pytest.approx(float((tokens[0]["norm"] - norms.mean()) / norms.std()), abs=1e-4)
    assert found["similarity"][0][0] == pytest.approx(1)
    assert found["importance"]["measure"] == "log_loss"
    assert found["map"]["names"] == ["mood@1"]
    assert "a hint, not a translation" in found["caption"]
    assert found["drift_unknown"] is None


def test_what_is_not_known_is_null_and_said(tiny_base: Base) -> None:
    found = inspect(tiny_base, SoftPrompt(torch.ones(2, 32))).to_json()
    assert found["drift_unknown"] == "its card does not say how it started"
    for token in found["tokens"]:
        assert token["drift"] is token["cosine_to_start"] is token["start"] is token["importance"] is None
    assert found["importance"] is found["map"] is None


def test_the_prompt_is_continued_as_its_words_are(tiny_base: Base) -> None:
    ids = tiny_base.tokenizer("mood", return_tensors="pt")["input_ids"]
    said = tiny_base.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False)
    prompt = SoftPrompt.from_text(tiny_base, "mood", 4)
    assert continue_alone(tiny_base, prompt, 5) == tiny_base.tokenizer.decode(
        said[0, ids.shape[1] :], skip_special_tokens=True
    )
    almost_full = SoftPrompt.from_text(tiny_base, "mood", 255)  # of 256 positions
    assert isinstance(continue_alone(tiny_base, almost_full), str)


def test_what_cannot_be_inspected_is_refused(tiny_base: Base, tmp_path: Path) -> None:
    prompt = SoftPrompt.from_text(tiny_base, "mood", 4)
    with pytest.raises(WrongBaseError, match="tiny-llama"):
        inspect(make_base(seed=1), prompt)
    with pytest.raises(SoftPromptError, match="doesn't say what its task is"):
        inspect(tiny_base, prompt, data=rows(4))
    with pytest.raises(SoftPromptError, match="no such file"):
        inspect(tiny_base, prompt, task=TASK, data=tmp_path / "none.csv")
    with pytest.raises(SoftPromptError, match="holds no prompts"):
        inspect(tiny_base, prompt, library=PromptLibrary(tmp_path / "none"))


def test_what_a_virtual_token_pushes() -> None:
    def figures(counts: list[list[int]]) -> Evaluation:
        labels = {"yes": {"f1": 0.0}, "no": {"f1": 0.0}}
        return Evaluation(n=4, log_loss=1.0, per_label=labels, confusion=counts, seconds=0)

    whole = figures([[2, 0], [1, 1]])  # three times yes, once no
    without = [figures([[1, 1], [0, 2]]), figures([[2, 0], [2, 0]]), whole]
    assert Importance("log_loss", whole, without).pushed == ["yes", "no", None]
    text = Evaluation(n=1, exact_match=1.0, seconds=0)
    assert Importance("exact_match", text, [text]).pushed == [None]
