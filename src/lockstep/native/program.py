"""A program: a compiled library and its arenas, driven by the manifest and nothing else."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lockstep.errors import EnvironmentLacks, UsageError
from lockstep.native.manifest import Guard, Manifest
from lockstep.native.memory import Bytes, allocate

DTYPES = {
    "f32": np.float32,
    "f64": np.float64,
    "i32": np.int32,
    "f16": np.float16,
    "u8": np.uint8,
    "i8": np.int8,
    "i16": np.int16,
}
MAX_THREADS = 256  # as in codegen/pool.c

# The thread pool belongs to the library, which two programs may share: one call at a time.
_calling = threading.Lock()


class Program:
    """Runs the entries and the nodes of one emitted program on arenas of its own."""

    def __init__(
        self, library: Path, manifest: Manifest, *, threads: int | None = None, poison: bool = False
    ) -> None:
        """Loads the library.

        `poison` lets the address sanitizer, which must be in the process, watch the guards.

        Raises: EnvironmentLacks if the library, or the sanitizer, is not there.
        """
        self.manifest = manifest
        self._library = _load(library)
        # Caches have room for whole contexts, of which most sequences fill a part.
        self._arenas = {
            a.name: allocate(a.n_bytes, sparse=a.name == "cache") for a in manifest.arenas
        }
        pointers = [self._arenas[a.name].ctypes.data for a in manifest.arenas]
        self._pointers = (ctypes.c_void_p * len(pointers))(*pointers)
        self._nodes = {node.id: node.index for node in manifest.nodes}
        self._poisoned = poison
        for guard in manifest.guards:
            self._guard_bytes(guard)[:] = guard.pattern
        if poison:
            self._poison()
        self.set_threads(threads or usable_threads())

    def set_threads(self, n_threads: int) -> None:
        """How many threads the next calls use; no result depends on it.

        Raises: UsageError if the number is not from 1 to 256.
        """
        if not 1 <= n_threads <= MAX_THREADS:
            raise UsageError(
                f"threads: expected 1 to {MAX_THREADS}, got {n_threads}",
                hint="choose about as many as there are cores",
            )
        self.threads = n_threads

    def call(self, entry: str, **counts: int) -> None:
        """Runs an entry point; `counts` are those of the program's symbols, else their bounds.

        Raises: UsageError for an unknown entry, or counts that the program has no room for.
        """
        if entry not in self.manifest.entries:
            raise UsageError(f"entry: expected one of {list(self.manifest.entries)}, got {entry!r}")
        given = self._counts(counts)
        with _calling:
            self._library.lockstep_set_threads(self.threads)
            self._library.lockstep_call(self.manifest.entries[entry], self._live(), given)

    def run_node(self, node_id: str, **counts: int) -> None:
        """Runs one node alone, on what the arenas hold.

        Raises: UsageError for an unknown node, or counts that the program has no room for.
        """
        if node_id not in self._nodes:
            raise UsageError(f"node: expected a node of {self.manifest.name}, got {node_id!r}")
        given = self._counts(counts)
        self._library.lockstep_run_node(self._nodes[node_id], self._live(), given)

    def view(self, value_id: str) -> NDArray[Any]:
        """The value's memory as an array, without a copy; a symbol's axis has its full length.

        Raises: UsageError if the program has no such value.
        """
        record = self.manifest.values.get(value_id)
        if record is None:
            raise UsageError(f"value: expected one of {self.manifest.name}, got {value_id!r}")
        dtype = np.dtype(DTYPES[record.dtype])
        n_bytes = prod(record.dims) * dtype.itemsize
        data = self.arena(record.arena)[record.offset : record.offset + n_bytes]
        return data.view(dtype).reshape(record.dims)

    def arena(self, name: str) -> Bytes:
        """All bytes of an arena.

        Raises: UsageError if the program has no such arena, or is closed.
        """
        if name not in self._arenas:
            raise UsageError(f"arena: expected one of {list(self._arenas)}, got {name!r}")
        return self._arenas[name]

    def check_guards(self) -> list[str]:
        """What lies in front of each guard that was overwritten; empty if all are as they were.

        Raises: UsageError if the program has no guards, or the sanitizer watches them.
        """
        if not self.manifest.guards or self._poisoned:
            raise UsageError(
                "guards: expected a program built with guards that the sanitizer does not watch",
                hint="build it with guards=True and without poison",
            )
        return [
            guard.after or f"start of {guard.arena}"
            for guard in self.manifest.guards
            if (self._guard_bytes(guard) != guard.pattern).any()
        ]

    def close(self) -> None:
        """Ends the threads and gives the memory back; views that are still held stay valid."""
        with _calling:
            self._library.lockstep_set_threads(1)
        self._arenas = {}

    def _live(self) -> ctypes.Array[ctypes.c_void_p]:
        if not self._arenas and self.manifest.arenas:
            raise UsageError(
                f"program {self.manifest.name}: expected an open one, got a closed one"
            )
        return self._pointers

    def _counts(self, counts: Mapping[str, int]) -> ctypes.Array[ctypes.c_int64]:
        bounds = self.manifest.symbols
        for name, count in counts.items():
            if name not in bounds:
                raise UsageError(
                    f"{name}: expected one of the counts {list(bounds)} of this program"
                )
            if not 1 <= count <= bounds[name]:
                raise UsageError(f"{name}: expected 1 to {bounds[name]}, got {count}")
        values = [counts.get(name, bound) for name, bound in bounds.items()]
        return (ctypes.c_int64 * len(values))(*values)

    def _guard_bytes(self, guard: Guard) -> Bytes:
        return self._arenas[guard.arena][guard.offset : guard.offset + guard.n_bytes]

    def _poison(self) -> None:
        poison = getattr(ctypes.CDLL(None), "__asan_poison_memory_region", None)
        if poison is None:
            raise EnvironmentLacks(
                "sanitizer: expected its runtime in this process, got none",
                hint="start Python with sanitizer_environment()",
            )
        for guard in self.manifest.guards:
            if guard.pattern:  # guards of zeros lie among the gradients: the norm reads them
                address = self._guard_bytes(guard).ctypes.data
                poison(ctypes.c_void_p(address), ctypes.c_size_t(guard.n_bytes))


def usable_threads() -> int:
    """As many threads as there are cores that this process may use, and a program can have."""
    has_affinity = hasattr(os, "sched_getaffinity")
    n_cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    return min(n_cores, MAX_THREADS)


def _load(path: Path) -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise EnvironmentLacks(
            f"library {path}: expected one that loads, got: {error}",
            hint="delete it and build again",
        ) from error
    pointer, counts = ctypes.POINTER(ctypes.c_void_p), ctypes.POINTER(ctypes.c_int64)
    for name in ("lockstep_call", "lockstep_run_node"):
        function = getattr(library, name)
        function.argtypes, function.restype = [ctypes.c_int32, pointer, counts], None
    library.lockstep_set_threads.argtypes = [ctypes.c_int32]
    library.lockstep_set_threads.restype = None
    return library
