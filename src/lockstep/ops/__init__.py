"""The registry of ops; importing this room fills it."""

from lockstep.ops.registry import OPS

__all__ = ["OPS"]
