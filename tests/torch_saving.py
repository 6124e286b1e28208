"""Tensors as torch saves them, for the tests of their listing; needs torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from locate_reading import leaf_bits

from lockstep.formats.leaf import Store

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


def saved_file(folder: Path, value: Any, name: str = "saved.pt", **options: Any) -> Path:
    torch.save(value, folder / name, **options)
    return folder / name


def small_file(folder: Path, zipped: bool) -> Path:
    tensors = {"a": noise(torch.float32, 2, 2), "b": [noise(torch.bfloat16, 3), 5]}
    return saved_file(folder, tensors, _use_new_zipfile_serialization=zipped)
