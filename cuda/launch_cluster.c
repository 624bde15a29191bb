/* launch_cluster.c: clustering and selection as launches. */
#include "cuda.h"

#define LOGITS (64 << 10) /* bytes of shared memory for a group's logits: 4,096 clusters of four heads */
#define COUNTS (160 << 10) /* bytes of shared memory for the counts of 32 warps: 1,280 clusters */
#define WARPS 8 /* of a block of which each warp works alone */

void rkv_cuda_seed_centroids(rkv_cuda *c, rkv_arena_object *arena, const void *args) {
  rkv_seed_centroids_args a = *(const rkv_seed_centroids_args *)args;
  (void)arena;
  LAUNCH(c, seed_centroids, a.run.clusters, a.keys.shape[1], 1, 128, 0, &a);
}

void rkv_cuda_assign(rkv_cuda *c, rkv_arena_object *arena, const void *args) {
  rkv_assign_args a = *(const rkv_assign_args *)args;
  const int32_t heads = a.keys.shape[1];
  (void)arena;
  if (a.keys.dtype == RKV_BF16 && (a.keys.shape[3] == 64 || a.keys.shape[3] == 128) && heads <= RKV_TICKETS) {
    rkv_launch(c, a.keys.shape[3] == 64 ? RKV_KERNEL_assign_64 : RKV_KERNEL_assign_128, (uint64_t)rkv_blocks(a.run.rows, RKV_ASSIGN_TILE), (uint32_t)heads, 1, 256, 0, (void *[]){&a});
    return;
  }
  int32_t before = heads * a.run.clusters;
  LAUNCH(c, centroid_lengths, rkv_blocks(a.run.clusters, WARPS), heads, 1, 32 * WARPS, 0, &a);
  LAUNCH(c, assign, rkv_blocks(a.run.rows, RKV_ASSIGN_KEYS), heads, 1, 256, 0, &a);
  LAUNCH(c, moved, 1, 1, 1, 256, 0, &a, &before);
}

void rkv_cuda_group(rkv_cuda *c, rkv_arena_object *arena, const void *args) {
  rkv_group_args a = *(const rkv_group_args *)args;
  const int32_t heads = a.labels.shape[1], blocks = rkv_blocks(a.run.clusters, WARPS);
  (void)arena;
  if (a.run.clusters * 32 * 4 <= COUNTS && a.run.clusters * 32 * 4 <= c->shared - 1024) {
    LAUNCH(c, group, heads, 1, 1, 1024, a.run.clusters * 32 * 4, &a);
    return;
  }
  LAUNCH(c, group_count, blocks, heads, 1, 32 * WARPS, 0, &a);
  LAUNCH(c, group_scan, heads, 1, 1, 1024, 0, &a);
  LAUNCH(c, group_place, blocks, heads, 1, 32 * WARPS, 0, &a);
}

void rkv_cuda_centroid_means(rkv_cuda *c, rkv_arena_object *arena, const void *args) {
  rkv_centroid_means_args a = *(const rkv_centroid_means_args *)args;
  (void)arena;
  LAUNCH(c, centroid_means, a.run.clusters, a.keys.shape[1], 1, RKV_MEANS, 0, &a);
}

void rkv_cuda_radius(rkv_cuda *c, rkv_arena_object *arena, const void *args) {
  rkv_radius_args a = *(const rkv_radius_args *)args;
  (void)arena;
  LAUNCH(c, radius, a.run.clusters, a.keys.shape[1], 1, 128, 0, &a);
}

void rkv_cuda_permute_rows(rkv_cuda *c, rkv_arena_object *arena, const void *args) {
  rkv_permute_rows_args a = *(const rkv_permute_rows_args *)args;
  const int32_t blocks = rkv_blocks(a.run.rows, WARPS), heads = a.tensor.shape[1];
  (void)arena;
  LAUNCH(c, permute, blocks, heads, 1, 32 * WARPS, 0, &a);
  LAUNCH(c, permute_back, blocks, heads, 1, 32 * WARPS, 0, &a);
}

rkv_score_shape rkv_shape_of_scores(const rkv_cuda *c, const rkv_centroid_scores_args *a) {
  const int32_t queries = a->q.shape[1] / a->scores.shape[1], dim = a->q.shape[2], clusters = a->scores.shape[2];
  const int32_t ranks = c->capability < 90 || clusters <= 128 ? 1 : clusters <= 1024 ? 2 : clusters <= 2048 ? 4 : 8;
  const int64_t wanted = (int64_t)queries * (rkv_blocks(clusters, ranks) + 2);
  const bool fits = wanted * 4 <= LOGITS && dim % 4 == 0 && dim <= 512 && queries <= 64;
  return fits ? (rkv_score_shape){ranks, (int32_t)wanted} : (rkv_score_shape){1, 0};
}

void rkv_cuda_centroid_scores(rkv_cuda *c, rkv_arena_object *arena, const void *args) {
  rkv_centroid_scores_args a = *(const rkv_centroid_scores_args *)args;
  rkv_score_shape s = rkv_shape_of_scores(c, &a);
  (void)arena;
  rkv_launch_clusters(c, RKV_KERNEL_centroid_scores, (uint32_t)a.scores.shape[1], (uint32_t)a.scores.shape[0], (uint32_t)s.ranks, 512, (uint32_t)s.room * 4, (void *[]){&a, &s.room});
}

void rkv_cuda_topk(rkv_cuda *c, rkv_arena_object *arena, const void *args) {
  rkv_topk_args a = *(const rkv_topk_args *)args;
  const int32_t width = a.scores.shape[2], is_few = width <= RKV_SORTED;
  int32_t parts = is_few ? rkv_blocks(width, 64) : 1;
  (void)arena;
  LAUNCH(c, topk, a.order.shape[1] * parts, a.order.shape[0], 1, is_few ? 256 : 1024, is_few ? (width + 3) / 4 * 16 : RKV_SORTED * 8, &a, &parts);
}

void rkv_cuda_fill_budget(rkv_cuda *c, rkv_arena_object *arena, const void *args) {
  rkv_fill_budget_args a = *(const rkv_fill_budget_args *)args;
  (void)arena;
  LAUNCH(c, fill_budget, a.index.shape[1], a.index.shape[0], 1, 256, 0, &a);
}

void rkv_cuda_fill_whole(rkv_cuda *c, rkv_arena_object *arena, const void *args) {
  rkv_fill_whole_args a = *(const rkv_fill_whole_args *)args;
  (void)arena;
  LAUNCH(c, fill_whole, a.index.shape[1], a.index.shape[0], 1, 256, 0, &a);
}

void rkv_cuda_page_bounds(rkv_cuda *c, rkv_arena_object *arena, const void *args) {
  rkv_page_bounds_args a = *(const rkv_page_bounds_args *)args;
  rkv_rows_data kv = *a.rows;
  (void)arena;
  LAUNCH(c, page_bounds, rkv_blocks(a.begin + a.count, a.page) - a.begin / a.page, kv.kv_heads, 1, 128, 0, &a, &kv);
}

void rkv_cuda_page_scores(rkv_cuda *c, rkv_arena_object *arena, const void *args) {
  rkv_page_scores_args a = *(const rkv_page_scores_args *)args;
  rkv_rows_data kv = *a.rows;
  (void)arena;
  LAUNCH(c, page_scores, a.scores.shape[1], a.scores.shape[0], 1, 1024, 0, &a, &kv);
}

void rkv_cuda_gather_rows(rkv_cuda *c, rkv_arena_object *arena, const void *args) {
  rkv_gather_rows_args a = *(const rkv_gather_rows_args *)args;
  (void)arena;
  LAUNCH(c, gather_rows, rkv_blocks(a.to.shape[2], WARPS), a.to.shape[1], a.to.shape[0], 32 * WARPS, 0, &a);
}

void rkv_cuda_set_tail(rkv_cuda *c, rkv_arena_object *arena, const void *args) {
  const rkv_set_tail_args *a = args;
  rkv_rows_data kv = *a->rows;
  int32_t sink = a->sink, width = a->width;
  (void)arena;
  LAUNCH(c, set_tail, 1, 1, 1, 64, 0, &kv, &sink, &width);
}
