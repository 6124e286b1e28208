"""An independent training loop: transformers' model, torch's optimizer, torch's clipping.

It shares no code with our engine, so that an equal curve means something.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch

from lockstep.errors import UsageError
from lockstep.families import Family
from lockstep.ir import Array
from lockstep.oracle.transformers_model import (
    IGNORED_TARGET,
    Attention,
    Oracle,
    Precision,
    hf_model,
)

Microbatch = tuple[Array, Array]  # tokens (B, T) and targets (B, T); -1 is no target


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """The optimizer; `max_norm` 0 means no clipping."""

    name: Literal["adamw", "sgd"] = "adamw"
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    max_norm: float = 0.0


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step: mean loss over its tokens, norm of the gradient before clipping."""

    step: int
    loss: float
    grad_norm: float
    lr: float
    n_tokens: int


@dataclass(frozen=True)
class Trained:
    """The curve and the parameters by our id at its end."""

    steps: tuple[StepRecord, ...]
    parameters: dict[str, Array]


@contextmanager
def threads(n_threads: int) -> Iterator[None]:
    """Lets PyTorch use so many threads inside, and as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def train(
    family: Family[Any],
    config: Any,
    parameters: Mapping[str, Array],
    steps: Sequence[Sequence[Microbatch]],
    lrs: Sequence[float],
    *,
    optimizer: OptimizerSettings | None = None,
    precision: Precision = "float32",
    attention: Attention = "sdpa",
    first_step: int = 1,
    moments: Mapping[str, Array] | None = None,
    on_step: Callable[[StepRecord, Oracle], None] | None = None,
) -> Trained:
    """Trains transformers' model from these parameters, one list of microbatches for each step.

    The gradient of a step is that of the mean loss over all of its tokens. `moments` are AdamW's
    state before the first step, by the parameter's id with `@m` and `@v`.

    Raises: UsageError if there are not as many learning rates as steps, or a step has no token.
    """
    if len(lrs) != len(steps):
        raise UsageError(f"oracle: expected {len(steps)} learning rates, got {len(lrs)}")
    settings = optimizer or OptimizerSettings()
    oracle = hf_model(family, config, parameters, precision=precision, attention=attention)
    oracle.model.train()
    torch_optimizer = _optimizer(family, config, oracle, settings)
    if moments:
        _put_moments(torch_optimizer, oracle, moments, first_step)
    records = []
    for step, (microbatches, lr) in enumerate(zip(steps, lrs, strict=True), first_step):
        record = _step(oracle, torch_optimizer, settings, step, microbatches, lr)
        records.append(record)
        if on_step is not None:
            on_step(record, oracle)
    return Trained(tuple(records), oracle.values())


def _step(
    oracle: Oracle,
    torch_optimizer: Any,
    settings: OptimizerSettings,
    step: int,
    microbatches: Sequence[Microbatch],
    lr: float,
) -> StepRecord:
    n_tokens = sum(int((targets != IGNORED_TARGET).sum()) for _, targets in microbatches)
    if n_tokens == 0:
        raise UsageError(f"oracle step {step}: expected at least one target, got none")
    torch_optimizer.zero_grad(set_to_none=True)
    total = 0.0
    for tokens_BT, targets_BT in microbatches:
        with oracle.exactly():
            loss = oracle.summed_loss(oracle.logits(tokens_BT), targets_BT)
            (loss / n_tokens).backward()
        total += float(loss.detach())
    if settings.max_norm > 0:
        norm = torch.nn.utils.clip_grad_norm_(oracle.model.parameters(), settings.max_norm)
    else:
        norm = torch.nn.utils.get_total_norm([p.grad for p in oracle.model.parameters()])
    for group in torch_optimizer.param_groups:
        group["lr"] = lr
    torch_optimizer.step()
    return StepRecord(step, total / n_tokens, float(norm), lr, n_tokens)


def _optimizer(
    family: Family[Any], config: Any, oracle: Oracle, settings: OptimizerSettings
) -> Any:
    decays = {w.id: w.decay for w in family.weights(config)}
    groups = []
    for decay in (True, False):
        chosen = [p for id, p in oracle.parameters.items() if decays[id] == decay]
        weight_decay = settings.weight_decay if decay else 0.0
        groups.append({"params": chosen, "weight_decay": weight_decay})
    if settings.name == "sgd":
        return torch.optim.SGD(groups, lr=0.0)
    betas = (settings.beta1, settings.beta2)
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=settings.eps)


def _put_moments(
    torch_optimizer: Any, oracle: Oracle, moments: Mapping[str, Array], first_step: int
) -> None:
    """Puts AdamW where it is after `first_step` - 1 steps."""
    for id, parameter in oracle.parameters.items():
        mean, square = (torch.tensor(moments[f"{id}@{m}"], dtype=oracle.dtype) for m in ("m", "v"))
        torch_optimizer.state[parameter] = {
            "step": torch.tensor(float(first_step - 1)),
            "exp_avg": mean,
            "exp_avg_sq": square,
        }
