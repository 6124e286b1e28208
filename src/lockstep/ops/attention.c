/* attention: causal attention with grouped key and value heads, forward, cached and backward.
 *
 * Lanes are queries: a block holds ATT_LANES queries of one head, transposed, so that the softmax
 * never works across lanes and every head width runs at full speed. Keys come in blocks that start
 * at multiples of ATT_KEYS of the position, so a query's result depends neither on the block of
 * queries that it is in nor on how many queries one call brings. */
#include "vec_math.h"

#define ATT_WIDE 2                   /* vectors of queries in one block */
#define ATT_LANES (ATT_WIDE * VL)    /* queries in one block */
#define ATT_KEYS 64                  /* keys in one block */
#define ATT_STEP (VL == 16 ? 8 : 4)  /* keys or columns in one register tile */
#define ATT_HEAD 256                 /* the widest head */
#define ATT_LOG2E 1.4426950408889634 /* exponents are in units of log 2: 2^x is cheaper than e^x */
#define ATT_LN2 0.693147180559945309f
#define ATT_FAR 256 /* rows further apart than this are copied together */
#define ATT_RUN 64  /* products in one chain; longer dots add up chains */

#define ALIGNED __attribute__((aligned(64)))

KERNEL double attention_dot(const float *a, const float *b, int64_t E) {
  double sum = 0.0;
  for (int64_t e = 0; e < E; e++) sum += (double)a[e] * b[e];
  return sum;
}

/* One query over keys 0..last. */
KERNEL void attention_query_naive(float *o, float *lse, const float *q, const float *k,
                                  const float *v, int64_t last, int64_t O, int64_t E) {
  double top = -INFINITY, sum = 0.0, out[ATT_HEAD] = {0.0}, scale = 1.0 / sqrt((double)E);
  for (int64_t j = 0; j <= last; j++) top = fmax(top, scale * attention_dot(q, k + j * O, E));
  for (int64_t j = 0; j <= last; j++) {
    double p = exp(scale * attention_dot(q, k + j * O, E) - top);
    sum += p;
    for (int64_t e = 0; e < E; e++) out[e] += p * v[j * O + e];
  }
  for (int64_t e = 0; e < E; e++) o[e] = (float)(out[e] / sum);
  if (lse) *lse = (float)(top + log(sum));
}

KERNEL void attention_naive(float *o_MN, float *lse_MH, const float *q_MN, const float *k_MO,
                            const float *v_MO, int64_t M, int64_t N, int64_t O, int64_t H,
                            int64_t heads, int64_t kv_heads, int64_t tokens) {
  int64_t E = N / heads, group = heads / kv_heads;
  for (int64_t m = 0; m < M; m++)
    for (int64_t h = 0; h < heads; h++) {
      int64_t at = m * N + h * E, first = m / tokens * tokens * O + h / group * E;
      attention_query_naive(o_MN + at, lse_MH + m * H + h, q_MN + at, k_MO + first, v_MO + first,
                            m % tokens, O, E);
    }
}

KERNEL void attention_cached_naive(float *o_MN, const float *q_MN, const float *kcache_CO,
                                   const float *vcache_CO, const int32_t *start, int64_t M,
                                   int64_t N, int64_t C, int64_t O, int64_t heads,
                                   int64_t kv_heads) {
  (void)C;
  int64_t E = N / heads, group = heads / kv_heads;
  for (int64_t m = 0; m < M; m++)
    for (int64_t h = 0; h < heads; h++)
      attention_query_naive(o_MN + m * N + h * E, NULL, q_MN + m * N + h * E,
                            kcache_CO + h / group * E, vcache_CO + h / group * E, *start + m, O, E);
}

KERNEL void attention_grad_naive(float *dq_MN, float *dk_MO, float *dv_MO, const float *do_MN,
                                 const float *q_MN, const float *k_MO, const float *v_MO,
                                 const float *o_MN, const float *lse_MH, int64_t M, int64_t N,
                                 int64_t O, int64_t H, int64_t heads, int64_t kv_heads,
                                 int64_t tokens) {
  int64_t E = N / heads, group = heads / kv_heads;
  double scale = 1.0 / sqrt((double)E);
  memset(dq_MN, 0, (size_t)(M * N) * sizeof(float));
  memset(dk_MO, 0, (size_t)(M * O) * sizeof(float));
  memset(dv_MO, 0, (size_t)(M * O) * sizeof(float));
  for (int64_t m = 0; m < M; m++)
    for (int64_t h = 0; h < heads; h++) {
      int64_t at = m * N + h * E, begin = m - m % tokens;
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

/* Rows that lie far apart fall into few sets of a cache: then n rows of E are copied together.
 * Returns where the rows are now, and their distance. */
INLINE const float *attention_rows_near(float *near, const float *x, int64_t *stride, int64_t n,
                                        int64_t E) {
  if (*stride < ATT_FAR) return x;
  for (int64_t i = 0; i < n; i++) memcpy(near + i * E, x + i * *stride, (size_t)E * sizeof(float));
  *stride = E;
  return near;
}

/* t[e][lane] = x[lane][e]; lanes from n on are 0. */
INLINE void attention_transpose(float *t, const float *x, int64_t stride, int64_t n, int64_t E) {
  for (int64_t e = 0; e < E; e++) {
    for (int64_t i = 0; i < n; i++) t[e * ATT_LANES + i] = x[i * stride + e];
    for (int64_t i = n; i < ATT_LANES; i++) t[e * ATT_LANES + i] = 0.0f;
  }
}

/* The inverse, each lane scaled by a factor of its own. */
INLINE void attention_untranspose(float *x, const float *t, int64_t stride, int64_t n, int64_t E,
                                  const float *factor) {
  for (int64_t i = 0; i < n; i++)
    for (int64_t e = 0; e < E; e++) x[i * stride + e] = t[e * ATT_LANES + i] * factor[i];
}

/* s[key][lane] = sum_e k[key][e] * q[e][lane] for ATT_STEP keys, for vectors w0 and on
 * of the lanes. */
INLINE void attention_dots_step(float *s, const float *const *row, const float *q, int64_t E,
                                const int w0, const int wide) {
  for (int64_t begin = 0; begin < E; begin += ATT_RUN) {
    int64_t end = begin + ATT_RUN < E ? begin + ATT_RUN : E;
    vf sum[ATT_STEP][ATT_WIDE];
  UNROLL for (int r = 0; r < ATT_STEP; r++)
      UNROLL for (int w = w0; w < wide; w++) sum[r][w] = vf_zero();
    for (int64_t e = begin; e < end; e++) {
      vf lanes[ATT_WIDE];
      UNROLL for (int w = w0; w < wide; w++) lanes[w] = vf_load(q + e * ATT_LANES + w * VL);
      UNROLL for (int r = 0; r < ATT_STEP; r++) {
        vf x = vf_set(row[r][e]);
        UNROLL for (int w = w0; w < wide; w++) sum[r][w] = vf_fma(x, lanes[w], sum[r][w]);
      }
    }
    UNROLL for (int r = 0; r < ATT_STEP; r++)
      UNROLL for (int w = w0; w < wide; w++) {
        float *out = s + r * ATT_LANES + w * VL;
        vf_store(out, begin ? vf_add(vf_load(out), sum[r][w]) : sum[r][w]);
      }
  }
}

/* The same for n keys. Rows of s up to a multiple of ATT_STEP are written; those from n on repeat
 * the last key. Vectors of lanes that see none of a step's keys are left out; `key` is the place
 * of the first key, counted from the block's first query. */
INLINE void attention_dots(float *s, const float *k, int64_t O, const float *q, int64_t E,
                           int64_t n, int64_t key, const int wide) {
  for (int64_t i = 0; i < n; i += ATT_STEP) {
    const float *row[ATT_STEP];
    UNROLL for (int r = 0; r < ATT_STEP; r++) row[r] = k + (i + r < n ? i + r : n - 1) * O;
    if (wide == 1 || key + i < VL) attention_dots_step(s + i * ATT_LANES, row, q, E, 0, wide);
    else attention_dots_step(s + i * ATT_LANES, row, q, E, 1, wide);
  }
}

/* How many of n keys vector w sees with at least one of its lanes. */
INLINE int64_t attention_seen(int64_t n, int64_t key, int w) {
  int64_t seen = (w + 1) * VL - key;
  return seen < n ? seen : n;
}

/* The lanes of vector w that may see a key, given its place after the block's first query. */
INLINE vm attention_sees(int64_t key, int w) {
  vi lane;
  int32_t number[VL];
  for (int i = 0; i < VL; i++) number[i] = w * VL + i;
  memcpy(&lane, number, sizeof lane);
  return vm_not(vi_lt(lane, vi_set((int32_t)key)));
}

/* sum[column][lane] += x[column] * p[lane] for the vectors of lanes from `w0` on; in vector w0,
 * where `partly`, only the lanes that see the key: the others skip it, whatever it holds. */
INLINE void attention_columns_step(vf sum[ATT_STEP][ATT_WIDE], const float *x,
                                   const int64_t *column, const float *p, int64_t key,
                                   const int width, const int w0, const int partly,
                                   const int wide) {
  vf weight[ATT_WIDE];
  vm sees = partly ? attention_sees(key, w0) : vm_first(VL);
  UNROLL for (int w = w0; w < wide; w++) weight[w] = vf_load(p + w * VL);
  UNROLL for (int r = 0; r < width; r++) {
    vf y = vf_set(x[column[r]]);
    UNROLL for (int w = w0; w < wide; w++) {
      vf next = vf_fma(y, weight[w], sum[r][w]);
      sum[r][w] = partly && w == w0 ? vf_blend(sees, next, sum[r][w]) : next;
    }
  }
}

/* out[e][lane] = out[e][lane] * fade[lane] + sum over n keys of x[key][e] * p[key][lane], for
 * `width` columns; `key` as in attention_dots. */
INLINE void attention_columns(float *out, const float *fade, const float *x, int64_t O,
                              const float *p, int64_t n, int64_t key, int64_t E, const int width,
                              const int wide) {
  vf sum[ATT_STEP][ATT_WIDE];
  int64_t column[ATT_STEP];
  UNROLL for (int r = 0; r < width; r++) {
    column[r] = r < E ? r : E - 1;
    UNROLL for (int w = 0; w < wide; w++)
      sum[r][w] = vf_load(out + column[r] * ATT_LANES + w * VL) * vf_load(fade + w * VL);
  }
  int64_t open = 1 - key < n ? 1 - key : n, first = attention_seen(n, key, 0), i = 0;
  for (; i < open; i++)
    attention_columns_step(sum, x + i * O, column, p + i * ATT_LANES, key + i, width, 0, 0, wide);
  for (; i < first; i++)
    attention_columns_step(sum, x + i * O, column, p + i * ATT_LANES, key + i, width, 0, 1, wide);
  for (; wide > 1 && i < n; i++)
    attention_columns_step(sum, x + i * O, column, p + i * ATT_LANES, key + i, width, 1, 1, wide);
  UNROLL for (int r = 0; r < width; r++)
    UNROLL for (int w = 0; w < wide; w++)
      if (r < E) vf_store(out + r * ATT_LANES + w * VL, sum[r][w]);
}

INLINE void attention_gather(float *out, const float *fade, const float *x, int64_t O,
                             const float *p, int64_t n, int64_t key, int64_t E,
                             const int wide) {
  int64_t e = 0;
  for (; e + ATT_STEP / 2 < E; e += ATT_STEP)
    attention_columns(out + e * ATT_LANES, fade, x + e, O, p, n, key, E - e, ATT_STEP, wide);
  if (e < E)
    attention_columns(out + e * ATT_LANES, fade, x + e, O, p, n, key, E - e, ATT_STEP / 2, wide);
}

/* Turns the dots of n keys into weights 2^(unit * (dot - top)) and updates the running top and sum
 * of each lane; fade is what older weights are worth now. `key` as in attention_dots. */
INLINE void attention_softmax(float *s, float *top, float *sum, float *fade, int64_t n, int64_t key,
                              vf unit, const int wide) {
  UNROLL for (int w = 0; w < wide; w++) {
    float *column = s + w * VL;
    int64_t seen = attention_seen(n, key, w), open = w * VL + 1 - key;
    int64_t full = (open < seen ? open : seen) & ~(int64_t)3; /* seen by every lane, in fours */
    vf old = vf_load(top + w * VL), part[4] = {old, old, old, old};
    for (int64_t i = 0; i < full; i += 4)
      UNROLL for (int r = 0; r < 4; r++)
        part[r] = vf_max(part[r], vf_load(column + (i + r) * ATT_LANES));
    vf high = vf_max(vf_max(part[0], part[1]), vf_max(part[2], part[3]));
    for (int64_t i = full > 0 ? full : 0; i < seen; i++) {
      vf x = vf_load(column + i * ATT_LANES);
      x = vf_blend(attention_sees(key + i, w), x, vf_set(-INFINITY));
      vf_store(column + i * ATT_LANES, x);
      high = vf_max(high, x);
    }
    vf shift = high * unit, shrink = vf_exp2(old * unit - shift); /* exactly 1 for an old top */
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

/* One block: n queries of one head, at most `wide` vectors of them, the first at position `first`;
 * it sees keys 0..first+n-1. */
INLINE void attention_block(float *o, float *lse, int64_t H, const float *q, const float *k,
                            const float *v, int64_t n, int64_t first, int64_t N, int64_t O,
                            int64_t E, const int wide) {
  ALIGNED float q_EL[ATT_HEAD * ATT_LANES], o_EL[ATT_HEAD * ATT_LANES], s_KL[ATT_KEYS * ATT_LANES];
  ALIGNED float near[ATT_KEYS * ATT_HEAD];
  ALIGNED float top[ATT_LANES], sum[ATT_LANES], fade[ATT_LANES], factor[ATT_LANES];
  vf unit = vf_set((float)(ATT_LOG2E / sqrt((double)E)));
  attention_transpose(q_EL, q, N, n, E);
  for (int64_t i = 0; i < E * ATT_LANES; i += VL) vf_store(o_EL + i, vf_zero());
  for (int i = 0; i < ATT_LANES; i++) top[i] = -INFINITY, sum[i] = 0.0f;
  for (int64_t begin = 0; begin < first + n; begin += ATT_KEYS) {
    int64_t keys = first + n - begin < ATT_KEYS ? first + n - begin : ATT_KEYS;
    int64_t apart = n > 4 ? O : 0; /* a copy pays where several queries use it */
    const float *rows = attention_rows_near(near, k + begin * O, &apart, keys, E);
    attention_dots(s_KL, rows, n > 4 ? apart : O, q_EL, E, keys, begin - first, wide);
    attention_softmax(s_KL, top, sum, fade, keys, begin - first, unit, wide);
    apart = n > 4 ? O : 0;
    rows = attention_rows_near(near, v + begin * O, &apart, keys, E);
    attention_gather(o_EL, fade, rows, n > 4 ? apart : O, s_KL, keys, begin - first, E, wide);
  }
  UNROLL for (int w = 0; w < wide; w++) {
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
                                   int64_t kv_heads, int64_t tokens) {
  (void)N, (void)O, (void)H, (void)kv_heads;
  return M / tokens * heads * ((tokens + ATT_LANES - 1) / ATT_LANES);
}

KERNEL void attention_f32(float *o_MN, float *lse_MH, const float *q_MN, const float *k_MO,
                          const float *v_MO, int64_t M, int64_t N, int64_t O, int64_t H,
                          int64_t heads, int64_t kv_heads, int64_t tokens, int64_t tile) {
  (void)M;
  int64_t E = N / heads, blocks = (tokens + ATT_LANES - 1) / ATT_LANES;
  int64_t h = tile / blocks % heads, b = tile / blocks / heads;
  int64_t first = (blocks - 1 - tile % blocks) * ATT_LANES; /* the longest blocks first */
  int64_t m = b * tokens + first, key = b * tokens * O + h / (heads / kv_heads) * E;
  int64_t n = tokens - first < ATT_LANES ? tokens - first : ATT_LANES;
  attention_block(o_MN + m * N + h * E, lse_MH + m * H + h, H, q_MN + m * N + h * E, k_MO + key,
                  v_MO + key, n, first, N, O, E, ATT_WIDE);
}

KERNEL int64_t attention_cached_f32_tiles(int64_t M, int64_t N, int64_t C, int64_t O,
                                          int64_t heads, int64_t kv_heads) {
  (void)N, (void)C, (void)O, (void)kv_heads;
  return heads * ((M + ATT_LANES - 1) / ATT_LANES);
}

KERNEL void attention_cached_f32(float *o_MN, const float *q_MN, const float *kcache_CO,
                                 const float *vcache_CO, const int32_t *start, int64_t M,
                                 int64_t N, int64_t C, int64_t O, int64_t heads, int64_t kv_heads,
                                 int64_t tile) {
  (void)C;
  int64_t E = N / heads, h = tile % heads, m = tile / heads * ATT_LANES;
  int64_t n = M - m < ATT_LANES ? M - m : ATT_LANES, key = h / (heads / kv_heads) * E;
  const float *q = q_MN + m * N + h * E, *k = kcache_CO + key, *v = vcache_CO + key;
  float *o = o_MN + m * N + h * E;
  if (n <= VL) attention_block(o, NULL, 0, q, k, v, n, *start + m, N, O, E, 1);
  else attention_block(o, NULL, 0, q, k, v, n, *start + m, N, O, E, ATT_WIDE);
}

/* out[key][e] += scale * sum over queries of p[key][query] * x[query][e], for `rows` keys and
 * `wide` vectors of columns. Key r is seen by queries from `from` + r on (from 0 on, if that is
 * negative). */
INLINE void attention_rows(float *out, int64_t O, const float *p, const float *x, int64_t N,
                           int64_t n, int64_t from, int64_t keys, float scale, vm valid,
                           const int rows, const int wide) {
  vf sum[2 * ATT_STEP][2];
  UNROLL for (int r = 0; r < rows; r++)
    UNROLL for (int w = 0; w < wide; w++) sum[r][w] = vf_zero();
  int64_t i = from > 0 ? from : 0, all = from + rows - 1;
  for (; i < n && i < all; i++)
    UNROLL for (int r = 0; r < rows; r++)
      if (from + r <= i)
        UNROLL for (int w = 0; w < wide; w++)
          sum[r][w] = vf_fma(vf_set(p[r * ATT_LANES + i]), vf_load_m(x + i * N + w * VL, valid),
                             sum[r][w]);
  for (; i < n; i++) {
    vf row[2];
    UNROLL for (int w = 0; w < wide; w++) row[w] = vf_load_m(x + i * N + w * VL, valid);
    UNROLL for (int r = 0; r < rows; r++) {
      vf y = vf_set(p[r * ATT_LANES + i]);
      UNROLL for (int w = 0; w < wide; w++) sum[r][w] = vf_fma(y, row[w], sum[r][w]);
    }
  }
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
                              int64_t n, int64_t key, int64_t keys, int64_t E, float scale) {
  int64_t e = 0;
  for (; e + 2 * VL <= E; e += 2 * VL)
    for (int64_t j = 0; j < keys; j += ATT_STEP)
      attention_rows(out + j * O + e, O, p + j * ATT_LANES, x + e, N, n, key + j, keys - j, scale,
                     vm_first(VL), ATT_STEP, 2);
  for (; e < E; e += VL)
    for (int64_t j = 0; j < keys; j += 2 * ATT_STEP)
      attention_rows(out + j * O + e, O, p + j * ATT_LANES, x + e, N, n, key + j, keys - j, scale,
                     vm_first(E - e), 2 * ATT_STEP, 1);
}

/* Weights from the saved log-sums, and the gradient of the scores from that of the weights. */
INLINE void attention_weights_grad(float *p, float *ds, const float *lse, const float *delta,
                                   int64_t n, int64_t key, vf unit) {
  UNROLL for (int w = 0; w < ATT_WIDE; w++) {
    /* The log-sum in units of log 2, with what its rounding loses. */
    vf log2e = vf_set((float)ATT_LOG2E), sum = vf_load(lse + w * VL), shift = sum * log2e;
    vf rest = vf_fma(sum, log2e, -shift), mean = vf_load(delta + w * VL);
    rest = vf_fma(sum, vf_set((float)(ATT_LOG2E - (float)ATT_LOG2E)), rest);
    rest = vf_blend(vf_lt(vf_abs(shift), vf_set(INFINITY)), rest, vf_zero());
    int64_t seen = attention_seen(n, key, w);
    for (int64_t i = 0; i < seen; i++) {
      int64_t at = i * ATT_LANES + w * VL;
      vf x = vf_fma(vf_load(p + at), unit, -shift) - rest;
      vf weight = vf_exp2(vf_min(vf_set(200.0f), x));
      vf slope = weight * (vf_load(ds + at) - mean);
      if (key + i > w * VL) {
        vm sees = attention_sees(key + i, w);
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
                                 int64_t E) {
  ALIGNED float q_EL[ATT_HEAD * ATT_LANES], do_EL[ATT_HEAD * ATT_LANES];
  ALIGNED float dq_EL[ATT_HEAD * ATT_LANES];
  ALIGNED float p_KL[ATT_KEYS * ATT_LANES], ds_KL[ATT_KEYS * ATT_LANES];
  ALIGNED float near_k[ATT_KEYS * ATT_HEAD], near_v[ATT_KEYS * ATT_HEAD];
  ALIGNED float near_q[ATT_LANES * ATT_HEAD], near_do[ATT_LANES * ATT_HEAD];
  int64_t q_apart = N, do_apart = N;
  ALIGNED float delta[ATT_LANES] = {0.0f}, lse_L[ATT_LANES] = {0.0f};
  ALIGNED float one[ATT_LANES], factor[ATT_LANES];
  float scale = 1.0f / sqrtf((float)E);
  vf unit = vf_set((float)(ATT_LOG2E / sqrt((double)E)));
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
  for (int64_t begin = 0; begin < first + n; begin += ATT_KEYS) {
    int64_t keys = first + n - begin < ATT_KEYS ? first + n - begin : ATT_KEYS;
    int64_t key = begin - first, at = begin * O, k_apart = O, v_apart = O;
    const float *k_rows = attention_rows_near(near_k, k + at, &k_apart, keys, E);
    const float *v_rows = attention_rows_near(near_v, v + at, &v_apart, keys, E);
    attention_dots(p_KL, k_rows, k_apart, q_EL, E, keys, key, ATT_WIDE);
    attention_dots(ds_KL, v_rows, v_apart, do_EL, E, keys, key, ATT_WIDE);
    attention_weights_grad(p_KL, ds_KL, lse_L, delta, keys, key, unit);
    attention_gather(dq_EL, one, k_rows, k_apart, ds_KL, keys, key, E, ATT_WIDE);
    attention_scatter(dv + at, O, p_KL, do_rows, do_apart, n, key, keys, E, 1.0f);
    attention_scatter(dk + at, O, ds_KL, q_rows, q_apart, n, key, keys, E, scale);
  }
  attention_untranspose(dq, dq_EL, N, n, E, factor);
}

KERNEL int64_t attention_grad_f32_tiles(int64_t M, int64_t N, int64_t O, int64_t H, int64_t heads,
                                        int64_t kv_heads, int64_t tokens) {
  (void)N, (void)O, (void)H, (void)heads;
  return M / tokens * kv_heads;
}

/* A tile owns one key head of one sequence, so that its gradients are summed in one fixed order. */
KERNEL void attention_grad_f32(float *dq_MN, float *dk_MO, float *dv_MO, const float *do_MN,
                               const float *q_MN, const float *k_MO, const float *v_MO,
                               const float *o_MN, const float *lse_MH, int64_t M, int64_t N,
                               int64_t O, int64_t H, int64_t heads, int64_t kv_heads,
                               int64_t tokens, int64_t tile) {
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
                           O, E);
    }
}
