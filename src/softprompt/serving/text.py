"""Tokens become text while they come: decoding piece by piece, and the strings at which an answer stops.

Owns what text is certain when, whatever the borders between tokens. Knows nothing of engines, requests or HTTP.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from transformers.convert_slow_tokenizer import bytes_to_unicode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# How a decoder shows bytes that are no character, or not yet one.
UNDECODABLE = "\ufffd"
# A byte in a vocabulary of pieces (SentencePiece's).
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
# Tokens of the text before an answer that decide how its first token is written.
_CONTEXT = 4


class Detokenizer:
    """Decodes an answer token by token. The pieces together are the text that decoding all tokens at once gives.

    Special tokens are left out, and white space stays as it is.

    Args:
        tokenizer: the base's.
        context: the ids before the answer: a tokenizer may write a word's space only where something stands before it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, context: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._ids = list(context[-_CONTEXT:])
        # Decoded is what lies between `_start` and `_given` (given already, kept for its effect on what follows), and
        # what comes after.
        self._start, self._given = 0, len(self._ids)

    def add(self, token: int) -> str:
        """The text that `token` completes; empty while a character's bytes are not all there."""
        self._ids.append(token)
        fresh, after = self._fresh()
        if not fresh or after.endswith(UNDECODABLE):
            return ""
        self._start, self._given = self._given, len(self._ids)
        return fresh

    def end(self) -> str:
        """What was held back: bytes that never became a character."""
        return self._fresh()[0]

    def _fresh(self) -> tuple[str, str]:
        """What is new in the text of the last ids, and that text."""
        before, after = self._decode(self._ids[self._start : self._given]), self._decode(self._ids[self._start :])
        while before.endswith(UNDECODABLE) and not after.startswith(before):
            before = before[:-1]  # the context ends within a character, which is new as a whole
        return after[len(before) :], after

    def _decode(self, ids: list[int]) -> str:
        text = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return cast("str", text)


class StopStrings:
    """Cuts a growing text before the stop string that is complete first.

    Text that may turn out to be the beginning of a stop string is held back.

    Args:
        stops: the strings, none of them empty.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""

    def add(self, text: str) -> tuple[str, bool]:
        """The text that is certain now, and whether a stop string has come."""
        self._held += text
        ends = [(start + len(stop), start) for stop in self._stops if (start := self._held.find(stop)) >= 0]
        if ends:
            certain, self._held = self._held[: min(ends)[1]], ""
            return certain, True
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        cut = len(self._held) - keep
        certain, self._held = self._held[:cut], self._held[cut:]
        return certain, False

    def end(self) -> str:
        """What was held back and began no stop string after all."""
        certain, self._held = self._held, ""
        return certain


class TokenTexts:
    """What single tokens read, for log-probabilities.

    Args:
        tokenizer: the base's.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        # A token decoded alone may lose the space that it has after another one.
        self._anchor: list[int] = tokenizer("a", add_special_tokens=False)["input_ids"][-1:]
        self._before = len(self._decode(self._anchor))
        # The letters by which a vocabulary of bytes writes them (GPT-2's).
        self._bytes = {letter: byte for byte, letter in bytes_to_unicode().items()}

    def __getitem__(self, token: int) -> str:
        """The token's text, special tokens by name; `UNDECODABLE` stands for bytes that are no whole character."""
        return self._decode([*self._anchor, token])[self._before :]

    def bytes_of(self, token: int) -> list[int] | None:
        """The token's bytes, those of half a character too; None where the vocabulary does not tell them."""
        text = self[token]
        if UNDECODABLE not in text:
            return list(text.encode())
        piece = cast("str", self._tokenizer.convert_ids_to_tokens(token))
        if byte := _BYTE.fullmatch(piece):
            return [int(byte[1], 16)]
        found = [self._bytes.get(letter) for letter in piece]
        return None if None in found else cast("list[int]", found)

    def _decode(self, ids: list[int]) -> str:
        text = self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return cast("str", text)


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` begin `stop`, which is not in it."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
