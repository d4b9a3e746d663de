"""The site in a browser: nothing from elsewhere, nothing cut off, and a search that finds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from docsite import build, served

pytestmark = pytest.mark.browser

# Parts of the text right of the window, unless something around them scrolls.
CUT_OFF = """() => {
  const width = document.documentElement.clientWidth;
  const scrolls = (e) => ["auto", "scroll"].includes(getComputedStyle(e).overflowX)
    && e.getBoundingClientRect().right <= width + 1;
  const cut = [...document.querySelectorAll(".md-content *")].filter((e) => {
    const box = e.getBoundingClientRect();
    if (!box.width || box.right <= width + 1) return false;
    for (let a = e.parentElement; a; a = a.parentElement) if (scrolls(a)) return false;
    return true;
  });
  return cut.map((e) => `${e.tagName} ${e.textContent.trim().slice(0, 60)}`).slice(0, 5);
}"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("docs"))


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    with served(site) as base:
        yield base


def opened(browser: Browser, address: str, width: int, scheme: str) -> tuple[Page, list[str]]:
    """A window, and the list in which its errors and its requests to other hosts are noted."""
    window = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page, faults = window.new_page(), []

    def asked(url: str) -> None:
        if not url.startswith((address, "data:", "blob:")):
            faults.append(f"asks for {url}")

    page.on("request", lambda request: asked(request.url))
    page.on("pageerror", lambda error: faults.append(f"{page.url}: {error}"))
    page.on("console", lambda line: line.type == "error" and faults.append(line.text))
    return page, faults


def longest(name: str) -> int:
    """Pixels of a page: of those in which one looks something up, more than of one that is read."""
    return 80_000 if name.startswith(("api/", "reference/")) else 40_000


def test_no_page_overflows(browser: Browser, site: Path, address: str) -> None:
    """Each page is loaded once, on a phone in the dark, and then widened in the light."""
    page, faults = opened(browser, address, 390, "dark")
    for path in sorted(site.rglob("index.html")):
        page.set_viewport_size({"width": 390, "height": 900})
        page.emulate_media(color_scheme="dark")
        page.goto(f"{address}/{path.parent.relative_to(site)}/")
        for width, scheme in ((390, "dark"), (1440, "light")):
            page.set_viewport_size({"width": width, "height": 900})
            page.emulate_media(color_scheme=scheme)
            name = f"{path.parent.relative_to(site)} at {width} px"
            faults += [f"{name}: cut off: {text}" for text in page.evaluate(CUT_OFF)]
            if page.evaluate("document.documentElement.scrollWidth") > width:
                faults.append(f"{name}: the page scrolls sideways")
            if (height := page.evaluate("document.documentElement.scrollHeight")) > longest(name):
                faults.append(f"{name}: {height} px long")
    page.context.close()
    assert not faults


def test_a_wide_formula_scrolls(browser: Browser, address: str) -> None:
    page, faults = opened(browser, address, 390, "light")
    page.goto(f"{address}/methods/dino/")
    boxes = page.evaluate(
        "[...document.querySelectorAll('.math')].map((e) => [e.scrollWidth, e.clientWidth])"
    )
    assert len(boxes) == 2
    assert any(inner > outer for inner, outer in boxes)
    page.evaluate("document.querySelectorAll('.math').forEach((e) => e.scrollLeft = 10000)")
    last = page.evaluate(
        "[...document.querySelectorAll('.math')].map((e) => e.scrollLeft + e.clientWidth)"
    )
    assert last == [max(inner, outer) for inner, outer in boxes]
    assert not faults


def test_light_and_dark_follow_the_system_and_the_toggle(browser: Browser, address: str) -> None:
    brightness = "getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).map(Number)"
    page, faults = opened(browser, address, 1440, "dark")
    page.goto(address)
    assert max(page.evaluate(brightness)[:3]) < 64
    page.locator("form[data-md-component=palette] label:visible").click()
    page.wait_for_function(f"Math.min(...{brightness}.slice(0, 3)) > 192")
    assert not faults


@pytest.mark.parametrize(
    ("words", "title"),
    [
        ("install", "Install unmix"),
        ("fine-tune", "Use the encoder"),
        ("own pictures", "Use your own pictures"),
        ("CUDA out of memory", "Fix a problem"),
        ("--crop_scale_min", "Command line"),
    ],
)
def test_search_finds_pages(browser: Browser, address: str, words: str, title: str) -> None:
    """Among the first five, by the title of the page or of what is above it."""
    page, faults = opened(browser, address, 1440, "light")
    page.goto(address)
    page.keyboard.press("/")
    page.get_by_role("combobox", name="Search").fill(words)
    found = page.get_by_role("option")
    found.filter(has_text=title).first.wait_for(timeout=10_000)
    assert any(title in text for text in found.all_inner_texts()[:5])
    page.context.close()
    assert not faults
