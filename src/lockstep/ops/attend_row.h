/* The few queries of a single row, straight from the cache: they would not pay for a conversion of
 * keys and values in advance, and take several blocks of lanes at once to keep sums under way. */
#ifndef LOCKSTEP_ATTEND_ROW_H
#define LOCKSTEP_ATTEND_ROW_H

#include "attend.h"

#define ATTEND_FEW 32 /* keys whose values are read together */

/* The dots of at most ATTEND_STEP queries with the keys low..high-1 of a block. */
INLINE void attend_row_dots(const int type, float *s, const float *q, const char *keys,
                            const uint16_t *scales, int64_t E, int64_t size, int low, int high,
                            int queries) {
  int64_t S = attend_scales(E);
  int j = low / ATTEND_LANES * ATTEND_LANES;
#define DOTS(n, blocks) \
  for (; j + (blocks - 1) * ATTEND_LANES < high; j += blocks * ATTEND_LANES) \
    attend_dots_step(type, s + j, q, keys + j * E * size, attend_scale(type, scales, j * S), E, n, \
                     blocks, blocks * E * ATTEND_LANES);
#define ROW_DOTS(n) \
  case n: \
    if (ATTEND_BLOCKS(n) > 1) DOTS(n, ATTEND_BLOCKS(n)) \
    DOTS(n, 1) \
    break;
  switch (queries) { ATTEND_EACH(ROW_DOTS) }
#undef ROW_DOTS
#undef DOTS
}

/* part[query][column] += sum over keys from..to-1 of p[query][key] * v[key][column] for `blocks` times
 * 16 columns, straight from the cache. */
INLINE void attend_row_step(const int type, float *part, int64_t stride, const float *p,
                            const void *values, const uint16_t *scales, int64_t E, int from, int to,
                            const int queries, const int blocks) {
  const int wide = blocks * ATTEND_VECS;
  int64_t S = attend_scales(E);
  vf sum[ATTEND_STEP][ATTEND_WIDE];
  UNROLL for (int r = 0; r < queries; r++)
    UNROLL for (int w = 0; w < wide; w++) sum[r][w] = vf_load(part + r * stride + w * VL);
  for (int i = from; i < to; i++) {
    vf lanes[ATTEND_WIDE], scale = vf_zero();
    UNROLL for (int w = 0; w < wide; w++) {
      if (type == ATTEND_Q8_0 && w * VL % ATTEND_GROUP == 0)
        scale = vf_set_half(scales[i * S + w * VL / ATTEND_GROUP]);
      lanes[w] = attend_load(type, values, i * E + w * VL, scale);
      if (w % ATTEND_VECS == 0) attend_fetch(type, values, (i + ATTEND_FEW) * E + w * VL);
    }
    UNROLL for (int r = 0; r < queries; r++) {
      vf x = vf_set(p[r * ATTEND_KEYS + i]);
      UNROLL for (int w = 0; w < wide; w++) sum[r][w] = vf_fma(x, lanes[w], sum[r][w]);
    }
  }
  UNROLL for (int r = 0; r < queries; r++)
    UNROLL for (int w = 0; w < wide; w++) vf_store(part + r * stride + w * VL, sum[r][w]);
}

/* The sums of all columns, for at most ATTEND_STEP queries; E is a multiple of 16. The keys are taken
 * a few at a time, so that the cache is read from front to back. */
INLINE void attend_row_values(const int type, float *part, const float *p, const char *values,
                              const uint16_t *scales, int64_t E, int64_t size, int low, int high,
                              int queries) {
  memset(part, 0, (size_t)(queries * E) * sizeof(float));
  for (int from = low, to; from < high; from = to) {
    to = (from / ATTEND_FEW + 1) * ATTEND_FEW;
    if (to > high) to = high;
    int64_t e = 0;
#define VALUES(n, blocks) \
  for (; e + blocks * ATTEND_LANES <= E; e += blocks * ATTEND_LANES) \
    attend_row_step(type, part + e, E, p, values + e * size, attend_scale(type, scales, e / ATTEND_GROUP), E, from, \
                    to, n, blocks);
#define ROW_VALUES(n) \
  case n: \
    if (ATTEND_BLOCKS(n) > 1) VALUES(n, ATTEND_BLOCKS(n)) \
    VALUES(n, 1) \
    break;
    switch (queries) { ATTEND_EACH(ROW_VALUES) }
#undef ROW_VALUES
#undef VALUES
  }
}

#endif
