/* gated_delta: a linear attention whose state forgets and corrects itself. For each value head, with
 * q and k of its key head made unit vectors, token after token:
 *   s = decay * s;  s = s + k (beta * (v - s^T k))^T;  o = s^T q / sqrt(E). */
#include "gated_delta.h"

/* One token of one column of the state, in double; returns o. */
INLINE double gated_delta_column(double *s, const float *x, delta_heads d, int64_t h, int64_t c,
                                 double decay, double beta, double eps) {
  const float *q = x + delta_q(d, h), *k = x + delta_k(d, h);
  double k_unit = 1.0 / sqrt(delta_squares(k, d.E) + eps), known = 0.0, o = 0.0;
  double q_unit = 1.0 / sqrt(delta_squares(q, d.E) + eps);
  for (int64_t e = 0; e < d.E; e++) known += s[e] * (k[e] * k_unit);
  double news = beta * ((c < d.V ? x[delta_v(d, h) + c] : 0.0f) - decay * known);
  for (int64_t e = 0; e < d.E; e++) {
    s[e] = decay * s[e] + k[e] * k_unit * news;
    o += s[e] * (q[e] * q_unit);
  }
  return o / sqrt((double)d.E);
}

KERNEL void gated_delta_naive(float *o_MO, const float *x_MN, const float *decay_MH,
                              const float *beta_MH, int64_t M, int64_t N, int64_t H, int64_t O,
                              int64_t key_heads, int64_t key_width, int64_t tiled, double eps,
                              int64_t tokens) {
  delta_heads d = delta_heads_of(N, H, key_heads, key_width, tiled);
  for (int64_t h = 0; h < H; h++)
    for (int64_t c = 0; c < d.V; c++) {
      double s[DELTA_KEY];
      for (int64_t m = 0; m < M; m++) {
        if (m % tokens == 0) memset(s, 0, sizeof s);
        o_MO[m * O + h * d.V + c] = (float)gated_delta_column(
            s, x_MN + m * N, d, h, c, decay_MH[m * H + h], beta_MH[m * H + h], eps);
      }
    }
}

/* Row m for block j of value head h: the state moves on by one token. */
INLINE void gated_delta_row(float *s, float *o_MO, const float *x_MN, const float *decay_MH,
                            const float *beta_MH, int64_t m, int64_t N, int64_t O, delta_heads d,
                            int64_t h, int64_t j, float eps) {
  const float *x = x_MN + m * N;
  int64_t c = j * DELTA_COLUMNS, n = d.V - c;
  delta_token t = {.q = x + delta_q(d, h),
                   .k = x + delta_k(d, h),
                   .decay = decay_MH[m * d.H + h],
                   .beta = beta_MH[m * d.H + h]};
  t.q_unit = delta_unit(t.q, d.E, eps);
  t.k_unit = delta_unit(t.k, d.E, eps);
  vf v[DELTA_MOST_WIDE], o[DELTA_MOST_WIDE];
  delta_load(v, x + delta_v(d, h) + c, n, DELTA_MOST_WIDE);
  delta_step(s, o, v, &t, d.E, 1.0f / sqrtf((float)d.E), DELTA_MOST_WIDE);
  delta_store(o_MO + m * O + h * d.V + c, o, n, DELTA_MOST_WIDE);
}

INLINE int64_t gated_delta_blocks(int64_t H, int64_t O) {
  return (O / H + DELTA_COLUMNS - 1) / DELTA_COLUMNS;
}

KERNEL int64_t gated_delta_f32_tiles(int64_t M, int64_t N, int64_t H, int64_t O, int64_t key_heads,
                                     int64_t key_width, int64_t tiled, double eps, int64_t tokens) {
  (void)N, (void)key_heads, (void)key_width, (void)tiled, (void)eps;
  return M / tokens * H * gated_delta_blocks(H, O);
}

KERNEL void gated_delta_f32(float *o_MO, const float *x_MN, const float *decay_MH,
                            const float *beta_MH, int64_t M, int64_t N, int64_t H, int64_t O,
                            int64_t key_heads, int64_t key_width, int64_t tiled, double eps,
                            int64_t tokens, int64_t tile) {
  (void)M;
  delta_heads d = delta_heads_of(N, H, key_heads, key_width, tiled);
  int64_t blocks = gated_delta_blocks(H, O), j = tile % blocks, h = tile / blocks % H;
  int64_t first = tile / blocks / H * tokens;
  __attribute__((aligned(64))) float s[DELTA_KEY * DELTA_COLUMNS];
  memset(s, 0, (size_t)(d.E * DELTA_COLUMNS) * sizeof(float));
  for (int64_t m = first; m < first + tokens; m++)
    gated_delta_row(s, o_MO, x_MN, decay_MH, beta_MH, m, N, O, d, h, j, (float)eps);
}

/* gated_delta_cached: rows of any slots, each after the rows that its slot had before. The state of
 * a slot is that of each value head in blocks of Q columns; position 0 starts from zeros. */
KERNEL void gated_delta_cached_naive(float *o_MO, float *state_LHJEQ, const float *x_MN,
                                     const float *decay_MH, const float *beta_MH,
                                     const float *state_in_LHJEQ, const int32_t *positions_M,
                                     const int32_t *slots_M, int64_t M, int64_t N, int64_t H,
                                     int64_t L, int64_t J, int64_t E, int64_t Q, int64_t O,
                                     int64_t key_heads, int64_t key_width, int64_t tiled,
                                     double eps) {
  (void)state_in_LHJEQ, (void)L;
  delta_heads d = delta_heads_of(N, H, key_heads, key_width, tiled);
  for (int64_t m = 0; m < M; m++)
    for (int64_t h = 0; h < H; h++)
      for (int64_t c = 0; c < J * Q; c++) {
        float *block = state_LHJEQ + ((slots_M[m] * H + h) * J + c / Q) * E * Q + c % Q;
        double s[DELTA_KEY];
        for (int64_t e = 0; e < E; e++) s[e] = positions_M[m] ? block[e * Q] : 0.0;
        double o = gated_delta_column(s, x_MN + m * N, d, h, c, decay_MH[m * H + h],
                                      beta_MH[m * H + h], eps);
        for (int64_t e = 0; e < E; e++) block[e * Q] = (float)s[e];
        if (c < d.V) o_MO[m * O + h * d.V + c] = (float)o;
      }
}

KERNEL int64_t gated_delta_cached_f32_tiles(int64_t M, int64_t N, int64_t H, int64_t L, int64_t J,
                                            int64_t E, int64_t Q, int64_t O, int64_t key_heads,
                                            int64_t key_width, int64_t tiled, double eps) {
  (void)M, (void)N, (void)L, (void)E, (void)Q, (void)O, (void)key_heads, (void)key_width;
  (void)tiled, (void)eps;
  return H * J;
}

KERNEL void gated_delta_cached_f32(float *o_MO, float *state_LHJEQ, const float *x_MN,
                                   const float *decay_MH, const float *beta_MH,
                                   const float *state_in_LHJEQ, const int32_t *positions_M,
                                   const int32_t *slots_M, int64_t M, int64_t N, int64_t H,
                                   int64_t L, int64_t J, int64_t E, int64_t Q, int64_t O,
                                   int64_t key_heads, int64_t key_width, int64_t tiled, double eps,
                                   int64_t tile) {
  (void)state_in_LHJEQ, (void)L;
  delta_heads d = delta_heads_of(N, H, key_heads, key_width, tiled);
  for (int64_t m = 0; m < M; m++) {
    float *s = state_LHJEQ + (slots_M[m] * H * J + tile) * E * Q;
    if (positions_M[m] == 0) memset(s, 0, (size_t)(E * Q) * sizeof(float));
    gated_delta_row(s, o_MO, x_MN, decay_MH, beta_MH, m, N, O, d, tile / J, tile % J, (float)eps);
  }
}
