/* sum_squares, clip_scale, sgd, adamw: the update of the parameters. */
#include "vec_math.h"

#define SUM_RUN 4096     /* elements in one partial sum */
#define SUM_TILE 16      /* partial sums in one tile */
#define UPDATE_TILE 8192 /* elements in one tile: seven streams of them stay in a level 2 cache */

/* sum_squares: part[s] = sum of squares of the s-th run, in double. */
KERNEL void sum_squares_naive(double *part_S, const float *x_P, int64_t P, int64_t S) {
  for (int64_t s = 0; s < S; s++) {
    part_S[s] = 0.0;
    for (int64_t i = s * SUM_RUN; i < P && i < (s + 1) * SUM_RUN; i++)
      part_S[s] += (double)x_P[i] * x_P[i];
  }
}

INLINE void sum_squares_lanes(vd *low, vd *high, vf x) {
  *low = vd_fma(vf_low(x), vf_low(x), *low);
  *high = vd_fma(vf_high(x), vf_high(x), *high);
}

INLINE double sum_squares_run(const float *x, int64_t n) {
  vd a = vd_zero(), b = vd_zero(), c = vd_zero(), d = vd_zero();
  int64_t i = 0;
  for (; i + 2 * VL <= n; i += 2 * VL) {
    sum_squares_lanes(&a, &b, vf_load(x + i));
    sum_squares_lanes(&c, &d, vf_load(x + i + VL));
  }
  for (; i < n; i += VL) sum_squares_lanes(&a, &b, vf_load_n(x + i, n - i));
  return vd_sum((a + b) + (c + d));
}

KERNEL int64_t sum_squares_f64_tiles(int64_t P, int64_t S) {
  (void)P;
  return (S + SUM_TILE - 1) / SUM_TILE;
}

KERNEL void sum_squares_f64(double *part_S, const float *x_P, int64_t P, int64_t S, int64_t tile) {
  for (int64_t s = tile * SUM_TILE; s < S && s < (tile + 1) * SUM_TILE; s++) {
    int64_t begin = s * SUM_RUN;
    part_S[s] = sum_squares_run(x_P + begin, P - begin < SUM_RUN ? P - begin : SUM_RUN);
  }
}

/* clip_scale: norm = sqrt(sum part), coef = min(1, max_norm / (norm + 1e-6)), or 1 where
 * max_norm <= 0. A NaN norm gives a NaN coefficient, as in torch.nn.utils.clip_grad_norm_. */
INLINE float clip_coefficient(double norm, float max_norm) {
  double coef = max_norm / (norm + 1e-6);
  return max_norm <= 0.0f || coef > 1.0 ? 1.0f : (float)coef;
}

KERNEL void clip_scale_naive(double *norm, float *coef, const double *part_S, const float *max_norm,
                             int64_t S) {
  double sum = 0.0;
  for (int64_t s = 0; s < S; s++) sum += part_S[s];
  *norm = sqrt(sum);
  *coef = clip_coefficient(*norm, *max_norm);
}

KERNEL int64_t clip_scale_f64_tiles(int64_t S) {
  (void)S;
  return 1;
}

KERNEL void clip_scale_f64(double *norm, float *coef, const double *part_S, const float *max_norm,
                           int64_t S, int64_t tile) {
  (void)tile;
  double sum[4] = {0.0, 0.0, 0.0, 0.0}; /* four chains, because an addition takes four cycles */
  for (int64_t s = 0; s < S; s++) sum[s % 4] += part_S[s];
  *norm = sqrt((sum[0] + sum[1]) + (sum[2] + sum[3]));
  *coef = clip_coefficient(*norm, *max_norm);
}

/* sgd: p -= lr * (coef * g + weight_decay * p). */
KERNEL void sgd_naive(float *out_P, const float *p_P, const float *g_P, const float *coef,
                      const float *lr, int64_t P, double weight_decay) {
  for (int64_t i = 0; i < P; i++)
    out_P[i] = (float)(p_P[i] - (double)*lr * ((double)*coef * g_P[i] + weight_decay * p_P[i]));
}

KERNEL int64_t sgd_f32_tiles(int64_t P, double weight_decay) {
  (void)weight_decay;
  return (P + UPDATE_TILE - 1) / UPDATE_TILE;
}

INLINE vf sgd_lanes(vf p, vf g, vf coef, vf lr, vf decay) {
  return vf_fnma(lr, vf_fma(decay, p, g * coef), p);
}

KERNEL void sgd_f32(float *out_P, const float *p_P, const float *g_P, const float *coef,
                    const float *lr, int64_t P, double weight_decay, int64_t tile) {
  vf c = vf_set(*coef), rate = vf_set(*lr), decay = vf_set((float)weight_decay);
  int64_t i = tile * UPDATE_TILE, end = i + UPDATE_TILE < P ? i + UPDATE_TILE : P;
  for (; i + VL <= end; i += VL)
    vf_store(out_P + i, sgd_lanes(vf_load(p_P + i), vf_load(g_P + i), c, rate, decay));
  int64_t n = end - i;
  if (n)
    vf_store_n(out_P + i, sgd_lanes(vf_load_n(p_P + i, n), vf_load_n(g_P + i, n), c, rate, decay),
               n);
}

/* adamw, the order of torch.optim.AdamW: decay p, update m and v, then
 * p -= lr / (1 - beta1^step) * m / (sqrt(v) / sqrt(1 - beta2^step) + eps). */
KERNEL void adamw_naive(float *p_out_P, float *m_out_P, float *v_out_P, const float *p_P,
                        const float *g_P, const float *m_P, const float *v_P, const float *coef,
                        const float *lr, const int32_t *step, int64_t P, double beta1, double beta2,
                        double eps, double weight_decay) {
  double size = *lr / (1.0 - pow(beta1, *step)), root = sqrt(1.0 - pow(beta2, *step));
  for (int64_t i = 0; i < P; i++) {
    double g = (double)*coef * g_P[i], p = p_P[i] * (1.0 - (double)*lr * weight_decay);
    double m = beta1 * m_P[i] + (1.0 - beta1) * g, v = beta2 * v_P[i] + (1.0 - beta2) * g * g;
    p_out_P[i] = (float)(p - size * m / (sqrt(v) / root + eps));
    m_out_P[i] = (float)m;
    v_out_P[i] = (float)v;
  }
}

KERNEL int64_t adamw_f32_tiles(int64_t P, double beta1, double beta2, double eps,
                               double weight_decay) {
  (void)beta1, (void)beta2, (void)eps, (void)weight_decay;
  return (P + UPDATE_TILE - 1) / UPDATE_TILE;
}

/* The same numbers in every lane of every tile. */
typedef struct {
  vf coef, keep, size, beta1, rest1, beta2, rest2, per_root, eps;
} adamw_numbers;

INLINE void adamw_lanes(vf *p, vf *m, vf *v, vf g, const adamw_numbers *n) {
  g = g * n->coef;
  *m = vf_fma(*m, n->beta1, g * n->rest1);
  *v = vf_fma(*v, n->beta2, g * g * n->rest2);
  vf ratio = vf_quotient(*m, vf_fma(vf_root(*v), n->per_root, n->eps));
  *p = vf_fnma(n->size, ratio, *p * n->keep);
}

KERNEL void adamw_f32(float *p_out_P, float *m_out_P, float *v_out_P, const float *p_P,
                      const float *g_P, const float *m_P, const float *v_P, const float *coef,
                      const float *lr, const int32_t *step, int64_t P, double beta1, double beta2,
                      double eps, double weight_decay, int64_t tile) {
  const adamw_numbers numbers = {
      .coef = vf_set(*coef),
      .keep = vf_set((float)(1.0 - (double)*lr * weight_decay)),
      .size = vf_set((float)(*lr / (1.0 - pow(beta1, *step)))),
      .beta1 = vf_set((float)beta1),
      .rest1 = vf_set((float)(1.0 - beta1)),
      .beta2 = vf_set((float)beta2),
      .rest2 = vf_set((float)(1.0 - beta2)),
      .per_root = vf_set((float)(1.0 / sqrt(1.0 - pow(beta2, *step)))),
      .eps = vf_set((float)eps),
  };
  int64_t i = tile * UPDATE_TILE, end = i + UPDATE_TILE < P ? i + UPDATE_TILE : P;
  for (; i < end; i += VL) {
    vm valid = vm_first(end - i);
    vf p = vf_load_m(p_P + i, valid), m = vf_load_m(m_P + i, valid), v = vf_load_m(v_P + i, valid);
    adamw_lanes(&p, &m, &v, vf_load_m(g_P + i, valid), &numbers);
    vf_store_m(p_out_P + i, p, valid);
    vf_store_m(m_out_P + i, m, valid);
    vf_store_m(v_out_P + i, v, valid);
  }
}
