"""`lockstep init`: a run directory with its model's configuration and initial weights."""

from __future__ import annotations

from typing import Any, get_args

import click

from lockstep.artifacts import RunDir
from lockstep.artifacts.train_config import AdamWSettings
from lockstep.build import FAMILY_NAMES
from lockstep.cli.options import MODEL_DIMS, Finite, options, run_option
from lockstep.cli.verb import Outcome, Verb
from lockstep.engine.initialise import Init
from lockstep.training.create import ModelRequest, create_run

_BETA = Finite(0, 1, max_open=True)
_SHAPE = {"type": int, "show_default": True}
_DEFAULT = {"layers": 2, "embed_dim": 128, "hidden_dim": 256, "num_heads": 8, "num_kv_heads": 4}
_DEFAULT |= {"context_len": 128, "vocab_size": 512}


@click.command(cls=Verb)
@run_option
@click.option("--template", type=click.Choice(FAMILY_NAMES), default="qwen3", show_default=True,
              help="The architecture.")  # fmt: skip
@options(*((f, n, t, {**_SHAPE, "default": _DEFAULT[n]}) for f, n, t in MODEL_DIMS))
@click.option("--head-dim", type=int, help="Width of one head.  [default: embed-dim / num-heads]")
@click.option("--rope-theta", type=float, default=1e4, show_default=True, help="Base of rope.")
@click.option("--rms-norm-eps", type=float, default=1e-6, show_default=True, help="Eps of norms.")
@click.option("--tie-embeddings/--no-tie-embeddings", default=True, show_default=True,
              help="Use the embedding table as the output layer too.")  # fmt: skip
@click.option("--init", type=click.Choice(get_args(Init)), default="normal_0p02",
              show_default=True, help="How weights are drawn.")  # fmt: skip
@click.option("--seed", "--train-seed", type=click.IntRange(0, (1 << 63) - 1), default=42,
              show_default=True, help="Seed of weights and data order.")  # fmt: skip
@options(
    ("--adamw-beta1", "beta1", "AdamW's beta 1.",
     {"type": _BETA, "default": 0.9, "show_default": True}),
    ("--adamw-beta2", "beta2", "AdamW's beta 2.",
     {"type": _BETA, "default": 0.999, "show_default": True}),
    ("--adamw-eps", "eps", "AdamW's epsilon.",
     {"type": Finite(0, min_open=True), "default": 1e-8, "show_default": True}),
    ("--adamw-weight-decay", "weight_decay", "Decay of matrices; gains and biases have none.",
     {"type": Finite(0), "default": 0.01, "show_default": True}),
)  # fmt: skip
@click.option("--force", is_flag=True, help="Replace a run that is there.")
def command(
    run: RunDir, init: Init, seed: int, force: bool,
    beta1: float, beta2: float, eps: float, weight_decay: float, **model: Any,
) -> Outcome:  # fmt: skip
    """Make a run: its configuration, which never changes again, and its initial weights."""
    adamw = AdamWSettings(beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay)
    config = create_run(run, ModelRequest(**model), init=init, seed=seed, adamw=adamw, force=force)
    text = (
        f"{run.path}\n{config.template}, {config.num_layers} layers, width {config.embed_dim}, "
        f"{config.n_parameters:,} parameters\n"
        f"next: lockstep train {run.name} --data FILE"
    )
    return Outcome({"run_dir": str(run.path), "config": config.document()}, text)
