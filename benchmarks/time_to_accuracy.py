"""How long a prompt takes to learn: softprompt with its defaults, PEFT with its own, and PEFT with softprompt's.

Training alone is timed. Every few steps the clock stops, one and the same evaluator measures the prompt on the
validation rows, and the run ends once it is good enough. A part of `training_step`, which writes the results.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from peft import PromptTuningConfig, get_peft_model
from torch import Tensor
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import set_seed

import softprompt as sp
from benchmarks.measure import markdown_table
from benchmarks.movies import INIT_TEXT, TASK
from softprompt.comparison.methods.fine_tuning import pad_rows
from softprompt.evaluation.evaluate import Evaluator
from softprompt.tasks.encode import Encoder

NUM_VIRTUAL_TOKENS = 16
TARGET = 0.8
VALIDATION_ROWS = 500
EVERY = 25
LIMIT = 900.0


class Stopwatch(TrainerCallback):
    """Times the training steps and ends the run at the target accuracy or at the limit in seconds.

    Attributes:
        history: step, seconds and accuracy of each measurement.
    """

    def __init__(self, accuracy: Callable[[Tensor], float], target: float, every: int, limit: float) -> None:
        self._accuracy, self._target, self._every, self._limit = accuracy, target, every, limit
        self._seconds = self._start = 0.0
        self.history: list[dict[str, float]] = []

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self._start = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        prompt = next(p for p in model.parameters() if p.requires_grad)
        if prompt.is_cuda:
            torch.cuda.synchronize(prompt.device)
        taken = self._seconds + time.perf_counter() - self._start
        if taken < self._limit and state.global_step % self._every:
            return
        accuracy = self._accuracy(prompt)
        self.history.append({"step": state.global_step, "seconds": taken, "accuracy": accuracy})
        print(f"  step {state.global_step}, {taken:.0f} s: {accuracy:.3f}", file=sys.stderr)
        control.should_training_stop = accuracy >= self._target or taken >= self._limit
        self._seconds, self._start = taken, time.perf_counter()

    def result(self, name: str) -> dict[str, Any]:
        """The run in one line: seconds and steps to the target (None: not reached) and the best accuracy."""
        reached = next((entry for entry in self.history if entry["accuracy"] >= self._target), None)
        return {
            "run": name,
            "target": self._target,
            "seconds": reached and reached["seconds"],
            "steps": reached and reached["step"],
            "trained_seconds": self.history[-1]["seconds"] if self.history else 0.0,
            "best_accuracy": max((entry["accuracy"] for entry in self.history), default=None),
            "history": self.history,
        }


def measure(
    base_name: str,
    rows: Sequence[sp.Row],
    device: torch.device,
    *,
    target: float = TARGET,
    every: int = EVERY,
    limit: float = LIMIT,
    recipe: sp.Recipe | None = None,
) -> list[dict[str, Any]]:
    """The three runs, one after the other.

    Args:
        base_name: what `load_base` takes.
        rows: movie snippets; the first `VALIDATION_ROWS` (a quarter of them at most) validate.
        device: where to train.
        target: validation accuracy that ends a run.
        every: steps between two measurements.
        limit: the most seconds of training in a run.
        recipe: softprompt's settings; default `Recipe()`.
    """
    recipe = recipe or sp.Recipe()
    base = sp.load_base(base_name, device=device)
    held = min(VALIDATION_ROWS, len(rows) // 4)
    validation, training = list(rows[:held]), list(rows[held:])
    start = sp.SoftPrompt.from_text(base, INIT_TEXT, NUM_VIRTUAL_TOKENS)
    # The evaluator has a model of its own, so that measuring leaves the one being trained alone.
    judge = sp.PromptedModel(sp.load_base(base_name, dtype=base.dtype, device=device), [start])
    evaluator = Evaluator(judge, TASK, validation)

    def accuracy(prompt: Tensor) -> float:
        judge.prompts[0].data.copy_(prompt.detach())
        return float(evaluator.evaluate().accuracy or 0.0)

    def ours(watch: Stopwatch) -> None:
        sp.train(base, start, TASK, train=training, recipe=recipe, callbacks=[watch])

    def theirs(watch: Stopwatch, embeddings: Tensor | None, settings: Mapping[str, Any]) -> None:
        _train_peft(base_name, base, training, embeddings, settings, watch)

    same = {
        "learning_rate": recipe.rate,
        "lr_scheduler_type": recipe.schedule,
        "warmup_steps": recipe.warmup_steps,
        "weight_decay": recipe.weight_decay,
        "max_grad_norm": recipe.max_grad_norm,
        "per_device_train_batch_size": recipe.batch_size,
        "max_steps": recipe.max_steps,
    }
    runs: list[tuple[str, Callable[[Stopwatch], None]]] = [
        ("softprompt, its defaults", ours),
        ("PEFT, softprompt's recipe and initial prompt", lambda watch: theirs(watch, start.embeddings, same)),
        ("PEFT and Trainer, their defaults", lambda watch: theirs(watch, None, {})),
    ]
    results = []
    for name, run in runs:
        print(f"{name} ...", file=sys.stderr)
        watch = Stopwatch(accuracy, target, every, limit)
        run(watch)
        results.append(watch.result(name))
    return results


def _train_peft(
    base_name: str,
    base: sp.Base,
    rows: Sequence[sp.Row],
    embeddings: Tensor | None,
    settings: Mapping[str, Any],
    watch: Stopwatch,
) -> None:
    """A PEFT user's run: `get_peft_model` and `transformers.Trainer`.

    `settings` are the TrainingArguments that differ from their defaults; without `embeddings` PEFT initialises the
    prompt as it does by default.
    """
    encoded = Encoder(base, TASK).encode_rows(rows)
    pairs = [encoded.example(row) for row in range(len(rows))]
    set_seed(0)
    model = sp.load_base(base_name, dtype=base.dtype, device=base.device).model
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=NUM_VIRTUAL_TOKENS)
    wrapped: Any = get_peft_model(model, config)
    if embeddings is not None:
        wrapped.prompt_encoder["default"].embedding.weight.data.copy_(embeddings)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            use_cpu=base.device.type == "cpu",
            dataloader_pin_memory=base.device.type == "cuda",
            remove_unused_columns=False,
            label_names=["labels"],
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **settings,
        )
        trainer = Trainer(model=wrapped, args=arguments, train_dataset=pairs, data_collator=pad_rows, callbacks=[watch])
        trainer.remove_callback(PrinterCallback)
        trainer.train()


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """The runs as Markdown."""
    rows = []
    for run in results:
        reached = run["seconds"] is not None
        seconds = f"{run['seconds']:.0f}" if reached else f"not in {run['trained_seconds']:.0f}"
        best = "" if run["best_accuracy"] is None else f"{run['best_accuracy']:.3f}"
        rows.append([run["run"], seconds, str(run["steps"]) if reached else "", best])
    head = ["run", f"seconds of training to {results[0]['target']:.0%} validation accuracy", "steps", "best accuracy"]
    return markdown_table(head, rows)
