/* What the attention kernels share: blocks of queries, dots with keys, weighted sums of values.
 *
 * Lanes are queries: a block holds ATT_LANES queries of one head, transposed, so that the softmax
 * never works across lanes and every head width runs at full speed. Keys come in blocks that start
 * at multiples of ATT_KEYS of the position, so a query's result depends neither on the block of
 * queries that it is in nor on how many queries one call brings. */
#ifndef LOCKSTEP_ATTENTION_H
#define LOCKSTEP_ATTENTION_H

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

INLINE double attention_dot(const float *a, const float *b, int64_t E) {
  double sum = 0.0;
  for (int64_t e = 0; e < E; e++) sum += (double)a[e] * b[e];
  return sum;
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
                                const int w0) {
  for (int64_t begin = 0; begin < E; begin += ATT_RUN) {
    int64_t end = begin + ATT_RUN < E ? begin + ATT_RUN : E;
    vf sum[ATT_STEP][ATT_WIDE];
  UNROLL for (int r = 0; r < ATT_STEP; r++)
      UNROLL for (int w = w0; w < ATT_WIDE; w++) sum[r][w] = vf_zero();
    for (int64_t e = begin; e < end; e++) {
      vf lanes[ATT_WIDE];
      UNROLL for (int w = w0; w < ATT_WIDE; w++) lanes[w] = vf_load(q + e * ATT_LANES + w * VL);
      UNROLL for (int r = 0; r < ATT_STEP; r++) {
        vf x = vf_set(row[r][e]);
        UNROLL for (int w = w0; w < ATT_WIDE; w++) sum[r][w] = vf_fma(x, lanes[w], sum[r][w]);
      }
    }
    UNROLL for (int r = 0; r < ATT_STEP; r++)
      UNROLL for (int w = w0; w < ATT_WIDE; w++) {
        float *out = s + r * ATT_LANES + w * VL;
        vf_store(out, begin ? vf_add(vf_load(out), sum[r][w]) : sum[r][w]);
      }
  }
}

/* The same for n keys. Rows of s up to a multiple of ATT_STEP are written; those from n on repeat
 * the last key. Vectors of lanes that see none of a step's keys are left out; `key` is the place
 * of the first key, counted from the block's first query. */
INLINE void attention_dots(float *s, const float *k, int64_t O, const float *q, int64_t E,
                           int64_t n, int64_t key) {
  for (int64_t i = 0; i < n; i += ATT_STEP) {
    const float *row[ATT_STEP];
    UNROLL for (int r = 0; r < ATT_STEP; r++) row[r] = k + (i + r < n ? i + r : n - 1) * O;
    if (key + i < VL) attention_dots_step(s + i * ATT_LANES, row, q, E, 0);
    else attention_dots_step(s + i * ATT_LANES, row, q, E, 1);
  }
}

/* How many of n keys vector w sees with at least one of its lanes. */
INLINE int64_t attention_seen(int64_t n, int64_t key, int w) {
  int64_t seen = (w + 1) * VL - key;
  return seen < n ? seen : n;
}

/* How many keys, the query's own among them, a query may see; so many that none is out of reach
 * where the window is 0. */
INLINE int64_t attention_reach(int64_t window) { return window ? window : (int64_t)1 << 40; }

/* The block of keys that holds the first one that a query at this position sees. */
INLINE int64_t attention_begin(int64_t position, int64_t reach) {
  return position < reach ? 0 : (position + 1 - reach) / ATT_KEYS * ATT_KEYS;
}

/* How many of n keys are out of reach of at least one lane. */
INLINE int64_t attention_old(int64_t n, int64_t key, int64_t reach) {
  int64_t old = ATT_LANES - reach - key;
  return old < 0 ? 0 : old < n ? old : n;
}

INLINE vi attention_lane(int w) {
  int32_t number[VL];
  for (int i = 0; i < VL; i++) number[i] = w * VL + i;
  return vi_load(number);
}

/* The lanes of vector w that may see a key, given its place after the block's first query. */
INLINE vm attention_sees(int64_t key, int w) {
  return vm_not(vi_lt(attention_lane(w), vi_set((int32_t)key)));
}

/* The same where some lanes are too far behind the key to see it. */
INLINE vm attention_reaches(int64_t key, int64_t reach, int w) {
  int64_t end = key + reach < ATT_LANES ? key + reach : ATT_LANES;
  return vm_and(attention_sees(key, w), vi_lt(attention_lane(w), vi_set((int32_t)end)));
}

/* sum[column][lane] += x[column] * p[lane] for the vectors of lanes from `w0` on; in the first
 * `partly` of these, only the lanes that see the key: the others skip it, whatever it holds. */
INLINE void attention_columns_step(vf sum[ATT_STEP][ATT_WIDE], const float *x,
                                   const int64_t *column, const float *p, int64_t key,
                                   int64_t reach, const int width, const int w0, const int partly) {
  vf weight[ATT_WIDE];
  vm sees[ATT_WIDE];
  UNROLL for (int w = w0; w < ATT_WIDE; w++) weight[w] = vf_load(p + w * VL);
  UNROLL for (int w = w0; w < ATT_WIDE; w++)
    sees[w] = w - w0 < partly ? attention_reaches(key, reach, w) : vm_first(VL);
  UNROLL for (int r = 0; r < width; r++) {
    vf y = vf_set(x[column[r]]);
    UNROLL for (int w = w0; w < ATT_WIDE; w++) {
      vf next = vf_fma(y, weight[w], sum[r][w]);
      sum[r][w] = w - w0 < partly ? vf_blend(sees[w], next, sum[r][w]) : next;
    }
  }
}

/* out[e][lane] = out[e][lane] * fade[lane] + sum over n keys of x[key][e] * p[key][lane], for
 * `width` columns; `key` as in attention_dots. */
INLINE void attention_columns(float *out, const float *fade, const float *x, int64_t O,
                              const float *p, int64_t n, int64_t key, int64_t reach, int64_t E,
                              const int width) {
  vf sum[ATT_STEP][ATT_WIDE];
  int64_t column[ATT_STEP];
  UNROLL for (int r = 0; r < width; r++) {
    column[r] = r < E ? r : E - 1;
    UNROLL for (int w = 0; w < ATT_WIDE; w++)
      sum[r][w] = vf_load(out + column[r] * ATT_LANES + w * VL) * vf_load(fade + w * VL);
  }
  int64_t open = 1 - key < n ? 1 - key : n, first = attention_seen(n, key, 0), i = 0;
  int64_t old = attention_old(n, key, reach);
#define COLUMNS_STEP(w0, partly)                                                                  \
  attention_columns_step(sum, x + i * O, column, p + i * ATT_LANES, key + i, reach, width, w0,    \
                         partly)
  for (; i < old; i++) COLUMNS_STEP(0, ATT_WIDE);
  for (; i < open; i++) COLUMNS_STEP(0, 0);
  for (; i < first; i++) COLUMNS_STEP(0, 1);
  for (; i < n; i++) COLUMNS_STEP(1, 1);
#undef COLUMNS_STEP
  UNROLL for (int r = 0; r < width; r++)
    UNROLL for (int w = 0; w < ATT_WIDE; w++)
      if (r < E) vf_store(out + r * ATT_LANES + w * VL, sum[r][w]);
}

INLINE void attention_gather(float *out, const float *fade, const float *x, int64_t O,
                             const float *p, int64_t n, int64_t key, int64_t reach, int64_t E) {
  int64_t e = 0;
  for (; e + ATT_STEP / 2 < E; e += ATT_STEP)
    attention_columns(out + e * ATT_LANES, fade, x + e, O, p, n, key, reach, E - e, ATT_STEP);
  if (e < E)
    attention_columns(out + e * ATT_LANES, fade, x + e, O, p, n, key, reach, E - e, ATT_STEP / 2);
}

#endif
