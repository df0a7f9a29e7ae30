"""A task's parts as token ids: where a tokenizer meets a template.

Owns what is encoded together, and where a target begins. Knows nothing of rooms, prompts or models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from softprompt.errors import SoftPromptError
from softprompt.tasks.special import Part, SpecialTokens
from softprompt.tasks.task import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TaskTokenizer:
    """Encodes the texts and targets of a task.

    A text is encoded as the tokenizer does it by itself, with the special tokens that it puts at the start;
    those that it puts at the end (as T5's and BERT's do) are left out, since the target follows. Those that the
    template itself begins with do not come twice. In a column's value no token is special: `</s>` there is text.

    Args:
        tokenizer: a base's.
        task: the task.
        apart: whether text and target are read apart, by an encoder and a decoder: then the text ends as the tokenizer
            ends it, and the target is encoded by itself, without white space before it.

    Attributes:
        special: the tokenizer's special tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, task: Task, *, apart: bool = False) -> None:
        self.tokenizer, self.task, self.special = tokenizer, task, SpecialTokens(tokenizer)
        self._apart = apart

    def texts(self, texts: Sequence[Sequence[Part]]) -> list[list[int]]:
        """The ids of texts, the special tokens at their starts included."""
        end = self.special.end if self._apart else []
        return [self.special.with_start(ids) + end for ids in self._ids(texts)]

    def shortened(self, ids: list[int], room: int) -> list[int]:
        """The ids of a text from `texts`, cut to so many, with what the tokenizer puts after it."""
        end = self.special.end if self._apart else []
        return ids[: room - len(end)] + end

    def around(self, ids: Sequence[int]) -> tuple[int, int]:
        """How many of a text's ids, from `texts`, the tokenizer has put before it and after it."""
        start, end = self.special.start, self.special.end if self._apart else []
        return len(start) if list(ids[: len(start)]) == start else 0, len(end)

    def following(self, targets: Sequence[Sequence[Part]]) -> list[list[int]]:
        """The ids of targets as they follow a text.

        They are what follows the template's last words when both are encoded together, so that text and target read as
        one string. Where the two fuse into one token ("Label: " and "good", if " good" is one), and where the template
        ends with a column, the target is encoded after a line end instead, and where that fuses too, alone. Alone, a
        SentencePiece tokenizer may put a space before it, which the string has not.
        """
        if self._apart:
            stripped = [[(parts[0][0].lstrip(), parts[0][1]), *parts[1:]] for parts in targets]
            return [self.special.start + ids if ids else [] for ids in self._ids(stripped)]
        found: list[list[int]] = [[] for _ in targets]
        for context in dict.fromkeys([self.task.suffix or "\n", "\n", ""]):
            pending = [i for i, ids in enumerate(found) if not ids]
            before = (context, False)
            head = self._ids([[before]])[0]
            for i, joint in zip(pending, self._ids([[before, *targets[i]] for i in pending]), strict=True):
                if joint[: len(head)] == head:
                    found[i] = joint[len(head) :]
        return found

    def end_of_text(self, need: str) -> list[int]:
        """The end-of-text token, which `need` names the need of.

        Raises:
            SoftPromptError: the tokenizer has none.
        """
        end: Any = self.tokenizer.eos_token_id
        if end is None:
            raise SoftPromptError(f"the tokenizer has no end-of-text token (eos_token), which {need} needs")
        return [int(end)]

    def _ids(self, texts: Sequence[Sequence[Part]]) -> list[list[int]]:
        """Ids, none added by the tokenizer. `verbose=False`: no warning about lengths that are cut right after."""
        if not texts:
            return []
        joined = ["".join(text for text, _ in parts) for parts in texts]
        ids: list[list[int]] = self.tokenizer(joined, add_special_tokens=False, verbose=False)["input_ids"]
        for i, parts in enumerate(texts):
            if self.special.in_values(parts):
                ids[i] = self.special.encode(parts)
        return ids
