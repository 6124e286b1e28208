"""Rows to training windows, and the order in which they are seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from lockstep.errors import InputError, UsageError

Ids = NDArray[np.int32]
Packing = Literal["stream", "sample"]
PACKINGS: tuple[Packing, ...] = get_args(Packing)
IGNORED = -1  # a target that no loss is taken at


@dataclass(frozen=True, slots=True)
class Windows:
    """Next-token windows: the target of each input is the token after it, or IGNORED.

    Shapes: inputs (W,T), targets (W,T)
    """

    inputs_WT: Ids
    targets_WT: Ids

    def __len__(self) -> int:
        return len(self.inputs_WT)

    @property
    def n_targets(self) -> int:
        """How many targets a loss is taken at."""
        return int((self.targets_WT != IGNORED).sum())

    def with_targets(self) -> Windows:
        """The windows that a loss is taken in; a short one can lie within a prompt."""
        kept = (self.targets_WT != IGNORED).any(axis=1)
        return Windows(self.inputs_WT[kept], self.targets_WT[kept])


def pack(
    rows: Sequence[Sequence[int]], length: int, packing: Packing, *, pad_id: int,
    n_ignored: Sequence[int] | None = None,
) -> Windows:  # fmt: skip
    """Windows of `length` tokens over rows of ids.

    `stream` cuts the joined rows wherever a window is full; `sample` puts as many whole rows into
    a window as fit, and takes no loss across their borders. `n_ignored` gives for each row how
    many of its first tokens are no targets (the prompt, say). Padding is never a target.

    Raises: InputError if there is nothing to learn, or, for `sample`, a row is too long.
    """
    if length < 1:
        raise UsageError(f"packing: expected a window of at least 1 token, got {length}")
    if packing not in PACKINGS:
        raise UsageError(
            f"packing: expected {' or '.join(PACKINGS)}, got {packing!r}",
            hint="choose stream for running text and sample for short rows",
        )
    ignored = [0] * len(rows) if n_ignored is None else list(n_ignored)
    pairs = [(list(row), n) for row, n in zip(rows, ignored, strict=True) if len(row) > 0]
    spans = _stream(pairs, length) if packing == "stream" else _samples(pairs, length)
    inputs_WT = np.full((len(spans), length), pad_id, np.int32)
    targets_WT = np.full((len(spans), length), IGNORED, np.int32)
    for w, (inputs, targets) in enumerate(spans):
        inputs_WT[w, : len(inputs)] = inputs
        targets_WT[w, : len(targets)] = targets
    windows = Windows(inputs_WT, targets_WT)
    if windows.n_targets == 0:
        raise InputError(
            "packing: expected rows with a token to predict, got none",
            hint="check that the data set is not empty",
        )
    return windows


Span = tuple[list[int], list[int]]  # the inputs and targets of one window
_MAX_UNFILLED = 32


def _targets(row: list[int], n_ignored: int) -> list[int]:
    """For each token of a row the next one; the last has none."""
    return [IGNORED if i < n_ignored else id_ for i, id_ in enumerate(row) if i > 0] + [IGNORED]


def _stream(pairs: list[tuple[list[int], int]], length: int) -> list[Span]:
    tokens = [id_ for row, _ in pairs for id_ in row]
    seen = [IGNORED if i < n else id_ for row, n in pairs for i, id_ in enumerate(row)]
    starts = range(0, len(tokens) - 1, length)
    return [
        (tokens[at : min(at + length, len(tokens) - 1)], seen[at + 1 : at + length + 1])
        for at in starts
    ]


def _samples(pairs: list[tuple[list[int], int]], length: int) -> list[Span]:
    spans: list[Span] = []
    unfilled: list[Span] = []  # few, so that the order of the rows stays roughly as it was
    for i, (row, n_ignored) in enumerate(pairs, start=1):
        if len(row) > length:
            raise InputError(
                f"packing: row {i}: expected at most {length} tokens, got {len(row)}",
                hint="raise the sequence length, drop the row, or pack as a stream",
            )
        fitting = [span for span in unfilled if len(span[0]) + len(row) <= length]
        if fitting:
            span = max(fitting, key=_n_tokens)
        else:
            span = ([], [])
            spans.append(span)
            unfilled.append(span)
        span[0].extend(row)
        span[1].extend(_targets(row, n_ignored))
        if len(unfilled) > _MAX_UNFILLED:
            unfilled.remove(max(unfilled, key=_n_tokens))
    return spans


def _n_tokens(span: Span) -> int:
    return len(span[0])


class Cursor(NamedTuple):
    """How far the data has been read: the epoch, and the next window in its order."""

    epoch: int = 0
    window: int = 0


@dataclass(frozen=True, slots=True)
class Batches:
    """Windows in an order that depends on seed and epoch alone."""

    windows: Windows
    seed: int
    shuffled: bool = True

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Which window comes when in an epoch."""
        n_windows = len(self.windows)
        if not self.shuffled:
            return np.arange(n_windows)
        # Raw words of Philox, unlike Generator.permutation, are the same in every NumPy.
        words = np.random.Philox(key=[self.seed, epoch]).random_raw(n_windows)
        return np.argsort(words, kind="stable")

    def take(self, cursor: Cursor, n_windows: int) -> tuple[Windows, Cursor]:
        """The next windows, going on into further epochs where one ends, and where to go on."""
        epoch, at = cursor
        if not 0 <= at <= len(self.windows) or epoch < 0 or n_windows < 1:
            raise InputError(
                f"data cursor: expected 0 to {len(self.windows)} in an epoch, got {cursor}",
                hint="resume with the data set that the checkpoint was trained on",
            )
        chosen: list[NDArray[np.int64]] = []
        missing = n_windows
        while missing:
            if at == len(self.windows):
                epoch, at = epoch + 1, 0
            part = self.order(epoch)[at : at + missing]
            chosen.append(part)
            at += len(part)
            missing -= len(part)
        rows, w = np.concatenate(chosen), self.windows
        return Windows(w.inputs_WT[rows], w.targets_WT[rows]), Cursor(epoch, at)
