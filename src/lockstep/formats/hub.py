"""Models of the Hugging Face Hub by name, kept in a cache whose content is checked on each load.

`hf://org/repo/file.gguf` is one file, or all files of a split; `hf://org/repo` the directory of a
model: config, tokenizer, safetensors. `hf://org/repo@revision/...` is a branch, a tag or a commit.
What the cache has whole is used as it is, and the hub is not asked.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lockstep.errors import EnvironmentLacks, InputError, nearest
from lockstep.formats.atomic import replacing
from lockstep.formats.hub_name import Declared, HubName, Listing, is_inside, parse_hub_name
from lockstep.formats.json_text import read_json_object
from lockstep.formats.leaf import FileIdentity
from lockstep.formats.locate.bounded import opened, shown
from lockstep.formats.locate.gguf import split_names
from lockstep.formats.locate.safetensors import INDEX, SINGLE

_COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_BESIDE_WEIGHTS = (
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("tokenizer.model", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
    *("merges.txt", "chat_template.jinja", "chat_template.json"),
)
_LISTING = ".listing.json"
_PIECE = 1 << 20


class _NotListedError(InputError):
    """A commit has no such file, or no model; a later one may."""


def fetch(text: str, cache: Path, *, refresh: bool = False) -> Path:
    """The file or the directory of a model of the hub, downloaded where the cache lacks it.

    `refresh` asks the hub whether the revision has moved. HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE
    are those of huggingface_hub.
    Raises: UsageError if the name is malformed. EnvironmentLacks if the hub cannot be reached or
    refuses, or the disk is full. InputError if the hub has no such file, or bytes differ from what
    it declares.
    """
    name = parse_hub_name(text)
    folder = cache.joinpath(*name.repo.split("/"))
    if not refresh and (listing := _known(folder, name)) is not None:
        found = _from_cache(folder / listing.commit, name, listing)
        if found is not None:
            return found
    if _is_offline():
        raise EnvironmentLacks(
            f"{name.text}: expected it in {folder}, as HF_HUB_OFFLINE is set, got no whole copy",
            hint="unset HF_HUB_OFFLINE, and run once with a network",
        )
    # Here, because the library takes longer to import than a cached model to be found.
    from lockstep.formats.hub_download import list_files

    listing = list_files(name)
    if not _COMMIT.fullmatch(listing.commit):
        raise _untrusted(name, listing.commit)
    try:
        root = folder / listing.commit
        root.mkdir(parents=True, exist_ok=True)
        _write_json(root / _LISTING, {n: asdict(file) for n, file in listing.files.items()})
        with _locked(root):
            found = _complete(root, name, listing)
        refs = folder / "refs"
        refs.mkdir(exist_ok=True)
        _write_json(refs / quote(name.revision, safe=""), {"commit": listing.commit})
    except OSError as error:
        raise EnvironmentLacks(
            f"{folder}: cannot be written: {error}", hint="check free space and permissions"
        ) from error
    return found


def _is_offline() -> bool:
    """As huggingface_hub reads it, but when it is asked rather than when it is imported."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def _known(folder: Path, name: HubName) -> Listing | None:
    """The listing of the commit that the revision was when it was last downloaded."""
    try:
        commit = name.revision
        if not _COMMIT.fullmatch(commit):
            commit = read_json_object(folder / "refs" / quote(commit, safe=""))["commit"]
            if not _COMMIT.fullmatch(commit):
                return None
        files = read_json_object(folder / commit / _LISTING)
        return Listing(commit, {n: Declared(**file) for n, file in files.items()})
    except (InputError, KeyError, TypeError):
        return None  # never downloaded, or damaged: the hub knows


def _from_cache(root: Path, name: HubName, listing: Listing) -> Path | None:
    """The model, if all of its files are there and what the hub declared; None if one is missing.

    Raises: InputError if one differs.
    """
    try:
        for file in _wanted(root, name, listing):
            if not (root / file).exists():
                return None
            check(root / file, listing.files[file])
    except _NotListedError:
        return None
    return root / name.file if name.file else root


def _complete(root: Path, name: HubName, listing: Listing) -> Path:
    """The model, after the download of what is missing of it."""
    from lockstep.formats.hub_download import download

    for file in _wanted(root, name, listing):
        path, declared = root / file, listing.files[file]
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f".{path.name}.incomplete")
            download(name, listing.commit, file, declared, part)
            check_bytes(part, declared, f"{name.text} ({file})")
            os.replace(part, path)
            _write_json(_record(path), _seen(path, declared))
        check(path, declared)
    return root / name.file if name.file else root


def _wanted(root: Path, name: HubName, listing: Listing) -> Iterator[str]:
    """The files of a model, each to be there before the next one is asked for.

    Raises: InputError if the repository has no such file, or no model.
    """
    if name.file:
        folder, slash, last = name.file.rpartition("/")
        for part in split_names(last):
            yield _listed(name, listing, f"{folder}{slash}{part}")
        return
    single = [file for file in listing.files if re.fullmatch(r"[^/]+\.safetensors", file)]
    if "config.json" not in listing.files or not single:
        ggufs = [file for file in listing.files if file.endswith(".gguf")]
        known = f"; it has {', '.join(sorted(ggufs)):.400}" if ggufs else ""
        raise _NotListedError(
            f"{name.text}: expected a repository with config.json and safetensors, got none{known}",
            hint=f"name a file: {name.text}/FILE.gguf" if ggufs else "choose another repository",
        )
    yield from (file for file in _BESIDE_WEIGHTS if file in listing.files)
    if INDEX in listing.files:
        yield INDEX
        places = read_json_object(root / INDEX).get("weight_map")
        for shard in sorted({str(s) for s in places.values()} if isinstance(places, dict) else {}):
            yield _listed(name, listing, shard)
    elif SINGLE in listing.files or len(single) == 1:
        yield SINGLE if SINGLE in listing.files else single[0]
    else:
        raise _NotListedError(
            f"{name.text}: expected {SINGLE} or {INDEX}, got {', '.join(sorted(single)):.400}",
            hint="choose another repository of the model",
        )


def _listed(name: HubName, listing: Listing, file: str) -> str:
    """The file, if the repository has it and it may become the name of a file here."""
    if not is_inside(file):
        raise _untrusted(name, file)
    if file in listing.files:
        return file
    near = nearest(file, listing.files)
    raise _NotListedError(
        f"{name.text}: expected the file {shown(file)} in the repository, got none",
        hint=f"{near}see its files on the hub",
    )


def _untrusted(name: HubName, got: str) -> InputError:
    return InputError(
        f"{name.text}: expected commits and paths inside of the repository, got {got!r:.120}",
        hint="check HF_ENDPOINT, and choose a source that you trust",
    )


# --- what was downloaded is what was declared


def check(path: Path, declared: Declared) -> None:
    """Insists that a file holds what the hub declared; another file is removed.

    It is hashed again when it was touched since it was hashed last.
    Raises: InputError if it differs.
    """
    record = _record(path)
    if _read_json(record) != _seen(path, declared):
        check_bytes(path, declared, str(path))
        with suppress(OSError):  # a cache that cannot be written is hashed each time
            _write_json(record, _seen(path, declared))


def check_bytes(path: Path, declared: Declared, where: str) -> None:
    """Insists that the bytes of a file are those that the hub declared; another file is removed.

    Raises: InputError if it differs.
    """
    n_bytes, found = path.stat().st_size, _hash(path, declared)
    expected = declared.sha256 or declared.git_sha1
    if (n_bytes, found) != (declared.n_bytes, expected):
        path.unlink()
        raise InputError(
            f"{where}: expected {declared.n_bytes} bytes with the hash {expected}, as the hub"
            f" declares, got {n_bytes} with {found}; the file was removed",
            hint="run it again to download the file again",
        )


def _record(path: Path) -> Path:
    """Where it is kept that a file was hashed, and as what."""
    return path.with_name(f".{path.name}.checked")


def _seen(path: Path, declared: Declared) -> dict[str, Any]:
    """What tells that a file is still the one that was hashed."""
    found = FileIdentity.of(path)
    return {
        "hash": declared.sha256 or declared.git_sha1,
        "n_bytes": found.n_bytes,
        "mtime_ns": found.mtime_ns,
        "ctime_ns": found.ctime_ns,
        "inode": found.inode,
    }


def _hash(path: Path, declared: Declared) -> str:
    """The hash of a file, of the kind that the hub declared.

    Source: git-hash-object(1) for the SHA-1 of files that are not in LFS.
    """
    digest = hashlib.sha256() if declared.sha256 else hashlib.sha1(usedforsecurity=False)
    with opened(path) as (file, n_bytes):
        if not declared.sha256:
            digest.update(b"blob %d\0" % n_bytes)
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        return read_json_object(path)
    except InputError:
        return None


def _write_json(path: Path, value: object) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    """Only one process downloads the files of a commit; others wait and find them."""
    with open(root / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
