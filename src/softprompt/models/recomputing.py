"""The engine's core for bases of which no states can be kept: each step computes the texts whole, with their prompts.

So it is with encoder-decoders and encoders, whose prompts see the text behind them, and with causal bases that allow no
packed row. Exact for every base that a prompt can be trained for. A generated token costs as much as its text and the
answer so far; of an encoder-decoder as much as the answer, since a text's encoding stays until it is answered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
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
        rows = [(work, path) for work, _ in plan for path in (work.tree.paths() if work.nodes else [[]])]
        found: list[Tensor] = [torch.empty(0)] * len(rows)
        # What an encoder pools by a prompt's own layer cannot stand beside what it pools by the model's.
        for own in (False, True):
            some = [i for i, (work, _) in enumerate(rows) if (_pooling(work.prompt) is not None) == own]
            for group in batch_by_tokens(
                [work.virtual + len(work.ids) + len(path) for work, path in map(rows.__getitem__, some)]
            ):
                chosen = [some[i] for i in group]
                for i, states in zip(chosen, self._states([rows[i] for i in chosen]), strict=True):
                    found[i] = states
        computed, start = [], 0
        for work, count in plan:
            states = torch.stack(found[start : start + max(1, work.nodes)])
            start += max(1, work.nodes)
            end = torch.cat([states[:1, 0], states[:, 1]]) if work.nodes else states[:, 1]
            work.computed += count
            computed.append(Computed(work, count, end[:0], end))
        return computed

    def _states(self, rows: Sequence[tuple[Any, list[int]]]) -> Tensor:
        """`[n, 2, H]` final hidden states at each row's text's end, and at the end of what follows it."""
        prompts = list({id(work.prompt): work.prompt for work, _ in rows}.values())
        number = {id(prompt): k for k, prompt in enumerate(prompts)}
        ids = [[*work.ids, *path] for work, path in rows]
        lasts = [(work.text_length - 1, len(row) - 1) for (work, _), row in zip(rows, ids, strict=True)]
        batch = Batch(
            tokens=torch.tensor([token for row in ids for token in row], dtype=torch.long),
            lengths=[*map(len, ids)],
            prompt_of_text=[number[id(work.prompt)] for work, _ in rows],
            rows=torch.arange(len(rows)).repeat_interleave(2),
            columns=torch.tensor(lasts).flatten(),
            read="state" if self._model.base.family.words else "pooled",
            pooling=[prompt.pooling for prompt in prompts if _pooling(prompt) is not None],
            encoded=[self._encoded.setdefault(id(prompt), {}) for prompt in prompts],
        )
        return self._model.hidden([self._vectors(prompt) for prompt in prompts], batch).view(len(rows), 2, -1)

    def _vectors(self, prompt: Any) -> Tensor:
        base = self._model.base
        if prompt is None:
            return base.embed(torch.zeros(0, dtype=torch.long))
        vectors: Tensor = prompt.embeddings.to(base.device)
        return vectors


def _pooling(prompt: Any) -> Tensor | None:
    """A prompt's own layer by which an encoder pools."""
    return getattr(prompt, "pooling", None)


def _cost(work: Work) -> int:
    """Tokens of a text's rows when its answer is whole."""
    return (work.virtual + work.text_length + work.follow) * max(1, work.nodes)
