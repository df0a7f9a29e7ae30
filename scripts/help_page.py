"""Write docs/commands.md, what `--help` says of every command: `python -m scripts.help_page`."""

from __future__ import annotations

import html
from pathlib import Path

import typer
from typer.cli import get_docs_for_click
from typer.main import get_command

from softprompt.cli import app

PAGE = Path(__file__).parents[1] / "docs" / "commands.md"


def text() -> str:
    command = get_command(app)
    context = typer.Context(command, info_name="softprompt")
    return (
        html.unescape(get_docs_for_click(obj=command, ctx=context, name="softprompt", title="Commands")).strip() + "\n"
    )


if __name__ == "__main__":
    PAGE.write_text(text(), encoding="utf-8")
