"""The twin: an independent PyTorch training with the start, the data and the schedule of a run."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from importlib.metadata import version
from typing import Any

import numpy as np

from lockstep.artifacts import RunDir
from lockstep.artifacts.train_config import TrainConfig
from lockstep.artifacts.train_settings import TrainSettings
from lockstep.artifacts.train_torch_ref import TorchReference, TorchStep
from lockstep.build import Model, model_of
from lockstep.data.pack import Batches, Cursor
from lockstep.data.rows import read_rows
from lockstep.engine.initialise import initialise
from lockstep.engine.trainer import Microbatch, sequences_per_call
from lockstep.errors import EnvironmentLacks, InputError
from lockstep.ir import Array
from lockstep.tokenizers import Tokenizer
from lockstep.training.loop import Budget, microbatches
from lockstep.training.prepare import DATASET, TRAIN_FILE, windows_of
from lockstep.training.train import schedule_of

# At a run's sizes PyTorch gains little from a second thread; and on a busy machine its threads,
# which wait by spinning, took ten times as long with two as with one.
TORCH_THREADS = 1


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What both sides are given: the model, its start, and the batches and rates of each step."""

    model: Model
    config: TrainConfig
    settings: TrainSettings
    budget: Budget
    start: Mapping[str, Array]
    steps: tuple[tuple[Microbatch, ...], ...]
    per_call: int  # sequences of a microbatch, as our program takes them
    lrs: tuple[float, ...]

    @classmethod
    def of(cls, run: RunDir, n_steps: int | None = None) -> Recipe:
        """The recipe of a run's training, or of its first steps.

        Raises: InputError if a record of the run is missing or damaged, or its tokenizer another's.
        """
        config, settings = TrainConfig.load(run.path), TrainSettings.load(run.path)
        model = model_of(config.template, config.family_config)
        start = {id: np.empty(shape, np.float32) for id, shape in model.shapes.items()}
        initialise(start, config.init, config.train_seed)
        rows = read_rows(run.path / DATASET / TRAIN_FILE)
        tokenizer = Tokenizer.load(run.tokenizer)
        if tokenizer.vocab_size > config.vocab_size:  # its ids would lie beyond the tables
            raise InputError(
                f"{run.tokenizer}: expected at most {config.vocab_size} ids, those of the model, "
                f"got {tokenizer.vocab_size}",
                hint="restore the tokenizer that the run was trained with",
            )
        windows = windows_of(rows, tokenizer, settings)
        budget = Budget.of(settings, len(windows))
        per_call = sequences_per_call(settings.batch, settings.seq_len)
        batches, cursor = Batches(windows, settings.seed), Cursor()
        steps = []
        for _ in range(min(n_steps or budget.total_steps, budget.total_steps)):
            taken, cursor = batches.take(cursor, budget.windows_per_step)
            steps.append(tuple(microbatches(taken, per_call)))
        schedule = schedule_of(settings, budget)
        lrs = tuple(schedule.rate(step) for step in range(1, len(steps) + 1))
        return cls(
            model=model,
            config=config,
            settings=settings,
            budget=budget,
            start=start,
            steps=tuple(steps),
            per_call=per_call,
            lrs=lrs,
        )


@dataclass(frozen=True, kw_only=True)
class Twin:
    """What PyTorch made of a recipe."""

    reference: TorchReference
    parameters: Mapping[str, Array]


def train_twin(run: RunDir, recipe: Recipe) -> Twin:
    """Trains transformers' model in PyTorch by the recipe.

    Raises: EnvironmentLacks if torch or transformers is not installed.
    """
    oracle = require_oracle()
    settings, adamw = recipe.settings, asdict(recipe.config.adamw)
    times = [time.perf_counter()]
    with oracle.threads(TORCH_THREADS):
        trained = oracle.train(
            recipe.model.family,
            recipe.model.config,
            recipe.start,
            recipe.steps,
            recipe.lrs,
            optimizer=oracle.OptimizerSettings(
                name=settings.optimizer, max_norm=settings.max_grad_norm, **adamw
            ),
            on_step=lambda record, model: times.append(time.perf_counter()),
        )
    curve = tuple(
        TorchStep(
            step=record.step,
            epoch=recipe.budget.epoch(record.step),
            loss=record.loss,
            grad_norm=record.grad_norm,
            lr=record.lr,
            step_ms=1e3 * (times[i + 1] - times[i]),
        )
        for i, record in enumerate(trained.steps)
    )
    reference = _reference(run, recipe, curve, trained.parameters, times[-1] - times[0])
    return Twin(reference=reference, parameters=trained.parameters)


def require_oracle() -> Any:
    """The oracle's room, which needs PyTorch.

    Raises: EnvironmentLacks if torch or transformers is not installed.
    """
    try:
        from lockstep import oracle
    except ImportError as error:
        raise EnvironmentLacks(
            f"oracle: expected torch and transformers, got: {error}",
            hint="install them with: pip install 'lockstep[torch,oracle]'",
        ) from error
    return oracle


def parameters_sha256(parameters: Mapping[str, Array]) -> str:
    """One hash over all tensors, by id."""
    digest = sha256()
    for id in sorted(parameters):
        digest.update(id.encode())
        digest.update(np.ascontiguousarray(parameters[id]).tobytes())
    return digest.hexdigest()


def _reference(
    run: RunDir,
    recipe: Recipe,
    curve: tuple[TorchStep, ...],
    parameters: Mapping[str, Array],
    seconds: float,
) -> TorchReference:
    config, settings = recipe.config, recipe.settings
    losses = [row.loss for row in curve]
    return TorchReference(
        run_dir=str(run.path),
        model_class=recipe.model.family.hf_class,
        torch_version=version("torch"),
        transformers_version=version("transformers"),
        epochs=settings.epochs,
        seq_len=settings.seq_len,
        total_tokens=sum(m.n_targets for step in recipe.steps for m in step),
        steps=len(curve),
        lr=settings.lr,
        weight_decay=config.adamw.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        seed=settings.seed,
        threads=TORCH_THREADS,
        vocab_size=config.vocab_size,
        num_layers=config.num_layers,
        embed_dim=config.embed_dim,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        rope_theta=config.rope_theta,
        first_loss=losses[0],
        final_loss=losses[-1],
        min_loss=min(losses),
        loss_curve=curve,
        params_sha256=parameters_sha256(parameters),
        wall_s=seconds,
    )
