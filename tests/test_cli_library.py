from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from softprompt import PromptLibrary, SoftPrompt
from softprompt.errors import UnknownPromptError
from softprompt.prompts import Card
from tests.conftest import make_base
from tests.prompts.fakehub import TOKEN, FakeHub
from tests.test_cli import printed, refused, run

ENTRY_KEYS = {"name", "version", "current", "base", "num_virtual_tokens", "bytes", "path", "created", "sha256"}


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PromptLibrary:
    """mood@1, mood@2 and taste@1 in `library`, and the folder `saved` with a prompt, in the working folder."""
    monkeypatch.chdir(tmp_path)
    library = PromptLibrary("library")
    base = make_base().identity
    for name, value in (("mood", 1.0), ("mood", 2.0), ("taste", 10.0)):
        library.add(name, SoftPrompt(torch.full((2, 32), value), Card(base=base, task={"template": "[red]{text}"})))
    SoftPrompt(torch.zeros(5, 32)).save("saved")
    return library


# What is printed


def test_list_prints_its_document(library):
    found = printed("library", "list")
    assert set(found) == {"prompts", "damaged"}
    assert [set(one) for one in found["prompts"]] == [ENTRY_KEYS] * 2
    assert [(one["name"], one["version"]) for one in found["prompts"]] == [("mood", 2), ("taste", 1)]
    mood = found["prompts"][0]
    assert (mood["base"], mood["num_virtual_tokens"], mood["current"]) == ("tiny-llama", 2, True)
    assert mood["path"] == "library/mood/2"
    assert mood["bytes"] == sum(file.stat().st_size for file in Path(mood["path"]).iterdir())
    assert mood["sha256"] == library.get("mood").sha256
    assert found["damaged"] == []


def test_a_prompt_of_peft_s_is_added_with_a_task(library):
    Path("task.yaml").write_text(
        'name: mood\nbase: any\ntask: {template: "{text}", labels: [a, b]}\ndata: {train: train.csv}\n'
    )
    printed("library", "add", "peft", "saved", "--task", "task.yaml")
    assert library.get("peft").card.task["labels"] == ["a", "b"]
    assert torch.equal(library.get("peft").embeddings, torch.zeros(5, 32))
    assert SoftPrompt.load("saved").card.task is None
    assert "no.yaml" in refused("library", "add", "peft", "saved", "--task", "no.yaml")


def test_from_add_to_remove(library):
    found = printed("library", "add", "mood", "saved")
    assert set(found) == ENTRY_KEYS
    assert (found["name"], found["version"], found["num_virtual_tokens"], found["base"]) == ("mood", 3, 5, None)
    assert printed("library", "rollback", "mood")["version"] == 2
    assert printed("library", "rollback", "mood", "1")["version"] == 1
    shown = printed("library", "show", "mood")
    assert set(shown) == ENTRY_KEYS | {"versions", "card"}
    assert [(one["version"], one["current"]) for one in shown["versions"]] == [(1, True), (2, False), (3, False)]
    assert shown["card"] == library.entry("mood").card.model_dump(mode="json")
    assert printed("library", "show", "mood@3")["card"]["base"] is None
    assert printed("library", "verify") == {"faults": []}
    assert printed("library", "remove", "mood@1") == {"removed": "mood@1"}
    assert printed("library", "remove", "mood") == {"removed": "mood"}
    assert [one["name"] for one in printed("library", "list")["prompts"]] == ["taste"]
    with pytest.raises(UnknownPromptError):
        library.get("mood")


def test_people_get_tables_and_lines(library):
    assert run("library", "list", "--library", "none").stdout == (
        "No prompts in none. Next: softprompt library add NAME PROMPT\n"
    )
    listed = run("library", "list").stdout
    for what in ("mood@2 (current)", "taste@1 (current)", "tiny-llama", "virtual tokens"):
        assert what in listed
    shown = run("library", "show", "mood@1").stdout
    for what in ("mood@1", "mood@2 (current)", "task.template", "[red]{text}"):
        assert what in shown
    for words, says in [
        (("add", "smell", "saved", "--library", "a library"), "Added smell@1, "),
        (("rollback", "mood"), "mood is mood@1 now\n"),
        (("remove", "mood@2"), "Removed mood@2\n"),
        (("verify",), "library is whole\n"),
        (("--help",), "rollback"),
    ]:
        result = run("library", *words)
        assert result.exit_code == 0
        assert says in result.stdout
        assert result.stderr == ""
    assert Path("a library/smell/1").is_dir()


def test_faults_are_listed_and_the_exit_code_is_1(library):
    (library.folder / "mood" / "2" / "card.json").unlink()
    (library.folder / "notes.txt").write_text("")
    result = run("library", "verify", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout) == {
        "faults": [
            {
                "name": "mood",
                "version": 2,
                "path": "library/mood/2/card.json",
                "problem": "is missing: put it back from a copy, or remove this version",
            },
            {
                "name": None,
                "version": None,
                "path": "library/notes.txt",
                "problem": "is not part of the library: move it away",
            },
        ]
    }
    assert result.stderr == "error: faults in library: 2, named above\n"
    assert (
        run("library", "verify").stdout.splitlines()[1] == "library/notes.txt is not part of the library: move it away"
    )
    found = printed("library", "list")
    assert ([one["name"] for one in found["prompts"]], found["damaged"]) == (["taste"], ["mood"])
    assert run("library", "list").stdout.endswith("mood is damaged: see softprompt library verify\n")
    assert [one["version"] for one in printed("library", "show", "mood@1")["versions"]] == [1]


def test_all_but_adding_needs_no_pytorch(library):
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom softprompt.cli import app\n"
        "for words in ('list', 'show mood', 'verify', 'rollback mood', 'remove mood@2', 'show nobody', '--help'):\n"
        "    print(CliRunner().invoke(app, ['library', *words.split()]).exit_code)\n"
        "print(sorted({'torch', 'transformers', 'numpy', 'peft', 'huggingface_hub'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split("\n") == ["0", "0", "0", "0", "0", "1", "0", "[]", ""]


# Bad input


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["show", "nobody"], "there is no prompt 'nobody' in library: see `softprompt library list`"),
        (["show", "mood@7"], "there is no version 7 of 'mood' in library: the current one is 2"),
        (["show", "../../etc/passwd"], "'../../etc/passwd' is not a prompt's name: a name is 1 to 64 of a-z"),
        (["show", "mood@0"], "'mood@0' names no version: write NAME@3"),
        (["remove", "nobody"], "there is no prompt 'nobody'"),
        (["rollback", "taste"], "there is no version of 'taste' before the current one, 1: say which one"),
        (["rollback", "mood", "9"], "there is no version 9 of 'mood'"),
        (["add", "Mood", "saved"], "'Mood' is not a prompt's name"),
        (["add", "mood", "nowhere"], "no prompt at nowhere: there is no such folder"),
        (["add", "mood", "saved/card.json"], "saved/card.json is not a folder: a prompt is a folder with"),
        (["list", "--library", "saved"], "saved is not a prompt library: it holds other things, such as 'adapter_"),
        (["verify", "--library", "saved/card.json"], "saved/card.json is a file: a prompt library is a folder"),
        (["push", "nobody", "someone/mood"], "there is no prompt 'nobody'"),
        (["push", "mood", "mood"], "'mood' can't be the name of a repository on the hub: write OWNER/NAME"),
        (["pull", "someone/.mood"], "'.mood' can't be a prompt's name in the library: give one"),
    ],
)
def test_bad_input_is_one_line(library, words, says):
    assert refused("library", *words).startswith(says)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["nonsense"],
        ["add", "mood"],
        ["show"],
        ["rollback", "mood", "x"],
        ["rollback", "mood", "0"],
        ["push", "mood"],
        ["pull"],
    ],
)
def test_wrong_usage_exits_with_2(library, words):
    result = run("library", *words)
    assert result.exit_code == 2


# The hub


def test_push_and_pull(library):
    """In a process of its own, as HF_ENDPOINT is read when huggingface_hub is imported."""
    commands = [
        "push mood@1 someone/Mood --public",
        "pull someone/Mood theirs --revision main",
        "pull someone/Else",
    ]
    code = (
        "import json, sys\nfrom typer.testing import CliRunner\nfrom softprompt.cli import app\n"
        "for words in sys.argv[1:]:\n"
        "    found = CliRunner().invoke(app, ['library', *words.split(), '--json'])\n"
        "    print(json.dumps([found.exit_code, found.stdout, found.stderr]))"
    )
    hub = FakeHub()
    settings = {
        "HF_ENDPOINT": hub.endpoint,
        "HF_TOKEN": TOKEN,
        "HF_HOME": str(Path("hub").absolute()),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
    }
    try:
        process = subprocess.run(
            [sys.executable, "-c", code, *commands],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | settings,
        )
    finally:
        hub.stop()
    pushed, pulled, gone = map(json.loads, process.stdout.splitlines())
    repository = hub.repositories["someone/Mood"]
    url = f"{hub.endpoint}/someone/Mood/commit/{repository.branches['main']}"
    assert pushed == [0, json.dumps({"commit": url}) + "\n", ""]
    assert not repository.private
    assert (pulled[0], pulled[2], json.loads(pulled[1])["name"]) == (0, "", "theirs")
    assert library.get("theirs").sha256 == library.get("mood@1").sha256
    assert gone[:2] == [1, ""]
    assert gone[2].startswith("error: there is no repository 'someone/Else' on the hub, or you may not see it")
    assert gone[2].count("\n") == 1
