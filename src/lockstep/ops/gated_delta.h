/* What the kernels of the gated delta rule share. The state of a value head is a matrix of E x V
 * whose columns never meet, so a block of columns is the unit of work: E rows of one block lie one
 * after another, and columns beyond V are 0. */
#ifndef LOCKSTEP_GATED_DELTA_H
#define LOCKSTEP_GATED_DELTA_H

#include "vec_math.h"

#define DELTA_KEY 256    /* the widest key */
#define DELTA_COLUMNS 32 /* columns of one block */
#define DELTA_MOST_WIDE (DELTA_COLUMNS / VL)

/* Where a row of x has what: q of G key heads, k of them, v of H value heads. */
typedef struct {
  int64_t H, G, E, V, tiled;
} delta_heads;

INLINE delta_heads delta_heads_of(int64_t N, int64_t H, int64_t key_heads, int64_t key_width,
                                  int64_t tiled) {
  int64_t values = N - 2 * key_heads * key_width;
  return (delta_heads){.H = H, .G = key_heads, .E = key_width, .V = values / H, .tiled = tiled};
}
/* The key head of a value head: neighbours share one, or every G-th value head does. */
INLINE int64_t delta_key_head(delta_heads d, int64_t h) {
  return d.tiled ? h % d.G : h / (d.H / d.G);
}
INLINE int64_t delta_q(delta_heads d, int64_t h) { return delta_key_head(d, h) * d.E; }
INLINE int64_t delta_k(delta_heads d, int64_t h) { return (d.G + delta_key_head(d, h)) * d.E; }
INLINE int64_t delta_v(delta_heads d, int64_t h) { return 2 * d.G * d.E + h * d.V; }

INLINE double delta_squares(const float *x, int64_t E) {
  double sum = 0.0;
  for (int64_t e = 0; e < E; e++) sum += (double)x[e] * x[e];
  return sum;
}

/* 1 / sqrt(sum of squares + eps): what makes q or k a unit vector. */
INLINE float delta_unit(const float *x, int64_t E, float eps) {
  vf sum[2] = {vf_zero(), vf_zero()};
  int64_t e = 0;
  for (; e + 2 * VL <= E; e += 2 * VL) UNROLL for (int i = 0; i < 2; i++) {
      vf v = vf_load(x + e + i * VL);
      sum[i] = vf_fma(v, v, sum[i]);
    }
  for (; e < E; e += VL) {
    vf v = vf_load_n(x + e, E - e < VL ? E - e : VL);
    sum[0] = vf_fma(v, v, sum[0]);
  }
  return 1.0f / sqrtf(vf_sum(sum[0] + sum[1]) + eps);
}

/* n columns of a row, the rest 0; only the first n are written. */
INLINE void delta_load(vf *v, const float *x, int64_t n, const int wide) {
  if (n >= wide * VL)
    UNROLL for (int w = 0; w < wide; w++) v[w] = vf_load(x + w * VL);
  else
    UNROLL for (int w = 0; w < wide; w++) {
      int64_t rest = n - w * VL;
      v[w] = rest > 0 ? vf_load_n(x + w * VL, rest < VL ? rest : VL) : vf_zero();
    }
}
INLINE void delta_store(float *x, const vf *v, int64_t n, const int wide) {
  if (n >= wide * VL)
    UNROLL for (int w = 0; w < wide; w++) vf_store(x + w * VL, v[w]);
  else
    UNROLL for (int w = 0; w < wide; w++) {
      int64_t rest = n - w * VL;
      if (rest > 0) vf_store_n(x + w * VL, v[w], rest < VL ? rest : VL);
    }
}

/* What one token brings to one value head. */
typedef struct {
  const float *q, *k;
  float q_unit, k_unit, decay, beta;
} delta_token;

/* u = v - decay * s^T k, what the state does not know of v yet. Even and odd rows are summed apart:
 * one chain of additions would wait for itself. */
INLINE void delta_news(vf *u, const float *s, const vf *v, const delta_token *t, int64_t E,
                       const int wide) {
  vf sum[2][DELTA_MOST_WIDE];
  UNROLL for (int w = 0; w < wide; w++) sum[0][w] = sum[1][w] = vf_zero();
  int64_t e = 0;
  for (; e + 2 <= E; e += 2, s += 2 * wide * VL) UNROLL for (int i = 0; i < 2; i++) {
      vf k = vf_set(t->k[e + i]);
      UNROLL for (int w = 0; w < wide; w++)
        sum[i][w] = vf_fma(vf_load(s + (i * wide + w) * VL), k, sum[i][w]);
    }
  if (e < E) {
    vf k = vf_set(t->k[e]);
    UNROLL for (int w = 0; w < wide; w++) sum[0][w] = vf_fma(vf_load(s + w * VL), k, sum[0][w]);
  }
  vf known = vf_set(t->decay * t->k_unit);
  UNROLL for (int w = 0; w < wide; w++) u[w] = vf_fnma(sum[0][w] + sum[1][w], known, v[w]);
}

/* One token: v comes in, o goes out, the state is read twice and written once while it is near. */
INLINE void delta_step(float *s, vf *o, const vf *v, const delta_token *t, int64_t E, float scale,
                       const int wide) {
  vf d[DELTA_MOST_WIDE], sum[DELTA_MOST_WIDE], decay = vf_set(t->decay);
  delta_news(d, s, v, t, E, wide);
  UNROLL for (int w = 0; w < wide; w++) {
    d[w] = d[w] * vf_set(t->beta * t->k_unit);
    sum[w] = vf_zero();
  }
  for (int64_t e = 0; e < E; e++, s += wide * VL) {
    vf k = vf_set(t->k[e]), q = vf_set(t->q[e]);
    UNROLL for (int w = 0; w < wide; w++) {
      vf x = vf_fma(k, d[w], vf_load(s + w * VL) * decay);
      vf_store(s + w * VL, x);
      sum[w] = vf_fma(x, q, sum[w]);
    }
  }
  UNROLL for (int w = 0; w < wide; w++) o[w] = sum[w] * vf_set(t->q_unit * scale);
}

#endif
