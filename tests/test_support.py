"""What the docs call tested has a test."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_cell_of_what_is_tested_names_a_test_or_says_not_yet() -> None:
    lines = (ROOT / "docs/support.md").read_text("utf-8").splitlines()
    rows = [line.strip("|").split("|") for line in lines if line.startswith("|")][2:]
    assert rows
    for *_, test in rows:
        named = re.findall(r"`([^`]+)`", test)
        assert named or test.strip() == "not yet", test
        assert all("def test_" in (ROOT / "tests" / name).read_text("utf-8") for name in named)
