"""Each kind of answer on an encoder by the ordinary commands: check, train, evaluate, predict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForSequenceClassification

from tests.conftest import make_tokenizer
from tests.models.encoders import whole
from tests.test_cli import printed, refused, run

TASKS: dict[str, dict[str, Any]] = {
    "head": {"template": "{text}", "labels": ["yes", "no"]},  # auto: an encoder says no words
    "tags": {"template": "{text}", "labels": "auto", "answer": "tags"},
    "span": {"template": "{question} {text}", "target": "{part}", "answer": "span"},
    "embedding": {"template": "{question}", "target": "{text}", "answer": "embedding"},
}
METRICS = {"head": "accuracy", "tags": "f1", "span": "token_f1", "embedding": "recall_at_1"}


def row(kind: str, i: int) -> dict[str, str]:
    text = f"{'mw'[i % 2]}{i} is m{i * 3}"
    label = ["yes", "no"][i % 2] if kind == "head" else "B-PER O B-LOC"
    return {"text": text, "label": label, "question": f"q{i}?", "part": f"m{i * 3}"}


@pytest.fixture(params=TASKS)
def kind(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    name: str = request.param
    whole("bert", AutoModelForSequenceClassification).save_pretrained(tmp_path / "encoder")
    make_tokenizer().save_pretrained(tmp_path / "encoder")
    for part, start, count in (("train", 0, 40), ("dev", 40, 12), ("test", 52, 12)):
        lines = [json.dumps(row(name, i)) for i in range(start, start + count)]
        (tmp_path / f"{part}.jsonl").write_text("\n".join(lines))
    task = {
        "name": "kind",
        "base": "encoder",
        "task": TASKS[name],
        "data": {"train": "train.jsonl", "validation": "dev.jsonl", "test": "test.jsonl"},
        "prompt": {"num_virtual_tokens": 3, "init": "vocabulary"},
        "recipe": {"max_steps": 4, "batch_size": 8, "evaluate_every": 2, "warmup_steps": 0, "dtype": "float32"},
    }
    (tmp_path / "task.yaml").write_text(json.dumps(task))
    return name


def test_the_commands(kind: str) -> None:
    assert printed("check", "task.yaml")["costs"]["trainable_parameters"] > 0
    found = printed("train", "task.yaml")
    assert METRICS[kind] in found["validation"]
    measured = printed("evaluate", found["prompt"], "test.jsonl")
    assert measured | {"seconds": 0} == found["test"] | {"seconds": 0}
    answered = printed("predict", found["prompt"], "--input", "test.jsonl")["predictions"]
    assert len(answered) == 12
    for i, one in enumerate(answered, 52):
        if kind == "head":
            assert one["label"] in ("yes", "no")
        elif kind == "tags":
            assert len(one["output"].split()) == 3
        elif kind == "span":
            assert one["output"] in row(kind, i)["text"]
        else:
            assert sum(x * x for x in one["embedding"]) == pytest.approx(1, abs=1e-4)
    lines = run("predict", found["prompt"], "--input", "test.jsonl").stdout.splitlines()
    assert len(lines) == 12
    run("predict", found["prompt"], "--input", "test.jsonl", "--output", "answers.csv")
    assert len(Path("answers.csv").read_text().splitlines()) == 13
    looked = run("inspect", found["prompt"]).stdout
    assert "Most alike (cosine)" in looked
    assert "Asked to continue" not in looked  # an encoder says nothing
    assert "Asked to continue" not in Path("runs/kind/report.html").read_text()
    line = refused("train", "task.yaml", "--output", "words", "--set", "task={template: '{text}', target: '{part}'}")
    assert "(bert) says no words: task.answer can be head, tags, span, embedding, not text" in line
