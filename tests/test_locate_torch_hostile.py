"""Files of torch.save that hold code, bombs, tricks and damage: refused, and nothing is run."""

from __future__ import annotations

import contextlib
import os
import pickle
import random
import struct
import warnings
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from locate_reading import leaf_bits

from lockstep.errors import InputError
from lockstep.formats import restricted_pickle
from lockstep.formats.leaf import Store
from lockstep.formats.locate import torch_dcp, torch_tree, torch_zip
from lockstep.formats.restricted_pickle import Call, read_pickle

torch = pytest.importorskip("torch")
from torch_saving import saved_file, small_file, trained  # noqa: E402

pytestmark = pytest.mark.torch


class Runs:
    """Pickles to a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.reduced = (function, arguments)

    def __reduce__(self) -> Any:
        return self.reduced


def _canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


def _hostile(canary: Path) -> dict[str, bytes]:
    """Pickles that would make the canary if anything in them ran."""
    touch = f"touch {canary}"
    text = f"open({str(canary)!r}, 'w').close()"
    p = pickle.dumps
    arg = b"X" + struct.pack("<I", len(touch)) + touch.encode()
    storage = b"\x80\x02(X\x07\x00\x00\x00storageK\x01K\x02tQ."
    return {
        "os.system": p(Runs(os.system, touch), 2),
        "eval": p({"a": Runs(eval, text)}, 4),
        "exec": p([Runs(exec, text)], 5),
        "nested": p(Runs(OrderedDict, [["a", Runs(os.system, touch)]]), 2),
        "getattr": p(Runs(getattr, 1, "real"), 2),
        "inst": b"(S'" + touch.encode() + b"'\nios\nsystem\n.",
        "obj": b"\x80\x02(cos\nsystem\n" + arg + b"o.",
        "newobj_ex": b"\x80\x04cos\nsystem\n" + arg + b"\x85}\x92.",
        "ext": b"\x80\x02\x82\x01)R.",
        "persid": b"P" + touch.encode() + b"\n.",
        "persistent of another shape": storage,
        "build on a name": b"\x80\x02ctorch\nfloat32\n}X\x0c\x00\x00\x00__setstate__K\x01sb.",
        "build on a list": b"\x80\x02]}X\x01\x00\x00\x00aK\x01sb.",
        "call of a call": b"\x80\x02ctorch\nSize\n)R)R.",
        "call of a text": b"\x80\x02X\x01\x00\x00\x00a)R.",
        "dotted name": b"\x80\x04\x8c\x05torch\x8c\x0eSize.__class__\x93)R.",
        "dup": b"\x80\x02]2.",
        "codecs": b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86R.",
        "buffer": b"\x80\x05\x97.",
        "unknown opcode": b"\x80\x02\xff.",
        "empty": b"",
        "no stop": b"\x80\x02]",
        "length that lies": b"\x80\x02X\xff\xff\xff\x7fabc.",
        "huge frame": b"\x80\x04\x95" + b"\xff" * 8 + b".",
        "mark missing": b"\x80\x02t.",
        "memo missing": b"\x80\x02h\x05.",
        "stack": b"\x80\x02K\x01K\x02.",
    }


CALLS = ("os.system", "eval", "exec", "nested", "inst", "obj")  # they run where pickles are run
HOSTILE = sorted(_hostile(Path("x")))


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("wrapped", ["zip", "legacy", "dcp"])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path: Path, name: str, wrapped: str) -> None:
    canary = _canary(tmp_path)
    data = _hostile(canary)[name]
    locate: Callable[[Path], Store] = torch_zip.locate
    path = tmp_path / "hostile.pt"
    if wrapped == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", data)
    elif wrapped == "legacy":
        head = saved_file(tmp_path, {}, _use_new_zipfile_serialization=False).read_bytes()
        path.write_bytes(head[: head.index(b"\x80\x02}q\x00.")] + data)
    else:
        path = tmp_path / "dcp"
        path.mkdir()
        (path / ".metadata").write_bytes(data)
        locate = torch_dcp.locate
    with pytest.raises(InputError) as caught:
        locate(path)
    assert caught.value.exit_code == 4
    if name in CALLS:
        assert "expected only tensors and plain values, got" in caught.value.message
    assert not canary.exists()


def test_the_canary_sings_where_a_pickle_is_run(tmp_path: Path) -> None:
    canary = _canary(tmp_path)
    for name in CALLS:
        pickle.loads(_hostile(canary)[name])
        assert canary.exists(), name
        canary.unlink()


def test_a_refusal_names_what_was_to_be_called() -> None:
    with pytest.raises(InputError, match=r"tensors and plain values, got (posix|os|nt)\.system"):
        read_pickle(pickle.dumps(Runs(os.system, "true"), 2), "here", ())


def test_calls_stay_inert() -> None:
    found = read_pickle(pickle.dumps(Runs(divmod, 7, 2), 2), "here", {"builtins.divmod"})
    assert isinstance(found, Call)
    assert (found.function, found.arguments) == ("builtins.divmod", (7, 2))


LATIN1 = b"X\x06\x00\x00\x00latin1"
BOMBS = {
    "branches": b"\x80\x02]q\x00" + b"".join(b"h%c\x86q%c" % (i, i + 1) for i in range(60)) + b".",
    "deep": b"\x80\x02" + b"]" * 3000 + b"a" * 2999 + b".",
    "itself": b"\x80\x02]q\x00h\x00a.",
    "texts": b"\x80\x02](X\x00\x00\x10\x00" + b"a" * (1 << 20) + b"q\x00c_codecs\nencode\nq\x01"
    + (b"h\x01h\x00" + LATIN1 + b"\x86R") * 2000 + b"e.",
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_within_bounds(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_tree, "MAX_NAMES", torch_tree.MAX_NAMES // 16)  # sooner, the same way
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", BOMBS[name])
    with pytest.raises(InputError):
        torch_zip.locate(path)


def test_the_steps_of_a_pickle_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    data = b"\x80\x02](" + b"N" * 90 + b"e."
    assert read_pickle(data, "here", ()) == [None] * 90
    monkeypatch.setattr(restricted_pickle, "MAX_STEPS", 90)
    with pytest.raises(InputError, match="at most 90 steps"):
        read_pickle(data, "here", ())


# Damage -------------------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_is_cut_or_padded_is_refused(tmp_path: Path, zipped: bool) -> None:
    whole = small_file(tmp_path, zipped).read_bytes()
    path = tmp_path / "cut.pt"
    for data in [*(whole[:n] for n in range(len(whole))), whole + b"\0", whole + bytes(64)]:
        path.write_bytes(data)
        with pytest.raises(InputError):
            torch_zip.locate(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_flipped_bits_give_a_listing_or_an_error(tmp_path: Path, zipped: bool) -> None:
    whole = small_file(tmp_path, zipped).read_bytes()
    path = tmp_path / "flipped.pt"
    rng = random.Random(3)
    n_refused = 0
    for _ in range(600):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 1, 3))):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        try:
            for leaf in torch_zip.locate(path).leaves.values():
                leaf_bits(leaf)
        except InputError:
            n_refused += 1
    assert n_refused > 50


def test_damaged_pickles_in_whole_archives(tmp_path: Path) -> None:
    """The pickle is changed and its CRC-32 made right again, as an attacker would."""
    model, optimizer = trained()
    path = saved_file(tmp_path, {"m": model.state_dict(), "o": optimizer.state_dict()})
    rng = random.Random(9)

    def changed(name: str, data: bytes) -> bytes:
        if not name.endswith("data.pkl"):
            return data
        raw = bytearray(data)
        for _ in range(rng.choice((1, 1, 3))):
            i = rng.randrange(len(raw))
            raw[i : i + 1] = rng.choice((b"", bytes([rng.randrange(256)]), b"R", b"h\x01", b"Q"))
        return bytes(raw)

    n_refused = 0
    for _ in range(200):
        damaged = _rewritten(path, lambda records: [(n, changed(n, d)) for n, d in records])
        try:
            for leaf in torch_zip.locate(damaged).leaves.values():
                leaf_bits(leaf)
        except InputError:
            n_refused += 1
    assert n_refused > 100


def test_every_flip_in_an_archive_is_refused_or_shows(tmp_path: Path) -> None:
    """Each single bit: refused, or the CRC-32 of a record, or nothing that a reader uses."""
    path = small_file(tmp_path, True)
    whole = path.read_bytes()
    before = torch_zip.locate(path)
    flipped = tmp_path / "flipped.pt"
    rng = random.Random(5)
    for i in rng.sample(range(8 * len(whole)), 800):
        data = bytearray(whole)
        data[i // 8] ^= 1 << i % 8
        flipped.write_bytes(data)
        try:
            store = torch_zip.locate(flipped)
        except InputError:
            continue
        damaged = any(
            zlib.crc32(data[r.offset : r.offset + r.n_bytes]) != r.crc32 for r in store.records
        )
        same = list(store.leaves) == list(before.leaves) and all(
            leaf.value == before.leaves[name].value
            and leaf.shape == before.leaves[name].shape
            and (leaf_bits(leaf) == leaf_bits(before.leaves[name])).all()
            for name, leaf in store.leaves.items()
        )
        assert damaged or same, f"bit {i}"


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=200))
def test_any_bytes_as_a_pickle_give_a_value_or_an_error(data: bytes) -> None:
    for head in (b"\x80\x02", b"\x80\x04", b"\x80\x02}q\x00("):
        with contextlib.suppress(InputError):  # any other exception fails
            read_pickle(head + data, "here", {"torch.Size"})


def _rewritten(
    path: Path, change: Callable[[list[tuple[str, bytes]]], list[tuple[str, bytes]]], **options: Any
) -> Path:
    """The archive again, with its records changed."""
    with zipfile.ZipFile(path) as archive:
        records = [(name, archive.read(name)) for name in archive.namelist()]
    out = path.with_name("rewritten.pt")
    with warnings.catch_warnings(), zipfile.ZipFile(out, "w", **options) as archive:
        warnings.simplefilter("ignore")
        for name, data in change(records):
            archive.writestr(name, data)
    return out


def _data(
    records: list[tuple[str, bytes]], change: Callable[[bytes], bytes]
) -> list[tuple[str, bytes]]:
    return [(n, change(d) if n.endswith("data/0") else d) for n, d in records]


TRICKS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "one record twice": ("twice", lambda records: [*records, records[-1]]),
    "two pickles": ("one data.pkl", lambda r: [*r, ("other/data.pkl", b"\x80\x02}.")]),
    "no pickle": ("one data.pkl", lambda r: [x for x in r if "pkl" not in x[0]]),
    "record missing": ("data/0", lambda r: [x for x in r if not x[0].endswith("data/0")]),
    "record short": ("16 bytes", lambda r: _data(r, lambda d: d[:-1])),
    "record long": ("16 bytes", lambda r: _data(r, lambda d: d + b"\0")),
    "byte order": ("byte order", lambda r: [(n, b"vax" if "byteorder" in n else d) for n, d in r]),
}


@pytest.mark.parametrize("name", TRICKS)
def test_archives_with_tricks_are_refused(tmp_path: Path, name: str) -> None:
    message, change = TRICKS[name]
    with pytest.raises(InputError, match=message):
        torch_zip.locate(_rewritten(small_file(tmp_path, True), change))


def test_an_archive_that_was_packed_again_is_refused(tmp_path: Path) -> None:
    path = _rewritten(small_file(tmp_path, True), lambda r: r, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(InputError, match="stored as it is"):
        torch_zip.locate(path)


def test_a_view_beyond_its_storage_is_refused(tmp_path: Path) -> None:
    for shape, strides, offset in [((5,), (1,), 0), ((2, 2), (3, 1), 0), ((2,), (1,), 3)]:
        data = (
            b"\x80\x02}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00"
            b"storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"
            + bytes([75, offset]) + _tuple(shape) + _tuple(strides)
            + b"\x89ccollections\nOrderedDict\n)RtRs."
        )  # fmt: skip
        path = tmp_path / "view.pt"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", data)
            archive.writestr("archive/data/0", bytes(16))
        with pytest.raises(InputError, match=r"\(a\): expected a view inside the 4 elements"):
            torch_zip.locate(path)


def _tuple(numbers: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(bytes([75, n]) for n in numbers) + b"t"
