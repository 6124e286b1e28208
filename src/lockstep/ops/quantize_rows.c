/* quantize_rows: x as small integers, 32 in a row under one scale, and their sums. */
#include "vec_dot.h"

enum { ROWS_BLOCK = 32 };
#define ROWS_LEAST 0x1p-100f /* a block with less than this is zeros: its inverse would overflow */

/* The largest integer of int8 and int16; 32 products with weights of 8 bits still fit in int32. */
INLINE float rows_most(int64_t bits) { return bits == 8 ? 127.0f : 32767.0f; }

/* Sums of a block: for int8 of its halves, as two int16 in a word; for int16 of all of it. */
INLINE int32_t rows_sums(int32_t first, int32_t second, int64_t bits) {
  const int16_t halves[2] = {(int16_t)first, (int16_t)second};
  int32_t word;
  memcpy(&word, halves, sizeof word);
  return bits == 8 ? word : first + second;
}

/* A block that holds a NaN or an infinity has the scale NaN, and is all zero. */
KERNEL void quantize_rows_naive(void *q_MK, float *scale_MJ, int32_t *sum_MJ, const float *x_MK,
                                int64_t M, int64_t K, int64_t J, int64_t bits) {
  (void)K;
  for (int64_t i = 0; i < M * J; i++) {
    const float *x = x_MK + i * ROWS_BLOCK;
    float most = 0.0f, off = 0.0f;
    for (int k = 0; k < ROWS_BLOCK; k++) {
      most = fabsf(x[k]) > most ? fabsf(x[k]) : most;
      off += x[k] - x[k]; /* NaN if one is not finite */
    }
    const float inverse = most >= ROWS_LEAST && off == 0.0f ? rows_most(bits) / most : 0.0f;
    int32_t sums[2] = {0, 0};
    for (int k = 0; k < ROWS_BLOCK; k++) {
      const int q = off == 0.0f ? (int)nearbyintf(x[k] * inverse) : 0;
      sums[k / 16] += q;
      if (bits == 8)
        ((int8_t *)q_MK)[i * ROWS_BLOCK + k] = (int8_t)q;
      else
        ((int16_t *)q_MK)[i * ROWS_BLOCK + k] = (int16_t)q;
    }
    scale_MJ[i] = most / rows_most(bits) + off;
    sum_MJ[i] = rows_sums(sums[0], sums[1], bits);
  }
}

INLINE void rows_block(void *q, float *scale, int32_t *sum, const float *from, const int bits) {
  enum { N = ROWS_BLOCK / VL };
  vf x[N], most = vf_zero(), off = vf_zero();
  UNROLL for (int i = 0; i < N; i++) {
    x[i] = vf_load(from + i * VL);
    most = vf_max(vf_abs(x[i]), most);
    off = off + (x[i] - x[i]);
  }
  const float largest = vf_hmax(most), spoilt = vf_sum(off);
  const float inverse = largest >= ROWS_LEAST && spoilt == 0.0f ? rows_most(bits) / largest : 0.0f;
  vi sums[2] = {vi_set(0), vi_set(0)};
  UNROLL for (int i = 0; i < N; i++) {
    vi v = vi_set(0);
    if (spoilt == 0.0f) v = vf_to_vi(vf_round(x[i] * vf_set(inverse)));
    sums[i * VL / 16] += v;
    if (bits == 8)
      vi_store_i8((int8_t *)q + i * VL, v);
    else
      vi_store_i16((int16_t *)q + i * VL, v);
  }
  *scale = largest / rows_most(bits) + spoilt;
  *sum = rows_sums(vi_sum(sums[0]), vi_sum(sums[1]), bits);
}

KERNEL void quantize_rows_i8(void *q_MK, float *scale_MJ, int32_t *sum_MJ, const float *x_MK,
                             int64_t M, int64_t K, int64_t J, int64_t bits, int64_t row_begin,
                             int64_t row_end) {
  (void)M, (void)K, (void)bits;
  for (int64_t i = row_begin * J; i < row_end * J; i++)
    rows_block((int8_t *)q_MK + i * ROWS_BLOCK, scale_MJ + i, sum_MJ + i, x_MK + i * ROWS_BLOCK, 8);
}

KERNEL void quantize_rows_i16(void *q_MK, float *scale_MJ, int32_t *sum_MJ, const float *x_MK,
                              int64_t M, int64_t K, int64_t J, int64_t bits, int64_t row_begin,
                              int64_t row_end) {
  (void)M, (void)K, (void)bits;
  for (int64_t i = row_begin * J; i < row_end * J; i++)
    rows_block((int16_t *)q_MK + i * ROWS_BLOCK, scale_MJ + i, sum_MJ + i, x_MK + i * ROWS_BLOCK,
               16);
}
