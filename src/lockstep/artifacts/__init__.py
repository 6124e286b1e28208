"""Every file of a run directory: a typed record, its schema name, its history."""

from lockstep.artifacts.check import Check, all_pass
from lockstep.artifacts.clock import run_stamp, utc_now
from lockstep.artifacts.codec import Scalar, keyed
from lockstep.artifacts.files import (
    append_bytes,
    atomic_write_bytes,
    atomic_write_text,
    content_hash,
    make_directory,
    read_bytes,
)
from lockstep.artifacts.record import Artifact, append_line, parse_json, read_lines
from lockstep.artifacts.run_dir import RunDir, expanded, lockstep_home, runs_root

__all__ = [
    "Artifact",
    "Check",
    "RunDir",
    "Scalar",
    "all_pass",
    "append_bytes",
    "append_line",
    "atomic_write_bytes",
    "atomic_write_text",
    "content_hash",
    "expanded",
    "keyed",
    "lockstep_home",
    "make_directory",
    "parse_json",
    "read_bytes",
    "read_lines",
    "run_stamp",
    "runs_root",
    "utc_now",
]
