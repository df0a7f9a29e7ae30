"""How the playground's answers look: HTML in which every text of others is escaped, and the page's style.

Owns the markup. Does not know where its contents come from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from softprompt.serving.playground.texts import Texts
from softprompt.serving.schemas import Prediction

Side = Prediction | str | None  # an answer, what went wrong, or nothing yet

_MOST_NUMBERS = 8
_MOST_BARS = 8  # labels with a bar of their own

STYLE = """
.gradio-container { width: 100%; max-width: 72rem !important; margin: 0 auto !important; }
.sp { contain: inline-size; overflow-wrap: anywhere; }
.sp h3 { margin: 0 0 .6rem; font-size: 1.05rem; }
.sp h4 { margin: 0 0 .4rem; font-size: .9rem; color: var(--body-text-color-subdued); }
.sp p { margin: .4rem 0; }
.sp .card { border: 1px solid var(--border-color-primary); border-radius: 10px; padding: 1rem; margin: 0 0 1rem;
  background: var(--block-background-fill); }
.sp .sides { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 18rem), 1fr)); gap: 1rem 2rem; }
.sp .bar { display: grid; grid-template-columns: minmax(0, 2fr) minmax(0, 3fr) 4rem; gap: .6rem; align-items: center; }
.sp .bar .track { height: .8rem; border-radius: 6px; background: var(--border-color-primary); overflow: hidden; }
.sp .bar .fill { display: block; height: 100%; background: var(--body-text-color-subdued); }
.sp .bar .share { text-align: right; font-variant-numeric: tabular-nums; }
.sp .bar.best .fill { background: #0072B2; }
.sp .bar.best .name, .sp .bar.best .share { font-weight: 700; }
.sp .said { white-space: pre-wrap; min-height: 1.5rem; }
.sp .notice, .sp .error { border-left: 4px solid #0072B2; padding: .5rem .8rem; margin: 0 0 1rem;
  background: var(--block-background-fill); }
.sp .error { border-left-color: #D55E00; }
.sp .faint, .sp caption, .sp figcaption { color: var(--body-text-color-subdued); font-size: .9rem; text-align: left; }
.sp progress { width: 100%; accent-color: #0072B2; }
.sp .scroll, .sp pre { overflow-x: auto; max-width: 100%; margin: 0 0 1rem; font-size: .9rem; }
.sp table, .sp tr { border: 0 !important; border-collapse: collapse; width: 100%; overflow-wrap: break-word; }
.sp th, .sp td { text-align: left; padding: .35rem .6rem; border: 0 !important; vertical-align: top;
  border-bottom: 1px solid var(--border-color-primary) !important; }
.sp summary { cursor: pointer; }
.sp figure { margin: 1rem 0 1.5rem; }
.sp figure svg { --page: var(--body-background-fill); width: 100%; min-width: 30rem; max-width: 52rem; height: auto;
  color: var(--body-text-color); }
.sp figure svg text { fill: currentColor; }
"""


def page(*parts: Markup) -> str:
    """What an element of the page shows."""
    return str(Markup('<div class="sp" aria-live="polite">{}</div>').format(Markup().join(parts)))


def notice(text: str) -> Markup:
    """A line that tells something; what stands in backquotes is shown as code."""
    parts = text.split("`")
    coded = (Markup("<code>{}</code>").format(part) if i % 2 else part for i, part in enumerate(parts))
    return Markup('<p class="notice">{}</p>').format(Markup().join(coded))


def error(text: str) -> Markup:
    """A line that says what is wrong."""
    return Markup('<p class="error" role="alert">{}</p>').format(text)


def faint(text: str) -> Markup:
    """A line that is no matter of first importance."""
    return Markup('<p class="faint">{}</p>').format(text)


def progress(done: int, every: int, text: str) -> Markup:
    """A bar of how much is done."""
    return Markup('<p>{}</p><progress max="{}" value="{}" aria-label="{}"></progress>').format(text, every, done, text)


def details(title: str, content: str) -> Markup:
    """A text that opens at a click."""
    return Markup('<details class="card"><summary>{}</summary><pre>{}</pre></details>').format(title, content)


def said(answer: Prediction) -> str:
    """The label, the text, or an embedding's first numbers."""
    if answer.embedding is not None:
        return (
            ", ".join(f"{number:.3f}" for number in answer.embedding[:_MOST_NUMBERS]) + f" … ({len(answer.embedding)})"
        )
    return answer.label or answer.output or ""


def sheets(found: Mapping[str, Sequence[Side]], texts: Texts) -> Markup:
    """The two answers of each task side by side, the prompt's and the base's, by the task's name."""
    return Markup().join(
        Markup('<section class="card"><h3>{}</h3><div class="sides">{}{}</div></section>').format(
            title, _side(texts["with_prompt"], prompt, texts), _side(texts["base_alone"], base, texts)
        )
        for title, (prompt, base) in found.items()
    )


def _side(title: str, answer: Side, texts: Texts) -> Markup:
    if answer is None:
        body = faint(texts["waiting"])
    elif isinstance(answer, str):
        body = error(answer)
    elif answer.probabilities is None:
        body = Markup('<p class="said">{}</p>').format(said(answer))
    else:
        body = _bars(said(answer), answer.probabilities, texts)
    if isinstance(answer, Prediction) and answer.truncated:
        body += faint(texts["truncated"])
    return Markup("<div><h4>{}</h4>{}</div>").format(title, body)


def _bars(best: str, probabilities: Mapping[str, float], texts: Texts) -> Markup:
    shown = list(probabilities)
    if len(shown) > _MOST_BARS:  # else in the task's order, which is the same on both sides
        shown = sorted(shown, key=lambda label: -probabilities[label])[:_MOST_BARS]
    bars = Markup().join(
        Markup(
            '<div class="bar{}"><span class="name">{}</span><span class="track"><span class="fill" '
            'style="width: {:.2f}%"></span></span><span class="share">{:.1%}</span></div>'
        ).format(" best" if label == best else "", label, 100 * probabilities[label], probabilities[label])
        for label in shown
    )
    if len(shown) < len(probabilities):
        bars += faint(texts["more_labels"].format(count=len(probabilities) - len(shown)))
    return bars
