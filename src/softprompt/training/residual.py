"""A prompt trained behind a residual network that is folded into it: more numbers to learn with, none to keep.

Razdaibiedina et al. 2023, "Residual Prompt Tuning: Improving Prompt Tuning with Residual Reparameterization"
(https://arxiv.org/abs/2305.03937).

Owns the network. Knows nothing of the loop, which asks for `vectors()` as of any other model.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from softprompt.models.base import Base
from softprompt.models.prompted import PromptedModel
from softprompt.prompts.prompt import SoftPrompt


class ResidualModel(PromptedModel):
    """A `PromptedModel` whose prompts are p + LayerNorm(W2 relu(W1 p)), the network shared by all virtual tokens.

    The LayerNorm's gain starts at 0, unlike in the paper: a prompt that starts from a text is then that text, where a
    LayerNorm of gain 1 would add a vector many times longer than a word's embedding.

    Args:
        base: as of `PromptedModel`, which also says what is raised.
        prompts: likewise.
        bottleneck: the network's width.
        seed: of the network's first values.
        options: of `PromptedModel`.
    """

    def __init__(self, base: Base, prompts: list[SoftPrompt], *, bottleneck: int, seed: int, **options: Any) -> None:
        super().__init__(base, prompts, **options)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            norm = nn.LayerNorm(base.hidden_size)
            self.residual = nn.Sequential(
                nn.Linear(base.hidden_size, bottleneck), nn.ReLU(), nn.Linear(bottleneck, base.hidden_size), norm
            )
        nn.init.zeros_(norm.weight)
        self.residual.to(base.device)

    def vectors(self) -> list[Tensor]:
        """The prompts' `[P, H]` tensors as the base sees them: the network folded in."""
        return [prompt + self.residual(prompt) for prompt in self.prompts]
