"""The page: one HTML file that needs nothing else, made of sections, tables and figures.

Owns the look, the escaping and the accessibility. Does not know what is reported. Jinja2 and matplotlib are imported
where they are used, so that a command that shows no page starts without them.
"""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from markupsafe import Markup

if TYPE_CHECKING:
    from jinja2 import Template
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Section:
    """A part of a page.

    Attributes:
        title: its heading, plain text.
        body: HTML, such as that of `table`, `figure` and `paragraph`, joined by `+`.
    """

    title: str
    body: Markup


def page(title: str, sections: Sequence[Section], *, lead: str = "") -> str:
    """One self-contained HTML document: light and dark, on a phone and on paper, without scripts or outside requests.

    Args:
        title: of the page, plain text.
        sections: its parts, in order; a list of them stands at the top.
        lead: a sentence below the title, plain text.
    """
    return _template("page").render(title=title, sections=sections, lead=lead)


def paragraph(text: str) -> Markup:
    """A paragraph of plain text."""
    return Markup("<p>{}</p>\n").format(text)


def table(head: Sequence[str], rows: Sequence[Sequence[object]], caption: str) -> Markup:
    """A table; on a narrow screen it scrolls within itself.

    Args:
        head: the columns' names.
        rows: as many cells each; the first cell names the row. Text is escaped, unless it is Markup. Integers get
            separators, floats four digits, None a dash.
        caption: what the table shows, plain text.
    """
    cells = [[(_shown(cell), isinstance(cell, int | float)) for cell in row] for row in rows]
    return Markup(_template("table").render(head=head, rows=cells, caption=caption))


def figure(fig: Figure, title: str, description: str) -> Markup:
    """A figure as inline SVG on a transparent ground; what is drawn in pure black or white follows the page's colours.

    Args:
        fig: drawn with matplotlib's objects, `Figure` and its axes.
        title: what it shows, plain text.
        description: how to read it and what is to be seen, also for those who cannot see it, plain text.
    """
    import matplotlib as mpl

    text = io.StringIO()
    # Text stays text, which a screen reader reads and the page's font fits; the salt makes equal figures equal bytes.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "softprompt"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # the browser's fonts have what matplotlib's own lacks
        fig.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg, inches = text.getvalue(), fig.get_figwidth()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r' (xmlns(:\w+)?|width|height|version)="[^"]*"', "", svg, count=5)
    name = "f" + hashlib.sha256((title + svg).encode()).hexdigest()[:8]
    # Every figure of matplotlib's has the same ids, and a page has many figures.
    svg = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"(fill|stroke): #000000", r"\1: currentColor", svg)
    svg = re.sub(r"(fill|stroke): #ffffff", r"\1: var(--page)", svg)
    drawing = Markup(svg[len("<svg") :])
    return Markup(
        _template("figure").render(name=name, svg=drawing, inches=inches, title=title, description=description)
    )


def _shown(cell: object) -> object:
    if cell is None:
        return "–"
    if isinstance(cell, float):
        return f"{cell:.4g}"
    if isinstance(cell, int) and not isinstance(cell, bool):
        return f"{cell:,}"
    return cell if isinstance(cell, Markup) else str(cell)


@cache
def _template(name: str) -> Template:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("softprompt.reporting", "templates")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(f"{name}.html")
