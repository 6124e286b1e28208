"""The rows of the record of a derivation: what each target leaf is made of."""

from __future__ import annotations

from lockstep.artifacts.derivation import DerivedLeaf
from lockstep.verify.derivation.derived_claims import Derived
from lockstep.verify.derivation.name_steps import Spelled
from lockstep.verify.derivation.recover import Recovered, layout_of
from lockstep.verify.layouts.piece import Piece

_SHOWN_PIECES = 64  # of a leaf that no steps make


def derived_row(found: Recovered, spelled: Spelled | None, all_found: Derived) -> DerivedLeaf:
    """What the record says of one leaf."""
    numbering = all_found.sources.numbering
    leaf, ids = found.leaf, found.ids
    pieces: tuple[Piece, ...] | None = ()
    n_mapped = n_constant = 0
    if ids is not None:
        n_mapped, n_constant = int((ids >= 0).sum()), int((ids < 0).sum())
        layout = layout_of(ids, all_found.random[leaf.name], numbering, leaf.grid_shape)
        pieces = layout.pieces if layout else None
    return DerivedLeaf(
        target=leaf.name,
        element=leaf.element.name,
        shape=leaf.shape,
        status=found.status,
        why=found.why or _why(found, spelled, pieces),
        sources=all_found.sources_of(found),
        transform=spelled.text if spelled else "",
        n_elements=leaf.n_elements,
        n_mapped=n_mapped,
        n_constant=n_constant,
        n_pieces=None if pieces is None else len(pieces),
        pieces=() if spelled else tuple(map(_piece, (pieces or ())[:_SHOWN_PIECES])),
        unsure=found.unsure,
    )


def _why(found: Recovered, spelled: Spelled | None, pieces: tuple[Piece, ...] | None) -> str:
    if spelled:
        return ""
    if pieces is None:
        return "the places follow from each other in no regular way; there are too many pieces"
    if len(found.values or {}) > 1:
        return "its sources have several types, and are changed each in a way of its own"
    return "no chain of known steps makes this map"


def _piece(piece: Piece) -> str:
    loops = ", ".join(f"{loop.n}x(+{loop.src}, +{loop.dst})" for loop in piece.loops)
    source = piece.leaf or f"constant 0x{piece.fill[::-1].hex()}"
    return f"{source} {piece.src} -> {piece.dst}: {loops or 'one'}"
