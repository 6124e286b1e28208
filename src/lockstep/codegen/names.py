"""C identifiers from the path ids of a graph."""

from __future__ import annotations

import re

_SPELLED = {".": "_", "@": "_at_", ":": "_out_"}


def identifier(id: str) -> str:
    """The id with only the characters that C allows."""
    spelled = "".join(_SPELLED.get(c, c) for c in id)
    return re.sub(r"\W", "_", spelled, flags=re.ASCII)


class Names:
    """Identifiers of one kind, each given to one id."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._by_id: dict[str, str] = {}
        self._taken: set[str] = set()

    def __getitem__(self, id: str) -> str:
        if id not in self._by_id:
            name = base = f"{self._prefix}{identifier(id)}"
            number = 1
            while name in self._taken:
                number += 1
                name = f"{base}_{number}"
            self._taken.add(name)
            self._by_id[id] = name
        return self._by_id[id]
