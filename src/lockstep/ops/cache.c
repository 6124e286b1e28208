/* Rows into the caches of their sequences, and rows out of many. */
#include "vec.h"

/* cache_keys, cache_values: rows of keys and values go to the caches of their sequences, each at its
 * own position. The caches are states: what no row is written to stays as it is. Bytes come with a
 * scale in half precision for every 32 elements of a row. */
#define CACHE_LANES 16 /* positions that lie side by side in a cache of keys: axis Q */
#define CACHE_GROUP 32

INLINE int8_t cache_byte(float x, float scale) {
  if (!(scale > 0.0f && scale < INFINITY)) return 0;
  float y = nearbyintf(x / scale);
  return (int8_t)(y > 127.0f ? 127.0f : y < -127.0f ? -127.0f : y);
}

INLINE uint16_t cache_scale(const float *x, int64_t n) {
  float most = 0.0f;
  for (int64_t i = 0; i < n; i++) {
    float size = fabsf(x[i]);
    if (!(size <= most)) most = size; /* a NaN stays */
    if (most != most) break;
  }
  return float_to_half(most / 127.0f);
}

/* One head of one row of keys: element e lies `step` elements after element e - 1. */
INLINE void cache_put_f32(float *to, const float *x, int64_t E, int64_t step) {
  for (int64_t e = 0; e < E; e++) to[e * step] = x[e];
}

INLINE void cache_put_f16(uint16_t *to, const float *x, int64_t E, int64_t step) {
  const int64_t whole = E / VL * VL;
  for (int64_t e = 0; e < whole; e += VL) {
    uint16_t half[VL];
    vf_store_half(half, vf_load(x + e));
    for (int i = 0; i < VL; i++) to[(e + i) * step] = half[i];
  }
  for (int64_t e = whole; e < E; e++) to[e * step] = float_to_half(x[e]);
}

INLINE void cache_put_q8_0(int8_t *to, uint16_t *scale, const float *x, int64_t E, int64_t step) {
  for (int64_t e = 0; e < E; e += CACHE_GROUP) {
    int64_t n = E - e < CACHE_GROUP ? E - e : CACHE_GROUP;
    uint16_t half = cache_scale(x + e, n);
    float factor = half_to_float(half);
    scale[e / CACHE_GROUP * step] = half;
    for (int64_t i = e; i < e + n; i++) to[i * step] = cache_byte(x[i], factor);
  }
}

/* Where element 0 of a head of a row lies, and in `scales` its first scale. */
INLINE int64_t cache_key_at(int64_t slot, int64_t g, int64_t position, int64_t G, int64_t J,
                            int64_t E) {
  return ((slot * G + g) * J + position / CACHE_LANES) * E * CACHE_LANES + position % CACHE_LANES;
}

INLINE int64_t cache_value_at(int64_t slot, int64_t g, int64_t position, int64_t G, int64_t C,
                              int64_t E) {
  return ((slot * G + g) * C + position) * E;
}

KERNEL void cache_keys_f32_naive(float *keys_out, const float *k_MO, const float *keys_LGJEQ,
                                 const int32_t *positions_M, const int32_t *slots_M, int64_t M,
                                 int64_t O, int64_t L, int64_t G, int64_t J, int64_t E, int64_t Q) {
  (void)keys_LGJEQ, (void)L, (void)Q;
  for (int64_t m = 0; m < M; m++)
    for (int64_t o = 0; o < O; o++) {
      int64_t g = o / E, at = cache_key_at(slots_M[m], g, positions_M[m], G, J, E);
      keys_out[at + o % E * CACHE_LANES] = k_MO[m * O + o];
    }
}

KERNEL void cache_keys_f32(float *keys_out, const float *k_MO, const float *keys_LGJEQ,
                           const int32_t *positions_M, const int32_t *slots_M, int64_t M, int64_t O,
                           int64_t L, int64_t G, int64_t J, int64_t E, int64_t Q, int64_t row_begin,
                           int64_t row_end) {
  (void)M, (void)keys_LGJEQ, (void)L, (void)Q;
  for (int64_t m = row_begin; m < row_end; m++)
    for (int64_t g = 0; g < G; g++)
      cache_put_f32(keys_out + cache_key_at(slots_M[m], g, positions_M[m], G, J, E),
                    k_MO + m * O + g * E, E, CACHE_LANES);
}

KERNEL void cache_keys_f16_naive(uint16_t *keys_out, const float *k_MO, const uint16_t *keys_LGJEQ,
                                 const int32_t *positions_M, const int32_t *slots_M, int64_t M,
                                 int64_t O, int64_t L, int64_t G, int64_t J, int64_t E, int64_t Q) {
  (void)keys_LGJEQ, (void)L, (void)Q;
  for (int64_t m = 0; m < M; m++)
    for (int64_t o = 0; o < O; o++) {
      int64_t g = o / E, at = cache_key_at(slots_M[m], g, positions_M[m], G, J, E);
      keys_out[at + o % E * CACHE_LANES] = float_to_half(k_MO[m * O + o]);
    }
}

KERNEL void cache_keys_f16(uint16_t *keys_out, const float *k_MO, const uint16_t *keys_LGJEQ,
                           const int32_t *positions_M, const int32_t *slots_M, int64_t M, int64_t O,
                           int64_t L, int64_t G, int64_t J, int64_t E, int64_t Q, int64_t row_begin,
                           int64_t row_end) {
  (void)M, (void)keys_LGJEQ, (void)L, (void)Q;
  for (int64_t m = row_begin; m < row_end; m++)
    for (int64_t g = 0; g < G; g++)
      cache_put_f16(keys_out + cache_key_at(slots_M[m], g, positions_M[m], G, J, E),
                    k_MO + m * O + g * E, E, CACHE_LANES);
}

KERNEL void cache_keys_q8_0(int8_t *keys_out, uint16_t *scale_out, const float *k_MO,
                            const int8_t *keys_LGJEQ, const uint16_t *scale_LGJSQ,
                            const int32_t *positions_M, const int32_t *slots_M, int64_t M,
                            int64_t O, int64_t L, int64_t G, int64_t J, int64_t E, int64_t Q,
                            int64_t S, int64_t row_begin, int64_t row_end) {
  (void)M, (void)keys_LGJEQ, (void)scale_LGJSQ, (void)L, (void)Q;
  for (int64_t m = row_begin; m < row_end; m++)
    for (int64_t g = 0; g < G; g++)
      cache_put_q8_0(keys_out + cache_key_at(slots_M[m], g, positions_M[m], G, J, E),
                     scale_out + cache_key_at(slots_M[m], g, positions_M[m], G, J, S),
                     k_MO + m * O + g * E, E, CACHE_LANES);
}

KERNEL void cache_keys_q8_0_naive(int8_t *keys_out, uint16_t *scale_out, const float *k_MO,
                                  const int8_t *keys_LGJEQ, const uint16_t *scale_LGJSQ,
                                  const int32_t *positions_M, const int32_t *slots_M, int64_t M,
                                  int64_t O, int64_t L, int64_t G, int64_t J, int64_t E, int64_t Q,
                                  int64_t S) {
  (void)L, (void)G, (void)E;
  cache_keys_q8_0(keys_out, scale_out, k_MO, keys_LGJEQ, scale_LGJSQ, positions_M, slots_M, M, O, L,
                  G, J, E, Q, S, 0, M);
}

KERNEL void cache_values_f32_naive(float *values_out, const float *v_MO, const float *values_LGCE,
                                   const int32_t *positions_M, const int32_t *slots_M, int64_t M,
                                   int64_t O, int64_t L, int64_t G, int64_t C, int64_t E) {
  (void)values_LGCE, (void)L;
  for (int64_t m = 0; m < M; m++)
    for (int64_t o = 0; o < O; o++) {
      int64_t g = o / E, at = cache_value_at(slots_M[m], g, positions_M[m], G, C, E);
      values_out[at + o % E * 1] = v_MO[m * O + o];
    }
}

KERNEL void cache_values_f32(float *values_out, const float *v_MO, const float *values_LGCE,
                             const int32_t *positions_M, const int32_t *slots_M, int64_t M,
                             int64_t O, int64_t L, int64_t G, int64_t C, int64_t E,
                             int64_t row_begin, int64_t row_end) {
  (void)M, (void)values_LGCE, (void)L;
  for (int64_t m = row_begin; m < row_end; m++)
    for (int64_t g = 0; g < G; g++)
      cache_put_f32(values_out + cache_value_at(slots_M[m], g, positions_M[m], G, C, E),
                    v_MO + m * O + g * E, E, 1);
}

KERNEL void cache_values_f16_naive(uint16_t *values_out, const float *v_MO,
                                   const uint16_t *values_LGCE, const int32_t *positions_M,
                                   const int32_t *slots_M, int64_t M, int64_t O, int64_t L,
                                   int64_t G, int64_t C, int64_t E) {
  (void)values_LGCE, (void)L;
  for (int64_t m = 0; m < M; m++)
    for (int64_t o = 0; o < O; o++) {
      int64_t g = o / E, at = cache_value_at(slots_M[m], g, positions_M[m], G, C, E);
      values_out[at + o % E * 1] = float_to_half(v_MO[m * O + o]);
    }
}

KERNEL void cache_values_f16(uint16_t *values_out, const float *v_MO, const uint16_t *values_LGCE,
                             const int32_t *positions_M, const int32_t *slots_M, int64_t M,
                             int64_t O, int64_t L, int64_t G, int64_t C, int64_t E,
                             int64_t row_begin, int64_t row_end) {
  (void)M, (void)values_LGCE, (void)L;
  for (int64_t m = row_begin; m < row_end; m++)
    for (int64_t g = 0; g < G; g++)
      cache_put_f16(values_out + cache_value_at(slots_M[m], g, positions_M[m], G, C, E),
                    v_MO + m * O + g * E, E, 1);
}

KERNEL void cache_values_q8_0(int8_t *values_out, uint16_t *scale_out, const float *v_MO,
                              const int8_t *values_LGCE, const uint16_t *scale_LGCS,
                              const int32_t *positions_M, const int32_t *slots_M, int64_t M,
                              int64_t O, int64_t L, int64_t G, int64_t C, int64_t E, int64_t S,
                              int64_t row_begin, int64_t row_end) {
  (void)M, (void)values_LGCE, (void)scale_LGCS, (void)L;
  for (int64_t m = row_begin; m < row_end; m++)
    for (int64_t g = 0; g < G; g++)
      cache_put_q8_0(values_out + cache_value_at(slots_M[m], g, positions_M[m], G, C, E),
                     scale_out + cache_value_at(slots_M[m], g, positions_M[m], G, C, S),
                     v_MO + m * O + g * E, E, 1);
}

KERNEL void cache_values_q8_0_naive(int8_t *values_out, uint16_t *scale_out, const float *v_MO,
                                    const int8_t *values_LGCE, const uint16_t *scale_LGCS,
                                    const int32_t *positions_M, const int32_t *slots_M, int64_t M,
                                    int64_t O, int64_t L, int64_t G, int64_t C, int64_t E,
                                    int64_t S) {
  (void)L, (void)G, (void)E;
  cache_values_q8_0(values_out, scale_out, v_MO, values_LGCE, scale_LGCS, positions_M, slots_M, M,
                    O, L, G, C, E, S, 0, M);
}

/* take_rows: the rows of x with these indices. */
KERNEL void take_rows_naive(float *y_BD, const float *x_MD, const int32_t *index_B, int64_t M,
                            int64_t D, int64_t B) {
  (void)M;
  for (int64_t b = 0; b < B; b++)
    for (int64_t d = 0; d < D; d++) y_BD[b * D + d] = x_MD[index_B[b] * D + d];
}

KERNEL int64_t take_rows_f32_tiles(int64_t M, int64_t D, int64_t B) {
  (void)M, (void)D;
  return B;
}

KERNEL void take_rows_f32(float *y_BD, const float *x_MD, const int32_t *index_B, int64_t M,
                          int64_t D, int64_t B, int64_t tile) {
  (void)M, (void)B;
  memcpy(y_BD + tile * D, x_MD + index_B[tile] * D, (size_t)D * sizeof(float));
}

/* take_i32: the numbers of x with these indices. */
KERNEL void take_i32_naive(int32_t *y_B, const int32_t *x_M, const int32_t *index_B, int64_t M,
                           int64_t B) {
  (void)M;
  for (int64_t b = 0; b < B; b++) y_B[b] = x_M[index_B[b]];
}

KERNEL int64_t take_i32_all_tiles(int64_t M, int64_t B) {
  (void)M, (void)B;
  return 1;
}

KERNEL void take_i32_all(int32_t *y_B, const int32_t *x_M, const int32_t *index_B, int64_t M,
                         int64_t B, int64_t tile) {
  (void)tile;
  take_i32_naive(y_B, x_M, index_B, M, B);
}
