/* Products with packed weights of few bits, cut into tasks: quant_block.h says what is computed. */
#ifndef LOCKSTEP_LINEAR_QUANT_H
#define LOCKSTEP_LINEAR_QUANT_H

#include "quant_block.h"

#if defined(__clang__)
#define QUANT_SHARED static __attribute__((noinline, unused))
#else
#define QUANT_SHARED static __attribute__((noinline, noclone, unused))
#endif
enum {
  QUANT_TASK_BYTES = 64 << 10, /* of panels, in a task of few rows */
  QUANT_AHEAD = 2048,          /* bytes that few rows fetch ahead: a fifth to a third faster */
  QUANT_PAGE = 4096,
  QUANT_LINE = 64,  /* bytes that come at a time */
  QUANT_SLAB = 128, /* rows of a task of many rows */
};

/* The operands of one product; q holds int8, or int16 if wide. */
typedef struct {
  float *y;
  const void *q;
  const float *scale;
  const int32_t *sum;
  const uint8_t *panels;
  const float *b, *add;
  int64_t n_rows, n_terms, n_blocks, n_cols;
} quant_product;

INLINE int64_t quant_least(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t quant_count(int64_t size, int64_t part) { return (size + part - 1) / part; }
INLINE int64_t quant_panels(int64_t n_cols) { return quant_count(n_cols, PANEL_COLUMNS); }

/* y = acc + b + add for a row of a panel, not inlined: once for a whole row of it, and long. Masked
 * stores are slow where they are not needed. */
QUANT_SHARED void quant_store(const quant_product *t, const float *acc, int64_t row, int64_t col) {
  UNROLL for (int v = 0; v < PANEL_NV; v++, col += VL) {
    const int64_t at = row * t->n_cols + col, left = t->n_cols - col;
    vf y = vf_load(acc + v * VL);
    if (left >= VL) {
      if (t->b) y = vf_add(y, vf_load(t->b + col));
      if (t->add) y = vf_add(y, vf_load(t->add + at));
      vf_store(t->y + at, y);
    } else if (left > 0) {
      if (t->b) y = vf_add(y, vf_load_n(t->b + col, left));
      if (t->add) y = vf_add(y, vf_load_n(t->add + at, left));
      vf_store_n(t->y + at, y, left);
    }
  }
}

/* All n_rows rows, few, times the panels from `panel` to `end`, each read once. */
INLINE void quant_few(const int f, const int wide, const int n_rows, const quant_product *t,
                      int64_t panel, int64_t end) {
  const int64_t bytes = panel_bytes(f, t->n_blocks), row_bytes = t->n_terms << wide;
  const int n_vectors = n_rows > 2 || VL == 4 ? 1 : PANEL_NV; /* as registers allow */
  for (; panel < end; panel++) {
    _Alignas(64) float acc[QUANT_FEW * QUANT_COLUMNS] = {0};
    for (int64_t i = 0; i < t->n_blocks; i += panel_unit_blocks(f)) {
      const int64_t stop = quant_least(t->n_blocks, i + panel_unit_blocks(f));
      panel_block b = panel_at(f, t->panels + panel * bytes, i);
      panel_scales s[PANEL_NV] = {0};
      UNROLL for (int v = 0; v < PANEL_NV; v++) panel_unit_scales(f, s + v, b, v);
      for (int64_t k = i; k < stop; k++) {
        const char *q[QUANT_FEW];
        UNROLL for (int r = 0; r < n_rows; r++)
          q[r] = (const char *)t->q + r * row_bytes + (k * PANEL_BLOCK << wide);
        for (int v = 0; v < PANEL_NV; v += n_vectors)
          quant_packed(f, wide, n_rows, n_vectors, acc, s + v, b, v, q, t->scale + k, t->sum + k,
                       t->n_blocks);
        UNROLL for (int line = 0; line < panel_bits(f); line++)
          __builtin_prefetch(b.quants + QUANT_AHEAD + line * PANEL_VECTOR);
        b = panel_next(f, b);
      }
    }
    UNROLL for (int r = 0; r < n_rows; r++)
      quant_store(t, acc + r * QUANT_COLUMNS, r, panel * PANEL_COLUMNS);
  }
}

/* Blocks i to i + n, at most QUANT_CHUNK, of n_rows rows from `row`. */
INLINE void quant_tile(const int f, const int wide, const int n_rows, const quant_product *t,
                       float *sums, const int32_t *from, int64_t row, int64_t i, int64_t n) {
  _Alignas(64) char turned[QUANT_TALL * QUANT_CHUNK * PANEL_BLOCK];
  const int64_t row_bytes = t->n_terms << wide;
  const char *q[QUANT_TALL];
  UNROLL for (int r = 0; r < n_rows; r++) {
    q[r] = (const char *)t->q + (row + r) * row_bytes + (i * PANEL_BLOCK << wide);
    if (row_bytes > QUANT_PAGE) /* the next tile's lie on other pages: the processor does not look */
      for (int64_t k = 0; k < n; k++)
        __builtin_prefetch(q[r] + n_rows * row_bytes + (k * PANEL_BLOCK << wide));
    if (quant_is_turned(f, wide)) {
      char *to = turned + r * QUANT_CHUNK * PANEL_BLOCK;
      for (int64_t k = 0; k < n * PANEL_BLOCK; k += 4 * VL) {
        const vi x = vi_load_bytes((const uint8_t *)q[r] + k) ^ (int32_t)0x80808080;
        memcpy(to + k, &x, sizeof x);
      }
      q[r] = to;
    }
  }
  for (int64_t k = 0; k < n; k++) {
    const int64_t at = row * t->n_blocks + i + k;
    quant_unpacked(f, wide, n_rows, sums, from + k * quant_words(f, wide), q, t->scale + at,
                   t->sum + at, t->n_blocks);
    UNROLL for (int r = 0; r < n_rows; r++) q[r] += PANEL_BLOCK << wide;
  }
}

INLINE int64_t quant_chunk_bytes(const int f) {
  return QUANT_CHUNK / panel_unit_blocks(f) * panel_unit_bytes(f);
}

/* Bytes from `begin` on of a chunk of each panel of a tile, at most n, into the second level. */
INLINE void quant_fetch(const int f, const uint8_t *chunk, int64_t panel_bytes, int64_t begin,
                        int64_t n) {
  const int64_t end = quant_least(quant_chunk_bytes(f), begin + n);
  for (int64_t at = begin; at < end; at += QUANT_LINE)
    for (int64_t p = 0; p < QUANT_SIDE; p++) __builtin_prefetch(chunk + p * panel_bytes + at, 0, 2);
}

/* n_rows rows from `row` times the panels of a tile: weights are unpacked a chunk at a time, and
 * those of the next chunk, here or in the next tile, fetched meanwhile: unpacking would wait. */
INLINE void quant_many(const int f, const int wide, const quant_product *t, int64_t row,
                       int64_t n_rows, int64_t panel) {
  _Alignas(64) int32_t unpacked[QUANT_SIDE * QUANT_CHUNK * PANEL_COLUMNS * 20];
  _Alignas(64) float sums[QUANT_SLAB * QUANT_COLUMNS];
  const int64_t bytes = panel_bytes(f, t->n_blocks);
  const int64_t last = quant_panels(t->n_cols) - 1;
  const int64_t n_lines = quant_count(quant_chunk_bytes(f), QUANT_LINE);
  const int64_t fetched = QUANT_LINE * quant_count(n_lines * QUANT_TALL, n_rows);
  memset(sums, 0, (size_t)(n_rows * QUANT_COLUMNS) * sizeof(float));
  for (int64_t i = 0; i < t->n_blocks; i += QUANT_CHUNK) {
    const int64_t n = quant_least(t->n_blocks - i, QUANT_CHUNK);
    for (int64_t p = 0; p < QUANT_SIDE; p++) { /* beyond the last panel that one again, unused */
      const uint8_t *from = t->panels + quant_least(panel + p, last) * bytes;
      for (int64_t k = 0; k < n; k++)
        quant_unpack(f, wide, unpacked + (p * QUANT_CHUNK + k) * quant_words(f, wide),
                     panel_at(f, from, i + k));
    }
    const int64_t next = i + n < t->n_blocks
                             ? panel * bytes + (i / QUANT_CHUNK + 1) * quant_chunk_bytes(f)
                             : (panel + QUANT_SIDE) * bytes;
    int64_t r = 0;
    for (; r + QUANT_TALL <= n_rows; r += QUANT_TALL) {
      quant_fetch(f, t->panels + next, bytes, r / QUANT_TALL * fetched, fetched);
      quant_tile(f, wide, QUANT_TALL, t, sums + r * QUANT_COLUMNS, unpacked, row + r, i, n);
    }
    for (; r < n_rows; r++)
      quant_tile(f, wide, 1, t, sums + r * QUANT_COLUMNS, unpacked, row + r, i, n);
  }
  for (int64_t r = 0; r < n_rows; r++)
    for (int64_t p = 0; p < QUANT_SIDE; p++)
      quant_store(t, sums + r * QUANT_COLUMNS + p * PANEL_COLUMNS, row + r,
                  (panel + p) * PANEL_COLUMNS);
}

/* How the work is cut: few rows by bytes of panels, many into slabs of rows of a tile's panels. */
INLINE int64_t quant_task_panels(const int f, int64_t n_rows, int64_t n_blocks) {
  const int64_t n = QUANT_TASK_BYTES / panel_bytes(f, n_blocks);
  return n_rows > QUANT_FEW ? QUANT_SIDE : n > 1 ? n : 1;
}
INLINE int64_t quant_tasks(const int f, int64_t n_rows, int64_t n_blocks, int64_t n_cols) {
  const int64_t across = quant_count(quant_panels(n_cols), quant_task_panels(f, n_rows, n_blocks));
  return n_rows > QUANT_FEW ? across * quant_count(n_rows, QUANT_SLAB) : across;
}

/* The kernels of a format, each once in a program whatever sizes its products have. */
#define QUANT_ROWS(name, f, wide, rows) \
  QUANT_SHARED void name(const quant_product *t, int64_t panel, int64_t end) { \
    quant_few(f, wide, rows, t, panel, end); \
  }
#define QUANT_KERNELS(name, f, wide) \
  QUANT_ROWS(name##_1, f, wide, 1) \
  QUANT_ROWS(name##_2, f, wide, 2) \
  QUANT_ROWS(name##_3, f, wide, 3) \
  QUANT_ROWS(name##_4, f, wide, 4) \
  QUANT_SHARED void name##_many(const quant_product *t, int64_t row, int64_t panel) { \
    quant_many(f, wide, t, row, quant_least(t->n_rows - row, QUANT_SLAB), panel); \
  } \
  INLINE void name(const quant_product *t, int64_t task) { \
    const int64_t step = quant_task_panels(f, t->n_rows, t->n_blocks); \
    const int64_t n_panels = quant_panels(t->n_cols), across = quant_count(n_panels, step); \
    const int64_t panel = task % across * step, end = quant_least(panel + step, n_panels); \
    if (t->n_rows == 1) return name##_1(t, panel, end); \
    if (t->n_rows == 2) return name##_2(t, panel, end); \
    if (t->n_rows == 3) return name##_3(t, panel, end); \
    if (t->n_rows == 4) return name##_4(t, panel, end); \
    name##_many(t, task / across * QUANT_SLAB, panel); \
  }

/* The naive kernel: weights one at a time, sums in double. */
INLINE void quant_naive(const int f, const int wide, const quant_product *t) {
  for (int64_t n = 0; n < t->n_cols; n++)
    for (int64_t m = 0; m < t->n_rows; m++) {
      double y = t->b ? (double)t->b[n] : 0.0;
      for (int64_t i = 0; i < t->n_blocks; i++) {
        const float scale = t->scale[m * t->n_blocks + i];
        const int64_t at = m * t->n_terms + i * PANEL_BLOCK;
        float w[PANEL_BLOCK];
        double sum = 0.0;
        panel_weights(f, w, t->panels + n / PANEL_COLUMNS * panel_bytes(f, t->n_blocks), i,
                      n % PANEL_COLUMNS);
        for (int k = 0; k < PANEL_BLOCK; k++)
          sum += (double)w[k] * (wide ? ((const int16_t *)t->q)[at + k] : ((const int8_t *)t->q)[at + k]);
        y += isfinite(scale) ? sum * (double)scale : (double)NAN;
      }
      t->y[m * t->n_cols + n] = (float)(t->add ? y + (double)t->add[m * t->n_cols + n] : y);
    }
}

/* What every linear_<format> is given, and how it passes it on. */
#define QUANT_GIVEN \
  float *y_MN, const void *q_MK, const float *scale_MJ, const int32_t *sum_MJ, \
      const uint8_t *panels_P, const float *b_N, const float *add_MN, int64_t M, int64_t K, \
      int64_t J, int64_t P, int64_t N, int64_t n, int64_t bits
#define QUANT_SIZES int64_t M, int64_t K, int64_t J, int64_t P, int64_t N, int64_t n, int64_t bits
#define QUANT_PRODUCT \
  (void)P, (void)n, (void)bits; \
  const quant_product t = {y_MN, q_MK, scale_MJ, sum_MJ, panels_P, b_N, add_MN, M, K, J, N}
#define QUANT_TASKS(f) \
  (void)K, (void)P, (void)n, (void)bits; \
  return quant_tasks(f, M, J, N)

#endif
