/* embed_<format>: rows of a table out of its panels, as the file's format defines the numbers. */
#include "panels.h"

INLINE void embed_rows(const int f, float *x_MD, const int32_t *ids_M, const uint8_t *panels_P,
                       int64_t D, int64_t row, int64_t end) {
  const int64_t n_blocks = D / PANEL_BLOCK;
  for (; row < end; row++) {
    const uint8_t *panel = panels_P + ids_M[row] / PANEL_COLUMNS * panel_bytes(f, n_blocks);
    for (int64_t i = 0; i < n_blocks; i++)
      panel_weights(f, x_MD + row * D + i * PANEL_BLOCK, panel, i, ids_M[row] % PANEL_COLUMNS);
  }
}

/* A number of a float panel, by the bytes that it takes; of two bytes it is a half or a bfloat16. */
INLINE float embed_float(const uint8_t *at, const int n_bytes, const int is_half) {
  uint32_t bits = 0;
  uint16_t half;
  float x;
  memcpy(&half, at, sizeof half);
  if (is_half) return half_to_float(half);
  if (n_bytes == 4)
    memcpy(&bits, at, sizeof bits);
  else
    bits = (uint32_t)half << 16;
  memcpy(&x, &bits, sizeof x);
  return x;
}
INLINE void embed_floats(const int n_bytes, const int is_half, float *x_MD, const int32_t *ids_M,
                         const uint8_t *panels_P, int64_t D, int64_t row, int64_t end) {
  for (; row < end; row++) {
    const int64_t first =
        ids_M[row] / PANEL_COLUMNS * D * PANEL_COLUMNS + ids_M[row] % PANEL_COLUMNS;
    for (int64_t d = 0; d < D; d++)
      x_MD[row * D + d] =
          embed_float(panels_P + (first + d * PANEL_COLUMNS) * n_bytes, n_bytes, is_half);
  }
}

#define EMBED_GIVEN \
  float *x_MD, const int32_t *ids_M, const uint8_t *panels_P, int64_t M, int64_t P, int64_t D, \
      int64_t n, int64_t k
#define EMBED_UNUSED (void)M, (void)P, (void)n, (void)k

KERNEL void embed_q8_0_naive(EMBED_GIVEN) {
  EMBED_UNUSED;
  embed_rows(Q8_0, x_MD, ids_M, panels_P, D, 0, M);
}
KERNEL void embed_q8_0_rows(EMBED_GIVEN, int64_t row_begin, int64_t row_end) {
  EMBED_UNUSED;
  embed_rows(Q8_0, x_MD, ids_M, panels_P, D, row_begin, row_end);
}

KERNEL void embed_q4_0_naive(EMBED_GIVEN) {
  EMBED_UNUSED;
  embed_rows(Q4_0, x_MD, ids_M, panels_P, D, 0, M);
}
KERNEL void embed_q4_0_rows(EMBED_GIVEN, int64_t row_begin, int64_t row_end) {
  EMBED_UNUSED;
  embed_rows(Q4_0, x_MD, ids_M, panels_P, D, row_begin, row_end);
}

KERNEL void embed_q4_1_naive(EMBED_GIVEN) {
  EMBED_UNUSED;
  embed_rows(Q4_1, x_MD, ids_M, panels_P, D, 0, M);
}
KERNEL void embed_q4_1_rows(EMBED_GIVEN, int64_t row_begin, int64_t row_end) {
  EMBED_UNUSED;
  embed_rows(Q4_1, x_MD, ids_M, panels_P, D, row_begin, row_end);
}

KERNEL void embed_q5_0_naive(EMBED_GIVEN) {
  EMBED_UNUSED;
  embed_rows(Q5_0, x_MD, ids_M, panels_P, D, 0, M);
}
KERNEL void embed_q5_0_rows(EMBED_GIVEN, int64_t row_begin, int64_t row_end) {
  EMBED_UNUSED;
  embed_rows(Q5_0, x_MD, ids_M, panels_P, D, row_begin, row_end);
}

KERNEL void embed_q5_1_naive(EMBED_GIVEN) {
  EMBED_UNUSED;
  embed_rows(Q5_1, x_MD, ids_M, panels_P, D, 0, M);
}
KERNEL void embed_q5_1_rows(EMBED_GIVEN, int64_t row_begin, int64_t row_end) {
  EMBED_UNUSED;
  embed_rows(Q5_1, x_MD, ids_M, panels_P, D, row_begin, row_end);
}

KERNEL void embed_mxfp4_naive(EMBED_GIVEN) {
  EMBED_UNUSED;
  embed_rows(MXFP4, x_MD, ids_M, panels_P, D, 0, M);
}
KERNEL void embed_mxfp4_rows(EMBED_GIVEN, int64_t row_begin, int64_t row_end) {
  EMBED_UNUSED;
  embed_rows(MXFP4, x_MD, ids_M, panels_P, D, row_begin, row_end);
}

KERNEL void embed_q2_k_naive(EMBED_GIVEN) {
  EMBED_UNUSED;
  embed_rows(Q2_K, x_MD, ids_M, panels_P, D, 0, M);
}
KERNEL void embed_q2_k_rows(EMBED_GIVEN, int64_t row_begin, int64_t row_end) {
  EMBED_UNUSED;
  embed_rows(Q2_K, x_MD, ids_M, panels_P, D, row_begin, row_end);
}

KERNEL void embed_q3_k_naive(EMBED_GIVEN) {
  EMBED_UNUSED;
  embed_rows(Q3_K, x_MD, ids_M, panels_P, D, 0, M);
}
KERNEL void embed_q3_k_rows(EMBED_GIVEN, int64_t row_begin, int64_t row_end) {
  EMBED_UNUSED;
  embed_rows(Q3_K, x_MD, ids_M, panels_P, D, row_begin, row_end);
}

KERNEL void embed_q4_k_naive(EMBED_GIVEN) {
  EMBED_UNUSED;
  embed_rows(Q4_K, x_MD, ids_M, panels_P, D, 0, M);
}
KERNEL void embed_q4_k_rows(EMBED_GIVEN, int64_t row_begin, int64_t row_end) {
  EMBED_UNUSED;
  embed_rows(Q4_K, x_MD, ids_M, panels_P, D, row_begin, row_end);
}

KERNEL void embed_q5_k_naive(EMBED_GIVEN) {
  EMBED_UNUSED;
  embed_rows(Q5_K, x_MD, ids_M, panels_P, D, 0, M);
}
KERNEL void embed_q5_k_rows(EMBED_GIVEN, int64_t row_begin, int64_t row_end) {
  EMBED_UNUSED;
  embed_rows(Q5_K, x_MD, ids_M, panels_P, D, row_begin, row_end);
}

KERNEL void embed_q6_k_naive(EMBED_GIVEN) {
  EMBED_UNUSED;
  embed_rows(Q6_K, x_MD, ids_M, panels_P, D, 0, M);
}
KERNEL void embed_q6_k_rows(EMBED_GIVEN, int64_t row_begin, int64_t row_end) {
  EMBED_UNUSED;
  embed_rows(Q6_K, x_MD, ids_M, panels_P, D, row_begin, row_end);
}

KERNEL void embed_f32_naive(EMBED_GIVEN) {
  EMBED_UNUSED;
  embed_floats(4, 0, x_MD, ids_M, panels_P, D, 0, M);
}
KERNEL void embed_f32_rows(EMBED_GIVEN, int64_t row_begin, int64_t row_end) {
  EMBED_UNUSED;
  embed_floats(4, 0, x_MD, ids_M, panels_P, D, row_begin, row_end);
}

KERNEL void embed_f16_naive(EMBED_GIVEN) {
  EMBED_UNUSED;
  embed_floats(2, 1, x_MD, ids_M, panels_P, D, 0, M);
}
KERNEL void embed_f16_rows(EMBED_GIVEN, int64_t row_begin, int64_t row_end) {
  EMBED_UNUSED;
  embed_floats(2, 1, x_MD, ids_M, panels_P, D, row_begin, row_end);
}

KERNEL void embed_bf16_naive(EMBED_GIVEN) {
  EMBED_UNUSED;
  embed_floats(2, 0, x_MD, ids_M, panels_P, D, 0, M);
}
KERNEL void embed_bf16_rows(EMBED_GIVEN, int64_t row_begin, int64_t row_end) {
  EMBED_UNUSED;
  embed_floats(2, 0, x_MD, ids_M, panels_P, D, row_begin, row_end);
}
