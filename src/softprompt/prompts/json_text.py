"""JSON as it stands in files that people read. Owns the lines; knows nothing of what the documents say."""

from __future__ import annotations

import re


def with_short_lists(text: str) -> str:
    """Indented JSON with each list of numbers on one line; a string holds no line break, so none is changed."""
    return re.sub(r"\[\n[-+.\deE,\s]*\]", lambda found: " ".join(found[0].split()), text)
