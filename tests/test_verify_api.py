"""The Python API of `verify`, and reports that are held against one checkpoint."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from verify_pair import CLAIMS, Pair, converted, make_pair, source_arrays

from lockstep.artifacts.verification import Verification
from lockstep.cli.main import main
from lockstep.errors import BudgetError, InputError, UsageError
from lockstep.verify import (
    ClaimsDoNotAddUp,
    NotProved,
    ValuesDiffer,
    check,
    digest_checkpoint,
    exit_code,
    load_claims,
    prove,
)
from lockstep.verify.against import load_report
from lockstep.verify.engine import examine

Said = pytest.CaptureFixture[str]


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return make_pair(tmp_path)


def test_prove_returns_what_is_proved(pair: Pair) -> None:
    report = prove(pair.source, str(pair.target), load_claims(pair.claims))
    assert report.value_exact
    assert exit_code(report) == 0
    assert len(report.claims) == 6


def test_prove_raises_with_the_record(pair: Pair) -> None:
    pair.change(final_norm=np.zeros(10, np.float32))
    with pytest.raises(ValuesDiffer, match="1 of 6 leaves that differ: final_norm") as raised:
        prove(pair.source, pair.target, pair.claims)
    report = raised.value.report
    assert report.verdict == "FAIL"
    assert exit_code(report) == raised.value.exit_code == 1
    looked_at = check(pair.source, pair.target, pair.claims)
    assert looked_at.claims[-1].verdict == report.claims[-1].verdict


def test_claims_that_do_not_add_up_raise(pair: Pair) -> None:
    pair.claims.write_text(CLAIMS.partition('[[claim]]\ngroup = "step"')[0])
    with pytest.raises(ClaimsDoNotAddUp, match="step") as raised:
        prove(pair.source, pair.target, pair.claims)
    assert raised.value.exit_code == exit_code(raised.value.report) == 2
    _, *lines = raised.value.message.splitlines()  # one problem on each
    assert [line.split(":")[0].strip() for line in lines] == ["source step", "target step"]


def test_inexact_equality_raises(pair: Pair) -> None:
    pair.claims.write_text(
        CLAIMS.replace(
            'source = "model.norm.weight"',
            'source = "model.norm.weight"\nequality = { atol = 1.0, rtol = 0.0, why = "a test" }',
        )
    )
    pair.change(final_norm=source_arrays()["model.norm.weight"] + np.float32(0.25))
    with pytest.raises(NotProved, match="WITHIN for 1 of 6") as raised:
        prove(pair.source, pair.target, pair.claims)
    assert raised.value.exit_code == exit_code(raised.value.report) == 6


def test_what_comes_to_no_verdict_raises_too(pair: Pair) -> None:
    with pytest.raises(BudgetError):
        prove(pair.source, pair.target, pair.claims, max_memory_bytes=1 << 20)
    with pytest.raises(UsageError, match="same files"):
        check(pair.source, pair.source, pair.claims)
    with pytest.raises(InputError):
        prove(pair.source, pair.target.with_name("gone"), pair.claims)
    with pytest.raises(TypeError):
        prove(pair.source, pair.target, pair.claims, tolerance=1e-3)


def test_a_file_that_changes_meanwhile_is_no_proof(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = examine.run

    def disturbed(*args: Any) -> Any:
        spent = real(*args)
        pair.target.touch()
        return spent

    monkeypatch.setattr(examine, "run", disturbed)
    with pytest.raises(InputError, match="changed since"):
        prove(pair.source, pair.target, pair.claims)


def test_no_verdict_hangs_on_asserts(pair: Pair) -> None:
    pair.change(final_norm=np.zeros(10, np.float32))
    code = (
        "import sys; from lockstep.verify import prove, ValuesDiffer\n"
        "try: prove(*sys.argv[1:])\n"
        "except ValuesDiffer as error: sys.exit(10 + error.exit_code)\n"
    )
    words = [str(pair.source), str(pair.target), str(pair.claims)]
    done = subprocess.run([sys.executable, "-O", "-c", code, *words])
    assert done.returncode == 11


def test_the_package_is_imported_when_it_is_used() -> None:
    code = (
        "import sys, lockstep.verify; print([m for m in sys.modules if m.startswith('numpy')]);"
        "assert 'prove' in dir(lockstep.verify); from lockstep.verify import prove; print(prove)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert first == "[]"
    assert "function prove" in second


# --- a report and one checkpoint


@pytest.fixture
def report(pair: Pair, tmp_path: Path) -> Path:
    path = tmp_path / "report.json"
    assert main([*pair.words, "--out", str(path)]) == 0
    return path


def against(checkpoint: Path, report: Path) -> list[str]:
    return ["verify", str(checkpoint), "--against", str(report)]


@pytest.mark.parametrize("side", ["source", "target"])
def test_either_side_alone_is_recognised(pair: Pair, report: Path, side: str, capfd: Said) -> None:
    for other in ("target", "source"):
        if other != side:
            getattr(pair, other).unlink()
    checkpoint = getattr(pair, side)
    assert main(against(checkpoint, report)) == 0
    said = capfd.readouterr().out
    assert f"VERDICT: PASS: {checkpoint} is the {side} of the report (6 leaves)" in said
    assert "not re-checked: that the other checkpoint has the digests" in said
    assert main([*against(checkpoint, report), "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert (found["side"], found["matches"], found["n_equal"]) == (side, True, 6)


def test_a_checkpoint_that_changed_is_not_in_the_report(
    pair: Pair, report: Path, capfd: Said
) -> None:
    arrays = {**converted(source_arrays()), "extra": np.zeros(2, np.float32)}
    arrays["blocks.0.up"][0, 0] += 1
    del arrays["step"]
    save_file(arrays, pair.target)
    assert main(against(pair.target, report)) == 1
    lines = capfd.readouterr().out.splitlines()
    assert lines[:3] == [
        "differs: blocks.0.up",
        "is in the report only: step",
        "is in the checkpoint only: extra",
    ]
    assert "VERDICT: FAIL" in lines[-1]
    assert "nearest is its target, 3 leaves not as it says" in lines[-1]


def test_the_checkpoint_of_a_report_that_fails_is_no_pass(
    pair: Pair, tmp_path: Path, capfd: Said
) -> None:
    path = tmp_path / "bad.json"
    pair.change(final_norm=np.zeros(10, np.float32))
    assert main([*pair.words, "--out", str(path)]) == 1
    assert main(against(pair.target, path)) == 1
    said = capfd.readouterr().out
    assert "which itself shows no exact conversion" in said
    assert "PASS: /" not in said


def test_nothing_is_inert_beside_against(pair: Pair, report: Path, capfd: Said) -> None:
    for more in (["--out", "x"], ["--sample"], ["--claims", "c"], ["--digest", "none"],
                 [str(pair.target)], ["--force"], ["--allow-same"]):  # fmt: skip
        assert main([*against(pair.source, report), *more]) == 2
        assert more[0] in capfd.readouterr().err or more == [str(pair.target)]


def test_a_report_without_digests_cannot_be_held_against(
    pair: Pair, tmp_path: Path, capfd: Said
) -> None:
    path = tmp_path / "none.json"
    assert main([*pair.words, "--digest", "none", "--out", str(path)]) == 0
    assert main(against(pair.source, path)) == 4
    assert "--digest sha256" in capfd.readouterr().err


def edited(report: Path, change: Any) -> Path:
    document = json.loads(report.read_text())
    change(document)
    report.write_text(json.dumps(document))
    return report


def _digest(document: Any) -> None:
    document["target"]["leaves"][0]["digest"] = "0" * 64


def _root(document: Any) -> None:
    document["source"]["root"] = "0" * 64


def _group(document: Any) -> None:
    document["groups"][0]["n_claims"] += 1


def _verdict(document: Any) -> None:
    document["claims"][0]["verdict"] = "FAIL"


def _claim(document: Any) -> None:
    row = document["claims"].pop(1)  # of a group with others
    group = next(g for g in document["groups"] if g["name"] == row["group"])
    group["n_claims"] -= 1
    group["n_exact"] -= 1
    group["n_elements"] -= row["n_elements"]


def _coverage(document: Any) -> None:
    document["source"]["leaves"][0]["n_claimed"] -= 1


def _size(document: Any) -> None:
    row = document["claims"][1]
    row["n_elements"] = row["n_compared"] = 0
    group = next(g for g in document["groups"] if g["name"] == row["group"])
    group["n_elements"] -= 60


def _source(document: Any) -> None:
    document["claims"][1]["sources"] = ["another"]


def _excuse(document: Any) -> None:
    leaf = document["source"]["leaves"][1]
    leaf["n_claimed"], leaf["n_excused"] = 0, leaf["n_elements"]


EDITS = {
    "elements of blocks.0.gate to be compared, got 0": _size,
    "made of leaves of the source": _source,
    "expected a reason": _excuse,
    "target.root": _digest,
    "source.root": _root,
    "groups": _group,
    "verdict": _verdict,
    "target.leaves": _claim,
    "source.leaves": _coverage,
}


@pytest.mark.parametrize("part", EDITS)
def test_an_edited_report_does_not_follow_from_itself(
    pair: Pair, report: Path, part: str, capfd: Said
) -> None:
    assert load_report(report).value_exact
    assert main(against(pair.source, edited(report, EDITS[part]))) == 4
    assert part in capfd.readouterr().err


def test_an_identity_with_two_digests_is_an_edited_report(pair: Pair, report: Path) -> None:
    """A forger who also mends the root still has two digests for one array."""
    from lockstep.verify.digest import merkle_root

    record = load_report(report)
    leaves = tuple(
        replace(leaf, digest="0" * 64) if leaf.name == "final_norm" else leaf
        for leaf in record.target.leaves
    )
    root = merkle_root({leaf.name: leaf.digest or "" for leaf in leaves})
    forged = replace(record, target=replace(record.target, leaves=leaves, root=root))
    forged.save(report.parent, report.name)
    with pytest.raises(InputError, match="final_norm"):
        load_report(report)
    assert Verification.load(report.parent, report.name).value_exact  # as long as nobody looks


def test_digests_of_a_checkpoint(pair: Pair) -> None:
    record = check(pair.source, pair.target, pair.claims)
    found = digest_checkpoint(pair.target)
    assert found.root == record.target.root
    assert {line.name: line.digest for line in found.leaves} == {
        leaf.name: leaf.digest for leaf in record.target.leaves
    }
