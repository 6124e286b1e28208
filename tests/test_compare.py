"""Compare: a sound program passes, a planted fault is named, and a record cannot lie about it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import ANY

import numpy as np
import pytest

from lockstep.artifacts.compare import Compare
from lockstep.artifacts.faults import Faults
from lockstep.build import Built, Model
from lockstep.cli.main import main
from lockstep.errors import EnvironmentLacks, InputError
from lockstep.ir import SECTIONS
from lockstep.native import Program, compile_library
from lockstep.native.manifest import NodeRecord
from lockstep.proof.c_text import Piece
from lockstep.proof.compare import Findings, compare, first_guilty
from lockstep.proof.fault_worker import Healthy, healthy, quick_compiler, subjects
from lockstep.proof.faults import Answer, Job, Worker, draw_jobs, places_of_all, row_of, run_faults
from lockstep.proof.misorder import KINDS, misorder
from lockstep.proof.mutate import Edit, Target
from lockstep.proof.nearness import nearness
from lockstep.proof.referee import referee
from lockstep.proof.subject import Subject
from lockstep.proof.verdict import record_of
from lockstep.proof.walk import relative_error

pytestmark = pytest.mark.usefixtures("fault_builds")

NAME = "qwen3, untied, biased, sgd"


@pytest.fixture(scope="module")
def base() -> Healthy:
    """A small program without fault."""
    return healthy(NAME)


@pytest.fixture(scope="module")
def findings(base: Healthy) -> Findings:
    """What a comparison finds in it."""
    return compare(base.built, base.subject, base.refereed)


def test_a_sound_program_has_no_guilty_node(base: Healthy, findings: Findings) -> None:
    nodes = base.built.program.manifest.nodes
    assert findings.first_guilty is None
    assert set(findings.worst()) == {node.id for node in nodes} == set(findings.cumulative)
    assert {node.section for node in nodes} == set(SECTIONS)
    assert 0 < max(findings.cumulative.values()) < 1e-4
    assert findings.n_entry_nodes > 5 * len(nodes)
    record = record_of(base.built, base.subject, findings, (), run_dir="", lacks="not asked")
    assert record.passed
    assert Compare.from_document(json.loads(json.dumps(record.document())), "text") == record


def test_a_node_that_nobody_checked_is_no_pass(base: Healthy, findings: Findings) -> None:
    missing = replace(findings, checks=findings.checks[1:2])
    record = record_of(base.built, base.subject, missing, (), run_dir="", lacks="not asked")
    assert not record.passed
    nobody = replace(findings, n_entry_nodes=0)
    assert not record_of(base.built, base.subject, nobody, (), run_dir="", lacks="-").passed


def test_a_guard_that_only_the_whole_program_breaks_has_a_culprit(
    base: Healthy, findings: Findings
) -> None:
    broken = replace(findings, guards=("layers.0.ffn.up",))
    record = record_of(base.built, base.subject, broken, (), run_dir="", lacks="not asked")
    assert not record.passed
    pair = record.comparisons[0]
    assert pair.first_guilty is not None
    assert pair.first_guilty.id == "layers.0.ffn.up"
    culprits = [(row.id, row.reason) for row in pair.nodes if row.verdict == "culprit"]
    assert culprits == [("layers.0.ffn.up", "wrote beyond layers.0.ffn.up")]


def with_source(base: Healthy, source: str) -> Built:
    """The program of another C text."""
    library = compile_library(source, compiler=quick_compiler())
    program = Program(library, base.built.program.manifest, threads=1)
    return replace(base.built, program=program, library=library)


def node_of(base: Healthy, op: str) -> NodeRecord:
    """A node of an op."""
    return next(node for node in base.built.program.manifest.nodes if node.op == op)


# Each op with a fault that no rewriting of its kernel makes impossible, and none that never ends.
FAULTS: list[tuple[str, str, Callable[[Edit], bool]]] = [
    ("linear_packed", "kernel", lambda e: "fnma" in e.new),
    ("rmsnorm_dgain", "kernel", lambda e: e.kind == "branch"),
    ("rope", "call", lambda e: e.kind == "wrong row"),
    ("pack_linear_dx", "call", lambda e: e.kind == "stale buffer"),
    ("sgd", "instance", lambda e: e.kind == "constant"),
]


@pytest.mark.parametrize(("op", "place", "wanted"), FAULTS, ids=[op for op, _, _ in FAULTS])
def test_the_node_with_the_fault_is_named(
    base: Healthy, op: str, place: str, wanted: Callable[[Edit], bool]
) -> None:
    nodes = [node for node in base.built.program.manifest.nodes if node.op == op]
    node = Random(op).choice(nodes)
    target = Target(base.built.emitted.source, node)
    edit = next(e for where, edits in target.edits() for e in edits if where == place and wanted(e))
    source = target.planted(place, edit)
    before, after = base.built.emitted.source.splitlines(), source.splitlines()
    assert [i for i, a in enumerate(before) if a != after[i]], "the fault changes a line"
    assert " n_" in after[node.line - 1], "lines stay where the manifest says"
    built = with_source(base, source)
    assert first_guilty(built, base.subject, base.refereed)[0] == node.id


def test_large_scores_are_no_fault_of_attention(base: Healthy) -> None:
    large = {
        id: array * 40 if id.endswith(("attn.q_norm.weight", "attn.k_norm.weight")) else array
        for id, array in base.subject.parameters.items()
    }
    subject = replace(base.subject, parameters=large)
    found = compare(base.built, subject, referee(base.built, subject))
    assert found.first_guilty is None
    widened = {check.op for check in found.checks if "spread" in check.why}
    assert "attention_grad" in widened
    target = Target(base.built.emitted.source, node_of(base, "attention_grad"))
    edit = next(e for _, edits in target.edits() for e in edits if e.kind == "wrong row")
    built = with_source(base, target.planted("call", edit))
    assert first_guilty(built, subject, referee(built, subject))[0] == target.node.id


def test_what_is_too_large_for_float32_is_laid_to_the_node_that_makes_it(base: Healthy) -> None:
    huge = {**base.subject.parameters, "layers.0.ffn.up.weight": np.full((56, 40), 3e38, "f4")}
    subject = replace(base.subject, parameters=huge)
    guilty, _ = first_guilty(base.built, subject, referee(base.built, subject))
    assert guilty == "layers.0.ffn.up"


def test_nan_on_both_sides_is_no_pass() -> None:
    adamw = healthy("qwen3, tied")
    below_zero = {id: -np.abs(array) for id, array in adamw.refereed.moments.items()}
    refereed = replace(adamw.refereed, moments=below_zero)  # whose root is NaN, here and there
    found = compare(adamw.built, adamw.subject, refereed)
    assert found.first_guilty == "embed.weight@adamw"
    assert found.worst()["embed.weight@adamw"].local_error < 5e-7, "they agree"
    record = record_of(adamw.built, adamw.subject, found, (), run_dir="", lacks="not asked")
    assert not record.passed
    first = record.comparisons[0].first_guilty
    assert first is not None
    assert "NaN" in first.why


@pytest.mark.parametrize("kind", KINDS)
def test_what_only_the_whole_program_shows_is_named(base: Healthy, kind: str) -> None:
    fault = misorder(base.built, kind, Random(3))
    built = with_source(base, fault.source)
    for _ in range(5):  # threads of a busy machine may keep the order by chance
        found = compare(built, base.subject, base.refereed)
        assert all(check.ok for check in found.checks), "each node is right by itself"
        if found.first_guilty is not None:
            break
    assert found.first_guilty in fault.nodes
    record = record_of(built, base.subject, found, (), run_dir="", lacks="not asked")
    assert [pair.passed for pair in record.comparisons] == [True, False]
    first = record.comparisons[1].first_guilty
    assert first is not None
    assert "on" in first.why
    assert first.c_line is not None
    assert first.kernel_source.startswith("ops/")


@pytest.mark.torch
def test_what_our_references_have_wrong_is_seen_beside_transformers(
    base: Healthy, findings: Findings
) -> None:
    near = nearness(base.built, base.subject, base.refereed, findings)
    assert len(near) == 2 + 2 * len(base.subject.parameters)
    assert all(tensor.ok for tensor in near), near
    model = base.subject.model
    other = replace(model.config, eps=3e-5)  # as if our norm and its reference had another eps
    wrong = replace(base.subject, model=Model(model.family, other))
    assert not all(n.ok for n in nearness(base.built, wrong, base.refereed, findings))
    record = record_of(base.built, base.subject, findings, near, run_dir="", lacks="")
    assert record.passed
    assert record.comparisons[2].nodes_compared == len(near)


INIT = (
    "--layers=1", "--embed-dim=16", "--hidden-dim=24", "--num-heads=2", "--num-kv-heads=1",
    "--vocab-size=64", "--context-len=16", "--seed=7",
)  # fmt: skip


@pytest.mark.torch
def test_the_verb_names_a_fault_and_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lockstep.native.library.find_compiler", quick_compiler)
    run = tmp_path / "run"
    assert main(["init", str(run), *INIT]) == 0
    assert main(["compare", str(run), "--tokens=9"]) == 0
    assert "no guilty node" in capsys.readouterr().out
    assert len(Compare.load(run).comparisons) == 3
    assert main(["compare", str(run), "--tokens=17"]) == 2
    assert main(["compare", str(run), "--seed=-1"]) == 2
    build = Subject.build

    def other_eps(source: str) -> str:
        assert "1e-06" in source
        return source.replace("1e-06", "1e-03")

    monkeypatch.setattr(Subject, "build", lambda self: build(self, source_patch=other_eps))
    capsys.readouterr()
    assert main(["compare", str(run), "--tokens=9", "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert not document["passed"]
    first = document["comparisons"][0]["first_guilty"]
    assert first["id"] == "layers.0.norm1"
    assert first["kernel_source"].startswith("ops/rmsnorm.c:")
    verdicts = {row["id"]: row["verdict"] for row in document["comparisons"][0]["nodes"]}
    assert verdicts["layers.0.norm1"] == verdicts["norm"] == "culprit"
    assert verdicts["layers.0.attn.q"] == verdicts["head"] == "victim"
    assert verdicts["embed"] == "ok"


def test_errors_that_are_no_numbers_are_infinite() -> None:
    one = np.ones(3)
    assert relative_error(one, one) == 0.0
    assert relative_error(one, np.ones(4)) == np.inf
    assert relative_error(np.array([1, np.nan, 1]), one) == np.inf
    assert relative_error(one, np.array([1, np.inf, 1])) == np.inf
    assert relative_error(np.array([np.nan, 2.0]), np.array([np.nan, 1.0])) == 1.0
    assert relative_error(np.empty(0), np.empty(0)) == np.inf


def test_a_campaign_goes_round_all_ops_and_phases() -> None:
    places = places_of_all()
    everywhere = set().union(*places.values())
    assert {section for _, section in everywhere} == set(SECTIONS)
    jobs = draw_jobs(places, 60, seed=0)
    assert len(jobs) == 60
    assert everywhere <= {(job.op, job.phase) for job in jobs}
    assert {job.op for job in jobs} >= set(KINDS)
    assert jobs == draw_jobs(places, 60, seed=0) != draw_jobs(places, 60, seed=1)
    assert all((job.op, job.phase) in places[job.program] for job in jobs if job.phase)
    assert set(places) == set(subjects())


def test_a_miss_is_a_miss_and_a_record_of_faults_cannot_lie() -> None:
    fault = {"nodes": ["norm"], "op": "rmsnorm", "phase": "forward", "kind": "sign", "what": "-"}
    job = Job(NAME, "rmsnorm", "forward", "0")
    right = row_of(job, Answer(fault=fault, named="norm", why="alone"))
    assert right.right
    wrong = row_of(job, Answer(fault=fault, named="head", why="alone"))
    nobody = row_of(job, Answer(fault=fault, why="changed within tolerance"))
    assert not wrong.right
    assert not nobody.right
    assert wrong.reason
    assert nobody.reason
    fields: dict[str, Any] = {
        "generated_at": "", "seed": 0, "bound": 0.95, "redrawn_inert": 0, "wall_s": 1.0,
        "redrawn_uncompilable": 0, "programs": (), "ops": (),
    }  # fmt: skip
    rows = (right, wrong)
    Faults(rows=rows, planted=2, named=1, share=0.5, passed=False, **fields)
    with pytest.raises(InputError, match="follow from the rows"):
        Faults(rows=rows, planted=2, named=2, share=1.0, passed=True, **fields)
    with pytest.raises(InputError, match="follow from the rows"):
        Faults(rows=(), planted=0, named=0, share=0.0, passed=True, **fields)


def test_a_worker_that_is_gone_is_replaced_and_one_without_a_compiler_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = Job(NAME, "rmsnorm", "forward", "0")
    with Worker() as worker:
        worker._start()
        assert worker._process is not None
        worker._process.kill()
        worker._process.wait()
        assert worker._ask(job) == Answer(named="", why="the process ended", seconds=ANY)
        assert worker._process is None
        monkeypatch.setenv("CC", "no-such-compiler")
        with pytest.raises(EnvironmentLacks, match=r"\$CC.*'no-such-compiler'") as caught:
            worker.answer(job)
    assert caught.value.hint.startswith("unset CC")


def test_a_piece_of_c_is_copied_under_other_names() -> None:
    text = (
        '#line 1 "ops/x.c"\n'
        "#define TILE 4 /* not { a brace */\nenum { ROWS = 2, COLS };\n"
        "typedef struct {\n  int a;\n} pair;\n"
        "static const float table[2] = {1, 2};\n"
        "static __attribute__((noinline)) int inner(pair *p) { return p->a + TILE; }\n"
        "static int unused(void) { return COLS; }\n"
        "static int outer(pair *p) { return inner(p) * ROWS; }\n"
        '#line 9 "model.c"\n'
    )
    header = '#line 1 "ops/y.h"\n#define ONE 1\nstatic int one(void) { return ONE; }\n#line 9 "m"\n'
    assert Piece.holding(header + text, "ops/x.c") == Piece.holding(text, "ops/x.c")
    both = Piece.holding(header + text.replace("* ROWS", "* one()"), "ops/x.c")
    assert [file for file, _ in both.parts] == ["ops/y.h", "ops/x.c"]
    assert both.place(both.text.index("return ONE")) == "ops/y.h:2"
    assert both.place(both.text.index("return COLS")) == "ops/x.c:8"
    piece = Piece.holding(text, "ops/x.c")
    names = [d.name for d in piece.definitions]
    assert sorted(names) == [
        "COLS", "ROWS", "TILE", "inner", "outer", "pair", "table", "unused",
    ]  # fmt: skip
    bodies = [piece.text[begin:end] for begin, end in piece.reachable("outer")]
    assert sorted(bodies) == ["{ return inner(p) * ROWS; }", "{ return p->a + TILE; }"]
    assert "inner_2(pair_2 *p) { return p->a + TILE_2; }" in piece.renamed(piece.text, "_2")


@pytest.mark.slow
def test_nineteen_of_twenty_planted_faults_are_named() -> None:
    record = run_faults(60, seed=20)
    assert record.passed, [row for row in record.rows if not row.right]
    assert {row.phase for row in record.rows} == set(SECTIONS)
    assert {row.op for row in record.rows} == set(record.ops)
