"""HDF5: every bit that h5py was given, and everything that is refused, by its name."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stored_leaf import leaf_bytes

from lockstep.errors import EnvironmentLacks, InputError
from lockstep.formats.leaf import Extent, Held, Key, Leaf
from lockstep.formats.locate.hdf5 import locate
from lockstep.formats.locate.hdf5_chunks import Hdf5Chunks, box_shape

h5py = pytest.importorskip("h5py", reason="the extra formats is not installed")

ODD = [0x80000000, 0x7FC00001, 0xFFC12345, 0x7F800001, 1, 0x807FFFFF, 0x7F800000, 0xFF800000]


def arrays() -> dict[str, np.ndarray]:
    """Arrays of every type, with bits that a conversion would lose."""
    rng = np.random.default_rng(3)
    found = {"odd": np.array(ODD, np.uint32).view(np.float32).reshape(2, 4)}
    for dtype in ("i1", "u1", "<i2", ">u2", "<i4", ">i4", "<u8", ">i8", "<f2", ">f2", "<f4", ">f4",
                  "<f8", ">f8", "<c8", ">c8", "<c16"):  # fmt: skip
        size = np.dtype(dtype).itemsize
        found[dtype] = rng.integers(0, 256, (7, 5, 3 * size), np.uint8).view(dtype)
    found["scalar"] = np.array(1 << 40)
    found["bool"] = np.array([True, False, True])
    found["none"] = np.zeros((0, 3), np.float32)
    return found


def little(array: np.ndarray) -> bytes:
    """The bits of an array, each number little-endian."""
    width = array.dtype.itemsize // (2 if array.dtype.kind == "c" else 1)
    if array.dtype.byteorder == ">":
        return array.view(f">u{width}").astype(f"<u{width}").tobytes()
    return array.tobytes()


STORED: dict[str, dict[str, Any]] = {
    "contiguous": {},
    "chunked": {"chunks": True},
    "gzip": {"compression": "gzip", "shuffle": True, "fletcher32": True},
    "lzf": {"compression": "lzf"},
}


@pytest.mark.parametrize("userblock", [0, 512])
@pytest.mark.parametrize("kind", STORED)
def test_every_type_is_read_bit_by_bit(tmp_path: Path, kind: str, userblock: int) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w", userblock_size=userblock) as file:
        for name, array in arrays().items():
            plain = array.ndim == 0 or not array.size
            options = {} if plain else dict(STORED[kind])
            if options:
                options["chunks"] = tuple(max(1, n // 2) for n in array.shape)
            file.create_dataset(f"group/{name}", data=array, **options)
    leaves = locate(path).leaves
    for name, array in arrays().items():
        leaf = leaves[f"group/{name}"]
        assert leaf.shape == array.shape
        assert leaf_bytes(leaf) == little(array), name
        if kind == "contiguous" and name not in ("none", ">c8"):
            assert isinstance(leaf.storage, Extent), name
        elif kind != "contiguous" and array.size > 1:
            assert isinstance(leaf.storage, Hdf5Chunks), name
            assert leaf.checksum == ("fletcher32" if kind == "gzip" else "")


def write(path: Path, fill: Callable[[Any], None]) -> dict[str, Leaf]:
    with h5py.File(path, "w") as file:
        fill(file)
    return dict(locate(path).leaves)


def test_names_texts_and_empty_groups_are_leaves(tmp_path: Path) -> None:
    def fill(file: Any) -> None:
        file["model/layers.0/kernel:0"] = np.zeros(2, np.float32)
        file["text"] = "héllo"
        file["texts"] = np.array(["a", "b"], dtype=object)
        file["fixed"] = np.array([b"ab", b"c"])
        file["nothing"] = h5py.Empty("f4")
        file.create_group("void")

    leaves = write(tmp_path / "a.h5", fill)
    assert leaves["model/layers.0/kernel:0"].path == (
        Key("model"), Key("layers.0"), Key("kernel:0"),
    )  # fmt: skip
    values = {n: (leaf.element.name, *leaf.value) for n, leaf in leaves.items() if leaf.value}
    assert values == {
        "text": ("str", "héllo"),
        "texts": ("list", ["a", "b"]),
        "fixed": ("list", ["ab", "c"]),
        "nothing": ("empty", "float32"),
        "void": ("dict", {}),
    }


def test_attributes_are_facts(tmp_path: Path) -> None:
    def fill(file: Any) -> None:
        file["g/w"] = np.zeros(2, np.float32)
        file.attrs["n_heads"] = np.int64(8)
        file["g"].attrs["shape"] = [1, 2]
        file["g/w"].attrs["role"] = b"weight"

    write(tmp_path / "a.h5", fill)
    assert locate(tmp_path / "a.h5").facts["attributes"] == {
        "/": {"n_heads": 8}, "g": {"shape": [1, 2]}, "g/w": {"role": "weight"},
    }  # fmt: skip


def test_bfloat16_as_keras_stores_it_and_other_opaque_bytes(tmp_path: Path) -> None:
    words = np.arange(6, dtype=np.uint16)

    def fill(file: Any) -> None:
        file["w"] = words.view("V2")
        file["w"].attrs["dtype"] = "bfloat16"
        file["bytes"] = words.view("V2")

    leaves = write(tmp_path / "a.h5", fill)
    assert (leaves["w"].element.name, leaves["bytes"].element.name) == ("BF16", "OPAQUE2")
    assert leaf_bytes(leaves["w"]) == leaf_bytes(leaves["bytes"]) == words.tobytes()


def test_bfloat16_as_a_float_of_hdf5(tmp_path: Path) -> None:
    words = np.array([0x3F80, 0x8000, 0x7FC1, 1], np.uint16)

    def fill(file: Any) -> None:
        kind = h5py.h5t.IEEE_F32LE.copy()
        kind.set_fields(15, 7, 8, 0, 7)
        kind.set_size(2)
        kind.set_ebias(127)
        space = h5py.h5s.create_simple((4,))
        made = h5py.h5d.create(file.id, b"w", kind, space)
        made.write(h5py.h5s.ALL, h5py.h5s.ALL, words, kind)

    leaves = write(tmp_path / "a.h5", fill)
    assert leaves["w"].element.name == "BF16"
    assert leaf_bytes(leaves["w"]) == words.tobytes()


def test_what_was_never_written_reads_as_its_fill_value_and_is_noted(tmp_path: Path) -> None:
    def fill(file: Any) -> None:
        file.create_dataset("unwritten", (3, 4), "<f4", fillvalue=3.0)
        half = file.create_dataset("half", (4, 4), "<f4", chunks=(2, 4), fillvalue=5.0)
        half[:2] = 1.0

    for userblock in (0, 512):  # behind a user block h5py gives an offset even for no data
        path = tmp_path / f"{userblock}.h5"
        with h5py.File(path, "w", userblock_size=userblock) as file:
            fill(file)
        store = locate(path)
        found = {n: np.frombuffer(leaf_bytes(leaf), "<f4") for n, leaf in store.leaves.items()}
        assert (found["unwritten"] == 3.0).all()
        assert found["half"].tolist() == [1.0] * 8 + [5.0] * 8
        for name in ("unwritten", "half"):
            assert any(note.startswith(f"{name} was not wholly written") for note in store.notes)


def test_compact_data_lies_in_the_header(tmp_path: Path) -> None:
    def fill(file: Any) -> None:
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_layout(h5py.h5d.COMPACT)
        space = h5py.h5s.create_simple((3,))
        made = h5py.h5d.create(file.id, b"w", h5py.h5t.STD_I16BE, space, plan)
        made.write(h5py.h5s.ALL, h5py.h5s.ALL, np.arange(3, dtype="<i2"))

    leaf = write(tmp_path / "a.h5", fill)["w"]
    assert leaf_bytes(leaf) == np.arange(3, dtype="<i2").tobytes()
    assert not any("not wholly written" in note for note in locate(tmp_path / "a.h5").notes)


def test_links_inside_the_file_share(tmp_path: Path) -> None:
    def fill(file: Any) -> None:
        file["g/w"] = np.arange(3.0)
        file["hard"] = file["g/w"]
        file["soft"] = h5py.SoftLink("/g/w")
        file["g/relative"] = h5py.SoftLink("w")
        file["other"] = np.arange(3.0)

    leaves = write(tmp_path / "a.h5", fill)
    shares = {name: leaf.shares for name, leaf in leaves.items()}
    assert len({shares[n] for n in ("g/w", "hard", "soft", "g/relative")}) == 1
    assert shares["hard"]
    assert not shares["other"]


def virtual(file: Any) -> None:
    layout = h5py.VirtualLayout((2,), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "x", (2,))
    file.create_virtual_dataset("bad", layout)


def named_in_two_files(file: Any) -> None:
    file["bad"] = h5py.ExternalLink("other.h5", "/x")


def through_another_file(file: Any) -> None:
    file["g/away"] = h5py.ExternalLink("other.h5", "/x")
    file["bad"] = h5py.SoftLink("/g/away/y")
    del file["g/away"]
    file["g/away"] = h5py.SoftLink("/nowhere")


@pytest.mark.parametrize(
    ("fill", "message"),
    [
        (named_in_two_files, "bad: expected data in this file"),
        (virtual, "bad: expected data in this file"),
        (
            lambda f: f.create_dataset("bad", (2,), "f4", external=[("raw.bin", 0, 8)]),
            "bad: expected data in this file",
        ),
        (lambda f: f.update(bad=h5py.SoftLink("/nowhere")), "bad: expected a link to a dataset"),
        (through_another_file, "bad: expected a link to a dataset"),
        (lambda f: f.update(bad=h5py.SoftLink("/bad")), "bad: expected a link to a dataset, got a"),
        (lambda f: f.create_group("g").update(bad=f["/"]), "g/bad: expected a tree of groups"),
        (
            lambda f: f.create_group("g").update(bad=h5py.SoftLink("/g")),
            "g/bad: expected a tree of groups",
        ),
        (
            lambda f: f.create_dataset("bad", (2,), [("x", "f4"), ("y", "i4")]),
            "bad: expected numbers",
        ),
        (lambda f: f.create_dataset("bad", (2,), h5py.vlen_dtype("i4")), "bad: expected numbers"),
        (lambda f: f.create_dataset("bad", (2,), h5py.ref_dtype), "bad: expected numbers"),
        (lambda f: f.create_dataset("bad", (2,), np.longdouble), "bad: expected numbers"),
        (lambda f: f.create_dataset("bad", (2,), "(3,)f4"), "bad: expected numbers"),
        (lambda f: f.update(bad=np.array([b"\xff"])), "bad: expected text in UTF-8"),
    ],
)  # fmt: skip
def test_what_is_no_array_of_this_file_is_refused_by_name(
    tmp_path: Path, fill: Callable[[Any], None], message: str
) -> None:
    (tmp_path / "raw.bin").write_bytes(bytes(8))
    with pytest.raises(InputError, match=message):
        write(tmp_path / "a.h5", fill)


def test_listing_opens_no_data_and_fletcher32_sees_each_flip(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    array = np.random.default_rng(5).normal(size=(64, 64)).astype(np.float32)
    with h5py.File(path, "w") as file:
        made = file.create_dataset("w", data=array, chunks=(32, 64), fletcher32=True)
        places = [made.id.get_chunk_info(i) for i in range(made.id.get_num_chunks())]
    whole = path.read_bytes()
    draw = random.Random(2)
    for _ in range(30):
        place = draw.choice(places)
        raw = bytearray(whole)
        bit = draw.randrange(8 * place.size)
        raw[place.byte_offset + bit // 8] ^= 1 << bit % 8
        path.write_bytes(raw)
        leaf = locate(path).leaves["w"]
        with pytest.raises(InputError, match=r"/w: chunk \(\d, 0\): .*cannot be read"):
            leaf_bytes(leaf)


@pytest.mark.parametrize("kind", ["contiguous", "chunked", "gzip"])
def test_flips_are_refused_or_change_the_values(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.h5"
    array = np.random.default_rng(5).normal(size=(32, 32)).astype(np.float32)
    with h5py.File(path, "w") as file:
        options = {} if kind == "contiguous" else {**STORED[kind], "chunks": (16, 32)}
        made = file.create_dataset("w", data=array, **options)
        if kind == "contiguous":
            spans = [(made.id.get_offset(), array.nbytes)]
        else:
            infos = [made.id.get_chunk_info(i) for i in range(made.id.get_num_chunks())]
            spans = [(info.byte_offset, info.size) for info in infos]
    whole = path.read_bytes()
    draw = random.Random(4)
    for _ in range(40):
        start, n_bytes = draw.choice(spans)
        bit = draw.randrange(8 * n_bytes)
        raw = bytearray(whole)
        raw[start + bit // 8] ^= 1 << bit % 8
        path.write_bytes(raw)
        try:
            found = leaf_bytes(locate(path).leaves["w"])
        except InputError:
            continue
        assert found != array.tobytes()


def test_flips_anywhere_and_cuts_never_end_in_a_traceback(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["g/w"] = np.arange(30, dtype=np.float32)
        file.create_dataset("c", data=np.arange(100), chunks=(10,), compression="gzip")
        file["s"] = "text"
        file.attrs["x"] = "y"
    whole = path.read_bytes()
    draw = random.Random(6)
    damaged = [bytearray(whole[: draw.randrange(len(whole))]) for _ in range(30)]
    for _ in range(150):
        raw = bytearray(whole)
        for _ in range(3):
            raw[draw.randrange(4000) % len(raw)] ^= 1 << draw.randrange(8)
        damaged.append(raw)
    refused = 0
    for raw in damaged:
        path.write_bytes(raw)
        try:
            for leaf in locate(path).leaves.values():
                if leaf.n_bytes < 1 << 20:
                    leaf_bytes(leaf)
        except InputError:
            refused += 1
    assert refused > 30  # every cut, and many flips in the structure


def test_without_h5py_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a.h5", lambda f: f.update(w=np.zeros(2)))
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(EnvironmentLacks, match="pip install 'lockstep"):
        locate(tmp_path / "a.h5")


def test_what_is_no_hdf5_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.h5").write_bytes(b"something else")
    with pytest.raises(InputError, match="expected HDF5"):
        locate(tmp_path / "a.h5")
    with pytest.raises(InputError, match="cannot be read"):
        locate(tmp_path / "b.h5")


@pytest.mark.parametrize(("shape", "wanted"), [
    ((1 << 20, 4), (1 << 18, 4)), ((3, 1 << 21), (1, 1 << 20)), ((5,), (5,)),
])  # fmt: skip
def test_boxes_have_at_most_four_mebibytes(shape: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    assert box_shape(shape, 4) == wanted


def test_zero_sized_leaves_are_held(tmp_path: Path) -> None:
    leaf = write(tmp_path / "a.h5", lambda f: f.update(w=np.zeros((0, 3))))["w"]
    assert leaf.storage == Held(b"")
