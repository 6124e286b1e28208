/* silu_mul, gelu_mul, sigmoid_mul: h = act(gate) * up, and the gradients.
 *
 * silu(x) = x sigmoid(x); gelu(x) = 0.5 x (1 + tanh u) with u = sqrt(2/pi) (x + 0.044715 x^3), for
 * which the fast kernels use x sigmoid(2u): one exponential, and exact where tanh is near -1. */
#include "vec_math.h"

#define GELU_ROOT 0.7978845608028654 /* sqrt(2/pi) */
#define GELU_CUBE 0.044715

enum { GATE_SILU, GATE_GELU, GATE_SIGMOID };

INLINE double gate_value(const int act, double x) {
  if (act == GATE_GELU) return 0.5 * x * (1.0 + tanh(GELU_ROOT * (x + GELU_CUBE * x * x * x)));
  return (act == GATE_SILU ? x : 1.0) / (1.0 + exp(-x));
}

INLINE double gate_slope(const int act, double x) {
  const double s = 1.0 / (1.0 + exp(-x));
  if (act == GATE_SIGMOID) return s * (1.0 - s);
  if (act == GATE_SILU) return s * (1.0 + x * (1.0 - s));
  const double t = tanh(GELU_ROOT * (x + GELU_CUBE * x * x * x));
  const double du = GELU_ROOT * (1.0 + 3.0 * GELU_CUBE * x * x);
  return 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * du;
}

INLINE void gate_mul_naive(const int act, float *h, const float *gate, const float *up, int64_t n) {
  for (int64_t i = 0; i < n; i++) h[i] = (float)(gate_value(act, gate[i]) * up[i]);
}

/* dup = dh * act(gate), dgate = dh * up * act'(gate). */
INLINE void gate_mul_grad_naive(const int act, float *dgate, float *dup, const float *dh,
                                const float *gate, const float *up, int64_t n) {
  for (int64_t i = 0; i < n; i++) {
    const double d = dh[i], x = gate[i]; /* read first: results may lie in their place */
    dgate[i] = (float)(d * up[i] * gate_slope(act, x));
    dup[i] = (float)(d * gate_value(act, x));
  }
}

/* e^-2u */
INLINE vf gelu_exp(vf x) {
  vf cubic = vf_fma(x * x, vf_set((float)GELU_CUBE), vf_set(1.0f));
  return vf_exp(x * vf_set((float)(-2.0 * GELU_ROOT)) * cubic);
}

INLINE vf gate_lanes(const int act, vf gate, vf up) {
  const vf one = vf_set(1.0f);
  if (act == GATE_SIGMOID) return vf_sigmoid(gate) * up;
  if (act == GATE_SILU) return gate / (one + vf_exp(-gate)) * up;
  return gate * (one / (one + gelu_exp(gate))) * up;
}

INLINE void gate_grad_lanes(const int act, vf *dgate, vf *dup, vf dh, vf gate, vf up) {
  const vf one = vf_set(1.0f);
  if (act == GATE_GELU) {
    vf e = gelu_exp(gate), s = one / (one + e);
    /* 1 - s without cancellation; where e is infinite, s = 0 makes it irrelevant. */
    vf rest = vf_min(vf_set(3.4e38f), e) * s;
    vf du = vf_fma(gate * gate, vf_set((float)(3.0 * GELU_CUBE)), one) *
            vf_set((float)(2.0 * GELU_ROOT));
    *dgate = dh * up * s * vf_fma(gate * rest, du, one);
    *dup = dh * gate * s;
    return;
  }
  vf s = vf_sigmoid(gate), rest = one - s;
  if (act == GATE_SILU) rest = vf_fma(gate, rest, one);
  *dgate = dh * up * s * rest;
  *dup = act == GATE_SILU ? dh * gate * s : dh * s;
}

INLINE void gate_mul_f32(const int act, float *h, const float *gate, const float *up, int64_t i,
                         int64_t end) {
  for (; i + VL <= end; i += VL)
    vf_store(h + i, gate_lanes(act, vf_load(gate + i), vf_load(up + i)));
  const int64_t n = end - i;
  if (n) vf_store_n(h + i, gate_lanes(act, vf_load_n(gate + i, n), vf_load_n(up + i, n)), n);
}

INLINE void gate_mul_grad_f32(const int act, float *dgate, float *dup, const float *dh,
                              const float *gate, const float *up, int64_t i, int64_t end) {
  vf a, b;
  for (; i + VL <= end; i += VL) {
    gate_grad_lanes(act, &a, &b, vf_load(dh + i), vf_load(gate + i), vf_load(up + i));
    vf_store(dgate + i, a);
    vf_store(dup + i, b);
  }
  const int64_t n = end - i;
  if (n) {
    gate_grad_lanes(act, &a, &b, vf_load_n(dh + i, n), vf_load_n(gate + i, n),
                    vf_load_n(up + i, n));
    vf_store_n(dgate + i, a, n);
    vf_store_n(dup + i, b, n);
  }
}

KERNEL void silu_mul_naive(float *h_MF, const float *gate_MF, const float *up_MF, int64_t M,
                           int64_t F) {
  gate_mul_naive(GATE_SILU, h_MF, gate_MF, up_MF, M * F);
}
KERNEL void silu_mul_f32(float *h_MF, const float *gate_MF, const float *up_MF, int64_t M,
                         int64_t F, int64_t row_begin, int64_t row_end) {
  (void)M;
  gate_mul_f32(GATE_SILU, h_MF, gate_MF, up_MF, row_begin * F, row_end * F);
}
KERNEL void silu_mul_grad_naive(float *dgate_MF, float *dup_MF, const float *dh_MF,
                                const float *gate_MF, const float *up_MF, int64_t M, int64_t F) {
  gate_mul_grad_naive(GATE_SILU, dgate_MF, dup_MF, dh_MF, gate_MF, up_MF, M * F);
}
KERNEL void silu_mul_grad_f32(float *dgate_MF, float *dup_MF, const float *dh_MF,
                              const float *gate_MF, const float *up_MF, int64_t M, int64_t F,
                              int64_t row_begin, int64_t row_end) {
  (void)M;
  gate_mul_grad_f32(GATE_SILU, dgate_MF, dup_MF, dh_MF, gate_MF, up_MF, row_begin * F, row_end * F);
}

KERNEL void gelu_mul_naive(float *h_MF, const float *gate_MF, const float *up_MF, int64_t M,
                           int64_t F) {
  gate_mul_naive(GATE_GELU, h_MF, gate_MF, up_MF, M * F);
}
KERNEL void gelu_mul_f32(float *h_MF, const float *gate_MF, const float *up_MF, int64_t M,
                         int64_t F, int64_t row_begin, int64_t row_end) {
  (void)M;
  gate_mul_f32(GATE_GELU, h_MF, gate_MF, up_MF, row_begin * F, row_end * F);
}
KERNEL void gelu_mul_grad_naive(float *dgate_MF, float *dup_MF, const float *dh_MF,
                                const float *gate_MF, const float *up_MF, int64_t M, int64_t F) {
  gate_mul_grad_naive(GATE_GELU, dgate_MF, dup_MF, dh_MF, gate_MF, up_MF, M * F);
}
KERNEL void gelu_mul_grad_f32(float *dgate_MF, float *dup_MF, const float *dh_MF,
                              const float *gate_MF, const float *up_MF, int64_t M, int64_t F,
                              int64_t row_begin, int64_t row_end) {
  (void)M;
  gate_mul_grad_f32(GATE_GELU, dgate_MF, dup_MF, dh_MF, gate_MF, up_MF, row_begin * F, row_end * F);
}

KERNEL void sigmoid_mul_naive(float *h_MF, const float *gate_MF, const float *up_MF, int64_t M,
                              int64_t F) {
  gate_mul_naive(GATE_SIGMOID, h_MF, gate_MF, up_MF, M * F);
}
KERNEL void sigmoid_mul_f32(float *h_MF, const float *gate_MF, const float *up_MF, int64_t M,
                            int64_t F, int64_t row_begin, int64_t row_end) {
  (void)M;
  gate_mul_f32(GATE_SIGMOID, h_MF, gate_MF, up_MF, row_begin * F, row_end * F);
}
KERNEL void sigmoid_mul_grad_naive(float *dgate_MF, float *dup_MF, const float *dh_MF,
                                   const float *gate_MF, const float *up_MF, int64_t M, int64_t F) {
  gate_mul_grad_naive(GATE_SIGMOID, dgate_MF, dup_MF, dh_MF, gate_MF, up_MF, M * F);
}
KERNEL void sigmoid_mul_grad_f32(float *dgate_MF, float *dup_MF, const float *dh_MF,
                                 const float *gate_MF, const float *up_MF, int64_t M, int64_t F,
                                 int64_t row_begin, int64_t row_end) {
  (void)M;
  gate_mul_grad_f32(GATE_SIGMOID, dgate_MF, dup_MF, dh_MF, gate_MF, up_MF, row_begin * F,
                    row_end * F);
}
