"""The reference that every engine is compared with: one request at a time, everything computed anew at every token."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

import torch

from softprompt.bases.base import Base
from softprompt.models.prompted import PromptedModel
from softprompt.models.readout import read_head
from softprompt.models.scoring import final_states, score
from softprompt.prompts import SoftPrompt
from softprompt.serving.engine import QueueFullError, Sampling, StoppedError, TimeLimitError, Token
from softprompt.serving.sampling import Chooser


class PlainEngine:
    """Follows the protocol by `score`, and by the plain concatenation of prompt and text.

    Args:
        base: the base.
        pause: seconds before each token and each classification.
        max_waiting: requests that may wait for the one that runs.
        time_limit: seconds that a request may take.

    Attributes:
        cancelled: requests that were cancelled while they ran.
    """

    name = "plain"

    def __init__(self, base: Base, *, pause: float = 0.0, max_waiting: int = 1024, time_limit: float = 60.0) -> None:
        self.base = base
        self.pause, self.max_waiting, self.time_limit = pause, max_waiting, time_limit
        self.failed = asyncio.Event()
        self.cancelled = 0
        self.warmed: list[str] = []
        self._counts = dict.fromkeys(
            (
                "requests_waiting",
                "requests_running",
                "text_tokens_total",
                "new_tokens_total",
                "state_hits_total",
                "state_misses_total",
                "states_resident",
                "state_bytes",
            ),
            0.0,
        )
        self._running = False

    async def start(self) -> None:
        self._one = asyncio.Lock()
        self._running = True

    async def stop(self) -> None:
        self._running = False
        async with self._one:
            pass

    def figures(self) -> dict[str, float]:
        return dict(self._counts)

    async def generate(
        self, prompt: SoftPrompt | None, ids: Sequence[int], sampling: Sampling
    ) -> AsyncGenerator[Token, None]:
        deadline = await self._enter(len(ids))
        finished = False
        try:
            chooser = Chooser(sampling, self.base.end_ids, self.base.device)
            context = list(ids)
            for _ in range(sampling.max_tokens):
                await self._wait(deadline)
                token = self._next(prompt, context, sampling, chooser, last=len(context) - len(ids) + 1)
                context.append(token.id)
                self._counts["new_tokens_total"] += 1
                finished = token.finish is not None
                yield token
                if finished:
                    return
        finally:
            self._leave()
            self.cancelled += not finished

    async def classify(
        self, prompt: SoftPrompt | None, ids: Sequence[int], continuations: Sequence[Sequence[int]] | None
    ) -> list[float]:
        deadline = await self._enter(len(ids))
        finished = False
        try:
            await self._wait(deadline)
            model = PromptedModel(self.base, [] if prompt is None else [prompt])
            if continuations is None:
                hidden = final_states(model, [list(ids)])
                likelihoods: list[float] = read_head(hidden, model.heads[0].detach()).log_softmax(-1)[0].tolist()
            else:
                likelihoods = score(model, [list(ids)], continuations)[0].tolist()
            finished = True
            return likelihoods
        finally:
            self._leave()
            self.cancelled += not finished

    async def states(self, prompt: SoftPrompt | None, ids: Sequence[int]) -> torch.Tensor:
        await self._enter(len(ids))
        try:
            model = PromptedModel(self.base, [] if prompt is None else [prompt])
            return final_states(model, [list(ids)], places=[range(len(ids))])
        finally:
            self._leave()

    async def warm(self, prompt: SoftPrompt) -> None:
        self.warmed.append(prompt.sha256)

    @torch.no_grad()
    def _next(
        self, prompt: SoftPrompt | None, context: Sequence[int], sampling: Sampling, chooser: Chooser, last: int
    ) -> Token:
        model = self.base.model
        row = model.get_input_embeddings()(torch.tensor([context], dtype=torch.long))
        if prompt is not None:
            row = torch.cat([prompt.embeddings[None].to(row), row], 1)
        scores = model(inputs_embeds=row, use_cache=False).logits[0, -1].float()
        chosen, logprob, top = chooser.choose(context, scores)
        if chosen in self.base.end_ids and not sampling.ignore_eos:
            return Token(chosen, logprob, top, "stop")
        return Token(chosen, logprob, top, "length" if last == sampling.max_tokens else None)

    async def _enter(self, text_tokens: int) -> float:
        if not self._running:
            raise StoppedError("the engine is stopping")
        if self._counts["requests_waiting"] >= self.max_waiting:
            raise QueueFullError(f"{self.max_waiting} requests wait: try again later", 1.5)
        deadline = asyncio.get_running_loop().time() + self.time_limit
        self._counts["requests_waiting"] += 1
        try:
            await self._one.acquire()
        finally:
            self._counts["requests_waiting"] -= 1
        self._counts["requests_running"] += 1
        self._counts["text_tokens_total"] += text_tokens
        return deadline

    def _leave(self) -> None:
        self._one.release()
        self._counts["requests_running"] -= 1

    async def _wait(self, deadline: float) -> None:
        await asyncio.sleep(self.pause)
        if asyncio.get_running_loop().time() > deadline:
            raise TimeLimitError(f"the request took longer than {self.time_limit:g} s")
