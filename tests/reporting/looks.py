"""What a page has to be for everybody who reads it, asked of a browser that shows it.

Owns the questions: is every figure drawn and named, is all text legible, does the page fit a phone, can it be used with
the keyboard alone. Does not know what a page is about.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from PIL import Image

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

LEGIBLE = 4.5  # WCAG 2.2, success criterion 1.4.3 (https://www.w3.org/TR/WCAG22/#contrast-minimum)

# Every text that is shown, with its contrast against the ground it stands on. Numbers within a heat map's cells stand
# on an image, whose colours a page does not know.
_CONTRASTS = """() => {
  const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
  const over = ([r, g, b, a = 1], under) => [r, g, b].map((c, i) => c * a + under[i] * (1 - a));
  const linear = c => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const ground = element => {
    const above = element.parentElement;
    return over(numbers(getComputedStyle(element).backgroundColor), above ? ground(above) : [255, 255, 255]);
  };
  const onImage = element => element.closest('g[id*="axes_"]')?.querySelector('image')
    && !element.closest('g[id*="matplotlib.axis"]');
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement, text = walker.currentNode.data.trim();
    if (!text || !element.checkVisibility() || element.closest('style, defs') || onImage(element)) continue;
    const style = getComputedStyle(element), below = ground(element);
    const ink = over(numbers(element.closest('svg') ? style.fill : style.color), below);
    const [high, low] = [luminance(ink), luminance(below)].sort((a, b) => b - a);
    found.push({text, contrast: (high + 0.05) / (low + 0.05)});
  }
  return found;
}"""


def contrasts(page: Page) -> dict[str, float]:
    """Every text of the page with its contrast, from 1 to 21; of a text shown twice the worse one."""
    found: dict[str, float] = {}
    for one in page.evaluate(_CONTRASTS):
        found[one["text"]] = min(one["contrast"], found.get(one["text"], 21.0))
    return found


def check_legible(page: Page) -> None:
    found = contrasts(page)
    assert len(found) > 20
    assert {text: contrast for text, contrast in found.items() if contrast < LEGIBLE} == {}


def check_fits(page: Page) -> None:
    """The page is no wider than the window; what is wider scrolls within itself."""
    root = page.evaluate("({wide: document.documentElement.scrollWidth, window: innerWidth})")
    assert root["wide"] <= root["window"]


def words_of(figure: Locator) -> list[str]:
    """The texts that are drawn in a figure, as they are shown."""
    return [text.strip() for text in figure.locator("svg text").all_text_contents()]


def check_figures(page: Page, wanted: dict[str, tuple[str, ...]]) -> None:
    """The page's figures are those wanted, each drawn, named and described.

    Args:
        page: one that shows the report.
        wanted: each figure's title, and the words that must be drawn in it: axes with units, and the legend.
    """
    figures = page.locator("figure").all()
    assert [figure.locator("figcaption strong").inner_text() for figure in figures] == [f"{title}." for title in wanted]
    for figure, (title, words) in zip(figures, wanted.items(), strict=True):
        drawing = figure.locator("svg").first
        assert drawing.get_attribute("role") == "img"
        assert drawing.get_attribute("aria-label") == title
        caption = page.locator(f"#{drawing.get_attribute('aria-describedby')}").inner_text()
        assert len(caption) > len(title) + 20
        box = drawing.bounding_box()
        assert box is not None
        assert box["width"] > 300
        assert box["height"] > 150
        assert set(words) <= set(words_of(figure)), title
        assert colours(drawing) > 0.002, title


def colours(drawing: Locator) -> float:
    """The share of a drawing's pixels that are neither black, white nor grey: its lines, bars and cells."""
    pixels = Image.open(io.BytesIO(drawing.screenshot())).convert("HSV").getchannel("S").histogram()
    return sum(pixels[64:]) / sum(pixels)


def check_keyboard(page: Page) -> None:
    """The first key reaches a link past the contents; whatever scrolls sideways does so by the arrow keys."""
    page.keyboard.press("Tab")
    skip = page.locator(":focus")
    assert skip.get_attribute("href") == "#content"
    box: Any = skip.bounding_box()
    assert box["x"] >= 0
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "content"
    scrolling = [
        region for region in page.locator(".scroll").all() if region.evaluate("e => e.scrollWidth > e.clientWidth")
    ]
    assert scrolling
    for region in scrolling:
        assert region.get_attribute("aria-label")
        region.focus()
        page.keyboard.press("ArrowRight")
        handle = region.element_handle()
        page.wait_for_function("e => e.scrollLeft > 0", arg=handle)
