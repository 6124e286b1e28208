"""Kernels compiled for 64-bit ARM and run by QEMU, which imitates such a processor."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from op_harness import DTYPES, Call

from lockstep.ir import Kernel, Op
from lockstep.ir.op import Array

QEMU = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static") or ""
COMPILER = [sys.executable, "-m", "ziglang", "cc", "-target", "aarch64-linux-musl", "-static"]
_RUNNER = Path(__file__).with_name("kernel_runner.c")
_ENTRY = """
typedef struct {
  void (*call)(void *const *, const int64_t *, const double *, int64_t, int64_t);
  int64_t (*count)(const int64_t *, const double *);
} Entry;
static const Entry KERNELS[] = {
"""


@dataclass(frozen=True)
class ArmKernels:
    """A program that runs the kernels of some ops."""

    program: Path
    symbols: tuple[str, ...]

    @staticmethod
    def build(ops: Sequence[Op], source: str, where: Path, *flags: str) -> ArmKernels:
        """Compiles their source, from `op_harness.library_source`, with more flags."""
        kernels = [kernel for op in ops for kernel in op.kernels]
        rows = []
        for kernel in kernels:
            count = f"count_{kernel.symbol}" if kernel.tiling == "tiles" else "NULL"
            rows.append(f"  {{call_{kernel.symbol}, {count}}},\n")
        text = f"{source}\n{_ENTRY}{''.join(rows)}}};\n{_RUNNER.read_text(encoding='utf-8')}"
        (where / "kernels.c").write_text(text, encoding="utf-8")
        options = ["-std=gnu11", "-O1", "-ffp-contract=off", "-fno-math-errno", "-w", *flags]
        command = [*COMPILER, *options, "kernels.c", "-o", "kernels", "-lm"]
        done = subprocess.run(command, cwd=where, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return ArmKernels(where / "kernels", tuple(kernel.symbol for kernel in kernels))

    def run(self, jobs: Sequence[tuple[Call, Kernel]]) -> list[tuple[Array, ...]]:
        """The outputs of each call of a kernel."""
        asked = b"".join(self._message(call, kernel) for call, kernel in jobs)
        done = subprocess.run([QEMU, self.program], input=asked, capture_output=True)
        assert done.returncode == 0, (done.returncode, done.stderr)
        said = memoryview(done.stdout)
        results = []
        for call, _ in jobs:
            outputs = []
            for type in call.types:
                n_bytes = type.n_bytes({})
                flat = np.frombuffer(said[:n_bytes], DTYPES[type.dtype])
                outputs.append(flat.reshape(type.shape({})))
                said = said[n_bytes:]
            results.append(tuple(outputs))
        assert not said
        return results

    def _message(self, call: Call, kernel: Kernel) -> bytes:
        inputs, numbers = list(call.op.inputs), call.numbers
        sizes = [-1 if a is None else a.nbytes for a in call.inputs]
        sizes += [type.n_bytes({}) for type in call.types]
        same = [inputs.index(name) if name in inputs else -1 for name in call.op.outputs]
        n_rows = call.n_tiles(kernel) if kernel.tiling == "rows" else 0
        counts = [len(inputs), len(same), *(a.size for a in numbers)]
        head = [self.symbols.index(kernel.symbol), n_rows, *counts, *sizes, *same]
        arrays = [np.ascontiguousarray(a) for a in call.inputs if a is not None]
        return b"".join(a.tobytes() for a in (np.array(head, np.int64), *numbers, *arrays))
