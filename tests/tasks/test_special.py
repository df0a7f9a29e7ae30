"""Special tokens: the template's own stay tokens, those in values become text, and nothing else changes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import ByT5Tokenizer, CTRLTokenizer, PreTrainedTokenizerFast

from softprompt.tasks import Row, Task
from softprompt.tasks.special import SpecialTokens
from tests.tasks.encoders import make_encoder

LETTERS = [*map(chr, range(33, 127)), "\n"]
SPECIAL = ["<s>", "</s>", "<|im_end|>", "<unk>"]


def wrap(tokenizer: Tokenizer, *, lstrip: bool = False, start: bool = False) -> PreTrainedTokenizerFast:
    if start:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    fast.add_special_tokens({"additional_special_tokens": [AddedToken("<|im_end|>", lstrip=lstrip, rstrip=lstrip)]})
    return fast


def byte_level(**settings: bool) -> PreTrainedTokenizerFast:
    vocabulary = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), "ok", "Ġok"]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(vocabulary)}, [("o", "k"), ("Ġ", "ok")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return wrap(tokenizer, **settings)


def metaspace(scheme: str, **settings: bool) -> PreTrainedTokenizerFast:
    vocabulary = [*SPECIAL, "▁", *LETTERS, "ok", "▁ok"]
    tokenizer = Tokenizer(
        models.BPE({token: i for i, token in enumerate(vocabulary)}, [("o", "k"), ("▁", "ok")], unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    return wrap(tokenizer, **settings)


def prepended(**settings: bool) -> PreTrainedTokenizerFast:
    """As Llama 2's: a normaliser puts the space, before each stretch between special tokens."""
    vocabulary = [*SPECIAL, "▁", *LETTERS, "ok", "▁ok"]
    tokenizer = Tokenizer(
        models.BPE({token: i for i, token in enumerate(vocabulary)}, [("o", "k"), ("▁", "ok")], unk_token="<unk>")
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return wrap(tokenizer, **settings)


def word_piece(**settings: bool) -> PreTrainedTokenizerFast:
    letters = [letter for letter in LETTERS if not letter.isupper()]
    vocabulary = dict.fromkeys([*SPECIAL, "ok", *letters, *(f"##{letter}" for letter in letters)])
    tokenizer = Tokenizer(models.WordPiece({token: i for i, token in enumerate(vocabulary)}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return wrap(tokenizer, **settings)


def unigram(**settings: bool) -> PreTrainedTokenizerFast:
    """Its model takes `</s>` for a token even where the tokenizer looks for none, as T5's and XGLM's do."""
    pieces = [(token, 0.0) for token in SPECIAL[:4]] + [(piece, -2.0) for piece in ["▁", *LETTERS, "ok", "▁ok"]]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=3))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    return wrap(tokenizer, **settings)


FAST = {
    "byte_level": byte_level(),
    "byte_level_with_start": byte_level(start=True),
    "stripping": byte_level(lstrip=True),
    "first": metaspace("first", start=True),
    "always": metaspace("always"),
    "prepended": prepended(start=True),
    "word_piece": word_piece(),
    "unigram": unigram(start=True),
}
SLOW = {"byt5": ByT5Tokenizer()}
TOKENIZERS = FAST | SLOW
PLAIN = st.text("ok <>/s|im_end\n", max_size=12)
NOISY = st.lists(st.sampled_from(["</s>", "<|im_end|>", "<s>", "<unk>", "ok", " ", "<", "s>", "x"]), max_size=6)
TEMPLATES = ["{text}", "ok {text} ok", "<s>ok {text}</s> ok<|im_end|>{text}\n", "<{text}>", "{text}<unk>{text}"]


def encode(tokenizer: Any, template: str, text: str) -> list[int]:
    task = Task(template=template, target=" {answer}")
    return SpecialTokens(tokenizer).encode(task.parts({"text": text}))


def special_of(tokenizer: Any) -> set[str]:
    return {token.content for token in tokenizer.added_tokens_decoder.values() if token.special} | {
        *tokenizer.all_special_tokens
    }


@pytest.mark.parametrize("name", TOKENIZERS)
@given(text=PLAIN, template=st.sampled_from(TEMPLATES))
def test_a_text_without_them_is_encoded_as_ever(name: str, text: str, template: str) -> None:
    """By the way for texts with them too, so that the two ways cannot drift apart."""
    tokenizer = TOKENIZERS[name]
    whole = template.replace("{text}", text)
    parts = Task(template=template, target=" {answer}").parts({"text": text})
    if not SpecialTokens(tokenizer).in_values(parts):
        assert encode(tokenizer, template, text) == tokenizer(whole, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("name", [name for name in FAST if name != "unigram"])
@given(pieces=NOISY)
def test_a_value_alone_is_what_transformers_splits(name: str, pieces: list[str]) -> None:
    tokenizer, text = byte_level() if name == "byte_level" else FAST[name], "".join(pieces)
    expected = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert encode(tokenizer, "{text}", text) == expected


@pytest.mark.parametrize("name", TOKENIZERS)
@given(pieces=NOISY, template=st.sampled_from(TEMPLATES))
def test_those_of_the_template_stay_and_there_are_no_others(name: str, pieces: list[str], template: str) -> None:
    tokenizer, text = TOKENIZERS[name], "".join(pieces)
    ids = encode(tokenizer, template, text)
    counted = special_of(tokenizer) - {"<unk>"}
    for token in counted:
        assert ids.count(tokenizer.convert_tokens_to_ids(token)) == template.count(token), token


@pytest.mark.parametrize("name", ["byte_level", "byt5"])
def test_it_is_the_pieces_one_after_the_other(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    special = SpecialTokens(tokenizer)
    parts = [("a</s>b ", False), ("</s> </s", True), (">", False), ("</s>", False)]
    pieces = [("a", False), (1, True), ("b </s> </s>", False), (1, True)]
    expected: list[int] = []
    for piece, token in pieces:
        expected += (
            [tokenizer.eos_token_id]
            if token
            else tokenizer(piece, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        )
    assert special.in_values(parts)
    assert special.encode(parts) == expected


def test_what_comes_about_at_a_border_counts() -> None:
    special = SpecialTokens(FAST["byte_level"])
    assert special.in_values([("<", False), ("/s", True), (">", False)])
    assert special.in_values([("", False), ("</s>", True)])
    assert not special.in_values([("</s>", False), ("ok", True), ("<s>", False)])
    assert not special.in_values([("<", False), ("/s>", False)])


@pytest.mark.parametrize("name", TOKENIZERS)
@given(pieces=NOISY)
def test_marks_come_back(name: str, pieces: list[str]) -> None:
    special, text = SpecialTokens(TOKENIZERS[name]), "".join(pieces)
    parts = special.unmark(f"<s>{special.mark_values(text)}</s>")
    assert "".join(piece for piece, _ in parts) == f"<s>{text}</s>"
    assert special.in_values(parts) == any(token in text for token in special_of(TOKENIZERS[name]))


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_tokenizer_is_not_changed(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    before = tokenizer("<s>ok</s> a")["input_ids"], len(tokenizer)
    encode(tokenizer, "{text}", "</s> ok <|im_end|>")
    assert (tokenizer("<s>ok</s> a")["input_ids"], len(tokenizer)) == before


@pytest.mark.parametrize("name", [name for name in FAST if FAST[name]("a")["input_ids"][0] == 0])
@pytest.mark.parametrize("beginning", ["", "<s>", "<s> "])
def test_what_the_tokenizer_puts_first_does_not_come_twice(name: str, beginning: str) -> None:
    tokenizer = FAST[name]
    ids = make_encoder(tokenizer, Task(template=beginning + "ok {text}", target=" {answer}")).encode_text(
        {"text": "ok"}
    )
    assert ids.count(0) == 1
    without = tokenizer(beginning + "ok ok", add_special_tokens=False)["input_ids"]
    assert ids == (without if beginning else [0, *without])
    of_value = make_encoder(tokenizer, Task(template="{text}", target=" {answer}")).encode_text({"text": "<s>ok"})
    assert (of_value[0], of_value.count(0)) == (0, 1)


class TestRows:
    def test_rows_with_them_are_counted_and_only_they_change(self) -> None:
        tokenizer = FAST["byte_level"]
        texts = ["ok", "a</s>", "<s>", "a < s>", "<|im_end|>"]
        rows = [Row({"text": text}, i % 2) for i, text in enumerate(texts)]
        task = Task(template="<s>Review: {text}\n", labels=["a", "b</s>"])
        encoded = make_encoder(tokenizer, task).encode_rows(rows)
        assert encoded.with_special == 3
        whole = tokenizer([task.render({"text": text}) for text in texts])["input_ids"]
        assert [ours == theirs for ours, theirs in zip(encoded.input_ids, whole, strict=True)] == [
            *(True, False, False, True, False)
        ]
        assert encoded.target_ids is not None
        assert encoded.target_ids[1][-1] == 1  # a label is the task's own word

    def test_in_an_answer_they_are_text_and_its_frame_keeps_its_own(self) -> None:
        tokenizer = FAST["byte_level"]
        task = Task(template="{text}:", target=" {answer}<|im_end|>{more}")
        target = task.render_target({"answer": "a</s>", "more": "<|im_end|>"})
        (ids,) = make_encoder(tokenizer, task).encode_rows([Row({"text": "x"}, None, target)]).target_ids or []
        end, turn = 1, tokenizer.convert_tokens_to_ids("<|im_end|>")
        assert (ids.count(end), ids[-1], ids.count(turn)) == (1, end, 1)
        assert tokenizer.decode(ids[:-1]) == target

    def test_a_long_row_of_them_is_cut_no_more_than_it_must(self) -> None:
        encoder = make_encoder(FAST["byte_level"], Task(template="{text}:", labels=["a", "b"]), 30)
        encoded = encoder.encode_rows([Row({"text": "</s>" * 30})])
        assert (encoded.truncated, len(encoded.input_ids[0])) == (1, 28)  # the longest label takes two
        assert FAST["byte_level"].decode(encoded.input_ids[0]) == "</s>" * 6 + "</s" + ":"


def test_a_tokenizer_without_any(tmp_path: Any) -> None:
    (tmp_path / "vocab.json").write_text('{"o@@": 0, "k": 1, "<unk>": 2}')
    (tmp_path / "merges.txt").write_text("#version: 0.2\no k</w>\n")
    tokenizer = CTRLTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    parts = [("k ", False), ("k", True)]
    assert not SpecialTokens(tokenizer).in_values(parts)
    assert SpecialTokens(tokenizer).encode(parts) == tokenizer("k k", add_special_tokens=False)["input_ids"]
