"""The embedded engine: one worker thread answers all tasks' requests on one base, mixed in one packed row a step.

Every step computes what is new in one pass: one token for each answer being generated, the texts that have just come,
the labels of those to classify, and the prompts that have no state yet. Requests join and leave between steps.

Owns the queue, what goes into a step, and the delivery of tokens and likelihoods. Knows nothing of names, templates or
HTTP; `models/state.py` keeps the keys and values.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor

from softprompt.bases.base import Base, suppressed_ids
from softprompt.errors import SoftPromptError
from softprompt.models.family import logits
from softprompt.models.packed import Tree
from softprompt.models.readout import read_head
from softprompt.models.scoring import Branches, check_tokens
from softprompt.models.state import Span, State, StatePool
from softprompt.prompts.prompt import SoftPrompt
from softprompt.serving.engine import (
    NotFiniteError,
    QueueFullError,
    Sampling,
    StoppedError,
    TimeLimitError,
    Token,
    Weight,
)
from softprompt.serving.logs import LOGGER
from softprompt.serving.sampling import Chooser

# Tokens of one step. So many keep a CPU's matrix products busy; more would only make everyone wait longer.
_STEP_TOKENS = {"cpu": 512}
_STEP_TOKENS_ELSEWHERE = 8192
_MOST_RUNNING = 256
_WEIGHED_AT_ONCE = 128  # tokens whose likelihoods are worked out at a time: so many rows of the vocabulary are held
_NOWHERE = torch.zeros(0, dtype=torch.long)

_branches = lru_cache(maxsize=1024)(Branches)


@dataclass(eq=False)
class _Request:
    """A request and how far it is.

    A generation has a chooser, a classification branches or a head, a text to be weighed a number of tops, a warm-up
    none.

    Attributes:
        ids: the text and, in a generation, the answer so far.
        computed: how many of them are in the pool.
        places: the pool's places for them and what follows, while it runs.
        state: its prompt's state, while it runs.
        given_up: whether nobody waits for the answer any more.
        deadline: until when it may run, by the monotonic clock; infinite while it waits.
    """

    prompt: SoftPrompt | None
    ids: list[int]
    deadline: float = float("inf")
    sampling: Sampling | None = None
    chooser: Chooser | None = None
    branches: Branches | None = None
    head: Tensor | None = None
    tops: int | None = None
    computed: int = 0
    places: Tensor = field(default_factory=lambda: _NOWHERE)
    state: State | None = None
    given_up: bool = False

    def __post_init__(self) -> None:
        if not self.virtual:  # a head alone: there is no state to keep
            self.prompt = None
        self.text_length = len(self.ids)
        self._loop = asyncio.get_running_loop()
        self._answers: asyncio.Queue[Any] = asyncio.Queue()
        self.weighed: list[Weight] = []

    @property
    def virtual(self) -> int:
        """P, or 0 for no prompt."""
        return 0 if self.prompt is None else self.prompt.num_virtual_tokens

    @property
    def tree(self) -> Tree | None:
        """The nodes to compute after the text."""
        return self.branches.tree if self.branches is not None and self.branches.tree.tokens else None

    @property
    def need(self) -> int:
        """Places for the text and what is computed after it; the last token of an answer is not."""
        after = 0 if self.tree is None else len(self.tree.tokens)
        return self.text_length + after + (0 if self.sampling is None else self.sampling.max_tokens - 1)

    @property
    def asks_nothing(self) -> bool:
        """Whether its text has only to be computed."""
        return self.sampling is None and self.branches is None and self.head is None

    @property
    def begun(self) -> bool:
        """Whether there is a part of a generated answer."""
        return self.sampling is not None and len(self.ids) > self.text_length

    @property
    def tokens_left(self) -> int:
        """Tokens that it may still generate."""
        return 0 if self.sampling is None else self.sampling.max_tokens - (len(self.ids) - self.text_length)

    @property
    def length(self) -> int:
        """Positions in the context that prompt, text and the longest answer take."""
        if self.branches is not None:
            return self.virtual + self.text_length + max(map(len, self.branches.continuations))
        return self.virtual + self.text_length + (0 if self.sampling is None else self.sampling.max_tokens)

    def answer(self, value: object) -> None:
        """Deliver from the worker's thread."""
        try:
            self._loop.call_soon_threadsafe(self._answers.put_nowait, value)
        except RuntimeError:  # the loop has been closed: nobody waits any more
            self.given_up = True

    async def wait(self) -> Any:
        """The next answer; an error that was delivered is raised."""
        value = await self._answers.get()
        if isinstance(value, Exception):
            raise value
        return value


class _Pace:
    """How long a step of one token for each of some rows takes, as it was of late; nothing is known at first."""

    def __init__(self) -> None:
        self._each = 0.0

    def note(self, rows: int, seconds: float) -> None:
        """A step of that many rows has taken so long."""
        each = seconds / rows
        self._each += (each - self._each) * (0.2 if self._each else 1.0)

    def seconds(self, tokens: int, rows: int) -> float:
        """For so many tokens each of so many rows; at most, as a step grows slower than its rows."""
        return tokens * rows * self._each


class LocalEngine:
    """Answers requests on a base in this process; see `Engine` for the methods that take requests.

    Args:
        base: the frozen base, whose family allows the packed row. The engine is its only user while it runs.
        state_bytes: memory for keys and values, of the prompts' states and of the texts being answered.
        max_waiting: requests that may wait; one more is refused.
        time_limit: seconds that a request may run; waiting does not count. An answer that is not through then ends
            where it is, as one of `max_tokens` does.
        max_batch_tokens: about how many tokens one step computes; default 512 on a CPU, else 8192.

    Raises:
        SoftPromptError: the base allows no packed row, or a setting is not above 0.
    """

    name = "local"

    def __init__(
        self,
        base: Base,
        *,
        state_bytes: int = 1 << 30,
        max_waiting: int = 1024,
        time_limit: float = 60.0,
        max_batch_tokens: int | None = None,
    ) -> None:
        if max_batch_tokens is None:
            max_batch_tokens = _STEP_TOKENS.get(base.device.type, _STEP_TOKENS_ELSEWHERE)
        settings = {"max_waiting": max_waiting, "time_limit": time_limit, "max_batch_tokens": max_batch_tokens}
        for key, value in settings.items():
            if not value > 0:
                raise SoftPromptError(f"{key} is {value}: it must be above 0")
        self.base = base
        self.failed = asyncio.Event()
        self._pool = StatePool(base.model, state_bytes)
        self.max_waiting, self._time_limit, self._step_tokens = max_waiting, time_limit, max_batch_tokens
        self._pace = _Pace()
        self._suppressed = suppressed_ids(base.model)
        self._waiting: deque[_Request] = deque()
        self._running: list[_Request] = []
        self._changed = threading.Condition()
        self._worker: threading.Thread | None = None
        self._stopping = False
        self._text_tokens = self._new_tokens = 0
        self._identity = base.identity  # worked out once, before requests come

    async def start(self) -> None:
        if self._worker is not None:
            raise StoppedError("this engine has been started before: make a new one")
        self._loop = asyncio.get_running_loop()
        self._worker = threading.Thread(target=self._work, name="softprompt-engine", daemon=True)
        self._worker.start()

    async def stop(self) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._worker is not None:
            await asyncio.to_thread(self._worker.join)

    async def generate(self, prompt: SoftPrompt | None, ids: Sequence[int], sampling: Sampling) -> AsyncIterator[Token]:
        chooser = Chooser(sampling, self.base.end_ids, self.base.device, self._suppressed)
        request = _Request(prompt, list(ids), sampling=sampling, chooser=chooser)
        self._submit(request)
        try:
            while True:
                token = await request.wait()
                yield token
                if token.finish is not None:
                    return
        finally:
            request.given_up = True

    async def classify(
        self, prompt: SoftPrompt | None, ids: Sequence[int], continuations: Sequence[Sequence[int]] | None
    ) -> list[float]:
        if continuations is None:
            if prompt is None or prompt.head is None:
                raise SoftPromptError("the prompt has no head to answer by")
            return list(await self._ask(_Request(prompt, list(ids), head=prompt.head)))
        if not continuations or not all(map(len, continuations)):
            raise SoftPromptError("a classification needs continuations, each of at least one token")
        check_tokens("continuation", continuations, self.base.vocab_size)
        branches = _branches(tuple(tuple(continuation) for continuation in continuations))
        return list(await self._ask(_Request(prompt, list(ids), branches=branches)))

    async def weigh(self, prompt: SoftPrompt | None, ids: Sequence[int], top: int) -> list[Weight]:
        weighed: list[Weight] = await self._ask(_Request(prompt, list(ids), tops=top))
        return weighed

    async def warm(self, prompt: SoftPrompt) -> None:
        await self._ask(_Request(prompt, []))

    async def _ask(self, request: _Request) -> Any:
        """The one answer to a request, which is given up with its caller."""
        self._submit(request)
        try:
            return await request.wait()
        finally:
            request.given_up = True

    def figures(self) -> Mapping[str, float]:
        counts = self._pool.counts
        return {
            "requests_waiting": len(self._waiting),
            "requests_running": len(self._running),
            "text_tokens_total": self._text_tokens,
            "new_tokens_total": self._new_tokens,
            "state_hits_total": counts.hits,
            "state_misses_total": counts.misses,
            "state_evictions_total": counts.evictions,
            "states_resident": self._pool.resident,
            "state_bytes": self._pool.state_bytes,
        }

    def _submit(self, request: _Request) -> None:
        """Check a request and let it wait."""
        if request.prompt is not None:
            request.prompt.check_base(self.base)
        check_tokens("text", [request.ids], self.base.vocab_size)
        if not request.virtual and not request.text_length:
            raise SoftPromptError("the text is empty and has no prompt: nothing to predict from")
        limit = self.base.max_positions
        if limit is not None and request.length > limit:
            raise SoftPromptError(
                f"{request.virtual} virtual tokens, {request.text_length} of text and "
                f"{request.length - request.virtual - request.text_length} to follow are {request.length}: "
                f"the context holds {limit}"
            )
        if request.virtual + request.need > self._pool.capacity:
            raise SoftPromptError(
                f"prompt, text and answer take {request.virtual + request.need} places: the engine's memory holds "
                f"{self._pool.capacity} (state_bytes)"
            )
        with self._changed:
            if self._stopping or self._worker is None:
                raise StoppedError("the engine is not running")
            if len(self._waiting) >= self.max_waiting:
                raise QueueFullError(f"{len(self._waiting)} requests wait: try again later", retry_after=1.0)
            self._waiting.append(request)
            self._changed.notify()

    def _work(self) -> None:
        """The worker's thread."""
        try:
            while True:
                with self._changed:
                    while not (self._waiting or self._running or self._stopping):
                        self._changed.wait()
                    if not (self._waiting or self._running):
                        return
                    self._leave()
                    plan = self._plan()
                self._attempt(plan)
        except Exception as error:  # a defect: nobody may wait forever for a thread that is gone
            LOGGER.error("engine failed", exc_info=error)
            with suppress(RuntimeError):  # the loop has been closed
                self._loop.call_soon_threadsafe(self.failed.set)
            with self._changed:
                self._stopping = True
                for request in (*self._waiting, *self._running):
                    request.answer(StoppedError(f"the engine has failed: {type(error).__name__}: {error}"))
                self._waiting.clear()
                self._running.clear()

    def _leave(self) -> None:
        """Let go of requests that nobody waits for, and of those whose time is up before there is a token."""
        now = time.monotonic()
        for request in list(self._running):
            if now > request.deadline and not request.given_up and not request.begun:
                self._finish(
                    request,
                    TimeLimitError(
                        f"the request ran for more than {self._time_limit:g} s, the server's --time-limit, without a "
                        "token of its answer: shorten the text"
                    ),
                )
        for request in [request for request in self._running if request.given_up]:
            self._finish(request)
        if any(request.given_up for request in self._waiting):
            self._waiting = deque(request for request in self._waiting if not request.given_up)

    def _finish(self, request: _Request, answer: object = None) -> None:
        """Free what a request holds, once, then deliver its last answer."""
        request.given_up = True
        if request in self._running:
            self._running.remove(request)
            self._pool.release(request.places)
            if request.state is not None:
                self._pool.drop(request.state)
        if answer is not None:
            request.answer(answer)

    def _plan(self) -> list[tuple[_Request, int]]:
        """The requests of the next step, each with how many of its tokens are computed."""
        plan = []
        room = self._step_tokens
        # Answers being generated go on first: one token each.
        for request in sorted(self._running, key=lambda request: len(request.ids) - request.computed > 1):
            if room <= 0:
                break
            count = min(len(request.ids) - request.computed, room)
            plan.append((request, count))
            room -= count
        while self._waiting and room > 0 and len(self._running) < _MOST_RUNNING:
            request = self._waiting[0]
            if not self._in_time(request) or not self._admit(request):
                break
            self._waiting.popleft()
            if request.state is not None and request.state.last is None:
                room -= request.virtual
            count = max(min(len(request.ids), room), min(len(request.ids), 1))
            plan.append((request, count))
            room -= count + (0 if request.tree is None else len(request.tree.tokens))
        return plan

    def _in_time(self, request: _Request) -> bool:
        """Whether this request and those that run would end in time beside each other, at the pace so far.

        More at once would only mean that all are cut; the oldest go first, and whoever waits loses no time.
        """
        now, rows = time.monotonic(), len(self._running) + 1
        others = all(self._pace.seconds(one.tokens_left, rows) <= one.deadline - now for one in self._running)
        alone = self._pace.seconds(request.tokens_left, 1)
        # One that could not end in time even alone is cut whenever it runs.
        return others and self._pace.seconds(request.tokens_left, rows) <= max(self._time_limit, alone)

    def _admit(self, request: _Request) -> bool:
        """Give a request its places and its prompt's state; False where there is no room now."""
        state = None
        if request.prompt is not None and (state := self._pool.hold(request.prompt)) is None:
            return False
        places = self._pool.allocate(request.need)
        if places is None:
            if state is not None:
                self._pool.drop(state)
            return False
        request.state, request.places = state, places
        request.deadline = time.monotonic() + self._time_limit
        self._running.append(request)
        return True

    def _attempt(self, plan: Sequence[tuple[_Request, int]]) -> None:
        """Compute a step. If it fails, each request is tried alone, so that one harms no other."""
        start = time.monotonic()
        try:
            ended = self._compute(plan)
        except Exception as error:
            if len(plan) == 1:
                self._finish(plan[0][0], _failed(error))
            for entry in plan if len(plan) > 1 else ():
                self._attempt([entry])
            return
        if plan and all(count == 1 for _, count in plan):
            self._pace.note(len(plan), time.monotonic() - start)
        ended = [entry for entry in ended if not self._is_lost(*entry)]
        for request in [request for request, _ in ended if request.asks_nothing]:
            self._finish(request, True if request.tops is None else request.weighed)
        for answer, kind in ((self._go_on, "chooser"), (self._score, "branches"), (self._read_heads, "head")):
            members = [(request, hidden) for request, hidden in ended if getattr(request, kind) is not None]
            try:
                answer(members)
            except Exception as error:
                for request, _ in members:
                    if not request.given_up:
                        self._finish(request, _failed(error))

    @torch.inference_mode()
    def _compute(self, plan: Iterable[tuple[_Request, int]]) -> list[tuple[_Request, Tensor]]:
        """One packed row; the requests that came to their text's end, with `[1 + E, H]` hidden states from there."""
        fresh: list[State] = []
        spans: list[Span] = []
        for request, _ in plan:
            state = request.state
            if request.prompt is not None and state is not None and state.last is None and state not in fresh:
                fresh.append(state)
                spans.append(Span(request.prompt.embeddings, _NOWHERE, state.places))
        at: list[int | None] = []
        for request, count in plan:
            done = request.computed
            tree = request.tree if done + count == len(request.ids) else None
            nodes = 0 if tree is None else len(tree.tokens)
            at.append(len(spans) if count or nodes else None)
            if count or nodes:
                before = _NOWHERE if request.state is None else request.state.places
                inputs = torch.tensor(request.ids[done : done + count], dtype=torch.long)
                past = torch.cat([before, request.places[:done]])
                spans.append(Span(inputs, past, request.places[done : done + count + nodes], tree))
        hidden = self._pool.compute(spans) if spans else []
        for state, states in zip(fresh, hidden, strict=False):  # what follows belongs to the texts
            if states[-1].isfinite().all():  # without it, the state leaves with the last who holds it
                state.last = states[-1].clone()
        ended = []
        for (request, count), i in zip(plan, at, strict=True):
            own = self.base.embed(_NOWHERE).to(self.base.dtype) if i is None else hidden[i]
            if request.tops is not None:
                self._weigh(request, own[:count], request.tops)
            request.computed += count
            self._text_tokens += count
            if request.computed == len(request.ids):
                if count:
                    own = own[count - 1 :]
                elif request.state is not None and request.state.last is not None:  # an empty text
                    own = torch.cat([request.state.last[None], own])
                ended.append((request, own))
        return ended

    def _weigh(self, request: _Request, hidden: Tensor, top: int) -> None:
        """Note how likely the tokens are that follow those just computed, `[n, H]`; first of all, the text's first."""
        start = request.computed
        del request.weighed[start + 1 if start else 0 :]  # of a step that failed
        if not start:
            last = None if request.state is None else request.state.last
            hidden = hidden if last is None else torch.cat([last[None], hidden])
            if last is None:
                request.weighed.append((None, ()))
        following = request.ids[len(request.weighed) :][: len(hidden)]
        for some, tokens in zip(hidden.split(_WEIGHED_AT_ONCE), _parts(following, _WEIGHED_AT_ONCE), strict=False):
            logprobs = logits(self.base.model, some[: len(tokens)]).log_softmax(-1)
            own = logprobs[torch.arange(len(tokens)), torch.tensor(tokens)].tolist()
            values, ids = logprobs.topk(min(top, logprobs.shape[-1]))
            tops = zip(ids.tolist(), values.tolist(), strict=True)
            request.weighed += [(one, tuple(zip(*pair, strict=True))) for one, pair in zip(own, tops, strict=True)]

    def _is_lost(self, request: _Request, hidden: Tensor) -> bool:
        """Whether a request has no answer, as its prompt or its text has led to numbers that are not finite."""
        if request.state is not None and request.state.last is None:
            reason = "the prompt gives"
        elif not hidden.isfinite().all():
            reason = "the text behind the prompt gives" if request.virtual else "the text gives"
        else:
            return False
        dtype = str(self.base.dtype).removeprefix("torch.")
        self._finish(request, NotFiniteError(f"{reason} numbers that are not finite on this base in {dtype}"))
        return True

    @torch.inference_mode()
    def _go_on(self, ended: Sequence[tuple[_Request, Tensor]]) -> None:
        """Choose the next token of each generation."""
        if not ended:
            return
        now = time.monotonic()
        scores = logits(self.base.model, torch.stack([hidden[0] for _, hidden in ended]))
        likeliest = scores.argmax(-1).tolist()
        for i, (request, _) in enumerate(ended):
            if request.chooser is None or request.sampling is None:
                continue
            try:
                plain = likeliest[i], None, ()
                chosen, logprob, top = (
                    plain if request.chooser.plain else request.chooser.choose(request.ids, scores[i])
                )
            except Exception as error:  # a processor's; the others' tokens are not its fault
                self._finish(request, _failed(error))
                continue
            request.ids.append(chosen)
            self._new_tokens += 1
            finish: Literal["stop", "length"] | None = None
            if chosen in self.base.end_ids and not request.sampling.ignore_eos:
                finish = "stop"
            elif not request.tokens_left or now > request.deadline:
                finish = "length"
            token = Token(chosen, logprob, top, finish)
            if finish is None:
                request.answer(token)
            else:
                self._finish(request, token)

    @torch.inference_mode()
    def _score(self, ended: Sequence[tuple[_Request, Tensor]]) -> None:
        """Answer the classifications, those of one task together."""
        tasks: dict[Branches, list[tuple[_Request, Tensor]]] = {}
        for request, hidden in ended:
            if request.branches is not None:
                tasks.setdefault(request.branches, []).append((request, hidden))
        for branches, members in tasks.items():
            likelihoods = branches.likelihoods(self.base.model, torch.stack([hidden for _, hidden in members]))
            for (request, _), row in zip(members, likelihoods.tolist(), strict=True):
                self._finish(request, row)

    @torch.inference_mode()
    def _read_heads(self, ended: Sequence[tuple[_Request, Tensor]]) -> None:
        """Answer the classifications by heads."""
        for request, hidden in ended:
            if request.head is not None:
                self._finish(request, read_head(hidden[0], request.head).log_softmax(-1).tolist())


def _parts(tokens: Sequence[int], size: int) -> list[Sequence[int]]:
    return [tokens[i : i + size] for i in range(0, len(tokens), size)]


def _failed(error: Exception) -> StoppedError:
    return StoppedError(f"the request has failed: {type(error).__name__}: {error}")
