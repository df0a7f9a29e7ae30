"""The inspection: all that can be said of a prompt by looking at it, in one document.

Owns what is asked and the document's keys. Each answer has a module of its own; how it is shown is others' matter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from softprompt.bases.base import Base
from softprompt.bases.words import word_norms
from softprompt.errors import SoftPromptError
from softprompt.inspection.drift import rebuild_start
from softprompt.inspection.importance import Importance, measure_importance
from softprompt.inspection.nearest import Neighbourhood, find_neighbours
from softprompt.inspection.similarity import TaskMap, map_tasks, token_similarity
from softprompt.models.generation import generate
from softprompt.models.prompted import PromptedModel
from softprompt.prompts.library import PromptLibrary
from softprompt.prompts.prompt import SoftPrompt
from softprompt.tasks.rows import Rows, as_rows
from softprompt.tasks.task import Task

CAPTION = (
    "Nearest words are a hint, not a translation: prompts that do the same can lie next to quite different words, and "
    "the words put in the prompt's place do not do what it does."
)
_CONTINUATION = 24  # tokens that the base may say after the prompt alone


@dataclass(frozen=True)
class TokenFindings:
    """One virtual token.

    Attributes:
        index: its place, from 0.
        norm: Euclidean.
        norm_z: how many standard deviations of the words' norms that is above their mean.
        drift: Euclidean distance from its start; None where the start is unknown.
        cosine_to_start: likewise.
        start: the word that it started nearest to, by cosine; likewise.
        around: the words nearest to it now.
        importance: how much worse the prompt is without it; None where it was not measured.
        pushes: the label that it adds the most answers to; None where that was not measured, or it adds none.
    """

    index: int
    norm: float
    norm_z: float
    drift: float | None
    cosine_to_start: float | None
    start: str | None
    around: Neighbourhood
    importance: float | None
    pushes: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The token in `--json`."""
        others = {key: value for key, value in asdict(self).items() if key != "around"}
        return others | {
            "nearest": [{"token": word.token, "similarity": word.value} for word in self.around.by_cosine],
            "nearest_by_distance": [{"token": word.token, "distance": word.value} for word in self.around.by_distance],
        }


@dataclass(frozen=True)
class Inspection:
    """What was found of a prompt.

    Attributes:
        base: its base's name.
        initialisation: how it started, from its card.
        drift_unknown: why the drift is not known; None where it is.
        word_norm_mean, word_norm_deviation: of the base's words.
        tokens: the virtual tokens.
        similarity: `[P, P]` cosines between them.
        continuation: what the base says after the prompt alone, greedily; None where it says no words.
        importance: what leaving out each token costs; None where no rows were given.
        map: the prompt among those of a library; None where none was given.
    """

    base: str
    initialisation: dict[str, Any]
    drift_unknown: str | None
    word_norm_mean: float
    word_norm_deviation: float
    tokens: list[TokenFindings]
    similarity: list[list[float]]
    continuation: str | None
    importance: Importance | None
    map: TaskMap | None

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        found = self.importance
        return {
            "tokens": [token.to_json() for token in self.tokens],
            "caption": CAPTION,
            "base": self.base,
            "num_virtual_tokens": len(self.tokens),
            "initialisation": self.initialisation,
            "drift_unknown": self.drift_unknown,
            "word_norm": {"mean": self.word_norm_mean, "deviation": self.word_norm_deviation},
            "similarity": self.similarity,
            "continuation": self.continuation,
            "importance": None if found is None else {"measure": found.measure, "whole": found.whole.to_json()},
            "map": None if self.map is None else asdict(self.map),
        }


def inspect(
    base: Base,
    prompt: SoftPrompt,
    *,
    task: Task | None = None,
    data: Rows | None = None,
    library: PromptLibrary | None = None,
    nearest: int = 5,
    progress: Callable[[int], None] | None = None,
) -> Inspection:
    """Look at a prompt from every side.

    Args:
        base: the prompt's base.
        prompt: P virtual tokens.
        task: what the rows ask; default the task on the prompt's card.
        data: labelled rows, or a file or `hub:OWNER/NAME:SPLIT` with them, on which the importance of each virtual
            token is measured: each row is asked P + 1 times. None: it isn't.
        library: prompts to compare with; None: there is no comparison.
        nearest: words named for each virtual token.
        progress: called with the number of rows finished since the last call.

    Raises:
        SoftPromptError: the data can't be used or has no task, or the library has no prompts.
        WrongBaseError: the prompt was made for another base.
    """
    prompt.check_base(base)
    if not prompt.num_virtual_tokens:
        raise SoftPromptError("the prompt is a head alone: it has no virtual tokens to inspect")
    found = None
    if data is not None:
        if task is None and prompt.card.task is None:
            raise SoftPromptError("the prompt's card doesn't say what its task is: give the task")
        task = task or Task.from_dict(prompt.card.task, "the card's task")
        found = measure_importance(base, prompt, task, as_rows(data, task), progress)
    where = None if library is None else map_tasks(prompt, base.identity, library)
    now = prompt.embeddings
    drift: list[float | None] = [None] * len(now)
    cosine = list(drift)
    words: list[str | None] = [None] * len(now)
    unknown = None
    try:
        start = rebuild_start(base, prompt)
    except SoftPromptError as error:
        unknown = str(error)
    else:
        drift = (now - start).norm(dim=1).tolist()
        cosine = torch.cosine_similarity(now, start, dim=1).tolist()
        words = [around.by_cosine[0].token for around in find_neighbours(base, start, 1)]
    scores = [None] * len(now) if found is None else found.scores
    norms = word_norms(base)
    mean, deviation = float(norms.mean()), float(norms.std())
    return Inspection(
        base=base.name,
        initialisation=dict(prompt.card.initialisation),
        drift_unknown=unknown,
        word_norm_mean=mean,
        word_norm_deviation=deviation,
        tokens=[
            TokenFindings(
                index=index,
                norm=norm,
                norm_z=(norm - mean) / max(deviation, 1e-12),
                drift=drift[index],
                cosine_to_start=cosine[index],
                start=words[index],
                around=around,
                importance=scores[index],
                pushes=None if found is None else found.pushed[index],
            )
            for index, (norm, around) in enumerate(
                zip(now.norm(dim=1).tolist(), find_neighbours(base, now, nearest), strict=True)
            )
        ],
        similarity=token_similarity(now),
        continuation=continue_alone(base, prompt),
        importance=found,
        map=where,
    )


def continue_alone(base: Base, prompt: SoftPrompt, max_new_tokens: int = _CONTINUATION) -> str | None:
    """What the base says after the prompt and nothing else: the likeliest next token, again and again."""
    left = base.room(prompt.num_virtual_tokens)
    room = max_new_tokens if left is None else min(max_new_tokens, left)
    if not base.family.words:
        return None
    model = PromptedModel(base, [prompt])
    (answer,) = generate(model, [[]], max_new_tokens=room, ends=base.end_ids)
    return str(base.tokenizer.decode(answer, skip_special_tokens=True))
