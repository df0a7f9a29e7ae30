"""PEFT's prompt tuning computed by softprompt's routes, for scripts that train with PEFT's own objects.

Owns the translation between PEFT's padded batches, adapters and outputs and the routes' texts without padding. Knows
nothing of Trainers (it keeps the contract that they expect of a PEFT model), files or tasks.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from peft import PeftModelForCausalLM, PeftType
from torch import Tensor
from torch.utils._pytree import tree_map_only
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.loss.loss_utils import ForCausalLMLoss
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils.generic import ModelOutput

from softprompt.bases.decoder import NO_TOKEN, Decoder
from softprompt.errors import SoftPromptError
from softprompt.models.division import divide_gradients, divide_value
from softprompt.models.family import Batch, hidden_states, logits
from softprompt.models.probe import find_route
from softprompt.models.transfer import to_device

logger = logging.getLogger(__name__)
# Logits held at one time, in numbers (0.25 GB in float32); more label places are taken in turns.
_MOST_LOGITS = 1 << 26
# Arguments of PEFT's forward that the routes honour, and the settings of all others that ask for nothing.
_HONOURED = ("num_items_in_batch", "fused_lm_head")
_ASKS_NOTHING = (None, False)


def accelerate_peft(peft_model: PeftModelForCausalLM) -> AcceleratedPeftModel:
    """Let a PEFT model with prompt tuning compute its loss by softprompt's fastest exact route.

    The model itself is changed and given back: it stays a `PeftModelForCausalLM` with the same parameters, so that a
    script with `transformers.Trainer` or TRL's `SFTTrainer`, its checkpoints and `save_pretrained` go on unchanged.
    Call it before the model is given to a Trainer. A base with dropout stays in eval mode from here on, since with
    dropout no prompt could be shared between rows; a warning says so.

    Args:
        peft_model: from `get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", ...))`, or loaded by
            `PeftModel.from_pretrained`. With one adapter or several.

    Returns:
        `peft_model`, now an `AcceleratedPeftModel`.

    Raises:
        SoftPromptError: it is not a causal language model with prompt tuning, parts of its base are to be trained
            too, its forward has been replaced (by Accelerate, for example), or its logits are made in an unknown way.
    """
    if isinstance(peft_model, AcceleratedPeftModel):
        return peft_model
    if type(peft_model) is not PeftModelForCausalLM:
        raise SoftPromptError(
            "accelerate_peft takes a PeftModelForCausalLM, from get_peft_model(model, "
            f"PromptTuningConfig(task_type='CAUSAL_LM', ...)), not this {type(peft_model).__name__}"
        )
    for name, config in peft_model.peft_config.items():
        if config.peft_type != PeftType.PROMPT_TUNING:
            kind = PeftType(config.peft_type).value
            raise SoftPromptError(f"adapter {name!r} is {kind}: only PROMPT_TUNING is accelerated")
    base: Any = peft_model.base_model
    if base.config.is_encoder_decoder:
        raise SoftPromptError(f"{type(base).__name__} is an encoder-decoder: a causal language model is needed")
    trained = [name for name, parameter in base.named_parameters() if parameter.requires_grad]
    if trained:
        raise SoftPromptError(f"{trained[0]} of the base is to be trained: only prompts can be, so freeze the base")
    # `disable_adapter` leaves PEFT's own forward behind on the instance, where it would hide ours.
    left = vars(peft_model).get("forward")
    if left is not None and getattr(left, "__func__", None) is not PeftModelForCausalLM.forward:
        raise SoftPromptError("the model's forward has been replaced: call accelerate_peft before preparing the model")
    vars(peft_model).pop("forward", None)

    training = base.training
    base.eval()
    route = find_route(base).name
    dropout = _dropout(base)
    if dropout:
        logger.warning("PEFT trains with the base's dropout (%s), softprompt keeps the base in eval mode", dropout)
    base.train(training and not dropout)
    accelerated: Any = peft_model
    accelerated.__class__ = AcceleratedPeftModel
    accelerated.route, accelerated._dropout = route, dropout
    return cast(AcceleratedPeftModel, accelerated)


class AcceleratedPeftModel(PeftModelForCausalLM):
    """A PEFT model whose loss comes by softprompt's route `route`; made by `accelerate_peft`."""

    base_model: Any
    prompt_encoder: Any
    route: str
    _dropout: str

    def train(self, mode: bool = True) -> AcceleratedPeftModel:
        """Set the mode of this module; a base with dropout stays in eval mode."""
        super().train(mode)
        if self._dropout:
            self.base_model.eval()
        return self

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        task_ids: Tensor | None = None,
        *,
        adapter_names: Sequence[str] | None = None,
        **others: Any,
    ) -> Any:
        """The loss of a batch as PEFT has it, and its logits.

        PEFT's own forward answers calls without labels and those that ask for what no route has: the base's inner
        states, a cache, `inputs_embeds`, labels on padding, a mask with holes, the base's own loss.

        Args:
            input_ids: `[B, T]` token ids, padded on either side.
            attention_mask: `[B, T]`, 0 where padding stands; None: no padding.
            labels: `[B, T]` token ids at the places to learn, -100 elsewhere.
            adapter_names: the adapter of each row; None: the active adapter for every row. Given these, the logits
                come by the route without labels too.
            others: and all the rest: as in `PeftModelForCausalLM.forward`.

        Returns:
            `CausalLMOutputWithPast` with the loss and the logits `[B, P + T, V]`, computed when they are first used. P
            is the longest prompt of the batch, and shorter ones stand next to their texts. Column `P - 1 + j` has the
            prediction of the label in column j; at padding the logits are 0. With TRL's `fused_lm_head` the output
            is that head's.

        Raises:
            SoftPromptError: an adapter's name is unknown, there is not one for each row, or only PEFT's own forward,
                which ignores `adapter_names`, could answer; gradient checkpointing is on for a base with dropout.
        """
        others.update(
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=return_dict,
            task_ids=task_ids,
        )
        obstacle = self._obstacle(input_ids, attention_mask, labels, others)
        if adapter_names is None and (labels is None or obstacle):
            if labels is not None:
                _tell(obstacle)
            return super().forward(input_ids, attention_mask, labels=labels, **others)  # type: ignore[no-untyped-call]
        if obstacle or input_ids is None:
            raise SoftPromptError(f"adapter_names cannot be combined with {obstacle}")

        names = self._names(adapter_names, len(input_ids))
        used = sorted(set(names))
        prompts: list[Tensor] = [self.prompt_encoder[name].embedding.weight for name in used]
        before, text = max(map(len, prompts)), input_ids.shape[1]
        batch, asked = _read(input_ids, attention_mask, [used.index(name) for name in names])
        columns = asked.nonzero(as_tuple=True)[1] + before - 1
        items: Any = others.get("num_items_in_batch")
        fused, late = others.get("fused_lm_head"), False
        if labels is not None:
            targets = F.pad(labels.cpu(), (0, 1), value=-100)[asked]
            known = (targets != -100).nonzero().flatten()
            items = len(known) if items is None else items
            late = self.base_model.dtype == torch.float16 and not fused
        hidden = self._hidden(divide_gradients(prompts, items) if late else prompts, batch)

        loss: Any = None
        if labels is not None:
            given = [known, targets[known], batch.rows[known], columns[known]]
            known, targets, row, column = to_device(given, hidden.device)
            if fused:
                output = self._run_fused_head(hidden[known], targets, others.get("num_items_in_batch"))
                return _spread(output, (row, column), (len(input_ids), before + text - 1))
            total = self._nll(hidden[known], targets)
            loss = divide_value(total, items) if late else total / items
        if late:  # what goes back through the logits is not the loss's, and is to be divided by nothing
            (hidden,) = divide_gradients([hidden], 1 / items)
        scores = self._later_logits(prompts, batch, hidden, columns, before + text)
        return CausalLMOutputWithPast(loss=loss, logits=scores)

    def _later_logits(
        self, prompts: Sequence[Tensor], batch: Batch, hidden: Tensor, columns: Tensor, width: int
    ) -> Tensor:
        """The logits `[B, width, V]`, computed when they are first used."""
        size = self.base_model.get_output_embeddings().weight.shape[0]
        kept = [prompt.clone() for prompt in prompts]  # an optimiser may step before the logits are read
        shape = len(batch.lengths), width, size
        scores: Tensor = _LazyTensor(lambda: self._logits(kept, batch, hidden, columns, width), shape, like=hidden)
        return scores

    def _obstacle(
        self, input_ids: Tensor | None, attention_mask: Tensor | None, labels: Tensor | None, others: dict[str, Any]
    ) -> str:
        """What in a call only PEFT's own forward can answer; "" for nothing."""
        for name, value in others.items():
            silent = (None, True) if name == "return_dict" else _ASKS_NOTHING
            if name not in _HONOURED and not any(value is setting for setting in silent):
                return name
        for name in ("output_attentions", "output_hidden_states", "output_router_logits"):
            if getattr(self.base_model.config, name, False):
                return f"{name} in the base's config"
        embedding = self.base_model.get_input_embeddings()
        if embedding.training and getattr(embedding, "neftune_noise_alpha", None):
            return "NEFTune's noise, which is as large as a row is long"
        if self.base_model.loss_function is not ForCausalLMLoss:
            return "a loss of the base's own"
        if others.get("fused_lm_head") and (labels is None or not self._has_fused_head()):
            return "fused_lm_head without labels, or without such a head"
        if input_ids is None or not input_ids.numel():
            return "no input_ids"
        if labels is not None and labels.shape != input_ids.shape:
            return f"labels {list(labels.shape)} for input_ids {list(input_ids.shape)}"
        if attention_mask is None:
            return ""
        if attention_mask.shape != input_ids.shape:
            return f"attention_mask {list(attention_mask.shape)} for input_ids {list(input_ids.shape)}"
        present = attention_mask.bool()
        if ((present & ~F.pad(present, (1, -1))).sum(1) > 1).any():
            return "holes in the attention_mask"
        if labels is not None and ((labels != -100) & ~present).any():
            return "labels on padding"
        return ""

    def _names(self, names: Sequence[str] | None, count: int) -> Sequence[str]:
        """The adapter of each row."""
        if names is None:
            return [self.active_adapter] * count
        if len(names) != count:
            raise SoftPromptError(f"adapter_names has {len(names)} entries for {count} rows")
        for row, name in enumerate(names):
            if name not in self.peft_config:
                known = ", ".join(self.peft_config)
                raise SoftPromptError(f"adapter_names of row {row} is {name!r}: the adapters are {known}")
        return names

    def _hidden(self, prompts: Sequence[Tensor], batch: Batch) -> Tensor:
        """Final hidden states `[A, H]` at the places that the batch asks for."""
        route = self.route
        if torch.is_grad_enabled() and any(
            getattr(m, "gradient_checkpointing", False) for m in self.base_model.modules()
        ):
            if self._dropout:
                raise SoftPromptError(
                    f"gradient checkpointing would switch on the base's dropout ({self._dropout}): set it to 0 first"
                )
            if route == "shared_prefix":
                route = "concatenated"  # a cache is not recomputed
        return hidden_states(route, self.base_model, prompts, batch)

    def _nll(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """The summed cross-entropy of target ids `[A]` given the final hidden states `[A, H]` before them."""

        def some(states: Tensor, ids: Tensor) -> Tensor:
            return F.cross_entropy(logits(self.base_model, states), ids, reduction="sum")

        at_once = max(1, _MOST_LOGITS // self.base_model.get_output_embeddings().weight.shape[0])
        if len(targets) <= at_once:
            return some(hidden, targets)
        turns = zip(torch.split(hidden, at_once), torch.split(targets, at_once), strict=True)
        return torch.stack([checkpoint(some, *turn, use_reentrant=False) for turn in turns]).sum()

    def _logits(self, prompts: Sequence[Tensor], batch: Batch, hidden: Tensor, columns: Tensor, width: int) -> Tensor:
        """The logits `[B, width, V]`: of the prompts, and of the states `[A, H]` in their rows and `columns`."""
        base, dtype = self.base_model, self.base_model.get_output_embeddings().weight.dtype
        scores = logits(base, hidden.to(dtype)).to(hidden.dtype)
        whole = scores.new_zeros(len(batch.lengths), width, scores.shape[1])
        end = max(map(len, prompts))
        for k, prompt in enumerate(prompts):
            nowhere = torch.full((1, len(prompt)), NO_TOKEN, device=prompt.device)
            states = Decoder.of(base)(prompt[None].to(dtype), nowhere)[0]
            members = [row for row, index in enumerate(batch.prompt_of_text) if index == k]
            whole[members, end - len(prompt) : end] = logits(base, states).to(hidden.dtype)
        return whole.index_put(tuple(to_device([batch.rows, columns], scores.device)), scores)

    def _has_fused_head(self) -> bool:
        return hasattr(vars(self.base_model).get("forward"), "__func__")

    def _run_fused_head(self, hidden: Tensor, targets: Tensor, items: Tensor | int | None) -> ModelOutput:
        """What the head that TRL's `add_fused_lm_head` put into the base's forward makes of states and labels.

        Only that head knows its temperature and which figures it was asked for: it is called on a base whose backbone
        has run already.
        """
        run: Callable[..., ModelOutput] = vars(self.base_model)["forward"].__func__
        base = _AfterBackbone(self.base_model, hidden)
        return run(base, shift_labels=targets[None], num_items_in_batch=items, fused_lm_head=True)


class LabelSmoothing:
    """Cross-entropy with label smoothing for a Trainer whose model is PEFT's prompt tuning.

    `TrainingArguments(label_smoothing_factor=...)` compares labels `[B, T]` with logits `[B, P + T, V]` and fails;
    `Trainer(compute_loss_func=LabelSmoothing(0.1))` does what it means (Szegedy et al. 2016,
    https://arxiv.org/abs/1512.00567). The logits come by PEFT's own forward, at its speed.

    Args:
        factor: the share of the target that is spread over the whole vocabulary, 0 to below 1.

    Raises:
        SoftPromptError: `factor` is not in that range.
    """

    def __init__(self, factor: float) -> None:
        if not 0 <= factor < 1:
            raise SoftPromptError(f"label smoothing is {factor}: it must be at least 0 and below 1")
        self.factor = factor

    def __call__(self, outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """The loss of a batch.

        Args:
            outputs: the model's; `outputs.logits` is `[B, P + T, V]`.
            labels: `[B, T]` token ids, -100 at places that are not learned.
            num_items_in_batch: divide the sum by this instead of the number of label places.
        """
        scores = outputs["logits"].float()
        scores, labels = scores[:, -labels.shape[1] - 1 : -1], labels[:, -scores.shape[1] + 1 :]
        count = (labels != -100).sum() if num_items_in_batch is None else num_items_in_batch
        total = F.cross_entropy(scores.flatten(0, 1), labels.flatten(), reduction="sum", label_smoothing=self.factor)
        return total / count


class _AfterBackbone:
    """A base whose backbone gives the final hidden states `[A, H]` that are known already."""

    def __init__(self, base: PreTrainedModel, hidden: Tensor) -> None:
        self._base, self._hidden = base, hidden

    def base_model(self, **options: Any) -> ModelOutput:
        return BaseModelOutputWithPast(last_hidden_state=self._hidden[None])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._base, name)


def _read(input_ids: Tensor, attention_mask: Tensor | None, prompt_of_text: list[int]) -> tuple[Batch, Tensor]:
    """A padded batch without its padding, and `[B, T + 1]` which columns have a token or prompt that predicts them.

    Both are on the CPU.
    """
    input_ids = input_ids.cpu()
    present = torch.ones_like(input_ids).bool() if attention_mask is None else attention_mask.cpu().bool()
    # Tokens predict the label of the next column, and in front of the first one its prompt's last.
    asked = F.pad(present, (1, 0)).scatter(1, present.long().argmax(1, keepdim=True), True)
    batch = Batch(
        tokens=input_ids[present],
        lengths=present.sum(1).tolist(),
        prompt_of_text=prompt_of_text,
        rows=asked.nonzero(as_tuple=True)[0],
        columns=asked.long().cumsum(1)[asked] - 2,
    )
    return batch, asked


def _spread(output: ModelOutput, where: tuple[Tensor, Tensor], shape: tuple[int, int]) -> ModelOutput:
    """The output with its figures `[1, A]` at rows and columns `where` of `shape`, 0 elsewhere."""
    for name, figures in output.items():
        if figures.ndim == 2:
            output[name] = figures.new_zeros(shape).index_put(where, figures[0])
    return output


class _LazyTensor(Tensor):
    """A tensor that is computed when it is first used, in the gradient mode in which it was made.

    Its shape, dtype and device are known before. PyTorch sees the computed tensor
    (https://docs.pytorch.org/docs/stable/notes/extending.html#extending-torch-with-a-tensor-like-type).
    """

    _KNOWN = tuple(vars(torch._C.TensorBase)[name].__get__ for name in ("shape", "dtype", "device"))
    _value: Callable[[], Tensor]

    @staticmethod
    def __new__(cls: type[_LazyTensor], compute: Callable[[], Tensor], shape: Sequence[int], like: Tensor) -> Any:
        mode = torch.is_grad_enabled()

        @functools.cache
        def value() -> Tensor:
            with torch.set_grad_enabled(mode):
                return compute()

        lazy = Tensor._make_wrapper_subclass(cls, shape, dtype=like.dtype, device=like.device)
        lazy._value = value
        return lazy

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in cls._KNOWN:
            return super().__torch_function__(func, types, args, kwargs)  # type: ignore[no-untyped-call]
        args, kwargs = tree_map_only(cls, lambda lazy: lazy._value(), (args, kwargs or {}))
        return func(*args, **kwargs)

    __torch_dispatch__ = __torch_function__  # type: ignore[assignment]


def _dropout(base: PreTrainedModel) -> str:
    """The first dropout above 0 in the base's config, as "name value"; "" for none."""
    for name, value in base.config.get_text_config().to_dict().items():
        if ("dropout" in name or name.endswith("pdrop")) and isinstance(value, float) and value > 0:
            return f"{name} {value}"
    return ""


@functools.cache
def _tell(obstacle: str) -> None:
    logger.warning("a call with %s is computed by PEFT's own forward, at PEFT's speed", obstacle)
