from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from softprompt import Base, SoftPrompt, SoftPromptError, train
from softprompt.models.words import word_norms
from softprompt.training.side_by_side import train_side_by_side
from softprompt.training.token_control import TokenControl, token_control
from tests.conftest import make_base
from tests.training.test_run import TASK, StopAt, learn, recipe, rows


def gradients(steps: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(5, 7, generator=generator, dtype=torch.float64) for _ in range(steps)]


def start() -> torch.Tensor:
    values = torch.randn(5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return values * torch.tensor([0.1, 1.0, 2.0, 5.0, 0.0], dtype=torch.float64)[:, None]


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_a_scaled_step_is_a_step_at_another_rate(decay: float) -> None:
    """AdamW with a rate for each virtual token, the rates set by the norms before each step."""
    prompt = torch.nn.Parameter(start())
    ours = torch.optim.AdamW([prompt], lr=0.05, weight_decay=decay)
    control = TokenControl([prompt], by_norm=True, limit=None)
    tokens = [torch.nn.Parameter(row.clone()) for row in start()]
    theirs = torch.optim.AdamW([{"params": [token]} for token in tokens], lr=0.05, weight_decay=decay)
    for gradient in gradients(6):
        prompt.grad = gradient.clone()
        control.on_pre_optimizer_step()
        ours.step()
        control.on_optimizer_step()
        norms = torch.stack([token.detach().norm() for token in tokens])
        for token, row, norm, group in zip(tokens, gradient, norms, theirs.param_groups, strict=True):
            token.grad = row.clone()
            group["lr"] = 0.05 * (float(norm / norms.mean()) if norm > 0 else 1.0)
        theirs.step()
        assert torch.allclose(prompt, torch.stack([token.detach() for token in tokens]), rtol=1e-10, atol=1e-12)


def test_norms_are_held_and_what_is_below_stays_to_the_last_bit() -> None:
    prompt = torch.nn.Parameter(start())
    before = prompt.detach().clone()
    control = TokenControl([prompt], by_norm=False, limit=3.0)
    control.on_pre_optimizer_step()
    control.on_optimizer_step()
    long = before.norm(dim=1) > 3.0
    assert long.any()
    assert (~long).any()
    assert torch.equal(prompt[~long], before[~long])
    assert torch.allclose(prompt[long].norm(dim=1), torch.full((int(long.sum()),), 3.0, dtype=torch.float64))
    assert torch.allclose(torch.cosine_similarity(prompt, before)[long], torch.ones(1, dtype=torch.float64))


def test_a_recipe_that_asks_for_nothing_gets_nothing(tiny_base: Base) -> None:
    assert token_control(tiny_base, [start()], recipe()) == []
    assert learn(tiny_base).prompt.sha256 == learn(make_base(), recipe=recipe(max_token_norm=1e9)).prompt.sha256


def test_the_limit_is_in_medians_of_the_words_norms(tiny_base: Base) -> None:
    limit = float(word_norms(tiny_base).median())
    run = learn(tiny_base, recipe=recipe(max_token_norm=1.0, learning_rate=0.5))
    norms = run.prompt.embeddings.norm(dim=1)
    assert float(norms.max()) == pytest.approx(limit, rel=1e-5)
    assert float(learn(tiny_base, recipe=recipe(learning_rate=0.5)).prompt.embeddings.norm(dim=1).max()) > limit


SETTINGS: dict[str, Any] = {"token_learning_rates": "norm", "max_token_norm": 1.0, "learning_rate": 0.3}


def test_resumed_equals_uninterrupted(tiny_base: Base, tmp_path: Path) -> None:
    whole = learn(tiny_base, tmp_path / "whole", recipe=recipe(**SETTINGS))
    with pytest.raises(KeyboardInterrupt):
        learn(tiny_base, tmp_path / "cut", recipe=recipe(**SETTINGS), callbacks=[StopAt(17)])
    resumed = learn(make_base(), tmp_path / "cut", recipe=recipe(**SETTINGS), resume=True)
    assert torch.equal(resumed.prompt.embeddings, whole.prompt.embeddings)


def test_side_by_side_is_each_alone(tiny_base: Base) -> None:
    settings = recipe(max_steps=6, **SETTINGS)
    prompts = [SoftPrompt.from_vocabulary(tiny_base, 4, seed=seed) for seed in (0, 1)]
    data: dict[str, Any] = {"train": rows(40), "validation": None}
    together = train_side_by_side(tiny_base, prompts, TASK, recipe=settings, seeds=[0, 0], **data)
    for prompt, member in zip(prompts, together, strict=True):
        alone = train(tiny_base, prompt, TASK, recipe=settings, **data)
        assert torch.allclose(member.embeddings, alone.prompt.embeddings, atol=1e-5)


def test_it_is_not_for_a_prompt_behind_a_network() -> None:
    for setting in ({"max_token_norm": 2.0}, {"token_learning_rates": "norm"}):
        with pytest.raises(SoftPromptError, match=r"^recipe: token_learning_rates and max_token_norm .* residual"):
            recipe(residual=8, **setting)
    for bad in ({"max_token_norm": -1}, {"max_token_norm": float("inf")}, {"token_learning_rates": "fast"}):
        with pytest.raises(SoftPromptError, match=f"recipe: {next(iter(bad))}"):
            recipe(**bad)
