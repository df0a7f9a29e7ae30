"""The playground's page: its tabs and elements, and which of them does what.

Owns the layout and the elements' ids. What a visitor chose stays in the visitor's browser. Does not know how a thing
is found (`playground_desk`) or shown (`playground_looks`). Gradio is imported where it is used.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from softprompt.serving.playground_desk import MOST_BOXES, Desk
from softprompt.serving.playground_library import first_choice
from softprompt.serving.playground_texts import TEXTS, Texts, texts_for

if TYPE_CHECKING:
    from gradio import Blocks, I18n
    from gradio.i18n import I18nData

_KEY = "softprompt_"  # Gradio has texts of its own, under names such as "file"
_FOLLOW = 3.0  # seconds between two looks at a run

Handler = Callable[..., AsyncGenerator[list[Any], None]]


def translations() -> I18n:
    """The page's own words in the browser's language."""
    import gradio as gr

    return gr.I18n(**{language: {_KEY + key: text for key, text in texts.items()} for language, texts in TEXTS.items()})


def make_page(desk: Desk) -> Blocks:
    """The page, which is the same for all visitors until it has loaded."""
    import gradio as gr

    translated = translations()

    def say(key: str) -> I18nData:
        return translated(_KEY + key)

    def on(triggers: Sequence[Any], handler: Handler, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        """Let `handler`, called with the visitor's texts and the inputs' values, fill the outputs."""

        async def call(request: Any, *values: Any) -> AsyncGenerator[Any, None]:
            texts = texts_for(request.headers.get("accept-language"))
            async with aclosing(handler(texts, *values)) as results:
                async for result in results:
                    yield result if len(outputs) > 1 else result[0]

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

    with gr.Blocks(title=TEXTS["en"]["title"], analytics_enabled=False, delete_cache=(3600, 86_400)) as page:
        gr.Markdown("# softprompt", elem_id="title")
        greeting = gr.HTML(elem_id="greeting")
        with gr.Tabs(overflow_behavior="wrap"):
            with gr.Tab(say("try"), id="try", elem_id="tab-try") as try_tab:
                gr.Markdown(say("try_help"))
                # Custom values are let through: which names there are is for the desk to say, also after a restart.
                tasks = gr.Dropdown(
                    [], label=say("tasks"), info=say("tasks_info"), multiselect=True, allow_custom_value=True,
                    elem_id="tasks",
                )  # fmt: skip
                boxes = [
                    gr.Textbox(
                        label=say("text"), placeholder=say("text_placeholder"), lines=3, max_lines=12,
                        visible=number == 1, elem_id="text" if number == 1 else f"text-{number}",
                    )
                    for number in range(1, MOST_BOXES + 1)
                ]  # fmt: skip
                ask = gr.Button(say("ask"), variant="primary", elem_id="ask")
                answer = gr.HTML(elem_id="answer")
            with gr.Tab(say("file"), id="file", elem_id="tab-file") as file_tab:
                gr.Markdown(say("file_help"))
                file_task = gr.Dropdown([], label=say("task"), allow_custom_value=True, elem_id="file-task")
                file = gr.File(label=say("csv"), file_types=[".csv"], height=160, elem_id="file")
                file_base = gr.Checkbox(True, label=say("file_base"), elem_id="file-base")
                file_ask = gr.Button(say("file_ask"), variant="primary", elem_id="file-ask")
                file_answer = gr.HTML(elem_id="file-answer")
                # Its type knows no translations, its button does.
                download = gr.DownloadButton(str(say("download")), visible=False, elem_id="download")
            with gr.Tab(say("library"), id="library", elem_id="tab-library") as library_tab:
                gr.Markdown(say("library_help"))
                library = gr.HTML(elem_id="library")
            with gr.Tab(say("runs"), id="runs", elem_id="tab-runs") as runs_tab:
                gr.Markdown(say("runs_help"))
                runs = gr.Dropdown(
                    [], label=say("run"), info=say("run_info"), allow_custom_value=True, elem_id="runs"
                )  # fmt: skip
                run = gr.HTML(elem_id="run")
                seen, listed = gr.State(), gr.State()
                timer = gr.Timer(_FOLLOW, active=False)
            with gr.Tab(say("compare"), id="compare", elem_id="tab-compare") as compare_tab:
                gr.Markdown(say("compare_help"))
                with gr.Row():
                    first = gr.Dropdown([], label=say("first"), allow_custom_value=True, elem_id="compare-first")
                    second = gr.Dropdown([], label=say("second"), allow_custom_value=True, elem_id="compare-second")
                compare_file = gr.File(label=say("csv"), file_types=[".csv"], height=160, elem_id="compare-file")
                compare = gr.Button(say("compare_ask"), variant="primary", elem_id="compare-ask")
                comparison = gr.HTML(elem_id="comparison")

        def offer(names: list[str], chosen: Any, value: Any) -> Any:
            """A choice among `names`. One that stays is not sent: the visitor may have made another meanwhile."""
            return gr.Dropdown(names) if value == chosen else gr.Dropdown(names, value=value)

        async def refresh(
            texts: Texts, chosen: list[str] | None, of_file: str | None
        ) -> AsyncGenerator[list[Any], None]:
            names = desk.models()
            kept = [name for name in chosen or [] if name in names] or names[:1]
            one = of_file if of_file in names else desk.first_task()
            yield [desk.greeting(texts), offer(names, chosen, kept), offer(names, of_file, one)]

        async def show_boxes(texts: Texts, chosen: list[str] | None) -> AsyncGenerator[list[Any], None]:
            columns = desk.boxes(chosen)
            # One box needs no column's name.
            labels = columns if len(columns) > 1 else [texts["text"]]
            yield [
                gr.Textbox(label=labels[i], visible=True) if i < len(labels) else gr.Textbox(visible=False)
                for i in range(MOST_BOXES)
            ]

        async def show_answers(
            texts: Texts, chosen: list[str] | None, *written: str | None
        ) -> AsyncGenerator[list[Any], None]:
            async with aclosing(desk.ask(texts, chosen, written)) as shown:
                async for one in shown:
                    yield [one]

        async def show_file(
            texts: Texts, name: str | None, path: str | None, with_base: bool
        ) -> AsyncGenerator[list[Any], None]:
            async with aclosing(desk.answer_file(texts, name, path, with_base)) as shown:
                async for one, made in shown:
                    value = None if made is None else str(made)
                    yield [one, gr.DownloadButton(value=value, visible=made is not None)]

        async def show_library(texts: Texts) -> AsyncGenerator[list[Any], None]:
            yield [await desk.library(texts)]

        async def show_run(
            texts: Texts, chosen: str | None, known: list[str] | None, mark: object
        ) -> AsyncGenerator[list[Any], None]:
            names = await desk.runs()
            name = chosen or next(iter(names), None)
            choices = gr.skip() if names == known and name == chosen else gr.Dropdown(names, value=name)
            found = await desk.run(texts, name, mark)
            shown, mark = (gr.skip(), mark) if found is None else found
            yield [choices, names, shown, mark]

        async def show_versions(texts: Texts, one: str | None, two: str | None) -> AsyncGenerator[list[Any], None]:
            names = desk.versions()
            older, newer = first_choice(names)
            yield [
                offer(names, one, one if one in names else older),
                offer(names, two, two if two in names else newer),
            ]

        async def show_comparison(
            texts: Texts, one: str | None, two: str | None, path: str | None
        ) -> AsyncGenerator[list[Any], None]:
            async with aclosing(desk.compare(texts, one, two, path)) as shown:
                async for found in shown:
                    yield [found]

        async def follow(texts: Texts) -> AsyncGenerator[list[Any], None]:
            yield [gr.Timer(active=True)]

        async def leave(texts: Texts) -> AsyncGenerator[list[Any], None]:
            yield [gr.Timer(active=False)]

        on([page.load, try_tab.select, file_tab.select], refresh, [tasks, file_task], [greeting, tasks, file_task])
        on([tasks.change], show_boxes, [tasks], boxes)
        on([ask.click, *(box.submit for box in boxes)], show_answers, [tasks, *boxes], [answer])
        on([file_ask.click], show_file, [file_task, file, file_base], [file_answer, download])
        on([page.load, library_tab.select], show_library, [], [library])
        on([runs_tab.select, runs.input, timer.tick], show_run, [runs, listed, seen], [runs, listed, run, seen])
        on([runs_tab.select], follow, [], [timer])
        on([tab.select for tab in (try_tab, file_tab, library_tab, compare_tab)], leave, [], [timer])
        on([compare_tab.select], show_versions, [first, second], [first, second])
        on([compare.click], show_comparison, [first, second, compare_file], [comparison])
    found: Blocks = page
    return found
