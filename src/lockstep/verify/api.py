"""The Python API: `prove` returns only what is proved, `check` returns what was found.

    from lockstep.verify import prove
    report = prove("old.safetensors", "new.safetensors", "claims.toml", max_memory_bytes=1 << 28)

An exception of `prove` that follows from a verdict has the record as its `report`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lockstep.artifacts.printable import printable
from lockstep.artifacts.verification import VALUE_EXACT, Verification
from lockstep.errors import GateError, InexactError, UsageError
from lockstep.formats.leaf import FileIdentity, Store
from lockstep.formats.open_store import open_store
from lockstep.verify.claim import Plan, Problem
from lockstep.verify.claims.claim_file import load_claims
from lockstep.verify.claims.resolve import resolve
from lockstep.verify.claims.rules import ClaimFile
from lockstep.verify.claims.same_names import same_names
from lockstep.verify.engine.examine import Options, digest_store, examine
from lockstep.verify.listing import Digests, digests_of

PathLike = str | Path


class ValuesDiffer(GateError):
    """Values of the target are not those of the source under the claims."""

    report: Verification


class ClaimsDoNotAddUp(UsageError):
    """No value differs, but elements are unexplained, or a rule is wrong."""

    report: Verification


class NotProved(InexactError):
    """A part is equal only inexactly, or was not compared."""

    report: Verification


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two checkpoints to compare, and how they are read.

    `allow_same` lets the two be the same files.
    """

    source: Path
    target: Path
    source_format: str | None = None
    target_format: str | None = None
    allow_same: bool = False

    def open(self) -> tuple[Store, Store]:
        """Lists both.

        Raises: InputError if one cannot be read; UsageError if both are the same files.
        """
        stores = (
            open_store(self.source, self.source_format),
            open_store(self.target, self.target_format),
        )
        if not self.allow_same:
            _refuse_same(*stores)
        return stores


def prove(source: PathLike, target: PathLike, claims: PathLike | ClaimFile,
          **options: Any) -> Verification:  # fmt: skip
    """Proves that the target holds the values of the source under the claims.

    The options are those of `check`.

    Raises: ValuesDiffer, ClaimsDoNotAddUp or NotProved, each with the record as its `report`;
    InputError, BudgetError or EnvironmentLacks if it did not come to a verdict.
    """
    report = check(source, target, claims, **options)
    error = refusal(report)
    if error is not None:
        raise error
    return report


def check(
    source: PathLike,
    target: PathLike,
    claims: PathLike | ClaimFile,
    *,
    source_format: str | None = None,
    target_format: str | None = None,
    allow_same: bool = False,
    **options: Any,
) -> Verification:
    """Compares the target with the source under the claims; the verdict is in the record.

    `claims` is a file, `ready:NAME`, or a `ClaimFile`; the other options are those of `Options`.

    Raises: InputError, BudgetError, EnvironmentLacks or UsageError if there is no verdict.
    """
    pair = Pair(source=Path(source), target=Path(target), source_format=source_format,
                target_format=target_format, allow_same=allow_same)  # fmt: skip
    return check_pair(pair, claims, Options(**options))


def check_pair(pair: Pair, claims: PathLike | ClaimFile | None, options: Options) -> Verification:
    """`check` of a pair; without claims, leaves of the same name are compared."""
    if claims is None:
        return examine(same_names(*pair.open()), options)
    return examine(plan_of(pair, claims), options)


def plan_of(pair: Pair, claims: PathLike | ClaimFile) -> Plan:
    """The claims resolved against two checkpoints, nothing of which has been read yet."""
    rules = claims if isinstance(claims, ClaimFile) else load_claims(claims)
    source, target = pair.open()
    plan = resolve(rules, source, target)
    if not plan.claims and resolve(rules, target, source).claims:
        plan = replace(plan, problems=(*plan.problems, _wrong_order(source, target)))
    return plan


def digest_checkpoint(
    checkpoint: PathLike, format: str | None = None, options: Options | None = None
) -> Digests:
    """The digest of every leaf of a checkpoint, and their root.

    Raises: InputError, BudgetError or EnvironmentLacks if one leaf cannot be read.
    """
    store = open_store(Path(checkpoint), format)
    return digests_of(store, digest_store(store, options or Options()))


def exit_code(report: Verification) -> int:
    """The exit code of a verdict: a difference goes before a problem, a problem before the rest.

    Leaves that are tied and hold other bits are a difference.
    """
    error = refusal(report)
    return 0 if error is None else error.exit_code


def refusal(report: Verification) -> ValuesDiffer | ClaimsDoNotAddUp | NotProved | None:
    """The error that a verdict is, or None for one that is value-exact."""
    where = f"{printable(report.source.where)} -> {printable(report.target.where)}"
    differ = [printable(row.target) for row in report.claims if row.verdict == "FAIL"]
    ties = [printable(row.message) for row in report.problems if row.kind == "tie"]
    error: ValuesDiffer | ClaimsDoNotAddUp | NotProved
    if differ:
        error = ValuesDiffer(
            f"{where}: expected the values of the source, got {len(differ)} of "
            f"{len(report.claims)} leaves that differ: {_some(differ)}",
            hint="read `report.claims` for what differs, where, and why",
        )
    elif ties:
        error = ValuesDiffer(
            f"{where}: expected the same bits in leaves that are tied, got: {_some(ties)}",
            hint="remove the tie and claim both leaves, or write the checkpoint again",
        )
    elif report.problems or not report.claims:
        messages = [printable(row.message) for row in report.problems] or ["nothing was claimed"]
        error = ClaimsDoNotAddUp(
            f"{where}: expected claims that cover every element once, got:{_listed(messages)}",
            hint="mend the claims; `lockstep verify plan` shows them without reading data",
        )
    elif not report.value_exact or report.verdict not in VALUE_EXACT:
        weak = [printable(row.target) for row in report.claims if row.verdict not in VALUE_EXACT]
        error = NotProved(
            f"{where}: expected equal bits, got {report.verdict} for {len(weak)} of "
            f"{len(report.claims)} leaves: {_some(weak)}",
            hint="compare all of it, and claim equal bits",
        )
    else:
        return None
    error.report = report
    return error


def _some(texts: list[str], n: int = 3) -> str:
    more = f", and {len(texts) - n} more" if len(texts) > n else ""
    return ", ".join(texts[:n]) + more


def _listed(texts: list[str], n: int = 10) -> str:
    """Each on a line of its own."""
    more = [f"and {len(texts) - n} more"] if len(texts) > n else []
    return "".join(f"\n    {text}" for text in [*texts[:n], *more])


def _refuse_same(source: Store, target: Store) -> None:
    """A checkpoint that is compared with itself by mistake is equal, and shows nothing."""
    ours, theirs = ({_file(file) for file in store.files} for store in (source, target))
    if ours and theirs and (ours <= theirs or theirs <= ours):
        raise UsageError(
            f"{source.where}, {target.where}: expected two checkpoints, got the same files twice",
            hint="name the other checkpoint, or give --allow-same (allow_same=True)",
        )


def _file(file: FileIdentity) -> tuple[int, int]:
    return file.device, file.inode


def _wrong_order(source: Store, target: Store) -> Problem:
    return Problem(
        "unused",
        "claims",
        f"the claims fit {printable(target.where)} as the source and {printable(source.where)} as "
        "the target, which were given the other way round",
        "swap the two checkpoints",
    )
