"""Transformers' own class of a family, carrying our weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import transformers

from lockstep.errors import GateError
from lockstep.families import Family, Weight
from lockstep.ir import Array
from lockstep.oracle.exact import KeepFloat64

Precision = Literal["float32", "float64"]
Attention = Literal["eager", "sdpa"]
IGNORED_TARGET = -1


@dataclass(frozen=True)
class Answer:
    """What the oracle says about one batch; the loss is the mean over its valid tokens.

    Shapes: logits (B, T, V)
    """

    logits: Array
    loss: float
    n_tokens: int
    gradients: dict[str, Array]


class Oracle:
    """A model of transformers, seen through our ids."""

    def __init__(self, model: Any, weights: tuple[Weight, ...], precision: Precision) -> None:
        self.model = model
        self.precision = precision
        self.dtype = getattr(torch, precision)
        named = dict(model.named_parameters())
        self.parameters: dict[str, Any] = {w.id: named[w.hf] for w in weights}
        self._forms = {w.id: w.hf_form for w in weights}

    def exactly(self) -> AbstractContextManager[Any]:
        """The context in which the model really computes in its precision."""
        return KeepFloat64() if self.precision == "float64" else contextlib.nullcontext()

    def logits(self, tokens_BT: Array) -> Any:
        """The logits as a tensor of torch, with its graph."""
        with self.exactly():
            ids_BT = torch.from_numpy(np.ascontiguousarray(tokens_BT, dtype=np.int64))
            return self.model(input_ids=ids_BT, use_cache=False).logits

    def summed_loss(self, logits_BTV: Any, targets_BT: Array) -> Any:
        """The cross-entropy summed over the targets that are not ignored."""
        targets = torch.from_numpy(np.ascontiguousarray(targets_BT, dtype=np.int64)).reshape(-1)
        flat_MV = logits_BTV.reshape(-1, logits_BTV.shape[-1])
        return torch.nn.functional.cross_entropy(
            flat_MV, targets, ignore_index=IGNORED_TARGET, reduction="sum"
        )

    def losses_and_gradients(self, tokens_BT: Array, targets_BT: Array) -> Answer:
        """Logits, mean loss and the gradient of every parameter."""
        n_tokens = int((np.asarray(targets_BT) != IGNORED_TARGET).sum())
        self.model.zero_grad(set_to_none=True)
        with self.exactly():
            logits = self.logits(tokens_BT)
            loss = self.summed_loss(logits, targets_BT) / n_tokens
            loss.backward()
        gradients = {
            id: self._forms[id].gradient(p.grad.numpy()).copy() for id, p in self.parameters.items()
        }
        return Answer(logits.detach().numpy(), float(loss.detach()), n_tokens, gradients)

    def values(self) -> dict[str, Array]:
        """A copy of the parameters by our id."""
        return {
            id: self._forms[id].held(p.detach().numpy()).copy() for id, p in self.parameters.items()
        }


def hf_model(
    family: Family[Any],
    config: Any,
    parameters: Mapping[str, Array],
    *,
    precision: Precision = "float32",
    attention: Attention = "sdpa",
) -> Oracle:
    """Transformers' class with the weights that we have.

    Raises: GateError if the class does not take the config; ValueError if the parameters are not
    exactly those of the class: our bug.
    """
    model_class = getattr(transformers, family.hf_class)
    dtype = getattr(torch, precision)
    exactly = KeepFloat64() if precision == "float64" else contextlib.nullcontext()
    with exactly, refusing(f"a {family.name} of this config"):
        settings = model_class.config_class.from_dict(family.to_hf(config))
        settings._attn_implementation = attention
        model = model_class(settings).to(dtype).eval()
    weights = family.weights(config)
    named = dict(model.named_parameters())
    for ours, theirs in (
        ({w.hf for w in weights}, set(named)),
        ({w.id for w in weights}, set(parameters)),
    ):
        if ours != theirs:
            raise ValueError(f"{family.name}: names differ: {sorted(ours ^ theirs)}")
    with torch.no_grad():
        for weight in weights:
            held = parameters[weight.id].astype(precision)
            given = torch.from_numpy(np.ascontiguousarray(weight.hf_form.stored(held)))
            if named[weight.hf].shape != given.shape:
                raise ValueError(f"{weight.id}: {tuple(named[weight.hf].shape)} in {weight.hf}")
            named[weight.hf].copy_(given)
    return Oracle(model, weights, precision)


def logits_of_directory(path: Path, ids_T: Array) -> Array:
    """The float32 logits of the model that transformers itself reads from a directory.

    Shapes: ids (T,) -> logits (T, V)
    Raises: GateError if it cannot open it.
    """
    options = {"dtype": torch.float32, "attn_implementation": "eager", "local_files_only": True}
    with quiet_loading(), torch.no_grad():
        with refusing(path.name):
            model = transformers.AutoModelForCausalLM.from_pretrained(path, **options).eval()
        ids_BT = torch.from_numpy(np.asarray(ids_T, np.int64))[None]
        logits: Array = model(input_ids=ids_BT, use_cache=False).logits[0].numpy()
    return logits


@contextlib.contextmanager
def refusing(what: str) -> Iterator[None]:
    """Says as one error what transformers has against a model, which it raises as anything.

    Raises: GateError.
    """
    try:
        yield
    except Exception as error:
        said = f"{type(error).__name__}: {' '.join(str(error).split()):.300}"
        raise GateError(
            f"transformers cannot open {what}: {said}",
            hint="see whether the version that is installed knows this model",
        ) from error


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """Keeps transformers' progress bars off the terminal."""
    was_on = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            transformers.utils.logging.enable_progress_bar()
