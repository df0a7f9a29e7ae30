from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from softprompt.serving.text import Detokenizer, StopStrings, TokenTexts
from tests.conftest import make_tokenizer

TOKENIZER = make_tokenizer()


def decode(ids):
    return TOKENIZER.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def encode(text):
    return TOKENIZER(text)["input_ids"]


def pieces(ids, context=()):
    decoder = Detokenizer(TOKENIZER, context)
    return [*(decoder.add(token) for token in ids), decoder.end()]


def cut(stops, chunks):
    """What StopStrings lets through, and whether it stopped."""
    stop, found = StopStrings(stops), ""
    for chunk in chunks:
        text, stopped = stop.add(chunk)
        found += text
        if stopped:
            return found, True
    return found + stop.end(), False


class TestDetokenizer:
    @given(st.text(max_size=20), st.text(max_size=8))
    def test_the_pieces_are_the_text(self, text, context):
        assert "".join(pieces(encode(text), encode(context))) == text

    @given(st.lists(st.integers(0, 257), max_size=30))
    def test_whatever_the_bytes_the_pieces_are_what_decoding_gives(self, ids):
        assert "".join(pieces(ids)) == decode(ids)

    def test_a_character_comes_once_it_is_whole(self):
        assert pieces(encode("aé🙂b")) == ["a", "", "é", "", "", "", "🙂", "b", ""]

    def test_bytes_that_never_become_a_character_come_at_the_end(self):
        assert pieces(encode("a🙂")[:3]) == ["a", "", "", "\ufffd"]

    def test_special_tokens_are_left_out(self):
        assert pieces([*encode("a"), 0, *encode("b")]) == ["a", "", "b", ""]

    def test_the_first_token_keeps_the_space_that_it_has_after_the_text(self, sentencepiece_like):
        ids = sentencepiece_like("big dog")["input_ids"]
        decoder = Detokenizer(sentencepiece_like, ids[:1])
        assert decoder.add(ids[1]) == " dog"

    @pytest.mark.parametrize("letters", ["é", "🙂", "a\u0301", "日本"])
    def test_a_character_that_the_context_begins_comes_whole(self, letters):
        ids = encode(f"a{letters}b")
        for cut_at in range(1, len(ids)):
            given = decode(ids[:cut_at]).rstrip("\ufffd")
            assert given + "".join(pieces(ids[cut_at:], ids[:cut_at])) == f"a{letters}b"


class TestStopStrings:
    @pytest.mark.parametrize(
        ("stops", "text", "expected"),
        [
            ([], "abc", ("abc", False)),
            (["x"], "abc", ("abc", False)),
            (["b"], "abcb", ("a", True)),
            (["bcd"], "abc", ("abc", False)),
            (["aab"], "aaab", ("a", True)),
            (["abcd", "bc"], "abcd", ("a", True)),  # "bc" is complete first
            (["bc", "abc"], "abc", ("", True)),  # complete together: the longer one begins first
            (["\n\n"], "a\n", ("a\n", False)),
            (["\n\n"], "a\n\n", ("a", True)),
        ],
    )
    def test_it_cuts_before_the_string_that_is_complete_first(self, stops, text, expected):
        assert cut(stops, [text]) == cut(stops, text) == expected

    @given(
        st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
        st.lists(st.text("ab", max_size=5), max_size=6),
    )
    def test_the_borders_between_chunks_do_not_matter(self, stops, chunks):
        text = "".join(chunks)
        ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
        expected = (text[: min(ends)[1]], True) if ends else (text, False)
        assert cut(stops, chunks) == expected

    def test_what_cannot_begin_a_stop_string_is_not_held_back(self):
        assert StopStrings(["END"]).add("the E") == ("the ", False)
        assert StopStrings(["END"]).add("the Ex") == ("the Ex", False)


class TestTokenTexts:
    def test_each_token_has_its_text(self, sentencepiece_like):
        texts = TokenTexts(TOKENIZER)
        assert [texts[token] for token in [*encode("a "), 0, *encode("é")]] == ["a", " ", "<eos>", "\ufffd", "\ufffd"]
        dog = sentencepiece_like("big dog")["input_ids"][1]
        assert TokenTexts(sentencepiece_like)[dog] == " dog"

    @pytest.mark.parametrize("text", ["a", " ", "é", "🙂", "日"])
    def test_the_bytes_of_its_tokens_are_those_of_a_character(self, text):
        texts = TokenTexts(TOKENIZER)
        assert bytes(byte for token in encode(text) for byte in texts.bytes_of(token)).decode() == text

    def test_bytes_in_a_vocabulary_of_pieces(self, sentencepiece_like):
        texts = TokenTexts(sentencepiece_like)
        byte, dog, unknown = sentencepiece_like.convert_tokens_to_ids(["<0xE6>", "▁dog", "�"])
        assert texts.bytes_of(byte) == [0xE6]
        assert texts.bytes_of(dog) == list(b" dog")
        assert texts.bytes_of(unknown) is None


@pytest.fixture
def sentencepiece_like():
    """A tokenizer that joins words by "▁" and drops the one at a text's start, as Llama 2's does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate(["<unk>", "▁a", "▁big", "▁dog", "<0xE6>", "�"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
