"""Ways to hold the tool wrongly, none of which ends as a proof."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from safetensors.numpy import save_file
from verify_pair import CLAIMS, Pair, converted, make_pair, source_arrays

from lockstep.cli.main import main
from lockstep.verify.engine import worker

Said = pytest.CaptureFixture[str]
SCHEMA = 'schema = "lockstep.claims/1"\n'


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return make_pair(tmp_path)


# --- claims


EXTRA_RULES = {
    "claim": '[[claim]]\ngroup = "g"\ntarget = "blokcs.{n:int}.gate"\nsource = "model.{n}"\n',
    "drop": '[[drop]]\nsource = "model.nrom.weight"\nreason = "a typo"\n',
    "new": '[[new]]\ntarget = "final_nrom"\nreason = "a typo"\n',
    "tie": '[[tie]]\nside = "target"\nleaves = ["stap", "stip"]\n',
    "like": '[[like]]\ngroup = "mu"\nof = "parms"\nsource = ["", "mu/"]\ntarget = ["", "mu/"]\n',
    "duplicate": '[[duplicate]]\nsource = "model.nrom.weight"\nreason = "a typo"\n',
    "derived": '[[derived]]\ntarget = "final_nrom"\nreason = "a typo"\n',
    "fact": '[facts]\nn = { source = "no_such_key" }\n',
}


@pytest.mark.parametrize("kind", EXTRA_RULES)
def test_a_rule_that_matches_nothing_is_no_proof(pair: Pair, capfd: Said, kind: str) -> None:
    first = EXTRA_RULES[kind] if kind == "fact" else ""
    rest = "" if kind == "fact" else EXTRA_RULES[kind]
    pair.claims.write_text(CLAIMS.replace("[[claim]]", first + "[[claim]]", 1) + rest)
    assert main(pair.words) == 2
    said = capfd.readouterr()
    assert "PASS: " not in said.out


@pytest.mark.parametrize(
    "text",
    ["", SCHEMA, SCHEMA + 'title = "nothing"\n', SCHEMA + "claim = []\n"],
    ids=["no text", "no rules", "a title", "an empty list"],
)
def test_an_empty_claim_set_is_no_proof(pair: Pair, capfd: Said, text: str) -> None:
    pair.claims.write_text(text)
    assert main([*pair.words, "--json"]) == 2
    document = json.loads(capfd.readouterr().out)
    assert not document.get("value_exact")


def test_dropping_everything_is_no_proof(pair: Pair, capfd: Said) -> None:
    pair.claims.write_text(
        SCHEMA + '[[drop]]\nsource = "{x:any}"\nreason = "all"\n'
        '[[new]]\ntarget = "{x:any}"\nreason = "all"\n'
    )
    assert main([*pair.words, "--json"]) == 2
    assert json.loads(capfd.readouterr().out)["value_exact"] is False


def test_checkpoints_without_an_element_are_no_proof(pair: Pair, capfd: Said) -> None:
    pair.claims.write_text(SCHEMA + '[[claim]]\ngroup = "g"\ntarget = "{x:any}"\nsource = "{x}"\n')
    for path in (pair.source, pair.target):
        save_file({}, path)
    assert main(pair.words) != 0
    assert "PASS: " not in capfd.readouterr().out


def test_source_and_target_swapped_is_no_proof(pair: Pair, capfd: Said) -> None:
    assert main(["verify", str(pair.target), str(pair.source), *pair.words[3:]]) == 2
    assert "VERDICT: PASS" not in capfd.readouterr().out


# --- the same files twice


def test_the_same_files_twice_are_refused(pair: Pair, tmp_path: Path, capfd: Said) -> None:
    link, hard, copy = (tmp_path / name for name in ("link", "hard", "copy"))
    link.symlink_to(pair.source)
    os.link(pair.source, hard)
    shutil.copy(pair.source, copy)
    pair.claims.write_text(SCHEMA + '[[claim]]\ngroup = "g"\ntarget = "{x:any}"\nsource = "{x}"\n')
    for other in (pair.source, link, hard, Path(f"{tmp_path}/../{tmp_path.name}/{hard.name}")):
        words = ["verify", str(pair.source), str(other), *pair.words[3:]]
        assert main(words) == 2
        assert "the same files twice" in capfd.readouterr().err
        assert main([*words, "--allow-same"]) == 0
        capfd.readouterr()
    assert main(["verify", str(pair.source), str(copy), *pair.words[3:]]) == 0


def test_a_file_and_the_directory_that_it_is_all_of_are_the_same(
    pair: Pair, tmp_path: Path, capfd: Said
) -> None:
    root = tmp_path / "model"
    root.mkdir()
    os.link(pair.source, root / "model.safetensors")
    assert main(["verify", "diff", str(pair.source), str(root)]) == 2
    assert "the same files twice" in capfd.readouterr().err


# --- samples


def test_a_sample_says_nowhere_that_it_is_a_proof(tmp_path: Path, capfd: Said) -> None:
    arrays = {f"w{i}": np.arange(200_000, dtype=np.float32) + i for i in range(3)}
    for name in ("old", "new"):
        save_file(arrays, tmp_path / f"{name}.safetensors")
    claims = tmp_path / "claims.toml"
    claims.write_text(SCHEMA + '[[claim]]\ngroup = "g"\ntarget = "{x:any}"\nsource = "{x}"\n')
    words = Pair(tmp_path / "old.safetensors", tmp_path / "new.safetensors", claims).words
    out, junit, html = (tmp_path / name for name in ("r.json", "r.xml", "r.html"))
    more = ["--out", str(out), "--junit", str(junit), "--html", str(html)]
    assert main([*words, "--sample", *more]) == 6
    said = capfd.readouterr().out
    assert "PASS" not in said
    record = json.loads(out.read_text())
    assert record["verdict"] == "UNCHECKED"
    assert record["value_exact"] is False
    suite = ElementTree.fromstring(junit.read_text())
    failed = [
        test.get("name") for test in suite.iter("testcase") if test.find("failure") is not None
    ]
    assert failed == list(arrays)
    assert "UNCHECKED" in html.read_text()
    assert main(["verify", str(tmp_path / "new.safetensors"), "--against", str(out)]) != 0
    capfd.readouterr()


# --- python -O


@pytest.mark.parametrize("flag", ["-O", "-OO"])
def test_asserts_that_vanish_change_no_exit_code(pair: Pair, flag: str) -> None:
    script = (
        "import json, sys; from lockstep.cli.main import main\n"
        "cases = json.loads(sys.argv[1])\n"
        "print(json.dumps([main(words) for words in cases]), file=sys.stderr)\n"
    )
    folder = pair.claims.parent
    turned = np.ascontiguousarray(converted(source_arrays())["blocks.0.up"][::-1])
    others = {"changed": {"blocks.0.up": turned}, "gap": {"final_norm": None}}
    cases = [pair.words]
    good = pair.target.read_bytes()
    for name, arrays in others.items():
        pair.change(**arrays)
        pair.target.rename(folder / name)
        cases.append([*pair.words[:2], str(folder / name), *pair.words[3:]])
    pair.target.write_bytes(good)
    (folder / "cut").write_bytes(good[:-1])
    cases.append([*pair.words[:2], str(folder / "cut"), *pair.words[3:]])
    cases += [[*pair.words, "--max-memory", "8MiB"], [*pair.words, "--sample"]]
    found = subprocess.run(
        [sys.executable, flag, "-c", script, json.dumps(cases)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert json.loads(found.stderr.splitlines()[-1]) == [0, 1, 2, 4, 5, 6]


# --- exceptions


class Odd(BaseException):
    """No Exception, as that of torch's distributed checkpoints is not."""


FAULTS: dict[str, BaseException] = {
    "KeyError": KeyError("x"),
    "AssertionError": AssertionError(),
    "MemoryError": MemoryError(),
    "OSError": OSError(5, "Input/output error"),
    "StopIteration": StopIteration(),
    "GeneratorExit": GeneratorExit(),
    "SystemExit": SystemExit(0),
    "KeyboardInterrupt": KeyboardInterrupt(),
    "no Exception": Odd(),
}


@pytest.mark.parametrize("jobs", ["1", "3"])
@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("where", ["work", "checksum"])
def test_an_exception_in_a_worker_is_no_proof(
    pair: Pair, capfd: Said, monkeypatch: pytest.MonkeyPatch, name: str, jobs: str, where: str
) -> None:
    if where == "checksum":
        np.savez(pair.target.with_suffix(".npz"), **converted(source_arrays()))
        pair = Pair(pair.source, pair.target.with_suffix(".npz"), pair.claims)
        assert main(pair.words) == 0
    calls: list[int] = []
    real = getattr(worker.Worker, where)

    def broken(self: worker.Worker, item: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise FAULTS[name]
        real(self, item)

    monkeypatch.setattr(worker.Worker, where, broken)
    out = pair.claims.with_name("record.json")
    capfd.readouterr()
    code: object
    try:
        code = main([*pair.words, "--jobs", jobs, "--out", str(out)])
    except BaseException as error:
        code = error.code if isinstance(error, SystemExit) else repr(error)
    assert len(calls) >= 3
    assert code not in (0, None)
    assert "PASS" not in capfd.readouterr().out
    assert not out.exists()
