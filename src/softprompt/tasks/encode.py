"""Rows as token ids: where a tokenizer meets a task.

Owns what is encoded together, what ends a target, and how a text too long for its room is cut. Knows nothing
of prompts (only the room that they leave), tensors or models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from softprompt.errors import SoftPromptError
from softprompt.tasks.rows import Row
from softprompt.tasks.special import Part, SpecialTokens
from softprompt.tasks.task import LABEL_COLUMN, Task
from softprompt.text import shown

if TYPE_CHECKING:
    from softprompt.bases.base import Base


@dataclass(frozen=True)
class Encoded:
    """Rows as token ids, in the rows' order.

    Attributes:
        input_ids: Each text's ids, special tokens at the start included.
        target_ids: Each target's ids; None where the rows came without targets.
        label: Each row's index into the task's labels; None for free text or without targets.
        references: Each target as text; None for classification or without targets.
        cut: Of each text whether it was cut to fit.
        with_special: How many rows have the text of a special token in a value, where it is text.
    """

    input_ids: list[list[int]]
    target_ids: list[list[int]] | None
    label: list[int] | None
    references: list[str] | None
    cut: list[bool]
    with_special: int = 0

    @property
    def truncated(self) -> int:
        """How many texts were cut."""
        return sum(self.cut)


class Encoder:
    """Encodes a task's rows with a base's tokenizer.

    A text is encoded as the tokenizer does it by itself, with the special tokens that it puts at the start;
    those that it puts at the end (as T5's and BERT's do) are left out, since the target follows. Those that the
    template itself begins with do not come twice. In a column's value no token is special: `</s>` there is text.

    A target's ids are what follows the template's last words when both are encoded together, so that text
    and target read as one string. Where the two fuse into one token ("Label: " and "good", if " good" is one),
    and where the template ends with a column, the target is encoded after a line end instead, and where that
    fuses too, alone. Alone, a SentencePiece tokenizer may put a space before it, which the string has not.

    The end-of-text token ends every target of free text. Labels get it only where one label's ids begin
    another's, and then all of them do: the shorter label could otherwise never be the less likely.

    Args:
        base: Whose tokenizer and context count.
        task: The task.
        virtual_tokens: P, those that the prompt takes of the context.
        max_length: The most tokens of text and target together, where the context has more room.

    Attributes:
        label_ids: Each label's target ids; None for free text.
        max_tokens: Room for text and target together; None: unbounded.

    Raises:
        SoftPromptError: Two labels have the same ids, a label has none, or an end-of-text token is needed
            and the tokenizer has none.
    """

    def __init__(self, base: Base, task: Task, *, virtual_tokens: int = 0, max_length: int | None = None) -> None:
        limits = [limit for limit in (base.room(virtual_tokens), max_length) if limit is not None]
        self.tokenizer, self.task, self.max_tokens = base.tokenizer, task, min(limits, default=None)
        self._special = SpecialTokens(base.tokenizer)
        self.label_ids = None if task.labels is None else self._encode_labels(task.labels)

    def encode_text(self, columns: Mapping[str, str], *, reserve: int = 0) -> list[int]:
        """The ids of one row's text, cut where it must be; see `encode_rows`."""
        return self.encode_rows([Row(dict(columns))], reserve=reserve).input_ids[0]

    def encode_rows(self, rows: Sequence[Row], *, reserve: int = 0) -> Encoded:
        """Encode rows, cutting the texts that are too long for `max_tokens`.

        The columns' values are cut at their ends, the longest first, until text and target fit; the
        template's own words and the target never are. For classification there is room for the longest label
        whether or not the row has one, so that training, evaluation and prediction cut alike.

        Args:
            rows: From `load_rows` or `rows_from`; all with targets, or none.
            reserve: Tokens to keep free after each text where its target is shorter: those to be generated.

        Raises:
            SoftPromptError: A text has no tokens, or does not fit with its values cut to nothing.
        """
        targets = self._encode_row_targets(rows)
        if self.label_ids is not None:
            reserve = max(reserve, *map(len, self.label_ids))
        parts = [self.task.parts(row.columns) for row in rows]
        input_ids = self._encode_texts(parts)
        answers = [[] if row.target is None else self.task.target_parts(row.target) for row in rows]
        with_special = sum(any(map(self._special.in_values, pair)) for pair in zip(parts, answers, strict=True))
        cut = [False] * len(rows)
        for i, row in enumerate(rows):
            if self.max_tokens is not None:
                room = self.max_tokens - max(reserve, len(targets[i]) if targets else 0)
                if len(input_ids[i]) > room:
                    input_ids[i] = self._cut(row, input_ids[i], room)
                    cut[i] = True
            if not input_ids[i]:
                raise SoftPromptError(f"{row.place}: the tokenizer finds no tokens in {shown(row.columns)}")
        label = references = None
        if targets is not None and self.label_ids is not None:
            label = [row.label for row in rows if row.label is not None]
        elif targets is not None:
            references = [row.target for row in rows if row.target is not None]
        return Encoded(input_ids, targets, label, references, cut, with_special)

    def _encode_row_targets(self, rows: Sequence[Row]) -> list[list[int]] | None:
        if self.label_ids is not None:
            labels = [row.label for row in rows if row.label is not None]
            return [list(self.label_ids[label]) for label in labels] if len(labels) == len(rows) else None
        texts = [row.target for row in rows if row.target is not None]
        if len(texts) < len(rows):
            return None
        end = self._end_of_text("free text")
        return [ids + end for ids in self._encode_targets([self.task.target_parts(text) for text in texts])]

    def _encode_labels(self, labels: Sequence[str]) -> list[list[int]]:
        rendered = [self.task.render_target({LABEL_COLUMN: label}) for label in labels]
        found = self._encode_targets([[(target, False)] for target in rendered])
        owners: dict[tuple[int, ...], str] = {}
        for label, ids in zip(labels, found, strict=True):
            if not ids:
                raise SoftPromptError(f"task.labels: the tokenizer finds no tokens in {shown(label)}")
            other = owners.setdefault(tuple(ids), label)
            if other != label:
                raise SoftPromptError(
                    f"task.labels: {shown(other)} and {shown(label)} are the same tokens to this base; rename one"
                )
        # In sorted order a list comes right before the lists that it begins.
        if any(after[: len(before)] == before for before, after in pairwise(sorted(found))):
            end = self._end_of_text("a label that begins another one")
            found = [ids + end for ids in found]
        return found

    def _end_of_text(self, need: str) -> list[int]:
        end: Any = self.tokenizer.eos_token_id
        if end is None:
            raise SoftPromptError(f"the tokenizer has no end-of-text token (eos_token), which {need} needs")
        return [int(end)]

    def _encode_targets(self, targets: Sequence[Sequence[Part]]) -> list[list[int]]:
        found: list[list[int]] = [[] for _ in targets]
        for context in dict.fromkeys([self.task.suffix or "\n", "\n", ""]):
            pending = [i for i, ids in enumerate(found) if not ids]
            before = (context, False)
            head = self._ids([[before]])[0]
            for i, joint in zip(pending, self._ids([[before, *targets[i]] for i in pending]), strict=True):
                if joint[: len(head)] == head:
                    found[i] = joint[len(head) :]
        return found

    def _encode_texts(self, texts: Sequence[Sequence[Part]]) -> list[list[int]]:
        return [self._special.with_start(ids) for ids in self._ids(texts)]

    def _ids(self, texts: Sequence[Sequence[Part]]) -> list[list[int]]:
        """Ids, none added by the tokenizer. `verbose=False`: no warning about lengths that are cut right after."""
        if not texts:
            return []
        joined = ["".join(text for text, _ in parts) for parts in texts]
        ids: list[list[int]] = self.tokenizer(joined, add_special_tokens=False, verbose=False)["input_ids"]
        for i, parts in enumerate(texts):
            if self._special.in_values(parts):
                ids[i] = self._special.encode(parts)
        return ids

    def _cut(self, row: Row, ids: list[int], room: int) -> list[int]:
        values = {name: row.columns[name] for name in self.task.columns}
        while len(ids) > room:
            shorter = self._shorten(values, len(ids) - room)
            if shorter == values:
                raise SoftPromptError(
                    f"{row.place}: the template alone takes {len(ids)} tokens, but the target leaves it {room} "
                    f"of {self.max_tokens}; shorten the template or use fewer virtual tokens"
                )
            values = shorter
            ids = self._encode_texts([self.task.parts(values)])[0]
        return ids

    def _shorten(self, values: Mapping[str, str], surplus: int) -> dict[str, str]:
        """Take `surplus` tokens off the ends of the longest values; unchanged where none has a token left."""
        starts = {name: self._special.starts(value) for name, value in values.items()}
        lengths = {name: len(found) for name, found in starts.items()}
        level = _level([lengths[name] for name in self.task.placeholders], surplus)
        shorter = dict(values)
        for name, value in values.items():
            if lengths[name] > level:
                shorter[name] = value[: starts[name][level]]
        return shorter


def _level(lengths: Sequence[int], surplus: int) -> int:
    """The length that the longest must be cut to for all of them to lose `surplus` together, at least 0."""
    descending = [*sorted(lengths, reverse=True), 0]
    for count in range(1, len(descending)):
        level = (sum(descending[:count]) - surplus) // count
        if level >= descending[count]:
            return level
    return 0
