from __future__ import annotations

import pytest

from softprompt.errors import SoftPromptError
from softprompt.prompts.names import check_name, is_name, split_name

BAD = ["", ".", "..", ".mood", "../mood", "a/b", "a\\b", "/etc/passwd", "Mood", "mood ", "mööd", "a\n", "a\0", "a" * 65]


@pytest.mark.parametrize("name", ["a", "mood", "a.b_c-9", "-", "_", "a..", "9", "a" * 64])
def test_names(name):
    assert is_name(name)
    assert check_name(name) == name
    assert split_name(name) == (name, None)
    assert split_name(f"{name}@12") == (name, 12)


@pytest.mark.parametrize("name", BAD)
def test_no_names(name):
    assert not is_name(name)
    for call in (check_name, split_name, lambda name: split_name(f"{name}@1")):
        with pytest.raises(SoftPromptError, match=r"is not a prompt's name: a name is 1 to 64 of a-z, 0-9") as caught:
            call(name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("version", ["", "0", "-1", "+1", "01", "1.0", " 1", "x", "1@2", "٣", "1" * 10, "1" * 9999])
def test_no_versions(version):
    with pytest.raises(SoftPromptError, match="names no version: write NAME@3, a whole number from 1 on"):
        split_name(f"mood@{version}")


@pytest.mark.parametrize("name", [None, 3, b"mood"])
def test_no_texts(name):
    for call in (check_name, split_name):
        with pytest.raises(SoftPromptError, match="is not a prompt's name"):
            call(name)


def test_what_is_long_is_cut_in_the_message():
    with pytest.raises(SoftPromptError) as caught:
        check_name("x" * 1_000_000)
    assert len(str(caught.value)) < 200
