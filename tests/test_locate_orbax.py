"""Orbax and zarr: every bit that the real writers were given, and every damage by its name."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stored_leaf import leaf_bytes

from lockstep.errors import EnvironmentLacks, InputError
from lockstep.formats.leaf import Attribute, Extent, Index, Key, Leaf, Parts, Store
from lockstep.formats.locate import tensor_chunks
from lockstep.formats.locate.keyed_bytes import Folder, Ocdbt
from lockstep.formats.locate.orbax import locate
from lockstep.formats.locate.tensor_chunks import (
    BoxChunks,
    StreamedChunks,
    TensorstoreChunks,
    crc32c,
)
from lockstep.formats.locate.zarr import locate as locate_zarr

pytestmark = pytest.mark.skipif(
    not all(find_spec(name) for name in ("orbax", "optax", "tensorstore", "zstandard")),
    reason="the extras formats and dev are not installed",
)

LAYOUTS = ("ocdbt_zarr2", "ocdbt_zarr3", "files_zarr2", "files_zarr3")
ARRAYS = (*LAYOUTS, "standard", *(f"{kind}_zarr{i}" for kind in ("sharded", "small_chunks")
                                  for i in (2, 3)))  # fmt: skip
ELEMENTS = {
    "bfloat16": "BF16", "float16": "F16", "float32": "F32", "float64": "F64", "bool": "BOOL",
    "int32": "I32", "int64": "I64", "uint32": "U32", "complex64": "C64", "int4": "I4_IN_BYTE",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
}  # fmt: skip


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What Orbax and tensorstore wrote, in a process of their own."""
    root = tmp_path_factory.mktemp("orbax")
    writer = Path(__file__).with_name("orbax_writer.py")
    subprocess.run([sys.executable, str(writer), str(root)], check=True, timeout=300)
    return root


@pytest.fixture
def copied(written: Path, tmp_path: Path) -> Any:
    """Copies a checkpoint, so that a test may damage it."""

    def copy(name: str) -> Path:
        return Path(shutil.copytree(written / name, tmp_path / name))

    return copy


def given(root: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    rows = json.loads(root.with_suffix(".json").read_text())
    return {
        n: (dtype, tuple(shape), bytes.fromhex(data)) for n, (dtype, shape, data) in rows.items()
    }


def arrays_of(store: Store) -> dict[str, Leaf]:
    return {name: leaf for name, leaf in store.leaves.items() if not leaf.value}


@pytest.mark.parametrize("name", ARRAYS)
def test_orbax_is_read_bit_by_bit(written: Path, name: str) -> None:
    wanted, found = given(written / name), arrays_of(locate(written / name))
    assert {n.replace("[", "").replace("]", "") for n in wanted} == {
        n.replace("[", "").replace("]", "") for n in found
    }
    plain = {n.replace("[", "").replace("]", ""): leaf for n, leaf in found.items()}
    for wanted_name, (dtype, shape, data) in wanted.items():
        leaf = plain[wanted_name.replace("[", "").replace("]", "")]
        assert (leaf.element.name, leaf.shape) == (ELEMENTS[dtype], shape), wanted_name
        assert leaf_bytes(leaf) == data, wanted_name


@pytest.mark.parametrize("name", LAYOUTS)
def test_paths_are_typed_and_values_are_leaves(written: Path, name: str) -> None:
    leaves = locate(written / name).leaves
    assert leaves["opt/[0]/mu"].path == (Key("opt"), Index(0), Key("mu"))
    assert leaves["params/block.0/up"].physical == "params.block.0.up"
    values = {n: (leaf.element.name, leaf.value) for n, leaf in leaves.items() if leaf.value}
    assert values == {
        "opt/[1]/[2]": ("none", (None,)),
        "opt/[1]/[3]": ("str", ("hello",)),
        "opt/[1]/[4]": ("dict", ({},)),
        "opt/[1]/[5]": ("list", ([],)),
        "empty": ("none", (None,)),
    }


def test_fields_of_named_tuples_are_told_from_keys_where_the_writer_kept_them(
    written: Path,
) -> None:
    leaves = locate(written / "rich").leaves
    assert leaves["opt/[0]/.mu"].path == (Key("opt"), Index(0), Attribute("mu"))
    assert leaves["params/block.0/up"].path == (Key("params"), Key("block.0"), Key("up"))


def test_shards_are_chunks(written: Path) -> None:
    for i in (2, 3):
        storage = locate(written / f"sharded_zarr{i}").leaves["w"].storage
        assert isinstance(storage, BoxChunks)
        assert storage.shape == (4, 5)


@pytest.mark.parametrize("name", ["zarr2", "zarr3"])
def test_zarr_is_read_bit_by_bit(written: Path, name: str) -> None:
    wanted, leaves = given(written / name), locate_zarr(written / name).leaves
    assert set(leaves) == set(wanted)
    kinds = set()
    for leaf_name, (_, shape, data) in wanted.items():
        leaf = leaves[leaf_name]
        kinds.add(type(leaf.storage))
        assert leaf.shape == shape
        assert leaf_bytes(leaf) == data, leaf_name
    assert kinds == {BoxChunks, TensorstoreChunks, Parts}


def test_zarr_without_zstandard_is_read_through_tensorstore(
    written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    wanted, leaves = given(written / "zarr2"), locate_zarr(written / "zarr2").leaves
    for name in ("group/zstdCf4", "group/zstdFf4big"):
        assert isinstance(leaves[name].storage, TensorstoreChunks)
        assert leaf_bytes(leaves[name]) == wanted[name][2]


def test_without_tensorstore_ocdbt_says_what_to_install(
    written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorstore", None)
    with pytest.raises(EnvironmentLacks, match="pip install 'lockstep"):
        locate(written / "ocdbt_zarr2")
    assert "step" in locate(written / "files_zarr2").leaves  # which needs none


@pytest.mark.parametrize("name", ["ocdbt_zarr2", "ocdbt_zarr3", "zarr2"])
def test_huge_chunks_are_streamed(
    written: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_chunks, "STREAMED_FROM_BYTES", 16)
    monkeypatch.setattr(tensor_chunks, "_PIECE_BYTES", 24)
    find = locate_zarr if name == "zarr2" else locate
    wanted, found = given(written / name), arrays_of(find(written / name))
    streamed = 0
    for leaf_name, leaf in found.items():
        if isinstance(leaf.storage, StreamedChunks) and leaf.n_elements > 1:
            streamed += 1
            whole = leaf_bytes(leaf)
            assert whole == wanted[leaf_name.replace("/.", "/")][2]
            n_last = (leaf.n_elements - 1) // leaf.storage.shape[0]
            for i in (n_last, 0, n_last):  # going back starts the stream again
                step = leaf.storage.shape[0] * leaf.element.n_bytes
                part = np.zeros(len(whole[i * step : (i + 1) * step]), np.uint8)
                leaf.storage.read((i,), part)
                assert part.tobytes() == whole[i * step : (i + 1) * step]
    assert streamed >= 3


def test_going_forward_does_not_start_a_stream_again(
    written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_chunks, "STREAMED_FROM_BYTES", 16)
    monkeypatch.setattr(tensor_chunks, "_PIECE_BYTES", 400)
    storage = locate(written / "ocdbt_zarr2").leaves["params/large"].storage
    opened = []
    open_chunk = tensor_chunks.ChunkPlaces.open

    def count(self: tensor_chunks.ChunkPlaces, index: tuple[int, ...]) -> Any:
        opened.append(index)
        return open_chunk(self, index)

    monkeypatch.setattr(tensor_chunks.ChunkPlaces, "open", count)
    out = np.zeros(400, np.uint8)
    assert isinstance(storage, StreamedChunks)
    for i in (0, 1, 4, 5, 9):
        storage.read((i,), out)
    assert len(opened) == 1
    storage.read((8,), out)
    assert len(opened) == 2


def test_threads_may_read_one_stream(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_chunks, "STREAMED_FROM_BYTES", 16)
    monkeypatch.setattr(tensor_chunks, "_PIECE_BYTES", 400)
    name = "params/large"
    storage = locate(written / "ocdbt_zarr2").leaves[name].storage
    wanted = given(written / "ocdbt_zarr2")[name][2]
    assert isinstance(storage, StreamedChunks)

    def piece(i: int) -> bool:
        out = np.zeros(400, np.uint8)
        storage.read((i,), out)
        return out.tobytes() == wanted[400 * i : 400 * (i + 1)]

    order = random.Random(1).sample(range(12), 12) * 4
    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(piece, order))


def test_chunks_of_zeros_that_an_older_orbax_left_out_are_zeros_and_noted(written: Path) -> None:
    store = locate(written / "older")
    for name, (_, _, data) in given(written / "older").items():
        assert leaf_bytes(store.leaves[name]) == data, name
    assert any("chunks that are missing read as zeros" in note for note in store.notes)
    kept = Ocdbt([written / "older"], "").all_keys()
    assert "none/zarr.json" in kept
    assert not any(key.startswith("none/c") for key in kept)  # so it was put to the test
    newer = locate(written / "ocdbt_zarr3").notes
    assert not any("missing" in note for note in newer)


def test_the_generator_of_a_typed_key_is_a_fact(written: Path) -> None:
    assert locate(written / "ocdbt_zarr2").facts["random_keys"] == {"typed_key": "threefry2x32"}


PEAK = """
import sys, numpy as np
from pathlib import Path
from lockstep.formats.locate.orbax import locate
leaf = locate(Path(sys.argv[1])).leaves["w"]
storage, raw = leaf.storage, np.fromfile(sys.argv[2], np.uint8, 1 << 21)
def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
out = np.ones(storage.shape[0] * 4, np.uint8)
before = peak()
for i in range(-(-leaf.n_elements // storage.shape[0])):
    storage.read((i,), out)
    raw = np.fromfile(sys.argv[2], np.uint8, len(out), offset=i * len(out))
    assert bytes(out[: len(raw)]) == bytes(raw), i
print(peak() - before, storage.peak_bytes, leaf.n_bytes)
"""


def test_a_huge_chunk_is_read_in_the_memory_that_was_predicted(written: Path) -> None:
    """The chunk has 24 MiB; its bytes, compressed and not, would take 48."""
    command = [sys.executable, "-c", PEAK, str(written / "huge"), str(written / "huge.raw")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    taken, predicted, n_bytes = map(int, done.stdout.split())
    assert taken <= predicted + (6 << 20)  # the test's own copies, and the packages themselves
    assert taken < n_bytes


def test_listing_opens_no_data(copied: Any) -> None:
    path = copied("files_zarr2")
    for file in path.glob("*/[0-9]*"):
        file.write_bytes(b"")
    assert len(locate(path).leaves) > 10
    with pytest.raises(InputError, match=r"params/block.0/up: chunk \(0, 0\): expected 120 more"):
        leaf_bytes(locate(path).leaves["params/block.0/up"])


@pytest.mark.parametrize("name", ["files_zarr2", "files_zarr3"])
def test_a_missing_chunk_is_named(copied: Any, name: str) -> None:
    path = copied(name)
    chunk = path / "params.f16" / ("0" if name.endswith("2") else "c/0")
    chunk.unlink()
    with pytest.raises(InputError, match=r"params/f16: expected a chunk (c/)?0, got none"):
        locate(path)


def test_a_missing_chunk_in_a_shard_is_named(copied: Any) -> None:
    path = copied("files_zarr3")
    chunk = path / "params.f16" / "c" / "0"
    raw = chunk.read_bytes()
    table = b"\xff" * 16
    chunk.write_bytes(raw[:-20] + table + crc32c(table).to_bytes(4, "little"))
    with pytest.raises(InputError, match=r"params/f16: chunk \(0,\): expected data, got a chunk"):
        leaf_bytes(locate(path).leaves["params/f16"])
    chunk.write_bytes(raw[:-20] + table + bytes(4))
    with pytest.raises(InputError, match="expected an index with CRC-32C"):
        leaf_bytes(locate(path).leaves["params/f16"])


def test_crc32c_is_the_known_one() -> None:
    assert crc32c(b"123456789") == 0xE3069283  # RFC 3720, appendix B.4


@pytest.mark.parametrize("name", LAYOUTS)
def test_bit_flips_change_the_values_or_are_refused(copied: Any, name: str) -> None:
    """Whatever a flip hits: the listing fails, the reading fails, or the bytes differ."""
    path = copied(name)
    before, wanted, n_noticed = snapshot(path), through_tensorstore(path), 0
    source = Ocdbt([path], "") if name.startswith("ocdbt") else Folder(path)
    chunk = source.read("params.large/" + ("0.0" if name.endswith("2") else "c/0/0"))
    draw = random.Random(11)
    data = [p for p in path.rglob("*") if p.is_file() and is_data(p)]
    (live,) = (p for p in data if chunk in p.read_bytes())
    for i in range(60):
        file = draw.choice(data) if i % 2 else live  # most bits of OCDBT are of what was replaced
        raw = bytearray(file.read_bytes())
        start = 0 if i % 2 else raw.index(chunk)
        bit = 8 * start + draw.randrange(8 * (len(raw) if i % 2 else len(chunk)))
        raw[bit // 8] ^= 1 << bit % 8
        original = file.read_bytes()
        file.write_bytes(raw)
        try:
            after = snapshot(path)
        except InputError:
            after = None
        file.write_bytes(original)
        if after == before:
            file.write_bytes(raw)  # then nobody else may see other values: the bit is of no use
            assert through_tensorstore(path) == wanted, (file.name, bit // 8, len(raw))
            file.write_bytes(original)
        n_noticed += after != before
    assert n_noticed >= 30


def is_data(file: Path) -> bool:
    """Whether a file holds elements: not the descriptions beside them."""
    return "/d/" in file.as_posix() or file.name.replace(".", "").isdigit() or file.name == "c"


def through_tensorstore(path: Path) -> dict[str, bytes]:
    """All arrays as another reader sees them."""
    import tensorstore

    found = {}
    where = f"file://{path}/"
    store = {"driver": "ocdbt", "base": where} if (path / "manifest.ocdbt").exists() else where
    for key in tensorstore.KvStore.open(store).result().list().result():
        folder, _, name = key.decode().rpartition("/")
        if name in (".zarray", "zarr.json"):
            base = {**store, "path": f"{folder}/"} if isinstance(store, dict) else where + folder
            driver = "zarr" if name == ".zarray" else "zarr3"
            spec = {"driver": driver, "kvstore": base, "fill_missing_data_reads": False}
            found[folder] = tensorstore.open(spec).result().read().result().tobytes()
    return found


def snapshot(path: Path) -> dict[str, bytes]:
    return {name: leaf_bytes(leaf) for name, leaf in locate(path).leaves.items()}


@pytest.mark.parametrize("name", ["ocdbt_zarr2", "ocdbt_zarr3"])
def test_a_cut_manifest_or_database_is_refused(copied: Any, name: str) -> None:
    path = copied(name)
    manifest = path / "manifest.ocdbt"
    whole = manifest.read_bytes()
    for n_bytes in (0, 1, len(whole) // 2, len(whole) - 1):
        manifest.write_bytes(whole[:n_bytes])
        with pytest.raises(InputError):
            locate(path)
    manifest.write_bytes(whole)
    for file in path.rglob("d/*"):
        file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(InputError):
        snapshot(path)


def test_truncated_chunks_are_refused(copied: Any) -> None:
    for name in ("files_zarr2", "files_zarr3"):
        path = copied(name)
        chunk = path / "params.f16" / ("0" if name.endswith("2") else "c/0")
        whole = chunk.read_bytes()
        for raw in (whole[:-1], whole[:5], b"", whole + b"\0"):
            chunk.write_bytes(raw)
            with pytest.raises(InputError, match="params"):
                leaf_bytes(locate(path).leaves["params/f16"])


def test_uncompressed_files_are_read_in_place_and_checked_by_length(copied: Any) -> None:
    path = copied("zarr2")
    leaf = locate_zarr(path).leaves["group/noneCf4"]
    assert isinstance(leaf.storage, Parts)
    assert len(leaf.storage.parts) == 2 * 1 * 2
    chunk = path / "group" / "noneCf4" / "1.0.1"
    chunk.write_bytes(chunk.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"group/noneCf4: .*1\.0\.1: expected 160 bytes, got 159"):
        locate_zarr(path)


def test_one_whole_chunk_in_a_file_is_an_extent(tmp_path: Path) -> None:
    metadata = {"zarr_format": 2, "shape": [2, 3], "chunks": [2, 3], "dtype": ">i2", "order": "F",
                "compressor": None, "filters": None, "fill_value": 0}  # fmt: skip
    (tmp_path / ".zarray").write_text(json.dumps(metadata))
    array = np.arange(6, dtype=">i2").reshape(2, 3)
    (tmp_path / "0.0").write_bytes(array.tobytes(order="F"))
    leaf = locate_zarr(tmp_path).leaves["array"]
    assert isinstance(leaf.storage, Extent)
    assert leaf_bytes(leaf) == array.astype("<i2").tobytes()
    metadata["filters"] = [{"id": "delta"}]
    (tmp_path / ".zarray").write_text(json.dumps(metadata))
    with pytest.raises(InputError, match="expected no filters"):
        locate_zarr(tmp_path)


def test_steps_and_items(written: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected one tree of arrays, got 2: 9, 10") as refused:
        locate(written / "two_steps")
    assert refused.value.hint.endswith("two_steps/10")
    assert set(locate(written / "two_steps" / "10").leaves) == {"w"}
    one = locate(written / "one_step")
    assert set(one.leaves) == {"w"}
    assert one.notes[:2] == ("read 3/state", "meta beside it was not read")
    with pytest.raises(InputError, match="expected one tree of arrays, got 0"):
        locate(tmp_path)


def test_an_unfinished_checkpoint_is_refused(copied: Any) -> None:
    path = copied("ocdbt_zarr2")
    path = path.rename(path.with_name("7.orbax-checkpoint-tmp-12"))
    with pytest.raises(InputError, match="expected a finished checkpoint"):
        locate(path)


def test_databases_that_were_never_merged_are_read(copied: Any, written: Path) -> None:
    path = copied("ocdbt_zarr2")
    (path / "manifest.ocdbt").unlink()
    shutil.rmtree(path / "d", ignore_errors=True)
    assert snapshot(path) == snapshot(written / "ocdbt_zarr2")


def test_keys_that_collide_are_refused(written: Path) -> None:
    with pytest.raises(InputError, match=r"got 'a\.b' for both a/b and a\.b"):
        locate(written / "colliding")


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../../other", "x/../../y", "a//b", "a\\..\\b", "nul\0"]
)
def test_keys_that_lead_out_are_refused(copied: Any, name: str) -> None:
    path = copied("files_zarr2")
    edit_tree(path, "('step',)", lambda e: e["key_metadata"][0].update(key=name), str((name,)))
    with pytest.raises(InputError, match="expected a key inside the checkpoint"):
        locate(path)


def test_a_link_out_of_the_checkpoint_is_refused(copied: Any, tmp_path: Path) -> None:
    path = copied("files_zarr2")
    (tmp_path / "secret").write_bytes(b"1234")
    (path / "step" / "0").unlink()
    (path / "step" / "0").symlink_to(tmp_path / "secret")
    with pytest.raises(InputError, match="got a link to somewhere else"):
        locate(path)


def edit_tree(path: Path, entry: str, change: Any, rename: str | None = None) -> None:
    document = json.loads((path / "_METADATA").read_text())
    found = document["tree_metadata"].pop(entry)
    change(found)
    document["tree_metadata"][rename or entry] = found
    (path / "_METADATA").write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e.update(key_metadata=[]), "expected the steps of a path"),
        (lambda e: e.update(key_metadata=7), "expected the steps of a path"),
        (lambda e: e["key_metadata"][0].update(key_type=3), "key_type: expected 1 or 2"),
        (lambda e: e["key_metadata"][0].update(key_type=1), "expected an index"),
        (lambda e: e["key_metadata"][0].update(key="mask"), "to spell that path"),
        (lambda e: e["key_metadata"][0].update(key=4), "expected a text"),
        (lambda e: e.update(value_metadata=None), "value_type: expected one of"),
    ],
)
def test_a_damaged_tree_is_refused(copied: Any, change: Any, message: str) -> None:
    path = copied("files_zarr2")
    edit_tree(path, "('step',)", change)
    with pytest.raises(InputError, match=message):
        locate(path)


def test_an_array_of_the_tree_that_is_not_there_is_named_and_one_beside_it_listed(
    copied: Any,
) -> None:
    path = copied("files_zarr2")
    (path / "step").rename(path / "left.over")
    with pytest.raises(InputError, match="step: expected an array under 'step', got none"):
        locate(path)
    shutil.copytree(path / "left.over", path / "step")
    store = locate(path)
    assert "left.over" in store.leaves
    assert any("1 arrays are not in _METADATA" in note for note in store.notes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"zarr_format": 4}, "zarr_format 2 or 3"),
        ({"shape": [-1]}, "shape: expected sizes"),
        ({"shape": [1 << 40, 1 << 40], "chunks": [1, 1]}, "shape: expected sizes"),
        ({"chunks": [0]}, "chunks: expected sizes"),
        ({"chunks": [1, 1]}, "expected chunks with 1 axes, got 2"),
        ({"dtype": [["x", "<f4"]]}, "expected numbers of one type"),
        ({"dtype": "<M8[s]"}, "expected numbers of one type"),
        ({"order": "K"}, "order: expected"),
        ({"dimension_separator": "../"}, "between the parts of a key"),
        ({"compressor": 7}, "expected a compressor"),
    ],
)
def test_a_damaged_description_of_an_array_is_refused(
    copied: Any, change: dict[str, Any], message: str
) -> None:
    path = copied("files_zarr2")
    file = path / "params.f16" / ".zarray"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(InputError, match=message):
        locate(path)


def test_a_shape_larger_than_the_chunks_is_refused(copied: Any) -> None:
    """A description that claims more than is stored must not read as zeros."""
    path = copied("files_zarr2")
    file = path / "params.f16" / ".zarray"
    file.write_text(json.dumps({**json.loads(file.read_text()), "shape": [1 << 50]}))
    with pytest.raises(InputError, match="params/f16: expected a chunk 1, got none"):
        locate(path)


def test_sizes_and_ranges_under_keys(written: Path, tmp_path: Path) -> None:
    database = Ocdbt([written / "ocdbt_zarr2"], "here")
    key = "params.block.0.up/0.0"
    whole = database.read(key)
    assert (database.block(key, 0), database.block(key, len(whole))) == (whole, b"")
    assert database.read(key, 3, 9) == whole[3:9]
    assert database.read(key, -5) == whole[-5:]
    (tmp_path / "f").write_bytes(whole)
    folder = Folder(tmp_path)
    assert (folder.block("f", 0), folder.block("f", len(whole))) == (whole, b"")
    assert folder.read("f", 3, 9) == whole[3:9]
    assert folder.read("f", -5) == whole[-5:]
    for source, name in ((database, key), (folder, "f")):
        for start, stop in ((0, len(whole) + 1), (-len(whole) - 1, None)):
            with pytest.raises(InputError):
                source.read(name, start, stop)
