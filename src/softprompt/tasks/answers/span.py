"""Spans: the words of a context that answer a question, by a head that scores where they start and where they end.

The template ends with the context's column, as in "{question} {context}"; the target is the answer, which stands in the
context word for word: its first place there is learned. A context that is too long is read in windows that overlap by
half; of all windows the best span is the answer, and the one with the answer is learned. PEFT's QUESTION_ANS.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from softprompt.errors import SoftPromptError
from softprompt.tasks.answers.answer import Answer, Asked, Prediction
from softprompt.tasks.metrics import span_metrics
from softprompt.tasks.rows import Row
from softprompt.tasks.tokens import TaskTokenizer
from softprompt.text import shown

_LONGEST = 30  # tokens of an answer


class _Context(NamedTuple):
    """A row's context, and where each of its tokens starts in it."""

    text: str
    starts: list[int]


class Span(Answer):
    """See the module; `found` is n texts.

    Raises:
        SoftPromptError: the template does not end with a column, the target is more than one, or the tokenizer does not
            say where its tokens start.
    """

    is_text = True
    in_windows = True

    def __init__(self, tokens: TaskTokenizer) -> None:
        super().__init__(tokens)
        if self.task.suffix or self.task.target.strip() != f"{{{self.task.target_columns[0]}}}":
            raise SoftPromptError(
                "task.template: for spans it ends with the context's column, and task.target is the answer's column"
            )
        if not tokens.tokenizer.is_fast:
            raise SoftPromptError("spans need a fast tokenizer: this one does not say where its tokens start")
        self._column = self.task.placeholders[-1]

    def targets(self, rows: Sequence[Row]) -> list[list[int]] | None:
        return [[] for _ in rows] if len(self.gold(rows)) == len(rows) else None

    def gold(self, rows: Sequence[Row]) -> list[str]:
        return [row.target.strip() for row in rows if row.target is not None]

    def windows(self, row: Row, room: int | None) -> list[Row]:
        """The row with each window of its context that fits the room, whether or not it has the answer."""
        context = self._context(row)
        whole = len(self._tokens.texts([self.task.parts(row.columns)])[0])
        if room is None or whole <= room:
            return [row]
        size = room - (whole - len(context.starts))
        if size < 2:
            raise SoftPromptError(f"{row.place}: question and template leave no room for the context: shorten them")
        found, first = [], 0
        while True:
            last = min(first + size, len(context.starts))
            text = context.text[context.starts[first] : _end(context, last - 1)].strip()
            found.append(replace(row, columns={**row.columns, self._column: text}))
            if last == len(context.starts):
                return found
            first += size // 2

    def learned_window(self, row: Row, room: int | None) -> Row:
        """The row with the window of its context that is learned: one that has the answer, far from its borders."""
        answer = (row.target or "").strip()
        place = row.columns[self._column].find(answer)
        if place < 0 or not answer:
            raise SoftPromptError(
                f"{row.place}: the answer {shown(answer)} is not in the context {shown(row.columns[self._column])}: "
                "mend the row or leave it out"
            )
        having = [one for one in self.windows(row, room) if answer in one.columns[self._column]]
        if not having:
            raise SoftPromptError(f"{row.place}: the answer {shown(answer)} is longer than half a window")
        middles = [abs(one.columns[self._column].find(answer) - len(one.columns[self._column]) / 2) for one in having]
        return having[middles.index(min(middles))]

    def places(self, rows: Sequence[Row], texts: Sequence[Sequence[int]]) -> list[list[int]]:
        found = []
        for row, text in zip(rows, texts, strict=True):
            end = len(text) - self._tokens.around(text)[1]
            found.append(list(range(max(0, end - len(self._context(row).starts)), end)))
        return found

    def learned(
        self, text: Sequence[int], target: Sequence[int], gold: Any, places: Sequence[int] | None = None
    ) -> list[int]:
        first, last = gold
        labels = [-100] * len(text)
        labels[(places or ())[first]] = last - first
        return labels

    def learned_gold(self, rows: Sequence[Row]) -> list[tuple[int, int]]:
        """Of each row the first and the last token of the answer, counted from the context's first."""
        found = []
        for row in rows:
            context, answer = self._context(row), (row.target or "").strip()
            place = context.text.find(answer)
            begun = [i for i, start in enumerate(context.starts) if start <= place]
            within = [i for i, start in enumerate(context.starts) if start < place + len(answer)]
            found.append((begun[-1] if begun else 0, within[-1]))
        return found

    def read(self, asked: Asked, log_priors: Sequence[float] | None = None) -> list[str]:
        scores = asked.read_head().split([len(places) for places in asked.places or ()])
        best: dict[int, tuple[float, str]] = {}
        for row, owner, some in zip(asked.rows, asked.owners, scores, strict=True):
            both = some[:, :1] + some[:, 1]
            near = torch.ones_like(both).triu() - torch.ones_like(both).triu(_LONGEST)
            both = both.masked_fill(near == 0, float("-inf"))
            first, last = divmod(int(both.argmax()), len(some))
            context = self._context(row)
            text = context.text[context.starts[first] : _end(context, last)].strip()
            score = float(both[first, last])
            if owner not in best or score > best[owner][0]:
                best[owner] = (score, text)
        return [best[owner][1] for owner in sorted(best)]

    def best(self, found: list[str]) -> list[str]:
        return found

    def predictions(self, found: list[str], cut: Sequence[bool]) -> list[Prediction]:
        return [Prediction(output=text, truncated=was_cut) for text, was_cut in zip(found, cut, strict=True)]

    def figures(self, found: list[str], gold: Sequence[str]) -> dict[str, Any]:
        return span_metrics(found, gold)

    def _context(self, row: Row) -> _Context:
        text = row.columns[self._column]
        return _Context(text, self._tokens.special.starts(text))


def _end(context: _Context, token: int) -> int:
    """Where in a context a token ends: where the next one starts."""
    after = [start for start in context.starts[token + 1 : token + 8] if start > context.starts[token]]
    return after[0] if after else len(context.text)
