/* pages.c: pages of neighbouring rows, and the box around their keys: no logit of a page can be above the box's. */
#include "cpu.h"
#include "dots.h"
#include "ranking.h"

#define PAGES 16 /* per piece: 256 rows at the usual 16 rows a page */

/* ---- page_bounds: PAGES pages of a head per piece -------------------------------------------------------------------------------------- */

typedef struct { int32_t begin, end; } range;
static range touched(const rkv_page_bounds_args *a) {
  return (range){a->begin / a->page, rkv_min_int(rkv_ceil_div(a->begin + a->count, a->page), a->bounds.shape[2])};
}

int32_t RKV_FN(rkv_page_bounds_pieces)(const void *args, int32_t stage) {
  const rkv_page_bounds_args *a = args;
  const range pages = touched(a);
  return stage == 0 ? a->rows->kv_heads * rkv_ceil_div(pages.end - pages.begin, PAGES) : RKV_DONE;
}

/* low and high[dim]: channel-wise least and largest of `count` rows; a NaN among them is passed over. */
static void bound_rows(float *low, float *high, const char *rows, int32_t count, int32_t dim, int32_t dtype, float *row) {
  for (int32_t d = 0; d < dim; d++) low[d] = INFINITY, high[d] = -INFINITY;
  for (int32_t i = 0; i < count; i++) {
    rkv_row_to_f32(row, rows + (size_t)i * rkv_row_bytes(dtype, dim), dtype, dim);
    for (int32_t d = 0; d < dim; d += RKV_LANES) { /* scratch has room to the end of the last vector */
      const rkv_vec x = rkv_load(row + d);
      rkv_store(low + d, rkv_min(x, rkv_load(low + d)));
      rkv_store(high + d, rkv_max(x, rkv_load(high + d)));
    }
  }
}

void RKV_FN(rkv_page_bounds_run)(const void *args, int32_t stage, int32_t piece, void *scratch) {
  (void)stage;
  const rkv_page_bounds_args *a = args;
  const rkv_rows_data *kv = a->rows;
  const range pages = touched(a);
  const int32_t pieces = rkv_ceil_div(pages.end - pages.begin, PAGES), head = piece / pieces, dim = kv->head_dim, most = a->bounds.shape[2];
  const int32_t first = pages.begin + piece % pieces * PAGES, end = rkv_min_int(pages.end, first + PAGES), dtype = kv->keys.dtype;
  const int64_t plane = (int64_t)a->slot * kv->kv_heads + head;
  const char *keys = (const char *)kv->keys.data + (size_t)plane * kv->capacity * rkv_row_bytes(dtype, dim);
  char *bounds = (char *)a->bounds.data + (size_t)plane * most * 2 * rkv_row_bytes(a->bounds.dtype, dim);
  float *low = scratch, *high = low + rkv_ceil_div(dim, RKV_LANES) * RKV_LANES, *row = high + rkv_ceil_div(dim, RKV_LANES) * RKV_LANES;
  for (int32_t p = first; p < end; p++) {
    const int32_t begin = p * a->page, count = rkv_min_int(a->page, kv->row_end[a->slot] - begin);
    if (count <= 0) return;
    bound_rows(low, high, keys + (size_t)begin * rkv_row_bytes(dtype, dim), count, dim, dtype, row);
    char *to = bounds + (size_t)p * 2 * rkv_row_bytes(a->bounds.dtype, dim);
    rkv_row_from_f32(to, low, a->bounds.dtype, dim);
    rkv_row_from_f32(to + rkv_row_bytes(a->bounds.dtype, dim), high, a->bounds.dtype, dim);
  }
}

/* ---- page_scores: a row of scores per piece ------------------------------------------------------------------------------------------- */

int32_t RKV_FN(rkv_page_scores_pieces)(const void *args, int32_t stage) {
  const rkv_page_scores_args *a = args;
  return stage == 0 ? a->scores.shape[0] * a->scores.shape[1] : RKV_DONE;
}

RKV_INLINE void page_logits(float *logits, const float *q, const char *bounds, int32_t count, int32_t dim, int32_t dtype) {
  const size_t bytes = rkv_row_bytes(dtype, dim);
  for (int32_t p = 0; p < count; p += RKV_LANES) {
    const rkv_vec dots = rkv_dots(q, bounds + (size_t)p * bytes, bytes, rkv_min_int(RKV_LANES, count - p) - 1, dim, dtype);
    rkv_store(logits + p, rkv_select(dots == dots, dots, rkv_set1(-INFINITY)));
  }
}

void RKV_FN(rkv_page_scores_run)(const void *args, int32_t stage, int32_t piece, void *scratch) {
  (void)stage;
  const rkv_page_scores_args *a = args;
  const rkv_rows_data *kv = a->rows;
  const int32_t n = a->scores.shape[1], most = a->scores.shape[2], heads = a->q.shape[1], dim = kv->head_dim, slot = piece / n, row = piece % n;
  if (!kv->active[slot]) return;
  float *scores = (float *)a->scores.data + (int64_t)piece * most;
  for (int32_t p = 0; p < most; p++) scores[p] = -INFINITY;
  /* pages that neither sink nor tail reaches into */
  const int32_t first = rkv_ceil_div(a->sink, a->page), end = rkv_min_int(most, rkv_min_int(kv->tail_begin[slot], kv->row_end[slot]) / a->page);
  if (end <= first) return;
  const int64_t plane = (int64_t)slot * kv->kv_heads + row / (n / kv->kv_heads);
  const char *bounds = (const char *)a->bounds.data + (size_t)(plane * most + first) * rkv_row_bytes(a->bounds.dtype, 2 * dim);
  const int32_t queries = heads / n, count = end - first;
  float *q = scratch, *logits = q + 2 * dim;
  for (int32_t g = 0; g < queries; g++) {
    /* max(q m, q M) = min(q, 0) m + max(q, 0) M: the box's best logit is one dot product with both bounds */
    const float *query = (const float *)a->q.data + ((int64_t)slot * heads + row * queries + g) * dim;
    for (int32_t d = 0; d < dim; d++) q[d] = query[d] > 0 ? 0 : query[d], q[dim + d] = query[d] > 0 ? query[d] : 0;
    switch (a->bounds.dtype) {
      case RKV_F16: page_logits(logits, q, bounds, count, 2 * dim, RKV_F16); break;
      case RKV_BF16: page_logits(logits, q, bounds, count, 2 * dim, RKV_BF16); break;
      default: page_logits(logits, q, bounds, count, 2 * dim, RKV_F32);
    }
    if (n == kv->kv_heads) {
      for (int32_t p = count; p % RKV_LANES; p++) logits[p] = -INFINITY;
      rkv_add_softmax(scores + first, logits, count, a->scale, g > 0);
    } else memcpy(scores + first, logits, (size_t)count * 4);
  }
}
