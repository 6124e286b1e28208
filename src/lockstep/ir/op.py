"""What an op is: its type rule, meaning, gradient, kernels, sizes and tolerance in one record.

The calling convention of a kernel, which code generation and the tests share:

    void SYMBOL(outputs..., inputs..., sizes..., attributes..., span...)

Outputs and inputs are pointers in declared order; an optional input that is absent is NULL. Sizes
are `int64_t`, one for each axis letter in the order in which the letters first appear in the inputs
and then in the outputs. Attributes follow in declared order: int and bool as `int64_t`, float as
`double`. The span says which share of the work to do: `int64_t row_begin, int64_t row_end` for
`rows`, `int64_t tile` for `tiles` (then `int64_t SYMBOL_tiles(sizes..., attributes...)` says how
many there are). The naive kernel takes no span: it does all of the work and judges the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from lockstep.dims import LEGEND
from lockstep.errors import UsageError
from lockstep.ir.type import Dim, Type
from lockstep.ir.value import Value

Attr = int | float | bool | str
Array = NDArray[Any]
Infer = Callable[..., tuple[Type, ...]]
Reference = Callable[..., tuple[Array, ...]]
Example = Callable[[np.random.Generator, "Mapping[str, Attr]"], "tuple[Array | None, ...]"]


class GradientBuilder(Protocol):
    """What an op's gradient rule may do to the graph under construction."""

    def add(self, op: Op, id: str, *inputs: Value | None, **attrs: Attr) -> Value:
        """Adds a node and returns its first output."""

    def value(self, id: str) -> Value:
        """The value with this id."""

    def wants(self, value: Value | None) -> bool:
        """Whether a gradient of this value is needed at all."""

    def accumulator(self, value: Value) -> tuple[Value | None, Value | None]:
        """Where this value's gradient is summed up, and the flag that says whether to add to it.

        (None, None) where the gradient is not accumulated. (acc, None) says: always add.
        """


Gradient = Callable[..., tuple[Value | None, ...]]  # (builder, node, *d_outputs), one per input


@dataclass(frozen=True, slots=True)
class NotDifferentiable:
    """Says that an op has no gradient, and why."""

    why: str


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far a kernel may be from the reference: max |a-b| <= rel * scale, with the reason."""

    rel: float
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """One C implementation: `rows` does a range of rows, `tiles` one tile of several."""

    symbol: str
    tiling: Literal["rows", "tiles"]
    when: Callable[[Mapping[str, Dim], Mapping[str, Attr]], bool] = lambda sizes, attrs: True


@dataclass(frozen=True, kw_only=True, eq=False)
class Op:
    """An op; every field without a default is required.

    `inputs` and `outputs` are names with axis letters (`x_MK`; `b_N?` may be absent; a name without
    an underscore is a scalar). `row_inputs` are the inputs of which row i of the outputs needs
    row i only. `inplace` maps an output to the input whose bytes it may take over, element for
    element.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: Mapping[str, type]
    infer: Infer
    reference: Reference
    gradient: Gradient | NotDifferentiable
    source: str = field(repr=False)
    naive: str
    kernels: tuple[Kernel, ...]  # the last whose `when` holds is used
    cases: tuple[Mapping[str, Attr], ...]
    tolerance: Tolerance
    row_inputs: frozenset[str] = frozenset()
    inplace: Mapping[str, str] = field(default_factory=dict)
    example: Example | None = None

    def sizes(
        self, input_types: tuple[Type | None, ...], output_types: tuple[Type, ...]
    ) -> dict[str, Dim]:
        """The value of each axis letter, in the order of the calling convention.

        Raises: UsageError if a letter would need two values.
        """
        sizes: dict[str, Dim] = {}
        names = (*self.inputs, *self.outputs)
        for name, type in zip(names, (*input_types, *output_types), strict=True):
            if type is None:
                continue
            letters = axes(name)
            if letters == "P":
                type = type.flat()
            if len(letters) != len(type.dims):
                raise UsageError(f"{self.name} {name}: expected {len(letters)} axes, got {type}")
            for letter, dim in zip(letters, type.dims, strict=True):
                if sizes.setdefault(letter, dim) != dim:
                    raise UsageError(
                        f"{self.name} {name}: expected {letter}={sizes[letter]}, got {dim}"
                    )
        order = dict.fromkeys(letter for name in names for letter in axes(name))
        return {letter: sizes.get(letter, 0) for letter in order}

    def kernel(self, sizes: Mapping[str, Dim], attrs: Mapping[str, Attr]) -> Kernel:
        """The fastest kernel that fits these sizes."""
        return next(k for k in reversed(self.kernels) if k.when(sizes, attrs))


def axes(name: str) -> str:
    """The axis letters at the end of a tensor name; none for a scalar."""
    stem = name.removesuffix("?")
    return stem.rpartition("_")[2] if "_" in stem and stem.rpartition("_")[2].isupper() else ""


def is_optional(name: str) -> bool:
    """Whether an input may be absent."""
    return name.endswith("?")


class Registry(Mapping[str, Op]):
    """The ops by name; registration refuses an incomplete op."""

    def __init__(self) -> None:
        self._ops: dict[str, Op] = {}

    def register(self, op: Op) -> Op:
        """Adds an op.

        Raises: UsageError if the op is incomplete or its name is taken.
        """
        if op.name in self._ops:
            raise UsageError(f"op {op.name}: expected a new name, it is registered already")
        for problem in problems(op):
            raise UsageError(f"op {op.name}: {problem}")
        self._ops[op.name] = op
        return op

    def __getitem__(self, name: str) -> Op:
        return self._ops[name]

    def __iter__(self) -> Any:
        return iter(self._ops)

    def __len__(self) -> int:
        return len(self._ops)


def problems(op: Op) -> list[str]:
    """What is missing from an op or contradicts itself."""
    found = []
    for name in (*op.inputs, *op.outputs):
        found += [f"{name}: unknown axis letter {a}" for a in axes(name) if a not in LEGEND]
    if not op.kernels or not op.cases:
        found.append("expected at least one kernel and one case")
    for symbol in (op.naive, *(k.symbol for k in op.kernels)):
        if f" {symbol}(" not in op.source:
            found.append(f"expected a C function {symbol}, its source has none")
    for kernel in op.kernels:
        if kernel.tiling == "tiles" and f" {kernel.symbol}_tiles(" not in op.source:
            found.append(f"expected a C function {kernel.symbol}_tiles, its source has none")
    found += [f"row input {n} is not an input" for n in op.row_inputs if n not in op.inputs]
    if not op.tolerance.why:
        found.append("expected a reason for the tolerance")
    for case in op.cases:
        sizes = [v for k, v in case.items() if k in LEGEND and v != 1]
        if len(set(sizes)) != len(sizes):
            found.append(f"case {dict(case)}: expected different sizes, or swapped axes would pass")
    return found


def as_f64(array: Array) -> Array:
    """The array in float64 if it holds floats, unchanged if it holds integers."""
    return array.astype(np.float64) if array.dtype.kind == "f" else array
