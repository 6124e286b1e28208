/* Products with packed weights of few bits: y = x w^T + b + add, x quantised by quantize_rows.
 *
 * One contract for every kernel, tile and number of rows: an element is a chain over the blocks of
 * 32 terms in order, acc = fma(scale * dx, isum, acc), and where the format has minima
 * acc = fnma(minimum, dx * xsum, acc), with exact integer sums; then + bias, then + add. Where sub-
 * scales are of 16 terms, isum and the sum of minima are weighted with them as integers. */
#ifndef LOCKSTEP_LINEAR_QUANT_H
#define LOCKSTEP_LINEAR_QUANT_H

#include "panels.h"

#if defined(__clang__)
#define QUANT_SHARED static __attribute__((noinline, unused))
#else
#define QUANT_SHARED static __attribute__((noinline, noclone, unused))
#endif
enum {
  QUANT_FEW = 4,                  /* rows up to which panels are read as they are, straight once */
  QUANT_TASK_BYTES = 64 << 10,    /* of panels, in a task of few rows */
  QUANT_SLAB = 256,               /* rows of a task of many rows */
  QUANT_CHUNK = 8,                /* blocks whose weights are unpacked at a time */
  QUANT_WORDS = 16 * 17 + 16 * 5, /* of an unpacked block, at most */
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

/* Weights of a block, unpacked: groups of bytes, or pairs of int16 if wide; then the scales. */
INLINE int64_t quant_words(const int f, const int wide) {
  return PANEL_COLUMNS * ((wide ? 16 : 8) + 1 + panel_has_minimum(f) + 4 * panel_is_sub16(f));
}
INLINE void quant_unpack(const int f, const int wide, int32_t *to, panel_block b) {
  panel_scales s = {0};
  UNROLL for (int v = 0; v < PANEL_NV; v++) {
    int32_t *at = to + v * VL;
    UNROLL for (int g = 0; g < 8; g++) {
      vi w = panel_group(f, b.quants, g, v), second;
      if (wide) {
        vi_widen(w, &w, &second);
        memcpy(at + (2 * g + 1) * PANEL_COLUMNS, &second, sizeof second);
      }
      memcpy(at + (wide ? 2 : 1) * g * PANEL_COLUMNS, &w, sizeof w);
    }
    at += (wide ? 16 : 8) * PANEL_COLUMNS;
    panel_unit_scales(f, &s, b, v);
    panel_block_scales(f, &s, b, v);
    memcpy(at, &s.scale, sizeof s.scale), at += PANEL_COLUMNS;
    if (panel_has_minimum(f)) memcpy(at, &s.minimum, sizeof s.minimum), at += PANEL_COLUMNS;
    if (panel_is_sub16(f)) {
      memcpy(at, &s.sub[0], sizeof s.sub[0]);
      memcpy(at + PANEL_COLUMNS, &s.sub[1], sizeof s.sub[1]);
      memcpy(at + 2 * PANEL_COLUMNS, &s.sub_pair, sizeof s.sub_pair);
      memcpy(at + 3 * PANEL_COLUMNS, &s.min_pair, sizeof s.min_pair);
    }
  }
}
INLINE panel_scales quant_scales(const int f, const int wide, const int32_t *from, const int v) {
  const int32_t *at = from + (wide ? 16 : 8) * PANEL_COLUMNS + v * VL;
  panel_scales s = {0};
  s.scale = (vf)vi_load(at), at += PANEL_COLUMNS;
  if (panel_has_minimum(f)) s.minimum = (vf)vi_load(at), at += PANEL_COLUMNS;
  if (panel_is_sub16(f)) {
    s.sub[0] = vi_load(at), s.sub[1] = vi_load(at + PANEL_COLUMNS);
    s.sub_pair = vi_load(at + 2 * PANEL_COLUMNS), s.min_pair = vi_load(at + 3 * PANEL_COLUMNS);
  }
  return s;
}

/* The exact sums of a block for n_rows rows and n_vectors vectors of columns, zero not taken off
 * but where `wide`. Weights come from the panel, or where `from` is not NULL unpacked. */
INLINE void quant_sums(const int f, const int wide, const int n_rows, const int n_vectors,
                       vi isum[][PANEL_NV], panel_block b, const int32_t *from, const int v0,
                       const panel_scales *s, const char *const *q) {
  const int bits = panel_bits(f);
  const int run = panel_is_sub16(f) && DOT8_RUN(bits) > 4 ? 4 : DOT8_RUN(bits);
  if (wide && from) {
    UNROLL for (int g = 0; g < 16; g++) {
      vi w[PANEL_NV];
      UNROLL for (int v = 0; v < n_vectors; v++)
        w[v] = vi_now(vi_load(from + g * PANEL_COLUMNS + (v0 + v) * VL));
      UNROLL for (int r = 0; r < n_rows; r++) {
        const vi x = vi_spread(q[r] + 4 * g);
        UNROLL for (int v = 0; v < n_vectors; v++) isum[r][v] = vi_dot16(isum[r][v], w[v], x);
      }
    }
    return;
  }
  if (wide) {
    vi_sums16 acc[QUANT_FEW][PANEL_NV] = {0};
    UNROLL for (int g = 0; g < 8; g++)
      UNROLL for (int v = 0; v < n_vectors; v++) {
        const vi w = panel_group(f, b.quants, g, v0 + v);
        UNROLL for (int r = 0; r < n_rows; r++) acc[r][v] = vi_dot16_bytes(acc[r][v], w, q[r] + 8 * g);
      }
    UNROLL for (int r = 0; r < n_rows; r++)
      UNROLL for (int v = 0; v < n_vectors; v++) isum[r][v] += vi_dot16_sum(acc[r][v]);
    return;
  }
  UNROLL for (int g0 = 0; g0 < 8; g0 += run) {
    vi part[8][PANEL_NV];
    UNROLL for (int r = 0; r < n_rows; r++)
      UNROLL for (int v = 0; v < n_vectors; v++) part[r][v] = vi_set(0);
    UNROLL for (int g = g0; g < g0 + run; g++) {
      vi w[PANEL_NV];
      UNROLL for (int v = 0; v < n_vectors; v++)
        w[v] = from ? vi_now(vi_load(from + g * PANEL_COLUMNS + (v0 + v) * VL))
                    : panel_group(f, b.quants, g, v0 + v);
      UNROLL for (int r = 0; r < n_rows; r++) {
        const vi x = vi_spread(q[r] + 4 * g);
        UNROLL for (int v = 0; v < n_vectors; v++) part[r][v] = vi_dot8(part[r][v], w[v], x, bits);
      }
    }
    UNROLL for (int r = 0; r < n_rows; r++)
      UNROLL for (int v = 0; v < n_vectors; v++)
        isum[r][v] = panel_is_sub16(f) ? vi_dot8_scaled(isum[r][v], part[r][v], s[v].sub[g0 / 4], bits)
                                       : vi_dot8_sum(isum[r][v], part[r][v], bits);
  }
}

/* One block of n_rows rows: everything between the integers and acc, which stays in memory: the
 * registers are for the integers. */
INLINE void quant_block(const int f, const int wide, const int n_rows, const int n_vectors,
                        float *acc, panel_scales *s, panel_block b, const int32_t *from,
                        const int v0, const char *const *q, const float *scale,
                        const int32_t *sum, int64_t n_blocks) {
  vi isum[8][PANEL_NV];
  UNROLL for (int v = 0; v < n_vectors; v++) {
    if (from)
      s[v] = quant_scales(f, wide, from, v0 + v);
    else
      panel_block_scales(f, s + v, b, v0 + v);
  }
  UNROLL for (int r = 0; r < n_rows; r++)
    UNROLL for (int v = 0; v < n_vectors; v++)
      isum[r][v] = wide ? vi_set(-panel_zero(f) * sum[r * n_blocks]) : vi_set(0);
  quant_sums(f, wide, n_rows, n_vectors, isum, b, from, v0, s, q);
  UNROLL for (int r = 0; r < n_rows; r++) {
    const vf given = vf_set(scale[r * n_blocks]);
    const vf dx = vf_fma(given, vf_zero(), given); /* what is not finite becomes NaN */
    const vi pair = vi_spread(sum + r * n_blocks);
    vi off = vi_set(0);
    vf minus = vf_zero();
    if (!wide && !panel_is_sub16(f) && panel_zero(f))
      off = vi_dot16(off, pair, vi_set(panel_zero(f) * 0x10001));
    if (!wide && !panel_is_sub16(f) && panel_has_minimum(f))
      minus = dx * vi_to_vf(vi_dot16(vi_set(0), pair, vi_set(0x10001)));
    UNROLL for (int v = 0; v < n_vectors; v++) {
      if (panel_is_sub16(f) && panel_zero(f))
        isum[r][v] -= vi_dot16(vi_set(0), s[v].sub_pair, pair) * panel_zero(f);
      else if (!wide && panel_zero(f))
        isum[r][v] -= off;
      float *at = acc + r * PANEL_COLUMNS + (v0 + v) * VL;
      vf y = vf_fma(s[v].scale * dx, vi_to_vf(isum[r][v]), vf_load(at));
      if (panel_has_minimum(f) && panel_is_sub16(f))
        minus = dx * vi_to_vf(vi_dot16(vi_set(0), s[v].min_pair, pair));
      if (panel_has_minimum(f)) y = vf_fnma(s[v].minimum, minus, y);
      vf_store(at, y);
    }
  }
}

/* y = acc + b + add for the columns of a vector from col on. */
INLINE void quant_store(const quant_product *t, vf acc, int64_t row, int64_t col) {
  const int64_t at = row * t->n_cols + col, left = t->n_cols - col;
  if (left <= 0) return;
  const vm valid = vm_first(left);
  if (t->b) acc = vf_add(acc, vf_load_m(t->b + col, valid));
  if (t->add) acc = vf_add(acc, vf_load_m(t->add + at, valid));
  vf_store_m(t->y + at, acc, valid);
}

/* n_rows rows from `row` times the panels from `panel` to `end`, each read once. */
INLINE void quant_few(const int f, const int wide, const int n_rows, const quant_product *t,
                      int64_t row, int64_t panel, int64_t end) {
  const int64_t bytes = panel_bytes(f, t->n_blocks), row_bytes = t->n_terms << wide;
  const int n_vectors = n_rows > 2 ? 1 : PANEL_NV; /* as registers allow */
  const float *scale = t->scale + row * t->n_blocks;
  const int32_t *sum = t->sum + row * t->n_blocks;
  for (; panel < end; panel++) {
    _Alignas(64) float acc[QUANT_FEW * PANEL_COLUMNS] = {0};
    for (int64_t i = 0; i < t->n_blocks; i += panel_unit_blocks(f)) {
      panel_block b = panel_at(f, t->panels + panel * bytes, i);
      panel_scales s[PANEL_NV] = {0};
      UNROLL for (int v = 0; v < PANEL_NV; v++) panel_unit_scales(f, s + v, b, v);
      const int64_t left = t->n_blocks - i, end_block = i + (left < panel_unit_blocks(f) ? left : panel_unit_blocks(f));
      for (int64_t k = i; k < end_block; k++) {
        const char *q[QUANT_FEW];
        UNROLL for (int r = 0; r < n_rows; r++)
          q[r] = (const char *)t->q + (row + r) * row_bytes + (k * PANEL_BLOCK << wide);
        UNROLL for (int v = 0; v < PANEL_NV; v += n_vectors)
          quant_block(f, wide, n_rows, n_vectors, acc, s + v, b, NULL, v, q, scale + k, sum + k, t->n_blocks);
        b = panel_next(f, b);
      }
    }
    UNROLL for (int r = 0; r < n_rows; r++)
      UNROLL for (int v = 0; v < PANEL_NV; v++)
        quant_store(t, vf_load(acc + r * PANEL_COLUMNS + v * VL), row + r,
                    panel * PANEL_COLUMNS + v * VL);
  }
}

/* Blocks i to i + n of n_rows rows from `row`, unpacked weights, acc in memory. */
INLINE void quant_tile(const int f, const int wide, const int n_rows, const quant_product *t,
                       float *sums, const int32_t *from, int64_t row, int64_t i, int64_t n) {
  const int64_t row_bytes = t->n_terms << wide;
  const char *q = (const char *)t->q + row * row_bytes + (i * PANEL_BLOCK << wide);
  const float *scale = t->scale + row * t->n_blocks + i;
  const int32_t *sum = t->sum + row * t->n_blocks + i;
  const panel_block none = {0};
  for (; n > 0; n--) {
    const char *rows[8];
    UNROLL for (int r = 0; r < n_rows; r++) rows[r] = q + r * row_bytes;
    panel_scales s[PANEL_NV];
    quant_block(f, wide, n_rows, PANEL_NV, sums, s, none, from, 0, rows, scale, sum, t->n_blocks);
    from += quant_words(f, wide), q += PANEL_BLOCK << wide, scale++, sum++;
  }
}

/* Rows of a tile of many rows. */
INLINE int64_t quant_tile_rows(const int f, const int wide) {
  (void)f, (void)wide;
  return VL == 16 ? 8 : VL == 8 ? 4 : 2;
}

/* n_rows rows from `row` times one panel: its weights are unpacked a chunk of blocks at a time. */
INLINE void quant_many(const int f, const int wide, const quant_product *t, int64_t row,
                       int64_t n_rows, int64_t panel) {
  _Alignas(64) int32_t unpacked[QUANT_CHUNK * QUANT_WORDS];
  _Alignas(64) float sums[QUANT_SLAB * PANEL_COLUMNS];
  const int64_t step = quant_tile_rows(f, wide);
  const uint8_t *weights = t->panels + panel * panel_bytes(f, t->n_blocks);
  memset(sums, 0, (size_t)(n_rows * PANEL_COLUMNS) * sizeof(float));
  for (int64_t i = 0; i < t->n_blocks; i += QUANT_CHUNK) {
    const int64_t left = t->n_blocks - i, n = left < QUANT_CHUNK ? left : QUANT_CHUNK;
    for (int64_t k = 0; k < n; k++)
      quant_unpack(f, wide, unpacked + k * quant_words(f, wide), panel_at(f, weights, i + k));
    int64_t r = 0;
    for (; r + step <= n_rows; r += step)
      quant_tile(f, wide, (int)step, t, sums + r * PANEL_COLUMNS, unpacked, row + r, i, n);
    for (; r < n_rows; r++)
      quant_tile(f, wide, 1, t, sums + r * PANEL_COLUMNS, unpacked, row + r, i, n);
  }
  for (int64_t r = 0; r < n_rows; r++)
    UNROLL for (int v = 0; v < PANEL_NV; v++)
      quant_store(t, vf_load(sums + r * PANEL_COLUMNS + v * VL), row + r,
                  panel * PANEL_COLUMNS + v * VL);
}

/* How the work is cut: few rows by bytes of panels, many by slabs of rows of a panel. */
INLINE int64_t quant_task_panels(const int f, int64_t n_blocks) {
  const int64_t n = QUANT_TASK_BYTES / panel_bytes(f, n_blocks);
  return n > 1 ? n : 1;
}
INLINE int64_t quant_tasks(const int f, int64_t n_rows, int64_t n_blocks, int64_t n_cols) {
  const int64_t n_panels = (n_cols + PANEL_COLUMNS - 1) / PANEL_COLUMNS;
  const int64_t some = quant_task_panels(f, n_blocks);
  if (n_rows <= QUANT_FEW) return (n_panels + some - 1) / some;
  return n_panels * ((n_rows + QUANT_SLAB - 1) / QUANT_SLAB);
}
/* The panels and rows of a task. */
typedef struct {
  int64_t panel, end, row, n_rows;
} quant_task;
INLINE quant_task quant_task_at(const int f, const quant_product *t, int64_t task) {
  const int64_t n_panels = (t->n_cols + PANEL_COLUMNS - 1) / PANEL_COLUMNS;
  quant_task k = {.panel = task % n_panels, .row = task / n_panels * QUANT_SLAB};
  if (t->n_rows <= QUANT_FEW) k.panel = task * quant_task_panels(f, t->n_blocks), k.row = 0;
  k.end = k.panel + (t->n_rows <= QUANT_FEW ? quant_task_panels(f, t->n_blocks) : 1);
  if (k.end > n_panels) k.end = n_panels;
  k.n_rows = t->n_rows - k.row < QUANT_SLAB ? t->n_rows - k.row : QUANT_SLAB;
  return k;
}

/* The kernels of a format, each once in a program whatever sizes its products have. */
#define QUANT_ROWS(name, f, wide, rows) \
  QUANT_SHARED void name(const quant_product *t, quant_task k) { \
    quant_few(f, wide, rows, t, k.row, k.panel, k.end); \
  }
#define QUANT_KERNELS(name, f, wide) \
  QUANT_ROWS(name##_1, f, wide, 1) \
  QUANT_ROWS(name##_2, f, wide, 2) \
  QUANT_ROWS(name##_3, f, wide, 3) \
  QUANT_ROWS(name##_4, f, wide, 4) \
  QUANT_SHARED void name##_many(const quant_product *t, quant_task k) { \
    quant_many(f, wide, t, k.row, k.n_rows, k.panel); \
  } \
  INLINE void name(const quant_product *t, int64_t task) { \
    const quant_task k = quant_task_at(f, t, task); \
    if (t->n_rows == 1) return name##_1(t, k); \
    if (t->n_rows == 2) return name##_2(t, k); \
    if (t->n_rows == 3) return name##_3(t, k); \
    if (t->n_rows == 4) return name##_4(t, k); \
    name##_many(t, k); \
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
