"""A real server in a process of its own, for benchmarks and scripts.

Owns the process. Does not know what is asked of it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def serving(base: str | Path, library: Path, *further: object, log: IO[str] | None = None) -> Iterator[tuple[str, int]]:
    """The URL of a server that is ready, and its process's id.

    Args:
        base, library: of `softprompt serve`.
        further: more of its words.
        log: where it writes what it logs.

    Raises:
        RuntimeError: it ended before it was ready; the end of its log says why.
    """
    words = ["--base", base, "--library", library, "--port", 0, "--json", *further]
    command = [sys.executable, "-m", "softprompt.cli", "serve", *map(str, words)]
    with (
        tempfile.TemporaryFile("w+") as own,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log or own, text=True) as server,
    ):
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            if not line:
                own.seek(0)
                raise RuntimeError(f"the server ended with {server.wait()}: {own.read()[-500:]}")
            yield json.loads(line)["url"], server.pid
        finally:
            server.terminate()
