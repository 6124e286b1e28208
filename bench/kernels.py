"""Speed of the matrix kernels on one thread, beside PyTorch's and the machine's peak, in one run.

`python bench/kernels.py [--label a] [--rounds 25]`: best of the rounds, in GFLOP/s, by the
thread's CPU time. Rounds are short and alternate, so that a noisy neighbour hits both sides.
"""

from __future__ import annotations

import argparse
import ctypes
import re
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from lockstep.ir.op import Array
from lockstep.native import compile_library
from lockstep.ops import OPS, VECTOR_HEADER
from lockstep.ops.linear import is_large

ROUND_SECONDS = 0.004  # short, so that some rounds run undisturbed
# Rows of a tile of the schedule, and (label, M, K, N) of the models with 1 and 8 sequences.
TILE_ROWS = 48
SHAPES = (
    ("b", 32, 64, 64),
    ("b", 256, 64, 64),
    ("b", 256, 64, 32),
    ("b", 256, 64, 128),
    ("b", 256, 128, 64),
    ("b head", 256, 64, 320),
    ("c", 64, 96, 96),
    ("c", 512, 96, 48),
    ("c", 512, 96, 192),
    ("c", 512, 192, 96),
    ("c head", 512, 96, 2048),
    ("a", 512, 128, 128),
    ("a", 512, 128, 64),
    ("a", 512, 128, 512),
    ("a", 4096, 512, 128),
    ("a head", 512, 128, 1024),
    ("d", 1024, 768, 768),
    ("d", 1024, 768, 2048),
    ("d", 1024, 2048, 768),
    ("d head", 128, 768, 50257),
)
_HARNESS = """
#include <time.h>
static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}
typedef void product(float *c, const float *a, const float *b, int64_t M, int64_t K, int64_t N,
                     int64_t r, int64_t e);
static void packed(float *y, const float *x, const float *w, int64_t M, int64_t K, int64_t N,
                   int64_t r, int64_t e) {
  linear_packed_f32(y, x, w, NULL, NULL, M, K, (N + 31) / 32, 32, N, N, r, e);
}
static void dx_packed(float *dx, const float *dy, const float *w, int64_t M, int64_t K, int64_t N,
                      int64_t r, int64_t e) {
  linear_dx_packed_f32(dx, dy, w, NULL, M, N, (K + 31) / 32, 32, K, K, r, e);
}
static double rows(product *kernel, float *c, const float *a, const float *b, int64_t M, int64_t K,
                   int64_t N, int64_t R, int64_t times) {
  const double start = now();
  for (int64_t i = 0; i < times; i++)
    for (int64_t r = 0; r < M; r += R) kernel(c, a, b, M, K, N, r, r + R < M ? r + R : M);
  return now() - start;
}
#define EXPORT __attribute__((visibility("default")))
/* Seconds per floating-point operation: fused multiply-adds on registers, nothing else. */
EXPORT double bench_peak(int64_t times) {
  vf acc[12];
  const vf a = vf_set(0.999f), b = vf_set(0.001f);
  const double start = now();
  for (int c = 0; c < 12; c++) acc[c] = vf_set((float)c);
  for (int64_t i = 0; i < times; i++) {
    UNROLL for (int c = 0; c < 12; c++) acc[c] = vf_fma(acc[c], a, b);
  }
  vf sum = vf_zero();
  for (int c = 0; c < 12; c++) sum += acc[c];
  volatile float kept = vf_sum(sum); /* so that the loop is not removed */
  (void)kept;
  return (now() - start) / (2.0 * 12 * VL * (double)times);
}
#define BENCH(name, body) \\
  EXPORT double name(float *c, const float *a, const float *b, int64_t M, int64_t K, int64_t N, \\
                     int64_t R, int64_t times) { body }
#define TIMED(call, count) \\
  (void)R, (void)M, (void)b; \\
  const double start = now(); \\
  const int64_t n = count; \\
  for (int64_t i = 0; i < times; i++) \\
    for (int64_t t = 0; t < n; t++) call; \\
  return now() - start;
BENCH(bench_linear_packed, return rows(packed, c, a, b, M, K, N, R, times);)
BENCH(bench_linear_dx_packed, return rows(dx_packed, c, a, b, M, K, N, R, times);)
BENCH(bench_linear, TIMED(linear_large_f32(c, a, b, NULL, NULL, M, K, N, t),
                          linear_large_f32_tiles(M, K, N)))
BENCH(bench_linear_dx, TIMED(linear_dx_large_f32(c, a, b, NULL, M, N, K, t),
                             linear_dx_large_f32_tiles(M, N, K)))
BENCH(bench_linear_dw, TIMED(linear_dw_f32(c, a, b, NULL, NULL, M, N, K, t),
                             linear_dw_f32_tiles(M, N, K)))
BENCH(bench_pack_linear, TIMED(pack_linear_f32(c, a, N, K, (N + 31) / 32, 32, t), (N + 31) / 32))
BENCH(bench_pack_linear_dx, TIMED(pack_linear_dx_f32(c, a, N, K, (K + 31) / 32, 32, t),
                                  (K + 31) / 32))
"""


@dataclass(frozen=True)
class Product:
    """One product to time: our function with its arrays, and PyTorch's."""

    name: str
    size: tuple[int, int, int]
    arrays: tuple[Array, Array, Array]
    torch_call: Callable[[], object] | None
    n_flops: float


def library() -> ctypes.CDLL:
    """The kernels and the timing loops, compiled."""
    kernels = re.sub(r'#include "[^"]*"\n', "", OPS["linear"].source)
    loaded = ctypes.CDLL(str(compile_library(VECTOR_HEADER + kernels + _HARNESS)))
    for name in re.findall(r"\b(bench_\w+)", _HARNESS):
        getattr(loaded, name).restype = ctypes.c_double
    return loaded


def products(M: int, K: int, N: int, rng: np.random.Generator) -> list[Product]:
    """Forward, both gradients and both packings of one linear."""
    x_MK, w_NK, dy_MN = (
        rng.standard_normal(dims, dtype=np.float32) for dims in ((M, K), (N, K), (M, N))
    )
    tx, tw, tdy = (torch.from_numpy(a) for a in (x_MK, w_NK, dy_MN))
    ty, tdx, tdw = torch.empty(M, N), torch.empty(M, K), torch.empty(N, K)
    y_MN, dx_MK, dw_NK = np.empty_like(dy_MN), np.empty_like(x_MK), np.empty_like(w_NK)
    large = is_large({"M": M, "K": K, "N": N})
    forward, backward = w_NK, w_NK
    if not large:
        (forward,) = OPS["pack_linear"].reference(w_NK)
        (backward,) = OPS["pack_linear_dx"].reference(w_NK)
    suffix = "" if large else "_packed"
    wide = [np.ascontiguousarray(a) for a in (forward, backward)]
    size, n_flops = (M, K, N), 2.0 * M * K * N
    found = [
        Product(f"linear{suffix}", size, (y_MN, x_MK, wide[0]),
                lambda: torch.mm(tx, tw.T, out=ty), n_flops),
        Product(f"linear_dx{suffix}", size, (dx_MK, dy_MN, wide[1]),
                lambda: torch.mm(tdy, tw, out=tdx), n_flops),
        Product("linear_dw", size, (dw_NK, dy_MN, x_MK),
                lambda: torch.mm(tdy.T, tx, out=tdw), n_flops),
    ]  # fmt: skip
    if not large:
        for name, panels in zip(("pack_linear", "pack_linear_dx"), wide, strict=True):
            out = np.empty_like(panels)
            found.append(Product(name, size, (out, w_NK, w_NK), None, n_flops))
    return found


def seconds_here(bench: ctypes.CDLL, product: Product, times: int, tile_rows: int) -> float:
    """Seconds that this many runs of our kernel take."""
    pointers = (ctypes.c_void_p(a.ctypes.data) for a in product.arrays)
    sizes = (ctypes.c_int64(n) for n in (*product.size, tile_rows, times))
    return float(getattr(bench, f"bench_{product.name}")(*pointers, *sizes))


def seconds_torch(product: Product, times: int) -> float:
    """Seconds that this many runs of PyTorch's product take."""
    assert product.torch_call is not None
    start = time.thread_time()
    for _ in range(times):
        product.torch_call()
    return time.thread_time() - start


def measure(
    bench: ctypes.CDLL, product: Product, rounds: int, tile_rows: int
) -> tuple[float, float]:
    """Best seconds per run: here, and in PyTorch (NaN where it has nothing like it)."""
    once = max(seconds_here(bench, product, 1, tile_rows), 1e-7)
    times = max(1, int(ROUND_SECONDS / once))
    here, there = float("inf"), float("inf") if product.torch_call else float("nan")
    for _ in range(rounds):
        here = min(here, seconds_here(bench, product, times, tile_rows) / times)
        if product.torch_call:
            there = min(there, seconds_torch(product, times) / times)
    return here, there


def peak_gflops(bench: ctypes.CDLL) -> float:
    """The rate of fused multiply-adds on registers; a low quantile: the clock ticks coarsely."""
    seconds = [bench.bench_peak(ctypes.c_int64(10_000)) for _ in range(200)]
    return 1e-9 / float(np.quantile(seconds, 0.05))


def main() -> None:
    """Prints one line for each product."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--label", default="", help="only shapes whose label starts with this")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--tile-rows", type=int, default=TILE_ROWS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    bench, rng = library(), np.random.default_rng(0)
    peak = peak_gflops(bench)
    print(f"peak {peak:.0f} GFLOP/s on one thread, torch {torch.__version__}")
    print(f"{'shape':8} {'M x K x N':>16} {'op':16}  GFLOP/s  peak   torch  ratio")
    for label, M, K, N in SHAPES:
        for product in products(M, K, N, rng) if label.startswith(options.label) else ():
            here, there = measure(bench, product, options.rounds, options.tile_rows)
            print(f"{label:8} {f'{M} x {K} x {N}':>16} {product.name:16} ", end="")
            if product.torch_call is None:
                share = here / (product.n_flops / peak / 1e9)
                print(f"{here * 1e6:7.2f} us, {share:.0%} of a product")
                continue
            ours, theirs = (product.n_flops / seconds / 1e9 for seconds in (here, there))
            print(f"{ours:7.1f} {ours / peak:5.0%} {theirs:7.1f} {there / here:6.2f}")


if __name__ == "__main__":
    main()
