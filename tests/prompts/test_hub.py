"""Push and pull, against a hub in this process; nothing here reaches a network."""

from __future__ import annotations

import json
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import constants
from safetensors.torch import save as to_safetensors

from softprompt.errors import SoftPromptError, UnknownPromptError
from softprompt.prompts import Card, PromptLibrary, SoftPrompt, hub
from softprompt.prompts.names import CARD, CONFIG, FILES, WEIGHTS
from tests.conftest import make_base
from tests.prompts.fakehub import TOKEN, FakeHub

# huggingface_hub's own upload to large file storage.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

REPOSITORY = "someone/Mood"
TASK = {"template": "Text: {text}\nMood:", "target": " {label}", "labels": ["bad", "good"]}


@pytest.fixture
def fake_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    """The hub that huggingface_hub talks to, with the test's token and caches that are the test's own."""
    fake = FakeHub()
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, fake.endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", fake.endpoint)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield fake
    fake.stop()
    assert not (tmp_path / "hub-cache").exists()


@pytest.fixture
def library(tmp_path: Path) -> PromptLibrary:
    """With mood@1 and mood@2."""
    library = PromptLibrary(tmp_path / "library")
    base = make_base().identity.model_copy(update={"name": "someone/tiny-llama"})
    for value in (1.0, 2.0):
        library.add("mood", SoftPrompt(torch.full((3, 32), value), Card(base=base, task=TASK)))
    return library


def refused(library: PromptLibrary, words: str, repository: str = REPOSITORY, **options: str) -> None:
    """Push and pull each say `words`, in one line that names the repository."""
    for call in (
        lambda: library.push("mood", repository, revision=options.get("revision")),
        lambda: library.pull(repository, "pulled", **options),
    ):
        with pytest.raises(SoftPromptError, match=words) as caught:
            call()
        assert repository in str(caught.value)
        assert "\n" not in str(caught.value)
    assert library.names() == ["mood"]


# --- there and back


def test_pushed_and_pulled_is_the_same(library: PromptLibrary, fake_hub: FakeHub, tmp_path: Path) -> None:
    url = library.push("mood", REPOSITORY)
    repository = fake_hub.repositories[REPOSITORY]
    assert repository.private
    assert url == f"{fake_hub.endpoint}/{REPOSITORY}/commit/{repository.branches['main']}"
    assert repository.messages == ["initial commit", "mood@2"]
    files = repository.commits[repository.branches["main"]]
    assert set(files) == {*FILES, "README.md", ".gitattributes"}
    for file in FILES:
        assert files[file] == (library.entry("mood@2").path / file).read_bytes()

    other = PromptLibrary(tmp_path / "other")
    entry = other.pull(REPOSITORY)
    assert (entry.name, entry.version) == ("mood", 1)  # the repository's name in lower case
    assert torch.equal(other.get("mood").embeddings, library.get("mood").embeddings)
    assert other.get("mood").card == library.get("mood").card
    assert other.pull(REPOSITORY, "mood").version == 2
    assert other.verify() == []


def test_one_version_onto_a_branch(library: PromptLibrary, fake_hub: FakeHub) -> None:
    library.push("mood", REPOSITORY)
    library.push("mood@1", REPOSITORY, revision="older")
    library.push("mood@1", REPOSITORY, revision="older")  # the branch is there now, and nothing new to commit
    repository = fake_hub.repositories[REPOSITORY]
    assert set(repository.branches) == {"main", "older"}
    assert repository.messages == ["initial commit", "mood@2", "mood@1"]
    assert float(library.get(f"mood@{library.pull(REPOSITORY, revision='older').version}").embeddings[0, 0]) == 1
    commit = repository.branches["main"]
    assert float(library.get(f"mood@{library.pull(REPOSITORY, revision=commit).version}").embeddings[0, 0]) == 2


def test_all_files_are_of_one_commit(library: PromptLibrary, fake_hub: FakeHub) -> None:
    library.push("mood@1", REPOSITORY)
    repository = fake_hub.repositories[REPOSITORY]

    def commit_meanwhile(path: str) -> None:
        if path.endswith(CONFIG) and len(repository.commits) == 2:
            other = library.entry("mood@2").path
            repository.commit("main", {file: (other / file).read_bytes() for file in FILES}, "meanwhile")

    fake_hub.before = commit_meanwhile
    entry = library.pull(REPOSITORY)
    assert len(repository.commits) == 3
    assert float(library.get(f"mood@{entry.version}").embeddings[0, 0]) == 1


def test_a_readme_that_is_there_is_kept(library: PromptLibrary, fake_hub: FakeHub) -> None:
    fake_hub.make(REPOSITORY, {"README.md": b"my own words"}, private=True)
    library.push("mood", REPOSITORY)
    repository = fake_hub.repositories[REPOSITORY]
    assert repository.commits[repository.branches["main"]]["README.md"] == b"my own words"


def test_the_readme(library: PromptLibrary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = library.entry("mood").card
    text = hub.readme(REPOSITORY, "mood", 3, card)
    facts = yaml.safe_load(text.split("---")[1])
    assert facts["base_model"] == "someone/tiny-llama"
    assert (facts["library_name"], facts["pipeline_tag"]) == ("peft", "text-classification")
    assert "softprompt library pull someone/Mood mood" in text
    assert '"template": "Text: {text}' in text
    assert "3 virtual tokens" in text
    monkeypatch.chdir(tmp_path)
    (tmp_path / "someone/tiny-llama").mkdir(parents=True)  # a folder, not a model on the hub
    assert "base_model" not in yaml.safe_load(hub.readme(REPOSITORY, "mood", 3, card).split("---")[1])
    free = card.replace(task=TASK | {"labels": None})
    assert "text-generation" in hub.readme(REPOSITORY, "mood", 3, free)
    assert "its card does not name" in hub.readme(REPOSITORY, "mood", 3, Card())


def test_a_prompt_of_peft_s_has_no_card(library: PromptLibrary, fake_hub: FakeHub) -> None:
    path = library.entry("mood@1").path
    fake_hub.make(REPOSITORY, {file: (path / file).read_bytes() for file in (CONFIG, WEIGHTS)})
    entry = library.pull(REPOSITORY, "theirs")
    assert entry.card.base is None
    assert torch.equal(library.get("theirs").embeddings, library.get("mood@1").embeddings)


def test_a_public_one(library: PromptLibrary, fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    library.push("mood", REPOSITORY, private=False, token=TOKEN)
    assert not fake_hub.repositories[REPOSITORY].private
    monkeypatch.delenv("HF_TOKEN")
    assert library.pull(REPOSITORY, "pulled").version == 1


# --- what is refused


def test_nothing_secret_goes_where_all_can_see_it(library: PromptLibrary, fake_hub: FakeHub) -> None:
    repository = fake_hub.make(REPOSITORY, {}, private=False)
    with pytest.raises(SoftPromptError, match=f"'{REPOSITORY}' is public on the hub, but a private one was asked"):
        library.push("mood", REPOSITORY)
    repository.private = True
    with pytest.raises(SoftPromptError, match="is private on the hub, but a public one was asked for: nothing was pus"):
        library.push("mood", REPOSITORY, private=False)
    assert repository.messages == ["initial commit"]


def test_what_is_not_in_the_library_reaches_no_hub(library: PromptLibrary, fake_hub: FakeHub) -> None:
    with pytest.raises(UnknownPromptError):
        library.push("taste", REPOSITORY)
    (library.entry("mood").path / WEIGHTS).write_bytes(b"damaged")
    with pytest.raises(SoftPromptError, match="SHA-256"):
        library.push("mood", REPOSITORY)
    with pytest.raises(SoftPromptError, match="is not a prompt's name"):
        library.pull(REPOSITORY, "../mood")
    with pytest.raises(SoftPromptError, match=r"'\.mood' can't be a prompt's name in the library: give one"):
        library.pull("someone/.mood")
    assert fake_hub.requests == []


@pytest.mark.parametrize("repository", ["a/b/c", "", "a b", "../../etc/passwd", "/mood"])
def test_names_that_no_repository_has(library: PromptLibrary, fake_hub: FakeHub, repository: str) -> None:
    with pytest.raises(SoftPromptError, match="can't be the name of a repository on the hub: write OWNER/NAME"):
        library.push("mood", repository)
    with pytest.raises(SoftPromptError, match="can't be the name of a repository on the hub: write OWNER/NAME"):
        library.pull(repository, "pulled")
    assert fake_hub.requests == []


def test_no_such_repository(library: PromptLibrary, fake_hub: FakeHub) -> None:
    with pytest.raises(SoftPromptError, match=f"no repository '{REPOSITORY}' on the hub, or you may not see it"):
        library.pull(REPOSITORY)
    fake_hub.make(REPOSITORY, {})
    with pytest.raises(SoftPromptError, match=f"repository '{REPOSITORY}' has no such revision on the hub"):
        library.pull(REPOSITORY, revision="never")


def test_nobody_and_somebody_else(library: PromptLibrary, fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(SoftPromptError, match="the hub does not know who you are; log in with `hf auth login`"):
        library.push("mood", REPOSITORY)
    fake_hub.make("someone/else", {}, private=True)
    with pytest.raises(SoftPromptError, match="no repository 'someone/else' on the hub, or you may not see it"):
        library.pull("someone/else")
    fake_hub.refuse["/api/repos/create"] = (403, "")
    with pytest.raises(SoftPromptError, match="your token does not allow it"):
        library.push("mood", REPOSITORY, token=TOKEN)
    assert "hf_" not in str(library)


def test_a_gated_repository(library: PromptLibrary, fake_hub: FakeHub) -> None:
    fake_hub.make(REPOSITORY, {})
    fake_hub.refuse[f"/api/models/{REPOSITORY}"] = (403, "GatedRepo")
    refused(library, "is gated: accept its terms on the hub, then log in")


def test_a_hub_that_fails(library: PromptLibrary, fake_hub: FakeHub) -> None:
    fake_hub.make(REPOSITORY, {})
    fake_hub.refuse["/api/"] = (418, "")
    refused(library, "the hub answered 418")


def test_no_network(library: PromptLibrary, fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
    refused(library, "the hub cannot be reached; check the network")


def test_told_to_stay_offline(library: PromptLibrary, fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused(library, r"the hub cannot be reached; .*HF_HUB_OFFLINE")
    assert fake_hub.requests == []


def test_repositories_without_a_whole_prompt(library: PromptLibrary, fake_hub: FakeHub) -> None:
    good = library._whole("mood", 2, library._store.versions("mood"))[1]
    lora = json.dumps(json.loads(good[CONFIG]) | {"peft_type": "LORA"}).encode()
    other = to_safetensors({"prompt_embeddings": torch.zeros(3, 32)})
    for files, words in [
        ({"model.safetensors": b""}, r"holds no prompt: it has no adapter_config\.json"),
        (good | {WEIGHTS: None, "adapter_model.bin": b""}, r"holds no prompt: it has no adapter_model\.safetensors"),
        (good | {CONFIG: lora}, "someone/Mood/adapter_config.json: peft_type is 'LORA'"),
        (good | {WEIGHTS: good[WEIGHTS][:-9]}, "someone/Mood/adapter_model.safetensors is damaged or cut off"),
        (good | {WEIGHTS: other}, "is not the tensor whose sha256 is in card.json"),
        (good | {CARD: b'{"format_version": 99}'}, "upgrade softprompt"),
    ]:
        fake_hub.make(REPOSITORY, {name: content for name, content in files.items() if content is not None})
        with pytest.raises(SoftPromptError, match=words) as caught:
            library.pull(REPOSITORY, "pulled")
        assert str(caught.value).startswith(f"repository '{REPOSITORY}'")
        assert tempfile.gettempdir() + os.sep not in str(caught.value)
    assert library.names() == ["mood"]


def test_the_hub_s_own_progress_bars_stay_as_they_were(
    library: PromptLibrary, fake_hub: FakeHub, capsys: pytest.CaptureFixture[str]
) -> None:
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled

    before = are_progress_bars_disabled()
    library.push("mood", REPOSITORY)
    library.pull(REPOSITORY)
    assert are_progress_bars_disabled() == before
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")
