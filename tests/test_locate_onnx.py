"""ONNX models, as the onnx package writes them, against what we list."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from locate_reading import leaf_bits

from lockstep.errors import InputError
from lockstep.formats.leaf import Extent, Held
from lockstep.formats.locate.onnx import locate

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

ELEMENTS = {
    "FLOAT": "F32", "UINT8": "U8", "INT8": "I8", "UINT16": "U16", "INT16": "I16", "INT32": "I32",
    "INT64": "I64", "BOOL": "BOOL", "FLOAT16": "F16", "DOUBLE": "F64", "UINT32": "U32",
    "UINT64": "U64", "COMPLEX64": "C64", "COMPLEX128": "C128", "BFLOAT16": "BF16",
    "FLOAT8E4M3FN": "F8_E4M3", "FLOAT8E4M3FNUZ": "F8_E4M3FNUZ", "FLOAT8E5M2": "F8_E5M2",
    "FLOAT8E5M2FNUZ": "F8_E5M2FNUZ", "FLOAT8E8M0": "F8_E8M0", "UINT4": "U4", "INT4": "I4",
    "FLOAT4E2M1": "F4",
}  # fmt: skip
PACKED = ("UINT4", "INT4", "FLOAT4E2M1")


def model_of(*tensors: Any, nodes: tuple[Any, ...] = ()) -> Any:
    """A model that holds tensors."""
    graph = helper.make_graph(list(nodes), "g", [], [], initializer=list(tensors))
    return helper.make_model(graph)


def written(folder: Path, *tensors: Any, nodes: tuple[Any, ...] = ()) -> Path:
    """The model as a file."""
    path = folder / "any.name"
    path.write_bytes(model_of(*tensors, nodes=nodes).SerializeToString())
    return path


def noise(kind: str, *shape: int) -> bytes:
    """Random bytes of a tensor of a kind."""
    n = int(np.prod(shape))
    if kind in PACKED:
        n_bytes = n // 2
    else:
        n_bytes = n * helper.tensor_dtype_to_np_dtype(getattr(TensorProto, kind)).itemsize
    raw = np.random.default_rng(n_bytes).integers(0, 256, n_bytes, np.uint8)
    return (raw & 1 if kind == "BOOL" else raw).tobytes()


def raw_tensor(name: str, kind: str, *shape: int) -> Any:
    """A tensor with raw data."""
    return helper.make_tensor(
        name, getattr(TensorProto, kind), shape, noise(kind, *shape), raw=True
    )


def packed_again(tensor: Any) -> bytes:
    """The bits as the onnx package reads them, with two numbers in a byte where they are so."""
    array = numpy_helper.to_array(tensor)
    if array.dtype.itemsize == 1 and tensor.data_type in [getattr(TensorProto, k) for k in PACKED]:
        nibbles = array.reshape(-1).view(np.uint8) & 15
        return bytes(nibbles[::2] | nibbles[1::2] << 4)
    return bytes(array.tobytes())


@pytest.mark.parametrize("kind", ELEMENTS)
def test_every_type_as_raw_data(tmp_path: Path, kind: str) -> None:
    tensors = [
        raw_tensor("a/b.c", kind, 3, 4),
        raw_tensor("", kind, 0, 2),
        raw_tensor("x", kind, 2),
    ]
    tensors[1].name = "none"
    store = locate(written(tmp_path, *tensors))
    assert list(store.leaves) == ["a/b.c", "none", "x"]
    for tensor in tensors:
        leaf = store.leaves[tensor.name]
        assert leaf.shape == tuple(tensor.dims)
        assert leaf.element.name == ELEMENTS[kind]
        assert isinstance(leaf.storage, Extent)
        assert leaf_bits(leaf).tobytes() == tensor.raw_data == packed_again(tensor)


@pytest.mark.parametrize("kind", ELEMENTS)
def test_every_type_in_its_own_field(tmp_path: Path, kind: str) -> None:
    values = numpy_helper.to_array(raw_tensor("w", kind, 2, 4))  # whole numbers: any bits
    if "FLOAT" in kind or kind in ("DOUBLE", "COMPLEX64", "COMPLEX128"):
        values = np.array([[1, 2, 4, 0.5], [0.5, 4, 2, 1]]).astype(values.dtype)
    tensor = helper.make_tensor("w", getattr(TensorProto, kind), (2, 4), values)
    assert not tensor.HasField("raw_data")
    leaf = locate(written(tmp_path, tensor)).leaves["w"]
    fixed = kind in ("FLOAT", "DOUBLE", "COMPLEX64", "COMPLEX128")
    assert isinstance(leaf.storage, Extent if fixed else Held)
    assert leaf_bits(leaf).tobytes() == packed_again(tensor)


def test_scalars_and_unpacked_numbers(tmp_path: Path) -> None:
    tensor = raw_tensor("s", "INT64")
    store = locate(written(tmp_path, tensor))
    assert store.leaves["s"].shape == ()
    assert leaf_bits(store.leaves["s"]).tobytes() == tensor.raw_data
    # The same field by field, as old writers did: dims, type, two floats, one number, a name.
    body = b"\x08\x03\x10\x01\x25\0\0\x80\x3f\x22\x08\0\0\0\x40\0\0\x40\x40\x42\x01w"
    graph = b"\x2a" + bytes([len(body)]) + body
    path = tmp_path / "old.onnx"
    path.write_bytes(b"\x3a" + bytes([len(graph)]) + graph)
    assert numpy_helper.to_array(onnx.load(path).graph.initializer[0]).tolist() == [1, 2, 3]
    assert leaf_bits(locate(path).leaves["w"]).tobytes() == np.array([1, 2, 3], "<f4").tobytes()


def external(folder: Path, *tensors: Any) -> Path:
    """A model with its data in a file beside it, as onnx saves it."""
    path = folder / "model.onnx"
    onnx.save(
        model_of(*tensors), path, save_as_external_data=True, location="weights.bin",
        size_threshold=0,
    )  # fmt: skip
    return path


def test_external_data(tmp_path: Path) -> None:
    tensors = [
        raw_tensor("a", "FLOAT", 5, 7),
        raw_tensor("b", "BFLOAT16", 9),
        raw_tensor("c", "INT4", 2),
    ]
    bits = {tensor.name: tensor.raw_data for tensor in tensors}
    store = locate(external(tmp_path, *tensors))
    assert [identity.path.name for identity in store.files] == ["model.onnx", "weights.bin"]
    for name, expected in bits.items():
        storage = store.leaves[name].storage
        assert isinstance(storage, Extent)
        assert storage.file.name == "weights.bin"
        assert leaf_bits(store.leaves[name]).tobytes() == expected


def changed(folder: Path, **entries: str | None) -> Path:
    """A model with one external tensor whose entries were changed."""
    path = external(folder, raw_tensor("a", "FLOAT", 4))
    model = onnx.load(path, load_external_data=False)
    tensor = model.graph.initializer[0]
    known = {entry.key: entry.value for entry in tensor.external_data} | entries
    del tensor.external_data[:]
    for key, value in known.items():
        if value is not None:
            tensor.external_data.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())
    return path


def test_external_data_without_a_length_reach_to_the_end(tmp_path: Path) -> None:
    path = changed(tmp_path, length=None)
    assert leaf_bits(locate(path).leaves["a"]).tobytes() == noise("FLOAT", 4)
    with (tmp_path / "weights.bin").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(InputError, match="16 bytes"):
        locate(path)


@pytest.mark.parametrize(
    "entries",
    [
        {"location": "/etc/passwd"}, {"location": "../weights.bin"},
        {"location": "a/../weights.bin"},
        {"location": "link"}, {"location": "folder/weights.bin"}, {"location": "none"},
        {"location": ""}, {"location": "."}, {"location": "a\0b"}, {"location": "x" * 300},
        {"location": "C:\\w"}, {"offset": "1"}, {"offset": "-1"}, {"offset": "9" * 30},
        {"offset": "1e2"}, {"length": "15"}, {"length": "17"}, {"length": "x"}, {"more": "1"},
    ],
)  # fmt: skip
def test_external_data_that_lead_elsewhere_are_refused(
    tmp_path: Path, entries: dict[str, str]
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    path = changed(folder, **entries)
    (tmp_path / "weights.bin").write_bytes(noise("FLOAT", 4))
    (folder / "link").symlink_to(tmp_path / "weights.bin")
    (folder / "folder").symlink_to(tmp_path)
    with pytest.raises(InputError, match=r"\(a\)"):
        locate(path)


def test_links_of_a_download_cache_are_followed(tmp_path: Path) -> None:
    folder = tmp_path / "snapshots" / "revision" / "onnx"
    folder.mkdir(parents=True)
    (tmp_path / "blobs").mkdir()
    path = changed(folder)
    for name in ("model.onnx", "weights.bin"):
        (folder / name).rename(tmp_path / "blobs" / name)
        (folder / name).symlink_to(Path("../../../blobs") / name)
    assert leaf_bits(locate(path).leaves["a"]).tobytes() == noise("FLOAT", 4)


def test_external_data_that_are_cut_are_refused(tmp_path: Path) -> None:
    path = changed(tmp_path)
    data = tmp_path / "weights.bin"
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"16 bytes in weights\.bin, which has 15"):
        locate(path)


def refused(tensor: Any, message: str, folder: Path) -> None:
    with pytest.raises(InputError, match=message):
        locate(written(folder, tensor))


def test_what_is_no_array_of_numbers_is_refused_by_name(tmp_path: Path) -> None:
    refused(helper.make_tensor("t", TensorProto.STRING, [1], [b"a"]), r"\(t\).*texts", tmp_path)
    refused(raw_tensor("odd", "INT4", 2, 3), r"\(odd\).*even", tmp_path)
    tensor = raw_tensor("w", "FLOAT", 4)
    tensor.raw_data = tensor.raw_data[:-1]
    refused(tensor, r"\(w\): expected 16 bytes, got 15", tmp_path)
    tensor = raw_tensor("w", "FLOAT", 4)
    tensor.float_data.append(1)
    refused(tensor, r"\(w\).*one place", tmp_path)
    tensor = helper.make_tensor("w", TensorProto.INT8, [2], [1, 2])
    tensor.int32_data[0] = 300
    refused(tensor, r"\(w\).*8 bits", tmp_path)
    tensor.int32_data[0] = -300
    refused(tensor, r"\(w\).*8 bits", tmp_path)
    tensor = helper.make_tensor("w", TensorProto.INT64, [2], [1, 2])
    tensor.int64_data.append(3)
    refused(tensor, r"\(w\).*more", tmp_path)
    del tensor.int64_data[1:]
    refused(tensor, r"\(w\): expected 16 bytes, got 8", tmp_path)
    tensor.dims[0] = -1
    refused(tensor, r"\(w\)", tmp_path)
    tensor = raw_tensor("w", "FLOAT", 4)
    tensor.segment.begin = 1
    refused(tensor, r"\(w\).*segments", tmp_path)
    tensor = raw_tensor("w", "FLOAT", 0)
    tensor.dims[:] = [1 << 40, 1 << 40]
    refused(tensor, r"\(w\)", tmp_path)
    refused(onnx.TensorProto(), "one name", tmp_path)


def test_two_of_a_name_and_sparse_ones_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'a' twice"):
        locate(written(tmp_path, raw_tensor("a", "FLOAT", 2), raw_tensor("a", "FLOAT", 2)))
    model = model_of()
    model.graph.sparse_initializer.add()
    (tmp_path / "sparse").write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match="sparse"):
        locate(tmp_path / "sparse")


def test_tensors_inside_of_nodes_are_counted(tmp_path: Path) -> None:
    inner = helper.make_graph(
        [helper.make_node("Constant", [], ["k"], value=raw_tensor("v", "FLOAT", 2))],
        "inner", [], [], initializer=[raw_tensor("i", "FLOAT", 2)],
    )  # fmt: skip
    nodes = (
        helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner),
        helper.make_node("Constant", [], ["k"], value=raw_tensor("v", "FLOAT", 2)),
    )
    model = model_of(raw_tensor("w", "FLOAT", 2), nodes=nodes)
    function = helper.make_function("d", "f", ["x"], ["k"], [nodes[1]], [])
    model.functions.append(function)
    model.training_info.add().algorithm.CopyFrom(inner)
    path = tmp_path / "nested.onnx"
    path.write_bytes(model.SerializeToString())
    store = locate(path)
    assert list(store.leaves) == ["w"]
    assert any(note.startswith("8 tensors") for note in store.notes)


def test_a_file_that_is_cut_is_refused(tmp_path: Path) -> None:
    tensors = [
        raw_tensor("a", "FLOAT", 2),
        helper.make_tensor("b", TensorProto.INT32, [2], [1, -1]),
    ]
    graph = helper.make_graph([], "g", [], [], initializer=tensors)
    whole = onnx.ModelProto(graph=graph).SerializeToString()
    path = tmp_path / "cut.onnx"
    for n in range(len(whole)):
        path.write_bytes(whole[:n])
        with pytest.raises(InputError):
            locate(path)
    path.write_bytes(whole)
    assert list(locate(path).leaves) == ["a", "b"]


def test_flipped_bits_give_a_listing_or_an_error(tmp_path: Path) -> None:
    tensors = [
        raw_tensor("a", "FLOAT", 2),
        helper.make_tensor("b", TensorProto.INT32, [2], [1, -1]),
    ]
    whole = written(tmp_path, *tensors).read_bytes()
    path = tmp_path / "flipped.onnx"
    rng = random.Random(7)
    n_refused = 0
    for _ in range(800):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 1, 3))):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        try:
            for leaf in locate(path).leaves.values():
                leaf_bits(leaf)
        except InputError:
            n_refused += 1
    assert n_refused > 100


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.binary(max_size=120))
def test_any_bytes_give_a_listing_or_an_error(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "any.onnx"
    for content in (data, b"\x3a" + bytes([len(data)]) + data, b"\x3a\x7c\x2a\x7a" + data):
        path.write_bytes(content)
        with contextlib.suppress(InputError):  # any other exception fails
            locate(path)


def test_numbers_of_variable_length_have_a_bound(tmp_path: Path) -> None:
    path = written(tmp_path, helper.make_tensor("w", TensorProto.INT64, [1 << 12], range(1 << 12)))
    assert leaf_bits(locate(path).leaves["w"]).nbytes == 1 << 15
    model = onnx.load(path)
    model.graph.initializer[0].dims[0] = 1 << 24
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match=r"\(w\): expected at most 16 MiB"):
        locate(path)
