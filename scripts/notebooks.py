"""The course notebooks, in English and in Spanish: `python -m scripts.notebooks` runs and writes both.

Owns how they are made of `notebook.txt`, where their words and code are. A part there begins with `=== en` and
`=== es`, for the same text in both languages, or with `=== code`, in which `«one|uno»` is English on the left and
Spanish on the right, so that the two never differ in what they do.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

SOURCE = Path(__file__).with_name("notebook.txt")
EXAMPLES = Path(__file__).parent.parent / "examples"
FILES = {"en": EXAMPLES / "prompt_tuning_smollm2.ipynb", "es": EXAMPLES / "prompt_tuning_smollm2_es.ipynb"}
PARAMETERS = "parameters"  # the tag of the first cell of code, which a test replaces

_KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
_LANGUAGE = {"name": "python"}


def build(language: str) -> NotebookNode:
    """The notebook in "en" or "es", formatted and not run. Equal builds are equal bytes."""
    notebook = new_notebook(metadata={"kernelspec": _KERNEL, "language_info": _LANGUAGE})
    parts = re.split(r"^=== (en|es|code)\n", SOURCE.read_text("utf-8"), flags=re.MULTILINE)[1:]
    side = list(FILES).index(language) + 1
    for kind, text in zip(parts[::2], parts[1::2], strict=True):
        if kind == "code":
            cell = new_code_cell(re.sub(r"«([^|»]*)\|([^»]*)»", rf"\{side}", text.strip()))
            if not any(other.cell_type == "code" for other in notebook.cells):
                cell.metadata["tags"] = [PARAMETERS]
        elif kind == language:
            cell = new_markdown_cell(text.strip())
        else:
            continue
        cell["id"] = f"cell-{len(notebook.cells)}"
        notebook.cells.append(cell)
    command = [sys.executable, "-m", "ruff", "format", "--quiet", "--stdin-filename", str(FILES[language]), "-"]
    formatted = subprocess.run(command, input=nbformat.writes(notebook), capture_output=True, text=True, check=True)
    return nbformat.reads(formatted.stdout, as_version=4)


def run(notebook: NotebookNode, seconds: int = 900) -> NotebookNode:
    """Run all cells, at most `seconds` each, and keep their outputs.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    NotebookClient(notebook, timeout=seconds, kernel_name=_KERNEL["name"], record_timing=False).execute()
    notebook.metadata["language_info"] = _LANGUAGE  # as built: the kernel adds its version
    return notebook


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("languages", nargs="*", metavar="LANGUAGE", help="en, es (default: both)")
    for language in parser.parse_args().languages or FILES:
        file = FILES[language]
        temporary = file.with_name(f".{file.name}")
        nbformat.write(run(build(language)), temporary)
        os.replace(temporary, file)
        print(f"{file}: {file.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
