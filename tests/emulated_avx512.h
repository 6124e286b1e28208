/* AVX-512 on a processor without it: SIMDe's intrinsics, and those that it lacks as plain loops. */
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#include <stdint.h>
#include <string.h>

typedef int32_t emulated_i __attribute__((vector_size(64)));
typedef float emulated_f __attribute__((vector_size(64)));

static inline __mmask16 emulated_less(__m512i a, __m512i b) {
  __mmask16 m = 0;
  for (int i = 0; i < 16; i++) m |= (__mmask16)((((emulated_i)a)[i] < ((emulated_i)b)[i]) << i);
  return m;
}
static inline __m512i emulated_from_i8(__m128i a) {
  int8_t from[16];
  emulated_i x;
  memcpy(from, &a, sizeof from);
  for (int i = 0; i < 16; i++) x[i] = from[i];
  return (__m512i)x;
}
static inline __m128i emulated_to_i8(__m512i a) {
  int8_t to[16];
  __m128i x;
  for (int i = 0; i < 16; i++) to[i] = (int8_t)((emulated_i)a)[i];
  memcpy(&x, to, sizeof x);
  return x;
}
static inline __m256i emulated_to_i16(__m512i a) {
  int16_t to[16];
  __m256i x;
  for (int i = 0; i < 16; i++) to[i] = (int16_t)((emulated_i)a)[i];
  memcpy(&x, to, sizeof x);
  return x;
}
static inline int emulated_sum(__m512i a) {
  int sum = 0;
  for (int i = 0; i < 16; i++) sum += ((emulated_i)a)[i];
  return sum;
}
static inline __m512i emulated_from_u16(__m256i a) {
  uint16_t from[16];
  emulated_i x;
  memcpy(from, &a, sizeof from);
  for (int i = 0; i < 16; i++) x[i] = from[i];
  return (__m512i)x;
}
static inline __m512 emulated_from_half(__m256i a) {
  __m128i from[2];
  __m512 x;
  memcpy(from, &a, sizeof from);
  const __m256 halves[2] = {_mm256_cvtph_ps(from[0]), _mm256_cvtph_ps(from[1])};
  memcpy(&x, halves, sizeof x);
  return x;
}
static inline __m256i emulated_to_half(__m512 a) {
  __m256 from[2];
  __m256i x;
  memcpy(from, &a, sizeof from);
  const __m128i halves[2] = {_mm256_cvtps_ph(from[0], 0), _mm256_cvtps_ph(from[1], 0)};
  memcpy(&x, halves, sizeof x);
  return x;
}
static inline void emulated_store(float *p, __mmask16 m, __m512 a) {
  for (int i = 0; i < 16; i++)
    if (m >> i & 1) p[i] = ((emulated_f)a)[i];
}
static inline __m512 emulated_load(__mmask16 m, const float *p) {
  emulated_f x = {0};
  for (int i = 0; i < 16; i++)
    if (m >> i & 1) x[i] = p[i];
  return (__m512)x;
}
static inline __m512 emulated_shuffle(__m512 a, __m512 b, int which) {
  float from[2][16], to[16];
  __m512 x;
  memcpy(from[0], &a, sizeof a), memcpy(from[1], &b, sizeof b);
  for (int i = 0; i < 4; i++) memcpy(to + 4 * i, from[i / 2] + 4 * (which >> 2 * i & 3), 16);
  memcpy(&x, to, sizeof x);
  return x;
}

#undef _mm512_madd_epi16 /* SIMDe 0.7.4 gives it the parameters of the masked one */
#define _mm512_madd_epi16(a, b) simde_mm512_madd_epi16(a, b)
#define _mm512_cmplt_epi32_mask emulated_less
#define _mm512_cvtepi32_ps(a) __builtin_convertvector((emulated_i)(a), emulated_f)
#define _mm512_cvtepi8_epi32 emulated_from_i8
#define _mm512_cvtepi32_epi8 emulated_to_i8
#define _mm512_cvtepi32_epi16 emulated_to_i16
#define _mm512_reduce_add_epi32 emulated_sum
#define _mm512_cvtepu16_epi32 emulated_from_u16
#define _mm512_cvtph_ps emulated_from_half
#define _mm512_cvtps_ph(a, mode) emulated_to_half(a)
#define _mm512_mask_storeu_ps emulated_store
#define _mm512_maskz_loadu_ps emulated_load
#define _mm512_shuffle_f32x4 emulated_shuffle
