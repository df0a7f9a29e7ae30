"""How good answers are: figures for classification and for free text, all from 0 to 1.

Owns which library computes what. Knows nothing of models, tasks or how the answers were found. The libraries
are imported where they are used: each takes a second or more.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from softprompt.errors import SoftPromptError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


def classification_metrics(gold: Sequence[int], probabilities: ArrayLike, labels: Sequence[str]) -> dict[str, Any]:
    """Figures for predicted probabilities against gold labels, by scikit-learn.

    Args:
        gold: The n right labels, as indices into `labels`.
        probabilities: `[n, L]`, each row's sum 1; the greatest is the prediction, the first of equals.
        labels: The L labels' names.

    Returns:
        `n`; `accuracy`; `macro_f1`, the mean over the labels that occur in gold or among the predictions, as
        scikit-learn has it; `log_loss`, the mean of -log p(gold) in nats; `per_label`, for each
        label its `precision`, `recall`, `f1` (0 where undefined) and `support`; `confusion`, `[L, L]` counts
        with a row for each gold label and a column for each predicted one.

    Raises:
        SoftPromptError: There are no rows, or the probabilities are not finite or not `[n, L]`.
    """
    import numpy as np
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    table = np.asarray(probabilities, dtype=np.float64)
    if len(gold) == 0:
        raise SoftPromptError("there are no rows to measure")
    if table.shape != (len(gold), len(labels)):
        raise SoftPromptError(f"probabilities are {list(table.shape)}, not {[len(gold), len(labels)]}")
    if not np.isfinite(table).all():
        raise SoftPromptError("the probabilities are not finite: the prompt or the base has gone wrong")
    predicted = table.argmax(axis=1)
    known = range(len(labels))
    precision, recall, f1, support = precision_recall_fscore_support(gold, predicted, labels=known, zero_division=0)
    present = sorted({*map(int, gold), *predicted.tolist()})
    right = table[np.arange(len(gold)), gold]
    return {
        "n": len(gold),
        "accuracy": float((predicted == gold).mean()),
        "macro_f1": float(f1[present].mean()),
        # A probability that rounds to 0 costs the most that a double can say, not infinity.
        "log_loss": float(-np.log(np.maximum(right, np.finfo(np.float64).tiny)).mean()),
        "per_label": {
            label: {
                "precision": float(precision[i]),
                "recall": float(recall[i]),
                "f1": float(f1[i]),
                "support": int(support[i]),
            }
            for i, label in enumerate(labels)
        },
        "confusion": confusion_matrix(gold, predicted, labels=known).tolist(),
    }


def text_metrics(outputs: Sequence[str], references: Sequence[str]) -> dict[str, Any]:
    """Figures for generated texts against one reference each.

    Args:
        outputs: The n generated texts.
        references: The n right ones.

    Returns:
        `n`; `exact_match`, the share equal to the reference but for white space around it; `token_f1`, the
        mean F1 of words as SQuAD computes it (Rajpurkar et al. 2016, "SQuAD: 100,000+ Questions for Machine
        Comprehension of Text", https://arxiv.org/abs/1606.05250); `rouge_l`, the mean F-measure of the
        longest common subsequence by rouge-score (Lin 2004, "ROUGE: A Package for Automatic Evaluation of
        Summaries", https://aclanthology.org/W04-1013); `bleu`, sacrebleu's corpus BLEU with its default
        tokenisation, divided by 100 (Papineni et al. 2002, "BLEU: a Method for Automatic Evaluation of
        Machine Translation", https://aclanthology.org/P02-1040).

    Raises:
        SoftPromptError: There are no rows, or not as many outputs as references.
    """
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu import corpus_bleu

    if not references:
        raise SoftPromptError("there are no rows to measure")
    if len(outputs) != len(references):
        raise SoftPromptError(f"{len(outputs)} outputs, but {len(references)} references")
    pairs = list(zip(outputs, references, strict=True))
    scorer = RougeScorer(["rougeL"], tokenizer=_Words())
    return {
        "n": len(references),
        "exact_match": fmean(output.strip() == reference.strip() for output, reference in pairs),
        "token_f1": fmean(_token_f1(output, reference) for output, reference in pairs),
        "rouge_l": fmean(scorer.score(reference, output)["rougeL"].fmeasure for output, reference in pairs),
        # force: no advice on the log about references that look tokenised.
        "bleu": corpus_bleu(list(outputs), [list(references)], force=True).score / 100,
    }


def span_metrics(outputs: Sequence[str], references: Sequence[str]) -> dict[str, Any]:
    """Figures for spans against one reference each, as SQuAD has them (Rajpurkar et al. 2016).

    Case, punctuation and English articles do not count.

    Args:
        outputs: The n spans.
        references: The n right ones.

    Returns:
        `n`; `exact_match`, the share with the same words; `token_f1`, the mean F1 of words.

    Raises:
        SoftPromptError: There are no rows.
    """
    if not references:
        raise SoftPromptError("there are no rows to measure")
    pairs = list(zip(outputs, references, strict=True))
    return {
        "n": len(references),
        "exact_match": fmean(_squad_words(output) == _squad_words(reference) for output, reference in pairs),
        "token_f1": fmean(_token_f1(output, reference) for output, reference in pairs),
    }


class _Words:
    """Words for ROUGE: rouge-score's own for English; its tokenizer drops every letter beyond a to z."""

    def tokenize(self, text: str) -> list[str]:
        return re.findall(r"[^\W_]+", text.lower())


_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _squad_words(text: str) -> list[str]:
    return re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(_PUNCTUATION)).split()


def _token_f1(output: str, reference: str) -> float:
    said, wanted = _squad_words(output), _squad_words(reference)
    if not said or not wanted:
        return float(said == wanted)
    shared = (Counter(said) & Counter(wanted)).total()
    return 2 * shared / (len(said) + len(wanted))
