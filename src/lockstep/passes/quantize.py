"""Quantisation: linears and embeddings of stored parameters read packed panels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from lockstep.errors import UsageError
from lockstep.ir import Attr, Graph, Node, Section, Type, Value, check, make_node
from lockstep.ir import u8 as u8_type
from lockstep.ops import OPS, panels
from lockstep.ops.expect import whole
from lockstep.ops.quantize_rows import QUANTIZE_ROWS

# Features of a processor that sum products of bytes without saturation.
_BYTE_DOTS = frozenset({"avx512_vnni", "avx_vnni", "asimddp"})
FLOAT_BITS = 32
PANEL_READERS = ("linear", "embedding")  # ops whose second input may be packed


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What the processor that the program is for can do.

    `byte_dots`: products of weights of 8 bits with int8 activations are summed by one instruction.
    Where it cannot, such weights take int16 activations, which are as fast there and more exact.
    """

    byte_dots: bool

    @staticmethod
    def of(features: frozenset[str]) -> Target:
        """The target with these features, as /proc/cpuinfo names them."""
        return Target(byte_dots=bool(features & _BYTE_DOTS))

    def bits(self, stored: str) -> int:
        """The bits of the activations beside weights of this type; FLOAT_BITS says float32."""
        if stored in panels.FLOATS:
            return FLOAT_BITS
        return 16 if panels.LAYOUTS[stored].bits == 8 and not self.byte_dots else 8


def quantize(graph: Graph, stored: Mapping[str, str], target: Target) -> Graph:
    """The graph with each named parameter packed as its stored type says.

    `stored` maps parameters to types; each becomes bytes under the same id. Nodes keep their ids
    and what they cover. Rows are quantised once for all linears that read them.

    Raises: UsageError if a parameter is read by something that reads no panels.
    """
    for id in stored:
        if id not in graph.inputs or graph.inputs[id].role != "parameter":
            raise UsageError(
                f"quantize: expected a parameter of {graph.name}, got {id!r}",
                hint="give the types of the graph's own parameters",
            )
    made = Graph(graph.name, dict(graph.symbols))
    for id, entry in graph.inputs.items():
        type = entry.value.type
        made.input(id, _packed(id, type, stored[id]) if id in stored else type, entry.role)
    for node in graph.nodes:
        _add(made, graph, node, stored, target)
    made.writes, made.outputs = dict(graph.writes), dict(graph.outputs)
    return check(made, "forward")


def _packed(id: str, type: Type, stored: str) -> Type:
    match type.dims:
        case (int(n), int(k)):
            return u8_type(panels.n_bytes(stored, n, k))
    raise UsageError(
        f"quantize {id}: expected a matrix to pack as {stored}, got {type}",
        hint="leave this parameter out of the types",
    )


def _add(made: Graph, graph: Graph, node: Node, stored: Mapping[str, str], target: Target) -> None:
    """Adds the node, or what takes its place."""
    read = [id for id in node.inputs if id is not None and id in stored]
    if not read:
        made.append(node)
        return
    if node.op.name not in PANEL_READERS or read != [node.inputs[1]]:
        raise UsageError(
            f"quantize {read[0]}: expected only {' and '.join(PANEL_READERS)} to read it, "
            f"got {node.op.name} of {node.id}",
            hint="leave this parameter out of the types",
        )
    n, k = (whole(node.id, dim) for dim in graph.value(read[0]).type.dims)
    name = stored[read[0]].lower()
    first, *rest = (made.value(id) if id is not None else None for id in node.inputs)
    assert first is not None
    attrs: dict[str, Attr] = {"n": n}
    rows: tuple[Value, ...] = (first,)
    if node.op.name == "embedding":
        op, attrs["k"] = OPS[f"embed_{name}"], k
    else:
        op, bits = OPS[f"linear_{name}"], target.bits(stored[read[0]])
        if bits != FLOAT_BITS:
            attrs["bits"], rows = bits, _rows(made, first, bits, node.section)
    new = make_node(op, node.id, (*rows, *rest), attrs, node.section)
    made.append(replace(new, covers=node.covers))


def _rows(made: Graph, x: Value, bits: int, section: Section) -> tuple[Value, ...]:
    """The quantised rows of a value, made where they are first read."""
    id = f"{x.id}@q{bits}"
    if all(node.id != id for node in made.nodes):
        made.append(make_node(QUANTIZE_ROWS, id, (x,), {"bits": bits}, section))
    return made.node(id).outputs
