"""Kernel instances: a kernel with its sizes and attributes fixed, for all nodes that need it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lockstep.ir import Attr, Dim, Graph, Kernel, Node

C_TYPES = {
    "f32": "float",
    "f64": "double",
    "i32": "int32_t",
    "f16": "uint16_t",
    "u8": "uint8_t",
    "i8": "int8_t",
    "i16": "int16_t",
}


@dataclass(frozen=True, slots=True)
class Instance:
    """A C function that calls one kernel with constants, so that the compiler can specialise it."""

    name: str
    kernel: Kernel
    op: str
    outputs: tuple[str, ...]  # C types
    inputs: tuple[str | None, ...]  # C types; None for an absent input
    sizes: tuple[tuple[str, Dim], ...]
    attrs: tuple[tuple[str, Attr], ...]

    @property
    def is_rows(self) -> bool:
        """Whether the span counts rows, not tiles."""
        return self.kernel.tiling == "rows"

    def text(self) -> str:
        """The function, and for tiles the one that counts them."""
        outs = [f"{t} *o{i}" for i, t in enumerate(self.outputs)]
        ins = [f"const {t} *i{i}" for i, t in enumerate(self.inputs) if t]
        parameters = ", ".join([*outs, *ins, "const Call *c", "int64_t begin", "int64_t end"])
        constants = self._constants()
        given = [f"o{i}" for i in range(len(self.outputs))]
        given += [f"i{i}" if t else "NULL" for i, t in enumerate(self.inputs)]
        sizes = ", ".join(f"{letter}={dim}" for letter, dim in self.sizes)
        attrs = "".join(f", {name}={value}" for name, value in self.attrs)
        symbol = self.kernel.symbol
        lines = [f"/* {self.op}: {sizes}{attrs} */", f"INSTANCE void {self.name}({parameters}) {{"]
        if not any(isinstance(dim, str) for _, dim in self.sizes):
            lines.append("  (void)c;")
        if self.is_rows:
            lines.append(f"  {symbol}({', '.join([*given, *constants, 'begin', 'end'])});")
        else:
            call = f"{symbol}({', '.join([*given, *constants, 'tile'])})"
            lines.append("  for (int64_t tile = begin; tile < end; tile++)")
            lines.append(f"    {call};")
        count = self._rows() if self.is_rows else f"{symbol}_tiles({', '.join(constants)})"
        lines += [
            "}",
            f"static int64_t {self.name}_count(const Call *c) {{",
            "  (void)c;",
            f"  return {count};",
            "}",
        ]
        return "\n".join(lines) + "\n"

    def _rows(self) -> str:
        return _literal(dict(self.sizes)["M"])

    def _constants(self) -> list[str]:
        return [_literal(dim) for _, dim in self.sizes] + [_literal(v) for _, v in self.attrs]


class Instances:
    """The instances of a program, one for each kernel with its types, sizes and attributes."""

    def __init__(self, graph: Graph, kernels: Mapping[str, Kernel]) -> None:
        self.by_node: dict[str, Instance] = {}
        self.all: list[Instance] = []
        known: dict[tuple[object, ...], Instance] = {}
        counts: dict[str, int] = {}
        for node in graph.nodes:
            made = _instance(graph, node, kernels[node.id], "")
            key = (made.kernel.symbol, made.outputs, made.inputs, made.sizes, made.attrs)
            if key not in known:
                number = counts[node.op.name] = counts.get(node.op.name, 0) + 1
                name = f"{node.op.name}_{number}"
                known[key] = _instance(graph, node, kernels[node.id], f"k_{name}")
                self.all.append(known[key])
            self.by_node[node.id] = known[key]


def _instance(graph: Graph, node: Node, kernel: Kernel, name: str) -> Instance:
    types = tuple(graph.value(i).type if i else None for i in node.inputs)
    out_types = tuple(v.type for v in node.outputs)
    return Instance(
        name=name,
        kernel=kernel,
        op=node.op.name,
        outputs=tuple(C_TYPES[t.dtype] for t in out_types),
        inputs=tuple(C_TYPES[t.dtype] if t else None for t in types),
        sizes=tuple(node.op.sizes(types, out_types).items()),
        attrs=tuple((name, node.attrs[name]) for name in node.op.attrs),
    )


def count_of(symbol: str) -> str:
    """The count of this call that a symbol stands for, as C."""
    return f"c->count[{symbol.upper()}]"


def _literal(value: Dim | Attr) -> str:
    """A size or an attribute as C; a symbol is one of the counts of the call."""
    if isinstance(value, str):
        return count_of(value)
    return repr(value) if isinstance(value, float) else str(int(value))
