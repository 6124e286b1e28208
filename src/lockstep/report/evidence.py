"""What a run directory holds, read once, with the reason for whatever cannot be had."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from lockstep.artifacts import Artifact, RunDir, content_hash, read_bytes
from lockstep.artifacts.compare import Compare
from lockstep.artifacts.dataset_profile import DatasetProfile
from lockstep.artifacts.dataset_qc import DatasetQc
from lockstep.artifacts.demo import Demo
from lockstep.artifacts.go import Go
from lockstep.artifacts.graph_file import GraphFile
from lockstep.artifacts.metrics import MetricRow, read_metrics
from lockstep.artifacts.pipeline_report import CANARY_FILE, PipelineReport
from lockstep.artifacts.post_train_eval import PostTrainEval
from lockstep.artifacts.regimen import Regimen
from lockstep.artifacts.samples import Samples
from lockstep.artifacts.step_profile import StepProfile
from lockstep.artifacts.tokenizer_roundtrip import TokenizerRoundtrip
from lockstep.artifacts.train_config import TrainConfig
from lockstep.artifacts.train_report import E2E_FILE, TrainReport
from lockstep.artifacts.train_torch_ref import TorchReference
from lockstep.artifacts.weights_manifest import WeightsManifest
from lockstep.errors import LockstepError
from lockstep.report.vocabulary import vocabulary

A = TypeVar("A", bound=Artifact)
CANARY_ROWS = (1, 2)


@dataclass(frozen=True, slots=True)
class Source:
    """A file that the page was made from.  Units: bytes."""

    file: str
    schema: str
    n_bytes: int
    sha256: str


class Reader:
    """Reads records and remembers what was read and what was not."""

    def __init__(self, run: RunDir) -> None:
        self.run = run
        self.sources: list[Source] = []
        self.lacks: dict[str, str] = {}

    def read(self, cls: type[A], directory: Path | None, file: str | None = None) -> A | None:
        """The record, or None with the reason kept."""
        if directory is None:
            return None
        path = directory / (file or cls.file)
        try:
            record = cls.find(directory, file)
            if record is None:
                self.lacks[self.name(path)] = f"there is no {self.name(path)}"
                return None
            self.note(path, cls.schema)
        except LockstepError as error:
            self.lacks[self.name(path)] = error.message.replace(str(path), self.name(path))
            return None
        return record

    def first(self, cls: type[A], places: Iterable[tuple[Path | None, str | None]]) -> A | None:
        """The record from the first place that has one."""
        found = (self.read(cls, directory, file) for directory, file in places)
        return next((record for record in found if record is not None), None)

    def metrics(self) -> tuple[MetricRow, ...]:
        """The telemetry; empty with the reason kept if there is none."""
        path = self.run.metrics
        if not path.exists():
            self.lacks[path.name] = f"there is no {path.name}"
            return ()
        try:
            rows = read_metrics(path)
            self.note(path, MetricRow.schema)
        except LockstepError as error:
            self.lacks[path.name] = error.message.replace(str(path), path.name)
            return ()
        return rows

    def vocabulary(self) -> dict[int, str]:
        """The text of each token; empty with the reason kept if there is no tokenizer."""
        path = self.run.tokenizer
        try:
            texts = vocabulary(read_bytes(path), str(path))
            self.note(path, "tokenizers")
        except LockstepError as error:
            self.lacks[path.name] = error.message.replace(str(path), path.name)
            return {}
        return texts

    def name(self, path: Path) -> str:
        """The path within the run directory."""
        return path.relative_to(self.run.path).as_posix()

    def note(self, path: Path, schema: str) -> None:
        """Remembers a file that was read."""
        size = path.stat().st_size
        self.sources.append(Source(self.name(path), schema, size, content_hash(path)))


@dataclass(frozen=True, kw_only=True)
class CanaryEvidence:
    """One row trained twice: by this engine and by PyTorch."""

    row: int
    pipeline: PipelineReport | None
    train: TrainReport | None
    torch: TorchReference | None


@dataclass(frozen=True, kw_only=True)
class RunEvidence:
    """All records of a run; `lacks` says for each missing file why it is missing."""

    run: RunDir
    config: TrainConfig | None
    qc: DatasetQc | None
    profile: DatasetProfile | None
    roundtrip: TokenizerRoundtrip | None
    vocabulary: dict[int, str]
    train: TrainReport | None
    torch: TorchReference | None
    metrics: tuple[MetricRow, ...]
    speed: StepProfile | None
    canaries: tuple[CanaryEvidence, ...]
    pipeline: PipelineReport | None
    regimen: Regimen | None
    compare: Compare | None
    evaluation: PostTrainEval | None
    samples: Samples | None
    manifest: WeightsManifest | None
    graph: GraphFile | None
    demo: Demo | None
    go: Go | None
    lacks: dict[str, str]
    sources: tuple[Source, ...]

    def lack(self, file: str) -> str:
        """Why there is no evidence in a file."""
        return self.lacks.get(file, f"there is no {file}")


def gather(run: RunDir) -> RunEvidence:
    """Reads everything that the page shows; a damaged file is a lack, not an end.

    Raises: InputError if there is no run directory.
    """
    reader = Reader(run.require())
    root, work = run.path, run.latest_work() or run.latest_work("bpe")
    return RunEvidence(
        run=run,
        config=reader.read(TrainConfig, root),
        qc=reader.read(DatasetQc, root),
        profile=reader.read(DatasetProfile, root),
        roundtrip=reader.read(TokenizerRoundtrip, root),
        vocabulary=reader.vocabulary(),
        train=reader.first(TrainReport, ((root, E2E_FILE), (work, None))),
        torch=reader.read(TorchReference, work),
        metrics=reader.metrics(),
        speed=reader.read(StepProfile, root),
        canaries=tuple(_canary(reader, row) for row in CANARY_ROWS),
        pipeline=reader.read(PipelineReport, root),
        regimen=reader.read(Regimen, root),
        compare=reader.read(Compare, root),
        evaluation=reader.read(PostTrainEval, root),
        samples=reader.read(Samples, root),
        manifest=reader.read(WeightsManifest, root),
        graph=reader.read(GraphFile, root),
        demo=reader.read(Demo, root),
        go=reader.read(Go, root),
        lacks=reader.lacks,
        sources=tuple(reader.sources),
    )


def _canary(reader: Reader, row: int) -> CanaryEvidence:
    canary = reader.run.canary(row)
    work = canary.latest_work()
    return CanaryEvidence(
        row=row,
        pipeline=reader.read(PipelineReport, canary.path, CANARY_FILE),
        train=reader.read(TrainReport, work),
        torch=reader.read(TorchReference, work),
    )
