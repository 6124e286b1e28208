"""Passes: Graph -> Graph, one public function each, and the two that plan: schedule and memory."""

from lockstep.passes.autodiff import autodiff
from lockstep.passes.fuse import fuse
from lockstep.passes.optimizer import OptimizerSpec, add_optimizer
from lockstep.passes.pack import pack
from lockstep.passes.plan_memory import plan_memory
from lockstep.passes.quantize import Target, quantize
from lockstep.passes.schedule import schedule
from lockstep.passes.take_early import take_early

__all__ = [
    "OptimizerSpec",
    "Target",
    "add_optimizer",
    "autodiff",
    "fuse",
    "pack",
    "plan_memory",
    "quantize",
    "schedule",
    "take_early",
]
