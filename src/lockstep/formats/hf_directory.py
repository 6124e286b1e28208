"""A Hugging Face directory: config.json and weights in one safetensors file or several."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lockstep.errors import EnvironmentLacks, InputError, UsageError
from lockstep.formats.atomic import replace_directory, sync, workplace
from lockstep.formats.json_text import read_json_object
from lockstep.formats.locate.safetensors import INDEX, SINGLE, locate
from lockstep.formats.mapped import MappedTensors
from lockstep.formats.safetensors import write_safetensors
from lockstep.formats.to_write import TensorToWrite

SHARD_BYTES = 5 * 10**9  # the default of huggingface_hub: what one download may take anew


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
    tensors: Mapping[str, NDArray[Any] | TensorToWrite],
    *,
    force: bool = False,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes a directory whole or not at all; an existing one is replaced only with `force`.

    A file of weights has at most `shard_bytes` of tensors, or one that is larger; with several
    comes their index.
    Raises: UsageError if the path exists. EnvironmentLacks if the disk is full or read-only.
    """
    if path.exists() and not force:
        raise UsageError(
            f"{path}: expected a new directory, it exists", hint="choose another, or pass --force"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with workplace(path) as holder:
            made = holder / path.name
            made.mkdir()
            _write_json(made / "config.json", config)
            _write_weights(made, tensors, shard_bytes)
            replace_directory(made, path)
        sync(path.parent)
    except OSError as error:
        raise EnvironmentLacks(
            f"{path}: cannot be written: {error}", hint="check free space and permissions"
        ) from error


def _write_weights(
    directory: Path, tensors: Mapping[str, NDArray[Any] | TensorToWrite], shard_bytes: int
) -> None:
    # Here, because verifying needs numpy and the standard library only, and imports this room.
    from huggingface_hub import split_state_dict_into_shards_factory

    plan = split_state_dict_into_shards_factory(
        dict(tensors),
        get_storage_size=lambda t: t.nbytes if isinstance(t, np.ndarray) else t.n_bytes,
        filename_pattern=SINGLE.replace(".safetensors", "{suffix}.safetensors"),
        max_shard_size=shard_bytes,
    )
    for file, names in plan.filename_to_tensors.items():
        write_safetensors(directory / file, {n: tensors[n] for n in names}, {"format": "pt"})
    if len(plan.filename_to_tensors) > 1:
        places = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        _write_json(directory / INDEX, places)


def _write_json(path: Path, document: Mapping[str, object]) -> None:
    path.write_text(json.dumps(dict(document), indent=2, sort_keys=True) + "\n", encoding="utf-8")
    sync(path)
