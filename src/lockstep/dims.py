"""The one legend of axis letters; tensor names carry them (`x_MK`, `gain_D`)."""

from __future__ import annotations

LEGEND = {
    "B": "batch: sequences",
    "T": "tokens in one sequence",
    "M": "rows: tokens in one call, B*T in training",
    "D": "width of the residual stream, or of whatever a norm runs over",
    "K": "input features of a linear",
    "N": "output features of a linear, or the width of a row that is split into heads",
    "F": "width of the feed-forward block",
    "V": "vocabulary",
    "H": "query heads",
    "G": "key and value heads",
    "E": "width of one head",
    "C": "context: positions in a cache or in a rope table",
    "O": "width of a row of keys or values: key/value heads times head width",
    "R": "the pairs of a head that rope turns: half its width, or fewer",
    "P": "elements of a tensor of any rank, seen flat",
    "J": "panels of a packed weight, or blocks of a row, or of positions in a cache of keys",
    "Q": "columns in one panel of a packed weight, or positions in one block of a cache of keys",
    "L": "slots: sequences that the caches of a program hold at once",
    "S": "number of things that are summed, or of groups of elements that share a scale",
    "U": "rows that a convolution remembers: its taps but one",
    "W": "taps of a convolution over the rows",
}
