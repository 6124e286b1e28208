"""Initial weights: seeded, with a stream of random numbers of its own for each parameter."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from lockstep.errors import UsageError

Init = Literal["normal_0p02", "xavier_uniform", "xavier_normal", "kaiming_uniform", "zeros"]


def initialise(parameters: Mapping[str, NDArray[Any]], init: str, seed: int) -> None:
    """Fills the parameters in place; what one gets does not depend on which others there are.

    A vector is a gain (ones) or, if its name ends in `bias`, a bias (zeros); the scheme is for
    matrices (out, in), the embedding among them.

    Raises: UsageError if there is no such scheme.
    """
    if init not in get_args(Init):
        raise UsageError(
            f"init: expected one of {', '.join(get_args(Init))}, got {init!r}",
            hint="choose another --init",
        )
    for id, array in parameters.items():
        if array.ndim < 2:
            array[...] = 0.0 if id.endswith("bias") else 1.0
        else:
            array[...] = draw_matrix(array.shape, init, _stream(seed, id))


def draw_matrix(shape: tuple[int, ...], init: str, random: np.random.Generator) -> NDArray[Any]:
    """A matrix (out, in) drawn by the scheme.

    Source: Glorot and Bengio 2010 (xavier), arXiv:1502.01852 (kaiming, for a gain of sqrt 2).
    """
    fan_out, fan_in = shape[0], math.prod(shape[1:])
    if init == "zeros":
        return np.zeros(shape, np.float32)
    if init == "normal_0p02":
        found = random.normal(0.0, 0.02, shape)
    elif init == "xavier_normal":
        found = random.normal(0.0, math.sqrt(2.0 / (fan_in + fan_out)), shape)
    else:
        squared = 6.0 / (fan_in + fan_out) if init == "xavier_uniform" else 6.0 / fan_in
        found = random.uniform(-math.sqrt(squared), math.sqrt(squared), shape)
    return found.astype(np.float32)


def _stream(seed: int, id: str) -> np.random.Generator:
    digest = hashlib.sha256(f"{seed}:{id}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
