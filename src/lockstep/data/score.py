"""Scoring what a model drew: valid or not, each tag true or not, copied or new."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from lockstep.data.grammar import EOS, Prompt, split_row
from lockstep.data.predicates import decide
from lockstep.data.svg import parse_svg
from lockstep.errors import InputError


@dataclass(frozen=True, slots=True)
class Score:
    """One drawing against its prompt."""

    valid: bool
    reason: str  # why it is not valid; nothing if it is
    predicates: dict[str, bool]
    exact_copy: bool

    @property
    def n_true(self) -> int:
        """How many of the tags are true of the drawing."""
        return sum(self.predicates.values())


def drawings_of(rows: Collection[str]) -> frozenset[str]:
    """The drawings of rows without their prompts, to find copies among."""
    return frozenset(split_row(row)[1] for row in rows)


def completion_of(text: str, prompt: Prompt) -> str:
    """What follows the prompt in a sampled text, without the end token."""
    return text.removeprefix(prompt.text).removesuffix(EOS)


def score(text: str, prompt: Prompt, known_drawings: Collection[str]) -> Score:
    """Scores a sampled text, with or without the prompt before it and the end token after it.

    Valid means that all of it is one SVG of the allow-list. No tag is true of an invalid one.
    """
    svg = completion_of(text, prompt)
    copied = svg in known_drawings
    try:
        root = parse_svg(svg, where="sample")
    except InputError as error:
        return Score(False, error.message, dict.fromkeys(prompt.tags, False), copied)
    return Score(True, "", decide(root, prompt.tags), copied)
