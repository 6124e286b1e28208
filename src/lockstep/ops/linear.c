/* linear: y = x w^T + b + add, its gradients, and weights packed for both directions.
 *
 * Every kernel keeps one contract, so that all of them agree bit for bit: an element is summed in
 * blocks of MAT_BLOCK terms; within a block one chain of fused multiply-adds from zero, in order;
 * then (first block + b) + add, then + second block, and so on. Neither the rows of a call nor the
 * shape of a tile enters into it. */
#include "vec.h"

#if defined(__AVX512F__) || defined(__aarch64__)
enum { MAT_ROWS = 12 }; /* rows of a register tile two vectors wide: 24 of 32 registers */
#define MAT_TALL(...) __VA_ARGS__
#else
enum { MAT_ROWS = 6 }; /* 12 of 16 registers */
#define MAT_TALL(...)
#endif
enum {
  MAT_PANEL = 32,                 /* columns of one packed panel */
  MAT_BLOCK = 256,                /* terms of one chain; a panel of it fits the level-1 cache */
  MAT_UNROLL = 2,                 /* terms per turn of the loop */
  MAT_CHUNK = 96,                 /* rows that stay in the level-2 cache over all columns */
  MAT_SKEWED = MAT_BLOCK + 16,    /* stride of copied rows: no two in the same cache sets */
  MAT_TILE_ROWS = 384,            /* rows of a tile of the large kernels */
  MAT_TILE_COLS = 4 * MAT_PANEL,  /* columns of a tile of the large kernels */
};

/* C = A B (+ bias) (+ add), where A[r][k] is a[r*a_row + k*a_term] and the columns of B lie in
 * panels: B[k][c] is b[c/32*b_panel + k*b_term + c%32]. add has the stride of c and may be c. */
typedef struct {
  float *c;
  const float *bias, *add, *a, *b;
  int64_t c_row, a_row, a_term, b_panel, b_term, terms;
} mat_block;

/* One term of a register tile: a rank-one update; ahead_a and ahead_b lead to the term. */
INLINE void mat_term(vf (*acc)[8], const int n_rows, const int n_vectors, const float *const *a,
                     int64_t a_row, int64_t ahead_a, const float *b, int64_t b_panel) {
  vf x[8];
  UNROLL for (int v = 0; v < n_vectors; v++)
    x[v] = vf_load(b + v * VL / MAT_PANEL * b_panel + v * VL % MAT_PANEL);
  UNROLL for (int r = 0; r < n_rows; r++) {
    const vf y = vf_set(a[r / 3][r % 3 * a_row + ahead_a]);
    UNROLL for (int v = 0; v < n_vectors; v++) acc[r][v] = vf_fma(y, x[v], acc[r][v]);
  }
}

/* The chain of a register tile of n_rows x n_vectors. `across` says that the rows of A are next to
 * each other (a_row = 1), else its terms are (a_term = 1); both spare address arithmetic. */
INLINE void mat_chain(vf (*acc)[8], const mat_block *t, const int n_rows, const int n_vectors,
                      const int across, const float *first, const float *b) {
  const int64_t a_row = across ? 1 : t->a_row, b_panel = t->b_panel, b_term = t->b_term;
  const float *a[4] = {first, first + 3 * a_row, first + 6 * a_row, first + 9 * a_row};
  UNROLL for (int r = 0; r < n_rows; r++)
    UNROLL for (int v = 0; v < n_vectors; v++) acc[r][v] = vf_zero();
  int64_t left = t->terms;
  if (across) {
    for (; left > 0; left--) {
      mat_term(acc, n_rows, n_vectors, a, 1, 0, b, b_panel);
      UNROLL for (int i = 0; i < 4; i++) a[i] += t->a_term;
      b += b_term;
    }
    return;
  }
  for (; left >= MAT_UNROLL; left -= MAT_UNROLL) {
    UNROLL for (int u = 0; u < MAT_UNROLL; u++)
      mat_term(acc, n_rows, n_vectors, a, a_row, u, b + u * MAT_PANEL, b_panel);
    UNROLL for (int i = 0; i < 4; i++) a[i] += MAT_UNROLL;
    b += MAT_UNROLL * MAT_PANEL;
  }
  for (; left > 0; left--) {
    mat_term(acc, n_rows, n_vectors, a, a_row, 0, b, b_panel);
    UNROLL for (int i = 0; i < 4; i++) a[i] += 1;
    b += MAT_PANEL;
  }
}

/* One register tile: n_rows rows from `row`, n_vectors vectors from column `col`, n_cols valid. */
INLINE void mat_tile(const mat_block *t, const int n_rows, const int n_vectors, const int across,
                     int64_t row, int64_t col, int64_t n_cols) {
  vf acc[MAT_ROWS][8];
  mat_chain(acc, t, n_rows, n_vectors, across, t->a + row * (across ? 1 : t->a_row),
            t->b + col / MAT_PANEL * t->b_panel + col % MAT_PANEL);
  UNROLL for (int v = 0; v < n_vectors; v++) {
    const int64_t at = row * t->c_row + col + v * VL;
    const vm valid = vm_first(n_cols > v * VL ? n_cols - v * VL : 0);
    const vf bias = t->bias ? vf_load_m(t->bias + col + v * VL, valid) : vf_zero();
    UNROLL for (int r = 0; r < n_rows; r++) {
      vf y = acc[r][v];
      if (t->bias) y = vf_add(y, bias);
      if (t->add) y = vf_add(y, vf_load_m(t->add + at + r * t->c_row, valid));
      vf_store_m(t->c + at + r * t->c_row, y, valid);
    }
  }
}

#define MAT_CASE(rows, vectors) \
  case rows * 16 + vectors: \
    mat_tile(t, rows, vectors, 0, row, col, n_cols); \
    break;
#define MAT_ACROSS(rows) \
  case rows: \
    mat_tile(t, rows, 2, 1, row, col, n_cols); \
    break;
/* The register tile for a count of rows and vectors that are not constants. */
static __attribute__((noinline)) void mat_any_tile(const mat_block *t, int64_t n_rows,
                                                   int n_vectors, int64_t row, int64_t col,
                                                   int64_t n_cols) {
  switch (n_rows * 16 + n_vectors) {
    MAT_CASE(1, 1) MAT_CASE(2, 1) MAT_CASE(3, 1) MAT_CASE(4, 1) MAT_CASE(5, 1) MAT_CASE(6, 1)
    MAT_CASE(1, 2) MAT_CASE(2, 2) MAT_CASE(3, 2) MAT_CASE(4, 2) MAT_CASE(5, 2) MAT_CASE(6, 2)
    MAT_CASE(1, 8) MAT_CASE(2, 4) MAT_CASE(3, 4)
    MAT_TALL(MAT_CASE(7, 1) MAT_CASE(8, 1) MAT_CASE(9, 1) MAT_CASE(10, 1) MAT_CASE(11, 1))
    MAT_TALL(MAT_CASE(7, 2) MAT_CASE(8, 2) MAT_CASE(9, 2) MAT_CASE(10, 2) MAT_CASE(11, 2))
    MAT_TALL(MAT_CASE(12, 1) MAT_CASE(12, 2))
  }
}
static __attribute__((noinline)) void mat_any_across(const mat_block *t, int64_t n_rows,
                                                     int64_t row, int64_t col, int64_t n_cols) {
  switch (n_rows) {
    MAT_ACROSS(1) MAT_ACROSS(2) MAT_ACROSS(3) MAT_ACROSS(4) MAT_ACROSS(5) MAT_ACROSS(6)
    MAT_TALL(MAT_ACROSS(7) MAT_ACROSS(8) MAT_ACROSS(9) MAT_ACROSS(10) MAT_ACROSS(11))
    MAT_TALL(MAT_ACROSS(12))
  }
}

/* All register tiles of a block; rows are split evenly, columns wider where rows are few. */
static void mat_tiles(const mat_block *t, const int across, int64_t n_rows, int64_t n_cols) {
  const int64_t n_bands = (n_rows + MAT_ROWS - 1) / MAT_ROWS;
  const int widest = across || n_rows > 3 ? 2 : n_rows == 1 ? 8 : 4;
  for (int64_t col = 0; col < n_cols;) {
    const int64_t left = n_cols - col;
    const int n_vectors = left >= widest * VL ? widest : left > VL || across ? 2 : 1;
    for (int64_t band = 0, row = 0; band < n_bands; band++) {
      const int64_t end = n_rows * (band + 1) / n_bands;
      if (across)
        mat_any_across(t, end - row, row, col, left);
      else
        mat_any_tile(t, end - row, n_vectors, row, col, left);
      row = end;
    }
    col += n_vectors * VL;
  }
}

/* The rows of A copied to a stride that spreads over the cache sets, where its own does not. */
INLINE void mat_unskew(mat_block *t, float *copy, int64_t n_rows) {
  if (t->a_row % 1024 != 0 || n_rows < 4) return;
  for (int64_t r = 0; r < n_rows; r++)
    memcpy(copy + r * MAT_SKEWED, t->a + r * t->a_row, (size_t)t->terms * sizeof(float));
  t->a = copy, t->a_row = MAT_SKEWED;
}

/* Rows of C = A B + bias + add with B in panels: the chain of blocks, chunk of rows by chunk. */
static void mat_rows(mat_block whole, int64_t n_rows, int64_t n_cols, int64_t n_terms) {
  float copy[MAT_CHUNK * MAT_SKEWED];
  for (int64_t row = 0; row < n_rows; row += MAT_CHUNK) {
    const int64_t rows = n_rows - row < MAT_CHUNK ? n_rows - row : MAT_CHUNK;
    for (int64_t k = 0; k < n_terms; k += MAT_BLOCK) {
      mat_block t = whole;
      t.c += row * t.c_row;
      t.add = k > 0 ? t.c : t.add ? t.add + row * t.c_row : NULL;
      if (k > 0) t.bias = NULL;
      t.a += row * t.a_row + k, t.b += k * MAT_PANEL;
      t.terms = n_terms - k < MAT_BLOCK ? n_terms - k : MAT_BLOCK;
      mat_unskew(&t, copy, rows);
      mat_tiles(&t, 0, rows, n_cols);
    }
  }
}

/* panel[k][q] = w[q*row + k] for n_cols valid q of 32, zero beyond. */
static void mat_transpose(float *panel, const float *w, int64_t row, int64_t n_cols,
                          int64_t n_terms) {
  for (int64_t q = 0; q < MAT_PANEL; q += VL)
    for (int64_t k = 0; k < n_terms; k += VL) {
      const int64_t terms = n_terms - k < VL ? n_terms - k : VL;
      vf x[VL];
      UNROLL for (int i = 0; i < VL; i++)
        x[i] = q + i < n_cols ? vf_load_n(w + (q + i) * row + k, terms) : vf_zero();
      vf_transpose(x);
      UNROLL for (int i = 0; i < VL; i++)
        if (i < terms) vf_store(panel + (k + i) * MAT_PANEL + q, x[i]);
    }
}

/* panel[k][q] = w[k*row + q] for n_cols valid q of 32, zero beyond. */
static void mat_copy(float *panel, const float *w, int64_t row, int64_t n_cols, int64_t n_terms) {
  for (int64_t k = 0; k < n_terms; k++)
    UNROLL for (int q = 0; q < MAT_PANEL; q += VL)
      vf_store(panel + k * MAT_PANEL + q, vf_load_n(w + k * row + q, n_cols > q ? n_cols - q : 0));
}

INLINE int64_t mat_least(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t mat_count(int64_t size, int64_t part) { return (size + part - 1) / part; }

/* A tile of C = A W + bias + add whose panels are packed here: `turned` says that W[k][c] is
 * w[c*w_row + k], else w[k*w_row + c]. */
INLINE void mat_pack_tile(mat_block t, const float *w, int64_t w_row, const int turned,
                          int64_t n_rows, int64_t n_cols, int64_t n_terms) {
  float panels[MAT_TILE_COLS * MAT_BLOCK];
  float *const c = t.c;
  const float *const a = t.a;
  t.b = panels, t.b_panel = MAT_PANEL * MAT_BLOCK;
  for (int64_t k = 0; k < n_terms; k += MAT_BLOCK) {
    const int64_t terms = mat_least(n_terms - k, MAT_BLOCK);
    for (int64_t q = 0; q < n_cols; q += MAT_PANEL) {
      float *panel = panels + q * MAT_BLOCK;
      const int64_t cols = mat_least(n_cols - q, MAT_PANEL);
      if (turned)
        mat_transpose(panel, w + q * w_row + k, w_row, cols, terms);
      else
        mat_copy(panel, w + k * w_row + q, w_row, cols, terms);
    }
    t.a = a + k;
    if (k > 0) t.add = c, t.bias = NULL;
    mat_rows(t, n_rows, n_cols, terms);
  }
}

/* linear: y = x w^T + b + add. */
KERNEL void linear_naive(float *y_MN, const float *x_MK, const float *w_NK, const float *b_N,
                         const float *add_MN, int64_t M, int64_t K, int64_t N) {
  for (int64_t m = 0; m < M; m++)
    for (int64_t n = 0; n < N; n++) {
      double y = b_N ? (double)b_N[n] : 0.0;
      for (int64_t k = 0; k < K; k++) y += (double)x_MK[m * K + k] * (double)w_NK[n * K + k];
      y_MN[m * N + n] = (float)(add_MN ? y + (double)add_MN[m * N + n] : y);
    }
}

INLINE void linear_part(float *y_MN, const float *x_MK, const float *w_NK, const float *b_N,
                        const float *add_MN, int64_t K, int64_t N, int64_t row, int64_t n_rows,
                        int64_t col, int64_t n_cols) {
  const int64_t at = row * N + col;
  const mat_block t = {.c = y_MN + at, .c_row = N, .bias = b_N ? b_N + col : NULL,
                       .add = add_MN ? add_MN + at : NULL, .a = x_MK + row * K, .a_row = K};
  mat_pack_tile(t, w_NK + col * K, K, 1, n_rows, n_cols, K);
}

KERNEL void linear_f32(float *y_MN, const float *x_MK, const float *w_NK, const float *b_N,
                       const float *add_MN, int64_t M, int64_t K, int64_t N, int64_t row_begin,
                       int64_t row_end) {
  (void)M;
  for (int64_t col = 0; col < N; col += MAT_TILE_COLS)
    linear_part(y_MN, x_MK, w_NK, b_N, add_MN, K, N, row_begin, row_end - row_begin, col,
                mat_least(N - col, MAT_TILE_COLS));
}

KERNEL int64_t linear_large_f32_tiles(int64_t M, int64_t K, int64_t N) {
  (void)K;
  return mat_count(M, MAT_TILE_ROWS) * mat_count(N, MAT_TILE_COLS);
}

KERNEL void linear_large_f32(float *y_MN, const float *x_MK, const float *w_NK, const float *b_N,
                             const float *add_MN, int64_t M, int64_t K, int64_t N, int64_t tile) {
  const int64_t across = mat_count(N, MAT_TILE_COLS);
  const int64_t row = tile / across * MAT_TILE_ROWS, col = tile % across * MAT_TILE_COLS;
  linear_part(y_MN, x_MK, w_NK, b_N, add_MN, K, N, row, mat_least(M - row, MAT_TILE_ROWS), col,
              mat_least(N - col, MAT_TILE_COLS));
}

/* linear_dx: dx = dy w + add. */
KERNEL void linear_dx_naive(float *dx_MK, const float *dy_MN, const float *w_NK,
                            const float *add_MK, int64_t M, int64_t N, int64_t K) {
  for (int64_t m = 0; m < M; m++)
    for (int64_t k = 0; k < K; k++) {
      double dx = add_MK ? (double)add_MK[m * K + k] : 0.0;
      for (int64_t n = 0; n < N; n++) dx += (double)dy_MN[m * N + n] * (double)w_NK[n * K + k];
      dx_MK[m * K + k] = (float)dx;
    }
}

INLINE void linear_dx_part(float *dx_MK, const float *dy_MN, const float *w_NK,
                           const float *add_MK, int64_t N, int64_t K, int64_t row, int64_t n_rows,
                           int64_t col, int64_t n_cols) {
  const int64_t at = row * K + col;
  const mat_block t = {.c = dx_MK + at, .c_row = K, .add = add_MK ? add_MK + at : NULL,
                       .a = dy_MN + row * N, .a_row = N};
  mat_pack_tile(t, w_NK + col, K, 0, n_rows, n_cols, N);
}

KERNEL void linear_dx_f32(float *dx_MK, const float *dy_MN, const float *w_NK, const float *add_MK,
                          int64_t M, int64_t N, int64_t K, int64_t row_begin, int64_t row_end) {
  (void)M;
  for (int64_t col = 0; col < K; col += MAT_TILE_COLS)
    linear_dx_part(dx_MK, dy_MN, w_NK, add_MK, N, K, row_begin, row_end - row_begin, col,
                   mat_least(K - col, MAT_TILE_COLS));
}

KERNEL int64_t linear_dx_large_f32_tiles(int64_t M, int64_t N, int64_t K) {
  (void)N;
  return mat_count(M, MAT_TILE_ROWS) * mat_count(K, MAT_TILE_COLS);
}

KERNEL void linear_dx_large_f32(float *dx_MK, const float *dy_MN, const float *w_NK,
                                const float *add_MK, int64_t M, int64_t N, int64_t K,
                                int64_t tile) {
  const int64_t across = mat_count(K, MAT_TILE_COLS);
  const int64_t row = tile / across * MAT_TILE_ROWS, col = tile % across * MAT_TILE_COLS;
  linear_dx_part(dx_MK, dy_MN, w_NK, add_MK, N, K, row, mat_least(M - row, MAT_TILE_ROWS), col,
                 mat_least(K - col, MAT_TILE_COLS));
}

/* linear_dw: dw = dy^T x, added to acc where that is asked for. */
KERNEL void linear_dw_naive(float *dw_NK, const float *dy_MN, const float *x_MK,
                            const float *acc_NK, const int32_t *accumulate, int64_t M, int64_t N,
                            int64_t K) {
  const int add = acc_NK && (!accumulate || *accumulate);
  for (int64_t n = 0; n < N; n++)
    for (int64_t k = 0; k < K; k++) {
      double dw = add ? (double)acc_NK[n * K + k] : 0.0;
      for (int64_t m = 0; m < M; m++) dw += (double)dy_MN[m * N + n] * (double)x_MK[m * K + k];
      dw_NK[n * K + k] = (float)dw;
    }
}

enum { MAT_DW_ROWS = MAT_CHUNK, MAT_DW_COLS = 4 * MAT_PANEL };

KERNEL int64_t linear_dw_f32_tiles(int64_t M, int64_t N, int64_t K) {
  (void)M;
  return mat_count(N, MAT_DW_ROWS) * mat_count(K, MAT_DW_COLS);
}

KERNEL void linear_dw_f32(float *dw_NK, const float *dy_MN, const float *x_MK, const float *acc_NK,
                          const int32_t *accumulate, int64_t M, int64_t N, int64_t K,
                          int64_t tile) {
  float rows[MAT_DW_ROWS * MAT_BLOCK], panels[MAT_DW_COLS * MAT_BLOCK];
  const int64_t across = mat_count(K, MAT_DW_COLS);
  const int64_t n = tile / across * MAT_DW_ROWS, k = tile % across * MAT_DW_COLS;
  const int64_t n_rows = mat_least(N - n, MAT_DW_ROWS), n_cols = mat_least(K - k, MAT_DW_COLS);
  float *const c = dw_NK + n * K + k;
  mat_block t = {.c = c, .c_row = K, .a = rows, .a_row = 1, .a_term = MAT_DW_ROWS, .b = panels,
                 .b_term = MAT_PANEL, .b_panel = MAT_PANEL * MAT_BLOCK};
  if (acc_NK && (!accumulate || *accumulate)) t.add = acc_NK + n * K + k;
  for (int64_t m = 0; m < M; m += MAT_BLOCK) {
    t.terms = mat_least(M - m, MAT_BLOCK);
    for (int64_t q = 0; q < n_cols; q += MAT_PANEL)
      mat_copy(panels + q * MAT_BLOCK, x_MK + m * K + k + q, K, mat_least(n_cols - q, MAT_PANEL),
               t.terms);
    for (int64_t i = 0; i < t.terms; i++)
      memcpy(rows + i * MAT_DW_ROWS, dy_MN + (m + i) * N + n, (size_t)n_rows * sizeof(float));
    mat_tiles(&t, 1, n_rows, n_cols);
    t.add = c;
  }
}

/* linear_db: db = the sum of the rows of dy, added to acc where that is asked for. */
KERNEL void linear_db_naive(float *db_N, const float *dy_MN, const float *acc_N,
                            const int32_t *accumulate, int64_t M, int64_t N) {
  const int add = acc_N && (!accumulate || *accumulate);
  for (int64_t n = 0; n < N; n++) {
    double db = add ? (double)acc_N[n] : 0.0;
    for (int64_t m = 0; m < M; m++) db += (double)dy_MN[m * N + n];
    db_N[n] = (float)db;
  }
}

KERNEL int64_t linear_db_f32_tiles(int64_t M, int64_t N) {
  (void)M;
  return mat_count(N, MAT_PANEL);
}

KERNEL void linear_db_f32(float *db_N, const float *dy_MN, const float *acc_N,
                          const int32_t *accumulate, int64_t M, int64_t N, int64_t tile) {
  const int add = acc_N && (!accumulate || *accumulate);
  for (int64_t n = tile * MAT_PANEL; n < mat_least((tile + 1) * MAT_PANEL, N); n += VL) {
    const vm valid = vm_first(N - n);
    vd low = vd_zero(), high = vd_zero(); /* a plain float sum would drift over thousands of rows */
    for (int64_t m = 0; m < M; m++) {
      const vf dy = vf_load_m(dy_MN + m * N + n, valid);
      low += vf_low(dy), high += vf_high(dy);
    }
    vf db = vf_join(low, high);
    if (add) db = vf_add(vf_load_m(acc_N + n, valid), db);
    vf_store_m(db_N + n, db, valid);
  }
}

/* pack_linear: panels[j][k][q] = w[32j+q][k], zero beyond the last row. */
KERNEL void pack_linear_naive(float *panels_JKQ, const float *w_NK, int64_t N, int64_t K, int64_t J,
                              int64_t Q) {
  for (int64_t j = 0; j < J; j++)
    for (int64_t k = 0; k < K; k++)
      for (int64_t q = 0; q < Q; q++)
        panels_JKQ[(j * K + k) * Q + q] = j * Q + q < N ? w_NK[(j * Q + q) * K + k] : 0.0f;
}

KERNEL int64_t pack_linear_f32_tiles(int64_t N, int64_t K, int64_t J, int64_t Q) {
  (void)N, (void)K, (void)Q;
  return J;
}

KERNEL void pack_linear_f32(float *panels_JKQ, const float *w_NK, int64_t N, int64_t K, int64_t J,
                            int64_t Q, int64_t tile) {
  (void)J;
  mat_transpose(panels_JKQ + tile * K * Q, w_NK + tile * Q * K, K, mat_least(N - tile * Q, Q), K);
}

/* pack_linear_dx: panels[j][n][q] = w[n][32j+q], zero beyond the last column. */
KERNEL void pack_linear_dx_naive(float *panels_JNQ, const float *w_NK, int64_t N, int64_t K,
                                 int64_t J, int64_t Q) {
  for (int64_t j = 0; j < J; j++)
    for (int64_t n = 0; n < N; n++)
      for (int64_t q = 0; q < Q; q++)
        panels_JNQ[(j * N + n) * Q + q] = j * Q + q < K ? w_NK[n * K + j * Q + q] : 0.0f;
}

KERNEL int64_t pack_linear_dx_f32_tiles(int64_t N, int64_t K, int64_t J, int64_t Q) {
  (void)N, (void)K, (void)Q;
  return J;
}

KERNEL void pack_linear_dx_f32(float *panels_JNQ, const float *w_NK, int64_t N, int64_t K,
                               int64_t J, int64_t Q, int64_t tile) {
  (void)J;
  mat_copy(panels_JNQ + tile * N * Q, w_NK + tile * Q, K, mat_least(K - tile * Q, Q), N);
}

/* linear_packed: linear on packed weights. */
KERNEL void linear_packed_naive(float *y_MN, const float *x_MK, const float *panels_JKQ,
                                const float *b_N, const float *add_MN, int64_t M, int64_t K,
                                int64_t J, int64_t Q, int64_t N, int64_t n) {
  (void)J, (void)n;
  for (int64_t i = 0; i < M * N; i++) {
    const int64_t m = i / N, c = i % N;
    double y = b_N ? (double)b_N[c] : 0.0;
    for (int64_t k = 0; k < K; k++)
      y += (double)x_MK[m * K + k] * (double)panels_JKQ[(c / Q * K + k) * Q + c % Q];
    y_MN[i] = (float)(add_MN ? y + (double)add_MN[i] : y);
  }
}

KERNEL void linear_packed_f32(float *y_MN, const float *x_MK, const float *panels_JKQ,
                              const float *b_N, const float *add_MN, int64_t M, int64_t K,
                              int64_t J, int64_t Q, int64_t N, int64_t n, int64_t row_begin,
                              int64_t row_end) {
  (void)M, (void)J, (void)n;
  const mat_block t = {.c = y_MN + row_begin * N, .c_row = N, .bias = b_N,
                       .add = add_MN ? add_MN + row_begin * N : NULL, .a = x_MK + row_begin * K,
                       .a_row = K, .b = panels_JKQ, .b_panel = K * Q};
  mat_rows(t, row_end - row_begin, N, K);
}

/* linear_dx_packed: linear_dx on packed weights. */
KERNEL void linear_dx_packed_naive(float *dx_MK, const float *dy_MN, const float *panels_JNQ,
                                   const float *add_MK, int64_t M, int64_t N, int64_t J, int64_t Q,
                                   int64_t K, int64_t k) {
  (void)J, (void)k;
  for (int64_t i = 0; i < M * K; i++) {
    const int64_t m = i / K, c = i % K;
    double dx = add_MK ? (double)add_MK[i] : 0.0;
    for (int64_t n = 0; n < N; n++)
      dx += (double)dy_MN[m * N + n] * (double)panels_JNQ[(c / Q * N + n) * Q + c % Q];
    dx_MK[i] = (float)dx;
  }
}

KERNEL void linear_dx_packed_f32(float *dx_MK, const float *dy_MN, const float *panels_JNQ,
                                 const float *add_MK, int64_t M, int64_t N, int64_t J, int64_t Q,
                                 int64_t K, int64_t k, int64_t row_begin, int64_t row_end) {
  (void)M, (void)J, (void)k;
  const mat_block t = {.c = dx_MK + row_begin * K, .c_row = K,
                       .add = add_MK ? add_MK + row_begin * K : NULL, .a = dy_MN + row_begin * N,
                       .a_row = N, .b = panels_JNQ, .b_panel = N * Q};
  mat_rows(t, row_end - row_begin, K, N);
}
