"""What runs in a process of its own: one job of a comparison, trained and, when asked, tested.

    python -m softprompt.comparison.worker FOLDER METHOD SETTING SEED trained tested

Owns the way from a plan to a job's two results, which it writes into the folder, and what it says on stdout while it
goes on: JSON lines. Does not know which jobs there are, nor what is made of the results.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from transformers.trainer_utils import set_seed

from softprompt.bases.base import Base
from softprompt.bases.load import load_base
from softprompt.comparison.memory import peak_memory
from softprompt.comparison.methods import TRAINED, Job
from softprompt.comparison.peers import Peer, PeerTrainer, open_peer
from softprompt.comparison.plan import Plan, artifact, read_plan, read_result, result_file, write_text
from softprompt.comparison.shots import choose, with_examples
from softprompt.comparison.stopwatch import Stopwatch
from softprompt.comparison.switching import Switch, switch_full, switch_lora, switch_prompt, switch_text
from softprompt.errors import SoftPromptError
from softprompt.evaluation.calibration import measure_priors, worth_keeping, worth_trying
from softprompt.evaluation.evaluate import Evaluation, Evaluator
from softprompt.models.prompted import PromptedModel
from softprompt.prompts.prompt import SoftPrompt
from softprompt.tasks.encode import Encoder
from softprompt.tasks.metrics import classification_metrics, text_metrics
from softprompt.tasks.task import Task
from softprompt.training.loop import DivergedError
from softprompt.training.run import train
from softprompt.training.schedule import Schedule
from softprompt.training.taskfile import make_prompt

_EXAMPLES = "examples.json"
_PRIORS = "priors.json"
Tell = Callable[[int, int], None]


def perform(folder: Path, job: Job, parts: list[str], tell: Tell) -> None:
    """Do a job and write its results.

    Each result has a `status`: "done"; "diverged", "out of memory" or "failed" with a `message`; or "unusable", where
    the fault is the plan's and every other method would fail alike.

    Args:
        folder: the comparison's, with its plan.
        job: what is learned.
        parts: "trained", "tested" or both.
        tell: called with the work that is done and how much there is.
    """
    plan = read_plan(folder)
    for number, part in enumerate(parts):

        def told(done: int, of: int, before: int = number) -> None:
            tell(before * of + done, len(parts) * of)

        try:
            found = _Work(plan, job, folder, told).do(part)
        except DivergedError as error:
            found = {"status": "diverged", "message": str(error)}
        except _UnusableError as error:
            found = {"status": "unusable", "message": str(error)}
        except Exception as error:  # whatever a method stumbles over: its row says so, and the others go on
            found = {"status": "out of memory" if _is_memory(error) else "failed", "message": _line(error)}
        write_text(result_file(folder, part, job.name), json.dumps(asdict(job) | found))
        if found["status"] != "done":
            return


class _UnusableError(Exception):
    """What is wrong with the plan itself: its base, its prompt, its labels."""


class _Work:
    """One job: what its method learns, and how good that is."""

    def __init__(self, plan: Plan, job: Job, folder: Path, tell: Tell) -> None:
        self.plan, self.job, self.folder, self.tell = plan, job, folder, tell
        self.artifact = artifact(folder, job.name)
        self.recipe = plan.recipe.model_copy(update={"seed": plan.recipe.seed + job.seed})
        if job.method in TRAINED:
            peers = {} if job.method == "prompt" else {"optimizer": "adamw"}
            self.recipe = self.recipe.model_copy(update={"learning_rate": job.setting} | peers)
        try:
            self.base = load_base(plan.base, dtype=self.recipe.dtype)
            start = plan.start.model_copy(update={"seed": plan.start.seed + job.seed})
            self.prompt = make_prompt(self.base, start, plan.task, plan.train)
            # The same texts for all: those without a prompt are cut as if there were one.
            self.virtual = self.prompt.num_virtual_tokens
            self.encoder = Encoder(self.base, plan.task, virtual_tokens=self.virtual)
        except SoftPromptError as error:
            raise _UnusableError(str(error)) from None

    def do(self, part: str) -> dict[str, Any]:
        method = self.job.method
        if part == "tested":
            return self._test()
        if method == "prompt":
            return self._train_prompt()
        return self._train_peer() if method in ("lora", "full") else self._choose_examples()

    def _choose_examples(self) -> dict[str, Any]:
        """Zero-shot and few-shot learn nothing: their validation is all that there is."""
        task, about = self.plan.task, dict[str, int]()
        if self.job.method == "few-shot":
            examples = choose(self.plan.train, task, int(self.job.setting or 0), self.job.seed)
            task, shown = with_examples(task, examples, self.base.tokenizer, self.base.max_positions)
            write_text(self.artifact / _EXAMPLES, json.dumps({"template": task.template}))
            about = {"examples": shown}
        rows = self.plan.validation
        evaluator = self._evaluator(PromptedModel(self.base, []), task, "validation")
        evaluation = evaluator.evaluate(self._rows_told(len(rows)))
        return self._trained(0, evaluation, best_step=0, watch=None) | about

    def _train_prompt(self) -> dict[str, Any]:
        watch = Stopwatch(self._steps_told)
        plan = self.plan
        run = train(
            self.base,
            self.prompt,
            plan.task,
            train=plan.train,
            validation=plan.validation,
            recipe=self.recipe,
            callbacks=[watch],
        )
        run.prompt.save(self.artifact, force=self.artifact.exists())
        assert run.validation is not None, "there are validation rows"
        return self._trained(run.prompt.embeddings.numel(), run.validation, run.best_step, watch)

    def _train_peer(self) -> dict[str, Any]:
        base, precision = self.base, None
        if self.job.method == "full" and base.dtype.itemsize < 4:
            # Steps of AdamW are lost in 16 bits: the weights stay in 32, the products are computed in 16.
            precision = "bf16" if str(base.dtype) == "torch.bfloat16" else "fp16"
            base = load_base(self.plan.base, dtype="float32")
        peer = Peer(self.job.method, base, self.recipe.seed)
        encoder = Encoder(base, self.plan.task, virtual_tokens=self.virtual, max_length=self.recipe.max_length)
        recipe = self.recipe
        schedule = Schedule(encoder.encode_rows(self.plan.train), recipe.batch_size, recipe.max_steps, recipe.seed)
        watch = Stopwatch(self._steps_told)
        evaluator = self._evaluator(peer.judge, self.plan.task, "validation")
        self.artifact.parent.mkdir(parents=True, exist_ok=True)
        trainer = PeerTrainer(
            peer, recipe, schedule, evaluator, self.plan.task.metric, self.artifact, [watch], precision
        )
        trainer.train()
        assert trainer.best is not None, "the last step is validated"
        peak = peak_memory(base.device)  # before a second base is loaded
        validation = self._calibrated(trainer.best)
        return self._trained(peer.trainable_parameters, validation, trainer.best_step, watch, peak)

    def _calibrated(self, plain: Evaluation) -> Evaluation:
        """Calibrate what a peer has learned, as a prompt's training does: kept where the validation is better."""
        task, setting = self.plan.task, self.recipe.calibrate
        if not worth_trying(setting, task, validates=True):
            return plain
        # LoRA's adapter needs a base that has none yet; a whole model needs none.
        lora = self.job.method == "lora"
        model = self._open_peer(load_base(self.plan.base, dtype=self.recipe.dtype) if lora else self.base)
        priors = measure_priors(model, task, self.plan.train, virtual_tokens=self.virtual)
        evaluation = self._evaluator(model, task, "validation", priors).evaluate()
        if not worth_keeping(setting, evaluation, plain, task.metric):
            return plain
        write_text(self.artifact / _PRIORS, json.dumps(priors))
        return evaluation

    def _trained(
        self, trainable: int, validation: Evaluation, best_step: int, watch: Stopwatch | None, peak: int | None = None
    ) -> dict[str, Any]:
        weights = list(self.base.model.parameters())
        base_parameters = self.base.model.num_parameters()
        if self.job.method == "lora":  # PEFT has put its own among the base's
            base_parameters -= trainable
            weights = [weight for weight in weights if not weight.requires_grad]
        files = [file for file in self.artifact.rglob("*") if file.is_file()] if self.artifact.exists() else []
        return {
            "status": "done",
            "trainable_parameters": trainable,
            "base_parameters": base_parameters,
            "base_bytes": sum(weight.numel() * weight.element_size() for weight in weights),
            "artifact_bytes": sum(file.stat().st_size for file in files),
            "peak_memory_bytes": peak_memory(self.base.device) if peak is None else peak,
            "train_seconds": watch.seconds if watch else 0.0,
            "best_seconds": watch.seconds_at(best_step) if watch else 0.0,
            "best_step": best_step,
            "validation": validation.to_json(),
            "curve": watch.curve if watch else [],
            "losses": watch.losses if watch else [],
        }

    def _test(self) -> dict[str, Any]:
        if read_result(result_file(self.folder, "trained", self.job.name)) is None:
            raise SoftPromptError(f"{self.job.name} has not been trained")
        evaluator, switch = self._open()
        evaluation, answers = self._ask(evaluator, evaluator.task)
        del evaluator
        found = switch()
        return {
            "status": "done",
            "test": evaluation.to_json(),
            "answers": answers,
            "switch_seconds": found.from_disk,
            "switch_in_memory_seconds": found.in_memory,
        }

    def _open(self) -> tuple[Evaluator, Callable[[], Switch]]:
        """The test rows before the model that is asked, and what measures a switch to another one."""
        method, task = self.job.method, self.plan.task
        load = partial(load_base, dtype=self.recipe.dtype)
        if method == "prompt":
            prompt = SoftPrompt.load(self.artifact, self.base)
            model, log_priors = PromptedModel(self.base, [prompt]), prompt.card.log_priors(task.labels)
            evaluator = self._evaluator(model, task, "test", log_priors)
            return evaluator, partial(switch_prompt, self.base, self.artifact)
        if method in ("lora", "full"):
            file = self.artifact / _PRIORS
            priors = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
            evaluator = self._evaluator(self._open_peer(self.base), task, "test", priors)
            if method == "full":
                return evaluator, partial(switch_full, self.artifact, load)
            # On a base of its own: PEFT would put a second adapter on top of the first.
            return evaluator, lambda: switch_lora(load(self.plan.base), self.artifact)
        bare = PromptedModel(self.base, [])
        if method == "few-shot":
            template = json.loads((self.artifact / _EXAMPLES).read_text(encoding="utf-8"))["template"]
            task = task.model_copy(update={"template": template})
            return self._evaluator(bare, task, "test"), partial(switch_text, self.base, self.artifact, self.plan.task)
        return self._evaluator(bare, task, "test"), lambda: Switch(0.0, 0.0)

    def _open_peer(self, base: Base) -> PromptedModel:
        return open_peer(self.job.method, base, self.artifact, partial(load_base, dtype=self.recipe.dtype))

    def _evaluator(
        self, model: PromptedModel, task: Task, which: str, log_priors: Sequence[float] | None = None
    ) -> Evaluator:
        rows = self.plan.validation if which == "validation" else self.plan.test
        virtual = self.virtual if task is self.plan.task else 0
        return Evaluator(model, task, rows, virtual_tokens=virtual, log_priors=log_priors)

    def _ask(self, evaluator: Evaluator, task: Task) -> tuple[Evaluation, list[Any]]:
        """The figures, and what they are of: the label's index or the text for each row."""
        rows, start = self.plan.test, time.perf_counter()
        told = self._rows_told(len(rows))
        answers: list[Any]
        if task.labels is None:
            answers = evaluator.outputs(told)
            figures = text_metrics(answers, [row.target or "" for row in rows])
        else:
            probabilities = evaluator.probabilities(told).numpy()
            answers = probabilities.argmax(1).tolist()
            figures = classification_metrics([row.label or 0 for row in rows], probabilities, task.labels)
        seconds = time.perf_counter() - start
        return Evaluation(**figures, truncated=evaluator.truncated, seconds=seconds), answers

    def _steps_told(self, steps: int) -> None:
        self.tell(steps, self.recipe.max_steps)

    def _rows_told(self, total: int) -> Callable[[int], None]:
        done = 0

        def told(rows: int) -> None:
            nonlocal done
            done += rows
            self.tell(done, total)

        return told


def _is_memory(error: BaseException) -> bool:
    words = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in words or "can't allocate memory" in words


def _line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("method")
    parser.add_argument("setting")
    parser.add_argument("seed", type=int)
    parser.add_argument("parts", nargs="+", choices=["trained", "tested"])
    options = parser.parse_args()
    job = Job(options.method, None if options.setting == "none" else float(options.setting), options.seed)
    out = sys.stdout

    def tell(done: int, total: int) -> None:
        print(json.dumps({"done": done, "of": total}), file=out, flush=True)

    set_seed(job.seed)
    with redirect_stdout(sys.stderr):
        perform(options.folder, job, options.parts, tell)


if __name__ == "__main__":
    main()
