"""The graph: types, nodes, text form, checker and float64 referee."""

from lockstep.ir.arena import ALIGN_BYTES, Layout, flat_layout, padded
from lockstep.ir.check import CheckError, Stage, check
from lockstep.ir.graph import SECTIONS, Graph, Input, Node, Role, Section, make_node, renamed
from lockstep.ir.interpret import interpret, run_reference
from lockstep.ir.lowered import (
    ARENAS,
    Chain,
    GuardSpot,
    Mode,
    ParallelStage,
    Plan,
    Schedule,
    Spot,
)
from lockstep.ir.op import (
    Array,
    Attr,
    GradientBuilder,
    Kernel,
    NotDifferentiable,
    Op,
    Registry,
    Tolerance,
)
from lockstep.ir.shape import CacheKind, InferenceShape
from lockstep.ir.text import parse_graph, print_graph
from lockstep.ir.type import ITEM_BYTES, Dim, Type, f16, f32, f64, i8, i16, i32, parse_type, u8
from lockstep.ir.value import Value

__all__ = [
    "ALIGN_BYTES",
    "ARENAS",
    "ITEM_BYTES",
    "SECTIONS",
    "Array",
    "Attr",
    "CacheKind",
    "Chain",
    "CheckError",
    "Dim",
    "GradientBuilder",
    "Graph",
    "GuardSpot",
    "InferenceShape",
    "Input",
    "Kernel",
    "Layout",
    "Mode",
    "Node",
    "NotDifferentiable",
    "Op",
    "ParallelStage",
    "Plan",
    "Registry",
    "Role",
    "Schedule",
    "Section",
    "Spot",
    "Stage",
    "Tolerance",
    "Type",
    "Value",
    "check",
    "f16",
    "f32",
    "f64",
    "flat_layout",
    "i8",
    "i16",
    "i32",
    "interpret",
    "make_node",
    "padded",
    "parse_graph",
    "parse_type",
    "print_graph",
    "renamed",
    "run_reference",
    "u8",
]
