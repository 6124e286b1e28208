"""Diagnoses in a run: what they read, how long they take, and what the report says of them all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diagnosed import Memory, weights
from numpy.typing import NDArray
from verify_stores import ZlibChunks, store_of

from lockstep.artifacts.printable import names
from lockstep.artifacts.verification import Verification
from lockstep.cli.verify_text import verification_text
from lockstep.report.verification import render
from lockstep.verify.api import exit_code
from lockstep.verify.claim import Claim, Plan, Tie
from lockstep.verify.diagnosis.grade import grades
from lockstep.verify.engine import rows
from lockstep.verify.engine.budget import MIB, divide
from lockstep.verify.engine.examine import Options, examine
from lockstep.verify.engine.probe import ReadingProbe
from lockstep.verify.layouts.layout import Layout, cut, permute, whole

Arrays = dict[str, NDArray[Any]]
BUDGET = 4 << 30  # whatever other tests left in this process


def plan_of(folder: Path, source: Arrays, target: Arrays, kind: str = "plain") -> Plan:
    """Every leaf is claimed to be itself."""
    kinds = dict.fromkeys(source, kind)
    claims = tuple(
        Claim(name, "r", "params", name, (name,), whole(name, array.shape))
        for name, array in source.items()
    )
    return Plan(
        store_of(folder / "a", source, kinds), store_of(folder / "b", target, kinds), claims
    )


def check(plan: Plan, **more: Any) -> Verification:
    return examine(plan, Options(max_memory_bytes=BUDGET, jobs=1, **more))


# --- what is read


@pytest.mark.parametrize("kind", ["chunks", "flat", "stream"])
def test_small_leaves_in_chunks_are_decoded_once_for_all_hypotheses(
    tmp_path: Path, kind: str
) -> None:
    source = {f"w{i}": weights(40, 40, seed=i) for i in range(4)}
    target = {**source, "w2": np.ascontiguousarray(source["w2"][::-1])}
    plan = plan_of(tmp_path, source, target, kind)
    report = check(plan, digest="none")
    (diagnosis,) = (row.diagnosis for row in report.claims if row.diagnosis)
    assert diagnosis.hypothesis == "flipped"
    for side in (plan.source, plan.target):
        for leaf in side.leaves.values():
            assert isinstance(leaf.storage, ZlibChunks)
            most = max(leaf.storage.decoded.count(each) for each in leaf.storage.decoded)
            assert most <= 3  # for the comparison, for grades, for all of the hypotheses


def test_what_is_held_stays_within_its_share(tmp_path: Path) -> None:
    source = {f"w{i}": weights(512, 256, seed=i) for i in range(12)}
    plan = plan_of(tmp_path, source, source, "chunks")
    budget = divide(BUDGET, 1, 24)
    small = replace(budget, total=budget.base + 16 * MIB, arena=10 * MIB, n_workers=1)
    probe = ReadingProbe(plan, small, {"source": {}, "target": {}})
    for claim in plan.claims:
        assert probe.agrees(claim)
        held = sum(leaf.n_bytes for leaf in probe._held.values())
        assert held == probe._n_held <= small.alone // 4
    assert probe._n_held
    for claim, array in zip(plan.claims, source.values(), strict=True):
        found = probe.elements("source", claim.target, 1000, 1020)
        assert found.tolist() == array.reshape(-1)[1000:1020].tolist()
    probe.close()


def test_a_stretch_of_an_identity_is_compared_and_not_all_of_it(tmp_path: Path) -> None:
    """As a layout of some pieces it is no identity, or the whole leaf would be compared."""
    source = {"w": weights(20, 10)}
    target = {"w": source["w"].copy()}
    target["w"][15, 3] ^= np.uint32(1)
    plan = plan_of(tmp_path, source, target)
    probe = ReadingProbe(plan, divide(BUDGET, 1, 2), {"source": {}, "target": {}})
    first = Layout((20, 10), cut(whole("w", (20, 10)), 0, 0, 15).pieces)
    assert not first.is_identity
    assert probe.agrees(replace(plan.claims[0], layout=first))
    more = Layout((20, 10), cut(whole("w", (20, 10)), 0, 0, 16).pieces)
    assert not probe.agrees(replace(plan.claims[0], layout=more))
    probe.close()


# --- how long, and how many


def faulty(folder: Path, n: int) -> Plan:
    source = {f"w{i}": weights(6, 5, seed=i) for i in range(n)}
    target = {name: array ^ np.uint32(1 << 31) for name, array in source.items()}
    return plan_of(folder, source, target)


def test_the_leaves_beyond_the_bound_are_said_to_be_undiagnosed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "MOST_DIAGNOSES", 3)
    report = check(faulty(tmp_path, 5))
    assert sum(row.diagnosis is not None for row in report.claims) == 3
    assert report.summary[0] == "3 of 5 leaves of params: with the sign turned"
    assert report.summary[1].startswith("2 more leaves differ and were not diagnosed: 3 leaves")
    assert report.not_measured["claims.diagnosis"] == report.summary[1]


def test_diagnoses_end_when_their_time_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "SECONDS_EACH", -1.0)
    report = check(faulty(tmp_path, 2))
    assert [row.diagnosis for row in report.claims] == [None, None]
    assert "2 leaves were not diagnosed for time" in report.not_measured["claims.diagnosis"]
    monkeypatch.setattr(rows, "SECONDS_ALL", 0.0)
    (tmp_path / "again").mkdir()
    report = check(faulty(tmp_path / "again", 2))
    assert "2 more leaves differ" in report.not_measured["claims.diagnosis"]
    monkeypatch.undo()
    (tmp_path / "more").mkdir()
    assert "claims.diagnosis" not in check(faulty(tmp_path / "more", 2)).not_measured


def test_a_probe_that_is_late_agrees_to_nothing(tmp_path: Path) -> None:
    source = {"w": weights(20, 10)}
    plan = plan_of(tmp_path, source, source)
    probe = ReadingProbe(plan, divide(BUDGET, 1, 2), {"source": {}, "target": {}})
    assert probe.agrees(plan.claims[0])
    probe.limit(-1.0)
    assert probe.is_late()
    assert not probe.agrees(plan.claims[0])
    probe.limit(60.0)
    assert probe.agrees(plan.claims[0])
    probe.close()


def test_places_of_a_sample_are_not_taken_for_all_that_differ(tmp_path: Path) -> None:
    """The first element differs, and thousands that the sample of a small leaf does not see."""
    source = {"big": weights(300, 300), "w": weights(300, 200)}
    target = {**source, "w": source["w"].copy()}
    target["w"].reshape(-1)[0] ^= np.uint32(1)
    target["w"].reshape(-1)[10_000:12_000] ^= np.random.default_rng(1).integers(
        1, 1 << 30, 2000, np.uint32
    )
    report = check(plan_of(tmp_path, source, target), sample=True)
    row = report.claims[1]
    assert row.verdict == "FAIL"
    assert row.n_compared < row.n_elements
    assert row.diagnosis is None


# --- what the report says


def test_what_many_diagnoses_come_down_to_is_in_the_text_and_on_the_page(tmp_path: Path) -> None:
    source = {f"l.{i}.{k}": weights(6, 5, seed=2 * i + j) for i in range(3)
              for j, k in enumerate(("gate", "up"))}  # fmt: skip
    other = {"gate": "up", "up": "gate"}
    target = {name: source[name[:4] + other[name[4:]]] for name in source}
    report = check(plan_of(tmp_path, source, target))
    said = "l.{}.gate and l.{}.up are exchanged for 0 to 2 (6 leaves)"
    assert report.summary == (said,)
    lines = verification_text(report).splitlines()
    assert lines.index("in short:") < lines.index(f"  {said}") < lines.index("what differs:")
    assert said in render(report)
    assert report.document()["summary"] == [said]


def test_a_broken_tie_is_a_difference_that_names_both_leaves_and_the_place(tmp_path: Path) -> None:
    source = {"x": weights(20, 10)}
    target = {"x": source["x"], "y": source["x"].copy()}
    target["y"][7, 3] = np.float32(1.5).view(np.uint32)
    target["y"][9, 1] ^= np.uint32(1)
    plan = plan_of(tmp_path, source, source)
    plan = replace(plan, target=store_of(tmp_path / "c", target),
                   ties=(Tie("target", ("x", "y"), "tie 1"),))  # fmt: skip
    report = check(plan)
    (problem,) = report.problems
    assert problem.kind == "tie"
    assert "x and y" in problem.message
    assert "2 of 200 elements that differ, the first at [7, 3]" in problem.message
    assert "1.5" in problem.message
    assert exit_code(report) == 1
    assert "leaves that are tied differ" in verification_text(report).splitlines()[-1]
    whole_again = replace(
        plan, target=store_of(tmp_path / "d", {"x": source["x"], "y": source["x"]})
    )
    assert exit_code(check(whole_again)) == 0


# --- grades that need a look


@pytest.mark.parametrize("kind", ["plain", "chunks"])
def test_constants_and_own_transposes_show_nothing_of_their_order(
    tmp_path: Path, kind: str
) -> None:
    square = weights(12, 12)
    both = square.view(np.float32) + square.view(np.float32).T
    source = {
        "filled": np.full((9, 4), 0x3DCCCCCD, np.uint32),
        "symmetric": both.view(np.uint32),
        "square": square,
        "almost": both.view(np.uint32).copy(),
        "norm": np.full(9, 0x3F800000, np.uint32),
    }
    source["almost"][11, 0] ^= np.uint32(1)
    report = check(plan_of(tmp_path, source, source, kind))
    found = {row.id: (row.grade, row.grade_why) for row in report.claims}
    assert found["filled"][0] == "indistinguishable"
    assert "0.1" in found["filled"][1]
    assert found["norm"] == ("indistinguishable", "norm is one throughout, in any order")
    assert found["symmetric"][0] == "indistinguishable"
    assert "its own transpose, bit for bit" in found["symmetric"][1]
    for name in ("square", "almost"):
        assert found[name][0] == "unique by content"
        assert "and it is not its own transpose" in found[name][1]


def test_a_constant_of_many_blocks_is_seen_without_holding_them(tmp_path: Path) -> None:
    source = {"ones": np.full(3 << 20, 0x3F800000, np.uint32),
              "other": np.full(3 << 20, 0x3F800001, np.uint32)}  # fmt: skip
    source["other"][-1] = 0x3F800000
    report = check(plan_of(tmp_path, source, source))
    assert [row.grade for row in report.claims] == ["indistinguishable", "unique by content"]
    plan = plan_of(tmp_path, source, source)
    digests = {row.name: row.digest or "" for row in report.source.leaves}
    assert grades(plan, {"source": digests, "target": {}})["ones"][0] == "indistinguishable"


def test_a_square_that_is_turned_by_the_claim_is_looked_at_too(tmp_path: Path) -> None:
    w = weights(12, 12)
    plan = plan_of(tmp_path, {"w": w}, {"w": np.ascontiguousarray(w.T)})
    turned = replace(plan.claims[0], layout=permute(whole("w", (12, 12)), (1, 0)), text="transpose")
    found = grades(
        replace(plan, claims=(turned,)),
        {"source": {"w": ""}, "target": {}},
        Memory({"w": w}, {"w": np.ascontiguousarray(w.T)}),
    )
    assert found["w"] == (
        "unique by shape", "no other leaf is like w, and it is not its own transpose",
    )  # fmt: skip


def test_long_lists_of_sources_are_written_short() -> None:
    """Names that count up by one number as a stretch, others by the first three."""
    layers = [f"model.layers.{i}.mlp.up_proj.weight" for i in range(12)]
    assert names(layers) == "model.layers.{0..11}.mlp.up_proj.weight"
    assert names([f"e{i}.w{i}" for i in range(12)]) == "e0.w0, e1.w1, e2.w2 and 9 more"
    mixed = names([layers[i] for i in (0, 2, 1, 3, 4)])
    assert mixed.endswith("layers.1.mlp.up_proj.weight and 2 more")
    assert names(["w.7", "w.8"]) == "w.7, w.8"
    assert names([]) == ""
