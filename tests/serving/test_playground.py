"""The playground without a browser: what its tabs show, and how it lives beside the API."""

from __future__ import annotations

import asyncio
import base64
import csv
import html
import json
import os
import re
import signal
import string
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any, ClassVar

import pytest
from starlette.responses import JSONResponse
from typer.testing import CliRunner

from softprompt import evaluate, predict
from softprompt.cli import app
from softprompt.errors import SoftPromptError
from softprompt.prompts.library import PromptLibrary
from softprompt.serving import playground
from softprompt.serving.api import make_app
from softprompt.serving.gate import Access
from softprompt.serving.local import LocalEngine
from softprompt.serving.playground.asking import ask, columns_of
from softprompt.serving.playground.client import Visitor
from softprompt.serving.playground.files import answer_file, compare
from softprompt.serving.playground.library import first_choice, show_library
from softprompt.serving.playground.runs import list_runs, show_run
from softprompt.serving.playground.texts import TEXTS, texts_for
from softprompt.serving.service import Service
from softprompt.tasks import Task, load_rows
from softprompt.training.diagnosis import diagnose
from softprompt.training.trajectory import Measurement, Start, Trajectory, Validated
from tests.conftest import make_base
from tests.serving.conftest import COLOUR, MOOD, Live, living, make_prompt
from tests.serving.plain import PlainEngine

EN, ES = TEXTS["en"], TEXTS["es"]
TRICK = '<img src=x onerror="alert(1)">'


def visiting(
    base: Any,
    library: PromptLibrary,
    act: Callable[[Visitor, Service], Awaitable[Any]],
    engine: Callable[[Any], Any] = PlainEngine,
    headers: dict[str, str] | None = None,
    **access: Any,
) -> Any:
    """What `act` returns, done for a visitor of a server that runs."""

    async def main() -> Any:
        service = Service(engine(base), library)
        api = make_app(service, Access(**access))
        await service.start()
        try:
            return await act(Visitor(api, "192.0.2.7", headers or {}), service)
        finally:
            await service.stop()

    return asyncio.run(main())


async def listed(shown: AsyncGenerator[Any, None]) -> list[Any]:
    """All that is shown, and at the end the line that says what went wrong."""
    found: list[Any] = []
    try:
        async with aclosing(shown):
            async for one in shown:
                found.append(one)
    except SoftPromptError as error:
        found.append(str(error))
    return found


def read(page: str) -> str:
    """What a visitor reads of a piece of HTML."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page)).split())


def write_csv(path: Path, rows: list[list[str]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def make_run(folder: Path, steps: int, virtual: int = 3) -> Path:
    """A run's folder as `softprompt train` leaves it while it learns."""
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"recipe": {"max_steps": 60}}))
    one = [1.0] * virtual
    start = Start(
        norm=one, z=one, trained=False, learning_rate=0.03, steps_per_pass=10, vocabulary_mean=1,
        vocabulary_deviation=0.1, vocabulary_percentiles=[1.0] * 9,
    )  # fmt: skip
    trajectory = Trajectory(start)
    for step in range(1, steps + 1):
        trajectory.measurements.append(
            Measurement(
                step=step,
                loss=3 - step / 60,
                learning_rate=0.03,
                gradient=one,
                update=[0.05] * virtual,
                norm=one,
                z=one,
                drift=one,
                cosine=one,
            )
        )
        if step % 5 == 0:
            trajectory.validations.append(Validated(step=step, figures={"accuracy": 0.5, "log_loss": 0.7}))
    trajectory.write(folder / "monitor.jsonl")
    return folder


class TestTexts:
    def test_both_languages_say_the_same_things(self):
        def holes(text: str) -> set[str | None]:
            return {name for _, name, _, _ in string.Formatter().parse(text) if name}

        for key, text in EN.items():
            assert holes(text) == holes(ES[key]), key
            assert text.count("`") == ES[key].count("`"), key

    @pytest.mark.parametrize(
        ("accepted", "language"),
        [
            ("", "en"),
            ("es", "es"),
            ("es-MX,es;q=0.9,en;q=0.8", "es"),
            ("en-GB,en;q=0.9,es;q=0.8", "en"),
            ("fr, es;q=0.7, en;q=0.5", "es"),
            ("de;q=1, ES-es;q=0.1", "es"),
            (";;,,", "en"),
        ],
    )
    def test_the_browsers_language(self, accepted, language):
        assert texts_for(accepted) is TEXTS[language]


class TestBoxes:
    def boxes(self, base: Any, library: PromptLibrary, *names: str) -> list[str]:
        found: list[str] = visiting(base, library, lambda visitor, _: columns_of(visitor, names))
        return found

    def test_tasks_of_one_column_share_a_box(self, base, own_library):
        own_library.add("other", make_prompt(base, 3, Task(template="{sentence}?", labels=["a", "b"])))
        assert self.boxes(base, own_library, "mood", "other", "bare") == ["text"]
        *_, last = visiting(base, own_library, lambda visitor, _: listed(ask(visitor, ["other"], "x")))
        (one,) = predict(base, own_library.get("other"), Task(template="{sentence}?", labels=["a", "b"]), ["x"])
        assert f"{one.label} {max(one.probabilities.values()):.1%}" in read(last)

    def test_a_task_of_several_columns_adds_its_own(self, base, library):
        assert self.boxes(base, library, "topic", "mood") == ["text", "title"]
        assert self.boxes(base, library, "topic") == ["title", "text"]
        assert self.boxes(base, library) == []


class TestAsking:
    def ask(self, base: Any, library: PromptLibrary, names: Any, *written: str | None, **settings: Any) -> Any:
        return visiting(base, library, lambda visitor, _: listed(ask(visitor, names, *written)), **settings)

    def test_two_tasks_beside_the_base(self, base, library):
        *_, last = self.ask(base, library, ["mood", "topic"], "a joy", "news", engine=LocalEngine)
        said = read(last)
        assert said.count("With the soft prompt") == said.count("Base model alone") == 2
        for part in ("mood@2", "topic@1", "negative", "war"):
            assert part in said
        (one,) = predict(base, library.get("mood"), MOOD, ["a joy"])
        (alone,) = predict(base, None, MOOD, ["a joy"])
        for probabilities in (one.probabilities, alone.probabilities):
            assert f"positive {probabilities['positive']:.1%}" in said

    def test_generated_text_comes_as_it_grows(self, base, library):
        shown = self.ask(base, library, ["bare"], "abc", engine=LocalEngine)
        assert len(set(shown)) > 10
        assert EN["waiting"] in shown[0]

    def test_texts_and_labels_are_shown_as_text(self, base, tmp_path):
        library = PromptLibrary(tmp_path / "library")
        task = Task(template="{text}:", labels=[TRICK, "${alert(1)} {{x}}", "</div><script>alert(2)</script>"])
        library.add("trick", make_prompt(base, 3, task))
        *_, last = self.ask(base, library, ["trick"], TRICK)
        assert "<img" not in last
        assert "<script" not in last
        assert all(label in html.unescape(last) for label in task.labels)

    def test_the_many_labels_of_a_task_are_not_all_shown(self, base, tmp_path):
        library = PromptLibrary(tmp_path / "library")
        labels = [f"label{i}." for i in range(20)]
        library.add("many", make_prompt(base, 3, Task(template="{text}:", labels=labels)))
        *_, last = self.ask(base, library, ["many"], "a")
        assert read(last).count("and 12 more labels") == 2

    @pytest.mark.parametrize(
        ("names", "text", "line"),
        [
            (None, "a", EN["choose_task"]),
            ([], "a", EN["choose_task"]),
            (["mood"], "", EN["type_text"]),
            (["mood"], None, EN["type_text"]),
            (["mood"], " \n", EN["type_text"]),
            (["mood"], "a" * 100_001, EN["too_long"].format(most="100,000")),
            (["nonsense"], "a", "there is no model 'nonsense'"),
            (["a/b?c#d"], "a", "there is no model 'a/b?c#d'"),
            ([TRICK], "a", "there is no model"),
        ],
    )
    def test_what_cannot_be_asked(self, base, library, names, text, line):
        (shown,) = self.ask(base, library, names, text)
        assert line in shown

    def test_a_text_longer_than_the_context_is_cut_and_the_page_says_so(self, base, library):
        *_, last = self.ask(base, library, ["mood"], "a" * 1000)
        assert read(last).count(EN["truncated"]) == 2

    def test_one_task_that_cannot_be_asked_leaves_the_others(self, base, library):
        *_, last = self.ask(base, library, ["topic", "mood"], "a joy", "")
        assert "column 'title' is empty" in read(last)
        assert "positive" in read(last)

    def test_spanish(self, base, library):
        *_, last = self.ask(base, library, ["mood"], "a", headers={"accept-language": "es-ES,es;q=0.9"})
        assert ES["base_alone"] in read(last)

    def test_two_visitors_at_once_see_their_own(self, base, library):
        async def act(one: Visitor, _: Service) -> Any:
            other = Visitor(one._app, "192.0.2.8", {"accept-language": "es"})
            return await asyncio.gather(
                listed(ask(one, ["mood"], "first")), listed(ask(other, ["topic"], "text", "second"))
            )

        (*_, one), (*_, other) = visiting(base, library, act, engine=LocalEngine)
        assert "mood@2" in one
        assert "topic@1" not in one
        assert "topic@1" in other
        assert ES["base_alone"] in other

    def test_an_engine_that_fails(self, base, library, caplog):
        class Broken(PlainEngine):
            async def classify(self, *_):
                raise RuntimeError("secret")

        *_, last = self.ask(base, library, ["mood"], "private text", engine=Broken)
        assert read(last).count("the server has failed at this request") == 2
        assert "secret" not in last
        assert "private" not in caplog.text

    def test_an_engine_that_is_full_says_so(self, base, library):
        *_, last = self.ask(base, library, ["mood"], "a", engine=lambda base: PlainEngine(base, max_waiting=0))
        assert "try again later" in read(last)

    def test_a_server_that_stops(self, base, library):
        async def act(visitor: Visitor, service: Service) -> Any:
            service.status = "stopped"
            return await listed(ask(visitor, ["mood"], "a"))

        assert "not ready (stopped)" in read(visiting(base, library, act)[-1])


class TestAsAClient:
    """What the page asks of the API counts as what anybody asks."""

    BASIC: ClassVar = {"authorization": "Basic " + base64.b64encode("me:sésame".encode()).decode()}

    def ask(self, base: Any, library: PromptLibrary, **settings: Any) -> str:
        page: str = visiting(base, library, lambda visitor, _: listed(ask(visitor, ["mood"], "a joy")), **settings)[-1]
        return read(page)

    def test_with_the_visitors_key(self, base, library):
        keys = {"api_keys": ["sésame"]}
        assert "positive" in self.ask(base, library, headers=self.BASIC, **keys)
        assert "positive" in self.ask(base, library, headers={"authorization": "Bearer s\xc3\xa9same"}, **keys)
        for headers in ({}, {"authorization": "Bearer sesame"}, {"authorization": "Basic !!!"}):
            assert "API key" in self.ask(base, library, headers=headers, **keys)

    def test_within_the_rate_limit(self, base, library):
        assert "positive" in self.ask(base, library, requests_per_minute=3)
        assert "too many requests a minute" in self.ask(base, library, requests_per_minute=2)

    def test_within_the_body_limit(self, base, library):
        assert "the body is larger than 40 bytes" in self.ask(base, library, body_limit=40)

    def test_it_is_counted_and_logged(self, base, library, caplog):
        async def act(visitor: Visitor, service: Service) -> bytes:
            await listed(ask(visitor, ["mood"], "private"))
            return service.metrics.page()

        caplog.set_level("INFO", "softprompt.serving")
        page = visiting(base, library, act, headers=self.BASIC).decode()
        assert 'softprompt_answer_seconds_count{model="mood",route="/v1/predict"} 1.0' in page
        assert 'softprompt_answer_seconds_count{model="tiny-llama",route="/v1/predict"} 1.0' in page
        logged = [record.fields for record in caplog.records if record.message == "request"]
        assert {one["client"] for one in logged} == {"192.0.2.7"}
        assert "private" not in str(logged)

    def test_a_file_waits_where_it_is_told_to(self, base, library, tmp_path):
        path = write_csv(tmp_path / "rows.csv", [["text"], *([f"row {i}"] for i in range(100))])
        error = {"message": "too many", "type": "rate_limit_error", "param": None, "code": None}
        refusals = [JSONResponse({"error": error}, 429, {"Retry-After": "0.01"})] * 5

        async def act(visitor: Visitor, _: Service) -> Any:
            async def busy(scope: Any, receive: Any, send: Any) -> None:
                refuse = refusals and scope["path"] == "/v1/predict"
                await (refusals.pop() if refuse else visitor._app)(scope, receive, send)

            return await listed(answer_file(Visitor(busy, "", {}), "mood", str(path), False))

        page, _ = visiting(base, library, act)[-1]
        assert EN["answered"].format(count=100) in read(page)
        assert refusals == []


class TestFiles:
    ROWS: ClassVar = [
        ["id", "text", "label"],
        *([str(i), f"row {i}, {TRICK}", ["negative", "positive"][i % 2]] for i in range(40)),
    ]

    def answer(self, base: Any, library: PromptLibrary, name: Any, path: Any, with_base: bool = True) -> Any:
        async def act(visitor: Visitor, _: Service) -> Any:
            found, made = [], None
            try:
                async with aclosing(answer_file(visitor, name, path, with_base)) as steps:
                    async for page, file in steps:
                        found.append(page)
                        made = file and (file, file.read_text("utf-8"))
            except SoftPromptError as error:
                found.append(str(error))
            return found, made

        return visiting(base, library, act, engine=LocalEngine)

    def test_a_file_is_answered(self, base, library, tmp_path):
        path = write_csv(tmp_path / "rows.csv", self.ROWS)
        pages, (file, text) = self.answer(base, library, "mood", str(path))
        assert not file.exists()  # it was a visitor's, who has it by now
        rows = load_rows(path, MOOD)
        figures = {name: evaluate(base, library.get("mood"), MOOD, rows) for name in ("mood@2",)}
        assert f"log loss {figures['mood@2'].log_loss:.4g}" in read(pages[-1])
        assert f"accuracy {figures['mood@2'].accuracy:.4g}" in read(pages[-1])
        assert "<img" not in pages[-1]
        assert read(pages[0]) == "0 of 80 answers"
        assert 'value="32"' in pages[1]
        head, *lines = csv.reader(text.splitlines())
        assert head == [
            *self.ROWS[0], "mood@2 answer", "mood@2 probability", "Base model alone answer",
            "Base model alone probability",
        ]  # fmt: skip
        assert [line[:3] for line in lines] == self.ROWS[1:]
        expected = predict(base, library.get("mood"), MOOD, [row.columns for row in rows])
        assert [line[3] for line in lines] == [one.label for one in expected]
        assert [float(line[4]) for line in lines] == pytest.approx(
            [max(one.probabilities.values()) for one in expected], abs=1e-5
        )

    def test_free_text_without_right_answers(self, base, library, tmp_path):
        path = write_csv(tmp_path / "rows.csv", [["text"], ["the sky"], ["grass"]])
        pages, (_, text) = self.answer(base, library, "colour", str(path), with_base=False)
        assert EN["answered"].format(count=2) in read(pages[-1])
        assert EN["figures_caption"] not in read(pages[-1])
        outputs = [one.output for one in predict(base, library.get("colour"), COLOUR, ["the sky", "grass"])]
        assert [line[-1] for line in csv.reader(text.splitlines())] == ["colour@1 answer", *outputs]

    def test_free_text_with_right_answers(self, base, library, tmp_path):
        path = write_csv(tmp_path / "rows.csv", [["text", "colour"], ["the sky", "blue"]])
        pages, _ = self.answer(base, library, "colour", str(path), with_base=False)
        assert "exact match" in read(pages[-1])

    def test_a_byte_order_mark_and_empty_lines(self, base, library, tmp_path):
        path = tmp_path / "rows.csv"
        path.write_bytes(b"\xef\xbb\xbftext\r\na joy\r\n\r\n")
        _, (_, text) = self.answer(base, library, "mood", str(path), with_base=False)
        assert text.splitlines()[0].startswith("text,")
        assert len(text.splitlines()) == 2

    @pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
    def test_answers_stand_beside_their_rows_whatever_the_table(self, base, library, tmp_path, encoding):
        path = tmp_path / "rows.csv"
        path.write_text("id;text\n7;a joy, really\n\n8;dull\n;\n", encoding=encoding)
        _, (_, text) = self.answer(base, library, "mood", str(path), with_base=False)
        lines = list(csv.reader(text.splitlines()))
        assert [line[:2] for line in lines] == [["id", "text"], ["7", "a joy, really"], ["8", "dull"]]
        assert {len(line) for line in lines} == {4}

    @pytest.mark.parametrize(
        ("name", "content", "line"),
        [
            ("rows.txt", "text\na\n", EN["choose_file"]),
            ("rows.csv", "", "mood@2: rows.csv: the file is empty"),
            ("rows.csv", "text\n", "rows.csv: there are no rows of data"),
            ("rows.csv", "other\na\n", "mood@2: rows.csv: no column 'text'"),
            ("rows.csv", "text\n \n", "there are no rows of data"),
            ("rows.csv", "text\n\na\n", "column 'text' is empty"),
            ("rows.csv", 'text\n"a\n', "check the quotes"),
            ("rows.csv", "text\n" + "a" * 100_001 + "\n", EN["too_long"].format(most="100,000")),
            ("rows.csv", "text\n" + "a\n" * 10_001, "The file has 10,001 rows"),
        ],
    )
    def test_a_file_that_cannot_be_used(self, base, library, tmp_path, name, content, line):
        (tmp_path / name).write_text(content)
        (page,), made = self.answer(base, library, "mood", str(tmp_path / name))
        assert line in read(page)
        assert str(tmp_path) not in page
        assert made is None

    def test_nothing_chosen(self, base, library):
        assert read(self.answer(base, library, None, "rows.csv")[0][0]) == EN["choose_task"]
        assert read(self.answer(base, library, "mood", None)[0][0]) == EN["choose_file"]

    def test_a_visitor_who_goes_stops_the_work(self, base, library, tmp_path):
        path = write_csv(tmp_path / "rows.csv", self.ROWS)

        async def act(visitor: Visitor, service: Service) -> Any:
            going = asyncio.create_task(listed(answer_file(visitor, "mood", str(path), True)))
            while not service.engine.figures()["text_tokens_total"]:
                await asyncio.sleep(0.01)  # within the first rows
            going.cancel()
            async with aclosing(ask(visitor, ["bare"], "abc")) as shown:
                await anext(shown)
                await anext(shown)
            await asyncio.gather(going, return_exceptions=True)
            return service.engine.cancelled, service.metrics.page().decode()

        cancelled, page = visiting(base, library, act, engine=lambda base: PlainEngine(base, pause=0.05))
        assert cancelled >= 2
        assert 'route="/v1/predict",status="499"' in page

    def test_two_versions_are_compared(self, base, library, tmp_path):
        path = write_csv(tmp_path / "rows.csv", self.ROWS)
        task = Task(template="{text}!", labels=["positive", "negative"])
        own = PromptLibrary(tmp_path / "library")
        own.add("mood", library.get("mood@1"))
        own.add("mood", make_prompt(base, 5, task, seed=11))
        *_, last = visiting(
            base, own, lambda visitor, _: listed(compare(visitor, "mood@1", "mood@2", str(path))), engine=LocalEngine
        )
        rows = load_rows(path, MOOD)
        first, second = (
            predict(base, own.get(name), asked, [row.columns for row in rows])
            for name, asked in (("mood@1", MOOD), ("mood@2", task))
        )
        same = sum(one.label == other.label for one, other in zip(first, second, strict=True))
        assert EN["agree"].format(same=same, all=40, share=f"{same / 40:.1%}") in read(last)
        figures = [evaluate(base, own.get("mood@1"), MOOD, path), evaluate(base, own.get("mood@2"), task, path)]
        assert f"log loss {figures[0].log_loss:.4g} {figures[1].log_loss:.4g}" in read(last)
        assert f"accuracy {figures[0].accuracy:.4g} {figures[1].accuracy:.4g}" in read(last)

    @pytest.mark.parametrize(
        ("first", "second", "line"),
        [
            (None, "mood@1", EN["choose_two"]),
            ("mood@1", "mood@1", EN["choose_two"]),
            ("mood@1", "mood@9", "the library has no prompt 'mood@9'"),
            ("mood@1", "../mood", "there is no model '../mood'"),
            ("mood@1", "topic@1", "topic@1: rows.csv: no column 'title'"),
        ],
    )
    def test_what_cannot_be_compared(self, base, library, tmp_path, first, second, line):
        path = write_csv(tmp_path / "rows.csv", self.ROWS)
        *_, last = visiting(base, library, lambda visitor, _: listed(compare(visitor, first, second, str(path))))
        assert line in read(last)


class TestLibrary:
    def show(self, base: Any, library: PromptLibrary) -> tuple[str, list[str]]:
        async def act(visitor: Visitor, _: Service) -> Any:
            return (await listed(show_library(visitor)))[-1], [one.id for one in (await visitor.library()).data]

        return visiting(base, library, act)

    def test_a_table_with_cards(self, base, library):
        page, versions = self.show(base, library)
        assert versions == ["bare@1", "colour@1", "mood@1", "mood@2", "topic@1"]
        assert first_choice(versions) == ("mood@1", "mood@2")
        assert "mood@2 mood@2 2 6 negative, positive" in read(page)
        assert "colour@1 colour@1 1 5 free text" in read(page)
        assert "bare@1 bare@1 1 2 no task" in read(page)
        assert json.dumps(MOOD.template) in read(page)

    def test_empty(self, base, tmp_path):
        (tmp_path / "library").mkdir()
        page, versions = self.show(base, PromptLibrary(tmp_path / "library"))
        assert "The library is empty" in read(page)
        assert versions == []
        assert first_choice(versions) == (None, None)

    def test_a_damaged_card_and_a_prompt_of_another_base_leave_the_others(self, base, own_library):
        card = own_library.entry("topic").path / "card.json"
        card.write_text(card.read_text().replace("art", f"{TRICK}"))
        own_library.add("foreign", make_prompt(make_base(seed=9), 3, MOOD))
        page, versions = self.show(base, own_library)
        assert "topic: " in read(page)
        assert "card.json" in read(page)
        assert "foreign: this prompt was made for base" in read(page)
        assert "foreign@1 not loaded" in read(page)
        assert "<img" not in page
        assert str(own_library.folder) not in page
        assert "topic@1" not in versions

    def test_another_version_is_loaded(self, base, own_library):
        async def act(visitor: Visitor, service: Service) -> Any:
            await service.load("mood@1")
            return await listed(show_library(visitor))

        assert "mood@2 mood@1 2" in read(visiting(base, own_library, act)[-1])

    def test_a_folder_that_is_no_library(self, base, library, tmp_path):
        async def act(visitor: Visitor, service: Service) -> Any:
            (tmp_path / "file").write_text("")
            service.library = PromptLibrary(tmp_path / "file")
            return await listed(show_library(visitor))

        assert "file" in visiting(base, library, act)[-1]


class TestRuns:
    def test_no_runs(self, tmp_path):
        assert list_runs(tmp_path / "none") == []
        page, mark = show_run(tmp_path / "none", None, None, EN)
        assert mark is None
        assert "softprompt train" in read(page)

    def test_curves_while_it_learns(self, tmp_path):
        run = make_run(tmp_path / "films", 12)
        assert list_runs(tmp_path) == ["films"]
        page, mark = show_run(tmp_path, "films", None, EN)
        assert "Step 12 of at most 60" in read(page)
        assert page.count("<svg") == 3
        for words in (EN["loss_unit"], EN["step"], EN["shares_unit"], "training", "validation", "accuracy"):
            assert words in read(page)
        assert show_run(tmp_path, "films", mark, EN) is None
        with (run / "monitor.jsonl").open("a") as file:
            file.write('{"kind": "measurement", "step": 13, "lo')
        os.utime(run / "monitor.jsonl", (1, 1))
        page, mark = show_run(tmp_path, "films", mark, EN)
        assert "Step 12 of at most 60" in read(page)  # half a line is none
        (run / "prompt").mkdir()
        page, _ = show_run(tmp_path, "films", mark, EN)
        assert "Finished: 12 steps" in read(page)

    def test_the_newest_is_first_and_one_folder_deeper_is_found(self, tmp_path):
        for age, name in enumerate(("new", "grown/8-virtual-tokens", "old")):
            os.utime(make_run(tmp_path / name, 1) / "monitor.jsonl", (1000 - age, 1000 - age))
        (tmp_path / "no-run").mkdir()
        assert list_runs(tmp_path) == ["new", "grown/8-virtual-tokens", "old"]

    def test_damaged_files(self, tmp_path):
        run = make_run(tmp_path / "films", 2)
        (run / "run.json").write_text("{")
        (run / "monitor.jsonl").write_bytes(b"\xff\xfe\nnull\n[[[\n" + (run / "monitor.jsonl").read_bytes()[:-9])
        page, _ = show_run(tmp_path, "films", None, EN)
        assert "Step 1 of at most ?" in read(page)

    def test_what_the_monitor_finds_wrong(self, tmp_path):
        run = make_run(tmp_path / "films", 40)
        trajectory = Trajectory.read(run / "monitor.jsonl")
        still = [one.model_copy(update={"gradient": [0.0, 1.0, 1.0]}) for one in trajectory.measurements]
        Trajectory(trajectory.start, still, trajectory.validations).write(run / "monitor.jsonl")
        page, _ = show_run(tmp_path, "films", None, EN)
        for one in diagnose(Trajectory.read(run / "monitor.jsonl")):
            assert one.sentence in read(page)

    def test_nothing_logged_yet(self, tmp_path):
        make_run(tmp_path / "films", 0)
        (tmp_path / "off").mkdir()
        (tmp_path / "off" / "run.json").write_text('{"recipe": {"max_steps": 3}}')
        for name in ("films", "off"):
            assert EN["run_no_steps"] in read(show_run(tmp_path, name, None, EN)[0])

    @pytest.mark.parametrize("name", ["gone", "../films", "/etc", "films/..", TRICK])
    def test_no_other_folder_is_read(self, tmp_path, name):
        make_run(tmp_path / "films", 1)
        make_run(tmp_path / "runs" / "one", 1)
        page, mark = show_run(tmp_path / "runs", name, None, EN)
        assert (read(page), mark) == (EN["no_such_run"], None)

    def test_in_spanish(self, tmp_path):
        make_run(tmp_path / "films", 6)
        page, _ = show_run(tmp_path, "films", None, ES)
        for key in ("step", "loss_unit", "gradients_unit", "virtual_token", "gradients_help"):
            assert ES[key] in read(page)
        assert EN["step"] not in read(page)


@pytest.fixture(scope="module")
def page(base, library, tmp_path_factory) -> Any:
    """A server with the playground, for tests that leave it as it is."""
    with living(PlainEngine(base), library, playground=tmp_path_factory.mktemp("runs")) as live:
        yield live


class TestBesideTheApi:
    def test_the_page_is_there_and_asks_nobody_else(self, page):
        answer = page.get("/")
        assert answer.status_code == 200
        assert "text/html" in answer.headers["content-type"]
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        asked = re.findall(r'(?:src|href)="([^"]+)"', answer.text)
        assert asked
        assert not [url for url in asked if "//" in url]
        config = page.get("/config").json()
        assert config["analytics_enabled"] is False
        assert config["stylesheets"] == []  # no fonts but the system's

    def test_the_api_is_as_it_was(self, page):
        assert page.get("/health").json() == {"status": "ok"}
        assert page.get("/docs").status_code == 200
        assert "/v1/classify" in page.get("/openapi.json").json()["paths"]
        assert page.get("/v1/classify").status_code == 405
        assert page.get("/nonsense").json()["error"]["message"] == "there is no such endpoint: see /docs"
        assert page.post("/v1/classify", json={"model": "mood", "input": "a"}).status_code == 200

    @pytest.mark.parametrize(
        "path",
        ["info", "openapi.json", "proxy=http://127.0.0.1/", "vibe-code/", "run/0", "call/x", "runs", "token", "user"],
    )
    def test_paths_of_gradios_that_nobody_needs_are_shut(self, page, path):
        answer = page.get(f"/gradio_api/{path}")
        assert answer.status_code == 404
        assert "there is no such endpoint" in answer.json()["error"]["message"]

    @pytest.mark.parametrize("path", ["/etc/passwd", "pyproject.toml", "https://127.0.0.1:1/x", "../pyproject.toml"])
    def test_no_file_of_the_machine_is_given_out(self, page, path):
        assert page.get(f"/gradio_api/file={path}").status_code in (403, 404)
        assert page.get(f"/static/{path}").status_code in (403, 404)

    def test_no_other_site_may_read_it(self, page):
        for host in ("127.0.0.1", "example.org"):
            answer = page.get("/config", headers={"Origin": "http://evil.example", "Host": host})
            assert "access-control-allow-origin" not in answer.headers

    def asked(self, page: Live, session: str, *data: Any) -> tuple[int, str]:
        """What the button Ask of a page gets, that was open before the server was started anew."""
        config = page.get("/config").json()
        (button,) = (part["id"] for part in config["components"] if part["props"].get("elem_id") == "ask")
        (number,) = (one["id"] for one in config["dependencies"] if [button, "click"] in one["targets"])
        body = {"fn_index": number, "session_hash": session, "data": [*data, *[""] * 5]}
        status = page.post("/gradio_api/queue/join", json=body).status_code
        if status != 200:
            return status, ""
        with page.http() as http, http.stream("GET", f"/gradio_api/queue/data?session_hash={session}") as events:
            told = [json.loads(line.removeprefix("data: ")) for line in events.iter_lines() if line]
        return status, next(one["output"]["data"][0] for one in told if one["msg"] == "process_generating")

    def test_five_megabytes_in_the_box(self, page):
        start = time.perf_counter()
        assert "100,000 characters" in self.asked(page, "big", ["mood"], "a" * 5_000_000)[1]
        assert time.perf_counter() - start < 5
        assert self.asked(page, "huge", ["mood"], "a" * 10_000_000)[0] == 413

    def test_what_cannot_be_asked_is_shown_as_text(self, page):
        _, shown = self.asked(page, "old", ["mood", TRICK], "a")
        assert "there is no model" in read(shown)
        assert "<img" not in shown

    def test_what_nobody_expected(self, page, monkeypatch, caplog):
        async def fail(*_: Any) -> None:
            raise RuntimeError("secret")

        monkeypatch.setattr(Visitor, "model", fail)
        assert read(self.asked(page, "failed", ["mood"], "a")[1]) == EN["failed"]
        assert "playground failed" in caplog.messages

    @pytest.mark.parametrize("path", ["/gradio_api/queue/join", "/gradio_api/upload"])
    def test_no_other_site_may_ask_it(self, page, path):
        answer = page.post(path, json={}, headers={"Sec-Fetch-Site": "cross-site"})
        assert answer.status_code == 403
        assert "another site" in answer.json()["error"]["message"]
        assert page.get("/").headers["content-security-policy"].count("frame-ancestors 'none'") == 1

    def test_requests_are_counted_by_their_route(self, page):
        page.get("/")
        page.get("/gradio_api/app_id")
        figures = page.get("/metrics").text
        assert 'route="/gradio_api/app_id",status="200"' in figures

    def test_uploads_are_kept_within_the_body_limit_and_deleted_at_the_end(self, base, library, tmp_path):
        with living(PlainEngine(base), library, playground=tmp_path, body_limit=2000) as live:
            kept = live.post("/gradio_api/upload", files={"files": ("a.csv", b"x" * 1000)})
            assert kept.status_code == 200
            (path,) = kept.json()
            assert Path(path).read_bytes() == b"x" * 1000
            own = Path(tempfile.gettempdir()) / Path(path).relative_to(tempfile.gettempdir()).parts[0]
            assert own.name.startswith("softprompt-playground-")
            assert live.post("/gradio_api/upload", files={"files": ("a.csv", b"x" * 3000)}).status_code == 413
        assert not own.exists()

    def test_a_key_is_asked_for(self, base, library, tmp_path):
        with living(PlainEngine(base), library, playground=tmp_path, api_keys=["sésame"]) as live:
            for path in ("/", "/config", "/gradio_api/queue/data", "/gradio_api/upload"):
                for auth in (None, ("", "wrong"), ("sesame", "")):
                    answer = live.get(path, auth=auth)
                    assert answer.status_code == 401
                    assert answer.headers["www-authenticate"].startswith("Basic realm=")
            joined = live.post("/gradio_api/queue/join", json={"fn_index": 0, "data": [], "session_hash": "x"})
            assert joined.status_code == 401
            for given in ("Basic !!!", "Basic", "Basic YQ", "Bearer x", b"Basic \xe9"):
                assert live.get("/", headers={"Authorization": given}).status_code == 401
            for auth in (("", "sésame"), ("anybody", "sésame"), ("sésame", "")):
                assert live.get("/", auth=auth).status_code == 200
            assert live.get("/theme.css").status_code == 200
            # A browser sends a password with whatever a page of another site makes it ask: the API does not take it.
            answer = live.get("/v1/models", auth=("", "sésame"))
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"

    def test_showing_the_page_counts_for_no_rate_limit_but_asking_does(self, base, library, tmp_path):
        with living(PlainEngine(base), library, playground=tmp_path, requests_per_minute=3) as live:
            for path in ("/theme.css", "/", "/config", "/gradio_api/startup-events"):
                assert [live.get(path).status_code for _ in range(4)] == [200] * 4
            assert [live.get("/v1/models").status_code for _ in range(2)] == [200] * 2
            asked = [live.post("/gradio_api/queue/join", json={}).status_code for _ in range(2)]
            assert asked[0] != 429
            assert asked[1] == 429

    def test_a_wrong_key_counts_on_the_page_too(self, base, library, tmp_path):
        limits = {"api_keys": ["sésame"], "requests_per_minute": 2}
        with living(PlainEngine(base), library, playground=tmp_path, **limits) as live:
            assert [live.get("/", auth=("", "guess")).status_code for _ in range(3)] == [401, 401, 429]
            assert [live.get("/", auth=("", "sésame")).status_code for _ in range(5)] == [200] * 5

    def test_an_open_page_does_not_keep_the_server_from_stopping(self, base, library, tmp_path):
        with (
            living(PlainEngine(base), library, playground=tmp_path) as live,
            live.http() as http,
            http.stream("GET", "/gradio_api/heartbeat/abc") as beats,
        ):
            lines = beats.iter_lines()
            assert next(lines) == "data: ALIVE"
            start = time.perf_counter()
            live.server.handle_exit(signal.SIGTERM, None)
            assert not any(lines)
        assert time.perf_counter() - start < 4  # the server's patience is 5 s


class TestWithoutIt:
    def told(self, live: Live) -> str:
        answer = live.get("/")
        assert answer.status_code == 404
        return str(answer.json()["error"]["message"])

    def test_the_extra_is_named(self, server, monkeypatch):
        monkeypatch.setitem(sys.modules, "gradio", None)
        monkeypatch.setattr(playground, "find_spec", lambda name: None)
        monkeypatch.setattr("softprompt.serving.api.is_installed", playground.is_installed)
        assert self.told(server) == (
            'the playground needs an extra: pip install "softprompt[playground]"; the API is described at /docs'
        )

    def test_switched_off(self, server):
        assert "--playground" in self.told(server)


class TestCommand:
    @pytest.fixture
    def called(self, monkeypatch) -> dict[str, Any]:
        found: dict[str, Any] = {}
        monkeypatch.setattr(
            "softprompt.serving.server.serve", lambda engine, library, site, **_: found.update(vars(site))
        )
        return found

    @pytest.mark.parametrize(
        ("words", "installed", "runs"),
        [
            ([], True, "runs"),
            ([], False, None),
            (["--no-playground"], True, None),
            (["--no-playground"], False, None),
            (["--playground"], True, "runs"),
            (["--runs", "elsewhere"], True, "elsewhere"),
        ],
    )
    def test_it_is_on_where_it_is_installed(self, library, called, monkeypatch, words, installed, runs):
        monkeypatch.setattr(playground, "find_spec", lambda name: object() if installed else None)
        result = CliRunner().invoke(app, ["serve", "--base", "b", "--library", str(library.folder), *words])
        assert result.exit_code == 0, result.output
        assert called["runs"] == (None if runs is None else Path(runs))

    def test_asked_for_but_not_installed(self, library, monkeypatch):
        monkeypatch.setattr(playground, "find_spec", lambda name: None)
        words = ["serve", "--base", "b", "--library", str(library.folder), "--playground"]
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 1
        assert 'pip install "softprompt[playground]"' in result.stderr
        assert len(result.stderr.splitlines()) == 1
