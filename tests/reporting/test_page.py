from __future__ import annotations

import re

from markupsafe import Markup
from matplotlib.figure import Figure

from softprompt.reporting.page import Section, figure, page, paragraph, table
from tests.reporting.document import Document

HOSTILE = "<script>alert('x')</script> & \"quotes\""


def drawn(label: str = "loss") -> Figure:
    plot = Figure()
    axes = plot.subplots()
    axes.plot([1, 2, 3], [3, 2, 1], label=label)
    axes.imshow([[0.0, 1.0]], extent=(1, 3, 1, 3), aspect="auto")
    axes.set_xlabel("step")
    axes.legend()
    return plot


def whole() -> str:
    body = paragraph("One.") + table(["name", "n"], [["a", 1234], ["b", None]], "Counts")
    return page(
        "A run",
        [Section("First", body + figure(drawn(), "Loss", "It falls.")), Section("Second", figure(drawn(), "Too", "x"))],
        lead="It went well.",
    )


def test_a_page_needs_nothing_from_outside_and_runs_nothing():
    document = Document(whole())
    assert "http" not in whole().replace("http-equiv", "")
    assert not document.all("script")
    assert not document.all("link")
    assert not [name for _, attributes in document.elements for name in attributes if name.startswith("on")]
    links = [str(attributes.get("href") or attributes.get("xlink:href")) for tag in ("a", "use", "image")
             for attributes in document.all(tag)]  # fmt: skip
    assert links
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in links)
    policy = next(meta["content"] for meta in document.all("meta") if "http-equiv" in meta)
    assert str(policy).startswith("default-src 'none'")


def test_everything_is_named_for_those_who_cannot_see_it():
    document = Document(whole())
    assert document.all("html")[0]["lang"] == "en"
    assert len(document.ids) == len(set(document.ids))
    svgs = document.all("svg")
    assert [svg["role"] for svg in svgs] == ["img", "img"]
    assert [svg["aria-label"] for svg in svgs] == ["Loss", "Too"]
    for tag, key in (("svg", "aria-describedby"), ("section", "aria-labelledby")):
        assert {str(element[key]) for element in document.all(tag)} <= set(document.ids)
    targets = [str(link["href"]) for link in document.all("a")] + re.findall(r"url\((#[^)]+)\)", whole())
    targets += [str(use["xlink:href"]) for use in document.all("use")]
    assert {target.removeprefix("#") for target in targets} <= set(document.ids)
    assert {cell.get("scope") for cell in document.all("th")} == {"col", "row"}
    assert len(document.all("caption")) == 1
    # What scrolls can be reached with the keyboard.
    scrolling = [div for div in document.all("div") if div.get("class") == "scroll"]
    assert len(scrolling) == 3
    assert all(div["tabindex"] == "0" and div["aria-label"] for div in scrolling)


def test_text_is_text_wherever_it_stands():
    hostile = page(
        HOSTILE,
        [Section(HOSTILE, table([HOSTILE], [[HOSTILE]], HOSTILE) + figure(drawn(HOSTILE), HOSTILE, HOSTILE)),
         Section("x", paragraph(HOSTILE))],
        lead=HOSTILE,
    )  # fmt: skip
    document = Document(hostile)
    assert not document.all("script")
    assert "<script" not in hostile
    assert hostile.count("&lt;script&gt;") >= 10


def test_cells_are_written_for_people():
    written = table(["name", "n"], [["a", 1234567], ["b", 0.123456], ["c", None], ["d", Markup("<b>x</b>")]], "c")
    for cell in ("1,234,567", "0.1235", "<td>–</td>", "<b>x</b>"):
        assert cell in written
    assert written.count('class="number"') == 2


def test_a_figure_follows_the_pages_colours():
    svg = figure(drawn(), "t", "d")
    assert "#000000" not in svg
    assert "#ffffff" not in svg
    assert "currentColor" in svg
    assert ">step</text>" in svg  # text, not outlines
    assert 'viewBox="' in svg
    assert not re.search(r'<svg[^>]* width="', svg)
    assert svg == figure(drawn(), "t", "d")
