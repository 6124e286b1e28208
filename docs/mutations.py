"""Writes verify-mutations.md: faults, what `lockstep verify` says, what the usual checks say.

`make mutations` runs it. It needs the extras of the tests: torch, transformers, gguf, orbax.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS.parent / "tests"))

from conversions import table  # noqa: E402
from conversions.spoiled import Said, files_and_misuse, harmless  # noqa: E402

PAGE = DOCS / "verify-mutations.md"
HEAD = """<!-- Made by docs/mutations.py (`make mutations`); edit tests/conversions, not this. -->

# Which faults of a conversion are caught, and what would the usual checks have said?

Each row is a fault that a converter has had, planted in a target that was exact before. *Caught*:
the verdict is not exact. *By*: what saw it, before any data is read (coverage, type) or in the
values (bits, tie). *Named*: what the report says of it, in the last column, is what was planted;
`-` where there is nothing to name, such as random values. The columns after that are checks that
are in use elsewhere, over the tensors that both sides have under one name and shape; `x` is seen,
`-` is not:

- *shape, finite*: a tensor is missing, extra, of another shape, or newly not finite;
- *sums*: the exact sum of each tensor; a permutation keeps it;
- *close t*: `allclose(atol=t, rtol=t)`; *array_equal*: `np.array_equal(equal_nan=True)`, after
  the usual cast to one type;
- *logits*: the largest KL divergence of the next token and how often the first choice agrees,
  over one prompt of 32 tokens, by transformers' own class with the target's weights taken back to
  its names. Limits in use are 2e-3 to 1.5e-2.

The model is a Llama of four layers (32 wide, 4 heads, 2 for k and v) after three steps of AdamW
in float32, with its moments; q and k are interleaved on the way. Rows without a model are small
parts: fused, stacked, padded, cast. `lockstep verify selftest` plants such faults in a target of
your own.
"""


def page(root: Path) -> str:
    """The whole page."""
    rows = table.rows(root, with_logits=True)
    files, misuse = files_and_misuse(_made(root / "files"))
    parts = [HEAD]
    for section in table.SECTIONS:
        parts += [f"## {section}\n", *_table([row for row in rows if row.section == section])]
    parts += [
        "## Files\n",
        "Refused when they are listed or read, exit code 4, or found to differ.\n",
    ]
    parts += _said(files, "caught")
    parts += ["## Misuse\n", *_said(misuse, "caught")]
    parts += ["## What must not fail\n", *_said(list(harmless(root / "harmless")), "passes")]
    parts += ["## In figures\n", *_figures(rows, files, misuse)]
    return "\n".join(parts).rstrip() + "\n"


def _made(path: Path) -> Path:
    path.mkdir(parents=True)
    return path


def _table(rows: list[table.Row]) -> Iterator[str]:
    heads = ["mutation", "caught", "by", "named", *table.CHECKS, "logits", "what `verify` says"]
    yield f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}"
    for row in rows:
        yield f"| {' | '.join([*row.marks, row.logits, _cell(row.words)])} |"
    yield ""


def _said(found: list[Said], what: str) -> Iterator[str]:
    yield f"| case | {what} | what `verify` says |\n|---|---|---|"
    for said in found:
        yield f"| {said.name} | {'yes' if said.right else 'NO'} | {_cell(said.words)} |"
    yield ""


def _cell(text: str) -> str:
    short = text if len(text) <= 200 else f"{text[:200]} ..."
    return short.replace("|", "\\|").replace("\n", " ")


def _figures(rows: list[table.Row], files: list[Said], misuse: list[Said]) -> Iterator[str]:
    n = len(rows)
    named = [row for row in rows if row.named != "-"]
    n_named = sum(row.named == "yes" for row in named)
    yield (
        f"Of {n} mutations `verify` catches {sum(row.caught for row in rows)}, "
        f"and names {n_named} of the {len(named)} that have a name.\n"
    )
    yield "| check | of how many | sees |\n|---|---|---|"
    for i, name in enumerate(table.CHECKS):
        yield f"| {name} | {n} | {sum(row.checks[i] for row in rows)} |"
    model = [row for row in rows if "/" in row.logits or row.logits.startswith(("not", "does"))]
    seen = sum("/" not in row.logits or float(row.logits.split(" / ")[0]) > 1.5e-2 for row in model)
    yield f"| logits, KL over 1.5e-2, or no result | {len(model)} | {seen} |"
    others = (*files, *misuse)
    yield f"| `verify`: files and misuse | {len(others)} | {sum(s.right for s in others)} |\n"


def main() -> None:
    """Writes the page."""
    with tempfile.TemporaryDirectory() as directory:
        PAGE.write_text(page(Path(directory)), encoding="utf-8")
    print(f"wrote docs/{PAGE.name}")


if __name__ == "__main__":
    main()
