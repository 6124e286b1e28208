"""The tag contract: which tags there are, which prompts they make, how a row is spelled."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from itertools import product

from lockstep.errors import InputError, UsageError

EOS = "<eos>"
SHAPES = ("circle", "rect", "ellipse", "triangle", "polygon", "line")
PALETTES = ("neutral", "bold", "warm", "cool", "pastel", "dark")
STYLES = ("filled", "outlined", "gradient", "minimal")
LAYOUTS = ("center", "top-left", "fill", "grid", "stacked")
BAR_COUNTS = (3, 4, 5, 6, 7)
# A line has no inside to fill; bars are drawn in two ways.
LINE_STYLES = ("outlined", "minimal")
BAR_STYLES = ("filled", "outlined")


def _tags(names: Iterable[object], prefix: str = "") -> tuple[str, ...]:
    return tuple(f"[{prefix}{name}]" for name in names)


# At most one tag of each group, always in this order.
GROUPS: dict[str, tuple[str, ...]] = {
    "subject": _tags((*SHAPES, "bar-chart")),
    "bars": _tags(BAR_COUNTS, "bars:"),
    "order": _tags(("ascending", "descending")),
    "axes": _tags(("axes",)),
    "palette": _tags(PALETTES, "palette:"),
    "style": _tags(STYLES, "style:"),
    "layout": _tags(LAYOUTS, "layout:"),
}
CONTROL_TAGS: tuple[str, ...] = tuple(tag for tags in GROUPS.values() for tag in tags)
_GROUP_OF = {tag: group for group, tags in GROUPS.items() for tag in tags}
_OF_BARS = ("bars", "order", "axes")
_DEFAULTS = {"palette": "[palette:neutral]", "style": "[style:filled]"}
_HINT = "give tags such as [circle][palette:cool][style:filled][layout:center]"


@dataclass(frozen=True, slots=True)
class Prompt:
    """Tags in the order of the contract."""

    tags: tuple[str, ...]

    @property
    def text(self) -> str:
        """The prompt as a row spells it."""
        return "".join(self.tags)

    def row(self, svg: str) -> str:
        """A row of a corpus: the prompt, the drawing and the end."""
        return f"{self.text}{svg}{EOS}"


@cache
def all_prompts() -> tuple[Prompt, ...]:
    """Every complete prompt of the contract."""
    found: list[Prompt] = []
    for shape, palette in product(SHAPES, GROUPS["palette"]):
        styles = LINE_STYLES if shape == "line" else STYLES
        for style, layout in product(_tags(styles, "style:"), GROUPS["layout"]):
            found.append(Prompt((f"[{shape}]", palette, style, layout)))
    parts = product(
        GROUPS["bars"], ("", *GROUPS["order"]), ("", "[axes]"), GROUPS["palette"],
        _tags(BAR_STYLES, "style:"),
    )  # fmt: skip
    found += [Prompt(("[bar-chart]", *filter(None, tags))) for tags in parts]
    return tuple(found)


@cache
def _known() -> frozenset[Prompt]:
    return frozenset(all_prompts())


def prompt_from_tags(tags: Iterable[str]) -> Prompt:
    """The complete prompt that some tags in any order ask for; what is left open gets a default.

    Raises: UsageError if a tag is unknown, two exclude each other, or the contract lacks the mix.
    """
    chosen: dict[str, str] = {}
    for tag in tags:
        group = _GROUP_OF.get(tag)
        if group is None:
            raise UsageError(f"prompt: expected a tag of the contract, got {tag!r:.60}", hint=_HINT)
        if group in chosen:
            raise UsageError(
                f"prompt: expected one {group} tag, got {chosen[group]} and {tag}", hint=_HINT
            )
        chosen[group] = tag
    if "subject" not in chosen:
        raise UsageError("prompt: expected a subject such as [circle], got none", hint=_HINT)
    chosen = {**_defaults(chosen["subject"]), **chosen}
    prompt = Prompt(tuple(chosen[group] for group in GROUPS if group in chosen))
    if prompt not in _known():
        raise UsageError(
            f"prompt: expected tags that go together, got {prompt.text}",
            hint="drop the tag that does not fit: lines are outlined or minimal, "
            "bar charts filled or outlined, and only they take [bars:N], an order and [axes]",
        )
    return prompt


def _defaults(subject: str) -> dict[str, str]:
    if subject == "[bar-chart]":
        return {**_DEFAULTS, "bars": "[bars:5]"}
    style = "[style:outlined]" if subject == "[line]" else "[style:filled]"
    return {**_DEFAULTS, "style": style, "layout": "[layout:center]"}


_PROMPT = re.compile(r"((?:\[[^\[\]\s]+\])+)\s*(?:<svg)?\s*")
_ROW = re.compile(rf"((?:\[[^\[\]\s]+\])+)(<svg.*</svg>){re.escape(EOS)}", re.DOTALL)


def parse_prompt(text: str) -> Prompt:
    """The prompt that a text such as `[circle][palette:cool]` asks for; a final `<svg` may stand.

    Raises: UsageError if the text is anything else than tags of the contract.
    """
    match = _PROMPT.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"prompt: expected tags in brackets, got {text!r:.80}", hint=_HINT)
    return prompt_from_tags(re.findall(r"\[[^\[\]]+\]", match.group(1)))


def split_row(row: str, *, where: str = "row") -> tuple[Prompt, str]:
    """The prompt and the drawing of a row.

    Raises: InputError if the row is not spelled `[tags]<svg ...>...</svg><eos>`.
    """
    match = _ROW.fullmatch(row)
    if match is None:
        raise InputError(
            f"{where}: expected [tags]<svg ...>...</svg>{EOS}, got {row!r:.80}",
            hint="build the corpus again with `lockstep data make`",
        )
    tags = tuple(re.findall(r"\[[^\[\]]+\]", match.group(1)))
    if Prompt(tags) not in _known():
        raise InputError(
            f"{where}: expected a prompt of the contract, got {''.join(tags):.80}",
            hint="write the tags in the order of the contract",
        )
    return Prompt(tags), match.group(2)
