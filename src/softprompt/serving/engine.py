"""What an engine is: token ids and a prompt in, tokens or likelihoods out.

Owns the protocol that `local.py` and `vllm.py` follow, what a request asks for, and the errors that a request can meet.
Knows nothing of names, templates, texts or HTTP.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from softprompt.bases.base import Base
from softprompt.errors import SoftPromptError
from softprompt.prompts.prompt import SoftPrompt


class QueueFullError(SoftPromptError):
    """More requests wait than the engine takes.

    Attributes:
        retry_after: seconds after which to try again.
    """

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class TimeLimitError(SoftPromptError):
    """A request took longer than it may."""


class NotFiniteError(SoftPromptError):
    """A prompt, or a text behind it, gives numbers that are not finite, so that there is no answer."""


@contextmanager
def naming(model: str) -> Iterator[None]:
    """Within it a `NotFiniteError`, of which the engine knows no name, gets that of the model that was asked."""
    try:
        yield
    except NotFiniteError as error:
        raise NotFiniteError(f"{model}: {error}") from None


class StoppedError(SoftPromptError):
    """The engine is stopping, or its worker has failed."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. All of it counts real tokens only: a virtual token is no vocabulary.

    Attributes:
        max_tokens: the most new tokens.
        temperature: 0 takes the likeliest token; else the scores are divided by it.
        top_p: sample from the likeliest tokens that together have this probability.
        top_k: sample from this many likeliest tokens; 0: all.
        seed: of this request's own random numbers; None: drawn anew.
        repetition_penalty: above 1 makes tokens of the text and the answer less likely (Keskar et al. 2019,
            https://arxiv.org/abs/1909.05858); 1: off.
        no_repeat_ngram_size: no run of this many tokens comes twice; 0: off.
        bad_words: token sequences that never come.
        logprobs: how many of the likeliest tokens to name with each new one; None: no log-probabilities at all.
        ignore_eos: go on after a token that ends a text, up to `max_tokens`.

    Raises:
        SoftPromptError: a value out of its range, naming the key.
    """

    max_tokens: int = 16
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    bad_words: tuple[tuple[int, ...], ...] = ()
    logprobs: int | None = None
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        ranges = [
            ("max_tokens", self.max_tokens >= 1, "at least 1"),
            ("temperature", 0 <= self.temperature < float("inf"), "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "more than 0, at most 1"),
            ("top_k", self.top_k >= 0, "0 or more"),
            ("repetition_penalty", 0 < self.repetition_penalty < float("inf"), "more than 0"),
            ("no_repeat_ngram_size", self.no_repeat_ngram_size >= 0, "0 or more"),
            ("bad_words", all(self.bad_words), "sequences of at least one token each"),
            ("logprobs", self.logprobs is None or self.logprobs >= 0, "0 or more"),
        ]
        for key, right, wanted in ranges:
            if not right:
                raise SoftPromptError(f"{key} is {getattr(self, key)}: it must be {wanted}")


@dataclass(frozen=True)
class Token:
    """One new token.

    Attributes:
        id: its id. One that ends the text is given, too.
        logprob: its log-probability before temperature and other processing; None unless asked for.
        top: the likeliest tokens at its place, with their log-probabilities, the likeliest first.
        finish: why it is the last one: "stop" (end of text) or "length"; None where it isn't the last.
    """

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    finish: Literal["stop", "length"] | None = None


# Of a text's token: its log-probability, None where nothing stands before it, and the likeliest tokens at its place.
Weight = tuple[float | None, tuple[tuple[int, float], ...]]


class Engine(Protocol):
    """Answers requests on one base, each behind a prompt of its own or none.

    A prompt comes with each request; its state is kept by its content, so that two prompts never share one by
    accident, and a prompt that its library has dropped meanwhile still answers the requests that hold it.

    Attributes:
        name: "local" or "vllm".
        failed: set once the engine has failed for good.
        max_waiting: requests that may wait; one more is refused.
        base: the frozen base; of an engine that loads the weights itself, its tokenizer and identity are used.
    """

    name: str
    failed: asyncio.Event
    max_waiting: int
    base: Base

    async def start(self) -> None:
        """Begin to answer. Called once, in the event loop that the requests come from."""

    async def stop(self) -> None:
        """Refuse new requests, finish those that wait or run, then free everything."""

    def generate(self, prompt: SoftPrompt | None, ids: Sequence[int], sampling: Sampling) -> AsyncIterator[Token]:
        """New tokens after `[prompt | ids]`, as they come. Closing the iterator cancels the request.

        Raises (when first advanced):
            QueueFullError, TimeLimitError, NotFiniteError, StoppedError: see there.
            SoftPromptError: prompt, text and answer don't fit the context, or there is nothing to predict from.
        """

    async def classify(
        self, prompt: SoftPrompt | None, ids: Sequence[int], continuations: Sequence[Sequence[int]] | None
    ) -> list[float]:
        """Log-likelihood of each continuation after `[prompt | ids]`. Cancelling the task cancels the request.

        Without continuations that of each label by the prompt's head.

        Raises: as `generate`.
            SoftPromptError: this engine reads no heads, or the prompt has none.
        """

    async def weigh(self, prompt: SoftPrompt | None, ids: Sequence[int], top: int) -> list[Weight]:
        """Log-probability of each token of a text, as `[prompt | ids]` goes on, and the `top` likeliest at its place.

        The first token of a text without a prompt has None. Cancelling the task cancels the request.

        Raises: as `generate`.
            SoftPromptError: this engine does not tell.
        """

    async def states(self, prompt: SoftPrompt | None, ids: Sequence[int]) -> Tensor:
        """`[T, H]` float32 on the CPU: the final hidden state of each token of a text behind the prompt.

        Behind a prompt with a head what the head reads: of some encoders Transformers' classes put a layer between.

        Raises: as `generate`.
            SoftPromptError: this engine gives none, or the base has none.
        """

    async def warm(self, prompt: SoftPrompt) -> None:
        """Compute the prompt's state now, so that its first request need not.

        Raises: as `generate`.
        """

    def figures(self) -> Mapping[str, float]:
        """Counters and gauges since the start.

        At least: requests_waiting, requests_running, text_tokens_total (computed), new_tokens_total,
        state_hits_total, state_misses_total, states_resident, state_bytes.
        """
