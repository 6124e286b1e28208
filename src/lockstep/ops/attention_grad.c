/* attention_grad: the gradient of attention; the weights are rebuilt from the saved log-sums. */
#include "attention.h"

KERNEL void attention_grad_naive(float *dq_MN, float *dk_MO, float *dv_MO, const float *do_MN,
                                 const float *q_MN, const float *k_MO, const float *v_MO,
                                 const float *o_MN, const float *lse_MH, int64_t M, int64_t N,
                                 int64_t O, int64_t H, int64_t heads, int64_t kv_heads,
                                 int64_t tokens, int64_t window, double scale) {
  int64_t E = N / heads, group = heads / kv_heads, reach = attention_reach(window);
  memset(dq_MN, 0, (size_t)(M * N) * sizeof(float));
  memset(dk_MO, 0, (size_t)(M * O) * sizeof(float));
  memset(dv_MO, 0, (size_t)(M * O) * sizeof(float));
  for (int64_t m = 0; m < M; m++)
    for (int64_t h = 0; h < heads; h++) {
      int64_t at = m * N + h * E, begin = m - m % tokens;
      if (m - begin >= reach) begin = m - reach + 1;
      double delta = attention_dot(do_MN + at, o_MN + at, E);
      for (int64_t j = begin; j <= m; j++) {
        int64_t key = j * O + h / group * E;
        double p = exp(scale * attention_dot(q_MN + at, k_MO + key, E) - lse_MH[m * H + h]);
        double ds = p * (attention_dot(do_MN + at, v_MO + key, E) - delta) * scale;
        for (int64_t e = 0; e < E; e++) {
          dq_MN[at + e] += (float)(ds * k_MO[key + e]);
          dk_MO[key + e] += (float)(ds * q_MN[at + e]);
          dv_MO[key + e] += (float)(p * do_MN[at + e]);
        }
      }
    }
}

/* out[key][e] += scale * sum over queries of p[key][query] * x[query][e], for `rows` keys and
 * `wide` vectors of columns. Key r is seen by `reach` queries from `from` + r on, those from 0 on
 * of these. */
INLINE void attention_rows(float *out, int64_t O, const float *p, const float *x, int64_t N,
                           int64_t n, int64_t from, int64_t reach, int64_t keys, float scale,
                           vm valid, const int rows, const int wide) {
  vf sum[2 * ATT_STEP][2];
  UNROLL for (int r = 0; r < rows; r++)
    UNROLL for (int w = 0; w < wide; w++) sum[r][w] = vf_zero();
  int64_t i = from > 0 ? from : 0, all = from + rows - 1, far = from + reach;
#define ROWS_PARTLY()                                                                              \
  UNROLL for (int r = 0; r < rows; r++)                                                            \
    if (from + r <= i && i < far + r)                                                              \
      UNROLL for (int w = 0; w < wide; w++)                                                        \
        sum[r][w] = vf_fma(vf_set(p[r * ATT_LANES + i]), vf_load_m(x + i * N + w * VL, valid),     \
                           sum[r][w])
  for (; i < n && i < all; i++) ROWS_PARTLY();
  for (; i < n && i < far; i++) {
    vf row[2];
    UNROLL for (int w = 0; w < wide; w++) row[w] = vf_load_m(x + i * N + w * VL, valid);
    UNROLL for (int r = 0; r < rows; r++) {
      vf y = vf_set(p[r * ATT_LANES + i]);
      UNROLL for (int w = 0; w < wide; w++) sum[r][w] = vf_fma(y, row[w], sum[r][w]);
    }
  }
  for (; i < n && i < far + rows; i++) ROWS_PARTLY();
#undef ROWS_PARTLY
  UNROLL for (int r = 0; r < rows; r++)
    if (r < keys)
      UNROLL for (int w = 0; w < wide; w++) {
        vf old = vf_load_m(out + r * O + w * VL, valid);
        vf_store_m(out + r * O + w * VL, vf_fma(sum[r][w], vf_set(scale), old), valid);
      }
}

/* Two vectors of columns at a time, then single ones with twice the keys: 2 * ATT_STEP sums either
 * way. */
INLINE void attention_scatter(float *out, int64_t O, const float *p, const float *x, int64_t N,
                              int64_t n, int64_t key, int64_t reach, int64_t keys, int64_t E,
                              float scale) {
  int64_t e = 0;
  for (; e + 2 * VL <= E; e += 2 * VL)
    for (int64_t j = 0; j < keys; j += ATT_STEP)
      attention_rows(out + j * O + e, O, p + j * ATT_LANES, x + e, N, n, key + j, reach, keys - j, scale,
                     vm_first(VL), ATT_STEP, 2);
  for (; e < E; e += VL)
    for (int64_t j = 0; j < keys; j += 2 * ATT_STEP)
      attention_rows(out + j * O + e, O, p + j * ATT_LANES, x + e, N, n, key + j, reach, keys - j, scale,
                     vm_first(E - e), 2 * ATT_STEP, 1);
}

/* Weights from the saved log-sums, and the gradient of the scores from that of the weights. */
INLINE void attention_weights_grad(float *p, float *ds, const float *lse, const float *delta,
                                   int64_t n, int64_t key, int64_t reach, vf unit) {
  UNROLL for (int w = 0; w < ATT_WIDE; w++) {
    /* The log-sum in units of log 2, with what its rounding loses. */
    vf log2e = vf_set((float)ATT_LOG2E), sum = vf_load(lse + w * VL), shift = sum * log2e;
    vf rest = vf_fma(sum, log2e, -shift), mean = vf_load(delta + w * VL);
    rest = vf_fma(sum, vf_set((float)(ATT_LOG2E - (float)ATT_LOG2E)), rest);
    rest = vf_blend(vf_lt(vf_abs(shift), vf_set(INFINITY)), rest, vf_zero());
    int64_t seen = attention_seen(n, key, w), old = attention_old(n, key, reach);
    for (int64_t i = 0; i < seen; i++) {
      int64_t at = i * ATT_LANES + w * VL;
      vf x = vf_fma(vf_load(p + at), unit, -shift) - rest;
      vf weight = vf_exp2(vf_min(vf_set(200.0f), x));
      vf slope = weight * (vf_load(ds + at) - mean);
      if (key + i > w * VL || i < old) {
        vm sees = attention_reaches(key + i, reach, w);
        weight = vf_blend(sees, weight, vf_zero());
        slope = vf_blend(sees, slope, vf_zero());
      }
      vf_store(p + at, weight);
      vf_store(ds + at, slope);
    }
  }
}

/* One block of queries against all keys that it sees; pointers are to the first query and key. */
INLINE void attention_grad_block(float *dq, float *dk, float *dv, const float *d_o, const float *q,
                                 const float *k, const float *v, const float *o, const float *lse,
                                 int64_t H, int64_t n, int64_t first, int64_t N, int64_t O,
                                 int64_t E, int64_t reach, double factor_of_dots) {
  ALIGNED float q_EL[ATT_HEAD * ATT_LANES], do_EL[ATT_HEAD * ATT_LANES];
  ALIGNED float dq_EL[ATT_HEAD * ATT_LANES];
  ALIGNED float p_KL[ATT_KEYS * ATT_LANES], ds_KL[ATT_KEYS * ATT_LANES];
  ALIGNED float near_k[ATT_KEYS * ATT_HEAD], near_v[ATT_KEYS * ATT_HEAD];
  ALIGNED float near_q[ATT_LANES * ATT_HEAD], near_do[ATT_LANES * ATT_HEAD];
  int64_t q_apart = N, do_apart = N;
  ALIGNED float delta[ATT_LANES] = {0.0f}, lse_L[ATT_LANES] = {0.0f};
  ALIGNED float one[ATT_LANES], factor[ATT_LANES];
  float scale = (float)factor_of_dots;
  vf unit = vf_set((float)(ATT_LOG2E * factor_of_dots));
  attention_transpose(q_EL, q, N, n, E);
  attention_transpose(do_EL, d_o, N, n, E);
  for (int64_t i = 0; i < E * ATT_LANES; i += VL) vf_store(dq_EL + i, vf_zero());
  for (int i = 0; i < ATT_LANES; i++) one[i] = 1.0f, factor[i] = scale;
  for (int64_t i = 0; i < n; i++) {
    vf sum = vf_zero();
    for (int64_t e = 0; e < E; e += VL)
      sum = vf_fma(vf_load_n(d_o + i * N + e, E - e), vf_load_n(o + i * N + e, E - e), sum);
    delta[i] = vf_sum(sum);
    lse_L[i] = lse[i * H];
  }
  const float *q_rows = attention_rows_near(near_q, q, &q_apart, n, E);
  const float *do_rows = attention_rows_near(near_do, d_o, &do_apart, n, E);
  for (int64_t begin = attention_begin(first, reach); begin < first + n; begin += ATT_KEYS) {
    int64_t keys = first + n - begin < ATT_KEYS ? first + n - begin : ATT_KEYS;
    int64_t key = begin - first, at = begin * O, k_apart = O, v_apart = O;
    const float *k_rows = attention_rows_near(near_k, k + at, &k_apart, keys, E);
    const float *v_rows = attention_rows_near(near_v, v + at, &v_apart, keys, E);
    attention_dots(p_KL, k_rows, k_apart, q_EL, E, keys, key);
    attention_dots(ds_KL, v_rows, v_apart, do_EL, E, keys, key);
    attention_weights_grad(p_KL, ds_KL, lse_L, delta, keys, key, reach, unit);
    attention_gather(dq_EL, one, k_rows, k_apart, ds_KL, keys, key, reach, E);
    attention_scatter(dv + at, O, p_KL, do_rows, do_apart, n, key, reach, keys, E, 1.0f);
    attention_scatter(dk + at, O, ds_KL, q_rows, q_apart, n, key, reach, keys, E, scale);
  }
  attention_untranspose(dq, dq_EL, N, n, E, factor);
}

KERNEL int64_t attention_grad_f32_tiles(int64_t M, int64_t N, int64_t O, int64_t H, int64_t heads,
                                        int64_t kv_heads, int64_t tokens, int64_t window,
                                        double scale) {
  (void)N, (void)O, (void)H, (void)heads, (void)window, (void)scale;
  return M / tokens * kv_heads;
}

/* A tile owns one key head of one sequence, so that its gradients are summed in one fixed order. */
KERNEL void attention_grad_f32(float *dq_MN, float *dk_MO, float *dv_MO, const float *do_MN,
                               const float *q_MN, const float *k_MO, const float *v_MO,
                               const float *o_MN, const float *lse_MH, int64_t M, int64_t N,
                               int64_t O, int64_t H, int64_t heads, int64_t kv_heads,
                               int64_t tokens, int64_t window, double scale, int64_t tile) {
  (void)M;
  int64_t E = N / heads, group = heads / kv_heads, g = tile % kv_heads;
  int64_t begin = tile / kv_heads * tokens, key = begin * O + g * E;
  for (int64_t t = 0; t < tokens; t++) {
    memset(dk_MO + key + t * O, 0, (size_t)E * sizeof(float));
    memset(dv_MO + key + t * O, 0, (size_t)E * sizeof(float));
  }
  for (int64_t h = g * group; h < (g + 1) * group; h++)
    for (int64_t first = 0; first < tokens; first += ATT_LANES) {
      int64_t n = tokens - first < ATT_LANES ? tokens - first : ATT_LANES;
      int64_t at = (begin + first) * N + h * E;
      attention_grad_block(dq_MN + at, dk_MO + key, dv_MO + key, do_MN + at, q_MN + at, k_MO + key,
                           v_MO + key, o_MN + at, lse_MH + (begin + first) * H + h, H, n, first, N,
                           O, E, attention_reach(window), scale);
    }
}
