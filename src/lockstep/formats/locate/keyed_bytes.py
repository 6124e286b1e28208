"""Bytes under keys, any part of which can be read: a folder of files, or a key-value store."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from lockstep.errors import EnvironmentLacks, InputError
from lockstep.formats.locate.bounded import real

BLOCK_BYTES = 1 << 20
_NODE_BYTES = 8 << 20  # of nodes of a database, each of which describes thousands of keys
_DAMAGED = "restore the checkpoint from a copy; this one is damaged or was cut off"
# What tensorstore raises for damage: ValueError for most, the others by the code of its status.
TENSORSTORE_ERRORS = (ValueError, RuntimeError, KeyError, OSError, TypeError, NotImplementedError)


class KeyedBytes(Protocol):
    """Bytes under keys."""

    where: str

    def all_keys(self) -> Sequence[str]:
        """All keys, in order."""

    def read(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        """Bytes under a key; a negative start counts from the end.

        Raises: InputError if they are not all there.
        """

    def block(self, key: str, start: int) -> bytes:
        """The next mebibyte under a key, or what is left of it; none at the end."""

    def spec(self, prefix: str) -> dict[str, Any]:
        """How tensorstore opens what is below a prefix.  Raises: InputError if it cannot."""


class Folder:
    """Files below a folder, by their path with `/`; links out of it are refused."""

    def __init__(self, root: Path) -> None:
        """Lists a folder.

        Raises: InputError if a file in it lies elsewhere, or it cannot be read.
        """
        self.root = root
        self.where = str(root)
        self.files = list_files(root)

    def all_keys(self) -> Sequence[str]:
        """All keys, in order."""
        return [path.relative_to(self.root).as_posix() for path in self.files]

    def size(self, key: str) -> int:
        """How many bytes are in a file."""
        try:
            return (self.root / key).stat().st_size
        except OSError as error:
            raise InputError(f"{self.where}: {key}: cannot be read: {error.strerror}",
                             hint=_DAMAGED) from error  # fmt: skip

    def read(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        """Bytes of a file."""
        n_bytes = self.size(key)
        first = start if start >= 0 else n_bytes + start
        last = n_bytes if stop is None else stop
        try:
            with (self.root / key).open("rb") as file:
                file.seek(max(first, 0))
                found = file.read(max(last - max(first, 0), 0)) if last <= n_bytes else b""
        except OSError as error:
            raise InputError(f"{self.where}: {key}: cannot be read: {error.strerror}",
                             hint=_DAMAGED) from error  # fmt: skip
        if first < 0 or len(found) != last - first:
            raise _too_short(self.where, key, first, last, n_bytes)
        return found

    def block(self, key: str, start: int) -> bytes:
        """The next mebibyte of a file, or what is left of it; none at the end."""
        return self.read(key, start, max(start, min(start + BLOCK_BYTES, self.size(key))))

    def spec(self, prefix: str) -> dict[str, Any]:
        """How tensorstore opens what is below a prefix."""
        return {"driver": "file", "path": f"{self.root.absolute()}/{prefix}"}


def list_files(root: Path) -> list[Path]:
    """Every file below a folder, sorted.

    Raises: InputError if one is a link to somewhere else, or the folder cannot be read.
    """
    found: list[Path] = []
    top = real(root)

    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename}: cannot be read: {error.strerror}",
                         hint="check its permissions") from error  # fmt: skip

    for folder, folders, names in os.walk(root, onerror=refuse):
        for name in [*folders, *names]:
            path = Path(folder, name)
            if path.is_symlink() and not real(path).is_relative_to(top):
                raise InputError(
                    f"{path}: expected a file below {root}, got a link to somewhere else",
                    hint="copy the file into the checkpoint",
                )
        found.extend(Path(folder, name) for name in names)
    return sorted(found)


class Ocdbt:
    """The keys of one OCDBT database, or of several that were never merged into one."""

    def __init__(self, roots: Sequence[Path], where: str) -> None:
        """Lists the databases; reads their manifests and nodes, no values.

        Raises: InputError if one is damaged; EnvironmentLacks without tensorstore.
        """
        self.where = where
        tensorstore = import_tensorstore(where)
        context = small_context(tensorstore, _NODE_BYTES)
        self._stores: dict[str, Any] = {}
        self.duplicates: list[str] = []
        for root in roots:
            spec = {"driver": "ocdbt", "base": f"file://{_quoted(root)}/"}
            try:
                store = tensorstore.KvStore.open(spec, context=context).result()
                keys = [key.decode("utf-8") for key in store.list().result()]
            except TENSORSTORE_ERRORS as error:
                raise InputError(
                    f"{root}: expected an OCDBT database, got one that cannot be read: "
                    f"{first_line(error)}",
                    hint=_DAMAGED,
                ) from error
            for key in sorted(keys):
                if key in self._stores:
                    self.duplicates.append(key)
                else:
                    self._stores[key] = store

    def all_keys(self) -> Sequence[str]:
        """All keys, in order."""
        return list(self._stores)

    def block(self, key: str, start: int) -> bytes:
        """The next mebibyte under a key, or what is left of it; none at the end.

        The database does not tell how long a value is: it refuses to read beyond its end.
        """
        try:
            return self._read(key, slice(start, start + BLOCK_BYTES))
        except ValueError as error:
            if "OUT_OF_RANGE" not in str(error):
                raise self._unreadable(key, error) from error
        return self.read(key, start)

    def read(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        """Bytes under a key."""
        try:
            found = self._read(key, None if (start, stop) == (0, None) else slice(start, stop))
        except TENSORSTORE_ERRORS as error:
            raise self._unreadable(key, error) from error
        if stop is not None and len(found) != stop - start:
            raise _too_short(self.where, key, start, stop, start + len(found))
        return found

    def _read(self, key: str, part: slice | None) -> bytes:
        found = self._stores[key].read(key, byte_range=part).result()
        if found.state != "value":
            raise InputError(f"{self.where}: {key}: expected data, got none", hint=_DAMAGED)
        value: bytes = found.value
        return value

    def _unreadable(self, key: str, error: Exception) -> InputError:
        return InputError(f"{self.where}: {key}: cannot be read: {first_line(error)}",
                          hint=_DAMAGED)  # fmt: skip

    def spec(self, prefix: str) -> dict[str, Any]:
        """How tensorstore opens what is below a prefix."""
        stores = {id(store): store for key, store in self._stores.items() if key.startswith(prefix)}
        if len(stores) != 1:
            raise InputError(
                f"{self.where}: {prefix}: expected its chunks in one database, got {len(stores)}",
                hint="merge the checkpoint with the library that wrote it",
            )
        spec: dict[str, Any] = next(iter(stores.values())).spec().to_json()
        return {**spec, "path": prefix}


def _too_short(where: str, key: str, start: int, stop: int, n_bytes: int) -> InputError:
    return InputError(
        f"{where}: {key}: expected bytes {start} to {stop}, got {n_bytes} bytes in all",
        hint=_DAMAGED,
    )


def first_line(error: Exception) -> str:
    """What a library said, without its notes on where in its source that was."""
    lines = str(error).splitlines()
    return (lines[0] if lines else type(error).__name__).split(" [source ")[0][:300]


def _quoted(root: Path) -> str:
    """A path as it stands in a file URL."""
    from urllib.parse import quote

    return quote(str(root.absolute()))


def import_tensorstore(where: str) -> Any:
    """The tensorstore package.

    Raises: EnvironmentLacks if it is not installed.
    """
    return import_extra("tensorstore", where)


def import_extra(name: str, where: str) -> Any:
    """A package of the extra `formats`.

    Raises: EnvironmentLacks if it is not installed.
    """
    try:
        match name:
            case "tensorstore":
                return importlib.import_module("tensorstore")
            case "zstandard":
                return importlib.import_module("zstandard")
            case _:
                return importlib.import_module("h5py")
    except ImportError as error:
        raise EnvironmentLacks(
            f"{where}: expected the package {name} to read this format, got none",
            hint="install it with `pip install 'lockstep[formats]'`",
        ) from error


def small_context(tensorstore: Any, cached_bytes: int = 0) -> Any:
    """A context that keeps nothing and copies with one thread: the memory is the caller's."""
    return tensorstore.Context(
        {"cache_pool": {"total_bytes_limit": cached_bytes}, "data_copy_concurrency": {"limit": 1}}
    )


class Range:
    """The bytes under a key, or a stretch of them, as a file that is read once."""

    def __init__(self, source: KeyedBytes, key: str, start: int, stop: int | None) -> None:
        self._blocks = self._read(source, key, start, stop)
        self._held = memoryview(b"")

    @staticmethod
    def _read(source: KeyedBytes, key: str, start: int, stop: int | None) -> Iterator[bytes]:
        while stop is None or start < stop:
            if stop is None:
                block = source.block(key, start)
            else:
                block = source.read(key, start, min(start + BLOCK_BYTES, stop))
            yield block
            if len(block) < BLOCK_BYTES:
                return
            start += len(block)

    def read(self, n_bytes: int) -> bytes:
        """At most so many bytes; none at the end."""
        if not self._held:
            self._held = memoryview(next(self._blocks, b""))
        found, self._held = bytes(self._held[:n_bytes]), self._held[n_bytes:]
        return found
