/* Dot products of small integers, lane by lane: four bytes, or two int16, in each int32 lane.
 *
 * vi_dot8 sums products of unsigned bytes of at most `bits` bits and signed bytes. Where the
 * processor has no instruction that does it without saturation, up to DOT8_RUN(bits) such sums are
 * held in pairs of int16; so what it makes is opaque until vi_dot8_sum, or vi_dot8_scaled, which
 * multiplies it by a small number. Sums are exact: all ways give the same integers. */
#ifndef LOCKSTEP_VEC_DOT_H
#define LOCKSTEP_VEC_DOT_H

#include "vec.h"
#if VL == 4 && defined(__SSE2__)
#include <immintrin.h>
#endif

#if (VL == 16 && defined(__AVX512VNNI__)) || (VL == 8 && defined(__AVXVNNI__)) || \
    (VL == 8 && defined(__AVX512VNNI__) && defined(__AVX512VL__)) || \
    (VL == 4 && defined(__ARM_FEATURE_DOTPROD))
#define DOT8_IS_WIDE 1
#elif (VL == 16 && defined(__AVX512BW__)) || VL == 8
#define DOT8_IS_WIDE 0
#else
#define DOT8_IS_WIDE 1
#endif
/* 2 * 15 * 128 * 8, 2 * 31 * 128 * 4 and 2 * 63 * 128 * 2 stay below 2^15. */
#define DOT8_RUN(bits) (DOT8_IS_WIDE || (bits) > 6 || (bits) == 4 ? 8 : (bits) == 5 ? 4 : 2)

/* A sum that is to be made here and now: compilers that regroup integer sums first make all products
 * and then find no registers for them. */
INLINE vi vi_now(vi sum) {
#if VL == 16
  __asm__("" : "+v"(sum));
#elif VL == 8
  __asm__("" : "+x"(sum));
#elif defined(__SSE2__)
  __asm__("" : "+x"(sum));
#elif defined(__aarch64__)
  __asm__("" : "+w"(sum));
#endif
  return sum;
}

/* Four bytes, or two int16, wherever they lie, in every lane. */
INLINE vi vi_spread(const void *p) {
  int32_t x;
  memcpy(&x, p, sizeof x);
  return vi_set(x);
}
INLINE vi vi_load_bytes(const uint8_t *p) {
  vi x;
  memcpy(&x, p, sizeof x);
  return x;
}

/* acc + both products of int16 in each lane. */
INLINE vi vi_dot16(vi acc, vi a, vi b) {
#if VL == 16 && defined(__AVX512VNNI__)
  return (vi)_mm512_dpwssd_epi32((__m512i)acc, (__m512i)a, (__m512i)b);
#elif VL == 16 && defined(__AVX512BW__)
  return vi_now(acc + (vi)_mm512_madd_epi16((__m512i)a, (__m512i)b));
#elif VL == 8
  return vi_now(acc + (vi)_mm256_madd_epi16((__m256i)a, (__m256i)b));
#elif defined(__SSE2__)
  return vi_now(acc + (vi)_mm_madd_epi16((__m128i)a, (__m128i)b));
#else
  return acc + (a << 16 >> 16) * (b << 16 >> 16) + (a >> 16) * (b >> 16);
#endif
}

/* The exact sum of four products: w unsigned bytes, x signed ones. */
INLINE vi vi_dot8_exact(vi acc, vi w, vi x) {
#if VL >= 8 || defined(__SSE2__)
  typedef int16_t halves __attribute__((vector_size(4 * VL)));
  acc = vi_dot16(acc, w & 0xff00ff, (vi)((halves)x << 8 >> 8));
  return vi_dot16(acc, w >> 8 & 0xff00ff, (vi)((halves)x >> 8));
#else
  acc += (w & 255) * (x << 24 >> 24) + (w >> 8 & 255) * (x << 16 >> 24);
  return acc + (w >> 16 & 255) * (x << 8 >> 24) + (w >> 24 & 255) * (x >> 24);
#endif
}

INLINE vi vi_dot8(vi acc, vi w, vi x, const int bits) {
#if VL == 16 && defined(__AVX512VNNI__)
  (void)bits;
  return (vi)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)w, (__m512i)x);
#elif VL == 8 && defined(__AVX512VNNI__) && defined(__AVX512VL__)
  (void)bits;
  return (vi)_mm256_dpbusd_epi32((__m256i)acc, (__m256i)w, (__m256i)x);
#elif VL == 8 && defined(__AVXVNNI__)
  (void)bits;
  return (vi)_mm256_dpbusd_avx_epi32((__m256i)acc, (__m256i)w, (__m256i)x);
#elif VL == 16 && defined(__AVX512BW__)
  if (bits > 6) return vi_dot8_exact(acc, w, x);
  return vi_now((vi)_mm512_add_epi16((__m512i)acc, _mm512_maddubs_epi16((__m512i)w, (__m512i)x)));
#elif VL == 8
  if (bits > 6) return vi_dot8_exact(acc, w, x);
  return vi_now((vi)_mm256_add_epi16((__m256i)acc, _mm256_maddubs_epi16((__m256i)w, (__m256i)x)));
#elif defined(__ARM_FEATURE_DOTPROD)
  if (bits > 7) return vi_dot8_exact(acc, w, x);
  return (vi)vdotq_s32((int32x4_t)acc, (int8x16_t)w, (int8x16_t)x);
#else
  (void)bits;
  return vi_dot8_exact(acc, w, x);
#endif
}

/* sum + what vi_dot8 has summed from zero. */
INLINE vi vi_dot8_sum(vi sum, vi acc, const int bits) {
  return DOT8_IS_WIDE || bits > 6 ? sum + acc : vi_dot16(sum, acc, vi_set(0x10001));
}

/* sum + what vi_dot8 has summed from zero, times a scale of 8 bits that vi_dot8_scale has prepared. */
INLINE vi vi_dot8_scaled(vi sum, vi acc, vi scale, const int bits) {
  return DOT8_IS_WIDE || bits > 6 ? sum + acc * scale : vi_dot16(sum, acc, scale);
}
/* The first or the second int16 of each lane as such a scale. */
INLINE vi vi_dot8_scale(vi pair, const int second) {
#if VL == 8 && !DOT8_IS_WIDE
  const int at = second ? 0x03020302 : 0x01000100; /* of lane 0; a lane on, four bytes on */
  const __m128i index = _mm_setr_epi32(at, at + 0x04040404, at + 0x08080808, at + 0x0c0c0c0c);
  return (vi)_mm256_shuffle_epi8((__m256i)pair, _mm256_broadcastsi128_si256(index));
#else
  if (DOT8_IS_WIDE) return second ? pair >> 16 : pair << 16 >> 16;
  return second ? (pair >> 16 & 0xffff) | (pair & ~0xffff) : (pair & 0xffff) | pair << 16;
#endif
}

/* Every byte, or every int16, less a number. */
INLINE vi vi_less_bytes(vi w, const int less) {
  typedef int8_t bytes __attribute__((vector_size(4 * VL)));
  return (vi)((bytes)w - (int8_t)less);
}
INLINE vi vi_less_halves(vi w, const int less) {
  typedef int16_t halves __attribute__((vector_size(4 * VL)));
  return (vi)((halves)w - (int16_t)less);
}

/* Four unsigned bytes of each lane as two pairs of int16. */
INLINE void vi_widen(vi w, vi *first, vi *second) {
#if VL == 8
  const __m256 low = _mm256_castsi256_ps(_mm256_unpacklo_epi8((__m256i)w, _mm256_setzero_si256()));
  const __m256 high = _mm256_castsi256_ps(_mm256_unpackhi_epi8((__m256i)w, _mm256_setzero_si256()));
  *first = (vi)_mm256_shuffle_ps(low, high, 0x88);
  *second = (vi)_mm256_shuffle_ps(low, high, 0xdd);
#else
  *first = (w & 255) | (w << 8 & 0xff0000);
  *second = (w >> 16 & 255) | (w >> 8 & 0xff0000);
#endif
}

/* The exact sums of products of unsigned bytes, four in a lane, and four int16 at x; what they are
 * held in is opaque until vi_dot16_sum. */
typedef struct {
  vi low, high;
} vi_sums16;
INLINE vi_sums16 vi_dot16_bytes(vi_sums16 acc, vi w, const void *x) {
#if VL == 8
  int64_t four;
  memcpy(&four, x, sizeof four);
  const __m256i zero = _mm256_setzero_si256();
  const vi spread = (vi)_mm256_set1_epi64x(four);
  acc.low = vi_dot16(acc.low, (vi)_mm256_unpacklo_epi8((__m256i)w, zero), spread);
  acc.high = vi_dot16(acc.high, (vi)_mm256_unpackhi_epi8((__m256i)w, zero), spread);
#else
  vi first, second;
  vi_widen(w, &first, &second);
  acc.low = vi_dot16(acc.low, first, vi_spread(x));
  acc.high = vi_dot16(acc.high, second, vi_spread((const char *)x + 4));
#endif
  return acc;
}
INLINE vi vi_dot16_sum(vi_sums16 acc) {
#if VL == 8
  return (vi)_mm256_hadd_epi32((__m256i)acc.low, (__m256i)acc.high);
#else
  return acc.low + acc.high;
#endif
}

/* 2 VL signed bytes as int16, and VL of them as int32. */
INLINE vi vi_pairs_i8(const int8_t *p) {
#if VL == 16 && defined(__AVX512BW__)
  return (vi)_mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)(const void *)p));
#elif VL == 8
  return (vi)_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(const void *)p));
#else
  int32_t lane[VL];
  for (int i = 0; i < VL; i++) lane[i] = (p[2 * i] & 0xffff) | p[2 * i + 1] * 65536;
  return vi_load(lane);
#endif
}
INLINE vi vi_from_i8(const int8_t *p) {
#if VL == 16
  return (vi)_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(const void *)p));
#elif VL == 8
  return (vi)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)p));
#else
  int32_t lane[VL];
  for (int i = 0; i < VL; i++) lane[i] = p[i];
  return vi_load(lane);
#endif
}

/* VL small integers as int8, or as int16. */
INLINE void vi_store_i8(int8_t *p, vi x) {
#if VL == 16
  _mm_storeu_si128((__m128i *)(void *)p, _mm512_cvtepi32_epi8((__m512i)x));
#elif VL == 8
  const __m128i low = _mm256_castsi256_si128((__m256i)x);
  const __m128i high = _mm256_extracti128_si256((__m256i)x, 1);
  const __m128i halves = _mm_packs_epi32(low, high);
  _mm_storel_epi64((__m128i *)(void *)p, _mm_packs_epi16(halves, halves));
#else
  for (int i = 0; i < VL; i++) p[i] = (int8_t)x[i];
#endif
}
INLINE void vi_store_i16(int16_t *p, vi x) {
#if VL == 16
  _mm256_storeu_si256((__m256i *)(void *)p, _mm512_cvtepi32_epi16((__m512i)x));
#elif VL == 8
  const __m128i low = _mm256_castsi256_si128((__m256i)x);
  const __m128i high = _mm256_extracti128_si256((__m256i)x, 1);
  _mm_storeu_si128((__m128i *)(void *)p, _mm_packs_epi32(low, high));
#else
  for (int i = 0; i < VL; i++) p[i] = (int16_t)x[i];
#endif
}

/* The sum of all lanes. */
INLINE int32_t vi_sum(vi x) {
#if VL == 16
  return _mm512_reduce_add_epi32((__m512i)x);
#elif VL == 8
  __m128i sum =
      _mm_add_epi32(_mm256_castsi256_si128((__m256i)x), _mm256_extracti128_si256((__m256i)x, 1));
  sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1)));
#else
  return (x[0] + x[1]) + (x[2] + x[3]);
#endif
}

#endif
