"""The report: complete, honest about what is missing, safe with hostile text."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from example_graph import LAYERS, graph_record
from example_run import (
    HOSTILE,
    compare_record,
    example_run,
    make,
    pipeline_report,
    regimen_record,
    samples_record,
    torch_reference,
)

from lockstep.artifacts import RunDir, content_hash
from lockstep.artifacts.dataset_qc import DatasetQc, QcChecks
from lockstep.artifacts.go import Go
from lockstep.artifacts.graph_file import GraphFile, GraphNode
from lockstep.artifacts.metrics import MetricRow
from lockstep.artifacts.pipeline_report import CANARY_FILE
from lockstep.artifacts.post_train_eval import PostTrainEval
from lockstep.artifacts.regimen import FingerprintEntry
from lockstep.artifacts.step_profile import StepProfile
from lockstep.artifacts.weights_manifest import WeightsManifest
from lockstep.cli.demo import undrawn
from lockstep.cli.main import main
from lockstep.errors import InputError
from lockstep.report import write_report
from lockstep.report.curves import MAX_POINTS, curves_of
from lockstep.report.data import Page, page_of
from lockstep.report.evidence import gather
from lockstep.report.gates import comparison_check
from lockstep.report.layout import HEIGHT, WIDTH, lay_out
from lockstep.report.vocabulary import vocabulary


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run where every gate passes; read it only."""
    run = example_run(tmp_path_factory.mktemp("report") / "good_run")
    write_report(run)
    return run


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run of few steps; copy it only."""
    return example_run(tmp_path_factory.mktemp("report") / "short_run", steps=8)


@pytest.fixture
def run(short: RunDir, tmp_path: Path) -> RunDir:
    """A run of the test's own."""
    return RunDir(shutil.copytree(short.path, tmp_path / "run"))


def verdicts(page: Page) -> dict[str, str]:
    """The verdict of each gate."""
    return {gate.id: gate.verdict for gate in page.gates}


def test_a_good_run_passes_every_gate(good: RunDir) -> None:
    page = page_of(good)
    assert set(verdicts(page).values()) == {"pass"}
    assert page.verdict == "pass"
    assert page.counts == {"pass": page.n_checks, "fail": 0, "missing": 0}
    assert all(check.compared > 0 for gate in page.gates for check in gate.checks)
    ids = {gate.id: [check.id for check in gate.checks] for gate in page.gates}
    assert ids["training"] == ["loss_fell"]
    assert ids["demo"] == ["resume"]


def test_an_empty_run_passes_nothing(tmp_path: Path) -> None:
    page = page_of(RunDir(tmp_path))
    assert set(verdicts(page).values()) == {"missing"}
    assert page.counts["pass"] == 0
    assert page.verdict == "missing"
    text = write_report(RunDir(tmp_path)).read_text()
    assert "lack evidence" in text
    assert "every gate passed" not in text
    with pytest.raises(InputError, match="nowhere"):
        write_report(tmp_path / "nowhere")


MISSING = {
    "dataset_qc.json": "data",
    "tokenizer_roundtrip.json": "tokenizer",
    "parity_svg_row1/parity_pipeline.json": "canary1",
    "parity_svg_row2/parity_pipeline.json": "canary2",
    "training_parity_regimen_latest.json": "regimen",
    "compare.json": "compare",
    "post_train_eval.json": "drawing",
    "go.json": "go",
}


@pytest.mark.parametrize("file", MISSING)
@pytest.mark.parametrize("how", ["absent", "torn"])
def test_missing_evidence_is_shown_as_missing(file: str, how: str, run: RunDir) -> None:
    path = run.path / file
    if how == "absent":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-30])
    page = page_of(run)
    assert {id for id, verdict in verdicts(page).items() if verdict != "pass"} == {MISSING[file]}
    assert verdicts(page)[MISSING[file]] == "missing"
    assert file in dict(page.lacks)
    assert file in write_report(run).read_text().replace("<wbr>", "")


def _fail_data(run: RunDir) -> None:
    checks = make(QcChecks, ascii_gate="fail")
    make(DatasetQc, status="fail", checks=checks, non_empty_lines=3).save(run.path)


def _fail_go(run: RunDir) -> None:
    Go(go=False, checks={"a": True, "b": False}, generated_at="", run_dir="", evidence=()).save(
        run.path
    )


def _fail_drawing(run: RunDir) -> None:
    found = PostTrainEval.load(run.path)
    replace(found, valid_count=1).save(run.path)


FAULTS = {
    "data": _fail_data,
    "canary2": lambda run: pipeline_report(2e-4).save(run.canary(2).path, CANARY_FILE),
    "regimen": lambda run: regimen_record("E1").save(run.path),
    "compare": lambda run: compare_record("layers.1.ffn.mul").save(run.path),
    "drawing": _fail_drawing,
    "go": _fail_go,
}


@pytest.mark.parametrize("gate", FAULTS)
def test_a_fault_fails_its_gate_and_the_page(gate: str, run: RunDir) -> None:
    FAULTS[gate](run)
    page = page_of(run)
    assert verdicts(page)[gate] == "fail"
    assert page.verdict == "fail"
    text = write_report(run).read_text()
    assert "1 of" in text
    assert "checks failed" in text


def test_a_comparison_that_failed_without_a_bad_node_fails() -> None:
    (pair,) = compare_record().comparisons
    assert comparison_check(0, pair).verdict == "pass"
    assert comparison_check(0, replace(pair, passed=False)).verdict == "fail"


def test_a_demo_without_judged_drawings_does_not_pass() -> None:
    done = make(PostTrainEval, status="ok")
    assert undrawn(done) == ()
    for lack in (None, replace(done, status="skipped", reason="no held-out rows")):
        assert [check.verdict for check in undrawn(lack)] == ["missing"]


def test_evidence_about_other_weights_is_no_evidence(run: RunDir) -> None:
    make(WeightsManifest, weights_sha256="77" * 32).save(run.path)
    page = page_of(run)
    assert verdicts(page)["drawing"] == "missing"
    assert "other weights" in page.gallery.stale


def test_a_regimen_about_other_inputs_is_no_evidence(run: RunDir) -> None:
    rows = run.path / "dataset" / "train.txt"
    rows.parent.mkdir(exist_ok=True)
    rows.write_text("<svg/>\n")
    entry = FingerprintEntry(path="dataset/train.txt", size=7, sha256=content_hash(rows))
    record = regimen_record()
    replace(record, fingerprint=replace(record.fingerprint, entries=(entry,))).save(run.path)
    assert verdicts(page_of(run))["regimen"] == "pass"
    rows.write_text("<svg></svg>\n")
    found = verdicts(page_of(run))
    assert (found["regimen"], found["go"]) == ("missing", "missing")


def test_curves_are_matched_by_step_and_keep_their_bound(run: RunDir) -> None:
    canary, _, main = curves_of(gather(run))
    assert canary.steps == tuple(range(1, 41))
    assert canary.loss.bound == 1e-4
    assert main.loss.torch == (None,) * 8
    assert "PyTorch did not train" in main.note
    work = run.canary(1).latest_work()
    assert work is not None
    rows = torch_reference(40, 1)
    replace(rows, loss_curve=rows.loss_curve[3:]).save(work)
    shifted = curves_of(gather(run))[0]
    assert shifted.loss.torch[:4] == (None, None, None, canary.loss.torch[3])
    assert "3 of 40 steps are on one side only" in shifted.note


def test_long_curves_are_thinned_but_keep_their_peaks(run: RunDir) -> None:
    rows = [make(MetricRow, step=s, loss=99.0 if s == 4321 else 2.0) for s in range(1, 5001)]
    run.metrics.write_text("".join(json.dumps(row.document()) + "\n" for row in rows))
    main = curves_of(gather(run))[2]
    assert len(main.steps) <= MAX_POINTS
    assert (main.steps[0], main.steps[-1]) == (1, 5000)
    assert 4321 in main.steps


def test_speed_that_was_not_measured_says_so(run: RunDir) -> None:
    make(StepProfile, torch_tok_s=None, not_measured={"torch_tok_s": "no extra torch"}).save(
        run.path
    )
    speed = page_of(run).speed
    assert [bar.name for bar in speed.bars] == ["this engine"]
    assert not any("tokens per second of PyTorch" in sentence for sentence in speed.words)
    assert "medians over 40 steps" in speed.words[0]
    assert "no extra torch" in write_report(run).read_text()


def test_every_node_has_a_place_of_its_own() -> None:
    graph = graph_record()
    layout = lay_out(graph)
    assert [box.id for box in layout.columns] == ["forward", "backward", "update"]
    assert {box.id for box in layout.nodes} == {node.id for node in graph.nodes}
    at = {box.id: box for box in layout.nodes}
    for box in layout.nodes:
        assert 0 <= box.x <= layout.width - WIDTH
        assert 0 <= box.y <= layout.height - HEIGHT
    boxes = sorted(layout.nodes, key=lambda box: (box.y, box.x))
    for a, b in pairwise(boxes):
        assert a.y != b.y or a.x + WIDTH <= b.x
    assert at["embed"].y < at["layers.0.attn.norm"].y < at["layers.0.attn.mix"].y
    assert at["layers.1.ffn.add"].y < at["layers.2.attn.norm"].y < at["head"].y
    assert at["layers.2.ffn.down@d"].y > at["layers.2.attn.mix@d"].y > at["layers.0.ffn.up@d"].y
    assert sum(box.id.startswith("layer ") for box in layout.frames) == 3 * LAYERS
    reads = {(edge.source, edge.target) for edge in layout.edges}
    assert ("layers.0.attn.norm", "layers.0.attn.v") in reads
    makers = {value.id for node in graph.nodes for value in node.outputs}
    assert len(reads) == sum(len(set(node.inputs) & makers) for node in graph.nodes)


def test_a_graph_without_nodes_is_drawn_as_nothing(run: RunDir) -> None:
    GraphFile(name="empty", inputs=(), nodes=()).save(run.path)
    assert page_of(run).layout == lay_out(GraphFile(name="", inputs=(), nodes=()))
    write_report(run)
    lone = GraphNode(id="x", op="sink", section="aside", inputs=("nowhere",), outputs=())
    GraphFile(name="odd", inputs=(), nodes=(lone,)).save(run.path)
    assert "makes nothing" in write_report(run).read_text()


def test_nodes_show_their_shapes(good: RunDir) -> None:
    shapes = page_of(good).shapes
    assert shapes["layers.0.attn.mix"] == "f32 M×96"
    assert good.report.read_text().count("f32 M×96</text>") == len(shapes)


def test_token_texts_are_those_of_the_library() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    made.train_from_iterator(['<svg x="1">é ±</svg>\n'] * 9, trainer)
    made.add_tokens([tokenizers.AddedToken("[circle]", normalized=False)])
    texts = vocabulary(made.to_str().encode(), "it")
    assert len(texts) == made.get_vocab_size()
    assert texts[made.token_to_id("[circle]")] == "[circle]"
    shown = {id: made.decode([id]) for id in texts}
    whole = {id: text for id, text in shown.items() if "\ufffd" not in text}
    assert len(whole) > 130
    assert all(texts[id] == text for id, text in whole.items())
    assert all(texts[id].startswith("\\x") for id in shown.keys() - whole.keys())
    with pytest.raises(InputError, match="it"):
        vocabulary(b"{", "it")


class Structure(HTMLParser):
    """The elements and the visible text of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def structure(text: str) -> Structure:
    """Parses a page."""
    parser = Structure()
    parser.feed(text)
    return parser


def test_hostile_texts_stay_texts(tmp_path: Path) -> None:
    name = "run{{7*7}}<img src=x onerror=alert(1)>"
    run = example_run(tmp_path / name, hostile=HOSTILE, steps=8)
    text = write_report(run).read_text()
    page = structure(text)
    assert [attrs for tag, attrs in page.tags if tag == "script"] == [
        {"type": "application/json", "id": "page-data"},
        {},
    ]
    images = [attrs["src"] or "" for tag, attrs in page.tags if tag == "img"]
    assert len(images) == samples_record().n_valid
    assert all(source.startswith("data:image/svg+xml;base64,") for source in images)
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
    assert page.text.count(HOSTILE) > 20
    data = re.search(r'id="page-data">(.*?)</script>', text, re.DOTALL)
    assert data is not None
    assert not set("<>&") & set(data[1])
    assert HOSTILE in json.dumps(json.loads(data[1]), ensure_ascii=False)


def test_the_page_needs_nothing_else(good: RunDir) -> None:
    text = good.report.read_text()
    addresses = [
        value
        for _, attrs in structure(text).tags
        for name, value in attrs.items()
        if name in ("src", "href", "action", "data", "poster", "srcset")
    ]
    assert addresses
    assert all(address and address.startswith(("#", "data:")) for address in addresses)
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|WebSocket|import\(", text)
    assert re.findall(r"https?://[^\"'\s<]+", re.sub(r"base64,[^\"]+", "", text)) == [
        found for found in re.findall(r"https?://[^\"'\s<]+", text) if "www.w3.org" in found
    ]


def test_the_report_is_written_in_one_rename(run: RunDir) -> None:
    write_report(run)
    before = run.report.stat().st_ino
    assert write_report(run) == run.report
    assert run.report.stat().st_ino != before
    assert not list(run.path.glob(".*.tmp"))


def test_the_verb_writes_the_page(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["report"] == str(run.report)
    assert run.report.exists()
    assert main(["report", str(run.path / "nowhere")]) == 4
    assert "nowhere" in capsys.readouterr().err
