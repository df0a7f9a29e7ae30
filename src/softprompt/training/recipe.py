"""How a prompt is learned: the settings of one training run, their defaults and the recipes with a name.

Owns the numbers. Knows nothing of the training loop, of models or of data.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from softprompt.errors import SoftPromptError
from softprompt.text import validation_line

# docs/training.md has the measurements behind AdamW's; Adafactor's is that of Lester et al.
AUTO_LEARNING_RATE = {"adamw": 0.01, "adafactor": 0.3}

# Lester, Al-Rfou, Constant 2021, "The Power of Scale for Parameter-Efficient Prompt Tuning", section 3
# (https://aclanthology.org/2021.emnlp-main.243): Adafactor, constant rate 0.3, batches of 32, weight decay 1e-5.
# 30,000 steps on a TPU in the paper; the number of steps stays the default here.
NAMED: dict[str, dict[str, Any]] = {
    "default": {},
    "lester": {
        "optimizer": "adafactor",
        "learning_rate": 0.3,
        "schedule": "constant",
        "warmup_steps": 0,
        "weight_decay": 1e-5,
        "batch_size": 32,
    },
}


class Private(BaseModel):
    """Differentially private training: what its rows may cost.

    Attributes:
        epsilon: the most that any one training row may change the odds of any prompt, as a logarithm, but for delta;
            above 0, at most 100.
        delta: the chance that it changes them more; less than one in the number of training rows.
        max_grad_norm: clip the gradient of each row, over prompt and head together, to this norm.
        seed: of the noise, and of which rows a step draws; None: drawn from the system, and kept in the run's
            checkpoint alone. Whoever knows it can take the noise away: for experiments.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    epsilon: float = Field(gt=0, le=100)
    delta: float = Field(default=1e-5, gt=0, lt=1)
    max_grad_norm: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    seed: int | None = Field(default=None, ge=0)


class Recipe(BaseModel):
    """The settings of one training run.

    Attributes:
        name: "default", or "lester" for the recipe of the prompt tuning paper: it sets what is not set here.
        max_steps: optimiser steps.
        epochs: instead, how often each training row is seen; None: `max_steps` counts.
        batch_size: rows in a step, over all processes.
        gradient_accumulation_steps: parts that a step's rows are computed in.
        learning_rate: peak rate; "auto": the rate that was measured best for the optimizer.
        head_learning_rate: peak rate of a head, where the answers are read by one.
        fit_rows: the most training rows that a head is fitted on; of more, so many are drawn by the seed.
        class_weights: "none", or "balanced": of a head each label counts alike, however many rows it has.
        optimizer: "adamw" or "adafactor" (no relative step, no parameter scaling, as in Lester et al.).
        schedule: "cosine" (to 0), "linear" (to 0) or "constant", after the warm-up.
        warmup_steps: steps in which the rate rises from 0.
        weight_decay: decoupled weight decay of the prompt.
        max_grad_norm: clip the prompt's gradient to this norm; 0: never.
        evaluate_every: steps between two validations on the whole validation set; the last step is always validated.
        patience: stop after this many validations without a better one.
        save_every: steps between two checkpoints.
        log_every: steps between two log entries.
        dtype: of the base: "auto", "float32", "bfloat16" or "float16"; the prompt is always float32.
        quantization: hold the base's weights as "torchao-int8", "torchao-int4", "bnb-8bit" or "bnb-4bit"; None: as they
            are stored.
        device_map: where Accelerate puts the base's layers, "auto" and its like: for one that no single device holds.
            It changes no result. None: all on one device.
        max_length: the most tokens of text and target in a row; None: the base's context less the prompt.
        max_tokens: the most tokens computed at one time; a longer batch is split exactly. None: no bound.
        gradient_checkpointing: compute activations again in the backward pass, to save memory.
        calibrate: measure the labels' priors on the training rows at the end, and keep them in the card, see
            `calibrate`; "auto": for tasks of more than two labels that are answered in words, where that makes the
            validation better.
        monitor: measure every virtual token at each log entry, and say what looks wrong; it changes no result.
        report_to: experiment trackers that Transformers knows, such as "tensorboard".
        private: train with differential privacy, see `Private`; rows are then drawn at random, `batch_size` of them on
            average in a step, nothing is fitted or calibrated, and `max_grad_norm` is that of `private`. None: don't.
        seed: of the order of the rows.

    Raises:
        SoftPromptError: a key is unknown or a value impossible; the line names it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["default", "lester"] = "default"
    max_steps: int = Field(default=240, ge=1)
    epochs: float | None = Field(default=None, gt=0)
    batch_size: int = Field(default=8, ge=1)
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    learning_rate: Literal["auto"] | float = "auto"
    head_learning_rate: float = Field(default=0.003, gt=0)
    fit_rows: int = Field(default=16384, ge=2)
    class_weights: Literal["none", "balanced"] = "none"
    optimizer: Literal["adamw", "adafactor"] = "adamw"
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_steps: int = Field(default=20, ge=0)
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, ge=0)
    evaluate_every: int = Field(default=60, ge=1)
    patience: int = Field(default=4, ge=1)
    save_every: int = Field(default=10, ge=1)
    log_every: int = Field(default=10, ge=1)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    quantization: Literal["torchao-int8", "torchao-int4", "bnb-8bit", "bnb-4bit"] | None = None
    device_map: Literal["auto", "balanced", "balanced_low_0", "sequential"] | None = None
    max_length: int | None = Field(default=None, ge=1)
    max_tokens: int | None = Field(default=4096, ge=1)
    gradient_checkpointing: bool = False
    calibrate: Literal["auto"] | bool = "auto"
    monitor: bool = True
    report_to: list[str] = []
    private: Private | None = None
    seed: int = Field(default=0, ge=0)

    def __init__(self, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as error:
            raise SoftPromptError(validation_line(error, "recipe")) from None

    # pydantic's own mark: as a part of a task file the recipe is validated without this __init__.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        if data.get("epochs") is not None and "max_steps" in data:
            raise ValueError("give either max_steps or epochs: set the other to null or leave it out")
        return NAMED.get(str(data.get("name")), {}) | {
            k: v for k, v in data.items() if v is not None or k != "max_steps"
        }

    @field_validator("learning_rate", mode="before")
    @classmethod
    def _check_rate(cls, rate: Any) -> Any:
        if rate == "auto":
            return rate
        try:
            value = float(rate)
        except (TypeError, ValueError):
            value = math.nan
        if not 0 < value <= 1e6:
            raise ValueError(f'a number above 0, at most 1e6, or "auto" is needed, not {rate!r}')
        return value

    @model_validator(mode="after")
    def _check_private(self) -> Recipe:
        if self.private is None:
            return self
        for key, needed in (("gradient_accumulation_steps", 1), ("class_weights", "none"), ("calibrate", "auto")):
            if getattr(self, key) not in (needed, False):
                raise ValueError(
                    f"{key} {getattr(self, key)} is not for private: it would look at the rows unprotected"
                )
        return self

    def for_rows(self, count: int) -> Recipe:
        """The recipe for so many training rows: `epochs` as steps."""
        if self.epochs is None:
            return self
        steps = max(1, math.ceil(self.epochs * count / self.batch_size))
        return self.model_copy(update={"max_steps": steps, "epochs": None})

    def for_card(self, dtype: str) -> dict[str, Any]:
        """The recipe as a card keeps it: what was chosen by itself resolved, and without the noise's seed."""
        private = None if self.private is None else self.private.model_dump(exclude={"seed"})
        return self.model_dump() | {"learning_rate": self.rate, "dtype": dtype, "private": private}

    def loading(self, dtype: str | None = None) -> dict[str, Any]:
        """What `load_base` takes of it; `dtype` where a run that goes on had it otherwise."""
        return {"dtype": dtype or self.dtype, "quantization": self.quantization, "device_map": self.device_map}

    @property
    def rate(self) -> float:
        """The peak learning rate, "auto" resolved."""
        return AUTO_LEARNING_RATE[self.optimizer] if self.learning_rate == "auto" else self.learning_rate
