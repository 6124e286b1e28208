/* Blocks of products with packed weights of few bits: y = x w^T + b + add, x from quantize_rows.
 *
 * One contract for every kernel, tile and number of rows: an element is a chain over the blocks of
 * 32 terms in order, acc = fma(scale * dx, isum, acc), and where the format has minima
 * acc = fnma(minimum, dx * xsum, acc), with exact integer sums; then + bias, then + add. Where sub-
 * scales are of 16 terms, isum and the sum of minima are weighted with them as integers. */
#ifndef LOCKSTEP_QUANT_BLOCK_H
#define LOCKSTEP_QUANT_BLOCK_H

#include "panels.h"

enum {
  QUANT_FEW = 4,                /* rows that read panels as they are */
  QUANT_CHUNK = 8,              /* blocks whose weights are unpacked at a time */
  QUANT_SIDE = VL == 8 ? 2 : 1, /* panels of a tile, side by side */
  QUANT_COLUMNS = QUANT_SIDE * PANEL_COLUMNS,
  QUANT_NV = QUANT_SIDE * PANEL_NV, /* vectors of lanes in a tile */
  QUANT_TALL = VL == 16 ? 8 : 2,    /* rows of a tile, as registers allow */
};

/* Unpacked weights of few bits may trade signs with the activations: a weight less `half`, which is
 * signed, times an activation plus 128, which is not. Then the weight is the operand that x86 reads
 * from memory. What the 128 add is the same for all rows; it is taken off as a whole. */
INLINE int quant_half(const int f) { return 1 << (panel_bits(f) - 1); }
INLINE int quant_is_turned(const int f, const int wide) {
  return !wide && !DOT8_IS_WIDE && panel_bits(f) < 8;
}

/* Groups of a run that vi_dot8 may sum at a time. */
INLINE int quant_run(const int f) {
  const int run = DOT8_RUN(panel_bits(f));
  return panel_is_sub16(f) && run > 4 ? 4 : run;
}

/* From exact sums to acc. `zero` is what has not been taken off each quant yet. */
INLINE void quant_finish(const int f, const int zero, const int n_rows, const int n_vectors,
                         float *acc, vi (*isum)[QUANT_NV], const panel_scales *s,
                         const float *scale, const int32_t *sum, int64_t n_blocks) {
  UNROLL for (int r = 0; r < n_rows; r++) {
    const vf given = vf_set(scale[r * n_blocks]);
    const vf dx = vf_fma(given, vf_zero(), given); /* what is not finite becomes NaN */
    const vi pair = vi_spread(sum + r * n_blocks);
    vf minus = vf_zero();
    vi off = vi_set(0);
    if (!panel_is_sub16(f) && zero) off = vi_dot16(off, pair, vi_set((zero & 0xffff) * 0x10001));
    if (!panel_is_sub16(f) && panel_has_minimum(f))
      minus = dx * vi_to_vf(vi_dot16(vi_set(0), pair, vi_set(0x10001)));
    UNROLL for (int v = 0; v < n_vectors; v++) {
      float *at = acc + r * QUANT_COLUMNS + v * VL;
      if (panel_is_sub16(f) && zero) off = vi_dot16(vi_set(0), s[v].sub_pair, pair) * zero;
      if (panel_is_sub16(f) && panel_has_minimum(f))
        minus = dx * vi_to_vf(vi_dot16(vi_set(0), s[v].min_pair, pair));
      if (zero) isum[r][v] -= off;
      vf y = vf_fma(s[v].scale * dx, vi_to_vf(isum[r][v]), vf_load(at));
      if (panel_has_minimum(f)) y = vf_fnma(s[v].minimum, minus, y);
      vf_store(at, y); /* in memory: the registers are for the integers */
    }
  }
}

/* What vi_dot8 has summed, added to isum. */
INLINE vi quant_part(const int f, vi isum, vi part, const panel_scales *s, const int group) {
  return panel_is_sub16(f) ? vi_dot8_scaled(isum, part, s->sub[group / 4], panel_bits(f))
                           : vi_dot8_sum(isum, part, panel_bits(f));
}

/* A block as it is packed, for n_rows rows and n_vectors vectors of columns from v0 on. */
INLINE void quant_packed(const int f, const int wide, const int n_rows, const int n_vectors,
                         float *acc, panel_scales *s, panel_block b, const int v0,
                         const char *const *q, const float *scale, const int32_t *sum,
                         int64_t n_blocks) {
  vi isum[QUANT_FEW][QUANT_NV];
  vi_sums16 sums[QUANT_FEW][QUANT_NV] = {0};
  UNROLL for (int v = 0; v < n_vectors; v++) panel_block_scales(f, s + v, b, v0 + v);
  UNROLL for (int r = 0; r < n_rows; r++)
    UNROLL for (int v = 0; v < n_vectors; v++)
      isum[r][v] = wide ? vi_set(-panel_zero(f) * sum[r * n_blocks]) : vi_set(0);
  UNROLL for (int g0 = 0; g0 < 8; g0 += quant_run(f)) {
    vi part[QUANT_FEW][QUANT_NV];
    UNROLL for (int r = 0; r < n_rows; r++)
      UNROLL for (int v = 0; v < n_vectors; v++) part[r][v] = vi_set(0);
    UNROLL for (int g = g0; g < g0 + quant_run(f); g++)
      UNROLL for (int v = 0; v < n_vectors; v++) {
        const vi w = panel_group(f, b.quants, g, v0 + v);
        UNROLL for (int r = 0; r < n_rows; r++) {
          if (wide)
            sums[r][v] = vi_dot16_bytes(sums[r][v], w, q[r] + 8 * g);
          else
            part[r][v] = vi_dot8(part[r][v], w, vi_spread(q[r] + 4 * g), panel_bits(f));
        }
      }
    UNROLL for (int r = 0; r < n_rows; r++)
      UNROLL for (int v = 0; v < n_vectors; v++)
        if (!wide) isum[r][v] = quant_part(f, isum[r][v], part[r][v], s + v, g0);
  }
  UNROLL for (int r = 0; r < n_rows; r++)
    UNROLL for (int v = 0; v < n_vectors; v++)
      if (wide) isum[r][v] += vi_dot16_sum(sums[r][v]);
  quant_finish(f, wide ? 0 : panel_zero(f), n_rows, n_vectors, acc + v0 * VL, isum, s, scale, sum,
               n_blocks);
}

/* An unpacked block, in rows of one word for each column: groups of four bytes, or pairs of int16
 * without their zero if wide; where signs are turned what the 128 add, negated; then the scales. */
INLINE int64_t quant_words(const int f, const int wide) {
  const int n_scales = 1 + panel_has_minimum(f) + 4 * panel_is_sub16(f);
  return PANEL_COLUMNS * ((wide ? 16 : 8) + quant_is_turned(f, wide) + n_scales);
}
INLINE void quant_put(int32_t **at, vi x) {
  memcpy(*at, &x, sizeof x);
  *at += PANEL_COLUMNS;
}
INLINE vi quant_get(const int32_t **at) {
  *at += PANEL_COLUMNS;
  return vi_load(*at - PANEL_COLUMNS);
}

INLINE void quant_unpack(const int f, const int wide, int32_t *to, panel_block b) {
  UNROLL for (int v = 0; v < PANEL_NV; v++) {
    int32_t *at = to + v * VL;
    panel_scales s = {0};
    vi ones = vi_set(0), part = vi_set(0);
    panel_unit_scales(f, &s, b, v);
    panel_block_scales(f, &s, b, v);
    UNROLL for (int g = 0; g < 8; g++) {
      vi w = panel_group(f, b.quants, g, v), second;
      if (wide) {
        vi_widen(w, &w, &second);
        w = vi_less_halves(w, panel_zero(f)), second = vi_less_halves(second, panel_zero(f));
      }
      if (quant_is_turned(f, wide)) {
        w = vi_less_bytes(w, quant_half(f));
        part = vi_dot8(part, vi_set((int32_t)0x80808080), w, panel_bits(f));
        if ((g + 1) % quant_run(f) == 0)
          ones = quant_part(f, ones, part, &s, g), part = vi_set(0);
      }
      quant_put(&at, w);
      if (wide) quant_put(&at, second);
    }
    if (quant_is_turned(f, wide)) quant_put(&at, -ones);
    quant_put(&at, vf_bits(s.scale));
    if (panel_has_minimum(f)) quant_put(&at, vf_bits(s.minimum));
    if (panel_is_sub16(f)) {
      quant_put(&at, s.sub[0]), quant_put(&at, s.sub[1]);
      quant_put(&at, s.sub_pair), quant_put(&at, s.min_pair);
    }
  }
}

/* An unpacked block for n_rows rows: `from` is that of the first panel, the next ones lie QUANT_CHUNK
 * blocks further each. Where signs are turned q holds the activations plus 128. */
INLINE void quant_unpacked(const int f, const int wide, const int n_rows, float *acc,
                           const int32_t *from, const char *const *q, const float *scale,
                           const int32_t *sum, int64_t n_blocks) {
  const int turned = quant_is_turned(f, wide), n_groups = wide ? 16 : 8;
  const int run = wide ? n_groups : quant_run(f);
  const int32_t *w[QUANT_NV], *rest[QUANT_NV];
  vi isum[QUANT_TALL][QUANT_NV];
  panel_scales s[QUANT_NV] = {0};
  UNROLL for (int v = 0; v < QUANT_NV; v++) {
    w[v] = from + v / PANEL_NV * QUANT_CHUNK * quant_words(f, wide) + v % PANEL_NV * VL;
    rest[v] = w[v] + n_groups * PANEL_COLUMNS;
    const vi ones = turned ? quant_get(rest + v) : vi_set(0);
    UNROLL for (int r = 0; r < n_rows; r++)
      isum[r][v] = ones;
    s[v].scale = vf_from_bits(quant_get(rest + v));
    if (panel_has_minimum(f)) s[v].minimum = vf_from_bits(quant_get(rest + v));
    if (panel_is_sub16(f)) {
      s[v].sub[0] = quant_get(rest + v), s[v].sub[1] = quant_get(rest + v);
      s[v].sub_pair = quant_get(rest + v), s[v].min_pair = quant_get(rest + v);
    }
  }
  UNROLL for (int g0 = 0; g0 < n_groups; g0 += run) {
    vi part[QUANT_TALL][QUANT_NV];
    UNROLL for (int r = 0; r < n_rows; r++)
      UNROLL for (int v = 0; v < QUANT_NV; v++) part[r][v] = vi_set(0);
    UNROLL for (int g = g0; g < g0 + run; g++)
      UNROLL for (int r = 0; r < n_rows; r++) {
        const vi x = vi_spread(q[r] + 4 * g);
        UNROLL for (int v = 0; v < QUANT_NV; v++) {
          const vi some = vi_load(w[v] + g * PANEL_COLUMNS);
          if (wide)
            isum[r][v] = vi_dot16(isum[r][v], some, x);
          else if (turned)
            part[r][v] = vi_dot8(part[r][v], x, some, panel_bits(f));
          else
            part[r][v] = vi_dot8(part[r][v], some, x, panel_bits(f));
        }
      }
    UNROLL for (int r = 0; r < n_rows; r++)
      UNROLL for (int v = 0; v < QUANT_NV; v++)
        if (!wide) isum[r][v] = quant_part(f, isum[r][v], part[r][v], s + v, g0);
  }
  const int zero = wide ? 0 : panel_zero(f) - turned * quant_half(f);
  quant_finish(f, zero, n_rows, QUANT_NV, acc, isum, s, scale, sum, n_blocks);
}

#endif
