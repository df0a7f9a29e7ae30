"""A frozen base with K soft prompts before it, as one module: loss and gradients for training.

Owns the bookkeeping between padded batches and the packed row: checking the input, finding the label places, adding up
the loss. Knows nothing of tasks, files or optimisers; `routes.py` computes the hidden states, `readout.py` reads them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import PretrainedConfig
from transformers.utils.generic import ModelOutput

from softprompt.bases.base import Base
from softprompt.bases.decoder import find_layers
from softprompt.errors import SoftPromptError
from softprompt.models.attention import choose_kernel, objection_to_device
from softprompt.models.division import divide_gradients, divide_value
from softprompt.models.embedding import pair_losses
from softprompt.models.family import Batch, Reads, family_of, hidden_states, logits, read_by
from softprompt.models.probe import find_route, objection, probe
from softprompt.models.readout import read_heads
from softprompt.models.spans import mark_spans, span_losses
from softprompt.models.transfer import to_device
from softprompt.prompts.card import HEAD_TYPES
from softprompt.prompts.prompt import SoftPrompt

# Logits held at one time, in numbers (0.25 GB in float32); more label places are taken in turns.
_MOST_LOGITS = 1 << 26


@dataclass
class PromptedOutput(ModelOutput):
    """What `PromptedModel.forward` returns.

    Attributes:
        loss: mean cross-entropy over all label places of the batch (or their sum over `num_items_in_batch`).
        row_loss: `[B]` sum of the cross-entropy over each row's label places, without gradient.
        logits: `[A, V]`, or with heads `[A, L]`, float32 logits at the A label places, when asked for; without
            gradient where `max_tokens` has split the batch. Without labels `[B, T, V]`.
        places: `[A, 2]` row and column of the label that each logit predicts, when logits are asked for.
    """

    loss: Tensor | None = None
    row_loss: Tensor | None = None
    logits: Tensor | None = None
    places: Tensor | None = None


class PromptedModel(nn.Module):
    """K soft prompts before one frozen base. The only trainable parameters are the prompts' `[P, H]` tensors, in order,
    and where prompts have heads, these.

    The loss and its gradient equal those of the plain concatenation `[prompt | text]` in every row; the batch is
    computed by the fastest route that is exact for the base (`probe.py`), named by `route`; without gradients by
    `logits_route`, which is never slower.

    Args:
        base: the frozen base, from `load_base`. It is put in eval mode and its parameters stay without gradient.
        prompts: K prompts, of any lengths; all with a head, or none, and of one task type. None at all gives the bare
            base (zero-shot).
        max_tokens: the most text tokens in one packed row; a longer batch is split, its gradients added up exactly,
            and at most one part's activations are held at a time (without labels it is not split). None: no bound.
        gradient_checkpointing: recompute each layer in the backward pass instead of keeping its activations. A cache
            cannot be recomputed, so that "concatenated" then takes the place of "shared_prefix".
        route: "packed", "shared_prefix" or "concatenated" instead of the fastest exact one.
        inference: no gradient is taken, so that only logits have to be exact, which takes less time to prove; the
            prompts are copied and ask for none.

    Raises:
        SoftPromptError: a prompt is not as wide as the base, or leaves no room in its context; some have heads and
            some have not; the route asked for is unknown or not exact for the base; gradient checkpointing is asked of
            a base that has none, or whose gradient it would change.
    """

    accepts_loss_kwargs = True
    task_type: str | None  # PEFT's name for what the prompts do; None where nothing says so

    def __init__(
        self,
        base: Base,
        prompts: Sequence[SoftPrompt | nn.Parameter],
        *,
        max_tokens: int | None = None,
        gradient_checkpointing: bool = False,
        route: str | None = None,
        inference: bool = False,
    ) -> None:
        super().__init__()
        base.model.requires_grad_(False).eval()
        self.base = base  # no module of this one: it is neither trained, nor moved, nor kept with it
        tensors = [prompt.embeddings if isinstance(prompt, SoftPrompt) else prompt for prompt in prompts]
        for tensor in tensors:
            self._check_prompt(tensor)
        # A parameter is taken as it is, so that it may be trained elsewhere.
        shared = () if inference else nn.Parameter
        own = (t if isinstance(t, shared) else t.detach().to(base.device, copy=True) for t in tensors)
        self.prompts = nn.ParameterList(own)
        heads = [prompt.head for prompt in prompts if isinstance(prompt, SoftPrompt) and prompt.head is not None]
        if heads and len(heads) != len(prompts):
            raise SoftPromptError("some of the prompts have a head and some have not: ask them apart")
        self.heads = nn.ParameterList(head.to(base.device, copy=True) for head in heads)
        types = {prompt.task_type for prompt in prompts if isinstance(prompt, SoftPrompt)}
        if len(types) > 1 and types & {*HEAD_TYPES, "FEATURE_EXTRACTION"}:
            raise SoftPromptError(f"the prompts are for different kinds of answers ({', '.join(sorted(types))})")
        self.task_type = next(iter(types), None)
        layers = [prompt.pooling for prompt in prompts if isinstance(prompt, SoftPrompt)]
        self.pooling = [layer.to(base.device) for layer in layers if layer is not None]
        self.label_weights: Tensor | None = None  # `[L]` how much each label counts in a head's loss
        if max_tokens is not None and max_tokens < 1:
            raise SoftPromptError(f"max_tokens is {max_tokens}: at least 1, or None for no bound")
        self.max_tokens = max_tokens
        if inference:
            self.requires_grad_(False)
        self.route: str = self._choose_route(route, gradient_checkpointing, gradient=not inference)
        # A route may be exact for logits alone; validation and scoring take no gradient.
        self.logits_route: str = route or find_route(self.base.model, gradient=False).name
        self._recomputed: list[nn.Module] = []
        if gradient_checkpointing:
            self._start_recomputing()

    def alone(self, k: int) -> PromptedModel:
        """The prompt of index `k` before the same base: the very tensors that are trained."""
        one = PromptedModel(self.base, [], route=self.route)
        one.logits_route = self.logits_route
        one.prompts, one.heads = self.prompts[k : k + 1], self.heads[k : k + 1]
        one.pooling, one.task_type = self.pooling[k : k + 1], self.task_type
        return one

    @property
    def read(self) -> Reads:
        """What the heads read of an encoder, see `Batch`."""
        return read_by(self.base.family.words, self.task_type if self.heads else None)

    @property
    def kernel(self) -> str:
        """How a step is computed, for reports: the route and, for the packed one, the usual kernel."""
        if self.route != "packed":
            return self.route
        if not objection_to_device(self.base.device, self.base.dtype):
            return "packed/varlen"
        return f"packed/{choose_kernel(self.base.device, 1)}"

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        prompt_index: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        return_logits: bool = False,
        lengths: Tensor | None = None,
    ) -> PromptedOutput:
        """The loss of a batch of texts behind their prompts.

        A batch is checked and planned on the CPU. One that is on the base's GPU is fetched from there first, for which
        the CPU has to wait until the step before is over; one that is on the CPU costs no such wait.

        Args:
            input_ids: `[B, T]` token ids, padded on any side; with `lengths` `[N]`, the texts one after the other.
            attention_mask: `[B, T]`, 0 where padding stands; None: no padding.
            labels: shaped as `input_ids`: token ids at the places to learn, -100 elsewhere. A label at a row's first
                token is predicted by the prompt's last virtual token. With heads a label is an index of the head's
                rows, and stands at the token whose final hidden state is read; where an encoder pools the text, at any
                of its tokens. Of prompts for FEATURE_EXTRACTION a row is a pair of texts, one after the other, with one
                label, 0, at the second's first token; see `models/embedding.py`. For QUESTION_ANS a row has one label,
                at the answer's first token: how many tokens on its last one is; see `models/spans.py`. None: no loss;
                the logits are `[B, T, V]`, each predicting the token at its own place, as the Trainer's
                `label_smoothing_factor` asks.
            prompt_index: `[B]` which prompt stands before each row; may be left out with one prompt.
            num_items_in_batch: divide the summed loss by this instead of the number of label places (as the
                Trainer asks with gradient accumulation).
            return_logits: return the logits at the label places, and which places these are.
            lengths: `[B]` the texts' lengths, which sum to N, where they come without padding.

        Raises:
            SoftPromptError: the shapes differ, the batch is empty or has no label place, a label stands on padding
                or beyond the vocabulary, a token is unknown, a prompt index is out of range, or a row is longer than
                the context.
        """
        if labels is None:
            return PromptedOutput(logits=self._predictions(input_ids, attention_mask, prompt_index))
        texts = _texts(input_ids, attention_mask, labels, lengths)
        if self.task_type == "FEATURE_EXTRACTION":
            return self._compare_pairs(texts, prompt_index, num_items_in_batch)
        batch, targets, places = self._read(texts, prompt_index)
        items = len(batch.lengths) if self.task_type == "QUESTION_ANS" else len(targets)  # a span is one
        count = items if num_items_in_batch is None else num_items_in_batch
        vectors = self.vectors()
        late = self.base.dtype == torch.float16 and not return_logits
        leaves = [*vectors, *self.heads]
        if late:
            leaves = divide_gradients(leaves, count)
        parts = list(_split(batch, targets, self.max_tokens))
        if len(parts) == 1:
            losses, scores = self.losses(leaves, *parts[0], return_logits)
            total = losses.sum()
        else:
            with_grad = torch.is_grad_enabled() and any(v.requires_grad for v in leaves)
            total, losses, scores = _InTurns.apply(  # type: ignore[no-untyped-call]
                self, parts, return_logits, with_grad, *leaves
            )
        losses = losses.detach()
        (rows,) = to_device([batch.rows], losses.device)
        row_loss = losses.new_zeros(len(batch.lengths)).index_add_(0, rows, losses)
        loss = divide_value(total, count) if late else total / count
        return PromptedOutput(
            loss=loss,
            row_loss=row_loss,
            logits=scores if return_logits else None,
            places=places if return_logits else None,
        )

    def row_gradients(self, input_ids: Tensor, labels: Tensor, lengths: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The loss of each row by itself, and its gradient: those of batches of one row, in one step.

        Each row has a copy of the prompt before it, and of the head, so that what is one step's gradient for them is a
        row's for each copy.

        Args:
            input_ids: `[N]` token ids, the texts one after the other.
            labels: `[N]`, as `forward` takes them.
            lengths: `[B]` the texts' lengths, which sum to N; B may be 0.

        Returns:
            `[B]` the mean cross-entropy over each row's label places, without gradient, and the gradients of these:
            `[B, P, H]` of the prompt and, where there is a head, `[B, L, H]`, float32.

        Raises:
            SoftPromptError: there are several prompts or none, or a row has no label; and as `forward`.
        """
        if self.task_type == "FEATURE_EXTRACTION":
            raise SoftPromptError("a pair is compared with the others of its batch: no row has a gradient of its own")
        if len(self.prompts) != 1:
            raise SoftPromptError(f"gradients of single rows are for one prompt, not {len(self.prompts)}")
        trained = [*self.prompts, *self.heads]
        if not len(lengths):
            return trained[0].new_zeros(0), [one.new_zeros(0, *one.shape) for one in trained]
        batch, targets, _ = self._read(_texts(input_ids, None, labels, lengths), None)
        if len(batch.rows.unique()) < len(lengths):
            raise SoftPromptError("a row has no label to predict: every place is -100")
        losses, grads = [], []
        for part, wanted in _split(batch, targets, self.max_tokens, len(self.prompts[0])):
            count = len(part.lengths)
            copies = [one.detach().expand(count, *one.shape).clone().requires_grad_() for one in trained]
            with torch.enable_grad():
                leaves = [one for every in copies for one in every.unbind()]
                each = replace(part, prompt_of_text=range(count), pooling=self.pooling * count)
                found, _ = self.losses(leaves, each, wanted, False)
                rows, labels_of_row = to_device([part.rows, part.rows.bincount()], found.device)
                of_row = found.new_zeros(count).index_add(0, rows, found)
                if self.task_type != "QUESTION_ANS":  # of which a row has one
                    of_row = of_row / labels_of_row
                grads.append(torch.autograd.grad(of_row.sum(), copies))
            losses.append(of_row.detach())
        return torch.cat(losses), [torch.cat(some) for some in zip(*grads, strict=True)]

    def _compare_pairs(self, texts: _Texts, prompt_index: Tensor | None, items: Tensor | int | None) -> PromptedOutput:
        """The loss of pairs of texts; see `models/embedding.py`."""
        label = texts.labels != -100
        rows = texts.rows[label].tolist()
        if rows != list(range(len(texts.lengths))):
            raise SoftPromptError("each pair has one label, at the first token of its second text")
        sizes = torch.tensor(texts.lengths, device=texts.tokens.device)
        starts = label.nonzero()[:, 0] - (sizes.cumsum(0) - sizes)
        longer = torch.maximum(starts, sizes - starts).tolist()  # each of the two stands behind a prompt of its own
        index = self.check_rows(longer, None if prompt_index is None else prompt_index.tolist())
        k = torch.tensor(index, device=texts.tokens.device)
        losses = pair_losses(self, self.vectors(), texts.tokens, texts.lengths, starts, k)
        return PromptedOutput(loss=losses.sum() / (len(losses) if items is None else items), row_loss=losses.detach())

    @property
    def config(self) -> PretrainedConfig:
        """A copy of the base's configuration: Transformers' Trainer asks for one, and writes into it."""
        return copy(self.base.model.config)

    @property
    def room(self) -> int | None:
        """Positions that the longest prompt leaves for text and answer; None: any number."""
        return self.base.room(max(map(len, self.vectors())))

    def vectors(self) -> list[Tensor]:
        """The prompts' `[P, H]` tensors; a bare base has one of no virtual tokens."""
        return list(self.prompts) or [self._no_prompt()]

    def check_rows(self, lengths: Sequence[int], prompt_index: Sequence[int] | None) -> list[int]:
        """Which prompt stands before each text, once its index and the texts' lengths are known to be right.

        Raises:
            SoftPromptError: an index is missing or out of range, or prompt and text are longer than the context.
        """
        vectors = self.vectors()
        if prompt_index is None:
            if len(vectors) > 1:
                raise SoftPromptError(f"prompt_index is needed: there are {len(vectors)} prompts")
            prompt_index = [0] * len(lengths)
        if len(prompt_index) != len(lengths):
            raise SoftPromptError(f"prompt_index has {len(prompt_index)} entries for {len(lengths)} rows")
        limit = self.base.max_positions
        for row, (length, k) in enumerate(zip(lengths, prompt_index, strict=True)):
            if not 0 <= k < len(vectors):
                raise SoftPromptError(f"prompt_index of row {row} is {k}: there are {len(vectors)} prompts")
            if limit is not None and length + len(vectors[k]) > limit:
                raise SoftPromptError(
                    f"row {row} has {length} tokens behind {len(vectors[k])} virtual tokens: the context holds {limit}"
                )
        return list(prompt_index)

    def check_not_empty(self, texts: Sequence[Sequence[int]], prompt_of_text: Sequence[int]) -> None:
        """Refuse a text of no tokens behind a prompt of none: nothing predicts its continuation.

        Raises:
            SoftPromptError: naming the row.
        """
        vectors = self.vectors()
        for row, (text, k) in enumerate(zip(texts, prompt_of_text, strict=True)):
            if not len(text) + len(vectors[k]):
                raise SoftPromptError(f"row {row} is empty and has no prompt: nothing to predict from")

    def hidden(self, vectors: Sequence[Tensor], batch: Batch) -> Tensor:
        """Final hidden states `[A, H]` at the places that a batch asks for, by this model's route."""
        if self.base.model.training:  # the base's owner may have switched dropout on, with which no prompt is shared
            self.base.model.eval()
        with self._recomputing():
            return hidden_states(
                self.route if torch.is_grad_enabled() else self.logits_route, self.base.model, vectors, batch
            )

    def nll(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """`[A]` cross-entropy of each target id given the final hidden state `[A, H]` before it."""
        return functional.cross_entropy(logits(self.base.model, hidden), targets, reduction="none")

    def losses(
        self, leaves: Sequence[Tensor], batch: Batch, targets: Tensor, return_logits: bool
    ) -> tuple[Tensor, Tensor | None]:
        """`[A]` cross-entropy at each label place of a batch and, when asked for, the logits `[A, V]` or `[A, L]`.

        Args:
            leaves: prompts and then, where there are any, as many heads.
            batch: what is computed.
            targets: `[A]` the right ids, on the CPU.
            return_logits: whether they are asked for.
        """
        count = len(leaves) // 2 if self.heads else len(leaves)
        vectors, heads = leaves[:count], leaves[count:]
        hidden = self.hidden(vectors, batch)
        (targets,) = to_device([targets], hidden.device)
        if heads:
            scores = read_heads(hidden, heads, [batch.prompt_of_text[row] for row in batch.rows.tolist()])
            if self.task_type == "QUESTION_ANS":
                return span_losses(scores, targets, batch.rows), scores if return_logits else None
            if self.label_weights is not None:
                self.label_weights = self.label_weights.to(scores)
            weights = self.label_weights
            losses = functional.cross_entropy(scores, targets, weights, reduction="none")
            return losses, scores if return_logits else None
        if return_logits:
            scores = logits(self.base.model, hidden)
            return functional.cross_entropy(scores, targets, reduction="none"), scores
        at_once = max(1, _MOST_LOGITS // self.base.vocab_size)
        if len(targets) <= at_once:
            return self.nll(hidden, targets), None
        turns = zip(hidden.split(at_once), targets.split(at_once), strict=True)
        return torch.cat([checkpoint(self.nll, h, t, use_reentrant=False) for h, t in turns]), None

    def _predictions(self, ids: Tensor, mask: Tensor | None, prompt_index: Tensor | None) -> Tensor:
        """`[B, T, V]` the logits that predict each token; zero at padding and where nothing stands before."""
        # An encoder-decoder's target begins at the first label: without labels nothing says where.
        if self.heads or ids.ndim != 2 or self.base.model.config.is_encoder_decoder:
            raise SoftPromptError("labels are needed: the ids to predict, -100 at every other place")
        labels = ids if mask is None else ids.masked_fill(mask == 0, -100)
        batch, _, places = self._read(_texts(ids, mask, labels, None), prompt_index)
        scores = logits(self.base.model, self.hidden(self.vectors(), batch))
        (places,) = to_device([places], scores.device)
        return scores.new_zeros(*ids.shape, scores.shape[-1]).index_put(tuple(places.T), scores)

    def _read(self, texts: _Texts, prompt_index: Tensor | None) -> tuple[Batch, Tensor, Tensor]:
        """What is computed, the ids to predict `[A]` and where they stand in the input `[A, 2]`."""
        if prompt_index is not None and (prompt_index.ndim != 1 or prompt_index.is_floating_point()):
            raise SoftPromptError(
                f"prompt_index must be [B] integers, not {prompt_index.dtype} {[*prompt_index.shape]}"
            )
        tokens, labels = texts.tokens, texts.labels
        wanted, known = labels != -100, self.base.embedding_count
        limit = min(map(len, self.heads), default=self.base.vocab_size)
        if self.task_type == "QUESTION_ANS":
            limit = len(tokens)
        holder = "head has {} rows" if self.heads else "vocabulary has {} ids"
        texts.refuse(wanted & ((labels < 0) | (labels >= limit)), "label", labels, f"the {holder.format(limit)}")
        texts.refuse((tokens < 0) | (tokens >= known), "token", tokens, f"the base has {known} embeddings")
        index = self.check_rows(texts.lengths, None if prompt_index is None else prompt_index.tolist())
        # A word is predicted one token before it; -1 is the last virtual token, which a bare base does not have.
        sizes = torch.tensor(texts.lengths)
        starts = sizes.cumsum(0) - sizes
        columns = torch.arange(len(tokens)) - starts[texts.rows]
        asked = columns if self.heads else columns - 1
        if self.task_type == "QUESTION_ANS":
            marks = mark_spans(labels, texts.rows)
            if bool((marks < 0).any()) or bool((texts.rows[wanted].bincount(minlength=len(sizes)) != 1).any()):
                raise SoftPromptError("each text has one label, at its answer's first token, of an end within the text")
            batch = Batch(tokens, texts.lengths, index, texts.rows, columns, read=self.read, pooling=self.pooling)
            return batch, marks, torch.stack([texts.rows, texts.columns], dim=1)
        bare = torch.tensor([not len(self.vectors()[k]) for k in index])
        wanted = wanted & ~(bare[texts.rows] & (asked < 0))
        rows = texts.rows[wanted]
        if not len(rows):
            raise SoftPromptError("the batch has no label to predict: every place is -100")
        # What stands after a row's last prediction, such as the last word of a target, changes nothing.
        # The first word stays: not every route takes a text of no tokens.
        counts = rows.bincount(minlength=len(sizes))
        last = torch.where(counts > 0, asked[wanted][(counts.cumsum(0) - 1).clamp(min=0)], 0).clamp(min=0)
        if family_of(self.base.model).looks_ahead:
            last = sizes
        needed = columns <= last[texts.rows]
        kept = torch.zeros_like(sizes).index_add_(0, texts.rows, needed.long())
        batch = Batch(tokens[needed], kept.tolist(), index, rows, asked[wanted], read=self.read, pooling=self.pooling)
        return batch, labels[wanted], torch.stack([rows, texts.columns[wanted]], dim=1)

    def _no_prompt(self) -> Tensor:
        return torch.zeros(0, self.base.hidden_size, device=self.base.device)

    def _check_prompt(self, prompt: Tensor) -> None:
        width, limit = self.base.hidden_size, self.base.max_positions
        if prompt.ndim != 2 or prompt.shape[1] != width:
            name = type(self.base.model).__name__
            raise SoftPromptError(f"a prompt for {name} is [P, {width}], not {list(prompt.shape)}")
        if limit is not None and len(prompt) >= limit:
            raise SoftPromptError(f"{len(prompt)} virtual tokens leave no room in a context of {limit}")

    def _choose_route(self, wanted: str | None, recomputing: bool, *, gradient: bool) -> str:
        if wanted is None:
            found = find_route(self.base.model, gradient=gradient).name
            return "concatenated" if recomputing and found == "shared_prefix" else found
        if wanted not in family_of(self.base.model).routes:
            raise SoftPromptError(f"route is {wanted!r}: one of {', '.join(family_of(self.base.model).routes)}")
        if recomputing and wanted == "shared_prefix":
            raise SoftPromptError("the route shared_prefix allows no gradient checkpointing: a cache is not recomputed")
        if reason := objection(self.base.model, wanted, gradient=gradient):
            raise SoftPromptError(f"{type(self.base.model).__name__} is not exact by the route {wanted}: {reason}")
        return wanted

    def _start_recomputing(self) -> None:
        """Find the layers to recompute, and make sure that this changes no gradient."""
        name = type(self.base.model).__name__
        layers = find_layers(self.base.model)
        if not layers:
            raise SoftPromptError(f"{name} does not support gradient checkpointing: it names no layers for it")
        prompts, batch = probe(self.base.model)

        def gradient() -> Tensor:
            leaves = [prompt.clone().requires_grad_() for prompt in prompts]
            with torch.enable_grad():
                total = logits(self.base.model, self.hidden(leaves, batch)).logsumexp(-1).sum()
            return torch.cat(torch.autograd.grad(total, leaves))

        expected = gradient()
        self._recomputed.extend(layers)
        if not (gradient() - expected).norm() <= 1e-2 * expected.norm():
            raise SoftPromptError(f"gradient checkpointing changes {name}'s gradient: leave it off")

    @contextmanager
    def _recomputing(self) -> Iterator[None]:
        """Within it the layers keep no activations: the backward pass, which may come later, runs them again.

        Transformers' own switch needs layers in training mode, with their dropout, until the backward pass is over.
        """
        own = [vars(layer).get("forward") for layer in self._recomputed]
        try:
            for layer in self._recomputed:
                vars(layer)["forward"] = partial(checkpoint, layer.forward, use_reentrant=False)
            yield
        finally:
            for layer, forward in zip(self._recomputed, own, strict=True):
                del vars(layer)["forward"]
                if forward is not None:
                    vars(layer)["forward"] = forward


@dataclass
class _Texts:
    """Texts without padding, one after the other.

    Attributes:
        tokens, labels: `[N]`.
        rows, columns: `[N]` where each token stood in the input.
        lengths: of the B texts.
    """

    tokens: Tensor
    labels: Tensor
    rows: Tensor
    columns: Tensor
    lengths: list[int]

    def refuse(self, wrong: Tensor, what: str, ids: Tensor, reason: str) -> None:
        """Raise where any of the tokens is wrong, naming the first."""
        if wrong.any():
            i = int(wrong.nonzero()[0])
            raise SoftPromptError(f"{what} {ids[i]} at row {self.rows[i]}, column {self.columns[i]}: {reason}")


def _texts(input_ids: Tensor, attention_mask: Tensor | None, labels: Tensor, lengths: Tensor | None) -> _Texts:
    """The texts of a batch, on the CPU."""
    input_ids, labels = input_ids.cpu(), labels.cpu()
    attention_mask, lengths = (None if one is None else one.cpu() for one in (attention_mask, lengths))
    shape = tuple(input_ids.shape)
    if lengths is None and (input_ids.ndim != 2 or not input_ids.numel()):
        raise SoftPromptError(f"input_ids must be [B, T] with at least one row and one token, not {shape}")
    if labels.shape != input_ids.shape:
        raise SoftPromptError(f"labels are {tuple(labels.shape)}, input_ids {shape}")
    if lengths is not None:
        if input_ids.ndim != 1 or attention_mask is not None or int(lengths.sum()) != len(input_ids):
            raise SoftPromptError(f"with lengths input_ids must be [N] and N their sum, without a mask, not {shape}")
        rows = torch.arange(len(lengths)).repeat_interleave(lengths)
        columns = torch.cat([torch.arange(length) for length in lengths.tolist()])
        return _Texts(input_ids, labels, rows, columns, lengths.tolist())
    present = torch.ones_like(input_ids, dtype=torch.bool)
    if attention_mask is not None:
        if attention_mask.shape != input_ids.shape:
            raise SoftPromptError(f"attention_mask is {tuple(attention_mask.shape)}, input_ids {shape}")
        present = attention_mask.bool()
    on_padding = (labels != -100) & ~present
    if on_padding.any():
        row, column = on_padding.nonzero()[0].tolist()
        raise SoftPromptError(f"label at row {row}, column {column} stands on padding")
    rows, columns = present.nonzero(as_tuple=True)
    return _Texts(input_ids[present], labels[present], rows, columns, present.sum(1).tolist())


class _InTurns(torch.autograd.Function):
    """The summed loss of a batch computed part by part, each part's gradient taken before the next part starts."""

    @staticmethod
    def forward(
        ctx: Any,
        model: PromptedModel,
        parts: list[tuple[Batch, Tensor]],
        return_logits: bool,
        with_grad: bool,
        *trained: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        grads = [torch.zeros_like(v) for v in trained]
        losses, scores = [], []
        for batch, targets in parts:
            leaves = [v.detach().requires_grad_() for v in trained]
            with torch.set_grad_enabled(with_grad):
                part, part_scores = model.losses(leaves, batch, targets, return_logits)
                if with_grad:
                    found = torch.autograd.grad(part.sum(), leaves, allow_unused=True)
                    grads = [g if new is None else g.add_(new) for g, new in zip(grads, found, strict=True)]
            losses.append(part.detach())
            if part_scores is not None:
                scores.append(part_scores.detach())
        ctx.save_for_backward(*grads)
        every, logits_of_every = torch.cat(losses), torch.cat(scores) if scores else None
        ctx.mark_non_differentiable(every, *([] if logits_of_every is None else [logits_of_every]))
        return every.sum(), every, logits_of_every

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *others: Any) -> tuple[Tensor | None, ...]:
        return None, None, None, None, *(grad * total for total in ctx.saved_tensors)


def _split(batch: Batch, targets: Tensor, max_tokens: int | None, beside: int = 0) -> Iterator[tuple[Batch, Tensor]]:
    """Cut a batch into parts of consecutive rows with at most `max_tokens` tokens each (or one row).

    `beside` tokens are counted with each row: those of its own copy of a prompt.
    """
    if max_tokens is None or sum(batch.lengths) + beside * len(batch.lengths) <= max_tokens:
        yield batch, targets
        return
    texts = batch.tokens.split(list(batch.lengths))
    start = 0
    while start < len(texts):
        stop, total = start + 1, batch.lengths[start] + beside
        while stop < len(texts) and total + batch.lengths[stop] + beside <= max_tokens:
            total += batch.lengths[stop] + beside
            stop += 1
        asked = (batch.rows >= start) & (batch.rows < stop)
        if asked.any():
            yield (
                Batch(
                    torch.cat(texts[start:stop]),
                    batch.lengths[start:stop],
                    batch.prompt_of_text[start:stop],
                    batch.rows[asked] - start,
                    batch.columns[asked],
                    read=batch.read,
                    pooling=batch.pooling,
                ),
                targets[asked],
            )
        start = stop
