"""The page in a real browser: silent, alone, visible, in bounds, in both schemes; slider, clicks and turning work."""

import shutil

import pytest
from playwright.sync_api import expect, sync_playwright

from kpflow.report import SECTIONS
from report.records import small_page, small_record

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(BROWSER is None, reason=f"no browser: none of {', '.join(NAMES)} is on the path"),
]

SEEN = '[...document.querySelectorAll("figure svg")].filter((svg) => svg.checkVisibility())'
FIGURES_SEEN = f"""() => {SEEN}
    .map((svg) => [svg.getBoundingClientRect().width, svg.getBoundingClientRect().height])"""
TEXT_OUTSIDE = """() => SEEN.flatMap((svg) => {
    const frame = svg.getBoundingClientRect();
    return [...svg.querySelectorAll("text")].filter((text) => {
        const box = text.getBoundingClientRect();
        return box.left < frame.left - 1 || box.right > frame.right + 1
            || box.top < frame.top - 1 || box.bottom > frame.bottom + 1;
    }).map((text) => text.textContent);
})""".replace("SEEN", SEEN)
TEXT_OVERLAPS = """() => SEEN.flatMap((svg) => {
    const boxes = [...svg.querySelectorAll("text")].map((text) => [text.textContent, text.getBoundingClientRect(),
        text.getAttribute("transform") || ""]).filter(([, , turn]) => !/rotate\\(-[1-8]\\d*\\b(?!0)/.test(turn));
    return boxes.flatMap(([one, a], k) => boxes.slice(k + 1).filter(([, b]) =>
        Math.min(a.right, b.right) - Math.max(a.left, b.left) > 2
        && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 4).map(([other]) => one + " | " + other));
})""".replace("SEEN", SEEN)
PAINTED = "() => document.querySelector('canvas').toDataURL()"
BLANK = """() => { const [canvas, blank] = [document.querySelector("canvas"), document.createElement("canvas")];
    [blank.width, blank.height] = [canvas.width, canvas.height];
    return blank.toDataURL(); }"""


@pytest.fixture(scope="module")
def record():
    return small_record()


@pytest.fixture(scope="module")
def page() -> str:
    return small_page()


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(page, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(page, encoding="utf-8")
    return path.as_uri()


class Tab:
    """An open page and everything it said and asked for."""

    def __init__(self, browser, address, width, scheme, scripts=True):
        self.said, self.asked = [], []
        self.context = browser.new_context(
            viewport={"width": width, "height": 844},
            color_scheme=scheme,
            java_script_enabled=scripts,
            has_touch=width < 500,
        )
        self.page = self.context.new_page()
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(address)
        self.settle()

    def settle(self):
        self.page.wait_for_timeout(80)  # a few frames: drawing waits for the next one

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1600])
def test_silent_alone_visible_and_in_bounds(browser, address, width, scheme):
    with Tab(browser, address, width, scheme) as tab:
        sizes = tab.page.evaluate(FIGURES_SEEN)
        assert len(sizes) == sum(len(section.plots) for section in SECTIONS) == 20
        assert min(min(size) for size in sizes) > 100
        assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
        assert tab.page.evaluate(TEXT_OUTSIDE) == []
        assert tab.page.evaluate(TEXT_OVERLAPS) == []
        assert tab.page.evaluate(PAINTED) != tab.page.evaluate(BLANK)
        assert tab.said == []
        assert [url for url in tab.asked if not url.startswith("data:")] == [address]


def test_the_scheme_is_the_readers(browser, address):
    colours = {}
    for scheme in ("light", "dark"):
        with Tab(browser, address, 1600, scheme) as tab:
            colours[scheme] = tab.page.evaluate(
                "[getComputedStyle(document.body).backgroundColor,"
                " getComputedStyle(document.querySelector('figure .wide text')).fill]"
            )
    assert colours == {
        "light": ["rgb(246, 247, 249)", "rgb(102, 113, 130)"],
        "dark": ["rgb(18, 22, 28)", "rgb(154, 166, 181)"],
    }


def test_the_slider_moves_every_cursor_and_the_trajectories(browser, address, record):
    with Tab(browser, address, 1600, "light") as tab:
        step_name = tab.page.locator(".step-name")
        assert step_name.inner_text() == "step 20\u202f000"
        cursors = "[...document.querySelectorAll('.wide .cursor')].map((line) => line.getAttribute('x1'))"
        last, painted = tab.page.evaluate(cursors), tab.page.evaluate(PAINTED)
        # loss, score, two of the loss change, two of forecasts, rank, trace, two of movement, pipeline, three of its
        # axes, three of the bounds, two of neural collapse, similarity, two of points, exponents, seven of objectives
        assert len(last) == 30
        tab.page.locator(".step").fill("0")
        tab.settle()
        assert step_name.inner_text() == "step 0"
        assert f"loss {float(record['loss'][0]):.4g}" in tab.page.locator(".readouts").inner_text()
        assert all(first != end for first, end in zip(tab.page.evaluate(cursors), last, strict=True))
        assert tab.page.evaluate(PAINTED) != painted
        tab.page.locator(".step").press("ArrowRight")
        assert step_name.inner_text() == f"step {int(record['step'][1])}"
        assert tab.said == []


def test_a_click_on_a_panel_chooses_the_nearest_step(browser, address):
    with Tab(browser, address, 1600, "light") as tab:
        drawing = tab.page.locator("#figure-loss .wide svg")
        box = drawing.bounding_box()
        _, _, across, _ = map(float, drawing.get_attribute("viewBox").split())
        ((top, bottom, places), *_) = tab.page.evaluate(
            "JSON.parse(document.querySelector('#figure-loss svg').dataset.cursors)"
        )
        scale = box["width"] / across
        drawing.click(position={"x": (places[4] + 1) * scale, "y": (top + bottom) / 2 * scale})
        assert tab.page.locator(".step").input_value() == "4"


def test_training_plays_to_its_end(browser, address):
    with Tab(browser, address, 1600, "light") as tab:
        tab.page.locator(".step").fill("6")
        tab.page.locator(".play").click()
        expect(tab.page.locator(".step")).to_have_value("8", timeout=5000)
        assert tab.page.locator(".play").get_attribute("aria-label") == "Play training"


def test_trajectories_turn_by_drag_and_by_keys_and_go_back(browser, address):
    with Tab(browser, address, 1600, "dark") as tab:
        canvas = tab.page.locator("canvas")
        canvas.scroll_into_view_if_needed()
        start, box = tab.page.evaluate(PAINTED), canvas.bounding_box()
        tab.page.mouse.move(box["x"] + 200, box["y"] + 100)
        tab.page.mouse.down()
        tab.page.mouse.move(box["x"] + 300, box["y"] + 140)
        tab.page.mouse.up()
        tab.settle()
        dragged = tab.page.evaluate(PAINTED)
        canvas.press("ArrowLeft")
        tab.settle()
        assert len({start, dragged, tab.page.evaluate(PAINTED)}) == 3
        tab.page.locator(".home").click()
        tab.settle()
        assert tab.page.evaluate(PAINTED) == start


def test_conditions_and_time_can_be_chosen(browser, address):
    with Tab(browser, address, 390, "light") as tab:
        start = tab.page.evaluate(PAINTED)
        button = tab.page.locator(".groups button").first
        button.click()
        tab.settle()
        hidden = tab.page.evaluate(PAINTED)
        assert button.get_attribute("aria-pressed") == "false"
        button.click()
        tab.page.locator(".time").fill("3")
        tab.settle()
        assert len({start, hidden, tab.page.evaluate(PAINTED)}) == 3


def test_without_scripts_the_figures_stand_and_the_viewer_hides(browser, address):
    with Tab(browser, address, 390, "light", scripts=False) as tab:
        assert tab.page.locator("figure .narrow svg").first.is_visible()
        assert tab.page.locator("#figure-paths .narrow svg").is_visible()
        assert not tab.page.locator("canvas").is_visible()
        assert not tab.page.locator(".stepper").is_visible()
