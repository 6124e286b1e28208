/* Vectors of float: one set of names for AVX-512, AVX2 with FMA, NEON, and plain vectors.
 *
 * vf  VL floats, lane i is element i. vi  VL int32. vd  VL/2 doubles. vm  a truth value per lane.
 * Half precision lives in memory only, as uint16_t: vf_load_half and vf_store_half.
 * +, -, *, / and unary - work on vf and vd, and &, |, ^, +, -, <<, >> on vi, as in C. A multiply
 * and an add are never contracted (-ffp-contract=off): vf_fma says where one rounding is meant. */
#ifndef LOCKSTEP_VEC_H
#define LOCKSTEP_VEC_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline, unused))
#ifndef KERNEL /* a bench or a test may compile an op as a library */
#define KERNEL static __attribute__((unused))
#endif
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 32")
#endif

#if defined(__AVX512F__)
#include <immintrin.h>
#define VL 16
typedef __m512 vf;
typedef __mmask16 vm;
#elif defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>
#define VL 8
typedef __m256 vf;
#elif defined(__ARM_NEON) && defined(__aarch64__)
#include <arm_neon.h>
#define VL 4
typedef float32x4_t vf;
#else
#define VL 4
typedef float vf __attribute__((vector_size(16)));
#endif
typedef int32_t vi __attribute__((vector_size(4 * VL)));
typedef double vd __attribute__((vector_size(4 * VL)));
typedef float vf_half __attribute__((vector_size(2 * VL)));
#if VL != 16
typedef vi vm; /* -1 in the lanes that hold, else 0 */
#endif

INLINE vf vf_set(float x) { return x - (vf){0}; }
INLINE vf vf_zero(void) { return (vf){0}; }
INLINE vi vi_set(int32_t x) { return x - (vi){0}; }
INLINE vd vd_zero(void) { return (vd){0}; }
INLINE vi vf_bits(vf x) { return (vi)x; }
INLINE vf vf_from_bits(vi x) { return (vf)x; }
INLINE vf vi_to_vf(vi x) { return __builtin_convertvector(x, vf); }
INLINE vi vf_to_vi(vf x) { return __builtin_convertvector(x, vi); } /* towards zero */
INLINE vf vf_add(vf a, vf b) { return a + b; }
INLINE vf vf_sub(vf a, vf b) { return a - b; } /* what a planted fault makes of vf_add */
INLINE vf vf_load(const float *p) {
  vf x;
  memcpy(&x, p, sizeof x);
  return x;
}
INLINE void vf_store(float *p, vf x) { memcpy(p, &x, sizeof x); }
INLINE vi vi_load(const int32_t *p) {
  vi x;
  memcpy(&x, p, sizeof x);
  return x;
}
INLINE vf vf_abs(vf a) { return (vf)((vi)a & 0x7fffffff); }

/* The lower and the upper half of the lanes in double. */
INLINE vd vf_low(vf x) {
  vf_half h;
  memcpy(&h, &x, sizeof h);
  return __builtin_convertvector(h, vd);
}
INLINE vd vf_high(vf x) {
  vf_half h;
  memcpy(&h, (const char *)&x + sizeof h, sizeof h);
  return __builtin_convertvector(h, vd);
}
/* The inverse: both halves, rounded to float. */
INLINE vf vf_join(vd low, vd high) {
  vf x;
  vf_half l = __builtin_convertvector(low, vf_half), h = __builtin_convertvector(high, vf_half);
  memcpy(&x, &l, sizeof l);
  memcpy((char *)&x + sizeof l, &h, sizeof h);
  return x;
}
/* Sum of the lanes; always the tree that folds the upper half onto the lower half. */
INLINE double vd_sum(vd x) {
  double v[VL / 2];
  memcpy(v, &x, sizeof v);
  for (int half = VL / 4; half > 0; half /= 2)
    for (int i = 0; i < half; i++) v[i] += v[i + half];
  return v[0];
}

/* vf_fma(a,b,c) = a*b+c and vf_fnma(a,b,c) = c-a*b, rounded once.
 * vf_min(a,b) = a<b ? a : b and vf_max(a,b) = a>b ? a : b: a NaN in b is kept, one in a is lost.
 * vf_round: to the nearest integer, ties to even.
 * vf_load_n reads n lanes, 0 <= n, the rest is 0; vf_store_n writes n lanes. */
#if VL == 16
INLINE vf vf_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
INLINE vf vf_fnma(vf a, vf b, vf c) { return _mm512_fnmadd_ps(a, b, c); }
INLINE vd vd_fma(vd a, vd b, vd c) {
  return (vd)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
}
INLINE vf vf_min(vf a, vf b) { return _mm512_min_ps(a, b); }
INLINE vf vf_max(vf a, vf b) { return _mm512_max_ps(a, b); }
INLINE vf vf_sqrt(vf a) { return _mm512_sqrt_ps(a); }
INLINE vf vf_round(vf a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT); }
INLINE vm vm_first(int64_t n) { return (vm)(n >= VL ? 0xffffu : (1u << n) - 1u); }
INLINE vf vf_load_m(const float *p, vm m) { return _mm512_maskz_loadu_ps(m, p); }
INLINE void vf_store_m(float *p, vf x, vm m) { _mm512_mask_storeu_ps(p, m, x); }
INLINE vm vf_lt(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
INLINE vm vf_gt(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
INLINE vm vf_eq(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
INLINE vm vf_is_nan(vf a) { return _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q); }
INLINE vm vi_lt(vi a, vi b) { return _mm512_cmplt_epi32_mask((__m512i)a, (__m512i)b); }
INLINE vm vm_and(vm a, vm b) { return (vm)(a & b); }
INLINE vm vm_not(vm a) { return (vm)~a; }
/* Lane by lane: m ? yes : no. */
INLINE vf vf_blend(vm m, vf yes, vf no) { return _mm512_mask_blend_ps(m, no, yes); }
#else
INLINE vm vm_first(int64_t n) {
  int32_t lane[VL];
  for (int i = 0; i < VL; i++) lane[i] = i < n ? -1 : 0;
  return vi_load(lane);
}
INLINE vm vf_lt(vf a, vf b) { return (vm)(a < b); }
INLINE vm vf_gt(vf a, vf b) { return (vm)(a > b); }
INLINE vm vf_eq(vf a, vf b) { return (vm)(a == b); }
INLINE vm vf_is_nan(vf a) { return (vm)(a != a); }
INLINE vm vi_lt(vi a, vi b) { return (vm)(a < b); }
INLINE vm vm_and(vm a, vm b) { return a & b; }
INLINE vm vm_not(vm a) { return ~a; }
/* Lane by lane: m ? yes : no. */
INLINE vf vf_blend(vm m, vf yes, vf no) { return (vf)(((vi)yes & m) | ((vi)no & ~m)); }
#endif

#if VL == 8
INLINE vf vf_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
INLINE vf vf_fnma(vf a, vf b, vf c) { return _mm256_fnmadd_ps(a, b, c); }
INLINE vd vd_fma(vd a, vd b, vd c) {
  return (vd)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
}
INLINE vf vf_min(vf a, vf b) { return _mm256_min_ps(a, b); }
INLINE vf vf_max(vf a, vf b) { return _mm256_max_ps(a, b); }
INLINE vf vf_sqrt(vf a) { return _mm256_sqrt_ps(a); }
INLINE vf vf_round(vf a) {
  return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
INLINE vf vf_load_m(const float *p, vm m) { return _mm256_maskload_ps(p, (__m256i)m); }
INLINE void vf_store_m(float *p, vf x, vm m) { _mm256_maskstore_ps(p, (__m256i)m, x); }
#elif VL == 4
INLINE vf vf_min(vf a, vf b) { return vf_blend(vf_lt(a, b), a, b); }
INLINE vf vf_max(vf a, vf b) { return vf_blend(vf_gt(a, b), a, b); }
INLINE vf vf_load_m(const float *p, vm m) {
  vf x = {0};
  for (int i = 0; i < VL; i++)
    if (m[i]) x[i] = p[i];
  return x;
}
INLINE void vf_store_m(float *p, vf x, vm m) {
  for (int i = 0; i < VL; i++)
    if (m[i]) p[i] = x[i];
}
#if defined(__ARM_NEON) && defined(__aarch64__)
INLINE vf vf_fma(vf a, vf b, vf c) { return vfmaq_f32(c, a, b); }
INLINE vf vf_fnma(vf a, vf b, vf c) { return vfmsq_f32(c, a, b); }
INLINE vd vd_fma(vd a, vd b, vd c) {
  return (vd)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
}
INLINE vf vf_sqrt(vf a) { return vsqrtq_f32(a); }
INLINE vf vf_round(vf a) { return vrndnq_f32(a); }
#else
INLINE vf vf_fma(vf a, vf b, vf c) {
  for (int i = 0; i < VL; i++) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return c;
}
INLINE vf vf_fnma(vf a, vf b, vf c) {
  for (int i = 0; i < VL; i++) c[i] = __builtin_fmaf(-a[i], b[i], c[i]);
  return c;
}
INLINE vd vd_fma(vd a, vd b, vd c) {
  for (int i = 0; i < VL / 2; i++) c[i] = __builtin_fma(a[i], b[i], c[i]);
  return c;
}
INLINE vf vf_sqrt(vf a) {
  for (int i = 0; i < VL; i++) a[i] = __builtin_sqrtf(a[i]);
  return a;
}
INLINE vf vf_round(vf a) {
  for (int i = 0; i < VL; i++) a[i] = __builtin_nearbyintf(a[i]);
  return a;
}
#endif
#endif

INLINE vf vf_load_n(const float *p, int64_t n) { return vf_load_m(p, vm_first(n)); }
INLINE void vf_store_n(float *p, vf x, int64_t n) { vf_store_m(p, x, vm_first(n)); }

/* Half precision, IEEE 754 binary16. To float it is exact; from float it rounds to nearest, ties to
 * even. A NaN becomes quiet and keeps the upper bits of its payload: as F16C and NEON do it. */
INLINE float half_to_float(uint16_t half) {
  uint32_t sign = (uint32_t)(half & 0x8000) << 16, magnitude = half & 0x7fff, bits;
  float x;
  if (magnitude >= 0x7c00) {
    bits = 0x7f800000 | (magnitude & 0x3ff) << 13 | (magnitude > 0x7c00 ? 0x400000u : 0);
  } else {
    bits = (magnitude << 13) + (112u << 23); /* the exponent's bias is 15 there, 127 here */
    memcpy(&x, &bits, sizeof x);
    if (magnitude < 0x400) x = (float)magnitude * 0x1p-24f; /* subnormal: a whole multiple */
    memcpy(&bits, &x, sizeof bits);
  }
  bits |= sign;
  memcpy(&x, &bits, sizeof x);
  return x;
}
INLINE uint16_t float_to_half(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return (uint16_t)(sign | 0x7e00 | (magnitude >> 13 & 0x3ff));
  if (magnitude >= 0x477ff000) return (uint16_t)(sign | 0x7c00); /* rounds to infinity */
  if (magnitude < 0x38800000) { /* subnormal: 0.5 has the spacing of these, so the sum rounds */
    float sum = fabsf(x) + 0.5f;
    memcpy(&bits, &sum, sizeof bits);
    return (uint16_t)(sign | (bits - 0x3f000000));
  }
  magnitude += 0xfff + (magnitude >> 13 & 1);
  return (uint16_t)(sign | (magnitude - (112u << 23)) >> 13);
}
#if VL == 16
INLINE vf vf_load_half(const uint16_t *p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}
INLINE void vf_store_half(uint16_t *p, vf x) {
  _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
#elif VL == 8 && defined(__F16C__)
INLINE vf vf_load_half(const uint16_t *p) {
  return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
}
INLINE void vf_store_half(uint16_t *p, vf x) {
  _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(__ARM_NEON) && defined(__aarch64__)
INLINE vf vf_load_half(const uint16_t *p) {
  return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
}
INLINE void vf_store_half(uint16_t *p, vf x) { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(x))); }
#else
INLINE vf vf_load_half(const uint16_t *p) {
  float x[VL];
  for (int i = 0; i < VL; i++) x[i] = half_to_float(p[i]);
  return vf_load(x);
}
INLINE void vf_store_half(uint16_t *p, vf x) {
  float lane[VL];
  vf_store(lane, x);
  for (int i = 0; i < VL; i++) p[i] = float_to_half(lane[i]);
}
#endif

/* The same number in all lanes. */
INLINE vf vf_set_half(uint16_t half) {
#if VL == 16
  return _mm512_cvtph_ps(_mm256_set1_epi16((short)half));
#elif VL == 8 && defined(__F16C__)
  return _mm256_cvtph_ps(_mm_set1_epi16((short)half));
#else
  return vf_set(half_to_float(half));
#endif
}

/* The upper half of a float. */
INLINE vf vf_load_bfloat(const uint16_t *p) {
#if VL == 16
  const __m256i x = _mm256_loadu_si256((const __m256i *)(const void *)p);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
#elif VL == 8
  const __m128i x = _mm_loadu_si128((const __m128i *)(const void *)p);
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16));
#else
  int32_t bits[VL];
  for (int i = 0; i < VL; i++) bits[i] = (int32_t)((uint32_t)p[i] << 16);
  return vf_from_bits(vi_load(bits));
#endif
}

/* VL bytes with signs. */
INLINE vf vf_load_byte(const int8_t *p) {
#if VL == 16
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
#elif VL == 8
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
#else
  vf x;
  for (int i = 0; i < VL; i++) x[i] = (float)p[i];
  return x;
#endif
}

/* Sum and maximum of the lanes; always the tree that folds the upper half onto the lower half.
 * vf_hmax keeps no promise about NaN. */
#if VL == 16
INLINE __m256 vf_upper(vf x) {
  return _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(x), 1));
}
INLINE __m256 vf_lower(vf x) { return _mm512_castps512_ps256(x); }
#endif
#if VL >= 8
INLINE float vf_fold_sum(__m256 x) {
  __m128 a = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  a = _mm_add_ps(a, _mm_movehl_ps(a, a));
  return _mm_cvtss_f32(_mm_add_ss(a, _mm_shuffle_ps(a, a, 1)));
}
INLINE float vf_fold_max(__m256 x) {
  __m128 a = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  a = _mm_max_ps(a, _mm_movehl_ps(a, a));
  return _mm_cvtss_f32(_mm_max_ss(a, _mm_shuffle_ps(a, a, 1)));
}
#endif
#if VL == 16
INLINE float vf_sum(vf x) { return vf_fold_sum(_mm256_add_ps(vf_lower(x), vf_upper(x))); }
INLINE float vf_hmax(vf x) { return vf_fold_max(_mm256_max_ps(vf_lower(x), vf_upper(x))); }
#elif VL == 8
INLINE float vf_sum(vf x) { return vf_fold_sum(x); }
INLINE float vf_hmax(vf x) { return vf_fold_max(x); }
#else
INLINE float vf_sum(vf x) { return (x[0] + x[2]) + (x[1] + x[3]); }
INLINE float vf_hmax(vf x) {
  float a = x[0] > x[2] ? x[0] : x[2], b = x[1] > x[3] ? x[1] : x[3];
  return a > b ? a : b;
}
#endif

/* x[i] lane j becomes x[j] lane i. */
#if VL == 16
INLINE void vf_transpose(vf *x) {
  vf t[16];
  UNROLL for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(x[i], x[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(x[i], x[i + 1]);
  }
  UNROLL for (int i = 0; i < 16; i += 4) UNROLL for (int j = 0; j < 2; j++) {
    const __m512d a = _mm512_castps_pd(t[i + j]), b = _mm512_castps_pd(t[i + j + 2]);
    x[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
    x[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
  }
  UNROLL for (int i = 0; i < 16; i += 8) UNROLL for (int j = 0; j < 4; j++) {
    t[i + j] = _mm512_shuffle_f32x4(x[i + j], x[i + j + 4], 0x88);
    t[i + j + 4] = _mm512_shuffle_f32x4(x[i + j], x[i + j + 4], 0xdd);
  }
  UNROLL for (int j = 0; j < 8; j++) {
    x[j] = _mm512_shuffle_f32x4(t[j], t[j + 8], 0x88);
    x[j + 8] = _mm512_shuffle_f32x4(t[j], t[j + 8], 0xdd);
  }
}
#elif VL == 8
INLINE void vf_transpose(vf *x) {
  vf t[8];
  UNROLL for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(x[i], x[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(x[i], x[i + 1]);
  }
  UNROLL for (int i = 0; i < 8; i += 4) UNROLL for (int j = 0; j < 2; j++) {
    const __m256d a = _mm256_castps_pd(t[i + j]), b = _mm256_castps_pd(t[i + j + 2]);
    x[i + 2 * j] = _mm256_castpd_ps(_mm256_unpacklo_pd(a, b));
    x[i + 2 * j + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(a, b));
  }
  UNROLL for (int j = 0; j < 4; j++) {
    t[j] = _mm256_permute2f128_ps(x[j], x[j + 4], 0x20);
    t[j + 4] = _mm256_permute2f128_ps(x[j], x[j + 4], 0x31);
  }
  UNROLL for (int j = 0; j < 8; j++) x[j] = t[j];
}
#else
INLINE void vf_transpose(vf *x) {
  vf t[4];
  for (int j = 0; j < 4; j++) t[j] = (vf){x[0][j], x[1][j], x[2][j], x[3][j]};
  for (int j = 0; j < 4; j++) x[j] = t[j];
}
#endif

#endif
