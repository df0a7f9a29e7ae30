"""How the page lives beside the API: where Gradio is put into the server's app, and how it is kept quiet.

Does not know what is on the page (`page`), nor who may see it (`gate`).
"""

from __future__ import annotations

import asyncio
import importlib
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware

from softprompt.serving.playground import PATHS

_FAINT = ("body_text_color_subdued", "block_info_text_color", "block_label_text_color", "block_title_text_color")
_CLOSING = 0.5  # seconds between two looks at whether the server stops


@asynccontextmanager
async def page_beside(
    api: FastAPI, runs: Path, *, body_limit: int, root_path: str, stopping: Callable[[], bool]
) -> AsyncIterator[None]:
    """From here to the end `api` has the page at its paths; what was uploaded is deleted at the end.

    Args:
        api: the server's app.
        runs: the folder of training runs.
        body_limit: the largest upload in bytes.
        root_path: what a proxy puts before every path.
        stopping: whether the server stops.
    """
    await asyncio.to_thread(importlib.import_module, "gradio")
    with TemporaryDirectory(prefix="softprompt-playground-") as folder:
        os.environ |= {
            "GRADIO_TEMP_DIR": folder,
            "GRADIO_ANALYTICS_ENABLED": "False",
            # Else it makes tables of all events of the past, at each new one.
            "GRADIO_ANALYTICS_CACHE_FREQUENCY": str(2**62),
            "GRADIO_ANALYTICS_MAX_EVENTS": "1",
        }
        page = _mount(api, runs, body_limit, root_path)
        for path in ["/", *(f"{start}{{rest:path}}" for start in PATHS.calls + PATHS.files)]:
            api.router.add_route(path, page, include_in_schema=False)  # type: ignore[arg-type]  # it takes apps, too
        async with page.router.lifespan_context(page):
            closing = asyncio.create_task(_close(page, stopping))
            try:
                yield
            finally:
                closing.cancel()


def _mount(api: FastAPI, runs: Path, body_limit: int, root_path: str) -> FastAPI:
    import gradio as gr

    from softprompt.serving.playground.looks import STYLE
    from softprompt.serving.playground.page import make_page, translations

    shell = FastAPI(openapi_url=None)
    # Without one Gradio adds its own, which lets every other site in where the host is not this machine.
    shell.add_middleware(CORSMiddleware)
    fonts = ("ui-sans-serif", "system-ui", "sans-serif")  # the system's: others come from the network
    theme = gr.themes.Default(primary_hue="blue", font=fonts, font_mono=("ui-monospace", "monospace"))
    faint = {"": "*neutral_600", "_dark": "*neutral_300"}  # what Gradio has is too pale to be read by all
    theme.set(**{f"{part}{mode}": faint[mode] for part in _FAINT for mode in faint})
    mounted: FastAPI = gr.mount_gradio_app(
        shell,
        make_page(api, runs),
        path="/",
        root_path=root_path,
        footer_links=[],
        run_history=False,
        show_error=False,
        max_file_size=body_limit,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        i18n=translations(),
        theme=theme,
        css=STYLE,
    )
    return mounted


async def _close(page: FastAPI, stopping: Callable[[], bool]) -> None:
    """End the streams that open pages hold, so that the server need not wait for them when it stops."""
    while not stopping():
        await asyncio.sleep(_CLOSING)
    (mounted,) = (route.app for route in page.routes if hasattr(route, "app"))
    mounted.stop_event.set()
