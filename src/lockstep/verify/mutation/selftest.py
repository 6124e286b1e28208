"""Plants faults into a user's own target, in memory, and shows that the verification sees them.

The conversion has to pass first, for the leaves that are picked. Each fault is then verified like
any other target: the claims are resolved against its listing, and the leaves that it changed are
compared. The user's files are only read.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from lockstep import __version__
from lockstep.artifacts.clock import utc_now
from lockstep.artifacts.selftest import MutationRow, Named, Selftest
from lockstep.artifacts.verification import VALUE_EXACT, ClaimRow, Verification
from lockstep.errors import GateError, LockstepError, UsageError
from lockstep.formats.leaf import Leaf, Store
from lockstep.formats.open_store import open_store
from lockstep.verify.api import Pair, PathLike
from lockstep.verify.claim import Claim, Plan
from lockstep.verify.claims.claim_file import load_claims
from lockstep.verify.claims.resolve import resolve
from lockstep.verify.claims.rules import ClaimFile
from lockstep.verify.engine.budget import divide
from lockstep.verify.engine.examine import Options, examine
from lockstep.verify.engine.probe import ReadingProbe
from lockstep.verify.layouts.layout import whole
from lockstep.verify.mutation.file_mutations import Filed, Skeleton, file_mutations, refusal_of
from lockstep.verify.mutation.listing_mutations import Listed, listing_mutations
from lockstep.verify.mutation.mutant import Bench, Mutant, Mutation, Unfit
from lockstep.verify.mutation.mutations import ATTENTION, AXES, EMBEDDINGS, MAPPING, MLP
from lockstep.verify.mutation.selftest_picks import Trial, narrowed, pick
from lockstep.verify.mutation.value_mutations import HARMLESS, TIE_BROKEN, VALUES

MUTATIONS: tuple[Mutation, ...] = (
    *MAPPING, *AXES, *ATTENTION, *MLP, *EMBEDDINGS, *VALUES, *HARMLESS,
)  # fmt: skip


def selftest(pair: Pair, claims: PathLike | ClaimFile, trial: Trial) -> Selftest:
    """Mutates the target in every way that applies; the record says which were caught.

    Raises: GateError if the conversion does not pass without a mutation; InputError, BudgetError
    or UsageError as `check` does.
    """
    began = time.perf_counter()
    rules = claims if isinstance(claims, ClaimFile) else load_claims(claims)
    source, target = pair.open()
    plan = resolve(rules, source, target)
    with tempfile.TemporaryDirectory(prefix="lockstep-selftest-") as directory:
        runner = _Runner(pair, rules, plan, trial, Path(directory))
        rows = tuple(runner.rows())
    outcomes = [row.outcome for row in rows]
    n_missed = outcomes.count("missed") + outcomes.count("false alarm")
    return Selftest(
        generated_at=utc_now(),
        tool=f"lockstep {__version__}",
        source=source.where,
        target=target.where,
        claims_digest=rules.digest,
        seed=trial.seed,
        per_rule=trial.per_rule,
        picked=tuple(claim.target for claim in runner.picks),
        left_out=runner.left_out,
        rows=rows,
        n_caught=outcomes.count("caught"),
        n_missed=n_missed,
        bytes_read=runner.bytes_read,
        seconds=round(time.perf_counter() - began, 6),
        passed="caught" in outcomes and not n_missed,
    )


class _Runner:
    """One self-test."""

    def __init__(
        self, pair: Pair, rules: ClaimFile, plan: Plan, trial: Trial, directory: Path
    ) -> None:
        self._pair, self._rules, self._plan, self._trial = pair, rules, plan, trial
        self._directory = directory
        rng = np.random.default_rng(trial.seed)
        self.picks = pick(plan, trial.per_rule, rng)
        inexact = {c.rule for c in plan.claims if c.equality.kind != "bits"}
        self.left_out = tuple(f"{rule}: does not claim equal bits" for rule in sorted(inexact))
        n_leaves = len(plan.source.leaves) + len(plan.target.leaves)
        budget = divide(trial.max_memory_bytes, 1, n_leaves)
        self._bench = Bench(plan, self.picks, budget, directory, rng)
        self._n_read = 0
        self._n_done = 0
        self._n_all = 1

    @property
    def bytes_read(self) -> int:
        """By verifications and to make the mutations."""
        return self._n_read + self._bench.bytes_read

    def rows(self) -> Iterator[MutationRow]:
        """Everything, one after the other.

        Raises: GateError if the conversion does not pass as it is.
        """
        self._check_clean()
        wanted = self._trial.sections
        mutations = [each for each in MUTATIONS if not wanted or each.section in wanted]
        listed = [each for each in listing_mutations(self._rules, self._plan, self.picks)
                  if not wanted or each.section in wanted]  # fmt: skip
        ties = list(self._tied()) if not wanted or TIE_BROKEN.section in wanted else []
        self._n_all = len(mutations) * len(self.picks) + len(listed) + len(ties)
        for mutation in mutations:
            for claim in self.picks:
                yield self._planted(mutation, claim)
        for claim in ties:
            yield self._planted(TIE_BROKEN, claim)
        for each in listed:
            self._tell()
            yield self._listed(each)
        if not wanted or "misuse" in wanted:
            yield from self._used_wrongly()
        if not wanted or "files" in wanted:
            yield from self._files()

    # --- a clean conversion

    def _check_clean(self) -> None:
        if self._plan.problems or not self.picks:
            said = [p.message for p in self._plan.problems] or ["no claim of equal bits"]
            raise UsageError(
                f"selftest: expected claims that add up, got: {said[0]}",
                hint="run `lockstep verify plan` and mend the claims first",
            )
        report = self._examine(narrowed(self._plan, {claim.target for claim in self.picks}))
        wrong = [row.target for row in report.claims if row.verdict not in VALUE_EXACT]
        wrong += [p.where for p in report.problems if p.kind == "tie"]
        if wrong:
            raise GateError(
                f"selftest: expected a conversion that passes, got leaves that differ: {wrong[0]}",
                hint="run `lockstep verify` first; what fails anyway shows no mutation",
            )

    def _examine(self, plan: Plan, *, sample: bool = False) -> Verification:
        options = Options(
            max_memory_bytes=self._trial.max_memory_bytes, digest="none", sample=sample
        )
        report = examine(plan, options)
        self._n_read += report.cost.bytes_read
        return report

    # --- mutations of leaves

    def _tied(self) -> Iterator[Claim]:
        """One leaf of each tie of the target, as if it were claimed."""
        for tie in self._plan.ties:
            there = [name for name in tie.leaves if name in self._plan.target.leaves]
            if tie.side == "target" and len(there) > 1:
                leaf = self._plan.target.leaves[there[-1]]
                layout = whole(leaf.name, leaf.grid_shape)
                yield Claim(leaf.name, tie.rule, "", leaf.name, (), layout)

    def _planted(self, mutation: Mutation, claim: Claim) -> MutationRow:
        self._tell()
        row = MutationRow(
            section=mutation.section, mutation=mutation.name, place=claim.target,
            outcome="not applicable", by="", named="nothing to name", words="",
        )  # fmt: skip
        is_array = claim.layout is not None
        if not is_array and mutation.name != "every whole number one more":
            return replace(row, why="it is no array")
        mutant = mutation.plant(self._bench, claim)
        if isinstance(mutant, Unfit) and mutant.is_too_large:
            smaller = self._bench.smaller(claim)
            if smaller is not None:
                mutant, row = (
                    mutation.plant(self._bench, smaller),
                    replace(row, place=smaller.target),
                )
        if isinstance(mutant, Unfit):
            return replace(row, why=mutant.why)
        try:
            return self._judged(row, mutation, mutant)
        finally:
            for file in self._directory.glob("*.bin"):
                file.unlink()

    def _judged(self, row: MutationRow, mutation: Mutation, mutant: Mutant) -> MutationRow:
        leaves = {**self._plan.target.leaves, **mutant.changed}
        plan = replace(self._plan, target=replace(self._plan.target, leaves=leaves))
        changed = set(mutant.changed)
        tied = {name for tie in plan.ties if changed & set(tie.leaves) for name in tie.leaves}
        compared = changed | set(mutant.beside)
        report = self._examine(narrowed(plan, compared, tied))
        return self._outcome(row, report, mutation.harmless, mutant, plan)

    def _outcome(
        self, row: MutationRow, report: Verification, harmless: bool, mutant: Mutant, plan: Plan
    ) -> MutationRow:
        failed = [each for each in report.claims if each.verdict not in VALUE_EXACT]
        ties = [p.message for p in report.problems if p.kind == "tie"]
        words = _words(failed, ties)
        if harmless:
            return replace(row, outcome="false alarm" if words else "passed", words=words)
        neutral = self._same_bits(plan, mutant.changed)
        missed = mutant.changed.keys() - neutral - {each.target for each in failed}
        if neutral == mutant.changed.keys():
            why = "value-neutral: every element has the bits that it had"
            return replace(row, why=why, outcome="false alarm" if words else row.outcome)
        if missed - _tied_names(plan, ties):
            return replace(row, outcome="missed", words=f"not seen: {', '.join(sorted(missed))}")
        if mutant.n_differ is not None and not ties:
            n = sum(each.difference.n_differ for each in failed if each.difference)
            if n != mutant.n_differ:
                words = f"{n} elements were said to differ, {mutant.n_differ} do"
                return replace(row, outcome="missed", words=words)
        # a number that is alone in its leaf is wrong, and nothing is to be said of where or how
        alone = all(leaf.n_elements == 1 for leaf in mutant.changed.values())
        named = _named("" if alone else mutant.says, words)
        return replace(row, outcome="caught", by="bits", words=words, named=named)

    def _same_bits(self, plan: Plan, changed: Mapping[str, Leaf]) -> set[str]:
        """Those of the changed leaves that hold what they held."""
        same: set[str] = set()
        both = replace(plan, source=self._plan.target)
        probe = ReadingProbe(both, self._bench.budget, {"source": {}, "target": {}})
        try:
            for name, leaf in changed.items():
                old = self._plan.target.leaves[name]
                if leaf.value or old.value:
                    same |= {name} if leaf.value == old.value else set()
                elif probe.agrees(_identity(leaf)):
                    same.add(name)
        finally:
            probe.close()
        return same

    # --- mutations of the listing, of the use, of the files

    def _listed(self, each: Listed) -> MutationRow:
        row = MutationRow(
            section=each.section, mutation=each.name, place=each.place, outcome="missed",
            by="", named="nothing to name", words="",
        )  # fmt: skip
        problems = each.plan().problems
        if not problems:
            return row
        told = next((p for p in problems if re.search(each.says, f"{p.where} {p.message}")),
                    problems[0])  # fmt: skip
        return replace(
            row,
            outcome="caught",
            by="type" if told.kind in ("type", "shape") else "coverage",
            words=told.message,
            named=_named(each.says, f"{told.where} {told.message}"),
        )

    def _used_wrongly(self) -> Iterator[MutationRow]:
        changed = {self.picks[0].target}

        def refused(run: Callable[[], object]) -> str:
            try:
                run()
            except LockstepError as error:
                return error.message
            return ""

        same = replace(self._pair, source=self._pair.target, allow_same=False)
        words = refused(same.open) if self._plan.target.files else "no files"
        yield _used("a checkpoint compared with itself", words)
        files = [replace(f, mtime_ns=f.mtime_ns - 1) for f in self._plan.target.files]
        older = replace(self._plan.target, files=tuple(files))
        plan = narrowed(replace(self._plan, target=older), changed)
        yield _used("a file that changed during the run", refused(lambda: self._examine(plan)))
        sampled = self._examine(narrowed(self._plan, changed), sample=True).claims
        weak = [row.why for row in sampled if row.verdict not in VALUE_EXACT]
        yield _used("a sample taken for a proof", weak[0] if len(weak) == len(sampled) > 0 else "")
        empty = Store("nothing", "none", {}, ())
        nothing = self._examine(Plan(empty, empty, ()))
        words = "" if nothing.value_exact else f"the verdict is {nothing.verdict}"
        yield _used("nothing compared", words)

    def _files(self) -> Iterator[MutationRow]:
        path, store = self._pair.target, self._plan.target
        skeleton = Skeleton(path, store)
        row = MutationRow(
            section="files", mutation="", place=store.where, outcome="not applicable", by="",
            named="nothing to name", words="",
        )  # fmt: skip
        why = skeleton.why_not
        if not why:
            why = refusal_of(skeleton.copy(self._directory / "clean"), store.format)
        if why:
            yield replace(row, mutation="spoiled copies", why=why)
            return
        for i, each in enumerate(file_mutations(skeleton, store.format)):
            copy = skeleton.copy(self._directory / f"copy-{i}")
            try:
                yield self._spoiled(replace(row, mutation=each.name), each, copy, skeleton)
            finally:
                shutil.rmtree(self._directory / f"copy-{i}")

    def _spoiled(
        self, row: MutationRow, each: Filed, copy: Path, skeleton: Skeleton
    ) -> MutationRow:
        format = self._plan.target.format
        why = each.spoil(copy)
        if why:
            return replace(row, why=why)
        words = refusal_of(copy, format)
        if not words and skeleton.is_whole:
            words = self._what_reads(copy, format)
            if not words:
                return replace(row, why="value-neutral: every element still reads as it did")
        words = words.replace(str(copy.parent if copy.is_file() else copy), "COPY")
        return replace(row, outcome="caught" if words else "missed", by="file" if words else "",
                       words=words)  # fmt: skip

    def _what_reads(self, copy: Path, format: str) -> str:
        """What a verification of a whole copy says; nothing if it passes."""
        try:
            target = open_store(copy, format)
            report = self._examine(resolve(self._rules, self._plan.source, target))
        except LockstepError as error:
            return error.message
        failed = [row for row in report.claims if row.verdict not in VALUE_EXACT]
        return _words(failed, [problem.message for problem in report.problems])

    def _tell(self) -> None:
        self._n_done += 1
        if self._trial.progress:
            self._trial.progress(self._n_done, self._n_all)


def _identity(leaf: Leaf) -> Claim:
    return Claim(leaf.name, "", "", leaf.name, (leaf.name,), whole(leaf.name, leaf.grid_shape))


def _tied_names(plan: Plan, messages: list[str]) -> set[str]:
    """The leaves of ties that were found to be broken."""
    return {name for tie in plan.ties for name in tie.leaves if any(name in m for m in messages)}


def _words(failed: list[ClaimRow], ties: list[str]) -> str:
    """What the report says: of each leaf the diagnosis with its suspects, else the reason."""
    said = []
    for row in failed:
        text = row.diagnosis.text if row.diagnosis else row.why
        suspects = [s for s in row.diagnosis.suspects if s not in text] if row.diagnosis else []
        said.append(f"{row.target}: {text}" + (f" ({', '.join(suspects)})" if suspects else ""))
    return "; ".join([*said[:4], *ties])


def _named(says: str, words: str) -> Named:
    if not says:
        return "nothing to name"
    return "yes" if re.search(says, words) else "no"


def _used(name: str, words: str) -> MutationRow:
    return MutationRow(
        section="misuse", mutation=name, place="the command",
        outcome="caught" if words else "missed", by="usage" if words else "",
        named="nothing to name", words=words,
    )  # fmt: skip
