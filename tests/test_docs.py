"""The docs say what the program is, in both languages alike; what they have one type does what they say."""

from __future__ import annotations

import io
import json
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from scripts import help_page

import softprompt
from tests.conftest import make_base
from tests.test_cli import run, save_base

DOCS = Path(__file__).parents[1] / "docs"


def fences(page: str, language: str) -> list[str]:
    """The page's blocks in a language: `sh` is what is typed, `python` a snippet."""
    return re.findall(rf"^```{language}\n(.*?)^```$", (DOCS / page).read_text("utf-8"), re.DOTALL | re.MULTILINE)


def play(page: str, more: Mapping[str, Sequence[str]], *, after: Sequence[str] = ()) -> Iterator[tuple[str, str]]:
    """Each command and snippet of a page, in order, with what it printed.

    Args:
        page: in docs/.
        more: what is added to a command of the program, by its name.
        after: the page's first lines, which somebody else types.
    """
    blocks = re.findall(r"^```(sh|python)\n(.*?)^```$", (DOCS / page).read_text("utf-8"), re.DOTALL | re.MULTILINE)
    typed: list[str] = []
    for language, block in blocks:
        typed += [block] if language == "python" else block.replace("\\\n", "").splitlines()
    assert typed[: len(after)] == list(after)
    server, url = None, ""
    try:
        for line in typed[len(after) :]:
            if "\n" in line:
                with redirect_stdout(io.StringIO()) as out:
                    exec(line.replace("http://127.0.0.1:8000", url), {})
                yield "python", out.getvalue()
                continue
            words = shlex.split(line, comments=True)
            if words[:2] == ["softprompt", "serve"]:
                options = [*words[1:], *more.get("serve", ()), "--port", "0", "--json"]
                program = [sys.executable, "-m", "softprompt.cli", *options]
                server = subprocess.Popen(program, stdout=subprocess.PIPE, text=True)
                assert server.stdout is not None
                url = json.loads(server.stdout.readline())["url"]
            elif words[0] == "curl":
                words = [word.replace("http://127.0.0.1:8000", url) for word in words]
                yield line, subprocess.run([*words, "-sf"], capture_output=True, text=True, check=True).stdout
            else:
                assert words[0] == "softprompt"
                done = run(*words[1:], *more.get(words[1], ()))
                assert done.exit_code == 0, f"{line}: {done.output}"
                yield line, done.stdout
    finally:
        if server is not None:
            server.send_signal(signal.SIGINT)
            server.communicate(timeout=60)


def test_the_commands_page_is_what_the_program_says() -> None:
    assert help_page.PAGE.read_text("utf-8") == help_page.text(), "run python -m scripts.help_page"


def test_the_api_page_has_the_public_face() -> None:
    named = re.findall(r"^::: softprompt\.(?:\w+\.)*(\w+)$", (DOCS / "api.md").read_text("utf-8"), re.MULTILINE)
    assert sorted(named) == softprompt.__all__


def test_both_first_hours_type_the_same() -> None:
    for language in ("sh", "python"):
        english = fences("first-hour.md", language)
        assert english
        assert fences("es/primera-hora.md", language) == english


def test_the_page_of_the_server_does_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    base = make_base()
    base.tokenizer.chat_template = "{% for one in messages %}{{ one.content }}{% endfor %}"
    folder = save_base(base, tmp_path / "base")
    task = softprompt.Task(template="Review: {text}\nSentiment:", labels=["negative", "positive"])
    for seed, name in enumerate(("movie-sentiment", "better")):
        prompt = softprompt.SoftPrompt.random(base, 4, seed=seed)
        card = prompt.card.replace(base=base.identity.model_dump(), task=task.model_dump(exclude_none=True))
        softprompt.SoftPrompt(prompt.embeddings, card).save(tmp_path / "runs" / name / "prompt")
    shown = list(play("serving.md", {"serve": ["--base", str(folder), "--no-playground"]}))
    added = [text for line, text in shown if "library add" in line]
    assert [text.split(",")[0] for text in added] == ["Added sentiment@1", "Added sentiment@2"]
    (snippet,) = (text for line, text in shown if line == "python")
    assert snippet.startswith("sentiment@1 ")
    asked = [(line.split()[1].partition("/v1/")[2], text) for line, text in shown if line.startswith("curl")]
    answers = [json.loads(text) for place, text in asked if place in ("classify", "predict")]
    samples = [json.loads(block) for block in fences("serving.md", "json")]
    assert len(answers) == len(samples) == 2
    for answer, sample in zip(answers, samples, strict=True):
        assert (answer.keys(), answer["object"]) == (sample.keys(), sample["object"])
        for one, other in zip(answer["data"], sample["data"], strict=True):
            assert one.keys() == other.keys()
            assert one["probabilities"].keys() == other["probabilities"].keys()
    loaded = [json.loads(text) for place, text in asked if place == "prompts/load"]
    assert [one["version"] for one in loaded] == [2, 1]
    prompts, library = (json.loads(text) for place, text in asked if place in ("prompts", "library"))
    assert prompts["data"] == []
    assert [one["version"] for one in library["data"]] == [1, 2]
