"""Differentially private training: each row's gradient clipped, noise added, rows drawn by chance, and an account kept.

DP-SGD: Abadi et al. 2016, "Deep Learning with Differential Privacy" (https://arxiv.org/abs/1607.00133); of prompts Duan
et al. 2023, "Flocks of Stochastic Parrots" (https://arxiv.org/abs/2305.15594). The account is Opacus', by numerical
composition: Gopi et al. 2021 (https://arxiv.org/abs/2106.02848). Owns the mechanism and what it refuses. Knows nothing
of the loop.
"""

from __future__ import annotations

import logging
import secrets
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from softprompt.errors import SoftPromptError
from softprompt.prompts.prompt import SoftPrompt
from softprompt.tasks.encode import Encoded
from softprompt.training.processes import count as count_processes
from softprompt.training.recipe import Private, Recipe
from softprompt.training.schedule import flatten

logger = logging.getLogger(__name__)

_TELLING = {"examples": "holds words of the rows", "labels": "may hold labels that were read off the rows"}
_UNKNOWN = ("prompt", "prune")
_MOST_DOUBLINGS = 20  # of the rows, when it is looked for how many would be enough


@dataclass
class Mechanism:
    """The Gaussian mechanism on rows drawn by Poisson sampling, with its account.

    Attributes:
        settings: epsilon, delta, and the norm that each row's gradient is clipped to.
        rows: how many training rows there are.
        batch_size: rows in a step, on average.
        noise_multiplier: the noise's standard deviation, in clipping norms.
        secret: the seed of the noise and of the rows drawn; a run that is resumed has that of its checkpoint.
    """

    settings: Private
    rows: int
    batch_size: int
    noise_multiplier: float
    secret: int = field(repr=False)

    @property
    def sample_rate(self) -> float:
        """The chance of each row to be in a step."""
        return self.batch_size / self.rows

    def spent(self, steps: int) -> float:
        """Epsilon after so many steps, at the settings' delta."""
        return _epsilon(self.noise_multiplier, self.sample_rate, steps, self.settings.delta)

    def drawn(self, step: int) -> list[int]:
        """The rows of a step, counted from 0: each is in it by the sample rate; there may be none."""
        chances = torch.rand(self.rows, generator=self._generator(step, 0), dtype=torch.float64)
        return (chances < self.sample_rate).nonzero().flatten().tolist()

    def privatise(self, gradients: Sequence[Tensor], step: int) -> list[Tensor]:
        """The mean gradient of a step's rows: each row's clipped, the noise added, divided by the average batch.

        Args:
            gradients: `[B, ...]` the rows' gradients of each trained tensor; they are clipped by their norm over all.
            step: counted from 0; it decides the noise.
        """
        norms = torch.stack([one.flatten(1).norm(dim=1) for one in gradients]).norm(dim=0)
        limit = self.settings.max_grad_norm
        kept = limit / norms.clamp(min=limit)
        generator = self._generator(step, 1)  # on the CPU, so that the noise is the same on any device
        found = []
        for one in gradients:
            noise = torch.randn(one.shape[1:], generator=generator) * (self.noise_multiplier * limit)
            found.append((torch.einsum("b,b...->...", kept.to(one), one) + noise.to(one)) / self.batch_size)
        return found

    def for_card(self, steps: int) -> dict[str, Any]:
        """What a card says of it after so many steps."""
        return {
            "epsilon": self.spent(steps),
            "delta": self.settings.delta,
            "protects": "each training row",
            "not_protected": "validation rows",
            "noise_multiplier": self.noise_multiplier,
            "sample_rate": self.sample_rate,
            "steps": steps,
            "max_grad_norm": self.settings.max_grad_norm,
            "accountant": f"opacus {version('opacus')} prv",
        }

    def _generator(self, step: int, use: int) -> torch.Generator:
        (seed,) = np.random.SeedSequence([self.secret, step, use]).generate_state(1, np.uint64)
        return torch.Generator().manual_seed(int(seed) >> 1)


class Draws(Dataset[list[dict[str, Any]]]):
    """The rows of each step of a private run.

    Args:
        encoded: all training rows.
        mechanism: draws them.
        steps: of the run.
    """

    def __init__(self, encoded: Encoded, mechanism: Mechanism, steps: int) -> None:
        self._encoded, self.mechanism, self._steps = encoded, mechanism, steps

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: int) -> list[dict[str, Any]]:
        return [self._encoded.example(row) | {"prompt": 0} for row in self.mechanism.drawn(step)]


def flatten_drawn(steps: Sequence[list[dict[str, Any]]]) -> dict[str, Tensor]:
    """The rows of a step as a flat batch, see `flatten`."""
    (rows,) = steps
    return flatten(rows)


def warn_of_start(prompt: SoftPrompt) -> None:
    """Say where a prompt's start gives training rows away."""
    if prompt.card.initialisation.get("method") == "examples":
        logger.warning(
            "the prompt starts from words of training rows, which whoever has its file may read off: see `softprompt "
            "inspect --leak`; prompt.init: text keeps them out"
        )


def make_mechanism(recipe: Recipe, prompt: SoftPrompt, rows: int) -> Mechanism | None:
    """The mechanism that keeps a recipe's promise on so many rows, which is said; None where it makes none.

    Raises:
        SoftPromptError: the promise can't be kept, or not with these settings; Opacus is not installed.
    """
    private = recipe.private
    if private is None:
        return None
    _check(recipe, private, prompt, rows)
    try:
        import opacus.accountants  # noqa: F401
    except ImportError:
        raise SoftPromptError("recipe.private needs an extra: pip install 'softprompt[private]'") from None
    noise = _find_noise(private, recipe.batch_size, rows, recipe.max_steps)
    secret = secrets.randbits(63) if private.seed is None else private.seed
    found = Mechanism(private, rows, recipe.batch_size, noise, secret)
    logger.info(
        "private: epsilon %.3g at delta %.3g for each training row, after %s steps in which each of the %s rows is by "
        "a chance of %.3g; noise %.3g times the clipping norm of %.3g. Validation rows are not protected, nor what "
        "else is in the run's folder; nothing is fitted or calibrated",
        *(found.spent(recipe.max_steps), private.delta, recipe.max_steps, f"{rows:,}", found.sample_rate),
        *(noise, private.max_grad_norm),
    )
    if private.seed is not None:
        logger.warning("recipe.private.seed is set: whoever knows it can take the noise away")
    if prompt.card.recipe or prompt.card.initialisation.get("method") in _UNKNOWN:
        logger.warning("the prompt starts from another one: what that has learned is not in this account")
    return found


def refuse_private(recipe: Recipe, what: str) -> None:
    """Refuse a recipe that asks for privacy, for what is given to the same rows more than once or unprotected.

    Raises:
        SoftPromptError: it does.
    """
    if recipe.private is not None:
        raise SoftPromptError(f"recipe.private is for a single run of `softprompt train`: leave it out for {what}")


def _check(recipe: Recipe, private: Private, prompt: SoftPrompt, rows: int) -> None:
    method = str(prompt.card.initialisation.get("method"))
    if method in _TELLING:
        raise SoftPromptError(
            f"recipe.private: a prompt that starts from {method} {_TELLING[method]} that it is to protect: choose "
            "prompt.init: text, vocabulary or random"
        )
    if not prompt.num_virtual_tokens:
        raise SoftPromptError("recipe.private needs virtual tokens: a head alone is fitted, which nothing protects")
    if recipe.batch_size > rows:
        raise SoftPromptError(
            f"recipe.batch_size {recipe.batch_size} is more than the {rows} training rows: under recipe.private at "
            "most as many"
        )
    if private.delta >= 1 / rows:
        raise SoftPromptError(
            f"recipe.private.delta {private.delta:g} lets one of {rows:,} rows be told: choose less than "
            f"{1 / rows:.2g}, such as {0.1 / rows:.1g}"
        )
    if count_processes() > 1:
        raise SoftPromptError("recipe.private trains in one process: start it without a launcher")


@lru_cache
def _find_noise(private: Private, batch_size: int, rows: int, steps: int) -> float:
    """The least noise that keeps the promise.

    More than `batch_size` is refused: the noise would be greater than all rows of a step together can be.
    """
    from opacus.accountants.utils import get_noise_multiplier

    rate = batch_size / rows
    reached = _epsilon(batch_size, rate, steps, private.delta)
    if reached <= private.epsilon:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = get_noise_multiplier(
                target_epsilon=private.epsilon,
                target_delta=private.delta,
                sample_rate=rate,
                steps=steps,
                accountant="prv",
            )
        if found <= batch_size:
            return float(found)
    enough = (rows << doublings for doublings in range(1, _MOST_DOUBLINGS))
    needed = next(
        (n for n in enough if _epsilon(batch_size, batch_size / n, steps, private.delta) <= private.epsilon), 0
    )
    instead = f", or with {needed:,} rows, or" if needed else "; or"
    raise SoftPromptError(
        f"recipe.private.epsilon {private.epsilon:g} can't be reached in {steps} steps of {batch_size} of {rows:,} "
        f"rows: the noise would drown them; {reached:.2g} can be{instead} take fewer steps"
    )


@lru_cache
def _epsilon(noise_multiplier: float, sample_rate: float, steps: int, delta: float) -> float:
    from opacus.accountants import PRVAccountant

    if not steps:
        return 0.0
    account = PRVAccountant()
    account.history = [(noise_multiplier, sample_rate, steps)]
    with warnings.catch_warnings():  # of how it chooses its grid, which its result bounds
        warnings.simplefilter("ignore")
        return float(account.get_epsilon(delta))
