/* rope: turns each pair of a head by the angle of its position.
 * A head holds R pairs, (j, j+R) when halves are paired, (2j, 2j+1) when interleaved, and behind
 * them a rest that stays as it is. */
#include "vec.h"

/* What stretches the frequencies; see rope.py. */
typedef struct {
  double factor, begin, end, original;
  int64_t by_pair;
} rope_stretch;

INLINE double rope_frequency(int64_t j, int64_t R, double theta, rope_stretch by) {
  const double turn = 6.283185307179586;
  double frequency = pow(theta, -(double)j / (double)R);
  if (by.factor == 1.0) return frequency;
  double along = by.by_pair ? (double)j : by.original * frequency / turn;
  double kept = (along - by.begin) / (by.end - by.begin);
  kept = kept < 0.0 ? 0.0 : kept > 1.0 ? 1.0 : kept;
  return frequency * (kept + (1.0 - kept) / by.factor);
}

/* rope_table: magnitude times cos and sin of position * frequency. */
KERNEL void rope_table_naive(float *cos_CR, float *sin_CR, int64_t C, int64_t R, double theta,
                             int64_t context, int64_t rotary, double factor, int64_t by_pair,
                             double begin, double end, double original, double magnitude) {
  (void)context, (void)rotary;
  rope_stretch by = {factor, begin, end, original, by_pair};
  for (int64_t c = 0; c < C; c++)
    for (int64_t j = 0; j < R; j++) {
      double angle = (double)c * rope_frequency(j, R, theta, by);
      cos_CR[c * R + j] = (float)(cos(angle) * magnitude);
      sin_CR[c * R + j] = (float)(sin(angle) * magnitude);
    }
}

#define ROPE_TILE 64 /* positions */

KERNEL int64_t rope_table_f32_tiles(int64_t C, int64_t R, double theta, int64_t context,
                                    int64_t rotary, double factor, int64_t by_pair, double begin,
                                    double end, double original, double magnitude) {
  (void)R, (void)theta, (void)context, (void)rotary, (void)factor, (void)by_pair, (void)begin;
  (void)end, (void)original, (void)magnitude;
  return (C + ROPE_TILE - 1) / ROPE_TILE;
}

KERNEL void rope_table_f32(float *cos_CR, float *sin_CR, int64_t C, int64_t R, double theta,
                           int64_t context, int64_t rotary, double factor, int64_t by_pair,
                           double begin, double end, double original, double magnitude,
                           int64_t tile) {
  (void)context, (void)rotary;
  rope_stretch by = {factor, begin, end, original, by_pair};
  int64_t first = tile * ROPE_TILE, last = first + ROPE_TILE < C ? first + ROPE_TILE : C;
  for (int64_t j = 0; j < R; j++) {
    double frequency = rope_frequency(j, R, theta, by);
    for (int64_t c = first; c < last; c++) {
      cos_CR[c * R + j] = (float)(cos((double)c * frequency) * magnitude);
      sin_CR[c * R + j] = (float)(sin((double)c * frequency) * magnitude);
    }
  }
}

KERNEL void rope_naive(float *y_MN, const float *x_MN, const int32_t *positions_M,
                       const float *cos_CR, const float *sin_CR, int64_t M, int64_t N, int64_t C,
                       int64_t R, int64_t rest, int64_t interleaved, int64_t inverse) {
  (void)C;
  int64_t step = interleaved ? 2 : 1, apart = interleaved ? 1 : R;
  for (int64_t m = 0; m < M; m++)
    for (int64_t head = 0; head < N; head += 2 * R + rest) {
      for (int64_t e = 2 * R; e < 2 * R + rest; e++)
        y_MN[m * N + head + e] = x_MN[m * N + head + e];
      for (int64_t j = 0; j < R; j++) {
        int64_t i = m * N + head + j * step;
        float c = cos_CR[positions_M[m] * R + j], s = sin_CR[positions_M[m] * R + j];
        if (inverse) s = -s;
        float a = x_MN[i], b = x_MN[i + apart];
        y_MN[i] = a * c - b * s;
        y_MN[i + apart] = b * c + a * s;
      }
    }
}

/* Pairs of halves in vectors that fill a half exactly: a masked load of a wider vector would wait
 * for the stores to the heads beside it. Products and sums are rounded one by one, as in the naive
 * kernel, so that the width of the vectors changes no bit. None is wider than 32 bytes: where the
 * processor has none, gcc keeps wider ones in memory. */
typedef float rope_v2 __attribute__((vector_size(8)));
typedef float rope_v4 __attribute__((vector_size(16)));
typedef float rope_v8 __attribute__((vector_size(32)));

#define ROPE_HALF(V) \
  INLINE void rope_half_##V(float *y, const float *x, const float *c, const float *s, int64_t R, \
                            float sign) { \
    for (int64_t j = 0; j < R; j += (int64_t)(sizeof(V) / sizeof(float))) { \
      V a, b, cosine, sine; \
      memcpy(&a, x + j, sizeof a); \
      memcpy(&b, x + j + R, sizeof b); \
      memcpy(&cosine, c + j, sizeof cosine); \
      memcpy(&sine, s + j, sizeof sine); \
      sine = sine * sign; \
      V low = a * cosine - b * sine, high = b * cosine + a * sine; \
      memcpy(y + j, &low, sizeof low); \
      memcpy(y + j + R, &high, sizeof high); \
    } \
  }
ROPE_HALF(float)
ROPE_HALF(rope_v2)
ROPE_HALF(rope_v4)
ROPE_HALF(rope_v8)

INLINE void rope_half(float *y, const float *x, const float *c, const float *s, int64_t R,
                      float sign) {
  if (R % 8 == 0)
    rope_half_rope_v8(y, x, c, s, R, sign);
  else if (R % 4 == 0)
    rope_half_rope_v4(y, x, c, s, R, sign);
  else if (R % 2 == 0)
    rope_half_rope_v2(y, x, c, s, R, sign);
  else
    rope_half_float(y, x, c, s, R, sign);
}

INLINE void rope_interleaved(float *y, const float *x, const float *c, const float *s, int64_t R,
                             float sign) {
  for (int64_t j = 0; j < R; j++) {
    float a = x[2 * j], b = x[2 * j + 1], sine = s[j] * sign;
    y[2 * j] = a * c[j] - b * sine;
    y[2 * j + 1] = b * c[j] + a * sine;
  }
}

KERNEL void rope_f32(float *y_MN, const float *x_MN, const int32_t *positions_M,
                     const float *cos_CR, const float *sin_CR, int64_t M, int64_t N, int64_t C,
                     int64_t R, int64_t rest, int64_t interleaved, int64_t inverse,
                     int64_t row_begin, int64_t row_end) {
  (void)M, (void)C;
  float sign = inverse ? -1.0f : 1.0f;
  for (int64_t m = row_begin; m < row_end; m++) {
    const float *c = cos_CR + positions_M[m] * R, *s = sin_CR + positions_M[m] * R;
    for (int64_t head = m * N; head < (m + 1) * N; head += 2 * R + rest) {
      if (rest && y_MN != x_MN)
        memcpy(y_MN + head + 2 * R, x_MN + head + 2 * R, (size_t)rest * sizeof(float));
      if (interleaved)
        rope_interleaved(y_MN + head, x_MN + head, c, s, R, sign);
      else
        rope_half(y_MN + head, x_MN + head, c, s, R, sign);
    }
  }
}
