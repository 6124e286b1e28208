"""Small graphs, and how to run their programs beside the referee."""

from __future__ import annotations

import numpy as np

from lockstep.build import Built
from lockstep.ir import Array, Graph, Section, Value, f32, i32, interpret
from lockstep.ops import OPS

ROWS, VOCAB = 40, 29


def small_graph(layers: int = 2, rows: int = ROWS, width: int = 24, ffn: int = 56) -> Graph:
    """A forward graph with all that passes meet: a tied table, biases, residuals, gates, a loss."""
    graph = Graph("small")
    tokens_M = graph.input("tokens", i32(rows), "input")
    targets_M = graph.input("targets", i32(rows), "input")
    scale = graph.input("scale", f32(), "input")

    def parameter(id: str, *dims: int) -> Value:
        return graph.input(id, f32(*dims), "parameter")

    table_VD = parameter("embed.weight", VOCAB, width)
    x_MD = graph.add(OPS["embedding"], "embed", tokens_M, table_VD)
    for layer in range(layers):
        at = f"layers.{layer}"
        gain_D = parameter(f"{at}.norm.weight", width)
        h_MD = graph.add(OPS["rmsnorm"], f"{at}.norm", x_MD, gain_D, eps=1e-6)
        gate = parameter(f"{at}.gate.weight", ffn, width), parameter(f"{at}.gate.bias", ffn)
        gate_MF = graph.add(OPS["linear"], f"{at}.gate", h_MD, *gate)
        up_MF = graph.add(OPS["linear"], f"{at}.up", h_MD, parameter(f"{at}.up.weight", ffn, width))
        act_MF = graph.add(OPS["silu_mul"], f"{at}.act", gate_MF, up_MF)
        down = parameter(f"{at}.down.weight", width, ffn)
        down_MD = graph.add(OPS["linear"], f"{at}.down", act_MF, down)
        x_MD = graph.add(OPS["add"], f"{at}.add", x_MD, down_MD)
    x_MD = graph.add(OPS["rmsnorm"], "norm", x_MD, parameter("norm.weight", width), eps=1e-6)
    logits_MV = graph.add(OPS["linear"], "head", x_MD, table_VD)
    loss_M = graph.add(OPS["cross_entropy"], "loss", logits_MV, targets_M, scale)
    graph.outputs = {"loss": graph.add(OPS["loss_sum"], "loss.sum", loss_M).id}
    return graph


SCALARS = {
    "accumulate": np.int32(0),
    "lr": np.float32(1e-2),
    "max_norm": np.float32(0.5),
    "step": np.int32(1),
}


def random_inputs(graph: Graph, seed: int = 0, vocab: int = VOCAB) -> dict[str, Array]:
    """A value for each input of a training graph; states of the optimizer start at zero."""
    rng = np.random.default_rng(seed)
    inputs: dict[str, Array] = {}
    for entry in graph.inputs.values():
        id, shape = entry.value.id, entry.value.type.shape(graph.symbols)
        if entry.role == "parameter":
            inputs[id] = (rng.standard_normal(shape) * 0.3).astype(np.float32)
        elif id in ("tokens", "targets"):
            inputs[id] = rng.integers(0, vocab, shape).astype(np.int32)
        elif id == "positions":
            inputs[id] = np.arange(shape[0], dtype=np.int32)
        elif id == "scale":
            inputs[id] = np.float32(1 / len(inputs["tokens"]))
        elif id in SCALARS:
            inputs[id] = SCALARS[id]
        else:
            inputs[id] = np.zeros(shape, np.float32)
    return inputs


def run_step(
    built: Built,
    inputs: dict[str, Array],
    *,
    threads: int = 1,
    entries: tuple[str, ...] = ("init", "step", "update"),
) -> dict[str, Array]:
    """Runs the entries; copies of all gradients, states and outputs afterwards."""
    program = built.program
    program.set_threads(threads)
    for id, array in inputs.items():
        if built.graph.inputs[id].role != "gradients":
            program.view(id)[...] = array
    for entry in entries:
        program.call(entry)
    roles = ("parameter", "gradient", "moment")
    kept = [v.id for role in roles for v in built.graph.with_role(role)]
    return {id: program.view(id).copy() for id in (*kept, *built.graph.outputs.values())}


def referee_step(built: Built, inputs: dict[str, Array]) -> dict[str, Array]:
    """The same in float64; the update starts from the program's gradients (Adam reads signs)."""
    graph = built.graph
    before: tuple[Section, ...] = ("init", "pack", "forward", "backward")
    values = interpret(graph, inputs, before)
    given = {id: values[id] for id in graph.inputs}
    states = ["gradients", *(v.id for v in graph.with_role("gradient"))]
    given |= {id: built.program.view(id).astype(np.float64) for id in states}
    after = interpret(graph, given, ("update",))
    return {**values, **{k: v for k, v in after.items() if k not in values}}


def bits_differ(a: dict[str, Array], b: dict[str, Array]) -> list[str]:
    """The ids whose bytes are not the same in both."""
    return [id for id in a if a[id].tobytes() != b[id].tobytes()]
