"""What each target was made of: candidates by fingerprint, confirmed by comparing all of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, permutations

from lockstep.errors import UsageError
from lockstep.formats.leaf import Leaf, Store
from lockstep.verify.claim import Claim
from lockstep.verify.claims.expressions import parse_call
from lockstep.verify.claims.moves import Array
from lockstep.verify.claims.steps import STEPS, apply
from lockstep.verify.diagnosis.hypotheses import Probe
from lockstep.verify.layouts.layout import whole
from lockstep.verify.suggestion.alike import Alike
from lockstep.verify.suggestion.contents import Chain, Content
from lockstep.verify.suggestion.generalise import Made, Part
from lockstep.verify.suggestion.name_slots import slots
from lockstep.verify.suggestion.orders import block_orders
from lockstep.verify.suggestion.partners import Group, Key, groups_of, key_of, units_of
from lockstep.verify.suggestion.spellings import Heads, joined, moved, parted

SAMPLE = 2048  # elements that a spelling is tried on before all are compared
MAX_TRIED = 600  # spellings for one pair
MAX_PADDED = 128  # targets that are looked at for padding; it is of vocabularies, not of layers
MAX_NEAR, MAX_BEST = 512, 4  # leaves that are looked at and tried for one of them
MAX_OTHERS = 8  # leaves that are named where contents show no difference


@dataclass
class Findings:
    """What was found: for each target how it is made, and where contents do not show it.

    `unshown` has, for a target, leaves that it could be made of as well, some of them; `unordered`
    the leaves that hold the same elements in an order that no spelling explains. `copies` has, for
    a source that nothing is made of, one with the same bits that something is made of.
    """

    made: dict[str, Made] = field(default_factory=dict)
    unshown: dict[str, tuple[str, ...]] = field(default_factory=dict)
    unordered: dict[str, tuple[str, ...]] = field(default_factory=dict)
    copies: dict[str, str] = field(default_factory=dict)


class Finder:
    """Looks for the sources of every target, the simple ones first."""

    def __init__(
        self,
        source: Store,
        target: Store,
        contents: tuple[Mapping[str, Content], Mapping[str, Content]],
        probe: Probe,
        done: Callable[[int], None],
    ) -> None:
        self._source, self._target = source, target
        self._there, self._here = contents
        self._probe, self._done = probe, done
        self._heads = Heads.of(source.facts, target.facts)
        self._alike = Alike()
        self._used: set[str] = set()
        self._learnt: dict[object, object] = {}
        self.findings = Findings()

    def find(self) -> Findings:
        """All that can be found."""
        self._values()
        self._singles()
        self._joins()
        self._parts()
        self._padded()
        self._singles(again=True)
        self._reordered()
        self._unordered()
        self._copies()
        return self.findings

    def find_alike(self) -> Findings:
        """Leaves that are each made of one; all that can be said where nothing is read."""
        self._values()
        self._singles()
        return self.findings

    def _open(self) -> list[str]:
        """The targets that nothing is known of."""
        return [name for name in self._here if name not in self.findings.made]

    def _free(self) -> list[str]:
        """The sources that nothing was made of."""
        return [name for name in self._there if name not in self._used]

    def _accept(self, made: Made, others: Iterable[str] = ()) -> None:
        self.findings.made[made.target] = made
        names = [name for part in made.parts for name in part.names]
        self._used.update(names)
        rest = tuple(islice((name for name in others if name not in names), MAX_OTHERS))
        if rest:
            self.findings.unshown[made.target] = rest
        elif len(names) == 1:
            self._alike.learn(names[0], made.target)
        self._done(2 * self._target.leaves[made.target].n_bytes)

    # --- values that are no arrays

    def _values(self) -> None:
        by_value: dict[str, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
        for k, store in enumerate((self._source, self._target)):
            for leaf in store.leaves.values():
                if leaf.value:
                    by_value[f"{leaf.element} {leaf.value[0]!r}"][k].append(leaf.name)
        for sources, targets in by_value.values():
            if sources:
                for target, source in self._alike.assign(sources, targets).items():
                    made = Made(target, (Part((source,)),), group=group_of(target))
                    self._accept(made, sources)

    # --- one leaf to one leaf

    def _singles(self, again: bool = False) -> None:
        """Leaves with the elements of another; what nothing else tells apart comes last."""
        classes = self._classes(self._there if again else self._free())
        todo: list[tuple[int, list[str], list[str], Chain]] = []
        for targets in self._alike_targets():
            for chain, sources in classes.get(self._key(targets[0]), []):
                todo.append((len(targets) * len(sources), targets, sources, chain))
        todo.sort(key=lambda each: (each[0] > 1, len(each[3])))
        for _, targets, sources, chain in todo:
            targets = [name for name in targets if name not in self.findings.made]
            free = sources if again else [name for name in sources if name not in self._used]
            if targets and free:
                pairs = self._alike.assign(free, targets, once=not again)
                self._pair(pairs, sources, chain)

    def _key(self, target: str) -> Key:
        return key_of(self._here[target].sums, (), self._target.leaves[target].n_elements)

    def _classes(self, names: Iterable[str]) -> dict[Key, list[tuple[Chain, list[str]]]]:
        """Sources that hold the same in the same order, by what they become after some steps."""
        found: dict[Key, list[tuple[Chain, list[str]]]] = defaultdict(list)
        for members in self._twins(names):
            leaf = self._source.leaves[members[0]]
            sums = self._there[members[0]].sums
            for chain in sums:
                found[key_of(sums, chain, leaf.n_elements)].append((chain, members))
        return found

    def _twins(self, names: Iterable[str]) -> list[list[str]]:
        found: dict[object, list[str]] = defaultdict(list)
        for name in names:
            leaf = self._source.leaves[name]
            found[leaf.element, leaf.grid_shape, self._there[name].ordered].append(name)
        return list(found.values())

    def _alike_targets(self) -> list[list[str]]:
        found: dict[object, list[str]] = defaultdict(list)
        for name in self._open():
            leaf = self._target.leaves[name]
            found[leaf.element, leaf.grid_shape, self._here[name].ordered].append(name)
        return list(found.values())

    def _pair(self, pairs: Mapping[str, str], alike: list[str], chain: Chain) -> None:
        """Confirms pairs of leaves whose contents are the same, target by target."""
        for target, source in pairs.items():
            a, b = self._source.leaves[source], self._target.leaves[target]
            spelled = ((*steps, *chain) for steps in moved(a.grid_shape, b.grid_shape, self._heads))
            made = self._confirmed(target, (([Part((source,))], steps) for steps in spelled))
            if made is None:
                return  # the others hold the same, so they fail the same
            self._accept(made, alike)

    # --- several leaves to one, one to several

    def _joins(self) -> None:
        wanted = {self._key(name): name for name in self._open()}
        units = units_of(self._free(), self._source, self._there)
        found = groups_of(units, set(wanted))
        for name in self._open():
            groups = found.get(self._key(name), [])
            groups.sort(key=lambda g: -max(self._alike.score(n, name) for n in g.names))
            for group in groups:
                if self._used.isdisjoint(group.names) and self._join(name, group, groups):
                    break

    def _join(self, target: str, group: Group, groups: Sequence[Group]) -> bool:
        made = self._confirmed(target, self._joined(group, self._target.leaves[target]))
        if made is None:
            return False
        same = [g for g in groups if self._content(g) == self._content(group)]
        self._accept(made, [g.units[0].names[0] for g in same if g is not group])
        return True

    def _content(self, group: Group) -> object:
        return [self._there[name].ordered for name in group.names]

    def _joined(self, group: Group, target: Leaf) -> Iterator[tuple[list[Part], tuple[str, ...]]]:
        for units in permutations(group.units):
            shapes = [unit.shape for unit in units]
            counts = [len(unit.names) for unit in units]
            for before, steps in joined(shapes, counts, target.grid_shape, self._heads):
                parts = [Part(unit.names, some) for unit, some in zip(units, before, strict=True)]
                yield parts, (*steps, *group.chain)

    def _parts(self) -> None:
        """Targets that lie together in one source."""
        wanted: dict[Key, list[tuple[str, Chain]]] = defaultdict(list)
        for name in self._there:
            sums, n = self._there[name].sums, self._source.leaves[name].n_elements
            for chain in sums:
                wanted[key_of(sums, chain, n)].append((name, chain))
        units = units_of(self._open(), self._target, self._here)
        for key, groups in groups_of(units, set(wanted)).items():
            for source, chain in sorted(wanted[key], key=lambda each: each[0] in self._used):
                for group in groups:
                    if all(name not in self.findings.made for name in group.names):
                        self._part(source, group, chain, [name for name, _ in wanted[key]])

    def _part(self, source: str, group: Group, chain: Chain, alike: Sequence[str]) -> None:
        shape = self._source.leaves[source].grid_shape
        found = []
        for mine, unit in enumerate(group.units):
            for i, name in enumerate(unit.names):
                made = self._confirmed(name, self._parted(source, shape, group, mine, i, chain))
                if made is None:
                    return
                found.append(made)
        for made in found:
            self._accept(made, alike)

    def _parted(
        self, source: str, shape: tuple[int, ...], group: Group, mine: int, i: int, chain: Chain
    ) -> Iterator[tuple[list[Part], tuple[str, ...]]]:
        unit = group.units[mine]
        position = (i, len(unit.names)) if len(unit.names) > 1 else None
        sizes = [each.n for each in group.units]
        for steps in parted(shape, position, sizes, mine, unit.shape, self._heads):
            yield [Part((source,))], (*steps, *chain)

    # --- padding

    def _padded(self) -> None:
        """Rows of a constant at the end, and rows that were cut off."""
        near: dict[object, list[str]] = defaultdict(list)
        for source in self._free():
            for rest in _without_an_axis(self._source.leaves[source].grid_shape):
                near[rest].append(source)
        for name in self._open()[:MAX_PADDED]:
            target = self._target.leaves[name]
            some = [s for rest in _without_an_axis(target.grid_shape) for s in near.get(rest, ())]
            likely = islice((s for s in some if s not in self._used), MAX_NEAR)
            best = sorted(set(likely), key=lambda s: (-self._alike.score(s, name), s))
            for source in best[:MAX_BEST]:
                leaf = self._source.leaves[source]
                if _differs_on_one_axis(leaf.grid_shape, target.grid_shape):
                    made = self._confirmed(name, self._padding(leaf, target))
                    if made:
                        self._accept(made)
                        break

    def _padding(self, source: Leaf, target: Leaf) -> Iterator[tuple[list[Part], tuple[str, ...]]]:
        a, b = source.grid_shape, target.grid_shape
        (axis,) = (k for k in range(len(a)) if a[k] != b[k])
        n = b[axis] - a[axis]
        simple = target.element.n_bytes in (1, 2, 4, 8) and target.element.n_numbers == 1
        for chain, (name, _) in self._there[source.name].sums.items():
            if name != target.element.name:
                continue
            if n < 0:
                yield [Part((source.name,))], (f"slice({axis}, 0, {b[axis]})", *chain)
                yield [Part((source.name,))], (f"slice({axis}, {-n}, {a[axis]})", *chain)
            elif simple and not chain and target.n_elements:
                for at, before, after in ((target.n_elements - 1, 0, n), (0, n, 0)):
                    word = int(self._probe.elements("target", target.name, at, at + 1)[0])
                    value = f"'0x{word:0{2 * target.element.n_bytes}x}'" if word else "0"
                    yield [Part((source.name,))], (f"pad({axis}, {before}, {after}, {value})",)

    # --- confirming

    def _confirmed(
        self, target: str, spelled: Iterator[tuple[list[Part], tuple[str, ...]]]
    ) -> Made | None:
        """The first spelling that holds for every element; one that held before is tried first."""
        tried = []
        for parts, steps in spelled:
            tried.append(Made(target, tuple(parts), steps, group_of(target)))
            if len(tried) == MAX_TRIED:
                break
        if not tried:
            return None
        kind = _kind(tried[0])
        known = self._learnt.get(kind)
        tried.sort(key=lambda made: _form(made) != known)
        for made in tried:
            claim = claim_of(made, self._source, self._target)
            if claim is None or not self._probe.agrees(claim, SAMPLE):
                continue
            whole_seen = self._target.leaves[target].n_elements <= SAMPLE
            if whole_seen or self._probe.agrees(claim):
                self._learnt[kind] = _form(made)
                return made
        return None

    def _reordered(self) -> None:
        """Leaves whose heads or other blocks are in another order."""
        classes = self._classes(self._free())
        for name in self._open():
            for chain, members in classes.get(self._key(name), []):
                leaf = self._source.leaves[members[0]]
                if chain or name in self.findings.made or leaf.name in self._used:
                    continue
                orders = block_orders(leaf, self._target.leaves[name], self._heads, self._probe)
                made = self._confirmed(name, (([Part((leaf.name,))], steps) for steps in orders))
                if made:
                    self._accept(made, members)

    def _unordered(self) -> None:
        """What is left that has the elements of a source, though in no order that is known."""
        classes = self._classes(self._there)
        for name in self._open():
            found = [s for _, members in classes.get(self._key(name), []) for s in members]
            if found:
                self.findings.unordered[name] = tuple(found[:MAX_OTHERS])

    def _copies(self) -> None:
        """What is left of the source and has the bits of what was used."""
        for members in self._twins(self._there):
            used = [name for name in members if name in self._used]
            for name in members if used else ():
                if name not in self._used:
                    self.findings.copies[name] = used[0]


def claim_of(made: Made, source: Store, target: Store) -> Claim | None:
    """The claim that a finding spells, or None if its steps do not fit the shapes and types."""
    leaf = target.leaves[made.target]
    names = tuple(name for part in made.parts for name in part.names)
    if leaf.value:
        return Claim(made.target, "suggested", made.group, made.target, names, None)
    try:
        arrays = []
        for part in made.parts:
            some = [_array(source.leaves[name]) for name in part.names]
            arrays += _stepped(some, part.steps)
        arrays = _stepped(arrays, made.steps)
    except UsageError:
        return None
    if len(arrays) != 1 or arrays[0].element != leaf.element:
        return None
    (array,) = arrays
    if array.layout.shape != leaf.grid_shape:
        return None
    return Claim(made.target, "suggested", made.group, made.target, names, array.layout,
                 array.values)  # fmt: skip


def _array(leaf: Leaf) -> Array:
    return Array(whole(leaf.name, leaf.grid_shape), leaf.element, leaf.element)


def _stepped(arrays: Sequence[Array], steps: Iterable[str]) -> list[Array]:
    found = list(arrays)
    for step in steps:
        call = parse_call(step, "suggest")
        if STEPS[call.name].arity == "many":
            found, _ = apply(call, found, {})
        else:
            found = [apply(call, [array], {})[0][0] for array in found]
    return found


def _kind(made: Made) -> object:
    """What findings have in common that are likely made alike: their names but for numbers."""
    return slots(made.target)[0], tuple(slots(part.names[0])[0] for part in made.parts)


def _form(made: Made) -> object:
    """A spelling but for what was picked: the first step of a part that was picked by its place."""
    steps = tuple(
        step.rpartition(",")[0] if step.startswith("index(") else step for step in made.steps
    )
    return steps, tuple(part.steps for part in made.parts)


def _without_an_axis(shape: tuple[int, ...]) -> list[object]:
    """The shape without each of its axes in turn, and which that was."""
    return [(k, shape[:k], shape[k + 1 :]) for k in range(len(shape))]


def _differs_on_one_axis(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    return len(a) == len(b) and sum(x != y for x, y in zip(a, b, strict=True)) == 1


def group_of(name: str) -> str:
    """The group of a leaf: the tree or the part before the first `/`, else `params`."""
    return name.split("/")[0] if "/" in name else "params"
