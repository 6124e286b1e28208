"""The ready claim files, on conversions that other people's code made, clean and with faults."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conversions import c49k, toy
from conversions.cases import CASES, Made
from conversions.conversion import Conversion, different
from conversions.gguf_files import write_gguf
from conversions.harmless import HARMLESS
from conversions.hf_models import config_of, tensors_of
from conversions.seed_procedure import Pair, compare, keystr

from lockstep.artifacts.verification import VALUE_EXACT, ClaimRow, Verification
from lockstep.verify import check, digest_checkpoint
from lockstep.verify.claims.claim_file import READY

PLANTED = [(case, fault) for case, made in CASES.items() for fault in made.faults]


@pytest.fixture(scope="session")
def conversions(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Makes each conversion once."""
    return Made(tmp_path_factory.mktemp("conversions"))


def verified(conversion: Conversion, target: Path) -> Verification:
    claims = conversion.claims
    return check(
        conversion.source,
        target,
        claims if "/" in claims else f"ready:{claims}",
        max_memory_bytes=4 << 30,  # whatever other tests left in this process
        jobs=1,
    )


@pytest.mark.torch
@pytest.mark.parametrize("name", CASES)
def test_a_clean_conversion_is_value_exact(name: str, conversions: Made) -> None:
    report = verified(conversions(name), conversions(name).target)
    assert report.problems == ()
    assert report.value_exact, failed(report)
    assert report.claims
    assert {row.verdict for row in report.claims} <= set(VALUE_EXACT)
    assert report.source.root == digest_checkpoint(conversions(name).source).root
    for side in (report.source, report.target):
        assert all(leaf.n_claimed + leaf.n_excused == leaf.n_elements for leaf in side.leaves)
    excused = [leaf.name for side in (report.source, report.target) for leaf in side.leaves
               if leaf.n_excused]  # fmt: skip
    assert set(excused) <= {"rope.freqs", "rope_freqs.weight", "step"}


@pytest.mark.torch
@pytest.mark.parametrize("back", ["llama from GGUF", "llama from GGUF BF16", "qwen3 from GGUF"])
def test_transformers_reads_from_gguf_what_it_saved_itself(back: str, conversions: Made) -> None:
    forth = conversions(CASES[back].forth)
    saved = {name: a.astype(np.float32) for name, a in tensors_of(forth.source).items()}
    assert different(conversions(back).tensors, saved) == []


@pytest.mark.torch
@pytest.mark.parametrize(("name", "fault"), PLANTED, ids=[": ".join(p) for p in PLANTED])
def test_a_planted_fault_fails_where_it_is(
    name: str, fault: str, conversions: Made, tmp_path: Path
) -> None:
    conversion, planted = conversions(name), CASES[name].faults[fault]
    target = conversion.planted(planted, tmp_path / conversion.target.name)
    report = verified(conversion, target)
    assert not report.value_exact
    assert report.verdict == "FAIL"
    changed = different(planted(conversion.tensors, conversion.scheme), conversion.tensors)
    extra = {problem.where.rpartition(" ")[2] for problem in report.problems}
    assert set(failed(report)) | extra == set(changed)
    rows = [row for row in report.claims if row.verdict == "FAIL"]
    assert all(row.difference is not None for row in rows)
    for words in planted.says:
        assert any(re.search(words, said(row)) for row in rows), [said(row) for row in rows]


@pytest.mark.torch
@pytest.mark.parametrize("name", HARMLESS)
def test_what_changes_no_value_passes(name: str, conversions: Made, tmp_path: Path) -> None:
    case, change = HARMLESS[name]
    conversion = change(conversions(case), tmp_path)
    report = verified(conversion, conversion.target)
    assert report.problems == ()
    assert report.value_exact, failed(report)


@pytest.mark.torch
def test_configs_that_disagree_on_heads_are_no_proof(conversions: Made, tmp_path: Path) -> None:
    good = conversions("llama F16 to GGUF BF16")
    other = config_of(good.source) | {"num_key_value_heads": 4}
    target = write_gguf(good.tensors, tmp_path / "model.gguf", config=other, outtype="BF16")
    report = verified(good, target)
    assert not report.value_exact
    assert [problem.kind for problem in report.problems] == ["fact"]
    assert "n_kv_heads" in report.problems[0].message


@pytest.mark.torch
def test_the_claims_of_another_model_do_not_pass(conversions: Made) -> None:
    llama = conversions("llama F16 to GGUF BF16")
    report = verified(replace(llama, claims="hf-qwen-to-gguf"), llama.target)
    wrong = {name for name in llama.tensors if ".attn_q." in name or ".attn_k." in name}
    assert set(failed(report)) == wrong


@pytest.mark.torch
def test_two_sides_given_the_wrong_way_round_are_told_so(conversions: Made) -> None:
    good = conversions("llama F16 to GGUF BF16")
    report = verified(replace(good, source=good.target), good.source)
    assert not report.value_exact
    assert any("the other way round" in problem.message for problem in report.problems)


@pytest.mark.torch
def test_the_procedure_of_the_seed_is_not_bitwise(conversions: Made, tmp_path: Path) -> None:
    good = conversions("c49k")
    bad = good.planted(c49k.C49K_FAULTS["+0 became -0"], tmp_path / "bad")
    pair = Pair(keystr(c49k.ZEROS), keystr(c49k.ZEROS))
    assert compare(good.source, bad, [pair]) == {}
    assert failed(verified(good, bad)) == [c49k.ZEROS]
    swapped = good.planted(c49k.C49K_FAULTS["V of gate and V of up swapped"], tmp_path / "swap")
    to = f"components/vu/{c49k.SITES['g']}/[0]"
    pair = Pair(keystr("components/Vg"), keystr(to), squeeze=True)
    assert compare(good.source, good.target, [pair]) == {}
    assert list(compare(good.source, swapped, [pair])) == [keystr(to)]


def failed(report: Verification) -> list[str]:
    return [row.target for row in report.claims if row.verdict not in VALUE_EXACT]


def said(row: ClaimRow) -> str:
    """What the report says of a leaf that fails: the diagnosis, else the kinds of difference."""
    if row.diagnosis is not None:
        return f"{row.diagnosis.text} {' '.join(row.diagnosis.suspects)}"
    return row.why


@pytest.mark.torch
def test_every_ready_file_has_a_conversion_that_it_was_tried_on(
    conversions: Made,
) -> None:
    tried = {conversions(name).claims for name in CASES}
    ready = {path.stem for path in READY.glob("*.toml")}
    assert ready
    assert ready == tried - {str(toy.CLAIMS)}


def test_a_ready_file_says_what_it_is_and_against_what_it_was_checked() -> None:
    for path in READY.glob("*.toml"):
        head = path.read_text().partition("schema =")[0]
        assert head.startswith("# "), path.name
        assert "->" in head or "Orbax to Orbax" in head, path.name
        assert "Checked against" in head, path.name
