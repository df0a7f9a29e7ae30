"""The engine's core: which texts go into the next step, the step itself, and what is kept of it.

`predict` and validation run it to the end (`generation.py`), the server step by step in a thread (`serving/local.py`).
Where a base's keys and values can be kept in a pool, a step is one packed row of what is new; elsewhere
`recomputing.py` computes texts whole.

Owns waiting, admission and the spans of a step. Knows nothing of requests, sampling or time.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from softprompt.bases.base import Base
from softprompt.errors import SoftPromptError
from softprompt.models.family import Reads
from softprompt.models.packed import Tree
from softprompt.models.state import Span, State, StatePool, Virtual

MOST_RUNNING = 256
_NOWHERE = torch.zeros(0, dtype=torch.long)


@dataclass(eq=False)
class Work:
    """A text to be computed behind a prompt, and how far it is.

    Attributes:
        prompt: None: nothing stands before the text.
        ids: the text and, in a generation, the answer so far.
        follow: places that tokens which come later take.
        tree: nodes to compute at the text's end.
        computed: how many of the ids are in the pool.
        places: the pool's places for the text and what follows, while it runs.
        state: its prompt's state, while it runs.
        every: whether the states of all its tokens are asked for.
        read: what is read of an encoder, see `Batch`.
    """

    prompt: Virtual | None
    ids: list[int]
    follow: int = 0
    tree: Tree | None = None
    computed: int = 0
    places: Tensor = field(default_factory=lambda: _NOWHERE)
    state: State | None = None
    every: bool = False
    read: Reads = "state"

    def __post_init__(self) -> None:
        self.text_length = len(self.ids)

    @property
    def virtual(self) -> int:
        """P, or 0 for no prompt."""
        return 0 if self.prompt is None else self.prompt.num_virtual_tokens

    @property
    def nodes(self) -> int:
        """Nodes of its tree."""
        return 0 if self.tree is None else len(self.tree.tokens)

    @property
    def need(self) -> int:
        """Places for the text and what is computed after it."""
        return self.text_length + self.nodes + self.follow


@dataclass
class Computed:
    """What a step has computed of one text.

    Attributes:
        work: the text.
        tokens: how many of its tokens were new.
        hidden: `[n, H]` final hidden states of its n new tokens; where nothing is kept, only if all are asked for.
        end: `[1 + E, H]` those at its end and of its tree's E nodes, where the text has come to its end; else None.
    """

    work: Any  # of the caller's own kind
    tokens: int
    hidden: Tensor
    end: Tensor | None


class Scheduler(ABC):
    """Texts in turn, several in a step. One thread at a time may use one.

    Attributes:
        waiting: the texts that wait, the oldest first; append to it.
        running: those that have been begun.
        keeps: whether prompts' states are kept from one text to the next.
    """

    keeps: ClassVar[bool]

    def __init__(self) -> None:
        self.waiting: deque[Any] = deque()
        self.running: list[Any] = []

    @abstractmethod
    def plan(self, may_start: Callable[[Any], bool] = lambda work: True) -> list[tuple[Any, int]]:
        """The texts of the next step, each with how many of its tokens are new.

        Args:
            may_start: whether a text that waits, and has room, may start now; those behind it wait with it.
        """

    @abstractmethod
    def compute(self, plan: Iterable[tuple[Any, int]]) -> list[Computed]:
        """A step."""

    def finish(self, work: Work) -> None:
        """Give back what a text holds; one that doesn't run holds nothing."""
        if work in self.running:
            self.running.remove(work)

    @abstractmethod
    def check(self, work: Work) -> None:
        """Make sure that a text can ever be begun.

        Raises:
            SoftPromptError: it takes more memory than there is.
        """

    @abstractmethod
    def figures(self) -> dict[str, float]:
        """Of kept states, as `Engine.figures` names them."""


class PooledScheduler(Scheduler):
    """Texts mixed in one packed row a step, their keys and values kept in a pool.

    Args:
        base: the frozen base, whose family allows the packed row.
        memory: bytes for keys and values.
        step_tokens: about how many tokens one step computes.

    Attributes:
        pool: where keys and values are kept.

    Raises:
        SoftPromptError: see `StatePool`.
    """

    keeps = True

    def __init__(self, base: Base, memory: int, step_tokens: int) -> None:
        super().__init__()
        self.pool = StatePool(base.model, memory)
        self._base, self._step_tokens = base, step_tokens

    def plan(self, may_start: Callable[[Any], bool] = lambda work: True) -> list[tuple[Any, int]]:
        plan: list[tuple[Any, int]] = []
        room = self._step_tokens
        # Answers being generated go on first: one token each.
        for work in sorted(self.running, key=lambda work: len(work.ids) - work.computed > 1):
            if room <= 0:
                break
            count = min(len(work.ids) - work.computed, room)
            plan.append((work, count))
            room -= count
        while self.waiting and room > 0 and len(self.running) < MOST_RUNNING:
            work = self.waiting[0]
            if not may_start(work) or not self._admit(work):
                break
            self.waiting.popleft()
            if work.state is not None and work.state.last is None:
                room -= work.virtual
            count = max(min(len(work.ids), room), min(len(work.ids), 1))
            plan.append((work, count))
            room -= count + work.nodes
        return plan

    def finish(self, work: Work) -> None:
        if work in self.running:
            super().finish(work)
            self.pool.release(work.places)
            if work.state is not None:
                self.pool.drop(work.state)

    def check(self, work: Work) -> None:
        if work.virtual + work.need > self.pool.capacity:
            raise SoftPromptError(
                f"prompt, text and answer take {work.virtual + work.need} places: the engine's memory holds "
                f"{self.pool.capacity} (state_bytes)"
            )

    def figures(self) -> dict[str, float]:
        counts = self.pool.counts
        return {
            "state_hits_total": counts.hits,
            "state_misses_total": counts.misses,
            "state_evictions_total": counts.evictions,
            "states_resident": self.pool.resident,
            "state_bytes": self.pool.state_bytes,
        }

    def compute(self, plan: Iterable[tuple[Any, int]]) -> list[Computed]:
        """One packed row, with the state of each prompt that has none yet."""
        fresh: list[State] = []
        spans: list[Span] = []
        for work, _ in plan:
            state = work.state
            if state is not None and state.last is None and state not in fresh:
                fresh.append(state)
                spans.append(Span(work.prompt.embeddings, _NOWHERE, state.places))
        at: list[int | None] = []
        for work, count in plan:
            done = work.computed
            tree = work.tree if done + count == len(work.ids) else None
            nodes = 0 if tree is None else work.nodes
            at.append(len(spans) if count or nodes else None)
            if count or nodes:
                before = _NOWHERE if work.state is None else work.state.places
                inputs = torch.tensor(work.ids[done : done + count], dtype=torch.long)
                past = torch.cat([before, work.places[:done]])
                spans.append(Span(inputs, past, work.places[done : done + count + nodes], tree))
        hidden = self.pool.compute(spans) if spans else []
        for state, states in zip(fresh, hidden, strict=False):  # what follows belongs to the texts
            if states[-1].isfinite().all():  # without it, the state leaves with the last who holds it
                state.last = states[-1].clone()
        computed = []
        for (work, count), i in zip(plan, at, strict=True):
            own = self._base.embed(_NOWHERE).to(self._base.dtype) if i is None else hidden[i]
            work.computed += count
            end = None
            if work.computed == len(work.ids):
                end = own[max(0, count - 1) :]
                if not count:  # an empty text is at its prompt's end
                    last = None if work.state is None else work.state.last
                    end = torch.cat([own.new_full((1, own.shape[1]), math.nan) if last is None else last[None], own])
            computed.append(Computed(work, count, own[:count], end))
        return computed

    def _admit(self, work: Work) -> bool:
        """Give a text its places and its prompt's state; False where there is no room now."""
        state = None
        if work.prompt is not None and (state := self.pool.hold(work.prompt)) is None:
            return False
        places = self.pool.allocate(work.need)
        if places is None:
            if state is not None:
                self.pool.drop(state)
            return False
        work.state, work.places = state, places
        self.running.append(work)
        return True
