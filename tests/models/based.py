"""A bare model of Transformers as a base, for tests that need no words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from softprompt.bases.base import Base
from softprompt.models.prompted import PromptedModel
from softprompt.prompts.prompt import SoftPrompt
from tests.conftest import make_tokenizer


def as_base(model: PreTrainedModel | Base) -> Base:
    return model if isinstance(model, Base) else Base(model, make_tokenizer(), "bare")


def with_prompts(
    model: PreTrainedModel | Base, prompts: Sequence[SoftPrompt | nn.Parameter], **options: Any
) -> PromptedModel:
    return PromptedModel(as_base(model), prompts, **options)
