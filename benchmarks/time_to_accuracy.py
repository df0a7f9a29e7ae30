"""How long it takes to learn a task: softprompt, PEFT's prompt tuning and LoRA, until an accuracy is reached.

    python -m benchmarks.time_to_accuracy [TASK.yaml ...] [--target 0.88] [--seeds 0 1 2] [--sides words head ...]

Without a task file the demonstration's is taken: sentences about films. Training alone is timed, from encoded rows on,
a head's fit included. Every few steps the clock stops, one and the same evaluator measures what was learned on the
validation rows, and the run ends once it is good enough. Finished runs stay in the results and are not repeated.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from torch import Tensor
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import set_seed

import softprompt as sp
from benchmarks.measure import RESULTS, Kept, default_device, footing, markdown_table
from benchmarks.quality import movie_task, read_rows
from softprompt.comparison.methods.fine_tuning import pad_rows
from softprompt.comparison.methods.lora import RANK, Lora
from softprompt.evaluation.evaluate import Evaluator
from softprompt.tasks.encode import Encoder
from softprompt.training.taskfile import TaskFile, load_task_file, make_prompt

NAME = "time_to_accuracy"
TARGET = 0.88
VALIDATION_ROWS = 500
EVERY = 20
LIMIT = 600.0


class Stopwatch(TrainerCallback):
    """Times the training and ends the run at the target accuracy or at the limit in seconds.

    Attributes:
        accuracy: measures the model that is trained.
        history: step, seconds, seconds of all threads' computing, and accuracy of each measurement.
    """

    def __init__(self, target: float, every: int, limit: float) -> None:
        self._target, self._every, self._limit = target, every, limit
        self._taken, self._start = [0.0, 0.0], self._now()
        self.accuracy: Callable[[Any], float] = lambda model: 0.0
        self.history: list[dict[str, float]] = []

    @staticmethod
    def _now() -> tuple[float, float]:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter(), time.process_time()

    def start(self) -> None:
        """Begin to count: all is loaded."""
        self._start = self._now()

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self._measure(state, control, model)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        taken = self._taken[0] + time.perf_counter() - self._start[0]
        if taken >= self._limit or state.global_step % self._every == 0:
            self._measure(state, control, model)

    def _measure(self, state: Any, control: Any, model: Any) -> None:
        now = self._now()
        self._taken = [before + end - start for before, end, start in zip(self._taken, now, self._start, strict=True)]
        accuracy = self.accuracy(model)
        seconds, computing = self._taken
        entry = {"step": state.global_step, "seconds": seconds, "cpu_seconds": computing, "accuracy": accuracy}
        self.history.append(entry)
        print(f"  step {state.global_step}, {seconds:.0f} s: {accuracy:.3f}", file=sys.stderr, flush=True)
        control.should_training_stop = accuracy >= self._target or seconds >= self._limit
        self.start()

    def result(self) -> dict[str, Any]:
        """Seconds and steps to the target (None: not reached), the best accuracy, and the history."""
        reached = next((entry for entry in self.history if entry["accuracy"] >= self._target), None)
        last = self.history[-1]
        return {
            "seconds": reached and reached["seconds"],
            "cpu_seconds": reached and reached["cpu_seconds"],
            "steps": reached and reached["step"],
            "trained_seconds": last["seconds"],
            "best_accuracy": max(entry["accuracy"] for entry in self.history),
            "history": self.history,
        }


@dataclass
class Case:
    """A task to be learned with a seed.

    Attributes:
        file: its task file.
        train, validation: rows.
        device: where to train.
    """

    file: TaskFile
    train: Sequence[sp.Row]
    validation: Sequence[sp.Row]
    device: torch.device

    @classmethod
    def read(cls, path: Path, overrides: Sequence[str], device: torch.device) -> Case:
        """The case of a task file."""
        file = load_task_file(path, overrides)
        train, validation, _ = read_rows(file)
        return cls(file, train, validation[:VALIDATION_ROWS], device)

    def base(self) -> sp.Base:
        """The base, anew."""
        return sp.load_base(self.file.base, dtype=self.file.recipe.dtype, device=self.device)

    def start(self, base: sp.Base) -> sp.SoftPrompt:
        """The prompt to start from."""
        return make_prompt(base, self.file.prompt, self.file.task, self.train)


def words(case: Case, watch: Stopwatch) -> None:
    """softprompt with the task file's settings, answers by the labels' words."""
    _ours(case, watch, case.file.task.model_copy(update={"answer": "words"}))


def head(case: Case, watch: Stopwatch) -> None:
    """softprompt with the task file's settings, answers by a head."""
    _ours(case, watch, case.file.task.model_copy(update={"answer": "head"}))


def peft_like_ours(case: Case, watch: Stopwatch) -> None:
    """PEFT's prompt tuning in Transformers' Trainer, from the same prompt with the same settings."""
    base = case.base()
    prompt = case.start(base)
    wrapped: Any = get_peft_model(base.model, _prompt_tuning(prompt.num_virtual_tokens))
    wrapped.prompt_encoder["default"].embedding.weight.data.copy_(prompt.embeddings)
    watch.accuracy = _judge(case, prompt)
    _trainer(case, base, wrapped, watch, _settings(case.file.recipe, case.file.recipe.rate))


def peft(case: Case, watch: Stopwatch) -> None:
    """PEFT's prompt tuning in Transformers' Trainer, each with its defaults."""
    base = case.base()
    prompt = case.start(base)
    set_seed(case.file.recipe.seed)
    wrapped = get_peft_model(base.model, _prompt_tuning(prompt.num_virtual_tokens))
    watch.accuracy = _judge(case, prompt)
    _trainer(case, base, wrapped, watch, {"seed": case.file.recipe.seed})


def lora(case: Case, watch: Stopwatch) -> None:
    """LoRA as `softprompt compare` has it, with the same batches and schedule at a rate that is usual for it."""
    base = case.base()
    set_seed(case.file.recipe.seed)
    config = LoraConfig(task_type="CAUSAL_LM", r=RANK, lora_alpha=2 * RANK, target_modules="all-linear")
    wrapped = get_peft_model(base.model, config)
    weights = [weight for weight in wrapped.parameters() if weight.requires_grad]
    evaluator = Evaluator(sp.PromptedModel(base, []), case.file.task, case.validation)
    for weight in weights:  # which a prompted model's base has frozen
        weight.requires_grad_(True)
    watch.accuracy = lambda model: float(evaluator.evaluate().accuracy or 0.0)
    _trainer(case, base, wrapped, watch, _settings(case.file.recipe, Lora.usual_rate))


SIDES: dict[str, tuple[str, Callable[[Case, Stopwatch], None]]] = {
    "words": ("softprompt, words", words),
    "head": ("softprompt, a head", head),
    "peft-like-ours": ("PEFT, softprompt's recipe and start", peft_like_ours),
    "peft": ("PEFT and Trainer, their defaults", peft),
    "lora": (f"LoRA, rank {RANK}", lora),
}


def _ours(case: Case, watch: Stopwatch, task: sp.Task) -> None:
    base, recipe = case.base(), case.file.recipe.model_copy(update={"monitor": False})
    prompt = case.start(base)
    watch.accuracy = _judge(case, prompt, task)
    watch.start()
    sp.train(base, prompt, task, train=case.train, recipe=recipe, callbacks=[watch])


def _judge(case: Case, prompt: sp.SoftPrompt, task: sp.Task | None = None) -> Callable[[Any], float]:
    """Measures a model's prompt, and its head, in a model of its own, so that the one that is trained is left alone."""
    task, base = task or case.file.task.model_copy(update={"answer": "words"}), case.base()
    if task.answer == "head":
        prompt = sp.SoftPrompt(prompt.embeddings, prompt.card, torch.zeros(len(task.labels or []), prompt.hidden_size))
    judge = sp.PromptedModel(base, [prompt])
    evaluator = Evaluator(judge, task.resolved(head=prompt.head is not None), case.validation)

    @torch.no_grad()
    def accuracy(model: Any) -> float:
        learned = [weight for weight in model.parameters() if weight.requires_grad]
        for mine, its in zip([*judge.prompts, *judge.heads], learned, strict=True):
            mine.copy_(its)
        return float(evaluator.evaluate().accuracy or 0.0)

    return accuracy


def _prompt_tuning(count: int) -> PromptTuningConfig:
    return PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=count)


def _settings(recipe: sp.Recipe, rate: float) -> dict[str, Any]:
    """A recipe as `TrainingArguments` has it."""
    return {
        "learning_rate": rate,
        "lr_scheduler_type": recipe.schedule,
        "warmup_steps": recipe.warmup_steps,
        "weight_decay": recipe.weight_decay,
        "max_grad_norm": recipe.max_grad_norm,
        "per_device_train_batch_size": recipe.batch_size,
        "max_steps": recipe.max_steps,
        "seed": recipe.seed,
    }


def _trainer(case: Case, base: sp.Base, model: Any, watch: Stopwatch, settings: Mapping[str, Any]) -> None:
    encoded = Encoder(base, case.file.task).encode_rows(case.train)
    pairs: list[dict[str, Tensor]] = [encoded.example(row) for row in range(len(case.train))]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            use_cpu=case.device.type == "cpu",
            dataloader_pin_memory=case.device.type == "cuda",
            remove_unused_columns=False,
            label_names=["labels"],
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **settings,
        )
        trainer = Trainer(model=model, args=arguments, train_dataset=pairs, data_collator=pad_rows, callbacks=[watch])
        trainer.remove_callback(PrinterCallback)
        watch.start()
        trainer.train()


def table(document: Mapping[str, Any]) -> str:
    """The runs as Markdown: each task's sides, the median over the seeds."""
    lines = []
    groups: dict[tuple[str, float, str], list[Mapping[str, Any]]] = {}
    for row in document["rows"]:
        groups.setdefault((row["task"], row["target"], row["side"]), []).append(row)
    for (task, target, side), rows in groups.items():
        reached = [row for row in rows if row["seconds"] is not None]
        missed = f"{len(rows) - len(reached)} of {len(rows)} not in {max(row['trained_seconds'] for row in rows):.0f} s"
        lines.append(
            [
                f"{task}, {target:g}: {SIDES[side][0]}",
                f"{median(row['seconds'] for row in reached):.0f}" if reached else "",
                f"{median(row['cpu_seconds'] for row in reached):.0f}" if reached else "",
                f"{median(row['steps'] for row in reached):.0f}" if reached else "",
                missed if len(reached) < len(rows) else "",
                f"{median(row['best_accuracy'] for row in rows):.3f}",
                str(len(rows)),
            ]
        )
    head = ["task, validation accuracy", "seconds", "of computing", "steps", "missed", "best accuracy", "seeds"]
    return markdown_table(head, lines) + footing(dict(document))


def plot(document: Mapping[str, Any], path: Path) -> None:
    """Accuracy against seconds: a picture for each task, a colour for each side, a line for each seed."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams["svg.hashsalt"] = NAME
    tasks = list(dict.fromkeys(row["task"] for row in document["rows"]))
    figure = Figure(figsize=(6, 3.4 * len(tasks)), layout="constrained")
    for axes, task in zip(figure.subplots(len(tasks), squeeze=False)[:, 0], tasks, strict=True):
        for number, (side, (title, _)) in enumerate(SIDES.items()):
            rows = [row for row in document["rows"] if (row["task"], row["side"]) == (task, side)]
            for row, label in zip(rows, [title, *[None] * len(rows)], strict=False):
                points = [(entry["seconds"], entry["accuracy"]) for entry in row["history"]]
                axes.plot(*zip(*points, strict=True), color=f"C{number}", label=label, linewidth=1)
        for target in {row["target"] for row in document["rows"] if row["task"] == task}:
            axes.axhline(target, color="grey", linewidth=0.8, linestyle=":")
        axes.set(title=task, xlabel="seconds of training", ylabel="validation accuracy")
        axes.legend(fontsize="small")
    figure.savefig(path, metadata={"Date": None})


def main(arguments: Sequence[str] = tuple(sys.argv[1:])) -> None:
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{NAME}", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("tasks", nargs="*", type=Path, help="task files; default: the demonstration's")
    add("--target", type=float, default=TARGET)
    add("--seeds", nargs="+", type=int, default=[0])
    add("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    add("--every", type=int, default=EVERY, help="steps between two measurements")
    add("--limit", type=float, default=LIMIT, help="the most seconds of training in a run")
    add("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="for every run")
    add("--device", type=torch.device, default=default_device())
    add("--work", type=Path, default=Path("quality-work"), help="folder for the demonstration's data")
    add("--results", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    found = Kept(options.results, NAME, arguments, {"limit": options.limit, "every": options.every}, table, plot)
    for path in options.tasks or [movie_task(options.work / "films")]:
        for seed in options.seeds:
            overrides = [*options.overrides, f"recipe.seed={seed}"]
            case = Case.read(path, overrides, options.device)
            for side in options.sides:
                key = {"task": case.file.name, "side": side, "seed": seed, "target": options.target}
                watch = Stopwatch(options.target, options.every, options.limit)

                def run(side: str = side, case: Case = case, watch: Stopwatch = watch) -> dict[str, Any]:
                    print(f"{case.file.name}: {SIDES[side][0]}, seed {case.file.recipe.seed}", file=sys.stderr)
                    SIDES[side][1](case, watch)
                    return watch.result()

                found.add(key, run)
    print(found.write())


if __name__ == "__main__":
    main()
