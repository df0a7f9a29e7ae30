"""What is run on the pretended accelerator of `pretend.py`: nothing in a training step waits, and nothing is changed.

python -m tests.models.steps_without_waiting
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from softprompt import Base, Recipe, SoftPrompt
from softprompt.models import attention
from softprompt.models.prompted import PromptedModel
from softprompt.tasks.encode import Encoder
from softprompt.training import loop
from softprompt.training.loop import PromptTrainer
from softprompt.training.schedule import Schedule
from tests.conftest import make_base
from tests.models.based import with_prompts
from tests.models.batches import make_example
from tests.models.families import make_model
from tests.models.pretend import Device, Pretended, WaitedError, put, start
from tests.models.varlen import varlen
from tests.training.runs import TASK, rows

EXAMPLE = make_example([7, 1, 12, 3, 9], [5, 8], [0, 1, 1, 0, 1], beginning=1)
FLAT = {
    "input_ids": EXAMPLE.input_ids[EXAMPLE.attention_mask.bool()],
    "labels": EXAMPLE.labels[EXAMPLE.attention_mask.bool()],
    "lengths": EXAMPLE.attention_mask.sum(1),
    "prompt_index": EXAMPLE.prompt_index,
}


def check() -> None:
    check_the_watch()
    for family, changes in (("llama", {"head_dim": 8}), ("gpt2", {}), ("gemma3", {})):
        check_step(family, changes, by_varlen=False)
        check_step(family, changes, by_varlen=True)
    check_step("llama", {}, by_varlen=False, max_tokens=16)
    check_step("llama", {}, by_varlen=False, gradient_checkpointing=True)


def check_the_watch() -> None:
    """What waits for a GPU is noticed; what does not is not."""
    numbers = torch.arange(3.0).to("pretend", non_blocking=True)
    asking: list[Callable[[], Any]] = [
        lambda: bool(numbers.sum() > 1),
        lambda: numbers[0].item(),
        lambda: float(numbers.sum()),
        lambda: numbers.tolist(),
        lambda: numbers.cpu(),
        lambda: numbers[numbers > 1],
        lambda: numbers.nonzero(),
        lambda: torch.arange(3.0).to("pretend"),
        lambda: numbers.long().bincount(),
    ]
    for ask in asking:
        ask()
        with Device.watched(), pytest.raises(WaitedError):
            ask()
    with Device.watched():
        assert isinstance((numbers / torch.tensor(2.0)).isfinite().all(), Pretended)
        with pytest.raises((AssertionError, RuntimeError)):
            numbers + torch.arange(3.0)


def check_step(family: str, changes: dict[str, Any], by_varlen: bool, **options: Any) -> None:
    prompted = with_prompts(make_model(family, **changes), [], route="packed", **options)  # the probe may wait
    expected = step(prompted)
    kernel: Any
    with varlen() if by_varlen else nullcontext() as kernel, pytest.MonkeyPatch.context() as patch:
        if by_varlen:

            def unwatched(*args: Any, **more: Any) -> Tensor:
                with Device.watched(False):  # inside, the stand-in reads lengths, as the kernel does on the device
                    answer: Tensor = kernel(*args, **more)
                    return answer

            patch.setattr(attention, "varlen_kernel", lambda: unwatched)
        put(prompted.base.model)
        with Device.watched():
            found = step(prompted)
        assert not by_varlen or kernel.calls
    for ours, theirs in zip(found, expected, strict=True):
        assert isinstance(ours, Pretended)
        torch.testing.assert_close(ours.inner, theirs, rtol=1e-4, atol=1e-5)


def step(prompted: PromptedModel) -> list[Tensor]:
    """The loss of a step, and the prompts after it."""
    device = prompted.base.device
    prompts = [nn.Parameter(p.detach().to(device, non_blocking=True)) for p in EXAMPLE.parameters(torch.float32)]
    prompted.prompts = nn.ParameterList(prompts)
    optimiser = torch.optim.AdamW(prompts, lr=0.1, eps=1e-3)
    output = prompted(**FLAT, num_items_in_batch=torch.tensor(17))
    output.loss.backward()
    nn.utils.clip_grad_norm_(prompts, 1.0)
    optimiser.step()
    return [output.loss.detach(), output.row_loss, *(prompt.detach() for prompt in prompts)]


def check_loop() -> None:
    """The Trainer's loop: between log entries nothing waits, but for a step's verdict once the next is under way."""
    expected = run(make_base(), Watch())
    base = make_base()
    PromptedModel(base, [])  # the probe may wait
    put(base.model)
    cpu, arguments = torch.device("cpu"), loop.arguments
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "arguments", lambda recipe, folder, device, **more: arguments(recipe, folder, cpu, **more))
        patch.setattr(PromptedModel, "to", lambda model, *args, **more: model)  # the Trainer would take it away
        for name in ("_maybe_log_save_evaluate", "check_finite"):
            patch.setattr(PromptTrainer, name, unwatched(getattr(PromptTrainer, name)))
        watch = Watch()
        found = run(base, watch)
    assert watch.steps == 6
    assert isinstance(found, Pretended)
    torch.testing.assert_close(found.inner, expected, rtol=1e-4, atol=1e-5)


def unwatched(method: Callable[..., Any]) -> Callable[..., Any]:
    def may_wait(*args: Any, **more: Any) -> Any:
        with Device.watched(False):
            return method(*args, **more)

    return may_wait


class Watch(TrainerCallback):
    """Watches from the first step to the end of the last."""

    def __init__(self) -> None:
        self.steps, self.trainer = 0, None

    def on_step_begin(self, *args: Any, **more: Any) -> None:
        trainer: Any = self.trainer
        if trainer.model.base.device.type != "cpu" and not self.steps:
            trainer._tr_loss = Pretended(torch.tensor(0.0))  # the Trainer's own device is the CPU here
            Device.strict = True
        self.steps += 1

    def on_step_end(self, args: Any, state: Any, *more: Any, **others: Any) -> None:
        if state.global_step == state.max_steps:
            Device.strict = False


def run(base: Base, watch: Watch) -> Tensor:
    """The prompt after six steps of the loop."""
    recipe = Recipe(max_steps=6, batch_size=4, warmup_steps=1, log_every=3, save_every=100)
    prompted = PromptedModel(base, [SoftPrompt.from_vocabulary(base, 5)], route="packed")
    schedule = Schedule(Encoder(base, TASK, virtual_tokens=5).encode_rows(rows(20)), 4, 6, 0)
    with tempfile.TemporaryDirectory() as folder:
        trainer = PromptTrainer(prompted, recipe, [loop.Lane(schedule)], Path(folder), [watch])
        watch.trainer = trainer
        trainer.train()
    return trainer.members[0].prompt.detach()


if __name__ == "__main__":
    with start():
        check()
        check_loop()
