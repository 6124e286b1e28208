/* sigmoid_mul: h = sigmoid(gate) * up, sigmoid(x) = 1 / (1 + e^-x). */
#include "vec_math.h"

KERNEL void sigmoid_mul_naive(float *h_MF, const float *gate_MF, const float *up_MF, int64_t M,
                              int64_t F) {
  for (int64_t i = 0; i < M * F; i++)
    h_MF[i] = (float)(up_MF[i] / (1.0 + exp(-(double)gate_MF[i])));
}

KERNEL void sigmoid_mul_f32(float *h_MF, const float *gate_MF, const float *up_MF, int64_t M,
                            int64_t F, int64_t row_begin, int64_t row_end) {
  (void)M;
  int64_t i = row_begin * F, end = row_end * F;
  for (; i + VL <= end; i += VL)
    vf_store(h_MF + i, vf_sigmoid(vf_load(gate_MF + i)) * vf_load(up_MF + i));
  int64_t n = end - i;
  if (n) vf_store_n(h_MF + i, vf_sigmoid(vf_load_n(gate_MF + i, n)) * vf_load_n(up_MF + i, n), n);
}

/* sigmoid_mul_grad: dup = dh * s, dgate = dh * up * s * (1 - s) with s = sigmoid(gate). */
KERNEL void sigmoid_mul_grad_naive(float *dgate_MF, float *dup_MF, const float *dh_MF,
                                   const float *gate_MF, const float *up_MF, int64_t M, int64_t F) {
  for (int64_t i = 0; i < M * F; i++) {
    double dh = dh_MF[i], s = 1.0 / (1.0 + exp(-(double)gate_MF[i]));
    dgate_MF[i] = (float)(dh * up_MF[i] * s * (1.0 - s));
    dup_MF[i] = (float)(dh * s);
  }
}

INLINE void sigmoid_mul_grad_lanes(vf *dgate, vf *dup, vf dh, vf gate, vf up) {
  vf s = vf_sigmoid(gate);
  *dgate = dh * up * s * (vf_set(1.0f) - s);
  *dup = dh * s;
}

KERNEL void sigmoid_mul_grad_f32(float *dgate_MF, float *dup_MF, const float *dh_MF,
                                 const float *gate_MF, const float *up_MF, int64_t M, int64_t F,
                                 int64_t row_begin, int64_t row_end) {
  (void)M;
  int64_t i = row_begin * F, end = row_end * F;
  vf dgate, dup;
  for (; i + VL <= end; i += VL) {
    sigmoid_mul_grad_lanes(&dgate, &dup, vf_load(dh_MF + i), vf_load(gate_MF + i),
                           vf_load(up_MF + i));
    vf_store(dgate_MF + i, dgate);
    vf_store(dup_MF + i, dup);
  }
  int64_t n = end - i;
  if (n) {
    sigmoid_mul_grad_lanes(&dgate, &dup, vf_load_n(dh_MF + i, n), vf_load_n(gate_MF + i, n),
                           vf_load_n(up_MF + i, n));
    vf_store_n(dgate_MF + i, dgate, n);
    vf_store_n(dup_MF + i, dup, n);
  }
}
