/* rmsnorm: y = x * rstd * gain for every chunk of D in a row, rstd = 1 / sqrt(mean(x^2) + eps). */
#include "vec.h"

KERNEL void rmsnorm_naive(float *y_MN, float *rstd_MH, const float *x_MN, const float *gain_D,
                          int64_t M, int64_t N, int64_t D, int64_t H, double eps) {
  (void)N;
  for (int64_t c = 0; c < M * H; c++) {
    double sum = 0.0;
    for (int64_t d = 0; d < D; d++) sum += (double)x_MN[c * D + d] * x_MN[c * D + d];
    rstd_MH[c] = (float)(1.0 / sqrt(sum / (double)D + eps));
    for (int64_t d = 0; d < D; d++) y_MN[c * D + d] = x_MN[c * D + d] * rstd_MH[c] * gain_D[d];
  }
}

/* Chunks narrower than a vector go in fours: a masked load of a whole vector would wait for the
 * stores to the chunks beside it. */
typedef float rmsnorm_v4 __attribute__((vector_size(16)));

INLINE rmsnorm_v4 rmsnorm_load(const float *p) {
  rmsnorm_v4 x;
  memcpy(&x, p, sizeof x);
  return x;
}
INLINE void rmsnorm_store(float *p, rmsnorm_v4 x) { memcpy(p, &x, sizeof x); }
INLINE float rmsnorm_total(rmsnorm_v4 x) { return (x[0] + x[2]) + (x[1] + x[3]); }
INLINE int rmsnorm_is_narrow(int64_t D) { return D < VL && D % 4 == 0; }

INLINE float rmsnorm_chunk_narrow(float *y, const float *x, const float *gain, int64_t D,
                                  float eps) {
  rmsnorm_v4 sum = {0};
  for (int64_t d = 0; d < D; d += 4) sum += rmsnorm_load(x + d) * rmsnorm_load(x + d);
  float rstd = 1.0f / sqrtf(rmsnorm_total(sum) / (float)D + eps);
  for (int64_t d = 0; d < D; d += 4)
    rmsnorm_store(y + d, rmsnorm_load(x + d) * rstd * rmsnorm_load(gain + d));
  return rstd;
}

KERNEL void rmsnorm_f32(float *y_MN, float *rstd_MH, const float *x_MN, const float *gain_D,
                        int64_t M, int64_t N, int64_t D, int64_t H, double eps, int64_t row_begin,
                        int64_t row_end) {
  (void)M, (void)N;
  for (int64_t c = row_begin * H; c < row_end * H; c++) {
    const float *x = x_MN + c * D;
    if (rmsnorm_is_narrow(D)) {
      rstd_MH[c] = rmsnorm_chunk_narrow(y_MN + c * D, x, gain_D, D, (float)eps);
      continue;
    }
    vf sum = vf_zero();
    int64_t d = 0;
    for (; d + VL <= D; d += VL) {
      vf v = vf_load(x + d);
      sum = vf_fma(v, v, sum);
    }
    if (d < D) {
      vf v = vf_load_n(x + d, D - d);
      sum = vf_fma(v, v, sum);
    }
    float rstd = 1.0f / sqrtf(vf_sum(sum) / (float)D + (float)eps);
    rstd_MH[c] = rstd;
    for (d = 0; d + VL <= D; d += VL)
      vf_store(y_MN + c * D + d, vf_load(x + d) * vf_set(rstd) * vf_load(gain_D + d));
    if (d < D)
      vf_store_n(y_MN + c * D + d,
                 vf_load_n(x + d, D - d) * vf_set(rstd) * vf_load_n(gain_D + d, D - d), D - d);
  }
}

/* rmsnorm_dx: dx = rstd * (gain*dy - x * rstd^2 * mean(gain*dy*x)) + add. */
KERNEL void rmsnorm_dx_naive(float *dx_MN, const float *dy_MN, const float *x_MN,
                             const float *gain_D, const float *rstd_MH, const float *add_MN,
                             int64_t M, int64_t N, int64_t D, int64_t H) {
  (void)N;
  for (int64_t c = 0; c < M * H; c++) {
    double sum = 0.0, rstd = rstd_MH[c];
    for (int64_t d = 0; d < D; d++) sum += (double)gain_D[d] * dy_MN[c * D + d] * x_MN[c * D + d];
    for (int64_t d = 0; d < D; d++) {
      double direct = (double)gain_D[d] * dy_MN[c * D + d];
      double dx = rstd * (direct - x_MN[c * D + d] * (rstd * rstd * sum / (double)D));
      dx_MN[c * D + d] = (float)(add_MN ? dx + add_MN[c * D + d] : dx);
    }
  }
}

INLINE vf rmsnorm_dx_lanes(vf dy, vf x, vf gain, float rstd, float shift) {
  return vf_fnma(x, vf_set(shift), dy * gain) * vf_set(rstd);
}

INLINE void rmsnorm_dx_chunk_narrow(float *dx, const float *dy, const float *x, const float *gain,
                                    const float *add, int64_t D, float rstd) {
  rmsnorm_v4 sum = {0};
  for (int64_t d = 0; d < D; d += 4)
    sum += rmsnorm_load(dy + d) * rmsnorm_load(gain + d) * rmsnorm_load(x + d);
  float shift = rstd * rstd * (rmsnorm_total(sum) / (float)D);
  for (int64_t d = 0; d < D; d += 4) {
    rmsnorm_v4 v = rmsnorm_load(dy + d) * rmsnorm_load(gain + d) - rmsnorm_load(x + d) * shift;
    rmsnorm_store(dx + d, add ? v * rstd + rmsnorm_load(add + d) : v * rstd);
  }
}

KERNEL void rmsnorm_dx_f32(float *dx_MN, const float *dy_MN, const float *x_MN, const float *gain_D,
                           const float *rstd_MH, const float *add_MN, int64_t M, int64_t N,
                           int64_t D, int64_t H, int64_t row_begin, int64_t row_end) {
  (void)M, (void)N;
  for (int64_t c = row_begin * H; c < row_end * H; c++) {
    const float *dy = dy_MN + c * D, *x = x_MN + c * D, *add = add_MN ? add_MN + c * D : NULL;
    float *dx = dx_MN + c * D;
    if (rmsnorm_is_narrow(D)) {
      rmsnorm_dx_chunk_narrow(dx, dy, x, gain_D, add, D, rstd_MH[c]);
      continue;
    }
    vf sum = vf_zero();
    int64_t d = 0, rest = D % VL;
    for (; d + VL <= D; d += VL)
      sum = vf_fma(vf_load(dy + d) * vf_load(gain_D + d), vf_load(x + d), sum);
    if (rest)
      sum = vf_fma(vf_load_n(dy + d, rest) * vf_load_n(gain_D + d, rest), vf_load_n(x + d, rest),
                   sum);
    float rstd = rstd_MH[c], shift = rstd * rstd * (vf_sum(sum) / (float)D);
    for (d = 0; d + VL <= D; d += VL) {
      vf v = rmsnorm_dx_lanes(vf_load(dy + d), vf_load(x + d), vf_load(gain_D + d), rstd, shift);
      vf_store(dx + d, add ? vf_add(v, vf_load(add + d)) : v);
    }
    if (rest) {
      vf v = rmsnorm_dx_lanes(vf_load_n(dy + d, rest), vf_load_n(x + d, rest),
                              vf_load_n(gain_D + d, rest), rstd, shift);
      vf_store_n(dx + d, add ? vf_add(v, vf_load_n(add + d, rest)) : v, rest);
    }
  }
}

/* rmsnorm_dgain: dgain = acc + sum over all chunks of dy * x * rstd. */
KERNEL void rmsnorm_dgain_naive(float *dgain_D, const float *dy_MN, const float *x_MN,
                                const float *rstd_MH, const float *acc_D, const int32_t *accumulate,
                                int64_t M, int64_t N, int64_t H, int64_t D) {
  (void)N;
  int add = acc_D && (!accumulate || *accumulate);
  for (int64_t d = 0; d < D; d++) {
    double sum = 0.0;
    for (int64_t c = 0; c < M * H; c++)
      sum += (double)dy_MN[c * D + d] * x_MN[c * D + d] * rstd_MH[c];
    dgain_D[d] = (float)(add ? acc_D[d] + sum : sum);
  }
}

#define RMSNORM_TILE 16 /* one cache line of every row */
#define RMSNORM_RUN 64  /* chunks summed in float before they join the total, which is double */

KERNEL int64_t rmsnorm_dgain_f32_tiles(int64_t M, int64_t N, int64_t H, int64_t D) {
  (void)M, (void)N, (void)H;
  return (D + RMSNORM_TILE - 1) / RMSNORM_TILE;
}

KERNEL void rmsnorm_dgain_f32(float *dgain_D, const float *dy_MN, const float *x_MN,
                              const float *rstd_MH, const float *acc_D, const int32_t *accumulate,
                              int64_t M, int64_t N, int64_t H, int64_t D, int64_t tile) {
  (void)N;
  int add = acc_D && (!accumulate || *accumulate);
  int64_t end = (tile + 1) * RMSNORM_TILE < D ? (tile + 1) * RMSNORM_TILE : D;
  for (int64_t d = tile * RMSNORM_TILE; d < end; d += VL) {
    vm valid = vm_first(end - d);
    vd low = vd_zero(), high = vd_zero();
    for (int64_t begin = 0; begin < M * H; begin += RMSNORM_RUN) {
      int64_t stop = begin + RMSNORM_RUN < M * H ? begin + RMSNORM_RUN : M * H;
      vf sum = vf_zero();
      for (int64_t c = begin; c < stop; c++)
        sum = vf_fma(vf_load_m(dy_MN + c * D + d, valid),
                     vf_load_m(x_MN + c * D + d, valid) * vf_set(rstd_MH[c]), sum);
      low = low + vf_low(sum);
      high = high + vf_high(sum);
    }
    vf total = vf_join(low, high);
    if (add) total = vf_load_m(acc_D + d, valid) + total;
    vf_store_m(dgain_D + d, total, valid);
  }
}
