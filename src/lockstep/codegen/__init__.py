"""A lowered graph to C text and its manifest; pure: no files, no clock, no names of families."""

from lockstep.codegen.emit import Emitted, emit
from lockstep.codegen.record import graph_record

__all__ = ["Emitted", "emit", "graph_record"]
