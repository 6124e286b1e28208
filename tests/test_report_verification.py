"""The page of a verification: complete, safe with hostile names, quiet in a browser."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from test_report_browser import Visit
from verify_pair import CLAIMS, converted, make_pair, source_arrays

from lockstep.artifacts.verification import MEANING, Verification
from lockstep.cli.doctor import find_chromium
from lockstep.report.verification import render, write_verification_page
from lockstep.verify import check

HOSTILE = "</script><img src=x onerror=alert(1)>\"'&\x1b[2J\u202e"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Verification:
    """The record of an exact conversion; read it only."""
    pair = make_pair(tmp_path_factory.mktemp("good"))
    return check(pair.source, pair.target, pair.claims)


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Verification:
    """Gate and up exchanged, one bit changed, a leaf that nobody claims, and a hostile name."""
    folder = tmp_path_factory.mktemp("bad")
    pair = make_pair(folder, CLAIMS.replace("two layers", "<img src=x onerror=alert(2)>"))
    arrays = converted(source_arrays())
    arrays["blocks.1.up"], arrays["blocks.1.gate"] = arrays["blocks.1.gate"], arrays["blocks.1.up"]
    arrays["final_norm"].view(np.uint32)[7] ^= 1
    save_file({**arrays, HOSTILE: np.zeros(3, np.float32)}, pair.target)
    return check(pair.source, pair.target, pair.claims)


class Texts(HTMLParser):
    """What a page says, and the tags that it has."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self._inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self._inside = tag

    def handle_data(self, data: str) -> None:
        if self._inside not in ("script", "style"):
            self.text += data


def test_a_proof_is_shown_as_one(good: Verification) -> None:
    page = Texts(render(good))
    assert "value-exact under the declared transforms" in page.text
    assert "EXACT_UNDER" in page.text
    assert "Differences" not in page.text
    for row in good.claims:
        assert row.target in page.text
        assert all(name in page.text for name in row.sources)
    for side in (good.source, good.target):
        assert side.root
        assert side.root in page.text
        assert all(leaf.digest and leaf.digest in page.text for leaf in side.leaves)
    assert "0 unexplained" in page.text


def test_everything_that_is_wrong_is_on_the_page(bad: Verification) -> None:
    page = Texts(render(bad))
    assert "3 of 6 leaves differ; 1 problem in the claims" in page.text
    for row in bad.claims:
        assert f"{row.verdict}" in page.text
        if row.difference:
            assert row.difference.first.expected_bits in page.text
            assert row.difference.first.found_bits in page.text
            assert str(list(row.difference.first.source_index)) in page.text
        if row.diagnosis:
            assert row.diagnosis.text in page.text
    assert all(problem.hint in page.text for problem in bad.problems)
    assert "3 of 3 unexplained" in page.text
    assert set(MEANING) >= {row.verdict for row in bad.claims}


def test_hostile_names_stay_text(bad: Verification) -> None:
    text = render(bad)
    assert "img" not in Texts(text).tags
    assert text.count("<script") == 1
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "\\x1b[2J\\u202e" in Texts(text).text


# --- in a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One headless Chromium for all tests of this file."""
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.mark.browser
@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_opens_quietly(
    browser: Any, bad: Verification, tmp_path: Path, width: int, scheme: str
) -> None:
    path = write_verification_page(bad, tmp_path / "page.html")
    visit = Visit(browser, path, viewport={"width": width, "height": 800}, color_scheme=scheme)
    page = visit.page
    assert page.title().endswith("lockstep verify")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", paper))) > 380) == (scheme == "light")
    assert "FAIL" in page.locator("#verdict").inner_text()
    page.close()
    assert visit.troubles == []


@pytest.mark.browser
def test_the_claims_can_be_filtered(browser: Any, bad: Verification, tmp_path: Path) -> None:
    visit = Visit(browser, write_verification_page(bad, tmp_path / "page.html"))
    page = visit.page
    rows = page.locator("#claim-rows tr:visible")
    assert rows.count() == 6
    page.get_by_label("not exact").check()
    assert rows.count() == 3
    assert page.locator("#shown").inner_text() == "3 of 6 shown"
    page.locator("#search").fill("Final_")
    assert rows.count() == 1
    page.get_by_label("value-exact").check()
    assert rows.count() == 0
    page.locator("#search").fill("")
    assert rows.count() == 3
    page.close()
    assert visit.troubles == []
