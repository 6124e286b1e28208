"""The registry of ops; importing this room fills it."""

import lockstep.ops.add
import lockstep.ops.cross_entropy
import lockstep.ops.embedding
import lockstep.ops.gelu_mul
import lockstep.ops.linear
import lockstep.ops.linear_packed
import lockstep.ops.rmsnorm
import lockstep.ops.silu_mul  # noqa: F401
from lockstep.ops.registry import OPS

__all__ = ["OPS"]
