/* delta_gates: decay = exp(-e^rate * softplus(a + dt)), beta = sigmoid(b), head by head. */
#include "vec_math.h"

INLINE double delta_gates_exact(double x) { /* softplus(x) = log(1 + e^x) */
  return (x > 0.0 ? x : 0.0) + log1p(exp(x > 0.0 ? -x : x));
}

KERNEL void delta_gates_naive(float *decay_MH, float *beta_MH, const float *a_MH, const float *b_MH,
                              const float *dt_H, const float *rate_H, int64_t M, int64_t H) {
  for (int64_t m = 0; m < M; m++)
    for (int64_t h = 0; h < H; h++) {
      double plus = delta_gates_exact((double)a_MH[m * H + h] + dt_H[h]);
      decay_MH[m * H + h] = (float)exp(-exp((double)rate_H[h]) * plus);
      beta_MH[m * H + h] = (float)(1.0 / (1.0 + exp(-(double)b_MH[m * H + h])));
    }
}

/* log(1 + e^x): the rounding of 1 + t is made up for, or t would be lost where it is small. */
INLINE vf delta_gates_softplus(vf x) {
  const vf one = vf_set(1.0f);
  vf t = vf_exp(-vf_abs(x)), u = one + t;
  return vf_max(vf_zero(), x) + (vf_log(u) + (t - (u - one)) / u);
}

/* -e^rate for the heads from h on, rounded once: what multiplies an exponent must be exact. */
INLINE vf delta_gates_rate(const float *rate_H, int64_t h, int64_t H) {
  float rate[VL] = {0.0f};
  for (int64_t i = 0; i < VL && h + i < H; i++) rate[i] = (float)-exp((double)rate_H[h + i]);
  return vf_load(rate);
}

KERNEL void delta_gates_f32(float *decay_MH, float *beta_MH, const float *a_MH, const float *b_MH,
                            const float *dt_H, const float *rate_H, int64_t M, int64_t H,
                            int64_t row_begin, int64_t row_end) {
  (void)M;
  for (int64_t h = 0; h < H; h += VL) {
    vm valid = vm_first(H - h < VL ? H - h : VL);
    vf dt = vf_load_m(dt_H + h, valid), rate = delta_gates_rate(rate_H, h, H);
    for (int64_t i = row_begin * H + h; i < row_end * H; i += H) {
      vf plus = delta_gates_softplus(vf_load_m(a_MH + i, valid) + dt);
      vf_store_m(decay_MH + i, vf_exp(rate * plus), valid);
      vf_store_m(beta_MH + i, vf_sigmoid(vf_load_m(b_MH + i, valid)), valid);
    }
  }
}

/* delta_gates_grad: with g = -e^rate * softplus(a + dt), so that decay = e^g,
 * drate = ddecay * decay * g row by row, da = -ddecay * decay * e^rate * sigmoid(a + dt),
 * db = dbeta * beta * (1 - beta). */
KERNEL void delta_gates_grad_naive(float *da_MH, float *db_MH, float *drate_MH,
                                   const float *ddecay_MH, const float *dbeta_MH, const float *a_MH,
                                   const float *b_MH, const float *dt_H, const float *rate_H,
                                   int64_t M, int64_t H) {
  for (int64_t m = 0; m < M; m++)
    for (int64_t h = 0; h < H; h++) {
      int64_t i = m * H + h;
      double x = (double)a_MH[i] + dt_H[h], rate = exp((double)rate_H[h]);
      double g = -rate * delta_gates_exact(x), dg = ddecay_MH[i] * exp(g);
      double beta = 1.0 / (1.0 + exp(-(double)b_MH[i]));
      da_MH[i] = (float)(-dg * rate / (1.0 + exp(-x)));
      db_MH[i] = dbeta_MH ? (float)(dbeta_MH[i] * beta * (1.0 - beta)) : 0.0f;
      drate_MH[i] = (float)(dg * g);
    }
}

KERNEL void delta_gates_grad_f32(float *da_MH, float *db_MH, float *drate_MH,
                                 const float *ddecay_MH, const float *dbeta_MH, const float *a_MH,
                                 const float *b_MH, const float *dt_H, const float *rate_H,
                                 int64_t M, int64_t H, int64_t row_begin, int64_t row_end) {
  (void)M;
  for (int64_t h = 0; h < H; h += VL) {
    vm valid = vm_first(H - h < VL ? H - h : VL);
    vf dt = vf_load_m(dt_H + h, valid), rate = delta_gates_rate(rate_H, h, H);
    for (int64_t i = row_begin * H + h; i < row_end * H; i += H) {
      vf x = vf_load_m(a_MH + i, valid) + dt, g = rate * delta_gates_softplus(x);
      vf dg = vf_load_m(ddecay_MH + i, valid) * vf_exp(g);
      vf beta = vf_sigmoid(vf_load_m(b_MH + i, valid)), db = vf_zero();
      if (dbeta_MH) db = vf_load_m(dbeta_MH + i, valid) * beta * (vf_set(1.0f) - beta);
      vf_store_m(da_MH + i, dg * rate * vf_sigmoid(x), valid);
      vf_store_m(db_MH + i, db, valid);
      vf_store_m(drate_MH + i, dg * g, valid);
    }
  }
}
