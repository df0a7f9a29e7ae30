"""The sides of the comparison: one optimiser step on a prompt by softprompt, by PEFT and by plain concatenation.

Owns how each side computes its loss, and the models they run on. All sides take the same padded batch, the same initial
prompt and the same optimiser. Knows nothing of clocks or tables.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PromptTuningConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

import softprompt as sp

Batch = dict[str, Tensor]
OURS, FLASH = "softprompt", "peft, flash_attention_2"

# Llama shapes to fill with random weights: SmolLM2 135M, Llama 3.2 1B and Llama 3.1 8B.
SHAPES = {
    "llama-135m": LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    ),
    "llama-1b": LlamaConfig(
        vocab_size=128256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    ),
    "llama-8b": LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=8192,
    ),
}


def open_model(name: str, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """A frozen model: one of `SHAPES` with random weights, or what `load_base` finds under the name."""
    if name not in SHAPES:
        return sp.load_base(name, dtype=dtype, device=device).model
    torch.manual_seed(0)
    with device:
        model: PreTrainedModel = AutoModelForCausalLM.from_config(SHAPES[name], dtype=dtype)
    return model.requires_grad_(False).eval()


@dataclass
class Side:
    """One way to train a prompt.

    Attributes:
        prompt: `[P, H]`, float32, the only thing trained.
        loss: a batch's loss.
        kernel: how it is computed.
    """

    prompt: nn.Parameter
    loss: Callable[[Batch], Tensor]
    kernel: str = "as the model has it"
    optimiser: torch.optim.Optimizer = field(init=False)

    def __post_init__(self) -> None:
        self.optimiser = torch.optim.AdamW([self.prompt], lr=1e-3)

    def gradient(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """A batch's loss and its gradient `[P, H]`; nothing is changed."""
        loss = self.loss(batch)
        (grad,) = torch.autograd.grad(loss, self.prompt)
        return loss.detach(), grad

    def step(self, batch: Batch) -> None:
        """Forward, backward, and AdamW's update of the prompt."""
        self.optimiser.zero_grad()
        self.loss(batch).backward()
        self.optimiser.step()


def softprompt(model: PreTrainedModel, prompt: sp.SoftPrompt) -> Side:
    """`PromptedModel` as it is."""
    tokenizer: Any = None  # nothing is encoded
    prompted = sp.PromptedModel(sp.Base(model, tokenizer, "side"), [prompt])
    return Side(prompted.prompts[0], lambda batch: prompted(**batch).loss, prompted.kernel)


def peft(model: PreTrainedModel, prompt: sp.SoftPrompt) -> Side:
    """PEFT's prompt tuning by its own `forward`, without the generation cache, which the Trainer switches off too."""
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=prompt.num_virtual_tokens)
    wrapped: Any = get_peft_model(model, config).eval()
    wrapped.config.use_cache = False
    weight = wrapped.prompt_encoder["default"].embedding.weight
    weight.data.copy_(prompt.embeddings)
    return Side(weight, lambda batch: wrapped(**batch).loss)


def concatenation(model: PreTrainedModel, prompt: sp.SoftPrompt) -> Side:
    """`[prompt | text]` in every row, by the model's own forward."""
    weight = nn.Parameter(prompt.embeddings.to(model.device, copy=True))

    def loss(batch: Batch) -> Tensor:
        texts = model.get_input_embeddings()(batch["input_ids"])
        mask, labels = batch["attention_mask"], batch["labels"]
        rows, virtual = len(texts), len(weight)
        result: Tensor = model(
            inputs_embeds=torch.cat([weight.to(texts.dtype).expand(rows, -1, -1), texts], 1),
            attention_mask=torch.cat([mask.new_ones(rows, virtual), mask], 1),
            labels=torch.cat([labels.new_full((rows, virtual), -100), labels], 1),
            use_cache=False,
        ).loss
        return result

    return Side(weight, loss)


SIDES: dict[str, Callable[[PreTrainedModel, sp.SoftPrompt], Side]] = {
    OURS: softprompt,
    "peft": peft,
    "concatenation": concatenation,
}
