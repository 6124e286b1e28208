"""A run directory with every file, as a training would leave it; for the tests of the records."""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

from example_graph import graph_record

from lockstep.artifacts import Check, RunDir, append_line
from lockstep.artifacts.codec import keys_of
from lockstep.artifacts.compare import Compare, Comparison, Guilty, NodeRow
from lockstep.artifacts.dataset_profile import DatasetProfile
from lockstep.artifacts.dataset_qc import DatasetQc
from lockstep.artifacts.demo import Demo
from lockstep.artifacts.go import Go
from lockstep.artifacts.loss_curve import LossRow
from lockstep.artifacts.metrics import MetricRow
from lockstep.artifacts.pipeline_report import (
    CANARY_FILE,
    LOSS_MAX,
    LOSS_MEAN,
    PARAM_MAX,
    PipelineReport,
)
from lockstep.artifacts.post_train_eval import PostTrainEval
from lockstep.artifacts.regimen import Regimen, RegimenStage, RegimenSummary
from lockstep.artifacts.samples import Sample, Samples, SampleToken
from lockstep.artifacts.step_profile import StepProfile
from lockstep.artifacts.tokenizer_roundtrip import LineEval, RoundtripRow, TokenizerRoundtrip
from lockstep.artifacts.train_config import TrainConfig
from lockstep.artifacts.train_report import E2E_FILE, TrainReport
from lockstep.artifacts.train_torch_ref import TorchReference, TorchStep
from lockstep.artifacts.weights_manifest import WeightsManifest

T = TypeVar("T")
RUN_ID = "ascii_bpe_20260301_171735"
SHA = "5f" * 32
HOSTILE = "</script><img src=x onerror=alert(1)>{{7*7}}<!--"
_PLAIN = {str: "text", int: 1, float: 0.5, bool: True, type(None): None, Any: None}
STAGES = {
    "D1": ("Largest loss difference, free-running", 2e-6, 1e-5, 5, "steps", "PyTorch"),
    "E1": ("Bytes that differ", 0.0, 0.0, 4_953_600, "bytes", "the first training"),
    "F1": ("Bytes that differ", 0.0, 0.0, 4_953_600, "bytes", "the straight training"),
}


def make(cls: type[T], **given: Any) -> T:
    """A record whose other fields hold plain values of their types."""
    hints = keys_of(cls).values()
    return cls(**{name: given[name] if name in given else _plain(hint) for name, hint in hints})


def _plain(hint: Any) -> Any:
    args = typing.get_args(hint)
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return _plain(args[0])
    if origin is typing.Literal:
        return args[0]
    if origin is tuple:
        return () if args[1:] == (...,) else tuple(_plain(arg) for arg in args)
    if origin is dict:
        return {}
    return make(hint) if dataclasses.is_dataclass(hint) else _PLAIN[hint]


def check(id: str = "loss_max", figure: float = 3e-6, bound: float = 1e-4, **more: Any) -> Check:
    """A check that passes unless told otherwise."""
    plain = {
        "name": "Largest loss difference",
        "against": "transformers Qwen3ForCausalLM, float32",
        "compared": 40,
        "unit": "steps",
        "relation": "<=",
    }
    return Check.measured(id=id, figure=figure, bound=bound, **(plain | more))


def example_run(path: Path, *, hostile: str = "", steps: int = 120) -> RunDir:
    """Writes the files; `hostile` is put wherever a text from outside may stand."""
    run = RunDir(path).create()
    for record in records(hostile):
        record.save(run.path)
    train_report(steps, 3).save(run.path, E2E_FILE)
    for row in (1, 2):
        work = run.canary(row).work(RUN_ID)
        train_report(40, row).save(work)
        torch_reference(40, row).save(work)
        pipeline_report().save(run.canary(row).path, CANARY_FILE)
    for step in range(1, steps + 1):
        row = {"loss": loss(step, 3), "grad_norm": grad_norm(step), "tokens_seen": 512 * step}
        append_line(run.metrics, make(MetricRow, step=step, **row))
    added = [{"id": 0, "content": "[circle]"}, {"id": 1, "content": "[palette:cool]"}]
    vocab = {"<svg": 2, "Ġr=": 3, '"20"': 4, "Ġcx=": 5, "/>" + hostile: 6}
    run.tokenizer.write_text(json.dumps({"model": {"vocab": vocab}, "added_tokens": added}))
    return run


def records(hostile: str = "") -> list[Any]:
    """The records at the top of a run."""
    drawn = samples_record(hostile)
    text = '[circle][palette:cool]<svg r="20" cx="20"/>' + hostile
    row = make(RoundtripRow, token_ids=(0, 1, 2, 3, 4, 5, 4, 6), source=text, decoded=text)
    lines = make(LineEval, evaluated_lines=1800, total_non_empty_lines=1800, exact_match_lines=1800)
    controls = {"[circle]": 0, "[palette:cool]": 1}
    names = ("dataset_qc_pass", "tokenizer_exact_match", "D1_E1_F1_pass", "canary_row1_row2_pass")
    return [
        make(TrainConfig, template="qwen3" + hostile, n_parameters=412_800, num_layers=3),
        make(DatasetQc, non_empty_lines=1800, total_lines=1800),
        make(DatasetProfile),
        make(TokenizerRoundtrip, line_eval=lines, sample_rows=(row,), control_tags=controls),
        make(StepProfile, train_tok_s=44_520.0, torch_tok_s=16_516.0),
        make(WeightsManifest, weights_sha256=SHA, step=120),
        make(PipelineReport, checks=(check("loss_fell", 0.4, 1.0), check("dataset_qc", 0.0, 0.0))),
        regimen_record(),
        compare_record(),
        drawn,
        make(
            PostTrainEval,
            weights_sha256=SHA,
            min_valid_svg_rate=0.7,
            min_faithfulness=0.6,
            sample_count=len(drawn.rows),
            valid_count=drawn.n_valid,
            predicates_true=drawn.n_predicates_true,
            predicates_total=drawn.n_predicates,
        ),
        graph_record(hostile),
        Go(go=True, checks=dict.fromkeys(names, True), generated_at="", run_dir="", evidence=()),
        make(Demo, checks=(check("resume", 0.0, 0.0, name="Bytes after kill" + hostile),)),
    ]


def loss(step: int, salt: int) -> float:
    """A curve that falls like a loss."""
    return 1.1 + 4.6 * math.exp(-step / (14 + 3 * salt)) + 0.05 * math.sin(step * 1.7 + salt)


def grad_norm(step: int) -> float:
    """A curve that falls like a norm."""
    return 0.4 + 2 * math.exp(-step / 30)


def train_report(steps: int, salt: int) -> TrainReport:
    """One training by this engine."""
    curve = (
        make(LossRow, step=s, loss_ck=loss(s, salt), grad_norm=grad_norm(s))
        for s in range(1, steps + 1)
    )
    final = 1.4e-6
    return make(TrainReport, loss_curve=tuple(curve), final_param_max_abs_diff=final, steps=steps)


def torch_reference(steps: int, salt: int) -> TorchReference:
    """The same training by PyTorch, a little apart."""
    curve = tuple(
        make(
            TorchStep,
            step=s,
            loss=loss(s, salt) + 2e-6 * math.sin(s * 3.1),
            grad_norm=grad_norm(s) + 1e-6 * math.cos(s),
        )
        for s in range(1, steps + 1)
    )
    return make(TorchReference, loss_curve=curve, steps=steps)


def pipeline_report(figure: float = 2e-6) -> PipelineReport:
    """A canary's verdict over a figure that is held against 1e-4."""
    checks = (
        check(f"canary_{LOSS_MAX}", figure),
        check(f"canary_{LOSS_MEAN}", 1e-6, 5e-5, name="Mean loss difference"),
        check(f"canary_{PARAM_MAX}", 1.4e-6, name="Largest difference of final parameters"),
    )
    good = figure <= 1e-4
    failures = () if good else ("canary_loss_max",)
    status = "pass" if good else "fail"
    return make(PipelineReport, status=status, failures=failures, checks=checks)


def regimen_record(failed: str = "") -> Regimen:
    """The three stages; one of them may have failed."""
    stages = []
    for id, (name, figure, bound, compared, unit, against) in STAGES.items():
        shown = 7.0 if id == failed else figure
        row = check(id, shown, bound, name=name, compared=compared, unit=unit, against=against)
        status = "FAIL" if id == failed else "PASS"
        stages.append(make(RegimenStage, id=id, status=status, checks=(row,)))
    ids = (failed,) if failed else ()
    summary = make(RegimenSummary, passed=not failed, failed_stage_ids=ids)
    return make(Regimen, stages=tuple(stages), summary=summary)


def compare_record(guilty: str = "") -> Compare:
    """A comparison that passes, or one with a culprit."""
    rows = tuple(
        make(
            NodeRow,
            id=node.id,
            op=node.op,
            local_error=0.5 if node.id == guilty else 1e-7 * (1 + i % 7),
            bound=1e-6,
            verdict="culprit" if node.id == guilty else "ok",
            covers=(),
        )
        for i, node in enumerate(graph_record().nodes)
    )
    fault = make(Guilty, id=guilty, c_file="model.c", c_line=117) if guilty else None
    pair = make(
        Comparison,
        left="generated C",
        right="float64 referee",
        passed=not guilty,
        nodes_compared=len(rows),
        first_guilty=fault,
        nodes=rows,
    )
    return make(Compare, passed=not guilty, comparisons=(pair,))


_BODIES = (
    ("circle", "cool", '<circle cx="32" cy="32" r="20" fill="#3a7bd5"/>'),
    ("rect", "warm", '<rect x="14" y="18" width="36" height="28" fill="#e2622b"/>'),
    ("ellipse", "pastel", '<ellipse cx="32" cy="32" rx="24" ry="14" fill="#b8d8c0"/>'),
    ("line", "neutral", '<path d="M8 50L24 30L40 36L56 12" fill="none" stroke="#555"/>'),
)


def samples_record(hostile: str = "", n: int = 15) -> Samples:
    """Samples of which some are wrong and two are no SVG."""
    rows = []
    for i in range(n):
        shape, palette, body = _BODIES[i % len(_BODIES)]
        space = ' xmlns="http://www.w3.org/2000/svg"' if i % 2 else ""  # the data's rows have none
        svg = f'<svg{space} viewBox="0 0 64 64">{body}</svg>'
        valid = i % 13 != 6
        text = svg if valid else svg[:70] + hostile
        pieces = [text[k : k + 6] + ("" if k else hostile) for k in range(0, len(text), 6)]
        tokens = (SampleToken(id=7 + j, text=piece) for j, piece in enumerate(pieces))
        sample = make(
            Sample,
            prompt=f"[{shape}][palette:{palette}]" + hostile,
            tokens=(SampleToken(id=0, text=f"[{shape}]"), *tokens),
            text=text,
            svg_valid=valid,
            svg=svg if valid else None,
            error="" if valid else "the text ends inside of an element" + hostile,
            predicates={shape: valid, f"palette:{palette}{hostile}": valid and i % 5 != 3},
            exact_copy=i == 2,
        )
        rows.append(sample)
    return make(Samples, weights_sha256=SHA, rows=tuple(rows))
