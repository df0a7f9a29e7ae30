"""Free text from a base behind its prompts: the likeliest next token, again and again, for many texts at a time.

Transformers' own `generate` takes embeddings for some classes only, pads, and follows whatever a base's generation
config brings along. Here a token is always that of the plain concatenation `[prompt | text | answer]`, by the fastest
of the ways that a probe has shown to be exact for the base:

- `_Pooled`: texts of any lengths in one packed row a step, keys and values kept in a pool, by the server's scheduler.
- `_Cached`: texts of one length together, without padding, by whatever the base keeps (keys and values, a state);
  `_OneByOne` where even these cannot be together.
- `_Plain`: everything computed anew for each token. Exact for every base that a prompt can be trained for.

Owns these ways and the choice between them. Knows nothing of tasks or metrics.
"""

from __future__ import annotations

import inspect
import logging
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel

from softprompt.bases.base import suppressed_ids
from softprompt.bases.decoder import NO_TOKEN, Decoder
from softprompt.errors import SoftPromptError
from softprompt.models.engine import PooledScheduler, Work
from softprompt.models.families.seq2seq import decode, encode, start_token
from softprompt.models.family import Batch, family_of, logits, plain
from softprompt.models.probe import objection_to_logits
from softprompt.models.prompted import PromptedModel
from softprompt.models.scoring import batch_by_tokens, check_tokens
from softprompt.models.state import bytes_per_place, objection_to_pool
from softprompt.models.transfer import to_device

logger = logging.getLogger(__name__)
_STEP_TOKENS = 2048  # computed at one time: enough to fill the matrix products, little memory


@torch.no_grad()
def generate(
    model: PromptedModel,
    texts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    ends: Collection[int],
    prompt_index: Sequence[int] | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[list[int]]:
    """The most likely next token after each text, again and again.

    Of the base's generation config only `suppress_tokens` counts: those never come.

    Args:
        model: the base with its prompts.
        texts: B texts, token ids.
        max_new_tokens: the most tokens to add to a text.
        ends: the tokens that end a text; they are not part of the answer. None at all: always `max_new_tokens`.
        prompt_index: which prompt stands before each text; may be left out with at most one prompt.
        progress: called with the number of texts finished since the last call.

    Returns:
        The new tokens of each text.

    Raises:
        SoftPromptError: prompt, text and answer do not fit the context, a text is empty and has no prompt, or a token
            is not in the vocabulary.
    """
    check_tokens("text", texts, model.base.vocab_size)
    index = model.check_rows([len(text) + max_new_tokens for text in texts], prompt_index)
    model.check_not_empty(texts, index)
    if not texts:
        return []
    return find_way(model).answer(_Job(model, texts, index, max_new_tokens, ends, progress or (lambda finished: None)))


@dataclass(frozen=True)
class _Job:
    """What `generate` was asked."""

    model: PromptedModel
    texts: Sequence[Sequence[int]]
    prompt_of_text: Sequence[int]
    max_new_tokens: int
    ends: Collection[int]
    progress: Callable[[int], None]

    def choose(self, hidden: Tensor) -> list[int]:
        """The likeliest next token of each text, `[B, H]` to B ids."""
        scores = logits(self.model.base.model, hidden)
        if never := sorted(suppressed_ids(self.model.base.model)):
            scores[:, never] = float("-inf")
        chosen: list[int] = scores.argmax(-1).tolist()
        return chosen


class Way(ABC):
    """One of the ways to decode."""

    @classmethod
    @abstractmethod
    def answer(cls, job: _Job) -> list[list[int]]:
        """The new tokens of each text."""


class _Grouped(Way):
    """Decodes a group of texts to its end, then the next.

    Args:
        model: the frozen base.
        prompts: K prompts `[P, H]`.
        prompt_of_text: which of them stands before each of the group's B texts.
        texts: their token ids.

    Attributes:
        hidden: `[B, H]` the final hidden states at the texts' ends.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Tensor],
        prompt_of_text: Sequence[int],
        texts: Sequence[Sequence[int]],
    ) -> None:
        self._model, self._prompts, self._prompt_of_text = model, prompts, prompt_of_text
        self._texts = [list(text) for text in texts]
        self.hidden = self._begin()

    @classmethod
    def answer(cls, job: _Job) -> list[list[int]]:
        vectors, base = job.model.vectors(), job.model.base.model
        answers: list[list[int]] = [[] for _ in job.texts]
        lengths = [len(vectors[k]) + len(text) for k, text in zip(job.prompt_of_text, job.texts, strict=True)]
        for rows in cls.groups(lengths, [len(text) + job.max_new_tokens for text in job.texts]):
            group = cls(base, vectors, [job.prompt_of_text[row] for row in rows], [job.texts[row] for row in rows])
            hidden, going = group.hidden, list(range(len(rows)))
            while going:
                chosen = dict(zip(going, job.choose(hidden), strict=True))
                going = [i for i in going if chosen[i] not in job.ends]
                for i in going:
                    answers[rows[i]].append(chosen[i])
                going = [i for i in going if len(answers[rows[i]]) < job.max_new_tokens]
                if going:
                    hidden = group.step(going, [chosen[i] for i in going])
            job.progress(len(rows))
        return answers

    @staticmethod
    def groups(lengths: Sequence[int], costs: Sequence[int]) -> Iterator[list[int]]:
        """Which texts to decode together.

        Args:
            lengths: tokens of each text with its prompt.
            costs: tokens of each text with the longest answer.
        """
        return batch_by_tokens(costs)

    @abstractmethod
    def _begin(self) -> Tensor: ...

    @abstractmethod
    def step(self, going: Sequence[int], tokens: Sequence[int]) -> Tensor:
        """`[len(going), H]` after one more token each for some of the texts; the others are over for good."""


class _Pooled(Way):
    """As the server decodes, by the same scheduler: whoever is through makes room for the next text at once."""

    @classmethod
    def answer(cls, job: _Job) -> list[list[int]]:
        base = job.model.base
        prompts = [_Vectors(vectors.detach()) for vectors in job.model.vectors()]
        works = [
            Work(prompts[k] if len(prompts[k].embeddings) else None, list(text), job.max_new_tokens - 1)
            for k, text in zip(job.prompt_of_text, job.texts, strict=True)
        ]
        needs = [work.need for work in works]
        places = min(sum(needs), max(_STEP_TOKENS, *needs)) + sum(
            prompts[k].num_virtual_tokens for k in set(job.prompt_of_text)
        )
        scheduler = PooledScheduler(base, (places + 1) * bytes_per_place(base.model), _STEP_TOKENS)
        scheduler.waiting.extend(works)
        while scheduler.waiting or scheduler.running:
            ended = [(part.work, part.end) for part in scheduler.compute(scheduler.plan()) if part.end is not None]
            if not ended:  # a long text goes on
                continue
            for (work, _), token in zip(ended, job.choose(torch.stack([end[0] for _, end in ended])), strict=True):
                over = token in job.ends
                if not over:
                    work.ids.append(token)
                if over or len(work.ids) - work.text_length == job.max_new_tokens:
                    scheduler.finish(work)
                    job.progress(1)
        return [work.ids[work.text_length :] for work in works]


@dataclass(frozen=True)
class _Vectors:
    """A prompt as it is now, known by its place."""

    embeddings: Tensor

    @property
    def sha256(self) -> str:
        return str(id(self))

    @property
    def num_virtual_tokens(self) -> int:
        return len(self.embeddings)


class _Cached(_Grouped):
    """With the base's own cache or state, whatever it is. No text is padded, which not every base can see past."""

    _NAMES = ("cache", "past_key_values", "cache_params", "state")  # as the classes of Transformers name it

    @staticmethod
    def groups(lengths: Sequence[int], costs: Sequence[int]) -> Iterator[list[int]]:
        for length in sorted(set(lengths)):
            rows = [row for row, own in enumerate(lengths) if own == length]
            for some in batch_by_tokens([costs[row] for row in rows]):
                yield [rows[i] for i in some]

    def _begin(self) -> Tensor:
        self._kept: dict[str, Any] = {}
        self._length = 0
        words = [self._embed(text) for text in self._texts]
        of_text = zip(self._prompt_of_text, words, strict=True)
        vectors = torch.stack([torch.cat([self._prompts[k].to(text.dtype), text]) for k, text in of_text])
        of_row = zip(self._prompt_of_text, self._texts, strict=True)
        return self._compute(vectors, [[NO_TOKEN] * len(self._prompts[k]) + text for k, text in of_row])

    def step(self, going: Sequence[int], tokens: Sequence[int]) -> Tensor:
        ids = [0] * len(self._texts)  # what is over is computed on, and not looked at
        for row, token in zip(going, tokens, strict=True):
            ids[row] = token
        return self._compute(self._embed(ids)[:, None], [[token] for token in ids])[list(going)]

    def _embed(self, ids: Sequence[int]) -> Tensor:
        (tokens,) = to_device([torch.tensor(ids, dtype=torch.long)], self._model.device)
        words: Tensor = self._model.get_input_embeddings()(tokens)
        return words

    def _compute(self, vectors: Tensor, tokens: list[list[int]]) -> Tensor:
        decoder = Decoder.of(self._model)
        positions = {}
        if decoder.takes_positions:  # Bamba's own would begin at 0 at each step
            steps = torch.arange(self._length, self._length + vectors.shape[1], device=vectors.device)
            positions = {"position_ids": steps.expand(len(vectors), -1)}
        ids = torch.tensor(tokens, dtype=torch.long, device=vectors.device)
        output = decoder.run(vectors, ids, use_cache=True, **positions, **self._kept)
        self._length += vectors.shape[1]
        found = dict(output.items())
        name = next((name for name in self._NAMES if found.get(name) is not None), None)
        if name is None:
            raise ValueError("it keeps nothing of what it has computed")
        self._kept = {name: found[name]}
        hidden: Tensor = output.last_hidden_state
        return hidden[:, -1]


class _OneByOne(_Cached):
    """The same for each text alone: RWKV's state of several texts gets mixed up."""

    @staticmethod
    def groups(lengths: Sequence[int], costs: Sequence[int]) -> Iterator[list[int]]:
        yield from ([row] for row in range(len(lengths)))


class _Plain(_Grouped):
    """The concatenation itself, whole for every token."""

    def _begin(self) -> Tensor:
        return self._compute(range(len(self._texts)))

    def step(self, going: Sequence[int], tokens: Sequence[int]) -> Tensor:
        for row, token in zip(going, tokens, strict=True):
            self._texts[row].append(token)
        return self._compute(going)

    def _compute(self, rows: Sequence[int]) -> Tensor:
        texts = [self._texts[row] for row in rows]
        batch = Batch(
            tokens=torch.tensor([token for text in texts for token in text], dtype=torch.long),
            lengths=[len(text) for text in texts],
            prompt_of_text=[self._prompt_of_text[row] for row in rows],
            rows=torch.arange(len(texts)),
            columns=torch.tensor([len(text) - 1 for text in texts]),
        )
        return plain(self._model, self._prompts, batch)


class _DecoderPlain(_Grouped):
    """Of an encoder-decoder: texts are encoded once, the answers decoded anew for every token."""

    def _begin(self) -> Tensor:
        found = list(zip(self._prompt_of_text, map(tuple, self._texts), strict=True))
        self._states, self._seen = encode(self._model, self._prompts, found)
        self._answers = [[start_token(self._model)] for _ in self._texts]
        return self._decode(range(len(self._texts)))

    def step(self, going: Sequence[int], tokens: Sequence[int]) -> Tensor:
        for row, token in zip(going, tokens, strict=True):
            self._answers[row].append(token)
        return self._decode(going)

    def _decode(self, rows: Sequence[int]) -> Tensor:
        given = [torch.tensor([self._answers[row] for row in rows]), torch.tensor(list(rows))]
        ids, index = to_device(given, self._model.device)
        hidden: Tensor = decode(self._model, ids, self._states[index], self._seen[index]).last_hidden_state
        return hidden[:, -1]


class _DecoderCached(_DecoderPlain):
    """The same with the decoder's own cache. What is over is computed on, and not looked at."""

    def _decode(self, rows: Sequence[int]) -> Tensor:
        if not hasattr(self, "_cache"):
            self._cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        (last,) = to_device([torch.tensor([answer[-1:] for answer in self._answers])], self._model.device)
        name = (
            "cache" if "cache" in inspect.signature(self._model.get_decoder().forward).parameters else "past_key_values"
        )
        options: dict[str, Any] = {name: self._cache, "use_cache": True}
        hidden: Tensor = decode(self._model, last, self._states, self._seen, **options).last_hidden_state
        return hidden[list(rows), -1]


_WAYS: dict[str, type[_Grouped]] = {
    "cached": _Cached,
    "one_by_one": _OneByOne,
    "plain": _Plain,
    "decoder_cached": _DecoderCached,
    "decoder_plain": _DecoderPlain,
}


_ways: weakref.WeakKeyDictionary[PreTrainedModel, dict[type[_Grouped], str]] = weakref.WeakKeyDictionary()


@torch.no_grad()
def find_way(model: PromptedModel) -> type[Way]:
    """The fastest way that is exact for the base: as the packed route where `model` takes it, else another.

    A probe of a few tokens runs once for each base and way; whether free text has to be computed anew for each token
    is logged.

    Raises:
        SoftPromptError: the base changes its logits in a way that softprompt does not know, or does not generate.
    """
    base = model.base.model
    if base.training:
        base.eval()
    if model.logits_route == "packed" and not objection_to_pool(base):
        return _Pooled
    if not family_of(base).ways:
        raise SoftPromptError(f"{type(base).__name__} is an encoder: it does not generate")
    known = _ways.setdefault(base, {})
    *ways, plainest = (_WAYS[name] for name in family_of(base).ways)
    for way in ways:
        if way not in known:
            known[way] = _objection(base, way, plainest)
            if known[way] and way is ways[-1]:
                logger.warning(
                    "%s computes free text anew for every token, which is slow (its cache: %s)",
                    type(base).__name__,
                    known[way],
                )
        if not known[way]:
            return way
    return plainest


def _objection(model: PreTrainedModel, way: type[_Grouped], plainest: type[_Grouped]) -> str:
    """What keeps `way` from the logits of the plainest; "" for nothing. Two texts share a prompt."""
    count = model.config.get_text_config().vocab_size
    ids = torch.randint(0, count, (19,), generator=torch.Generator().manual_seed(0))
    vectors = model.get_input_embeddings()(ids[:5].to(model.device)).detach()
    texts, tokens = [ids[5:9].tolist(), ids[9:12].tolist(), ids[12:16].tolist()], ids[16:].tolist()
    groups = list(way.groups([6] * 3, [6] * 3))

    def answer(way: type[_Grouped]) -> Tensor:
        states = []
        for rows in groups:
            decoder = way(model, [vectors[:2], vectors[2:]], [row % 2 for row in rows], [texts[row] for row in rows])
            going = list(range(len(rows)))
            states += [decoder.hidden, decoder.step(going, [tokens[row] for row in rows])]
            states.append(decoder.step(going[-2:], tokens[-2:][-len(rows) :]))
        return logits(model, torch.cat(states))

    return objection_to_logits(model, lambda: answer(way), lambda: answer(plainest))
