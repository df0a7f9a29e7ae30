"""Generated text: what a request asks of the engine, and the engine's tokens as pieces of text.

Owns encoding, the lengths that fit, and which text and log-probabilities belong together. Knows nothing of names, HTTP
or OpenAI's shapes.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

from softprompt.bases.base import Base
from softprompt.errors import SoftPromptError
from softprompt.prompts.prompt import SoftPrompt
from softprompt.serving.engine import Engine, Sampling, Token
from softprompt.serving.text import Detokenizer, StopStrings, TokenTexts
from softprompt.tasks.special import SpecialTokens


class ContextError(SoftPromptError):
    """Text and answer do not fit the context."""


@dataclass(frozen=True)
class Scored:
    """A token with its log-probability.

    Attributes:
        text: what it reads.
        offset: where its text begins in the answer, in characters.
        logprob: before all processing; None for a text's first token where nothing stands before it.
        top: the likeliest tokens at its place: text, log-probability and bytes, the likeliest first.
        bytes: of the token, which may be a part of a character; None where the vocabulary does not tell them.
    """

    text: str
    offset: int
    logprob: float | None
    top: list[tuple[str, float, list[int] | None]]
    bytes: list[int] | None


@dataclass(frozen=True)
class Piece:
    """The next part of an answer.

    Attributes:
        choice: which answer it belongs to.
        text: what is new.
        new_tokens: how many tokens were computed for it.
        scored: the tokens whose text begins in it; empty unless asked for.
        finish: why it is the last one; None where it isn't.
    """

    choice: int
    text: str
    new_tokens: int
    scored: list[Scored] = field(default_factory=list)
    finish: Literal["stop", "length"] | None = None


class Writer:
    """Writes answers by an engine.

    Args:
        engine: the engine; its base's tokenizer is used.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._base: Base = engine.base
        self._special = SpecialTokens(engine.base.tokenizer)
        self._token_texts = TokenTexts(engine.base.tokenizer)

    def encode(self, text: str) -> list[int]:
        """The tokenizer's own encoding of a text, special tokens in it and as the tokenizer adds them.

        What it puts before a text does not come twice where the text begins with it.
        """
        ids: list[int] = self._base.tokenizer(text, verbose=False)["input_ids"]
        start = self._special.start
        return self._special.with_start(ids[len(start) :]) if ids[: len(start)] == start else ids

    def encode_chat(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """A conversation in the base's chat template, ready for the assistant's answer.

        The template's special tokens are tokens; the text of one in a message is text.

        Raises:
            SoftPromptError: the base has no chat template, or it refuses these messages.
        """
        tokenizer = self._base.tokenizer
        if not tokenizer.chat_template:
            raise SoftPromptError(f"base '{self._base.name}' has no chat template: use /v1/completions")
        marked = [{**message, "content": self._special.mark_values(message["content"])} for message in messages]
        is_marked = marked != list(messages)
        try:
            found: Any = tokenizer.apply_chat_template(
                marked, add_generation_prompt=True, tokenize=not is_marked, return_dict=False
            )
        except Exception as error:  # whatever the template, which is code, stumbles over
            raise SoftPromptError(f"messages: the base's chat template refuses them: {error}") from None
        return self._special.encode(self._special.unmark(found)) if is_marked else cast("list[int]", found)

    def decode(self, ids: Sequence[int]) -> str:
        """What token ids read, special tokens left out."""
        text = self._base.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return cast("str", text)

    def check_ids(self, ids: Sequence[int]) -> None:
        """Refuse ids that are no tokens.

        Raises:
            SoftPromptError: naming the first.
        """
        unknown = next((token for token in ids if token >= self._base.vocab_size), None)
        if unknown is not None:
            raise SoftPromptError(f"prompt: token {unknown}: the base's vocabulary has {self._base.vocab_size} ids")

    def bad_words(self, words: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """The tokens of words that must not come, each as it is within a word and as it is after a space."""
        forms = [form for word in words for form in (word, f" {word.lstrip()}")]
        found = [self._base.tokenizer(form, add_special_tokens=False)["input_ids"] for form in forms]
        return tuple(dict.fromkeys(tuple(ids) for ids in found if ids))

    def room(self, prompt: SoftPrompt | None, ids: Sequence[int]) -> int | None:
        """How many new tokens fit the context after `[prompt | ids]`; None: any number.

        Raises:
            ContextError: not even one.
        """
        virtual = 0 if prompt is None else prompt.num_virtual_tokens
        context = self._base.room(virtual)
        if context is None:
            return None
        if len(ids) >= context:
            raise ContextError(
                f"This model's maximum context length is {context} tokens ({self._base.max_positions} less {virtual} "
                f"virtual ones), but the text has {len(ids)} tokens and the answer takes at least one: shorten the text"
            )
        return context - len(ids)

    def check(self, prompt: SoftPrompt | None, ids: Sequence[int], max_tokens: int) -> None:
        """Check that there is something to predict from, and that text and answer fit the context.

        Raises:
            ContextError: they don't; the line says how long they are.
            SoftPromptError: neither a prompt nor a text.
        """
        if prompt is None and not ids:
            raise SoftPromptError("prompt: the text has no tokens, and the base has no prompt before it")
        room = self.room(prompt, ids)
        if room is not None and max_tokens > room:
            virtual = 0 if prompt is None else prompt.num_virtual_tokens
            raise ContextError(
                f"This model's maximum context length is {room + len(ids)} tokens ({self._base.max_positions} less "
                f"{virtual} virtual ones), but the text has {len(ids)} tokens and max_tokens is {max_tokens}: at most "
                f"{room} new tokens fit"
            )

    async def weigh(self, prompt: SoftPrompt | None, ids: Sequence[int], top: int) -> list[Scored]:
        """The log-probabilities of a text's own tokens.

        Raises: as `Engine.weigh`.
        """
        decoder, decoded, found = Detokenizer(self._base.tokenizer), 0, []
        for token, (logprob, tops) in zip(ids, await self._engine.weigh(prompt, ids, top), strict=True):
            found.append(self._scored(token, decoded, logprob, tops))
            decoded += len(decoder.add(token))
        return found

    async def write(
        self, choice: int, prompt: SoftPrompt | None, ids: Sequence[int], sampling: Sampling, stops: Sequence[str]
    ) -> AsyncGenerator[Piece, None]:
        """One answer, piece by piece. The last piece, and only that one, says why it ends.

        Closing the generator cancels the request.

        Args:
            choice: what the pieces are marked with.
            prompt: what stands before the text; None: nothing.
            ids: the text.
            sampling: how to choose the tokens.
            stops: strings at which to stop; they are not part of the answer.

        Raises: as `Engine.generate`.
        """
        decoder = Detokenizer(self._base.tokenizer, ids)
        stop = StopStrings(stops)
        pending: list[tuple[int, Token]] = []
        decoded = given = computed = 0
        tokens = cast("AsyncGenerator[Token, None]", self._engine.generate(prompt, ids, sampling))
        async with aclosing(tokens):
            async for token in tokens:
                computed += 1
                fresh = ""
                if token.finish != "stop":
                    pending.append((decoded, token))
                    fresh = decoder.add(token.id)
                if token.finish is not None:
                    fresh += decoder.end()
                decoded += len(fresh)
                text, stopped = stop.add(fresh)
                if token.finish is not None and not stopped:
                    text += stop.end()
                finish: Literal["stop", "length"] | None = "stop" if stopped else token.finish
                given += len(text)
                # A token belongs to the text in which its own begins. The last ones may have no text at all.
                whole = finish is not None and not stopped
                ready = [pair for pair in pending if whole or pair[0] < given]
                if text or finish is not None:
                    pending = pending[len(ready) :]
                    yield Piece(choice, text, computed, self._score(ready), finish)
                    computed = 0
                if finish is not None:
                    return

    def _score(self, tokens: Sequence[tuple[int, Token]]) -> list[Scored]:
        return [
            self._scored(token.id, offset, token.logprob, token.top)
            for offset, token in tokens
            if token.logprob is not None
        ]

    def _scored(self, token: int, offset: int, logprob: float | None, top: Sequence[tuple[int, float]]) -> Scored:
        texts = self._token_texts
        likeliest = [(texts[other], one, texts.bytes_of(other)) for other, one in top]
        return Scored(texts[token], offset, logprob, likeliest, texts.bytes_of(token))


def choices(sampling: Sampling, count: int) -> list[Sampling]:
    """`count` choices for one text: where a seed is given, each has its own, the first that one."""
    if sampling.seed is None:
        return [sampling] * count
    return [replace(sampling, seed=(sampling.seed + i) % 2**63) for i in range(count)]
