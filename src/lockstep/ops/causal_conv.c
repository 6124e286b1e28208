/* causal_conv: y = silu(conv), conv[m] = sum_j w[j] * x[m - (W-1) + j], channel by channel; rows
 * before a sequence are 0. Channels never meet: a tile is some channels of all rows. */
#include "vec_math.h"

#define CONV_TAPS 8  /* the most taps */
#define CONV_TILE 64 /* channels of one tile */
#define CONV_ROWS 32 /* rows that a tile goes through together */
#define CONV_RUN 64  /* products summed in float before they join the total, which is double */

/* x of the row `behind` rows before row m of a sequence that starts at `begin`. */
INLINE double causal_conv_seen(const float *x_MN, int64_t m, int64_t behind, int64_t begin,
                               int64_t N, int64_t n) {
  return m - behind < begin ? 0.0 : x_MN[(m - behind) * N + n];
}

INLINE double causal_conv_sum(const float *x_MN, const float *w_WN, int64_t m, int64_t begin,
                              int64_t N, int64_t W, int64_t n) {
  double sum = 0.0;
  for (int64_t j = 0; j < W; j++)
    sum += w_WN[j * N + n] * causal_conv_seen(x_MN, m, W - 1 - j, begin, N, n);
  return sum;
}

KERNEL void causal_conv_naive(float *y_MN, const float *x_MN, const float *w_WN, int64_t M,
                              int64_t N, int64_t W, int64_t tokens) {
  for (int64_t m = 0; m < M; m++)
    for (int64_t n = 0; n < N; n++) {
      double sum = causal_conv_sum(x_MN, w_WN, m, m - m % tokens, N, W, n);
      y_MN[m * N + n] = (float)(sum / (1.0 + exp(-sum)));
    }
}

/* A masked store costs some processors ten times a whole one: `full` says that none is needed. */
INLINE vf causal_conv_load(const float *p, vm valid, const int full) {
  return full ? vf_load(p) : vf_load_m(p, valid);
}
INLINE void causal_conv_store(float *p, vf x, vm valid, const int full) {
  if (full)
    vf_store(p, x);
  else
    vf_store_m(p, x, valid);
}

/* Consecutive rows of one sequence for the channels of one vector. `past` holds the W-1 rows before
 * them, oldest first; afterwards those before the next row. */
INLINE void causal_conv_rows(float *y, const float *x, const float *w_WN, vf *past, int64_t n_rows,
                             int64_t N, vm valid, const int full, const int W) {
  vf tap[CONV_TAPS] = {vf_zero()}, seen[CONV_TAPS] = {vf_zero()};
  UNROLL for (int j = 0; j < W; j++) tap[j] = causal_conv_load(w_WN + j * N, valid, full);
  UNROLL for (int j = 0; j < W - 1; j++) seen[j] = past[j];
  for (int64_t i = 0; i < n_rows * N; i += N) {
    seen[W - 1] = causal_conv_load(x + i, valid, full);
    vf sum = seen[0] * tap[0];
    UNROLL for (int j = 1; j < W; j++) sum = vf_fma(seen[j], tap[j], sum);
    causal_conv_store(y + i, sum / (vf_set(1.0f) + vf_exp(-sum)), valid, full);
    UNROLL for (int j = 0; j < W - 1; j++) seen[j] = seen[j + 1];
  }
  UNROLL for (int j = 0; j < W - 1; j++) past[j] = seen[j];
}

/* All channels of a tile, a block of rows at a time, so that they stay near. `past` holds the rows
 * before, for each vector of channels. */
INLINE void causal_conv_block(float *y, const float *x, const float *w_WN, vf (*past)[CONV_TAPS],
                              int64_t n_rows, int64_t N, int64_t n, const int full, const int W) {
  for (int64_t row = 0; row < n_rows; row += CONV_ROWS) {
    int64_t rows = n_rows - row < CONV_ROWS ? n_rows - row : CONV_ROWS;
    for (int64_t i = 0; i < n; i += VL)
      causal_conv_rows(y + row * N + i, x + row * N + i, w_WN + i, past[i / VL], rows, N,
                       vm_first(n - i < VL ? n - i : VL), full, W);
  }
}

INLINE void causal_conv_run(float *y, const float *x, const float *w_WN, vf (*past)[CONV_TAPS],
                            int64_t n_rows, int64_t N, int64_t n, int64_t W) {
  if (W == 4 && n % VL == 0)
    causal_conv_block(y, x, w_WN, past, n_rows, N, n, 1, 4);
  else
    causal_conv_block(y, x, w_WN, past, n_rows, N, n, 0, (int)W);
}

KERNEL int64_t causal_conv_f32_tiles(int64_t M, int64_t N, int64_t W, int64_t tokens) {
  (void)W;
  return (N + CONV_TILE - 1) / CONV_TILE * (M / tokens);
}

KERNEL void causal_conv_f32(float *y_MN, const float *x_MN, const float *w_WN, int64_t M, int64_t N,
                            int64_t W, int64_t tokens, int64_t tile) {
  int64_t sequences = M / tokens, first = tile % sequences * tokens * N;
  int64_t begin = tile / sequences * CONV_TILE, end = begin + CONV_TILE < N ? begin + CONV_TILE : N;
  vf past[CONV_TILE / VL][CONV_TAPS] = {{vf_zero()}};
  first += begin;
  causal_conv_run(y_MN + first, x_MN + first, w_WN + begin, past, tokens, N, end - begin, W);
}

/* causal_conv_cached: rows of any slots, each after the rows that its slot had before. The state of
 * a slot is the last W-1 rows of x, oldest first; position 0 starts from zeros. */
KERNEL void causal_conv_cached_naive(float *y_MN, float *state_LUN, const float *x_MN,
                                     const float *w_WN, const float *state_in_LUN,
                                     const int32_t *positions_M, const int32_t *slots_M, int64_t M,
                                     int64_t N, int64_t W, int64_t L, int64_t U) {
  (void)state_in_LUN, (void)W, (void)L;
  for (int64_t m = 0; m < M; m++) {
    float *state_UN = state_LUN + slots_M[m] * U * N;
    for (int64_t n = 0; n < N; n++) {
      double sum = (double)w_WN[U * N + n] * x_MN[m * N + n];
      for (int64_t j = 0; j < U; j++) {
        if (positions_M[m] == 0) state_UN[j * N + n] = 0.0f;
        sum += (double)w_WN[j * N + n] * state_UN[j * N + n];
        if (j) state_UN[(j - 1) * N + n] = state_UN[j * N + n];
      }
      state_UN[(U - 1) * N + n] = x_MN[m * N + n];
      y_MN[m * N + n] = (float)(sum / (1.0 + exp(-sum)));
    }
  }
}

KERNEL int64_t causal_conv_cached_f32_tiles(int64_t M, int64_t N, int64_t W, int64_t L,
                                            int64_t U) {
  (void)M, (void)W, (void)L, (void)U;
  return (N + CONV_TILE - 1) / CONV_TILE;
}

/* How many rows from row m on belong to one slot, none but the first at position 0. */
INLINE int64_t causal_conv_same(const int32_t *positions_M, const int32_t *slots_M, int64_t m,
                                int64_t M) {
  int64_t end = m + 1;
  while (end < M && slots_M[end] == slots_M[m] && positions_M[end] != 0) end++;
  return end - m;
}

/* The rows before, out of the state of a slot or, `back`, into it. */
INLINE void causal_conv_state(float *state_UN, vf (*past)[CONV_TAPS], int64_t N, int64_t n,
                              int64_t U, const int back) {
  for (int64_t i = 0; i < n; i += VL) {
    int full = n - i >= VL;
    vm valid = vm_first(full ? VL : n - i);
    for (int64_t j = 0; j < U; j++)
      if (back)
        causal_conv_store(state_UN + j * N + i, past[i / VL][j], valid, full);
      else
        past[i / VL][j] = causal_conv_load(state_UN + j * N + i, valid, full);
  }
}

KERNEL void causal_conv_cached_f32(float *y_MN, float *state_LUN, const float *x_MN,
                                   const float *w_WN, const float *state_in_LUN,
                                   const int32_t *positions_M, const int32_t *slots_M, int64_t M,
                                   int64_t N, int64_t W, int64_t L, int64_t U, int64_t tile) {
  (void)state_in_LUN, (void)L;
  int64_t begin = tile * CONV_TILE, end = begin + CONV_TILE < N ? begin + CONV_TILE : N;
  for (int64_t m = 0, n_rows; m < M; m += n_rows) {
    n_rows = causal_conv_same(positions_M, slots_M, m, M);
    float *state_UN = state_LUN + slots_M[m] * U * N + begin;
    vf past[CONV_TILE / VL][CONV_TAPS] = {{vf_zero()}};
    if (positions_M[m] != 0) causal_conv_state(state_UN, past, N, end - begin, U, 0);
    causal_conv_run(y_MN + m * N + begin, x_MN + m * N + begin, w_WN + begin, past, n_rows, N,
                    end - begin, W);
    causal_conv_state(state_UN, past, N, end - begin, U, 1);
  }
}

/* causal_conv_grad: with c = conv(x) and dc = dy * s * (1 + c * (1 - s)), s = sigmoid(c),
 * dw[j] = acc[j] + sum_m dc[m] * x[m - (W-1) + j] and dx[m] = sum_j w[j] * dc[m + (W-1) - j]. */
KERNEL void causal_conv_grad_naive(float *dw_WN, float *dx_MN, const float *dy_MN,
                                   const float *x_MN, const float *w_WN, const float *acc_WN,
                                   const int32_t *accumulate, int64_t M, int64_t N, int64_t W,
                                   int64_t tokens) {
  int add = acc_WN && (!accumulate || *accumulate);
  for (int64_t n = 0; n < N; n++) {
    double dw[CONV_TAPS] = {0.0};
    for (int64_t m = 0; m < M; m++) {
      int64_t begin = m - m % tokens;
      double c = causal_conv_sum(x_MN, w_WN, m, begin, N, W, n), s = 1.0 / (1.0 + exp(-c));
      double dc = dy_MN[m * N + n] * s * (1.0 + c * (1.0 - s));
      dx_MN[m * N + n] = 0.0f;
      for (int64_t j = 0; j < W; j++) {
        int64_t behind = W - 1 - j;
        dw[j] += dc * causal_conv_seen(x_MN, m, behind, begin, N, n);
        if (m - behind >= begin) dx_MN[(m - behind) * N + n] += (float)(w_WN[j * N + n] * dc);
      }
    }
    for (int64_t j = 0; j < W; j++)
      dw_WN[j * N + n] = (float)(add ? acc_WN[j * N + n] + dw[j] : dw[j]);
  }
}

typedef struct {
  vd low, high;
} causal_conv_total;

/* One sequence for the channels of one vector, from its last row to its first: dx of a row needs dc
 * of the rows after it. */
INLINE void causal_conv_back(float *dx, causal_conv_total *total, const float *dy, const float *x,
                             const vf *tap, int64_t tokens, int64_t N, vm valid, const int W) {
  const vf one = vf_set(1.0f);
  vf dc[CONV_TAPS] = {vf_zero()}, dw[CONV_TAPS] = {vf_zero()}; /* dc[j]: of the row that row m meets through tap j */
  for (int64_t m = tokens - 1; m >= 0; m--) {
    vf seen[CONV_TAPS] = {vf_zero()}, c = vf_zero(), back = vf_zero();
    UNROLL for (int j = 0; j < W; j++) {
      int64_t at = m - (W - 1) + j;
      seen[j] = at < 0 ? vf_zero() : vf_load_m(x + at * N, valid);
      c = vf_fma(seen[j], tap[j], c);
    }
    UNROLL for (int j = 0; j < W - 1; j++) dc[j] = dc[j + 1];
    vf s = vf_sigmoid(c);
    dc[W - 1] = vf_load_m(dy + m * N, valid) * s * vf_fma(c, one - s, one);
    UNROLL for (int j = 0; j < W; j++) {
      dw[j] = vf_fma(dc[W - 1], seen[j], dw[j]);
      back = vf_fma(tap[j], dc[j], back);
    }
    vf_store_m(dx + m * N, back, valid);
    if (m % CONV_RUN == 0)
      UNROLL for (int j = 0; j < W; j++) {
        total[j].low = total[j].low + vf_low(dw[j]);
        total[j].high = total[j].high + vf_high(dw[j]);
        dw[j] = vf_zero();
      }
  }
}

KERNEL int64_t causal_conv_grad_f32_tiles(int64_t M, int64_t N, int64_t W, int64_t tokens) {
  (void)M, (void)W, (void)tokens;
  return (N + CONV_TILE - 1) / CONV_TILE;
}

KERNEL void causal_conv_grad_f32(float *dw_WN, float *dx_MN, const float *dy_MN, const float *x_MN,
                                 const float *w_WN, const float *acc_WN, const int32_t *accumulate,
                                 int64_t M, int64_t N, int64_t W, int64_t tokens, int64_t tile) {
  int add = acc_WN && (!accumulate || *accumulate);
  int64_t begin = tile * CONV_TILE, end = begin + CONV_TILE < N ? begin + CONV_TILE : N;
  for (int64_t n = begin; n < end; n += VL) {
    vm valid = vm_first(end - n < VL ? end - n : VL);
    vf tap[CONV_TAPS] = {vf_zero()};
    causal_conv_total total[CONV_TAPS] = {{vd_zero(), vd_zero()}};
    for (int64_t j = 0; j < W; j++) tap[j] = vf_load_m(w_WN + j * N + n, valid);
    for (int64_t i = n; i < M * N; i += tokens * N) {
      if (W == 4)
        causal_conv_back(dx_MN + i, total, dy_MN + i, x_MN + i, tap, tokens, N, valid, 4);
      else
        causal_conv_back(dx_MN + i, total, dy_MN + i, x_MN + i, tap, tokens, N, valid, (int)W);
    }
    for (int64_t j = 0; j < W; j++) {
      vf sum = vf_join(total[j].low, total[j].high);
      if (add) sum = vf_load_m(acc_WN + j * N + n, valid) + sum;
      vf_store_m(dw_WN + j * N + n, sum, valid);
    }
  }
}
