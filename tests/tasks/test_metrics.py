"""The figures, against hand-computed values and against the libraries' own conventions."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from softprompt.errors import SoftPromptError
from softprompt.tasks import classification_metrics, text_metrics

LABELS = ["bad", "fair", "good"]


class TestClassification:
    def test_by_hand(self) -> None:
        probabilities = [[0.7, 0.2, 0.1], [0.1, 0.5, 0.4], [0.6, 0.3, 0.1], [0.25, 0.5, 0.25]]
        result = classification_metrics([0, 1, 1, 1], probabilities, LABELS)
        assert result["n"] == 4
        assert result["accuracy"] == 0.75
        assert result["confusion"] == [[1, 0, 0], [1, 2, 0], [0, 0, 0]]
        assert result["per_label"] == {
            "bad": {"precision": 0.5, "recall": 1.0, "f1": pytest.approx(2 / 3), "support": 1},
            "fair": {"precision": 1.0, "recall": pytest.approx(2 / 3), "f1": pytest.approx(0.8), "support": 3},
            "good": {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0},
        }
        # Over the labels that are in the rows or were answered, as scikit-learn does it.
        assert result["macro_f1"] == pytest.approx((2 / 3 + 0.8) / 2)
        assert result["log_loss"] == pytest.approx(-np.log([0.7, 0.5, 0.3, 0.5]).mean())

    def test_perfect(self) -> None:
        result = classification_metrics([0, 1, 2], np.eye(3, dtype=np.float32), LABELS)
        assert (result["accuracy"], result["macro_f1"], result["log_loss"]) == (1.0, 1.0, 0.0)

    def test_a_probability_of_nothing_costs_much_but_not_everything(self) -> None:
        loss = classification_metrics([0], [[0.0, 1.0]], ["a", "b"])["log_loss"]
        assert 700 < loss < 710

    def test_plain_json(self) -> None:
        result = classification_metrics([0, 1], np.full((2, 2), 0.5, dtype=np.float32), ["a", "b"])
        assert json.loads(json.dumps(result)) == result
        assert result["confusion"] == [[1, 0], [1, 0]]  # of equals, the first

    @settings(deadline=None, max_examples=50)
    @given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1))
    def test_the_confusion_matrix_holds_every_row(self, pairs: list[tuple[int, int]]) -> None:
        gold = [right for right, _ in pairs]
        result = classification_metrics(gold, np.eye(4)[[said for _, said in pairs]], list("abcd"))
        assert np.sum(result["confusion"]) == result["n"] == len(pairs)
        assert result["accuracy"] == pytest.approx(np.trace(result["confusion"]) / len(pairs))
        assert [figures["support"] for figures in result["per_label"].values()] == np.bincount(
            gold, minlength=4
        ).tolist()

    @pytest.mark.parametrize(
        ("gold", "probabilities", "line"),
        [
            ([], np.zeros((0, 2)), "no rows"),
            ([0], [[0.2, 0.3, 0.5]], r"probabilities are \[1, 3\], not \[1, 2\]"),
            ([0, 1], [[0.5, 0.5]], r"probabilities are \[1, 2\], not \[2, 2\]"),
            ([0], [[float("nan"), 0.5]], "not finite"),
        ],
    )
    def test_refused(self, gold: list[int], probabilities: list[list[float]], line: str) -> None:
        with pytest.raises(SoftPromptError, match=line):
            classification_metrics(gold, probabilities, ["a", "b"])


class TestText:
    def test_equal_texts(self) -> None:
        texts = ["The cat sat on the mat today.", "Ein Bär geht über die Straße heim"]
        assert text_metrics([f" {text}\n" for text in texts], texts) == {
            "n": 2,
            "exact_match": 1.0,
            "token_f1": 1.0,
            "rouge_l": 1.0,
            "bleu": pytest.approx(1.0),
        }

    def test_nothing_in_common(self) -> None:
        result = text_metrics(["one two three four five"], ["six seven eight nine ten"])
        assert (result["exact_match"], result["token_f1"], result["rouge_l"]) == (0.0, 0.0, 0.0)
        assert result["bleu"] < 0.1

    @pytest.mark.parametrize(
        ("output", "reference", "expected"),
        [
            ("The Cat!", "a cat", 1.0),  # articles, case and punctuation do not count
            ("black cat", "cat", 2 / 3),
            ("cat cat", "cat", 2 / 3),  # a word counts as often as both have it
            ("", "cat", 0.0),
            ("the", "a", 1.0),  # both are empty once normalised
            ("theatre", "atre", 0.0),
        ],
    )
    def test_token_f1(self, output: str, reference: str, expected: float) -> None:
        assert text_metrics([output], [reference])["token_f1"] == pytest.approx(expected)

    def test_exact_match_is_exact(self) -> None:
        assert text_metrics(["42", "Cat", "a  b"], ["42 ", "cat", "a b"])["exact_match"] == pytest.approx(1 / 3)

    def test_rouge_l_by_hand(self) -> None:
        # "police the gunman" is shared: 3 of 5 words said, 3 of 4 wanted.
        result = text_metrics(["Police then ended the gunman"], ["police killed the gunman"])
        assert result["rouge_l"] == pytest.approx(2 * (3 / 5) * (3 / 4) / (3 / 5 + 3 / 4))

    def test_rouge_l_counts_every_alphabet(self) -> None:
        assert text_metrics(["кот сидит дома"], ["кот сидит там"])["rouge_l"] == pytest.approx(2 / 3)

    def test_bleu_is_sacrebleu_from_0_to_1(self) -> None:
        from sacrebleu import corpus_bleu

        outputs = ["the cat sat on the mat .", "he was here yesterday with a dog ."]
        references = ["the cat sat on a mat .", "he was there yesterday with his dog ."]
        expected = corpus_bleu(outputs, [references]).score / 100
        assert 0.1 < expected < 0.9
        assert text_metrics(outputs, references)["bleu"] == expected

    @pytest.mark.parametrize(("outputs", "references"), [([], []), (["a"], ["a", "b"])])
    def test_refused(self, outputs: list[str], references: list[str]) -> None:
        with pytest.raises(SoftPromptError, match=r"no rows|1 outputs, but 2 references"):
            text_metrics(outputs, references)


def test_macro_f1_counts_the_labels_that_are_there() -> None:
    gold, labels = [0] * 12, [str(i) for i in range(8)]
    probabilities = np.full((12, 8), 0.01)
    probabilities[:11, 0] = 0.9
    probabilities[11, 1] = 0.9
    found = classification_metrics(gold, probabilities, labels)
    predicted = probabilities.argmax(1)
    assert found["macro_f1"] == pytest.approx(f1_score(gold, predicted, average="macro"))
    assert found["macro_f1"] > 0.4
