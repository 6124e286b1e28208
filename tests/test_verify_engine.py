"""The engine: what is the same passes in any storage, what differs is found, budgets hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from verify_stores import KINDS, store_of

from lockstep.verify import digest
from lockstep.verify.claim import Claim, Plan
from lockstep.verify.engine import job, tiles, worker
from lockstep.verify.engine.examine import Options, examine
from lockstep.verify.layouts import layout as moves
from lockstep.verify.layouts.layout import Layout

Words = NDArray[Any]
Twin = tuple[Layout, Words]  # the same array, as a layout and as it is


def options(**kwargs: Any) -> Options:
    return Options(max_memory_bytes=4 << 30, **kwargs)


def claim(name: str, layout: Layout, **kwargs: Any) -> Claim:
    sources = tuple(sorted({p.leaf for p in layout.pieces if p.leaf is not None}))
    return Claim(
        id=name, rule="r", group="g", target=name, sources=sources, layout=layout, text="a move",
        **kwargs,
    )  # fmt: skip


# --- random layouts, and what numpy makes of the same moves


def moved(draw: st.DrawFn, twin: Twin) -> Twin:
    """One random move."""
    layout, array = twin
    n_axes = len(layout.shape)
    kind = draw(st.sampled_from(["permute", "cut", "flip", "take", "merge", "split", "broadcast"]))
    axis = draw(st.integers(0, n_axes - 1))
    n = layout.shape[axis]
    if kind == "permute":
        order = draw(st.permutations(range(n_axes)))
        return moves.permute(layout, order), array.transpose(order)
    if kind == "cut":
        start = draw(st.integers(0, n - 1))
        stop = draw(st.integers(start + 1, n))
        return moves.cut(layout, axis, start, stop), array.take(range(start, stop), axis)
    if kind == "flip":
        return moves.flip(layout, axis), np.flip(array, axis)
    if kind == "take":
        order = draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=n + 2))
        return moves.take(layout, axis, order), array.take(order, axis)
    if kind == "merge" and n_axes > 1:
        shape = (*layout.shape[: n_axes - 2], -1)
        return moves.reshape(layout, shape), array.reshape(shape)
    if kind == "split":
        divisor = draw(st.sampled_from([d for d in range(1, n + 1) if n % d == 0]))
        shape = (*layout.shape[:axis], divisor, n // divisor, *layout.shape[axis + 1 :])
        return moves.reshape(layout, shape), array.reshape(shape)
    if kind == "broadcast":
        at = [k for k in range(n_axes) if layout.shape[k] == 1]
        times = draw(st.integers(1, 3))
        if at:
            return moves.broadcast(layout, at[0], times), array.repeat(times, at[0])
    return twin


@st.composite
def cases(draw: st.DrawFn) -> tuple[dict[str, Words], dict[str, str], Layout, Words, str]:
    """Source arrays with kinds of storage; a layout over them, what it is, and its storage."""
    word = draw(st.sampled_from(["<u1", "<u2", "<u4", "<u8", "<c16"]))
    seed = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    arrays, twins = {}, []
    for name in "ab"[: draw(st.integers(1, 2))]:
        shape = tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=3)))
        n = int(np.prod(shape)) * np.dtype(word).itemsize
        arrays[name] = np.frombuffer(seed.bytes(n), word).reshape(shape)
        twin: Twin = (moves.whole(name, shape), arrays[name])
        for _ in range(draw(st.integers(0, 4))):
            twin = moved(draw, twin)
        twins.append((moves.reshape(twin[0], (-1,)), twin[1].reshape(-1)))
    layout = moves.join([twin[0] for twin in twins], 0)
    wanted = np.concatenate([twin[1] for twin in twins])
    for _ in range(draw(st.integers(0, 2))):
        layout, wanted = moved(draw, (layout, wanted))
    kinds = {name: draw(st.sampled_from(KINDS)) for name in arrays}
    return arrays, kinds, layout, np.ascontiguousarray(wanted), draw(st.sampled_from(KINDS))


quick = settings(
    max_examples=40, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip


@pytest.fixture(params=["large tiles", "small tiles"])
def tile_size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with buffers so small that every leaf of a few elements takes many tiles."""
    if request.param == "small tiles":
        monkeypatch.setattr(tiles, "ROOMS", ())
        monkeypatch.setattr(tiles, "LINEAR_ROOMS", ())
        monkeypatch.setattr(tiles, "SMALLEST_ROOM", 64)
        monkeypatch.setattr(tiles, "PLAIN", tiles.Scheme("plain", room=64, flags=64))
        monkeypatch.setattr(digest, "BLOCK_BYTES", 48)
        monkeypatch.setattr(job, "ITEM_BYTES", 96)
        monkeypatch.setattr(job, "_MANY", 3)
        monkeypatch.setattr(worker, "SLAB", 5)


@quick
@given(case=cases(), data=st.data())
def test_any_move_of_any_storage_passes_and_any_bit_that_flips_fails(
    tmp_path: Path, tile_size: None, case: Any, data: st.DataObject
) -> None:
    arrays, kinds, layout, wanted, kind = case
    source = store_of(tmp_path / "a", arrays, kinds)
    rows = (claim("t", layout),)
    target = store_of(tmp_path / "b", {"t": wanted}, {"t": kind})
    jobs = data.draw(st.integers(1, 3))
    report = examine(Plan(source, target, rows), options(jobs=jobs))
    (row,) = report.claims
    assert row.verdict in ("EXACT_BITS", "EXACT_UNDER"), row
    assert row.n_compared == wanted.size

    place = data.draw(st.integers(0, wanted.size - 1))
    damaged = wanted.copy()
    data_bytes = damaged.view(np.uint8).reshape(-1)
    bit = data.draw(st.integers(0, wanted.itemsize * 8 - 1))
    data_bytes[place * wanted.itemsize + bit // 8] ^= 1 << bit % 8
    target = store_of(tmp_path / "b", {"t": damaged}, {"t": kind})
    (row,) = examine(Plan(source, target, rows), options(jobs=jobs)).claims
    assert row.verdict == "FAIL"
    assert row.difference is not None
    assert row.difference.n_differ == 1
    spot = row.difference.first
    assert spot == row.difference.last
    assert spot.target_index == tuple(map(int, np.unravel_index(place, wanted.shape)))
    taken = arrays[spot.source][spot.source_index]
    assert taken.tobytes() == wanted.reshape(-1)[place].tobytes()


def test_many_scattered_pieces_are_read_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Columns in any order, with constants between, in bands of a few rows."""
    monkeypatch.setattr(tiles, "ROOMS", ())
    monkeypatch.setattr(tiles, "SMALLEST_ROOM", 4096)
    seed = np.random.default_rng(7)
    x, order = seed.integers(0, 1 << 16, (90, 100), np.uint16), seed.permutation(100)
    taken = moves.take(moves.whole("x", x.shape), 1, order.tolist())
    layout = moves.join([taken, moves.filled(b"\x07\x00", (90, 3))], 1)
    wanted = np.concatenate([x[:, order], np.full((90, 3), 7, np.uint16)], 1)
    source = store_of(tmp_path / "a", {"x": x})
    bands: list[int] = []
    compare = worker.Worker.compare_band
    monkeypatch.setattr(
        worker.Worker, "compare_band", lambda self, *a: (bands.append(a[1]), compare(self, *a))
    )
    rows = (claim("t", layout),)
    target = store_of(tmp_path / "b", {"t": wanted})
    assert examine(Plan(source, target, rows), options(jobs=2)).value_exact
    assert len(bands) > 3
    for place in ((0, 0), (41, 57), (89, 99), (60, 101)):
        damaged = wanted.copy()
        damaged[place] ^= 1
        target = store_of(tmp_path / "b", {"t": damaged})
        (row,) = examine(Plan(source, target, rows), options()).claims
        assert row.difference is not None
        assert row.difference.n_differ == 1
        spot = row.difference.first
        assert spot.target_index == place
        if place[1] < 100:
            assert spot.source_index == (place[0], order[place[1]])
