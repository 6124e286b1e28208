"""torch.save and torch.distributed.checkpoint, as torch writes them, against what we list."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import random
import struct
import subprocess
import sys
import warnings
import zipfile
import zlib
from collections import Counter, OrderedDict
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from locate_reading import leaf_bits

from lockstep.errors import InputError
from lockstep.formats import restricted_pickle
from lockstep.formats.leaf import Extent, Parts, Store
from lockstep.formats.locate import torch_dcp, torch_zip
from lockstep.formats.locate.torch_dcp import check_tiling
from lockstep.formats.restricted_pickle import Call, read_pickle

torch = pytest.importorskip("torch")
dcp = pytest.importorskip("torch.distributed.checkpoint")
pytestmark = pytest.mark.torch

ELEMENTS = {
    "float32": "F32", "float64": "F64", "float16": "F16", "bfloat16": "BF16", "bool": "BOOL",
    "uint8": "U8", "int8": "I8", "int16": "I16", "int32": "I32", "int64": "I64", "uint16": "U16",
    "uint32": "U32", "uint64": "U64", "complex64": "C64", "complex128": "C128",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2fnuz": "F8_E5M2FNUZ", "float8_e8m0fnu": "F8_E8M0",
}  # fmt: skip


def bits_of(tensor: Any) -> np.ndarray[Any, Any]:
    """A tensor's bits as torch has them: its shape and an axis of bytes."""
    flat = tensor.detach().contiguous().clone()
    raw = bytes(flat.untyped_storage().tolist())
    return np.frombuffer(raw, np.uint8).reshape(*tensor.shape, tensor.element_size())


def noise(dtype: Any, *shape: int) -> Any:
    """Random bits as a tensor."""
    n_bytes = torch.empty((), dtype=dtype).element_size()
    n = int(np.prod(shape))
    raw = np.random.default_rng(n).integers(0, 256, n * n_bytes, np.uint8)
    if dtype == torch.bool:
        raw &= 1
    return torch.frombuffer(bytearray(raw.tobytes()), dtype=dtype).reshape(shape)


def agrees(store: Store, tensors: dict[str, Any]) -> None:
    """Holds each leaf to the tensor of its name: shape, type and every bit."""
    listed = {name for name, leaf in store.leaves.items() if not leaf.value}
    assert listed == set(tensors)
    for name, tensor in tensors.items():
        leaf = store.leaves[name]
        assert leaf.shape == tuple(tensor.shape)
        assert leaf.element.name == ELEMENTS[str(tensor.dtype).removeprefix("torch.")]
        np.testing.assert_array_equal(leaf_bits(leaf), bits_of(tensor), err_msg=name)


def trained() -> tuple[Any, Any]:
    """A small model and its AdamW after one step."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2, bias=False))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    return model, optimizer


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("dtype", ELEMENTS)
def test_every_type_and_bit(tmp_path: Path, dtype: str, zipped: bool) -> None:
    tensor = noise(getattr(torch, dtype), 3, 5)
    tensors = {
        "whole": tensor, "turned": tensor.t(), "cut": tensor[1:, 1::2], "one": tensor[2, 4],
        "none": tensor[:0], "wide": tensor[:, :1].expand(3, 4),
    }  # fmt: skip
    path = tmp_path / "any.name"
    torch.save(tensors, path, _use_new_zipfile_serialization=zipped)
    store = torch_zip.locate(path)
    assert store.format == "torch"
    agrees(store, tensors)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_training_state_with_its_tree(tmp_path: Path, zipped: bool, protocol: int) -> None:
    model, optimizer = trained()
    state = {
        "model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 7,
        "list": [1.5, (None, True), {"a/b": "text", 3: b"\x00\xff"}, [], {}, ()],
        "parameter": model[0].weight, "size": torch.Size([2, 3]), "big": -(2**70),
        "kinds": [torch.bfloat16, torch.device("cpu"), {"b", "a"}, Counter({"x": 2})],
    }  # fmt: skip
    path = tmp_path / "state.pt"
    torch.save(state, path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    store = torch_zip.locate(path)
    expected = {f"model/{name}": t for name, t in model.state_dict().items()}
    expected["parameter"] = model[0].weight
    for i, moments in optimizer.state_dict()["state"].items():
        expected |= {f"optimizer/state/{i}/{name}": t for name, t in moments.items()}
    agrees(store, expected)
    values = {
        name: (leaf.element.name, leaf.value[0])
        for name, leaf in store.leaves.items()
        if leaf.value
    }
    group = optimizer.state_dict()["param_groups"][0]
    assert values["optimizer/param_groups/[0]/betas/[1]"] == ("float", group["betas"][1])
    assert values["optimizer/param_groups/[0]/foreach"] == ("none", None)
    assert values["step"] == ("int", 7)
    assert values["list/[1]/[1]"] == ("bool", True)
    assert values["list/[2]/a~1b"] == ("str", "text")
    assert values["list/[2]/3"] == ("bytes", "00ff")
    assert values["list/[3]"] == ("list", [])
    assert values["list/[4]"] == ("dict", {})
    assert values["list/[5]"] == ("tuple", [])
    assert values["size"] == ("torch.Size", [2, 3])
    assert values["big"] == ("int", -(2**70))
    assert values["kinds/[0]"] == ("name", "torch.bfloat16")
    assert values["kinds/[1]"] == ("torch.device", "cpu")
    assert values["kinds/[2]"] == ("set", [["str", "a"], ["str", "b"]])
    assert values["kinds/[3]/x"] == ("int", 2)


def test_one_storage_under_two_names_is_said(tmp_path: Path) -> None:
    tensor = noise(torch.float32, 4, 4)
    path = tmp_path / "tied.pt"
    torch.save({"a": tensor, "b": tensor, "c": tensor.clone(), "d": tensor[1:]}, path)
    leaves = torch_zip.locate(path).leaves
    assert leaves["a"].shares == leaves["b"].shares != ""
    assert leaves["c"].shares == leaves["d"].shares == ""


def test_checksums_are_those_of_the_archive(tmp_path: Path) -> None:
    tensor = noise(torch.bfloat16, 9, 7)
    path = tmp_path / "sums.pt"
    torch.save({"a": tensor, "b": tensor[2:], "c": tensor.float()}, path)
    store = torch_zip.locate(path)
    assert {record.leaves for record in store.records} == {("a", "b"), ("c",)}
    for record in store.records:
        raw = path.read_bytes()[record.offset : record.offset + record.n_bytes]
        assert zlib.crc32(raw) == record.crc32
    assert store.leaves["a"].checksum == "crc32"


def test_the_byte_order_of_the_archive_holds(tmp_path: Path) -> None:
    tensor = noise(torch.float32, 3, 5)
    path = tmp_path / "big.pt"
    with (
        zipfile.ZipFile(_saved(tmp_path, {"a": tensor})) as before,
        zipfile.ZipFile(path, "w") as after,
    ):
        for name in before.namelist():
            data = before.read(name)
            if name.endswith("byteorder"):
                data = b"big"
            elif "/data/" in name:
                data = np.frombuffer(data, "<u4").astype(">u4").tobytes()
            after.writestr(name, data)
    agrees(torch_zip.locate(path), {"a": tensor})


def _saved(folder: Path, value: Any, name: str = "saved.pt", **options: Any) -> Path:
    torch.save(value, folder / name, **options)
    return folder / name


class Plain(torch.Tensor):  # type: ignore[misc]
    """A tensor subclass."""


REFUSED: dict[str, Callable[[], Any]] = {
    "quantised": lambda: torch._empty_affine_quantized(
        [2], scale=0.1, zero_point=0, dtype=torch.qint8
    ),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "meta": lambda: torch.zeros(2, device="meta"),
    "conjugated": lambda: torch.zeros(2, dtype=torch.complex64).conj(),
    "Plain": lambda: torch.zeros(2).as_subclass(Plain),
    "Linear": lambda: torch.nn.Linear(1, 1),
    "PosixPath": lambda: Path("a"),
    "scalar": lambda: np.float32(1),
    "complex": lambda: 1j,
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_dense_tensor_is_refused_by_name(tmp_path: Path, what: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = _saved(tmp_path, {"good": torch.ones(2), "bad": {"leaf": REFUSED[what]()}})
    with pytest.raises(InputError, match=what) as caught:
        torch_zip.locate(path)
    if what in ("quantised", "sparse", "meta", "conjugated"):
        assert "bad/leaf" in caught.value.message


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_is_one_tensor(tmp_path: Path, zipped: bool) -> None:
    tensor = noise(torch.float32, 2, 3)
    path = _saved(tmp_path, tensor, _use_new_zipfile_serialization=zipped)
    agrees(torch_zip.locate(path), {"array": tensor})
    assert torch_zip.locate(_saved(tmp_path, {})).leaves["array"].value == ({},)


def test_errors_steer_no_terminal(tmp_path: Path) -> None:
    path = _saved(tmp_path, {"\x1b[2Jbad\n": torch.eye(2).to_sparse()})
    with pytest.raises(InputError, match="sparse") as caught:
        torch_zip.locate(path)
    assert "\x1b" not in caught.value.message
    assert "\n" not in caught.value.message
    with pytest.raises(InputError, match="UTF-8"):
        torch_zip.locate(_saved(tmp_path, {"half \ud800": torch.ones(1)}))


def test_attributes_of_tensors_are_said(tmp_path: Path) -> None:
    tensor, parameter = torch.ones(2), torch.nn.Parameter(torch.ones(3))
    tensor.mark, parameter.mark = 1, 2
    tensors = {"a": tensor, "b": parameter, "c": torch.nn.Buffer(torch.ones(1))}
    store = torch_zip.locate(_saved(tmp_path, tensors))
    agrees(store, tensors)
    assert any("attributes" in note for note in store.notes)


def test_programs_are_refused(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "program.pt")
    with pytest.raises(InputError, match="TorchScript"):
        torch_zip.locate(tmp_path / "program.pt")


def test_keys_that_would_collide_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'1' twice"):
        torch_zip.locate(_saved(tmp_path, {"a": {1: torch.ones(1), "1": torch.zeros(1)}}))


# Code in pickles ----------------------------------------------------------------------------


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
        head = _saved(tmp_path, {}, _use_new_zipfile_serialization=False).read_bytes()
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
def test_bombs_are_refused_within_bounds(tmp_path: Path, name: str) -> None:
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


def _small(folder: Path, zipped: bool) -> Path:
    tensors = {"a": noise(torch.float32, 2, 2), "b": [noise(torch.bfloat16, 3), 5]}
    return _saved(folder, tensors, _use_new_zipfile_serialization=zipped)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_is_cut_or_padded_is_refused(tmp_path: Path, zipped: bool) -> None:
    whole = _small(tmp_path, zipped).read_bytes()
    path = tmp_path / "cut.pt"
    for data in [*(whole[:n] for n in range(len(whole))), whole + b"\0", whole + bytes(64)]:
        path.write_bytes(data)
        with pytest.raises(InputError):
            torch_zip.locate(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_flipped_bits_give_a_listing_or_an_error(tmp_path: Path, zipped: bool) -> None:
    whole = _small(tmp_path, zipped).read_bytes()
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


def test_every_flip_in_an_archive_is_refused_or_shows(tmp_path: Path) -> None:
    """Each single bit: refused, or the CRC-32 of a record, or nothing that a reader uses."""
    path = _small(tmp_path, True)
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
        torch_zip.locate(_rewritten(_small(tmp_path, True), change))


def test_an_archive_that_was_packed_again_is_refused(tmp_path: Path) -> None:
    path = _rewritten(_small(tmp_path, True), lambda r: r, compression=zipfile.ZIP_DEFLATED)
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


# torch.distributed.checkpoint ---------------------------------------------------------------


@pytest.fixture(scope="module")
def state() -> dict[str, Any]:
    """A training state, with tensors that are views."""
    model, optimizer = trained()
    return {
        "model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 7,
        "turned": noise(torch.bfloat16, 4, 6).t(), "none": torch.ones(0, 3), "list": [1, "x"],
    }  # fmt: skip


@pytest.fixture
def saved(tmp_path: Path, state: dict[str, Any]) -> Path:
    """The state as a directory."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(state, checkpoint_id=tmp_path / "dcp", no_dist=True)
    return tmp_path / "dcp"


def test_a_directory_as_torch_writes_it(saved: Path, state: dict[str, Any]) -> None:
    store = torch_dcp.locate(saved)
    tensors = {f"model/{name}": t for name, t in state["model"].items()}
    for i, moments in state["optimizer"]["state"].items():
        tensors |= {f"optimizer/state/{i}/{name}": t for name, t in moments.items()}
    agrees(store, tensors | {"turned": state["turned"], "none": state["none"]})
    assert store.leaves["step"].value == (7,)
    assert store.leaves["list/[1]"].value == ("x",)
    assert store.leaves["optimizer/param_groups/[0]/betas/[0]"].value == (0.9,)
    for record in store.records:
        raw = record.file.read_bytes()[record.offset : record.offset + record.n_bytes]
        assert zlib.crc32(raw) == record.crc32
    assert torch_dcp.locate(saved / ".metadata").leaves.keys() == store.leaves.keys()


def _metadata(saved: Path) -> Any:
    return pickle.loads((saved / ".metadata").read_bytes())


def _write(saved: Path, metadata: Any) -> None:
    (saved / ".metadata").write_bytes(pickle.dumps(metadata))


def _sharded(folder: Path, tensor: Any, cuts: tuple[tuple[int, ...], ...]) -> Path:
    """A directory with one tensor in blocks, in two files, as several processes would write it."""
    from torch.distributed.checkpoint.filesystem import _StorageInfo
    from torch.distributed.checkpoint.metadata import (
        ChunkStorageMetadata,
        Metadata,
        MetadataIndex,
        TensorProperties,
        TensorStorageMetadata,
    )

    chunks, storage, files = [], {}, [b"", b""]
    rows, columns = ([0, *cut, n] for cut, n in zip(cuts, tensor.shape, strict=True))
    boxes = [(a, b, c, d) for a, b in pairwise(rows) for c, d in pairwise(columns)]
    for i, (a, b, c, d) in enumerate(boxes):
        start, size = torch.Size([a, c]), torch.Size([b - a, d - c])
        chunks.append(ChunkStorageMetadata(start, size))
        buffer = io.BytesIO()
        torch.save(tensor[a:b, c:d].clone(), buffer)
        info = _StorageInfo(f"__{i % 2}_0.distcp", len(files[i % 2]), len(buffer.getvalue()))
        storage[MetadataIndex("w", start)] = info
        files[i % 2] += buffer.getvalue()
    tensors = TensorStorageMetadata(TensorProperties(dtype=tensor.dtype), tensor.shape, chunks)
    folder.mkdir()
    for i, data in enumerate(files):
        (folder / f"__{i}_0.distcp").write_bytes(data)
    _write(folder, Metadata({"w": tensors}, None, storage))
    return folder


@pytest.mark.parametrize("cuts", [((3,), ()), ((2, 5), (1, 4)), ((), (2,))])
def test_blocks_make_the_tensor(tmp_path: Path, cuts: tuple[tuple[int, ...], ...]) -> None:
    tensor = noise(torch.float32, 7, 5)
    folder = _sharded(tmp_path / "dcp", tensor, cuts)
    again = {"w": torch.zeros(7, 5)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.load(again, checkpoint_id=folder, no_dist=True)
    assert (bits_of(again["w"]) == bits_of(tensor)).all()  # torch reads our blocks so, too
    store = torch_dcp.locate(folder)
    assert isinstance(store.leaves["w"].storage, Parts)
    agrees(store, {"w": tensor})


SAVE = """
import sys, torch, torch.distributed as dist, torch.distributed.checkpoint as dcp
import torch.multiprocessing as processes
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

def work(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    kinds = {"rows": [Shard(0)], "columns": [Shard(1)], "whole": [Replicate()]}
    tensors = torch.load(f"{folder}/tensors.pt")
    state = {name: distribute_tensor(tensors[name], mesh, kind) for name, kind in kinds.items()}
    dcp.save({**state, "same": tensors["same"], "step": 3}, checkpoint_id=f"{folder}/dcp")
    dist.destroy_process_group()

if __name__ == "__main__":
    processes.spawn(work, (sys.argv[1],), nprocs=2)
"""


@pytest.mark.slow
def test_two_processes_save_one_directory(tmp_path: Path) -> None:
    tensors = {
        "rows": noise(torch.float32, 5, 4), "columns": noise(torch.bfloat16, 3, 6),
        "whole": noise(torch.float32, 5, 4), "same": noise(torch.int32, 2),
    }  # fmt: skip
    _saved(tmp_path, tensors, "tensors.pt")
    (tmp_path / "save.py").write_text(SAVE)
    subprocess.run(
        [sys.executable, str(tmp_path / "save.py"), str(tmp_path)],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    store = torch_dcp.locate(tmp_path / "dcp")
    assert store.leaves["step"].value == (3,)
    assert isinstance(store.leaves["rows"].storage, Parts)
    assert isinstance(store.leaves["columns"].storage, Parts)
    agrees(store, tensors)


def test_blocks_that_do_not_tile_are_refused(tmp_path: Path) -> None:
    folder = _sharded(tmp_path / "dcp", noise(torch.float32, 7, 5), ((3,), ()))
    for change, message in [
        (lambda m: m.state_dict_metadata["w"].chunks.pop(), "0 blocks there"),
        (lambda m: m.storage_data.popitem(), "data for its block"),
        (lambda m: m.state_dict_metadata["w"].chunks.append(
            m.state_dict_metadata["w"].chunks[0]), "2 blocks there"),
        (lambda m: setattr(m.state_dict_metadata["w"], "size", torch.Size([7, 4])), "inside"),
        (lambda m: setattr(m.state_dict_metadata["w"].properties, "dtype", torch.int32), "I32"),
        (lambda m: m.state_dict_metadata.clear(), "description of each block"),
    ]:  # fmt: skip
        before = (folder / ".metadata").read_bytes()
        metadata = _metadata(folder)
        change(metadata)
        _write(folder, metadata)
        with pytest.raises(InputError, match=message):
            torch_dcp.locate(folder)
        (folder / ".metadata").write_bytes(before)
    assert torch_dcp.locate(folder).leaves["w"].shape == (7, 5)


@pytest.mark.parametrize("place", ["../out.distcp", "/etc/passwd", "link.distcp", "", ".", "a\0b"])
def test_data_outside_of_the_directory_are_refused(tmp_path: Path, place: str) -> None:
    folder = _sharded(tmp_path / "dcp", noise(torch.float32, 7, 5), ((3,), ()))
    data = (folder / "__0_0.distcp").read_bytes()
    (tmp_path / "out.distcp").write_bytes(data)
    (folder / "link.distcp").symlink_to(tmp_path / "out.distcp")
    metadata = _metadata(folder)
    for info in metadata.storage_data.values():
        info.relative_path = place
    _write(folder, metadata)
    with pytest.raises(InputError):
        torch_dcp.locate(folder)


def test_data_that_are_cut_missing_or_twice_are_refused(saved: Path) -> None:
    data = saved / "__0_0.distcp"
    whole = data.read_bytes()
    data.write_bytes(whole[:-1])
    with pytest.raises(InputError, match=r"at least \d+ bytes"):
        torch_dcp.locate(saved)
    data.write_bytes(whole + bytes(64))
    assert any("64 bytes" in note for note in torch_dcp.locate(saved).notes)
    data.unlink()
    with pytest.raises(InputError):
        torch_dcp.locate(saved)
    data.write_bytes(whole)
    metadata = _metadata(saved)
    infos = list(metadata.storage_data.values())
    infos[1].offset = infos[0].offset
    _write(saved, metadata)
    with pytest.raises(InputError, match="overlap"):
        torch_dcp.locate(saved)


def test_a_damaged_index_gives_a_listing_or_an_error(saved: Path) -> None:
    index = saved / ".metadata"
    whole = index.read_bytes()
    rng = random.Random(11)
    n_refused = 0
    for i in range(150):
        data = bytearray(whole[: rng.randrange(len(whole))] if i % 3 == 0 else whole)
        if i % 3:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        index.write_bytes(data)
        try:
            torch_dcp.locate(saved)
        except InputError:
            n_refused += 1
    assert n_refused > 50


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_tilings(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=3)))
    blocks = [(tuple(0 for _ in shape), shape)]
    for _ in range(data.draw(st.integers(0, 6))):
        i = data.draw(st.integers(0, len(blocks) - 1))
        start, size = blocks[i]
        axis = data.draw(st.integers(0, len(shape) - 1))
        if size[axis] < 2:
            continue
        cut = data.draw(st.integers(1, size[axis] - 1))
        one = tuple(cut if j == axis else n for j, n in enumerate(size))
        two = tuple(n - cut if j == axis else n for j, n in enumerate(size))
        at = tuple(a + cut if j == axis else a for j, a in enumerate(start))
        blocks[i : i + 1] = [(start, one), (at, two)]
    check_tiling(shape, blocks, "here")
    check_tiling(shape, [*blocks, (tuple(0 for _ in shape), (0,) * len(shape))], "here")
    for wrong in (blocks[1:], [*blocks, blocks[0]]):
        with pytest.raises(InputError, match="each element in one block"):
            check_tiling(shape, wrong, "here")


def test_extents_are_what_streams(saved: Path) -> None:
    storages = [leaf.storage for leaf in torch_dcp.locate(saved).leaves.values() if not leaf.value]
    assert sum(isinstance(storage, Extent) for storage in storages) >= len(storages) - 1
