"""The folder: PEFT's format both ways, atomic replacement, every damaged or unsafe file refused by name."""

from __future__ import annotations

import errno
import json
import logging
import os
import pickle
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file

from softprompt.bases.base import Base
from softprompt.errors import SoftPromptError, WrongBaseError
from softprompt.prompts import Card, SoftPrompt
from softprompt.prompts.names import CARD, CONFIG, WEIGHTS
from tests.conftest import make_base, make_tokenizer
from tests.models.families import make_model

OLD, NEW = torch.zeros(2, 4), torch.ones(3, 4)


def prompt_in(path: Path) -> torch.Tensor:
    return SoftPrompt.load(path).embeddings


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved prompt, OLD."""
    return SoftPrompt(OLD).save(tmp_path / "prompt")


# --- round trips


@settings(max_examples=25, deadline=None)
@given(
    values=hnp.arrays(
        "float32", st.tuples(st.integers(1, 5), st.integers(1, 7)), elements=st.floats(-(2.0**99), 2.0**99, width=32)
    ),
    metrics=st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5) | st.none(), max_size=3),
)
def test_saved_and_loaded_equals_in_memory(values: Any, metrics: dict[str, Any]) -> None:
    prompt = SoftPrompt(torch.from_numpy(values.copy()), Card(metrics=metrics, task={"template": "é {text}\n"}))
    with tempfile.TemporaryDirectory() as parent:
        loaded = SoftPrompt.load(prompt.save(Path(parent, "p")))
        assert os.listdir(parent) == ["p"]
    assert torch.equal(loaded.embeddings, prompt.embeddings)
    assert loaded.card == prompt.card


def test_what_is_in_the_folder(tiny_base: Base, tmp_path: Path) -> None:
    prompt = SoftPrompt.from_text(tiny_base, "Classify:", 5)
    path = prompt.save(str(tmp_path / "deep" / "er" / "p"))
    assert path == tmp_path / "deep/er/p"
    assert sorted(os.listdir(path)) == ["adapter_config.json", "adapter_model.safetensors", "card.json"]
    tensors = load_file(path / "adapter_model.safetensors")
    assert list(tensors) == ["prompt_embeddings"]
    assert torch.equal(tensors["prompt_embeddings"], prompt.embeddings)
    config = json.loads((path / "adapter_config.json").read_text())
    expected = {
        "peft_type": "PROMPT_TUNING",
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
        "base_model_name_or_path": "tiny-llama",
        "num_virtual_tokens": 5,
        "token_dim": 32,
        "num_transformer_submodules": 1,
        "prompt_tuning_init": "TEXT",
        "prompt_tuning_init_text": "Classify:",
        "tokenizer_name_or_path": "tiny-llama",
        "num_layers": None,
        "num_attention_heads": None,
    }
    assert {key: config[key] for key in expected} == expected
    assert set(config) == set(PromptTuningConfig().to_dict())
    assert json.loads((path / "card.json").read_text())["sha256"] == prompt.sha256
    assert os.stat(path).st_mode == os.stat(path.parent).st_mode  # readable by whoever may read its parent


def test_numbers_in_the_card_take_few_lines(tiny_base: Base, tmp_path: Path) -> None:
    metrics = {"confusion": [[3, 0], [1, 2]], "said": "[\n 1,\n 2]", "shares": [0.5, -1e-7], "names": ["a", "b"]}
    start = SoftPrompt.random(tiny_base, 2)
    prompt = SoftPrompt(start.embeddings, start.card.replace(metrics=metrics))
    text = (prompt.save(tmp_path / "p") / "card.json").read_text()
    assert "[ 3, 0 ],\n" in text
    assert "[ 0.5, -1e-7 ]" in text
    assert SoftPrompt.load(tmp_path / "p").card == prompt.card


def test_peft_gives_the_same_logits(tiny_base: Base, tmp_path: Path) -> None:
    prompt = SoftPrompt.random(tiny_base, 6)
    ids = torch.randint(2, 258, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        rows = torch.cat([prompt.embeddings.expand(2, -1, -1), tiny_base.embed(ids)], dim=1)
        ours = tiny_base.model(inputs_embeds=rows).logits
        peft_model = PeftModel.from_pretrained(make_base().model, prompt.save(tmp_path / "p")).eval()
        theirs = peft_model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    assert theirs.shape == ours.shape
    assert (theirs - ours).norm() / ours.norm() < 1e-5


def test_a_folder_saved_by_peft(tiny_base: Base, tmp_path: Path) -> None:
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    model = get_peft_model(make_base().model, config)
    config.base_model_name_or_path = "some/model"
    model.save_pretrained(tmp_path / "peft", save_embedding_layers=False)  # or it asks the hub
    prompt = SoftPrompt.load(tmp_path / "peft", base=tiny_base)
    assert torch.equal(prompt.embeddings, model.get_prompt_embedding_to_save("default"))
    assert prompt.card.base is None
    assert prompt.card.initialisation["method"] == "peft"
    assert prompt.card.initialisation["prompt_tuning_init"] == "RANDOM"
    assert set(prompt.card.versions) == {"peft"}
    assert prompt.card.created[:4] == time.strftime("%Y", time.gmtime())
    again = prompt.save(tmp_path / "again")
    ours, theirs = (json.loads((path / CONFIG).read_text()) for path in (again, tmp_path / "peft"))
    assert ours == theirs | {"num_layers": None, "num_attention_heads": None}


class TestDoubts:
    """What a PEFT folder, which does not know its base, makes one doubt is said in one line, once."""

    def said(
        self, caplog: pytest.LogCaptureFixture, folder: Path, base: Base, *, named: str, scale: float = 1.0
    ) -> list[str]:
        config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
        model = get_peft_model(make_base().model, config)
        config.base_model_name_or_path = named
        weight = model.prompt_encoder["default"].embedding.weight
        weight.data = base.embed(torch.arange(9, 13)) * scale
        model.save_pretrained(folder, save_embedding_layers=False)
        with caplog.at_level(logging.WARNING, logger="softprompt"):
            prompt = SoftPrompt.load(folder, base=base)
            prompt.check_base(base)
        return [record.message for record in caplog.records]

    @pytest.mark.parametrize("named", ["tiny-llama", "somebody/Tiny-Llama", "/models/tiny-llama/", ""])
    def test_nothing_where_all_is_well(
        self, tiny_base: Base, tmp_path: Path, caplog: pytest.LogCaptureFixture, named: str
    ) -> None:
        assert self.said(caplog, tmp_path / "p", tiny_base, named=named) == []

    def test_another_base_of_the_same_width(
        self, tiny_base: Base, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (line,) = self.said(caplog, tmp_path / "p", tiny_base, named="some/model")
        assert line.startswith(
            f"prompt {tmp_path / 'p'} says it is for base 'some/model', and is used with 'tiny-llama'"
        )

    @pytest.mark.parametrize("family", ["gemma", "gemma2"])
    def test_a_prompt_for_gemma_from_before_it_scaled_its_words(
        self, family: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        base = Base(make_model(family, vocab_size=258, hidden_size=32), make_tokenizer(), "tiny-llama")
        assert self.said(caplog, tmp_path / "now", base, named="tiny-llama") == []
        (line,) = self.said(caplog, tmp_path / "then", base, named="tiny-llama", scale=32**-0.5)
        assert "multiply its tensor by 5.657" in line


def test_a_folder_without_a_card_of_another_width(tiny_base: Base, tmp_path: Path) -> None:
    path = SoftPrompt(torch.zeros(3, 8)).save(tmp_path / "p")
    (path / CARD).unlink()
    with pytest.raises(WrongBaseError, match=r"shape \[3, 8\] .*'tiny-llama'.* \[P, 32\]"):
        SoftPrompt.load(path, base=tiny_base)


def test_a_peft_folder_in_half_precision(folder: Path) -> None:
    (folder / CARD).unlink()
    save_file({"prompt_embeddings": OLD.bfloat16() + 0.5}, folder / WEIGHTS)
    assert torch.equal(prompt_in(folder), OLD + 0.5)


def test_a_card_that_peft_cannot_express(tmp_path: Path) -> None:
    card = Card(initialisation={"method": "peft", "prompt_tuning_init": "TEXT"})
    with pytest.raises(SoftPromptError, match="tokenizer_name_or_path can't be None"):
        SoftPrompt(OLD, card).save(tmp_path / "p")
    assert os.listdir(tmp_path) == []


# --- replacing


def test_an_existing_prompt_is_replaced_only_by_force(folder: Path) -> None:
    with pytest.raises(SoftPromptError, match=r"prompt exists: .*force=True \(--force\)"):
        SoftPrompt(NEW).save(folder)
    assert torch.equal(prompt_in(folder), OLD)
    SoftPrompt(NEW).save(folder, force=True)
    assert torch.equal(prompt_in(folder), NEW)
    assert os.listdir(folder.parent) == ["prompt"]


def test_a_prompt_that_appears_meanwhile_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = os.rename

    def overtaken(source: Any, target: Any) -> None:
        monkeypatch.undo()
        SoftPrompt(OLD).save(tmp_path / "p")
        rename(source, target)

    monkeypatch.setattr(os, "rename", overtaken)
    with pytest.raises(SoftPromptError, match="cannot save the prompt"):
        SoftPrompt(NEW).save(tmp_path / "p")
    assert torch.equal(prompt_in(tmp_path / "p"), OLD)
    assert os.listdir(tmp_path) == ["p"]


def test_force_on_a_new_path(tmp_path: Path) -> None:
    assert torch.equal(prompt_in(SoftPrompt(NEW).save(tmp_path / "p", force=True)), NEW)


def test_force_spares_what_is_not_a_prompt(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter.tex").write_text("years of work")
    (tmp_path / "notes.txt").write_text("more work")
    (tmp_path / "empty").mkdir()
    (folder / "notes.md").write_text("about this prompt")
    for name, line in [
        ("thesis", "thesis is not a prompt"),
        ("empty", "empty is not a prompt"),
        ("notes.txt", r"notes\.txt is a file"),
        ("prompt", r"prompt also holds 'notes\.md', which replacing the prompt would delete"),
    ]:
        with pytest.raises(SoftPromptError, match=line):
            SoftPrompt(NEW).save(tmp_path / name, force=True)
    assert (tmp_path / "thesis/chapter.tex").read_text() == "years of work"
    assert (tmp_path / "notes.txt").read_text() == "more work"
    assert (folder / "notes.md").exists()
    assert torch.equal(prompt_in(folder), OLD)


def test_force_through_a_link_keeps_the_link(folder: Path) -> None:
    link = folder.with_name("latest")
    link.symlink_to(folder)
    SoftPrompt(NEW).save(link, force=True)
    assert link.is_symlink()
    assert torch.equal(prompt_in(folder), NEW)
    assert torch.equal(prompt_in(link), NEW)


# --- kills


class Killed(BaseException):
    """Stands for a kill: nothing that the process would still do takes place."""


def die_at(monkeypatch: pytest.MonkeyPatch, fatal: int) -> None:
    """From the `fatal`-th call that touches folders on, no such call is carried out any more; 0 is the first."""
    calls = iter(range(1000))

    def mortal(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            if next(calls) >= fatal:
                raise Killed
            return call(*arguments, **options)

        return wrapped

    for module, name in [(os, "mkdir"), (os, "rename"), (os, "fsync"), (shutil, "rmtree")]:
        monkeypatch.setattr(module, name, mortal(getattr(module, name)))
    return calls


def test_a_kill_at_any_call_leaves_old_or_new(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes: list[str] = []
    missing: list[bool] = []
    for fatal in range(100):
        shutil.rmtree(folder.parent)
        SoftPrompt(OLD).save(folder)
        with monkeypatch.context() as patches:
            die_at(patches, fatal)
            try:
                SoftPrompt(NEW).save(folder, force=True)
            except Killed:
                pass
            else:
                break
        missing.append(not folder.exists())
        found = prompt_in(folder)
        outcomes.append("new" if torch.equal(found, NEW) else "old")
        assert torch.equal(found, NEW if outcomes[-1] == "new" else OLD)
        with pytest.raises(SoftPromptError, match="exists"):  # and also what only a backup holds is not lost
            SoftPrompt(NEW).save(folder)
        assert torch.equal(prompt_in(folder), found)
        SoftPrompt(NEW + 1).save(folder, force=True)
        assert torch.equal(prompt_in(folder), NEW + 1)
        assert not (folder.parent / ".prompt.softprompt-old").exists()
    last_old = outcomes.count("old") - 1
    assert outcomes == ["old"] * (last_old + 1) + ["new"] * 2  # killed as it syncs, or as it removes the old one
    assert [fatal for fatal, gone in enumerate(missing) if gone] == [last_old]  # killed between the two renames


@pytest.mark.parametrize("failing", [0, 1])
def test_a_rename_that_fails_puts_the_old_prompt_back(
    folder: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    calls, rename = iter(range(9)), os.rename

    def fail(source: Any, target: Any) -> None:
        if next(calls) == failing:
            raise OSError(errno.EIO, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(SoftPromptError, match=r"cannot save the prompt to .*Input/output error"):
        SoftPrompt(NEW).save(folder, force=True)
    assert os.listdir(folder.parent) == ["prompt"]
    assert torch.equal(prompt_in(folder), OLD)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_kill_9_while_saving(folder: Path) -> None:
    for attempt in range(12):
        child = os.fork()
        if child == 0:
            try:
                while True:
                    SoftPrompt(NEW).save(folder, force=True)
                    SoftPrompt(OLD).save(folder, force=True)
            finally:
                os._exit(1)  # never back into pytest
        time.sleep(0.02 + attempt * 0.0007)
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        found = prompt_in(folder)
        assert torch.equal(found, OLD if len(found) == len(OLD) else NEW)


def test_leftovers_of_killed_saves_are_swept_when_old(folder: Path) -> None:
    abandoned, under_way = (folder.with_name(f".prompt.softprompt-new-{name}") for name in ("abandoned", "under_way"))
    for leftover in (abandoned, under_way):
        leftover.mkdir()
        (leftover / WEIGHTS).write_bytes(b"half")
    os.utime(abandoned, (0, 0))
    SoftPrompt(NEW).save(folder, force=True)
    assert sorted(os.listdir(folder.parent)) == [".prompt.softprompt-new-under_way", "prompt"]


# --- disks that refuse


@pytest.mark.parametrize("call", ["write_bytes", "write_text"])
def test_a_full_disk_leaves_the_old_prompt(folder: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def fail(file: Path, *_: Any, **__: Any) -> None:
        with file.open("wb") as handle:
            handle.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device", str(file))

    monkeypatch.setattr(Path, call, fail)
    with pytest.raises(SoftPromptError, match=r"^cannot save the prompt to .*: No space left on device") as caught:
        SoftPrompt(NEW).save(folder, force=True)
    assert "\n" not in str(caught.value)
    assert os.listdir(folder.parent) == ["prompt"]
    assert torch.equal(prompt_in(folder), OLD)


def test_a_read_only_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Any, *_: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(os, "mkdir", fail)
    with pytest.raises(SoftPromptError, match="Read-only file system"):
        SoftPrompt(NEW).save(folder, force=True)
    assert torch.equal(prompt_in(folder), OLD)


def test_a_path_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SoftPromptError, match="cannot save the prompt"):
        SoftPrompt(NEW).save(tmp_path / "file" / "p")
    with pytest.raises(SoftPromptError, match="no prompt at"):
        SoftPrompt.load(tmp_path / "file" / "p")


def test_ctrl_c_leaves_nothing_behind(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        SoftPrompt(NEW).save(folder, force=True)
    assert os.listdir(folder.parent) == ["prompt"]
    assert torch.equal(prompt_in(folder), OLD)


# --- folders that are not to be trusted


class Bomb:
    """Unpickling it leaves a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.trace,))


@pytest.fixture
def bomb(tmp_path: Path) -> Iterator[Bomb]:
    yield Bomb(tmp_path / "exploded")
    assert not (tmp_path / "exploded").exists()


def refused(path: Path, line: str) -> None:
    with pytest.raises(SoftPromptError, match=line) as caught:
        SoftPrompt.load(path)
    assert "\n" not in str(caught.value)


def test_pickles_are_refused_unread(folder: Path, bomb: Bomb) -> None:
    (folder / WEIGHTS).write_bytes(pickle.dumps(bomb))
    refused(folder, r"adapter_model\.safetensors is a pickle")
    torch.save({"prompt_embeddings": bomb}, folder / WEIGHTS)
    refused(folder, r"adapter_model\.safetensors is a pickle")
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")
    refused(folder, r"adapter_model\.bin is a pickle")


def test_truncated_at_any_length(folder: Path) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    for length in range(len(whole)):
        (folder / WEIGHTS).write_bytes(whole[:length])
        refused(folder, r"adapter_model\.safetensors is damaged or cut off")


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    refused(folder, f"{name} is missing")


@pytest.mark.parametrize("name", [CONFIG, CARD])
@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", "is not valid JSON"),
        (b'{"a": ', "is not valid JSON"),
        (b"\xff\xfe", "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b"[1]", "a JSON object is needed, not list"),
    ],
)
def test_damaged_json(folder: Path, name: str, content: bytes, line: str) -> None:
    (folder / name).write_bytes(content)
    refused(folder, f"{name} .*{line}")


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"peft_type": "LORA"}, "peft_type is 'LORA'"),
        ({"peft_type": "PREFIX_TUNING"}, "peft_type is 'PREFIX_TUNING'"),
        ({"peft_type": None}, "peft_type is None"),
        ({"task_type": "IMAGE_CLS"}, "task_type is 'IMAGE_CLS'"),
        ({"task_type": "SEQ_CLS"}, "a prompt holds the one tensor 'prompt_embeddings' and the head"),
        ({"num_transformer_submodules": 2}, "num_transformer_submodules is 2"),
        ({"num_virtual_tokens": 3}, r"shape \[2, 4\], but adapter_config\.json says \[3, 4\]"),
        ({"token_dim": 5}, r"shape \[2, 4\], but adapter_config\.json says \[2, 5\]"),
    ],
)
def test_a_config_that_is_not_a_prompt_s(folder: Path, changes: dict[str, Any], line: str) -> None:
    edit(folder / CONFIG, **changes)
    refused(folder, line)


def test_another_adapter_saved_by_peft(tmp_path: Path) -> None:
    get_peft_model(make_base().model, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])).save_pretrained(
        tmp_path / "lora"
    )
    refused(tmp_path / "lora", r"adapter_config\.json: peft_type is 'LORA'; softprompt reads 'PROMPT_TUNING' only")


@pytest.mark.parametrize(
    ("tensors", "line"),
    [
        ({"prompt_embeddings": torch.zeros(8)}, r"shape \[8\]"),
        ({"prompt_embeddings": torch.zeros(2, 5)}, r"shape \[2, 5\]"),
        (
            {"prompt_embeddings": OLD, "score.weight": NEW},
            "'score.weight'.*the one tensor 'prompt_embeddings'",
        ),
        ({"embeddings": OLD}, "the one tensor 'prompt_embeddings'"),
        ({}, "the one tensor 'prompt_embeddings'"),
        ({"prompt_embeddings": OLD + float("nan")}, "virtual token 0 holds NaN"),
    ],
)
def test_other_tensors(folder: Path, tensors: dict[str, torch.Tensor], line: str) -> None:
    save_file(tensors, folder / WEIGHTS)
    refused(folder, rf"adapter_model\.safetensors.*{line}")


@pytest.mark.parametrize(
    ("tensor", "line"),
    [(OLD + torch.tensor([[0.0], [float("nan")]]), "virtual token 1 holds NaN"), (OLD.long(), "torch.int64")],
)
def test_values_without_a_card_are_checked(folder: Path, tensor: torch.Tensor, line: str) -> None:
    (folder / CARD).unlink()
    save_file({"prompt_embeddings": tensor}, folder / WEIGHTS)
    refused(folder, rf"adapter_model\.safetensors: .*{line}")


def test_a_tensor_that_is_not_the_card_s(folder: Path) -> None:
    save_file({"prompt_embeddings": OLD + 1}, folder / WEIGHTS)
    refused(folder, r"adapter_model\.safetensors is not the tensor whose sha256 is in card\.json")


def test_a_card_of_a_newer_version(folder: Path) -> None:
    edit(folder / CARD, format_version=3)
    refused(folder, r"prompt/card\.json has format version 3, .*: upgrade softprompt")


def test_a_card_of_another_width(folder: Path, tiny_base: Base) -> None:
    edit(folder / CARD, base=tiny_base.identity.model_dump())
    refused(folder, r"\[2, 4\] do not fit base 'tiny-llama' .* \[P, 32\]")


def test_no_folder(tmp_path: Path) -> None:
    refused(tmp_path / "nothing", "no prompt at .*nothing: there is no such folder")
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file", "file is not a folder")
    refused(tmp_path, r"adapter_config\.json is missing")


def test_an_unreadable_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(file: Path, **_: Any) -> str:
        raise PermissionError(errno.EACCES, "Permission denied", str(file))

    monkeypatch.setattr(Path, "read_text", fail)
    refused(folder, r"cannot read .*adapter_config\.json: Permission denied")
