/* What the kernels of attend share: attention of the rows of several sequences over their caches.
 *
 * Every row and head has one fixed arithmetic, whatever else is in the call. Keys are taken in
 * blocks of ATTEND_KEYS from position 0. In a block: the dots with the keys (lanes are keys, each
 * sums over the head in order), the softmax with the block's own top, the weighted sum of the values
 * (lanes are columns, each sums over the keys in order). Then the blocks are folded in order. So a
 * block may be worked on by another thread, and rows together or alone: the bits are the same. */
#ifndef LOCKSTEP_ATTEND_H
#define LOCKSTEP_ATTEND_H

#include "vec_math.h"

#define ATTEND_KEYS 256       /* keys in one block */
#define ATTEND_LANES 16       /* keys that lie side by side in the cache: axis Q */
#define ATTEND_VECS (16 / VL) /* vectors of these */
#define ATTEND_GROUP 32       /* elements that share a scale in a cache of bytes */
#define ATTEND_RUN 64         /* products in one chain; longer dots add up chains */
#define ATTEND_HEAD 256       /* the widest head */
#define ATTEND_QUERIES 48     /* queries (rows times heads) that are worked on together */
#define ATTEND_LOG2E 1.4426950408889634
#define ATTEND_ALIGNED __attribute__((aligned(64)))
/* One copy in a program, however many kernels call it. */
#define ATTEND_SHARED static __attribute__((noinline, unused))

/* ATTEND_STEP: queries in one register tile; ATTEND_EACH(F): F for so many and all fewer.
 * ATTEND_BLOCKS: of how many blocks of lanes so few queries take the dots at once, that enough sums
 * are under way. */
#if VL == 16
#define ATTEND_STEP 12
#define ATTEND_EACH(F) F(1) F(2) F(3) F(4) F(5) F(6) F(7) F(8) F(9) F(10) F(11) F(12)
#define ATTEND_BLOCKS(n) ((n) == 1 ? 8 : (n) <= 3 ? 4 : (n) <= 6 ? 2 : 1)
#elif VL == 4 && !defined(__ARM_NEON)
#define ATTEND_STEP 2
#define ATTEND_EACH(F) F(1) F(2)
#define ATTEND_BLOCKS(n) 1
#else
#define ATTEND_STEP 6
#define ATTEND_EACH(F) F(1) F(2) F(3) F(4) F(5) F(6)
#define ATTEND_BLOCKS(n) ((n) == 1 ? 4 : (n) <= 3 ? 2 : 1)
#endif
#define ATTEND_WIDE (ATTEND_BLOCKS(1) * ATTEND_VECS) /* vectors of lanes at once, at most */

enum { ATTEND_F32, ATTEND_F16, ATTEND_Q8_0 };

/* The caches of one sequence and one head of keys. */
typedef struct {
  const void *keys, *values;
  const uint16_t *key_scales, *value_scales; /* of caches of bytes */
} AttendCache;

/* Queries that are worked on together, those of one row side by side, and what they have gathered:
 * weights are 2^(unit * (dot - top)). `low` and `high` bound the keys of a block that a query sees. */
typedef struct {
  ATTEND_ALIGNED float q[ATTEND_QUERIES * ATTEND_HEAD];
  ATTEND_ALIGNED float s[ATTEND_QUERIES * ATTEND_KEYS];
  ATTEND_ALIGNED float part[ATTEND_QUERIES * ATTEND_HEAD], out[ATTEND_QUERIES * ATTEND_HEAD];
  ATTEND_ALIGNED float near[ATTEND_KEYS * ATTEND_LANES];
  float top[ATTEND_QUERIES], sum[ATTEND_QUERIES];           /* of all blocks so far */
  float part_top[ATTEND_QUERIES], part_sum[ATTEND_QUERIES]; /* of this block */
  int low[ATTEND_QUERIES], high[ATTEND_QUERIES];
  int64_t rows;
} AttendTile;

INLINE int64_t attend_scales(int64_t E) { return (E + ATTEND_GROUP - 1) / ATTEND_GROUP; }

/* Columns of a row of part or out: whole vectors. */
INLINE int64_t attend_stride(int64_t E) { return (E + ATTEND_LANES - 1) & -ATTEND_LANES; }

INLINE int64_t attend_first(int64_t position, int64_t window) {
  return window && position >= window ? position - window + 1 : 0;
}

/* Where the scales at this place lie; caches of other types have none. */
INLINE const uint16_t *attend_scale(const int type, const uint16_t *scales, int64_t at) {
  return type == ATTEND_Q8_0 ? scales + at : NULL;
}

/* One element of a cache; exact. */
INLINE float attend_element(const int type, const void *x, int64_t at, const uint16_t *scale) {
  if (type == ATTEND_F32) return ((const float *)x)[at];
  if (type == ATTEND_F16) return half_to_float(((const uint16_t *)x)[at]);
  return (float)((const int8_t *)x)[at] * half_to_float(*scale);
}

/* VL elements of a cache; exact, for a scale has 11 bits. */
INLINE vf attend_load(const int type, const void *x, int64_t at, vf scale) {
  if (type == ATTEND_F32) return vf_load((const float *)x + at);
  if (type == ATTEND_F16) return vf_load_half((const uint16_t *)x + at);
  return vf_load_byte((const int8_t *)x + at) * scale;
}

/* Has an element's cache line read ahead of time: processors do not look beyond a page. */
INLINE void attend_fetch(const int type, const void *x, int64_t at) {
  __builtin_prefetch((const char *)x + at * (type == ATTEND_F32 ? 4 : type == ATTEND_F16 ? 2 : 1));
}

/* 16 keys as they lie in the cache, in float. */
INLINE void attend_near_keys(const int type, float *near, const void *keys, const uint16_t *scales,
                             int64_t E) {
  for (int64_t begin = 0; begin < E; begin += ATTEND_GROUP) {
    int64_t end = begin + ATTEND_GROUP < E ? begin + ATTEND_GROUP : E;
  UNROLL for (int w = 0; w < ATTEND_VECS; w++) {
      vf scale = vf_zero();
      if (type == ATTEND_Q8_0)
        scale = vf_load_half(scales + begin / ATTEND_GROUP * ATTEND_LANES + w * VL);
      for (int64_t e = begin; e < end; e++) {
        int64_t at = e * ATTEND_LANES + w * VL;
        vf_store(near + at, attend_load(type, keys, at, scale));
      }
    }
  }
}

/* Columns e to e + 15 of the values of keys from..to-1, in float; 0 past the end of the head. */
INLINE void attend_near_values(const int type, float *near, const void *values,
                               const uint16_t *scales, int64_t from, int64_t to, int64_t e,
                               int64_t E) {
  int64_t S = attend_scales(E), n = E - e < ATTEND_LANES ? E - e : ATTEND_LANES;
  for (int64_t i = from; i < to; i++) {
    const uint16_t *own = attend_scale(type, scales, i * S + e / ATTEND_GROUP);
    float *x = near + i * ATTEND_LANES;
    if (n == ATTEND_LANES) {
      vf scale = type == ATTEND_Q8_0 ? vf_set_half(*own) : vf_zero();
      UNROLL for (int w = 0; w < ATTEND_VECS; w++)
        vf_store(x + w * VL, attend_load(type, values, i * E + e + w * VL, scale));
    } else {
      for (int64_t c = 0; c < n; c++) x[c] = attend_element(type, values, i * E + e + c, own);
      for (int64_t c = n; c < ATTEND_LANES; c++) x[c] = 0.0f;
    }
  }
}

/* s[query][key] = sum_e q[query][e] * k[e][key] for `blocks` times 16 keys as they lie in a cache of
 * this type, while what lies `ahead` of them is fetched, if it is. */
INLINE void attend_dots_step(const int type, float *s, const float *q, const void *keys,
                             const uint16_t *scales, int64_t E, const int queries,
                             const int blocks, const int64_t ahead) {
  const int wide = blocks * ATTEND_VECS;
  int64_t S = attend_scales(E);
  for (int64_t begin = 0; begin < E; begin += ATTEND_RUN) {
    vf sum[ATTEND_STEP][ATTEND_WIDE], scale[ATTEND_WIDE];
    UNROLL for (int r = 0; r < queries; r++)
      UNROLL for (int w = 0; w < wide; w++) sum[r][w] = vf_zero();
    for (int64_t part = begin; part < begin + ATTEND_RUN && part < E; part += ATTEND_GROUP) {
      int64_t end = part + ATTEND_GROUP < E ? part + ATTEND_GROUP : E;
      UNROLL for (int w = 0; w < wide; w++) {
        int64_t at = (w / ATTEND_VECS * S + part / ATTEND_GROUP) * ATTEND_LANES;
        scale[w] = type == ATTEND_Q8_0 ? vf_load_half(scales + at + w % ATTEND_VECS * VL) : vf_zero();
      }
      for (int64_t e = part; e < end; e++) {
        vf lanes[ATTEND_WIDE];
        UNROLL for (int w = 0; w < wide; w++) {
          int64_t at = (w / ATTEND_VECS * E + e) * ATTEND_LANES + w % ATTEND_VECS * VL;
          lanes[w] = attend_load(type, keys, at, scale[w]);
          if (ahead && w % ATTEND_VECS == 0) attend_fetch(type, keys, at + ahead);
        }
        UNROLL for (int r = 0; r < queries; r++) {
          vf x = vf_set(q[r * E + e]);
          UNROLL for (int w = 0; w < wide; w++) sum[r][w] = vf_fma(x, lanes[w], sum[r][w]);
        }
      }
    }
    UNROLL for (int r = 0; r < queries; r++)
      UNROLL for (int w = 0; w < wide; w++) {
        float *out = s + r * ATTEND_KEYS + w * VL;
        vf_store(out, begin ? vf_add(vf_load(out), sum[r][w]) : sum[r][w]);
      }
  }
}

/* How many of `left` queries the next register tile takes: all tiles are nearly of one size. */
INLINE int attend_step(int left) {
  int steps = (left + ATTEND_STEP - 1) / ATTEND_STEP;
  return (left + steps - 1) / steps;
}

ATTEND_SHARED void attend_dots(float *s, const float *q, const float *k, int64_t E, int queries) {
#define DOTS(n)                                                                                    \
  case n: attend_dots_step(ATTEND_F32, s, q, k, NULL, E, n, 1, 0); break;
  for (int n; queries > 0; queries -= n, s += n * ATTEND_KEYS, q += n * E)
    switch (n = attend_step(queries)) { ATTEND_EACH(DOTS) }
#undef DOTS
}

/* Turns the dots of keys low..high-1 of a block into weights, and says their top and sum. */
ATTEND_SHARED void attend_softmax(float *s, int low, int high, vf unit, float *top, float *sum) {
  const vf lowest = vf_set(-INFINITY);
  int begin = low / VL, end = (high + VL - 1) / VL;
  vf most = lowest, total[2] = {vf_zero(), vf_zero()};
  for (int i = begin; i < end; i++) {
    vf x = vf_load(s + i * VL);
    if (i * VL < low || (i + 1) * VL > high) {
      vm seen = vm_and(vm_first(high - i * VL), vm_not(vm_first(low - i * VL)));
      x = vf_blend(seen, x, lowest);
      vf_store(s + i * VL, x);
    }
    most = vf_max(most, x);
  }
  *top = vf_hmax(most);
  vf shift = vf_set(*top == -INFINITY ? 0.0f : *top) * unit; /* then all weights are 0 */
  for (int i = begin; i < end; i++) {
    vf p = vf_exp2(vf_fma(vf_load(s + i * VL), unit, -shift));
    vf_store(s + i * VL, p);
    total[i % 2] = total[i % 2] + p;
  }
  *sum = vf_sum(total[0] + total[1]);
}

/* part[query][column] = sum over the keys that each query sees of p[query][key] * v[key][column], for
 * 16 columns. */
INLINE void attend_values_step(float *part, int64_t stride, const float *p, const float *v,
                               const int *low, const int *high, const int queries) {
  vf sum[ATTEND_STEP][ATTEND_VECS];
  int begin = low[0], end = high[0], from = low[0], to = high[0];
  UNROLL for (int r = 0; r < queries; r++) {
    if (low[r] < begin) begin = low[r];
    if (low[r] > from) from = low[r];
    if (high[r] > end) end = high[r];
    if (high[r] < to) to = high[r];
    UNROLL for (int w = 0; w < ATTEND_VECS; w++) sum[r][w] = vf_zero();
  }
  if (from > to) from = to = end; /* no key that all of them see */
  for (int i = begin; i < end; i++) {
    vf lanes[ATTEND_VECS];
    UNROLL for (int w = 0; w < ATTEND_VECS; w++) lanes[w] = vf_load(v + i * ATTEND_LANES + w * VL);
    if (i >= from && i < to) {
      UNROLL for (int r = 0; r < queries; r++) {
        vf x = vf_set(p[r * ATTEND_KEYS + i]);
        UNROLL for (int w = 0; w < ATTEND_VECS; w++) sum[r][w] = vf_fma(x, lanes[w], sum[r][w]);
      }
    } else {
      UNROLL for (int r = 0; r < queries; r++)
        if (i >= low[r] && i < high[r]) {
          vf x = vf_set(p[r * ATTEND_KEYS + i]);
          UNROLL for (int w = 0; w < ATTEND_VECS; w++) sum[r][w] = vf_fma(x, lanes[w], sum[r][w]);
        }
    }
  }
  UNROLL for (int r = 0; r < queries; r++)
    UNROLL for (int w = 0; w < ATTEND_VECS; w++) vf_store(part + r * stride + w * VL, sum[r][w]);
}

ATTEND_SHARED void attend_values(float *part, int64_t stride, const float *p, const float *v,
                                 const int *low, const int *high, int queries) {
#define VALUES(n)                                                                                  \
  case n: attend_values_step(part, stride, p, v, low + r, high + r, n); break;
  for (int r = 0, n; r < queries; r += n, part += n * stride, p += n * ATTEND_KEYS)
    switch (n = attend_step(queries - r)) { ATTEND_EACH(VALUES) }
#undef VALUES
}

/* Folds a block into what was gathered before: x = x * 2^(..) + part * 2^(..), to the common top. */
ATTEND_SHARED void attend_fold(float *out, float *top, float *sum, const float *part, float part_top,
                        float part_sum, int64_t E, vf unit) {
  float most = *top > part_top ? *top : part_top;
  vf shift = vf_set(most == -INFINITY ? 0.0f : most) * unit;
  vf old = vf_exp2(vf_set(*top) * unit - shift); /* exactly 1 for an old top */
  vf new = vf_exp2(vf_set(part_top) * unit - shift);
  float both[VL];
  vf_store(both, vf_fma(vf_set(*sum), old, vf_set(part_sum) * new));
  *sum = both[0];
  *top = most;
  for (int64_t e = 0; e < attend_stride(E); e += VL)
    vf_store(out + e, vf_fma(vf_load(out + e), old, vf_load(part + e) * new));
}

/* o = out / sum. */
INLINE void attend_finish(float *o, const float *out, float sum, int64_t E) {
  vf factor = vf_set(1.0f) / vf_set(sum);
  int64_t e = 0;
  for (; e + VL <= E; e += VL) vf_store(o + e, vf_load(out + e) * factor);
  if (e < E) vf_store_n(o + e, vf_load_n(out + e, E - e) * factor, E - e);
}

#endif
