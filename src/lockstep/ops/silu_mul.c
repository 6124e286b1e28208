/* silu_mul: h = silu(gate) * up, silu(x) = x / (1 + e^-x). */
#include "vec_math.h"

KERNEL void silu_mul_naive(float *h_MF, const float *gate_MF, const float *up_MF, int64_t M,
                           int64_t F) {
  for (int64_t i = 0; i < M * F; i++)
    h_MF[i] = (float)(gate_MF[i] / (1.0 + exp(-(double)gate_MF[i])) * up_MF[i]);
}

INLINE vf silu_mul_lanes(vf gate, vf up) { return gate / (vf_set(1.0f) + vf_exp(-gate)) * up; }

KERNEL void silu_mul_f32(float *h_MF, const float *gate_MF, const float *up_MF, int64_t M,
                         int64_t F, int64_t row_begin, int64_t row_end) {
  (void)M;
  int64_t i = row_begin * F, end = row_end * F;
  for (; i + VL <= end; i += VL)
    vf_store(h_MF + i, silu_mul_lanes(vf_load(gate_MF + i), vf_load(up_MF + i)));
  int64_t n = end - i;
  if (n)
    vf_store_n(h_MF + i, silu_mul_lanes(vf_load_n(gate_MF + i, n), vf_load_n(up_MF + i, n)), n);
}

/* silu_mul_grad: dup = dh * silu(gate), dgate = dh * up * s * (1 + gate * (1 - s)) with
 * s = sigmoid(gate). */
KERNEL void silu_mul_grad_naive(float *dgate_MF, float *dup_MF, const float *dh_MF,
                                const float *gate_MF, const float *up_MF, int64_t M, int64_t F) {
  for (int64_t i = 0; i < M * F; i++) {
    double gate = gate_MF[i], up = up_MF[i], dh = dh_MF[i], s = 1.0 / (1.0 + exp(-gate));
    dgate_MF[i] = (float)(dh * up * s * (1.0 + gate * (1.0 - s)));
    dup_MF[i] = (float)(dh * gate * s);
  }
}

INLINE void silu_mul_grad_lanes(vf *dgate, vf *dup, vf dh, vf gate, vf up) {
  const vf one = vf_set(1.0f);
  vf s = vf_sigmoid(gate);
  *dgate = dh * up * s * vf_fma(gate, one - s, one);
  *dup = dh * gate * s;
}

KERNEL void silu_mul_grad_f32(float *dgate_MF, float *dup_MF, const float *dh_MF,
                              const float *gate_MF, const float *up_MF, int64_t M, int64_t F,
                              int64_t row_begin, int64_t row_end) {
  (void)M;
  int64_t i = row_begin * F, end = row_end * F;
  vf dgate, dup;
  for (; i + VL <= end; i += VL) {
    silu_mul_grad_lanes(&dgate, &dup, vf_load(dh_MF + i), vf_load(gate_MF + i), vf_load(up_MF + i));
    vf_store(dgate_MF + i, dgate);
    vf_store(dup_MF + i, dup);
  }
  int64_t n = end - i;
  if (n) {
    silu_mul_grad_lanes(&dgate, &dup, vf_load_n(dh_MF + i, n), vf_load_n(gate_MF + i, n),
                        vf_load_n(up_MF + i, n));
    vf_store_n(dgate_MF + i, dgate, n);
    vf_store_n(dup_MF + i, dup, n);
  }
}
