"""The registry of ops; importing this room fills it."""

import lockstep.ops.rmsnorm  # noqa: F401
from lockstep.ops.registry import OPS

__all__ = ["OPS"]
