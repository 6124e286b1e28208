"""Any composed exact transform of any format passes; any bit that flips fails at its own place.

The moves are NumPy's, done to the places of the elements, so that each target element is known by
the source element that it came from.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import save_file

from lockstep.artifacts.verification import ClaimRow, Verification
from lockstep.verify.api import check, exit_code

Arrays = dict[str, NDArray[Any]]
Places = NDArray[np.int64]  # of each element: its place in the source, _SECOND more in `b`, or _PAD
_SECOND, _PAD = 1 << 32, -1
_END = "]  # of the steps\n"
CASTS = {
    "<f4": [("", ""), ("cast(F16)", "<f2"), ("widen(F64)", "<f8")],
    "<f2": [("", ""), ("widen(F32)", "<f4")],
}
HEAD = 'schema = "lockstep.claims/1"\n'


@dataclass(frozen=True)
class Twin:
    """What a claim makes of the sources: the steps as text, and NumPy's idea of them."""

    steps: tuple[str, ...]
    places: Places

    def then(self, step: str, places: Places) -> Twin:
        """One more step."""
        return Twin((*self.steps, step), places)


# --- formats


def save_npz(save: Callable[..., None], arrays: Arrays, path: Path) -> None:
    with path.open("wb") as file:
        save(file, **arrays)


def save_h5(arrays: Arrays, path: Path) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            chunks = tuple(max(1, n // 2) for n in array.shape)
            file.create_dataset(name, data=array, chunks=chunks, compression="gzip",
                                shuffle=True, fletcher32=True)  # fmt: skip


def save_gguf(arrays: Arrays, path: Path) -> None:
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    for name, array in arrays.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def save_torch(arrays: Arrays, path: Path) -> None:
    import torch

    # As views: what is stored is the transpose.
    views = {n: torch.from_numpy(a.T.copy()).permute(*reversed(range(a.ndim)))
             for n, a in arrays.items()}  # fmt: skip
    torch.save(views, path)


WRITERS: dict[str, Callable[[Arrays, Path], None]] = {
    "safetensors": save_file,
    "npz": partial(save_npz, np.savez),
    "npz deflated": partial(save_npz, np.savez_compressed),
    **({"hdf5": save_h5} if find_spec("h5py") else {}),
    **({"gguf": save_gguf} if find_spec("gguf") else {}),
    **({"torch": save_torch} if find_spec("torch") else {}),
}


def written(draw: st.DrawFn, arrays: Arrays, path: Path) -> None:
    n_axes = max(array.ndim for array in arrays.values())
    kinds = [kind for kind in WRITERS if kind != "gguf" or n_axes <= 4]
    WRITERS[draw(st.sampled_from(kinds))](arrays, path)


# --- moves


def moved(draw: st.DrawFn, twin: Twin) -> Twin:
    """One random step that neither loses nor repeats an element."""
    places = twin.places
    n_axes = places.ndim
    axis = draw(st.integers(0, n_axes - 1))
    n = places.shape[axis]
    kind = draw(st.sampled_from(
        ["transpose", "permute", "split", "flatten", "unsqueeze", "squeeze", "flip", "take", "pad",
         "rope", "heads"]
    ))  # fmt: skip
    if kind == "transpose" and n_axes > 1:
        return twin.then("transpose()", places.swapaxes(-1, -2))
    if kind == "permute":
        order = draw(st.permutations(range(n_axes)))
        return twin.then(f"permute({', '.join(map(str, order))})", places.transpose(order))
    if kind == "split":
        parts = draw(st.sampled_from([d for d in range(1, n + 1) if n % d == 0]))
        shape = (*places.shape[:axis], parts, n // parts, *places.shape[axis + 1 :])
        return twin.then(f"reshape({', '.join(map(str, shape))})", places.reshape(shape))
    if kind == "flatten":
        return twin.then("flatten()", places.reshape(-1))
    if kind == "unsqueeze" and n_axes < 4:
        return twin.then(f"unsqueeze({axis})", np.expand_dims(places, axis))
    if kind == "squeeze" and n == 1 and n_axes > 1:
        return twin.then(f"squeeze({axis})", places.squeeze(axis))
    if kind == "flip":
        return twin.then(f"flip({axis})", np.flip(places, axis))
    if kind == "take":
        order = draw(st.permutations(range(n)))
        return twin.then(f"take({axis}, {list(order)})", places.take(order, axis))
    if kind == "pad":
        before, after = draw(st.integers(0, 2)), draw(st.integers(0, 2))
        width = [(before, after) if k == axis else (0, 0) for k in range(n_axes)]
        wide = np.pad(places, width, constant_values=_PAD)
        return twin.then(f"pad({axis}, {before}, {after}, 0)", wide)
    if kind == "rope" and places.shape[0] % 4 == 0:
        n_heads = places.shape[0] // 4
        halves = places.reshape(n_heads, 2, 2, *places.shape[1:]).swapaxes(1, 2)
        return twin.then(f"rope_half_to_interleaved({n_heads})", halves.reshape(places.shape))
    if kind == "heads" and n % 2 == 0:
        swapped = places.reshape(*places.shape[:axis], 2, n // 2, *places.shape[axis + 1 :])
        swapped = np.flip(swapped, axis).reshape(places.shape)
        return twin.then(f"heads({axis}, 2, [1, 0])", swapped)
    return twin


def moved_often(draw: st.DrawFn, twin: Twin, at_most: int) -> Twin:
    for _ in range(draw(st.integers(0, at_most))):
        twin = moved(draw, twin)
    return twin


@dataclass(frozen=True)
class Case:
    """Sources, and for each target its claim as text and where its elements come from."""

    sources: Arrays
    claims: str
    targets: dict[str, Places]
    cast: str = ""  # the type of all targets, where it is another

    def made(self) -> Arrays:
        """The targets, by NumPy."""
        return {name: self.array(places) for name, places in self.targets.items()}

    def array(self, places: Places) -> NDArray[Any]:
        word = self.sources["a"].dtype
        out = np.zeros(places.shape, word)
        for begin, name in ((0, "a"), (_SECOND, "b")):
            if name in self.sources:
                flat = self.sources[name].reshape(-1)
                here = (places >= begin) & (places < begin + flat.size)
                out[here] = flat[places[here] - begin]
        return out.astype(self.cast) if self.cast else out


def rule(target: str, sources: str, steps: tuple[str, ...]) -> str:
    texts = ", ".join(f'"{step}"' for step in steps)
    return f'[[claim]]\ngroup = "g"\ntarget = "{target}"\n{sources}\ntransform = [{texts}{_END}'


def drawn_array(draw: st.DrawFn, word: str, finite: bool) -> NDArray[Any]:
    shape = tuple(draw(st.lists(st.sampled_from([1, 2, 3, 4, 6, 8]), min_size=1, max_size=3)))
    seed = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    if finite:  # what a NaN becomes in a cast is NumPy's own affair
        return seed.standard_normal(shape).astype(word)
    n = int(np.prod(shape)) * np.dtype(word).itemsize
    return np.frombuffer(seed.bytes(n), word).reshape(shape)


def of_one(draw: st.DrawFn, sources: Arrays) -> tuple[str, dict[str, Places]]:
    """A target for each source; the first is split in two where it can be."""
    claims, targets = "", {}
    for k, (name, array) in enumerate(sources.items()):
        places = np.arange(array.size, dtype=np.int64).reshape(array.shape) + k * _SECOND
        cut = draw(st.integers(0, array.shape[0] - 1)) if k == 0 else 0
        spans = [(0, cut), (cut, array.shape[0])] if cut else [(0, array.shape[0])]
        for i, (start, stop) in enumerate(spans):
            twin = Twin((f"slice(0, {start}, {stop})",), places[start:stop])
            twin = moved_often(draw, twin, 4)
            target = f"new.{name}.{i}"
            claims += rule(target, f'source = "{name}"', twin.steps)
            targets[target] = twin.places
    return claims, targets


def of_two(draw: st.DrawFn, sources: Arrays) -> tuple[str, dict[str, Places]]:
    """Both sources joined in one target."""
    twins = []
    for k, array in enumerate(sources.values()):
        places = np.arange(array.size, dtype=np.int64).reshape(array.shape) + k * _SECOND
        twin = moved_often(draw, Twin((), places), 3)
        twins.append(twin.then("flatten()", twin.places.reshape(-1)))
    joined = Twin(("concat(0)",), np.concatenate([twin.places for twin in twins]))
    joined = moved_often(draw, joined, 3)
    parts = ", ".join(
        f'{{ name = "{name}", transform = [{", ".join(repr(s) for s in twin.steps)}] }}'
        for name, twin in zip(sources, twins, strict=True)
    )
    return rule("new", f"sources = [{parts}]", joined.steps), {"new": joined.places}


@st.composite
def cases(draw: st.DrawFn) -> Case:
    word = draw(st.sampled_from(["<f4", "<f2", "<i1", "<i8", "<f8"]))
    step, cast = draw(st.sampled_from(CASTS.get(word, [("", "")])))
    names = "ab"[: draw(st.integers(1, 2))]
    sources = {name: drawn_array(draw, word, bool(cast)) for name in names}
    make = of_two if len(sources) == 2 and draw(st.booleans()) else of_one
    claims, targets = make(draw, sources)
    if step:
        claims = claims.replace(_END, f', "{step}"{_END}').replace("[, ", "[")
    return Case(sources, claims, targets, cast)


# --- the properties


def flipped(array: NDArray[Any], place: int, bit: int) -> NDArray[Any]:
    found = np.ascontiguousarray(array).copy()
    found.reshape(-1).view(np.uint8)[place * array.itemsize + bit // 8] ^= 1 << bit % 8
    return found


def only_difference(report: Verification, target: str) -> ClaimRow:
    """The row of the one claim that fails; all others are exact."""
    assert exit_code(report) == 1
    assert {row.target for row in report.claims if row.verdict == "FAIL"} == {target}
    (row,) = (row for row in report.claims if row.target == target)
    assert row.difference is not None
    assert row.difference.n_differ == 1
    assert row.difference.first == row.difference.last
    return row


def held(case: Case, data: st.DataObject, folder: Path) -> None:
    old, new, claims = (folder / name for name in ("old", "new", "claims.toml"))
    claims.write_text(HEAD + case.claims)
    draw = data.draw
    written(draw, case.sources, old)
    written(draw, case.made(), new)
    report = check(old, new, claims, max_memory_bytes=8 << 30)
    assert report.value_exact, (report.problems, case.claims)

    target = draw(st.sampled_from(sorted(case.targets)))
    places = case.targets[target]
    place = draw(st.integers(0, places.size - 1))
    made = case.made()
    bit = draw(st.integers(0, made[target].itemsize * 8 - 1))
    index = tuple(map(int, np.unravel_index(place, places.shape)))
    code = int(places.reshape(-1)[place])
    name = "" if code == _PAD else "ab"[code // _SECOND]
    on_source = bool(name) and not case.cast and draw(st.booleans())
    if on_source:
        changed = flipped(case.sources[name], code % _SECOND, bit)
        written(draw, {**case.sources, name: changed}, old)
    else:
        written(draw, {**made, target: flipped(made[target], place, bit)}, new)
    row = only_difference(check(old, new, claims, max_memory_bytes=8 << 30), target)
    assert row.difference is not None
    spot = row.difference.first
    assert (spot.target_index, spot.source) == (index, name)
    if name:
        shape = case.sources[name].shape
        assert spot.source_index == tuple(map(int, np.unravel_index(code % _SECOND, shape)))


@given(case=cases(), data=st.data())
@settings(max_examples=40, deadline=None, derandomize=True)
def test_a_composed_transform_passes_and_a_flipped_bit_fails_at_its_place(
    case: Case, data: st.DataObject
) -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        held(case, data, folder)
    finally:
        shutil.rmtree(folder)


@pytest.mark.slow
@given(case=cases(), data=st.data())
@settings(max_examples=1500, deadline=None)
def test_many_composed_transforms(case: Case, data: st.DataObject) -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        held(case, data, folder)
    finally:
        shutil.rmtree(folder)
