"""Runs the kernels of an op on NumPy arrays, with guards around every buffer."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np

from lockstep.codegen.sources import Source, gather
from lockstep.dims import LEGEND
from lockstep.ir import Kernel, Op, Type
from lockstep.ir.op import Array, Attr, axes, is_optional
from lockstep.native import compile_library
from lockstep.ops import OPS
from lockstep.ops.registry import FILES

GUARD_BYTES = 128
GUARD = 0xA5
Case = Mapping[str, Attr]
Spans = Iterable[tuple[int, int]]
DTYPES: dict[str, type] = {
    "f32": np.float32,
    "f64": np.float64,
    "i32": np.int32,
    "f16": np.float16,
    "u8": np.uint8,
    "i8": np.int8,
    "i16": np.int16,
}
NAMES = {np.dtype(kind): name for name, kind in DTYPES.items()}


def attrs_of(op: Op, case: Case) -> dict[str, Attr]:
    """The attributes among the entries of a case."""
    return {name: case[name] for name in op.attrs}


def draw(op: Op, case: Case, seed: int) -> tuple[Array | None, ...]:
    """Inputs for a case: from the op's own example, else normal numbers of the case's sizes."""
    rng = np.random.default_rng(seed)
    if op.example is not None:
        return op.example(rng, case)
    return tuple(
        rng.standard_normal([int(case[letter]) for letter in axes(name)]).astype(np.float32)
        for name in op.inputs
    )


def without_optional(op: Op, inputs: tuple[Array | None, ...]) -> tuple[Array | None, ...]:
    """The inputs with every optional one absent."""
    pairs = zip(op.inputs, inputs, strict=True)
    return tuple(None if is_optional(name) else array for name, array in pairs)


def type_of(array: Array) -> Type:
    """The graph type of an array."""
    return Type(NAMES[array.dtype], array.shape)  # type: ignore[arg-type]


def infer(op: Op, inputs: tuple[Array | None, ...], case: Case) -> tuple[Type, ...]:
    """The output types for these inputs."""
    types = (type_of(a) if a is not None else None for a in inputs)
    return op.infer(*types, **attrs_of(op, case))


def reference(op: Op, inputs: tuple[Array | None, ...], case: Case) -> tuple[Array, ...]:
    """The float64 outputs for these inputs."""
    wide = (a.astype(np.float64) if a is not None and a.dtype.kind == "f" else a for a in inputs)
    with np.errstate(all="ignore"):
        return op.reference(*wide, **attrs_of(op, case))


@dataclass
class Buffer:
    """An array of its own between two guards."""

    raw: Array
    array: Array

    @staticmethod
    def of(type: Type) -> Buffer:
        """A buffer whose bytes are all NaN, 64-byte aligned as in an arena."""
        n_bytes = type.n_bytes({})
        raw = np.full(n_bytes + 2 * GUARD_BYTES + 64, GUARD, np.uint8)
        start = GUARD_BYTES + -(raw.ctypes.data + GUARD_BYTES) % 64
        view = raw[start : start + n_bytes]
        view[:] = 0xFF
        return Buffer(raw, view.view(DTYPES[type.dtype]).reshape(type.shape({})))

    def intact(self) -> bool:
        """Whether nothing was written outside the array."""
        start = self.array.ctypes.data - self.raw.ctypes.data
        before, after = self.raw[:start], self.raw[start + self.array.nbytes :]
        return bool((before == GUARD).all() and (after == GUARD).all())


def wrapper(op: Op, symbol: str, tiling: str) -> str:
    """C that calls a static kernel with its arguments out of arrays."""
    pointers = [f"p[{i}]" for i in range(len(op.outputs) + len(op.inputs))]
    letters = dict.fromkeys(a for name in (*op.inputs, *op.outputs) for a in axes(name))
    sizes = [f"n[{i}]" for i in range(len(letters))]
    for i, kind in enumerate(op.attrs.values()):
        sizes.append(f"f[{i}]" if kind is float else f"n[{len(letters) + i}]")
    span = {"naive": [], "rows": ["a", "b"], "tiles": ["a"]}[tiling]
    text = (
        f"void call_{symbol}(void *const *p, const int64_t *n, const double *f, int64_t a,"
        f" int64_t b) {{\n  (void)n, (void)f, (void)a, (void)b;\n"
        f"  {symbol}({', '.join(pointers + sizes + span)});\n}}\n"
    )
    if tiling == "tiles":
        text += (
            f"int64_t count_{symbol}(const int64_t *n, const double *f) {{\n  (void)n, (void)f;\n"
            f"  return {symbol}_tiles({', '.join(sizes)});\n}}\n"
        )
    return text


def library_source(ops: Iterable[Op]) -> str:
    """One C text with all kernels of these ops and their wrappers."""
    ops = list(ops)
    headers = {name: text for text, name in FILES.items() if name.endswith(".h")}
    pieces = dict.fromkeys(Source(FILES[op.source], op.source) for op in ops)
    found = gather(pieces, headers)
    texts = [f"#include {name}" for name in found.system]
    texts += [piece.text for piece in found.pieces]
    for op in ops:
        texts.append(wrapper(op, op.naive, "naive"))
        texts += [wrapper(op, k.symbol, k.tiling) for k in op.kernels]
    return "\n".join(texts)


@cache
def library(source: str) -> ctypes.CDLL:
    """The kernels of all ops of a C source; a single op needs no others."""
    ops = [op for op in OPS.values() if op.source == source]
    return ctypes.CDLL(str(compile_library(library_source(ops))))


@dataclass(frozen=True)
class Call:
    """One op with its inputs and sizes in place, ready to run any of its kernels."""

    op: Op
    inputs: tuple[Array | None, ...]
    case: Case

    @cached_property
    def types(self) -> tuple[Type, ...]:
        """The types of the outputs."""
        return infer(self.op, self.inputs, self.case)

    @cached_property
    def sizes(self) -> dict[str, int]:
        """The size of each axis letter."""
        types = tuple(type_of(a) if a is not None else None for a in self.inputs)
        return self.op.sizes(types, self.types)  # type: ignore[return-value]

    def usable(self) -> list[Kernel]:
        """The kernels that may be used for these sizes."""
        attrs = attrs_of(self.op, self.case)
        return [k for k in self.op.kernels if k.when(self.sizes, attrs)]

    @cached_property
    def numbers(self) -> tuple[Array, Array]:
        """The whole numbers and the real ones that a kernel is given."""
        attrs = [self.case[name] for name in self.op.attrs]
        whole = [*self.sizes.values(), *(0 if isinstance(a, float) else int(a) for a in attrs)]
        real = [a if isinstance(a, float) else 0.0 for a in attrs] or [0.0]
        return np.array(whole, np.int64), np.array(real, np.float64)

    def n_tiles(self, kernel: Kernel) -> int:
        """How many tiles, or rows, there are."""
        if kernel.tiling == "rows":
            return self.sizes["M"]
        whole, real = self.numbers
        count = getattr(library(self.op.source), f"count_{kernel.symbol}")
        count.restype = ctypes.c_int64
        return int(count(ctypes.c_void_p(whole.ctypes.data), ctypes.c_void_p(real.ctypes.data)))

    def spans(self, kernel: Kernel) -> list[tuple[int, int]]:
        """The spans that do all of the work in order."""
        n = self.n_tiles(kernel)
        return [(0, n)] if kernel.tiling == "rows" else [(i, 0) for i in range(n)]

    def run(
        self, kernel: Kernel | None, spans: Spans | None = None, *, inplace: bool = False
    ) -> tuple[Array, ...]:
        """The outputs of a kernel (None: the naive one); fails if a guard was touched."""
        buffers: dict[str, Buffer] = {}
        for name, array in zip(self.op.inputs, self.inputs, strict=True):
            if array is not None:
                buffers[name] = Buffer.of(type_of(array))
                buffers[name].array[...] = array
        outputs = []
        for name, type in zip(self.op.outputs, self.types, strict=True):
            shared = name if name in buffers else self.op.inplace.get(name) if inplace else None
            outputs.append(buffers[shared] if shared in buffers else Buffer.of(type))
        symbol = kernel.symbol if kernel else self.op.naive
        self._call(symbol, outputs, buffers, spans or (self.spans(kernel) if kernel else [(0, 0)]))
        for name, buffer in (*buffers.items(), *zip(self.op.outputs, outputs, strict=True)):
            assert buffer.intact(), f"{symbol} wrote outside {name}"
        written = {id(b) for b in outputs}
        for name, array in zip(self.op.inputs, self.inputs, strict=True):
            if array is not None and id(buffers[name]) not in written:
                assert same_bits(buffers[name].array, array), f"{symbol} changed its input {name}"
        return tuple(b.array.copy() for b in outputs)

    def _call(
        self, symbol: str, outputs: list[Buffer], inputs: dict[str, Buffer], spans: Spans
    ) -> None:
        pointers = [b.array.ctypes.data for b in outputs]
        pointers += [inputs[n].array.ctypes.data if n in inputs else 0 for n in self.op.inputs]
        whole, real = self.numbers
        table = np.array(pointers, np.uint64)
        function: Callable[..., None] = getattr(library(self.op.source), f"call_{symbol}")
        for begin, end in spans:
            function(
                *(ctypes.c_void_p(a.ctypes.data) for a in (table, whole, real)),
                ctypes.c_int64(begin),
                ctypes.c_int64(end),
            )


def same_bits(a: Array, b: Array) -> bool:
    """Whether two arrays hold the same bytes."""
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def letters_of(case: Case) -> list[str]:
    """The sizes among the entries of a case."""
    return [key for key in case if key in LEGEND]


def error(got: Array, expected: Array) -> float:
    """The largest difference, as a share of the largest expected magnitude."""
    if not expected.size:
        return 0.0
    scale = float(np.abs(expected).max()) or 1.0
    return float(np.abs(got.astype(np.float64) - expected).max()) / scale
