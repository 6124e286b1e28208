"""The machine's fp32 peak, measured: fused multiply-adds on independent registers, nothing else."""

from __future__ import annotations

import ctypes
import statistics

from lockstep.native import compile_library
from lockstep.ops import VECTOR_HEADER

_SOURCE = """
#include <pthread.h>
#include <time.h>
enum { CHAINS = 12 };  /* more than latency times ports, fewer than the registers */
static void *spin(void *out) {
  vf acc[CHAINS];
  const vf a = vf_set(0.999f), b = vf_set(0.001f);
  for (int c = 0; c < CHAINS; c++) acc[c] = vf_set((float)c);
  for (long i = 0; i < STEPS; i++) {
#pragma GCC unroll 16
    for (int c = 0; c < CHAINS; c++) acc[c] = vf_fma(acc[c], a, b);
  }
  float sum = 0.0f;
  for (int c = 0; c < CHAINS; c++) sum += vf_sum(acc[c]);
  *(float *)out = sum;
  return 0;
}
double fp32_peak(int n_threads);
double fp32_peak(int n_threads) {
  pthread_t threads[64];
  float sums[64];
  struct timespec start, end;
  clock_gettime(CLOCK_MONOTONIC, &start);
  for (int t = 0; t < n_threads; t++) pthread_create(&threads[t], 0, spin, &sums[t]);
  for (int t = 0; t < n_threads; t++) pthread_join(threads[t], 0);
  clock_gettime(CLOCK_MONOTONIC, &end);
  const double seconds = (double)(end.tv_sec - start.tv_sec) + 1e-9 * (double)(end.tv_nsec - start.tv_nsec);
  return 2.0 * VL * CHAINS * (double)STEPS * n_threads / seconds / 1e9;
}
"""  # noqa: E501


def fp32_peak_gflops(threads: int, repeats: int = 7) -> float:
    """The median of some short runs on this many threads, in GFLOP/s."""
    source = f"{VECTOR_HEADER}\n#define STEPS 8000000L\n{_SOURCE}"
    library = ctypes.CDLL(str(compile_library(source)))
    library.fp32_peak.restype = ctypes.c_double
    return statistics.median(library.fp32_peak(threads) for _ in range(repeats))


if __name__ == "__main__":
    for count in (1, 2):
        print(f"{count} threads: {fp32_peak_gflops(count):.0f} GFLOP/s")
