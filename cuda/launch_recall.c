/* launch_recall.c: ops of a recorded step that one launch does as well. */
#include "linear.h"

#define CHOICE (128 << 10) /* bytes of shared memory for a choice: 4,096 clusters of four heads */
#define CHOICE_FIXED (8 << 10) /* bytes of it that kernel_choose has beside, at most */

/* Whether three ops choose rows of KV heads together, and the bytes of shared memory that it takes; 0: they do not. */
static uint32_t bytes_of_choice(const rkv_cuda *c, rkv_score_shape s, const rkv_centroid_scores_args *a, const rkv_topk_args *t, const rkv_fill_budget_args *f) {
  const int32_t n = a->scores.shape[1], clusters = a->scores.shape[2];
  const uint32_t padded = (uint32_t)((clusters + 3) / 4 * 4), bytes = ((3 + (uint32_t)(a->q.shape[1] / n)) * padded + 4 + RKV_BUCKETS) * 4;
  if (s.room == 0 || clusters > RKV_SORTED || n != a->centroids.shape[1] || a->q.shape[2] > 128 || bytes > CHOICE || bytes + CHOICE_FIXED > (uint32_t)c->shared) return 0;
  if (t->scores.data != a->scores.data || f->order.data != t->order.data || f->offsets.data != a->offsets.data || f->index.shape[1] != n) return 0;
  return t->active.data == a->active.data && f->active.data == a->active.data ? bytes : 0;
}

bool rkv_cuda_choose(rkv_cuda *c, const void *scores, const void *topk, const void *fill) {
  rkv_centroid_scores_args a = *(const rkv_centroid_scores_args *)scores;
  rkv_topk_args t = *(const rkv_topk_args *)topk;
  rkv_fill_budget_args f = *(const rkv_fill_budget_args *)fill;
  const rkv_score_shape s = rkv_shape_of_scores(c, &a);
  const uint32_t bytes = bytes_of_choice(c, s, &a, &t, &f);
  if (bytes == 0) return false;
  rkv_launch_clusters(c, RKV_KERNEL_choose, (uint32_t)a.scores.shape[1], (uint32_t)a.scores.shape[0], (uint32_t)s.ranks, 512, bytes, (void *[]){&a, &t, &f});
  return true;
}

bool rkv_cuda_recall(rkv_cuda *c, rkv_arena_object *arena, const void *in, const void *scores, const void *topk, const void *fill, const void *attend) {
  const rkv_attn_in_args *from = in;
  rkv_centroid_scores_args a = *(const rkv_centroid_scores_args *)scores;
  rkv_topk_args t = *(const rkv_topk_args *)topk;
  rkv_fill_budget_args f = *(const rkv_fill_budget_args *)fill;
  rkv_attend_args to = *(const rkv_attend_args *)attend;
  rkv_rows_data kv = *to.rows;
  rkv_layer_data layer = *to.layer;
  const int32_t dim = layer.head_dim, dtype = kv.keys.dtype, group = layer.heads / layer.kv_heads, is_wide = group > 4, units = layer.kv_heads * kv.slots;
  const rkv_score_shape s = rkv_shape_of_scores(c, &a);
  const uint32_t bytes = bytes_of_choice(c, s, &a, &t, &f), teams = RKV_RECALL_TEAMS(is_wide ? 2 : 1), rings = teams * RKV_DECODE_SHARED((uint32_t)dim);
  const uint32_t index = (uint32_t)f.index.shape[2] * 4, turn = teams * RKV_DECODE_WARPS * 16 * (uint32_t)dim; /* four centroids for each warp */
  if (c->capability < 90 || bytes == 0 || bytes + turn > rings || (uint64_t)rings + index + RKV_RECALL_FIXED > (uint64_t)c->shared) return false;
  if ((dtype != RKV_BF16 && dtype != RKV_F16) || kv.values.dtype != dtype || (dim != 64 && dim != 128) || group > 8 || kv.slots > RKV_TICKETS) return false;
  if (from->slot != RKV_STEP || from->rows != to.rows || from->layer != to.layer || a.active.data != kv.active) return false;
  if (from->q.data != a.q.data || to.q.data != a.q.data || to.index.data != f.index.data) return false;
  rkv_heads x = rkv_attn_products(c, from);
  /* As many blocks as find a place at once, each with as many of the pieces as the others. */
  const int32_t places = c->processors / units, ranks = places >= 6 ? 6 : places >= 3 ? 3 : places >= 2 ? 2 : 1;
  int32_t slices = s.ranks, room = (int32_t)bytes / 4, *fault = rkv_fault_of(arena);
  rkv_launch_clusters(c, (rkv_kernel_id)(RKV_KERNEL_recall_bf16_64 + 4 * is_wide + (dtype == RKV_F16) * 2 + (dim == 128)), (uint32_t)layer.kv_heads, (uint32_t)kv.slots,
                      (uint32_t)ranks, 32 * RKV_DECODE_WARPS * teams, rings + index, (void *[]){&x, &kv, &layer, &a, &t, &f, &to, &slices, &room, &fault});
  return true;
}
