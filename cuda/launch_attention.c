/* launch_attention.c: attention's ops, and those that only policies use, as launches. */
#include "cuda.h"

#define THREADS RKV_ATTEND_THREADS
#define WEIGHTS(pieces) (((pieces) + 7) / 8 * 32) /* bytes of a merge's weights, which are read in eights */

/* Floats of shared memory of a block of decode attention: queries, and the sums of its eight groups of lanes. */
static int32_t attend_shared(int32_t dim) {
  const int32_t heads = dim <= 128 ? 4 : dim <= 256 ? 2 : 1, width = dim <= 128 ? 128 : dim <= 256 ? 256 : 512;
  return heads * width * (1 + THREADS / 16) * 4;
}

void rkv_cuda_attend(rkv_cuda *c, rkv_arena_object *arena, const void *args) {
  rkv_attend_args a = *(const rkv_attend_args *)args;
  rkv_rows_data kv = *a.rows;
  rkv_layer_data layer = *a.layer;
  const int32_t room = rkv_blocks(kv.capacity, RKV_PIECE) + 2, most = a.index.data != NULL ? RKV_PIECES_OF_INDEX : RKV_PIECES, limit = room < most ? room : most;
  const int32_t is_per_head = a.index.data != NULL && a.index.shape[1] != layer.kv_heads;
  const int32_t dim = layer.head_dim, dtype = kv.keys.dtype, units = is_per_head ? layer.heads : layer.kv_heads;
  (void)arena;
  if ((dtype == RKV_BF16 || dtype == RKV_F16) && (dim == 64 || dim == 128) && layer.heads / layer.kv_heads <= 8 && units * kv.slots <= RKV_TICKETS) {
    const int32_t is_wide = !is_per_head && layer.heads / layer.kv_heads > 4;
    rkv_launch(c, (rkv_kernel_id)(RKV_KERNEL_decode_bf16_64 + 4 * is_wide + (dtype == RKV_F16) * 2 + (dim == 128)), (uint64_t)units, (uint32_t)kv.slots,
               (uint32_t)limit, 32 * RKV_DECODE_WARPS, RKV_DECODE_SHARED(dim), (void *[]){&a, &kv, &layer});
    if (!is_per_head) return; /* it merges by itself */
  } else LAUNCH(c, attend, limit, units, kv.slots, THREADS, attend_shared(layer.head_dim), &a, &kv, &layer);
  LAUNCH(c, attend_merge, layer.heads, kv.slots, 1, 256, WEIGHTS(limit), &a, &kv, &layer);
}

void rkv_cuda_attend_chunk(rkv_cuda *c, rkv_arena_object *arena, const void *args) {
  rkv_attend_chunk_args a = *(const rkv_attend_chunk_args *)args;
  rkv_rows_data kv = *a.rows;
  rkv_layer_data layer = *a.layer;
  const int32_t dim = layer.head_dim, dtype = kv.keys.dtype, is_half = dtype == RKV_BF16 || dtype == RKV_F16;
  if (is_half && (dim == 64 || dim == 128) && a.count >= RKV_FLASH_QUERIES / 2) {
    const int32_t which = (dtype == RKV_F16) * 2 + (dim == 128), is_hopper = c->capability == 90 && layer.soft_cap <= 0;
    const int32_t rows = is_hopper ? RKV_FLASH_QUERIES + RKV_FLASH_SM90A_TILES * RKV_FLASH_SM90A_KEYS : 4 * 64; /* in shared memory */
    rkv_launch(c, (rkv_kernel_id)((is_hopper ? RKV_KERNEL_flash_sm90a_bf16_64 : RKV_KERNEL_flash_bf16_64) + which), (uint64_t)layer.heads,
               (uint32_t)rkv_blocks(a.count, RKV_FLASH_QUERIES), 1, is_hopper ? 384 : 256, (uint32_t)(rows * dim * 2), (void *[]){&a, &kv, &layer});
    return;
  }
  const int32_t shared = ((RKV_CHUNK_QUERIES + RKV_CHUNK_KEYS) * (layer.head_dim + 1) + RKV_CHUNK_QUERIES * (RKV_CHUNK_KEYS + 1)) * 4;
  (void)arena;
  LAUNCH(c, attend_chunk, rkv_blocks(a.count, RKV_CHUNK_QUERIES), layer.heads, 1, RKV_CHUNK_QUERIES * 8, shared, &a, &kv, &layer);
}

void rkv_cuda_attend_estimates(rkv_cuda *c, rkv_arena_object *arena, const void *args) {
  rkv_attend_estimates_args a = *(const rkv_attend_estimates_args *)args;
  rkv_rows_data kv = *a.rows;
  rkv_layer_data layer = *a.layer;
  const int32_t pieces = rkv_blocks(a.centroids.shape[2], RKV_PIECE);
  (void)arena;
  LAUNCH(c, estimates, pieces, layer.heads, kv.slots, THREADS, 0, &a, &kv, &layer);
  LAUNCH(c, estimates_merge, layer.heads, kv.slots, 1, THREADS, WEIGHTS(pieces), &a, &kv, &layer);
}

void rkv_cuda_attention_mass(rkv_cuda *c, rkv_arena_object *arena, const void *args) {
  rkv_attention_mass_args a = *(const rkv_attention_mass_args *)args;
  rkv_rows_data kv = *a.rows;
  rkv_layer_data layer = *a.layer;
  (void)arena;
  LAUNCH(c, mass, rkv_blocks(kv.capacity, 64), a.mass.shape[1], a.slot == RKV_STEP ? kv.slots : 1, 64, 8 * layer.head_dim * 4, &a, &kv, &layer);
}

void rkv_cuda_mass_rates(rkv_cuda *c, rkv_arena_object *arena, const void *args) {
  rkv_mass_rates_args a = *(const rkv_mass_rates_args *)args;
  rkv_rows_data kv = *a.rows;
  (void)arena;
  LAUNCH(c, mass_rates, rkv_blocks(kv.capacity, 256), a.mass.shape[1], a.slot == RKV_STEP ? kv.slots : 1, 256, 0, &a, &kv);
}

/* ---- giving rows back ---- */

void rkv_cuda_pool_scores(rkv_cuda *c, rkv_arena_object *arena, const void *args) {
  rkv_pool_scores_args a = *(const rkv_pool_scores_args *)args;
  (void)arena;
  LAUNCH(c, pool_scores, rkv_blocks(a.end - a.begin, 256), a.pooled.shape[1], 1, 256, 0, &a);
}

void rkv_cuda_keep(rkv_cuda *c, rkv_arena_object *arena, const void *args) {
  rkv_keep_args a = *(const rkv_keep_args *)args;
  (void)arena;
  LAUNCH(c, keep, a.keep.shape[1], 1, 1, 1024, 0, &a);
}

typedef struct { char *rows; int64_t plane, stride, bytes; } moved_rows;

static void move_rows(rkv_cuda *c, char *rows, int64_t plane, int64_t bytes, int32_t heads, const int32_t *keep, int32_t k, int32_t keep_heads, const int32_t *row_end,
                      int32_t limit, int32_t count) {
  moved_rows m = {rows, plane * bytes, bytes, bytes};
  LAUNCH(c, move_rows, (bytes + 511) / 512, heads, 1, 1024, 0, &m, &keep, &k, &keep_heads, &row_end, &limit, &count);
}

void rkv_cuda_compact(rkv_cuda *c, rkv_arena_object *arena, const void *args) {
  const rkv_compact_args *a = args;
  const rkv_rows_data *kv = a->rows;
  const int32_t n = a->keep.shape[1], k = a->keep.shape[2], heads = kv->kv_heads, *keep = (const int32_t *)a->keep.data + (int64_t)a->slot * n * k;
  const int64_t plane = (int64_t)a->slot * heads * kv->capacity;
  int32_t *row_end = kv->row_end + a->slot, *tail_begin = kv->tail_begin + a->slot, count = a->count, capacity = kv->capacity;
  const rkv_view *tensors[] = {&kv->keys, &kv->values};
  (void)arena;
  for (int32_t t = 0; t < 2; t++) {
    const int64_t bytes = (int64_t)rkv_row_bytes(tensors[t]->dtype, kv->head_dim);
    move_rows(c, (char *)tensors[t]->data + plane * bytes, capacity, bytes, heads, keep, k, n, row_end, 0, count);
  }
  move_rows(c, (char *)(kv->position + plane), capacity, 4, heads, keep, k, n, row_end, 0, count);
  if (a->also.data != NULL) {
    float *also = (float *)a->also.data + plane;
    move_rows(c, (char *)also, capacity, 4, heads, keep, k, n, row_end, 0, count);
    LAUNCH(c, clear_moved, rkv_blocks(capacity, 256), heads, 1, 256, 0, &also, &capacity, &row_end, &count);
  }
  LAUNCH(c, cut_rows, 1, 1, 1, 1, 0, &row_end, &tail_begin, &count);
}

void rkv_cuda_pick_rows(rkv_cuda *c, rkv_arena_object *arena, const void *args) {
  const rkv_pick_rows_args *a = args;
  const int64_t bytes = (int64_t)rkv_row_bytes(a->tensor.dtype, a->tensor.rank == 1 ? 1 : a->tensor.shape[1]);
  const int32_t *keep = (const int32_t *)a->keep.data + (int64_t)a->slot * a->keep.shape[1] * a->keep.shape[2];
  (void)arena;
  move_rows(c, a->tensor.data, 0, bytes, 1, keep, a->keep.shape[2], 1, NULL, a->tensor.shape[0], a->count);
}

void rkv_cuda_evict(rkv_cuda *c, rkv_arena_object *arena, const void *args) {
  rkv_evict_args a = *(const rkv_evict_args *)args;
  rkv_rows_data kv = *a.rows;
  (void)arena;
  LAUNCH(c, evict, kv.kv_heads, kv.slots, 1, 256, 0, &a, &kv);
  LAUNCH(c, evicted, 1, 1, 1, 64, 0, &a, &kv);
}

/* ---- keys in fewer channels ---- */

void rkv_cuda_project_rows(rkv_cuda *c, rkv_arena_object *arena, const void *args) {
  rkv_project_rows_args a = *(const rkv_project_rows_args *)args;
  rkv_rows_data kv = *a.rows;
  const int32_t units = a.latents.shape[1];
  (void)arena;
  LAUNCH(c, project_rows, a.slot == RKV_STEP ? kv.slots : a.count, units, 1, 128, (kv.kv_heads / units * kv.head_dim + a.latents.shape[3]) * 4, &a, &kv);
}

void rkv_cuda_latent_scores(rkv_cuda *c, rkv_arena_object *arena, const void *args) {
  rkv_latent_scores_args a = *(const rkv_latent_scores_args *)args;
  rkv_rows_data kv = *a.rows;
  (void)arena;
  LAUNCH(c, latent_scores, a.scores.shape[1], kv.slots, 1, 1024, (a.q.shape[2] + a.basis.shape[3]) * 4, &a, &kv);
}

void rkv_cuda_trim_index(rkv_cuda *c, rkv_arena_object *arena, const void *args) {
  rkv_trim_index_args a = *(const rkv_trim_index_args *)args;
  (void)arena;
  LAUNCH(c, trim_index, a.index.shape[0], 1, 1, 1024, 0, &a);
}

void rkv_cuda_reconstruct(rkv_cuda *c, rkv_arena_object *arena, const void *args) {
  rkv_reconstruct_args a = *(const rkv_reconstruct_args *)args;
  rkv_rows_data kv = *a.rows;
  const int32_t units = a.index.shape[1];
  (void)arena;
  LAUNCH(c, reconstruct, a.index.shape[2], units, kv.slots, 128, (a.latents.shape[3] + kv.kv_heads / units * kv.head_dim) * 4, &a, &kv);
}

void rkv_cuda_channel_mass(rkv_cuda *c, rkv_arena_object *arena, const void *args) {
  rkv_channel_mass_args a = *(const rkv_channel_mass_args *)args;
  (void)arena;
  LAUNCH(c, channel_mass, rkv_blocks(a.mass.shape[2], 32), a.mass.shape[1], 1, 32, 0, &a);
}

void rkv_cuda_pick_channels(rkv_cuda *c, rkv_arena_object *arena, const void *args) {
  rkv_pick_channels_args a = *(const rkv_pick_channels_args *)args;
  (void)arena;
  LAUNCH(c, pick_channels, a.to.shape[2], a.to.shape[1], 1, 128, 0, &a);
}
