"""A Hugging Face directory: config.json and weights in one safetensors file or several."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from lockstep.errors import EnvironmentLacks, InputError, UsageError
from lockstep.formats.atomic import replace_directory, sync
from lockstep.formats.json_text import read_json_object
from lockstep.formats.locate.safetensors import SINGLE, locate
from lockstep.formats.mapped import MappedTensors
from lockstep.formats.safetensors import StoredTensor, write_safetensors


class HFDirectory(MappedTensors):
    """The config, the shape and stored type of each tensor, and one tensor at a time."""

    def __init__(self, path: Path) -> None:
        """Opens a directory; no weights are read yet.

        Raises: InputError if a file is missing or corrupt, or index and files disagree.
        """
        self.path = path
        if not path.is_dir():
            raise InputError(
                f"{path}: expected a directory with config.json, got none",
                hint="check the path of the model",
            )
        self.config = read_json_object(path / "config.json")
        store = locate(path)
        self.files = store.files
        super().__init__(str(path), store.leaves)


def write_hf_directory(
    path: Path,
    config: Mapping[str, object],
    tensors: Mapping[str, NDArray[Any] | StoredTensor],
    *,
    force: bool = False,
) -> None:
    """Writes a directory whole or not at all; an existing one is replaced only with `force`.

    Raises: UsageError if the path exists. EnvironmentLacks if the disk is full or read-only.
    """
    if path.exists() and not force:
        raise UsageError(
            f"{path}: expected a new directory, it exists", hint="choose another, or pass --force"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        try:
            text = json.dumps(dict(config), indent=2, sort_keys=True) + "\n"
            (temporary / "config.json").write_text(text, encoding="utf-8")
            sync(temporary / "config.json")
            write_safetensors(temporary / SINGLE, tensors, {"format": "pt"})
            temporary.chmod(0o755)
            replace_directory(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        sync(path.parent)
    except OSError as error:
        raise EnvironmentLacks(
            f"{path}: cannot be written: {error}", hint="check free space and permissions"
        ) from error
