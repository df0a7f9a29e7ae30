"""The playground's page: its tabs and elements, and which of them does what.

Owns the layout and the elements' ids. What a visitor chose stays in the visitor's browser. Gradio is imported where it
is used.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
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

    translated = translations()
    # matplotlib's settings, which a figure changes while it is drawn, are everybody's.
    drawing = asyncio.Lock()

    def say(key: str) -> I18nData:
        return translated(_KEY + key)

    def on(triggers: Sequence[Any], handler: Handler, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        """Let `handler`, called with the visitor and the inputs' values, fill the outputs; the first shows errors."""

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

    def choice(label: str, element: str, **options: Any) -> Any:
        # Custom values are let through: which names there are is for the API to say, also after a restart.
        return gr.Dropdown([], label=say(label), allow_custom_value=True, elem_id=element, **options)

    def upload(element: str) -> Any:
        return gr.File(label=say("csv"), file_types=[".csv"], height=160, elem_id=element)

    def button(label: str, element: str) -> Any:
        return gr.Button(say(label), variant="primary", elem_id=element)

    with gr.Blocks(title="softprompt playground", analytics_enabled=False, delete_cache=(3600, 86_400)) as page:
        gr.Markdown("# softprompt", elem_id="title")
        greeting = gr.HTML(elem_id="greeting")
        with gr.Tabs(overflow_behavior="wrap"):
            with gr.Tab(say("try"), id="try") as try_tab:
                gr.Markdown(say("try_help"))
                tasks = choice("tasks", "tasks", multiselect=True)
                names = ["text", *(f"text-{number}" for number in range(2, asking.MOST_BOXES + 1))]
                boxes = [
                    gr.Textbox(label=say("text"), lines=3, max_lines=12, visible=name == "text", elem_id=name)
                    for name in names
                ]
                ask = button("ask", "ask")
                answer = gr.HTML(elem_id="answer")
            with gr.Tab(say("file"), id="file") as file_tab:
                gr.Markdown(say("file_help"))
                file_task = choice("task", "file-task")
                file = upload("file")
                file_base = gr.Checkbox(True, label=say("file_base"), elem_id="file-base")
                file_ask = button("file_ask", "file-ask")
                file_answer = gr.HTML(elem_id="file-answer")
                # Its type knows no translations, its button does.
                download = gr.DownloadButton(str(say("download")), visible=False, elem_id="download")
            with gr.Tab(say("library"), id="library") as library_tab:
                prompts = gr.HTML(elem_id="library")
            with gr.Tab(say("runs"), id="runs") as runs_tab:
                runs = choice("run", "runs")
                run = gr.HTML(elem_id="run")
                seen, listed = gr.State(), gr.State()
                timer = gr.Timer(_FOLLOW, active=False)
            with gr.Tab(say("compare"), id="compare") as compare_tab:
                gr.Markdown(say("compare_help"))
                with gr.Row():
                    first, second = choice("first", "compare-first"), choice("second", "compare-second")
                compare_file = upload("compare-file")
                compare = button("compare", "compare-ask")
                comparison = gr.HTML(elem_id="comparison")

        def offer(names: list[str], chosen: Any, value: Any) -> Any:
            """A choice among `names`. One that stays is not sent: the visitor may have made another meanwhile."""
            return gr.Dropdown(names) if value == chosen else gr.Dropdown(names, value=value)

        async def refresh(visitor: Visitor, chosen: list[str] | None, of_file: str | None) -> Any:
            base, *models = await visitor.models()
            names = [model.id for model in models]
            kept = [name for name in chosen or [] if name in names] or names[:1]
            with_task = [model.id for model in models if model.card is not None and model.card.task is not None]
            one = of_file if of_file in names else next(iter(with_task), None)
            line = visitor.texts["served" if names else "nothing_served"].format(base=base.id, count=len(names))
            yield [looks.page(looks.notice(line)), offer(names, chosen, kept), offer(names, of_file, one)]

        async def show_boxes(visitor: Visitor, chosen: list[str] | None) -> Any:
            columns = await asking.columns_of(visitor, chosen or [])
            # One box needs no column's name.
            labels = columns if len(columns) > 1 else [visitor.texts["text"]]
            shown = [gr.Textbox(label=label, visible=True) for label in labels]
            yield [gr.skip(), *shown, *[gr.Textbox(visible=False)] * (len(boxes) - len(shown))]

        async def show_file(visitor: Visitor, name: str | None, path: str | None, with_base: bool) -> Any:
            async with aclosing(files.answer_file(visitor, name, path, with_base)) as shown:
                async for one, made in shown:
                    yield [one, gr.DownloadButton(value=None if made is None else str(made), visible=made is not None)]

        async def show_run(visitor: Visitor, chosen: str | None, known: list[str] | None, mark: object) -> Any:
            # Training brings a large part of Transformers along, which a server without visitors has no need of.
            from softprompt.serving.playground.runs import list_runs, show_run

            names = await asyncio.to_thread(list_runs, runs_folder)
            name = chosen or next(iter(names), None)
            choices = gr.skip() if names == known and name == chosen else gr.Dropdown(names, value=name)
            async with drawing:
                found = await asyncio.to_thread(show_run, runs_folder, name, mark, visitor.texts)
            shown, mark = (gr.skip(), mark) if found is None else found
            yield [shown, choices, names, mark]

        async def show_versions(visitor: Visitor, one: str | None, two: str | None) -> Any:
            names = [version.id for version in (await visitor.library()).data]
            older, newer = library.first_choice(names)
            choices = (
                offer(names, one, one if one in names else older),
                offer(names, two, two if two in names else newer),
            )
            yield [gr.skip(), *choices]

        async def follow(_: Visitor, runs_shown: bool) -> Any:
            yield [gr.skip(), gr.Timer(active=runs_shown)]

        on([page.load, try_tab.select, file_tab.select], refresh, [tasks, file_task], [greeting, tasks, file_task])
        on([tasks.change], show_boxes, [tasks], [answer, *boxes])
        on([ask.click, *(box.submit for box in boxes)], asking.ask, [tasks, *boxes], [answer])
        on([file_ask.click], show_file, [file_task, file, file_base], [file_answer, download])
        on([page.load, library_tab.select], library.show_library, [], [prompts])
        on([runs_tab.select, runs.input, timer.tick], show_run, [runs, listed, seen], [run, runs, listed, seen])
        on([compare_tab.select], show_versions, [first, second], [comparison, first, second])
        on([compare.click], files.compare, [first, second, compare_file], [comparison])
        on([runs_tab.select], follow, [gr.State(True)], [run, timer])
        others = (try_tab, file_tab, library_tab, compare_tab)
        on([tab.select for tab in others], follow, [gr.State(False)], [run, timer])
    found: Blocks = page
    return found
