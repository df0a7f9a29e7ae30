"""The docs say what the program is: its commands, its public face, the same in both languages."""

from __future__ import annotations

import re
from pathlib import Path

from scripts import help_page

import softprompt

DOCS = Path(__file__).parents[1] / "docs"


def fences(page: str, language: str) -> list[str]:
    """The page's blocks in a language: `sh` is what is typed, `python` a snippet."""
    return re.findall(rf"^```{language}\n(.*?)^```$", (DOCS / page).read_text("utf-8"), re.DOTALL | re.MULTILINE)


def test_the_commands_page_is_what_the_program_says() -> None:
    assert help_page.PAGE.read_text("utf-8") == help_page.text(), "run python -m scripts.help_page"


def test_the_api_page_has_the_public_face() -> None:
    named = re.findall(r"^::: softprompt\.(?:\w+\.)*(\w+)$", (DOCS / "api.md").read_text("utf-8"), re.MULTILINE)
    assert sorted(named) == softprompt.__all__


def test_both_first_hours_type_the_same() -> None:
    for language in ("sh", "python"):
        english = fences("first-hour.md", language)
        assert english
        assert fences("es/primera-hora.md", language) == english
