/* Matrix products by register tiles: what linear and its gradients have in common.
 *
 * Every product keeps one contract, so that all kernels agree bit for bit: an element is summed in
 * blocks of MAT_BLOCK terms; within a block one chain of fused multiply-adds from zero, in order;
 * then (first block + bias) + add, then + second block, and so on. Neither the rows of a call nor
 * the shape of a tile enters into it. */
#ifndef LOCKSTEP_MAT_H
#define LOCKSTEP_MAT_H

#include "vec.h"

#if defined(__clang__)
#define MAT_SHARED static __attribute__((noinline, unused))
#else
#define MAT_SHARED static __attribute__((noinline, noclone, unused))
#endif
#if defined(__AVX512F__) || defined(__aarch64__)
enum { MAT_ROWS = 12 }; /* rows of a register tile two vectors wide: 24 of 32 registers */
#define MAT_TALL(...) __VA_ARGS__
#else
enum { MAT_ROWS = 6 }; /* 12 of 16 registers */
#define MAT_TALL(...)
#endif
enum {
  MAT_PANEL = 32,             /* columns of one packed panel */
  MAT_BLOCK = 256,            /* terms of one chain; a panel of it fits the level-1 cache */
  MAT_SPAN = 2 * MAT_BLOCK,   /* terms after which a register tile gives way to the next */
  MAT_UNROLL = 2,             /* terms per turn of the loop */
  MAT_CHUNK = 96,             /* rows that stay in the level-2 cache over all columns */
  MAT_SKEWED = MAT_SPAN + 16, /* stride of copied rows: no two in the same cache sets */
  MAT_TILE_ROWS = 768,        /* at most, in a tile of the large kernels; packed in 512 KiB */
  MAT_TILE_COLS = 8 * MAT_PANEL,
};

/* C = A B (+ bias) (+ add), where A[r][k] is a[r*a_row + k*a_term] and the columns of B lie in
 * panels: B[k][c] is b[c/32*b_panel + k*b_term + c%32]. add has the stride of c and may be c. */
typedef struct {
  float *c;
  const float *bias, *add, *a, *b;
  int64_t c_row, a_row, a_term, b_panel, b_term, terms;
} mat_block;

INLINE int64_t mat_least(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t mat_rest(int64_t size, int64_t part) { return size > part ? size - part : 0; }
INLINE int64_t mat_count(int64_t size, int64_t part) { return (size + part - 1) / part; }

/* The size of the parts, all but the last a multiple of `unit`, that split a size evenly. */
INLINE int64_t mat_part(int64_t size, int64_t most, int64_t unit) {
  return mat_count(mat_count(size, mat_count(size, most)), unit) * unit;
}

/* One term of a register tile: a rank-one update; ahead_a and ahead_b lead to the term. */
INLINE void mat_term(vf (*acc)[8], const int n_rows, const int n_vectors, const float *const *a,
                     int64_t a_row, int64_t ahead_a, const float *b, int64_t b_panel) {
  vf x[8];
  UNROLL for (int v = 0; v < n_vectors; v++)
    x[v] = vf_load(b + v * VL / MAT_PANEL * b_panel + v * VL % MAT_PANEL);
  UNROLL for (int r = 0; r < n_rows; r++) {
    const vf y = vf_set(a[r / 3][r % 3 * a_row + ahead_a]);
    UNROLL for (int v = 0; v < n_vectors; v++) acc[r][v] = vf_fma(y, x[v], acc[r][v]);
  }
}

/* The chain of a register tile of n_rows x n_vectors. `across` says that the rows of A are next to
 * each other (a_row = 1), else its terms are (a_term = 1); both spare address arithmetic. */
INLINE void mat_chain(vf (*acc)[8], const mat_block *t, const int n_rows, const int n_vectors,
                      const int across, const float *first, const float *b, int64_t left) {
  const int64_t a_row = across ? 1 : t->a_row, b_panel = t->b_panel, b_term = t->b_term;
  const float *a[4] = {first, first + 3 * a_row, first + 6 * a_row, first + 9 * a_row};
  UNROLL for (int r = 0; r < n_rows; r++)
    UNROLL for (int v = 0; v < n_vectors; v++) acc[r][v] = vf_zero();
  if (across) {
    for (; left > 0; left--) {
      mat_term(acc, n_rows, n_vectors, a, 1, 0, b, b_panel);
      UNROLL for (int i = 0; i < 4; i++) a[i] += t->a_term;
      b += b_term;
    }
    return;
  }
  for (; left >= MAT_UNROLL; left -= MAT_UNROLL) {
    UNROLL for (int u = 0; u < MAT_UNROLL; u++)
      mat_term(acc, n_rows, n_vectors, a, a_row, u, b + u * MAT_PANEL, b_panel);
    UNROLL for (int i = 0; i < 4; i++) a[i] += MAT_UNROLL;
    b += MAT_UNROLL * MAT_PANEL;
  }
  for (; left > 0; left--) {
    mat_term(acc, n_rows, n_vectors, a, a_row, 0, b, b_panel);
    UNROLL for (int i = 0; i < 4; i++) a[i] += 1;
    b += MAT_PANEL;
  }
}

/* The chains of a register tile from term k on, to C. Not inlined: a copy in each tile would take long
 * to compile. Masked stores are slow where they are not needed. */
MAT_SHARED void mat_store(const mat_block *t, const float *out, int64_t k, int n_rows,
                          int n_vectors, int64_t row, int64_t col, int64_t n_cols) {
  const float *add = k > 0 ? t->c : t->add, *bias = k > 0 ? NULL : t->bias;
  for (int v = 0; v < n_vectors && n_cols > 0; v++, col += VL, n_cols -= VL) {
    const int is_full = n_cols >= VL;
    const vm valid = vm_first(n_cols);
    const vf some = bias ? vf_load_m(bias + col, valid) : vf_zero();
    for (int r = 0; r < n_rows; r++) {
      const int64_t at = (row + r) * t->c_row + col;
      vf y = vf_load(out + (r * n_vectors + v) * VL);
      if (bias) y = vf_add(y, some);
      if (add) y = vf_add(y, is_full ? vf_load(add + at) : vf_load_m(add + at, valid));
      if (is_full)
        vf_store(t->c + at, y);
      else
        vf_store_m(t->c + at, y, valid);
    }
  }
}

/* One register tile: n_rows rows from `row`, n_vectors vectors from column `col`, n_cols valid. */
INLINE void mat_tile(const mat_block *t, const int n_rows, const int n_vectors, const int across,
                     int64_t row, int64_t col, int64_t n_cols) {
  vf acc[MAT_ROWS][8];
  const float *a = t->a + row * t->a_row;
  const float *b = t->b + col / MAT_PANEL * t->b_panel + col % MAT_PANEL;
  const int64_t at = row * t->c_row + col;
  if (across || t->terms >= MAT_BLOCK) /* the result may be far away: fetch its lines by now */
    UNROLL for (int r = 0; r < n_rows; r++)
      UNROLL for (int v = 0; v < n_vectors; v++)
        __builtin_prefetch(t->c + at + r * t->c_row + v * VL, 1);
  for (int64_t k = 0; k < t->terms; k += MAT_BLOCK) {
    mat_chain(acc, t, n_rows, n_vectors, across, a + k * (across ? t->a_term : 1),
              b + k * (across ? t->b_term : MAT_PANEL), mat_least(t->terms - k, MAT_BLOCK));
    _Alignas(64) float out[MAT_ROWS * 8 * VL];
    UNROLL for (int r = 0; r < n_rows; r++)
      UNROLL for (int v = 0; v < n_vectors; v++)
        vf_store(out + (r * n_vectors + v) * VL, acc[r][v]);
    mat_store(t, out, k, n_rows, n_vectors, row, col, n_cols);
  }
}

#define MAT_CASE(rows, vectors) \
  case rows * 16 + vectors: \
    mat_tile(t, rows, vectors, 0, row, col, n_cols); \
    break;
#define MAT_ACROSS(rows) \
  case rows: \
    mat_tile(t, rows, 2, 1, row, col, n_cols); \
    break;
/* The register tile for a count of rows and vectors that are not constants. */
MAT_SHARED void mat_any_tile(const mat_block *t, int64_t n_rows, int n_vectors, int64_t row,
                             int64_t col, int64_t n_cols) {
  switch (n_rows * 16 + n_vectors) {
    MAT_CASE(1, 1) MAT_CASE(2, 1) MAT_CASE(3, 1) MAT_CASE(4, 1) MAT_CASE(5, 1) MAT_CASE(6, 1)
    MAT_CASE(1, 2) MAT_CASE(2, 2) MAT_CASE(3, 2) MAT_CASE(4, 2) MAT_CASE(5, 2) MAT_CASE(6, 2)
    MAT_CASE(1, 8) MAT_CASE(2, 4) MAT_CASE(3, 4)
    MAT_TALL(MAT_CASE(7, 1) MAT_CASE(8, 1) MAT_CASE(9, 1) MAT_CASE(10, 1) MAT_CASE(11, 1))
    MAT_TALL(MAT_CASE(7, 2) MAT_CASE(8, 2) MAT_CASE(9, 2) MAT_CASE(10, 2) MAT_CASE(11, 2))
    MAT_TALL(MAT_CASE(12, 1) MAT_CASE(12, 2))
  }
}
MAT_SHARED void mat_any_across(const mat_block *t, int64_t n_rows, int64_t row, int64_t col,
                               int64_t n_cols) {
  switch (n_rows) {
    MAT_ACROSS(1) MAT_ACROSS(2) MAT_ACROSS(3) MAT_ACROSS(4) MAT_ACROSS(5) MAT_ACROSS(6)
    MAT_TALL(MAT_ACROSS(7) MAT_ACROSS(8) MAT_ACROSS(9) MAT_ACROSS(10) MAT_ACROSS(11))
    MAT_TALL(MAT_ACROSS(12))
  }
}

/* All register tiles of a block. Rows are split evenly, but in twelves where A lies across; columns
 * are wider where rows are few. */
KERNEL void mat_tiles(const mat_block *t, const int across, int64_t n_rows, int64_t n_cols) {
  const int64_t n_bands = (n_rows + MAT_ROWS - 1) / MAT_ROWS;
  const int widest = across || n_rows > 3 ? 2 : n_rows == 1 ? 8 : 4;
  for (int64_t band = 0, row = 0; band < n_bands; band++) {
    const int64_t even = n_rows * (band + 1) / n_bands;
    const int64_t end = across ? mat_least(row + MAT_ROWS, n_rows) : even;
    for (int64_t col = 0; col < n_cols;) {
      const int64_t left = n_cols - col;
      const int n_vectors = left >= widest * VL ? widest : left > VL || across ? 2 : 1;
      if (across)
        mat_any_across(t, end - row, row, col, left);
      else
        mat_any_tile(t, end - row, n_vectors, row, col, left);
      col += n_vectors * VL;
    }
    row = end;
  }
}

/* The rows of A copied to a stride that spreads over the cache sets, where its own does not. */
INLINE void mat_unskew(mat_block *t, float *copy, int64_t n_rows) {
  if (t->a_row % 1024 != 0 || n_rows < 4) return;
  for (int64_t r = 0; r < n_rows; r++)
    memcpy(copy + r * MAT_SKEWED, t->a + r * t->a_row, (size_t)t->terms * sizeof(float));
  t->a = copy, t->a_row = MAT_SKEWED;
}

/* Rows of C = A B + bias + add with B in panels: the chain of blocks, chunk of rows by chunk. */
KERNEL void mat_rows(mat_block whole, int64_t n_rows, int64_t n_cols, int64_t n_terms) {
  float copy[MAT_CHUNK * MAT_SKEWED];
  for (int64_t row = 0; row < n_rows; row += MAT_CHUNK) {
    const int64_t rows = n_rows - row < MAT_CHUNK ? n_rows - row : MAT_CHUNK;
    for (int64_t k = 0; k < n_terms; k += MAT_SPAN) {
      mat_block t = whole;
      t.c += row * t.c_row;
      t.add = k > 0 ? t.c : t.add ? t.add + row * t.c_row : NULL;
      if (k > 0) t.bias = NULL;
      t.a += row * t.a_row + k, t.b += k * MAT_PANEL;
      t.terms = mat_least(n_terms - k, MAT_SPAN);
      mat_unskew(&t, copy, rows);
      mat_tiles(&t, 0, rows, n_cols);
    }
  }
}

/* panel[k][q] = w[q*row + k] for n_cols valid q of 32, zero beyond. */
KERNEL void mat_transpose(float *panel, const float *w, int64_t row, int64_t n_cols,
                          int64_t n_terms) {
  for (int64_t q = 0; q < MAT_PANEL; q += VL)
    for (int64_t k = 0; k < n_terms; k += VL) {
      const int64_t terms = n_terms - k < VL ? n_terms - k : VL;
      vf x[VL];
      UNROLL for (int i = 0; i < VL; i++)
        x[i] = q + i < n_cols ? vf_load_n(w + (q + i) * row + k, terms) : vf_zero();
      vf_transpose(x);
      UNROLL for (int i = 0; i < VL; i++)
        if (i < terms) vf_store(panel + (k + i) * MAT_PANEL + q, x[i]);
    }
}

/* panels[q/32][k][q%32] = w[k*row + q] for n_cols valid q, zero up to the next panel; row by row,
 * as memory likes it. A panel has room for `span` terms. */
KERNEL void mat_copy(float *panels, const float *w, int64_t row, int64_t n_cols, int64_t n_terms,
                     int64_t span) {
  for (int64_t k = 0; k < n_terms; k++)
    for (int64_t q = 0; q < n_cols; q += MAT_PANEL) {
      float *to = panels + q * span + k * MAT_PANEL;
      const float *from = w + k * row + q;
      UNROLL for (int v = 0; v < MAT_PANEL; v += VL)
        vf_store(to + v, n_cols - q >= MAT_PANEL ? vf_load(from + v)
                                                 : vf_load_n(from + v, mat_rest(n_cols - q, v)));
    }
}

/* A tile of C = A W + bias + add whose panels are packed here: `turned` says that W[k][c] is
 * w[c*w_row + k], else w[k*w_row + c]. */
INLINE void mat_pack_tile(mat_block t, const float *w, int64_t w_row, const int turned,
                          int64_t n_rows, int64_t n_cols, int64_t n_terms) {
  float panels[MAT_TILE_COLS * MAT_SPAN];
  float *const c = t.c;
  const float *const a = t.a;
  t.b = panels, t.b_panel = MAT_PANEL * MAT_SPAN;
  for (int64_t k = 0; k < n_terms; k += MAT_SPAN) {
    const int64_t terms = mat_least(n_terms - k, MAT_SPAN);
    if (!turned) mat_copy(panels, w + k * w_row, w_row, n_cols, terms, MAT_SPAN);
    for (int64_t q = 0; turned && q < n_cols; q += MAT_PANEL)
      mat_transpose(panels + q * MAT_SPAN, w + q * w_row + k, w_row,
                    mat_least(n_cols - q, MAT_PANEL), terms);
    t.a = a + k;
    if (k > 0) t.add = c, t.bias = NULL;
    mat_rows(t, n_rows, n_cols, terms);
  }
}

#endif
