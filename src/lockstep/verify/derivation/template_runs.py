"""One run of a converter on a copy of the template that holds other values, read back as words."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lockstep.errors import InputError, UsageError
from lockstep.formats.leaf import Leaf, Store
from lockstep.formats.open_store import open_store
from lockstep.formats.overwrite import copy_checkpoint, overwrite, renew_checksums
from lockstep.verify.claim import Plan, Words
from lockstep.verify.derivation.converter import Converter
from lockstep.verify.derivation.markers import MOST_ELEMENTS
from lockstep.verify.engine.budget import divide, memory_now
from lockstep.verify.engine.probe import ReadingProbe

ROOM = 1 << 30  # for one leaf of a template or of what is made of it, and what reading it takes


@dataclass(frozen=True)
class Trial:
    """What the converter was given and what it made, as words of each array."""

    source: Mapping[str, Words]
    store: Store
    target: Mapping[str, Words]


class Bench:
    """Runs the converter again and again, each time in a folder of its own."""

    def __init__(
        self, template: Path, format: str | None, converter: Converter, root: Path, *, keep: bool
    ) -> None:
        check_size(open_store(template, format))  # before anything is copied
        folder = root / "template"
        folder.mkdir()
        self.template = copy_checkpoint(template, folder)
        self.source = open_store(self.template, format)
        self._format, self._converter, self._root, self._keep = format, converter, root, keep
        self.n_runs = 0

    def run(self, words: Mapping[str, Words], target_format: str | None) -> Trial:
        """Converts the template with these words in the place of its own.

        Raises: InputError if the converter fails or what it wrote cannot be read.
        """
        self.n_runs += 1
        folder = self._root / f"run_{self.n_runs}"
        inside = folder / "in"
        inside.mkdir(parents=True)
        try:
            copy = copy_checkpoint(self.template, inside)
            leaves = open_store(copy, self._format).leaves
            for name in reversed(list(words)):  # of leaves on the same bytes the first one counts
                overwrite(leaves[name], words[name])
            renew_checksums(copy)
            before = read_words(open_store(copy, self._format))
            store = _opened(self._converter.convert(copy, folder), target_format)
            return Trial(before, store, read_words(store))
        finally:
            if not self._keep:
                shutil.rmtree(folder, ignore_errors=True)


def check_size(store: Store) -> None:
    """Insists on a template that is small.

    Raises: UsageError
    """
    n = sum(leaf.n_elements for leaf in store.leaves.values())
    if n > MOST_ELEMENTS:
        raise UsageError(
            f"{store.where}: expected a template of at most {MOST_ELEMENTS:,} elements, got {n:,}",
            hint="make a checkpoint of the same family with tiny sizes, all of them different",
        )


def _opened(path: Path, format: str | None) -> Store:
    try:
        store = open_store(path, format)
    except InputError as error:
        raise InputError(
            f"converter: expected a checkpoint at {{target}}, got: {error.message}",
            hint="check what the command writes; --keep keeps it, --target-format names its format",
        ) from error
    if not store.leaves:
        raise InputError(
            "converter: expected a checkpoint with leaves at {target}, got one without any",
            hint="run the command by hand on the template",
        )
    return store


def read_words(store: Store) -> dict[str, Words]:
    """The words of every array, flat in C order.

    Raises: InputError if one cannot be read.
    """
    arrays = {name: leaf for name, leaf in store.leaves.items() if is_read(leaf)}
    budget = divide((memory_now().peak or 0) + ROOM, 1, len(store.leaves))
    probe = ReadingProbe(Plan(store, store, ()), budget, {"source": {}, "target": {}})
    try:
        return {
            name: probe.elements("source", name, 0, leaf.n_elements)
            for name, leaf in arrays.items()
        }
    finally:
        probe.close()


def is_read(leaf: Leaf) -> bool:
    """Whether its elements are single words."""
    return not leaf.value and leaf.element.n_numbers == 1 and leaf.element.n_bytes in (1, 2, 4, 8)
