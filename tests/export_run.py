"""A run with a tokenizer and promoted weights that cost no training, for the tests of exports."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from training_run import INIT, small_corpus

from lockstep.artifacts import RunDir
from lockstep.artifacts.train_config import TrainConfig
from lockstep.build import model_of
from lockstep.cli.main import main
from lockstep.data.grammar import CONTROL_TAGS
from lockstep.engine.bump import write_bump
from lockstep.engine.initialise import initialise
from lockstep.engine.promotion import promote
from lockstep.tokenizers import Kind, train_tokenizer
from lockstep.training.create import weight_file_config


def promoted_run(path: Path, kind: Kind = "ascii_bpe") -> RunDir:
    """A run whose weights are drawn, with a tokenizer that was trained on a small corpus."""
    size = {"ascii_bpe": 200, "bpe": 320}[kind]
    assert main(["init", str(path), *INIT, f"--vocab-size={size}"]) == 0
    run = RunDir(path)
    config = TrainConfig.load(run.path)
    rows = small_corpus().train
    tags = CONTROL_TAGS if kind == "ascii_bpe" else CONTROL_TAGS[:2]
    tokenizer = train_tokenizer(kind, rows, config.vocab_size, tags)
    tokenizer.save(run.path)
    model = model_of(config.template, config.family_config)
    parameters = {id: np.empty(shape, np.float32) for id, shape in model.shapes.items()}
    initialise(parameters, "xavier_uniform", 3)
    drawn = np.random.default_rng(5)
    for id, array in parameters.items():  # wide enough that no choice is a tie, gains not one
        scale = 4.0 if array.ndim > 1 else drawn.uniform(0.6, 1.5, array.shape)
        parameters[id] = (array * scale).astype(np.float32)
    made = path / "made"
    made.mkdir()
    write_bump(
        made, parameters, template=config.template, config=weight_file_config(config),
        tokenizer_sha256=tokenizer.sha256, generated_at="2026-01-01T00:00:00Z", step=1,
        reason="test", run_id=None, checkpoint=None,
    )  # fmt: skip
    promote(run, made, "step-1")
    shutil.rmtree(made)
    return run
