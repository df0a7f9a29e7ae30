"""Special tokens in texts: those of a template are tokens, those that stand in a row's value or a message are text.

`</s>` or `<|im_end|>` in a review is what somebody wrote, not the end of anything. Owns how such a text is encoded;
all others are encoded by the tokenizer as a whole, as ever. Knows nothing of tasks, rows or requests.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from functools import cached_property
from itertools import groupby, takewhile
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# A piece of a text, and whether it is a value, in which no token is special.
Part = tuple[str, bool]

# Stands before a number for a special token. A text cannot name it: it begins with what no text holds (a noncharacter
# of Unicode) and is drawn anew in each process.
_MARK = f"\ufdd0{secrets.token_hex(8)}"
_BARRIER = f"{_MARK}|"


class SpecialTokens:
    """A tokenizer's special tokens, and how to encode texts in which some of them are only text.

    Args:
        tokenizer: it is not changed.

    Attributes:
        start: the ids that the tokenizer puts before a text.
        end: those that it puts after it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        self._contents = sorted(added | set(tokenizer.all_special_tokens), key=lambda text: (-len(text), text))
        self._pattern = re.compile("|".join(map(re.escape, self._contents)) or r"(?!)")
        self._numbers = {text: number for number, text in enumerate(self._contents)}
        probe = tokenizer("a", return_special_tokens_mask=True)
        marked = zip(probe["input_ids"], probe["special_tokens_mask"], strict=True)
        pairs = list(marked)
        self.start: list[int] = [token for token, _ in takewhile(lambda pair: pair[1], pairs)]
        self.end: list[int] = [token for token, _ in takewhile(lambda pair: pair[1], reversed(pairs))][::-1]

    def with_start(self, ids: list[int]) -> list[int]:
        """`ids` behind what the tokenizer puts before a text, which a text that begins with it has already."""
        return ids if ids[: len(self.start)] == self.start else self.start + ids

    def in_values(self, parts: Sequence[Part]) -> bool:
        """Whether a special token's text stands in a value, or comes about where one meets its surroundings."""
        whole = "".join(text for text, _ in parts)
        return self._pattern.search(whole) is not None and self._mark(whole) != self._marked(parts)

    def mark_values(self, value: str) -> str:
        """`value` with a mark for each special token's text, to be put through code that is not ours; see `unmark`."""
        return self._mark(value)

    def unmark(self, text: str) -> list[Part]:
        """What became of marked values: the marks are values, all else is not."""
        pieces = re.split(rf"{_MARK}(\d+);", text)
        return [(self._contents[int(one)], True) if i % 2 else (one, False) for i, one in enumerate(pieces)]

    def encode(self, parts: Sequence[Part]) -> list[int]:
        """The ids of the text that the parts make, no special tokens added: only those outside values are special."""
        if not self._tokenizer.is_fast:
            return self._encode_slowly(parts)
        text = self._marked(parts)
        ids = self._encode(text)
        if ids is None:  # the model itself knows such tokens (Unigram): they are kept from coming together
            ids = self._encode(self._pattern.sub(lambda found: f"{found[0][0]}{_BARRIER}{found[0][1:]}", text))
        assert ids is not None
        return ids

    def starts(self, value: str) -> list[int]:
        """Where in a value each of its tokens starts, in characters; evenly spread where the tokenizer does not say."""
        if not self._tokenizer.is_fast:
            count = len(self._split(value))
            return [len(value) * i // count for i in range(count)]
        fast: Any = self._tokenizer
        if self._pattern.search(value) is None:
            offsets = fast(value, add_special_tokens=False, return_offsets_mapping=True, verbose=False).offset_mapping
        else:
            offsets = self._splitting.encode(value, add_special_tokens=False).offsets
        return [start for start, _ in offsets]

    def _mark(self, text: str) -> str:
        return self._pattern.sub(lambda found: f"{_MARK}{self._numbers[found[0]]};", text)

    def _marked(self, parts: Sequence[Part]) -> str:
        joined = [
            (is_value, "".join(text for text, _ in some)) for is_value, some in groupby(parts, lambda part: part[1])
        ]
        return "".join(text if is_value else self._mark(text) for is_value, text in joined)

    @cached_property
    def _splitting(self) -> Any:
        """A copy of the tokenizer's backend that takes marks for special tokens, and nothing else."""
        from tokenizers import AddedToken, Tokenizer

        fast: Any = self._tokenizer
        copy = Tokenizer.from_str(fast.backend_tokenizer.to_str())
        copy.no_truncation()
        copy.no_padding()
        copy.encode_special_tokens = True
        known = {token.content: token for token in fast.added_tokens_decoder.values()}
        marks = []
        for number, content in enumerate(self._contents):
            like = known.get(content, AddedToken(content))
            sides = {"lstrip": like.lstrip, "rstrip": like.rstrip, "single_word": like.single_word}
            marks.append(AddedToken(f"{_MARK}{number};", normalized=False, special=False, **sides))
        copy.add_tokens([*marks, AddedToken(_BARRIER, normalized=False, special=False)])
        return copy

    @cached_property
    def _meaning(self) -> dict[int, int | None]:
        """The ids of the copy's marks: the special token's, or None for the barrier."""
        meant: dict[int, int | None] = {
            self._splitting.token_to_id(f"{_MARK}{number};"): self._id(content)
            for number, content in enumerate(self._contents)
        }
        return meant | {self._splitting.token_to_id(_BARRIER): None}

    def _encode(self, text: str) -> list[int] | None:
        """None where a special token has come about that the text does not mark, and nothing keeps it apart."""
        meaning = self._meaning
        found = self._splitting.encode(text, add_special_tokens=False).ids
        special = {token for token in meaning.values() if token is not None} - {self._tokenizer.unk_token_id}
        if _BARRIER not in text and special & set(found):
            return None
        ids = [meaning.get(token, token) for token in found]
        return [token for token in ids if token is not None]

    def _encode_slowly(self, parts: Sequence[Part]) -> list[int]:
        """Piece by piece between the special tokens, as tokenizers in Python do it themselves."""
        pieces = self.unmark(self._marked(parts))  # what stands between the special tokens outside values, and these
        known = {token.content: token for token in self._tokenizer.added_tokens_decoder.values()}
        for i in range(1, len(pieces), 2):
            if (token := known.get(pieces[i][0])) is not None:  # it may take the spaces beside it along
                pieces[i - 1] = (pieces[i - 1][0].rstrip() if token.lstrip else pieces[i - 1][0], False)
                pieces[i + 1] = (pieces[i + 1][0].lstrip() if token.rstrip else pieces[i + 1][0], False)
        ids: list[int] = []
        for text, is_special in pieces:
            if is_special:
                ids.append(self._id(text))
            elif text:
                ids += self._split(text)
        return ids

    def _id(self, content: str) -> int:
        return cast("int", self._tokenizer.convert_tokens_to_ids(content))

    def _split(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)[
            "input_ids"
        ]
        return ids
