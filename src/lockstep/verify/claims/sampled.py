"""A claim about a part of its target, where not all of it is to be compared."""

from __future__ import annotations

from dataclasses import replace

from lockstep.verify.claim import Claim
from lockstep.verify.layouts.layout import Layout
from lockstep.verify.layouts.piece import restrict

_SPOTS, SAMPLE = 5, 20480  # stretches that are sampled, and the elements in all of them


def sampled(claim: Claim, at_most: int = SAMPLE) -> Claim:
    """The claim about a few stretches of its target, spread from the first element to the last."""
    if claim.layout is None or claim.layout.n_elements <= at_most:
        return claim
    n, each = claim.layout.n_elements, max(1, at_most // _SPOTS)
    starts = [(n - each) * i // (_SPOTS - 1) for i in range(_SPOTS)]
    kept = []
    for start in starts:
        for piece in claim.layout.pieces:
            steps = [loop.dst for loop in piece.loops]
            kept += restrict(piece, piece.dst, steps, start, start + each)
    return replace(claim, layout=Layout(claim.layout.shape, tuple(kept)))
