"""The engine's core for bases of which no states can be kept: each step computes the texts whole, with their prompts.

So it is with encoder-decoders and encoders, whose prompts see the text behind them, and with causal bases that allow no
packed row. Exact for every base that a prompt can be trained for. A generated token costs as much as its text and the
answer so far; of an encoder-decoder as much as the answer, since a text's encoding stays until it is answered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from softprompt.bases.base import Base
from softprompt.models.engine import MOST_RUNNING, Computed, Scheduler, Work
from softprompt.models.family import Batch
from softprompt.models.prompted import PromptedModel
from softprompt.models.scoring import batch_by_tokens


class RecomputingScheduler(Scheduler):
    """Texts padded side by side, computed whole in every step.

    Args:
        base: the frozen base.
        step_tokens: about how many tokens one step computes.

    Raises:
        SoftPromptError: no prompt can be used on the base.
    """

    keeps = False

    def __init__(self, base: Base, step_tokens: int) -> None:
        super().__init__()
        self._model, self._step_tokens = PromptedModel(base, [], inference=True), step_tokens
        self._encoded: dict[int, dict[tuple[int, ...], Tensor]] = {}  # of each prompt's texts that are answered

    def plan(self, may_start: Callable[[Any], bool] = lambda work: True) -> list[tuple[Any, int]]:
        room = self._step_tokens - sum(map(_cost, self.running))
        while self.waiting and len(self.running) < MOST_RUNNING:
            work = self.waiting[0]
            room -= _cost(work)
            if (self.running and room < 0) or not may_start(work):
                break
            self.running.append(self.waiting.popleft())
        return [(work, len(work.ids) - work.computed) for work in self.running]

    def finish(self, work: Work) -> None:
        super().finish(work)
        prompts = {id(one.prompt) for one in self.running}
        self._encoded = {key: kept for key, kept in self._encoded.items() if key in prompts}
        if (kept := self._encoded.get(id(work.prompt))) is not None:
            kept.pop(tuple(work.ids[: work.text_length]), None)  # another work of the same text encodes it again

    def check(self, work: Work) -> None:
        """Anything can be begun."""

    def figures(self) -> dict[str, float]:
        names = ("state_hits_total", "state_misses_total", "state_evictions_total", "states_resident", "state_bytes")
        return dict.fromkeys(names, 0)

    def compute(self, plan: Iterable[tuple[Any, int]]) -> list[Computed]:
        """The texts, each with every node of its tree in a row of its own."""
        plan = list(plan)
        rows = [_Row(work, path) for work, _ in plan for path in (work.tree.paths() if work.nodes else [[]])]
        found: dict[_Row, Tensor] = {}
        for group in _alike(rows):
            found |= zip(group, self._states(group), strict=True)
        computed, waiting = [], iter(rows)
        for work, count in plan:
            states = [found[row] for row in islice(waiting, max(1, work.nodes))]
            lasts = torch.stack([some[-1] for some in states])
            end = torch.cat([states[0][:1], lasts]) if work.nodes else lasts
            work.computed += count
            computed.append(Computed(work, count, states[0] if work.every else end[:0], end))
        return computed

    def _states(self, rows: Sequence[_Row]) -> tuple[Tensor, ...]:
        """Of each row the final hidden states at the places that are asked for."""
        prompts = list({id(row.work.prompt): row.work.prompt for row in rows}.values())
        number = {id(prompt): k for k, prompt in enumerate(prompts)}
        counts = [len(row.places) for row in rows]
        batch = Batch(
            tokens=torch.tensor([token for row in rows for token in row.ids], dtype=torch.long),
            lengths=[len(row.ids) for row in rows],
            prompt_of_text=[number[id(row.work.prompt)] for row in rows],
            rows=torch.arange(len(rows)).repeat_interleave(torch.tensor(counts)),
            columns=torch.tensor([place for row in rows for place in row.places]),
            read=rows[0].work.read,
            pooling=[prompt.pooling for prompt in prompts if _pooling(prompt) is not None],
            encoded=[self._encoded.setdefault(id(prompt), {}) for prompt in prompts],
        )
        hidden = self._model.hidden([self._vectors(prompt) for prompt in prompts], batch)
        return torch.split(hidden, counts)

    def _vectors(self, prompt: Any) -> Tensor:
        base = self._model.base
        if prompt is None:
            return base.embed(torch.zeros(0, dtype=torch.long))
        vectors: Tensor = prompt.embeddings.to(base.device)
        return vectors


def _pooling(prompt: Any) -> Tensor | None:
    """A prompt's own layer by which an encoder pools."""
    return getattr(prompt, "pooling", None)


class _Row:
    """A row of a step: a text, its answer so far, and the way to one node of its tree."""

    def __init__(self, work: Any, path: Sequence[int]) -> None:
        self.work, self.ids = work, [*work.ids, *path]

    @property
    def places(self) -> Sequence[int]:
        """Where its states are asked for: all of it, or its text's end and its own."""
        # The first is where an encoder-decoder's text ends.
        return range(len(self.ids)) if self.work.every else (self.work.text_length - 1, len(self.ids) - 1)

    @property
    def length(self) -> int:
        """Positions that it takes."""
        return int(self.work.virtual) + len(self.ids)


def _alike(rows: Sequence[_Row]) -> Iterator[list[_Row]]:
    """Rows that can stand in one batch, of like length.

    What an encoder pools by a prompt's own layer cannot stand beside what it pools by the model's.
    """
    kinds: dict[Any, list[_Row]] = {}
    for row in rows:
        kinds.setdefault((row.work.read, _pooling(row.work.prompt) is None), []).append(row)
    for some in kinds.values():
        for group in batch_by_tokens([row.length for row in some]):
            yield [some[i] for i in group]


def _cost(work: Work) -> int:
    """Tokens of a text's rows when its answer is whole."""
    return (work.virtual + work.text_length + work.follow) * max(1, work.nodes)
