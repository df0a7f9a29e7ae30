from __future__ import annotations

import errno
import json
import os
import pickle
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

import softprompt
from softprompt import SoftPrompt, evaluate, load_base
from softprompt.bases.base import Base
from softprompt.cli import app
from softprompt.commands.terminal import print_result
from softprompt.progress import TrainingProgress
from softprompt.tasks import Task
from tests.conftest import make_base

ROOT = Path(__file__).parents[1]
LABELS = ["negative", "positive"]
TASK = {"template": "Text: {text}\nMood:", "target": " {label}", "labels": LABELS, "metric": "accuracy"}
FILE = """\
name: mood
base: {base}
task: {{template: "Text: {{text}}\\nMood:", target: " {{label}}", labels: [negative, positive]}}
data: {{train: train.csv, validation: dev.csv, test: test.csv}}
prompt: {{num_virtual_tokens: 4, init_text: "Mood?"}}
recipe: {{max_steps: 12, batch_size: 4, evaluate_every: 4, save_every: 4, log_every: 2, dtype: float32}}
"""
FREE_TEXT = """\
name: colours
base: {base}
task: {{template: "{{thing}} is {{how}}", target: " {{colour}}", max_new_tokens: 3}}
data: {{train: colours.jsonl}}
prompt: {{init: random, num_virtual_tokens: 3}}
recipe: {{max_steps: 2, batch_size: 2, dtype: float32}}
"""
COLOURS = [{"thing": "grass", "how": "often", "colour": "green"}, {"thing": "coal", "how": "always", "colour": "black"}]
CLASSIFICATION_KEYS = {"n", "accuracy", "macro_f1", "log_loss", "per_label", "confusion", "truncated", "seconds"}
TEXT_KEYS = {"n", "exact_match", "token_f1", "rouge_l", "bleu", "truncated", "seconds"}
TRAIN_KEYS = {
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
}


def run(*arguments: object, stdin: str | bytes | None = None) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)


def printed(*arguments: object, stdin: str | bytes | None = None) -> Any:
    """What a command that succeeds prints with `--json`."""
    result = run(*arguments, "--json", stdin=stdin)
    assert result.exit_code == 0, result.output
    assert result.stdout.count("\n") == 1
    return json.loads(result.stdout)


def refused(*arguments: object, stdin: str | bytes | None = None) -> str:
    """The one line of a command that must fail."""
    result = run(*arguments, stdin=stdin)
    *progress, last = result.stderr.splitlines()
    assert result.exit_code == (130 if last.startswith("error: interrupted") else 1), result.output
    assert result.stdout == ""
    assert last.startswith("error: ")
    told = (
        "step ",
        "warning: ",
        "base ",
        "data.validation: ",
        "dtype auto",
        "answers are read by",
        "the head fitted again",
    )
    assert all(line.startswith(told) or ".csv: " in line for line in progress)
    return last.removeprefix("error: ")


def rows(count: int, start: int = 0) -> str:
    words = (("awful", "bad", "poor"), ("fine", "good", "nice"))
    numbers = range(start, start + count)
    return "text,label\n" + "".join(f"{words[i % 2][i % 3]} {i},{LABELS[i % 2]}\n" for i in numbers)


def weights(prompt: str | Path) -> bytes:
    return (Path(prompt) / "adapter_model.safetensors").read_bytes()


def save_base(base: Base, folder: Path) -> Path:
    base.model.save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
    return folder


def make_project(folder: Path, base: Path) -> Path:
    (folder / "task.yaml").write_text(FILE.format(base=base), encoding="utf-8")
    (folder / "colours.yaml").write_text(FREE_TEXT.format(base=base), encoding="utf-8")
    (folder / "colours.jsonl").write_text("".join(json.dumps(row) + "\n" for row in COLOURS), encoding="utf-8")
    for name, count, start in (("train", 40, 0), ("dev", 12, 40), ("test", 10, 60)):
        (folder / f"{name}.csv").write_text(rows(count, start), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(make_base(), tmp_path_factory.mktemp("bases") / "tiny")


@pytest.fixture
def project(tmp_path: Path, base_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: task files and their data."""
    monkeypatch.chdir(tmp_path)
    return make_project(tmp_path, base_folder)


@pytest.fixture(scope="session")
def _trained(tmp_path_factory: pytest.TempPathFactory, base_folder: Path) -> Path:
    folder = make_project(tmp_path_factory.mktemp("trained"), base_folder)
    for name in ("task", "colours"):
        assert run("train", folder / f"{name}.yaml", "--output", folder / name).exit_code == 0
    return folder


@pytest.fixture
def prompt(project: Path, _trained: Path) -> Path:
    """A trained prompt of one's own, and the project as the working folder."""
    return Path(shutil.copytree(_trained / "task" / "prompt", project / "prompt"))


@pytest.fixture
def text_prompt(project: Path, _trained: Path) -> Path:
    return Path(shutil.copytree(_trained / "colours" / "prompt", project / "text-prompt"))


# What is printed


def test_train_prints_its_document(project, base_folder):
    found = printed("train", "task.yaml")
    assert set(found) == TRAIN_KEYS
    assert found["prompt"] == os.path.join("runs", "mood", "prompt")
    assert found["steps"] == 12
    assert found["best_step"] in (4, 8, 12)
    assert found["seconds"] > 0
    assert found["trainable_parameters"] == 4 * 32
    assert found["artifact_bytes"] == sum(file.stat().st_size for file in Path(found["prompt"]).iterdir())
    assert found["truncated"] == 0
    assert set(found["validation"]) == set(found["test"]) == CLASSIFICATION_KEYS
    assert (found["validation"]["n"], found["test"]["n"]) == (12, 10)
    card = SoftPrompt.load(found["prompt"], load_base(base_folder, dtype="float32")).card
    assert card.task == TASK | {"answer": "words", "max_new_tokens": 64}
    assert card.base.name == str(base_folder)
    assert card.metrics["validation"] == found["validation"]


@pytest.mark.parametrize("count", [0, 4])
def test_a_head_is_trained_measured_and_asked(project, count):
    found = printed("train", "task.yaml", "--set", "task.answer=head", "--set", f"prompt.num_virtual_tokens={count}")
    assert found["steps"] == (12 if count else 0)
    assert found["trainable_parameters"] == (count + 2) * 32
    assert (
        "a head (fitted" in Path(found["report"]).read_text() or "a head (trained" in Path(found["report"]).read_text()
    )
    assert printed("evaluate", found["prompt"], "test.csv")["accuracy"] == found["test"]["accuracy"]
    (answer,) = printed("predict", found["prompt"], "a fine film")["predictions"]
    assert set(answer["probabilities"]) == {"negative", "positive"}
    if not count:
        assert "has no virtual tokens to inspect" in refused("inspect", found["prompt"])


def test_train_without_validation_and_test_has_nulls(project):
    found = printed("train", "colours.yaml", "--output", "here")
    assert set(found) == TRAIN_KEYS
    assert found["prompt"] == os.path.join("here", "prompt")
    assert found["validation"] is None
    assert found["test"] is None
    assert (found["steps"], found["best_step"]) == (2, 2)


def test_the_test_is_of_the_best_prompt(project, base_folder):
    found = printed("train", "task.yaml", "--set", "recipe.max_steps=16", "--set", "recipe.learning_rate=0.5")
    base = load_base(base_folder, dtype="float32")
    again = evaluate(base, SoftPrompt.load(found["prompt"]), Task(**TASK), "test.csv").to_json()
    assert again | {"seconds": 0} == found["test"] | {"seconds": 0}


def test_settings_and_a_validation_fraction(project):
    found = printed("train", "task.yaml", "--set", "data.validation=0.25", "--set", "prompt.num_virtual_tokens=6")
    assert found["validation"]["n"] == 10
    assert found["trainable_parameters"] == 6 * 32


def test_evaluate_prints_its_document(prompt, base_folder):
    found = printed("evaluate", prompt, "test.csv")
    assert set(found) == CLASSIFICATION_KEYS
    expected = evaluate(
        load_base(base_folder, dtype="float32"), SoftPrompt.load(prompt), Task(**TASK), "test.csv"
    ).to_json()
    assert found | {"seconds": 0} == expected | {"seconds": 0}


def test_evaluate_prints_the_figures_of_free_text(text_prompt):
    found = printed("evaluate", text_prompt, "colours.jsonl")
    assert set(found) == TEXT_KEYS
    assert found["n"] == 2


def test_predict_prints_labels(prompt, base_folder):
    texts = ["nice day", "[bold]a\tbad[/bold] ☔ day"]
    found = printed("predict", prompt, *texts)
    expected = softprompt.predict(load_base(base_folder, dtype="float32"), SoftPrompt.load(prompt), Task(**TASK), texts)
    assert found == {
        "predictions": [
            {"text": text, "label": one.label, "probabilities": one.probabilities, "truncated": False}
            for text, one in zip(texts, expected, strict=True)
        ]
    }
    for one in found["predictions"]:
        assert list(one["probabilities"]) == LABELS
        assert sum(one["probabilities"].values()) == pytest.approx(1)


def test_predict_prints_texts_and_columns(text_prompt):
    found = printed("predict", text_prompt, "--input", "colours.jsonl")
    assert [set(one) for one in found["predictions"]] == [{"text", "columns", "output", "truncated"}] * 2
    assert found["predictions"][0]["text"] == "grass is often"
    assert found["predictions"][0]["columns"] == {"thing": "grass", "how": "often"}


def test_texts_that_are_cut_are_said(prompt, base_folder):
    long = "good " * 200
    told = "warning: 1 of 2 texts were cut: the base's context has room for 252 tokens of text and answer"
    asked = run("predict", prompt, "nice", long, "--json")
    assert [one["truncated"] for one in json.loads(asked.stdout)["predictions"]] == [False, True]
    assert told in asked.stderr.splitlines()
    Path("long.csv").write_text(f"text,label\nnice,positive\n{long},positive\n")
    asked = run("evaluate", prompt, "long.csv")
    assert told in asked.stderr.splitlines()
    assert "texts cut" in asked.stdout
    asked = run("train", "task.yaml", "--set", "data.train=long.csv", "--set", "data.validation=null", "--output", "x")
    assert "all 2 rows have the label" in asked.stderr  # known before anything is cut
    Path("long.csv").write_text(f"text,label\nnice,positive\n{long},negative\n")
    asked = run("train", "task.yaml", "--set", "data.train=long.csv", "--set", "data.validation=null", "--output", "x")
    assert told in asked.stderr.splitlines()


def test_predict_reads_files_and_stdin(prompt):
    Path("in.tsv").write_text("other\ttext\n1\tnice\n2\tbad", encoding="utf-8")
    from_file = printed("predict", prompt, "--input", "in.tsv")
    assert from_file == printed("predict", prompt, "nice", "bad")
    assert from_file == printed("predict", prompt, "--input", "-", stdin="nice\nbad\n")
    assert from_file == printed("predict", prompt, "--input", "-", stdin=b"\xef\xbb\xbfnice\r\nbad")


def test_people_get_tables_and_lines(project):
    result = run("train", "task.yaml")
    assert result.exit_code == 0
    assert "runs/mood/prompt" in result.stdout
    assert "Next: softprompt predict runs/mood/prompt TEXT" in result.stdout
    for what in ("validation", "test", "accuracy", "128 parameters"):
        assert what in result.stdout
    assert re.search(
        r"step 12/12: loss [\d.]+, gradient norm [\d.]+, update [\d.]+%, tokens/s [\d,]+, time left 0:00:00",
        result.stderr,
    )
    assert re.search(r"step 8/12: validation accuracy [\d.]+", result.stderr)
    result = run("evaluate", "runs/mood/prompt", "test.csv")
    for what in ("test.csv", "accuracy", "precision", "negative"):
        assert what in result.stdout
    assert result.stderr == ""
    result = run("predict", "runs/mood/prompt", "a [red]nice\n  day")
    assert re.fullmatch(r"(negative|positive)\t[01]\.\d{3}\ta \[red\]nice day\n", result.stdout)
    assert result.stderr == ""


def test_free_text_is_printed_as_it_is(text_prompt):
    outputs = [one["output"] for one in printed("predict", text_prompt, "--input", "colours.jsonl")["predictions"]]
    assert run("predict", text_prompt, "--input", "colours.jsonl").stdout == "".join(f"{one}\n" for one in outputs)


def test_version_and_help():
    assert run("--version").stdout == f"softprompt {softprompt.__version__}\n"
    for option in ("--help", "-h"):
        told = " ".join(run(option).stdout.split())
        places = [told.index(f"softprompt {command}") for command in ("init", "train", "predict", "library", "serve")]
        assert places == sorted(places)  # the story in its order
        assert "docs/" in told
    for command in ("train", "predict", "prune", "compare", "demo", "init"):
        assert "-o" in run(command, "-h").stdout


def test_help_and_wrong_usage_need_no_pytorch():
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom softprompt.cli import app\n"
        "for words in (['--help'], ['train', '--help'], ['--version'], ['predict'], ['train', 'x', '--nonsense']):\n"
        "    print(CliRunner().invoke(app, words).exit_code)\n"
        "print(sorted({'torch', 'transformers', 'numpy', 'datasets'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split("\n") == ["0", "0", "0", "2", "2", "[]", ""]


@pytest.mark.parametrize(
    "arguments",
    [
        ["train"],
        ["train", "a", "b"],
        ["train", "a.yaml", "--resume", "--force"],
        ["demo", "--resume", "--force"],
        ["demo", "--steps", "0"],
        ["predict", "p"],
        ["predict", "p", "text", "--input", "f.csv"],
        ["evaluate", "p"],
        ["nonsense"],
    ],
)
def test_wrong_usage_exits_with_2(arguments):
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""


# Bases and tasks that the card doesn't name


def test_a_prompt_saved_by_peft_needs_base_and_task(prompt, base_folder):
    expected = printed("evaluate", prompt, "test.csv")
    (prompt / "card.json").unlink()
    assert "doesn't say what its task is: give a task file with --task" in refused("evaluate", prompt, "test.csv")
    config = json.loads((prompt / "adapter_config.json").read_text(encoding="utf-8"))
    (prompt / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": None}))
    assert "doesn't say which base it is for: give it with --base" in refused(
        "predict", prompt, "text", "--task", "task.yaml"
    )
    found = printed("evaluate", prompt, "test.csv", "--task", "task.yaml", "--base", base_folder, "--dtype", "float32")
    assert found | {"seconds": 0} == expected | {"seconds": 0}


def test_another_task_can_be_asked(prompt):
    text = Path("task.yaml").read_text(encoding="utf-8")
    Path("other.yaml").write_text(text.replace("[negative, positive]", "[positive, negative]"), encoding="utf-8")
    found = printed("predict", prompt, "nice", "--task", "other.yaml")
    assert list(found["predictions"][0]["probabilities"]) == ["positive", "negative"]


# Bad input


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "no such file"),
        (b"", "the file is empty"),
        (b"\n \n", "the file is empty"),
        (b"text,label\n", "there are no rows of data"),
        (b"words,label\na,negative\n", "no column 'text'"),
        (b"text,mood\na,negative\n", "no column 'label'"),
        (b"text,label\na,negative\n  ,positive\n", "row 2 (line 3): column 'text' is empty"),
        (b"text,label\na,negative\nb,neutral\n", "row 2 (line 3): label 'neutral' is not one of"),
        ("text,label\né,negative\n".encode() + b"b\xff,positive\n", "line 3 is not UTF-8"),
        (b"text,label,text\na,negative,b\n", "the column 'text' is there more than once"),
    ],
)
def test_unusable_rows_are_refused_before_anything_is_written(project, prompt, content, says):
    path = Path("rows.csv")
    if content is not None:
        path.write_bytes(content)
    for key in ("train", "validation", "test"):
        message = refused("train", "task.yaml", "--set", f"data.{key}=rows.csv")
        assert "rows.csv" in message
        assert says in message
    assert not Path("runs").exists()
    assert says in refused("evaluate", prompt, "rows.csv")


def test_one_label_only_is_refused(project):
    Path("train.csv").write_text("text,label\na,positive\nb,positive\n", encoding="utf-8")
    assert "all 2 rows have the label ['positive']" in refused("train", "task.yaml")
    assert not Path("runs").exists()


def test_a_byte_order_mark_and_a_long_row_are_taken(project):
    text = rows(12) + f"{'long ' * 20_000},positive\n"
    Path("train.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    Path("test.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    found = printed("train", "task.yaml")
    assert found["truncated"] == 1
    assert found["test"]["truncated"] == 1
    result = run("train", "task.yaml", "--force")
    assert "1 training text was cut to fit the context" in result.stdout


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("recipe.learning_rate=0", "recipe.learning_rate: a number above 0"),
        ("recipe.learning_rate=-1", "recipe.learning_rate: a number above 0"),
        ("prompt.num_virtual_tokens=-1", "prompt.num_virtual_tokens: a whole number from 1 on"),
        ("prompt.num_virtual_tokens=10000", "10000 virtual tokens leave no room for text in the 256 positions"),
        ("prompt.num_virtual_tokens=256", "256 virtual tokens leave no room"),
        ("prompt.num_virtual_tokens=250", "shorten the template or use fewer virtual tokens"),
        ("base=nowhere/at.gguf", "base 'nowhere/at.gguf': there is no such file"),
        ("task.labels=[negative]", "task.labels: at least 2 are needed"),
        ("data.validation=0.01", "validation: 0.01 of 40 rows is too little for 2 labels"),
        ("recipe.gradient_accumulation_steps=3", "recipe.batch_size 4 can't be shared"),
    ],
)
def test_impossible_settings_are_refused(project, override, says):
    assert says in refused("train", "task.yaml", "--set", override)
    assert not Path("runs/mood/prompt").exists()


def test_a_loss_that_is_no_number_keeps_the_last_good_prompt(project, monkeypatch):
    true_step = TrainingProgress.on_step_end

    def ruin(self: TrainingProgress, args: Any, state: Any, control: Any, **others: Any) -> None:
        true_step(self, args, state, control, **others)
        if state.global_step == 6:
            with torch.no_grad():
                others["model"].prompts[0].fill_(float("nan"))

    monkeypatch.setattr(TrainingProgress, "on_step_end", ruin)
    message = refused("train", "task.yaml", "--set", "recipe.learning_rate=0.5")
    assert "NaN or infinite at step 7 with learning_rate 0.5" in message
    assert "the last good prompt (step 4) is kept in runs/mood/prompt" in message
    assert printed("evaluate", "runs/mood/prompt", "test.csv")["n"] == 10


def test_a_run_is_only_replaced_by_force(project):
    first = printed("train", "task.yaml")
    before = weights(first["prompt"])
    assert "runs/mood exists" in refused("train", "task.yaml", "--set", "recipe.max_steps=4")
    assert weights(first["prompt"]) == before
    assert printed("train", "task.yaml", "--set", "recipe.max_steps=4", "--force")["steps"] == 4
    assert weights(first["prompt"]) != before
    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("years of work", encoding="utf-8")
    assert "is not a run's folder" in refused("train", "task.yaml", "--output", "mine", "--force")
    assert "exists" in refused("train", "task.yaml", "--output", "task.yaml")
    assert Path("mine/thesis.txt").exists()


def test_a_disk_that_fills_up_is_one_line(project, monkeypatch):
    def full(*arguments: object, **others: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def torch_full(*arguments: object, **others: object) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")

    for place, failure in (("softprompt.training.loop.save_file", full), ("torch.save", torch_full)):
        with monkeypatch.context() as patch:
            patch.setattr(place, failure)
            message = refused("train", "task.yaml", "--force")
            assert message.startswith("runs/mood: the checkpoint can't be written; is the disk full?")
    log = Path("runs/mood/log.jsonl")
    log.unlink()
    log.symlink_to("/dev/full")
    assert refused("train", "task.yaml", "--resume").startswith("runs/mood/log.jsonl: cannot be written: No space")
    log.unlink()
    printed("train", "task.yaml", "--resume")
    with monkeypatch.context() as patch:
        patch.setattr("softprompt.prompts.files.os.fsync", full)
        assert "No space left on device" in refused("train", "task.yaml", "--output", "other")


def test_a_read_only_folder_is_one_line(project, monkeypatch):
    def read_only(self: Path, *arguments: object, **others: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))

    monkeypatch.setattr(Path, "mkdir", read_only)
    assert refused("train", "task.yaml") == "runs/mood: the run's folder can't be made: Read-only file system"


def test_a_prompt_of_another_base_is_refused(prompt, tmp_path):
    other = save_base(make_base(seed=1), tmp_path / "other")
    for command in (["evaluate", prompt, "test.csv"], ["predict", prompt, "text"]):
        message = refused(*command, "--base", other)
        assert "was made for base" in message
        assert str(other) in message
    assert "was made for base" in refused(
        "train", "task.yaml", "--set", f"base={other}", "--set", "prompt={init: prompt, init_from: prompt}"
    )


def test_damaged_prompts_are_refused(prompt):
    whole = weights(prompt)
    file = prompt / "adapter_model.safetensors"

    def says(message: str) -> None:
        for command in (["evaluate", prompt, "test.csv"], ["predict", prompt, "text"]):
            assert message in refused(*command)

    file.write_bytes(whole[:-40])
    says("adapter_model.safetensors")
    file.write_bytes(pickle.dumps({"prompt_embeddings": [1.0]}))
    says("adapter_model.safetensors")
    file.rename(prompt / "adapter_model.bin")
    says("pickle")
    file.write_bytes(whole)
    card = json.loads((prompt / "card.json").read_text(encoding="utf-8"))
    (prompt / "card.json").write_text(json.dumps(card | {"format_version": 99}), encoding="utf-8")
    says("upgrade softprompt")
    (prompt / "card.json").write_text(json.dumps(card | {"task": {"template": 3}}), encoding="utf-8")
    says("card.json: task: template: ")
    shutil.rmtree(prompt)
    says("there is no such folder")


@pytest.mark.parametrize(
    ("stdin", "says"),
    [
        ("", "stdin: there is no text"),
        ("\n\n", "stdin: there is no text"),
        (b"a\nb\xff\n", "stdin: line 2 is not UTF-8"),
    ],
)
def test_unusable_lines_are_refused(prompt, stdin, says):
    assert says in refused("predict", prompt, "--input", "-", stdin=stdin)


def test_unusable_texts_are_refused(prompt, text_prompt):
    assert "column 'text' is empty" in refused("predict", prompt, "  ")
    assert "the template needs the columns ['thing', 'how']" in refused("predict", text_prompt, "grass")
    assert "no such file" in refused("predict", prompt, "--input", "no.csv")


def test_a_missing_task_file_is_refused(project, prompt):
    assert refused("train", "no.yaml") == "no.yaml: no such file"
    assert refused("evaluate", prompt, "test.csv", "--task", "no.yaml") == "no.yaml: no such file"


# What nobody expects


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (KeyboardInterrupt(), "interrupted"),
        (MemoryError(), "out of memory: choose a smaller base"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "out of memory: choose a smaller"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"),
            "out of memory: choose a smaller base, recipe.max_tokens or recipe.batch_size, or recipe.dtype bfloat16 in",
        ),
        (OSError(errno.EACCES, "Permission denied", "/there"), "/there: Permission denied"),
        (KeyError("x\ny"), "unexpected KeyError in test_cli.py, line"),
    ],
)
def test_whatever_happens_is_one_line(prompt, monkeypatch, error, says):
    def fail(*arguments: object, **others: object) -> None:
        raise error

    monkeypatch.setattr("softprompt.bases.load.load_base", fail)
    for command in (["train", "task.yaml"], ["evaluate", prompt, "test.csv"], ["predict", prompt, "text"]):
        assert refused(*command).startswith(says)


def test_nothing_but_the_document_reaches_stdout(prompt, monkeypatch):
    import warnings

    from softprompt.evaluation import evaluate as true_evaluate

    def chatter(*arguments: Any, **others: Any) -> Any:
        print("Look at me!")
        warnings.warn("You should know", stacklevel=1)
        return true_evaluate(*arguments, **others)

    monkeypatch.setattr("softprompt.evaluation.evaluate", chatter)
    result = run("evaluate", prompt, "test.csv", "--json")
    assert set(json.loads(result.stdout)) == CLASSIFICATION_KEYS
    assert result.stderr == "Look at me!\n"


def test_output_that_nobody_takes_is_not_tried_again():
    with open("/dev/full", "w") as full, pytest.raises(OSError, match="No space left"):
        print_result(full, {"n": 1})
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe, pytest.raises(BrokenPipeError):
        print_result(pipe, None, "a line")


def test_a_reader_that_has_seen_enough_ends_a_command_silently(prompt, monkeypatch):
    def closed(*arguments: object) -> None:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    monkeypatch.setattr("softprompt.commands.asking.print_result", closed)
    result = run("predict", prompt, "nice")
    assert (result.exit_code, result.output) == (1, "")


# Interrupted and killed


def test_an_interrupted_run_says_how_to_go_on(project, monkeypatch):
    whole = weights(printed("train", "task.yaml", "--output", "whole", "--set", "recipe.max_steps=10")["prompt"])
    true_step = TrainingProgress.on_step_end

    def interrupt(self: TrainingProgress, args: Any, state: Any, control: Any, **others: Any) -> None:
        true_step(self, args, state, control, **others)
        if state.global_step == 6:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TrainingProgress, "on_step_end", interrupt)
        message = refused("train", "task.yaml", "--output", "a run", "--set", "recipe.max_steps=10")
    again = "softprompt train task.yaml --set recipe.max_steps=10 --output 'a run' --resume"
    assert message == f"interrupted at step 6; go on with: {again}"
    assert "another recipe" in refused("train", "task.yaml", "--output", "a run", "--resume")
    found = printed(*shlex.split(again)[1:])
    assert found["steps"] == 10
    assert weights("a run/prompt") == whole
    assert weights(printed(*shlex.split(again)[1:])["prompt"]) == whole


def test_there_must_be_a_run_to_resume(project):
    assert "there is no run to resume" in refused("train", "task.yaml", "--resume")


@pytest.mark.slow
def test_ctrl_c_leaves_a_run_that_can_be_resumed(project, interruptible):
    arguments = ["train", "task.yaml", "--set", "recipe.max_steps=150", "--set", "recipe.patience=99"]
    whole = weights(printed(*arguments, "--output", "whole")["prompt"])
    process = subprocess.Popen(
        [sys.executable, "-m", "softprompt.cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
    )
    while not list(Path("runs").glob("mood/checkpoint-*")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == ""
    assert "Traceback" not in err
    step, again = re.fullmatch(
        r"error: interrupted at step (\d+); go on with: softprompt (.*)", err.splitlines()[-1]
    ).groups()
    assert 4 <= int(step) < 150
    assert weights(printed(*shlex.split(again))["prompt"]) == whole


@pytest.mark.long
def test_a_run_killed_at_any_moment_ends_the_same(project):
    whole = weights(printed("train", "task.yaml", "--output", "whole")["prompt"])
    found = subprocess.run(
        [sys.executable, "-m", "tests.killing", "task.yaml", "11"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"},
    )
    moments = json.loads(found.stdout)
    assert len(moments) >= 6
    assert {moment["resumed"] for moment in moments} == {True, False}
    for moment in moments:
        assert moment["exit"] == 0, moment
        assert weights(moment["folder"] + "/prompt") == whole, moment


def test_a_files_name_is_not_a_text(prompt):
    assert refused("predict", prompt, "test.csv") == "test.csv is a file: to answer its rows write --input test.csv"
    assert "test.csv is a file" in refused("predict", prompt, "a text", "test.csv")


@pytest.mark.parametrize(
    "text", ["a \x1b[31mred\x1b[0m one", "bell \x07 and \x9b31m", "\x1b]0;title\x07", "turned \u202e round"]
)
def test_a_text_has_no_power_over_the_terminal(prompt, text):
    shown = run("predict", prompt, text)
    assert shown.exit_code == 0
    said = shown.stdout + shown.stderr
    assert not set(said) & set("\x1b\x07\x9b\u202e")
    assert "\\x" in said
    (one,) = printed("predict", prompt, text)["predictions"]
    assert one["text"] == text
    Path("odd\x1b[31m.csv").write_text("text\n", encoding="utf-8")
    assert "\x1b" not in run("predict", prompt, "--input", "odd\x1b[31m.csv").stderr


def test_labels_without_rows_are_said(prompt):
    Path("one.csv").write_text("text,label\nfine 1,positive\n", encoding="utf-8")
    assert "2 labels, 1 in the file" in run("evaluate", prompt, "one.csv").stdout
    assert "in the file" not in run("evaluate", prompt, "test.csv").stdout
