"""How the playground's answers look: HTML in which every text of others is escaped, and the page's style.

Owns the markup. Does not know where its contents come from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from softprompt.serving.playground_answers import Answer
from softprompt.serving.playground_texts import Texts

_MOST_BARS = 8  # labels with a bar of their own

STYLE = """
.gradio-container { width: 100%; max-width: 72rem !important; margin: 0 auto !important; }
.sp { contain: inline-size; }
.sp h3 { margin: 0 0 .6rem; font-size: 1.05rem; overflow-wrap: anywhere; }
.sp h4 { margin: 0 0 .4rem; font-size: .9rem; font-weight: 600; color: var(--body-text-color-subdued); }
.sp p { margin: .4rem 0; }
.sp .card { border: 1px solid var(--border-color-primary); border-radius: 10px; padding: 1rem; margin: 0 0 1rem;
  background: var(--block-background-fill); }
.sp .sides { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 18rem), 1fr)); gap: 1rem 2rem; }
.sp .bar { display: grid; grid-template-columns: minmax(0, 2fr) minmax(0, 3fr) 4rem; gap: .6rem; align-items: center;
  margin: .25rem 0; }
.sp .bar .name { overflow-wrap: anywhere; }
.sp .bar .track { height: .8rem; border-radius: 6px; background: var(--border-color-primary); overflow: hidden; }
.sp .bar .fill { height: 100%; background: var(--body-text-color-subdued); }
.sp .bar .share { text-align: right; font-variant-numeric: tabular-nums; }
.sp .bar.best .fill { background: #0072B2; }
.sp .bar.best .name, .sp .bar.best .share { font-weight: 700; }
.sp .said { white-space: pre-wrap; overflow-wrap: anywhere; min-height: 1.5rem; }
.sp .notice, .sp .error { border-left: 4px solid #0072B2; padding: .5rem .8rem; margin: 0 0 1rem;
  background: var(--block-background-fill); overflow-wrap: anywhere; }
.sp .error { border-left-color: #D55E00; }
.sp .warning { border-left: 4px solid #D55E00; padding: .3rem .8rem; }
.sp .faint { color: var(--body-text-color-subdued); font-size: .9rem; }
.sp progress { width: 100%; height: 1rem; accent-color: #0072B2; }
.sp .scroll { overflow-x: auto; max-width: 100%; margin: 0 0 1rem; }
.sp table { border: 0 !important; border-collapse: collapse; width: 100%; font-size: .92rem; }
.sp caption { text-align: left; padding: .3rem 0; color: var(--body-text-color-subdued); }
.sp th, .sp td { text-align: left; padding: .35rem .6rem; border: 0 !important;
  border-bottom: 1px solid var(--border-color-primary) !important;
  vertical-align: top; overflow-wrap: break-word; }
.sp td.number { text-align: right; font-variant-numeric: tabular-nums; }
.sp details { margin: 0 0 .5rem; }
.sp summary { cursor: pointer; }
.sp pre { overflow-x: auto; font-size: .85rem; padding: .6rem; border: 1px solid var(--border-color-primary); }
.sp figure { margin: 1rem 0 1.5rem; }
.sp figure svg { --page: var(--body-background-fill); width: 100%; min-width: 30rem; max-width: 52rem; height: auto;
  color: var(--body-text-color); }
.sp figure svg text { fill: currentColor; }
.sp figcaption { font-size: .92rem; color: var(--body-text-color-subdued); }
"""


@dataclass
class Side:
    """One of the two answers of a task: nothing yet, an answer, or what went wrong."""

    answer: Answer | None = None
    error: str | None = None


@dataclass
class Sheet:
    """A task's two answers, or what went wrong for both.

    Attributes:
        title: the prompt's name with its version.
    """

    title: str
    prompt: Side = field(default_factory=Side)
    base: Side = field(default_factory=Side)
    error: str | None = None


def page(*parts: Markup) -> str:
    """What an element of the page shows."""
    return str(Markup('<div class="sp" aria-live="polite">{}</div>').format(Markup().join(parts)))


def notice(text: str) -> Markup:
    """A line that tells something; what stands in backquotes is shown as code."""
    return Markup('<p class="notice">{}</p>').format(_code(text))


def error(text: str) -> Markup:
    """A line that says what is wrong."""
    return Markup('<p class="error" role="alert">{}</p>').format(text)


def progress(done: int, every: int, text: str) -> Markup:
    """A bar of how much is done."""
    return Markup('<p>{}</p><progress max="{}" value="{}" aria-label="{}"></progress>').format(text, every, done, text)


def details(title: str, content: str) -> Markup:
    """A text that opens at a click."""
    return Markup('<details class="card"><summary>{}</summary><pre>{}</pre></details>').format(title, content)


def sheets(found: Sequence[Sheet], texts: Texts) -> Markup:
    """The answers of several tasks, each side by side with the base's."""
    return Markup().join(_sheet(one, texts) for one in found)


def _sheet(sheet: Sheet, texts: Texts) -> Markup:
    if sheet.error is not None:
        body = error(sheet.error)
    else:
        sides = [(texts["with_prompt"], sheet.prompt), (texts["base_alone"], sheet.base)]
        body = Markup('<div class="sides">{}</div>').format(
            Markup().join(
                Markup('<div class="side"><h4>{}</h4>{}</div>').format(title, _side(side, texts))
                for title, side in sides
            )
        )
    return Markup('<section class="card"><h3>{}</h3>{}</section>').format(sheet.title, body)


def _side(side: Side, texts: Texts) -> Markup:
    if side.error is not None:
        return error(side.error)
    if side.answer is None:
        return Markup('<p class="faint">{}</p>').format(texts["waiting"])
    answer = side.answer
    if answer.probabilities is None:
        body = Markup('<p class="said">{}</p>').format(answer.text)
    else:
        body = _bars(answer.text, answer.probabilities, texts)
    if answer.truncated:
        body += Markup('<p class="faint">{}</p>').format(texts["truncated"])
    return body


def _bars(best: str, probabilities: Mapping[str, float], texts: Texts) -> Markup:
    shown = list(probabilities)
    if len(shown) > _MOST_BARS:  # else in the task's order, which is the same on both sides
        shown = sorted(shown, key=lambda label: -probabilities[label])[:_MOST_BARS]
    bars = Markup().join(
        Markup(
            '<div class="bar{}"><span class="name">{}</span><span class="track"><span class="fill" '
            'style="display: block; width: {:.2f}%"></span></span><span class="share">{:.1%}</span></div>'
        ).format(" best" if label == best else "", label, 100 * probabilities[label], probabilities[label])
        for label in shown
    )
    if len(shown) < len(probabilities):
        more = texts["more_labels"].format(count=len(probabilities) - len(shown))
        bars += Markup('<p class="faint">{}</p>').format(more)
    return bars


def _code(text: str) -> Markup:
    parts = text.split("`")
    return Markup().join(Markup("<code>{}</code>").format(part) if i % 2 else part for i, part in enumerate(parts))
