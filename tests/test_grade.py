"""Grades, health and the sentences over a whole report."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lockstep.artifacts.verification import Diagnosis
from lockstep.formats.leaf import ELEMENT_TYPES, ElementType, Held, Leaf, Name, Store
from lockstep.verify.claim import Claim, Plan
from lockstep.verify.diagnosis.grade import grades
from lockstep.verify.diagnosis.summarise import summarise
from lockstep.verify.digest import leaf_digest
from lockstep.verify.layouts.layout import Layout, cut, whole
from lockstep.verify.numbers.health import BLOCK, Health

F32 = ELEMENT_TYPES["F32"]
Arrays = dict[str, NDArray[Any]]


def plan_of(arrays: Arrays) -> tuple[Plan, dict[str, dict[str, str]]]:
    """The identity claim of each array, and the digests of both sides."""
    leaves = {
        name: Leaf((Name(name),), words.shape, F32, Held(words.tobytes()))
        for name, words in arrays.items()
    }
    digests = {n: leaf_digest(x, sha256(arrays[n].tobytes()).digest()) for n, x in leaves.items()}
    claims = tuple(
        Claim(f"id {n}", "rule", "params", n, (n,), whole(n, x.shape)) for n, x in leaves.items()
    )
    sides = [Store(side, "npz", leaves, ()) for side in ("source", "target")]
    return Plan(sides[0], sides[1], claims), {"source": digests, "target": digests}


def weights(*shape: int, seed: int = 0) -> NDArray[Any]:
    values = np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)
    return values.view(np.uint32)


ARRAYS = {
    "embed": weights(20, 4),
    "gate": weights(6, 4),
    "up": weights(6, 4, seed=1),
    "q": weights(5, 5),
    "twin.a": weights(7),
    "twin.b": weights(7),
    "norm": np.full(9, 1.0, np.float32).view(np.uint32),
    "bias": np.zeros(11, np.uint32),
}


def test_each_leaf_has_the_grade_that_its_likes_allow() -> None:
    plan, digests = plan_of(ARRAYS)
    found = grades(plan, digests)
    assert {name: found[f"id {name}"][0] for name in ARRAYS} == {
        "embed": "unique by shape",
        "gate": "unique by content",
        "up": "unique by content",
        "q": "unique by shape",
        "twin.a": "indistinguishable",
        "twin.b": "indistinguishable",
        "norm": "indistinguishable",
        "bias": "indistinguishable",
    }
    assert "twin.b" in found["id twin.a"][1]
    assert "one throughout" in found["id norm"][1]
    assert "transpose was not looked at" in found["id q"][1]
    assert "transpose" not in found["id gate"][1]


def test_without_digests_likes_are_not_graded() -> None:
    plan, _ = plan_of(ARRAYS)
    found = grades(plan, {"source": {}, "target": {}})
    assert found["id embed"][0] == "unique by shape"
    assert found["id gate"][0] == "not graded"


def test_a_mapping_of_the_converter_lowers_grades() -> None:
    plan, digests = plan_of(ARRAYS)
    found = grades(replace(plan, mapping="shared with the converter"), digests)
    assert found["id gate"][0] == found["id embed"][0] == "not graded"
    assert "common-mode risk" in found["id gate"][1]
    assert found["id bias"][0] == "indistinguishable"


def test_several_sources_have_the_weakest_grade() -> None:
    plan, digests = plan_of(ARRAYS)
    claim = replace(plan.claims[0], sources=("gate", "twin.a", "embed"))
    value = replace(plan.claims[1], layout=None)
    found = grades(replace(plan, claims=(claim, value)), digests)
    assert found[claim.id][0] == "indistinguishable"
    assert found[value.id][0] == "not graded"


def test_parts_of_one_leaf_are_told_apart_by_their_targets_only() -> None:
    plan, digests = plan_of({"a": weights(6, 4), "t0": weights(3, 4), "t1": weights(3, 4)})
    stack = whole("a", (6, 4))
    claims = tuple(
        Claim(
            f"id {i}", "r", "p", f"t{i}", ("a",), cut(stack, 0, 3 * i, 3 * i + 3), takes_all=False
        )
        for i in (0, 1)
    )
    plan = replace(plan, claims=claims)
    made = {"t0": digests["target"]["t0"], "t1": digests["target"]["t1"]}
    assert made["t0"] == made["t1"]
    found = grades(plan, {"source": digests["source"], "target": made})
    assert {grade for grade, _ in found.values()} == {"indistinguishable"}
    made["t1"] = "another"
    found = grades(plan, {"source": digests["source"], "target": made})
    assert {grade for grade, _ in found.values()} == {"unique by content"}
    found = grades(plan, {"source": digests["source"], "target": {}})
    assert {grade for grade, _ in found.values()} == {"not graded"}


def test_equal_targets_of_unequal_sources_are_no_evidence() -> None:
    plan, digests = plan_of({"a": weights(6, 4), "b": weights(6, 4, seed=1)})
    same = dict.fromkeys("ab", digests["target"]["a"])
    found = grades(plan, {"source": digests["source"], "target": same})
    assert {grade for grade, _ in found.values()} == {"indistinguishable"}


def test_a_leaf_with_as_many_elements_in_another_shape_is_not_ruled_out() -> None:
    plan, digests = plan_of({"a": weights(6, 4), "b": weights(4, 6)})
    found = grades(plan, digests)
    assert found["id a"][0] == found["id b"][0] == "not graded"
    assert "in another shape or type" in found["id a"][1]


# --- health


@pytest.mark.parametrize("name", ["F32", "F16", "F64"])
def test_health_counts_what_numpy_counts(name: str) -> None:
    width = ELEMENT_TYPES[name].n_bytes
    raw = np.random.default_rng(1).integers(0, 256, (BLOCK + 99) * width, np.uint8)
    words = raw.view(f"u{width}").copy()
    words[:40] = 0
    words[40:50] = np.arange(1, 11, dtype=words.dtype)
    values = words.view(f"f{width}")
    health = Health(ELEMENT_TYPES[name])
    parts = [Health(ELEMENT_TYPES[name]) for _ in range(3)]
    health.add(words)
    for part, block in zip(parts, np.array_split(words, 3), strict=True):
        part.add(block)
    parts[2].merge(parts[0])
    parts[2].merge(parts[1])
    finite = values[np.isfinite(values)]
    tiny = np.finfo(values.dtype).tiny
    assert health.n_nan == int(np.isnan(values).sum())
    assert health.n_infinite == int(np.isinf(values).sum())
    assert health.n_zero == int((values[~np.isnan(values)] == 0).sum()) >= 40
    assert health.n_subnormal == int((np.abs(finite[finite != 0]) < tiny).sum()) >= 10
    assert (health.low, health.high) == (float(finite.min()), float(finite.max()))
    assert not health.is_constant
    assert parts[2].text == health.text != ""


def test_constant_leaves_and_integers_and_blocks() -> None:
    health = Health(F32)
    for _ in range(2):
        health.add(np.full(5, 0x3F800000, np.uint32))
    assert health.is_constant
    assert health.text == "nothing special, from 1.0 to 1.0, constant"
    health.add(np.zeros(1, np.uint32))
    assert not health.is_constant
    whole_numbers = Health(ELEMENT_TYPES["I64"])
    whole_numbers.add(np.array([-(2**53) - 1, 0, 7], np.int64).view(np.uint64))
    assert (whole_numbers.low, whole_numbers.n_zero) == (-(2**53) - 1, 1)
    block = Health(ElementType("Q8_0", 34, 32))
    block.add(np.zeros((2, 34), np.uint8))
    assert block.text == ""


# --- sentences over the whole report


def moved_plan(found: dict[str, str], n: int, *kinds: str) -> tuple[Plan, dict[str, Diagnosis]]:
    """Claims of identity over layers, and the diagnoses that some hold the bytes of others."""
    names = [f"l.{i}.{kind}" for i in range(n) for kind in kinds]
    leaves = {name: Leaf((Name(name),), (4,), F32, Held(b"")) for name in names}
    claims = tuple(Claim(f"id {x}", "rule", "params", x, (x,), Layout((4,), ())) for x in names)
    sides = [Store(side, "npz", leaves, ()) for side in ("source", "target")]
    diagnoses = {
        f"id {name}": Diagnosis(hypothesis="other_leaf", text="", confirmed=True, suspects=(other,))
        for name, other in found.items()
    }
    return Plan(sides[0], sides[1], claims), diagnoses


def test_two_leaves_exchanged_are_one_sentence() -> None:
    pair = {"l.2.gate": "l.2.up", "l.2.up": "l.2.gate"}
    plan, diagnoses = moved_plan(pair, 4, "gate", "up")
    (said,) = summarise(diagnoses, plan)
    assert said == "l.2.gate and l.2.up are exchanged: each holds the other's values"


def test_two_targets_that_are_made_of_several_leaves_are_exchanged_too() -> None:
    pair = {"l.2.gate": "l.2.up", "l.2.up": "l.2.gate"}
    plan, diagnoses = moved_plan(pair, 4, "gate", "up")
    made = {i: replace(each, hypothesis="other_target") for i, each in diagnoses.items()}
    assert len(summarise(made, plan)) == 1
    assert summarise(dict(list(made.items())[:1]), plan) == ()


def test_one_leaf_used_twice_is_no_exchange() -> None:
    plan, diagnoses = moved_plan({"l.2.gate": "l.2.up"}, 4, "gate", "up")
    assert summarise(diagnoses, plan) == ()


def test_layers_exchanged_shifted_and_sorted_as_text() -> None:
    kinds = ("gate", "up")
    swapped = {f"l.{a}.{k}": f"l.{b}.{k}" for a, b in ((1, 2), (2, 1)) for k in kinds}
    (said,) = summarise(*moved_plan(swapped, 4, *kinds)[::-1])
    assert said == "l.{}: numbers 1 and 2 are exchanged (4 leaves)"
    shifted = {f"l.{i}.{k}": f"l.{i + 1}.{k}" for i in range(3) for k in kinds}
    (said,) = summarise(*moved_plan(shifted, 4, *kinds)[::-1])
    assert said == "l.{}: each holds the values of number +1 (6 leaves)"
    order = sorted(range(12), key=str)
    as_text = {f"l.{i}.{k}": f"l.{j}.{k}" for i, j in enumerate(order) if i != j for k in kinds}
    (said,) = summarise(*moved_plan(as_text, 12, *kinds)[::-1])
    assert "10 before 2" in said


def test_a_part_of_an_order_is_not_said_of_all_layers() -> None:
    kinds = ("gate", "up")
    order = sorted(range(12), key=str)
    some = {f"l.{i}.{k}": f"l.{order[i]}.{k}" for i in (3, 4, 5) for k in kinds}
    (said,) = summarise(*moved_plan(some, 12, *kinds)[::-1])
    assert said == "l.{}: in another order: 3 holds 11, 4 holds 2, 5 holds 3 (6 leaves)"
    shifted = {f"l.{i}.{k}": f"l.{i + 1}.{k}" for i in (3, 4, 5) for k in kinds}
    (said,) = summarise(*moved_plan(shifted, 12, *kinds)[::-1])
    assert said == "l.{}: 3 to 5 hold the values of number +1 each (6 leaves)"


def test_one_cause_of_a_whole_group_is_one_sentence() -> None:
    plan, _ = moved_plan({}, 3, "w")
    rounded = Diagnosis(hypothesis="rounded", text="rounded to BF16", confirmed=True)
    every = {claim.id: rounded for claim in plan.claims}
    assert summarise(every, plan) == ("all 3 leaves of params: rounded to BF16",)
    some = dict(list(every.items())[:2])
    assert summarise(some, plan) == ("2 of 3 leaves of params: rounded to BF16",)
    assert summarise({}, plan) == ()


def test_one_cause_in_all_layers_is_one_sentence_though_each_names_its_leaf() -> None:
    plan, _ = moved_plan({}, 3, "w", "v")
    every = {
        claim.id: Diagnosis(
            hypothesis="step_left_out",
            text=f"the step transpose() was not applied to {claim.sources[0]}",
            confirmed=True,
        )
        for claim in plan.claims
        if claim.target.endswith("w")
    }
    (said,) = summarise(every, plan)
    assert said == "3 of 6 leaves of params: the step transpose() was not applied to l.{}.w"
