"""Two processes through the command line, as torchrun starts them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import softprompt
from softprompt import SoftPrompt
from softprompt.cli import app
from softprompt.errors import SoftPromptError
from softprompt.reporting.findings import FINDINGS
from softprompt.training import processes
from tests.conftest import make_base
from tests.test_cli import make_project, save_base

# Rank 1 on a machine, or with files, of its own: its variables are named ONE_..., rank 0's ZERO_... With KILL_AT a
# process is killed in that step; with END_SLOWLY the other takes its time to end; MORE is added to its command; COUNT
# names a file for what was broadcast and asked.
PROGRAM = """
import os
import shlex
import sys
import time
prefix = ("ZERO_", "ONE_")[int(os.environ["RANK"])]
os.environ |= {key.removeprefix(prefix): value for key, value in os.environ.items() if key.startswith(prefix)}
if "FOLDER" in os.environ:
    os.chdir(os.environ["FOLDER"])
from softprompt.cli import main
if "KILL_AT" in os.environ:
    from softprompt.training.loop import PromptTrainer
    step = PromptTrainer.training_step
    def killed(self, *args, **kwargs):
        if self.state.global_step == int(os.environ["KILL_AT"]):
            os.kill(os.getpid(), 9)
        return step(self, *args, **kwargs)
    PromptTrainer.training_step = killed
if "END_SLOWLY" in os.environ:
    from softprompt.training.loop import PromptTrainer
    train = PromptTrainer.train
    def slowly(self, *args, **kwargs):
        try:
            return train(self, *args, **kwargs)
        except RuntimeError:
            time.sleep(2)  # by then the launcher ends who is left
            raise
    PromptTrainer.train = slowly
sys.argv += shlex.split(os.environ.get("MORE", ""))
if "COUNT" in os.environ:
    import importlib
    import json
    import torch.distributed as dist
    evaluate = importlib.import_module("softprompt.evaluation.evaluate")
    counts = {"broadcast": 0, "asked": 0}
    def counted(function, key, size):
        def call(*args, **kwargs):
            counts[key] += size(*args)
            return function(*args, **kwargs)
        return call
    bytes_of = lambda one: one.numel() * one.element_size()
    dist.broadcast = counted(dist.broadcast, "broadcast", lambda one, *rest: bytes_of(one))
    coalesced = lambda group, tensors, *rest: sum(map(bytes_of, tensors))
    dist._broadcast_coalesced = counted(dist._broadcast_coalesced, "broadcast", coalesced)
    evaluate.score = counted(evaluate.score, "asked", lambda model, texts, *rest: len(texts))
    try:
        main()
    finally:
        with open(os.environ["COUNT"] + os.environ["RANK"], "w") as file:
            json.dump(counts, file)
main()
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    make_project(folder, save_base(make_base(), folder / "base"))
    (folder / "program.py").write_text(PROGRAM)
    return folder


def run_two(project: Path, *arguments: str, **environment: str) -> tuple[int, str, list[str]]:
    """`softprompt train`: the exit code, stdout, and what is on stderr besides progress and torchrun's own."""
    return launch(project, ["program.py", "train", "task.yaml", *arguments], **environment)


def surroundings(more: dict[str, str]) -> dict[str, str]:
    own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(softprompt.__file__).parents[1])}
    return os.environ | own | more


def launch(project: Path, command: Sequence[str], **environment: str) -> tuple[int, str, list[str]]:
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", *command],
        cwd=project,
        env=surroundings(environment),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    ours = [line for line in done.stderr.splitlines() if line.startswith(("error: ", "warning: ", "dtype "))]
    return done.returncode, done.stdout, ours


@pytest.mark.slow
def test_two_processes_train_what_one_trains(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, said = run_two(project, "--output", "two", "--json", COUNT="counts")
    assert (code, said) == (0, [])
    counts = [json.loads((project / f"counts{rank}").read_text()) for rank in (0, 1)]
    assert [one["broadcast"] for one in counts] == [4 * 4 * 32] * 2  # the prompt, in float32; nothing of the base
    # Of three validations of 12 rows and a test of 10 each asks half; the first one looks for the report's mistakes.
    assert [one["asked"] for one in counts] == [23 + 12, 23]
    found = json.loads(out)  # one document: the first process prints
    assert (found["prompt"], found["steps"], found["test"]["n"]) == ("two/prompt", 12, 10)
    assert (project / "two" / "report.html").is_file()
    monkeypatch.chdir(project)
    assert CliRunner().invoke(app, ["train", "task.yaml", "--output", "one"]).exit_code == 0
    one, two = (SoftPrompt.load(project / name / "prompt") for name in ("one", "two"))
    assert torch.allclose(one.embeddings, two.embeddings, atol=2e-4)  # at the default rate; see below

    code, out, said = run_two(project, "--output", "two")  # and what only the first one notices ends both
    assert (code, out) == (1, "")
    assert said == ["error: two exists: choose another output, --resume its run or --force to replace it"]


@pytest.mark.long
def test_two_processes_grow_a_prompt(project: Path) -> None:
    settings = ("prompt.num_virtual_tokens=auto", "recipe.max_steps=4")
    code, out, said = run_two(project, *(w for s in settings for w in ("--set", s)), "--output", "grown", "--json")
    assert code == 0
    assert len(said) == 1
    assert said[0].startswith("warning: data: 4 steps of 4 rows see 16 of the 40 training rows (40%)")
    assert json.loads(out)["prompt"] == "grown/prompt"
    assert (project / "grown" / "prompt" / "card.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "environment", "line"),
    [
        (
            ["recipe.dtype=auto"],
            {"ZERO_SOFTPROMPT_DTYPE": "float32", "ONE_SOFTPROMPT_DTYPE": "bfloat16"},
            "error: process 1 has another base (dtype: 'bfloat16', now 'float32'), prompt than process 0: give all the "
            "same files, and recipe.dtype where their machines differ",
        ),
        pytest.param(
            [],
            {"ONE_MORE": "--set recipe.seed=3"},
            "error: process 1 has another recipe (seed: 3, now 0) than process 0: give all the same files, and "
            "recipe.dtype where their machines differ",
            marks=pytest.mark.long,
        ),
        pytest.param(
            [],
            {"ONE_MORE": "--set data.train=dev.csv"},
            "error: process 1 has another training rows than process 0: give all the same files, and recipe.dtype "
            "where their machines differ",
            marks=pytest.mark.long,
        ),
        (
            [],
            {"ONE_MORE": "--set recipe.save_every=3 --set data.test=dev.csv --force"},
            "error: process 1 has another recipe (save_every: 3, now 4), test rows, options (force: True, now False) "
            "than process 0: give all the same files, and recipe.dtype where their machines differ",
        ),
        pytest.param([], {"ONE_FOLDER": "/"}, "error: process 1 of 2: task.yaml: no such file", marks=pytest.mark.long),
        (
            ["recipe.batch_size=5"],
            {},
            "error: recipe.batch_size 5 can't be shared by 2 processes in 1 parts each: choose a multiple of 2",
        ),
        pytest.param(
            ["recipe.batch_size=1", "recipe.max_steps=40"],
            {},
            "error: recipe.batch_size 1 can't be shared by 2 processes in 1 parts each: choose a multiple of 2",
            marks=pytest.mark.long,
        ),
    ],
)
def test_one_line_ends_both(project: Path, settings: list[str], environment: dict[str, str], line: str) -> None:
    options = [word for setting in settings for word in ("--set", setting)]
    code, out, said = run_two(project, *options, "--output", "refused", **environment)
    assert (code, out) == (1, "")
    assert [one for one in said if not one.startswith("dtype")] == [line]
    assert not (project / "refused").exists()


SLOWLY = ("--set", "recipe.learning_rate=1e-3")  # rounding in another order is magnified by the rate


def train_one(project: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> SoftPrompt:
    """What one process learns, in the run's folder that is the last word, or goes on with."""
    monkeypatch.chdir(project)
    result = CliRunner().invoke(app, ["train", "task.yaml", *SLOWLY, *words])
    assert result.exit_code == 0, result.output
    return SoftPrompt.load(Path(words[-1]) / "prompt")


@pytest.mark.slow
@pytest.mark.parametrize("parts", [1, pytest.param(2, marks=pytest.mark.long)])
def test_the_same_to_a_hundred_thousandth(project: Path, monkeypatch: pytest.MonkeyPatch, parts: int) -> None:
    settings = ("--set", f"recipe.gradient_accumulation_steps={parts}")
    code, _, said = run_two(project, *SLOWLY, *settings, "--output", f"close-two-{parts}")
    assert (code, said) == (0, [])
    one = train_one(project, monkeypatch, *settings, "--output", f"close-one-{parts}")
    two = SoftPrompt.load(project / f"close-two-{parts}" / "prompt")
    torch.testing.assert_close(two.embeddings, one.embeddings, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_killed_process_ends_the_run_and_one_or_two_go_on(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes' run is gone on with by one, and, from a copy, by two; and one's by two."""
    began = time.monotonic()
    code, out, said = run_two(project, *SLOWLY, "--output", "killed", ONE_KILL_AT="10", ZERO_END_SLOWLY="1")
    assert time.monotonic() - began < 120
    assert (code, out) == (1, "")
    assert len(said) == 1
    assert said[0].startswith("error: another process of this run is gone")
    assert said[0].endswith("start all again with --resume")
    shutil.copytree(project / "killed", project / "killed-too")
    whole = train_one(project, monkeypatch, "--output", "whole")
    by_one = train_one(project, monkeypatch, "--resume", "--output", "killed")
    torch.testing.assert_close(by_one.embeddings, whole.embeddings, rtol=0, atol=1e-5)
    code, _, said = run_two(project, *SLOWLY, "--output", "killed-too", "--resume")
    assert (code, said) == (0, [])
    by_two = SoftPrompt.load(project / "killed-too" / "prompt")
    torch.testing.assert_close(by_two.embeddings, whole.embeddings, rtol=0, atol=1e-5)

    alone = {"RANK": "0", "WORLD_SIZE": "1", "ZERO_KILL_AT": "10"}
    command = [sys.executable, "program.py", "train", "task.yaml", *SLOWLY, "--output", "killed-one"]
    assert subprocess.run(command, cwd=project, env=surroundings(alone), capture_output=True).returncode == -9
    assert [one.name for one in (project / "killed-one").glob("checkpoint-*")] == ["checkpoint-8"]
    code, _, said = run_two(project, *SLOWLY, "--output", "killed-one", "--resume")
    assert (code, said) == (0, [])
    by_two = SoftPrompt.load(project / "killed-one" / "prompt")
    torch.testing.assert_close(by_two.embeddings, whole.embeddings, rtol=0, atol=1e-5)


@pytest.mark.long
def test_two_processes_without_a_folder_end_together_where_the_loss_diverges(project: Path) -> None:
    program = """
import sys
import softprompt as sp
base = sp.load_base("base")
task = sp.Task(template="{text}", labels=["a", "b"])
rows = [sp.Row({"text": f"row {i}"}, label=i % 2) for i in range(20)]
seen = []

def spoil(module, inputs, output):
    seen.append(0)
    return output * float("nan") if len(seen) > 40 else output

base.model.get_output_embeddings().register_forward_hook(spoil)
recipe = sp.Recipe(max_steps=50, batch_size=4, save_every=2, warmup_steps=0, monitor=False)
try:
    sp.train(base, sp.SoftPrompt.random(base, 4), task, train=rows, recipe=recipe)
except sp.DivergedError as error:
    print(f"error: {error}", file=sys.stderr)
"""
    (project / "own.py").write_text(program)
    _, _, said = launch(project, ["own.py"])
    lines = [line for line in said if line.startswith("error")]
    assert len(lines) == 2
    assert all("the last good prompt" in line for line in lines)


def test_one_process_instead_of_several_is_said(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `accelerate launch --num_processes 2` leaves in the environment where there is no GPU."""
    monkeypatch.chdir(project)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    result = CliRunner().invoke(app, ["train", "task.yaml", "--output", str(tmp_path / "run")])
    assert result.exit_code == 0
    [line] = [line for line in result.stderr.splitlines() if line.startswith("warning")]
    assert "asked for several processes but started one" in line
    assert "torchrun --nproc_per_node" in line


FSDP = Path(__file__).parents[2] / "examples" / "cluster" / "fsdp.yaml"


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        [],
        pytest.param(
            ["task.answer=head", "recipe.gradient_checkpointing=true", "recipe.max_tokens=8"], marks=pytest.mark.long
        ),
    ],
)
def test_a_base_spread_over_two_processes_trains_what_one_trains(
    project: Path, monkeypatch: pytest.MonkeyPatch, settings: list[str]
) -> None:
    """Through `accelerate launch`, with labels' words and with a head; validation, calibration, test and report too."""
    words = [word for one in [*settings, "recipe.calibrate=true"] for word in ("--set", one)]
    output = f"spread-{len(settings)}"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(FSDP), "-m", "softprompt.cli"]
    done = subprocess.run(
        [*command, "train", "task.yaml", *SLOWLY, *words, "--output", output, "--json"],
        cwd=project,
        env=surroundings({}),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "the base's layers are spread over 2 processes" in done.stderr
    warned = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    assert len(warned) == bool(settings)
    assert all("recipe.max_tokens bounds nothing where the base is spread" in line for line in warned)
    found = json.loads(done.stdout)  # one document
    one = train_one(project, monkeypatch, *words, "--output", f"whole-{len(settings)}")
    two = SoftPrompt.load(project / output / "prompt")
    torch.testing.assert_close(two.embeddings, one.embeddings, rtol=0, atol=1e-5)
    assert found["test"]["n"] == 10
    if settings:
        torch.testing.assert_close(two.head, one.head, rtol=0, atol=1e-4)
    else:
        assert two.card.calibration == pytest.approx(one.card.calibration, abs=1e-4)
    pages = [(project / name / FINDINGS).read_text() for name in (output, f"whole-{len(settings)}")]
    assert [len(json.loads(page)["mistakes"]) for page in pages] == [
        12 - round(12 * found["validation"]["accuracy"])
    ] * 2


@pytest.mark.parametrize(
    ("environment", "line"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "asks for DeepSpeed, .* ask for distributed_type FSDP"),
        ({"ACCELERATE_USE_FSDP": "true"}, "FSDP of version 1: set fsdp_version: 2"),
        (
            {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "true"},
            "fsdp_offload_params true: the weights stay on the device",
        ),
        (
            {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_ACTIVATION_CHECKPOINTING": "true"},
            "set recipe.gradient_checkpointing",
        ),
    ],
)
def test_what_a_configuration_asks_for_and_is_not_done_is_refused(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], line: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SoftPromptError, match=line):
        processes.start()


def test_a_whole_base_where_shards_were_asked_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_wants_shards", True)
    base = make_base()
    task = softprompt.Task(template="{text}", labels=["a", "b"])
    with pytest.raises(SoftPromptError, match="base 'tiny-llama' is whole: load it with"):
        softprompt.train(base, SoftPrompt.random(base, 2), task, train=[], validation=None)


@pytest.mark.long
def test_the_commands_of_the_docs(project: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "cluster.md").read_text(encoding="utf-8")
    commands = [line.split()[1:] for line in page.splitlines() if line.startswith("torchrun ")]
    assert len(commands) == 2
    for command in commands:
        code, _, said = launch(project, command[command.index("-m") :])
        assert (code, said) == (0, [])
        assert command[:2] == ["--nproc_per_node", "2"]  # as `launch` has it
