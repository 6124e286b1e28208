"""Building the corpus of the tag contract: drawn, checked, split by hash, counted."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from random import Random
from typing import Literal, get_args

from lockstep.artifacts import atomic_write_text
from lockstep.data.draw import draw
from lockstep.data.grammar import CONTROL_TAGS, Prompt, all_prompts, split_row
from lockstep.data.predicates import decide
from lockstep.data.rows import read_rows
from lockstep.data.svg import parse_svg
from lockstep.errors import GateError, InputError

Split = Literal["train", "dev", "holdout"]
SPLITS: tuple[Split, ...] = get_args(Split)
# Percent of the prompts; what is left is for training.
_HOLDOUT_PERCENT = 10
_DEV_PERCENT = 5


def split_of(prompt: Prompt) -> Split:
    """The one split that all rows of a prompt belong to, decided by the hash of its text."""
    return _split_of(prompt.text)


def _split_of(content: str) -> Split:
    digest = hashlib.sha256(content.encode("utf-8")).digest()
    percent = int.from_bytes(digest[:8], "big") % 100
    if percent < _HOLDOUT_PERCENT:
        return "holdout"
    return "dev" if percent < _HOLDOUT_PERCENT + _DEV_PERCENT else "train"


def check_row(prompt: Prompt, svg: str) -> None:
    """Insists that every tag of the prompt is true of the drawing.

    Raises: GateError naming the tags that are not; InputError if the drawing is not allowed SVG.
    """
    truths = decide(parse_svg(svg, where=prompt.text), prompt.tags)
    if wrong := [tag for tag, true in truths.items() if not true]:
        raise GateError(
            f"row {prompt.text}: expected every tag to be true of its drawing, "
            f"got {' '.join(wrong)} false of {svg:.200}",
            hint="mend the generator in data/draw.py or the predicate in data/predicates.py",
        )


@dataclass(frozen=True, slots=True)
class Corpus:
    """The rows of each split, none twice."""

    train: tuple[str, ...]
    dev: tuple[str, ...]
    holdout: tuple[str, ...]

    def rows(self, split: Split) -> tuple[str, ...]:
        """The rows of one split."""
        return {"train": self.train, "dev": self.dev, "holdout": self.holdout}[split]

    def prompts(self, split: Split) -> tuple[Prompt, ...]:
        """The prompts of one split, each once, in the order of the rows."""
        return tuple(dict.fromkeys(split_row(row)[0] for row in self.rows(split)))

    def save(self, directory: Path) -> dict[Split, Path]:
        """Writes train.txt, dev.txt and holdout.txt, one row to a line.

        Raises: EnvironmentLacks if the disk refuses.
        """
        files = {split: Path(directory) / f"{split}.txt" for split in SPLITS}
        # What is trained on comes last: where it is, the others are there too.
        for split, path in reversed(files.items()):
            atomic_write_text(path, "".join(row + "\n" for row in self.rows(split)))
        return files

    @classmethod
    def load(cls, directory: Path) -> Corpus:
        """Reads what `save` wrote.

        Raises: InputError if a file is missing, empty or not UTF-8.
        """
        train, dev, holdout = (
            tuple(read_rows(Path(directory) / f"{split}.txt", may_be_empty=split != "train"))
            for split in SPLITS
        )
        return cls(train, dev, holdout)


Draw = Callable[[Prompt, Random], str]


def build_corpus(
    *, rows_per_prompt: int = 8, seed: int = 42, prompts: Iterable[Prompt] | None = None,
    drawn_by: Draw = draw,
) -> Corpus:  # fmt: skip
    """Up to so many different drawings of every prompt, each checked, in a shuffled order.

    Raises: GateError if a tag is not true of a drawing.
    """
    found: dict[Split, dict[str, None]] = {split: {} for split in SPLITS}
    for prompt in all_prompts() if prompts is None else prompts:
        # Its own generator, so that the rows of a prompt do not depend on the others.
        rng = Random(f"{seed}/{prompt.text}")
        rows = found[split_of(prompt)]
        for _ in range(rows_per_prompt):
            svg = drawn_by(prompt, rng)
            check_row(prompt, svg)
            rows[prompt.row(svg)] = None
    shuffled: list[tuple[str, ...]] = []
    for split in SPLITS:
        rows_in_order = list(found[split])
        Random(f"{seed}/{split}").shuffle(rows_in_order)
        shuffled.append(tuple(rows_in_order))
    return Corpus(*shuffled)


def corpus_of_rows(rows: Iterable[str]) -> Corpus:
    """Rows of any kind, repeated ones once, split by the hash of what they hold.

    Raises: InputError if no row is left to train on.
    """
    found: dict[Split, dict[str, None]] = {split: {} for split in SPLITS}
    for row in rows:
        found[_split_of(row)][row] = None
    if not found["train"]:
        raise InputError(
            "corpus: expected rows to train on, got none", hint="give more rows than these"
        )
    return Corpus(*(tuple(found[split]) for split in SPLITS))


@dataclass(frozen=True, slots=True)
class Coverage:
    """How often each tag occurs in a split, and each pair of tags that can stand together."""

    tags: dict[str, int]
    pairs: dict[tuple[str, str], int]

    def failures(self, *, min_per_tag: int, min_per_pair: int) -> list[str]:
        """The tags and pairs that occur too seldom."""
        few = [f"{t}: {n} rows" for t, n in self.tags.items() if n < min_per_tag]
        return few + [f"{a}{b}: {n} rows" for (a, b), n in self.pairs.items() if n < min_per_pair]


def coverage(rows: Sequence[str]) -> Coverage:
    """Counts tags and pairs of tags over rows; what never occurs counts 0."""
    tags: Counter[str] = Counter(dict.fromkeys(CONTROL_TAGS, 0))
    pairs: Counter[tuple[str, str]] = Counter()
    for prompt in all_prompts():
        pairs.update(dict.fromkeys(combinations(prompt.tags, 2), 0))
    for row in rows:
        prompt, _ = split_row(row)
        tags.update(prompt.tags)
        pairs.update(combinations(prompt.tags, 2))
    return Coverage(dict(tags), dict(pairs))
