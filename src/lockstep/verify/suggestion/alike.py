"""Which of several leaves with the same contents belong together, by their names.

Names count for nothing where contents differ. Where they do not, the words that went together in
what contents showed are what is gone by, then words in common, then numbers, then the order.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from lockstep.verify.suggestion.name_slots import slots

MAX_PAIRS = 1 << 18  # of names that are held against each other at once
_WORDS = re.compile(r"[a-z]+[0-9]*")
_SMALL = re.compile(r"(?<=[a-z])(?=[A-Z])")
# the same things under the names of several houses
_SAME = (
    (("input", "layernorm"), ("attention", "norm")),
    (("post", "attention", "layernorm"), ("mlp", "norm")),
    (("pre", "feedforward", "layernorm"), ("mlp", "norm")),
    (("ln", "1"), ("attention", "norm")),
    (("ln", "2"), ("mlp", "norm")),
)
_WORD = {
    "attn": "attention", "ffn": "mlp", "feed": "mlp", "forward": "mlp", "feedforward": "mlp",
    "layernorm": "norm", "ln": "norm", "embd": "embed", "embeddings": "embed", "wte": "embed",
    "embedding": "embed", "tok": "token", "tokens": "token", "blk": "layers", "blocks": "layers",
    "h": "layers", "o": "output", "wo": "output", "wq": "q", "wk": "k", "wv": "v",
    "scale": "weight", "kernel": "weight", "self": "", "model": "", "proj": "", "params": "",
}  # fmt: skip


class Alike:
    """Scores names of the two sides; learns from pairs that contents showed."""

    def __init__(self) -> None:
        self._together: Counter[tuple[str, str]] = Counter()
        self._seen: Counter[str] = Counter()
        self._known: dict[str, tuple[frozenset[str], tuple[int, ...]]] = {}

    def learn(self, source: str, target: str) -> None:
        """Takes a pair that contents showed."""
        mine, theirs = self._words(source)[0], self._words(target)[0]
        self._seen.update(theirs)
        self._together.update((a, b) for a in mine for b in theirs)

    def score(self, source: str, target: str) -> float:
        """How well two names go together; only the order of scores means something."""
        mine, numbers = self._words(source)
        theirs, others = self._words(target)
        shared = 2 * len(mine & theirs) / max(1, len(mine) + len(theirs))
        learnt = sum(
            max((self._together[a, b] / self._seen[b] for a in mine), default=0.0)
            for b in theirs
            if self._seen[b]
        ) / max(1, len(theirs))
        return 4.0 * (numbers == others) + 2.0 * shared + learnt

    def assign(
        self, sources: Sequence[str], targets: Sequence[str], once: bool = False
    ) -> dict[str, str]:
        """A source for each target: each once as long as there are enough, the best pairs first.

        With `once`, no source is taken again, so that targets may be left without.
        """
        if len(sources) * len(targets) > MAX_PAIRS:
            return self._by_numbers(sources, targets)
        pairs = sorted(
            (-self.score(s, t), i, j) for j, t in enumerate(targets) for i, s in enumerate(sources)
        )
        found: dict[int, int] = {}
        used: set[int] = set()
        for _, i, j in pairs:
            if j not in found and i not in used:
                found[j] = i
                used.add(i)
        for _, i, j in () if once else pairs:
            found.setdefault(j, i)
        return {targets[j]: sources[i] for j, i in sorted(found.items())}

    def _by_numbers(self, sources: Sequence[str], targets: Sequence[str]) -> dict[str, str]:
        """As `assign`, within the names that have the same numbers; the rest in their order."""
        by_numbers: dict[tuple[int, ...], tuple[list[str], list[str]]] = {}
        for k, names in enumerate((sources, targets)):
            for name in names:
                by_numbers.setdefault(slots(name)[1], ([], []))[k].append(name)
        found: dict[str, str] = {}
        for some, others in by_numbers.values():
            n = min(len(some), len(others))
            if n and len(some) * len(others) <= MAX_PAIRS:
                found |= self.assign(some, others[: len(some)])
        used = set(found.values())
        rest = [t for t in targets if t not in found]
        spare = [s for s in sources if s not in used]
        return found | dict(zip(rest, spare, strict=False))

    def _words(self, name: str) -> tuple[frozenset[str], tuple[int, ...]]:
        if name not in self._known:
            words = _WORDS.findall(_SMALL.sub(" ", name).lower())
            text = f" {' '.join(words)} "
            for many, few in _SAME:
                text = text.replace(f" {' '.join(many)} ", f" {' '.join(few)} ")
            plain = (_WORD.get(word, word) for word in text.split())
            self._known[name] = frozenset(filter(None, plain)), slots(name)[1]
        return self._known[name]
