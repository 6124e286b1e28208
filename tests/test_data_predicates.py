"""Each predicate decides: drawings that it must pass, and drawings that it must fail."""

from __future__ import annotations

import re
from random import Random

import pytest

from lockstep.data.corpus import build_corpus
from lockstep.data.draw import draw
from lockstep.data.grammar import CONTROL_TAGS, GROUPS, all_prompts, split_row
from lockstep.data.predicates import PREDICATES, decide
from lockstep.data.svg import parse_svg

CIRCLE = '<circle cx="32" cy="32" r="9"/>'
RECT = '<rect x="20" y="24" width="9" height="7"/>'
ELLIPSE = '<ellipse cx="32" cy="32" rx="9" ry="5"/>'
LINE = '<line x1="1" y1="2" x2="30" y2="40" stroke="red"/>'
TRIANGLE = '<polygon points="1,1 9,1 5,9"/>'
SQUARE = '<polygon points="1,1 9,1 9,9 1,9"/>'


def at(x: float, y: float, r: float = 5) -> str:
    return f'<circle cx="{x}" cy="{y}" r="{r}"/>'


def bars(*heights: float, base: float = 60, width: float = 6, pitch: float = 8) -> str:
    return "".join(
        f'<rect x="{8 + i * pitch}" y="{base - h}" width="{width}" height="{h}"/>'
        for i, h in enumerate(heights)
    )


AXES = '<path d="M4 4V60H62" fill="none" stroke="red"/>'
GRADIENT = '<linearGradient id="g"><stop stop-color="{}"/><stop stop-color="{}"/></linearGradient>'


def painted(*colors: str) -> str:
    return "".join(f'<circle cx="32" cy="32" r="9" fill="{color}"/>' for color in colors)


def graded(first: str, second: str) -> str:
    return GRADIENT.format(first, second) + '<circle cx="32" cy="32" r="9" fill="url(#g)"/>'


def stroked(width: str, fill: str = "none") -> str:
    return f'<circle cx="32" cy="32" r="9" fill="{fill}" stroke="red"{width}/>'


GRID = at(16, 16) + at(48, 16) + at(16, 48) + at(48, 48)
STACK = at(32, 12) + at(32, 32) + at(32, 52)

# For each tag: the insides of drawings that must pass, then of those that must fail.
FIXTURES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "[circle]": (
        (CIRCLE, CIRCLE * 2, f"<g>{CIRCLE}</g>", f"<defs>{RECT}</defs>{CIRCLE}"),
        (
            "",
            RECT,
            CIRCLE + RECT,
            '<circle cx="3" cy="3"/>',
            f"<defs>{CIRCLE}</defs>",
            f'<g transform="scale(2)">{CIRCLE}</g>',
            f'<g display="none">{CIRCLE}</g>',
            f"<text>circle</text>{CIRCLE}",
            "<title>circle</title>",
        ),
    ),
    "[rect]": ((RECT, RECT * 2), (CIRCLE, SQUARE, '<rect width="9"/>', RECT + CIRCLE)),
    "[ellipse]": ((ELLIPSE,), (CIRCLE, '<ellipse rx="9" ry="9"/>', '<ellipse rx="9" ry="0"/>')),
    "[line]": (
        (LINE,),
        (
            RECT,
            LINE.replace(' stroke="red"', ""),
            '<line x1="3" x2="3" stroke="red"/>',
            LINE + CIRCLE,
        ),
    ),
    "[triangle]": (
        (TRIANGLE, '<polygon points="1,1 9,1 5,9 1,1"/>'),
        (SQUARE, '<polygon points="1,1 5,5 9,9"/>', '<polygon points="1,1 5,5"/>', CIRCLE),
    ),
    "[polygon]": (
        (SQUARE, '<polygon points="1,1 9,1 12,5 9,9 1,9"/>'),
        (TRIANGLE, RECT, '<polygon points="1,1 3,3 5,5 9,9"/>', SQUARE + CIRCLE),
    ),
    "[bar-chart]": (
        (bars(9, 20, 5), bars(9, 20) + AXES),
        (
            bars(9),
            CIRCLE,
            bars(9, 20) + CIRCLE,
            bars(9, 20, pitch=5),
            bars(9) + bars(9),
            bars(9, 20) + bars(9, base=50),
            bars(9, 20) + '<rect x="40" y="50" width="12" height="10"/>',
            bars(9, 70),
            bars(9, 0),
        ),
    ),
    **{
        f"[bars:{n}]": (
            (bars(*range(4, 4 + n)), AXES + bars(*range(4, 4 + n))),
            (bars(*range(4, 3 + n)), bars(*range(4, 5 + n), pitch=6), at(3, 3, 2) * n),
        )
        for n in (3, 4, 5, 6, 7)
    },
    "[ascending]": (
        (bars(4, 5, 6), bars(4, 50)),
        (bars(4, 4, 6), bars(6, 5, 4), bars(4, 6, 5), bars(4), bars(9, 20, 21, pitch=-8)),
    ),
    "[descending]": (
        (bars(6, 5, 4),),
        (bars(4, 5, 6), bars(6, 6, 4), bars(6), bars(6, 4, 5)),
    ),
    "[axes]": (
        (AXES + bars(9, 20), bars(9, 20) + AXES),
        (
            bars(9, 20),
            AXES,
            AXES + CIRCLE,
            AXES.replace('stroke="red"', "") + bars(9, 20),
            AXES.replace('fill="none"', "") + bars(9, 20),
            AXES.replace("V60", "V50") + bars(9, 20),
            AXES.replace("H62", "H12") + bars(9, 20),
            AXES.replace("M4 4", "M12 4") + bars(9, 20),
            AXES.replace("M4 4", "M4 50") + bars(9, 20),
            AXES * 2 + bars(9, 20),
        ),
    ),
    "[palette:neutral]": (
        (painted("gray", "silver"), painted("#888")),
        (painted("gray", "red"), painted("navy"), painted("none"), painted("black"), LINE),
    ),
    "[palette:bold]": (
        (painted("red", "lime", "#00f"), graded("red", "blue")),
        (painted("red", "coral"), graded("red", "pink"), CIRCLE),
    ),
    "[palette:warm]": (
        (painted("coral", "peru"), painted("rgb(200,100,50)")),
        (painted("coral", "steelblue"), painted("maroon"), painted("pink"), painted("gray")),
    ),
    "[palette:cool]": (
        (painted("steelblue", "turquoise"), graded("steelblue", "seagreen")),
        (painted("coral"), graded("steelblue", "coral"), painted("navy"), painted("lightblue")),
    ),
    "[palette:pastel]": (
        (painted("pink", "khaki"),),
        (painted("pink", "red"), painted("white"), painted("coral"), painted("gray")),
    ),
    "[palette:dark]": (
        (painted("navy", "maroon", "black"),),
        (painted("navy", "blue"), painted("gray"), stroked("", "navy")),
    ),
    "[style:filled]": (
        (painted("red"), CIRCLE, bars(9, 20) + AXES, f'<g fill="red">{RECT}</g>'),
        (stroked(""), stroked("", "red"), painted("none"), graded("red", "blue"), LINE),
    ),
    "[style:outlined]": (
        (stroked(' stroke-width="3"'), LINE.replace("/>", ' stroke-width="2"/>')),
        (
            stroked(""),
            stroked(' stroke-width="1"'),
            stroked(' stroke-width="3"', "red"),
            painted("red"),
            stroked(' stroke-width="3"') + CIRCLE,
        ),
    ),
    "[style:gradient]": (
        (graded("red", "blue"), f"<defs>{GRADIENT.format('red', 'blue')}</defs>"
         '<g fill="url(#g)">' + RECT + "</g>"),
        (graded("red", "red"), graded("red", "#f00"), painted("red"),
         graded("red", "blue") + CIRCLE, GRADIENT.format("red", "blue")),
    ),
    "[style:minimal]": (
        (stroked(""), stroked(' stroke-width=".5"'), LINE),
        (stroked(' stroke-width="3"'), stroked(' stroke-width="0"'), stroked("", "red"), CIRCLE),
    ),
    "[layout:center]": (
        (CIRCLE, at(30, 34, 20), '<rect x="27" y="29" width="9" height="7"/>'),
        (at(20, 32), at(32, 40), at(32, 32, 30), CIRCLE * 2, GRID, ""),
    ),
    "[layout:top-left]": (
        (at(12, 12), at(26, 10, 6)),
        (CIRCLE, at(40, 12), at(12, 40), at(3, 12), at(12, 12) + at(50, 50)),
    ),
    "[layout:fill]": (
        (at(32, 32, 28), '<rect x="2" y="4" width="60" height="56"/>'),
        (CIRCLE, at(32, 32, 40), '<rect x="2" y="30" width="60" height="9"/>', GRID),
    ),
    "[layout:grid]": (
        (GRID, GRID + at(32, 16) + at(32, 48)),
        (CIRCLE, STACK, GRID[: GRID.rindex("<")], GRID + CIRCLE, GRID.replace('"5"', '"17"'),
         "".join(at(x, 32) for x in (8, 24, 40, 56))),
    ),
    "[layout:stacked]": (
        (STACK, at(32, 12) + at(33, 40)),
        (CIRCLE, GRID, at(32, 12, 9) + at(32, 20, 9), at(12, 12) + at(32, 40),
         STACK.replace('"52"', '"72"'), at(12, 32) + at(32, 32)),
    ),
}  # fmt: skip


def truth(tag: str, inside: str) -> bool:
    return decide(parse_svg(f'<svg viewBox="0 0 64 64">{inside}</svg>'), [tag])[tag]


def test_every_tag_has_fixtures_of_both_kinds() -> None:
    assert FIXTURES.keys() == PREDICATES.keys() == set(CONTROL_TAGS)
    assert all(must_pass and must_fail for must_pass, must_fail in FIXTURES.values())


@pytest.mark.parametrize("tag", CONTROL_TAGS)
def test_fixtures_are_decided(tag: str) -> None:
    must_pass, must_fail = FIXTURES[tag]
    assert [inside for inside in must_pass if not truth(tag, inside)] == []
    assert [inside for inside in must_fail if truth(tag, inside)] == []


@pytest.mark.parametrize("tag", CONTROL_TAGS)
def test_without_a_canvas_nothing_is_true(tag: str) -> None:
    must_pass, _ = FIXTURES[tag]
    assert not decide(parse_svg(f"<svg>{must_pass[0]}</svg>"), [tag])[tag]


def test_the_size_of_the_canvas_does_not_matter() -> None:
    for prompt in all_prompts()[::7]:
        svg = draw(prompt, Random(prompt.text))
        head, body = svg.split('viewBox="0 0 64 64"')
        # The digits of names such as x1 and the offsets of stops are no lengths.
        doubled = re.sub(r"(?<![a-z])(?<!offset=\")\d+", lambda m: str(2 * int(m.group())), body)
        head = head.replace('stroke-width="3"', 'stroke-width="6"')
        root = parse_svg(f'{head}viewBox="0 0 128 128"{doubled}')
        assert all(decide(root, prompt.tags).values()), prompt


def test_tags_of_one_group_exclude_each_other() -> None:
    names = ("subject", "bars", "order", "style", "layout")
    bold = {"[palette:bold]"}
    for row in build_corpus(rows_per_prompt=1, seed=3).train:
        prompt, svg = split_row(row)
        groups = [g for g in names if set(GROUPS[g]) & set(prompt.tags)]
        others = [tag for g in groups for tag in GROUPS[g] if tag not in prompt.tags]
        others += [] if bold & set(prompt.tags) else GROUPS["palette"]
        truths = decide(parse_svg(svg), others)
        true = {tag for tag, holds in truths.items() if holds} - set(prompt.tags)
        # Bars are rectangles too, unless an axis stands with them.
        assert true <= ({"[rect]"} if prompt.tags[0] == "[bar-chart]" else set()), row
