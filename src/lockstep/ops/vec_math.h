/* Elementary functions on vectors of float.
 * Source of the polynomials: Cephes, expf.c, exp2f.c and logf.c (S. Moshier). */
#ifndef LOCKSTEP_VEC_MATH_H
#define LOCKSTEP_VEC_MATH_H

#include "vec.h"

/* a * 2^n for whole n between -126 and 200. */
INLINE vf vf_ldexp(vf a, vf n) {
#if VL == 16
  return _mm512_scalef_ps(a, n);
#else
  /* Two factors, because 2^n alone overflows or underflows where the product does not. */
  vi whole = vf_to_vi(n), half = whole >> 1;
  vf first = vf_from_bits((half + 127) << 23), second = vf_from_bits((whole - half + 127) << 23);
  return a * first * second;
#endif
}

/* e^x, at most 2 ulp off, 0 where that is below the normal numbers (a denormal result costs some
 * processors a hundred cycles); inf for inf, NaN for NaN, 1 for 0. */
INLINE vf vf_exp(vf x) {
  const vf magic = vf_set(12582912.0f); /* 1.5 * 2^23: adding it rounds to a whole number */
  const vf low = vf_set(-87.33654f);    /* e^low is the smallest normal number; e^89 is infinite */
  vm tiny = vf_lt(x, low);
  x = vf_min(vf_set(89.0f), vf_max(low, x));
  vf n = vf_fma(x, vf_set(1.44269504088896341f), magic) - magic;
  vf r = vf_fnma(n, vf_set(0.693359375f), x);
  r = vf_fnma(n, vf_set(-2.12194440e-4f), r);
  vf p = vf_fma(vf_set(1.9875691500e-4f), r, vf_set(1.3981999507e-3f));
  p = vf_fma(p, r, vf_set(8.3334519073e-3f));
  p = vf_fma(p, r, vf_set(4.1665795894e-2f));
  p = vf_fma(p, r, vf_set(1.6666665459e-1f));
  p = vf_fma(p, r, vf_set(5.0000001201e-1f));
  p = vf_fma(p, r * r, r) + vf_set(1.0f);
  p = vf_blend(tiny, vf_zero(), vf_ldexp(p, n));
#if VL != 16
  p = vf_blend(vf_is_nan(x), x, p); /* a NaN has no whole number to scale by */
#endif
  return p;
}

/* 2^x for x <= 200, otherwise as vf_exp: what a softmax needs, in fewer steps. */
INLINE vf vf_exp2(vf x) {
  const vf low = vf_set(-126.0f);
  vm tiny = vf_lt(x, low);
  x = vf_max(low, x);
  vf n = vf_round(x), r = x - n;
  vf p = vf_fma(vf_set(1.535336188319500e-4f), r, vf_set(1.339887440266574e-3f));
  p = vf_fma(p, r, vf_set(9.618437357674640e-3f));
  p = vf_fma(p, r, vf_set(5.550332471162809e-2f));
  p = vf_fma(p, r, vf_set(2.402264791363012e-1f));
  p = vf_fma(p, r, vf_set(6.931472028550421e-1f));
  p = vf_fma(p, r, vf_set(1.0f));
  p = vf_blend(tiny, vf_zero(), vf_ldexp(p, n));
#if VL != 16
  p = vf_blend(vf_is_nan(x), x, p); /* a NaN has no whole number to scale by */
#endif
  return p;
}

/* Natural logarithm of normal numbers, at most 2 ulp off; inf for inf, -inf for 0, NaN below 0. */
INLINE vf vf_log(vf x) {
  vi bits = vf_bits(x);
  /* x = m * 2^n with m between sqrt(1/2) and sqrt(2) */
  vi shifted = bits - 0x3f3504f3;
  vf n = vi_to_vf(shifted >> 23);
  vf m = vf_from_bits((shifted & 0x007fffff) + 0x3f3504f3) - vf_set(1.0f);
  vf p = vf_fma(vf_set(7.0376836292e-2f), m, vf_set(-1.1514610310e-1f));
  p = vf_fma(p, m, vf_set(1.1676998740e-1f));
  p = vf_fma(p, m, vf_set(-1.2420140846e-1f));
  p = vf_fma(p, m, vf_set(1.4249322787e-1f));
  p = vf_fma(p, m, vf_set(-1.6668057665e-1f));
  p = vf_fma(p, m, vf_set(2.0000714765e-1f));
  p = vf_fma(p, m, vf_set(-2.4999993993e-1f));
  p = vf_fma(p, m, vf_set(3.3333331174e-1f));
  vf square = m * m;
  vf y = vf_fma(n, vf_set(-2.12194440e-4f), p * m * square);
  y = vf_fnma(vf_set(0.5f), square, y) + m;
  y = vf_fma(n, vf_set(0.693359375f), y);
  const vf infinity = vf_set(INFINITY);
  y = vf_blend(vf_lt(x, infinity), y, x); /* infinity and NaN stay */
  y = vf_blend(vf_eq(x, vf_zero()), -infinity, y);
  return vf_blend(vf_lt(x, vf_zero()), vf_set(NAN), y);
}

/* a / b, at most 2 ulp off where the quotient is a normal number. The division of AVX-512 takes three
 * times as long as an estimate and one step of Newton's. */
INLINE vf vf_quotient(vf a, vf b) {
#if VL == 16
  vf r = _mm512_rcp14_ps(b), error = vf_fnma(b, r, vf_set(1.0f));
  return a *
         vf_blend(vf_eq(error, error), vf_fma(r, error, r), r); /* 0 and infinity have no step */
#else
  return a / b;
#endif
}

/* sqrt(x), at most 2 ulp off; 0 for 0, inf for inf, NaN for NaN and below 0. */
INLINE vf vf_root(vf x) {
#if VL == 16
  vf r = _mm512_rsqrt14_ps(x), error = vf_fnma(x * r, r, vf_set(1.0f));
  vf y = x * vf_fma(r * vf_set(0.5f), error, r);
  return vf_blend(vf_eq(x, vf_zero()) | vf_eq(x, vf_set(INFINITY)), x, y);
#else
  return vf_sqrt(x);
#endif
}

/* 1 / (1 + e^-x). */
INLINE vf vf_sigmoid(vf x) {
  const vf one = vf_set(1.0f);
  return one / (one + vf_exp(-x));
}

#endif
