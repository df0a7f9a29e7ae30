from __future__ import annotations

from pathlib import Path

import pytest
import torch

from softprompt import Base, SoftPrompt, evaluate, train
from softprompt.models.prompted import PromptedModel
from softprompt.training.residual import ResidualModel
from tests.conftest import make_base
from tests.training.test_run import TASK, StopAt, learn, recipe, rows

IDS = torch.tensor([[7, 9, 11, 40], [8, 10, 12, 41]])
LABELS = torch.tensor([[-100, -100, -100, 40], [-100, -100, -100, 41]])


def test_it_starts_as_the_prompt_itself(tiny_base: Base) -> None:
    prompt = SoftPrompt.from_vocabulary(tiny_base, 5)
    model = ResidualModel(tiny_base, [prompt], bottleneck=8, seed=0)
    assert torch.equal(model.vectors()[0], prompt.embeddings)
    again = ResidualModel(tiny_base, [prompt], bottleneck=8, seed=0)
    for ours, theirs in zip(model.residual.parameters(), again.residual.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("max_tokens", [None, 4])
def test_folded_equals_unfolded(tiny_base: Base, max_tokens: int | None) -> None:
    """The loss, and every gradient by the chain rule, of a network with all its weights at work."""
    prompt = SoftPrompt.from_vocabulary(tiny_base, 5)
    model = ResidualModel(tiny_base, [prompt], bottleneck=8, seed=0, max_tokens=max_tokens)
    torch.nn.init.ones_(model.residual[3].weight)
    folded = model.vectors()[0]
    assert not torch.allclose(folded, prompt.embeddings, atol=0.1)
    plain = PromptedModel(tiny_base, [SoftPrompt(folded.detach())])
    ours, theirs = model(IDS, labels=LABELS).loss, plain(IDS, labels=LABELS).loss
    assert torch.allclose(ours, theirs, atol=1e-6)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    assert len(trained) == 1 + 4 + 2
    direct = torch.autograd.grad(ours, trained)
    (through,) = torch.autograd.grad(theirs, list(plain.prompts))
    chained = torch.autograd.grad(folded, trained, through)
    for one, other in zip(direct, chained, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_what_is_saved_is_what_was_validated(tiny_base: Base, tmp_path: Path) -> None:
    settings = recipe(residual=8, residual_learning_rate=0.01)
    run = learn(tiny_base, tmp_path / "run", recipe=settings)
    assert run.path is not None
    saved = SoftPrompt.load(run.path, tiny_base)
    assert saved.embeddings.shape == (6, 32)
    again = evaluate(tiny_base, saved, TASK, rows(12, 40))
    assert run.validation is not None
    assert again.accuracy == run.validation.accuracy
    assert again.log_loss == pytest.approx(run.validation.log_loss, abs=1e-5)
    plain = learn(tiny_base)
    assert not torch.allclose(plain.prompt.embeddings, saved.embeddings, atol=1e-3)


@pytest.mark.parametrize(("changed", "step"), [({"residual": 8}, 17), ({"residual": 8, "average": 0.5}, 7)])
def test_resumed_equals_uninterrupted(tiny_base: Base, tmp_path: Path, changed: dict[str, float], step: int) -> None:
    settings = recipe(**changed)
    whole = learn(tiny_base, tmp_path / "whole", recipe=settings)
    with pytest.raises(KeyboardInterrupt):
        learn(tiny_base, tmp_path / "cut", recipe=settings, callbacks=[StopAt(step)])
    resumed = learn(make_base(), tmp_path / "cut", recipe=settings, resume=True)
    assert torch.equal(resumed.prompt.embeddings, whole.prompt.embeddings)


def test_an_average_of_the_last_weights_is_kept(tiny_base: Base) -> None:
    """The exponential average of the prompts after each step, with weights that sum to 1."""
    from transformers import TrainerCallback

    seen: list[torch.Tensor] = []

    class Watch(TrainerCallback):
        def on_step_end(self, *args: object, model: PromptedModel, **kwargs: object) -> None:
            seen.append(model.prompts[0].detach().clone())

    prompt = SoftPrompt.from_vocabulary(tiny_base, 6)
    settings = recipe(max_steps=7, average=0.8)
    run = train(tiny_base, prompt, TASK, train=rows(40), recipe=settings, callbacks=[Watch()])
    weights = torch.tensor([0.8 ** (6 - i) for i in range(7)])
    expected = (torch.stack(seen) * (weights / weights.sum())[:, None, None]).sum(0)
    assert torch.allclose(run.prompt.embeddings, expected, atol=1e-5)
    # To average changes what is kept, not how it is learned.
    plain = train(tiny_base, prompt, TASK, train=rows(40), recipe=recipe(max_steps=7))
    assert torch.equal(plain.prompt.embeddings, seen[-1])
