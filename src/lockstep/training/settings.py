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
from lockstep.artifacts.dataset_profile import DatasetProfile
from lockstep.artifacts.dataset_qc import DatasetQc
from lockstep.artifacts.tokenizer_roundtrip import TokenizerRoundtrip
from lockstep.artifacts.train_config import TrainConfig
from lockstep.artifacts.train_settings import FREE, TrainSettings
from lockstep.engine.checkpoint import list_checkpoints
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
_FLAGS = {"batch": "batch-size", "require_ascii": "require-ascii-data", "packing": "pack-mode"}
_RANGES: Mapping[str, tuple[int, int]] = {
    "epochs": (1, 1_000_000), "seq_len": (1, 1 << 24), "batch": (1, _MOST_WINDOWS),
    "grad_accum": (1, _MOST_WINDOWS), "total_tokens": (1, 1 << 50),
    "bpe_vocab_size": (1, MAX_VOCAB), "threads": (1, 256), "save_every": (0, 1 << 50),
    "keep_last": (0, 1 << 20), "max_grad_norm": (0, 1 << 50), "seed": (0, (1 << 63) - 1),
}  # fmt: skip
# What a training leaves in a run, apart from its work directory and the ledger, which are history.
_TRACES = (
    "checkpoints", "tokenizer.json", "metrics.jsonl", TrainSettings.file,
    DatasetQc.file, DatasetProfile.file, TokenizerRoundtrip.file,
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
        "threads": len(os.sched_getaffinity(0)),
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

    It comes back if the block raises, and goes if it does not.
    """
    aside = run.path / f".replaced.{os.getpid()}"
    aside.mkdir(exist_ok=True)
    names = _TRACES if keep_data else (*_TRACES, DATASET)
    for name in names:
        if (run.path / name).exists():
            (run.path / name).rename(aside / name)
    try:
        yield
    except BaseException:
        for name in names:
            _remove(run.path / name)
            if (aside / name).exists():
                (aside / name).rename(run.path / name)
        aside.rmdir()
        raise
    _remove(aside)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
