"""Laws of every family: the graph means what transformers' own class means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from family_harness import (
    EVERY_CONFIG,
    Batch,
    batch_inputs,
    differences,
    drawn_batch,
    drawn_parameters,
    gradients_of,
    interpreted,
    training_graph,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.errors import UsageError
from lockstep.families import FAMILIES, Family, LinearScaling, Llama3Scaling, YarnScaling
from lockstep.families.form import AS_IS
from lockstep.ir import (
    Array,
    Graph,
    InferenceShape,
    flat_layout,
    interpret,
    parse_graph,
    print_graph,
)
from lockstep.ops import OPS
from lockstep.passes import OptimizerSpec, add_optimizer

# Float64 has 2e-16; a sum of some thousand products in another order loses three digits of it.
EXACT = 1e-12


def against_transformers(
    family: Family[Any], config: Any, graph: Graph, batch: Batch, smallest: float = 0.0
) -> dict[str, float]:
    """How far logits, loss and every gradient are from transformers, both in float64."""
    from lockstep.oracle import hf_model

    parameters = drawn_parameters(family, config)
    ours, logits = interpreted(graph, parameters, batch)
    oracle = hf_model(family, config, parameters, precision="float64")
    theirs = oracle.losses_and_gradients(batch.tokens_BT, batch.targets_BT)
    return differences(
        {"logits": logits, **ours},
        {"logits": theirs.logits, "loss": np.array(theirs.loss), **theirs.gradients},
        smallest,
    )


@pytest.mark.torch
@pytest.mark.parametrize(("family", "config"), EVERY_CONFIG)
def test_logits_loss_and_gradients_are_those_of_transformers(
    family: Family[Any], config: Any
) -> None:
    batch = drawn_batch(config, 2, 11)
    found = against_transformers(family, config, training_graph(family, config, batch), batch)
    assert len(found) == len(family.weights(config)) + 2
    assert max(found.values()) < EXACT, found


SCALINGS = {
    "linear": LinearScaling(factor=3.0),
    "llama3": Llama3Scaling(factor=4.0, low=1.0, high=3.0, original=20),
    "yarn": YarnScaling(factor=2.0, original=12, magnitude=1.1, beta_fast=2.0, beta_slow=0.5),
    "none": None,
}
# What the families have besides: name -> its values.
OWN: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "qwen2": {},
    "qwen3": {"attention_bias": st.booleans()},
    "llama": {"attention_bias": st.booleans(), "mlp_bias": st.booleans()},
    "gemma3": {
        "attention_bias": st.booleans(),
        "query_scale": st.integers(1, 300),
        "window": st.integers(1, 12),
        "period": st.integers(1, 3),
        "local_theta": st.sampled_from([50.0, 1e4]),
    },
    "qwen35": {
        "activation": st.just("silu"),
        "attention_bias": st.booleans(),
        "rotary": st.just(2),
        "interval": st.integers(1, 3),
        "taps": st.integers(2, 5),
        "key_heads": st.integers(1, 2),
        "key_width": st.integers(1, 9),
        "value_heads": st.sampled_from([2, 4]),
        "value_width": st.integers(1, 9),
    },
}


@st.composite
def configs(draw: st.DrawFn) -> tuple[Family[Any], Any]:
    family = FAMILIES[draw(st.sampled_from(list(OWN)))]
    kv_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    settings: dict[str, Any] = {
        "vocab": draw(st.integers(2, 40)),
        "width": kv_heads * group * draw(st.integers(2, 9)),  # transformers wants a multiple
        "ffn": draw(st.integers(1, 30)),
        "layers": draw(st.integers(1, 2)),
        "heads": kv_heads * group,
        "kv_heads": kv_heads,
        "head_dim": 2 * draw(st.integers(1, 8)),
        "context": draw(st.integers(9, 30)),
        "eps": draw(st.sampled_from([1e-6, 1e-3])),
        "theta": draw(st.sampled_from([100.0, 1e6])),
        "tied": draw(st.booleans()),
        "activation": draw(st.sampled_from(["silu", "gelu_tanh"])),
        "scaling": draw(st.sampled_from(list(SCALINGS.values()))),
    }
    own = {name: draw(values) for name, values in OWN[family.name].items()}
    return family, family.Config(**{**settings, **own})


@pytest.mark.torch
@settings(max_examples=10, deadline=None)
@given(drawn=configs(), n_sequences=st.integers(1, 3), n_tokens=st.integers(2, 9))
def test_drawn_models_are_those_of_transformers(
    drawn: tuple[Family[Any], Any], n_sequences: int, n_tokens: int
) -> None:
    family, config = drawn
    assert family.from_hf(family.to_hf(config)) == config
    batch = drawn_batch(config, n_sequences, n_tokens)
    batch.targets_BT[0, 0] = 1  # at least one counts
    graph = training_graph(family, config, batch)
    # Equal tokens and windows of one leave queries and keys gradients whose terms cancel.
    found = against_transformers(family, config, graph, batch, smallest=1e-6)
    assert max(found.values()) < 1e-9, found


def with_attr(graph: Graph, node_id: str, **attrs: Any) -> Graph:
    """The graph with some attributes of one node changed."""
    graph.node(node_id)
    return graph.with_nodes(
        replace(n, attrs={**n.attrs, **attrs}) if n.id == node_id else n for n in graph.nodes
    )


def with_inputs(graph: Graph, node_id: str, *inputs: str | None) -> Graph:
    """The graph with the inputs of one node changed."""
    graph.node(node_id)
    return graph.with_nodes(
        replace(n, inputs=inputs) if n.id == node_id else n for n in graph.nodes
    )


FAULTS: dict[str, tuple[str, Any]] = {
    "rope layout": ("llama", lambda g: with_attr(g, "layers.1.attn.q_rope", interleaved=True)),
    "eps": ("llama", lambda g: with_attr(g, "layers.1.norm2", eps=1e-3)),
    "theta": ("llama", lambda g: with_attr(g, "rope", theta=10001.0)),
    "gate and up": (
        "llama",
        lambda g: with_inputs(g, "layers.0.ffn.act", "layers.0.ffn.up", "layers.0.ffn.gate"),
    ),
    "residual": (
        "llama",
        lambda g: with_inputs(g, "layers.1.attn.add", "layers.0.attn.add", "layers.1.attn.o"),
    ),
    "window": ("gemma3", lambda g: with_attr(g, "layers.2.attn.core", window=5)),
    "no window": ("gemma3", lambda g: with_attr(g, "layers.0.attn.core", window=0)),
    "scale of scores": ("gemma3", lambda g: with_attr(g, "layers.0.attn.core", scale=0.3)),
    "scale of embedding": ("gemma3", lambda g: with_attr(g, "embed.scale", by=6.9)),
    "local base": ("gemma3", lambda g: with_attr(g, "rope_local", theta=101.0)),
    "local for global": (
        "gemma3",
        lambda g: with_inputs(
            g, "layers.1.attn.q_rope",
            "layers.1.attn.q_norm", "positions", "rope_local", "rope_local:sin",
        ),
    ),
    "swapped norms": (
        "gemma3",
        lambda g: with_inputs(
            g, "layers.0.ffn.norm", "layers.0.ffn.down", "layers.0.attn.norm.weight"
        ),
    ),
    "decay": ("qwen35", lambda g: with_inputs(
        g, "layers.1.delta.gates", "layers.1.delta.a", "layers.1.delta.b", "layers.1.delta.rate",
        "layers.1.delta.dt",
    )),
    "unit vectors": ("qwen35", lambda g: with_attr(g, "layers.0.delta.core", eps=1e-3)),
    "gate of attention": (
        "qwen35",
        lambda g: with_inputs(
            g, "layers.3.attn.gate", "layers.3.attn.core", "layers.3.attn.split:b"
        ),
    ),
    "convolution left out": (
        "qwen35",
        lambda g: with_inputs(
            g, "layers.2.delta.core", "layers.2.delta.qkv", "layers.2.delta.gates",
            "layers.2.delta.gates:beta",
        ),
    ),
    "no bias": (
        "qwen2",
        lambda g: with_inputs(g, "layers.0.attn.k", "layers.0.norm1", "layers.0.attn.k.weight",
                              None, None),
    ),
}  # fmt: skip


@pytest.mark.torch
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_seen(fault: str) -> None:
    name, plant = FAULTS[fault]
    family = FAMILIES[name]
    batch = drawn_batch(family.TINY, 2, 11)
    graph = plant(training_graph(family, family.TINY, batch))
    found = against_transformers(family, family.TINY, graph, batch)
    assert found["logits"] > 1e-6
    assert found["loss"] > 1e-9


def test_interleaved_rope_with_gguf_rows_is_the_same_model() -> None:
    family = FAMILIES["llama"]
    batch = drawn_batch(family.TINY, 2, 11)
    graph = training_graph(family, family.TINY, batch)
    parameters = drawn_parameters(family, family.TINY)
    answers, logits = interpreted(graph, parameters, batch)
    for layer in range(family.TINY.layers):
        for head in ("q", "k"):
            graph = with_attr(graph, f"layers.{layer}.attn.{head}_rope", interleaved=True)
    for weight in family.weights(family.TINY):
        if weight.gguf_form != AS_IS:
            parameters[weight.id] = weight.gguf_form.stored(parameters[weight.id])
    forward = ("init", "forward")
    values = interpret(graph, {**parameters, **batch_inputs(batch)}, sections=forward)
    found = {"logits": values["head"].reshape(logits.shape)}
    assert differences(found, {"logits": logits})["logits"] < EXACT
    assert abs(values["loss.sum"] / batch.n_targets - answers["loss"]) < EXACT


@pytest.mark.parametrize(("family", "config"), EVERY_CONFIG)
def test_cached_chunks_give_the_logits_of_the_whole(family: Family[Any], config: Any) -> None:
    batch = drawn_batch(config, 1, 13)
    parameters = drawn_parameters(family, config)
    graph = family.training_graph(config, 1, 13)
    whole = interpret(graph, {**parameters, **batch_inputs(batch)})["head"]
    for chunks in ([13], [5, 1, 7], [1] * 13):
        rows = run_chunks(family, config, parameters, batch.tokens_BT[0], chunks)
        assert differences({"logits": rows}, {"logits": whole})["logits"] < EXACT


def run_chunks(
    family: Family[Any],
    config: Any,
    parameters: Mapping[str, Array],
    tokens_T: Array,
    chunks: list[int],
) -> Array:
    shape = InferenceShape(context=17, rows=13, outs=13, slots=2)
    graph = family.inference_graph(config, shape)
    held = (*graph.with_role("cache"), *graph.with_role("state"))
    caches = {c.id: np.full(c.type.shape({}), np.nan) for c in held}
    assert caches
    start, found = 0, []
    for n in chunks:
        inputs = {
            "tokens": tokens_T[start : start + n],
            "positions": np.arange(start, start + n, dtype=np.int32),
            "slots": np.ones(n, np.int32),
            "wanted": np.arange(n, dtype=np.int32),
        }
        values = interpret(graph, {**parameters, **caches, **inputs})
        caches = {target: values[value] for value, target in graph.writes.items()}
        found.append(values[graph.outputs["logits"]])
        start += n
    return np.concatenate(found)


def test_lengths_beyond_the_context_are_refused() -> None:
    for family in FAMILIES.values():
        c = family.TINY
        with pytest.raises(UsageError, match="context"):
            family.training_graph(c, 1, c.context + 1)
        with pytest.raises(UsageError, match="context"):
            family.inference_graph(c, InferenceShape(context=c.context + 1, rows=1))


def test_an_inference_program_has_room_for_what_it_reads() -> None:
    for name, shape in {
        "context": {"context": 0, "rows": 1},
        "rows": {"context": 4, "rows": 9, "slots": 2},
        "slots": {"context": 4, "rows": 1, "slots": 0},
        "outs": {"context": 4, "rows": 2, "outs": 3},
    }.items():
        with pytest.raises(UsageError, match=f"{name}: expected"):
            InferenceShape(**shape)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("activation", "relu"), ("layers", 2.0), ("width", "48"), ("head_dim", 258), ("vocab", 0)],
)
def test_a_config_that_no_program_carries_out_is_refused(setting: str, value: object) -> None:
    for family in FAMILIES.values():
        with pytest.raises(UsageError, match=f"config {setting}: expected"):
            replace(family.TINY, **{setting: value})


@pytest.mark.parametrize(("family", "config"), EVERY_CONFIG)
def test_the_graphs_print_and_parse_back(family: Family[Any], config: Any) -> None:
    for graph in (
        family.training_graph(config, 2, 7),
        family.inference_graph(config, InferenceShape(context=20, rows=9)),
    ):
        assert parse_graph(print_graph(graph), OPS).nodes == graph.nodes


@pytest.mark.torch
@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_optimizer_steps_are_those_of_torch(family: Family[Any], kind: Any) -> None:
    from lockstep.oracle import OptimizerSettings, train

    config = family.TINY
    steps = [[drawn_batch(config, 2, 5, seed=10 * s + m) for m in range(2)] for s in range(3)]
    lrs, parameters = [1e-2, 2e-2, 5e-3], drawn_parameters(family, config)
    theirs = train(
        family,
        config,
        parameters,
        [[(b.tokens_BT, b.targets_BT) for b in step] for step in steps],
        lrs,
        optimizer=OptimizerSettings(name=kind, weight_decay=0.1, max_norm=1.5),
        precision="float64",
    )
    graph = training_graph(family, config, steps[0][0])
    decayed = [w.id for w in family.weights(config) if w.decay]
    graph = add_optimizer(graph, OptimizerSpec(kind=kind, weight_decay=0.1), decayed=decayed)
    state = {m.id: np.zeros(m.type.shape({})) for m in graph.with_role("moment")}
    state |= {id: array.astype(np.float64) for id, array in parameters.items()}
    for record, batches, lr in zip(theirs.steps, steps, lrs, strict=True):
        loss, norm = optimizer_step(graph, state, batches, lr, record.step)
        # From the second step on the parameters are no more the same than the last line asks.
        exact = EXACT if record.step == 1 else 1e-8
        assert loss == pytest.approx(record.loss, rel=exact)
        assert norm == pytest.approx(record.grad_norm, rel=exact)
        assert norm > 1.5  # so that clipping happens
    found = differences({p: state[p] for p in parameters}, theirs.parameters)
    # AdamW divides by a root of squares: where a gradient is nearly 0, its last digits count.
    assert max(found.values()) < 1e-8, found


def optimizer_step(
    graph: Graph, state: dict[str, Array], batches: list[Batch], lr: float, step: int
) -> tuple[float, float]:
    """One step on the reference of every op; changes `state`, returns mean loss and norm."""
    n_targets = sum(b.n_targets for b in batches)
    gradients = {g.id: np.zeros(g.type.shape({})) for g in graph.with_role("gradient")}
    loss = 0.0
    for i, batch in enumerate(batches):
        inputs = {**batch_inputs(batch, n_targets), "accumulate": np.array(i, np.int32)}
        sections = ("init", "forward", "backward")
        values = interpret(graph, {**state, **gradients, **inputs}, sections=sections)
        gradients = {f"{id}@grad": g for id, g in gradients_of(graph, values).items()}
        loss += float(values["loss.sum"])
    layout = flat_layout(graph.with_role("gradient"), {})
    flat_P = np.zeros(layout.n_bytes // 4)
    for id, gradient in gradients.items():
        first = layout.offsets[id] // 4
        flat_P[first : first + gradient.size] = gradient.reshape(-1)
    inputs = {
        "gradients": flat_P,
        "max_norm": np.array(1.5),
        "lr": np.array(lr),
        "step": np.array(step, np.int32),
    }
    values = interpret(graph, {**state, **gradients, **inputs}, sections=("update",))
    state.update({t: values[v] for v, t in graph.writes.items() if t in state})
    return loss / n_targets, float(values["clip"])
