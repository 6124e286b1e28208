"""The records of a run directory: strict, whole, and unable to claim what their numbers deny."""

from __future__ import annotations

import errno
import importlib
import json
import os
import pkgutil
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from example_run import (
    STAGES,
    check,
    compare_record,
    example_run,
    make,
    pipeline_report,
    records,
    regimen_record,
    train_report,
)
from hypothesis import given
from hypothesis import strategies as st

import lockstep.artifacts
from lockstep.artifacts import (
    Artifact,
    Check,
    RunDir,
    append_line,
    atomic_write_bytes,
    content_hash,
    read_lines,
)
from lockstep.artifacts.checkpoint_state import CheckpointState
from lockstep.artifacts.codec import keys_of, unexplained
from lockstep.artifacts.derivation import Derivation
from lockstep.artifacts.faults import FaultRow, Faults
from lockstep.artifacts.go import Go
from lockstep.artifacts.grad_norms import GradNorms
from lockstep.artifacts.loss_curve import LossCurve, LossRow
from lockstep.artifacts.metrics import MetricRow, read_metrics
from lockstep.artifacts.run_ledger import LedgerRow, current
from lockstep.artifacts.samples import Sample
from lockstep.artifacts.selftest import Selftest
from lockstep.artifacts.train_report import TrainReport
from lockstep.artifacts.verification import Verification
from lockstep.errors import EnvironmentLacks, GateError, InputError, UsageError
from lockstep.verify.digest import ALGORITHM, merkle_root
from lockstep.verify.listing import Digests

CHECKLIST = Path(__file__).parent / "golden" / "checklist"
ROW = make(MetricRow, step=1, loss=2.5)


def all_records() -> list[type[Artifact]]:
    """Every kind of file that the room knows and that of verify, whatever has been imported."""
    for module in pkgutil.iter_modules(lockstep.artifacts.__path__):
        importlib.import_module(f"lockstep.artifacts.{module.name}")
    importlib.import_module("lockstep.verify.against")
    kinds = [kind for kind in Artifact.__subclasses__() if kind.__module__.startswith("lockstep.")]
    assert len(kinds) >= 25
    return sorted(kinds, key=lambda kind: kind.schema)


def test_each_record_has_a_schema_and_a_history_of_its_own() -> None:
    kinds = all_records()
    assert len({kind.schema for kind in kinds}) == len(kinds)
    assert len({kind.file for kind in kinds}) == len(kinds)
    for kind in kinds:
        version = kind.schema.rpartition("/")[2]
        assert f"History: {version}" in (kind.__doc__ or "").replace("\n    ", " "), kind


@pytest.mark.parametrize("kind", all_records(), ids=lambda kind: kind.schema)
def test_each_record_comes_back_as_it_was_written(kind: type[Artifact], tmp_path: Path) -> None:
    known = {type(record): record for record in [*records(), train_report(3, 1), pipeline_report()]}
    record = known[kind] if kind in known else make(kind, **_truth(kind))
    if isinstance(record, CheckpointState):
        record = record.sealed()
    path = record.save(tmp_path)
    assert path == tmp_path / kind.file
    assert kind.load(tmp_path) == record
    assert json.loads(path.read_text())["schema"] == kind.schema
    assert os.listdir(tmp_path) == [kind.file]


def _truth(kind: type[Artifact]) -> dict[str, Any]:
    """The fields that a record of plain values would contradict."""
    if "evidence" in kind.__dataclass_fields__:
        return {"evidence": make(keys_of(kind)["evidence"][1], checks=(check(),))}
    if kind is Faults:
        row = make(FaultRow, nodes=("head",), named="head", right=True)
        return {"rows": (row,), "share": 1.0}
    if kind is Verification:
        return {"verdict": "UNCHECKED", "value_exact": False}  # as nothing is claimed
    if kind is Derivation:
        return {"outcome": "partly derived"}  # as nothing is
    if kind is Selftest:
        return {"n_caught": 0, "n_missed": 0, "passed": False}  # as no row says so
    if kind is Digests:
        return {"algorithm": ALGORITHM, "root": merkle_root({})}
    return {}


finite = st.floats(allow_nan=False, allow_infinity=False)


@given(
    st.builds(
        LossCurve,
        steps=st.lists(st.builds(LossRow, loss_ck=finite, lr=finite, grad_norm=finite,
                                 loss_pt=st.none() | finite, torch_step_ms=st.none(),
                                 torch_grad_norm=st.none() | finite, step_ms=finite,
                                 source_stage=st.text()), max_size=3).map(tuple),
        not_measured=st.just({f"steps.{key}": "not asked for" for key in keys_of(LossRow)}),
    )
)  # fmt: skip
def test_numbers_and_texts_survive_to_the_bit(curve: LossCurve) -> None:
    text = json.dumps(curve.document(), allow_nan=False)
    assert LossCurve.from_document(json.loads(text), "it") == curve


def _damage(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    document = json.loads(path.read_text())
    changed = change(document)
    path.write_text(changed if isinstance(changed, str) else json.dumps(document))


DAMAGE: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "schema": (lambda d: d.update(schema="lockstep.train/0"), "schema"),
    "missing": (lambda d: d.pop("final_param_max_abs_diff"), "final_param_max_abs_diff"),
    "extra": (lambda d: d.update(loss_cpp=1), "loss_cpp"),
    "type": (lambda d: d["loss_curve"][1].update(loss_ck="3.0"), "loss_curve[1].loss_ck"),
    "bool for int": (lambda d: d.update(steps=True), "steps"),
    "missing below": (lambda d: d["loss_curve"][0].pop("step"), "'step'"),
    "null": (lambda d: d.update(run_id=None), "run_id"),
    "null without reason": (lambda d: d.update(final_torch_loss=None), "final_torch_loss"),
    "NaN": (lambda d: json.dumps(d).replace("3.2", "NaN", 1).replace("0.5", "NaN", 1), "NaN"),
    "too large": (lambda d: json.dumps({**d, "lr": "LR"}).replace('"LR"', "1e999"), "finite"),
    "far too large": (lambda d: d.update(lr=10**400), "lr"),
    "twice": (lambda d: json.dumps(d)[:-1] + ', "lr": 1.0}', "twice"),
    "torn": (lambda d: json.dumps(d)[:-20], "JSON"),
    "deep": (lambda d: "[" * 200_000, "JSON"),
    "list": (lambda d: "[]", "schema"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_file_is_refused_by_name_and_key(name: str, tmp_path: Path) -> None:
    change, key = DAMAGE[name]
    path = train_report(3, 1).save(tmp_path)
    TrainReport.load(tmp_path)
    _damage(path, change)
    with pytest.raises(InputError) as caught:
        TrainReport.load(tmp_path)
    assert str(path) in caught.value.message or "train_ck.json" in caught.value.message
    assert key in caught.value.message
    assert caught.value.hint


def test_bytes_that_are_no_text_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / Go.file).write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=Go.file):
        Go.load(tmp_path)
    with pytest.raises(InputError, match=r"elsewhere\.json"):
        Go.load(tmp_path, "elsewhere.json")
    assert Go.find(tmp_path, "elsewhere.json") is None


def test_a_file_name_that_is_no_text_survives(tmp_path: Path) -> None:
    name = os.fsdecode(b"rows\xff.txt")
    record = make(Go, checks={"it": True}, go=True, run_dir=name)
    record.save(tmp_path)
    assert Go.load(tmp_path) == record


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_is_never_written(value: float, tmp_path: Path) -> None:
    path = train_report(3, 1).save(tmp_path)
    before = path.read_bytes()
    worse = make(TrainReport, loss_curve=(make(LossRow, loss_ck=value),))
    with pytest.raises(GateError, match=r"loss_curve\[0\]\.loss_ck"):
        worse.save(tmp_path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


def test_a_null_number_needs_a_reason(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="final_torch_loss"):
        make(TrainReport, final_torch_loss=None)
    kept = make(TrainReport, final_torch_loss=None, not_measured={"final_torch_loss": "no torch"})
    kept.save(tmp_path)
    assert TrainReport.load(tmp_path).final_torch_loss is None
    row = make(LossRow, loss_pt=None)
    assert unexplained(make(GradNorms)) == set()
    with pytest.raises(InputError, match=r"loss_curve\.loss_pt"):
        make(TrainReport, loss_curve=(row,))


@pytest.fixture
def small_files() -> Iterator[None]:
    """The kernel refuses to let any file grow beyond 4 KiB, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("small_files")
def test_a_disk_that_takes_no_more_leaves_the_old_file(tmp_path: Path) -> None:
    path = train_report(1, 1).save(tmp_path)
    before = path.read_bytes()
    with pytest.raises(EnvironmentLacks) as caught:
        train_report(50, 1).save(tmp_path)
    assert str(path) in caught.value.message
    assert caught.value.hint
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.usefixtures("small_files")
def test_a_disk_that_takes_no_more_leaves_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / MetricRow.file

    def fill() -> None:
        for step in range(1, 100):
            append_line(path, make(MetricRow, step=step))

    with pytest.raises(EnvironmentLacks):
        fill()
    rows = read_lines(path, MetricRow)
    assert 5 < len(rows) < 60
    assert [row.step for row in rows] == list(range(1, len(rows) + 1))
    assert path.read_bytes().endswith(b"\n")


@pytest.mark.parametrize(
    ("number", "word"), [(errno.ENOSPC, "space"), (errno.EROFS, "writable"), (errno.EIO, "disk")]
)
def test_what_a_disk_says_becomes_a_hint(
    number: int, word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = atomic_write_bytes(tmp_path / "x.bin", b"old")

    def refuse(handle: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(EnvironmentLacks) as caught:
        atomic_write_bytes(path, b"new")
    assert caught.value.exit_code == 3
    assert word in caught.value.hint
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x.bin"]


def test_a_file_where_a_directory_is_needed_is_explained(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(EnvironmentLacks) as caught:
        make(Go, checks={"it": True}).save(tmp_path / "run")
    assert caught.value.hint


_WRITER = """
import sys
from pathlib import Path
from lockstep.artifacts import append_line
from lockstep.artifacts.grad_norms import GradNorms
from lockstep.artifacts.metrics import MetricRow
root, step = Path(sys.argv[1]), 0
print("ready", flush=True)
while True:
    step += 1
    norms = (float(step),) * 2000
    GradNorms(steps=(step,) * 2000, global_norm=norms, source="x" * step).save(root)
    append_line(root / MetricRow.file, MetricRow(step=step, epoch=1, loss=1.0, grad_norm=1.0,
                lr=1e-3, tok_s=1.0, wall_ms=1.0, tokens_seen=step))
"""


def test_kill_9_leaves_a_whole_file(tmp_path: Path) -> None:
    for delay in (0.013, 0.021, 0.034, 0.055):
        command = [sys.executable, "-c", _WRITER, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n"
            while not (tmp_path / GradNorms.file).exists():
                time.sleep(0.001)
            time.sleep(delay)
            writer.send_signal(signal.SIGKILL)
        norms = GradNorms.load(tmp_path)
        assert len(set(norms.steps)) == 1
        steps = [row.step for row in read_lines(tmp_path / MetricRow.file, MetricRow)]
        assert steps[-1] >= norms.steps[0] - 1


def test_a_torn_line_is_dropped_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / MetricRow.file
    append_line(path, ROW)
    with path.open("ab") as file:
        file.write(b'{"schema": "lockstep.metr')
    assert len(read_lines(path, MetricRow)) == 1
    append_line(path, make(MetricRow, step=2))
    assert [row.step for row in read_lines(path, MetricRow)] == [1, 2]
    path.write_bytes(path.read_bytes().replace(b'"step": 2', b'"step": "2"'))
    with pytest.raises(InputError, match=r"metrics\.jsonl:2\.step"):
        read_lines(path, MetricRow)


def test_a_step_that_ran_again_counts_as_it_ran_last(tmp_path: Path) -> None:
    path = tmp_path / MetricRow.file
    for step, loss in ((1, 5.0), (2, 4.0), (3, 3.0), (2, 4.5)):
        append_line(path, make(MetricRow, step=step, loss=loss))
    assert [(row.step, row.loss) for row in read_metrics(path)] == [(1, 5.0), (2, 4.5), (3, 3.0)]


def test_the_ledger_says_how_each_training_stands() -> None:
    rows = [
        make(LedgerRow, run_order=order, run_id=id, status=status)
        for order, id, status in ((2, "b", "running"), (1, "a", "running"), (1, "a", "completed"))
    ]
    assert [(row.run_id, row.status) for row in current(rows)] == [
        ("a", "completed"),
        ("b", "running"),
    ]


def test_a_check_follows_from_its_numbers() -> None:
    assert check().verdict == "pass"
    assert check(bound=3e-6).verdict == "pass"
    for bad in (
        check(figure=2e-4),
        check(figure=float("nan")),
        check(figure=float("inf")),
        check(compared=0),
        check(relation=">="),
        check(relation="=="),
    ):
        assert bad.verdict == "fail"
        assert bad.reason
    lack = Check.missing(id="x", name="x", against="", unit="", reason="it did not run")
    assert (lack.verdict, lack.figure) == ("missing", None)
    for fields in ({"figure": 1.0}, {"figure": None}, {"compared": 0}, {"bound": None}):
        with pytest.raises(InputError, match="check loss_max"):
            Check(**{**vars(check()), **fields})
    with pytest.raises(InputError, match="reason"):
        Check(**{**vars(check()), "verdict": "missing"})


FORGERIES: dict[str, tuple[Any, Callable[[dict[str, Any]], Any]]] = {
    "pipeline": (pipeline_report(1.0), lambda d: d.update(status="pass", failures=[])),
    "pipeline without checks": (pipeline_report(), lambda d: d.update(checks=[])),
    "check": (pipeline_report(1.0), lambda d: d["checks"][0].update(verdict="pass")),
    "stage": (regimen_record("D1"), lambda d: d["stages"][0].update(status="PASS")),
    "summary": (
        regimen_record("D1"),
        lambda d: d["summary"].update(passed=True, failed_stage_ids=[]),
    ),
    "no stages": (regimen_record(), lambda d: d.update(stages=[])),
    "go": (make(Go, checks={"it": True}), lambda d: d["checks"].update(it=False)),
    "empty go": (make(Go, checks={"it": True}), lambda d: d.update(checks={})),
    "comparison": (compare_record("head"), lambda d: d["comparisons"][0].update(passed=True)),
    "compare": (compare_record("head"), lambda d: d.update(passed=True)),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_verdict_that_its_evidence_denies_is_refused(name: str, tmp_path: Path) -> None:
    record, change = FORGERIES[name]
    path = record.save(tmp_path)
    type(record).load(tmp_path)
    _damage(path, change)
    with pytest.raises(InputError):
        type(record).load(tmp_path)


def test_a_sample_is_valid_exactly_if_there_is_a_drawing() -> None:
    with pytest.raises(InputError, match="SVG"):
        make(Sample, svg_valid=True, svg=None)
    with pytest.raises(InputError, match="SVG"):
        make(Sample, svg_valid=False, svg="<svg/>")


def test_run_names_and_places(home: Path, tmp_path: Path) -> None:
    run = RunDir.resolve("my_run-1.0")
    assert run.path == home / "models" / "train" / "my_run-1.0"
    assert RunDir.resolve(str(tmp_path / "x")).path == tmp_path / "x"
    assert run.canary(2).path == run.path / "parity_svg_row2"
    for bad in ("", "a b", "-rf", "ünïcode", "a\n", "x" * 101):
        with pytest.raises(UsageError, match="run name"):
            RunDir.resolve(bad)
    with pytest.raises(InputError, match="my_run"):
        run.require()
    assert run.create().require() == run


def test_the_newest_work_directory_is_by_time_stamp(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    assert run.latest_work() is None
    for id in ("ascii_bpe_20260301_171735", "ascii_bpe_20251231_235959", "bpe_20270101_000000"):
        run.work(id).mkdir(parents=True)
    assert run.latest_work() == run.work("ascii_bpe_20260301_171735")
    assert run.latest_work("bpe") == run.work("bpe_20270101_000000")


def test_content_hash_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert content_hash(tmp_path / "x") == expected
    with pytest.raises(InputError, match="nothing"):
        content_hash(tmp_path / "nothing")


def _checklist(name: str, run: RunDir) -> str:
    environment = {**os.environ, "RUN": str(run.path)}
    command = [sys.executable, str(CHECKLIST / name)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1]


def test_the_runbooks_own_snippets_read_our_files(tmp_path: Path) -> None:
    run = example_run(tmp_path / "run")
    assert _checklist("go.py", run) == "GO_EVIDENCE=PASS"
    assert _checklist("canary.py", run) == "CANARY_PARITY_GATE=PASS"
    for stage in STAGES:
        regimen_record(stage).save(run.path)
        assert _checklist("go.py", run) == "GO_EVIDENCE=FAIL"
    regimen_record().save(run.path)
    pipeline_report(1.0).save(run.canary(2).path, "parity_pipeline.json")
    assert _checklist("go.py", run) == "GO_EVIDENCE=FAIL"
    work = run.canary(1).latest_work()
    assert work is not None
    train_report(40, 2).save(work)
    assert _checklist("canary.py", run) == "CANARY_PARITY_GATE=FAIL"
