"""What a prompt gives away of the rows that it has learned: words of theirs, which they were, strings by heart.

Owns the three measurements and their document. How it is shown is others' matter.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import roc_auc_score, roc_curve
from torch import Tensor

from softprompt.bases.base import Base
from softprompt.bases.words import word_norms
from softprompt.errors import SoftPromptError
from softprompt.inspection.canaries import is_canary, random_row
from softprompt.inspection.drift import rebuild_start
from softprompt.inspection.nearest import nearest_ids
from softprompt.models.prompted import PromptedModel
from softprompt.models.scoring import batch_by_tokens
from softprompt.prompts.prompt import SoftPrompt
from softprompt.tasks.encode import Encoder
from softprompt.tasks.rows import Row, Rows, as_rows
from softprompt.tasks.task import Task

logger = logging.getLogger(__name__)

CAPTION = (
    "These are three known attacks, not a proof: what they do not find may be found by others (models trained on like "
    "rows to compare with, rows of a few people looked at by themselves). A membership AUC of 0.5 and canaries at "
    "chance are what a prompt that gives nothing away shows too. Only recipe.private bounds every attack."
)
REFERENCES = 511  # strings that canaries are compared with, for each label
_RUN = 3  # tokens in a row that are a text's words and no coincidence
_RESAMPLES = 1000
_FALSE_POSITIVES = 0.01
CHANCE_EXPOSURE = 1 / math.log(2)  # bits: what a canary that was not learned has on average


@dataclass(frozen=True)
class Recovery:
    """Words read off a prompt.

    Attributes:
        tokens: P.
        by_cosine: virtual tokens whose nearest words, by cosine, stand in a training text in this order, three or more
            in a row.
        by_distance: likewise by Euclidean distance, after each virtual token was given the words' mean norm.
        by_chance: `by_cosine` among the rows not learned; None without such rows.
        kept: virtual tokens whose nearest word by cosine is the one that they started at; None where the card does
            not tell the start.
        texts: what `by_cosine` reads.
    """

    tokens: int
    by_cosine: int
    by_distance: int
    by_chance: int | None
    kept: int | None
    texts: list[str]


@dataclass(frozen=True)
class Membership:
    """How well rows that were learned are told from rows that were not, by their loss.

    Attributes:
        seen, unseen: rows of each kind.
        auc: area under the ROC curve; 0.5 is chance.
        auc_interval: its 95% bootstrap interval.
        tpr: the share of learned rows that are found when 1% of the others are taken for learned; 0.01 is chance.
        tpr_interval: its 95% bootstrap interval.
    """

    seen: int
    unseen: int
    auc: float
    auc_interval: tuple[float, float]
    tpr: float
    tpr_interval: tuple[float, float]


@dataclass(frozen=True)
class Canaries:
    """How well planted strings are known.

    Attributes:
        exposures: of each canary, in bits: log2(N + 1) less log2 of its rank by loss among N strings of its form and
            label that were not planted. One that was not learned has 1.44 on average.
        most: the greatest exposure that N strings can show, in bits.
        p_value: how likely canaries that were not learned are to be so exposed, by Fisher's method.
    """

    exposures: list[float]
    most: float
    p_value: float


@dataclass(frozen=True)
class Leakage:
    """What was found of a prompt.

    Attributes:
        recovery: words read off it; None where it has no virtual tokens.
        membership: None where no rows were given that it has not learned.
        canaries: None where none are among the rows.
        private: what the card says of differentially private training; None where it was not.
    """

    recovery: Recovery | None
    membership: Membership | None
    canaries: Canaries | None
    private: dict[str, Any] | None

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        return asdict(self) | {"caption": CAPTION}


def leakage(
    base: Base,
    prompt: SoftPrompt,
    data: Rows,
    *,
    unseen: Rows | None = None,
    task: Task | None = None,
    references: int = REFERENCES,
    progress: Callable[[int], None] | None = None,
) -> Leakage:
    """Measure what a prompt gives away of its training rows to whoever has its file and its base.

    (a) Words: the nearest words of the virtual tokens, three or more of them in the order of a training text.
    (b) Membership by loss: Yeom et al. 2018 (https://arxiv.org/abs/1709.01604); true positives at 1% false positives
    as Carlini et al. 2022 ask for (https://arxiv.org/abs/2112.03570). (c) Canaries, see `plant_canaries`: exposure,
    Carlini et al. 2019 (https://arxiv.org/abs/1802.08232).

    Args:
        base: the prompt's base.
        prompt: the prompt.
        data: rows that it has learned, or a file or `hub:OWNER/NAME:SPLIT` with them; canaries among them are
            recognised.
        unseen: likewise rows that it has not learned, of the same kind; None: membership is not measured.
        task: what the rows ask; default the task on the prompt's card.
        references: N, the strings that canaries are compared with, for each label.
        progress: called with the number of rows finished since the last call.

    Raises:
        SoftPromptError: the data can't be used or has no task.
        WrongBaseError: the prompt was made for another base.
    """
    prompt.check_base(base)
    if task is None and prompt.card.task is None:
        raise SoftPromptError("the prompt's card doesn't say what its task is: give the task")
    task = (task or Task.from_dict(prompt.card.task, "the card's task")).resolved(head=prompt.head is not None)
    rows = as_rows(data, task)
    seen, planted = ([row for row in rows if is_canary(row, task) is wanted] for wanted in (False, True))
    others = None if unseen is None else _others(seen, as_rows(unseen, task))
    model = PromptedModel(base, [prompt.for_labels(task.labels)], inference=True)
    ask = partial(row_losses, model, task, progress=progress)
    private = prompt.card.metrics.get("private")
    return Leakage(
        recovery=_recover(base, prompt, task, seen, others) if prompt.num_virtual_tokens else None,
        membership=None if others is None or not seen else _tell_apart(ask(seen), ask(others)),
        canaries=_expose(task, planted, references, ask) if planted else None,
        private=private if isinstance(private, dict) else None,
    )


def rows_asked(task: Task, seen: Sequence[Row], unseen: Sequence[Row] | None) -> int:
    """How many rows `leakage` asks at most."""
    planted = [row for row in seen if is_canary(row, task)]
    labels = len({row.label for row in planted})
    told = 0 if unseen is None else len(seen) - len(planted) + len(unseen)
    return told + len(_different(planted)) + labels * REFERENCES


@torch.no_grad()
def row_losses(
    model: PromptedModel, task: Task, rows: Sequence[Row], *, progress: Callable[[int], None] | None = None
) -> NDArray[np.float64]:
    """`[n]` the loss of each row as it is trained on: the cross-entropy summed over its target's tokens."""
    encoder = Encoder(model.base, task, virtual_tokens=len(model.vectors()[0]))
    encoded, device = encoder.encode_rows(rows), model.base.device
    examples = [encoded.example(row) for row in range(len(rows))]
    found = np.empty(len(rows))
    for some in batch_by_tokens([len(one["ids"]) for one in examples]):
        ids, labels = (
            torch.tensor([token for row in some for token in examples[row][key]], device=device)
            for key in ("ids", "labels")
        )
        lengths = torch.tensor([len(examples[row]["ids"]) for row in some], device=device)
        losses = model(ids, labels=labels, lengths=lengths).row_loss
        found[some] = losses.double().cpu().numpy()
        if progress is not None:
            progress(len(some))
    return found


def _others(seen: Sequence[Row], unseen: Sequence[Row]) -> list[Row]:
    """The rows not learned, without those whose text is among the learned ones too, which is said."""
    known = {tuple(sorted(row.columns.items())) for row in seen}
    left = [row for row in unseen if tuple(sorted(row.columns.items())) not in known]
    if len(left) < len(unseen):
        logger.warning("%s rows of the unseen ones are among the learned: left out", f"{len(unseen) - len(left):,}")
    if len(left) < 2:
        raise SoftPromptError("telling learned rows from others needs at least 2 rows that are not among the learned")
    return left


def _recover(base: Base, prompt: SoftPrompt, task: Task, seen: Sequence[Row], others: Sequence[Row] | None) -> Recovery:
    vectors = prompt.embeddings
    scaled = torch.nn.functional.normalize(vectors, dim=1) * word_norms(base).mean()
    by_cosine = nearest_ids(base, vectors)["cosine"][0][:, 0]
    by_distance = nearest_ids(base, scaled)["distance"][0][:, 0]
    run = min(_RUN, len(vectors))
    known = _runs(base, task, seen, run)
    read = _marked(by_cosine, known, run)
    kept = None
    try:
        start = rebuild_start(base, prompt)
    except SoftPromptError:
        pass
    else:
        kept = int((nearest_ids(base, start)["cosine"][0][:, 0] == by_cosine).sum())
    return Recovery(
        tokens=len(vectors),
        by_cosine=sum(read),
        by_distance=sum(_marked(by_distance, known, run)),
        by_chance=None if others is None else sum(_marked(by_cosine, _runs(base, task, others, run), run)),
        kept=kept,
        texts=_texts(base, by_cosine, read),
    )


def _runs(base: Base, task: Task, rows: Sequence[Row], run: int) -> set[tuple[int, ...]]:
    """All runs of so many tokens in the rows' own words: their columns' values and, of free text, their targets."""
    texts = []
    for row in rows:
        parts = task.parts(row.columns)
        for (before, _), (value, is_value) in zip([("", False), *parts], parts, strict=False):
            if is_value:  # encoded as it stands behind the template's words
                texts.append((" " if before[-1:].isspace() else "") + value)
        if task.labels is None and row.target:
            texts.append(row.target)
    found: set[tuple[int, ...]] = set()
    for start in range(0, len(texts), 1000):
        some = base.tokenizer(texts[start : start + 1000], add_special_tokens=False, verbose=False)["input_ids"]
        found.update(tuple(ids[i : i + run]) for ids in some for i in range(len(ids) - run + 1))
    return found


def _marked(ids: Tensor, known: set[tuple[int, ...]], run: int) -> list[bool]:
    """Of each virtual token whether its nearest word stands in a known run."""
    words, marks = ids.tolist(), [False] * len(ids)
    for i in range(len(words) - run + 1):
        if tuple(words[i : i + run]) in known:
            marks[i : i + run] = [True] * run
    return marks


def _texts(base: Base, ids: Tensor, marks: Sequence[bool]) -> list[str]:
    texts: list[list[int]] = []
    for token, mark, before in zip(ids.tolist(), marks, [False, *marks], strict=False):
        if mark and not before:
            texts.append([])
        if mark:
            texts[-1].append(token)
    return [str(base.tokenizer.decode(text)) for text in texts]


def _tell_apart(seen: NDArray[np.float64], unseen: NDArray[np.float64]) -> Membership:
    truth = np.concatenate([np.ones(len(seen)), np.zeros(len(unseen))])

    def auc(learned: NDArray[np.float64], other: NDArray[np.float64]) -> float:
        return float(roc_auc_score(truth, -np.concatenate([learned, other])))

    def tpr(learned: NDArray[np.float64], other: NDArray[np.float64]) -> float:
        false, true, _ = roc_curve(truth, -np.concatenate([learned, other]), drop_intermediate=False)
        return float(true[false <= _FALSE_POSITIVES].max())

    def interval(figure: Callable[..., float]) -> tuple[float, float]:
        settings = {"n_resamples": _RESAMPLES, "vectorized": False, "method": "percentile", "random_state": 0}
        low, high = stats.bootstrap((seen, unseen), figure, **settings).confidence_interval
        return float(low), float(high)

    return Membership(len(seen), len(unseen), auc(seen, unseen), interval(auc), tpr(seen, unseen), interval(tpr))


def _different(planted: Sequence[Row]) -> list[Row]:
    return list({(*row.columns.values(), row.target): row for row in planted}.values())


def _expose(
    task: Task, planted: Sequence[Row], references: int, ask: Callable[[Sequence[Row]], NDArray[np.float64]]
) -> Canaries:
    if references < 1:
        raise SoftPromptError(f"references is {references}: canaries are compared with at least 1 other string")
    rows = _different(planted)
    drawn = random.Random("references")
    compared = {
        label: ask([random_row(task, label, drawn) for _ in range(references)])
        for label in sorted({row.label for row in rows}, key=str)
    }
    ranks = [1 + int((compared[row.label] < loss).sum()) for row, loss in zip(rows, ask(rows), strict=True)]
    shares = np.array(ranks) / (references + 1)
    return Canaries(
        exposures=(-np.log2(shares)).tolist(),
        most=math.log2(references + 1),
        p_value=float(stats.combine_pvalues(shares).pvalue),
    )
