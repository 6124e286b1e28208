/* linear_f32, linear_f16, linear_bf16: y = x w^T + b + add with w in panels of 16 columns, x float.
 *
 * One contract for every kernel, as in mat.h: an element is summed in blocks of 64 terms, each one
 * chain of fused multiply-adds from zero, the sums in order; then + bias, then + add. */
#include "vec.h"

#if defined(__clang__)
#define FLOAT_SHARED static __attribute__((noinline, unused))
#else
#define FLOAT_SHARED static __attribute__((noinline, noclone, unused))
#endif
enum {
  FLOAT_F32 = 0,
  FLOAT_F16 = 1,
  FLOAT_BF16 = 2,
  FLOAT_COLUMNS = 16,
  FLOAT_NV = FLOAT_COLUMNS / VL,
  FLOAT_BLOCK = 64, /* terms of one chain */
  FLOAT_FEW = 4,    /* rows up to which panels are read as they are, straight once */
  FLOAT_SIDE = 4,   /* panels side by side where there is one row: more chains at a time */
  FLOAT_ROWS = VL == 8 ? 6 : 12,
  FLOAT_SLAB = 96, /* rows of a task of many rows */
  FLOAT_TASK_BYTES = 64 << 10,
};

typedef struct {
  float *y;
  const float *x;
  const uint8_t *panels;
  const float *b, *add;
  int64_t n_rows, n_terms, n_cols;
} float_product;

INLINE int64_t float_bytes(const int kind) { return kind == FLOAT_F32 ? 4 : 2; }

/* Term k of VL columns from vector v on. */
INLINE vf float_load(const int kind, const uint8_t *panel, int64_t k, const int v) {
  const uint8_t *at = panel + (k * FLOAT_COLUMNS + v * VL) * float_bytes(kind);
  if (kind == FLOAT_F32) return vf_load((const float *)(const void *)at);
  if (kind == FLOAT_F16) return vf_load_half((const uint16_t *)(const void *)at);
  return vf_load_bfloat((const uint16_t *)(const void *)at);
}

/* y + b + add, not inlined: once for a whole chain, and long. Masked stores are slow where they are
 * not needed. */
FLOAT_SHARED void float_store(const float_product *t, vf y, int64_t row, int64_t col) {
  const int64_t at = row * t->n_cols + col, left = t->n_cols - col;
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

/* n_rows rows from `row` times n_side panels from `panel` on. */
INLINE void float_few(const int kind, const int n_rows, const int n_side, const float_product *t,
                      int64_t row, int64_t panel) {
  const int64_t bytes = t->n_terms * FLOAT_COLUMNS * float_bytes(kind);
  const uint8_t *w = t->panels + panel * bytes;
  vf sum[FLOAT_FEW][FLOAT_SIDE * FLOAT_NV];
  UNROLL for (int r = 0; r < n_rows; r++)
    UNROLL for (int v = 0; v < n_side * FLOAT_NV; v++) sum[r][v] = vf_zero();
  for (int64_t k = 0; k < t->n_terms; k += FLOAT_BLOCK) {
    const int64_t left = t->n_terms - k, end = k + (left < FLOAT_BLOCK ? left : FLOAT_BLOCK);
    vf acc[FLOAT_FEW][FLOAT_SIDE * FLOAT_NV];
    UNROLL for (int r = 0; r < n_rows; r++)
      UNROLL for (int v = 0; v < n_side * FLOAT_NV; v++) acc[r][v] = vf_zero();
    for (int64_t i = k; i < end; i++)
      UNROLL for (int v = 0; v < n_side * FLOAT_NV; v++) {
        const vf b = float_load(kind, w + v / FLOAT_NV * bytes, i, v % FLOAT_NV);
        UNROLL for (int r = 0; r < n_rows; r++)
          acc[r][v] = vf_fma(vf_set(t->x[(row + r) * t->n_terms + i]), b, acc[r][v]);
      }
    UNROLL for (int r = 0; r < n_rows; r++)
      UNROLL for (int v = 0; v < n_side * FLOAT_NV; v++) sum[r][v] = vf_add(sum[r][v], acc[r][v]);
  }
  UNROLL for (int r = 0; r < n_rows; r++)
    UNROLL for (int v = 0; v < n_side * FLOAT_NV; v++)
      float_store(t, sum[r][v], row + r, panel * FLOAT_COLUMNS + v * VL);
}

/* A block of terms of n_rows rows: their chains on unpacked weights, added to sums. */
INLINE void float_tile(const int n_rows, const float_product *t, float *sums, const float *w,
                       int64_t row, int64_t k, int64_t n_terms) {
  const float *x = t->x + row * t->n_terms + k;
  vf acc[FLOAT_ROWS][FLOAT_NV];
  UNROLL for (int r = 0; r < n_rows; r++)
    UNROLL for (int v = 0; v < FLOAT_NV; v++) acc[r][v] = vf_zero();
  for (int64_t i = 0; i < n_terms; i++) {
    vf b[FLOAT_NV];
    UNROLL for (int v = 0; v < FLOAT_NV; v++) b[v] = vf_load(w + i * FLOAT_COLUMNS + v * VL);
    UNROLL for (int r = 0; r < n_rows; r++)
      UNROLL for (int v = 0; v < FLOAT_NV; v++)
        acc[r][v] = vf_fma(vf_set(x[r * t->n_terms + i]), b[v], acc[r][v]);
  }
  UNROLL for (int r = 0; r < n_rows; r++)
    UNROLL for (int v = 0; v < FLOAT_NV; v++) {
      float *sum = sums + r * FLOAT_COLUMNS + v * VL;
      vf_store(sum, vf_add(vf_load(sum), acc[r][v]));
    }
}

/* n_rows rows from `row` times one panel. */
INLINE void float_many(const int kind, const float_product *t, int64_t row, int64_t n_rows,
                       int64_t panel) {
  _Alignas(64) float w[FLOAT_BLOCK * FLOAT_COLUMNS], sums[FLOAT_SLAB * FLOAT_COLUMNS];
  const uint8_t *from = t->panels + panel * t->n_terms * FLOAT_COLUMNS * float_bytes(kind);
  memset(sums, 0, (size_t)(n_rows * FLOAT_COLUMNS) * sizeof(float));
  for (int64_t k = 0; k < t->n_terms; k += FLOAT_BLOCK) {
    const int64_t left = t->n_terms - k, n = left < FLOAT_BLOCK ? left : FLOAT_BLOCK;
    for (int64_t i = 0; i < n; i++)
      UNROLL for (int v = 0; v < FLOAT_NV; v++)
        vf_store(w + i * FLOAT_COLUMNS + v * VL, float_load(kind, from, k + i, v));
    int64_t r = 0;
    for (; r + FLOAT_ROWS <= n_rows; r += FLOAT_ROWS)
      float_tile(FLOAT_ROWS, t, sums + r * FLOAT_COLUMNS, w, row + r, k, n);
    for (; r < n_rows; r++) float_tile(1, t, sums + r * FLOAT_COLUMNS, w, row + r, k, n);
  }
  for (int64_t r = 0; r < n_rows; r++)
    UNROLL for (int v = 0; v < FLOAT_NV; v++)
      float_store(t, vf_load(sums + r * FLOAT_COLUMNS + v * VL), row + r,
                  panel * FLOAT_COLUMNS + v * VL);
}

INLINE int64_t float_panels(int64_t n_cols) { return (n_cols + FLOAT_COLUMNS - 1) / FLOAT_COLUMNS; }
/* Panels of a task of few rows: a multiple of those side by side. */
INLINE int64_t float_task_panels(const int kind, int64_t n_terms) {
  const int64_t n = FLOAT_TASK_BYTES / (n_terms * FLOAT_COLUMNS * float_bytes(kind) * FLOAT_SIDE);
  return FLOAT_SIDE * (n > 1 ? n : 1);
}
INLINE int64_t float_tasks(const int kind, int64_t n_rows, int64_t n_terms, int64_t n_cols) {
  const int64_t some = float_task_panels(kind, n_terms);
  if (n_rows <= FLOAT_FEW) return (float_panels(n_cols) + some - 1) / some;
  return float_panels(n_cols) * ((n_rows + FLOAT_SLAB - 1) / FLOAT_SLAB);
}

INLINE void float_task_few(const int kind, const int n_rows, const float_product *t,
                           int64_t panel) {
  const int side = n_rows > 2 ? 1 : FLOAT_SIDE / n_rows; /* as registers allow */
  const int64_t all = float_panels(t->n_cols), stop = panel + float_task_panels(kind, t->n_terms);
  const int64_t end = stop < all ? stop : all;
  for (; panel + side <= end; panel += side) float_few(kind, n_rows, side, t, 0, panel);
  for (; panel < end; panel++) float_few(kind, n_rows, 1, t, 0, panel);
}
INLINE void float_task(const int kind, const float_product *t, int64_t task) {
  const int64_t first = task * float_task_panels(kind, t->n_terms);
  if (t->n_rows == 1) return float_task_few(kind, 1, t, first);
  if (t->n_rows == 2) return float_task_few(kind, 2, t, first);
  if (t->n_rows == 3) return float_task_few(kind, 3, t, first);
  if (t->n_rows == 4) return float_task_few(kind, 4, t, first);
  const int64_t row = task / float_panels(t->n_cols) * FLOAT_SLAB, left = t->n_rows - row;
  float_many(kind, t, row, left < FLOAT_SLAB ? left : FLOAT_SLAB, task % float_panels(t->n_cols));
}

/* The naive kernel: one weight at a time, sums in double. */
INLINE void float_naive(const int kind, const float_product *t) {
  const int64_t bytes = t->n_terms * FLOAT_COLUMNS * float_bytes(kind);
  for (int64_t i = 0; i < t->n_rows * t->n_cols; i++) {
    const int64_t m = i / t->n_cols, n = i % t->n_cols;
    double y = t->b ? (double)t->b[n] : 0.0;
    for (int64_t k = 0; k < t->n_terms; k++) {
      const uint8_t *at = t->panels + n / FLOAT_COLUMNS * bytes +
                          (k * FLOAT_COLUMNS + n % FLOAT_COLUMNS) * float_bytes(kind);
      uint16_t half;
      float w;
      memcpy(&half, at, sizeof half);
      const uint32_t bits = (uint32_t)half << 16;
      memcpy(&w, kind == FLOAT_F32 ? (const void *)at : (const void *)&bits, sizeof w);
      if (kind == FLOAT_F16) w = half_to_float(half);
      y += (double)t->x[m * t->n_terms + k] * (double)w;
    }
    t->y[i] = (float)(t->add ? y + (double)t->add[i] : y);
  }
}

#define FLOAT_GIVEN \
  float *y_MN, const float *x_MK, const uint8_t *panels_P, const float *b_N, const float *add_MN, \
      int64_t M, int64_t K, int64_t P, int64_t N, int64_t n
#define FLOAT_PRODUCT \
  (void)P, (void)n; \
  const float_product t = {y_MN, x_MK, panels_P, b_N, add_MN, M, K, N}
#define FLOAT_SIZES int64_t M, int64_t K, int64_t P, int64_t N, int64_t n
#define FLOAT_TASKS(kind) \
  (void)P, (void)n; \
  return float_tasks(kind, M, K, N)

FLOAT_SHARED void float_f32(const float_product *t, int64_t task) {
  float_task(FLOAT_F32, t, task);
}
FLOAT_SHARED void float_f16(const float_product *t, int64_t task) {
  float_task(FLOAT_F16, t, task);
}
FLOAT_SHARED void float_bf16(const float_product *t, int64_t task) {
  float_task(FLOAT_BF16, t, task);
}

KERNEL void linear_f32_naive(FLOAT_GIVEN) {
  FLOAT_PRODUCT;
  float_naive(FLOAT_F32, &t);
}
KERNEL int64_t linear_f32_panels_tiles(FLOAT_SIZES) { FLOAT_TASKS(FLOAT_F32); }
KERNEL void linear_f32_panels(FLOAT_GIVEN, int64_t tile) {
  FLOAT_PRODUCT;
  float_f32(&t, tile);
}

KERNEL void linear_f16_naive(FLOAT_GIVEN) {
  FLOAT_PRODUCT;
  float_naive(FLOAT_F16, &t);
}
KERNEL int64_t linear_f16_panels_tiles(FLOAT_SIZES) { FLOAT_TASKS(FLOAT_F16); }
KERNEL void linear_f16_panels(FLOAT_GIVEN, int64_t tile) {
  FLOAT_PRODUCT;
  float_f16(&t, tile);
}

KERNEL void linear_bf16_naive(FLOAT_GIVEN) {
  FLOAT_PRODUCT;
  float_naive(FLOAT_BF16, &t);
}
KERNEL int64_t linear_bf16_panels_tiles(FLOAT_SIZES) { FLOAT_TASKS(FLOAT_BF16); }
KERNEL void linear_bf16_panels(FLOAT_GIVEN, int64_t tile) {
  FLOAT_PRODUCT;
  float_bf16(&t, tile);
}
