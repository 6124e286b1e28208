"""The report of a run: one self-contained HTML file, made from artifacts only."""

from lockstep.report.write import write_report

__all__ = ["write_report"]
