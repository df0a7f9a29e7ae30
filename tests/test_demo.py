from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import binomtest
from typer.testing import CliRunner, Result

from softprompt import demo
from softprompt.bases.sources import Snippet
from softprompt.cli import app
from softprompt.progress import TrainingProgress
from softprompt.training.taskfile import load_task_file
from tests.conftest import make_base

KEYS = {
    "prompt",
    "steps",
    "seconds",
    "trainable_parameters",
    "artifact_bytes",
    "validation",
    "test",
    "best_step",
    "kernel",
    "truncated",
    "diagnoses",
    "problems",
    "report",
    "out_of_domain",
    "zero_shot",
    "base_parameters",
    "base_bytes",
    "sentences",
}


def snippets(kind: str, count: int) -> list[Snippet]:
    return [Snippet(f"{kind} {i}, {'fine' if i % 2 else 'dull'}", 1.5 if i % 2 else -0.5) for i in range(count)]


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The demonstration on a tiny random base and few sentences, in an empty working folder."""
    base = make_base()
    base.model.save_pretrained(tmp_path / "base")
    base.tokenizer.save_pretrained(tmp_path / "base")
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setattr(demo, "BASE", str(tmp_path / "base"))
    sizes = {
        "STEPS": 8,
        "BATCH_SIZE": 4,
        "EVALUATE_EVERY": 4,
        "VALIDATION_ROWS": 6,
        "TEST_ROWS": 10,
        "OUT_OF_DOMAIN_ROWS": 8,
    }
    for name, value in sizes.items():
        monkeypatch.setattr(demo, name, value)
    monkeypatch.setattr(demo, "read_snippets", lambda kind: snippets(kind, 40))


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def printed(*arguments: str) -> Any:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def refused(*arguments: str) -> str:
    result = run(*arguments)
    assert result.exit_code == (130 if "error: interrupted" in result.stderr else 1)
    assert "Traceback" not in result.stderr
    return result.stderr.splitlines()[-1]


def weights(folder: str) -> bytes:
    return (Path(folder) / "run" / "prompt" / "adapter_model.safetensors").read_bytes()


def test_no_sentence_is_in_two_files():
    movies = [*snippets("movie", 2000), Snippet("so so", 0.0), *snippets("movie", 10)]
    files = demo.split(movies, [*snippets("product", 500), Snippet("hm", 0.0)])
    assert {name: len(found) for name, found in files.items()} == {
        "test.csv": demo.TEST_ROWS,
        "validation.csv": demo.VALIDATION_ROWS,
        "train.csv": 2000 - demo.TEST_ROWS - demo.VALIDATION_ROWS,
        "out-of-domain.csv": demo.OUT_OF_DOMAIN_ROWS,
    }
    texts = [one.text for found in files.values() for one in found]
    assert len(set(texts)) == len(texts)
    assert not {"so so", "hm"} & set(texts)
    assert all(one.text.startswith("product") for one in files["out-of-domain.csv"])
    assert all(0.3 < sum(one.rating > 0 for one in found) / len(found) < 0.7 for found in files.values())


def test_the_files_do_not_hang_on_the_order_of_the_archive():
    movies, products = snippets("movie", 1000), snippets("product", 400)
    assert demo.split(movies, products) == demo.split(movies[::-1], products[::-1])


@pytest.mark.parametrize(("right", "n"), [(0, 20), (20, 20), (7, 10), (521, 600)])
def test_the_interval_is_wilsons(right, n):
    expected = binomtest(right, n).proportion_ci(method="wilson")
    assert demo.accuracy_interval(right / n, n) == pytest.approx((expected.low, expected.high))


def test_the_whole_story(tiny, monkeypatch):
    monkeypatch.setenv("SOFTPROMPT_DTYPE", "float32")
    found = printed("demo")
    assert set(found) == KEYS
    assert found["prompt"] == "softprompt-demo/run/prompt"
    assert found["report"] == "softprompt-demo/run/report.html"
    report = Path(found["report"]).read_text("utf-8")
    assert "on 10 test rows" in report
    assert "The worst mistakes on the validation rows" in report
    assert "There is no" not in report
    assert found["steps"] == 8
    assert found["trainable_parameters"] == 32 * 32
    assert found["base_parameters"] * 4 == found["base_bytes"]
    assert (found["validation"]["n"], found["test"]["n"], found["out_of_domain"]["n"]) == (6, 10, 8)
    assert {name: of["n"] for name, of in found["zero_shot"].items()} == {"test": 10, "out_of_domain": 8}
    assert [one["text"] for one in found["sentences"]] == demo.SENTENCES
    for one in found["sentences"]:
        assert set(one) == {"text", "zero_shot", "prompt"}
        for answer in (one["zero_shot"], one["prompt"]):
            assert set(answer) == {"label", "probabilities", "truncated"}


def test_what_it_leaves_is_there_to_go_on_with(tiny):
    found = printed("demo", "--output", "here")
    again = printed("evaluate", found["prompt"], "here/test.csv")
    assert again | {"seconds": 0} == found["test"] | {"seconds": 0}
    again = printed("evaluate", found["prompt"], "here/out-of-domain.csv")
    assert again | {"seconds": 0} == found["out_of_domain"] | {"seconds": 0}
    answers = printed("predict", found["prompt"], *demo.SENTENCES)["predictions"]
    assert answers == [{"text": one["text"]} | one["prompt"] for one in found["sentences"]]
    trained = printed("train", "here/task.yaml", "--output", "trained")
    assert weights("here") == (Path(trained["prompt"]) / "adapter_model.safetensors").read_bytes()
    assert load_task_file("here/task.yaml").recipe.max_steps == 8


def test_it_is_told_on_stdout(tiny):
    result = run("demo")
    assert result.exit_code == 0
    for what in (
        "Without a prompt it is right on",
        "step 5/8: loss",
        "step 4/8: validation accuracy",
        "products (never seen)",
        demo.SENTENCES[0][:20],
        "1,024 parameters",
        "for a browser: softprompt-demo/run/report.html",
        "softprompt predict softprompt-demo/run/prompt",
        "softprompt train softprompt-demo/task.yaml",
    ):
        assert what in result.stdout, what
    expected = ("dtype auto is ", "answers are", "warning: the prompt starts from words of training rows")
    assert [line for line in result.stderr.splitlines() if not line.startswith(expected)] == []


def test_nothing_is_overwritten_without_being_told_to(tiny):
    printed("demo", "--steps", "4")
    before = weights("softprompt-demo")
    assert "softprompt-demo exists" in refused("demo")
    assert weights("softprompt-demo") == before
    assert printed("demo", "--force")["steps"] == 8
    assert weights("softprompt-demo") != before
    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("years of work", encoding="utf-8")
    assert "is not a demo's folder" in refused("demo", "--output", "mine", "--force")
    assert [path.name for path in Path("mine").iterdir()] == ["thesis.txt"]
    assert "exists" in refused("demo", "--output", "mine/thesis.txt")


def interrupt(patch: pytest.MonkeyPatch, at: int) -> None:
    true_step = TrainingProgress.on_step_end

    def step(self: TrainingProgress, args: Any, state: Any, control: Any, **others: Any) -> None:
        true_step(self, args, state, control, **others)
        if state.global_step == at:
            raise KeyboardInterrupt

    patch.setattr(TrainingProgress, "on_step_end", step)


def test_an_interrupted_demo_goes_on_where_it_was(tiny, monkeypatch):
    printed("demo", "--output", "whole", "--steps", "14")
    with monkeypatch.context() as patch:
        interrupt(patch, at=12)
        message = refused("demo", "--output", "a demo", "--steps", "14")
    again = "softprompt demo --output 'a demo' --resume"
    assert message == f"error: interrupted at step 12; go on with: {again}"
    assert Path("a demo/run/checkpoint-10").exists()
    assert "another recipe" in refused("demo", "--output", "a demo", "--resume", "--steps", "20")
    assert printed(*shlex.split(again)[1:])["steps"] == 14
    assert weights("a demo") == weights("whole")


def test_one_interrupted_before_the_training_can_be_resumed_too(tiny, monkeypatch):
    def stop(*arguments: object, **others: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(demo, "evaluate", stop)
        assert "interrupted at step 0; go on with: softprompt demo --output softprompt-demo --resume" in refused("demo")
    (Path("softprompt-demo") / "test.csv").unlink()
    assert printed("demo", "--resume")["steps"] == 8
    with monkeypatch.context() as patch:
        patch.setattr(demo, "load_base", stop)
        assert refused("demo", "--output", "other") == "error: interrupted"
    assert not Path("other").exists()


def test_there_must_be_a_demo_to_resume(tiny):
    assert "there is no demo to resume" in refused("demo", "--resume")


def test_a_folder_that_cannot_be_written_is_one_line(tiny, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert re.fullmatch(r"error: softprompt-demo/.*: cannot be written: No space left on device", refused("demo"))


@pytest.mark.real
@pytest.mark.long
def test_the_real_story_in_short(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sizes = {"EVALUATE_EVERY": 2, "VALIDATION_ROWS": 20, "TEST_ROWS": 40, "OUT_OF_DOMAIN_ROWS": 20}
    for name, value in sizes.items():
        monkeypatch.setattr(demo, name, value)
    found = printed("demo", "--steps", "2")
    assert found["trainable_parameters"] == 32 * 576
    assert found["base_parameters"] > 130e6
    assert found["artifact_bytes"] < 100_000
    assert found["zero_shot"]["test"]["accuracy"] > 0.5
    assert found["test"]["accuracy"] > 0.5
