/* attention: causal attention with grouped key and value heads. */
#include "attention.h"

/* One query over keys first..last. */
KERNEL void attention_query_naive(float *o, float *lse, const float *q, const float *k,
                                  const float *v, int64_t first, int64_t last, int64_t O, int64_t E,
                                  double scale) {
  double top = -INFINITY, sum = 0.0, out[ATT_HEAD] = {0.0};
  for (int64_t j = first; j <= last; j++) top = fmax(top, scale * attention_dot(q, k + j * O, E));
  for (int64_t j = first; j <= last; j++) {
    double p = exp(scale * attention_dot(q, k + j * O, E) - top);
    sum += p;
    for (int64_t e = 0; e < E; e++) out[e] += p * v[j * O + e];
  }
  for (int64_t e = 0; e < E; e++) o[e] = (float)(out[e] / sum);
  if (lse) *lse = (float)(top + log(sum));
}

KERNEL void attention_naive(float *o_MN, float *lse_MH, const float *q_MN, const float *k_MO,
                            const float *v_MO, int64_t M, int64_t N, int64_t O, int64_t H,
                            int64_t heads, int64_t kv_heads, int64_t tokens, int64_t window,
                            double scale) {
  int64_t E = N / heads, group = heads / kv_heads;
  for (int64_t m = 0; m < M; m++)
    for (int64_t h = 0; h < heads; h++) {
      int64_t at = m * N + h * E, start = m / tokens * tokens * O + h / group * E;
      int64_t last = m % tokens, first = window && last >= window ? last - window + 1 : 0;
      attention_query_naive(o_MN + at, lse_MH + m * H + h, q_MN + at, k_MO + start, v_MO + start,
                            first, last, O, E, scale);
    }
}

/* Turns the dots of n keys into weights 2^(unit * (dot - top)) and updates the running top and sum
 * of each lane; fade is what older weights are worth now. `key` as in attention_dots. */
INLINE void attention_softmax(float *s, float *top, float *sum, float *fade, int64_t n, int64_t key,
                              int64_t reach, vf unit) {
  const vf lowest = vf_set(-INFINITY);
  int64_t old_keys = attention_old(n, key, reach);
  UNROLL for (int w = 0; w < ATT_WIDE; w++) {
    float *column = s + w * VL;
    for (int64_t i = 0; i < old_keys; i++) {
      vm reaches = attention_reaches(key + i, reach, w);
      vf x = vf_load(column + i * ATT_LANES);
      vf_store(column + i * ATT_LANES, vf_blend(reaches, x, lowest));
    }
    int64_t seen = attention_seen(n, key, w), open = w * VL + 1 - key;
    int64_t full = (open < seen ? open : seen) & ~(int64_t)3; /* seen by every lane, in fours */
    vf old = vf_load(top + w * VL), part[4] = {old, old, old, old};
    for (int64_t i = 0; i < full; i += 4)
      UNROLL for (int r = 0; r < 4; r++)
        part[r] = vf_max(part[r], vf_load(column + (i + r) * ATT_LANES));
    vf high = vf_max(vf_max(part[0], part[1]), vf_max(part[2], part[3]));
    for (int64_t i = full > 0 ? full : 0; i < seen; i++) {
      vf x = vf_load(column + i * ATT_LANES);
      x = vf_blend(attention_sees(key + i, w), x, lowest);
      vf_store(column + i * ATT_LANES, x);
      high = vf_max(high, x);
    }
    vf shift = high * unit;
    if (old_keys) shift = vf_blend(vf_eq(high, lowest), vf_zero(), shift); /* no key seen yet */
    vf shrink = vf_exp2(old * unit - shift); /* exactly 1 for an old top */
    vf total = vf_load(sum + w * VL) * shrink;
    for (int64_t i = 0; i < seen; i++) {
      vf p = vf_exp2(vf_fma(vf_load(column + i * ATT_LANES), unit, -shift));
      vf_store(column + i * ATT_LANES, p);
      total = total + p;
    }
    vf_store(top + w * VL, high);
    vf_store(sum + w * VL, total);
    vf_store(fade + w * VL, shrink);
  }
}

/* One block: n queries of one head, the first at position `first`;
 * it sees keys up to first+n-1. */
INLINE void attention_block(float *o, float *lse, int64_t H, const float *q, const float *k,
                            const float *v, int64_t n, int64_t first, int64_t N, int64_t O,
                            int64_t E, int64_t reach, double scale) {
  ALIGNED float q_EL[ATT_HEAD * ATT_LANES], o_EL[ATT_HEAD * ATT_LANES], s_KL[ATT_KEYS * ATT_LANES];
  ALIGNED float near[ATT_KEYS * ATT_HEAD];
  ALIGNED float top[ATT_LANES], sum[ATT_LANES], fade[ATT_LANES], factor[ATT_LANES];
  vf unit = vf_set((float)(ATT_LOG2E * scale));
  attention_transpose(q_EL, q, N, n, E);
  for (int64_t i = 0; i < E * ATT_LANES; i += VL) vf_store(o_EL + i, vf_zero());
  for (int i = 0; i < ATT_LANES; i++) top[i] = -INFINITY, sum[i] = 0.0f;
  for (int64_t begin = attention_begin(first, reach); begin < first + n; begin += ATT_KEYS) {
    int64_t keys = first + n - begin < ATT_KEYS ? first + n - begin : ATT_KEYS;
    int64_t apart = n > 4 ? O : 0; /* a copy pays where several queries use it */
    const float *rows = attention_rows_near(near, k + begin * O, &apart, keys, E);
    attention_dots(s_KL, rows, n > 4 ? apart : O, q_EL, E, keys, begin - first);
    attention_softmax(s_KL, top, sum, fade, keys, begin - first, reach, unit);
    apart = n > 4 ? O : 0;
    rows = attention_rows_near(near, v + begin * O, &apart, keys, E);
    attention_gather(o_EL, fade, rows, n > 4 ? apart : O, s_KL, keys, begin - first, reach, E);
  }
  UNROLL for (int w = 0; w < ATT_WIDE; w++) {
    vf total = vf_load(sum + w * VL);
    vf_store(factor + w * VL, vf_set(1.0f) / total);
    vf shift = vf_load(top + w * VL) * unit;
    vf_store(top + w * VL, vf_fma(shift, vf_set(ATT_LN2), vf_log(total)));
  }
  attention_untranspose(o, o_EL, N, n, E, factor);
  if (lse)
    for (int64_t i = 0; i < n; i++) lse[i * H] = top[i];
}

KERNEL int64_t attention_f32_tiles(int64_t M, int64_t N, int64_t O, int64_t H, int64_t heads,
                                   int64_t kv_heads, int64_t tokens, int64_t window,
                                   double scale) {
  (void)N, (void)O, (void)H, (void)kv_heads, (void)window, (void)scale;
  return M / tokens * heads * ((tokens + ATT_LANES - 1) / ATT_LANES);
}

KERNEL void attention_f32(float *o_MN, float *lse_MH, const float *q_MN, const float *k_MO,
                          const float *v_MO, int64_t M, int64_t N, int64_t O, int64_t H,
                          int64_t heads, int64_t kv_heads, int64_t tokens, int64_t window,
                          double scale, int64_t tile) {
  (void)M;
  int64_t E = N / heads, blocks = (tokens + ATT_LANES - 1) / ATT_LANES;
  int64_t h = tile / blocks % heads, b = tile / blocks / heads;
  int64_t first = (blocks - 1 - tile % blocks) * ATT_LANES; /* the longest blocks first */
  int64_t m = b * tokens + first, key = b * tokens * O + h / (heads / kv_heads) * E;
  int64_t n = tokens - first < ATT_LANES ? tokens - first : ATT_LANES;
  attention_block(o_MN + m * N + h * E, lse_MH + m * H + h, H, q_MN + m * N + h * E, k_MO + key,
                  v_MO + key, n, first, N, O, E, attention_reach(window), scale);
}
