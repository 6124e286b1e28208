"""Windows over rows, and the order in which they are read."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.data.pack import IGNORED, Batches, Cursor, Packing, Windows, pack
from lockstep.errors import InputError, UsageError

ROWS = st.lists(st.lists(st.integers(0, 99), max_size=12), max_size=9)


@given(ROWS, st.integers(1, 7))
def test_a_stream_holds_each_next_token_once(rows: list[list[int]], length: int) -> None:
    tokens = [id_ for row in rows for id_ in row]
    if len(tokens) < 2:
        with pytest.raises(InputError):
            pack(rows, length, "stream", pad_id=100)
        return
    windows = pack(rows, length, "stream", pad_id=100)
    kept = windows.targets_WT != IGNORED
    assert windows.inputs_WT[kept].tolist() == tokens[:-1]
    assert windows.targets_WT[kept].tolist() == tokens[1:]
    assert set(windows.inputs_WT[~kept].tolist()) <= {100}
    assert len(windows) == -(-(len(tokens) - 1) // length)


def rows_of(windows: Windows) -> list[tuple[int, ...]]:
    """The rows in windows: each ends where no loss is taken, and padding is none."""
    found: list[tuple[int, ...]] = []
    for inputs, targets in zip(windows.inputs_WT, windows.targets_WT, strict=True):
        row: list[int] = []
        for id_, target in zip(inputs.tolist(), targets.tolist(), strict=True):
            row.append(id_)
            if target == IGNORED:
                found += [tuple(row)] if id_ != 100 else []
                row = []
    return found


@given(ROWS, st.integers(12, 30))
def test_samples_stay_whole(rows: list[list[int]], length: int) -> None:
    pairs = [pair for row in rows for pair in pairwise(row)]
    if not pairs:
        with pytest.raises(InputError):
            pack(rows, length, "sample", pad_id=100)
        return
    windows = pack(rows, length, "sample", pad_id=100)
    kept = windows.targets_WT != IGNORED
    found = zip(windows.inputs_WT[kept].tolist(), windows.targets_WT[kept].tolist(), strict=True)
    assert sorted(found) == sorted(pairs)
    whole = [tuple(row) for row in rows if row]
    assert sorted(whole) == sorted(rows_of(windows))
    assert windows.inputs_WT.shape == windows.targets_WT.shape == (len(windows), length)


def test_samples_fill_most_of_a_window() -> None:
    rows = [[1] * (20 + 37 * i % 70) for i in range(400)]
    windows = pack(rows, 128, "sample", pad_id=0)
    assert (windows.inputs_WT != 0).mean() > 0.9


@pytest.mark.parametrize("packing", ["stream", "sample"])
def test_a_prompt_can_be_left_out_of_the_loss(packing: Packing) -> None:
    windows = pack([[1, 2, 3, 4], [5, 6, 7]], 8, packing, pad_id=0, n_ignored=[2, 1])
    assert windows.targets_WT.tolist() == [[IGNORED, 3, 4, IGNORED, 6, 7, IGNORED, IGNORED]]


def test_wrong_packing_is_refused() -> None:
    with pytest.raises(InputError, match="row 2: expected at most 3 tokens, got 4"):
        pack([[1, 2], [1, 2, 3, 4]], 3, "sample", pad_id=0)
    with pytest.raises(UsageError):
        pack([[1, 2]], 0, "sample", pad_id=0)
    with pytest.raises(UsageError):
        pack([[1, 2]], 4, "samples", pad_id=0)  # type: ignore[arg-type]


def numbered(n_windows: int) -> Windows:
    ids = np.arange(n_windows, dtype=np.int32)[:, None]
    return Windows(ids, ids + 1)


@given(st.integers(1, 9), st.lists(st.integers(1, 11), min_size=1, max_size=9), st.integers(0, 99))
def test_reading_goes_on_where_it_stopped(n_windows: int, sizes: list[int], seed: int) -> None:
    batches = Batches(numbered(n_windows), seed)
    whole, end = batches.take(Cursor(), sum(sizes))
    cursor, parts = Cursor(), []
    for size in sizes:
        # A fresh reader each time, as after a restart.
        part, cursor = Batches(numbered(n_windows), seed).take(cursor, size)
        assert len(part) == size
        parts.append(part.inputs_WT)
    assert np.concatenate(parts).tolist() == whole.inputs_WT.tolist()
    assert cursor == end
    for at in range(0, sum(sizes) - n_windows + 1, n_windows):
        epoch = whole.inputs_WT[at : at + n_windows, 0].tolist()
        assert sorted(epoch) == list(range(n_windows))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    batches = Batches(numbered(50), 1)
    orders = [batches.order(0), batches.order(1), Batches(numbered(50), 2).order(0)]
    assert len({tuple(order) for order in orders}) == 3
    assert Batches(numbered(3), 1, shuffled=False).order(5).tolist() == [0, 1, 2]
    # Written down once: a resumed run must see the same order under any NumPy.
    assert Batches(numbered(8), 42).order(0).tolist() == [7, 1, 6, 4, 3, 5, 0, 2]


@pytest.mark.parametrize("cursor", [Cursor(-1, 0), Cursor(0, -1), Cursor(0, 6)])
def test_a_cursor_of_another_data_set_is_refused(cursor: Cursor) -> None:
    with pytest.raises(InputError, match="cursor"):
        Batches(numbered(5), 1).take(cursor, 1)
