"""What a token takes: the operations and the bytes that measured speeds are shares of.

Counted from the file and the model's settings alone, so that they are the same for every engine.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import transformers

HALF_BYTES, FLOAT_BYTES = 2, 4
HEAD, TABLE = "output.weight", "token_embd.weight"


@dataclass(frozen=True)
class Work:
    """Of one file."""

    operations_per_token: int  # multiply and add of every matrix of every layer, without the head
    weight_bytes: int
    config: Any
    arithmetic: str  # of the products: i8 or f32

    def bytes_per_token(self, depth: int) -> int:
        """What decoding one token behind `depth` others reads: weights, keys, values, states."""
        config = self.config
        kinds = (
            getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
        )
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        row = 2 * config.num_key_value_heads * head * HALF_BYTES
        total = self.weight_bytes
        for kind in kinds:
            if kind == "full_attention":
                total += row * depth
            elif kind == "sliding_attention":
                total += row * min(depth, config.sliding_window)
            else:
                total += FLOAT_BYTES * (
                    config.linear_num_value_heads
                    * config.linear_key_head_dim
                    * config.linear_value_head_dim
                )
        return total


def work_of(file: Path, folder: Path) -> Work:
    """Counted in the file; the table of a tied head is read as the head."""
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    looked_up = {TABLE} if HEAD in tensors else set()
    matrices = [
        tensor
        for name, tensor in tensors.items()
        if name.startswith("blk.") and "conv1d" not in name and len(tensor.shape) == 2
    ]
    head = tensors.get(HEAD, tensors[TABLE])
    return Work(
        operations_per_token=2 * sum(int(t.n_elements) for t in matrices),
        weight_bytes=sum(int(t.n_bytes) for name, t in tensors.items() if name not in looked_up),
        config=transformers.AutoConfig.from_pretrained(folder),
        arithmetic="i8" if head.tensor_type.name.startswith("Q") else "f32",
    )
