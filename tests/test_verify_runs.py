"""Runs of the engine: budgets, journals, changes under way, workers, digests, failing closed."""

from __future__ import annotations

import json
import os
import zlib
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from verify_stores import ZlibChunks, store_of

from lockstep.artifacts.verification import Verification
from lockstep.errors import BudgetError, InputError
from lockstep.formats.leaf import (
    ELEMENT_TYPES,
    ElementType,
    FileIdentity,
    Held,
    Leaf,
    Name,
    Record,
    Store,
)
from lockstep.verify.claim import Claim, Equality, Plan, Tie
from lockstep.verify.digest import merkle_root
from lockstep.verify.engine import worker
from lockstep.verify.engine.budget import MIB, Budget
from lockstep.verify.engine.examine import Options, digest_store, examine
from lockstep.verify.engine.tiles import digest_scheme, fitting
from lockstep.verify.layouts import layout as moves
from lockstep.verify.layouts.layout import Layout
from lockstep.verify.numbers.values import value_move

LARGE = 4 << 30


def claim(name: str, layout: Layout | None, *sources: str, **kwargs: Any) -> Claim:
    return Claim(id=name, rule=kwargs.pop("rule", "r"), group="g", target=name,
                 sources=sources or (name,), layout=layout, text="a move", **kwargs)  # fmt: skip


def check(plan: Plan, **kwargs: Any) -> Verification:
    return examine(plan, Options(max_memory_bytes=LARGE, **kwargs))


def pair(folder: Path, n: int = 6, shape: tuple[int, ...] = (40, 30)) -> Plan:
    """Leaves that are claimed to be transposed, every other one, or the same."""
    seed = np.random.default_rng(3)
    arrays = {f"w{i}": seed.integers(0, 1 << 32, shape, np.uint32) for i in range(n)}
    turned = {name: a.T if i % 2 else a for i, (name, a) in enumerate(arrays.items())}
    target = {name: np.ascontiguousarray(a) for name, a in turned.items()}
    claims = []
    for i, name in enumerate(arrays):
        whole = moves.whole(name, shape)
        claims.append(claim(name, moves.permute(whole, (1, 0)) if i % 2 else whole))
    return Plan(store_of(folder / "a", arrays), store_of(folder / "b", target), tuple(claims))


def flip(store: Store, name: str, flat: int = 0) -> None:
    """Flips the lowest bit of an element, as if the store had been listed afterwards."""
    leaf = store.leaves[name]
    path = leaf.storage.file  # type: ignore[union-attr]
    with path.open("r+b") as file:
        at = leaf.storage.offset + flat * leaf.element.n_bytes  # type: ignore[union-attr]
        file.seek(at)
        byte = file.read(1)[0] ^ 1
        file.seek(at)
        file.write(bytes([byte]))
    object.__setattr__(store, "files", (FileIdentity.of(path),))


# --- what counts as equal


def words(*numbers: int) -> Any:
    return np.array(numbers, np.uint32)


@pytest.mark.parametrize(
    ("old", "new", "verdict", "kinds"),
    [
        (words(0x7FC00000), words(0x7FC00000), "EXACT_BITS", None),  # the same NaN
        (words(0x7FC00000), words(0x7FC00001), "FAIL", {"nan_payload": 1}),
        (words(0), words(0x80000000), "FAIL", {"sign_of_zero": 1}),
        (words(0x3F800000, 0), words(0x3F800001, 0), "FAIL", {"one_ulp": 1}),
        (np.zeros((0, 3), np.uint32), np.zeros((0, 3), np.uint32), "EXACT_BITS", None),
        (np.zeros((), np.uint32), np.zeros((), np.uint32), "EXACT_BITS", None),
        (np.zeros((), np.uint32), np.ones((), np.uint32), "FAIL", {"other": 1}),
    ],
)
def test_equal_is_every_bit(
    tmp_path: Path, old: Any, new: Any, verdict: str, kinds: dict[str, int] | None
) -> None:
    source = store_of(tmp_path / "a", {"x": old})
    target = store_of(tmp_path / "b", {"x": new})
    report = check(Plan(source, target, (claim("x", moves.whole("x", old.shape)),)))
    (row,) = report.claims
    assert row.verdict == report.verdict == verdict
    assert report.value_exact == (verdict == "EXACT_BITS")
    found = row.difference.kinds if row.difference else None
    assert found == kinds or (kinds == {"other": 1} and found)


def test_leaves_that_are_no_arrays_are_equal_with_their_type(tmp_path: Path) -> None:
    def store(value: Any, kind: str) -> Store:
        leaf = Leaf((Name("x"),), (), ElementType(kind, 0), Held(b""), (value,))
        return Store(kind, "raw", {"x": leaf}, ())

    rows = (claim("x", None),)
    assert check(Plan(store(1, "int"), store(1, "int"), rows)).verdict == "EXACT_BITS"
    assert check(Plan(store(None, "none"), store(None, "none"), rows)).value_exact
    for value, kind in ((2, "int"), (1.0, "float"), (True, "bool"), ("1", "str")):
        report = check(Plan(store(1, "int"), store(value, kind), rows))
        assert report.verdict == "FAIL", (value, kind)
        assert report.claims[0].difference is not None
    assert not check(Plan(store(0.0, "float"), store(-0.0, "float"), rows)).value_exact
    array = store_of(tmp_path / "a", {"x": words(1)})
    assert check(Plan(store(1, "int"), array, rows)).verdict == "FAIL"


def test_shape_and_type_are_part_of_a_claim(tmp_path: Path) -> None:
    source = store_of(tmp_path / "a", {"x": np.zeros((2, 3), np.uint32)})
    target = store_of(tmp_path / "b", {"x": np.zeros((3, 2), np.uint32)})
    same = claim("x", moves.whole("x", (2, 3)))
    assert check(Plan(source, target, (same,))).claims[0].verdict == "FAIL"
    typed = replace(source.leaves["x"], element=ELEMENT_TYPES["I32"])
    other = replace(source, leaves={"x": typed})
    report = check(Plan(source, other, (same,)))
    assert report.claims[0].verdict == "FAIL"
    assert "F32" in report.claims[0].why
    short = replace(same, layout=Layout((2, 3), moves.whole("x", (2, 2)).pieces))
    assert check(Plan(source, source, (short,))).claims[0].verdict == "FAIL"
    beyond = Layout((2, 3), tuple(replace(p, src=1) for p in moves.whole("x", (2, 3)).pieces))
    assert check(Plan(source, source, (replace(same, layout=beyond),))).claims[0].verdict == "FAIL"


def test_values_move_and_constants_stand_where_they_are_claimed(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((300, 70)).astype(np.float32)
    rounded = (x.view(np.uint32) >> 16).astype(np.uint16)
    source = store_of(tmp_path / "a", {"x": (rounded.astype(np.uint32) << 16)})
    padded = np.concatenate([rounded, np.full((5, 70), 0xFFC1, np.uint16)])
    target = store_of(tmp_path / "b", {"y": padded})
    cast = value_move("cast", ELEMENT_TYPES["F32"], ["BF16"], {})
    fill = moves.filled((0xFFC10000).to_bytes(4, "little"), (5, 70))
    layout = moves.join([moves.whole("x", x.shape), fill], 0)
    row = claim("y", layout, "x", values=(cast,))
    report = check(Plan(source, target, (row,)))
    assert report.claims[0].verdict == "EXACT_UNDER", report.claims[0]
    flip(target, "y", 303 * 70 + 4)
    (found,) = check(Plan(source, target, (row,))).claims
    assert found.difference
    assert found.difference.first.target_index == (303, 4)
    assert found.difference.first.source == ""


def test_quantised_blocks_become_numbers(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    seed = np.random.default_rng(1)
    x = seed.standard_normal((6, 64)).astype(np.float32)
    blocks = gguf.quants.quantize(x, gguf.GGMLQuantizationType.Q8_0)
    wanted = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType.Q8_0)
    path = tmp_path / "a"
    plain = store_of(path, {"x": blocks})
    element = ElementType("Q8_0", 34, 32)
    leaf = replace(plain.leaves["x"], shape=(6, 64), element=element)
    source = replace(plain, leaves={"x": leaf})
    target = store_of(tmp_path / "b", {"y": wanted.astype(np.float32).view(np.uint32)})
    dequant = value_move("dequant", element, ["F32"], {})
    row = claim("y", moves.whole("x", (6, 2)), "x", values=(dequant,))
    report = check(Plan(source, target, (row,)))
    assert report.claims[0].verdict == "EXACT_UNDER", report.claims[0]
    assert report.claims[0].n_compared == 6 * 64
    flip(target, "y", 3 * 64 + 40)
    (found,) = check(Plan(source, target, (row,))).claims
    assert found.difference
    assert found.difference.n_differ == 1
    assert found.difference.first.target_index == (3, 40)
    assert found.difference.first.source_index == (3, 1)


# --- chunks, digests, checksums


def chunks_of(store: Store, name: str) -> ZlibChunks:
    storage = store.leaves[name].storage
    assert isinstance(storage, ZlibChunks)
    return storage


@pytest.mark.parametrize("kinds", [("chunks", "flat"), ("stream", "stream"), ("chunks", "plain")])
@pytest.mark.parametrize("turned", [False, True])
def test_each_chunk_is_decoded_once(tmp_path: Path, kinds: tuple[str, str], turned: bool) -> None:
    x = np.arange(60 * 50, dtype=np.uint32).reshape(60, 50)
    y = np.ascontiguousarray(x.T) if turned else x
    source = store_of(tmp_path / "a", {"x": x}, {"x": kinds[0]})
    target = store_of(tmp_path / "b", {"x": y}, {"x": kinds[1]})
    whole = moves.whole("x", x.shape)
    row = claim("x", moves.permute(whole, (1, 0)) if turned else whole)
    assert check(Plan(source, target, (row,)), jobs=2, digest="none").value_exact
    for store in (source, target):
        if isinstance(store.leaves["x"].storage, ZlibChunks):
            found = chunks_of(store, "x")
            assert sorted(found.decoded) == sorted(found.places)
            assert found.decoded == sorted(found.decoded) or not found.sequential


def test_digests_are_of_the_logical_array_and_can_be_computed_again(tmp_path: Path) -> None:
    x = np.random.default_rng(5).integers(0, 1 << 32, (2048, 1500), np.uint32)  # three blocks
    header = json.dumps({"element": "F32", "shape": [2048, 1500]}, sort_keys=True,
                        separators=(",", ":"))  # fmt: skip
    data, step = x.tobytes(), 4 << 20
    blocks = [sha256(data[i : i + step]).digest() for i in range(0, len(data), step)]
    wanted = sha256(header.encode() + b"\n" + b"".join(blocks)).hexdigest()
    kinds = ("plain", "fortran", "big", "held", "parts", "chunks", "flat", "stream")
    for kind in kinds:
        store = store_of(tmp_path / kind, {"x": x}, {"x": kind})
        assert digest_store(store, Options(max_memory_bytes=LARGE)) == {"x": wanted}, kind
    plain, other = (store_of(tmp_path / kind, {"x": x}, {"x": kind}) for kind in kinds[::5])
    report = check(Plan(plain, other, (claim("x", moves.whole("x", x.shape)),)))
    assert report.source.leaves[0].digest == report.target.leaves[0].digest == wanted
    root = sha256(b"\0x\0" + bytes.fromhex(wanted)).hexdigest()
    assert report.source.root == report.target.root == merkle_root({"x": wanted}) == root


def test_a_damaged_block_changes_the_digest_of_its_side_only(tmp_path: Path) -> None:
    plan = pair(tmp_path, n=1, shape=(2048, 1500))
    before = check(plan)
    flip(plan.target, "w0", 1_500_000)
    after = check(plan)
    assert after.verdict == "FAIL"
    assert after.source.root == before.source.root
    assert after.target.root != before.target.root
    leaf = plan.target.leaves["w0"]
    again = digest_store(replace(plan.target, leaves={"w0": leaf}), Options(max_memory_bytes=LARGE))
    assert after.target.leaves[0].digest == again["w0"]


def test_a_checksum_of_the_container_is_held(tmp_path: Path) -> None:
    plan = pair(tmp_path, n=1)
    path = plan.source.files[0].path
    data = path.read_bytes()
    good = Record(path, 4, len(data) - 4, zlib.crc32(data[4:]), ("w0",))
    assert check(replace(plan, source=replace(plan.source, records=(good,)))).value_exact
    bad = replace(good, crc32=good.crc32 ^ 1)
    with pytest.raises(InputError, match=r"w0.*CRC-32"):
        check(replace(plan, source=replace(plan.source, records=(bad,))))
    hashed = replace(bad, sha256=sha256(data[4:]).hexdigest())  # which goes before the CRC-32
    assert check(replace(plan, source=replace(plan.source, records=(hashed,)))).value_exact
    worse = replace(good, sha256="0" * 64)
    with pytest.raises(InputError, match=r"w0.*SHA-256"):
        check(replace(plan, source=replace(plan.source, records=(worse,))))


# --- budgets


class NeverRead:
    """Chunks that must not be asked for."""

    flat, sequential, peak_bytes = False, False, 0

    def __init__(self, *shape: int) -> None:
        self.shape = shape

    def read(self, index: tuple[int, ...], out: Any) -> None:
        raise AssertionError("it was read")


def test_a_chunk_that_does_not_fit_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    shape = (1 << 16, 1 << 16)
    leaf = Leaf((Name("x"),), shape, ELEMENT_TYPES["F32"], NeverRead(*shape))
    store = Store("big", "raw", {"x": leaf}, ())
    plan = Plan(store, replace(store), (claim("x", moves.whole("x", shape)),))
    with pytest.raises(BudgetError, match=r"x: expected to work in .* bytes, got a need of") as e:
        check(plan)
    assert "17179869184 bytes each" in e.value.message
    assert "--max-memory" in e.value.hint


def test_what_is_asked_of_an_arena_was_predicted(tmp_path: Path) -> None:
    """Every scheme that is said to fit is laid out, and takes what it said."""
    kinds = ("plain", "fortran", "chunks", "flat", "stream", "parts")
    x = np.arange(700 * 300, dtype=np.uint32).reshape(700, 300)
    stores = {kind: store_of(tmp_path / kind, {"x": x}, {"x": kind}) for kind in kinds}
    turned = moves.permute(moves.whole("x", (300, 700)), (1, 0))
    budget = Budget(64 * MIB, 0, 30 * MIB, 1, 8 * MIB)
    for one in kinds:
        for two in kinds:
            leaves = stores[one].leaves["x"], stores[two].leaves["x"]
            for layout in (moves.whole("x", x.shape), turned):
                scheme = fitting(claim("x", layout), [leaves[0]], leaves[1], budget)
                given = budget.arena if scheme.need <= budget.arena else budget.alone
                hand = worker.Worker(given, worker.threading.Event())
                hand.prepare(scheme, None)
                assert hand.arena.used <= scheme.arena <= scheme.need <= given
        assert digest_scheme(stores[one].leaves["x"], budget.arena).need <= budget.arena


def test_a_claim_that_needs_all_of_the_budget_is_worked_on_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = np.zeros((1024, 1024), np.uint32)
    source = store_of(tmp_path / "a", {"x": x, "y": x}, {"x": "chunks", "y": "chunks"})
    target = store_of(tmp_path / "b", {"x": x.T.copy(), "y": x.T.copy()})
    turned = {n: moves.permute(moves.whole(n, x.shape), (1, 0)) for n in "xy"}
    rows = tuple(claim(n, turned[n]) for n in "xy")
    budget = Budget(64 * MIB, 0, 58 * MIB - 1, 2, MIB)
    scheme = fitting(rows[0], [source.leaves["x"]], target.leaves["x"], budget)
    assert scheme.need > budget.arena
    assert scheme.need <= budget.alone
    monkeypatch.setattr("lockstep.verify.engine.examine._budget", lambda *_: budget)
    assert check(Plan(source, target, rows), jobs=2).value_exact


# --- workers, journals, changes


def essence(report: Verification) -> dict[str, Any]:
    """A report without times and costs."""
    document = asdict(report)
    for key in ("generated_at", "cost"):
        del document[key]
    for row in document["claims"]:
        for key in ("seconds", "predicted_peak_bytes", "bytes_read"):
            del row[key]
    return document


def test_any_number_of_workers_reports_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lockstep.verify.engine.job.ITEM_BYTES", 512)
    monkeypatch.setattr("lockstep.verify.engine.threads._SMALL_RUN", 1)
    plan = pair(tmp_path, n=8)
    for flat in (1, 700, 1199):
        flip(plan.target, "w3", flat)
    flip(plan.target, "w4", 5)
    reports = [essence(check(plan, jobs=jobs)) for jobs in (1, 2, 5)]
    assert reports[0] == reports[1] == reports[2]
    assert [row["verdict"] for row in reports[0]["claims"]].count("FAIL") == 2
    assert reports[0]["claims"][3]["difference"]["n_differ"] == 3


class Killed(BaseException):
    """Something that is no Exception."""


def break_at(monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    """The n-th item of the run fails in its worker."""
    done = [0]
    work = worker.Worker.work

    def broken(self: worker.Worker, item: Any) -> None:
        done[0] += 1
        if done[0] == n:
            raise Killed("in the middle")
        work(self, item)

    monkeypatch.setattr(worker.Worker, "work", broken)


@pytest.mark.parametrize("jobs", [1, 3])
def test_whatever_fails_in_a_worker_is_no_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: int
) -> None:
    break_at(monkeypatch, 3)
    with pytest.raises(Killed, match="in the middle"):
        check(pair(tmp_path), jobs=jobs)


def test_a_run_that_was_cut_short_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, journal = pair(tmp_path), tmp_path / "journal.jsonl"
    whole = check(plan)
    with monkeypatch.context() as patched:
        break_at(patched, 5)
        with pytest.raises(Killed):
            check(plan, journal=journal)
    with journal.open("ab") as file:
        file.write(b'{"schema": "lockstep.ver')  # as a crash leaves it
    resumed = check(plan, journal=journal)
    assert 0 < resumed.cost.n_resumed < 6
    assert resumed.verdict == "EXACT_UNDER"
    assert resumed.source.root == whole.source.root
    assert resumed.target.root == whole.target.root
    assert sum("as the journal says" in row.why for row in resumed.claims) == (
        resumed.cost.n_resumed
    )
    again = check(plan, journal=journal)
    assert again.cost.n_resumed == 6
    assert again.cost.bytes_read == 0


def test_a_changed_file_or_claim_is_looked_at_again(tmp_path: Path) -> None:
    plan, journal = pair(tmp_path), tmp_path / "journal.jsonl"
    assert check(plan, journal=journal).value_exact
    swapped = replace(plan.claims[2], layout=moves.flip(moves.whole("w2", (40, 30)), 0))
    rows = (*plan.claims[:2], swapped, *plan.claims[3:])
    report = check(replace(plan, claims=rows), journal=journal)
    assert report.cost.n_resumed == 5
    assert report.claims[2].verdict == "FAIL"
    touched = replace(plan, target=store_like(plan.target, mtime_ns=1))
    report = check(touched, journal=journal)
    assert report.cost.n_resumed == 0
    assert report.value_exact


def test_a_change_is_seen_though_its_time_was_set_back(tmp_path: Path) -> None:
    plan, journal = pair(tmp_path), tmp_path / "journal.jsonl"
    assert check(plan, journal=journal).value_exact
    before = plan.target.files
    flip(plan.target, "w1")
    os.utime(before[0].path, ns=(before[0].mtime_ns, before[0].mtime_ns))
    listed = replace(plan.target, files=(FileIdentity.of(before[0].path),))
    assert listed.files[0].mtime_ns == before[0].mtime_ns
    with pytest.raises(InputError, match="changed since"):
        check(replace(plan, target=replace(listed, files=before)), journal=journal)
    report = check(replace(plan, target=listed), journal=journal)
    assert report.cost.n_resumed == 0
    assert report.claims[1].verdict == "FAIL"


@pytest.mark.parametrize("kind", ["plain", "chunks", "stream"])
def test_the_digest_of_a_source_is_of_all_of_it_where_its_beginning_is_claimed(
    tmp_path: Path, kind: str
) -> None:
    x = np.arange(6 * 40, dtype=np.uint32).reshape(6, 40)
    source = store_of(tmp_path / "a", {"x": x}, {"x": kind})
    target = store_of(tmp_path / "b", {"y": x[:2].copy(), "z": x[2:].copy()})
    parts = {"y": moves.cut(moves.whole("x", x.shape), 0, 0, 2),
             "z": moves.cut(moves.whole("x", x.shape), 0, 2, 6)}  # fmt: skip
    claims = tuple(
        Claim(n, "", "", n, ("x",), layout, text="slice", takes_all=False)
        for n, layout in parts.items()
    )
    report = check(Plan(source, target, claims))
    assert {row.verdict for row in report.claims} == {"EXACT_UNDER"}
    (leaf,) = report.source.leaves
    assert {"x": leaf.digest} == digest_store(source, Options())


def store_like(store: Store, mtime_ns: int) -> Store:
    """The store after its file got another time."""
    path = store.files[0].path
    os.utime(path, ns=(mtime_ns, mtime_ns))
    return replace(store, files=(type(store.files[0]).of(path),))


def test_a_failure_is_never_taken_from_the_journal(tmp_path: Path) -> None:
    plan, journal = pair(tmp_path), tmp_path / "journal.jsonl"
    flip(plan.target, "w1")
    for _ in range(2):
        report = check(plan, journal=journal)
        assert report.claims[1].verdict == "FAIL"
    assert report.cost.n_resumed == 5


def test_a_file_that_changes_under_way_is_no_pass(tmp_path: Path) -> None:
    plan = pair(tmp_path, shape=(600, 500))

    def touch(n_done: int, n_total: int) -> None:
        os.utime(plan.source.files[0].path, ns=(5, 5))

    with pytest.raises(InputError, match="changed since"):
        check(plan, progress=touch)
    with pytest.raises(InputError, match="changed since"):
        check(plan)


def test_a_file_that_was_cut_is_no_pass(tmp_path: Path) -> None:
    plan = pair(tmp_path)
    path = plan.target.files[0].path
    times = os.stat(path)
    os.truncate(path, path.stat().st_size - 1)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    cut = replace(plan.target, files=(type(plan.target.files[0]).of(path),))
    with pytest.raises(InputError, match="cut"):
        check(replace(plan, target=cut))


def test_nothing_claimed_and_nothing_compared_is_no_pass(tmp_path: Path) -> None:
    plan = pair(tmp_path)
    report = check(replace(plan, claims=()))
    assert not report.value_exact
    nothing = Store("none", "raw", {}, ())
    empty = check(Plan(nothing, nothing, ()))
    assert (empty.verdict, empty.value_exact) == ("UNCHECKED", False)


def test_items_that_get_lost_are_no_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker.Worker, "compare_move", lambda *_: None)
    report = check(pair(tmp_path))
    assert [row.verdict for row in report.claims] == ["EXACT_BITS", "UNCHECKED"] * 3
    assert not report.value_exact


# --- samples, ties, health, progress


def test_a_sample_is_never_a_proof_and_still_finds_what_it_sees(tmp_path: Path) -> None:
    plan = pair(tmp_path, n=4, shape=(400, 300))
    report = check(plan, sample=True)
    assert {row.verdict for row in report.claims} == {"UNCHECKED"}
    assert not report.value_exact
    compared = [row.n_compared for row in report.claims]
    assert compared[0] == 400 * 300  # the largest of the rule
    assert all(0 < n < 400 * 300 for n in compared[1:])
    flip(plan.target, "w3", 0)
    assert check(plan, sample=True).claims[3].verdict == "FAIL"


def test_ties_hold_or_are_a_problem(tmp_path: Path) -> None:
    x = np.arange(50, dtype=np.uint32)
    store = store_of(tmp_path / "a", {"x": x, "y": x})
    tie = (Tie("target", ("x", "y"), "tied"),)
    whole = claim("x", moves.whole("x", (50,)))
    plan = Plan(store_of(tmp_path / "s", {"x": x}), store, (whole,), ties=tie)
    assert check(plan).value_exact
    flip(store, "y", 7)
    report = check(plan)
    assert [problem.kind for problem in report.problems] == ["tie"]
    assert not report.value_exact


def test_health_is_told_and_judges_nothing(tmp_path: Path) -> None:
    x = np.array([0x7FC00000, 0, 0x3F800000, 0x7F800000], np.uint32)
    stores = [store_of(tmp_path / name, {"x": x}) for name in "ab"]
    plan = Plan(*stores, (claim("x", moves.whole("x", (4,))),))
    for digest in ("sha256", "none"):
        report = check(plan, health=True, digest=digest)
        assert report.value_exact
        assert "1 NaN" in report.claims[0].health
        assert "1 zero" in report.claims[0].health
    assert check(plan).claims[0].health == ""


def test_progress_ends_at_the_total(tmp_path: Path) -> None:
    said: list[tuple[int, int]] = []
    check(pair(tmp_path), progress=lambda *now: said.append(now), digest="none")
    assert said[-1] == (6 * 2 * 40 * 30 * 4,) * 2
    assert said == sorted(said)


def test_inexact_equality_is_said_as_what_it_is(tmp_path: Path) -> None:
    source = store_of(tmp_path / "a", {"x": words(0x3F800000, 0)})
    target = store_of(tmp_path / "b", {"x": words(0x3F800001, 0)})
    whole = moves.whole("x", (2,))
    near = claim("x", whole, equality=Equality("within", ulp=1))
    (row,) = check(Plan(source, target, (near,))).claims
    assert (row.verdict, row.equality) == ("WITHIN", "within ulp=1")
    far = claim("x", whole, equality=Equality("values"))
    assert check(Plan(source, target, (far,))).claims[0].verdict == "FAIL"
