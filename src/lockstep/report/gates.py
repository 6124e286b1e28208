"""The verdict table: each gate with its evidence; missing evidence is shown as missing."""

from __future__ import annotations

from dataclasses import dataclass

from lockstep.artifacts import content_hash
from lockstep.artifacts.check import Check
from lockstep.artifacts.compare import Compare, Comparison
from lockstep.artifacts.dataset_qc import DatasetQc
from lockstep.artifacts.go import Go
from lockstep.artifacts.pipeline_report import CANARY_FILE
from lockstep.artifacts.post_train_eval import PostTrainEval
from lockstep.artifacts.regimen import Regimen
from lockstep.artifacts.tokenizer_roundtrip import TokenizerRoundtrip
from lockstep.artifacts.train_config import TrainConfig
from lockstep.artifacts.train_settings import TrainSettings
from lockstep.report.evidence import CanaryEvidence, RunEvidence

REGIMEN_STAGES = {
    "D1": "Free-running training against PyTorch",
    "E1": "The same training twice",
    "F1": "A stop in the middle of an accumulation",
}

REGIMEN_INPUTS = (TrainConfig.file, TrainSettings.file, "tokenizer.json", "dataset/train.txt")


@dataclass(frozen=True, kw_only=True)
class Gate:
    """A group of checks under one title, and the files that hold them."""

    id: str
    title: str
    source: str
    checks: tuple[Check, ...]

    @property
    def verdict(self) -> str:
        """The worst verdict of the checks."""
        found = {check.verdict for check in self.checks}
        return next((v for v in ("fail", "missing") if v in found), "pass" if found else "missing")


def gates_of(run: RunEvidence) -> tuple[Gate, ...]:
    """All gates that a run is judged by, in the order in which they are passed."""
    gates = [
        Gate(id="data", title="Data set", source=DatasetQc.file, checks=(_data(run),)),
        Gate(
            id="tokenizer",
            title="Tokenizer",
            source=TokenizerRoundtrip.file,
            checks=(_round_trip(run),),
        ),
        *(_canary(run, canary) for canary in run.canaries),
        _regimen(run),
        _compare(run),
        _drawing(run),
        _go(run),
    ]
    known = {check.id for gate in gates for check in gate.checks}
    for id, title, record in (("training", "Training", run.pipeline), ("demo", "Demo", run.demo)):
        rest = tuple(check for check in (record.checks if record else ()) if check.id not in known)
        known |= {check.id for check in rest}
        if record and rest:
            gates.append(Gate(id=id, title=title, source=record.file, checks=rest))
    return tuple(gates)


def _data(run: RunEvidence) -> Check:
    name, against, unit = "Gates of the data set that fail", "its contract", "rows"
    if run.qc is None:
        return _missing(run, "dataset_qc", name, against, unit, DatasetQc.file)
    failed = run.qc.checks.failed
    return Check.measured(
        id="dataset_qc",
        name=name,
        against=against,
        compared=run.qc.non_empty_lines,
        unit=unit,
        figure=len(failed),
        relation="<=",
        bound=0,
        reason="gates that failed: " + ", ".join(failed) if failed else "",
    )


def _round_trip(run: RunEvidence) -> Check:
    name, against, unit = "Rows that do not come back", "the bytes of every row", "rows"
    trip = run.roundtrip
    if trip is None:
        return _missing(run, "tokenizer_roundtrip", name, against, unit, TokenizerRoundtrip.file)
    lines = trip.line_eval
    wrong = lines.total_non_empty_lines - lines.exact_match_lines
    others = [
        what
        for what, bad in (
            ("the bytes of the whole file differ", not trip.exact_match),
            ("encoding twice gave different ids", not trip.repeatable),
            ("tags that are not one token: " + ", ".join(trip.split_tags), bool(trip.split_tags)),
        )
        if bad
    ]
    return Check.measured(
        id="tokenizer_roundtrip",
        name=name,
        against=against,
        compared=lines.evaluated_lines,
        unit=unit,
        figure=wrong + len(others),
        relation="<=",
        bound=0,
        reason="; ".join(others),
    )


def _canary(run: RunEvidence, canary: CanaryEvidence) -> Gate:
    source = f"parity_svg_row{canary.row}/{CANARY_FILE}"
    if canary.pipeline is None:
        lack = _missing(
            run, f"canary{canary.row}", "Loss curves and parameters", "PyTorch", "steps", source
        )
        checks: tuple[Check, ...] = (lack,)
    else:
        checks = canary.pipeline.checks
    return Gate(
        id=f"canary{canary.row}", title=f"Canary, row {canary.row}", source=source, checks=checks
    )


def _regimen(run: RunEvidence) -> Gate:
    checks: list[Check] = []
    stale = stale_regimen(run)
    names = {stage.id: stage.name for stage in (run.regimen.stages if run.regimen else ())}
    for id, name in (names | REGIMEN_STAGES).items():
        stage = run.regimen.stage(id) if run.regimen else None
        if stage is None or stage.status == "SKIPPED" or not stage.checks or stale:
            absent = f"stage {id} did not run" if run.regimen else run.lack(Regimen.file)
            reason = stale or absent
            checks.append(
                Check.missing(id=id, name=f"{id} · {name}", against="", unit="", reason=reason)
            )
        else:
            checks += [_titled(check, f"{id} · {check.name}") for check in stage.checks]
    return Gate(id="regimen", title="Parity regimen", source=Regimen.file, checks=tuple(checks))


def _titled(check: Check, name: str) -> Check:
    fields = {f: getattr(check, f) for f in check.__dataclass_fields__}
    return Check(**{**fields, "name": name})


def _compare(run: RunEvidence) -> Gate:
    if run.compare is None:
        lack = _missing(run, "compare", "Node by node", "the float64 referee", "nodes", "")
        checks: tuple[Check, ...] = (lack,)
    else:
        pairs = enumerate(run.compare.comparisons)
        checks = tuple(comparison_check(i, pair) for i, pair in pairs)
    return Gate(id="compare", title="Node by node", source=Compare.file, checks=checks)


def comparison_check(index: int, pair: Comparison) -> Check:
    """The comparison as one check: nodes whose own error is over its bound."""
    guilty = sum(row.verdict in ("culprit", "victim") for row in pair.nodes)
    first = pair.first_guilty
    return Check.measured(
        id=f"compare{index}",
        name=f"Nodes of {pair.left} over their bound",
        against=pair.right,
        compared=pair.nodes_compared,
        unit="nodes",
        figure=max(guilty, int(not pair.passed)),
        relation="<=",
        bound=0,
        reason=f"first: {first.id} ({first.why})" if first else "",
    )


def _drawing(run: RunEvidence) -> Gate:
    found, unit, against = run.evaluation, "samples", "held-out prompts"
    stale = stale_weights(run, found.weights_sha256) if found else ""
    if found is None or found.status != "ok" or stale:
        reason = stale or (found.reason if found else run.lack(PostTrainEval.file))
        rows = (("valid_svg_rate", "Valid SVG"), ("tag_faithfulness", "Predicates true"))
        checks = tuple(
            Check.missing(
                id=id, name=name, against=against, unit=unit, reason=reason or "no reason"
            )
            for id, name in rows
        )
    else:
        checks = _drawing_checks(found, against)
    return Gate(id="drawing", title="Drawing", source=PostTrainEval.file, checks=checks)


def _drawing_checks(found: PostTrainEval, against: str) -> tuple[Check, ...]:
    n, predicates = found.sample_count, found.predicates_total
    return (
        Check.measured(
            id="valid_svg_rate",
            name="Valid SVG",
            against=against,
            compared=n,
            unit="samples",
            figure=found.valid_count / n if n else 0.0,
            relation=">=",
            bound=found.min_valid_svg_rate,
        ),
        Check.measured(
            id="tag_faithfulness",
            name="Predicates true",
            against="the tags of the prompts",
            compared=predicates,
            unit="predicates",
            figure=found.predicates_true / predicates if predicates else 0.0,
            relation=">=",
            bound=found.min_faithfulness,
        ),
    )


def stale_weights(run: RunEvidence, weights_sha256: str | None) -> str:
    """Why evidence is not about the run's weights, or nothing."""
    promoted = run.manifest.weights_sha256 if run.manifest else None
    if promoted is not None and weights_sha256 is not None and promoted != weights_sha256:
        return "it is about other weights than those that are promoted now"
    return ""


def stale_regimen(run: RunEvidence) -> str:
    """Which input of the run changed after the regimen, or nothing; of the code `go` knows."""
    for entry in run.regimen.fingerprint.entries if run.regimen else ():
        path = run.run.path / entry.path
        known = entry.path in REGIMEN_INPUTS
        if known and not (path.is_file() and content_hash(path) == entry.sha256):
            return f"{entry.path} changed after the regimen"
    return ""


def _go(run: RunEvidence) -> Gate:
    stale = stale_regimen(run)
    if run.go is None or stale:
        reason = stale or run.lack(Go.file)
        lack = Check.missing(
            id="go", name="GO", against="the checklist", unit="conditions", reason=reason
        )
        return Gate(id="go", title="Checklist", source=Go.file, checks=(lack,))
    held = [name for name, holds in run.go.checks.items() if holds]
    missed = [name for name, holds in run.go.checks.items() if not holds]
    check = Check.measured(
        id="go",
        name="Conditions of the checklist that hold",
        against="the checklist",
        compared=len(run.go.checks),
        unit="conditions",
        figure=len(held),
        relation=">=",
        bound=max(1, len(run.go.checks)),
        reason="not held: " + ", ".join(missed) if missed else "",
    )
    return Gate(id="go", title="Checklist", source=Go.file, checks=(check,))


def _missing(run: RunEvidence, id: str, name: str, against: str, unit: str, file: str) -> Check:
    reason = run.lack(file or Compare.file)
    return Check.missing(id=id, name=name, against=against, unit=unit, reason=reason)
