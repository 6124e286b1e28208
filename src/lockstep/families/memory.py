"""What inference remembers of each sequence: keys and values by position, and states."""

from __future__ import annotations

from typing import Literal, Protocol

from lockstep.ir import Attr, Graph, InferenceShape, Value, f32
from lockstep.ops import OPS
from lockstep.ops.attend import room_size
from lockstep.ops.cache import cache_types


class Heads(Protocol):
    """The part of a config that attention needs."""

    @property
    def heads(self) -> int:
        """Query heads."""

    @property
    def kv_heads(self) -> int:
        """Key and value heads."""

    @property
    def head_dim(self) -> int:
        """Width of a head."""


class Attend(Protocol):
    """Causal attention: each row sees its own position and those before it in its sequence.

    `window` limits it to the last so many positions (0: all); `scale` is 1/sqrt(head_dim) unless
    given.
    """

    def __call__(
        self, id: str, q_MN: Value, k_MO: Value, v_MO: Value, *, window: int = 0, scale: float = 0.0
    ) -> Value:
        """Adds the nodes and returns the output."""


class Recur(Protocol):
    """An op that goes through the rows of each sequence in order, by its name.

    `state` is what it keeps of a sequence between calls: the dimensions of float32.
    """

    def __call__(
        self, op: str, id: str, *inputs: Value, state: tuple[int, ...], **attrs: Attr
    ) -> Value:
        """Adds the node and returns its first output."""


class Memory:
    """The caches and states of an inference graph, as its block adds them."""

    def __init__(
        self,
        graph: Graph,
        shape: InferenceShape,
        config: Heads,
        positions_M: Value,
        slots_M: Value,
    ) -> None:
        self.graph, self.shape, self.config = graph, shape, config
        self.positions_M, self.slots_M = positions_M, slots_M
        size = room_size(config.heads, config.kv_heads, config.head_dim, shape.context)
        graph.section = "init"
        self._room = graph.add(OPS["attend_room"], "attend.room", size=size)
        graph.section = "forward"

    def attend(
        self, id: str, q_MN: Value, k_MO: Value, v_MO: Value, *, window: int = 0, scale: float = 0.0
    ) -> Value:
        """Attention over what the caches hold once the new keys and values are in them."""
        c, at = self.config, id.removesuffix(".core")
        keys = self._cached(f"{at}.k", "keys", k_MO)
        values = self._cached(f"{at}.v", "values", v_MO)
        inputs = (q_MN, *keys, *values, self.positions_M, self.slots_M, self._room)
        return self.graph.add(
            OPS[f"attend_{self.shape.cache}"], id, *inputs, heads=c.heads, kv_heads=c.kv_heads,
            window=window, scale=scale or c.head_dim**-0.5,
        )  # fmt: skip

    def recur(
        self, op: str, id: str, *inputs: Value, state: tuple[int, ...], **attrs: Attr
    ) -> Value:
        """The op of this name in the form that goes on from the state of each row's slot."""
        kept = self.graph.input(f"{id}_state", f32(self.shape.slots, *state), "state")
        rows = (self.positions_M, self.slots_M)
        y, moved = self.graph.add_node(OPS[f"{op}_cached"], id, *inputs, kept, *rows, **attrs)
        self.graph.writes[moved.id] = kept.id
        return y

    def _cached(self, id: str, kind: Literal["keys", "values"], new_MO: Value) -> tuple[Value, ...]:
        element, c = self.shape.cache, self.config
        types = cache_types(
            kind, element, self.shape.slots, c.kv_heads, c.head_dim, self.shape.context
        )
        names = (f"{id}_cache", f"{id}_cache.scale")
        caches = [
            self.graph.input(name, type, "cache") for name, type in zip(names, types, strict=False)
        ]
        written = self.graph.add_node(
            OPS[f"cache_{kind}_{element}"], f"{id}_write", new_MO, *caches, self.positions_M,
            self.slots_M,
        )  # fmt: skip
        for value, cache in zip(written, caches, strict=True):
            self.graph.writes[value.id] = cache.id
        return written
