"""`lockstep verify`, end to end on small files: each exit code, each flag, each sentence."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import click
import numpy as np
import pytest
from safetensors.numpy import save_file
from verify_pair import CLAIMS, Pair, converted, make_pair, source_arrays

from lockstep.artifacts.verification import Verification
from lockstep.cli import verify_progress
from lockstep.cli.main import main
from lockstep.cli.verify_options import Size
from lockstep.errors import EnvironmentLacks
from lockstep.verify.engine.budget import memory_now

Said = pytest.CaptureFixture[str]
HOSTILE = "</script><img src=x onerror=alert(1)>\x1b[2J\u202e"


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return make_pair(tmp_path)


def document(said: Said, words: list[str], code: int) -> dict[str, Any]:
    """The one document that a command prints with --json."""
    assert main([*words, "--json"]) == code
    found = json.loads(said.readouterr().out)
    assert isinstance(found, dict)
    return found


# --- verdicts and exit codes


def test_an_exact_conversion_is_proved(pair: Pair, capfd: Said) -> None:
    assert main(pair.words) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0] == "per group:"
    assert [line.split()[:2] for line in lines[1:4]] == [
        ["[PASS]", "step"],
        ["[PASS]", "params"],
        ["[PASS]", "norms"],
    ]  # in the order of the target's file
    assert lines[1].endswith("  1/1 leaves bit-identical")
    assert lines[2].endswith("  4/4 leaves value-exact (4 bits equal after the declared transform)")
    assert lines[-1] == "VERDICT: PASS: 6 leaves value-exact under the declared transforms"
    assert any(line.startswith("cost: read ") and "MB/s" in line for line in lines)
    assert "  target: 251 of 251 elements of 6 leaves claimed" in lines


def test_the_document_is_the_record(pair: Pair, capfd: Said) -> None:
    found = document(capfd, pair.words, 0)
    record = Verification.from_document(found, "stdout")
    assert record.value_exact
    assert record.verdict == "EXACT_UNDER"
    assert sorted(row.target for row in record.claims) == sorted(converted(source_arrays()))
    assert sum(row.n_compared for row in record.claims) == 251
    assert record.title == "two layers, renamed and transposed"
    assert len(record.claims_digest) == 64
    assert record.source.root
    assert record.target.root
    assert record.source.root != record.target.root
    assert all(leaf.digest for leaf in (*record.source.leaves, *record.target.leaves))
    assert record.cost.budget_bytes >= 1 << 30
    assert record.cost.peak_bytes is None or record.cost.peak_bytes > 0
    assert record.environment["python"]


def test_a_changed_value_is_found_with_its_place(pair: Pair, capfd: Said) -> None:
    changed = converted(source_arrays())["blocks.1.up"]
    bits = changed.view(np.uint32)
    bits[3, 2] ^= 1
    pair.change(**{"blocks.1.up": changed})
    assert main(pair.words) == 1
    said = capfd.readouterr().out
    assert "1 of 60 elements differ" in said
    assert "first at [3, 2], source model.layers.1.up.weight[2, 3]: expected " in said
    assert "VERDICT: FAIL: 1 of 6 leaves differ; the conversion is not value-exact" in said
    record = Verification.from_document(document(capfd, pair.words, 1), "stdout")
    (bad,) = (row for row in record.claims if row.verdict == "FAIL")
    assert bad.difference is not None
    assert bad.difference.first.target_index == (3, 2)
    assert bad.difference.first.source_index == (2, 3)
    assert bad.difference.first == bad.difference.last


def test_gate_and_up_exchanged_is_said_so(pair: Pair, capfd: Said) -> None:
    found = converted(source_arrays())
    pair.change(**{"blocks.1.up": found["blocks.1.gate"], "blocks.1.gate": found["blocks.1.up"]})
    assert main(pair.words) == 1
    said = capfd.readouterr().out
    assert "2 of 6 leaves differ" in said
    why = [line for line in said.splitlines() if line.strip().startswith("why:")]
    assert len(why) == 2
    assert "model.layers.1.gate.weight" in "".join(why)
    assert "model.layers.1.up.weight" in "".join(why)


NO_STEP = CLAIMS.replace('target = "step"\nsource = "step"', 'target = "stap"\nsource = "step"')


@pytest.mark.parametrize(
    ("claims", "words"),
    [
        (CLAIMS.partition('[[claim]]\ngroup = "step"')[0], "step"),  # a gap on both sides
        (NO_STEP, "stap"),  # a rule that matches nothing
        (CLAIMS.replace(' = ["transpose()"]', " = []"), "(6, 10)"),  # a wrong shape
        (CLAIMS.partition("[[claim]]")[0], "claim"),  # nothing at all
    ],
    ids=["gap", "typo", "shape", "empty"],
)
def test_claims_that_do_not_add_up_exit_2(pair: Pair, capfd: Said, claims: str, words: str) -> None:
    pair.claims.write_text(claims)
    assert main(pair.words) == 2
    said = capfd.readouterr()
    assert words in said.out + said.err
    assert "VERDICT: PASS" not in said.out


def test_a_difference_goes_before_a_problem(pair: Pair, capfd: Said) -> None:
    pair.claims.write_text(CLAIMS.partition('[[claim]]\ngroup = "step"')[0])
    pair.change(final_norm=np.zeros(10, np.float32))
    assert main(pair.words) == 1
    said = capfd.readouterr().out
    assert "the claims do not add up:" in said
    assert "unexplained" in said


def test_an_unknown_key_of_the_claims_exits_2(pair: Pair, capfd: Said) -> None:
    pair.claims.write_text(CLAIMS + 'suorce = "x"\n')
    assert main(pair.words) == 2
    assert "suorce" in capfd.readouterr().err


def test_what_is_not_installed_exits_3(
    pair: Pair, tmp_path: Path, capfd: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "x.h5"
    fake.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert main(["verify", "ls", str(fake)]) == 3
    assert "h5py" in capfd.readouterr().err


@pytest.mark.parametrize("how", ["cut", "absent", "nonsense"])
def test_a_damaged_file_exits_4(pair: Pair, capfd: Said, how: str) -> None:
    data = pair.target.read_bytes()
    if how == "absent":
        pair.target.unlink()
    else:
        pair.target.write_bytes(data[:-1] if how == "cut" else b"no checkpoint at all")
    assert main(pair.words) == 4
    said = capfd.readouterr()
    assert "new.safetensors" in said.err
    assert "hint" in said.err


def test_a_budget_that_is_too_small_exits_5(pair: Pair, capfd: Said) -> None:
    assert main([*pair.words, "--max-memory", "1MiB"]) == 5
    assert "--max-memory" in capfd.readouterr().err


def test_only_inexact_equality_exits_6(pair: Pair, capfd: Said) -> None:
    claims = CLAIMS.replace(
        'source = "model.norm.weight"',
        'source = "model.norm.weight"\nequality = { ulp = 1, why = "a test" }',
    )
    pair.claims.write_text(claims)
    moved = np.nextafter(converted(source_arrays())["final_norm"], np.float32(9))
    pair.change(final_norm=moved)
    assert main(pair.words) == 6
    said = capfd.readouterr().out
    assert "VERDICT: INEXACT: 1 of 6 leaves within the declared tolerance" in said
    assert "PASS: " not in said


def test_a_sample_is_no_proof(tmp_path: Path, capfd: Said) -> None:
    array = np.arange(300_000, dtype=np.float32)
    for name in ("old", "new"):
        save_file({"w": array}, tmp_path / f"{name}.safetensors")
    claims = tmp_path / "claims.toml"
    claims.write_text(
        'schema = "lockstep.claims/1"\n[[claim]]\ngroup = "g"\ntarget = "w"\nsource = "w"\n'
    )
    words = Pair(tmp_path / "old.safetensors", tmp_path / "new.safetensors", claims).words
    assert main(words) == 0
    capfd.readouterr()
    assert main([*words, "--sample"]) == 6
    assert "VERDICT: UNCHECKED" in capfd.readouterr().out


# --- flags


def test_what_is_excused_is_part_of_the_verdict(tmp_path: Path, capfd: Said) -> None:
    rng = np.random.default_rng(0)
    w, rest = (rng.standard_normal(n).astype(np.float32) for n in (6, 5))
    save_file({"w": w, "head": rest}, tmp_path / "a.safetensors")
    save_file({"w": w, "x": rest, "y": rest[:2].copy()}, tmp_path / "b.safetensors")
    (tmp_path / "c.toml").write_text(
        'schema = "lockstep.claims/1"\n[[claim]]\ntarget = "w"\nsource = "w"\n'
        + "".join(f'[[new]]\ntarget = "{name}"\nreason = "added"\n' for name in "xy")
        + '[[drop]]\nsource = "head"\nreason = "not wanted"\n'
    )
    page, tests = tmp_path / "r.html", tmp_path / "r.xml"
    files = [str(tmp_path / name) for name in ("a.safetensors", "b.safetensors", "c.toml")]
    words = ["verify", *files[:2], "--claims", files[2]]
    assert main([*words, "--html", str(page), "--junit", str(tests)]) == 0
    rest_said = (
        "2 target leaves (7 elements) and 1 source leaf (5 elements) are excused, not compared"
    )
    said = capfd.readouterr().out.splitlines()[-1]
    assert said == f"VERDICT: PASS: 1 leaf bit-identical; {rest_said}"
    assert rest_said in page.read_text()
    assert "every leaf is bit-identical" not in page.read_text()
    assert rest_said in tests.read_text()


def test_claims_that_fail_are_no_evidence(pair: Pair, capfd: Said) -> None:
    pair.change(final_norm=np.zeros(10, np.float32))
    assert main(pair.words) == 1
    said = next(x for x in capfd.readouterr().out.splitlines() if x.startswith("evidence"))
    assert sum(map(int, re.findall(r"\d+", said))) == 5


def test_the_record_is_written_whatever_the_verdict(
    pair: Pair, tmp_path: Path, capfd: Said
) -> None:
    pair.change(final_norm=np.zeros(10, np.float32))
    outputs = {flag: tmp_path / "out" / f"r.{flag}" for flag in ("out", "html", "junit")}
    words = [*pair.words]
    for flag, path in outputs.items():
        words += [f"--{flag}", str(path)]
    assert main(words) == 1
    record = Verification.load(tmp_path / "out", "r.out")
    assert record.verdict == "FAIL"
    page = outputs["html"].read_text()
    assert "1 of 6 leaves differ" in page
    suites = ElementTree.parse(outputs["junit"]).getroot()
    failures = suites.findall(".//failure")
    assert [failure.get("type") for failure in failures] == ["FAIL"]
    assert len(suites.findall(".//testcase")) == 7
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "r.html",
        "r.junit",
        "r.out",
    ]
    capfd.readouterr()


def test_an_output_that_is_there_is_refused_before_reading(pair: Pair, tmp_path: Path) -> None:
    out = tmp_path / "there.json"
    out.write_text("mine")
    pair.source.unlink()  # so that reading would exit 4
    assert main([*pair.words, "--out", str(out)]) == 2
    assert out.read_text() == "mine"


def test_force_replaces_an_output(pair: Pair, tmp_path: Path) -> None:
    out = tmp_path / "there.json"
    out.write_text("mine")
    assert main([*pair.words, "--out", str(out), "--force"]) == 0
    assert json.loads(out.read_text())["verdict"] == "EXACT_UNDER"


@pytest.mark.parametrize("flag", ["--out", "--html", "--junit", "--journal"])
def test_an_output_never_replaces_an_input(pair: Pair, flag: str) -> None:
    before = pair.source.read_bytes()
    for path in (pair.source, pair.target, pair.claims):
        assert main([*pair.words, flag, str(path), "--force"]) == 2
    assert pair.source.read_bytes() == before


def test_two_outputs_are_two_files(pair: Pair, tmp_path: Path) -> None:
    same = str(tmp_path / "x")
    assert main([*pair.words, "--out", same, "--html", same]) == 2


def test_an_output_that_cannot_be_written_is_found_out_first(pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    pair.source.unlink()
    assert main([*pair.words, "--out", str(tmp_path / "file" / "x.json")]) == 3
    assert main([*pair.words, "--out", str(tmp_path), "--force"]) == 2


def test_without_digests_there_are_none(pair: Pair, capfd: Said) -> None:
    record = Verification.from_document(
        document(capfd, [*pair.words, "--digest", "none"], 0), "stdout"
    )
    assert record.source.root is None
    assert not any(leaf.digest for leaf in record.target.leaves)


def test_health_is_counted_on_request(pair: Pair, capfd: Said) -> None:
    def health(*flags: str) -> str:
        found = document(capfd, [*pair.words, *flags], 0)
        return "".join(row["health"] for row in found["claims"])

    assert health() == ""
    assert "175000" in health("--health")  # the step, which is smallest and largest


def test_the_journal_goes_on(pair: Pair, tmp_path: Path, capfd: Said) -> None:
    words = [*pair.words, "--journal", str(tmp_path / "journal.jsonl")]
    assert document(capfd, words, 0)["cost"]["n_resumed"] == 0
    assert document(capfd, words, 0)["cost"]["n_resumed"] == 6


def test_the_number_of_workers_changes_no_verdict(pair: Pair, capfd: Said) -> None:
    def rows(jobs: str) -> Any:
        found = document(capfd, [*pair.words, "--jobs", jobs], 0)
        assert found["cost"]["n_workers"] >= 1
        return [(row["target"], row["verdict"], row["n_compared"]) for row in found["claims"]]

    assert rows("1") == rows("4")


def test_a_checkpoint_is_not_compared_with_itself_by_mistake(pair: Pair, tmp_path: Path) -> None:
    link = tmp_path / "link.safetensors"
    os.link(pair.source, link)
    words = ["verify", "diff", str(pair.source), str(link)]
    assert main(words) == 2
    assert main([*words, "--allow-same"]) == 0


def test_the_wrong_order_is_said(pair: Pair, capfd: Said) -> None:
    words = ["verify", str(pair.target), str(pair.source), "--claims", str(pair.claims)]
    claims = CLAIMS.partition('[[claim]]\ngroup = "step"')[0]  # `step` fits either way round
    pair.claims.write_text(claims)
    assert main(words) == 2
    assert "swap the two checkpoints" in capfd.readouterr().out


def test_the_format_can_be_named(pair: Pair, capfd: Said) -> None:
    assert main([*pair.words, "--source-format", "gguf"]) == 4
    assert main([*pair.words, "--target-format", "gguf"]) == 4
    assert main([*pair.words, "--target-format", "safetensors"]) == 0
    assert main(["verify", "ls", str(pair.source), "--format", "npz"]) == 4
    assert main(["verify", "ls", str(pair.source), "--format", "nonsense"]) == 2
    capfd.readouterr()


SIZES = {
    "64MiB": 64 << 20, "1.5GiB": 3 << 29, "4096": 4096, "500MB": 500_000_000, "64 mib": 64 << 20,
    "2TiB": 2 << 40, "7B": 7,
}  # fmt: skip


@pytest.mark.parametrize("text", SIZES)
def test_sizes(text: str) -> None:
    assert Size().convert(text, None, None) == SIZES[text]


@pytest.mark.parametrize("text", ["", "0", "-1", "nan", "inf", "1e9", "12XB", "1.5", "MiB", "1K"])
def test_what_is_no_size_is_refused(text: str, pair: Pair) -> None:
    with pytest.raises(click.BadParameter, match="expected"):
        Size().convert(text, None, None)
    assert main([*pair.words, "--max-memory", text]) == 2


# --- the command line


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["verify", "diggest", "x"], "try `lockstep verify digest`"),
        (["verify", "a", "b"], "`lockstep verify diff` compares equal names without claims"),
        (["verify", "a", "--claims", "c"], "name it"),
        (["verify", "prove", "a", "b"], "name it"),
        (["verify", "ls"], "see `lockstep verify ls --help`"),
    ],
)
def test_a_wrong_command_line_says_what_to_do(words: list[str], hint: str, capfd: Said) -> None:
    assert main(words) == 2
    assert hint in capfd.readouterr().err


def test_prove_may_be_said_or_left_out(pair: Pair, capfd: Said) -> None:
    words = pair.words[1:]
    assert main(["verify", "prove", *words]) == 0
    assert main(["verify", *words[2:], *words[:2]]) == 0  # options first
    capfd.readouterr()
    assert main(["verify", "--help"]) == 0
    assert "digest" in capfd.readouterr().out


def test_a_checkpoint_may_be_named_like_a_verb(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair.source.rename(tmp_path / "plan")
    monkeypatch.chdir(tmp_path)
    assert main(["verify", "./plan", *pair.words[2:]]) == 0


# --- ls, plan, diff, digest


def test_ls_lists_without_data(pair: Pair, capfd: Said) -> None:
    assert main(["verify", "ls", str(pair.source)]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert len([line for line in lines if "F32" in line]) == 5
    assert any("step" in line and "I64" in line and "[1]" in line for line in lines)
    assert lines[-1] == "6 leaves, 1008 B, safetensors, 1 file"
    found = document(capfd, ["verify", "ls", str(pair.source)], 0)
    assert found["schema"] == "lockstep.leaves/1"
    assert {leaf["name"]: tuple(leaf["shape"]) for leaf in found["leaves"]} == {
        name: array.shape for name, array in source_arrays().items()
    }


def test_a_name_does_not_reach_the_terminal(tmp_path: Path, capfd: Said) -> None:
    path = tmp_path / "x.safetensors"
    save_file({HOSTILE: np.zeros(3, np.float32)}, path)
    assert main(["verify", "ls", str(path)]) == 0
    said = capfd.readouterr().out
    assert "\x1b" not in said
    assert "\u202e" not in said
    assert "\\x1b[2J\\u202e" in said


def test_no_name_reaches_the_terminal_with_a_verdict(pair: Pair, capfd: Said) -> None:
    pair.claims.write_text(
        CLAIMS + '[[claim]]\ngroup = "x"\ntarget = "{a:any}<img"\nsource = "{a}<img"\n'
    )
    names = [f"\x1b[2J\u202e{i}<img" for i in range(2)]
    one, two = (np.full(3, value, np.float32) for value in (1, 2))
    save_file({**source_arrays(), names[0]: one, names[1]: one}, pair.source)
    pair.change(**{names[0]: one, names[1]: two, "\x1b[3Jextra": two})
    for words, code in ((pair.words, 1), (["verify", "plan", *pair.words[1:]], 2)):
        assert main(words) == code
        said = capfd.readouterr()
        assert "\x1b" not in said.out + said.err
        assert "\u202e" not in said.out + said.err
        assert "\\x1b[2J\\u202e1<img" in said.out


def test_plan_shows_claims_before_anything_is_read(pair: Pair, capfd: Said) -> None:
    words = ["verify", "plan", *pair.words[1:]]
    assert main(words) == 0
    said = capfd.readouterr().out
    assert "blocks.1.up <- model.layers.1.up.weight | " in said
    assert "same_shape" in said  # gate and up: shapes cannot tell
    assert said.splitlines()[-1].endswith("the claims add up")
    found = document(capfd, words, 0)
    assert found["schema"] == "lockstep.claims-plan/1"
    assert {row["target"] for row in found["claims"]} == set(converted(source_arrays()))
    most = (memory_now().anonymous or 0) + (1 << 30)  # beside what other tests left in this process
    assert all(0 < row["predicted_peak_bytes"] <= most for row in found["claims"])
    assert found["predicted_peak_bytes"] >= max(r["predicted_peak_bytes"] for r in found["claims"])


def test_plan_says_what_is_wrong(pair: Pair, capfd: Said) -> None:
    words = ["verify", "plan", *pair.words[1:]]
    pair.claims.write_text(NO_STEP)
    assert main(words) == 2
    assert "stap" in capfd.readouterr().out
    found = document(capfd, words, 2)
    assert {row["kind"] for row in found["problems"]} >= {"gap", "unused"}
    assert main([*words, "--max-memory", "1MiB"]) == 5


def test_diff_compares_equal_names(tmp_path: Path, capfd: Said) -> None:
    arrays = {"a": np.zeros(4, np.float32), "b": np.ones((2, 3), np.float16)}
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    save_file(arrays, one)
    save_file(dict(reversed(arrays.items())), two)
    words = ["verify", "diff", str(one), str(two)]
    assert main(words) == 0
    assert "VERDICT: PASS: 2 leaves bit-identical" in capfd.readouterr().out
    save_file({**arrays, "a": np.array([0, -0.0, 0, 0], np.float32)}, two)
    assert main(words) == 1
    assert "sign of zero 1" in capfd.readouterr().out
    changes = {
        "target only": {**arrays, "c": np.zeros(1, np.float32)},
        "source only": {"a": arrays["a"]},
        "[3, 2]": {**arrays, "b": np.ones((3, 2), np.float16)},
        "F32 [2, 3]": {**arrays, "b": np.ones((2, 3), np.float32)},
        "got none among": {"z": arrays["a"]},
    }
    for sentence, changed in changes.items():
        save_file(changed, two)
        assert main(words) == 1, sentence
        assert sentence in capfd.readouterr().out


def test_digests_are_of_arrays_and_not_of_files(tmp_path: Path, capfd: Said) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    save_file({"w": array, "z": array[0]}, tmp_path / "a.safetensors", {"made": "somewhere"})
    np.savez(tmp_path / "b.npz", z=array[0], w=array)
    first = document(capfd, ["verify", "digest", str(tmp_path / "a.safetensors")], 0)
    second = document(capfd, ["verify", "digest", str(tmp_path / "b.npz")], 0)
    assert first["root"] == second["root"]
    assert len(first["root"]) == 64
    assert main(["verify", "digest", str(tmp_path / "b.npz")]) == 0
    assert f"{first['root']}  root of 2 leaves" in capfd.readouterr().out


def test_digests_are_checked_with_a_message_for_each_change(tmp_path: Path, capfd: Said) -> None:
    arrays = {name: np.arange(6, dtype=np.float32) + i for i, name in enumerate("abcd")}
    path, earlier = tmp_path / "x.safetensors", tmp_path / "digests.json"
    save_file(arrays, path)
    assert main(["verify", "digest", str(path), "--out", str(earlier)]) == 0
    words = ["verify", "digest", str(path), "--check", str(earlier)]
    assert main(words) == 0
    assert "the same: 4 leaves" in capfd.readouterr().out
    arrays["a"][0] = -1
    arrays["b"] = arrays["b"].reshape(2, 3)
    arrays["e"] = arrays.pop("c")
    save_file(arrays, path)
    assert main(words) == 1
    said = capfd.readouterr().out
    for line in ("content differs: a", "type or shape differs: b", "missing, was there before: c",
                 "new, was not there before: e"):  # fmt: skip
        assert line in said.splitlines()
    assert document(capfd, words, 1)["check"]["changed"] == ["a"]
    edited = earlier.read_text().replace(json.loads(earlier.read_text())["root"], "0" * 64)
    earlier.write_text(edited)
    assert main(words) == 4
    assert main(["verify", "digest", str(path), "--out", str(earlier)]) == 2


# --- progress, memory


def test_progress_says_bytes_and_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    said = io.StringIO()
    monkeypatch.setattr(sys, "stderr", said)
    now = [0.0]
    monkeypatch.setattr(verify_progress.time, "monotonic", lambda: now[0])
    progress = verify_progress.Progress()
    progress(1 << 20, 8 << 20)
    assert said.getvalue() == ""
    now[0] = 16.0
    progress(2 << 20, 8 << 20)
    progress(3 << 20, 8 << 20)  # too soon for another line
    assert said.getvalue() == "2 MiB of 8 MiB, 128 KiB/s, 48 s left\n"
    progress(8 << 20, 8 << 20)
    assert verify_progress.progress_text(1, 3601 * 2, 1.0).endswith("2 h 00 min left")


class Terminal(io.StringIO):
    """A stderr that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_is_left_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    said = Terminal()
    monkeypatch.setattr(sys, "stderr", said)
    now = [0.0]
    monkeypatch.setattr(verify_progress.time, "monotonic", lambda: now[0])
    with verify_progress.Progress() as progress:
        now[0] = 1.0
        progress(1 << 20, 2 << 20)
    assert said.getvalue() == "\r\x1b[K1 MiB of 2 MiB, 1 MiB/s, 1 s left\r\x1b[K"


def test_a_verdict_is_not_lost_with_the_disk(
    pair: Pair, tmp_path: Path, capfd: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def refuse(*args: object, **kwargs: object) -> None:
        raise EnvironmentLacks("disk: full")

    monkeypatch.setattr(Verification, "save", refuse)
    assert main([*pair.words, "--out", str(out / "r.json")]) == 3
    said = capfd.readouterr()
    assert "VERDICT: PASS" in said.err
    assert "disk: full" in said.err
    assert said.out == ""
    assert list(out.iterdir()) == []


MEASURE = """
import sys
from lockstep.cli.main import main
code = main(sys.argv[1:])
heavy = {"rich", "jinja2", "tokenizers", "torch", "jax", "transformers", "lockstep.report"}
print("imported", sorted(heavy & set(sys.modules)))
sys.exit(code)
"""


def test_the_core_is_small(pair: Pair) -> None:
    words = [sys.executable, "-c", MEASURE, *pair.words, "--max-memory", "64MiB"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "imported []" in done.stdout
    assert "VERDICT: PASS" in done.stdout


def test_leaves_whose_claims_do_not_resolve_are_no_pass_of_their_group(
    pair: Pair, capfd: Said
) -> None:
    wrong = np.zeros((6, 10), np.float32)  # not transposed, as the claims say it is
    pair.change(**{f"blocks.{layer}.up": wrong for layer in (0, 1)})
    page = pair.source.parent / "page.html"
    assert main([*pair.words, "--html", str(page)]) == 2
    said = capfd.readouterr().out
    lines = said.splitlines()
    (params,) = [line for line in lines if " params " in line]
    assert params.split()[:3] == ["[FAIL]", "params", "2/4"]
    assert "2 not resolved" in params
    assert "x2, e.g. claim 1: target blocks.0.up: expected the target's shape (6, 10)" in said
    assert "no claim names" not in said
    record = Verification.from_document(document(capfd, pair.words, 2), "stdout")
    groups = {group.name: group for group in record.groups}
    assert (groups["params"].verdict, groups["params"].n_unresolved) == ("FAIL", 2)
    assert (groups["norms"].verdict, groups["norms"].n_unresolved) == ("EXACT_BITS", 0)
    assert "2 not resolved, so not compared" in page.read_text(encoding="utf-8")
    changed = np.zeros(10, np.float32)
    pair.change(**{f"blocks.{layer}.up": wrong for layer in (0, 1)}, final_norm=changed)
    assert main(pair.words) == 1
    assert "1 of 4 leaves differ, 2 more were not compared" in capfd.readouterr().out
