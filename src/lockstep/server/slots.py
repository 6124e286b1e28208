"""Which slot holds which tokens, and which of them the next sequence takes over."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lockstep.engine.session import InferenceSession

# Fewer tokens than this are read again rather than that another sequence's memory is cut for them.
WORTH_KEEPING = 16


class Slots:
    """The slots of a session; one that is given back keeps its tokens until it is taken again."""

    def __init__(self, session: InferenceSession) -> None:
        self._session = session
        self.contents: list[list[int]] = [[] for _ in session.lengths]
        self._last_used = [0] * len(self.contents)
        self._clock = 0
        self._free = set(range(len(self.contents)))

    @property
    def n_free(self) -> int:
        """How many can be taken."""
        return len(self._free)

    def take(self, ids: Sequence[int], *, reuse: bool) -> tuple[int, int]:
        """A free slot for a sequence, and how many of its first tokens the slot has read already.

        One token is always left to read, because what follows it is wanted.
        """
        kept = {slot: self._kept(slot, ids) if reuse else 0 for slot in self._free}
        slot = max(kept, key=lambda slot: (kept[slot], -self._last_used[slot], -slot))
        self._free.remove(slot)
        self._session.reset(kept[slot], slot)
        del self.contents[slot][kept[slot] :]
        return slot, kept[slot]

    def give_back(self, slot: int) -> None:
        """Lets the next sequence take the slot."""
        self._clock += 1
        self._last_used[slot] = self._clock
        self._free.add(slot)

    def forget(self, slot: int) -> None:
        """Drops what a slot holds, after a pass that may have failed halfway."""
        self._session.reset(0, slot)
        self.contents[slot].clear()

    def _kept(self, slot: int, ids: Sequence[int]) -> int:
        """How many tokens the slot and the sequence have in common, if that can be made use of."""
        held = self.contents[slot]
        most = min(len(held), len(ids) - 1)
        if most <= 0 or held[0] != ids[0]:
            return 0
        differ = np.flatnonzero(np.asarray(held[:most]) != np.asarray(ids[:most]))
        common = int(differ[0]) if differ.size else most
        if common < len(held) and (not self._session.rewinds or common < WORTH_KEEPING):
            return 0
        return common
