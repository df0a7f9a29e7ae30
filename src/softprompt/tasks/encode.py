"""Rows as token ids.

Owns how a text too long for its room is cut. Knows nothing of prompts (only the room that they leave), tensors or
models.
"""

from __future__ import annotations

import logging
import pkgutil
import time
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, overload

from softprompt.errors import SoftPromptError
from softprompt.tasks.answers import KINDS
from softprompt.tasks.answers.answer import Answer
from softprompt.tasks.rows import Row
from softprompt.tasks.task import Task
from softprompt.tasks.tokens import TaskTokenizer
from softprompt.text import shown

if TYPE_CHECKING:
    from softprompt.bases.base import Base


logger = logging.getLogger(__name__)
_AT_ONCE = 4096  # rows
_SILENCE = 5  # seconds without a line


class Ids(Sequence[list[int]]):
    """Token ids of many texts, four bytes for each, that are lists when they are looked at."""

    def __init__(self, texts: Iterable[Sequence[int]] = ()) -> None:
        self._flat, self._ends = array("i"), array("q", [0])
        self.extend(texts)

    def extend(self, texts: Iterable[Sequence[int]]) -> None:
        """Add texts at the end."""
        for ids in texts:
            self._flat.extend(ids)
            self._ends.append(len(self._flat))

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, place: int) -> list[int]: ...
    @overload
    def __getitem__(self, place: slice) -> list[list[int]]: ...
    def __getitem__(self, place: int | slice) -> list[int] | list[list[int]]:
        found = range(len(self))[place]
        if isinstance(found, range):
            return [self[i] for i in found]
        return self._flat[self._ends[found] : self._ends[found + 1]].tolist()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]  # texts can be added


@dataclass(frozen=True)
class Encoded:
    """Rows as token ids, in the rows' order.

    Attributes:
        input_ids: Each text's ids, special tokens at the start included.
        target_ids: Each target's ids; None where the rows came without targets.
        gold: Each row's right answer, see `Answer.gold`; None without targets.
        cut: Of each text whether it was cut to fit.
        places: The tokens of each text at which the head is read; None: the texts are read as wholes.
        rows: Whose texts they are; where texts are read in windows these, each a row.
        owners: Of each text its row, counted from 0.
        with_special: How many rows have the text of a special token in a value, where it is text.
    """

    input_ids: Ids
    target_ids: Ids | None
    gold: list[Any] | None
    cut: list[bool]
    places: Ids | None = None
    rows: Sequence[Row] = ()
    owners: Sequence[int] = ()
    with_special: int = 0
    learned: Callable[..., list[int]] | None = None

    def example(self, row: int) -> dict[str, list[int]]:
        """A row as it is learned: `ids` of its text and target, and `labels`, see `Answer.learned`.

        Raises:
            SoftPromptError: the rows came without targets.
        """
        if self.target_ids is None or self.gold is None or self.learned is None:
            raise SoftPromptError("rows without targets cannot be learned from")
        text, target = self.input_ids[row], self.target_ids[row]
        places = None if self.places is None else self.places[row]
        return {"ids": text + target, "labels": self.learned(text, target, self.gold[row], places)}

    @property
    def truncated(self) -> int:
        """How many texts were cut."""
        return sum(self.cut)


def check_kind(base: Base, kind: str) -> None:
    """Refuse a kind of answer that a base cannot give.

    Raises:
        SoftPromptError: naming what it can.
    """
    given = {name for name in ("words", "states") if getattr(base.family, name)} | {None}
    if KINDS[kind].needs not in given:
        what = "says no words" if KINDS[kind].needs == "words" else "gives no states of a text's tokens"
        can = [name for name, one in KINDS.items() if one.needs in given]
        raise SoftPromptError(
            f"base {base.name!r} ({base.model.config.model_type}) {what}: task.answer can be {', '.join(can)}, "
            f"not {kind}"
        )


class Encoder:
    """Encodes a task's rows with a base's tokenizer; see `TaskTokenizer`, and `Answer` for what its targets are.

    Args:
        base: Whose tokenizer and context count.
        task: The task.
        virtual_tokens: P, those that the prompt takes of the context.
        max_length: The most tokens of text and target together, where the context has more room.

    Attributes:
        answer: The kind of answer that the task has.
        max_tokens: Room for text and target together; None: unbounded.

    Raises:
        SoftPromptError: The labels cannot be told apart, or the tokenizer lacks what they need.
    """

    def __init__(self, base: Base, task: Task, *, virtual_tokens: int = 0, max_length: int | None = None) -> None:
        limits = [limit for limit in (base.room(virtual_tokens), max_length) if limit is not None]
        self.task, self.max_tokens = task, min(limits, default=None)
        self._tokens = TaskTokenizer(base.tokenizer, task, apart=base.family.apart)
        check_kind(base, task.kind)
        kind: type[Answer] = pkgutil.resolve_name(KINDS[task.kind].where)
        self.answer = kind(self._tokens)

    def encode_text(self, columns: Mapping[str, str], *, reserve: int = 0) -> list[int]:
        """The ids of one row's text, cut where it must be; see `encode_rows`."""
        return self.encode_rows([Row(dict(columns))], reserve=reserve).input_ids[0]

    def encode_rows(self, rows: Sequence[Row], *, reserve: int = 0, whole: bool = False) -> Encoded:
        """Encode rows, cutting the texts that are too long for `max_tokens`.

        The columns' values are cut at their ends, the longest first, until text and target fit; the
        template's own words and the target never are.

        Args:
            rows: From `load_rows` or `rows_from`; all with targets, or none.
            reserve: Tokens to keep free after each text where its target is shorter: those to be generated.
            whole: Where the kind of answer reads windows, all windows of each row in place of the one that is learned.

        Raises:
            SoftPromptError: A text has no tokens, or does not fit with its values cut to nothing.
        """
        given, owners = rows, list(range(len(rows)))
        if self.answer.in_windows and whole:
            every = [self.answer.windows(row, self.max_tokens) for row in rows]
            rows, owners = [one for some in every for one in some], [i for i, some in enumerate(every) for _ in some]
        elif self.answer.in_windows:
            rows = [self.answer.learned_window(row, self.max_tokens) for row in rows]
        found = Encoded(Ids(), Ids(), None, [], rows=rows, owners=owners)
        said = time.monotonic()
        for start in range(0, max(1, len(rows)), _AT_ONCE):  # what a tokenizer gives is large
            found = self._with_more(found, rows[start : start + _AT_ONCE], max(reserve, self.answer.reserve))
            if time.monotonic() - said > _SILENCE:
                said = time.monotonic()
                logger.info("encoded %s of %s rows", f"{len(found.input_ids):,}", f"{len(rows):,}")
        if found.target_ids is None:
            return found
        return replace(found, gold=self.answer.gold(given) if whole else self.answer.learned_gold(rows))

    def _with_more(self, found: Encoded, rows: Sequence[Row], reserve: int) -> Encoded:
        """What was encoded before, with more rows."""
        targets = self.answer.targets(rows)
        parts = [self.task.parts(row.columns) for row in rows]
        input_ids = self._tokens.texts(parts)
        answers = [[] if row.target is None else self.task.target_parts(row.target) for row in rows]
        in_values = self._tokens.special.in_values
        with_special = sum(any(map(in_values, pair)) for pair in zip(parts, answers, strict=True))
        cut = [False] * len(rows)
        for i, row in enumerate(rows):
            if self.max_tokens is not None:
                if targets and self.answer.is_text and len(targets[i]) > self.max_tokens:
                    targets[i] = self._tokens.shortened(targets[i], self.max_tokens)
                    cut[i] = True
                room = self.max_tokens - max(reserve, len(targets[i]) if targets and not self.answer.is_text else 0)
                if len(input_ids[i]) > room:
                    input_ids[i] = self._cut(row, input_ids[i], room)
                    cut[i] = True
            if not input_ids[i]:
                raise SoftPromptError(f"{row.place}: the tokenizer finds no tokens in {shown(row.columns)}")
        found.input_ids.extend(input_ids)
        found.cut.extend(cut)
        places, of_texts = self.answer.places(rows, input_ids), None
        if places is not None:
            of_texts = found.places or Ids()
            of_texts.extend(places)
        of_all = None if targets is None else found.target_ids
        if of_all is not None:
            of_all.extend(targets or [])
        with_special += found.with_special
        return replace(
            found, target_ids=of_all, places=of_texts, with_special=with_special, learned=self.answer.learned
        )

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
            ids = self._tokens.texts([self.task.parts(values)])[0]
        return ids

    def _shorten(self, values: Mapping[str, str], surplus: int) -> dict[str, str]:
        """Take `surplus` tokens off the ends of the longest values; unchanged where none has a token left."""
        starts = {name: self._tokens.special.starts(value) for name, value in values.items()}
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
