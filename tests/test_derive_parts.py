"""The parts of `verify derive`: markers, maps as pieces, names of moves, elements written over."""

from __future__ import annotations

import io
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from claim_stores import store
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.formats.leaf import ELEMENT_TYPES, Held, Leaf, Name
from lockstep.formats.open_store import open_store
from lockstep.formats.overwrite import (
    copy_checkpoint,
    overwrite,
    renew_checksums,
    why_not_writable,
)
from lockstep.verify.derivation.markers import Code, Numbering, random_words, to_numbers, to_words
from lockstep.verify.derivation.name_steps import ValueText, name_steps
from lockstep.verify.derivation.recover import ids_of, layout_of
from lockstep.verify.derivation.symmetry import symmetries
from lockstep.verify.derivation.template_runs import read_words


def test_a_template_that_hides_something_is_said_so() -> None:
    found = store(
        {"layers.0.q": ((8, 8), "F32"), "layers.0.up": ((8, 12), "F32")},
        {"num_attention_heads": 4, "num_key_value_heads": 4, "hidden_size": 8},
    )
    said = symmetries(found)
    assert len(said) == 3
    assert "layers.0.q [8, 8]" in said[0]
    assert "num_attention_heads, num_key_value_heads are all 4" in said[1]
    assert "only one of layers.*" in said[2]
    fine = store({f"layers.{i}.q": ((8, 12), "F32") for i in range(2)}, {"hidden_size": 8})
    assert symmetries(fine) == ()


@given(st.integers(1, 5000), st.sampled_from([7, 14, 126, 250]), st.integers(0, 99))
def test_ids_come_back_from_their_digits(n: int, highest: int, seed: int) -> None:
    code = Code.of(n, highest, np.random.default_rng(seed))
    ids = np.arange(n)
    digits = np.stack([code.digit(ids, i) for i in range(code.n_digits)])
    assert digits.min() >= 2
    assert digits.max() <= highest
    assert (code.ids(digits) == ids).all()
    assert (code.ids(np.zeros_like(digits)) == -1).all()
    assert (code.ids(np.ones_like(digits)) == -1).all()
    assert (code.ids(digits + 0.5) == -1).all()
    n_wrong = (code.ids(digits[::-1]) >= 0).sum()
    assert n_wrong <= n


def test_no_two_leaves_are_alike_in_any_run() -> None:
    """Or a converter that ties leaves which it finds equal would do so."""
    code = Code.of(40 * 249, 250, np.random.default_rng(0))
    for i in range(code.n_digits):
        rows = code.digit(np.arange(40 * 249), i).reshape(40, 249)
        assert len({row.tobytes() for row in rows}) == 40


@pytest.mark.parametrize("name", ["F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "I8", "U64"])
def test_markers_are_exact_in_their_type(name: str) -> None:
    element = ELEMENT_TYPES[name]
    top = {"F8_E4M3": 15, "F8_E5M2": 8, "I8": 127}.get(name, 251)  # with one added
    values = np.arange(2.0, top + 1)
    numbers = to_numbers(to_words(values, element), element)
    assert numbers is not None
    assert (numbers == values).all()


def _leaf(name: str, shape: tuple[int, ...], kind: str = "F32") -> Leaf:
    return Leaf((Name(name),), shape, ELEMENT_TYPES[kind], Held(b""))


@given(st.data())
def test_pieces_say_the_map_that_they_are_made_of(data: st.DataObject) -> None:
    numbering = Numbering({"a": _leaf("a", (4, 6)), "b": _leaf("b", (3, 5))})
    n = data.draw(st.integers(1, 40))
    chosen = data.draw(st.lists(st.integers(-1, 38), min_size=n, max_size=n))
    ids = np.array(chosen, np.int64)
    fills = np.where(ids < 0, np.arange(n) // 3, 7).astype("<u4")
    layout = layout_of(ids, fills, numbering, (n,))
    assert layout is not None
    assert (ids_of(layout, numbering) == ids).all()


PLACES = np.arange(48).reshape(2, 4, 6)
FLAT = np.arange(48).reshape(8, 6)


@pytest.mark.parametrize(
    ("made", "steps"),
    [
        (PLACES, []),
        (PLACES.reshape(8, 6), ["reshape(8, 6)"]),
        (PLACES.ravel(), ["flatten()"]),
        (PLACES.transpose(2, 0, 1), ["permute(2, 0, 1)"]),
        (PLACES.transpose(0, 2, 1), ["transpose()"]),
        (PLACES.transpose(2, 0, 1).reshape(6, 8), ["permute(2, 0, 1)", "reshape(6, 8)"]),
        (PLACES[1], ["index(0, 1)"]),
        (PLACES[1].T, ["index(0, 1)", "transpose()"]),
        (PLACES[:, 1:3], ["slice(1, 1, 3)"]),
        (PLACES[:, ::2], ["take(1, [0, 2])"]),
        (PLACES[:, [3, 0, 2, 1]], ["take(1, [3, 0, 2, 1])"]),
        (PLACES[:, [2, 3, 0, 1]], ["heads(1, 2, [1, 0])"]),
        (PLACES[:, [0, 0, 1, 1, 2, 2, 3, 3]], ["take(1, [0, 0, 1, 1, 2, 2, 3, 3])"]),
        (PLACES[:, :, ::-1], ["flip(2)"]),
        (PLACES[:, None], ["unsqueeze(1)"]),
    ],
)
def test_moves_have_the_names_of_claim_files(made: np.ndarray, steps: list[str]) -> None:
    numbering = Numbering({"z": _leaf("z", (3,)), "a": _leaf("a", (2, 4, 6))})
    leaf = _leaf("t", made.shape)
    fill = ValueText(np.zeros(made.size, "<u4"), leaf.element)
    found = name_steps(leaf, made.ravel() + 3, (), numbering, fill)
    assert found is not None
    assert [*found.sources[0].transform, *found.steps] == steps


def test_a_map_without_a_name_has_none() -> None:
    numbering = Numbering({"a": _leaf("a", (8, 6))})
    order = np.random.default_rng(0).permutation(48)
    fill = ValueText(np.zeros(48, "<u4"), ELEMENT_TYPES["F32"])
    assert name_steps(_leaf("t", (8, 6)), order, (), numbering, fill) is None


@settings(max_examples=20)
@given(st.sampled_from(["F32", "F16", "F64", "I32"]), st.booleans(), st.integers(0, 99))
def test_elements_are_written_where_they_lie(kind: str, packed: bool, seed: int) -> None:
    """And an archive still has the right checksums for those who check them."""
    rng = np.random.default_rng(seed)
    dtype = {"F": "f", "I": "i"}[kind[0]] + str(int(kind[1:]) // 8)
    arrays = {"a": np.zeros((3, 4), dtype), "b": np.asfortranarray(np.zeros((2, 5), dtype))}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "x.npz"
        (np.savez_compressed if packed else np.savez)(path, **arrays)
        (folder / "copy").mkdir()
        copy = copy_checkpoint(path, folder / "copy")
        leaves = open_store(copy).leaves
        words = {n: random_words(leaf, rng) for n, leaf in leaves.items()}
        for n, leaf in leaves.items():
            overwrite(leaf, words[n])
        renew_checksums(copy)
        with zipfile.ZipFile(io.BytesIO(copy.read_bytes())) as archive:
            assert archive.testzip() is None
        with np.load(copy) as loaded:
            for n in arrays:
                assert loaded[n].shape == arrays[n].shape
                assert (loaded[n].ravel().view(words[n].dtype) == words[n]).all()
        again = read_words(open_store(copy))
        assert all((again[n] == words[n]).all() for n in words)
        with np.load(path) as loaded:
            assert not any(loaded[n].any() for n in arrays)  # the template is as it was


def _written_over(path: Path, folder: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """A copy with random elements, and these."""
    folder.mkdir()
    copy = copy_checkpoint(path, folder)
    rng = np.random.default_rng(3)
    leaves = open_store(copy).leaves
    words = {name: random_words(leaf, rng) for name, leaf in leaves.items()
             if not why_not_writable(leaf)}  # fmt: skip
    for name in reversed(list(words)):
        overwrite(leaves[name], words[name])
    renew_checksums(copy)
    return copy, words


@pytest.mark.parametrize("driver", ["zarr", "zarr3"])
def test_zarr_is_written_over_as_it_is_packed(driver: str, tmp_path: Path) -> None:
    tensorstore = pytest.importorskip("tensorstore")
    metadata = {
        "zarr": {"shape": [5, 7], "chunks": [2, 3], "dtype": "<f4",
                 "compressor": {"id": "zlib", "level": 1}},
        "zarr3": {"shape": [5, 7], "data_type": "float32", "codecs": [
            {"name": "bytes", "configuration": {"endian": "little"}},
            {"name": "gzip", "configuration": {"level": 5}}],
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [2, 3]}}},
    }[driver]  # fmt: skip
    place = {"driver": "file", "path": f"{tmp_path / 'z' / 'w'}/"}
    spec = {"driver": driver, "kvstore": place, "metadata": metadata}
    array = tensorstore.open(spec, create=True).result()
    array.write(np.ones((5, 7), np.float32)).result()
    copy, words = _written_over(tmp_path / "z", tmp_path / "copy")
    spec["kvstore"] = {"driver": "file", "path": f"{copy / 'w'}/"}
    found = tensorstore.open(spec, open=True).result().read().result()
    (expected,) = words.values()
    assert (found.ravel().view(np.uint32) == expected).all()
    assert (array.read().result() == 1).all()  # the template is as it was


def test_hdf5_is_written_over_as_it_is_packed(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "x.h5", "w") as file:
        ones = np.ones((5, 7))
        file.create_dataset("packed", data=ones, chunks=(2, 3), compression="gzip", shuffle=True)
        file.create_dataset("turned", data=ones.astype(">f4"), chunks=(2, 3))
        file.create_dataset("plain", data=ones.astype(">f4"))
    copy, words = _written_over(tmp_path / "x.h5", tmp_path / "copy")
    assert words.keys() == {"packed", "turned", "plain"}
    with h5py.File(copy) as file:
        for name, expected in words.items():
            found = file[name][:].astype(file[name].dtype.newbyteorder("="))
            assert (found.ravel().view(expected.dtype) == expected).all()


@pytest.mark.torch
@pytest.mark.parametrize("legacy", [False, True])
def test_torch_loads_what_was_written_over(legacy: bool, tmp_path: Path) -> None:
    """Views of one storage too: of two leaves on the same bytes the first one counts."""
    import torch

    base = torch.zeros(6, 4)
    tree = {"a": base, "view": base.t()[1:], "half": torch.zeros(3, dtype=torch.bfloat16), "n": 3}
    path = tmp_path / "x.pt"
    torch.save(tree, path, _use_new_zipfile_serialization=not legacy)
    copy, words = _written_over(path, tmp_path / "copy")
    loaded = torch.load(copy, weights_only=True)
    assert (loaded["a"].numpy().ravel().view(np.uint32) == words["a"]).all()
    assert (loaded["half"].view(torch.int16).numpy().view(np.uint16) == words["half"]).all()
    assert torch.equal(loaded["view"], loaded["a"].t()[1:])
    assert loaded["n"] == 3
