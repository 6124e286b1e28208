"""Generated programs: equal to the referee, always the same bits, clean under sanitizers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from program_harness import bits_differ, random_inputs, referee_step, run_step

from lockstep.artifacts.graph_file import GraphFile
from lockstep.artifacts.record import Artifact
from lockstep.build import Built, OptimizerSpec, inference_program, link, lower, training_graph
from lockstep.codegen import graph_record
from lockstep.codegen.names import Names, identifier
from lockstep.engine.packed import place_arrays
from lockstep.errors import EnvironmentLacks
from lockstep.families import family_named
from lockstep.ir import Array, Graph, InferenceShape, f32, print_graph
from lockstep.native import Compiler, Program, find_compiler, sanitizer_environment
from lockstep.ops import OPS
from lockstep.ops.registry import FILES

BATCH, TOKENS = 2, 20


@cache
def tiny_graph(guards: bool = False) -> Graph:
    """The training graph of the family qwen3 at its TINY size."""
    family = family_named("qwen3")
    graph = family.training_graph(family.TINY, BATCH, TOKENS)
    decayed = [w.id for w in family.weights(family.TINY) if w.decay]
    return training_graph(graph, OptimizerSpec(weight_decay=0.1), decayed, guards=guards)


@cache
def tiny_inputs() -> dict[str, Array]:
    """Random weights and tokens for it."""
    inputs = random_inputs(tiny_graph(), vocab=family_named("qwen3").TINY.vocab)
    inputs["positions"] = np.tile(np.arange(TOKENS, dtype=np.int32), BATCH)
    return inputs


def without_optimisation() -> Compiler:
    """The machine's compiler, as `quick_builds` has it."""
    return replace(find_compiler(), extra=("-Og",))


@cache
def kept() -> Built:
    """The TINY program with no two values in the same place, and guards around all of them.

    It is not optimised, which changes no bit: `reused`, which is, is held against it.
    """
    return link(tiny_graph(guards=True), mode="keep", guards=True, compiler=without_optimisation())


@cache
def reused() -> Built:
    """The smallest TINY program."""
    return link(tiny_graph())


def own_text(source: str) -> str:
    """The C text without what is copied from ops/ and from the pool."""
    head, places = source.split("#include", 1)[0], "\n/* The arenas"
    return head + places + source.split(places, 1)[1]


def test_every_value_is_that_of_the_referee() -> None:
    built, inputs = kept(), tiny_inputs()
    run_step(built, inputs)
    truth = referee_step(built, inputs)
    compared = 0
    for node in built.graph.nodes:
        for value in node.outputs if node.section != "pack" else ():  # packed again by the update
            got, expected = built.program.view(value.id), truth[value.id]
            scale = np.abs(expected).max()
            assert np.isfinite(got).all(), value.id
            # Two layers of float32 at widths below 100; the laws of ops hold each kernel to less.
            assert np.abs(got - expected).max() <= 2e-5 * scale + 1e-12, value.id
            compared += got.size
    assert compared > 100_000


def test_no_buffer_of_a_training_step_is_overrun() -> None:
    built = kept()
    run_step(built, tiny_inputs(), threads=2)
    assert built.program.check_guards() == []
    assert len(built.program.manifest.guards) > len(built.graph.nodes)


def test_bits_do_not_depend_on_the_number_of_threads() -> None:
    expected = run_step(reused(), tiny_inputs())
    for threads in (1, 2, 3, 4, 7):
        assert bits_differ(expected, run_step(reused(), tiny_inputs(), threads=threads)) == []
    changed = {**tiny_inputs(), "lr": np.float32(2e-2)}
    assert bits_differ(expected, run_step(reused(), changed))


def test_bits_do_not_depend_on_the_memory_plan_nor_on_the_level() -> None:
    entries = ("init", "step")  # guards among the gradients shift the chunks of their norm
    kept_values, reused_values = (
        run_step(built, tiny_inputs(), threads=2, entries=entries) for built in (kept(), reused())
    )
    del kept_values["clip"]  # belongs to the update
    assert all(kept_values[f"{p.id}@grad"].any() for p in kept().graph.with_role("parameter"))
    assert bits_differ(kept_values, reused_values) == []


def test_one_node_alone_gives_what_the_whole_gave() -> None:
    built = kept()
    run_step(built, tiny_inputs(), entries=("init", "step"))
    for node in built.graph.nodes:
        if node.section == "update":
            continue  # it would step again
        before = [built.program.view(v.id).copy() for v in node.outputs]
        for value in node.outputs:
            built.program.view(value.id).reshape(-1).view(np.uint8)[...] = 0xFF
        built.program.run_node(node.id)
        for value, array in zip(node.outputs, before, strict=True):
            assert built.program.view(value.id).tobytes() == array.tobytes(), node.id


def test_two_builds_are_the_same_text_and_at_any_level_give_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = reused()
    monkeypatch.setenv("LOCKSTEP_HOME", str(tmp_path))
    again = link(tiny_graph(), compiler=without_optimisation())
    assert again.library.is_relative_to(tmp_path)
    assert not first.library.is_relative_to(tmp_path)
    assert again.emitted == first.emitted
    results = (run_step(built, tiny_inputs(), threads=2) for built in (first, again))
    assert bits_differ(*results) == []


def test_clang_in_the_ziglang_wheel_builds_it_and_gives_the_same_bits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if find_spec("ziglang") is None:
        pytest.skip("needs ziglang; `pip install ziglang`")
    zig = Compiler((sys.executable, "-m", "ziglang", "cc"), "the installed one")
    expected = run_step(reused(), tiny_inputs(), threads=2)
    # Without one zig builds for another libc; as other tests have none, it does so once for all.
    monkeypatch.setenv("PATH", "")
    built = link(tiny_graph(), compiler=zig)
    assert bits_differ(expected, run_step(built, tiny_inputs(), threads=2)) == []


def test_accumulation_adds_and_the_update_packs_again() -> None:
    built, inputs = reused(), tiny_inputs()
    program = built.program
    run_step(built, inputs)
    program.view("accumulate")[...] = 1
    once = program.view("embed.weight@grad").copy()
    moved = program.view("embed.weight").copy()
    assert (moved != inputs["embed.weight"]).any()
    np.testing.assert_array_equal(program.view("embed.weight@pack").max(), moved.max())
    program.call("step")
    twice = program.view("embed.weight@grad").copy()
    program.view("accumulate")[...] = 0
    program.call("step")
    alone = program.view("embed.weight@grad").copy()
    assert (alone != once).any()
    np.testing.assert_allclose(twice, once + alone, rtol=1e-5, atol=1e-6 * np.abs(alone).max())
    program.view("embed.weight")[...] = inputs["embed.weight"]
    program.call("forward")
    stale = program.view("loss.sum").copy()
    program.call("repack")
    program.call("forward")
    assert program.view("loss.sum") != stale


def test_program_survives_fork_and_more_threads_than_cores() -> None:
    built, inputs = reused(), tiny_inputs()
    expected = run_step(built, inputs, threads=8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: forks beside threads
        warnings.simplefilter("ignore", RuntimeWarning)  # JAX, where another test imported it
        child = os.fork()
    if child == 0:  # no assertion may leave a forked pytest
        same = not bits_differ(expected, run_step(built, inputs, threads=8))
        os._exit(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert bits_differ(expected, run_step(built, inputs, threads=8)) == []


def test_text_and_graph_of_the_tiny_model(golden: Callable[[str, str], None]) -> None:
    lowered, emitted = lower(tiny_graph())
    golden("qwen3_training.ir", print_graph(lowered))
    golden("qwen3_training.c", own_text(emitted.source))
    family = family_named("qwen3")
    graph = family.inference_graph(family.TINY, InferenceShape(context=32, rows=8))
    lowered, emitted = lower(graph)
    golden("qwen3_inference.ir", print_graph(lowered))
    golden("qwen3_inference.c", own_text(emitted.source))


def test_lines_point_at_nodes_and_kernels() -> None:
    built = kept()
    lines = built.emitted.source.splitlines()
    for node in built.program.manifest.nodes:
        assert identifier(node.id) in lines[node.line - 1]
        assert lines[node.line - 2].startswith(f"/* {node.id}")
        assert f" {node.kernel}(" in lines[node.kernel_line - 1]
        file, line = node.kernel_source.split(":")
        source = OPS[node.op].source
        assert f"ops/{FILES[source]}" == file
        assert source.splitlines()[int(line) - 1] == lines[node.kernel_line - 1]
        assert built.emitted.node_lines[node.id] == node.line
        assert built.emitted.kernel_lines[node.id] == node.kernel_line


def test_fault_in_the_text_reaches_its_node_and_what_follows() -> None:
    def plant(source: str) -> str:
        at = "k_silu_mul_1(v_layers_1_ffn_act, "
        gate, up = "v_layers_1_ffn_gate", "v_layers_1_ffn_up"
        assert source.count(f"{at}{gate}, {up}") == 1
        return source.replace(f"{at}{gate}, {up}", f"{at}{up}, {gate}")

    graph, quick = tiny_graph(guards=True), without_optimisation()
    right = kept()
    wrong = link(graph, mode="keep", guards=True, source_patch=plant, compiler=quick)
    run_step(right, tiny_inputs())
    run_step(wrong, tiny_inputs())
    ids = [n.id for n in right.graph.nodes if n.section == "forward"]
    views = [(right.program.view(id), wrong.program.view(id)) for id in ids]
    differing = [id for id, (a, b) in zip(ids, views, strict=True) if a.tobytes() != b.tobytes()]
    assert differing[0] == "layers.1.ffn.act"
    assert "norm" in differing
    assert wrong.program.manifest.source_sha256 != right.program.manifest.source_sha256


def overrunning(source: str) -> str:
    """The text of `sum_graph` with a write just behind its sum."""
    assert "  k_add_1(v_sum" in source
    return source.replace("  k_add_1(v_sum", "  v_sum[3 * 4] = 1;\n  k_add_1(v_sum")


def sum_graph() -> Graph:
    """One addition."""
    graph = Graph("sum")
    a_MD = graph.input("a", f32(3, 4), "input")
    graph.outputs = {"sum": graph.add(OPS["add"], "sum", a_MD, a_MD).id}
    return graph


def test_overrun_of_one_element_touches_a_guard() -> None:
    for patch, touched in ((None, []), (overrunning, ["sum"])):
        program = link(sum_graph(), mode="keep", guards=True, source_patch=patch).program
        program.call("forward")
        assert program.check_guards() == touched


def test_inference_takes_any_count_of_rows_and_gives_the_same_bits_at_any_level() -> None:
    family = family_named("llama")
    shape, rng = InferenceShape(context=24, rows=8, outs=8), np.random.default_rng(0)
    weights = {w.id: 0.3 * rng.standard_normal(w.shape) for w in family.weights(family.TINY)}
    tokens = rng.integers(0, family.TINY.vocab, 20)

    def program_by(compiler: Compiler) -> Program:
        program = inference_program(family, family.TINY, shape, compiler=compiler).program
        place_arrays(program, weights)
        program.call("init")
        return program

    def logits(program: Program, chunks: list[int]) -> bytes:
        start, rows = 0, []
        for n in chunks:
            program.view("tokens")[:n] = tokens[start : start + n]
            program.view("positions")[:n] = np.arange(start, start + n)
            program.view("wanted")[:n] = np.arange(n)
            program.call("forward", rows=n, outs=n)
            rows.append(program.view("head")[:n].copy())
            start += n
        return np.concatenate(rows).tobytes()

    program = program_by(find_compiler())
    expected = logits(program, [1] * 20)
    for chunks in ([8, 8, 4], [7, 1, 5, 7], [3] * 6 + [2]):
        assert logits(program, chunks) == expected
    assert logits(program_by(without_optimisation()), [5] * 4) == expected


def test_graph_record_fits_the_artifact(tmp_path: Path) -> None:
    record = json.loads(json.dumps(graph_record(kept().graph)))
    assert {"name", "inputs", "nodes"} == set(record)
    assert issubclass(GraphFile, Artifact)
    (tmp_path / "graph.json").write_text(json.dumps({"schema": "lockstep.graph/1", **record}))
    loaded = GraphFile.load(tmp_path)
    assert [n.id for n in loaded.nodes] == [n.id for n in kept().graph.nodes]


def test_names_are_c_and_stay_apart() -> None:
    names = Names("v_")
    assert names["layers.3.attn.q@dx"] == "v_layers_3_attn_q_at_dx"
    assert names["layers_3.attn.q@dx"] == "v_layers_3_attn_q_at_dx_2"
    assert names["clip:coef"] == "v_clip_out_coef"
    assert names["layers.3.attn.q@dx"] == "v_layers_3_attn_q_at_dx"


SANITIZED = """
import sys
sys.path.insert(0, {tests!r})
from test_codegen import {names}
built = link({graph}, mode="keep", guards=True, sanitize=("address", "undefined"),
             source_patch={patch})
{run}
print("clean")
"""


def sanitized(graph: str, patch: str, run: str) -> subprocess.CompletedProcess[str]:
    """Runs a program under both sanitizers, in a process that loads their runtime first."""
    names = "link, overrunning, run_step, sum_graph, tiny_graph, tiny_inputs"
    tests = str(Path(__file__).parent)
    script = SANITIZED.format(tests=tests, names=names, graph=graph, patch=patch, run=run)
    try:
        environment = {**os.environ, **sanitizer_environment(find_compiler())}
    except EnvironmentLacks as error:
        pytest.skip(error.message)
    command = [sys.executable, "-c", script]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def test_training_step_is_clean_under_sanitizers() -> None:
    done = sanitized("tiny_graph(guards=True)", "None", "run_step(built, tiny_inputs(), threads=3)")
    assert done.stdout == "clean\n", done.stderr[-3000:]


def test_sanitizer_names_the_line_of_an_overrun() -> None:
    done = sanitized("sum_graph()", "overrunning", 'built.program.call("forward")')
    assert done.returncode != 0
    assert "AddressSanitizer: use-after-poison" in done.stderr
    assert " in n_sum" in done.stderr
