/* split_heads: a row of heads of 2E becomes two rows of heads of E: first halves and second. */
#include "vec.h"

KERNEL void split_heads_naive(float *a_MN, float *b_MN, const float *x_MK, int64_t M, int64_t K,
                              int64_t N, int64_t heads) {
  int64_t E = N / heads;
  for (int64_t m = 0; m < M; m++)
    for (int64_t h = 0; h < heads; h++)
      for (int64_t e = 0; e < E; e++) {
        a_MN[m * N + h * E + e] = x_MK[m * K + h * 2 * E + e];
        b_MN[m * N + h * E + e] = x_MK[m * K + h * 2 * E + E + e];
      }
}

KERNEL void split_heads_f32(float *a_MN, float *b_MN, const float *x_MK, int64_t M, int64_t K,
                            int64_t N, int64_t heads, int64_t row_begin, int64_t row_end) {
  (void)M, (void)K;
  int64_t E = N / heads;
  size_t n_bytes = (size_t)E * sizeof(float);
  for (int64_t i = row_begin * heads; i < row_end * heads; i++) {
    memcpy(a_MN + i * E, x_MK + i * 2 * E, n_bytes);
    memcpy(b_MN + i * E, x_MK + i * 2 * E + E, n_bytes);
  }
}

/* join_heads: the inverse; an absent second half is 0. */
KERNEL void join_heads_naive(float *x_MK, const float *a_MN, const float *b_MN, int64_t M,
                             int64_t N, int64_t K, int64_t heads) {
  int64_t E = N / heads;
  for (int64_t m = 0; m < M; m++)
    for (int64_t h = 0; h < heads; h++)
      for (int64_t e = 0; e < E; e++) {
        x_MK[m * K + h * 2 * E + e] = a_MN[m * N + h * E + e];
        x_MK[m * K + h * 2 * E + E + e] = b_MN ? b_MN[m * N + h * E + e] : 0.0f;
      }
}

KERNEL void join_heads_f32(float *x_MK, const float *a_MN, const float *b_MN, int64_t M, int64_t N,
                           int64_t K, int64_t heads, int64_t row_begin, int64_t row_end) {
  (void)M, (void)K;
  int64_t E = N / heads;
  size_t n_bytes = (size_t)E * sizeof(float);
  for (int64_t i = row_begin * heads; i < row_end * heads; i++) {
    memcpy(x_MK + i * 2 * E, a_MN + i * E, n_bytes);
    if (b_MN)
      memcpy(x_MK + i * 2 * E + E, b_MN + i * E, n_bytes);
    else
      memset(x_MK + i * 2 * E + E, 0, n_bytes);
  }
}
