"""The settings of a training: what was said, what the run remembers, and defaults."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from lockstep.artifacts import RunDir
from lockstep.artifacts.compare import Compare
from lockstep.artifacts.dataset_profile import DatasetProfile
from lockstep.artifacts.dataset_qc import DatasetQc
from lockstep.artifacts.demo import Demo
from lockstep.artifacts.files import explained
from lockstep.artifacts.go import Go
from lockstep.artifacts.pipeline_report import PipelineReport
from lockstep.artifacts.post_train_eval import PostTrainEval
from lockstep.artifacts.regimen import Regimen
from lockstep.artifacts.replay_accum import ReplayAccumulation
from lockstep.artifacts.replay_determinism import ReplayDeterminism
from lockstep.artifacts.runtime_stitch import RuntimeStitch
from lockstep.artifacts.samples import Samples
from lockstep.artifacts.tokenizer_roundtrip import TokenizerRoundtrip
from lockstep.artifacts.train_config import TrainConfig
from lockstep.artifacts.train_settings import FREE, TrainSettings
from lockstep.engine.checkpoint import list_checkpoints
from lockstep.engine.durable import remove_directory
from lockstep.errors import UsageError
from lockstep.tokenizers import MAX_VOCAB
from lockstep.training.loop import Budget
from lockstep.training.prepare import DATASET

DEFAULTS: Mapping[str, Any] = {
    "tokenizer": "ascii_bpe",
    "pre_tokenizer": "superbpe",
    "require_svg_rows": True,
    "packing": "sample",
    "prompt_loss": False,
    "epochs": 3,
    "batch": 8,
    "grad_accum": 1,
    "total_tokens": None,
    "optimizer": "adamw",
    "lr": 1e-3,
    "schedule": "cosine",
    "warmup_steps": 0,
    "final_lr_share": 0.1,
    "max_grad_norm": 1.0,
    "save_every": 200,
    "keep_last": 3,
}
WARMUP_SHARE = 0.05
# A step is held in memory as a whole; beyond these a slip of the finger would fill the machine.
_MOST_WINDOWS = 65_536
_MOST_STREAM_TOKENS = 1 << 27  # some gigabytes, as lists and as windows
_FLAGS = {"batch": "batch-size", "require_ascii": "require-ascii-data", "packing": "pack-mode"}
_RANGES: Mapping[str, tuple[int, int]] = {
    "epochs": (1, 1_000_000), "seq_len": (1, 1 << 24), "batch": (1, _MOST_WINDOWS),
    "grad_accum": (1, _MOST_WINDOWS), "total_tokens": (1, 1 << 50),
    "bpe_vocab_size": (1, MAX_VOCAB), "threads": (1, 256), "save_every": (0, 1 << 50),
    "keep_last": (0, 1 << 20), "max_grad_norm": (0, 1 << 50), "seed": (0, (1 << 63) - 1),
}  # fmt: skip
_ASIDE = ".replaced"
# What a training leaves in a run, apart from its work directory and the ledger, which are history.
_TRACES = (
    "checkpoints", "tokenizer.json", "metrics.jsonl", TrainSettings.file,
    DatasetQc.file, DatasetProfile.file, TokenizerRoundtrip.file,
    # What was found about it.
    PipelineReport.file, PostTrainEval.file, Samples.file, Compare.file, Regimen.file,
    RuntimeStitch.file, ReplayDeterminism.file, ReplayAccumulation.file, Go.file, Demo.file,
)  # fmt: skip


def resolve_settings(
    run: RunDir, config: TrainConfig, said: Mapping[str, Any], *, resume: bool, force: bool
) -> TrainSettings:
    """The settings of a new training, or those of the one that is resumed.

    Raises: UsageError if there is a training that is neither resumed nor replaced, or one is
    resumed with other settings than it has, naming each.
    """
    stored = TrainSettings.find(run.path)
    if stored is not None and resume:
        return _resumed(run, stored, said)
    if list_checkpoints(run.checkpoints) and not force:
        raise UsageError(
            f"run {run.name}: expected a run without a training, got one with checkpoints",
            hint="go on with --resume, or start again with --force",
        )
    own = {
        "require_ascii": said.get("tokenizer", DEFAULTS["tokenizer"]) == "ascii_bpe",
        "bpe_vocab_size": config.vocab_size,
        "seq_len": config.context_len,
        "seed": config.train_seed,
        "threads": min(len(os.sched_getaffinity(0)), 256),
    }
    settings = TrainSettings(**{**DEFAULTS, **own, **said})
    _check(settings, config)
    return settings


def _resumed(run: RunDir, stored: TrainSettings, said: Mapping[str, Any]) -> TrainSettings:
    wrong = [
        f"{_flag(name)} is {getattr(stored, name)}, got {value}"
        for name, value in said.items()
        if name not in FREE and getattr(stored, name) != value
    ]
    if wrong:
        raise UsageError(
            f"run {run.name}: expected the settings of the training, got others: "
            + "; ".join(wrong),
            hint="leave these flags out to resume, or start again with --force",
        )
    return replace(stored, **{name: value for name, value in said.items() if name in FREE})


def _flag(name: str) -> str:
    """How the command line spells a setting."""
    return "--" + _FLAGS.get(name, name).replace("_", "-")


def _check(settings: TrainSettings, config: TrainConfig) -> None:
    """Insists on numbers that a training can be made of."""
    for name, (least, most) in _RANGES.items():
        value, flag = getattr(settings, name), _flag(name)
        if value is not None and not least <= value <= most:
            raise UsageError(
                f"{flag}: expected {least} to {most}, got {value}",
                hint="choose a number in this range",
            )
    if not settings.lr > 0:
        raise UsageError(
            f"--lr: expected more than 0, got {settings.lr}", hint="choose a rate such as 1e-3"
        )
    if (n_windows := settings.batch * settings.grad_accum) > _MOST_WINDOWS:
        raise UsageError(
            f"--batch-size times --grad-accum: expected at most {_MOST_WINDOWS} sequences in a "
            f"step, got {n_windows}",
            hint="choose a smaller --batch-size or --grad-accum",
        )
    if settings.packing == "stream" and (settings.total_tokens or 0) > _MOST_STREAM_TOKENS:
        raise UsageError(
            f"--total-tokens: expected at most {_MOST_STREAM_TOKENS} in a stream, which is laid "
            f"out in memory, got {settings.total_tokens}",
            hint="choose fewer, and more --epochs",
        )
    if settings.seq_len > config.context_len:
        raise UsageError(
            f"--seq-len: expected at most {config.context_len}, the context of the run, "
            f"got {settings.seq_len}",
            hint="choose a smaller --seq-len, or a run with a larger --context-len",
        )


def with_warmup(settings: TrainSettings, budget: Budget) -> TrainSettings:
    """The settings with the warm-up that nobody named: a twentieth of all steps."""
    return replace(settings, warmup_steps=int(WARMUP_SHARE * budget.total_steps))


@contextmanager
def replacing_training(run: RunDir, *, keep_data: bool) -> Iterator[None]:
    """Sets the training of a run aside while another one is prepared.

    It comes back if the block raises, and goes if it does not; after a crash in the block,
    `restore_replaced` brings it back.
    """
    aside = run.path / _ASIDE
    names = _TRACES if keep_data else (*_TRACES, DATASET)
    with explained(aside):
        aside.mkdir()
        for name in names:
            if (run.path / name).exists():
                (run.path / name).rename(aside / name)
    try:
        yield
    except BaseException:
        for name in names:
            _remove(run.path / name)
        restore_replaced(run)
        raise
    remove_directory(aside)


def restore_replaced(run: RunDir) -> None:
    """Brings back a training that was set aside by a `train --force` which died preparing.

    Raises: EnvironmentLacks if the disk refuses.
    """
    aside = run.path / _ASIDE
    with explained(aside):
        for path in sorted(aside.iterdir()) if aside.is_dir() else ():
            _remove(run.path / path.name)
            path.rename(run.path / path.name)
        if aside.is_dir():
            aside.rmdir()
    for dead in run.path.glob(f".{_ASIDE}.*.dead"):
        shutil.rmtree(dead, ignore_errors=True)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
