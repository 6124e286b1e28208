"""The one spelling of a moment in run files."""

from __future__ import annotations

from datetime import UTC, datetime


def utc_now() -> str:
    """This moment, for example 2026-03-01T17:17:35Z."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def run_stamp() -> str:
    """This moment as it appears in the id of a training, for example 20260301_171735."""
    return datetime.now(UTC).strftime("%Y%m%d_%H%M%S")
