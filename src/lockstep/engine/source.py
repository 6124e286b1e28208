"""What a name at the terminal means: a GGUF file, a Hugging Face directory, or a run of ours."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Literal

from lockstep.artifacts import RunDir, expanded, lockstep_home
from lockstep.artifacts.train_config import TrainConfig
from lockstep.artifacts.weights_manifest import WeightsManifest
from lockstep.build import Model, model_of, model_of_gguf, model_of_hf
from lockstep.engine.bump import read_bump
from lockstep.engine.packed import InMemory, StoredParameters
from lockstep.engine.promotion import promoted_directory
from lockstep.errors import InputError, UsageError
from lockstep.formats.gguf import GGUFFile, is_gguf
from lockstep.formats.hf_directory import HFDirectory
from lockstep.formats.hub import fetch
from lockstep.formats.hub_name import is_hub_name
from lockstep.formats.leaf import FileIdentity
from lockstep.formats.mapped import MappedTensors, expect_supported

CONFIG = "config.json"
KINDS = "a GGUF file, a Hugging Face directory, hf://ORG/REPO/FILE or the name of a run"
Kind = Literal["gguf", "hf", "run"]


@dataclass(frozen=True, kw_only=True)
class Source:
    """A model where it lies: what it is, and its parameters as they are stored.

    `content` stands for the bytes of its files: it changes when any of them does.
    """

    kind: Kind
    path: Path
    model: Model
    parameters: StoredParameters
    content: str
    gguf: GGUFFile | None = None
    hf: HFDirectory | None = None
    run: TrainConfig | None = None
    weights: WeightsManifest | None = None
    metadata: Mapping[str, object] = field(default_factory=dict)

    @property
    def where(self) -> str:
        """What to call it in a message."""
        return str(self.path)

    def in_hf_order(self) -> Source:
        """The same model with its parameters in the order of Hugging Face, as two files compare."""
        family, config = self.model.family, self.model.config
        plain = family.in_hf_order(config)
        if plain == config or self.gguf is None:
            return self
        parameters = family.parameters(plain, self.gguf, "gguf")
        return replace(self, model=Model(family, plain), parameters=parameters)


def open_source(name: str, *, weights: Path | None = None) -> Source:
    """Opens what the name means; `weights` chooses a checkpoint of a run. No weights are read yet.

    A name that starts with hf:// is fetched first, or found in the cache of downloads.

    Raises: InputError if there is no such thing, or it is not a model that can be read;
    UsageError for the home of a user that there is not.
    """
    path = local_path(name)
    if _is_file(path):
        if path.suffix != ".gguf" and not is_gguf(path):
            raise _no_model_file(path)
        return open_gguf(path)
    is_run = _is_file(path, TrainConfig.file)  # which has a config.json, too
    if not is_run and _is_file(path, CONFIG) and any(path.glob("*.safetensors*")):
        return open_hf(path)
    run = RunDir.resolve(name)
    if (run.path / TrainConfig.file).is_file():
        return open_run(run, weights=weights)
    found = next((each for each in (path, run.path) if each.is_dir()), None)
    if found is not None:
        raise _no_model(found)
    if path.exists():
        raise InputError(
            f"{name}: expected a GGUF file, got a pipe, a socket or a device",
            hint="save it as a file: weights are read where they lie",
        )
    raise InputError(
        f"{name}: expected {KINDS}, found none of them",
        hint="check the path",
    )


def local_path(name: str) -> Path:
    """Where the file or directory of this name lies; what starts with hf:// is fetched first.

    Raises: InputError if it cannot be fetched; UsageError for the home of a user there is not.
    """
    if is_hub_name(name):
        return fetch(name, lockstep_home() / "models" / "hub")
    return expanded(name)


def _is_file(path: Path, inside: str = "") -> bool:
    """Whether the path, or what has this name in it, is a file."""
    try:
        return (path / inside).is_file()
    except OSError as error:  # a name that no file can have, or a directory that is closed
        raise InputError(
            f"{str(path)[:80]}: cannot be read: {error.strerror}",
            hint="check the path and its permissions",
        ) from error


def _no_model_file(path: Path) -> InputError:
    """What to name in the place of a file that is no model by itself."""
    parent = path.absolute().parent
    if (parent / CONFIG).is_file() and path.suffix in (".json", ".safetensors"):
        hint = f"name the directory: {path.parent}"
    else:
        hint = f"a model is {KINDS}"
    return InputError(f"{path}: expected a GGUF file, got a file of another kind", hint=hint)


def _no_model(directory: Path) -> InputError:
    """What a directory has that is not a model, and what it lacks."""
    try:
        names = sorted(entry.name for entry in directory.iterdir())
    except OSError as error:
        return InputError(f"{directory}: cannot be read: {error}", hint="check its permissions")
    files = [name for name in names if name.endswith(".gguf")]
    weights = [name for name in names if name.endswith((".safetensors", ".bin", ".pt", ".pth"))]
    if files:
        hint = f"name the file: {directory / files[0]}"
    elif CONFIG in names and weights:
        hint = f"save the weights of {weights[0]} as safetensors"
    elif CONFIG in names:
        hint = "download its *.safetensors as well"
    elif weights:
        hint = f"put the {CONFIG} of the model beside {weights[0]}"
    else:
        hint = "check the path"
    shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    return InputError(
        f"{directory}: expected a GGUF file, a Hugging Face directory ({CONFIG} and *.safetensors) "
        f"or a run ({TrainConfig.file}), found a directory with {shown or 'nothing in it'}",
        hint=hint,
    )


def open_gguf(path: Path) -> Source:
    """A GGUF file, or the file that a split one begins with.

    Raises: InputError if it is damaged or not a model of ours.
    """
    file = GGUFFile(path)
    model = model_of_gguf(file)
    return Source(
        kind="gguf",
        path=path,
        model=model,
        parameters=_readable(model, file, "gguf"),
        content=_content(file.files),
        gguf=file,
        metadata=file.metadata,
    )


def open_hf(path: Path) -> Source:
    """A Hugging Face directory.

    Raises: InputError if it is damaged or not a model of ours.
    """
    directory = HFDirectory(path)
    model = model_of_hf(directory.config)
    return Source(
        kind="hf",
        path=path,
        model=model,
        parameters=_readable(model, directory, "hf"),
        content=_content(directory.files),
        hf=directory,
        metadata=directory.config,
    )


def _readable(model: Model, file: MappedTensors, scheme: Literal["gguf", "hf"]) -> StoredParameters:
    """The parameters in a file, whatever its other tensors are.

    Raises: InputError naming those that are missing or extra, or of a type that nothing reads.
    """
    found = model.family.parameters(model.config, file, scheme)
    expect_supported(file.where, {found.name(id): found.stored(id) for id in found})
    return found


def open_run(run: RunDir, *, weights: Path | None = None) -> Source:
    """The promoted weights of a run, or those of a checkpoint.

    Raises: InputError if they are missing or damaged; UsageError if they were never trained.
    """
    config = TrainConfig.load(run.require().path)
    directory = weights or promoted_directory(run)
    if directory is None:
        raise InputError(
            f"{run.weights}: expected promoted weights, got none",
            hint=f"promote a checkpoint with `lockstep promote {run.name}`",
        )
    model = model_of(config.template, config.family_config)
    manifest, parameters = read_bump(directory, model.shapes)
    if manifest.tokenizer_sha256 is None:
        raise UsageError(
            f"run {run.name}: expected trained weights, got the initial ones",
            hint=f"train with `lockstep train {run.name} --data FILE`, or promote a checkpoint",
        )
    return Source(
        kind="run",
        path=run.path,
        model=model,
        parameters=InMemory(parameters),
        content=manifest.weights_sha256,
        run=config,
        weights=manifest,
    )


def _content(files: Iterable[FileIdentity]) -> str:
    """Stands for the bytes of the files: their identities, which no writer can keep."""
    identities = [replace(file, path=file.path.resolve()) for file in files]
    return sha256(repr(identities).encode()).hexdigest()
