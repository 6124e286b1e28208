"""SVG that nobody vouches for: what is refused, what is kept, how it is drawn."""

from __future__ import annotations

import struct
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.data.ascii_map import COMMON, ascii_markup
from lockstep.data.assets import one_line, read_assets
from lockstep.data.colors import FAMILIES, NAMED, PALETTES, hsl_of, rgb_of
from lockstep.data.path_data import parse_length, parse_numbers, parse_path, parse_transform
from lockstep.data.render import Renderer, render
from lockstep.data.svg import MAX_BYTES, parse_svg
from lockstep.errors import InputError, UsageError

CIRCLE = '<circle cx="32" cy="32" r="9"/>'
XMLNS = 'xmlns="http://www.w3.org/2000/svg"'


def svg(inside: str, attributes: str = "") -> str:
    return f'<svg viewBox="0 0 64 64"{attributes}>{inside}</svg>'


LAUGHS = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 10))
USES = "".join(
    f'<g id="g{i}">' + f'<use href="#g{i - 1}"/>' * 10 + "</g>" for i in range(1, 9)
)  # fmt: skip
CHAIN = "".join(f'<g id="c{i}"><use href="#c{i + 1}"/></g>' for i in range(5000))
HOSTILE = {
    "a doctype": "<!DOCTYPE svg>" + svg(CIRCLE),
    "billion laughs": f'<!DOCTYPE svg [<!ENTITY l0 "ha">{LAUGHS}]>{svg("&l9;")}',
    "an external entity": '<!DOCTYPE svg [<!ENTITY x SYSTEM "file:///etc/passwd">]>' + svg("&x;"),
    "an unknown entity": svg("<title>&x;</title>"),
    "20 000 deep": svg("<g>" * 20_000 + "</g>" * 20_000),
    "65 deep": svg("<g>" * 64 + "</g>" * 64),
    "many elements": svg("<g/>" * 50_001),
    "many bytes": svg(f"<title>{'a' * MAX_BYTES}</title>"),
    "a script": svg("<script>alert(1)</script>"),
    "a handler": svg(CIRCLE, ' onload="alert(1)"'),
    "an image": svg('<image href="a.png"/>'),
    "a file behind use": svg('<use href="file:///etc/passwd#a"/>'),
    "a page behind use": svg('<use xlink:href="https://example.org/a.svg#a"/>'),
    "a link": svg('<a href="javascript:alert(1)"><g/></a>'),
    "foreign markup": svg("<foreignObject><p>x</p></foreignObject>"),
    "an import": svg("<style>@import 'https://example.org/a.css';</style>"),
    "an import in an element": svg("<style><title>@import 'a.css';</title></style>"),
    "a root of an editor": "<inkscape:svg/>",
    "an escaped import": svg("<style>@im\\70ort 'a.css';</style>"),
    "a paint from outside": svg('<g fill="url(https://example.org/#a)"/>'),
    "a style from outside": svg('<g style="fill:url(//example.org/a)"/>'),
    "a filter from outside": svg('<g filter="url(a.svg#b)"/>'),
    "copies of copies": svg(f'<g id="g0"/>{USES}'),
    "a cycle of copies": svg('<g id="a"><use href="#b"/></g><g id="b"><use href="#a"/></g>'),
    "a long chain of copies": svg(f'{CHAIN}<g id="c5000"/>'),
    "a huge canvas": f'<svg width="1000000" height="64">{CIRCLE}</svg>',
    "a huge number": svg('<circle cx="1e9" cy="0" r="1"/>'),
    "an infinite number": svg('<circle cx="1e999" cy="0" r="1"/>'),
    "no number": svg('<circle cx="nan" cy="0" r="1"/>'),
    "a negative size": svg('<rect width="-1" height="2"/>'),
    "a broken path": svg('<path d="M0 0L1"/>'),
    "odd points": svg('<polygon points="1,2 3"/>'),
    "an empty box": '<svg viewBox="0 0 0 64"/>',
    "no colour": svg('<g fill="blurple"/>'),
    "a slow colour": svg(f'<g fill="rgb({"1" * 100_000}"/>'),
    "a slow filter": svg(f'<g filter="{"a(" * 100_000}"/>'),
    "a slow length": svg(f'<rect width="{"1" * 100_000}x"/>'),
    "a missing target": svg('<g fill="url(#nothing)"/>'),
    "the same id twice": svg('<g id="a"/><g id="a"/>'),
    "text between shapes": svg("hello"),
    "another root": "<g/>",
    "two roots": svg("") + svg(""),
    "a tail": svg("") + "x",
    "an open end": svg("")[:-3],
    "nothing": "",
    "a NUL": svg("\0"),
    "half a character": svg("<title>\ud800</title>"),
    "a wrong namespace": svg("", ' xmlns="http://example.org/"'),
}


@pytest.mark.parametrize("foreign", [False, True])
@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_svg_is_refused_quickly(what: str, foreign: bool) -> None:
    start = time.process_time()
    with pytest.raises(InputError) as caught:
        parse_svg(HOSTILE[what], foreign=foreign)
    assert caught.value.hint
    assert time.process_time() - start < 1.0


def test_the_place_of_a_fault_is_named() -> None:
    with pytest.raises(InputError, match=r"a\.svg:2:3: expected an allowed element, got <script>"):
        parse_svg(svg("\n  <script/>"), where="a.svg")


def test_bytes_that_are_not_utf8_are_refused() -> None:
    with pytest.raises(InputError, match="well-formed"):
        parse_svg(svg("<title>\u00e9</title>").encode("latin-1"))


KEPT = (
    svg(CIRCLE),
    svg('<defs><linearGradient id="g"><stop offset="50%" stop-color="#abc"/></linearGradient>'
        '</defs><rect fill="url(#g)" width="1" height="2"/>'),
    svg('<g id="a"><path d="M1 2h3v-4.5zm1e1,2 a1 1 0 01.5.5"/></g><use href="#a" x="3"/>'),
    svg('<text x="1 2" font-size="3">a <tspan dy="1em">b</tspan></text>', f" {XMLNS}"),
    svg('<g filter="drop-shadow(2px 2px 3px rgba(0,0,0,0.1))" transform="rotate(3) scale(1,2)"/>'),
    svg('<g fill="rgba(1,2,3,.5)" stroke="currentColor"/>'),
)  # fmt: skip


@pytest.mark.parametrize("text", KEPT)
def test_what_is_allowed_is_read_and_written_alike(text: str) -> None:
    assert one_line(parse_svg(text)) == text


@given(st.data())
def test_a_torn_or_changed_text_is_read_or_refused(data: st.DataObject) -> None:
    text = data.draw(st.sampled_from(KEPT))
    at = data.draw(st.integers(0, len(text)))
    n_cut = data.draw(st.integers(0, 4))
    put = data.draw(
        st.text(st.sampled_from("<>/&;\"'= #()-.,0159eMLAzsvgrectuse\u00e9\0"), max_size=5)
    )
    changed = text[:at] + put + text[at + n_cut :]
    with suppress(InputError):  # any other error is a crash
        assert parse_svg(one_line(parse_svg(changed))) is not None
    with suppress(InputError):
        assert parse_svg(changed, foreign=True) is not None


# Source: https://www.w3.org/TR/SVG2/paths.html#PathDataBNF
@pytest.mark.parametrize(
    ("text", "letters"),
    [
        ("M 1 2", "M"),
        ("m1-2-3-4", "ml"),
        ("M0 0 1 1 2 2z", "MLLz"),
        ("M.5.5L1e2,-1E-1", "ML"),
        ("M0 0A1 1 0 00 1 1", "MA"),
        ("M0 0a1,1,0,1,0,2,3 1 1 0 112 3", "Maa"),
        ("M0 0C1 2 3 4 5 6S1 2 3 4Q1 2 3 4T5 6H1 2V3", "MCSQTHHV"),
        ("", ""),
    ],
)
def test_good_path_data(text: str, letters: str) -> None:
    commands = parse_path(text)
    assert commands is not None
    assert "".join(command.letter for command in commands) == letters


@pytest.mark.parametrize(
    "text",
    ["L1 2", "M1", "M1 2L", "M0 0z1", "M0 0A1 1 0 2 0 1 1", "M0 0 X", "M1,,2", "M 1 2 3", "1"],
)
def test_bad_path_data(text: str) -> None:
    assert parse_path(text) is None


def test_small_grammars() -> None:
    assert parse_numbers(" 1,2 -3.5e1\n.5") == [1, 2, -35, 0.5]
    assert parse_numbers("1,") is None
    assert parse_numbers("1;2") is None
    assert (parse_length("1.5em"), parse_length("50%"), parse_length("x")) == (1.5, 50, None)
    assert parse_transform("translate(1) rotate(1,2,3)") == [1, 1, 2, 3]
    assert parse_transform("rotate(1,2)") is None
    assert parse_transform("spin(1)") is None


@pytest.fixture(scope="module")
def renderer() -> Iterator[Renderer]:
    with Renderer() as one:
        yield one


def pixel(png: bytes) -> bytes:
    """Red, green, blue and alpha of a picture of one pixel."""
    at, data = 8, b""
    while at < len(png):
        (length,) = struct.unpack_from(">I", png, at)
        if png[at + 4 : at + 8] == b"IDAT":
            data += png[at + 8 : at + 8 + length]
        at += 12 + length
    return zlib.decompress(data)[1:]


def test_named_colours_are_those_that_resvg_draws(renderer: Renderer) -> None:
    for name in NAMED:
        box = f'<rect width="64" height="64" fill="{name}"/>'
        rgb = rgb_of(name)
        assert rgb is not None
        assert pixel(renderer.render(svg(box), 1)) == bytes((*rgb, 255)), name


def test_a_palette_draws_with_its_own_colours_only() -> None:
    for palette, names in PALETTES.items():
        for name in names:
            color = hsl_of(name)
            assert color is not None
            families = {family for family, belongs in FAMILIES.items() if belongs(color)}
            assert palette in families
            assert families <= {palette, *(("warm", "cool") if palette == "bold" else ())}


def test_a_drawing_is_the_same_picture_each_time(renderer: Renderer) -> None:
    first = renderer.render(svg(CIRCLE), 32)
    assert first.startswith(b"\x89PNG")
    assert first == renderer.render(svg(CIRCLE), 32) == render(svg(CIRCLE, f" {XMLNS}"), 32)
    assert first != renderer.render(svg(CIRCLE.replace("9", "8")), 32)


def test_a_crash_of_the_renderer_is_an_invalid_drawing_and_no_more(renderer: Renderer) -> None:
    deep = f"<svg {XMLNS}>" + "<g>" * 30_000 + "</g>" * 30_000 + "</svg>"
    with pytest.raises(InputError, match="signal"):
        renderer.render_unchecked(deep, 64)
    assert renderer.render(svg(CIRCLE)).startswith(b"\x89PNG")


def test_a_slow_drawing_is_stopped() -> None:
    layer = "".join(
        f'<g id="g{i}">' + f'<use href="#g{i - 1}"/>' * 10 + "</g>" for i in range(1, 6)
    )
    slow = f'<svg {XMLNS} viewBox="0 0 64 64"><circle id="g0" r="9"/>{layer}</svg>'
    with Renderer(timeout_s=0.05) as hasty, pytest.raises(InputError, match="longer than"):
        hasty.render_unchecked(slow, 64)


def test_the_memory_of_the_renderer_is_limited(renderer: Renderer) -> None:
    with pytest.raises(InputError):
        renderer.render_unchecked(svg(CIRCLE, f" {XMLNS}"), 30_000)


def test_pictures_have_a_largest_size(renderer: Renderer) -> None:
    for size in (0, 2049):
        with pytest.raises(UsageError, match="size"):
            renderer.render(svg(CIRCLE), size)


def test_symbols_become_what_a_keyboard_has() -> None:
    assert ascii_markup("a → b ± 1 ≤ é") == "a -&gt; b +/- 1 &lt;= &#xE9;"
    assert ascii_markup("→", common=False) == "&#x2192;"
    assert ascii_markup("\U0001f680 & <") == "&#x1F680; &amp; &lt;"
    assert all(text.isascii() for text in COMMON.values())


REAL = f"""<?xml version="1.0" encoding="UTF-8"?>
<!-- a comment with → -->
<svg {XMLNS} xmlns:inkscape="http://www.inkscape.org/namespaces/inkscape" viewBox="0 0 64 64">
  <inkscape:namedview id="n"/>
  <title>Caf\u00e9 → menu</title>
  <style>.a > .b {{ fill: teal }}</style>
  <g class="a" inkscape:label="x">
    <rect class="b" x="4"  y="8" width="20" height="30"/>
    <path d="M30 30
      l10 10" stroke="red"/>
  </g>
</svg>
"""


def test_a_folder_becomes_rows_and_nothing_is_dropped_in_silence(
    tmp_path: Path, renderer: Renderer
) -> None:
    files = {"a.svg": REAL, "b.svg": REAL, "c.svg": REAL[:-9], "d.svg": "<!DOCTYPE svg><svg/>"}
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "e.svg").write_bytes(b"<svg>\xff</svg>")
    assets = read_assets(str(tmp_path / "*.svg"))
    (asset,) = assets.rows
    assert asset.path.name == "a.svg"
    assert [path.name for path in assets.copies] == ["b.svg"]
    assert [refused.path.name for refused in assets.refused] == ["c.svg", "d.svg", "e.svg"]
    assert all(refused.reason for refused in assets.refused)
    assert asset.row.isascii()
    assert "\n" not in asset.row
    assert "Caf&#xE9; -&gt; menu" in asset.row
    assert "inkscape" not in asset.row
    assert renderer.render(asset.row, 64) == renderer.render_unchecked(REAL, 64)
    assert assets.save(tmp_path / "rows.txt").read_text() == asset.row + "\n"


@pytest.mark.parametrize("text", [None, "<svg"])
def test_a_glob_without_svg_is_an_error(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "a.svg").write_text(text)
    with pytest.raises(InputError, match="expected"):
        read_assets(str(tmp_path / "*.svg"))
