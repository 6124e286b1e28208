"""A small template, and converters written to files beside it: for the tests of `verify derive`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from lockstep.artifacts.derivation import Derivation, DerivedLeaf
from lockstep.verify.derivation.converter import Converter
from lockstep.verify.derivation.derive import Derivations, Request, derive

HEAD = """
import sys
import numpy as np
import json
from safetensors.numpy import load_file, save_file
source, target = sys.argv[1:3]
a = load_file(source)
def write(path, leaves):
    header, data = {}, b""
    for name, (kind, shape, raw) in leaves.items():
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [len(data), len(data + raw)]}
        data += raw
    text = json.dumps(header).encode()
    open(path, "wb").write(len(text).to_bytes(8, "little") + text + data)
out = {}
"""
N_HEADS, N_KV, SIZE, WIDTH, FF, VOCAB = 4, 2, 6, 20, 28, 11


def tiny(n_layers: int = 2, width: int = WIDTH, ff: int = FF, vocab: int = VOCAB) -> Any:
    """A small Llama; every size is another."""
    rng = np.random.default_rng(5)
    shapes: dict[str, tuple[int, ...]] = {"embed.weight": (vocab, width), "norm.weight": (width,)}
    for i in range(n_layers):
        shapes |= {
            f"layers.{i}.q.weight": (N_HEADS * SIZE, width),
            f"layers.{i}.k.weight": (N_KV * SIZE, width),
            f"layers.{i}.v.weight": (N_KV * SIZE, width),
            f"layers.{i}.o.weight": (width, N_HEADS * SIZE),
            f"layers.{i}.gate.weight": (ff, width),
            f"layers.{i}.up.weight": (ff, width),
            f"layers.{i}.norm.weight": (width,),
        }
    found = {name: rng.standard_normal(s).astype(np.float32) for name, s in shapes.items()}
    return found | {"step": np.array(17, np.int64)}


class Bench:
    """A template, and converters written to files beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.template = folder / "tiny.safetensors"
        save_file(tiny(), self.template)

    def command(self, body: str, head: str = HEAD) -> str:
        script = self.folder / "convert.py"
        script.write_text(head + body)
        return f"{shlex.quote(sys.executable)} {shlex.quote(str(script))} {{source}} {{target}}"

    def derive(self, body: str, head: str = HEAD, **options: Any) -> Derivations:
        timeout_s = options.pop("timeout_s", 60.0)
        template = options.pop("template", self.template)
        converter = Converter(self.command(body, head), timeout_s)
        return derive(Request(template=template, converter=converter, **options))


def leaf_of(record: Derivation, target: str) -> DerivedLeaf:
    (found,) = (leaf for leaf in record.leaves if leaf.target == target)
    return found
