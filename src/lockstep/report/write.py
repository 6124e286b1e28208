"""One page per run, complete in itself: no network, no third-party script."""

from __future__ import annotations

from pathlib import Path

from lockstep import __version__
from lockstep.artifacts import RunDir, atomic_write_text
from lockstep.report.data import Page, page_of
from lockstep.report.html import embedded, fill

SECTIONS = (
    ("verdicts", "Verdicts"),
    ("curves", "Curves"),
    ("speed", "Speed"),
    ("graph", "Graph"),
    ("tokens", "Tokens"),
    ("gallery", "Gallery"),
    ("evidence", "Evidence"),
)
SCRIPTS = ("chart.js", "graph.js", "page.js")


def write_report(run_dir: RunDir | Path) -> Path:
    """Writes the page of a run into its directory, from the files that are there.

    Raises: InputError if there is no run directory; EnvironmentLacks if the disk refuses.
    """
    run = run_dir if isinstance(run_dir, RunDir) else RunDir(Path(run_dir))
    return atomic_write_text(run.report, render(page_of(run)))


def render(page: Page) -> str:
    """The page as HTML."""
    return fill(
        "template.html",
        styles=("page.css",),
        scripts=SCRIPTS,
        page=page,
        sections=SECTIONS,
        version=__version__,
        data=embedded(page.script_data),
    )
