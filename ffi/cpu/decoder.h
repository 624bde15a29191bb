/* decoder.h: what the decoder's ops share: the norm, and the rows of a step that take part. */
#ifndef RKV_DECODER_H
#define RKV_DECODER_H
#include "linear.h"
#include "simd.h"

/* Scratch of a piece: two blocks of outputs, the product's own scratch, a list of rows. */
#define RKV_SCRATCH_BLOCK (RKV_BLOCK_ROWS * RKV_BLOCK_COLS * 4)
#define RKV_SCRATCH_PRODUCT (2 * RKV_SCRATCH_BLOCK)
#define RKV_SCRATCH_ROWS (RKV_SCRATCH_PRODUCT + RKV_PRODUCT_SCRATCH)

/* How many of `count` rows take part; active == NULL: all. */
static inline int32_t rkv_active_count(const int32_t *active, int32_t count) {
  if (!active) return count;
  int32_t n = 0;
  for (int32_t i = 0; i < count; i++) n += active[i] != 0;
  return n;
}

/* Their numbers, in order. NULL when all take part. */
static inline const int32_t *rkv_active_rows(int32_t *rows, const int32_t *active, int32_t count) {
  if (!active || rkv_active_count(active, count) == count) return NULL;
  for (int32_t i = 0, n = 0; i < count; i++)
    if (active[i]) rows[n++] = i;
  return rows;
}
static inline int32_t rkv_row_of(const int32_t *rows, int32_t i) { return rows ? rows[i] : i; }

/* Rows of work in a form, close together. */
static inline rkv_operand rkv_rows_of(const void *x, int32_t form, int32_t cols) { return (rkv_operand){x, RKV_FN(rkv_form_bytes)(form, cols), NULL, form}; }
static inline void *rkv_row_in(void *x, int32_t form, int32_t cols, int32_t row) { return (char *)x + row * RKV_FN(rkv_form_bytes)(form, cols); }

/* to = x / sqrt(mean(x^2) + eps) * weight; in place is allowed. Source: RMSNorm (arXiv 1910.07467). */
static inline void rkv_norm(float *to, const float *x, const float *weight, int32_t n, float eps) {
  const rkv_vec factor = rkv_set1(1.0f / sqrtf(rkv_dot(x, x, n) / (float)n + eps));
  int32_t i = 0;
  for (; i + RKV_LANES <= n; i += RKV_LANES) rkv_store(to + i, rkv_load(x + i) * factor * rkv_load(weight + i));
  if (i < n) rkv_store_part(to + i, rkv_load_part(x + i, n - i) * factor * rkv_load_part(weight + i, n - i), n - i);
}

/* to += from */
static inline void rkv_add(float *to, const float *from, int32_t n) {
  int32_t i = 0;
  for (; i + RKV_LANES <= n; i += RKV_LANES) rkv_store(to + i, rkv_load(to + i) + rkv_load(from + i));
  if (i < n) rkv_store_part(to + i, rkv_load_part(to + i, n - i) + rkv_load_part(from + i, n - i), n - i);
}

/* Rows of `width` floats per piece of light work: about 64K floats. */
static inline int32_t rkv_light_rows(int32_t width) { return rkv_max_int(1, 65536 / rkv_max_int(1, width)); }

#endif
