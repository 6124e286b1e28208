"""Models that were damaged or made to harm: refused with the place, in bounded memory and time."""

from __future__ import annotations

import json
import os
import struct
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from lockstep.errors import InputError
from lockstep.formats import GGUFFile, HFDirectory, SafetensorsFile, TensorToWrite, write_gguf
from lockstep.formats.dequantise import SUPPORTED
from lockstep.formats.json_text import read_json_object
from lockstep.formats.locate.bounded import Cursor
from lockstep.formats.locate.gguf import TYPES
from lockstep.formats.mapped import MappedTensors

Open = Callable[[Path], MappedTensors]

# A file of some kilobytes may take this much: the reader's own pieces, and no array of its claims.
MAX_PEAK_BYTES = 8 << 20
MAX_SECONDS = 5.0  # thousands of times what a whole file takes here


@cache
def gguf_bytes() -> bytes:
    """A small model with every kind of metadata and some kinds of blocks."""
    metadata: dict[str, Any] = {
        "general.architecture": "llama",
        "llama.block_count": 1,
        "llama.rope.freq_base": 1e4,
        "tokenizer.ggml.tokens": ["<s>", "é", "", "word"],
        "tokenizer.ggml.scores": np.arange(4, dtype=np.float32),
        "tokenizer.ggml.add_bos_token": True,
    }
    tensors = {
        "token_embd.weight": TensorToWrite((3, 64), "Q8_0", lambda: np.ones((3, 68), np.uint8)),
        "norm": TensorToWrite((5,), "F32", lambda: np.arange(5, dtype=np.float32)),
        "k": TensorToWrite((2, 256), "Q4_K", lambda: np.full((2, 144), 3, np.uint8)),
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.gguf"
        write_gguf(path, metadata, tensors)
        return path.read_bytes()


def safetensors_bytes() -> bytes:
    tensors = {"a": np.ones((2, 3), np.float32), "b": np.ones(5, np.float16)}
    return save(tensors, metadata={"format": "pt"})


@contextmanager
def bounded() -> Iterator[None]:
    """Fails if the block takes much memory or time."""
    tracemalloc.start()
    start = time.monotonic()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < MAX_PEAK_BYTES, f"{peak} bytes at the peak"
    assert time.monotonic() - start < MAX_SECONDS


def read_all(open_model: Open, path: Path) -> dict[str, Any] | None:
    """Every tensor; None if the model is refused, with a place and a hint.

    Any exception but InputError is a failure.
    """
    try:
        model = open_model(path)
        tensors = {}
        for name, shape in model.shapes.items():
            raw = model.raw(name)
            assert raw.nbytes <= MAX_PEAK_BYTES
            if model.stored[name] in SUPPORTED:
                tensors[name] = model.read(name)
                assert tensors[name].shape == shape
        return tensors
    except InputError as error:
        refused = error
    assert str(path.parent) in refused.message
    assert refused.hint
    return None


@pytest.mark.parametrize("kind", ["gguf", "safetensors"])
def test_a_model_cut_at_any_byte_is_refused_or_whole(tmp_path: Path, kind: str) -> None:
    """Whole is a GGUF that lacks but the padding behind its last tensor."""
    data = gguf_bytes() if kind == "gguf" else safetensors_bytes()
    open_model: Open = GGUFFile if kind == "gguf" else SafetensorsFile
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    whole = read_all(open_model, path)
    assert whole is not None
    n_whole = 0
    for n in range(len(data)):
        path.write_bytes(data[:n])
        found = read_all(open_model, path)
        if found is not None:
            n_whole += 1
            assert all(found[name].tobytes() == whole[name].tobytes() for name in whole)
    assert n_whole < 32 if kind == "gguf" else n_whole == 0


# --- a GGUF file put together of parts that lie

NAMES = st.sampled_from([b"a", b"a", b"b", b"general.alignment", b"split.count", b"\xff\xfe", b""])
COUNTS = st.sampled_from([0, 1, 2, 3, 31, 1 << 16, 1 << 31, 1 << 32, 1 << 62, (1 << 64) - 1])
SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}


def text(raw: bytes) -> bytes:
    return struct.pack("<Q", len(raw)) + raw


@st.composite
def values(draw: st.DrawFn, depth: int = 0) -> bytes:
    """A value with its type; arrays may be of arrays, or say another number of items."""
    kind = draw(st.sampled_from([*SCALARS, 8, 9, 13, 1 << 31]))
    if kind == 8:
        return struct.pack("<I", kind) + text(draw(st.binary(max_size=4)))
    if kind == 9:
        inner, n = draw(st.sampled_from([*SCALARS, 8, 9, 77])), draw(st.integers(0, 3))
        if inner == 9 and depth < 3:
            items = [draw(values(depth + 1)) for _ in range(n)]
        elif inner == 8:
            items = [text(draw(st.binary(max_size=3))) for _ in range(n)]
        else:
            items = [bytes(struct.calcsize(f"<{SCALARS.get(inner, 'B')}")) for _ in range(n)]
        said = draw(st.just(n) | COUNTS)
        return struct.pack("<IIQ", kind, inner, said) + b"".join(items)
    return (
        struct.pack("<I", kind)
        + draw(st.binary(min_size=8, max_size=8))[: struct.calcsize(f"<{SCALARS.get(kind, 'B')}")]
    )


@st.composite
def tensors(draw: st.DrawFn) -> bytes:
    """A tensor as the head lists it."""
    sizes = st.sampled_from([0, 1, 2, 32, 64, 256, 1 << 20, 1 << 40, (1 << 64) - 1])
    dims = draw(st.lists(sizes, max_size=5))
    kind = draw(st.sampled_from([*TYPES, 4, 31, 99]))
    offset = draw(st.sampled_from([0, 0, 32, 64, 128, 7, 1 << 40, (1 << 64) - 32]))
    packed = struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)
    return text(draw(NAMES)) + packed


@st.composite
def lying_gguf(draw: st.DrawFn) -> bytes:
    """A file of which each part may be right or wrong."""
    keys = draw(st.lists(st.tuples(NAMES, values()), max_size=3))
    listed = draw(st.lists(tensors(), max_size=3))
    n_tensors = draw(st.just(len(listed)) | COUNTS)
    n_keys = draw(st.just(len(keys)) | COUNTS)
    version = draw(st.sampled_from([3, 3, 3, 2, 1, 3 << 24]))
    head = struct.pack("<4sIQQ", b"GGUF", version, n_tensors, n_keys)
    head += b"".join(text(name) + value for name, value in keys) + b"".join(listed)
    n_data = draw(st.integers(0, 300))
    return head.ljust(-(-len(head) // 32) * 32, b"\0") + bytes(n_data)


def check_lying_gguf(folder: Path, data: bytes) -> None:
    path = folder / "m-00001-of-00002.gguf"
    path.write_bytes(data)
    with bounded():
        read_all(GGUFFile, path)


def check_damaged(folder: Path, kind: str, whole: bytes, data: st.DataObject) -> None:
    """Cuts, puts in, repeats and writes over, then reads."""
    raw = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw)))
        end = at + data.draw(st.integers(0, 40))
        new = data.draw(
            st.binary(max_size=9)
            | st.sampled_from([b"\xff" * 8, b"9" * 20, bytes(raw[at:end]) * 2, b"[" * 99])
            | COUNTS.map(lambda n: struct.pack("<Q", n))
        )
        raw[at : data.draw(st.sampled_from([at, at + len(new), end]))] = new
    path = folder / "m.gguf"
    path.write_bytes(raw)
    with bounded():
        read_all(GGUFFile if kind == "gguf" else SafetensorsFile, path)


@settings(max_examples=250, deadline=None)
@given(data=lying_gguf())
def test_a_gguf_that_lies_is_refused_or_read_in_bounds(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    check_lying_gguf(tmp_path_factory.getbasetemp(), data)


@pytest.mark.parametrize("kind", ["gguf", "safetensors"])
@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_any_damage_is_refused_or_read_in_bounds(
    tmp_path_factory: pytest.TempPathFactory, kind: str, data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp() / f"damaged-model-{kind}"
    folder.mkdir(exist_ok=True)
    whole = gguf_bytes() if kind == "gguf" else safetensors_bytes()
    check_damaged(folder, kind, whole, data)


def test_the_check_finds_a_reader_that_believes_what_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = struct.pack("<IIQ", 9, 4, 1 << 62)
    data = struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + text(b"a") + value
    check_lying_gguf(tmp_path, data)
    monkeypatch.setattr(Cursor, "count", lambda self, n, *_: n)
    with pytest.raises((OverflowError, MemoryError)):
        check_lying_gguf(tmp_path, data)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ([(b"a", struct.pack("<IIQ", 9, 9, 1))], r"metadata 'a', byte \d+.: expected an array of"),
        (
            [(b"a", struct.pack("<IIQ", 9, 8, 1 << 40))],
            r"metadata 'a', byte \d+.: expected .*more bytes, the file ends after 99",
        ),
        ([(b"a", struct.pack("<I", 99))], "metadata 'a', .*unknown metadata type 99"),
        ([(b"a", struct.pack("<I", 8) + text(b"\xff"))], "metadata 'a', .*not UTF-8"),
        ([(b"a", struct.pack("<IIQ", 9, 8, 2) + text(b"x") + text(b"\xff"))], "not UTF-8: b'.xff'"),
        ([(b"\xff", struct.pack("<II", 4, 1))], "metadata key 1 of 1, .*not UTF-8"),
        ([(b"a", struct.pack("<II", 4, 1))] * 2, "metadata key 2 of 2, .*'a' occurs twice"),
        ([(b"general.alignment", struct.pack("<II", 4, 12))], "general.alignment: expected a mul"),
    ],
)
def test_metadata_that_lie_are_refused_with_the_place(
    tmp_path: Path, keys: list[tuple[bytes, bytes]], says: str
) -> None:
    head = struct.pack("<4sIQQ", b"GGUF", 3, 0, len(keys))
    path = tmp_path / "m.gguf"
    path.write_bytes(head + b"".join(text(key) + value for key, value in keys) + bytes(99))
    with bounded(), pytest.raises(InputError, match=says):
        GGUFFile(path)


@pytest.mark.parametrize("field", [8, 16, 41])
def test_a_large_file_of_zeros_takes_neither_memory_nor_time(tmp_path: Path, field: int) -> None:
    """A terabyte on no disk, of as many tensors, keys or strings as the bytes would hold."""
    path = tmp_path / "m.gguf"
    head = bytearray(struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + text(b"a"))
    head += struct.pack("<IIQ", 9, 8, 0)
    assert len(head) == 49
    head[field : field + 8] = struct.pack("<Q", 1 << 23)
    with path.open("wb") as file:
        file.write(head)
        file.truncate(1 << 40)
    with bounded(), pytest.raises(InputError, match="at most"):
        GGUFFile(path)


def test_a_vocabulary_that_ends_in_a_broken_string_is_refused(tmp_path: Path) -> None:
    """Behind more strings than are read at once."""
    words = [b"word %d" % i for i in range(100_000)]
    for last, says in ((b"\xc3", "not UTF-8"), (None, "more bytes, the file ends after 0")):
        items = b"".join(map(text, words)) + (text(last) if last else struct.pack("<Q", 1 << 50))
        value = struct.pack("<IIQ", 9, 8, len(words) + 1) + items
        path = tmp_path / "m.gguf"
        path.write_bytes(struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + text(b"words") + value)
        with pytest.raises(InputError, match=f"metadata 'words', .*{says}"):
            GGUFFile(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["a", "w.safetensors", "..", "x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abw"), inner),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(weight_map=JSON, metadata=JSON)
def test_an_index_that_lies_is_refused_or_true(
    tmp_path_factory: pytest.TempPathFactory, weight_map: Any, metadata: Any
) -> None:
    folder = tmp_path_factory.getbasetemp() / "index"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    (folder / "w.safetensors").write_bytes(safetensors_bytes())
    index = {"weight_map": weight_map, "metadata": metadata}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with bounded():
        found = read_all(HFDirectory, folder)
    assert (found is not None) == (weight_map == dict.fromkeys("ab", "w.safetensors"))


@pytest.mark.slow
@settings(max_examples=5_000, deadline=None)
@given(data=lying_gguf())
def test_many_gguf_files_that_lie(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    check_lying_gguf(tmp_path_factory.getbasetemp(), data)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gguf", "safetensors"])
@settings(max_examples=5_000, deadline=None)
@given(data=st.data())
def test_much_damage(
    tmp_path_factory: pytest.TempPathFactory, kind: str, data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp() / f"damaged-directory-{kind}"
    folder.mkdir(exist_ok=True)
    whole = gguf_bytes() if kind == "gguf" else safetensors_bytes()
    check_damaged(folder, kind, whole, data)


def test_a_pipe_in_the_place_of_json_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    found: list[Exception] = []

    def read() -> None:
        try:
            read_json_object(tmp_path / "config.json")
        except Exception as error:
            found.append(error)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    reader.join(MAX_SECONDS)
    assert not reader.is_alive()
    assert isinstance(found[0], InputError)
    assert "pipe" in found[0].message
