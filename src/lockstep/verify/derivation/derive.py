"""The map of a converter, from running it on markers: independent of what anybody says of it.

Each run has one digit of every element's id as its value; a run with random values confirms the map
over every element and shows what became of the values. A converter that chooses by values where
elements go is found out and rejected.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lockstep import __version__
from lockstep.artifacts.clock import utc_now
from lockstep.artifacts.derivation import ComparedClaim, Derivation, outcome_of
from lockstep.artifacts.files import make_directory
from lockstep.artifacts.verification import ProblemRow
from lockstep.errors import InputError, UsageError
from lockstep.formats.leaf import ElementType, Leaf
from lockstep.verify.claim import Words
from lockstep.verify.claims.claim_file import load_claims
from lockstep.verify.claims.rules import ClaimFile
from lockstep.verify.derivation.converter import Converter, TooSlow
from lockstep.verify.derivation.derived_claims import Derived, compare, rules_of
from lockstep.verify.derivation.derived_rows import derived_row
from lockstep.verify.derivation.markers import (
    MARKED,
    Code,
    Ids,
    Numbering,
    edge_words,
    highest_digit,
    random_words,
    to_numbers,
    to_words,
    why_not_marked,
)
from lockstep.verify.derivation.name_steps import Spelled, ValueText, name_steps
from lockstep.verify.derivation.recover import Recovered, Runs, Sources, recover
from lockstep.verify.derivation.symmetry import symmetries
from lockstep.verify.derivation.template_runs import Bench, Trial
from lockstep.verify.numbers.integers import INTEGERS

_IRREGULAR = "a map without any order is not cut into pieces"
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be derived, and from what."""

    template: Path
    converter: Converter
    claims: str | Path | ClaimFile | None = None
    source_format: str | None = None
    target_format: str | None = None
    keep: Path | None = None
    seed: int = 0
    say: Say = lambda _: None


@dataclass(frozen=True)
class Derivations:
    """The record, and a claim file that says what was derived."""

    record: Derivation
    rules: ClaimFile


def derive(request: Request) -> Derivations:
    """Runs the converter and recovers its map.

    Raises: InputError if the template or what the converter makes cannot be read, or the converter
    fails; UsageError if the template is too large or has nothing to mark.
    """
    claims = request.claims
    rules = load_claims(claims) if isinstance(claims, str | Path) else claims
    began = time.perf_counter()
    with _root(request.keep) as root:
        bench = Bench(request.template, request.source_format, request.converter, root,
                      keep=request.keep is not None)  # fmt: skip
        found = _Derivation(request, bench).found()
        compared, problems = compare(found, rules) if rules else ((), ())
        return _written(request, found, rules, compared, problems, time.perf_counter() - began)


@contextmanager
def _root(keep: Path | None) -> Iterator[Path]:
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="lockstep-derive-") as folder:
            yield Path(folder)
        return
    make_directory(keep)
    if any(keep.iterdir()):
        raise UsageError(
            f"{keep}: expected an empty directory, got one with files in it",
            hint="choose another directory for --keep",
        )
    yield keep.resolve()


class _Derivation:
    """The runs, in their order."""

    def __init__(self, request: Request, bench: Bench) -> None:
        self._request, self._bench = request, bench
        self._rng = np.random.default_rng(request.seed)
        self._notes: list[str] = []
        self._unmarked = {
            name: reason
            for name, leaf in bench.source.leaves.items()
            if (reason := why_not_marked(leaf))
        }

    @property
    def _marked(self) -> dict[str, Leaf]:
        leaves = self._bench.source.leaves
        return {name: leaf for name, leaf in leaves.items() if name not in self._unmarked}

    def found(self) -> Derived:
        """All runs, and what they show.

        Raises: InputError if the converter fails; UsageError if there is nothing to mark.
        """
        numbering, code, digits = self._digits()
        self._request.say("a run with random values")
        random = self._run({name: random_words(leaf, self._rng)
                            for name, leaf in self._marked.items()})  # fmt: skip
        trials = [*digits, random]
        sources = Sources(numbering, code, random.source)
        moved = _moved(trials)
        leaves = self._recovered(trials, sources, None, moved)
        if any(move for leaf in leaves for chain in (leaf.values or {}).values() for move in chain):
            edges = self._edges()
            if edges is not None and not _moved([*trials, edges]):
                sources = replace(sources, edges=edges.source)
                leaves = self._recovered(trials, sources, edges, moved)
        return Derived(
            source=self._bench.source,
            target=random.store,
            sources=sources,
            random=random.target,
            aliases=_aliases(numbering, code, digits),
            leaves=tuple(leaves),
            spelled=tuple(_spelled(leaf, random.target, numbering) for leaf in leaves),
            unmarked=self._unmarked,
            notes=tuple(self._notes),
            n_runs=self._bench.n_runs,
        )

    def _run(self, words: Mapping[str, Words]) -> Trial:
        return self._bench.run(words, self._request.target_format)

    # --- digits

    def _digits(self) -> tuple[Numbering, Code, list[Trial]]:
        """The runs with digits; a smaller alphabet where the target turns out to be narrower."""
        try:
            numbering, code, first = self._first(highest_digit(self._elements()))
        except InputError as error:
            if isinstance(error, TooSlow) or not self._leave_integers():
                raise
            try:
                numbering, code, first = self._first(highest_digit(self._elements()))
            except InputError:
                raise error from None  # the first failure is no other one
            self._notes.append(
                "the converter failed with markers in the integer leaves, so these are as in the "
                "template"
            )
        kinds = [leaf.element for leaf in first.store.leaves.values()
                 if leaf.element.name in MARKED and not leaf.value]  # fmt: skip
        if highest_digit(kinds) < code.highest:
            numbering, code, first = self._first(highest_digit([*kinds, *self._elements()]))
        trials = [first]
        for i in range(1, code.n_digits):
            self._request.say(f"a run with digit {i + 1} of {code.n_digits}")
            trials.append(self._run(self._digit(numbering, code, i)))
        return numbering, code, trials

    def _elements(self) -> list[ElementType]:
        return [leaf.element for leaf in self._marked.values()]

    def _leave_integers(self) -> bool:
        integers = [n for n, leaf in self._marked.items() if leaf.element.name in INTEGERS]
        self._unmarked |= dict.fromkeys(integers, "the converter failed with markers in it")
        return bool(integers) and bool(self._marked)

    def _first(self, highest: int) -> tuple[Numbering, Code, Trial]:
        numbering = Numbering(self._marked)
        if not numbering.n_ids:
            raise UsageError(
                f"{self._request.template}: expected a template with elements that can be marked, "
                f"got none; {next(iter(self._unmarked.values()), 'it has no leaves')}",
                hint="give a template in safetensors, .pt or npz with floating-point leaves",
            )
        code = Code.of(numbering.n_ids, highest, self._rng)
        self._request.say(f"a run with digit 1 of {code.n_digits}")
        return numbering, code, self._run(self._digit(numbering, code, 0))

    def _digit(self, numbering: Numbering, code: Code, i: int) -> dict[str, Words]:
        return {
            name: to_words(code.digit(numbering.of(name), i), leaf.element)
            for name, leaf in numbering.leaves.items()
        }

    def _edges(self) -> Trial | None:
        """A run with zeros, overflow and NaN among the values, which need not succeed."""
        self._request.say("a run with zeros, infinities and NaN among the values")
        try:
            return self._run({name: edge_words(leaf, self._rng)
                              for name, leaf in self._marked.items()})  # fmt: skip
        except InputError as error:
            first = error.message.partition("\n")[0]
            self._notes.append(
                "the converter does not take NaN, infinities and numbers that overflow, so what it "
                f"does with them is not derived ({first})"
            )
            return None

    def _recovered(
        self,
        trials: Sequence[Trial],
        sources: Sources,
        edges: Trial | None,
        moved: Mapping[str, str],
    ) -> list[Recovered]:
        *digits, random = trials
        found = []
        for name, leaf in random.store.leaves.items():
            if name in moved:
                found.append(Recovered(leaf, "data-dependent", moved[name]))
            elif name not in random.target:
                found.append(Recovered(leaf, "not derived", self._not_read(leaf)))
            else:
                runs = Runs(leaf, tuple(t.target[name] for t in digits), random.target[name],
                            edges.target[name] if edges else None)  # fmt: skip
                found.append(self._judged(recover(runs, sources), random))
        gone = (leaf for trial in digits for leaf in trial.store.leaves.values()
                if leaf.name in moved and leaf.name not in random.store.leaves)  # fmt: skip
        by_name = {leaf.name: leaf for leaf in gone}
        found += [Recovered(leaf, "data-dependent", moved[name]) for name, leaf in by_name.items()]
        return found

    def _not_read(self, leaf: Leaf) -> str:
        if not leaf.value:
            return f"elements of {leaf.element} hold no markers; derive an unquantised conversion"
        alike = [n for n, other in self._bench.source.leaves.items() if other.value == leaf.value]
        same = f"; {alike[0]} of the template has it too" if alike else ""
        return f"a value ({leaf.element}) holds no markers{same}"

    def _judged(self, found: Recovered, random: Trial) -> Recovered:
        """A leaf that no marker reached may still be made of a leaf that held none."""
        if found.status not in ("constant", "computed"):
            return found
        words = random.target[found.leaf.name]
        for name in self._unmarked:
            other = random.source.get(name)
            if other is not None and other.dtype == words.dtype and np.array_equal(other, words):
                why = f"the same in every run; it has the bits of {name}, which held no markers"
                return Recovered(found.leaf, "not derived", why)
        silent = [name for name in self._unmarked if name in random.source]
        if silent:
            why = f"{found.why}; {', '.join(silent[:3])} held no markers, and may be behind it"
            return replace(found, why=why)
        return found


def _moved(trials: Sequence[Trial]) -> dict[str, str]:
    """Leaves that were not the same in name, shape and type in every run, and how."""
    found: dict[str, str] = {}
    first = trials[0].store.leaves
    for trial in trials[1:]:
        for name in dict.fromkeys((*first, *trial.store.leaves)):
            kinds = [_kind(store.get(name)) for store in (first, trial.store.leaves)]
            if kinds[0] != kinds[1]:
                found[name] = (
                    f"the converter writes {kinds[0]} for some values, {kinds[1]} for others"
                )
    return found


def _kind(leaf: Leaf | None) -> str:
    if leaf is None:
        return "no such leaf"
    return "a value" if leaf.value else f"{leaf.element} {list(leaf.shape)}"


def _aliases(numbering: Numbering, code: Code, digits: Sequence[Trial]) -> Ids:
    """For each id the one that its element holds: another where leaves lie on the same bytes."""
    rows = []
    for trial in digits:
        parts = [to_numbers(trial.source[n], leaf.element) for n, leaf in numbering.leaves.items()]
        rows.append(np.concatenate([part for part in parts if part is not None]))
    return code.ids(np.stack(rows))


def _spelled(found: Recovered, words: Mapping[str, Words], numbering: Numbering) -> Spelled | None:
    chains = list((found.values or {}).values())
    if found.ids is None or len(chains) != 1:
        return None
    fill = ValueText(words[found.leaf.name], found.leaf.element)
    return name_steps(found.leaf, found.ids, chains[0], numbering, fill)


def _written(
    request: Request,
    found: Derived,
    rules: ClaimFile | None,
    compared: tuple[ComparedClaim, ...],
    problems: tuple[ProblemRow, ...],
    seconds: float,
) -> Derivations:
    numbering = found.sources.numbering
    leaves = tuple(
        derived_row(leaf, spelled, found)
        for leaf, spelled in zip(found.leaves, found.spelled, strict=True)
    )
    used, pieces = found.used, {row.n_pieces for row in leaves}
    record = Derivation(
        generated_at=utc_now(),
        tool=f"lockstep {__version__}",
        command=request.converter.command,
        template=str(request.template),
        source_format=found.source.format,
        target_format=found.target.format,
        n_runs=found.n_runs,
        n_ids=numbering.n_ids,
        highest_digit=found.sources.code.highest,
        seconds=seconds,
        outcome=outcome_of(leaves, compared, problems),
        leaves=leaves,
        unused=tuple(name for name in numbering.names if name not in used),
        unmarked=dict(found.unmarked),
        warnings=symmetries(found.source),
        notes=found.notes,
        claims_title=rules.title if rules else "",
        claims_digest=rules.digest if rules else "",
        claims=compared,
        problems=problems,
        not_measured={"leaves.n_pieces": _IRREGULAR} if None in pieces else {},
    )
    title = f"derived from {request.converter.command}"
    return Derivations(record, rules_of(found, title))
