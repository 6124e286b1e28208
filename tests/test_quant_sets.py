"""Packed products on other instruction sets: the same bits as on this one."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from pathlib import Path

import op_harness
import pytest
from op_harness import Call, draw, library_source

from lockstep.ir import Op
from lockstep.native import compile_library, find_compiler
from lockstep.native.compiler import cpu_features
from lockstep.ops import OPS

# Each way of the kernels once: bytes and int16, two levels of scales, minima, sub-scales of 16.
NAMES = ("linear_q8_0", "linear_q4_k", "linear_q6_k", "linear_q2_k", "linear_q5_1", "linear_f16")
CHOSEN = [OPS[name] for name in (*NAMES, "quantize_rows")]
EMULATION = Path(__file__).with_name("emulated_avx512.h")
# GCC's own names of AVX-512, which the emulation may not define for itself.
FEATURES = ("F", "BW", "VL", "VNNI")


def library(source: str, *extra: str) -> ctypes.CDLL:
    """The kernels compiled with more flags, which come last."""
    compiler = replace(find_compiler(), extra=extra)
    return ctypes.CDLL(str(compile_library(source, compiler=compiler)))


def emulated(source: str) -> str:
    """The text with the conditions of AVX-512 under names of its own, and SIMDe's intrinsics."""
    for feature in FEATURES:
        source = source.replace(f"__AVX512{feature}__", f"EMULATED_{feature}")
    source = source.replace('__asm__("" : "+v"(sum));', "")  # no such registers here
    header = EMULATION.read_text(encoding="utf-8")
    first, *rest = source.split("#include <immintrin.h>")
    return "".join([first, header, *rest])


def results(loaded: ctypes.CDLL, ops: list[Op], monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What the kernels of a library make of every case."""
    monkeypatch.setattr(op_harness, "library", lambda source: loaded)
    calls = [Call(op, draw(op, case, 0), case) for op in ops for case in op.cases]
    return [a.tobytes() for call in calls for k in call.usable() for a in call.run(k)]


@pytest.mark.slow
@pytest.mark.skipif(
    "avx2" not in cpu_features(),
    reason="needs an x86 processor with AVX2",
)
@pytest.mark.parametrize("features", [FEATURES, ("F", "BW"), ()])
def test_other_instruction_sets_give_the_same_bits(
    features: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """AVX-512 with VNNI and without, and the portable C that is left when there is nothing."""
    source = library_source(CHOSEN)
    here = results(library(source), CHOSEN, monkeypatch)
    if features:
        if not Path("/usr/include/simde/x86/avx512.h").exists():
            pytest.skip("needs SIMDe: apt-get install libsimde-dev")
        names = [f"-DEMULATED_{feature}" for feature in features]
        other = library(emulated(source), "-w", "-O0", "-mno-avx512f", *names)
    else:
        other = library(source, "-march=x86-64", "-O1")
    assert results(other, CHOSEN, monkeypatch) == here


@pytest.mark.slow
def test_sums_that_lose_a_product_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison above is strict: one dot product that leaves out a byte changes bits."""
    source = library_source(CHOSEN)
    right = "vi_dot16(acc, w >> 8 & 0xff00ff, (vi)((halves)x >> 8))"
    assert right in source
    wrong = source.replace(right, right.replace("0xff00ff", "0x7f00ff"))
    good = results(library(source, "-march=x86-64", "-O1"), CHOSEN, monkeypatch)
    assert results(library(wrong, "-march=x86-64", "-O1"), CHOSEN, monkeypatch) != good
