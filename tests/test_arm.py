"""Kernels and exported programs on a 64-bit ARM processor, which QEMU imitates."""

from __future__ import annotations

import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
from arm import COMPILER, QEMU, ArmKernels
from model_directories import CONFIGS, byte_level_directory
from op_harness import Call, draw, error, library_source, reference, same_bits

from lockstep.engine.export_c import export_c
from lockstep.engine.export_gguf import ExportType, export_gguf
from lockstep.engine.source import open_source
from lockstep.ir import Op
from lockstep.ops import OPS

pytestmark = [
    pytest.mark.usefixtures("kernel_builds"),
    pytest.mark.slow,
    pytest.mark.skipif(not QEMU, reason="needs QEMU: apt-get install qemu-user"),
    pytest.mark.skipif(find_spec("ziglang") is None, reason="ziglang is in the extra cc"),
]

# Sums of integers, and chains that run in one order whatever the width of a vector.
SAME_BITS = ("linear", "embed", "quantize_rows", "silu_mul", "gelu_mul", "rope", "adamw")
CPUS = ("generic", "generic+dotprod")


@pytest.fixture(scope="module", params=CPUS)
def kernels(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ArmKernels:
    ops = list(OPS.values())
    where = tmp_path_factory.mktemp("arm")
    return ArmKernels.build(ops, library_source(ops), where, f"-mcpu={request.param}")


def calls_of(op: Op) -> list[Call]:
    return [Call(op, draw(op, case, 0), case) for case in op.cases]


@pytest.mark.parametrize("op", [pytest.param(op, id=op.name) for op in OPS.values()])
def test_kernels_on_arm_agree_with_the_reference(op: Op, kernels: ArmKernels) -> None:
    """Within its tolerance; and where the order of sums is one, in the bits of this processor."""
    jobs = [(call, kernel) for call in calls_of(op) for kernel in call.usable()]
    for (call, kernel), got in zip(jobs, kernels.run(jobs), strict=True):
        here, exact = call.run(kernel), reference(op, call.inputs, call.case)
        for name, a, b, c in zip(op.outputs, got, here, exact, strict=True):
            if op.name.startswith(SAME_BITS) or c.dtype.kind != "f":
                assert same_bits(a, b), f"{kernel.symbol} {name}"
            else:
                assert error(a, c) <= op.tolerance.rel, f"{kernel.symbol} {name}"


def test_a_product_that_reads_another_operand_on_arm_is_seen(tmp_path: Path) -> None:
    right = "vdotq_s32((int32x4_t)acc, (int8x16_t)w, (int8x16_t)x)"
    op = OPS["linear_q4_k"]
    source = library_source([op])
    assert right in source
    wrong = source.replace(right, right.replace("(int8x16_t)x", "(int8x16_t)w"))
    kernels = ArmKernels.build([op], wrong, tmp_path, "-mcpu=generic+dotprod")
    call = calls_of(op)[0]
    (got,) = kernels.run([(call, call.usable()[0])])
    assert not same_bits(got[0], call.run(call.usable()[0])[0])


@pytest.mark.parametrize(
    ("name", "stored"), [*((name, "F32") for name in CONFIGS), ("llama", "Q8_0"), ("llama", "F16")]
)
def test_a_folder_of_c_prints_its_tokens_on_arm(
    tmp_path: Path, name: str, stored: ExportType
) -> None:
    folder = tmp_path / "made"
    sizes = CONFIGS[name] | {"context": 96}
    export_gguf(byte_level_directory(tmp_path / "hf", name, sizes), tmp_path / "m.gguf", stored)
    export_c(open_source(str(tmp_path / "m.gguf")), folder)
    asked = ["-p", "naïve 漢字 [circle] 12345", "-n", "48", "--ids", "--ignore-eos"]
    said = []
    for command, emulator in (([shutil.which("cc")], []), (COMPILER, [QEMU])):
        variables = [f"CC={' '.join(map(str, command))}", "CFLAGS=-O1"]
        made = subprocess.run(["make", *variables], cwd=folder, capture_output=True, text=True)
        assert made.returncode == 0, made.stderr
        ran = subprocess.run([*emulator, "./lm", *asked], cwd=folder, capture_output=True)
        assert ran.returncode == 0, ran.stderr
        said.append(ran.stdout)
        subprocess.run(["make", "clean"], cwd=folder, check=True, capture_output=True)
    assert len(said[0].split()) == 48
    assert said[0] == said[1]
