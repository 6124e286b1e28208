/* embedding: x[m] = table[ids[m]]. */
#include "vec.h"

KERNEL void embedding_naive(float *x_MD, const int32_t *ids_M, const float *table_VD, int64_t M,
                            int64_t V, int64_t D) {
  (void)V;
  for (int64_t m = 0; m < M; m++)
    for (int64_t d = 0; d < D; d++) x_MD[m * D + d] = table_VD[ids_M[m] * D + d];
}

KERNEL void embedding_f32(float *x_MD, const int32_t *ids_M, const float *table_VD, int64_t M,
                          int64_t V, int64_t D, int64_t row_begin, int64_t row_end) {
  (void)M, (void)V;
  for (int64_t m = row_begin; m < row_end; m++)
    memcpy(x_MD + m * D, table_VD + ids_M[m] * D, (size_t)D * sizeof(float));
}

/* embedding_dw: dtable[v] = acc[v] + sum of dx[m] over the rows m with ids[m] = v. */
KERNEL void embedding_dw_naive(float *dtable_VD, const int32_t *ids_M, const float *dx_MD,
                               const float *acc_VD, const int32_t *accumulate, int64_t M, int64_t D,
                               int64_t V, int64_t vocab) {
  (void)vocab; /* the type rule needs it where there is no acc; it is V */
  int add = acc_VD && (!accumulate || *accumulate);
  for (int64_t v = 0; v < V; v++)
    for (int64_t d = 0; d < D; d++) {
      double sum = add ? acc_VD[v * D + d] : 0.0;
      for (int64_t m = 0; m < M; m++)
        if (ids_M[m] == v) sum += dx_MD[m * D + d];
      dtable_VD[v * D + d] = (float)sum;
    }
}

#define EMBEDDING_TILE 32 /* columns: two cache lines of every row */

KERNEL int64_t embedding_dw_f32_tiles(int64_t M, int64_t D, int64_t V, int64_t vocab) {
  (void)M, (void)V, (void)vocab;
  return (D + EMBEDDING_TILE - 1) / EMBEDDING_TILE;
}

KERNEL void embedding_dw_f32(float *dtable_VD, const int32_t *ids_M, const float *dx_MD,
                             const float *acc_VD, const int32_t *accumulate, int64_t M, int64_t D,
                             int64_t V, int64_t vocab, int64_t tile) {
  (void)vocab;
  int64_t begin = tile * EMBEDDING_TILE;
  int64_t n = D - begin < EMBEDDING_TILE ? D - begin : EMBEDDING_TILE;
  float *out = dtable_VD + begin;
  if (!acc_VD || (accumulate && !*accumulate))
    for (int64_t v = 0; v < V; v++) memset(out + v * D, 0, (size_t)n * sizeof(float));
  else if (acc_VD != dtable_VD)
    for (int64_t v = 0; v < V; v++)
      memcpy(out + v * D, acc_VD + begin + v * D, (size_t)n * sizeof(float));
  for (int64_t m = 0; m < M; m++) {
    float *sum = out + ids_M[m] * D;
    const float *dx = dx_MD + m * D + begin;
    int64_t d = 0;
    for (; d + VL <= n; d += VL) vf_store(sum + d, vf_load(sum + d) + vf_load(dx + d));
    if (d < n) vf_store_n(sum + d, vf_load_n(sum + d, n - d) + vf_load_n(dx + d, n - d), n - d);
  }
}
