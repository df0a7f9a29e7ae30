"""How one request's next token is chosen from its logits, by Transformers' own logits processors.

Owns the order of the processors and a request's random numbers. Sees real tokens only: what a processor gets as its
context is the text and the answer so far, never a virtual token.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from softprompt.serving.engine import Sampling


class Chooser:
    """Chooses one request's tokens.

    Args:
        sampling: what the request asks for.
        ends: the tokens that end a text, which `bad_words` may not forbid by accident.
        suppressed: tokens that never come, whatever the request.
        device: of the logits.
    """

    def __init__(
        self, sampling: Sampling, ends: Collection[int], device: torch.device, suppressed: Collection[int] = ()
    ) -> None:
        self._logprobs = sampling.logprobs
        self._processors: Any = LogitsProcessorList()
        if sampling.repetition_penalty != 1:
            self._processors.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
        if sampling.no_repeat_ngram_size:
            self._processors.append(NoRepeatNGramLogitsProcessor(sampling.no_repeat_ngram_size))
        if sampling.bad_words:
            words = [list(word) for word in sampling.bad_words]
            self._processors.append(NoBadWordsLogitsProcessor(words, eos_token_id=sorted(ends) or None))
        if suppressed:
            self._processors.append(SuppressTokensLogitsProcessor(sorted(suppressed), device=str(device)))
        self._generator: torch.Generator | None = None
        if sampling.temperature:
            self._generator = torch.Generator(device)
            if sampling.seed is None:
                self._generator.seed()
            else:
                self._generator.manual_seed(sampling.seed)
            self._processors.append(TemperatureLogitsWarper(sampling.temperature))
            if sampling.top_k:
                self._processors.append(TopKLogitsWarper(sampling.top_k))
            if sampling.top_p < 1:
                self._processors.append(TopPLogitsWarper(sampling.top_p))

    @property
    def plain(self) -> bool:
        """Whether the likeliest token is all that is asked for."""
        return not self._processors and self._logprobs is None

    def choose(self, context: Sequence[int], scores: Tensor) -> tuple[int, float | None, tuple[tuple[int, float], ...]]:
        """The next token.

        Args:
            context: the ids of text and answer so far.
            scores: `[V]` float32 logits.

        Returns:
            Its id; its log-probability before all processing; the likeliest tokens with theirs (the last two only if
            the request asks for log-probabilities).
        """
        ids = torch.tensor([context], dtype=torch.long, device=scores.device)
        processed = self._processors(ids, scores[None].clone())[0] if self._processors else scores
        if self._generator is None:
            chosen = int(processed.argmax())
        else:
            chosen = int(torch.multinomial(processed.softmax(-1), 1, generator=self._generator))
        if self._logprobs is None:
            return chosen, None, ()
        logprobs = scores.log_softmax(-1)
        values, tokens = logprobs.topk(min(self._logprobs, len(logprobs)))
        top = tuple(zip(tokens.tolist(), values.tolist(), strict=True))
        return chosen, float(logprobs[chosen]), top
