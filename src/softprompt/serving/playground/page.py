"""The playground's page: its tabs and elements, and which of them does what.

Owns the layout and the elements' ids. What a visitor chose stays in the visitor's browser. Gradio is imported where it
is used.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softprompt.errors import SoftPromptError
from softprompt.serving.logs import LOGGER
from softprompt.serving.playground import asking, files, library, looks
from softprompt.serving.playground.client import Visitor
from softprompt.serving.playground.texts import TEXTS

if TYPE_CHECKING:
    from gradio import Blocks, I18n
    from gradio.i18n import I18nData
    from starlette.types import ASGIApp

_KEY = "softprompt_"  # Gradio has texts of its own, under names such as "file"
_FOLLOW = 3.0  # seconds between two looks at a run

Handler = Callable[..., AsyncGenerator[Any, None]]


def translations() -> I18n:
    """The page's own words in the browser's language."""
    import gradio as gr

    return gr.I18n(**{language: {_KEY + key: text for key, text in texts.items()} for language, texts in TEXTS.items()})


def make_page(app: ASGIApp, runs_folder: Path) -> Blocks:
    """The page, which is the same for all visitors until it has loaded.

    Args:
        app: the server's, whose API it asks.
        runs_folder: of training runs.
    """
    import gradio as gr

    page: Blocks
    with gr.Blocks(title="softprompt playground", analytics_enabled=False, delete_cache=(3600, 86_400)) as page:
        gr.Markdown("# softprompt", elem_id="title")
        greeting = gr.HTML(elem_id="greeting")
        with gr.Tabs(overflow_behavior="wrap"):
            parts = _Parts(page, greeting, translations())
        _connect(parts, app, runs_folder)
    return page


class _Parts:
    """The page's elements, tab by tab; made within `gr.Tabs`."""

    def __init__(self, page: Blocks, greeting: Any, translated: I18n) -> None:
        import gradio as gr

        def say(key: str) -> I18nData:
            return translated(_KEY + key)

        def choice(label: str, element: str, **options: Any) -> Any:
            # Custom values are let through: which names there are is for the API to say, also after a restart.
            return gr.Dropdown([], label=say(label), allow_custom_value=True, elem_id=element, **options)

        def upload(element: str) -> Any:
            return gr.File(label=say("csv"), file_types=[".csv"], height=160, elem_id=element)

        def button(label: str, element: str) -> Any:
            return gr.Button(say(label), variant="primary", elem_id=element)

        self.page, self.greeting = page, greeting
        with gr.Tab(say("try"), id="try") as self.try_tab:
            gr.Markdown(say("try_help"))
            self.tasks = choice("tasks", "tasks", multiselect=True)
            names = ["text", *(f"text-{number}" for number in range(2, asking.MOST_BOXES + 1))]
            self.boxes = [
                gr.Textbox(label=say("text"), lines=3, max_lines=12, visible=name == "text", elem_id=name)
                for name in names
            ]
            self.ask = button("ask", "ask")
            self.answer = gr.HTML(elem_id="answer")
        with gr.Tab(say("file"), id="file") as self.file_tab:
            gr.Markdown(say("file_help"))
            self.file_task = choice("task", "file-task")
            self.file = upload("file")
            self.file_base = gr.Checkbox(True, label=say("file_base"), elem_id="file-base")
            self.file_ask = button("file_ask", "file-ask")
            self.file_answer = gr.HTML(elem_id="file-answer")
            # Its type knows no translations, its button does.
            self.download = gr.DownloadButton(str(say("download")), visible=False, elem_id="download")
        with gr.Tab(say("library"), id="library") as self.library_tab:
            self.prompts = gr.HTML(elem_id="library")
        with gr.Tab(say("runs"), id="runs") as self.runs_tab:
            self.runs = choice("run", "runs")
            self.run = gr.HTML(elem_id="run")
            self.seen, self.listed = gr.State(), gr.State()
            self.timer = gr.Timer(_FOLLOW, active=False)
        with gr.Tab(say("compare"), id="compare") as self.compare_tab:
            gr.Markdown(say("compare_help"))
            with gr.Row():
                self.first, self.second = choice("first", "compare-first"), choice("second", "compare-second")
            self.compare_file = upload("compare-file")
            self.compare = button("compare", "compare-ask")
            self.comparison = gr.HTML(elem_id="comparison")


def _on(app: ASGIApp, triggers: Sequence[Any], handler: Handler, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
    """Let `handler`, called with the visitor and the inputs' values, fill the outputs; the first shows errors."""
    import gradio as gr

    async def call(request: Any, *values: Any) -> AsyncGenerator[Any, None]:
        visitor = Visitor(app, request.client.host if request.client else "", request.headers)
        try:
            async with aclosing(handler(visitor, *values)) as results:
                async for result in results:
                    yield result
        except Exception as error:
            line = str(error)
            if not isinstance(error, SoftPromptError):
                LOGGER.error("playground failed", exc_info=error)
                line = visitor.texts["failed"]
            told = looks.page(looks.error(line))
            yield told if len(outputs) == 1 else [told, *[gr.skip()] * (len(outputs) - 1)]

    call.__annotations__ = {"request": gr.Request}  # by which Gradio knows what to hand in
    gr.on(
        list(triggers),
        call,
        list(inputs),
        list(outputs),
        show_progress="hidden",
        concurrency_limit=None,
        api_visibility="private",
    )


def _connect(parts: _Parts, app: ASGIApp, runs_folder: Path) -> None:
    """Which element does what."""
    import gradio as gr

    p, on = parts, partial(_on, app)

    async def show_boxes(visitor: Visitor, chosen: list[str] | None) -> Any:
        columns = await asking.columns_of(visitor, chosen or [])
        # One box needs no column's name.
        labels = columns if len(columns) > 1 else [visitor.texts["text"]]
        shown = [gr.Textbox(label=label, visible=True) for label in labels]
        yield [gr.skip(), *shown, *[gr.Textbox(visible=False)] * (len(p.boxes) - len(shown))]

    async def follow(_: Visitor, runs_shown: bool) -> Any:
        yield [gr.skip(), gr.Timer(active=runs_shown)]

    loaded = [p.page.load, p.try_tab.select, p.file_tab.select]
    on(loaded, _refresh, [p.tasks, p.file_task], [p.greeting, p.tasks, p.file_task])
    on([p.tasks.change], show_boxes, [p.tasks], [p.answer, *p.boxes])
    on([p.ask.click, *(box.submit for box in p.boxes)], asking.ask, [p.tasks, *p.boxes], [p.answer])
    on([p.file_ask.click], _show_file, [p.file_task, p.file, p.file_base], [p.file_answer, p.download])
    on([p.page.load, p.library_tab.select], library.show_library, [], [p.prompts])
    looked = [p.runs_tab.select, p.runs.input, p.timer.tick]
    on(looked, _shows_runs(runs_folder), [p.runs, p.listed, p.seen], [p.run, p.runs, p.listed, p.seen])
    on([p.compare_tab.select], _show_versions, [p.first, p.second], [p.comparison, p.first, p.second])
    on([p.compare.click], files.compare, [p.first, p.second, p.compare_file], [p.comparison])
    on([p.runs_tab.select], follow, [gr.State(True)], [p.run, p.timer])
    others = (p.try_tab, p.file_tab, p.library_tab, p.compare_tab)
    on([tab.select for tab in others], follow, [gr.State(False)], [p.run, p.timer])


def _offer(names: list[str], chosen: Any, value: Any) -> Any:
    """A choice among `names`. One that stays is not sent: the visitor may have made another meanwhile."""
    import gradio as gr

    return gr.Dropdown(names) if value == chosen else gr.Dropdown(names, value=value)


async def _refresh(visitor: Visitor, chosen: list[str] | None, of_file: str | None) -> Any:
    base, *models = await visitor.models()
    names = [model.id for model in models]
    kept = [name for name in chosen or [] if name in names] or names[:1]
    with_task = [model.id for model in models if model.card is not None and model.card.task is not None]
    one = of_file if of_file in names else next(iter(with_task), None)
    line = visitor.texts["served" if names else "nothing_served"].format(base=base.id, count=len(names))
    yield [looks.page(looks.notice(line)), _offer(names, chosen, kept), _offer(names, of_file, one)]


async def _show_file(visitor: Visitor, name: str | None, path: str | None, with_base: bool) -> Any:
    import gradio as gr

    async with aclosing(files.answer_file(visitor, name, path, with_base)) as shown:
        async for one, made in shown:
            yield [one, gr.DownloadButton(value=None if made is None else str(made), visible=made is not None)]


def _shows_runs(folder: Path) -> Handler:
    import gradio as gr

    # matplotlib's settings, which a figure changes while it is drawn, are everybody's.
    drawing = asyncio.Lock()

    async def show(visitor: Visitor, chosen: str | None, known: list[str] | None, mark: object) -> Any:
        # Training brings a large part of Transformers along, which a server without visitors has no need of.
        from softprompt.serving.playground.runs import list_runs, show_run

        names = await asyncio.to_thread(list_runs, folder)
        name = chosen or next(iter(names), None)
        choices = gr.skip() if names == known and name == chosen else gr.Dropdown(names, value=name)
        async with drawing:
            found = await asyncio.to_thread(show_run, folder, name, mark, visitor.texts)
        shown, mark = (gr.skip(), mark) if found is None else found
        yield [shown, choices, names, mark]

    return show


async def _show_versions(visitor: Visitor, one: str | None, two: str | None) -> Any:
    import gradio as gr

    names = [version.id for version in (await visitor.library()).data]
    older, newer = library.first_choice(names)
    choices = _offer(names, one, one if one in names else older), _offer(names, two, two if two in names else newer)
    yield [gr.skip(), *choices]
