"""C text to a running program: compilers, the build cache, arenas and callables."""

from lockstep.native.compiler import Compiler, find_compiler, sanitizer_environment
from lockstep.native.library import build_directory, compile_library, expect_library
from lockstep.native.manifest import ArenaRecord, Guard, Manifest, NodeRecord, ValueRecord
from lockstep.native.program import Program, usable_threads

__all__ = [
    "ArenaRecord",
    "Compiler",
    "Guard",
    "Manifest",
    "NodeRecord",
    "Program",
    "ValueRecord",
    "build_directory",
    "compile_library",
    "expect_library",
    "find_compiler",
    "sanitizer_environment",
    "usable_threads",
]
