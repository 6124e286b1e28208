/* The layout of packed weights, as panels.py describes it: panels of 16 columns, the same bytes on
 * every processor. A weight is scale * sub_scale * (quant - zero) - minimum * sub_minimum. */
#ifndef LOCKSTEP_PANELS_H
#define LOCKSTEP_PANELS_H

#include "vec_dot.h"

enum {
  PANEL_COLUMNS = 16,
  PANEL_BLOCK = 32,              /* weights under one scale of the activations */
  PANEL_VECTOR = 64,             /* four quants of each column, in bytes */
  PANEL_NV = PANEL_COLUMNS / VL, /* vectors of lanes in a panel */

  /* A format is the bits of a quant, its zero, and flags. */
  PANEL_BITS = 15,
  PANEL_TWO = 16,     /* scales have two levels, and a unit 8 blocks; else it has 2 */
  PANEL_SUB16 = 32,   /* sub-scales are of 16 weights, not 32 */
  PANEL_MINIMUM = 64, /* there are minima */
  PANEL_FLOAT = 128,  /* scales are float32, not halves */
  PANEL_ZERO = 256,   /* times the quant that stands for 0 */

  Q8_0 = 8 | 128 * PANEL_ZERO,
  Q4_0 = 4 | 8 * PANEL_ZERO,
  Q4_1 = 4 | PANEL_MINIMUM,
  Q5_0 = 5 | 16 * PANEL_ZERO,
  Q5_1 = 5 | PANEL_MINIMUM,
  MXFP4 = 5 | PANEL_FLOAT | 12 * PANEL_ZERO,
  Q2_K = 4 | PANEL_TWO | PANEL_SUB16 | PANEL_MINIMUM,
  Q3_K = 4 | PANEL_TWO | PANEL_SUB16 | 4 * PANEL_ZERO,
  Q4_K = 4 | PANEL_TWO | PANEL_MINIMUM,
  Q5_K = 5 | PANEL_TWO | PANEL_MINIMUM,
  Q6_K = 6 | PANEL_TWO | PANEL_SUB16 | 32 * PANEL_ZERO,
};

INLINE int panel_bits(const int f) { return f & PANEL_BITS; }
INLINE int panel_zero(const int f) { return f / PANEL_ZERO; }
INLINE int panel_has_minimum(const int f) { return (f & PANEL_MINIMUM) != 0; }
INLINE int panel_is_sub16(const int f) { return (f & PANEL_SUB16) != 0; }
INLINE int64_t panel_unit_blocks(const int f) { return f & PANEL_TWO ? 8 : 2; }
INLINE int64_t panel_scales_bytes(const int f) {
  return PANEL_COLUMNS * (f & PANEL_FLOAT ? 4 : 2) * (f & PANEL_TWO ? 1 : panel_unit_blocks(f));
}
INLINE int64_t panel_subs_bytes(const int f) {
  return f & PANEL_TWO ? PANEL_COLUMNS * 8 * (panel_is_sub16(f) ? 2 : 1) : 0;
}
INLINE int64_t panel_head_bytes(const int f) {
  const int64_t bytes = panel_scales_bytes(f) + panel_subs_bytes(f);
  return (bytes * (1 + panel_has_minimum(f)) + 63) / 64 * 64;
}
INLINE int64_t panel_block_bytes(const int f) { return PANEL_VECTOR * panel_bits(f); }
INLINE int64_t panel_unit_bytes(const int f) {
  return panel_head_bytes(f) + panel_unit_blocks(f) * panel_block_bytes(f);
}
INLINE int64_t panel_bytes(const int f, int64_t n_blocks) {
  return (n_blocks + panel_unit_blocks(f) - 1) / panel_unit_blocks(f) * panel_unit_bytes(f);
}

/* Where the parts of a block lie. */
typedef struct {
  const uint8_t *scale, *minimum, *quants; /* two levels: of the whole unit */
  const int8_t *sub_scale, *sub_minimum;   /* with 16 weights under each: two for each column */
} panel_block;

INLINE panel_block panel_at(const int f, const uint8_t *panel, int64_t block) {
  const int64_t i = block % panel_unit_blocks(f);
  const uint8_t *unit = panel + block / panel_unit_blocks(f) * panel_unit_bytes(f);
  const int64_t at = f & PANEL_TWO ? 0 : i * (panel_scales_bytes(f) / panel_unit_blocks(f));
  const int64_t n = panel_scales_bytes(f) * (1 + panel_has_minimum(f));
  const int8_t *subs = (const int8_t *)unit + n + i * (panel_subs_bytes(f) / 8);
  const panel_block b = {.scale = unit + at,
                         .minimum = unit + panel_scales_bytes(f) + at,
                         .quants = unit + panel_head_bytes(f) + i * panel_block_bytes(f),
                         .sub_scale = subs,
                         .sub_minimum = subs + panel_subs_bytes(f)};
  return b;
}

/* The block behind this one in its unit. */
INLINE panel_block panel_next(const int f, panel_block b) {
  const int64_t step = panel_scales_bytes(f) / panel_unit_blocks(f);
  if (!(f & PANEL_TWO)) b.scale += step, b.minimum += step;
  b.sub_scale += panel_subs_bytes(f) / 8, b.sub_minimum += panel_subs_bytes(f) / 8;
  b.quants += panel_block_bytes(f);
  return b;
}

/* One number at a time, for the naive kernels and for rows of a table. */
INLINE float panel_number(const uint8_t *at, const int is_float, int64_t column) {
  uint16_t half;
  float x;
  if (is_float) {
    memcpy(&x, at + 4 * column, sizeof x);
    return x;
  }
  memcpy(&half, at + 2 * column, sizeof half);
  return half_to_float(half);
}
INLINE int panel_quant(const int f, const uint8_t *quants, int64_t column, int64_t k) {
  const int64_t g = k / 4, at = 4 * column + k % 4;
  const uint8_t *high = quants + 4 * PANEL_VECTOR + at;
  if (panel_bits(f) == 8) return quants[g * PANEL_VECTOR + at];
  const int low = quants[g % 4 * PANEL_VECTOR + at] >> (g < 4 ? 0 : 4) & 15;
  if (panel_bits(f) == 5) return low | (*high >> g & 1) << 4;
  if (panel_bits(f) == 6) return low | (high[g / 4 * PANEL_VECTOR] >> 2 * (g % 4) & 3) << 4;
  return low;
}
/* The 32 weights of a block of one column, as the file's format defines them. */
INLINE void panel_weights(const int f, float *w, const uint8_t *panel, int64_t block,
                          int64_t column) {
  const panel_block b = panel_at(f, panel, block);
  const float d = panel_number(b.scale, f & PANEL_FLOAT, column);
  const float m = panel_has_minimum(f) ? panel_number(b.minimum, 0, column) : 0.0f;
  for (int k = 0; k < PANEL_BLOCK; k++) {
    const int64_t at = panel_is_sub16(f) ? 2 * column + k / 16 : column;
    const float scale = f & PANEL_TWO ? d * (float)b.sub_scale[at] : d;
    const float x = scale * (float)(panel_quant(f, b.quants, column, k) - panel_zero(f));
    w[k] = x;
    if (panel_has_minimum(f)) w[k] = x - (f & PANEL_TWO ? m * (float)b.sub_minimum[at] : m);
  }
}

/* Quants of group g (four terms) of VL columns from vector v on, as bytes. */
INLINE vi panel_group(const int f, const uint8_t *quants, const int g, const int v) {
  const uint8_t *at = quants + 4 * VL * v, *high = at + 4 * PANEL_VECTOR;
  if (panel_bits(f) == 8) return vi_load_bytes(at + g * PANEL_VECTOR);
  vi w = vi_load_bytes(at + g % 4 * PANEL_VECTOR);
  w = (g < 4 ? w : w >> 4) & 0x0f0f0f0f;
  if (panel_bits(f) == 5) {
    const vi h = vi_load_bytes(high);
    w |= (g < 4 ? h << (4 - g) : h >> (g - 4)) & 0x10101010;
  } else if (panel_bits(f) == 6) {
    const vi h = vi_load_bytes(high + g / 4 * PANEL_VECTOR);
    w |= (g % 4 < 2 ? h << (4 - 2 * (g % 4)) : h >> (2 * (g % 4) - 4)) & 0x30303030;
  }
  return w;
}

/* What a block's integers are multiplied by, VL columns from vector v on. */
typedef struct {
  vf unit_scale, unit_minimum; /* two levels: the upper one */
  vf scale, minimum;           /* with sub-scales of 32 weights multiplied in */
  vi sub[2];                   /* sub-scales of 16 weights, ready for vi_dot8_scaled */
  vi sub_pair, min_pair;       /* both in a lane, as int16 */
} panel_scales;

INLINE vf panel_floats(const uint8_t *at, const int is_float, const int v) {
  return is_float ? vf_load((const float *)(const void *)at + v * VL)
                  : vf_load_half((const uint16_t *)(const void *)at + v * VL);
}
/* The scales of the first block of a unit, and then of each. */
INLINE void panel_unit_scales(const int f, panel_scales *s, panel_block b, const int v) {
  if (!(f & PANEL_TWO)) return;
  s->unit_scale = panel_floats(b.scale, 0, v);
  if (panel_has_minimum(f)) s->unit_minimum = panel_floats(b.minimum, 0, v);
}
INLINE void panel_block_scales(const int f, panel_scales *s, panel_block b, const int v) {
  s->scale = f & PANEL_TWO ? s->unit_scale : panel_floats(b.scale, f & PANEL_FLOAT, v);
  if (panel_has_minimum(f))
    s->minimum = f & PANEL_TWO ? s->unit_minimum : panel_floats(b.minimum, 0, v);
  if (panel_is_sub16(f)) {
    s->sub_pair = vi_pairs_i8(b.sub_scale + 2 * v * VL);
    s->sub[0] = vi_dot8_scale(s->sub_pair, 0), s->sub[1] = vi_dot8_scale(s->sub_pair, 1);
    if (panel_has_minimum(f)) s->min_pair = vi_pairs_i8(b.sub_minimum + 2 * v * VL);
  } else if (f & PANEL_TWO) {
    s->scale = s->scale * vi_to_vf(vi_from_i8(b.sub_scale + v * VL));
    if (panel_has_minimum(f))
      s->minimum = s->minimum * vi_to_vf(vi_from_i8(b.sub_minimum + v * VL));
  }
}

#endif
