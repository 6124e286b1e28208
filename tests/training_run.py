"""A small run that the tests of training share: its data, its flags, and what it ends with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

from lockstep.artifacts import RunDir
from lockstep.artifacts.checkpoint_state import CheckpointState
from lockstep.artifacts.metrics import read_metrics
from lockstep.artifacts.train_report import E2E_FILE, TrainReport
from lockstep.cli.main import main
from lockstep.data.corpus import Corpus, build_corpus
from lockstep.data.grammar import all_prompts

INIT = (
    "--layers=2", "--embed-dim=32", "--hidden-dim=48", "--num-heads=4", "--num-kv-heads=2",
    "--vocab-size=200", "--context-len=96", "--init=xavier_uniform", "--seed=7",
)  # fmt: skip
SAVE_EVERY = 5
STEPS = 60
TRAIN = (
    "--pack-mode=stream", "--seq-len=32", "--batch-size=2", "--grad-accum=2",
    "--total-tokens=2560", "--epochs=3", "--lr=3e-3", f"--save-every={SAVE_EVERY}",
    "--keep-last=2", "--threads=2",
)  # fmt: skip
ALONE = ("--no-promote", "--no-post-train-eval")


def small_corpus() -> Corpus:
    """A few drawings of each of some prompts, in all three splits."""
    return build_corpus(rows_per_prompt=2, prompts=islice(all_prompts(), 0, None, 23))


def new_run(path: Path) -> RunDir:
    """A run directory that has not been trained."""
    assert main(["init", str(path), *INIT]) == 0
    return RunDir(path)


def train(run: RunDir, *flags: str) -> int:
    """Trains in this process and returns the exit code."""
    return main(["train", str(run.path), *flags])


# Run by a child rather than between fork and exec: a process with large arenas may not fork.
_LIMITED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
os.execv(sys.argv[2], sys.argv[2:])
"""


def start(run: RunDir, *flags: str, most_bytes: int | None = None) -> Any:
    """Trains in a process of its own, which may write no file of more than `most_bytes`."""
    command = [sys.executable, "-m", "lockstep.cli.main", "train", str(run.path), *flags]
    if most_bytes is not None:
        command = [sys.executable, "-c", _LIMITED, str(most_bytes), *command]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ)
    )


def result(run: RunDir) -> dict[str, Any]:
    """All bits that a training ends with: parameters, moments, cursor, and the curve by step."""
    current = run.checkpoints / "current"
    state = CheckpointState.load(current)
    curve = [(r.step, r.loss, r.grad_norm, r.lr, r.tokens_seen) for r in read_metrics(run.metrics)]
    return {
        "params": TrainReport.load(run.path, E2E_FILE).params_sha256,
        "moments": state.files["moments.safetensors"].sha256,
        "cursor": state.cursor,
        "step": state.step,
        "curve": curve,
    }


def error_of(text: str) -> str:
    """The message in the document that --json prints for an error."""
    message: str = json.loads(text)["error"]["message"]
    return message
