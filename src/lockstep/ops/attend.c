/* attend: attention of rows of several sequences over the caches of these. */
#include "attend_row.h"

/* A call: its buffers and sizes. */
typedef struct {
  float *o_MN;
  const float *q_MN;
  AttendCache all; /* of all sequences and heads */
  const int32_t *positions_M, *slots_M;
  int32_t *room_P; /* or NULL */
  int64_t M, N, G, E, C, heads, group, window;
  double scale;
} AttendCall;

INLINE AttendCache attend_cache(const int type, const AttendCall *c, int64_t slot, int64_t g) {
  int64_t at = (slot * c->G + g) * c->C, size = type == ATTEND_F32 ? 4 : type == ATTEND_F16 ? 2 : 1;
  AttendCache own = {(const char *)c->all.keys + at * c->E * size,
                     (const char *)c->all.values + at * c->E * size, NULL, NULL};
  if (type == ATTEND_Q8_0) {
    own.key_scales = c->all.key_scales + at * attend_scales(c->E);
    own.value_scales = c->all.value_scales + at * attend_scales(c->E);
  }
  return own;
}

INLINE float attend_key(const int type, const AttendCache *cache, int64_t j, int64_t e, int64_t E) {
  int64_t block = j / ATTEND_LANES, lane = j % ATTEND_LANES;
  const uint16_t *scale = cache->key_scales;
  if (scale) scale += (block * attend_scales(E) + e / ATTEND_GROUP) * ATTEND_LANES + lane;
  return attend_element(type, cache->keys, (block * E + e) * ATTEND_LANES + lane, scale);
}

INLINE float attend_value(const int type, const AttendCache *cache, int64_t j, int64_t e,
                          int64_t E) {
  const uint16_t *scale = cache->value_scales;
  if (scale) scale += j * attend_scales(E) + e / ATTEND_GROUP;
  return attend_element(type, cache->values, j * E + e, scale);
}

INLINE void attend_naive(const int type, const AttendCall *c) {
  int64_t E = c->E;
  for (int64_t m = 0; m < c->M; m++)
    for (int64_t h = 0; h < c->heads; h++) {
      const float *q = c->q_MN + m * c->N + h * E;
      AttendCache cache = attend_cache(type, c, c->slots_M[m], h / c->group);
      int64_t last = c->positions_M[m], first = attend_first(last, c->window);
      double top = -INFINITY, sum = 0.0, out[ATTEND_HEAD] = {0.0};
      for (int pass = 0; pass < 2; pass++)
        for (int64_t j = first; j <= last; j++) {
          double dot = 0.0;
          for (int64_t e = 0; e < E; e++) dot += (double)q[e] * attend_key(type, &cache, j, e, E);
          if (pass == 0) top = fmax(top, c->scale * dot);
          double p = pass == 0 ? 0.0 : exp(c->scale * dot - top);
          sum += p;
          for (int64_t e = 0; pass == 1 && e < E; e++)
            out[e] += p * attend_value(type, &cache, j, e, E);
        }
      for (int64_t e = 0; e < E; e++) c->o_MN[m * c->N + h * E + e] = (float)(out[e] / sum);
    }
}

/* Sets up the queries of `rows` rows from m on, `heads` heads from h on. */
INLINE void attend_queries(AttendTile *t, const AttendCall *c, int64_t m, int64_t rows, int64_t h,
                           int64_t heads) {
  t->rows = rows;
  for (int64_t i = 0; i < rows; i++)
    memcpy(t->q + i * heads * c->E, c->q_MN + (m + i) * c->N + h * c->E,
           (size_t)(heads * c->E) * sizeof(float));
}

/* Bounds the keys of a block that each query sees. */
INLINE void attend_bounds(AttendTile *t, const AttendCall *c, int64_t position, int64_t rows,
                          int64_t heads, int64_t block) {
  for (int64_t i = 0; i < rows; i++) {
    int64_t low = attend_first(position + i, c->window) - block * ATTEND_KEYS;
    int64_t high = position + i + 1 - block * ATTEND_KEYS;
    if (low < 0) low = 0;
    if (high > ATTEND_KEYS) high = ATTEND_KEYS;
    if (high <= low) low = high = 0;
    for (int64_t r = i * heads; r < (i + 1) * heads; r++)
      t->low[r] = (int)low, t->high[r] = (int)high;
  }
}

/* One block of keys for all queries of the tile; fills part, part_top and part_sum. */
INLINE void attend_block_of(const int type, AttendTile *t, const AttendCache *cache, int queries,
                            int64_t block, int64_t E, vf unit) {
  int low = ATTEND_KEYS, high = 0;
  for (int r = 0; r < queries; r++) {
    if (t->low[r] >= t->high[r]) continue;
    if (t->low[r] < low) low = t->low[r];
    if (t->high[r] > high) high = t->high[r];
  }
  int64_t key = block * ATTEND_KEYS, S = attend_scales(E);
  int64_t size = type == ATTEND_F32 ? 4 : type == ATTEND_F16 ? 2 : 1;
  const char *keys = (const char *)cache->keys + key * E * size;
  const char *values = (const char *)cache->values + key * E * size;
  const uint16_t *key_scales = attend_scale(type, cache->key_scales, key * S);
  const uint16_t *value_scales = attend_scale(type, cache->value_scales, key * S);
  int is_row = t->rows == 1 && queries <= ATTEND_STEP && E % ATTEND_LANES == 0;
  if (is_row) attend_row_dots(type, t->s, t->q, keys, key_scales, E, size, low, high, queries);
  for (int j = low / ATTEND_LANES * ATTEND_LANES; !is_row && j < high; j += ATTEND_LANES) {
    const float *near = t->near;
    if (type == ATTEND_F32)
      near = (const float *)keys + j * E;
    else
      attend_near_keys(type, t->near, keys + j * E * size, attend_scale(type, key_scales, j * S),
                       E);
    attend_dots(t->s + j, t->q, near, E, queries);
  }
  for (int r = 0; r < queries; r++)
    if (t->low[r] < t->high[r])
      attend_softmax(t->s + r * ATTEND_KEYS, t->low[r], t->high[r], unit, t->part_top + r,
                     t->part_sum + r);
  if (is_row)
    attend_row_values(type, t->part, t->s, values, value_scales, E, size, low, high, queries);
  for (int64_t e = 0; !is_row && e < E; e += ATTEND_LANES) {
    attend_near_values(type, t->near, values, value_scales, low, high, e, E);
    attend_values(t->part + e, attend_stride(E), t->s, t->near, t->low, t->high, queries);
  }
}

ATTEND_SHARED void attend_block_f32(AttendTile *t, const AttendCache *cache, int queries,
                                    int64_t block, int64_t E, vf unit) {
  attend_block_of(ATTEND_F32, t, cache, queries, block, E, unit);
}

ATTEND_SHARED void attend_block_f16(AttendTile *t, const AttendCache *cache, int queries,
                                    int64_t block, int64_t E, vf unit) {
  attend_block_of(ATTEND_F16, t, cache, queries, block, E, unit);
}

ATTEND_SHARED void attend_block_q8_0(AttendTile *t, const AttendCache *cache, int queries,
                                     int64_t block, int64_t E, vf unit) {
  attend_block_of(ATTEND_Q8_0, t, cache, queries, block, E, unit);
}

INLINE void attend_block(const int type, AttendTile *t, const AttendCache *cache, int queries,
                         int64_t block, int64_t E, vf unit) {
  if (type == ATTEND_F32)
    attend_block_f32(t, cache, queries, block, E, unit);
  else if (type == ATTEND_F16)
    attend_block_f16(t, cache, queries, block, E, unit);
  else
    attend_block_q8_0(t, cache, queries, block, E, unit);
}

/* Rows of one sequence at consecutive positions, heads of one head of keys. */
INLINE void attend_rows(const int type, const AttendCall *c, int64_t m, int64_t rows, int64_t h,
                        int64_t heads) {
  AttendTile t;
  int64_t position = c->positions_M[m], E = c->E, queries = rows * heads, wide = attend_stride(E);
  AttendCache cache = attend_cache(type, c, c->slots_M[m], h / c->group);
  vf unit = vf_set((float)(ATTEND_LOG2E * c->scale));
  int64_t begin = attend_first(position, c->window) / ATTEND_KEYS;
  int64_t end = (position + rows - 1) / ATTEND_KEYS + 1;
  int fresh[ATTEND_QUERIES];
  for (int64_t r = 0; r < queries; r++) fresh[r] = 1;
  attend_queries(&t, c, m, rows, h, heads);
  for (int64_t block = begin; block < end; block++) {
    attend_bounds(&t, c, position, rows, heads, block);
    attend_block(type, &t, &cache, (int)queries, block, E, unit);
    for (int64_t r = 0; r < queries; r++) {
      if (t.low[r] >= t.high[r]) continue;
      if (fresh[r]) {
        memcpy(t.out + r * wide, t.part + r * wide, (size_t)wide * sizeof(float));
        t.top[r] = t.part_top[r], t.sum[r] = t.part_sum[r], fresh[r] = 0;
      } else {
        attend_fold(t.out + r * wide, t.top + r, t.sum + r, t.part + r * wide, t.part_top[r],
                    t.part_sum[r], E, unit);
      }
    }
  }
  for (int64_t r = 0; r < queries; r++)
    attend_finish(c->o_MN + (m + r / heads) * c->N + (h + r % heads) * E, t.out + r * wide,
                  t.sum[r], E);
}

/* Few rows: the blocks of one row are shared out too. */
#define ATTEND_SPLIT_ROWS 4
#define ATTEND_SPANS 64

INLINE int64_t attend_n_blocks(int64_t C) { return (C + ATTEND_KEYS - 1) / ATTEND_KEYS; }

INLINE int64_t attend_spans(int64_t M, int64_t G, int64_t C, int64_t P) {
  if (M > ATTEND_SPLIT_ROWS || P == 0 || M * G >= ATTEND_SPANS) return 1;
  int64_t most = attend_n_blocks(C), spans = ATTEND_SPANS / (M * G);
  return spans < most ? spans : most;
}

/* Rows of one tile. */
INLINE int64_t attend_tile_rows(int64_t M, int64_t G, int64_t group) {
  int64_t most = ATTEND_QUERIES / group, rows = M * G / 16;
  if (rows > most) rows = most;
  return rows > 1 ? rows : 1;
}

INLINE int64_t attend_n_tiles(int64_t M, int64_t G, int64_t C, int64_t P, int64_t heads) {
  int64_t spans = attend_spans(M, G, C, P);
  if (spans > 1) return M * G * spans;
  int64_t rows = attend_tile_rows(M, G, heads / G);
  return G * ((M + rows - 1) / rows);
}

/* A share of the blocks of one row. Each block's part goes to the room; whoever comes last folds all
 * of them, in order, and leaves the room as it was. */
INLINE void attend_span(const int type, const AttendCall *c, int64_t m, int64_t g, int64_t h,
                        int64_t heads, int64_t span, int64_t spans) {
  AttendTile t;
  int64_t E = c->E, position = c->positions_M[m], n_blocks = attend_n_blocks(c->C);
  int64_t wide = attend_stride(E), size = wide + 2; /* of a part: top, sum, columns */
  int64_t begin = attend_first(position, c->window) / ATTEND_KEYS;
  int64_t end = position / ATTEND_KEYS + 1, last = end - begin < spans ? end - begin : spans;
  AttendCache cache = attend_cache(type, c, c->slots_M[m], g);
  vf unit = vf_set((float)(ATTEND_LOG2E * c->scale));
  float *parts = (float *)c->room_P + ATTEND_SPLIT_ROWS * c->G;
  parts += (m * c->heads + h) * n_blocks * size;
  if (begin + span >= end) return;
  attend_queries(&t, c, m, 1, h, heads);
  for (int64_t block = begin + span; block < end; block += spans) {
    attend_bounds(&t, c, position, 1, heads, block);
    attend_block(type, &t, &cache, (int)heads, block, E, unit);
    for (int64_t r = 0; r < heads; r++) {
      float *part = parts + (r * n_blocks + block) * size;
      part[0] = t.part_top[r], part[1] = t.part_sum[r];
      memcpy(part + 2, t.part + r * wide, (size_t)wide * sizeof(float));
    }
  }
  int32_t *turn = c->room_P + m * c->G + g;
  if (h + heads < (g + 1) * c->group) return; /* more heads to come, on this thread */
  if (__atomic_add_fetch(turn, 1, __ATOMIC_ACQ_REL) < last) return;
  *turn = 0;
  parts -= (h - g * c->group) * n_blocks * size;
  for (int64_t r = 0; r < c->group; r++) {
    float *part = parts + (r * n_blocks + begin) * size, top = part[0], sum = part[1];
    for (int64_t block = begin + 1; block < end; block++) {
      float *next = part + (block - begin) * size;
      attend_fold(part + 2, &top, &sum, next + 2, next[0], next[1], E, unit);
    }
    attend_finish(c->o_MN + m * c->N + (g * c->group + r) * E, part + 2, sum, E);
    memset(part, 0, (size_t)((end - begin) * size) * sizeof(float));
  }
}

/* Whether a row is the next one of the sequence of the row before it. */
INLINE int attend_follows(const AttendCall *c, int64_t m) {
  return c->slots_M[m] == c->slots_M[m - 1] && c->positions_M[m] == c->positions_M[m - 1] + 1;
}

INLINE void attend_tile(const int type, const AttendCall *c, int64_t P, int64_t tile) {
  int64_t spans = attend_spans(c->M, c->G, c->C, P), heads = c->group;
  if (heads > ATTEND_QUERIES) heads = ATTEND_QUERIES;
  if (spans > 1) {
    int64_t g = tile / spans % c->G, m = tile / spans / c->G;
    int64_t first = attend_first(c->positions_M[m], c->window) / ATTEND_KEYS;
    int is_one = first == c->positions_M[m] / ATTEND_KEYS;
    for (int64_t i = 0; i < c->group; i += heads) {
      int64_t h = g * c->group + i, n = c->group - i < heads ? c->group - i : heads;
      if (!is_one)
        attend_span(type, c, m, g, h, n, tile % spans, spans);
      else if (tile % spans == 0)
        attend_rows(type, c, m, 1, h, n);
    }
    return;
  }
  int64_t rows = attend_tile_rows(c->M, c->G, c->group), n_tiles = (c->M + rows - 1) / rows;
  int64_t g = tile / n_tiles, m = tile % n_tiles * rows, stop = m + rows;
  if (stop > c->M) stop = c->M;
  while (m < stop) {
    int64_t end = m + 1;
    while (end < stop && attend_follows(c, end)) end++;
    for (int64_t i = 0; i < c->group; i += heads)
      attend_rows(type, c, m, end - m, g * c->group + i,
                  c->group - i < heads ? c->group - i : heads);
    m = end;
  }
}

#define ATTEND_SIZES int64_t M, int64_t N, int64_t L, int64_t G, int64_t J, int64_t E, int64_t Q
#define ATTEND_ATTRS int64_t heads, int64_t kv_heads, int64_t window, double scale
#define ATTEND_CALL \
  (void)L, (void)J, (void)Q, (void)P, (void)kv_heads; \
  const AttendCall c = { \
      o_MN, q_MN,  all,       positions_M, slots_M, (int32_t *)room_P, M, N, G, E, \
      C,    heads, heads / G, window,      scale}
#define ATTEND_COUNT \
  (void)N, (void)L, (void)J, (void)E, (void)Q, (void)kv_heads, (void)window, (void)scale; \
  return attend_n_tiles(M, G, C, P, heads)

KERNEL void attend_f32_naive(float *o_MN, const float *q_MN, const float *keys_LGJEQ,
                             const float *values_LGCE, const int32_t *positions_M,
                             const int32_t *slots_M, const int32_t *room_P, ATTEND_SIZES, int64_t C,
                             int64_t P, ATTEND_ATTRS) {
  const AttendCache all = {keys_LGJEQ, values_LGCE, NULL, NULL};
  ATTEND_CALL;
  attend_naive(ATTEND_F32, &c);
}

KERNEL int64_t attend_f32_tiles(ATTEND_SIZES, int64_t C, int64_t P, ATTEND_ATTRS) { ATTEND_COUNT; }

KERNEL void attend_f32(float *o_MN, const float *q_MN, const float *keys_LGJEQ,
                       const float *values_LGCE, const int32_t *positions_M, const int32_t *slots_M,
                       const int32_t *room_P, ATTEND_SIZES, int64_t C, int64_t P, ATTEND_ATTRS,
                       int64_t tile) {
  const AttendCache all = {keys_LGJEQ, values_LGCE, NULL, NULL};
  ATTEND_CALL;
  attend_tile(ATTEND_F32, &c, P, tile);
}

KERNEL void attend_f16_naive(float *o_MN, const float *q_MN, const uint16_t *keys_LGJEQ,
                             const uint16_t *values_LGCE, const int32_t *positions_M,
                             const int32_t *slots_M, const int32_t *room_P, ATTEND_SIZES, int64_t C,
                             int64_t P, ATTEND_ATTRS) {
  const AttendCache all = {keys_LGJEQ, values_LGCE, NULL, NULL};
  ATTEND_CALL;
  attend_naive(ATTEND_F16, &c);
}

KERNEL int64_t attend_f16_tiles(ATTEND_SIZES, int64_t C, int64_t P, ATTEND_ATTRS) { ATTEND_COUNT; }

KERNEL void attend_f16(float *o_MN, const float *q_MN, const uint16_t *keys_LGJEQ,
                       const uint16_t *values_LGCE, const int32_t *positions_M,
                       const int32_t *slots_M, const int32_t *room_P, ATTEND_SIZES, int64_t C,
                       int64_t P, ATTEND_ATTRS, int64_t tile) {
  const AttendCache all = {keys_LGJEQ, values_LGCE, NULL, NULL};
  ATTEND_CALL;
  attend_tile(ATTEND_F16, &c, P, tile);
}

KERNEL void attend_q8_0_naive(float *o_MN, const float *q_MN, const int8_t *keys_LGJEQ,
                              const uint16_t *kscale_LGJSQ, const int8_t *values_LGCE,
                              const uint16_t *vscale_LGCS, const int32_t *positions_M,
                              const int32_t *slots_M, const int32_t *room_P, ATTEND_SIZES,
                              int64_t S, int64_t C, int64_t P, ATTEND_ATTRS) {
  (void)S;
  const AttendCache all = {keys_LGJEQ, values_LGCE, kscale_LGJSQ, vscale_LGCS};
  ATTEND_CALL;
  attend_naive(ATTEND_Q8_0, &c);
}

KERNEL int64_t attend_q8_0_tiles(ATTEND_SIZES, int64_t S, int64_t C, int64_t P, ATTEND_ATTRS) {
  (void)S;
  ATTEND_COUNT;
}

KERNEL void attend_q8_0(float *o_MN, const float *q_MN, const int8_t *keys_LGJEQ,
                        const uint16_t *kscale_LGJSQ, const int8_t *values_LGCE,
                        const uint16_t *vscale_LGCS, const int32_t *positions_M,
                        const int32_t *slots_M, const int32_t *room_P, ATTEND_SIZES, int64_t S,
                        int64_t C, int64_t P, ATTEND_ATTRS, int64_t tile) {
  (void)S;
  const AttendCache all = {keys_LGJEQ, values_LGCE, kscale_LGJSQ, vscale_LGCS};
  ATTEND_CALL;
  attend_tile(ATTEND_Q8_0, &c, P, tile);
}

/* attend_room: the room that attend borrows; whole numbers, so that zeros are zeros. */
KERNEL void attend_room_naive(int32_t *room_P, int64_t P, int64_t size) {
  (void)size;
  memset(room_P, 0, (size_t)P * sizeof(int32_t));
}

KERNEL int64_t attend_room_fill_tiles(int64_t P, int64_t size) {
  (void)P, (void)size;
  return 1;
}

KERNEL void attend_room_fill(int32_t *room_P, int64_t P, int64_t size, int64_t tile) {
  (void)tile;
  attend_room_naive(room_P, P, size);
}
