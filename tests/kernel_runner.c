/* Runs kernels that another program asks for: reads calls from standard input, writes outputs.
 *
 * What comes before this text defines KERNELS, an array of Entry. A call is the kernel's index, how
 * many rows it is asked for, the numbers of inputs, outputs, whole and real numbers; for each input
 * and output its size in bytes, below nothing where it is absent; for each output the input that it
 * is, or -1; the numbers; and the bytes of the inputs. Kernels are given the outputs first. */
#include <stdio.h>
#include <stdlib.h>

enum { MOST = 32, GUARD_BYTES = 128, GUARD = 0xA5 };
typedef struct {
  uint8_t *raw, *bytes;
} Guarded;

static void take(void *to, size_t n) {
  if (fread(to, 1, n, stdin) != n) exit(2);
}

static Guarded guarded(int64_t n) {
  Guarded g = {.raw = aligned_alloc(64, (size_t)(n + 2 * GUARD_BYTES + 63) / 64 * 64)};
  if (g.raw == NULL) exit(3);
  g.bytes = g.raw + GUARD_BYTES;
  memset(g.raw, GUARD, (size_t)n + 2 * GUARD_BYTES);
  memset(g.bytes, 0xFF, (size_t)n);
  return g;
}

static void check(Guarded g, int64_t n) {
  for (int64_t i = 0; i < GUARD_BYTES; i++)
    if (g.raw[i] != GUARD || g.bytes[n + i] != GUARD) exit(4);
  free(g.raw);
}

static void run(const Entry *kernel, void *const *p, const int64_t *n, const double *f,
                int64_t rows) {
  if (kernel->count == NULL) {
    kernel->call(p, n, f, 0, rows);
    return;
  }
  const int64_t tiles = kernel->count(n, f);
  for (int64_t i = 0; i < tiles; i++) kernel->call(p, n, f, i, 0);
}

int main(void) {
  int64_t head[6], bytes[MOST], same[MOST], whole[MOST];
  double real[MOST];
  while (fread(head, sizeof head, 1, stdin) == 1) {
    const int64_t n_in = head[2], n_out = head[3], n = n_in + n_out;
    Guarded buffers[MOST];
    void *p[MOST];
    take(bytes, (size_t)n * sizeof *bytes);
    take(same, (size_t)n_out * sizeof *same);
    take(whole, (size_t)head[4] * sizeof *whole);
    take(real, (size_t)head[5] * sizeof *real);
    for (int64_t i = 0; i < n; i++) buffers[i] = guarded(bytes[i] < 0 ? 0 : bytes[i]);
    for (int64_t i = 0; i < n_in; i++) {
      p[n_out + i] = bytes[i] < 0 ? NULL : buffers[i].bytes;
      if (bytes[i] > 0) take(p[n_out + i], (size_t)bytes[i]);
    }
    for (int64_t i = 0; i < n_out; i++)
      p[i] = same[i] < 0 ? buffers[n_in + i].bytes : buffers[same[i]].bytes;
    run(&KERNELS[head[0]], p, whole, real, head[1]);
    for (int64_t i = 0; i < n_out; i++) fwrite(p[i], 1, (size_t)bytes[n_in + i], stdout);
    for (int64_t i = 0; i < n; i++) check(buffers[i], bytes[i] < 0 ? 0 : bytes[i]);
  }
  return 0;
}
