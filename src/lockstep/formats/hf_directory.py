"""A Hugging Face directory: config.json and weights in one safetensors file or several."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from lockstep.errors import EnvironmentLacks, InputError, UsageError
from lockstep.formats.json_text import read_json_object
from lockstep.formats.safetensors import SafetensorsFile, sync, write_safetensors

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


class HFDirectory:
    """The config, the shape of each tensor, and one tensor at a time as float32."""

    def __init__(self, path: Path) -> None:
        """Opens a directory; no weights are read yet.

        Raises: InputError if a file is missing or corrupt, or index and files disagree.
        """
        self.path = path
        self.where = str(path)
        if not path.is_dir():
            raise InputError(
                f"{path}: expected a directory with config.json, got none",
                hint="check the path of the model",
            )
        self.config = read_json_object(path / "config.json")
        if (path / INDEX).exists():
            self._files = self._open_shards()
        elif (path / SINGLE).exists():
            file = SafetensorsFile(path / SINGLE)
            self._files = dict.fromkeys(file.shapes, file)
        else:
            raise InputError(
                f"{path}: expected {SINGLE} or {INDEX}, got neither",
                hint="save the model as safetensors; pickled weights are not read",
            )
        self.shapes = {name: file.shapes[name] for name, file in self._files.items()}

    def read(self, name: str) -> NDArray[Any]:
        """One tensor as float32.

        Raises: InputError if there is none, or float32 cannot hold it exactly.
        """
        if name not in self._files:
            raise InputError(f"{self.path}: expected a tensor {name}, got none")
        return self._files[name].read(name)

    def _open_shards(self) -> dict[str, SafetensorsFile]:
        index = self.path / INDEX
        places = read_json_object(index).get("weight_map")
        if not isinstance(places, dict) or not places:
            raise InputError(f"{index} weight_map: expected an object with tensors, got none")
        shards: dict[str, SafetensorsFile] = {}
        for shard in dict.fromkeys(places.values()):
            if not isinstance(shard, str) or Path(shard).name != shard or shard in ("", ".", ".."):
                raise InputError(
                    f"{index}: expected file names without folders, got {shard!r:.80}",
                    hint="choose a checkpoint from a source that you trust",
                )
            shards[shard] = SafetensorsFile(self.path / shard)
        held = {(name, shard) for shard, file in shards.items() for name in file.shapes}
        if differing := sorted(held ^ set(places.items())):
            listed = "\n  ".join(f"{name} in {shard}" for name, shard in differing)
            raise InputError(
                f"{index}: expected the tensors that the files hold, they differ in\n  {listed}",
                hint="download the checkpoint again",
            )
        return {name: shards[shard] for name, shard in places.items()}


def write_hf_directory(
    path: Path,
    config: Mapping[str, object],
    tensors: Mapping[str, NDArray[Any]],
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
            _replace_directory(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        sync(path.parent)
    except OSError as error:
        raise EnvironmentLacks(
            f"{path}: cannot be written: {error}", hint="check free space and permissions"
        ) from error


def _replace_directory(new: Path, path: Path) -> None:
    """Puts a directory in the place of another, which goes only when the new one is there."""
    if not path.exists():
        os.rename(new, path)
        return
    old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.old."))
    os.rename(path, old / "replaced")
    try:
        os.rename(new, path)
    except OSError:
        os.rename(old / "replaced", path)
        old.rmdir()
        raise
    shutil.rmtree(old, ignore_errors=True)
