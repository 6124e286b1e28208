"""A few elements that differ from what is otherwise exact: which, and by which bits."""

from __future__ import annotations

from lockstep.artifacts.verification import Diagnosis, Difference, Spot

FEW = 64  # elements; a difference in more of them is not called damage


def damage(difference: Difference, n_elements: int) -> Diagnosis | None:
    """A sentence about one or a few elements; all others were compared and are as claimed."""
    n = difference.n_differ
    if n > FEW or n >= n_elements:
        return None
    first, last = difference.first, difference.last
    if n == 1:
        bits = _changed(first)
        if len(bits) == 1:
            name, what = "bit_flip", f"has bit {bits[0]} flipped"
        elif difference.worst_ulp == 1:
            name, what = "one_ulp", "is one unit in the last place off"
        else:
            name, what = "one_element", f"differs in {len(bits)} bits"
        where = f"{_place(first)}, {what}{_values(first)}"
        text = f"one element, {where}; all others are as claimed"
        return Diagnosis(hypothesis=name, text=text, confirmed=True)
    between = f"{n} elements from {_place(first)} to {_place(last)}"
    text = f"{between} differ; all others are as claimed"
    return Diagnosis(hypothesis="few_elements", text=text, confirmed=True)


def _changed(spot: Spot) -> list[int]:
    """The bits that differ, the lowest 0; of a block of bytes, in the order of the bytes."""
    hexadecimal = spot.expected_bits.startswith("0x")
    raw = [bytes.fromhex(t.removeprefix("0x")) for t in (spot.expected_bits, spot.found_bits)]
    a, b = (int.from_bytes(r, "big" if hexadecimal else "little") for r in raw)
    changed = a ^ b
    return [i for i in range(changed.bit_length()) if changed >> i & 1]


def _values(spot: Spot) -> str:
    if spot.expected in ("block", "packed"):
        return ""
    return f": {spot.found} where {spot.expected} is claimed"


def _place(spot: Spot) -> str:
    return f"[{', '.join(map(str, spot.target_index))}]"
