"""Where the files of one run are; everything of a run lives in its directory."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from lockstep.artifacts.files import make_directory
from lockstep.errors import InputError, UsageError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def lockstep_home() -> Path:
    """$LOCKSTEP_HOME, or ~/.cache/lockstep."""
    return expanded(os.environ.get("LOCKSTEP_HOME") or "~/.cache/lockstep")


def expanded(text: str) -> Path:
    """The path that a text with `~` or `~user` in front spells.

    Raises: UsageError if there is no such user.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise UsageError(
            f"{text:.120}: expected a home directory, got none for this user",
            hint="write the path out, with a '/' in front",
        ) from error


def runs_root() -> Path:
    """The directory that holds one directory per named run."""
    return lockstep_home() / "models" / "train"


@dataclass(frozen=True, slots=True)
class RunDir:
    """One run's directory and the places in it; the records know their own file names."""

    path: Path

    @classmethod
    def resolve(cls, text: str | Path) -> RunDir:
        """A path if it has a separator, `.` or `~` in front, else a run's name under the root.

        Raises: UsageError if a name holds other characters than letters, digits, . _ and -.
        """
        text = str(text)
        if os.sep in text or text.startswith((".", "~")):
            return cls(expanded(text).absolute())
        if _NAME.fullmatch(text) is None:
            raise UsageError(
                f"run name: expected letters, digits, '.', '_' or '-', got {text!r:.120}",
                hint="choose a plain name, or give a path with a '/'",
            )
        return cls((runs_root() / text).absolute())

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.name

    def create(self) -> RunDir:
        """Makes the directory where it is missing.

        Raises: EnvironmentLacks if that cannot be done.
        """
        make_directory(self.path)
        return self

    def require(self) -> RunDir:
        """Insists that the directory is there.

        Raises: InputError if it is not.
        """
        if not self.path.is_dir():
            raise InputError(
                f"{self.path}: expected a run directory, got none",
                hint="create it with `lockstep init --run NAME`, or check the name",
            )
        return self

    @property
    def checkpoints(self) -> Path:
        """One directory per checkpoint, and the pointer to the current one."""
        return self.path / "checkpoints"

    @property
    def build(self) -> Path:
        """What the compiler made for inference."""
        return self.path / ".ck_build"

    @property
    def weights(self) -> Path:
        """The promoted weights."""
        return self.path / "weights.bump"

    @property
    def tokenizer(self) -> Path:
        """The run's one tokenizer."""
        return self.path / "tokenizer.json"

    @property
    def metrics(self) -> Path:
        """Telemetry, one line per optimizer step."""
        return self.path / "metrics.jsonl"

    @property
    def ledger(self) -> Path:
        """One line whenever a training starts or ends."""
        return self.path / "run_ledger.jsonl"

    @property
    def report(self) -> Path:
        """The page that shows all of it."""
        return self.path / "ir_report.html"

    def work(self, run_id: str) -> Path:
        """The working directory of one training, for example of `ascii_bpe_20260301_171735`."""
        return self.path / ".ck_pipeline" / run_id

    def latest_work(self, kind: str = "ascii_bpe") -> Path | None:
        """The newest working directory of a kind of tokenizer, by its time stamp."""
        found = sorted(p for p in (self.path / ".ck_pipeline").glob(f"{kind}_*") if p.is_dir())
        return found[-1] if found else None

    def canary(self, row: int) -> RunDir:
        """The run that trains on one row of the data next to PyTorch."""
        return RunDir(self.path / f"parity_svg_row{row}")

    def canary_data(self, row: int) -> Path:
        """The row that a canary trains on."""
        return self.path / "parity_canary" / f"svg_row{row}.txt"

    @property
    def regimen_logs(self) -> Path:
        """One log per stage of the parity regimen."""
        return self.path / "training_parity_regimen_logs"

    @property
    def step_grads(self) -> Path:
        """Gradients of single steps, compared tensor by tensor."""
        return self.path / "regimen_debug_step_grads"
