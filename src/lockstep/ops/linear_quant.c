/* linear_<format>: y = x w^T + b + add with w in panels of a stored type, x quantised.
 *
 * Activations are int8, for weights of 8 bits also int16 where no instruction sums their products
 * with int8 without saturation. */
#include "linear_quant.h"

QUANT_KERNELS(quant_q8_0_i8, Q8_0, 0)
QUANT_KERNELS(quant_q8_0_i16, Q8_0, 1)
KERNEL void linear_q8_0_naive(QUANT_GIVEN) {
  QUANT_PRODUCT;
  quant_naive(Q8_0, bits == 16, &t);
}
KERNEL int64_t linear_q8_0_i8_tiles(QUANT_SIZES) { QUANT_TASKS(Q8_0); }
KERNEL void linear_q8_0_i8(QUANT_GIVEN, int64_t tile) {
  QUANT_PRODUCT;
  quant_q8_0_i8(&t, tile);
}
KERNEL int64_t linear_q8_0_i16_tiles(QUANT_SIZES) { QUANT_TASKS(Q8_0); }
KERNEL void linear_q8_0_i16(QUANT_GIVEN, int64_t tile) {
  QUANT_PRODUCT;
  quant_q8_0_i16(&t, tile);
}

QUANT_KERNELS(quant_q4_0, Q4_0, 0)
KERNEL void linear_q4_0_naive(QUANT_GIVEN) {
  QUANT_PRODUCT;
  quant_naive(Q4_0, 0, &t);
}
KERNEL int64_t linear_q4_0_i8_tiles(QUANT_SIZES) { QUANT_TASKS(Q4_0); }
KERNEL void linear_q4_0_i8(QUANT_GIVEN, int64_t tile) {
  QUANT_PRODUCT;
  quant_q4_0(&t, tile);
}

QUANT_KERNELS(quant_q4_1, Q4_1, 0)
KERNEL void linear_q4_1_naive(QUANT_GIVEN) {
  QUANT_PRODUCT;
  quant_naive(Q4_1, 0, &t);
}
KERNEL int64_t linear_q4_1_i8_tiles(QUANT_SIZES) { QUANT_TASKS(Q4_1); }
KERNEL void linear_q4_1_i8(QUANT_GIVEN, int64_t tile) {
  QUANT_PRODUCT;
  quant_q4_1(&t, tile);
}

QUANT_KERNELS(quant_q5_0, Q5_0, 0)
KERNEL void linear_q5_0_naive(QUANT_GIVEN) {
  QUANT_PRODUCT;
  quant_naive(Q5_0, 0, &t);
}
KERNEL int64_t linear_q5_0_i8_tiles(QUANT_SIZES) { QUANT_TASKS(Q5_0); }
KERNEL void linear_q5_0_i8(QUANT_GIVEN, int64_t tile) {
  QUANT_PRODUCT;
  quant_q5_0(&t, tile);
}

QUANT_KERNELS(quant_q5_1, Q5_1, 0)
KERNEL void linear_q5_1_naive(QUANT_GIVEN) {
  QUANT_PRODUCT;
  quant_naive(Q5_1, 0, &t);
}
KERNEL int64_t linear_q5_1_i8_tiles(QUANT_SIZES) { QUANT_TASKS(Q5_1); }
KERNEL void linear_q5_1_i8(QUANT_GIVEN, int64_t tile) {
  QUANT_PRODUCT;
  quant_q5_1(&t, tile);
}

QUANT_KERNELS(quant_mxfp4, MXFP4, 0)
KERNEL void linear_mxfp4_naive(QUANT_GIVEN) {
  QUANT_PRODUCT;
  quant_naive(MXFP4, 0, &t);
}
KERNEL int64_t linear_mxfp4_i8_tiles(QUANT_SIZES) { QUANT_TASKS(MXFP4); }
KERNEL void linear_mxfp4_i8(QUANT_GIVEN, int64_t tile) {
  QUANT_PRODUCT;
  quant_mxfp4(&t, tile);
}

QUANT_KERNELS(quant_q2_k, Q2_K, 0)
KERNEL void linear_q2_k_naive(QUANT_GIVEN) {
  QUANT_PRODUCT;
  quant_naive(Q2_K, 0, &t);
}
KERNEL int64_t linear_q2_k_i8_tiles(QUANT_SIZES) { QUANT_TASKS(Q2_K); }
KERNEL void linear_q2_k_i8(QUANT_GIVEN, int64_t tile) {
  QUANT_PRODUCT;
  quant_q2_k(&t, tile);
}

QUANT_KERNELS(quant_q3_k, Q3_K, 0)
KERNEL void linear_q3_k_naive(QUANT_GIVEN) {
  QUANT_PRODUCT;
  quant_naive(Q3_K, 0, &t);
}
KERNEL int64_t linear_q3_k_i8_tiles(QUANT_SIZES) { QUANT_TASKS(Q3_K); }
KERNEL void linear_q3_k_i8(QUANT_GIVEN, int64_t tile) {
  QUANT_PRODUCT;
  quant_q3_k(&t, tile);
}

QUANT_KERNELS(quant_q4_k, Q4_K, 0)
KERNEL void linear_q4_k_naive(QUANT_GIVEN) {
  QUANT_PRODUCT;
  quant_naive(Q4_K, 0, &t);
}
KERNEL int64_t linear_q4_k_i8_tiles(QUANT_SIZES) { QUANT_TASKS(Q4_K); }
KERNEL void linear_q4_k_i8(QUANT_GIVEN, int64_t tile) {
  QUANT_PRODUCT;
  quant_q4_k(&t, tile);
}

QUANT_KERNELS(quant_q5_k, Q5_K, 0)
KERNEL void linear_q5_k_naive(QUANT_GIVEN) {
  QUANT_PRODUCT;
  quant_naive(Q5_K, 0, &t);
}
KERNEL int64_t linear_q5_k_i8_tiles(QUANT_SIZES) { QUANT_TASKS(Q5_K); }
KERNEL void linear_q5_k_i8(QUANT_GIVEN, int64_t tile) {
  QUANT_PRODUCT;
  quant_q5_k(&t, tile);
}

QUANT_KERNELS(quant_q6_k, Q6_K, 0)
KERNEL void linear_q6_k_naive(QUANT_GIVEN) {
  QUANT_PRODUCT;
  quant_naive(Q6_K, 0, &t);
}
KERNEL int64_t linear_q6_k_i8_tiles(QUANT_SIZES) { QUANT_TASKS(Q6_K); }
KERNEL void linear_q6_k_i8(QUANT_GIVEN, int64_t tile) {
  QUANT_PRODUCT;
  quant_q6_k(&t, tile);
}
