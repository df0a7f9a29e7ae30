"""From anybody's table to an endpoint: what a new user types, on tables of the kinds that people have."""

from __future__ import annotations

import csv
import gc
import itertools
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas
import pyarrow
import pytest
from scripts import help_page

from softprompt import Prediction, PromptLibrary, SoftPrompt, Task, predict
from tests.conftest import make_base
from tests.test_cli import printed, refused, run, save_base
from tests.test_docs import DOCS, play

WORDS = ["card", "payment", "failed", "refund", "money", "login", "password", "reset", "please", "cannot", "the"]
TASK = Task(template="{text}:", labels=["negative", "positive"])
CATEGORIES = ["card arrival", "exchange_rate", "lost card", "top-up"]


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(make_base(), tmp_path_factory.mktemp("bases") / "tiny")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Writer:
    """Tables of random words, each of a kind that is found in public."""

    def __init__(self) -> None:
        self._random = random.Random(0)

    def text(self, most: int = 7) -> str:
        return " ".join(self._random.choices(WORDS, k=self._random.randint(3, most)))

    def pick(self, *of: str) -> str:
        return self._random.choice(of)

    def table(self, name: str, header: list[str], rows: list[list[str]], **how: Any) -> None:
        with open(name, "w", newline="", encoding=how.pop("encoding", "utf-8")) as file:
            csv.writer(file, **how).writerows([header, *rows] if header else rows)

    def banking(self) -> str:
        self.table("banking77.csv", ["text", "category"], [[self.text(), self.pick(*CATEGORIES)] for _ in range(60)])
        return "banking77.csv"

    def spam_csv(self) -> str:
        rows = [[self.pick("ham", "ham", "spam"), self.text() + " £5", "", "", ""] for _ in range(60)]
        self.table("spam.csv", ["v1", "v2", "", "", ""], rows, encoding="cp1252")
        return "spam.csv"

    def spam(self) -> str:
        lines = [f"{self.pick('ham', 'spam')}\t{self.text()}\n" for _ in range(60)]
        Path("SMSSpamCollection").write_text("".join(lines))
        return "SMSSpamCollection"

    def news(self) -> str:
        rows = [[self.pick("Web", "Sport", "Kultur"), f"{self.text()}; {self.text()}"] for _ in range(60)]
        self.table("news.csv", [], rows, delimiter=";", quotechar="'")
        return "news.csv"

    def intents(self) -> str:
        parts = {part: [[self.text(), self.pick(*CATEGORIES)] for _ in range(40)] for part in ("train", "val", "test")}
        Path("clinc.json").write_text(json.dumps(parts))
        return "clinc.json#train"

    def films(self) -> str:
        for part in ("train", "dev"):
            lines = [f'{self.text()} "\t{self.pick("0", "1")}\n' for _ in range(40)]
            Path(f"sst2-{part}.tsv").write_text("sentence\tlabel\n" + "".join(lines))
        return "sst2-train.tsv"

    def pairs(self) -> str:
        lines = [f'{self.pick("0", "1")}\t{i}\t"{self.text()}\t{self.text()}" he said\n' for i in range(60)]
        head = "\ufeffQuality\t#1 ID\t#1 String\t#2 String\n"
        Path("msr_paraphrase_train.tsv").write_text(head + "".join(lines), encoding="utf-8")
        return "msr_paraphrase_train.tsv"

    def alpaca(self) -> str:
        rows = [{"instruction": self.text(), "input": self.pick("", "x"), "output": self.text(4)} for _ in range(40)]
        Path("alpaca.json").write_text(json.dumps(rows))
        return "alpaca.json"

    def tickets(self) -> str:
        rows = [
            [str(i), self.text(4), f"{self.text()}\n{self.text()}, {i}", self.pick("Billing", "billing ", "Returns")]
            for i in range(60)
        ]
        self.table("tickets.csv", ["id", "subject", "body", "queue"], [*rows, ["60", "x", " ", "Returns"]])
        return "tickets.csv"

    def batch(self) -> str:
        def line(i: int) -> dict[str, Any]:
            said = [{"role": "user", "content": self.text()}, {"role": "assistant", "content": self.text(4)}]
            return {"custom_id": str(i), "url": "/v1/chat/completions", "body": {"model": "x", "messages": said}}

        Path("batch.jsonl").write_text("".join(json.dumps(line(i)) + "\n" for i in range(40)))
        return "batch.jsonl"


# Of each kind the columns of the text, and the label's.
KINDS = {
    "banking": (["text"], "category"),
    "spam_csv": (["v2"], "v1"),
    "spam": (["text"], "label"),
    "news": (["text"], "label"),
    "intents": (["column_1"], "column_2"),
    "films": (["sentence"], "label"),
    "pairs": (["#1 String", "#2 String"], "Quality"),
    "alpaca": ([], None),
    "tickets": (["body"], "queue"),
    "batch": ([], None),
}


@pytest.mark.parametrize("kind", KINDS)
def test_tables_of_all_kinds_are_trained_on_without_an_editor(folder: Path, base_folder: Path, kind: str) -> None:
    name = getattr(Writer(), kind)()
    found = printed("init", name, "--yes", "--base", base_folder)
    assert (found["text"], found["label"]) == KINDS[kind]
    trained = printed("train", found["task_file"], "--set", "recipe.max_steps=3")
    assert trained["steps"] == 3
    assert trained["validation"]["n"] > 0
    run_folder = Path(trained["prompt"]).parent
    told = printed("predict", run_folder, "--input", name, "--output", "answers.jsonl")
    answers = [json.loads(line) for line in Path("answers.jsonl").read_text().splitlines()]
    assert told == {"output": "answers.jsonl", "rows": found["rows"], "errors": kind == "tickets"}
    assert sum("prediction" in one for one in answers) == found["rows"] - told["errors"]
    if found["label"] is not None:
        assert printed("evaluate", run_folder, name)["n"] == found["rows"] - told["errors"]


def test_other_spellings_and_what_is_left_out_are_said(folder: Path, base_folder: Path) -> None:
    said = run("init", Writer().tickets(), "--yes", "--base", base_folder)
    assert "is taken for" in said.stdout
    assert "1 of 61 rows cannot be used" in " ".join(said.stderr.split()) or "row 61" in said.stderr
    assert said.stdout.splitlines()[-1] == "Next: softprompt train tickets.yaml"
    assert "tickets.yaml exists" in refused("init", "tickets.csv", "--yes", "--base", base_folder)
    assert run("init", "tickets.csv", "--yes", "--force", "--base", base_folder).exit_code == 0


def test_columns_can_be_chosen(folder: Path, base_folder: Path) -> None:
    name = Writer().tickets()
    found = printed("init", name, "--text", "subject", "--text", "body", "--answer", "queue", "--base", base_folder)
    assert (found["text"], found["label"], found["answer"]) == (["subject", "body"], None, "queue")
    assert "no column 'mood'; choose one of 'id'" in refused("init", name, "--label", "mood")
    Path("one.csv").write_text("text\nall of it\nis text\n")
    assert "no column for what is to be learned" in refused("init", "one.csv", "--yes")


def test_a_terminal_is_asked(folder: Path, base_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("softprompt.commands.init._is_terminal", lambda: True)
    name = Writer().tickets()
    asked = run("init", name, "--base", base_folder, "--json", stdin="subject, body\n\n")
    assert asked.exit_code == 0, asked.output
    assert "Which columns are the text?" in asked.stderr
    found = json.loads(asked.stdout)
    assert (found["text"], found["label"]) == (["subject", "body"], "queue")
    answer = run("init", name, "--base", base_folder, "--force", "--json", stdin="body\nsubject\n")
    assert json.loads(answer.stdout)["answer"] == "subject"


def test_serve_asks_which_base_where_the_library_does_not_tell(work: Path, tmp_path: Path) -> None:
    prompt = SoftPrompt.load("library/mood/1")
    library = PromptLibrary(tmp_path / "other")
    library.add("bare", SoftPrompt(prompt.embeddings, prompt.card.replace(base=None)))
    says = refused("serve", "--library", tmp_path / "other")
    assert says.startswith("which base is to serve?")
    assert says.endswith("choose with --base")


def test_train_takes_a_table(folder: Path, base_folder: Path) -> None:
    name = Writer().banking()
    Path("banking77.yaml").write_text("")
    assert "banking77.yaml exists" in refused("train", name)
    Path("banking77.yaml").unlink()
    shown = run("train", name, "--set", "recipe.max_steps=2", "--set", f"base={base_folder}", "--output", "out")
    assert shown.exit_code == 0, shown.output
    assert "banking77.yaml is written." in shown.stderr
    assert "rows are set aside" in shown.stderr
    for label in CATEGORIES:
        assert label in shown.stdout
    assert shown.stdout.rstrip().endswith("softprompt library add banking77 out/prompt && softprompt serve")


def test_free_text_shows_answers_beside_their_texts(folder: Path, base_folder: Path) -> None:
    run("init", Writer().alpaca(), "--yes", "--base", base_folder)
    shown = run("train", "alpaca.yaml", "--set", "recipe.max_steps=2", "--set", "task.max_new_tokens=2")
    assert shown.exit_code == 0, shown.output
    assert re.search(r"text +┃ right +┃ answer", shown.stdout)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, base_folder: Path) -> Path:
    """The folder of a finished run on a table whose columns go by names of their own."""
    folder = tmp_path_factory.mktemp("trained")
    before = os.getcwd()
    os.chdir(folder)
    try:
        run("init", Writer().banking(), "--yes", "--base", base_folder)
        settings = ("--set", "recipe.max_steps=2", "--set", "recipe.dtype=float32")
        assert run("train", "banking77.yaml", *settings).exit_code == 0
        assert run("library", "add", "mood", "runs/banking77/prompt").exit_code == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def work(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(trained)
    return trained


class TestAnswers:
    ROWS = 300

    def table(self, bad: tuple[int, ...] = (17, 200)) -> None:
        lines = [f"{i},{'' if i in bad else f'some text {i}'},kept {i}\n" for i in range(self.ROWS)]
        Path("in.csv").write_text("id,text,other\n" + "".join(lines))

    def read(self, path: str) -> list[dict[str, Any]]:
        if path.endswith(".parquet"):
            found = pandas.read_parquet(path)
        elif path.endswith(".jsonl"):
            return [json.loads(line) for line in Path(path).read_text().splitlines()]
        else:
            found = pandas.read_csv(path, sep="\t" if path.endswith(".tsv") else ",")
        return found.astype(object).where(found.notna(), None).to_dict("records")

    @pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
    def test_answers_stand_beside_their_rows(self, work: Path, suffix: str) -> None:
        self.table()
        told = run("predict", "runs/banking77", "-i", "in.csv", "-o", f"out{suffix}", "--force")
        assert told.exit_code == 0, told.output
        assert "warning: 2 of 300 rows have an error in place of an answer" in told.stderr
        found = self.read(f"out{suffix}")
        assert [str(one["id"]) for one in found] == [str(i) for i in range(self.ROWS)]
        assert [one["other"] for one in found] == [f"kept {i}" for i in range(self.ROWS)]
        assert [i for i, one in enumerate(found) if one.get("error")] == [17, 200]
        assert "column 'text' is empty" in found[17]["error"]
        prompt = SoftPrompt.load("runs/banking77/prompt")
        base = make_base()
        task = Task.from_dict(prompt.card.task)
        expected = predict(base, prompt, task, [f"some text {i}" for i in (0, 16, 18, 299)])
        assert [found[i]["prediction"] for i in (0, 16, 18, 299)] == [one.label for one in expected]
        assert found[18]["probability"] == pytest.approx(max(expected[2].probabilities.values()), rel=1e-4)
        assert "exists: choose another --output" in refused(
            "predict", "runs/banking77", "-i", "in.csv", "-o", f"out{suffix}"
        )

    def test_a_stopped_file_is_gone_on_with(self, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from softprompt.evaluation import answering

        self.table()
        run("predict", "mood", "-i", "in.csv", "-o", "whole.jsonl", "--force")
        real, calls = answering.predict, []

        def stops(*arguments: Any, **options: Any) -> Any:
            calls.append(len(arguments[3]))
            if len(calls) == 2:
                raise KeyboardInterrupt
            return real(*arguments, **options)

        monkeypatch.setattr(answering, "predict", stops)
        assert run("predict", "mood", "-i", "in.csv", "-o", "stopped.jsonl").exit_code != 0
        assert not Path("stopped.jsonl").exists()
        with Path(".stopped.jsonl.part").open("a") as part:
            part.write('{"half a li')
        calls.append(0)
        told = run("predict", "mood", "-i", "in.csv", "-o", "stopped.jsonl")
        assert "128 rows are answered already" in told.stderr
        assert sum(calls[3:]) == self.ROWS - 128 - 1
        assert Path("stopped.jsonl").read_text() == Path("whole.jsonl").read_text()
        assert not Path(".stopped.jsonl.part").exists()

    def test_a_bad_row_is_an_error_in_its_line(self, work: Path) -> None:
        Path("one.csv").write_text("text\nfirst\n\nthird\n")
        lines = run("predict", "mood", "-i", "one.csv").stdout.splitlines()
        assert [line.split("\t")[0] == "error" for line in lines] == [False, True, False]
        found = printed("predict", "mood", "-i", "one.csv")["predictions"]
        assert ["error" in one for one in found] == [False, True, False]
        piped = run("predict", "mood", "-i", "-", stdin="first\n\nthird\n").stdout.splitlines()
        assert piped == lines

    def test_columns_that_are_taken_are_kept(self, work: Path) -> None:
        Path("taken.csv").write_text("text,prediction,error\na b,mine,none\n")
        told = printed("predict", "mood", "-i", "taken.csv", "-o", "taken-out.csv", "--force")
        assert told["errors"] == 0
        (found,) = self.read("taken-out.csv")
        assert found["prediction"] == "mine"
        assert found["prediction_"] in CATEGORIES

    def test_a_table_on_stdin(self, work: Path) -> None:
        table = "id,text\n1,a text\n"
        assert "for a table give --input /dev/stdin" in refused("predict", "mood", "-i", "-", stdin=table)
        assert run("predict", "mood", "-i", "/dev/stdin", stdin=table).stdout.endswith("\ta text\n")


@pytest.mark.parametrize("name", ["mood", "mood@1", "runs/banking77", "runs/banking77/prompt"])
def test_prompts_are_found_by_their_names_and_runs(work: Path, name: str) -> None:
    (answer,) = printed("predict", name, "a text")["predictions"]
    assert answer == printed("predict", "library/mood/1", "a text")["predictions"][0]
    assert printed("evaluate", name, "banking77.csv")["n"] == 60


def test_an_unknown_name_is_one_line(work: Path) -> None:
    assert "moody" in refused("predict", "moody", "a text")
    assert "no version 7 of 'mood'" in refused("predict", "mood@7", "a text")


def test_peft_folders_say_their_base(work: Path, base_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "peft"
    folder.mkdir()
    for file in Path("library/mood/1").iterdir():
        if file.name != "card.json":
            (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(base_folder)}))
    (one,) = printed("predict", folder, "a text", "--task", "banking77.yaml", "--dtype", "float32")["predictions"]
    assert one["label"] in CATEGORIES
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "/gone/base"}))
    assert "give where it is with --base" in refused("predict", folder, "a text", "--task", "banking77.yaml")


@pytest.mark.long
def test_a_strangers_path_from_a_table_to_an_endpoint(folder: Path, base_folder: Path) -> None:
    """Each command is what the one before it names as the next."""
    env = os.environ | {"PYTHONUNBUFFERED": "1"}
    program = [sys.executable, "-m", "softprompt.cli"]

    def do(line: str) -> str:
        words = shlex.split(line)
        assert words.pop(0) == "softprompt"
        done = subprocess.run([*program, *words], capture_output=True, text=True, env=env, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout

    Writer().tickets()
    init = do(f"softprompt init tickets.csv --yes --base {shlex.quote(str(base_folder))}")
    train = init.splitlines()[-1].removeprefix("Next: ")
    assert train == "softprompt train tickets.yaml"
    trained = do(f"{train} --set recipe.max_steps=3").splitlines()
    first = next(i for i, line in enumerate(trained) if line.startswith("Next: "))
    one, table, served = (line.removeprefix("Next:").strip() for line in trained[first:])
    assert do(one.replace("TEXT", shlex.quote("please reset my password"))).endswith("\tplease reset my password\n")
    do(table.replace("FILE", "tickets.csv"))
    with open("answers.csv", newline="", encoding="utf-8") as file:
        assert {row["prediction"] for row in csv.DictReader(file)} <= {"billing", "Billing", "Returns", ""}
    add, serve = served.split(" && ")
    do(add)
    command = [*program, *shlex.split(serve)[1:], "--port", "0", "--json", "--no-playground"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
    try:
        assert server.stdout is not None
        url = json.loads(server.stdout.readline())["url"]
        body = json.dumps({"model": "tickets", "input": ["please reset my password"]}).encode()
        request = urllib.request.Request(f"{url}/v1/classify", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert "Returns" in answer.read().decode()
    finally:
        server.send_signal(signal.SIGINT)
        server.communicate(timeout=60)


class TestThePage:
    """docs/first-hour.md, typed as it stands; `make test-pythons` does its installation."""

    INSTALL = ("python3 -m venv venv", ". venv/bin/activate", "pip install ./softprompt")

    @pytest.mark.parametrize("base", ["tiny", pytest.param(None, marks=[pytest.mark.real, pytest.mark.long])])
    def test_every_command_does_what_the_page_says(self, folder: Path, base_folder: Path, base: str | None) -> None:
        Path("tickets.csv").write_bytes((DOCS / "tickets.csv").read_bytes())
        more: dict[str, list[str]] = {"init": ["--yes"]}
        if base is not None:  # in place of the page's, and a short run
            more = {"init": ["--yes", "--base", str(base_folder)], "train": ["--set", "recipe.max_steps=3"]}
        shown = dict(play("first-hour.md", more, after=self.INSTALL))
        queues = {"account", "billing", "delivery"}
        (one,) = (text for line, text in shown.items() if line.startswith("softprompt predict") and '"' in line)
        assert one.split("\t")[0] in queues
        with open("answers.csv", newline="", encoding="utf-8") as file:
            assert {row["prediction"] for row in csv.DictReader(file)} <= queues
        (curl,) = (text for line, text in shown.items() if line.startswith("curl"))
        (served,) = json.loads(curl)["data"]
        assert set(served["probabilities"]) == queues
        printed = [line.split()[0] for line in shown["python"].splitlines()]
        assert len(printed) == 2
        assert set(printed) <= queues
        if base is None:
            assert (one.split("\t")[0], served["label"], printed) == ("delivery", "account", ["billing", "delivery"])


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet", ".arrow"])
def test_no_more_rows_are_held_than_are_answered_together(
    work: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    from softprompt.evaluation import answering
    from softprompt.tasks.delimited import Record

    count, most = 1500, 0
    frame = pandas.DataFrame({"text": [f"some text {i}" for i in range(count)], "id": range(count)})
    if suffix in (".csv", ".tsv"):
        frame.to_csv(f"many{suffix}", sep="\t" if suffix == ".tsv" else ",", index=False)
    elif suffix == ".jsonl":
        frame.to_json("many.jsonl", orient="records", lines=True)
    elif suffix == ".parquet":
        frame.to_parquet("many.parquet")
    else:
        table = pyarrow.Table.from_pandas(frame, preserve_index=False)
        with pyarrow.OSFile("many.arrow", "wb") as file, pyarrow.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)

    def answered(base: Any, prompt: Any, task: Task, rows: list[Any]) -> list[Prediction]:
        nonlocal most
        most = max(most, sum(isinstance(one, Record) for one in gc.get_objects()))
        return [Prediction(label="lost card", probabilities={"lost card": 1.0})] * len(rows)

    monkeypatch.setattr(answering, "predict", answered)
    output = f"many-out{suffix.replace('arrow', 'csv')}"
    told = printed("predict", "runs/banking77", "-i", f"many{suffix}", "-o", output, "--force")
    assert told["rows"] == count
    assert 0 < most <= 300


def test_answers_do_not_wait_for_rows_to_come() -> None:
    """A source that goes on for ever is answered as it comes."""
    from softprompt.evaluation import answering
    from softprompt.tasks.rows import read_entries

    pulled = 0

    def endless() -> Iterator[Any]:
        nonlocal pulled
        for entry in itertools.cycle(read_entries([{"text": "a b"}], TASK, need_targets=False)):
            pulled += 1
            yield entry

    base = make_base()
    answers = answering.answer(base, SoftPrompt.from_vocabulary(base, 2), TASK, endless())
    assert next(answers).error == ""
    assert pulled <= 128


def test_many_columns_stay_readable(folder: Path, base_folder: Path) -> None:
    header = ["text", "label", *(f"a column of some length {i}" for i in range(43))]
    rows = [[Writer().text(), "ab"[i % 2], *map(str, range(43))] for i in range(40)]
    Writer().table("wide.csv", header, rows)
    shown = run("init", "wide.csv", "--yes", "--base", base_folder).stdout
    assert "45 columns: text, label, a column of some length 0" in shown
    assert "and 33 more" in shown
    assert max(map(len, shown.splitlines())) < 400
    assert len(printed("init", "wide.csv", "--yes", "--force", "--base", base_folder)["text"]) == 1
    for refusal in (
        refused("init", "wide.csv", "--text", "no such"),
        refused("init", "wide.csv", "--label", "no such"),
    ):
        assert len(refusal) < 600
    run("init", "wide.csv", "--yes", "--force", "--base", base_folder)
    checked = run("check", "wide.yaml")
    assert checked.exit_code == 0
    assert max(map(len, checked.output.splitlines())) < 400
    Path("wide.yaml").write_text(Path("wide.yaml").read_text().replace("{text}", "{no such}"))
    assert "no column 'no such'" in (said := run("check", "wide.yaml").stderr.splitlines()[-1])
    assert len(said) < 600


def test_data_and_output_are_called_alike_in_all_commands() -> None:
    page = help_page.PAGE.read_text("utf-8")
    options = dict(re.findall(r"^\* `((?:-\w, )?--(?:data|input|calibrate|output)) (\S+)`:", page, re.MULTILINE))
    assert options.pop("-o, --output") in ("DIR", "FILE")
    assert set(options.values()) == {"DATA"}
    outputs = re.findall(r"^\* `-o, --output (\S+)`: (.*)$", page, re.MULTILINE)
    assert len(outputs) >= 6
    assert all(name == ("DIR" if "folder" in text else "FILE") for name, text in outputs)
    tables = re.findall(r"^\* `(?:\S+ )*DATA(?: <str>)?`: (.*)$", page, re.MULTILINE)
    assert len(tables) >= 6
    assert all("a table (CSV, TSV, JSON, Parquet, a sheet) or hub:OWNER/NAME:SPLIT" in text for text in tables)


def test_a_terminal_is_told_that_libraries_and_base_are_loaded(work: Path) -> None:
    mine, its = os.openpty()
    command = [sys.executable, "-m", "softprompt.cli", "predict", "runs/banking77", "a text"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=its):
        os.close(its)
        said = b""
        while True:
            try:
                said += os.read(mine, 4096)
            except OSError:  # how a terminal says that nobody writes to it any more
                break
    os.close(mine)
    lines = said.decode().splitlines()
    assert "Loading PyTorch and Transformers" in lines
    assert any(line.startswith("Loading /") for line in lines)
