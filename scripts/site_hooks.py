"""What `make docs` does beside mkdocs: the results of the benchmarks, which lie outside docs/, are part of the site."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

RESULTS = Path("benchmarks/results")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    for path in sorted(RESULTS.iterdir()):
        files.append(File.generated(config, path.as_posix(), abs_src_path=str(path.resolve())))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    return markdown.replace(f"](../{RESULTS.as_posix()}/", f"]({RESULTS.as_posix()}/")
