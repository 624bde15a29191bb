/* select.c: what a step does before it attends: score the clusters, order the scores, fill the budget. A head is one piece: at the sizes
 * of a step (hundreds to a few thousand candidates) it takes microseconds, and handing over smaller pieces would cost as much. */
#include "cpu.h"
#include "dots.h"
#include "ranking.h"

static int32_t is_active(const rkv_view *active, int32_t slot) { return ((const int32_t *)active->data)[slot]; }

/* ---- centroid_scores: a row of scores per piece -------------------------------------------------------------------------------------- */

int32_t RKV_FN(rkv_centroid_scores_pieces)(const void *args, int32_t stage) {
  const rkv_centroid_scores_args *a = args;
  return stage == 0 ? a->scores.shape[0] * a->scores.shape[1] : RKV_DONE;
}

#define AHEAD (2 * RKV_LANES) /* clusters */

/* Asks for share g of n floats: while one query meets a block of centroids, a part of a later block is on its way, and memory never rests. */
RKV_INLINE void fetch_share(const float *from, int32_t n, int32_t g, int32_t shares) {
  const int32_t share = rkv_ceil_div(rkv_ceil_div(n, shares), 16) * 16, end = rkv_min_int(n, (g + 1) * share);
  for (int32_t i = g * share; i < end; i += 16) __builtin_prefetch(from + i);
}

/* logits[g, c] = q_g . centroid c (+ bound * |q_g| * radius c) for `queries` queries, c rounded up to whole vectors. A cluster's centroid is read once for all of
 * them. Clusters without members, and dots that are no number, become -inf: they draw nothing and are never chosen. */
static void centroid_logits(float *logits, int32_t stride, const float *q, int32_t queries, const float *centroids, const float *radius,
                            float bound, const int32_t *offsets, int32_t count, int32_t dim) {
  for (int32_t c = 0; c < count; c += RKV_LANES) {
    const int32_t last = rkv_min_int(RKV_LANES, count - c) - 1;
    rkv_ivec begin = {0}, end = {0}; /* past the last: no members */
    memcpy(&begin, offsets + c, ((size_t)last + 1) * 4);
    memcpy(&end, offsets + c + 1, ((size_t)last + 1) * 4);
    const rkv_ivec is_candidate = end > begin;
    for (int32_t g = 0; g < queries; g++) {
      const float *query = q + (int64_t)g * dim;
      fetch_share(centroids + (int64_t)(c + AHEAD) * dim, rkv_min_int(RKV_LANES, count - c - AHEAD) * dim, g, queries);
      rkv_vec dots = rkv_dots(query, (const char *)(centroids + (int64_t)c * dim), (size_t)dim * 4, last, dim, RKV_F32);
      if (radius) {
        const rkv_vec length = rkv_set1(bound * sqrtf(rkv_dot(query, query, dim)));
        dots = rkv_fma(length, last == RKV_LANES - 1 ? rkv_load(radius + c) : rkv_load_part(radius + c, last + 1), dots);
      }
      rkv_store(logits + (int64_t)g * stride + c, rkv_select(is_candidate & (dots == dots), dots, rkv_set1(-INFINITY)));
    }
  }
}

void RKV_FN(rkv_centroid_scores_run)(const void *args, int32_t stage, int32_t piece, void *scratch) {
  (void)stage;
  const rkv_centroid_scores_args *a = args;
  const int32_t n = a->scores.shape[1], most = a->scores.shape[2], heads = a->q.shape[1], kv_heads = a->centroids.shape[1], dim = a->q.shape[2];
  const int32_t slot = piece / n, row = piece % n, queries = heads / n;
  if (!is_active(&a->active, slot)) return;
  const int64_t plane = (int64_t)slot * kv_heads + row / (n / kv_heads);
  const int32_t count = rkv_max_int(0, rkv_min_int(most, ((const int32_t *)a->count.data)[slot]));
  const int32_t *offsets = (const int32_t *)a->offsets.data + plane * (most + 1);
  const float *centroids = (const float *)a->centroids.data + plane * most * dim;
  const float *radius = a->radius.data ? (const float *)a->radius.data + plane * most : NULL;
  const float *q = (const float *)a->q.data + ((int64_t)slot * heads + row * queries) * dim;
  float *scores = (float *)a->scores.data + (int64_t)piece * most, *logits = scratch;
  const int32_t stride = rkv_ceil_div(count, RKV_LANES) * RKV_LANES;
  const int32_t together = stride ? rkv_min_int(queries, RKV_SCRATCH / 4 / stride) : queries; /* >= 1: the op's check bounds `most` */
  for (int32_t c = 0; c < most; c++) scores[c] = -INFINITY;
  for (int32_t first = 0; first < queries && count; first += together) {
    const int32_t now = rkv_min_int(together, queries - first);
    centroid_logits(logits, stride, q + (int64_t)first * dim, now, centroids, radius, a->bound, offsets, count, dim);
    for (int32_t g = 0; g < now; g++) {
      if (n == kv_heads) rkv_add_softmax(scores, logits + (int64_t)g * stride, count, a->scale, first + g > 0);
      else memcpy(scores, logits, (size_t)count * 4);
    }
  }
  for (int32_t c = 0; c < count; c++)
    if (offsets[c + 1] <= offsets[c]) scores[c] = -INFINITY;
}

/* ---- topk: a row of scores per piece ------------------------------------------------------------------------------------------------
 * Which: those at least as good as the k-th (ranking.h). In what order: a stable radix sort of their ids, which come in ascending order and
 * so break ties. */

#define SORTED (1 << 15) /* ids ordered at a time: what scratch holds; a longer order is made of such runs */

typedef struct {
  uint32_t counts[4][256];
  uint32_t digits[RKV_DIGITS];
  rkv_place places[SORTED], more[SORTED];
} topk_scratch;
_Static_assert(sizeof(topk_scratch) <= RKV_SCRATCH, "a sort needs more scratch");

/* Sorts the first n places by rank, stably; digits that all share are skipped. Gives where they are then. */
static const rkv_place *sort_places(topk_scratch *s, int32_t n) {
  memset(s->counts, 0, sizeof s->counts);
  for (int32_t i = 0; i < n; i++)
    for (int32_t d = 0; d < 4; d++) s->counts[d][s->places[i].rank >> 8 * d & 255]++;
  rkv_place *from = s->places, *to = s->more;
  for (int32_t d = 0; d < 4 && n; d++) {
    uint32_t *at = s->counts[d], sum = 0;
    if (at[from[0].rank >> 8 * d & 255] == (uint32_t)n) continue;
    for (int32_t i = 0; i < 256; i++) {
      const uint32_t count = at[i];
      at[i] = sum;
      sum += count;
    }
    for (int32_t i = 0; i < n; i++) to[at[from[i].rank >> 8 * d & 255]++] = from[i];
    rkv_place *const swap = from;
    from = to;
    to = swap;
  }
  return from;
}

int32_t RKV_FN(rkv_topk_pieces)(const void *args, int32_t stage) {
  const rkv_topk_args *a = args;
  return stage == 0 ? a->order.shape[0] * a->order.shape[1] : RKV_DONE;
}

void RKV_FN(rkv_topk_run)(const void *args, int32_t stage, int32_t piece, void *scratch) {
  (void)stage;
  const rkv_topk_args *a = args;
  const int32_t k = a->order.shape[2], width = a->scores.shape[2];
  if (!is_active(&a->active, piece / a->order.shape[1])) return;
  topk_scratch *s = scratch;
  const float *scores = (const float *)a->scores.data + (int64_t)piece * width;
  int32_t *order = (int32_t *)a->order.data + (int64_t)piece * k, done = 0;
  rkv_place from = {0, -1};
  while (done < k) {
    const int32_t wanted = rkv_min_int(SORTED, k - done);
    int32_t ties = 0, n = 0;
    const uint32_t last = wanted < width ? rkv_rank_of_kth(s->digits, scores, width, from, wanted, &ties) : RKV_NO_RANK;
    for (int32_t i = 0; i < width; i++) {
      const rkv_place place = {rkv_rank_of(scores[i]), i};
      if (place.rank < last || (place.rank == last && last != RKV_NO_RANK && ties > 0)) {
        if (!rkv_is_after(place, from)) continue;
        ties -= place.rank == last;
        s->places[n++] = place;
      }
    }
    if (!n) break;
    const rkv_place *sorted = sort_places(s, n);
    for (int32_t i = 0; i < n; i++) order[done + i] = sorted[i].id;
    done += n;
    from = sorted[n - 1];
  }
  memset(order + done, 0xff, (size_t)(k - done) * 4);
}

/* Rows of cluster c, of offsets that may say anything. */
static int64_t size_of(const int32_t *offsets, int32_t c) { return (int64_t)offsets[c + 1] - offsets[c]; }
static void list_rows(int32_t *index, int32_t first, int64_t rows) {
  for (int64_t r = 0; r < rows; r++) index[r] = (int32_t)(first + r);
}

/* ---- fill_budget: a row of the index per piece ------------------------------------------------------------------------------------- */

int32_t RKV_FN(rkv_fill_budget_pieces)(const void *args, int32_t stage) {
  const rkv_fill_budget_args *a = args;
  return stage == 0 ? a->index.shape[0] * a->index.shape[1] : RKV_DONE;
}

void RKV_FN(rkv_fill_budget_run)(const void *args, int32_t stage, int32_t piece, void *scratch) {
  (void)stage, (void)scratch;
  const rkv_fill_budget_args *a = args;
  const int32_t n = a->index.shape[1], budget = a->index.shape[2], k = a->order.shape[2], most = a->offsets.shape[2] - 1;
  const int32_t slot = piece / n, kv_heads = a->offsets.shape[1];
  if (!is_active(&a->active, slot)) return;
  const int32_t *order = (const int32_t *)a->order.data + (int64_t)piece * k;
  const int32_t *offsets = (const int32_t *)a->offsets.data + ((int64_t)slot * kv_heads + piece % n / (n / kv_heads)) * (most + 1);
  int32_t *index = (int32_t *)a->index.data + (int64_t)piece * budget, at = 0;
  for (int32_t i = 0; i < k && at < budget; i++) {
    const int32_t c = order[i];
    if ((uint32_t)c >= (uint32_t)most) break;
    const int64_t size = size_of(offsets, c), rows = size < 0 ? 0 : size < budget - at ? size : budget - at;
    list_rows(index + at, offsets[c], rows);
    at += (int32_t)rows;
  }
  memset(index + at, 0xff, (size_t)(budget - at) * 4);
}

/* ---- fill_whole: a row of the index per piece ---------------------------------------------------------------------------------------- */

int32_t RKV_FN(rkv_fill_whole_pieces)(const void *args, int32_t stage) {
  const rkv_fill_whole_args *a = args;
  return stage == 0 ? a->index.shape[0] * a->index.shape[1] : RKV_DONE;
}

void RKV_FN(rkv_fill_whole_run)(const void *args, int32_t stage, int32_t piece, void *scratch) {
  (void)stage, (void)scratch;
  const rkv_fill_whole_args *a = args;
  const int32_t n = a->index.shape[1], budget = a->index.shape[2], k = a->order.shape[2], most = a->bias.shape[2];
  const int32_t slot = piece / n, kv_heads = a->offsets.shape[1];
  if (!is_active(&a->active, slot)) return;
  const int32_t count = rkv_max_int(0, rkv_min_int(most, ((const int32_t *)a->count.data)[slot]));
  const int32_t *order = (const int32_t *)a->order.data + (int64_t)piece * k;
  const int32_t *offsets = (const int32_t *)a->offsets.data + ((int64_t)slot * kv_heads + piece % n / (n / kv_heads)) * (most + 1);
  int32_t *index = (int32_t *)a->index.data + (int64_t)piece * budget, at = 0;
  float *bias = (float *)a->bias.data + (int64_t)piece * most;
  for (int32_t c = 0; c < most; c++) bias[c] = c < count && size_of(offsets, c) > 0 ? logf((float)size_of(offsets, c)) : -INFINITY;
  for (int32_t i = 0; i < k && at < budget; i++) {
    const int32_t c = order[i];
    if ((uint32_t)c >= (uint32_t)most) break;
    const int64_t rows = size_of(offsets, c);
    if (rows <= 0 || rows > budget - at) continue;
    list_rows(index + at, offsets[c], rows);
    at += (int32_t)rows;
    bias[c] = -INFINITY;
  }
  memset(index + at, 0xff, (size_t)(budget - at) * 4);
}
