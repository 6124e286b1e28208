/* cache_write: cache[start + m] = x[m]; the cache is a state, its other rows stay as they are. */
#include "vec.h"

KERNEL void cache_write_naive(float *cache_out_CO, const float *x_MO, const float *cache_CO,
                              const int32_t *start, int64_t M, int64_t O, int64_t C) {
  (void)cache_CO, (void)C;
  for (int64_t m = 0; m < M; m++)
    for (int64_t i = 0; i < O; i++) cache_out_CO[(*start + m) * O + i] = x_MO[m * O + i];
}

KERNEL void cache_write_f32(float *cache_out_CO, const float *x_MO, const float *cache_CO,
                            const int32_t *start, int64_t M, int64_t O, int64_t C,
                            int64_t row_begin, int64_t row_end) {
  (void)M, (void)C, (void)cache_CO;
  memcpy(cache_out_CO + (*start + row_begin) * O, x_MO + row_begin * O,
         (size_t)((row_end - row_begin) * O) * sizeof(float));
}

/* take_row: the row of x with this index. */
KERNEL void take_row_naive(float *y_BD, const float *x_MD, const int32_t *index, int64_t M,
                           int64_t D, int64_t B) {
  (void)M, (void)B;
  for (int64_t d = 0; d < D; d++) y_BD[d] = x_MD[*index * D + d];
}

KERNEL int64_t take_row_f32_tiles(int64_t M, int64_t D, int64_t B) {
  (void)M, (void)D, (void)B;
  return 1;
}

KERNEL void take_row_f32(float *y_BD, const float *x_MD, const int32_t *index, int64_t M, int64_t D,
                         int64_t B, int64_t tile) {
  (void)M, (void)B, (void)tile;
  memcpy(y_BD, x_MD + *index * D, (size_t)D * sizeof(float));
}
