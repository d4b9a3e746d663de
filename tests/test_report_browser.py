"""The report in a browser: it sorts, hovers, hides and zooms; nothing is cut off or loaded."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from reports import NAMES, report
from unmix.figures.report import page as html
from unmix.figures.report import write_page
from unmix.figures.report_content import Command, Running
from unmix.names import shown

pytestmark = pytest.mark.browser

# Parts right of the window, unless something around them scrolls.
CUT_OFF = """() => {
  const width = document.documentElement.clientWidth;
  const scrolls = (e) => ["auto", "scroll", "hidden"].includes(getComputedStyle(e).overflowX)
    && e.getBoundingClientRect().right <= width + 1;
  return [...document.querySelectorAll("#page *")].filter((e) => {
    const box = e.getBoundingClientRect();
    if (!box.width || (box.right <= width + 1 && box.left >= -1)) return false;
    for (let a = e.parentElement; a; a = a.parentElement) if (scrolls(a)) return false;
    return true;
  }).map((e) => `${e.tagName} ${e.textContent.trim().slice(0, 60)}`).slice(0, 5);
}"""

# Texts whose contrast to what is behind them is below WCAG's 4.5 (3 for large ones).
FAINT = """() => {
  const parse = (text) => {
    const n = text.match(/[0-9.]+/g).map(Number);
    if (text.startsWith("color(")) return [255 * n[0], 255 * n[1], 255 * n[2], n[3] ?? 1];
    return [n[0], n[1], n[2], n[3] ?? 1];
  };
  const light = (c) => {
    const [r, g, b] = c.map((v) => v / 255)
      .map((v) => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const c = parse(getComputedStyle(e).backgroundColor);
      if (c[3] > .5) return c;
    }
    return [255, 255, 255, 1];
  };
  const found = [], page = document.getElementById("page");
  const walker = document.createTreeWalker(page, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode.textContent.trim(), e = walker.currentNode.parentElement;
    if (!text || ["SCRIPT", "TITLE", "STYLE"].includes(e.tagName)) continue;
    if (!e.getClientRects().length) continue;
    const style = getComputedStyle(e), svg = e.closest("svg");
    const [a, b] = [light(parse(svg ? style.fill : style.color)), light(behind(e))];
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    const least = parseFloat(style.fontSize) >= 24 ? 3 : 4.5;
    if (ratio < least) found.push(`${ratio.toFixed(2)} ${text.slice(0, 40)}`);
  }
  return [...new Set(found)].slice(0, 8);
}"""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_page(tmp_path_factory.mktemp("report") / "report.html", report())


def opened(browser: Browser, path: Path, width: int, scheme: str) -> tuple[Page, list[str]]:
    """A window, and the list in which its errors and requests are noted."""
    window = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page, faults = window.new_page(), []
    page.on("request", lambda r: r.url.startswith(("data:", path.as_uri())) or faults.append(r.url))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda line: faults.append(line.text))
    page.on("dialog", lambda dialog: faults.append(f"dialog: {dialog.message}"))
    page.goto(path.as_uri())
    return page, faults


@pytest.fixture(scope="module")
def wide(browser: Browser, path: Path) -> Iterator[Page]:
    """One window for all tests that click; none may leave an error behind."""
    page, faults = opened(browser, path, 1440, "light")
    yield page
    page.context.close()
    assert faults == []


def column(page: Page, number: int) -> list[str]:
    return page.locator(f"table >> nth=0 >> tbody tr > :nth-child({number})").all_inner_texts()


def values(page: Page, chart: int = 0) -> list[str]:
    return page.locator(f"figure.chart >> nth={chart} >> .legend .value").all_inner_texts()


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1440, "light")])
def test_nothing_overflows_is_faint_or_loaded(
    browser: Browser, path: Path, width: int, scheme: str
) -> None:
    page, faults = opened(browser, path, width, scheme)
    assert page.evaluate(CUT_OFF) == []
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.evaluate("document.querySelectorAll('details').forEach((e) => { e.open = true; })")
    assert page.evaluate(CUT_OFF) == []
    assert page.evaluate(FAINT) == []
    sizes = page.locator(".legend, .dots").evaluate_all(
        "es => es.map((e) => parseFloat(getComputedStyle(e.querySelector('.name')).fontSize))"
    )
    assert min(sizes) >= 13
    page.context.close()
    assert faults == []


def test_wide_tables_say_that_they_scroll(browser: Browser, tmp_path: Path) -> None:
    whole = report([f"condition {i} of many" for i in range(6)])
    page, faults = opened(browser, write_page(tmp_path / "r.html", whole), 390, "light")
    settings = page.locator("[aria-label='Settings that differ']")
    assert settings.evaluate("e => e.scrollWidth > e.clientWidth")
    assert page.locator("#settings ~ .hint").is_visible()
    # With the keyboard too, and the first column stays.
    settings.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_timeout(300)
    assert settings.evaluate("e => e.scrollLeft") > 0
    left = settings.locator("tbody th").first.evaluate("e => e.getBoundingClientRect().left")
    assert left == pytest.approx(settings.evaluate("e => e.getBoundingClientRect().left"), abs=1)
    page.context.close()
    assert faults == []


def test_the_copy_button_is_on_its_command_also_below_a_long_name(
    browser: Browser, tmp_path: Path
) -> None:
    named = replace(report(), commands=[Command("a_long_name_of_a_run_" * 8, "unmix pretrain")])
    page, _ = opened(browser, write_page(tmp_path / "r.html", named), 390, "light")
    name, command, button = (
        page.locator(f".command {what}").bounding_box() for what in ("p", "pre", "button")
    )
    assert name is not None
    assert command is not None
    assert button is not None
    assert name["height"] > 40
    assert name["y"] + name["height"] <= command["y"] < button["y"]
    assert button["y"] + button["height"] <= command["y"] + command["height"]
    assert button["x"] + button["width"] <= command["x"] + command["width"]
    page.context.close()


def test_names_are_texts(wide: Page) -> None:
    names = [shown(name) for name in NAMES]
    assert names[-1] in wide.locator("h1").inner_text()
    assert wide.locator("figure.chart >> nth=0 >> .legend .name").all_text_contents() == [
        *names, "raw pixels",
    ]  # fmt: skip
    assert wide.locator(".dots >> nth=0 >> .name").all_text_contents() == names
    assert wide.evaluate("document.scripts.length") == 3


def test_tables_sort_by_click_and_keyboard(wide: Page) -> None:
    before = column(wide, 1)
    head = wide.locator("table >> nth=0 >> thead th >> nth=2")
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert [text[:4] for text in column(wide, 3)] == ["66.0", "63.0", "60.0", "39.5"]
    head.locator("button").press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    assert [text[:4] for text in column(wide, 3)] == ["39.5", "60.0", "63.0", "66.0"]
    # What is missing is last both ways.
    cost = wide.locator("table >> nth=0 >> thead th >> nth=1 >> button")
    for order in (["9", "8", "7", "–"], ["7", "8", "9", "–"]):
        cost.click()
        assert column(wide, 2) == order
    assert head.get_attribute("aria-sort") is None
    wide.locator("table >> nth=0 >> thead th >> nth=0 >> button").click()
    assert sorted(before) == sorted(column(wide, 1))
    assert column(wide, 1) != before


def test_the_csv_has_every_name_and_number(wide: Page) -> None:
    with wide.expect_download() as download:
        wide.locator("a[download] >> nth=0").click()
    assert download.value.suggested_filename == "conditions.csv"
    data = Path(download.value.path()).read_bytes()
    assert data.startswith(b"\xef\xbb\xbf")  # so that a spreadsheet reads it as UTF-8
    head, *rows = csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""))
    assert head == ["condition", "cost", "kNN", "kNN std"]
    assert rows == [
        ["raw pixels", "", "39.5", ""],
        [NAMES[0], "9", "60", "0.8"],
        # A text, and no formula.
        ["'" + shown(NAMES[1]), "8", "63", "0.8"],
        [shown(NAMES[2]), "7", "66", "0.8"],
    ]


def test_hover_shows_the_values_of_all_conditions(wide: Page) -> None:
    at = wide.locator("figure.chart >> nth=0 >> .now")
    end = values(wide)
    over = wide.locator("figure.chart >> nth=0 >> .u-over")
    over.scroll_into_view_if_needed()
    over.hover(position={"x": 2, "y": 60})
    assert at.inner_text() == "Epoch 1"
    first = values(wide)
    assert len(first) == 4
    assert all(one != last for one, last in zip(first[:3], end[:3], strict=True))
    assert all("±" in one for one in first[:3])
    wide.mouse.move(0, 0)
    assert at.inner_text() == "At the end"
    assert values(wide) == end


def test_arrow_keys_move_the_cursor(wide: Page) -> None:
    live = wide.locator("figure.chart >> nth=0 >> .live")
    live.focus()
    for key, epoch in (("Home", 1), ("ArrowRight", 2), ("End", 20), ("ArrowLeft", 19)):
        wide.keyboard.press(key)
        assert wide.locator("figure.chart >> nth=0 >> .now").inner_text() == f"Epoch {epoch}"
    spoken = wide.locator("figure.chart >> nth=0 >> [aria-live]").text_content()
    assert spoken is not None
    assert spoken.startswith("Epoch 19: ")
    assert all(shown(name) in spoken for name in NAMES)


def drawn(page: Page) -> str:
    """The picture of the first chart."""
    found = page.evaluate("document.querySelector('figure.chart canvas').toDataURL()")
    assert isinstance(found, str)
    return found


def test_a_legend_entry_hides_its_curve_in_all_charts(wide: Page) -> None:
    entries = wide.locator("figure.chart >> nth=0 >> .legend button:enabled")
    whole = drawn(wide)
    entries.nth(1).click()
    wide.wait_for_timeout(50)
    pressed = entries.evaluate_all("es => es.map((e) => e.ariaPressed)")
    assert pressed == ["true", "false", "true"]
    other = wide.locator("figure.chart >> nth=1 >> .legend button >> nth=1")
    assert other.get_attribute("aria-pressed") == "false"
    assert drawn(wide) != whole
    entries.nth(1).press("Space")
    wide.wait_for_timeout(50)
    assert other.get_attribute("aria-pressed") == "true"
    assert drawn(wide) == whole


def test_a_drag_zooms_and_the_reset_is_whole_again(wide: Page) -> None:
    figure = wide.locator("figure.chart >> nth=0")
    reset, over = figure.get_by_role("button", name="Reset zoom"), figure.locator(".u-over")
    ticks = figure.locator(".u-wrap")
    ticks.scroll_into_view_if_needed()
    assert reset.is_hidden()
    box = over.bounding_box()
    assert box is not None

    def drag() -> None:
        wide.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 50)
        wide.mouse.down()
        wide.mouse.move(box["x"] + 0.9 * box["width"], box["y"] + 50, steps=4)
        wide.mouse.up()

    def left() -> str:
        over.hover(position={"x": 1, "y": 50})
        return figure.locator(".now").inner_text()

    drag()
    assert reset.is_visible()
    assert left() in ("Epoch 10", "Epoch 11")
    reset.click()
    assert reset.is_hidden()
    assert left() == "Epoch 1"
    drag()
    figure.locator(".live").press("Escape")
    assert reset.is_hidden()
    drag()
    over.dblclick(position={"x": 30, "y": 30})
    assert reset.is_hidden()
    figure.locator(".live").press("Home")
    figure.locator(".live").press("+")
    assert reset.is_visible()
    figure.locator(".live").press("Escape")


def test_the_axis_is_epochs_or_time(wide: Page) -> None:
    group = wide.locator("figure.chart >> nth=0 >> .group")
    group.get_by_role("button", name="Time").click()
    pressed = wide.locator(".group button").evaluate_all("es => es.map((e) => e.ariaPressed)")
    assert pressed == ["false", "true"] * 2
    wide.locator("figure.chart >> nth=0 >> .live").press("End")
    # The last epoch of three seeds: 20 of 2.5, 2.6 and 2.7 s.
    assert wide.locator("figure.chart >> nth=0 >> .now").inner_text() == "At 52 seconds"
    group.get_by_role("button", name="Epochs").click()
    wide.locator("figure.chart >> nth=0 >> .live").press("End")
    assert wide.locator("figure.chart >> nth=0 >> .now").inner_text() == "Epoch 20"


def test_figures_are_enlarged_and_escape_closes_them(wide: Page) -> None:
    dialog = wide.locator("dialog")
    for figure in (wide.locator("figure.picture >> nth=0"), wide.locator("figure.chart >> nth=0")):
        button = figure.get_by_role("button", name="Enlarge")
        before = figure.bounding_box()
        button.press("Enter")
        assert dialog.is_visible()
        large = dialog.locator("figure").bounding_box()
        assert before is not None
        assert large is not None
        assert large["width"] > before["width"]
        wide.keyboard.press("Escape")
        assert dialog.is_hidden()
        expect(button).to_be_focused()
        after = figure.bounding_box()
        assert after is not None
        assert (after["width"], after["height"]) == (before["width"], before["height"])
    wide.locator("figure.picture >> nth=0 >> svg").click()
    assert dialog.is_visible()
    dialog.get_by_role("button", name="Close").click()
    assert dialog.is_hidden()


def test_commands_are_copied_exactly(wide: Page) -> None:
    wide.context.grant_permissions(["clipboard-read", "clipboard-write"])
    block = wide.locator(".command >> nth=1")
    block.get_by_role("button", name="Copy").click()
    block.get_by_text("Copied").wait_for()
    assert wide.evaluate("navigator.clipboard.readText()") == "unmix pretrain --name 1 --lr 0.03"


def test_print_shows_what_is_folded_and_curves_that_do_not_move(wide: Page) -> None:
    assert wide.locator("figure.chart >> nth=0 >> .static >> nth=0").is_hidden()
    wide.emulate_media(media="print")
    assert wide.locator("figure.chart >> nth=0 >> .static >> nth=0").is_visible()
    assert wide.locator("figure.chart >> nth=0 >> .live").is_hidden()
    assert wide.locator("dt", has_text="setting 29").bounding_box() is not None
    assert wide.get_by_role("button", name="Copy").count() == 0
    wide.emulate_media(media="screen")


def test_without_a_script_the_same_numbers_are_there(browser: Browser, path: Path) -> None:
    window = browser.new_context(java_script_enabled=False, viewport={"width": 390, "height": 900})
    page = window.new_page()
    page.goto(path.as_uri())
    assert page.locator("figure.chart >> nth=0 >> .static").count() == 2  # epochs and time
    assert page.locator("figure.chart >> nth=0 >> .static >> nth=0 >> polyline").count() == 3
    assert page.locator("a[download]").is_visible()
    window.close()


def test_a_live_page_keeps_what_the_reader_did(browser: Browser, path: Path) -> None:
    """It asks its own server again, and shows the new state; hidden curves and order stay."""
    first = report(running=Running("1 of 9 runs is complete", 0.1, refresh=0.2))
    second = replace(first, running=replace(first.running, text="2 of 9 runs are complete"))
    last = replace(first, running=None)
    answers = [html(first), html(second)]
    page, faults = browser.new_page(), []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda line: faults.append(line.text))
    page.route(
        "http://127.0.0.1:9/**",
        lambda route: route.fulfill(
            body=answers.pop(0) if len(answers) > 1 else answers[0], content_type="text/html"
        ),
    )
    page.goto("http://127.0.0.1:9/")
    page.locator("figure.chart >> nth=0 >> .legend button >> nth=1").click()
    page.locator("table >> nth=0 >> thead th >> nth=2 >> button").click()
    page.locator(".running", has_text="2 of 9 runs").wait_for()
    assert page.locator(".legend button >> nth=1").get_attribute("aria-pressed") == "false"
    assert column(page, 3)[0].startswith("66.0")
    answers[:] = [html(last)]
    page.locator(".running").wait_for(state="detached")
    assert page.evaluate("document.documentElement.dataset.refresh ?? ''") == ""
    page.close()
    assert faults == []
