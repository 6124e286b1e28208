/* scale: y = x * by. */
#include "vec.h"

KERNEL void scale_naive(float *y_MD, const float *x_MD, int64_t M, int64_t D, double by) {
  for (int64_t i = 0; i < M * D; i++) y_MD[i] = x_MD[i] * (float)by;
}

KERNEL void scale_f32(float *y_MD, const float *x_MD, int64_t M, int64_t D, double by,
                      int64_t row_begin, int64_t row_end) {
  (void)M;
  const vf factor = vf_set((float)by);
  int64_t i = row_begin * D, end = row_end * D;
  for (; i + VL <= end; i += VL) vf_store(y_MD + i, vf_load(x_MD + i) * factor);
  if (i < end) vf_store_n(y_MD + i, vf_load_n(x_MD + i, end - i) * factor, end - i);
}
