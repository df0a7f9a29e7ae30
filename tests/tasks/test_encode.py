"""Rows as ids: what is encoded together, what ends a target, and that what is cut always fits."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, processors
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from softprompt.errors import SoftPromptError
from softprompt.tasks import Row, Task, encode
from softprompt.tasks.tokens import TaskTokenizer
from tests.conftest import make_tokenizer
from tests.tasks.encoders import make_encoder

CLASSES = Task(template="Review: {text}\nSentiment:", labels=["negative", "positive"])
ANSWERS = Task(template="Q: {question}\nA:", target=" {answer}")
TINY = make_tokenizer()


def words(
    *vocabulary: str, start: str | None = None, metaspace: bool = False, eos: str | None = "</s>"
) -> PreTrainedTokenizerFast:
    """A tokenizer of single characters that merges the given words.

    With `metaspace`, it puts a space before every string, as Llama 2's does.
    """
    space = "▁" if metaspace else " "
    merges, tokens = [], dict.fromkeys(["<s>", "</s>", space, *map(chr, range(33, 127)), "\n"])
    for word in vocabulary:
        for i in range(1, len(word)):
            merges.append((word[:i], word[i]))
            tokens[word[: i + 1]] = None
    model = models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=list(dict.fromkeys(merges)))
    tokenizer = Tokenizer(model)
    if metaspace:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(content=" ", left=1, right=0)]
        )
    else:
        tokenizer.decoder = decoders.Fuse()
    if start is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{start} $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token=eos)


def answer(question: str, wanted: str | None, number: int = 1) -> Row:
    return Row({"question": question}, None, None if wanted is None else f" {wanted}", "qa.csv", number)


class TestTexts:
    def test_the_tokenizers_own_encoding(self, tiny_tokenizer: Any) -> None:
        columns, task = {"text": "déjà vu"}, Task(template="Review: {text} <eos>\n", labels=["a", "b"])
        ids = make_encoder(tiny_tokenizer, task).encode_text(columns)
        assert ids == tiny_tokenizer(task.render(columns))["input_ids"]
        assert ids.count(0) == 1

    def test_special_tokens_stay_at_the_start_and_go_at_the_end(self) -> None:
        tokenizer = words(start="<s>")
        whole = tokenizer("Review: ok\nSentiment:")["input_ids"]
        assert (whole[0], whole[-1]) == (0, 1)
        assert make_encoder(tokenizer, CLASSES).encode_text({"text": "ok"}) == whole[:-1]

    def test_a_special_token_at_the_end_of_the_template_itself_stays(self) -> None:
        tokenizer = words(start="<s>")
        task = Task(template="{text}</s>", labels=["a", "b"])
        ids = make_encoder(tokenizer, task).encode_text({"text": "ok"})
        assert ids == tokenizer("ok</s>")["input_ids"][:-1]
        assert ids[-1] == tokenizer.eos_token_id

    def test_a_slow_tokenizer(self) -> None:
        tokenizer = ByT5Tokenizer()
        ids = make_encoder(tokenizer, CLASSES).encode_text({"text": "ok"})
        assert ids == tokenizer("Review: ok\nSentiment:")["input_ids"][:-1]

    def test_a_text_without_tokens_is_refused(self) -> None:
        rows = [Row({"text": "ok"}), Row({"text": "文"}, source="a.csv", number=2)]
        with pytest.raises(SoftPromptError, match=r"^a\.csv: row 2: the tokenizer finds no tokens in {'text': '文'}"):
            make_encoder(words(), Task(template="{text}", labels=["a", "b"])).encode_rows(rows)

    def test_quick(self, tiny_tokenizer: Any) -> None:
        rows = [Row({"text": "a film that is neither good nor bad"}, i % 2) for i in range(7000)]
        start = time.perf_counter()
        encoded = make_encoder(tiny_tokenizer, CLASSES, 200).encode_rows(rows)
        assert time.perf_counter() - start < 4
        assert len(encoded.input_ids) == 7000


class TestTargets:
    def test_labels(self, tiny_tokenizer: Any) -> None:
        encoder = make_encoder(tiny_tokenizer, CLASSES)
        assert encoder.answer.label_ids == [
            tiny_tokenizer(" negative")["input_ids"],
            tiny_tokenizer(" positive")["input_ids"],
        ]
        encoded = encoder.encode_rows([Row({"text": "a"}, 1), Row({"text": "b"}, 0)])
        assert encoded.gold == [1, 0]
        assert encoded.target_ids == [encoder.answer.label_ids[1], encoder.answer.label_ids[0]]

    def test_free_text_ends_with_the_end_of_text(self, tiny_tokenizer: Any) -> None:
        encoder = make_encoder(tiny_tokenizer, ANSWERS)
        encoded = encoder.encode_rows([answer("1+1?", "2"), answer("2+2?", "four")])
        assert encoder.answer.label_ids is None

        assert encoded.gold == [" 2", " four"]
        assert encoded.target_ids == [tiny_tokenizer(f" {word}")["input_ids"] + [0] for word in ("2", "four")]

    @pytest.mark.parametrize("row", [Row({"text": "a"}), answer("a", None)])
    def test_without_targets(self, tiny_tokenizer: Any, row: Row) -> None:
        encoded = make_encoder(tiny_tokenizer, CLASSES if "text" in row.columns else ANSWERS).encode_rows([row])
        assert (encoded.target_ids, encoded.gold) == (None, None)

    def test_no_rows(self, tiny_tokenizer: Any) -> None:
        assert make_encoder(tiny_tokenizer, CLASSES).encode_rows([]).input_ids == []

    @pytest.mark.parametrize("template", ["{text}\nSentiment:", "{text}", "{text} ", "{text}\n"])
    @pytest.mark.parametrize("target", [" {label}", "{label}", "\n{label}", " {label}."])
    @pytest.mark.parametrize("metaspace", [False, True])
    def test_text_and_target_read_as_one_string(self, template: str, target: str, metaspace: bool) -> None:
        tokenizer = words("▁good" if metaspace else " good", "good", start="<s>", metaspace=metaspace)
        task = Task(template=template, target=target, labels=["good", "bad"])
        encoder = make_encoder(tokenizer, task)
        assert encoder.answer.label_ids is not None
        for label, ids in zip(["good", "bad"], encoder.answer.label_ids, strict=True):
            joint = encoder.encode_text({"text": "so"}) + ids
            expected = task.render({"text": "so"}) + task.render_target({"label": label})
            assert tokenizer.decode(joint, skip_special_tokens=True) == expected

    def test_metaspace_puts_no_space_of_its_own_before_a_target(self) -> None:
        tokenizer = words("▁good", metaspace=True)
        encoder = make_encoder(tokenizer, Task(template="{text}:", labels=["good", "bad"]))
        assert tokenizer.convert_ids_to_tokens(encoder.answer.label_ids[0]) == ["▁good"]
        assert tokenizer.convert_ids_to_tokens(tokenizer(" good")["input_ids"]) == ["▁", "▁good"]

    def test_the_joint_string_decides_where_words_do_not_fuse(self) -> None:
        tokenizer = words(" good", "good")
        label_ids = make_encoder(tokenizer, Task(template="{text}:", labels=["good", "bad"])).answer.label_ids
        assert tokenizer.convert_ids_to_tokens(label_ids[0]) == [" good"]

    def test_fused_words_are_encoded_apart(self) -> None:
        tokenizer = words(" good", "good")
        task = Task(template="{text}: ", target="{label}", labels=["good", "bad"])
        assert tokenizer(": good")["input_ids"] == tokenizer.convert_tokens_to_ids([":", " good"])
        assert make_encoder(tokenizer, task).answer.label_ids[0] == tokenizer.convert_tokens_to_ids(["good"])

    def test_a_label_that_begins_another_gives_all_an_end(self, tiny_tokenizer: Any) -> None:
        labels = ["card", "top up", "card lost"]
        encoder = make_encoder(tiny_tokenizer, Task(template="{text}:", labels=labels))
        assert encoder.answer.label_ids == [[*tiny_tokenizer(f" {label}")["input_ids"], 0] for label in labels]
        encoded = encoder.encode_rows([Row({"text": "a"}, 1)])
        assert encoded.target_ids == [encoder.answer.label_ids[1]]

    def test_labels_that_merely_share_a_beginning_need_no_end(self, tiny_tokenizer: Any) -> None:
        encoder = make_encoder(tiny_tokenizer, Task(template="{text}:", labels=["card a", "card b"]))
        assert encoder.answer.label_ids == [tiny_tokenizer(f" {label}")["input_ids"] for label in ("card a", "card b")]

    def test_a_hundred_labels(self, tiny_tokenizer: Any) -> None:
        labels = [f"intent {i}" for i in range(120)]
        encoder = make_encoder(tiny_tokenizer, Task(template="{text}:", labels=labels))
        assert len({tuple(ids) for ids in encoder.answer.label_ids}) == 120
        assert all(ids[-1] == tiny_tokenizer.eos_token_id for ids in encoder.answer.label_ids)

    def test_labels_of_the_same_tokens(self) -> None:
        with pytest.raises(SoftPromptError, match=r"^task\.labels: 'ok文' and 'ok語' are the same tokens"):
            make_encoder(words(), Task(template="{text}:", labels=["ok文", "bad", "ok語"]))

    def test_a_label_without_tokens(self) -> None:
        with pytest.raises(SoftPromptError, match=r"^task\.labels: the tokenizer finds no tokens in '文'"):
            make_encoder(words(), Task(template="{text}:", target="{label}", labels=["ok", "文"]))

    def test_no_end_of_text_token(self) -> None:
        tokenizer = words(eos=None)
        make_encoder(tokenizer, CLASSES).encode_rows([Row({"text": "a"}, 1)])
        with pytest.raises(SoftPromptError, match=r"no end-of-text token \(eos_token\), which free text needs"):
            make_encoder(tokenizer, ANSWERS).encode_rows([answer("a", "b")])
        with pytest.raises(SoftPromptError, match=r"which a label that begins another one needs"):
            make_encoder(tokenizer, Task(template="{text}:", labels=["a", "ab"]))


class TestCutting:
    def cut(self, text: str, room: int, task: Task = CLASSES, tokenizer: Any = TINY) -> tuple[str, int]:
        """The text as it is left, and how many rows were cut."""
        encoded = make_encoder(tokenizer, task, room).encode_rows([Row({"text": text}, 0)])
        return tokenizer.decode(encoded.input_ids[0], skip_special_tokens=True), encoded.truncated

    def test_only_what_is_too_long(self) -> None:
        fixed = len("Review: \nSentiment: negative")
        assert self.cut("a good film", fixed + 11) == ("Review: a good film\nSentiment:", 0)
        assert self.cut("a good film", fixed + 10) == ("Review: a good fil\nSentiment:", 1)
        assert self.cut("a good film", fixed) == ("Review: \nSentiment:", 1)

    def test_training_and_evaluation_cut_alike(self) -> None:
        task = Task(template="{text}:", labels=["no", "certainly"])
        encoder = make_encoder(TINY, task, 20)
        rows = [Row({"text": "x" * 50}, label) for label in (0, 1, None)]
        first, second, third = (encoder.encode_rows([row]).input_ids[0] for row in rows)
        assert first == second == third == TINY("x" * 9 + ":")["input_ids"]
        assert encoder.encode_text({"text": "x" * 50}) == first

    def test_free_text_makes_room_for_its_own_target_or_what_is_reserved(self) -> None:
        encoder = make_encoder(TINY, Task(template="{question}:", target="{answer}"), 20)
        row = Row({"question": "x" * 50}, None, "y" * 6)  # and the end-of-text token
        assert len(encoder.encode_rows([row]).input_ids[0]) == 13
        assert len(encoder.encode_rows([row], reserve=10).input_ids[0]) == 10
        assert len(encoder.encode_rows([row], reserve=2).input_ids[0]) == 13
        assert len(encoder.encode_text({"question": "x" * 50}, reserve=12)) == 8

    def test_the_longest_value_first(self) -> None:
        task = Task(template="{a}|{b}|{c}", target="{y}")
        columns = {"a": "a" * 30, "b": "b" * 5, "c": "c" * 20}
        for room, expected in [
            (50, "a" * 23 + "|bbbbb|" + "c" * 20),
            (32, "a" * 12 + "|bbbbb|" + "c" * 12),
            (11, "aaa|bbb|ccc"),
            (2, "||"),
        ]:
            assert TINY.decode(make_encoder(TINY, task, room).encode_text(columns)) == expected
        with pytest.raises(SoftPromptError, match=r"the template alone takes 2 tokens"):
            make_encoder(TINY, task, 1).encode_text(columns)

    def test_a_value_named_twice_is_cut_in_both_places(self) -> None:
        task = Task(template="{a}|{a}", target="{y}")
        assert TINY.decode(make_encoder(TINY, task, 9).encode_text({"a": "xyz" * 9})) == "xyzx|xyzx"

    def test_no_half_characters(self) -> None:
        text, _ = self.cut("😀" * 40, 60)
        assert text == "Review: " + "😀" * 8 + "\nSentiment:"

    def test_a_slow_tokenizer(self) -> None:
        fixed = len("Review: \nSentiment: negative")
        assert self.cut("a good film", fixed + 6, tokenizer=ByT5Tokenizer()) == ("Review: a good\nSentiment:", 1)

    def test_special_tokens_count(self) -> None:
        tokenizer = words(start="<s>")
        encoder = make_encoder(tokenizer, Task(template="{text}:", labels=["a", "b"]), 10)
        assert encoder.encode_text({"text": "x" * 50}) == tokenizer("x" * 6 + ":")["input_ids"][:-1]

    @pytest.mark.parametrize("text", ["x" * 100_000, "word " * 20_000, "😀" * 100_000])
    def test_a_very_long_text(self, text: str) -> None:
        start = time.perf_counter()
        encoded = make_encoder(TINY, CLASSES, 200).encode_rows([Row({"text": text}, 1)])
        assert time.perf_counter() - start < 3
        assert 197 <= len(encoded.input_ids[0]) + len(" negative") <= 200

    def test_a_template_that_does_not_fit(self) -> None:
        fixed = len("Review: \nSentiment:")
        row = Row({"text": "abc"}, 1, source="a.csv", number=7)
        line = rf"^a\.csv: row 7: the template alone takes {fixed} tokens, but the target leaves it 10 of 19"
        with pytest.raises(SoftPromptError, match=line):
            make_encoder(TINY, CLASSES, 10 + len(" negative")).encode_rows([row])

    def test_a_target_that_does_not_fit(self) -> None:
        with pytest.raises(SoftPromptError, match=r"^qa\.csv: row 2: the template alone takes 6 tokens"):
            make_encoder(TINY, ANSWERS, 30).encode_rows([answer("a", "b"), answer("a", "b" * 40, number=2)])

    def test_long_texts_are_no_warning(self, caplog: pytest.LogCaptureFixture) -> None:
        tokenizer = make_tokenizer()
        tokenizer.model_max_length = 16
        make_encoder(tokenizer, CLASSES, 60).encode_rows([Row({"text": "x" * 500}, 1)])
        assert caplog.text == ""

    @settings(deadline=None, max_examples=150)
    @given(
        columns=st.fixed_dictionaries({name: st.text(st.characters(codec="utf-8"), max_size=60) for name in "ab"}),
        room=st.integers(20, 90),
        tokenizer=st.sampled_from(
            [TINY, words("ab", " a", start="<s>"), words("▁a", metaspace=True, start="<s>"), ByT5Tokenizer()]
        ),
    )
    def test_it_always_fits_and_keeps_template_and_target(
        self, columns: Mapping[str, str], room: int, tokenizer: Any
    ) -> None:
        task = Task(template="<{a}[{b}]:", labels=["no", "yes"])
        encoder = make_encoder(tokenizer, task, room)
        uncut = make_encoder(tokenizer, task).encode_text(columns)
        longest = max(map(len, encoder.answer.label_ids or []))
        encoded = encoder.encode_rows([Row(dict(columns), 1)])
        [ids], [target] = encoded.input_ids, encoded.target_ids or []
        assert len(ids) + longest <= room
        assert target == (encoder.answer.label_ids or [])[1]
        assert (ids == uncut) == (encoded.truncated == 0) == (len(uncut) + longest <= room)
        # What is left of the values is their beginning: the same ids as some cut of each would give.
        lefts = {
            tuple(encoder_ids)
            for left in range(len(columns["a"]) + 1)
            for encoder_ids in uncut_ids(tokenizer, task, columns, left)
        }
        assert tuple(ids) in lefts


def uncut_ids(tokenizer: Any, task: Task, columns: Mapping[str, str], left: int) -> list[list[int]]:
    cuts = [{"a": columns["a"][:left], "b": columns["b"][:right]} for right in range(len(columns["b"]) + 1)]
    return make_encoder(tokenizer, task).encode_rows([Row(cut) for cut in cuts]).input_ids


def test_many_rows_are_encoded_in_chunks_four_bytes_an_id(
    tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "softprompt")
    encoder = make_encoder(tiny_tokenizer, CLASSES, 200)
    rows = [Row({"text": f"{i} " * (150 if i == 5 else 1 + i % 3)}, i % 2) for i in range(10)]
    whole = encoder.encode_rows(rows)
    calls: list[int] = []
    texts = TaskTokenizer.texts

    def counted(self: TaskTokenizer, parts: Any) -> Any:
        calls.append(len(parts))
        return texts(self, parts)

    monkeypatch.setattr(TaskTokenizer, "texts", counted)
    monkeypatch.setattr(encode, "_AT_ONCE", 4)
    monkeypatch.setattr(encode, "_SILENCE", -1)
    found = make_encoder(tiny_tokenizer, CLASSES, 200).encode_rows(rows)
    assert max(calls) == 4
    assert (found.input_ids, found.target_ids, found.gold) == (whole.input_ids, whole.target_ids, whole.gold)
    assert (found.cut, found.truncated, found.with_special) == (whole.cut, 1, whole.with_special)
    assert "encoded 8 of 10 rows" in caplog.text
    assert found.input_ids._flat.itemsize == 4
    assert found.input_ids[-1] == found.input_ids[9] == list(found.input_ids)[9]
    assert found.input_ids[7:] == list(found.input_ids)[7:]
    with pytest.raises(IndexError):
        found.input_ids[10]
    assert make_encoder(tiny_tokenizer, CLASSES).encode_rows([Row({"text": "a"})] * 9).target_ids is None
