/* check_cluster.c: what the ops of clustering and selection want of their arguments (recallkv.h is the manual). */
#include "check.h"

/* Keys say slots, kvHeads, capacity and headDim; the rest is held against them. */
static void check_keys(rkv_check *c, const rkv_view *keys) {
  SHAPE(c, keys, "keys", ANY, ANY, ANY, LEAST(1));
  if (c->code == 0) rkv_check_range(c, "headDim", keys->shape[3], 1, RKV_HEAD_DIM);
}

static void check_centroids(rkv_check *c, const rkv_view *centroids, const rkv_view *keys) {
  if (c->code == 0) SHAPE(c, centroids, "centroids", keys->shape[0], keys->shape[1], LEAST(1), keys->shape[3]);
}

static void check_per_row(rkv_check *c, const rkv_view *view, const char *name, const rkv_view *keys) {
  if (c->code == 0) SHAPE(c, view, name, keys->shape[0], keys->shape[1], keys->shape[2]);
}

static void check_per_head(rkv_check *c, const rkv_view *view, const char *name, const rkv_view *rows) {
  if (c->code == 0) SHAPE(c, view, name, rows->shape[0], rows->shape[1]);
}

int32_t rkv_seed_centroids(int32_t centroids, int32_t labels, int32_t moved, int32_t keys, const int32_t *run) {
  rkv_check c = {.action = "seed centroids"};
  rkv_seed_centroids_args a;
  rkv_check_tensor(&c, &a.centroids, centroids, "centroids", F32_ONLY);
  rkv_check_tensor(&c, &a.labels, labels, "labels", I32_ONLY);
  rkv_check_tensor(&c, &a.moved, moved, "moved", I32_ONLY);
  rkv_check_tensor(&c, &a.keys, keys, "keys", ROW_DTYPES);
  check_keys(&c, &a.keys);
  check_centroids(&c, &a.centroids, &a.keys);
  check_per_row(&c, &a.labels, "labels", &a.keys);
  check_per_head(&c, &a.moved, "moved", &a.keys);
  if (c.code == 0) a.run = rkv_check_run(&c, run, a.keys.shape[0], a.keys.shape[2], a.centroids.shape[2]);
  return rkv_submit(&c, RKV_OP_seed_centroids, &a, sizeof a);
}

int32_t rkv_assign(int32_t labels, int32_t moved, int32_t keys, int32_t centroids, int32_t work, const int32_t *run) {
  rkv_check c = {.action = "assign"};
  rkv_assign_args a;
  rkv_check_tensor(&c, &a.labels, labels, "labels", I32_ONLY);
  rkv_check_tensor(&c, &a.moved, moved, "moved", I32_ONLY);
  rkv_check_tensor(&c, &a.keys, keys, "keys", ROW_DTYPES);
  rkv_check_tensor(&c, &a.centroids, centroids, "centroids", F32_ONLY);
  rkv_check_tensor(&c, &a.work, work, "work", F32_ONLY);
  check_keys(&c, &a.keys);
  check_centroids(&c, &a.centroids, &a.keys);
  check_per_row(&c, &a.labels, "labels", &a.keys);
  check_per_head(&c, &a.moved, "moved", &a.keys);
  if (c.code == 0) a.run = rkv_check_run(&c, run, a.keys.shape[0], a.keys.shape[2], a.centroids.shape[2]);
  if (c.code == 0) {
    int64_t pieces = ((int64_t)a.run.rows + RKV_PIECE - 1) / RKV_PIECE;
    rkv_check_work(&c, &a.work, a.keys.shape[1] * (a.run.clusters + pieces));
  }
  return rkv_submit(&c, RKV_OP_assign, &a, sizeof a);
}

int32_t rkv_group(int32_t order, int32_t offsets, int32_t labels, int32_t moved, const int32_t *run) {
  rkv_check c = {.action = "group rows"};
  rkv_group_args a;
  rkv_check_tensor(&c, &a.order, order, "order", I32_ONLY);
  rkv_check_tensor(&c, &a.offsets, offsets, "offsets", I32_ONLY);
  rkv_check_tensor(&c, &a.labels, labels, "labels", I32_ONLY);
  rkv_check_optional(&c, &a.moved, moved, "moved", I32_ONLY);
  SHAPE(&c, &a.labels, "labels", ANY, ANY, ANY);
  if (c.code == 0) SHAPE(&c, &a.order, "order", a.labels.shape[0], a.labels.shape[1], a.labels.shape[2]);
  if (c.code == 0) SHAPE(&c, &a.offsets, "offsets", a.labels.shape[0], a.labels.shape[1], LEAST(2));
  check_per_head(&c, &a.moved, "moved", &a.labels);
  if (c.code == 0) a.run = rkv_check_run(&c, run, a.labels.shape[0], a.labels.shape[2], a.offsets.shape[2] - 1);
  return rkv_submit(&c, RKV_OP_group, &a, sizeof a);
}

int32_t rkv_centroid_means(int32_t centroids, int32_t keys, int32_t order, int32_t offsets, int32_t moved, const int32_t *run) {
  rkv_check c = {.action = "take centroid means"};
  rkv_centroid_means_args a;
  rkv_check_tensor(&c, &a.centroids, centroids, "centroids", F32_ONLY);
  rkv_check_tensor(&c, &a.keys, keys, "keys", ROW_DTYPES);
  rkv_check_tensor(&c, &a.order, order, "order", I32_ONLY);
  rkv_check_tensor(&c, &a.offsets, offsets, "offsets", I32_ONLY);
  rkv_check_optional(&c, &a.moved, moved, "moved", I32_ONLY);
  check_keys(&c, &a.keys);
  check_centroids(&c, &a.centroids, &a.keys);
  check_per_row(&c, &a.order, "order", &a.keys);
  if (c.code == 0) SHAPE(&c, &a.offsets, "offsets", a.keys.shape[0], a.keys.shape[1], a.centroids.shape[2] + 1);
  check_per_head(&c, &a.moved, "moved", &a.keys);
  if (c.code == 0) a.run = rkv_check_run(&c, run, a.keys.shape[0], a.keys.shape[2], a.centroids.shape[2]);
  return rkv_submit(&c, RKV_OP_centroid_means, &a, sizeof a);
}

int32_t rkv_permute_rows(int32_t tensor, int32_t order, int32_t work, const int32_t *run) {
  rkv_check c = {.action = "permute rows"};
  rkv_permute_rows_args a;
  rkv_check_tensor(&c, &a.tensor, tensor, "tensor", ANY_DTYPE);
  rkv_check_tensor(&c, &a.order, order, "order", I32_ONLY);
  rkv_check_tensor(&c, &a.work, work, "work", F32_ONLY);
  SHAPE(&c, &a.order, "order", ANY, ANY, ANY);
  if (c.code == 0) {
    const int32_t *s = a.order.shape;
    if (a.tensor.rank == 3) SHAPE(&c, &a.tensor, "tensor", s[0], s[1], s[2]);
    else SHAPE(&c, &a.tensor, "tensor", s[0], s[1], s[2], LEAST(1));
    a.run = rkv_check_run(&c, run, s[0], s[2], INT32_MAX);
  }
  if (c.code == 0) {
    size_t row = rkv_row_bytes(a.tensor.dtype, a.tensor.rank == 3 ? 1 : rkv_width(&a.tensor));
    rkv_check_work(&c, &a.work, ((int64_t)a.order.shape[1] * a.run.rows * (int64_t)row + 3) / 4);
    if (c.code == 0 && a.work.data == a.tensor.data) c.code = rkv_refuse(RKV_RANGE, "Cannot %s: work is tensor itself, want another tensor", c.action);
  }
  return rkv_submit(&c, RKV_OP_permute_rows, &a, sizeof a);
}

int32_t rkv_centroid_scores(int32_t scores, int32_t q, int32_t centroids, int32_t radius, int32_t offsets, int32_t count, int32_t active,
                            float scale, float bound) {
  rkv_check c = {.action = "score centroids"};
  rkv_centroid_scores_args a = {.scale = scale, .bound = bound};
  rkv_check_tensor(&c, &a.scores, scores, "scores", F32_ONLY);
  rkv_check_tensor(&c, &a.q, q, "q", F32_ONLY);
  rkv_check_tensor(&c, &a.centroids, centroids, "centroids", F32_ONLY);
  rkv_check_optional(&c, &a.radius, radius, "radius", F32_ONLY);
  rkv_check_tensor(&c, &a.offsets, offsets, "offsets", I32_ONLY);
  rkv_check_tensor(&c, &a.count, count, "count", I32_ONLY);
  rkv_check_tensor(&c, &a.active, active, "active", I32_ONLY);
  SHAPE(&c, &a.centroids, "centroids", ANY, LEAST(1), LEAST(1), LEAST(1));
  if (c.code == 0) {
    const int32_t *s = a.centroids.shape;
    SHAPE(&c, &a.q, "q", s[0], LEAST(s[1]), s[3]);
    if (c.code == 0) rkv_check_equal(&c, "heads of q beyond whole groups", a.q.shape[1] % s[1], "nothing", 0);
    int32_t per_head = a.scores.rank == 3 && a.scores.shape[1] == a.q.shape[1];
    SHAPE(&c, &a.scores, "scores", s[0], per_head ? a.q.shape[1] : s[1], s[2]);
    SHAPE(&c, &a.radius, "radius", s[0], s[1], s[2]);
    SHAPE(&c, &a.offsets, "offsets", s[0], s[1], s[2] + 1);
    rkv_check_range(&c, "maxClusters", s[2], 1, RKV_SCRATCH / 4);
    SHAPE(&c, &a.count, "count", s[0]);
    SHAPE(&c, &a.active, "active", s[0]);
  }
  return rkv_submit(&c, RKV_OP_centroid_scores, &a, sizeof a);
}

int32_t rkv_topk(int32_t order, int32_t scores, int32_t active) {
  rkv_check c = {.action = "take the top k"};
  rkv_topk_args a;
  rkv_check_tensor(&c, &a.order, order, "order", I32_ONLY);
  rkv_check_tensor(&c, &a.scores, scores, "scores", F32_ONLY);
  rkv_check_tensor(&c, &a.active, active, "active", I32_ONLY);
  SHAPE(&c, &a.scores, "scores", ANY, ANY, ANY);
  if (c.code == 0) {
    SHAPE(&c, &a.order, "order", a.scores.shape[0], a.scores.shape[1], ANY);
    SHAPE(&c, &a.active, "active", a.scores.shape[0]);
    rkv_check_range(&c, "k", a.order.rank == 3 ? a.order.shape[2] : 0, 0, a.scores.shape[2]);
  }
  return rkv_submit(&c, RKV_OP_topk, &a, sizeof a);
}

int32_t rkv_fill_budget(int32_t index, int32_t order, int32_t offsets, int32_t active) {
  rkv_check c = {.action = "fill the budget"};
  rkv_fill_budget_args a;
  rkv_check_tensor(&c, &a.index, index, "index", I32_ONLY);
  rkv_check_tensor(&c, &a.order, order, "order", I32_ONLY);
  rkv_check_tensor(&c, &a.offsets, offsets, "offsets", I32_ONLY);
  rkv_check_tensor(&c, &a.active, active, "active", I32_ONLY);
  SHAPE(&c, &a.order, "order", ANY, ANY, ANY);
  if (c.code == 0) {
    SHAPE(&c, &a.index, "index", a.order.shape[0], a.order.shape[1], ANY);
    SHAPE(&c, &a.offsets, "offsets", a.order.shape[0], LEAST(1), LEAST(2));
    SHAPE(&c, &a.active, "active", a.order.shape[0]);
    if (c.code == 0) rkv_check_equal(&c, "heads of order beyond whole groups", a.order.shape[1] % a.offsets.shape[1], "nothing", 0);
  }
  return rkv_submit(&c, RKV_OP_fill_budget, &a, sizeof a);
}

int32_t rkv_gather_rows(int32_t to, int32_t from, int32_t index) {
  rkv_check c = {.action = "gather rows"};
  rkv_gather_rows_args a;
  rkv_check_tensor(&c, &a.to, to, "to", F32_ONLY);
  rkv_check_tensor(&c, &a.from, from, "from", ROW_DTYPES);
  rkv_check_tensor(&c, &a.index, index, "index", I32_ONLY);
  SHAPE(&c, &a.from, "from", ANY, ANY, ANY, LEAST(1));
  if (c.code == 0) SHAPE(&c, &a.index, "index", a.from.shape[0], a.from.shape[1], ANY);
  if (c.code == 0) SHAPE(&c, &a.to, "to", a.from.shape[0], a.from.shape[1], a.index.shape[2], a.from.shape[3]);
  return rkv_submit(&c, RKV_OP_gather_rows, &a, sizeof a);
}

int32_t rkv_set_tail(int32_t rows, int32_t sink, int32_t width) {
  rkv_check c = {.action = "set the tail"};
  rkv_set_tail_args a = {.sink = sink, .width = width};
  a.rows = rkv_check_rows(&c, rows);
  rkv_check_range(&c, "sink", sink, 0, INT32_MAX);
  rkv_check_range(&c, "width", width, 1, INT32_MAX);
  return rkv_submit(&c, RKV_OP_set_tail, &a, sizeof a);
}
