"""Drawings for prompts: compact numbers on a grid of 64, attributes always in one order."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from lockstep.data.colors import PALETTES
from lockstep.data.grammar import Prompt

Place = tuple[int, int, int]  # centre x, centre y, half the size


def _circle(x: int, y: int, s: int) -> str:
    return f'<circle cx="{x}" cy="{y}" r="{s}"'


def _ellipse(x: int, y: int, s: int) -> str:
    return f'<ellipse cx="{x}" cy="{y}" rx="{s}" ry="{s - 2}"'


def _rect(x: int, y: int, s: int) -> str:
    return f'<rect x="{x - s}" y="{y - s}" width="{2 * s}" height="{2 * s}"'


def _triangle(x: int, y: int, s: int) -> str:
    return f'<polygon points="{x},{y - s} {x + s},{y + s} {x - s},{y + s}"'


def _polygon(x: int, y: int, s: int) -> str:
    return f'<polygon points="{x},{y - s} {x + s},{y} {x},{y + s} {x - s},{y}"'


def _line(x: int, y: int, s: int) -> str:
    return f'<line x1="{x - s}" y1="{y - s}" x2="{x + s}" y2="{y + s}"'


_SHAPES: dict[str, Callable[[int, int, int], str]] = {
    "[circle]": _circle,
    "[ellipse]": _ellipse,
    "[rect]": _rect,
    "[triangle]": _triangle,
    "[polygon]": _polygon,
    "[line]": _line,
}


def _places(layout: str, rng: Random) -> list[Place]:
    if layout == "[layout:center]":
        return [(32, 32, rng.randrange(8, 26, 2))]
    if layout == "[layout:fill]":
        return [(32, 32, rng.randrange(28, 32))]
    if layout == "[layout:top-left]":
        corner = rng.randrange(12, 18, 2)
        return [(corner, corner, rng.randrange(6, 12, 2))]
    if layout == "[layout:grid]":
        s = rng.randrange(6, 14, 2)
        return [(x, y, s) for y in (16, 48) for x in (16, 48)]
    s = rng.randrange(5, 9)
    return [(32, y, s) for y in (12, 32, 52)]


def _paint(style: str, colors: list[str]) -> str:
    if style == "[style:filled]":
        return f'fill="{colors[0]}"'
    if style == "[style:gradient]":
        return 'fill="url(#g)"'
    width = ' stroke-width="3"' if style == "[style:outlined]" else ""
    return f'fill="none" stroke="{colors[0]}"{width}'


def _gradient(colors: list[str]) -> str:
    first, second = colors
    return (
        f'<linearGradient id="g"><stop stop-color="{first}"/>'
        f'<stop offset="1" stop-color="{second}"/></linearGradient>'
    )


def _heights(order: str, n_bars: int, rng: Random) -> list[int]:
    choices = range(4, 56, 4)
    if order:
        return sorted(rng.sample(choices, n_bars), reverse=order == "[descending]")
    while True:
        heights = rng.choices(choices, k=n_bars)
        if heights not in (sorted(heights), sorted(heights, reverse=True)):
            return heights


# For each count of bars, the step from one to the next and the width of each.
_PITCH_WIDTH = {3: (18, 14), 4: (14, 10), 5: (11, 8), 6: (9, 6), 7: (8, 6)}
_BASE_Y = 60


def _bar_chart(prompt: Prompt, style: str, color: str, rng: Random) -> str:
    n_bars = next(int(tag[6:-1]) for tag in prompt.tags if tag.startswith("[bars:"))
    order = next((tag for tag in prompt.tags if tag in ("[ascending]", "[descending]")), "")
    pitch, width = _PITCH_WIDTH[n_bars]
    # Outlined bars hand their paints down to the axes; filled ones do not.
    paint = f' fill="none" stroke="{color}"' if style == "[style:filled]" else ""
    axes = f'<path d="M4 4V{_BASE_Y}H62"{paint}/>'
    bars = (
        f'<rect x="{8 + i * pitch}" y="{_BASE_Y - h}" width="{width}" height="{h}"/>'
        for i, h in enumerate(_heights(order, n_bars, rng))
    )
    return (axes if "[axes]" in prompt.tags else "") + "".join(bars)


def _colors(palette: tuple[str, ...], rng: Random) -> list[str]:
    """A colour and the one after it: which two go together can be learnt from few rows."""
    first = rng.randrange(len(palette))
    return [palette[first], palette[(first + 1) % len(palette)]]


def draw(prompt: Prompt, rng: Random) -> str:
    """One drawing for a complete prompt, as SVG text."""
    palette = next(tag[9:-1] for tag in prompt.tags if tag.startswith("[palette:"))
    style = next(tag for tag in prompt.tags if tag.startswith("[style:"))
    colors = _colors(PALETTES[palette], rng)
    # Paints come first, and once: a small model then learns each colour in one place.
    head = f'<svg {_paint(style, colors)} viewBox="0 0 64 64">'
    if prompt.tags[0] == "[bar-chart]":
        return f"{head}{_bar_chart(prompt, style, colors[0], rng)}</svg>"
    shape = _SHAPES[prompt.tags[0]]
    marks = "".join(f"{shape(*place)}/>" for place in _places(prompt.tags[-1], rng))
    gradient = _gradient(colors) if style == "[style:gradient]" else ""
    return f"{head}{gradient}{marks}</svg>"
