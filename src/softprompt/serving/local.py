"""The embedded engine: one worker thread answers all tasks' requests on one base, mixed in one step.

Every step computes what is new in one pass: one token for each answer being generated, the texts that have just come,
the labels of those to classify, and the prompts that have no state yet. Requests join and leave between steps. On bases
that keep no states (encoder-decoders, encoders, some causal ones) a step computes its texts whole, which is said once.

Owns the queue, what goes into a step, and the delivery of tokens and likelihoods. Knows nothing of names, templates or
HTTP; `models/state.py` keeps the keys and values.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor

from softprompt.bases.base import Base, dtype_name, suppressed_ids
from softprompt.errors import SoftPromptError
from softprompt.models.engine import PooledScheduler, Scheduler, Work
from softprompt.models.family import logits, read_by
from softprompt.models.readout import read_head
from softprompt.models.recomputing import RecomputingScheduler
from softprompt.models.scoring import Branches, check_tokens
from softprompt.models.state import objection_to_pool
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
_WEIGHED_AT_ONCE = 128  # tokens whose likelihoods are worked out at a time: so many rows of the vocabulary are held

_branches = lru_cache(maxsize=1024)(Branches)


@dataclass(eq=False)
class _Request(Work):
    """A request and how far it is.

    A generation has a chooser, a classification branches or a head, a text to be weighed a number of tops, a warm-up
    none.

    Attributes:
        given_up: whether nobody waits for the answer any more.
        deadline: until when it may run, by the monotonic clock; infinite while it waits.
    """

    prompt: SoftPrompt | None
    deadline: float = math.inf
    sampling: Sampling | None = None
    chooser: Chooser | None = None
    branches: Branches | None = None
    head: Tensor | None = None
    tops: int | None = None
    given_up: bool = False

    def __post_init__(self) -> None:
        if not self.virtual and (self.prompt is None or self.prompt.pooling is None):  # a head alone
            self.prompt = None
        super().__post_init__()
        self._loop = asyncio.get_running_loop()
        self._answers: asyncio.Queue[Any] = asyncio.Queue()
        self.weighed: list[Weight] = []
        self.states: list[Tensor] = []

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

    def context(self, base: Base) -> list[int]:
        """The tokens that may not be repeated; of an encoder-decoder the answer's alone, as in Transformers."""
        return self.ids[self.text_length :] if base.family.apart else self.ids

    @property
    def read_through(self) -> object:
        """Of a text that asks nothing more, what has been read of it."""
        if self.every:
            return torch.cat(self.states).float().cpu()
        return True if self.tops is None else self.weighed

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
        base: the frozen base. The engine is its only user while it runs.
        state_bytes: memory for keys and values, of the prompts' states and of the texts being answered.
        max_waiting: requests that may wait; one more is refused.
        time_limit: seconds that a request may run; waiting does not count. An answer that is not through then ends
            where it is, as one of `max_tokens` does.
        max_batch_tokens: about how many tokens one step computes; default 512 on a CPU, else 8192.

    Raises:
        SoftPromptError: no prompt can be used on the base, or a setting is not above 0.
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
        self._scheduler: Scheduler
        if reason := objection_to_pool(base.model):
            LOGGER.warning("the engine keeps no states, so every step computes its texts whole: %s", reason)
            self._scheduler = RecomputingScheduler(base, max_batch_tokens)
        else:
            self._scheduler = PooledScheduler(base, state_bytes, max_batch_tokens)
        self.max_waiting, self._time_limit = max_waiting, time_limit
        self._pace = _Pace()
        self._suppressed = suppressed_ids(base.model)
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
        request = _Request(prompt, list(ids), sampling.max_tokens - 1, sampling=sampling, chooser=chooser)
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
            read = read_by(self.base.family.words, prompt.task_type)
            return list(await self._ask(_Request(prompt, list(ids), head=prompt.head, read=read)))
        if not continuations or not all(map(len, continuations)):
            raise SoftPromptError("a classification needs continuations, each of at least one token")
        check_tokens("continuation", continuations, self.base.vocab_size)
        branches = _branches(tuple(tuple(continuation) for continuation in continuations))
        tree = branches.tree if branches.tree.tokens else None
        return list(await self._ask(_Request(prompt, list(ids), tree=tree, branches=branches)))

    async def weigh(self, prompt: SoftPrompt | None, ids: Sequence[int], top: int) -> list[Weight]:
        if not self._scheduler.keeps:
            raise SoftPromptError(
                f"echo with logprobs is not supported on {type(self.base.model).__name__}, of which no states are kept"
            )
        weighed: list[Weight] = await self._ask(_Request(prompt, list(ids), tops=top))
        return weighed

    async def states(self, prompt: SoftPrompt | None, ids: Sequence[int]) -> Tensor:
        if not self.base.family.states:
            name = type(self.base.model).__name__
            raise SoftPromptError(f"{name} is an encoder-decoder: it gives no state for each token")
        if not ids:
            raise SoftPromptError("the text is empty: it has no states")
        head = None if prompt is None or prompt.head is None else prompt.task_type
        read = read_by(self.base.family.words, head)
        found: Tensor = await self._ask(_Request(prompt, list(ids), every=True, read=read))
        return found

    async def warm(self, prompt: SoftPrompt) -> None:
        if self._scheduler.keeps:
            await self._ask(_Request(prompt, []))

    async def _ask(self, request: _Request) -> Any:
        """The one answer to a request, which is given up with its caller."""
        self._submit(request)
        try:
            return await request.wait()
        finally:
            request.given_up = True

    def figures(self) -> Mapping[str, float]:
        return {
            "requests_waiting": len(self._scheduler.waiting),
            "requests_running": len(self._scheduler.running),
            "text_tokens_total": self._text_tokens,
            "new_tokens_total": self._new_tokens,
            **self._scheduler.figures(),
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
        if not (self.base.family.words or request.every or request.head is not None):
            raise SoftPromptError(
                f"{type(self.base.model).__name__} is an encoder: it neither scores words nor generates"
            )
        self._scheduler.check(request)
        with self._changed:
            if self._stopping or self._worker is None:
                raise StoppedError("the engine is not running")
            if len(self._scheduler.waiting) >= self.max_waiting:
                raise QueueFullError(f"{len(self._scheduler.waiting)} requests wait: try again later", retry_after=1.0)
            self._scheduler.waiting.append(request)
            self._changed.notify()

    def _work(self) -> None:
        """The worker's thread."""
        try:
            while True:
                with self._changed:
                    while not (self._scheduler.waiting or self._scheduler.running or self._stopping):
                        self._changed.wait()
                    if not (self._scheduler.waiting or self._scheduler.running):
                        return
                    self._leave()
                    plan = self._scheduler.plan(self._in_time)
                    for request, _ in plan:
                        if math.isinf(request.deadline):  # it runs from now on
                            request.deadline = time.monotonic() + self._time_limit
                self._attempt(plan)
        except Exception as error:  # a defect: nobody may wait forever for a thread that is gone
            LOGGER.error("engine failed", exc_info=error)
            with suppress(RuntimeError):  # the loop has been closed
                self._loop.call_soon_threadsafe(self.failed.set)
            with self._changed:
                self._stopping = True
                for request in (*self._scheduler.waiting, *self._scheduler.running):
                    request.answer(StoppedError(f"the engine has failed: {type(error).__name__}: {error}"))
                self._scheduler.waiting.clear()
                self._scheduler.running.clear()

    def _leave(self) -> None:
        """Let go of requests that nobody waits for, and of those whose time is up before there is a token."""
        now = time.monotonic()
        for request in list(self._scheduler.running):
            if now > request.deadline and not request.given_up and not request.begun:
                self._finish(
                    request,
                    TimeLimitError(
                        f"the request ran for more than {self._time_limit:g} s, the server's --time-limit, without a "
                        "token of its answer: shorten the text"
                    ),
                )
        for request in [request for request in self._scheduler.running if request.given_up]:
            self._finish(request)
        if any(request.given_up for request in self._scheduler.waiting):
            self._scheduler.waiting = deque(request for request in self._scheduler.waiting if not request.given_up)

    def _finish(self, request: _Request, answer: object = None) -> None:
        """Free what a request holds, once, then deliver its last answer."""
        request.given_up = True
        self._scheduler.finish(request)
        if answer is not None:
            request.answer(answer)

    def _in_time(self, request: _Request) -> bool:
        """Whether this request and those that run would end in time beside each other, at the pace so far.

        More at once would only mean that all are cut; the oldest go first, and whoever waits loses no time.
        """
        now, rows = time.monotonic(), len(self._scheduler.running) + 1
        others = all(self._pace.seconds(one.tokens_left, rows) <= one.deadline - now for one in self._scheduler.running)
        alone = self._pace.seconds(request.tokens_left, 1)
        # One that could not end in time even alone is cut whenever it runs.
        return others and self._pace.seconds(request.tokens_left, rows) <= max(self._time_limit, alone)

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
            self._finish(request, request.read_through)
        for answer, kind in ((self._go_on, "chooser"), (self._score, "branches"), (self._read_heads, "head")):
            members = [(request, hidden) for request, hidden in ended if getattr(request, kind) is not None]
            try:
                answer(members)
            except Exception as error:
                for request, _ in members:
                    if not request.given_up:
                        self._finish(request, _failed(error))

    @torch.inference_mode()
    def _compute(self, plan: Sequence[tuple[_Request, int]]) -> list[tuple[_Request, Tensor]]:
        """One packed row; the requests that came to their text's end, with `[1 + E, H]` hidden states from there."""
        ended = []
        for part in self._scheduler.compute(plan):
            self._text_tokens += part.tokens
            if part.work.tops is not None:
                try:
                    self._weigh(part.work, part.hidden, part.work.tops)
                except Exception as error:  # the others have been computed, and are not tried again
                    self._finish(part.work, _failed(error))
                    continue
            if part.work.every:
                part.work.states.append(part.hidden)
            if part.end is not None:
                ended.append((part.work, part.end))
        return ended

    def _weigh(self, request: _Request, hidden: Tensor, top: int) -> None:
        """Note how likely the tokens are that follow those just computed, `[n, H]`; first of all, the text's first."""
        if not request.weighed:
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
        dtype = dtype_name(self.base.dtype)
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
                    plain if request.chooser.plain else request.chooser.choose(request.context(self.base), scores[i])
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
