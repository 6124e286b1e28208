"""The elementary functions of the kernels against float64, over their whole range."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest

from lockstep.ir.op import Array
from lockstep.native import compile_library
from lockstep.ops.registry import source

pytestmark = pytest.mark.usefixtures("kernel_builds")

NAMES = ("exp", "exp2", "log", "root", "sigmoid")
BELOW_ZERO = ("log", "root")  # these have no value there


@cache
def library() -> ctypes.CDLL:
    header = source("vec.h") + source("vec_math.h").replace('#include "vec.h"\n', "")
    loops = "".join(
        f"void all_{name}(float *y, const float *x, int64_t n) {{\n"
        f"  for (int64_t i = 0; i < n; i += VL)\n"
        f"    vf_store_n(y + i, vf_{name}(vf_load_n(x + i, n - i)), n - i);\n}}\n"
        for name in NAMES
    )
    loops += (
        "void all_inverse(float *y, const float *x, int64_t n) {\n"
        "  for (int64_t i = 0; i < n; i += VL)\n"
        "    vf_store_n(y + i, vf_quotient(vf_set(3.0f), vf_load_n(x + i, n - i)), n - i);\n}\n"
    )
    for kind, step, load, store in (
        ("vector", "VL", "vf_load_half(h + i)", "vf_store_half(h + i, vf_load(x + i))"),
        ("scalar", "1", "half_to_float(h[i])", "h[i] = float_to_half(x[i])"),
    ):
        keep = f"vf_store(x + i, {load})" if kind == "vector" else f"x[i] = {load}"
        for name, body in (("from_half", keep), ("to_half", store)):
            loops += (
                f"void {kind}_{name}(float *x, uint16_t *h, int64_t n) {{\n"
                f"  for (int64_t i = 0; i < n; i += {step}) {body};\n}}\n"
            )
    return ctypes.CDLL(str(compile_library(header + loops)))


def convert(name: str, x: Array, h: Array) -> None:
    """Fills one of the two arrays from the other; their length is a multiple of all VL."""
    function: Callable[..., None] = getattr(library(), name)
    function(*(ctypes.c_void_p(a.ctypes.data) for a in (x, h)), ctypes.c_int64(x.size))


def apply(name: str, x: Array) -> Array:
    x = np.ascontiguousarray(x, np.float32)
    y = np.empty_like(x)
    function: Callable[..., None] = getattr(library(), f"all_{name}")
    function(ctypes.c_void_p(y.ctypes.data), ctypes.c_void_p(x.ctypes.data), ctypes.c_int64(x.size))
    return y


def ulps(got: Array, exact: Array) -> float:
    """The largest distance in units of the spacing of float32 numbers there."""
    spacing = np.spacing(np.abs(exact).astype(np.float32)).astype(np.float64)
    return float((np.abs(got.astype(np.float64) - exact) / spacing).max())


@pytest.mark.parametrize(
    ("name", "exact", "low", "high"),
    [
        ("exp", np.exp, -87.33, 88.72),
        ("exp2", np.exp2, -126.0, 127.99),
        ("sigmoid", lambda x: 1.0 / (1.0 + np.exp(-x)), -80.0, 80.0),
        ("root", np.sqrt, 0.0, 9.0),
        ("root", np.sqrt, 1e-12, 1e-11),
        ("root", np.sqrt, 1e30, 3e38),
        ("inverse", lambda x: 3.0 / x, 1e-8, 1e-6),
        ("inverse", lambda x: 3.0 / x, -7.0, -1e-3),
        ("inverse", lambda x: 3.0 / x, 1.0, 1e9),
    ],
)
def test_error_in_units_of_the_last_place(
    name: str, exact: Callable[[Array], Array], low: float, high: float
) -> None:
    x = np.linspace(low, high, 400_001).astype(np.float32)
    limit = 3.0 if name == "sigmoid" else 2.0  # a sum and a division on top of the exponential
    assert ulps(apply(name, x), exact(x.astype(np.float64))) <= limit


def test_log_is_within_two_ulp() -> None:
    x = np.exp(np.linspace(-87.0, 88.0, 400_001)).astype(np.float32)
    exact = np.log(x.astype(np.float64))
    far = np.abs(exact) > 1e-3  # next to 1 the result itself is next to 0: absolute error there
    assert ulps(apply("log", x)[far], exact[far]) <= 2.0
    assert np.abs(apply("log", x) - exact)[~far].max() < 1e-9


@pytest.mark.parametrize(
    ("name", "x", "y"),
    [
        ("exp", [-np.inf, -1e30, -88.0, 0.0, 89.0, 1e30, np.inf], [0, 0, 0, 1, *[np.inf] * 3]),
        ("exp2", [-np.inf, -1e30, -127.0, 0.0, 128.0, 200.0], [0, 0, 0, 1, np.inf, np.inf]),
        ("log", [0.0, 1.0, np.inf], [-np.inf, 0.0, np.inf]),
        ("sigmoid", [-np.inf, 0.0, np.inf], [0.0, 0.5, 1.0]),
        ("root", [0.0, 1.0, 4.0, np.inf], [0.0, 1.0, 2.0, np.inf]),
        ("inverse", [0.0, 1.0, np.inf, -np.inf], [np.inf, 3.0, 0.0, 0.0]),
    ],
)
def test_edges_are_exact(name: str, x: list[float], y: list[float]) -> None:
    assert apply(name, np.array(x)).tolist() == y


@pytest.mark.parametrize("name", NAMES)
def test_nan_stays_nan(name: str) -> None:
    x = np.array([1.0, np.nan, 0.5, *([-1.0] if name in BELOW_ZERO else [])])
    wrong = np.isnan(apply(name, x))
    assert wrong.tolist() == [False, True, False, *([True] if name in BELOW_ZERO else [])]


@pytest.mark.parametrize("kind", ["vector", "scalar"])
def test_halves_become_the_floats_of_numpy(kind: str) -> None:
    h = np.arange(1 << 16, dtype=np.uint16)
    x = np.empty(h.size, np.float32)
    convert(f"{kind}_from_half", x, h)
    assert x.view(np.uint32).tolist() == quiet(h.view(np.float16).astype(np.float32)).tolist()


@pytest.mark.parametrize("kind", ["vector", "scalar"])
def test_floats_round_to_the_halves_of_numpy(kind: str) -> None:
    middle = np.arange(1 << 19, dtype=np.uint32) << 13  # every sign, exponent and upper mantissa
    near = [middle + offset for offset in (0, 1, 0xFFF, 0x1000, 0x1001, 0x1FFF)]
    x = np.concatenate(near).view(np.float32)
    h = np.empty(x.size, np.uint16)
    convert(f"{kind}_to_half", x, h)
    with np.errstate(all="ignore"):
        exact = x.astype(np.float16).view(np.uint16)
    number = ~np.isnan(x)
    assert np.array_equal(h[number], exact[number])
    assert np.isnan(h[~number].view(np.float16)).all()


def quiet(x: Array) -> Array:
    """The bits of the numbers, NaNs quiet: what the hardware makes of a signalling one."""
    bits = x.view(np.uint32).copy()
    bits[np.isnan(x)] |= 0x400000
    return bits
