"""`init`: a run directory with a configuration that never changes again, and initial weights."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lockstep import __version__
from lockstep.artifacts import RunDir, Scalar, utc_now
from lockstep.artifacts.train_config import CONFIG_FILE, AdamWSettings, TrainConfig
from lockstep.build import Model, model_of
from lockstep.engine.bump import write_bump
from lockstep.engine.durable import new_directory
from lockstep.engine.initialise import Init, initialise
from lockstep.engine.promotion import promote
from lockstep.errors import BudgetError, UsageError
from lockstep.training.lock import sole_training


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRequest:
    """The model that `init` makes; without `head_dim` the width is split evenly over the heads."""

    template: str = "qwen3"
    layers: int = 2
    vocab_size: int = 256
    embed_dim: int = 128
    hidden_dim: int = 256
    num_heads: int = 8
    num_kv_heads: int = 4
    context_len: int = 128
    head_dim: int | None = None
    rope_theta: float = 1e6
    rms_norm_eps: float = 1e-6
    tie_embeddings: bool = True

    def family_config(self) -> dict[str, Scalar]:
        """The settings of the family's own config.

        Raises: UsageError if the width cannot be split over the heads.
        """
        head_dim = self.head_dim
        if head_dim is None:
            if self.num_heads < 1 or self.embed_dim % self.num_heads:
                raise UsageError(
                    f"embed-dim: expected a multiple of num-heads ({self.num_heads}), "
                    f"got {self.embed_dim}",
                    hint="choose another --num-heads, or give --head-dim",
                )
            head_dim = self.embed_dim // self.num_heads
        return {
            "vocab": self.vocab_size,
            "width": self.embed_dim,
            "ffn": self.hidden_dim,
            "layers": self.layers,
            "heads": self.num_heads,
            "kv_heads": self.num_kv_heads,
            "head_dim": head_dim,
            "context": self.context_len,
            "eps": self.rms_norm_eps,
            "theta": self.rope_theta,
            "tied": self.tie_embeddings,
        }


def create_run(
    run: RunDir,
    request: ModelRequest,
    *,
    init: Init,
    seed: int,
    adamw: AdamWSettings,
    force: bool = False,
) -> TrainConfig:
    """Makes the directory, its configuration and its initial weights.

    Raises: UsageError if the directory is in use and not to be replaced, or the model is nonsense;
    BudgetError if this machine's memory cannot hold its weights.
    """
    family_config = request.family_config()
    model = model_of(request.template, family_config)
    _refuse_more_than_memory(model)
    replaces = _replaces(run, force)
    config = TrainConfig(
        created_at=utc_now(),
        lockstep_version=__version__,
        template=request.template,
        num_layers=request.layers,
        embed_dim=request.embed_dim,
        hidden_dim=request.hidden_dim,
        vocab_size=request.vocab_size,
        num_heads=request.num_heads,
        num_kv_heads=request.num_kv_heads,
        head_dim=int(model.config.head_dim),
        context_len=request.context_len,
        rope_theta=request.rope_theta,
        rms_norm_eps=request.rms_norm_eps,
        tie_embeddings=request.tie_embeddings,
        dtype="fp32",
        n_parameters=model.n_parameters,
        init=init,
        train_seed=seed,
        adamw=adamw,
        family_config=family_config,
    )
    with (
        sole_training(run) if replaces else nullcontext(),
        new_directory(run.path) as directory,
    ):
        _write_initial_weights(RunDir(directory), config, model, init, seed)
        config.save(directory)
        config.save(directory, CONFIG_FILE)
    return config


def _refuse_more_than_memory(model: Model) -> None:
    """Insists on weights that fit; the system would end the process without a word."""
    need_bytes = 4 * model.n_parameters
    have_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if need_bytes > have_bytes:
        raise BudgetError(
            f"model: expected weights of at most {have_bytes / 2**30:.1f} GiB, the memory of this "
            f"machine, got {need_bytes / 2**30:.1f} GiB",
            hint="choose fewer --layers or a smaller --embed-dim, --hidden-dim or --vocab-size",
        )


def _replaces(run: RunDir, force: bool) -> bool:
    """Whether a run is replaced; anything else in its place than an empty directory is refused."""
    if not run.path.exists() or (run.path.is_dir() and not any(run.path.iterdir())):
        return False
    is_run = (run.path / TrainConfig.file).exists()
    if not (force and is_run):
        what = "a run" if is_run else "files that are no run"
        mend = "give --force to replace it" if is_run else "choose another name"
        raise UsageError(f"{run.path}: expected a new directory, got {what}", hint=mend)
    return True


def _write_initial_weights(
    run: RunDir, config: TrainConfig, model: Model, init: Init, seed: int
) -> None:
    parameters = {id: np.empty(shape, np.float32) for id, shape in model.shapes.items()}
    initialise(parameters, init, seed)
    with tempfile.TemporaryDirectory(dir=run.path, prefix=".init.") as directory:
        write_bump(
            Path(directory),
            parameters,
            template=config.template,
            config=weight_file_config(config),
            tokenizer_sha256=None,
            generated_at=config.created_at,
            step=0,
            reason="init",
            run_id=None,
            checkpoint=None,
        )
        promote(run, Path(directory), "init")


def weight_file_config(config: TrainConfig) -> dict[str, Scalar]:
    """The model's dimensions under the names that weight files use."""
    dims = {"num_layers" if k == "layers" else k: v for k, v in config.dims().items()}
    return {**dims, "rope_theta": config.rope_theta, "tie_embeddings": config.tie_embeddings}


def differences(config: TrainConfig, asked: Mapping[str, Scalar]) -> list[str]:
    """What was asked for and is not what the run has, one sentence each."""
    have: dict[str, Scalar] = {**config.dims(), "template": config.template}
    return [
        f"--{name.replace('_', '-')} is {have[name]}, got {value}"
        for name, value in asked.items()
        if value is not None and have[name] != value
    ]


def refuse_differences(run: RunDir, found: list[str]) -> None:
    """Insists that nothing differs.

    Raises: UsageError naming each difference.
    """
    if found:
        raise UsageError(
            f"run {run.name}: expected the configuration of the run, got others: "
            + "; ".join(found),
            hint="leave these flags out, or make another run with `lockstep init`",
        )
