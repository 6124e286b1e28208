/* add: y = a + b. */
#include "vec.h"

KERNEL void add_naive(float *y_MD, const float *a_MD, const float *b_MD, int64_t M, int64_t D) {
  for (int64_t i = 0; i < M * D; i++) y_MD[i] = a_MD[i] + b_MD[i];
}

KERNEL void add_f32(float *y_MD, const float *a_MD, const float *b_MD, int64_t M, int64_t D,
                    int64_t row_begin, int64_t row_end) {
  (void)M;
  int64_t i = row_begin * D, end = row_end * D;
  for (; i + VL <= end; i += VL) vf_store(y_MD + i, vf_load(a_MD + i) + vf_load(b_MD + i));
  if (i < end)
    vf_store_n(y_MD + i, vf_load_n(a_MD + i, end - i) + vf_load_n(b_MD + i, end - i), end - i);
}
