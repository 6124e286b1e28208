"""The report in a headless browser: quiet, without network, and it answers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from example_run import HOSTILE, example_run, samples_record

from lockstep.artifacts import RunDir
from lockstep.cli.doctor import find_chromium
from lockstep.report import write_report
from lockstep.report.data import page_of

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run where every gate passes; read it only."""
    run = example_run(tmp_path_factory.mktemp("report") / "good_run")
    write_report(run)
    return run


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One headless Chromium for all tests of this file."""
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"])
        yield opened
        opened.close()


class Visit:
    """A page in the browser, and everything that it complained about or asked for."""

    def __init__(self, browser: Any, path: Path, **options: Any) -> None:
        self.page = browser.new_page(**options)
        self.troubles: list[str] = []
        self.page.on("console", lambda message: self.troubles.append(f"console: {message.text}"))
        self.page.on("pageerror", lambda error: self.troubles.append(f"error: {error}"))
        self.page.on("dialog", lambda dialog: self.troubles.append(f"dialog: {dialog.message}"))
        self.page.on("request", self.note)
        self.address = path.as_uri()
        self.page.goto(self.address)

    def note(self, request: Any) -> None:
        """Keeps every request but that for the page itself and for what it carries within."""
        if not request.url.startswith("data:") and request.url != self.address:
            self.troubles.append(f"request: {request.url}")


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_opens_quietly(browser: Any, good: RunDir, width: int, scheme: str) -> None:
    size = {"width": width, "height": 800}
    visit = Visit(browser, good.report, viewport=size, color_scheme=scheme)
    page = visit.page
    assert page.title() == "good_run · lockstep report"
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("#chart path.ours").count() == 1
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", paper))) > 380) == (scheme == "light")
    drawn = page.evaluate("[...document.images].filter((i) => i.complete && i.naturalWidth).length")
    assert drawn == samples_record().n_valid
    page.close()
    assert visit.troubles == []


def test_the_curves_answer_to_pointer_keys_and_choices(browser: Any, good: RunDir) -> None:
    visit = Visit(browser, good.report)
    page, chart = visit.page, visit.page.locator("#chart svg")
    read = page.locator("#readout")
    expected = page_of(good).curves[0]
    assert read.inner_text().startswith("last step 40")
    box = chart.bounding_box()
    chart.hover(position={"x": box["width"] / 2, "y": 60})
    step = int(read.inner_text().split()[1])
    assert 18 <= step <= 23
    assert f"this engine {expected.loss.ours[step - 1]:.5g}" in read.inner_text()
    chart.focus()
    page.keyboard.press("Home")
    assert read.inner_text().startswith("step 1 ")
    page.keyboard.press("ArrowRight")
    assert read.inner_text().startswith("step 2 ")
    before = page.locator("#chart path.ours").get_attribute("d")
    page.get_by_label("log scale").check()
    assert page.locator("#chart path.ours").get_attribute("d") != before
    page.get_by_label("Gradient norm").check()
    page.get_by_label("This run").check()
    assert read.inner_text().startswith("last step 120")
    assert "PyTorch did not train" in page.locator("#curve-note").inner_text()
    page.close()
    assert visit.troubles == []


def test_the_graph_shows_shapes_and_edges(browser: Any, good: RunDir) -> None:
    visit = Visit(browser, good.report)
    page, detail = visit.page, visit.page.locator("#detail")
    page.locator('.node[data-id="layers.0.attn.mix"]').click()
    assert "f32[M, 96] layers.0.attn.v" in detail.inner_text().replace("\n", " ")
    assert page.locator(".edge.on").count() == 4
    detail.get_by_role("button", name="layers.0.attn.add", exact=True).click()
    assert detail.locator("h3").inner_text() == "layers.0.attn.add"
    page.keyboard.press("Home")
    assert detail.locator("h3").inner_text() == "embed"
    page.keyboard.press("ArrowDown")
    assert detail.locator("h3").inner_text() == "layers.0.attn.norm"
    view = page.locator("#canvas svg").get_attribute("viewBox")
    page.get_by_label("Zoom in").click()
    assert page.locator("#canvas svg").get_attribute("viewBox") != view
    page.get_by_role("button", name="fit").click()
    page.close()
    assert visit.troubles == []


def test_switches_of_tokens_and_gallery(browser: Any, good: RunDir) -> None:
    visit = Visit(browser, good.report)
    page = visit.page
    ids = page.locator(".tok small")
    assert not ids.first.is_visible()
    page.get_by_label("show token ids").check()
    assert ids.first.is_visible()
    shown = page.locator(".card:visible")
    assert shown.count() == len(samples_record().rows)
    page.get_by_label("not valid").check()
    assert shown.count() == 15 - samples_record().n_valid
    assert "ends inside" in shown.first.inner_text()
    page.close()
    assert visit.troubles == []


def test_hostile_texts_do_nothing_in_a_browser(browser: Any, tmp_path: Path) -> None:
    run = example_run(tmp_path / "run", hostile=HOSTILE, steps=8)
    visit = Visit(browser, write_report(run), viewport={"width": 360, "height": 800})
    page = visit.page
    page.locator(".node").last.focus()
    page.keyboard.press("Home")
    page.keyboard.press("End")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.locator("img[src='x']").count() == 0
    page.close()
    assert visit.troubles == []


def test_the_browser_test_sees_trouble(browser: Any, good: RunDir, tmp_path: Path) -> None:
    text = good.report.read_text()
    planted = {
        "console": text.replace('"use strict";', '"use strict"; nothing();', 1),
        "request": text.replace("<h2", '<img src="http://127.0.0.1:9/x.png"><h2', 1),
        "inline": text.replace("<h2", '<b onclick="x()"></b><style>b{}</style><h2', 1),
    }
    for name, bad in planted.items():
        path = tmp_path / f"{name}.html"
        path.write_text(bad)
        visit = Visit(browser, path)
        visit.page.wait_for_timeout(50)
        visit.page.close()
        assert visit.troubles, name
