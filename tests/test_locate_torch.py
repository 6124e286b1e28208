"""Files of torch.save, as torch writes them, against what we list."""

from __future__ import annotations

import json
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lockstep.errors import InputError
from lockstep.formats.locate import torch_zip
from lockstep.formats.locate.torch_shards import INDEX
from lockstep.formats.open_store import open_store

torch = pytest.importorskip("torch")
from torch_saving import ELEMENTS, agrees, noise, saved_file, trained  # noqa: E402

pytestmark = pytest.mark.torch


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
    store = open_store(path)
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
        zipfile.ZipFile(saved_file(tmp_path, {"a": tensor})) as before,
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
        path = saved_file(tmp_path, {"good": torch.ones(2), "bad": {"leaf": REFUSED[what]()}})
    with pytest.raises(InputError, match=what) as caught:
        torch_zip.locate(path)
    if what in ("quantised", "sparse", "meta", "conjugated"):
        assert "bad/leaf" in caught.value.message


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_is_one_tensor(tmp_path: Path, zipped: bool) -> None:
    tensor = noise(torch.float32, 2, 3)
    path = saved_file(tmp_path, tensor, _use_new_zipfile_serialization=zipped)
    agrees(torch_zip.locate(path), {"array": tensor})
    assert torch_zip.locate(saved_file(tmp_path, {})).leaves["array"].value == ({},)


def test_errors_steer_no_terminal(tmp_path: Path) -> None:
    path = saved_file(tmp_path, {"\x1b[2Jbad\n": torch.eye(2).to_sparse()})
    with pytest.raises(InputError, match="sparse") as caught:
        torch_zip.locate(path)
    assert "\x1b" not in caught.value.message
    assert "\n" not in caught.value.message
    with pytest.raises(InputError, match="UTF-8"):
        torch_zip.locate(saved_file(tmp_path, {"half \ud800": torch.ones(1)}))


def test_attributes_of_tensors_are_said(tmp_path: Path) -> None:
    tensor, parameter = torch.ones(2), torch.nn.Parameter(torch.ones(3))
    tensor.mark, parameter.mark = 1, 2
    tensors = {"a": tensor, "b": parameter, "c": torch.nn.Buffer(torch.ones(1))}
    store = torch_zip.locate(saved_file(tmp_path, tensors))
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
        torch_zip.locate(saved_file(tmp_path, {"a": {1: torch.ones(1), "1": torch.zeros(1)}}))


def shards(folder: Path) -> tuple[Path, dict[str, Any]]:
    """A directory as transformers wrote them: two shards, an index and a config."""
    root = folder / "model"
    root.mkdir()
    tensors = {f"h.{i}.w": noise(torch.bfloat16, 3, 2 + i) for i in range(4)}
    names = list(tensors)
    places = {}
    for i, part in enumerate((names[:1], names[1:])):
        shard = f"pytorch_model-{i + 1:05}-of-00002.bin"
        saved_file(root, {name: tensors[name] for name in part}, shard)
        places |= dict.fromkeys(part, shard)
    (root / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    (root / "config.json").write_text(json.dumps({"model_type": "x", "rope": {"theta": 1}}))
    return root, tensors


def test_shards_with_an_index(tmp_path: Path) -> None:
    root, tensors = shards(tmp_path)
    for path in (root, root / INDEX):
        store = open_store(path)
        assert store.format == "torch"
        agrees(store, tensors)
        assert {name for record in store.records for name in record.leaves} == set(tensors)
    assert open_store(root).facts == {"model_type": "x", "rope.theta": 1}
    assert len(open_store(root).files) == 4


def test_index_and_shards_must_agree(tmp_path: Path) -> None:
    root, _ = shards(tmp_path)
    text = (root / INDEX).read_text()
    one = "pytorch_model-00001-of-00002.bin"
    places = json.loads(text)["weight_map"]
    for wrong, message in [
        ({**places, "more": one}, "more in .*: not there"),
        ({**places, "h.1.w": one}, r"h\.1\.w in .*: not there"),
        ({k: v for k, v in places.items() if k != "h.2.w"}, r"h\.2\.w in .*: not so in the index"),
        ({**places, "h.0.w": "../x.bin"}, "without folders"),
        ({**places, "h.0.w": "none.bin"}, r"none\.bin"),
        ({}, "weight_map"),
    ]:
        (root / INDEX).write_text(json.dumps({"weight_map": wrong}))
        with pytest.raises(InputError, match=message):
            torch_zip.locate(root)
    (root / INDEX).write_text(text)
    saved_file(root, {"h.0.w": torch.ones(1), "h.1.w": torch.ones(1)}, one)
    with pytest.raises(InputError, match=r"h\.1\.w in .*: not so in the index"):
        torch_zip.locate(root)
    saved_file(root, {"h.0.w": torch.ones(1)}, "pytorch_model.bin")
    with pytest.raises(InputError, match="got both"):
        torch_zip.locate(root)


def test_a_directory_with_one_file(tmp_path: Path) -> None:
    tensors = {"w": noise(torch.float32, 2, 2)}
    saved_file(tmp_path, tensors, "pytorch_model.bin")
    (tmp_path / "config.json").write_text('{"a": 1}')
    store = open_store(tmp_path)
    agrees(store, tensors)
    assert store.facts == {"a": 1}
