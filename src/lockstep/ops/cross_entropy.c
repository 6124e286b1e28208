/* cross_entropy: loss[m] = log(sum_v e^logit) - logit[target],
 * dlogits = scale * (softmax - onehot). A row whose target is negative is ignored: loss 0, gradient
 * 0. dlogits may be the memory of logits. */
#include "vec_math.h"

KERNEL void cross_entropy_naive(float *loss_M, float *dlogits_MV, const float *logits_MV,
                                const int32_t *targets_M, const float *scale, int64_t M,
                                int64_t V) {
  for (int64_t m = 0; m < M; m++) {
    const float *x = logits_MV + m * V;
    double top = x[0], sum = 0.0;
    for (int64_t v = 1; v < V; v++) top = x[v] > top ? x[v] : top;
    for (int64_t v = 0; v < V; v++) sum += exp(x[v] - top);
    int32_t target = targets_M[m];
    loss_M[m] = target < 0 ? 0.0f : (float)(log(sum) - (x[target] - top));
    for (int64_t v = 0; v < V; v++) {
      double p = exp(x[v] - top) / sum;
      dlogits_MV[m * V + v] = target < 0 ? 0.0f : (float)(*scale * (p - (v == target)));
    }
  }
}

INLINE float cross_entropy_top(const float *x, int64_t V) {
  vf top = vf_set(-INFINITY);
  int64_t v = 0;
  for (; v + VL <= V; v += VL) top = vf_max(top, vf_load(x + v));
  if (v < V) top = vf_max(top, vf_blend(vm_first(V - v), vf_load_n(x + v, V - v), top));
  return vf_hmax(top);
}

/* Writes e^(x - top) and returns its sum; runs of 64 vectors join the total. */
INLINE double cross_entropy_exp(float *e, const float *x, float top, int64_t V) {
  vd low = vd_zero(), high = vd_zero();
  for (int64_t begin = 0; begin < V; begin += 64 * VL) {
    int64_t end = begin + 64 * VL < V ? begin + 64 * VL : V, v = begin;
    vf sum = vf_zero();
    for (; v + VL <= end; v += VL) {
      vf y = vf_exp(vf_load(x + v) - vf_set(top));
      vf_store(e + v, y);
      sum = sum + y;
    }
    if (v < end) {
      vm valid = vm_first(end - v);
      vf y = vf_exp(vf_load_m(x + v, valid) - vf_set(top));
      vf_store_m(e + v, y, valid);
      sum = sum + vf_blend(valid, y, vf_zero());
    }
    low = low + vf_low(sum);
    high = high + vf_high(sum);
  }
  return vd_sum(low + high);
}

KERNEL void cross_entropy_f32(float *loss_M, float *dlogits_MV, const float *logits_MV,
                              const int32_t *targets_M, const float *scale, int64_t M, int64_t V,
                              int64_t row_begin, int64_t row_end) {
  (void)M;
  for (int64_t m = row_begin; m < row_end; m++) {
    const float *x = logits_MV + m * V;
    float *d = dlogits_MV + m * V;
    int32_t target = targets_M[m];
    if (target < 0) {
      loss_M[m] = 0.0f;
      memset(d, 0, (size_t)V * sizeof(float));
      continue;
    }
    float top = cross_entropy_top(x, V), hit = x[target];
    double sum = cross_entropy_exp(d, x, top, V);
    loss_M[m] = (float)(log(sum) - ((double)hit - top));
    double share = d[target] / sum;
    vf factor = vf_set((float)(*scale / sum));
    int64_t v = 0;
    for (; v + VL <= V; v += VL) vf_store(d + v, vf_load(d + v) * factor);
    if (v < V) vf_store_n(d + v, vf_load_n(d + v, V - v) * factor, V - v);
    d[target] = (float)(*scale * (share - 1.0));
  }
}

/* loss_sum: the sum over all rows, in double. */
KERNEL void loss_sum_naive(double *total, const float *loss_M, int64_t M) {
  double sum = 0.0;
  for (int64_t m = 0; m < M; m++) sum += loss_M[m];
  *total = sum;
}

KERNEL int64_t loss_sum_f64_tiles(int64_t M) {
  (void)M;
  return 1;
}

KERNEL void loss_sum_f64(double *total, const float *loss_M, int64_t M, int64_t tile) {
  (void)tile;
  vd low = vd_zero(), high = vd_zero();
  int64_t m = 0;
  for (; m + VL <= M; m += VL) {
    vf loss = vf_load(loss_M + m);
    low = low + vf_low(loss);
    high = high + vf_high(loss);
  }
  if (m < M) {
    vf loss = vf_load_n(loss_M + m, M - m);
    low = low + vf_low(loss);
    high = high + vf_high(loss);
  }
  *total = vd_sum(low + high);
}
