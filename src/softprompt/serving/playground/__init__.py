"""The playground: a page at `/` for people who want to look and try, and a client of the server's own HTTP API.

Owns whether there can be a page, and which paths are its own. Gradio comes with the extra `playground`, and is imported
where it is used.
"""

from __future__ import annotations

from importlib.util import find_spec

from softprompt.errors import SoftPromptError
from softprompt.serving.gate import PagePaths

ABSENT = 'the playground needs an extra: pip install "softprompt[playground]"'

_CALLS = ("queue/", "upload", "file=", "heartbeat/", "startup-events", "app_id", "cancel", "reset")
# Of Gradio's other paths the page needs none: they stay shut.
PATHS = PagePaths(
    calls=("/config", *(f"/gradio_api/{call}" for call in _CALLS)),
    files=("/assets/", "/static/", "/theme.css", "/favicon.ico"),
)


def is_installed() -> bool:
    """Whether the extra is."""
    return find_spec("gradio") is not None


def check_installed() -> None:
    """Check that the extra is installed.

    Raises:
        SoftPromptError: it isn't.
    """
    if not is_installed():
        raise SoftPromptError(f"{ABSENT}, or leave out --playground")
