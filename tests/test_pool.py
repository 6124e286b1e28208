"""The thread pool: how long a thread spins before it sleeps."""

from __future__ import annotations

import ctypes
from importlib.resources import files

import pytest

from lockstep.codegen.sources import OWN_HEADERS
from lockstep.native import compile_library

pytestmark = pytest.mark.usefixtures("quick_builds")

# Another thread changes the word after a while; what is given back is the patience then.
WAITS = """
static atomic_uint word;
static void *change_later(void *delay_us) {
  usleep((useconds_t)(intptr_t)delay_us);
  advance(&word);
  return NULL;
}
int32_t patience_after(int32_t before, int32_t delay_us);
int32_t patience_after(int32_t before, int32_t delay_us) {
  const uint32_t old = atomic_load(&word);
  pthread_t other;
  patience = before;
  if (pthread_create(&other, NULL, change_later, (void *)(intptr_t)delay_us) != 0) return -1;
  wait_while(&word, old);
  pthread_join(other, NULL);
  return patience;
}
"""
TRIES = 200  # a busy machine makes any one wait longer


@pytest.fixture(scope="module")
def waits(_shared_home: object) -> ctypes.CDLL:
    pool = files("lockstep.codegen").joinpath("pool.c").read_text()
    head = '#define _GNU_SOURCE\n#pragma GCC diagnostic ignored "-Wunused-function"\n'
    headers = "".join(f"#include {name}\n" for name in OWN_HEADERS)
    return ctypes.CDLL(str(compile_library(head + headers + pool + WAITS)))


def test_a_long_wait_shortens_how_long_a_thread_spins(waits: ctypes.CDLL) -> None:
    assert any(waits.patience_after(256, 5_000) == 128 for _ in range(TRIES))


def test_a_thread_that_slept_for_a_short_wait_spins_longer_again(waits: ctypes.CDLL) -> None:
    """Otherwise stages of some microseconds would keep it from spinning for ever."""
    assert any(waits.patience_after(256, 20) == 512 for _ in range(TRIES))
