"""A conversion of small parts: fused, stacked, padded, cast, tied; each has faults of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from conversions.conversion import Array, Conversion, Scheme, Tensors

CLAIMS = Path(__file__).parent / "parts.toml"
N_EXPERTS, N_LAYERS = 12, 5
N_HEADS, N_KV_HEADS, HEAD_DIM, WIDTH = 4, 2, 4, 16
TYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64",
    "int32": "I32", "uint32": "U32", "int8": "I8", "float8_e4m3fn": "F8_E4M3",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
}  # fmt: skip


def parts(root: Path) -> Conversion:
    """The source and the target, each one safetensors file."""
    old = _source()
    new = _target(old)
    source, target = write(old, root / "parts.safetensors"), write(new, root / "new.safetensors")
    none = Scheme("", "", "", "", "", "", "", "", "", "", 0, 0, 0)  # it is no model
    return Conversion(str(CLAIMS), source, target, new, write, none)


def write(tensors: Tensors, path: Path) -> Path:
    """A safetensors file of any type; the library has none for NumPy's float8.

    Source: https://github.com/huggingface/safetensors#format
    """
    header: dict[str, Any] = {}
    data = b""
    for name, a in tensors.items():
        place = [len(data), len(data) + a.nbytes]
        entry = {"dtype": TYPES[a.dtype.name], "shape": list(a.shape), "data_offsets": place}
        header[name] = entry
        data += np.ascontiguousarray(a).tobytes()
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def _source() -> Tensors:
    rng = np.random.default_rng(0)

    def normal(*shape: int, dtype: Any = np.float32) -> Array:
        return rng.standard_normal(shape).astype(dtype)

    kv = N_KV_HEADS * HEAD_DIM
    found: Tensors = {
        "q": normal(N_HEADS * HEAD_DIM, WIDTH), "k": normal(kv, WIDTH), "v": normal(kv, WIDTH),
        "gate": normal(24, WIDTH), "up": normal(24, WIDTH), "router": normal(N_EXPERTS, WIDTH),
        "shared": normal(6, 10), "conv": normal(8, 3, 3, 3), "tokens": normal(13, WIDTH),
        "live": normal(9, 11), "ema": normal(9, 11), "wide": normal(70, 90, dtype=np.float64),
        "single": normal(30, 40), "head": normal(10, WIDTH),
    }  # fmt: skip
    found |= {f"experts.{e}.w": normal(6, 10) for e in range(N_EXPERTS)}
    found |= {f"scan.{i}.w": normal(N_LAYERS, 7) for i in range(N_LAYERS)}
    for i in range(2):
        w = normal(8, 8)
        found[f"fp8.{i}.scale"] = np.abs(w).max(keepdims=True)[0] / np.float32(400)
        found[f"fp8.{i}.w"] = (w / found[f"fp8.{i}.scale"]).astype(ml_dtypes.float8_e4m3fn)
    found["int8"] = rng.integers(-100, 100, (5, 6)).astype(np.int8)
    found["ids"] = np.array([1, 16777217, -16777219, 7], np.int32)
    found["rng_key"] = np.array([7, 42], np.uint32)
    found["count"] = np.array(175_000, np.int64)
    odd = [0, 0x80000000, 0x7FC00005, 0x7F800001, 0xFFC12345, 0x7F800000, 0xFF800000, 1, 0x3F800000]
    found["odd"] = np.array([odd, *rng.integers(0, 1 << 31, (3, 9))], np.uint32).view(np.float32)
    half = normal(6, 7, dtype=ml_dtypes.bfloat16)
    half.view(np.uint16)[0, :3] = 1, 0x8003, 0x7F00  # two subnormal numbers, and a large one
    found["half"] = half
    found["wide"][0, 0] = 1 + 2**-8 + 2**-40  # rounds up once, and down when rounded twice
    return found


def _target(s: Tensors) -> Tensors:
    group = N_HEADS // N_KV_HEADS
    q = s["q"].reshape(N_KV_HEADS, group, HEAD_DIM, WIDTH)
    k, v = (s[part].reshape(N_KV_HEADS, 1, HEAD_DIM, WIDTH) for part in "kv")
    found = {name: s[name] for name in (
        "router", "shared", "live", "ema", "int8", "ids", "rng_key", "count", "odd", "half",
        "fp8.0.w", "fp8.0.scale", "fp8.1.w", "fp8.1.scale", "head",
    )}  # fmt: skip
    return found | {
        "qkv": np.concatenate([q, k, v], 1).reshape(-1, WIDTH),
        "gate_up": np.concatenate([s["gate"], s["up"]]),
        "experts": np.stack([s[f"experts.{e}.w"] for e in range(N_EXPERTS)]),
        "scan": np.stack([s[f"scan.{i}.w"] for i in range(N_LAYERS)], 1),
        "conv": np.ascontiguousarray(s["conv"].transpose(0, 2, 3, 1)),
        "tokens": np.pad(s["tokens"], ((0, 3), (0, 0))),
        "wide": _rounded(s["wide"]),
        "single": s["single"].astype(np.float16),
        "head_again": s["head"],
    }


def _rounded(w: Array) -> Array:
    """float64 to bfloat16 in one rounding, to the nearest, ties to even, by exact arithmetic."""
    bits = np.abs(w).view(np.uint64)
    kept = 52 - 7
    low, half = bits & ((1 << kept) - 1), 1 << (kept - 1)
    cut = bits >> kept
    cut += (low > half) | ((low == half) & (cut & 1 == 1))
    exact = (cut << kept).view(np.float64) * np.sign(w)
    found: Array = exact.astype(np.float32).astype(ml_dtypes.bfloat16)
    return found
