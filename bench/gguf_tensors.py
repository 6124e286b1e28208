"""How a model of transformers is stored in GGUF: the name of each tensor, and what is done to it.

Names are the `gguf` package's own table. What llama.cpp's converter does to values is written here
with its inverse, so that a file's dequantised weights can run in transformers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
ARCHITECTURES = {
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "qwen3_5_text": gguf.MODEL_ARCH.QWEN35,
    "gemma3_text": gguf.MODEL_ARCH.GEMMA3,
    "llama": gguf.MODEL_ARCH.LLAMA,
}
HAS_GAINS_PLUS_ONE = ("gemma3_text", "qwen3_5_text")


@dataclass(frozen=True)
class Stored:
    """One parameter in a file: its name there, its values there, and back again."""

    name: str
    to_gguf: Callable[[Floats], Floats]
    from_gguf: Callable[[Floats], Floats]


@cache
def names(kind: str, n_layers: int) -> gguf.TensorNameMap:
    """The package's table for a kind of model."""
    return gguf.get_tensor_name_map(ARCHITECTURES[kind], n_layers)


def same(values: Floats) -> Floats:
    """The values as they are."""
    return values


def paired(heads: int) -> tuple[Callable[[Floats], Floats], Callable[[Floats], Floats]]:
    """Rows of each head from halves to interleaved pairs, as llama's rope wants them, and back."""

    def to_pairs(rows: Floats) -> Floats:
        halves = rows.reshape(heads, 2, -1, *rows.shape[1:])
        return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows.shape))

    def to_halves(rows: Floats) -> Floats:
        pairs = rows.reshape(heads, -1, 2, *rows.shape[1:])
        return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(rows.shape))

    return to_pairs, to_halves


def stored(parameter: str, config: Any) -> Stored:
    """How GGUF holds a parameter of transformers; `config` is that of its model.

    Raises: KeyError if the `gguf` package has no name for it.
    """
    kind = config.model_type
    name = parameter.replace(".dt_bias", ".dt_proj.bias")
    known = names(kind, config.num_hidden_layers).get_name(name, try_suffixes=(".weight", ".bias"))
    if known is None:
        raise KeyError(parameter)
    if parameter.endswith(".A_log"):
        return Stored(known, lambda a: -np.exp(a), lambda a: np.log(-a))
    if ".conv1d." in parameter:
        return Stored(known, lambda a: np.ascontiguousarray(a[:, 0]), lambda a: a[:, None])
    is_gain = parameter.endswith("norm.weight") and "linear_attn" not in parameter
    if is_gain and kind in HAS_GAINS_PLUS_ONE:
        one = np.float32(1)
        return Stored(known, lambda a: a + one, lambda a: a - one)
    if kind == "llama" and parameter.endswith(("q_proj.weight", "k_proj.weight")):
        is_query = parameter.endswith("q_proj.weight")
        heads = config.num_attention_heads if is_query else config.num_key_value_heads
        return Stored(known, *paired(heads))
    return Stored(known, same, same)


def dequantised(path: str) -> dict[str, Floats]:
    """The float32 values of every tensor of a file, by the `gguf` package."""
    return {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        for tensor in gguf.GGUFReader(path).tensors
    }
