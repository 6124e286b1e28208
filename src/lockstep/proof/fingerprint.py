"""What a verdict depends on, by content: if it changes, the verdict is stale."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import lockstep
from lockstep.artifacts import RunDir, content_hash
from lockstep.artifacts.regimen import Fingerprint, FingerprintEntry
from lockstep.artifacts.train_config import TrainConfig
from lockstep.artifacts.train_settings import TrainSettings

# Stage E1 holds its replay against the losses that the run recorded.
_INPUTS = (
    TrainConfig.file, TrainSettings.file, "tokenizer.json", "dataset/train.txt", "metrics.jsonl",
)  # fmt: skip
SOURCE = "source_sha256"  # under this name a canary's report keeps `source_sha256()`


def fingerprint_of(run: RunDir) -> Fingerprint:
    """The contents of the run's inputs and of our source."""
    entries = [(name, run.path / name) for name in _INPUTS]
    rows = tuple(
        FingerprintEntry(path=name, size=path.stat().st_size, sha256=content_hash(path))
        for name, path in (*entries, *_sources())
        if path.exists()
    )
    digest = _digest((row.path, row.sha256) for row in rows)
    return Fingerprint(algorithm="sha256", digest=digest, entries=rows)


def source_sha256() -> str:
    """One hash over our source."""
    return _digest((name, content_hash(path)) for name, path in _sources())


def _sources() -> list[tuple[str, Path]]:
    package = Path(lockstep.__file__).parent
    paths = sorted(p for p in package.rglob("*") if p.suffix in (".py", ".c", ".h"))
    return [(f"lockstep/{path.relative_to(package)}", path) for path in paths]


def _digest(entries: Iterable[tuple[str, str]]) -> str:
    text = "".join(f"{name}\0{sha256}\n" for name, sha256 in entries)
    return hashlib.sha256(text.encode()).hexdigest()
