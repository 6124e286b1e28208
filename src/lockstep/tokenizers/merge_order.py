"""Merges that are listed, and pieces that are scored: each said as the other, with equal ids.

A merge that lies within a piece does not depend on what is around the piece. So whatever the text,
a piece is made of the same two parts: what its own characters come down to, one step before the
last. One merge of each piece is all that is ever used, and its rank can be a score.
"""

from __future__ import annotations

from itertools import pairwise

from lockstep.errors import UsageError
from lockstep.tokenizers.merging import Priority, merge
from lockstep.tokenizers.vocabulary import (
    BYTE,
    CONTROL,
    SPACE,
    UNKNOWN,
    USER_DEFINED,
    Vocabulary,
)


def score_priority(v: Vocabulary) -> Priority:
    """Which pairs merge, and which of them first, where pieces have scores."""
    # User text must not merge into a control token, though llama.cpp lets it.
    never = frozenset(v.of_kinds(CONTROL, UNKNOWN, BYTE))
    ids, scores = v.ids, v.scores

    def priority(left: str, right: str) -> float | None:
        id = ids.get(left + right)
        return None if id is None or id in never else -scores[id]

    return priority


def merge_priority(v: Vocabulary) -> Priority:
    """The same where merges are listed; of those that are there twice the first counts."""
    n = len(v.merges)
    ranks = dict(zip(reversed(v.merges), range(n - 1, -1, -1), strict=True))
    return lambda left, right: ranks.get(f"{left} {right}")


def scores_of(v: Vocabulary) -> list[float]:
    """Scores by which the pieces of a vocabulary merge as its list of merges says.

    Raises: UsageError naming a piece that two parts spell although no merge makes it of them: who
    reads scores would make it.
    """
    priority = merge_priority(v)
    found = []
    for id, piece in enumerate(v.pieces):
        parts = _last_parts(piece, priority)
        rank = priority(*parts) if len(parts) == 2 else None
        if len(parts) == 2 and rank is None and not _is_cut_out(v, id):
            left, right = parts
            raise UsageError(
                f"{v.where}: expected merges that scores can say, got the piece {piece!r:.40}, "
                f"which no merge makes of {left!r:.40} and {right!r:.40}: by scores they would be "
                "one token",
                hint="export with --to hf or --to c, which keep the merges",
            )
        found.append(float(-len(v.merges) if rank is None else -rank))
    return found


def merges_of(v: Vocabulary) -> list[tuple[str, str]]:
    """The merges that make the pieces of a vocabulary as its scores do.

    Raises: UsageError naming pieces of one score, or characters that merge and are no tokens: a
    list of merges has no such thing.
    """
    priority = score_priority(v)
    made = []
    for id, piece in enumerate(v.pieces):
        if _is_cut_out(v, id) or v.kinds[id] in (CONTROL, UNKNOWN, BYTE):
            continue
        parts = _last_parts(piece, priority)
        if len(parts) == 2:
            made.append((id, parts[0], parts[1]))
    made.sort(key=lambda merge: -v.scores[merge[0]])
    for (one, *_), (other, *_) in pairwise(made):
        if v.scores[one] == v.scores[other]:
            both = f"{v.pieces[one]!r:.40} and {v.pieces[other]!r:.40}"
            raise _unlisted(v, f"the score {v.scores[one]:g} for both {both}")
    for id, left, right in made:
        if not {left, right} <= v.ids.keys():
            raise _unlisted(v, f"{v.pieces[id]!r:.40} of {left!r} and {right!r}, not both tokens")
    return [(left, right) for _, left, right in made]


def _last_parts(piece: str, priority: Priority) -> list[str]:
    """What the characters of a piece come down to before they are the piece."""
    n = len(piece)
    return merge(piece, lambda a, b: None if len(a) + len(b) == n else priority(a, b))


def _is_cut_out(v: Vocabulary, id: int) -> bool:
    """Whether a text is cut at this piece, so that no merge ever sees its characters in a row.

    Texts are cut before their blanks are spelled as pieces spell them.
    """
    return v.kinds[id] == USER_DEFINED and SPACE not in v.pieces[id]


def _unlisted(v: Vocabulary, got: str) -> UsageError:
    return UsageError(
        f"{v.where}: expected scores that a list of merges can say, got {got}",
        hint="export with --to gguf or --to c, which keep the scores",
    )
