"""Tags, spans and embeddings from the hidden states that an engine gives, as `softprompt predict` reads them.

Owns a task's way from a row of input to such an answer. Knows nothing of names or HTTP.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from softprompt.bases.base import Base
from softprompt.errors import SoftPromptError
from softprompt.models.embedding import embedding
from softprompt.models.readout import read_head
from softprompt.prompts.prompt import SoftPrompt
from softprompt.serving.engine import Engine
from softprompt.serving.streams import together
from softprompt.tasks.answers import KINDS
from softprompt.tasks.answers.answer import Embedded, Prediction
from softprompt.tasks.encode import Encoder
from softprompt.tasks.reading import Reading
from softprompt.tasks.rows import Row, rows_from
from softprompt.tasks.task import Task


def is_read(task: Task) -> bool:
    """Whether a task is answered so."""
    return KINDS[task.kind].needs == "states"


@dataclass(frozen=True)
class Passage:
    """A row as an engine takes it.

    Attributes:
        windows: the token ids of its text, or of each window of it.
        rows: the row, or its windows.
        places: of each window the tokens at which the head is read; None: the text is embedded.
        truncated: whether the text was cut.
    """

    windows: list[list[int]]
    rows: list[Row]
    places: list[list[int]] | None
    truncated: bool

    @property
    def ids(self) -> list[int]:
        """All tokens that are computed."""
        return [token for window in self.windows for token in window]


class Reader:
    """One task's questions and answers.

    Args:
        base: the base.
        task: a task of tags, spans or embeddings.
        prompt: the prompt that is asked; None: the base alone, which embeds.

    Raises:
        SoftPromptError: the base gives no such answers, or has no head for them.
    """

    def __init__(self, base: Base, task: Task, prompt: SoftPrompt | None) -> None:
        if prompt is None and task.kind != "embedding":
            raise SoftPromptError("the task is answered by the prompt's head: the base alone has no answer")
        self._task, self._prompt = task, prompt
        self._reading = Reading.of_card(None if prompt is None else prompt.card.data)
        self._encoder = Encoder(base, task, virtual_tokens=0 if prompt is None else prompt.num_virtual_tokens)

    def ask(self, inputs: Sequence[str | Mapping[str, str]]) -> list[Passage]:
        """The questions for rows of input, texts that are too long cut or read in windows.

        Raises:
            SoftPromptError: a text is empty, a column is missing, or the template leaves a text no room.
        """
        rows = rows_from(inputs, self._task, reading=self._reading)
        found = self._encoder.encode_rows(rows, whole=True)
        passages = []
        for row in range(len(rows)):
            own = [i for i, owner in enumerate(found.owners) if owner == row]
            places = None if found.places is None else [found.places[i] for i in own]
            cut = not self._encoder.answer.in_windows and found.cut[own[0]]
            passages.append(Passage([found.input_ids[i] for i in own], [found.rows[i] for i in own], places, cut))
        return passages

    async def read(self, engine: Engine, passage: Passage) -> Prediction:
        """The answer to a row.

        Raises: as `Engine.states`.
        """
        states = await together([partial(engine.states, self._prompt, ids) for ids in passage.windows])
        answer = self._encoder.answer
        (found,) = answer.predictions(answer.read(_Read(passage, states, self._prompt)), [passage.truncated])
        return found


class _Read:
    """A passage with its states, as a kind of answer asks it; see `Asked`."""

    def __init__(self, passage: Passage, states: Sequence[Tensor], prompt: SoftPrompt | None) -> None:
        self._states, self._prompt = states, prompt
        self.places, self.rows, self.owners = passage.places, passage.rows, [0] * len(passage.rows)

    def score(self, continuations: Sequence[Sequence[int]]) -> Tensor:
        raise NotImplementedError

    def generate(self, max_new_tokens: int) -> list[str]:
        raise NotImplementedError

    def read_head(self) -> Tensor:
        if self._prompt is None or self._prompt.head is None:
            raise SoftPromptError("the task is answered by a head, which this prompt has not: train it with one")
        places = zip(self._states, self.places or (), strict=True)
        return read_head(torch.cat([states[some] for states, some in places]), self._prompt.head)

    def embed(self) -> Embedded:
        return Embedded(torch.stack([embedding(states) for states in self._states]), None, [])
