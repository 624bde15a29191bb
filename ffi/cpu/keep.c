/* keep.c: rows given back. Scores are pooled, the rows to keep chosen, and those moved to the front; a step can drop one row per head. */
#include "cpu.h"
#include "ranking.h"
#include "rowtypes.h"

/* ---- pool_scores: POOLED rows of a row of scores per piece ------------------------------------------------------------------------------- */

#define POOLED 4096 /* at most; with chunks, as many whole ones as fit */

static int32_t pooled_rows(const rkv_pool_scores_args *a) { return a->mode == RKV_POOL_CHUNK ? rkv_max_int(1, POOLED / a->kernel) * a->kernel : POOLED; }

int32_t RKV_FN(rkv_pool_scores_pieces)(const void *args, int32_t stage) {
  const rkv_pool_scores_args *a = args;
  return stage == 0 ? a->pooled.shape[1] * rkv_ceil_div(a->end - a->begin, pooled_rows(a)) : RKV_DONE;
}

void RKV_FN(rkv_pool_scores_run)(const void *args, int32_t stage, int32_t piece, void *scratch) {
  (void)stage;
  const rkv_pool_scores_args *a = args;
  const int32_t capacity = a->scores.shape[2], share = a->scores.shape[1] / a->pooled.shape[1];
  const int32_t pieces = rkv_ceil_div(a->end - a->begin, pooled_rows(a)), row = piece / pieces, first = a->begin + piece % pieces * pooled_rows(a);
  const int32_t end = rkv_min_int(a->end, first + pooled_rows(a)), half = a->mode == RKV_POOL_CHUNK ? 0 : a->kernel / 2;
  const int32_t from = rkv_max_int(a->begin, first - half), to = rkv_min_int(a->end, end + half);
  const float *scores = (const float *)a->scores.data + ((int64_t)a->slot * a->scores.shape[1] + (int64_t)row * share) * capacity;
  float *pooled = (float *)a->pooled.data + ((int64_t)a->slot * a->pooled.shape[1] + row) * capacity, *sums = scratch;
  for (int32_t i = from; i < to; i++) { /* scores of the rows this piece looks at; rows that share one are added */
    float sum = scores[i];
    for (int32_t s = 1; s < share; s++) sum += scores[(int64_t)s * capacity + i];
    sums[i - from] = sum;
  }
  for (int32_t i = first; i < end; i++) {
    const int32_t chunk = a->begin + (i - a->begin) / a->kernel * a->kernel;
    const int32_t low = a->mode == RKV_POOL_CHUNK ? chunk : rkv_max_int(from, i - half);
    const int32_t high = a->mode == RKV_POOL_CHUNK ? rkv_min_int(end, chunk + a->kernel) : rkv_min_int(to, i + half + 1);
    float x = a->mode == RKV_POOL_MAX ? -INFINITY : 0;
    for (int32_t j = low; j < high; j++) {
      const float score = sums[j - from];
      x = a->mode != RKV_POOL_MAX ? x + score : score > x ? score : x;
    }
    pooled[i] = a->mode == RKV_POOL_MEAN ? x / (float)a->kernel : a->mode == RKV_POOL_CHUNK ? x / (float)(high - low) : x;
  }
}

/* ---- keep: a row of scores per piece ------------------------------------------------------------------------------------------------------- */

int32_t RKV_FN(rkv_keep_pieces)(const void *args, int32_t stage) {
  const rkv_keep_args *a = args;
  return stage == 0 ? a->keep.shape[1] : RKV_DONE;
}

void RKV_FN(rkv_keep_run)(const void *args, int32_t stage, int32_t row, void *scratch) {
  (void)stage;
  const rkv_keep_args *a = args;
  const int32_t n = a->keep.shape[1], k = a->keep.shape[2];
  const float *scores = (const float *)a->scores.data + ((int64_t)a->slot * n + row) * a->scores.shape[2] + a->begin;
  int32_t *keep = (int32_t *)a->keep.data + ((int64_t)a->slot * n + row) * k, at = 0, ties = 0;
  const int32_t width = a->end - a->begin, all = a->count >= width;
  const uint32_t last = all || a->count == 0 ? 0 : rkv_rank_of_kth(scratch, scores, width, (rkv_place){0, -1}, a->count, &ties);
  for (int32_t r = 0; r < a->begin; r++) keep[at++] = r;
  for (int32_t r = 0; r < width && a->count > 0; r++) {
    const uint32_t rank = all ? 0 : rkv_rank_of(scores[r]);
    if (!all && (rank > last || (rank == last && ties-- <= 0))) continue;
    keep[at++] = a->begin + r;
  }
  for (int32_t r = a->end; r < a->row_end; r++) keep[at++] = r;
  memset(keep + at, 0xff, (size_t)(k - at) * 4);
}

/* ---- compact, pick_rows: kept rows ascend, so moving them forward one by one never overwrites one that is still to come ------------------- */

/* Row i becomes row keep[i]. An entry that names no later row is passed over. */
static void move_rows(char *rows, size_t stride, size_t bytes, const int32_t *keep, int32_t count, int32_t row_end) {
  for (int32_t i = 0; i < count; i++)
    if (keep[i] > i && keep[i] < row_end) memcpy(rows + (size_t)i * stride, rows + (size_t)keep[i] * stride, bytes);
}

#define TENSORS 4 /* of rows: keys, values, positions, and what comes along */

int32_t RKV_FN(rkv_compact_pieces)(const void *args, int32_t stage) {
  const rkv_compact_args *a = args;
  if (stage == 0) return a->rows->kv_heads * TENSORS;
  a->rows->row_end[a->slot] = rkv_min_int(a->rows->row_end[a->slot], a->count);
  a->rows->tail_begin[a->slot] = rkv_min_int(a->rows->tail_begin[a->slot], a->count);
  return RKV_DONE;
}

void RKV_FN(rkv_compact_run)(const void *args, int32_t stage, int32_t piece, void *scratch) {
  (void)stage, (void)scratch;
  const rkv_compact_args *a = args;
  const rkv_rows_data *kv = a->rows;
  const int32_t head = piece / TENSORS, n = a->keep.shape[1], row_end = kv->row_end[a->slot], count = rkv_min_int(a->count, row_end);
  const int32_t *keep = (const int32_t *)a->keep.data + ((int64_t)a->slot * n + head / (kv->kv_heads / n)) * a->keep.shape[2];
  const int64_t plane = ((int64_t)a->slot * kv->kv_heads + head) * kv->capacity;
  if (piece % TENSORS < 2) {
    const rkv_view *rows = piece % TENSORS ? &kv->values : &kv->keys;
    const size_t bytes = rkv_row_bytes(rows->dtype, kv->head_dim);
    move_rows((char *)rows->data + (size_t)plane * bytes, bytes, bytes, keep, count, row_end);
  } else if (piece % TENSORS == 2) move_rows((char *)(kv->position + plane), 4, 4, keep, count, row_end);
  else if (a->also.data) {
    float *also = (float *)a->also.data + plane;
    move_rows((char *)also, 4, 4, keep, count, row_end);
    if (row_end > count) memset(also + count, 0, (size_t)(row_end - count) * 4);
  }
}

#define COLUMN_BYTES 1024 /* of a row per piece */

static size_t pick_row_bytes(const rkv_view *view) { return rkv_row_bytes(view->dtype, view->rank == 1 ? 1 : view->shape[1]); }

int32_t RKV_FN(rkv_pick_rows_pieces)(const void *args, int32_t stage) {
  const rkv_pick_rows_args *a = args;
  return stage == 0 ? (int32_t)((pick_row_bytes(&a->tensor) + COLUMN_BYTES - 1) / COLUMN_BYTES) : RKV_DONE;
}

void RKV_FN(rkv_pick_rows_run)(const void *args, int32_t stage, int32_t piece, void *scratch) {
  (void)stage, (void)scratch;
  const rkv_pick_rows_args *a = args;
  const size_t row = pick_row_bytes(&a->tensor), column = (size_t)piece * COLUMN_BYTES, bytes = row - column < COLUMN_BYTES ? row - column : COLUMN_BYTES;
  const int32_t *keep = (const int32_t *)a->keep.data + (int64_t)a->slot * a->keep.shape[1] * a->keep.shape[2];
  move_rows((char *)a->tensor.data + column, row, bytes, keep, a->count, a->tensor.shape[0]);
}

/* ---- evict: a KV head per piece ---------------------------------------------------------------------------------------------------------- */

static int32_t is_full(const rkv_evict_args *a, int32_t slot) { return a->rows->active[slot] && a->rows->row_end[slot] > a->budget; }

int32_t RKV_FN(rkv_evict_pieces)(const void *args, int32_t stage) {
  const rkv_evict_args *a = args;
  if (stage == 0) return a->rows->slots * a->rows->kv_heads;
  for (int32_t slot = 0; slot < a->rows->slots; slot++)
    if (is_full(a, slot)) {
      a->rows->row_end[slot]--;
      a->rows->tail_begin[slot] = rkv_min_int(a->rows->tail_begin[slot], a->rows->row_end[slot]);
    }
  return RKV_DONE;
}

/* The row to give up: of least score among those that are neither sink nor recent, ties to the lower; without any, the newest. */
static int32_t victim_of(const float *scores, const int32_t *position, int32_t sink, int32_t newest, int32_t recent) {
  int32_t victim = newest;
  uint32_t worst = 0;
  for (int32_t r = sink; r < newest; r++) {
    const uint32_t rank = rkv_rank_of(scores[r]);
    if (position[newest] - position[r] < recent || (victim != newest && rank <= worst)) continue;
    victim = r;
    worst = rank;
  }
  return victim;
}

void RKV_FN(rkv_evict_run)(const void *args, int32_t stage, int32_t piece, void *scratch) {
  (void)stage, (void)scratch;
  const rkv_evict_args *a = args;
  const rkv_rows_data *kv = a->rows;
  const int32_t slot = piece / kv->kv_heads, newest = kv->row_end[slot] - 1;
  if (!is_full(a, slot)) return;
  const int64_t plane = (int64_t)piece * kv->capacity;
  float *mass = (float *)a->mass.data + plane;
  const int32_t victim = victim_of((const float *)a->scores.data + plane, kv->position + plane, a->sink, newest, a->recent);
  const rkv_view *tensors[] = {&kv->keys, &kv->values};
  for (int32_t t = 0; t < 2; t++) {
    const size_t bytes = rkv_row_bytes(tensors[t]->dtype, kv->head_dim);
    char *rows = (char *)tensors[t]->data + (size_t)plane * bytes;
    if (victim != newest) memcpy(rows + victim * bytes, rows + newest * bytes, bytes);
  }
  kv->position[plane + victim] = kv->position[plane + newest];
  mass[victim] = mass[newest];
  mass[newest] = 0;
}
