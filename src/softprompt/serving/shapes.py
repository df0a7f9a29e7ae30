"""Pieces of generated text as OpenAI shows them: completions and chats, whole and as events.

Owns the form. Knows nothing of engines, names or HTTP.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING
from uuid import uuid4

from softprompt.serving import schemas
from softprompt.serving.writer import Piece, Scored

if TYPE_CHECKING:
    from pydantic import BaseModel

DONE = "data: [DONE]\n\n"


class Shape(ABC):
    """How one request is answered.

    Args:
        model: what answers.
        logprobs: whether log-probabilities were asked for.
    """

    prefix: str

    def __init__(self, model: str, logprobs: bool) -> None:
        self._id, self._created = f"{self.prefix}-{uuid4().hex}", int(time.time())
        self._model, self._logprobs = model, logprobs

    @abstractmethod
    def whole(self, choices: Sequence[Piece], usage: schemas.Usage) -> BaseModel:
        """The answer, where each choice is one piece."""

    @abstractmethod
    def part(self, pieces: Sequence[Piece], usage: schemas.Usage | None = None) -> BaseModel:
        """One event."""

    def event(self, pieces: Sequence[Piece], usage: schemas.Usage | None = None) -> str:
        """One event as it is sent."""
        return f"data: {self.part(pieces, usage).model_dump_json(exclude_unset=True)}\n\n"


class TextShape(Shape):
    """Of /v1/completions."""

    prefix = "cmpl"

    def whole(self, choices: Sequence[Piece], usage: schemas.Usage) -> schemas.Completion:
        return self.part(choices, usage)

    def part(self, pieces: Sequence[Piece], usage: schemas.Usage | None = None) -> schemas.Completion:
        choices = [
            schemas.TextChoice(
                index=piece.choice,
                text=piece.text,
                logprobs=self._scores(piece.scored) if self._logprobs else None,
                finish_reason=piece.finish,
            )
            for piece in pieces
        ]
        return schemas.Completion(
            id=self._id,
            object="text_completion",
            created=self._created,
            model=self._model,
            choices=choices,
            **({} if usage is None else {"usage": usage}),
        )

    def _scores(self, scored: Sequence[Scored]) -> schemas.TextLogprobs:
        tops: list[dict[str, float] | None] = []
        for one in scored:
            if one.logprob is None:
                tops.append(None)
                continue
            top: dict[str, float] = {}
            for text, logprob, _ in [*one.top, (one.text, one.logprob, None)]:
                top.setdefault(text, logprob)  # of several tokens that read alike, the likeliest
            tops.append(top)
        return schemas.TextLogprobs(
            tokens=[one.text for one in scored],
            token_logprobs=[one.logprob for one in scored],
            top_logprobs=tops,
            text_offset=[one.offset for one in scored],
        )


class ChatShape(Shape):
    """Of /v1/chat/completions."""

    prefix = "chatcmpl"

    def __init__(self, model: str, logprobs: bool) -> None:
        super().__init__(model, logprobs)
        self._begun: set[int] = set()

    def whole(self, choices: Sequence[Piece], usage: schemas.Usage) -> schemas.ChatCompletion:
        return schemas.ChatCompletion(
            id=self._id,
            created=self._created,
            model=self._model,
            choices=[
                schemas.ChatChoice(
                    index=piece.choice,
                    message=schemas.AnswerMessage(content=piece.text),
                    logprobs=self._scores(piece.scored) if self._logprobs else None,
                    finish_reason=piece.finish or "length",
                )
                for piece in choices
            ],
            usage=usage,
        )

    def part(self, pieces: Sequence[Piece], usage: schemas.Usage | None = None) -> schemas.ChatChunk:
        return schemas.ChatChunk(
            id=self._id,
            object="chat.completion.chunk",
            created=self._created,
            model=self._model,
            choices=[
                schemas.ChunkChoice(
                    index=piece.choice,
                    delta=self._delta(piece),
                    logprobs=self._scores(piece.scored) if self._logprobs else None,
                    finish_reason=piece.finish,
                )
                for piece in pieces
            ],
            **({} if usage is None else {"usage": usage}),
        )

    def _delta(self, piece: Piece) -> schemas.Delta:
        """Who speaks is told once: clients put the parts of a message together."""
        if piece.choice in self._begun:
            return schemas.Delta(content=piece.text)
        self._begun.add(piece.choice)
        return schemas.Delta(role="assistant", content=piece.text)

    def _scores(self, scored: Sequence[Scored]) -> schemas.ChatLogprobs:
        return schemas.ChatLogprobs(
            content=[
                schemas.TokenLogprob(
                    token=one.text,
                    logprob=one.logprob or 0.0,
                    bytes=one.bytes,
                    top_logprobs=[
                        schemas.TopLogprob(token=text, logprob=logprob, bytes=coded) for text, logprob, coded in one.top
                    ],
                )
                for one in scored
            ]
        )
