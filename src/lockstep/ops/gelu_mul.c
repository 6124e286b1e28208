/* gelu_mul: h = gelu(gate) * up, gelu(x) = 0.5 x (1 + tanh u), u = sqrt(2/pi) (x + 0.044715 x^3).
 * The fast kernels use 0.5 (1 + tanh u) = sigmoid(2u): one exponential, and exact where tanh is
 * near -1. */
#include "vec_math.h"

#define GELU_ROOT 0.7978845608028654 /* sqrt(2/pi) */
#define GELU_CUBE 0.044715

KERNEL void gelu_mul_naive(float *h_MF, const float *gate_MF, const float *up_MF, int64_t M,
                           int64_t F) {
  for (int64_t i = 0; i < M * F; i++) {
    double x = gate_MF[i], u = GELU_ROOT * (x + GELU_CUBE * x * x * x);
    h_MF[i] = (float)(0.5 * x * (1.0 + tanh(u)) * up_MF[i]);
  }
}

/* e^-2u */
INLINE vf gelu_exp(vf x) {
  vf cubic = vf_fma(x * x, vf_set((float)GELU_CUBE), vf_set(1.0f));
  return vf_exp(x * vf_set((float)(-2.0 * GELU_ROOT)) * cubic);
}

INLINE vf gelu_sigmoid(vf x) { return vf_set(1.0f) / (vf_set(1.0f) + gelu_exp(x)); }

KERNEL void gelu_mul_f32(float *h_MF, const float *gate_MF, const float *up_MF, int64_t M,
                         int64_t F, int64_t row_begin, int64_t row_end) {
  (void)M;
  int64_t i = row_begin * F, end = row_end * F;
  for (; i + VL <= end; i += VL) {
    vf gate = vf_load(gate_MF + i);
    vf_store(h_MF + i, gate * gelu_sigmoid(gate) * vf_load(up_MF + i));
  }
  int64_t n = end - i;
  if (n) {
    vf gate = vf_load_n(gate_MF + i, n);
    vf_store_n(h_MF + i, gate * gelu_sigmoid(gate) * vf_load_n(up_MF + i, n), n);
  }
}

/* gelu_mul_grad: dup = dh * gelu(gate), dgate = dh * up * gelu'(gate). */
KERNEL void gelu_mul_grad_naive(float *dgate_MF, float *dup_MF, const float *dh_MF,
                                const float *gate_MF, const float *up_MF, int64_t M, int64_t F) {
  for (int64_t i = 0; i < M * F; i++) {
    double x = gate_MF[i], t = tanh(GELU_ROOT * (x + GELU_CUBE * x * x * x));
    double du = GELU_ROOT * (1.0 + 3.0 * GELU_CUBE * x * x);
    double slope = 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * du;
    dgate_MF[i] = (float)(dh_MF[i] * (double)up_MF[i] * slope);
    dup_MF[i] = (float)(dh_MF[i] * 0.5 * x * (1.0 + t));
  }
}

INLINE void gelu_mul_grad_lanes(vf *dgate, vf *dup, vf dh, vf gate, vf up) {
  const vf one = vf_set(1.0f);
  vf e = gelu_exp(gate), s = one / (one + e);
  /* 1 - s without cancellation; where e is infinite, s = 0 makes it irrelevant. */
  vf rest = vf_min(vf_set(3.4e38f), e) * s;
  vf du =
      vf_fma(gate * gate, vf_set((float)(3.0 * GELU_CUBE)), one) * vf_set((float)(2.0 * GELU_ROOT));
  *dgate = dh * up * s * vf_fma(gate * rest, du, one);
  *dup = dh * gate * s;
}

KERNEL void gelu_mul_grad_f32(float *dgate_MF, float *dup_MF, const float *dh_MF,
                              const float *gate_MF, const float *up_MF, int64_t M, int64_t F,
                              int64_t row_begin, int64_t row_end) {
  (void)M;
  int64_t i = row_begin * F, end = row_end * F;
  vf dgate, dup;
  for (; i + VL <= end; i += VL) {
    gelu_mul_grad_lanes(&dgate, &dup, vf_load(dh_MF + i), vf_load(gate_MF + i), vf_load(up_MF + i));
    vf_store(dgate_MF + i, dgate);
    vf_store(dup_MF + i, dup);
  }
  int64_t n = end - i;
  if (n) {
    gelu_mul_grad_lanes(&dgate, &dup, vf_load_n(dh_MF + i, n), vf_load_n(gate_MF + i, n),
                        vf_load_n(up_MF + i, n));
    vf_store_n(dgate_MF + i, dgate, n);
    vf_store_n(dup_MF + i, dup, n);
  }
}
