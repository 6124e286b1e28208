/* linear: y = x w^T + b + add, its gradients, and weights packed for both directions. */
#include "mat.h"

/* Tiles of linear_dw. Operands with short rows are read where they are, in tiles small enough for
 * several threads to share; else both are copied in runs as long as the level-2 cache allows. */
enum {
  DW_NEAR = 256,
  DW_NEAR_DY = 384, /* dy is read by the line, x by the panel */
  DW_NEAR_ROWS = 96,
  DW_NEAR_COLS = 4 * MAT_PANEL,
  DW_FAR_ROWS = 192,
  DW_FAR_COLS = 12 * MAT_PANEL,
  DW_SKEWED = DW_FAR_ROWS + 16, /* spreads over the cache sets */
};

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
  const mat_block t = {.c = y_MN + at,
                       .c_row = N,
                       .bias = b_N ? b_N + col : NULL,
                       .add = add_MN ? add_MN + at : NULL,
                       .a = x_MK + row * K,
                       .a_row = K};
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
  return mat_count(M, mat_part(M, MAT_TILE_ROWS, MAT_ROWS)) * mat_count(N, MAT_TILE_COLS);
}

KERNEL void linear_large_f32(float *y_MN, const float *x_MK, const float *w_NK, const float *b_N,
                             const float *add_MN, int64_t M, int64_t K, int64_t N, int64_t tile) {
  const int64_t across = mat_count(N, MAT_TILE_COLS);
  const int64_t part = mat_part(M, MAT_TILE_ROWS, MAT_ROWS);
  const int64_t row = tile / across * part, col = tile % across * MAT_TILE_COLS;
  linear_part(y_MN, x_MK, w_NK, b_N, add_MN, K, N, row, mat_least(M - row, part), col,
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

INLINE void linear_dx_part(float *dx_MK, const float *dy_MN, const float *w_NK, const float *add_MK,
                           int64_t N, int64_t K, int64_t row, int64_t n_rows, int64_t col,
                           int64_t n_cols) {
  const int64_t at = row * K + col;
  const mat_block t = {.c = dx_MK + at,
                       .c_row = K,
                       .add = add_MK ? add_MK + at : NULL,
                       .a = dy_MN + row * N,
                       .a_row = N};
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
  return mat_count(M, mat_part(M, MAT_TILE_ROWS, MAT_ROWS)) * mat_count(K, MAT_TILE_COLS);
}

KERNEL void linear_dx_large_f32(float *dx_MK, const float *dy_MN, const float *w_NK,
                                const float *add_MK, int64_t M, int64_t N, int64_t K,
                                int64_t tile) {
  const int64_t across = mat_count(K, MAT_TILE_COLS);
  const int64_t part = mat_part(M, MAT_TILE_ROWS, MAT_ROWS);
  const int64_t row = tile / across * part, col = tile % across * MAT_TILE_COLS;
  linear_dx_part(dx_MK, dy_MN, w_NK, add_MK, N, K, row, mat_least(M - row, part), col,
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

/* rows[m*208 + r] = dy[m*N + r]. */
KERNEL void dw_copy(float *rows, const float *dy, int64_t N, int64_t n_rows, int64_t terms) {
  const vm rest = vm_first(n_rows % VL);
  for (int64_t m = 0; m < terms; m++, rows += DW_SKEWED, dy += N) {
    int64_t r = 0;
    for (; r + VL <= n_rows; r += VL) vf_store(rows + r, vf_load(dy + r));
    if (r < n_rows) vf_store(rows + r, vf_load_m(dy + r, rest));
  }
}

INLINE int64_t linear_dw_rows(int64_t N, int64_t K) {
  return mat_part(N, N <= DW_NEAR && K <= DW_NEAR ? DW_NEAR_ROWS : DW_FAR_ROWS, MAT_ROWS);
}
INLINE int64_t linear_dw_cols(int64_t K) {
  return mat_part(K, K <= DW_NEAR ? DW_NEAR_COLS : DW_FAR_COLS, MAT_PANEL);
}

KERNEL int64_t linear_dw_f32_tiles(int64_t M, int64_t N, int64_t K) {
  (void)M;
  return mat_count(N, linear_dw_rows(N, K)) * mat_count(K, linear_dw_cols(K));
}

KERNEL void linear_dw_f32(float *dw_NK, const float *dy_MN, const float *x_MK, const float *acc_NK,
                          const int32_t *accumulate, int64_t M, int64_t N, int64_t K,
                          int64_t tile) {
  float rows[DW_SKEWED * MAT_BLOCK], panels[DW_FAR_COLS * MAT_BLOCK];
  const int64_t across = mat_count(K, linear_dw_cols(K));
  const int64_t n = tile / across * linear_dw_rows(N, K), k = tile % across * linear_dw_cols(K);
  const int64_t n_rows = mat_least(N - n, linear_dw_rows(N, K));
  const int64_t n_cols = mat_least(K - k, linear_dw_cols(K));
  const int near_dy = N <= DW_NEAR_DY, near_x = K <= DW_NEAR && K % MAT_PANEL == 0;
  float *const c = dw_NK + n * K + k;
  mat_block t = {.c = c,
                 .c_row = K,
                 .a = rows,
                 .a_row = 1,
                 .a_term = DW_SKEWED,
                 .b = panels,
                 .b_term = MAT_PANEL,
                 .b_panel = MAT_PANEL * MAT_BLOCK};
  if (near_dy) t.a_term = N;
  if (near_x) t.b_panel = MAT_PANEL, t.b_term = K;
  if (acc_NK && (!accumulate || *accumulate)) t.add = acc_NK + n * K + k;
  for (int64_t m = 0; m < M; m += MAT_BLOCK) {
    const float *dy = dy_MN + m * N + n, *x = x_MK + m * K + k;
    t.terms = mat_least(M - m, MAT_BLOCK);
    if (near_dy)
      t.a = dy;
    else
      dw_copy(rows, dy, N, n_rows, t.terms);
    if (near_x)
      t.b = x;
    else
      mat_copy(panels, x, K, n_cols, t.terms, MAT_BLOCK);
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

/* Panels in one tile of packing: small weights are one tile, for a tile has a price of its own. */
INLINE int64_t pack_step(int64_t rows) { return rows < 512 ? 512 / rows : 1; }

KERNEL int64_t pack_linear_f32_tiles(int64_t N, int64_t K, int64_t J, int64_t Q) {
  (void)N, (void)Q;
  return (J + pack_step(K) - 1) / pack_step(K);
}

KERNEL void pack_linear_f32(float *panels_JKQ, const float *w_NK, int64_t N, int64_t K, int64_t J,
                            int64_t Q, int64_t tile) {
  const int64_t end = mat_least((tile + 1) * pack_step(K), J);
  for (int64_t j = tile * pack_step(K); j < end; j++)
    mat_transpose(panels_JKQ + j * K * Q, w_NK + j * Q * K, K, mat_least(N - j * Q, Q), K);
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
  (void)K, (void)Q;
  return (J + pack_step(N) - 1) / pack_step(N);
}

KERNEL void pack_linear_dx_f32(float *panels_JNQ, const float *w_NK, int64_t N, int64_t K,
                               int64_t J, int64_t Q, int64_t tile) {
  const int64_t end = mat_least((tile + 1) * pack_step(N), J);
  for (int64_t j = tile * pack_step(N); j < end; j++)
    mat_copy(panels_JNQ + j * N * Q, w_NK + j * Q, K, mat_least(K - j * Q, Q), N, N);
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
  const mat_block t = {.c = y_MN + row_begin * N,
                       .c_row = N,
                       .bias = b_N,
                       .add = add_MN ? add_MN + row_begin * N : NULL,
                       .a = x_MK + row_begin * K,
                       .a_row = K,
                       .b = panels_JKQ,
                       .b_panel = K * Q};
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
  const mat_block t = {.c = dx_MK + row_begin * K,
                       .c_row = K,
                       .add = add_MK ? add_MK + row_begin * K : NULL,
                       .a = dy_MN + row_begin * N,
                       .a_row = N,
                       .b = panels_JNQ,
                       .b_panel = N * Q};
  mat_rows(t, row_end - row_begin, K, N);
}
