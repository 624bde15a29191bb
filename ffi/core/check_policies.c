/* check_policies.c: what the ops that only some policies use want of their arguments (recallkv.h is the manual). */
#include "check.h"

/* What a slot's rows are moved or chosen by happens between steps: its numbers change, and a recording would keep them. */
static void check_between_steps(rkv_check *c) {
  if (c->code == 0 && c->arena->recording != NULL) {
    c->code = rkv_refuse(RKV_RECORDING, "Cannot %s: a step is being recorded, want it before or after", c->action);
  }
}

/* mass, or scores of rows: [slots, kvHeads or heads, capacity]. heads == 0: KV heads only. */
static void check_per_row(rkv_check *c, const rkv_view *view, const char *name, const rkv_rows_data *rows, int32_t heads) {
  if (c->code != 0) return;
  int32_t per_head = heads > 0 && view->rank == 3 && view->shape[1] == heads;
  SHAPE(c, view, name, rows->slots, per_head ? heads : rows->kv_heads, rows->capacity);
}

static void check_layer_of_rows(rkv_check *c, const rkv_layer_data *layer, const rkv_rows_data *rows) {
  if (c->code != 0) return;
  rkv_check_equal(c, "kvHeads of rows", rows->kv_heads, "kvHeads of the layer", layer->kv_heads);
  rkv_check_equal(c, "headDim of rows", rows->head_dim, "headDim of the layer", layer->head_dim);
}

/* Query heads beside KV heads: whole groups. */
static void check_groups(rkv_check *c, const char *name, int32_t heads, int32_t kv_heads) {
  if (c->code == 0) rkv_check_equal(c, name, heads % kv_heads, "nothing", 0);
}

int32_t rkv_attend_estimates(int32_t attended, int32_t lse, int32_t q, int32_t rows, int32_t layer, int32_t centroids, int32_t means,
                             int32_t bias, int32_t work) {
  rkv_check c = {.action = "attend estimates"};
  rkv_attend_estimates_args a;
  rkv_check_tensor(&c, &a.attended, attended, "attended", F32_ONLY);
  rkv_check_tensor(&c, &a.lse, lse, "lse", F32_ONLY);
  rkv_check_tensor(&c, &a.q, q, "q", F32_ONLY);
  a.rows = rkv_check_rows(&c, rows);
  a.layer = rkv_check_layer(&c, layer);
  rkv_check_tensor(&c, &a.centroids, centroids, "centroids", F32_ONLY);
  rkv_check_tensor(&c, &a.means, means, "means", F32_ONLY);
  rkv_check_tensor(&c, &a.bias, bias, "bias", F32_ONLY);
  rkv_check_tensor(&c, &a.work, work, "work", F32_ONLY);
  check_layer_of_rows(&c, a.layer, a.rows);
  if (c.code == 0) {
    const rkv_layer_data *l = a.layer;
    int32_t slots = a.rows->slots;
    SHAPE(&c, &a.attended, "attended", slots, l->heads, l->head_dim);
    SHAPE(&c, &a.lse, "lse", slots, l->heads);
    SHAPE(&c, &a.q, "q", slots, l->heads, l->head_dim);
    SHAPE(&c, &a.centroids, "centroids", slots, l->kv_heads, LEAST(1), l->head_dim);
    if (c.code == 0) {
      int32_t most = a.centroids.shape[2], per_head = a.bias.rank == 3 && a.bias.shape[1] == l->heads;
      SHAPE(&c, &a.means, "means", slots, l->kv_heads, most, l->head_dim);
      SHAPE(&c, &a.bias, "bias", slots, per_head ? l->heads : l->kv_heads, most);
      rkv_check_work(&c, &a.work, (int64_t)slots * l->heads * (((int64_t)most + RKV_PIECE - 1) / RKV_PIECE) * (l->head_dim + 2));
    }
  }
  return rkv_submit(&c, RKV_OP_attend_estimates, &a, sizeof a);
}

int32_t rkv_radius(int32_t radius, int32_t keys, int32_t centroids, int32_t order, int32_t offsets, const int32_t *run) {
  rkv_check c = {.action = "take the radius"};
  rkv_radius_args a;
  rkv_check_tensor(&c, &a.radius, radius, "radius", F32_ONLY);
  rkv_check_tensor(&c, &a.keys, keys, "keys", ROW_DTYPES);
  rkv_check_tensor(&c, &a.centroids, centroids, "centroids", F32_ONLY);
  rkv_check_tensor(&c, &a.order, order, "order", I32_ONLY);
  rkv_check_tensor(&c, &a.offsets, offsets, "offsets", I32_ONLY);
  SHAPE(&c, &a.keys, "keys", ANY, ANY, ANY, LEAST(1));
  if (c.code == 0) SHAPE(&c, &a.centroids, "centroids", a.keys.shape[0], a.keys.shape[1], LEAST(1), a.keys.shape[3]);
  if (c.code == 0) {
    const int32_t *s = a.centroids.shape;
    SHAPE(&c, &a.radius, "radius", s[0], s[1], s[2]);
    SHAPE(&c, &a.order, "order", s[0], s[1], a.keys.shape[2]);
    SHAPE(&c, &a.offsets, "offsets", s[0], s[1], s[2] + 1);
    a.run = rkv_check_run(&c, run, s[0], a.keys.shape[2], s[2]);
  }
  return rkv_submit(&c, RKV_OP_radius, &a, sizeof a);
}

int32_t rkv_fill_whole(int32_t index, int32_t bias, int32_t order, int32_t offsets, int32_t count, int32_t active) {
  rkv_check c = {.action = "fill the budget with whole clusters"};
  rkv_fill_whole_args a;
  rkv_check_tensor(&c, &a.index, index, "index", I32_ONLY);
  rkv_check_tensor(&c, &a.bias, bias, "bias", F32_ONLY);
  rkv_check_tensor(&c, &a.order, order, "order", I32_ONLY);
  rkv_check_tensor(&c, &a.offsets, offsets, "offsets", I32_ONLY);
  rkv_check_tensor(&c, &a.count, count, "count", I32_ONLY);
  rkv_check_tensor(&c, &a.active, active, "active", I32_ONLY);
  SHAPE(&c, &a.order, "order", ANY, ANY, ANY);
  if (c.code == 0) {
    const int32_t *s = a.order.shape;
    SHAPE(&c, &a.index, "index", s[0], s[1], ANY);
    SHAPE(&c, &a.offsets, "offsets", s[0], LEAST(1), LEAST(2));
    SHAPE(&c, &a.count, "count", s[0]);
    SHAPE(&c, &a.active, "active", s[0]);
    if (c.code == 0) SHAPE(&c, &a.bias, "bias", s[0], s[1], a.offsets.shape[2] - 1);
    check_groups(&c, "heads of order beyond whole groups", s[1], a.offsets.shape[1]);
  }
  return rkv_submit(&c, RKV_OP_fill_whole, &a, sizeof a);
}

/* [slots, kvHeads, maxPages, 2, headDim], every row of the capacity in some page. */
static void check_bounds(rkv_check *c, const rkv_view *bounds, const rkv_rows_data *rows, int32_t page) {
  rkv_check_range(c, "page", page, 1, INT32_MAX);
  if (c->code == 0) SHAPE(c, bounds, "bounds", rows->slots, rows->kv_heads, LEAST(((int64_t)rows->capacity + page - 1) / page), 2, rows->head_dim);
}

int32_t rkv_page_bounds(int32_t bounds, int32_t rows, int32_t page, int32_t slot, int32_t begin, int32_t count) {
  rkv_check c = {.action = "bound pages"};
  rkv_page_bounds_args a = {.page = page, .slot = slot, .begin = begin, .count = count};
  rkv_check_tensor(&c, &a.bounds, bounds, "bounds", ROW_DTYPES & ~ONE_OF(RKV_Q8));
  a.rows = rkv_check_rows(&c, rows);
  if (c.code == 0 && a.bounds.dtype != RKV_F32) rkv_check_equal(&c, "dtype of bounds that are not f32", a.bounds.dtype, "dtype of keys", a.rows->keys.dtype);
  check_between_steps(&c);
  if (c.code == 0) {
    check_bounds(&c, &a.bounds, a.rows, page);
    rkv_check_range(&c, "slot", slot, 0, a.rows->slots - 1);
    rkv_check_range(&c, "begin", begin, 0, a.rows->capacity);
    rkv_check_range(&c, "count", count, 1, (int64_t)a.rows->capacity - begin);
  }
  return rkv_submit(&c, RKV_OP_page_bounds, &a, sizeof a);
}

int32_t rkv_page_scores(int32_t scores, int32_t q, int32_t bounds, int32_t rows, float scale, int32_t page, int32_t sink) {
  rkv_check c = {.action = "score pages"};
  rkv_page_scores_args a = {.scale = scale, .page = page, .sink = sink};
  rkv_check_tensor(&c, &a.scores, scores, "scores", F32_ONLY);
  rkv_check_tensor(&c, &a.q, q, "q", F32_ONLY);
  rkv_check_tensor(&c, &a.bounds, bounds, "bounds", ROW_DTYPES & ~ONE_OF(RKV_Q8));
  a.rows = rkv_check_rows(&c, rows);
  if (c.code == 0) {
    check_bounds(&c, &a.bounds, a.rows, page);
    rkv_check_range(&c, "sink", sink, 0, a.rows->capacity);
    SHAPE(&c, &a.q, "q", a.rows->slots, LEAST(a.rows->kv_heads), a.rows->head_dim);
    if (c.code == 0) check_groups(&c, "heads of q beyond whole groups", a.q.shape[1], a.rows->kv_heads);
  }
  if (c.code == 0) {
    int32_t heads = a.q.shape[1], per_head = a.scores.rank == 3 && a.scores.shape[1] == heads;
    SHAPE(&c, &a.scores, "scores", a.rows->slots, per_head ? heads : a.rows->kv_heads, a.bounds.shape[2]);
    rkv_check_range(&c, "maxPages", a.bounds.shape[2], 1, RKV_SCRATCH / 4 - 4 * a.rows->head_dim);
  }
  return rkv_submit(&c, RKV_OP_page_scores, &a, sizeof a);
}

int32_t rkv_attention_mass(int32_t mass, int32_t q, int32_t lse, int32_t weights, int32_t rows, int32_t layer, int32_t slot, int32_t count,
                           int32_t first) {
  rkv_check c = {.action = "add up attention"};
  rkv_attention_mass_args a = {.slot = slot, .count = count, .first = first};
  rkv_check_tensor(&c, &a.mass, mass, "mass", F32_ONLY);
  rkv_check_tensor(&c, &a.q, q, "q", F32_ONLY);
  rkv_check_tensor(&c, &a.lse, lse, "lse", F32_ONLY);
  rkv_check_optional(&c, &a.weights, weights, "weights", F32_ONLY);
  a.rows = rkv_check_rows(&c, rows);
  a.layer = rkv_check_layer(&c, layer);
  check_layer_of_rows(&c, a.layer, a.rows);
  if (c.code == 0) {
    const rkv_layer_data *l = a.layer;
    check_per_row(&c, &a.mass, "mass", a.rows, l->heads);
    rkv_check_range(&c, "slot", slot, RKV_STEP, a.rows->slots - 1);
    if (slot == RKV_STEP) rkv_check_equal(&c, "count of a step", count, "slots", a.rows->slots);
    else rkv_check_range(&c, "count", count, 1, a.rows->capacity);
    rkv_check_range(&c, "first", first, 0, slot == RKV_STEP ? 0 : (int64_t)count - 1);
    SHAPE(&c, &a.q, "q", LEAST(count), l->heads, l->head_dim);
    SHAPE(&c, &a.lse, "lse", LEAST(count), l->heads);
    SHAPE(&c, &a.weights, "weights", LEAST(count));
  }
  return rkv_submit(&c, RKV_OP_attention_mass, &a, sizeof a);
}

int32_t rkv_mass_rates(int32_t rates, int32_t mass, int32_t rows, int32_t slot) {
  rkv_check c = {.action = "take rates of mass"};
  rkv_mass_rates_args a = {.slot = slot};
  rkv_check_tensor(&c, &a.rates, rates, "rates", F32_ONLY);
  rkv_check_tensor(&c, &a.mass, mass, "mass", F32_ONLY);
  a.rows = rkv_check_rows(&c, rows);
  if (c.code == 0) {
    SHAPE(&c, &a.mass, "mass", a.rows->slots, LEAST(a.rows->kv_heads), a.rows->capacity);
    if (c.code == 0) check_groups(&c, "rows of mass beyond whole groups", a.mass.shape[1], a.rows->kv_heads);
    rkv_check_range(&c, "slot", slot, RKV_STEP, a.rows->slots - 1);
  }
  if (c.code == 0) SHAPE(&c, &a.rates, "rates", a.mass.shape[0], a.mass.shape[1], a.mass.shape[2]);
  return rkv_submit(&c, RKV_OP_mass_rates, &a, sizeof a);
}

int32_t rkv_pool_scores(int32_t pooled, int32_t scores, int32_t slot, int32_t begin, int32_t end, int32_t kernel, int32_t mode) {
  rkv_check c = {.action = "pool scores"};
  rkv_pool_scores_args a = {.slot = slot, .begin = begin, .end = end, .kernel = kernel, .mode = mode};
  rkv_check_tensor(&c, &a.pooled, pooled, "pooled", F32_ONLY);
  rkv_check_tensor(&c, &a.scores, scores, "scores", F32_ONLY);
  check_between_steps(&c);
  SHAPE(&c, &a.scores, "scores", ANY, LEAST(1), ANY);
  if (c.code == 0) SHAPE(&c, &a.pooled, "pooled", a.scores.shape[0], LEAST(1), a.scores.shape[2]);
  if (c.code == 0) {
    check_groups(&c, "rows of scores beyond whole rows of pooled", a.scores.shape[1], a.pooled.shape[1]);
    rkv_check_range(&c, "slot", slot, 0, a.scores.shape[0] - 1);
    rkv_check_range(&c, "end", end, 0, a.scores.shape[2]);
    rkv_check_range(&c, "begin", begin, 0, end);
    rkv_check_range(&c, "mode", mode, RKV_POOL_MEAN, RKV_POOL_CHUNK);
    rkv_check_range(&c, "kernel", kernel, 1, 4096);
    if (mode != RKV_POOL_CHUNK) rkv_check_equal(&c, "kernel % 2", kernel % 2, "that of an odd one", 1);
    if (c.code == 0 && a.pooled.data == a.scores.data) c.code = rkv_refuse(RKV_RANGE, "Cannot %s: pooled is scores itself, want another tensor", c.action);
  }
  return rkv_submit(&c, RKV_OP_pool_scores, &a, sizeof a);
}

int32_t rkv_keep(int32_t keep, int32_t scores, int32_t slot, int32_t begin, int32_t end, int32_t count, int32_t row_end) {
  rkv_check c = {.action = "choose rows to keep"};
  rkv_keep_args a = {.slot = slot, .begin = begin, .end = end, .count = count, .row_end = row_end};
  rkv_check_tensor(&c, &a.keep, keep, "keep", I32_ONLY);
  rkv_check_tensor(&c, &a.scores, scores, "scores", F32_ONLY);
  check_between_steps(&c);
  SHAPE(&c, &a.scores, "scores", ANY, ANY, ANY);
  if (c.code == 0) {
    rkv_check_range(&c, "slot", slot, 0, a.scores.shape[0] - 1);
    rkv_check_range(&c, "rowEnd", row_end, 0, a.scores.shape[2]);
    rkv_check_range(&c, "end", end, 0, row_end);
    rkv_check_range(&c, "begin", begin, 0, end);
    rkv_check_range(&c, "count", count, 0, (int64_t)end - begin);
    if (c.code == 0) SHAPE(&c, &a.keep, "keep", a.scores.shape[0], a.scores.shape[1], LEAST((int64_t)begin + count + row_end - end));
  }
  return rkv_submit(&c, RKV_OP_keep, &a, sizeof a);
}

int32_t rkv_compact(int32_t rows, int32_t also, int32_t keep, int32_t slot, int32_t count) {
  rkv_check c = {.action = "compact rows"};
  rkv_compact_args a = {.slot = slot, .count = count};
  a.rows = rkv_check_rows(&c, rows);
  rkv_check_optional(&c, &a.also, also, "also", F32_ONLY);
  rkv_check_tensor(&c, &a.keep, keep, "keep", I32_ONLY);
  check_between_steps(&c);
  if (c.code == 0) {
    int32_t shared = a.keep.rank == 3 && a.keep.shape[1] == 1;
    rkv_check_range(&c, "slot", slot, 0, a.rows->slots - 1);
    rkv_check_range(&c, "count", count, 0, a.rows->capacity);
    SHAPE(&c, &a.keep, "keep", a.rows->slots, shared ? 1 : a.rows->kv_heads, LEAST(count));
    check_per_row(&c, &a.also, "also", a.rows, 0);
  }
  return rkv_submit(&c, RKV_OP_compact, &a, sizeof a);
}

int32_t rkv_pick_rows(int32_t tensor, int32_t keep, int32_t slot, int32_t count) {
  rkv_check c = {.action = "pick rows"};
  rkv_pick_rows_args a = {.slot = slot, .count = count};
  rkv_check_tensor(&c, &a.tensor, tensor, "tensor", ANY_DTYPE);
  rkv_check_tensor(&c, &a.keep, keep, "keep", I32_ONLY);
  check_between_steps(&c);
  rkv_check_range(&c, "count", count, 0, INT32_MAX);
  if (c.code == 0) {
    if (a.tensor.rank == 1) SHAPE(&c, &a.tensor, "tensor", LEAST(count));
    else SHAPE(&c, &a.tensor, "tensor", LEAST(count), LEAST(1));
    SHAPE(&c, &a.keep, "keep", ANY, LEAST(1), LEAST(count));
    if (c.code == 0) rkv_check_range(&c, "slot", slot, 0, a.keep.shape[0] - 1);
  }
  return rkv_submit(&c, RKV_OP_pick_rows, &a, sizeof a);
}

int32_t rkv_evict(int32_t rows, int32_t mass, int32_t scores, int32_t sink, int32_t recent, int32_t budget) {
  rkv_check c = {.action = "evict rows"};
  rkv_evict_args a = {.sink = sink, .recent = recent, .budget = budget};
  a.rows = rkv_check_rows(&c, rows);
  rkv_check_tensor(&c, &a.mass, mass, "mass", F32_ONLY);
  rkv_check_tensor(&c, &a.scores, scores, "scores", F32_ONLY);
  if (c.code == 0) {
    check_per_row(&c, &a.mass, "mass", a.rows, 0);
    check_per_row(&c, &a.scores, "scores", a.rows, 0);
    rkv_check_range(&c, "sink", sink, 0, INT32_MAX);
    rkv_check_range(&c, "recent", recent, 0, INT32_MAX);
    rkv_check_range(&c, "budget", budget, 1, INT32_MAX);
  }
  return rkv_submit(&c, RKV_OP_evict, &a, sizeof a);
}
