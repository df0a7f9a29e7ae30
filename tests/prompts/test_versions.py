from __future__ import annotations

import json

import pytest

from softprompt.errors import SoftPromptError
from softprompt.prompts.names import FILES
from softprompt.prompts.versions import Versions

DIGESTS = dict.fromkeys(FILES, "ab" * 32)


def some(*numbers: int, current: int) -> Versions:
    return Versions(current=current, last=max(numbers), versions=dict.fromkeys(numbers, DIGESTS))


@pytest.mark.parametrize("versions", [Versions(), Versions(last=7), some(1, 2, 5, current=2)])
def test_written_and_read_is_the_same(versions):
    assert Versions.parse(versions.text().encode(), "v.json") == versions


def test_every_damaged_byte_is_found():
    whole = some(1, 2, current=2).text().encode()
    for place in range(len(whole)):
        for flip in (1, 2, 4, 32):
            damaged = whole[:place] + bytes([whole[place] ^ flip]) + whole[place + 1 :]
            with pytest.raises(SoftPromptError, match=r"v\.json (is damaged|has format version)"):
                Versions.parse(damaged, "v.json")


@pytest.mark.parametrize(
    "content",
    [b"", b"null", b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"format_version": "x"}', b'{"format_version":1}'],
)
def test_what_is_not_the_file(content):
    with pytest.raises(SoftPromptError, match="damaged: put it back from a copy"):
        Versions.parse(content, "v.json")


def test_a_current_version_that_is_not_there():
    for there in ({}, {2: DIGESTS}):
        versions = Versions.model_construct(format_version=1, current=1, last=2, versions=there)
        with pytest.raises(SoftPromptError, match="damaged"):
            Versions.parse(versions.text().encode(), "v.json")


def test_a_newer_file():
    content = json.dumps({"format_version": 2, "whatever": "comes"}).encode()
    with pytest.raises(SoftPromptError, match=r"v\.json has format version 2, but .* up to 1: upgrade softprompt"):
        Versions.parse(content, "v.json")


def test_changes():
    first = Versions().added(1, DIGESTS)
    assert (first.current, first.last, list(first.versions)) == (1, 1, [1])
    third = first.added(2, DIGESTS).added(3, DIGESTS)
    assert third.before(3) == 2
    assert third.before(1) is None
    assert third.rolled_back(1).current == 1
    assert third.rolled_back(1).removed({2}).current == 1
    assert third.removed({3}).current == 2
    assert third.removed({3}).last == 3
    assert third.removed({1, 2, 3}) == Versions(last=3)
