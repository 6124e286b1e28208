/* gated_delta_grad: the gradient of the gated delta rule. With s0 the state before a token,
 * s1 = decay * s0, u = v - s1^T k, d = beta * u, s = s1 + k d^T and o = s^T q / sqrt(E), and ds the
 * gradient of the state after it, from the last token to the first:
 *   ds = ds + q do^T / sqrt(E);  dq = s do / sqrt(E);  dd = ds^T k;  du = dv = beta * dd;
 *   dbeta = dd u;  dk = ds d - s1 du;  ds1 = ds - k du^T;  ddecay = <ds1, s0>;  ds = decay * ds1.
 * States cannot be rebuilt backwards (a small decay forgets), so a first pass keeps every
 * DELTA_RUN-th one in `starts`, and each run is walked forwards once more before it is undone. */
#include "gated_delta.h"

#define DELTA_RUN 16  /* tokens of one run */
#define DELTA_BACK 16 /* columns of one block here: the states of a run stay near */
#define DELTA_BACK_WIDE (DELTA_BACK / VL)

INLINE int64_t delta_runs(int64_t tokens) { return (tokens + DELTA_RUN - 1) / DELTA_RUN; }
INLINE int64_t delta_back_blocks(int64_t V) { return (V + DELTA_BACK - 1) / DELTA_BACK; }

/* The states of one block of one value head of one sequence at the starts of its runs. */
INLINE float *delta_starts(float *starts_P, delta_heads d, int64_t tokens, int64_t b, int64_t h,
                           int64_t j) {
  int64_t block = (b * d.H + h) * delta_back_blocks(d.V) + j;
  return starts_P + block * delta_runs(tokens) * d.E * DELTA_BACK;
}

/* From the gradient of x * unit, unit = 1 / sqrt(sum of squares + eps), to that of x. */
INLINE void delta_unit_back(float *dx, const float *x, int64_t E, double eps) {
  double unit = 1.0 / sqrt(delta_squares(x, E) + eps), along = 0.0;
  for (int64_t e = 0; e < E; e++) along += (double)dx[e] * (x[e] * unit);
  for (int64_t e = 0; e < E; e++) dx[e] = (float)(unit * (dx[e] - x[e] * unit * along));
}

INLINE void delta_units_back(float *dx_MN, const float *x_MN, int64_t begin, int64_t end, int64_t N,
                             int64_t g, delta_heads d, double eps) {
  for (int64_t m = begin; m < end; m++)
    for (int64_t i = m * N + g * d.E; i < m * N + 2 * d.G * d.E; i += d.G * d.E)
      delta_unit_back(dx_MN + i, x_MN + i, d.E, eps);
}

/* The state of one column before token `end` of a sequence, from its first token on, in double. */
INLINE void gated_delta_replay(double *s, float *starts, const float *x, const float *decay,
                               const float *beta, int64_t end, int64_t N, delta_heads d, int64_t h,
                               int64_t c, double eps) {
  memset(s, 0, DELTA_KEY * sizeof *s);
  for (int64_t t = 0; t < end; t++) {
    const float *k = x + t * N + delta_k(d, h);
    double k_unit = 1.0 / sqrt(delta_squares(k, d.E) + eps), known = 0.0;
    for (int64_t e = 0; e < d.E; e++) {
      if (starts && t % DELTA_RUN == 0)
        starts[(t / DELTA_RUN * d.E + e) * DELTA_BACK + c % DELTA_BACK] = (float)s[e];
      known += s[e] * (k[e] * k_unit);
    }
    double v = c < d.V ? x[t * N + delta_v(d, h) + c] : 0.0f, keep = decay[t * d.H];
    double news = beta[t * d.H] * (v - keep * known);
    for (int64_t e = 0; e < d.E; e++) s[e] = keep * s[e] + k[e] * k_unit * news;
  }
}

/* One column of one token, undone; `ds` goes from the state after it to the state before it. */
INLINE void gated_delta_undo(double *ds, const double *s0, float *dx, float *ddecay, float *dbeta,
                             double dout, const float *x, double decay, double beta, delta_heads d,
                             int64_t h, int64_t c, double eps) {
  const float *q = x + delta_q(d, h), *k = x + delta_k(d, h);
  double q_unit = 1.0 / sqrt(delta_squares(q, d.E) + eps), scale = 1.0 / sqrt((double)d.E);
  double k_unit = 1.0 / sqrt(delta_squares(k, d.E) + eps), known = 0.0, dd = 0.0, along = 0.0;
  for (int64_t e = 0; e < d.E; e++) known += s0[e] * (k[e] * k_unit);
  double u = x[delta_v(d, h) + c] - decay * known;
  for (int64_t e = 0; e < d.E; e++) {
    ds[e] += q[e] * q_unit * scale * dout;
    dd += ds[e] * (k[e] * k_unit);
  }
  for (int64_t e = 0; e < d.E; e++) {
    double s1 = decay * s0[e], s = s1 + k[e] * k_unit * (beta * u);
    dx[delta_q(d, h) + e] += (float)(s * dout * scale);
    dx[delta_k(d, h) + e] += (float)(ds[e] * beta * u - s1 * beta * dd);
    ds[e] -= k[e] * k_unit * beta * dd;
    along += ds[e] * s0[e];
    ds[e] *= decay;
  }
  dx[delta_v(d, h) + c] = (float)(beta * dd);
  *ddecay += (float)along;
  *dbeta += (float)(dd * u);
}

KERNEL void gated_delta_grad_naive(float *dx_MN, float *ddecay_MH, float *dbeta_MH, float *starts_P,
                                   const float *do_MO, const float *x_MN, const float *decay_MH,
                                   const float *beta_MH, int64_t M, int64_t O, int64_t N, int64_t H,
                                   int64_t P, int64_t key_heads, int64_t key_width, int64_t tiled,
                                   double eps, int64_t tokens) {
  delta_heads d = delta_heads_of(N, H, key_heads, key_width, tiled);
  memset(dx_MN, 0, (size_t)(M * N) * sizeof(float));
  memset(ddecay_MH, 0, (size_t)(M * H) * sizeof(float));
  memset(dbeta_MH, 0, (size_t)(M * H) * sizeof(float));
  memset(starts_P, 0, (size_t)P * sizeof(float));
  for (int64_t b = 0; b < M / tokens; b++)
    for (int64_t h = 0; h < H; h++)
      for (int64_t c = 0; c < delta_back_blocks(d.V) * DELTA_BACK; c++) {
        int64_t first = b * tokens;
        double s[DELTA_KEY], ds[DELTA_KEY] = {0.0};
        const float *x = x_MN + first * N, *decay = decay_MH + first * H + h;
        const float *beta = beta_MH + first * H + h;
        float *starts = delta_starts(starts_P, d, tokens, b, h, c / DELTA_BACK);
        gated_delta_replay(s, starts, x, decay, beta, tokens, N, d, h, c, eps);
        for (int64_t t = tokens - 1; t >= 0 && c < d.V; t--) {
          int64_t m = first + t, i = m * H + h;
          gated_delta_replay(s, NULL, x, decay, beta, t, N, d, h, c, eps);
          gated_delta_undo(ds, s, dx_MN + m * N, ddecay_MH + i, dbeta_MH + i,
                           do_MO[m * O + h * d.V + c], x_MN + m * N, decay_MH[i], beta_MH[i], d, h,
                           c, eps);
        }
      }
  for (int64_t g = 0; g < d.G; g++) delta_units_back(dx_MN, x_MN, 0, M, N, g, d, eps);
}

/* Unit vectors, padded with zeros to whole vectors of lanes. */
typedef struct {
  __attribute__((aligned(64))) float q[DELTA_KEY], k[DELTA_KEY];
  delta_token token;
} delta_units;

INLINE void delta_units_of(delta_units *units, const float *x, delta_heads d, int64_t h,
                           float decay, float beta, float eps) {
  const float *q = x + delta_q(d, h), *k = x + delta_k(d, h);
  float q_unit = delta_unit(q, d.E, eps), k_unit = delta_unit(k, d.E, eps);
  int64_t padded = (d.E + VL - 1) / VL * VL;
  for (int64_t e = 0; e < d.E; e++) {
    units->q[e] = q[e] * q_unit;
    units->k[e] = k[e] * k_unit;
  }
  for (int64_t e = d.E; e < padded; e++) units->q[e] = units->k[e] = 0.0f;
  units->token = (delta_token){
      .q = units->q, .k = units->k, .q_unit = 1.0f, .k_unit = 1.0f, .decay = decay, .beta = beta};
}

/* The sum of the lanes of each of VL vectors, as one vector. */
INLINE vf delta_fold(vf *x) {
  vf_transpose(x);
  for (int step = VL / 2; step > 0; step /= 2) UNROLL for (int i = 0; i < step; i++) x[i] = x[i] + x[i + step];
  return x[0];
}

INLINE void delta_add_n(float *sum, vf x, int64_t n) {
  if (n >= VL)
    vf_store(sum, vf_load(sum) + x);
  else
    vf_store_n(sum, vf_load_n(sum, n) + x, n);
}

typedef struct {
  vf dout[DELTA_BACK_WIDE], d[DELTA_BACK_WIDE], dd[DELTA_BACK_WIDE], du[DELTA_BACK_WIDE];
} delta_columns;

/* ds += q do^T, dd = ds^T k, dq += s do, dk += ds d: what is known before du is. */
INLINE void delta_undo_read(float *ds, float *dq, float *dk, const float *s0, delta_columns *c,
                            const delta_token *t, int64_t E) {
  vf decay = vf_set(t->decay), a[VL], b[VL];
  UNROLL for (int w = 0; w < DELTA_BACK_WIDE; w++) c->dd[w] = vf_zero();
  for (int64_t e = 0; e < E; e += VL) {
    for (int i = 0; i < VL; i++) {
      const float *row = s0 + (e + i) * DELTA_BACK;
      float *drow = ds + (e + i) * DELTA_BACK;
      vf q = vf_set(t->q[e + i]), k = vf_set(t->k[e + i]);
      a[i] = b[i] = vf_zero();
      UNROLL for (int w = 0; w < DELTA_BACK_WIDE; w++) {
        vf s = vf_fma(k, c->d[w], vf_load(row + w * VL) * decay);
        vf g = vf_fma(q, c->dout[w], vf_load(drow + w * VL));
        vf_store(drow + w * VL, g);
        c->dd[w] = vf_fma(g, k, c->dd[w]);
        a[i] = vf_fma(s, c->dout[w], a[i]);
        b[i] = vf_fma(g, c->d[w], b[i]);
      }
    }
    delta_add_n(dq + e, delta_fold(a), E - e);
    delta_add_n(dk + e, delta_fold(b), E - e);
  }
}

/* ds1 = ds - k du^T, dk -= s1 du, ds = decay * ds1; returns <ds1, s0>. */
INLINE float delta_undo_write(float *ds, float *dk, const float *s0, const delta_columns *c,
                              const delta_token *t, int64_t E) {
  vf decay = vf_set(t->decay), along = vf_zero(), b[VL];
  for (int64_t e = 0; e < E; e += VL) {
    for (int i = 0; i < VL; i++) {
      const float *row = s0 + (e + i) * DELTA_BACK;
      float *drow = ds + (e + i) * DELTA_BACK;
      vf k = vf_set(t->k[e + i]);
      b[i] = vf_zero();
      UNROLL for (int w = 0; w < DELTA_BACK_WIDE; w++) {
        vf s = vf_load(row + w * VL), g = vf_fnma(k, c->du[w], vf_load(drow + w * VL));
        along = vf_fma(g, s, along);
        b[i] = vf_fnma(s * decay, c->du[w], b[i]);
        vf_store(drow + w * VL, g * decay);
      }
    }
    delta_add_n(dk + e, delta_fold(b), E - e);
  }
  return vf_sum(along);
}

/* One block of columns of one value head of one sequence. */
typedef struct {
  const float *dout, *x, *decay, *beta;
  float *dx, *ddecay, *dbeta, *starts;
  int64_t N, O, tokens, h, j;
  delta_heads d;
  float eps;
} delta_block;

INLINE void delta_block_units(delta_units *units, const delta_block *b, int64_t t) {
  delta_units_of(units, b->x + t * b->N, b->d, b->h, b->decay[t * b->d.H], b->beta[t * b->d.H],
                 b->eps);
}

/* The first pass: `starts` gets the state before every DELTA_RUN-th token. */
INLINE void delta_walk(const delta_block *b) {
  int64_t c = b->j * DELTA_BACK, E = b->d.E, size = E * DELTA_BACK;
  __attribute__((aligned(64))) float s[DELTA_KEY * DELTA_BACK];
  delta_units units;
  vf v[DELTA_MOST_WIDE], o[DELTA_MOST_WIDE];
  memset(s, 0, (size_t)size * sizeof(float));
  for (int64_t t = 0; t < b->tokens; t++) {
    if (t % DELTA_RUN == 0)
      memcpy(b->starts + t / DELTA_RUN * size, s, (size_t)size * sizeof(float));
    delta_block_units(&units, b, t);
    delta_load(v, b->x + t * b->N + delta_v(b->d, b->h) + c, b->d.V - c, DELTA_BACK_WIDE);
    delta_step(s, o, v, &units.token, E, 1.0f, DELTA_BACK_WIDE);
  }
}

/* The tokens of one run, undone; `ds` is what the tokens after it left. */
INLINE void delta_undo_run(float *ds, const delta_block *b, int64_t begin, int64_t end) {
  int64_t E = b->d.E, H = b->d.H, N = b->N, c = b->j * DELTA_BACK, n = b->d.V - c;
  int64_t size = (E + VL - 1) / VL * VL * DELTA_BACK, v_at = delta_v(b->d, b->h) + c;
  float scale = 1.0f / sqrtf((float)E);
  __attribute__((aligned(64))) float s0[DELTA_RUN * DELTA_KEY * DELTA_BACK];
  delta_units units[DELTA_RUN];
  vf u[DELTA_RUN][DELTA_BACK_WIDE], v[DELTA_MOST_WIDE], o[DELTA_MOST_WIDE];
  memset(s0, 0, (size_t)size * sizeof(float));
  memcpy(s0, b->starts + begin / DELTA_RUN * E * DELTA_BACK,
         (size_t)(E * DELTA_BACK) * sizeof(float));
  for (int64_t i = 0; begin + i < end; i++) {
    float *s = s0 + i * size;
    delta_block_units(&units[i], b, begin + i);
    delta_load(v, b->x + (begin + i) * N + v_at, n, DELTA_BACK_WIDE);
    delta_news(u[i], s, v, &units[i].token, E, DELTA_BACK_WIDE);
    if (begin + i + 1 == end) break;
    memcpy(s + size, s, (size_t)size * sizeof(float));
    delta_step(s + size, o, v, &units[i].token, E, 1.0f, DELTA_BACK_WIDE);
  }
  for (int64_t t = end - 1; t >= begin; t--) {
    const delta_token *token = &units[t - begin].token;
    const float *s = s0 + (t - begin) * size;
    float *dq = b->dx + t * N + delta_q(b->d, b->h), *dk = b->dx + t * N + delta_k(b->d, b->h);
    delta_columns cols;
    vf strength = vf_set(token->beta), dbeta = vf_zero();
    delta_load(cols.dout, b->dout + t * b->O + b->h * b->d.V + c, n, DELTA_BACK_WIDE);
    UNROLL for (int w = 0; w < DELTA_BACK_WIDE; w++) {
      cols.dout[w] = cols.dout[w] * vf_set(scale);
      cols.d[w] = u[t - begin][w] * strength;
    }
    delta_undo_read(ds, dq, dk, s, &cols, token, E);
    UNROLL for (int w = 0; w < DELTA_BACK_WIDE; w++) {
      cols.du[w] = cols.dd[w] * strength;
      dbeta = vf_fma(cols.dd[w], u[t - begin][w], dbeta);
    }
    delta_store(b->dx + t * N + v_at, cols.du, n, DELTA_BACK_WIDE);
    b->dbeta[t * H] += vf_sum(dbeta);
    b->ddecay[t * H] += delta_undo_write(ds, dk, s, &cols, token, E);
  }
}

KERNEL int64_t gated_delta_grad_f32_tiles(int64_t M, int64_t O, int64_t N, int64_t H, int64_t P,
                                          int64_t key_heads, int64_t key_width, int64_t tiled,
                                          double eps, int64_t tokens) {
  (void)O, (void)N, (void)H, (void)P, (void)key_width, (void)tiled, (void)eps;
  return M / tokens * key_heads; /* the value heads of a key head share its dq and dk */
}

KERNEL void gated_delta_grad_f32(float *dx_MN, float *ddecay_MH, float *dbeta_MH, float *starts_P,
                                 const float *do_MO, const float *x_MN, const float *decay_MH,
                                 const float *beta_MH, int64_t M, int64_t O, int64_t N, int64_t H,
                                 int64_t P, int64_t key_heads, int64_t key_width, int64_t tiled,
                                 double eps, int64_t tokens, int64_t tile) {
  (void)M, (void)P;
  delta_heads d = delta_heads_of(N, H, key_heads, key_width, tiled);
  int64_t g = tile % d.G, b = tile / d.G, first = b * tokens;
  size_t key_bytes = (size_t)d.E * sizeof(float);
  for (int64_t m = first; m < first + tokens; m++) {
    memset(dx_MN + m * N + g * d.E, 0, key_bytes);
    memset(dx_MN + m * N + (d.G + g) * d.E, 0, key_bytes);
  }
  for (int64_t h = 0; h < H; h++) {
    if (delta_key_head(d, h) != g) continue;
    int64_t i = first * H + h;
    for (int64_t t = 0; t < tokens; t++) ddecay_MH[i + t * H] = dbeta_MH[i + t * H] = 0.0f;
    for (int64_t j = 0; j < delta_back_blocks(d.V); j++) {
      delta_block block = {.dout = do_MO + first * O,
                           .x = x_MN + first * N,
                           .decay = decay_MH + i,
                           .beta = beta_MH + i,
                           .dx = dx_MN + first * N,
                           .ddecay = ddecay_MH + i,
                           .dbeta = dbeta_MH + i,
                           .starts = delta_starts(starts_P, d, tokens, b, h, j),
                           .N = N,
                           .O = O,
                           .tokens = tokens,
                           .h = h,
                           .j = j,
                           .d = d,
                           .eps = (float)eps};
      __attribute__((aligned(64))) float ds[DELTA_KEY * DELTA_BACK] = {0.0f};
      delta_walk(&block);
      for (int64_t run = delta_runs(tokens) - 1; run >= 0; run--) {
        int64_t begin = run * DELTA_RUN, end = begin + DELTA_RUN;
        delta_undo_run(ds, &block, begin, end < tokens ? end : tokens);
      }
    }
  }
  delta_units_back(dx_MN, x_MN, first, first + tokens, N, g, d, eps);
}
