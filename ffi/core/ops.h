/* ops.h: what an op looks like after its handles were checked: plain pointers and shapes, the same for every device. A checked op is
 * copied into the queue (or onto a tape) as one of these structs; a device's kernel reads it and nothing else. */
#ifndef RKV_OPS_H
#define RKV_OPS_H
#include <stddef.h>
#include <stdint.h>
#include "../recallkv.h"

/* A tensor as a kernel sees it. data == NULL: the optional tensor was not given. Planes follow one another without gaps. */
typedef struct rkv_view {
  void *data;
  int32_t dtype, rank;
  int32_t shape[5];
} rkv_view;

/* A packed weight; rows == 1: an f32 vector [cols]. The layout belongs to the device (ffi/cpu/linear.h says the CPU's). */
typedef struct rkv_weight_data {
  void *packed;
  size_t bytes;
  int32_t type, rows, cols;
} rkv_weight_data;

typedef struct rkv_layer_data {
  const rkv_weight_data *attn_norm, *q, *k, *v, *o, *q_bias, *k_bias, *v_bias, *o_bias, *q_norm, *k_norm, *ffn_norm, *gate, *up, *down;
  int32_t heads, kv_heads, head_dim, window, rope_dim, hidden, intermediate;
  float eps, scale, soft_cap;
} rkv_layer_data;

typedef struct rkv_model_data {
  const rkv_weight_data *embed, *output_norm, *output; /* output == embed when tied */
  int32_t hidden, vocab;
  float eps;
} rkv_model_data;

typedef struct rkv_rows_data {
  rkv_view keys, values;          /* [slots, kvHeads, capacity, headDim] */
  int32_t *position;              /* [slots, kvHeads, capacity] */
  int32_t *row_end, *tail_begin;  /* [slots], of this layer */
  const int32_t *active;          /* [slots] */
  int64_t *attended;              /* [slots, 4] of this layer: rows read from sink, index, tail, estimates */
  int32_t slots, kv_heads, capacity, head_dim;
} rkv_rows_data;

typedef struct rkv_run { int32_t slot, begin, rows, cluster, clusters; } rkv_run;

/* One struct per op, fields in the order of the prototype. */
typedef struct { rkv_weight_data *weight; const void *source; int32_t rotated; } rkv_pack_args;
typedef struct { rkv_view rotations, position, frequencies; float factor; int32_t count; } rkv_rotations_args;
typedef struct { rkv_view x; const rkv_model_data *model; rkv_view token, active; int32_t count; } rkv_embed_args;
typedef struct { rkv_view q; const rkv_rows_data *rows; rkv_view x; const rkv_layer_data *layer; rkv_view rotations, position, work; int32_t slot, count; } rkv_attn_in_args;
typedef struct { rkv_view q, x; const rkv_layer_data *layer; rkv_view active, rotations, work; int32_t count; } rkv_queries_args;
typedef struct { rkv_view x, attended; const rkv_layer_data *layer; rkv_view active, work; int32_t count; } rkv_attn_out_args;
typedef struct { rkv_view logits, x; const rkv_model_data *model; rkv_view active, work; int32_t first, count; } rkv_head_args;
typedef struct { rkv_view token, logprob, logits, active; int32_t first, count; } rkv_greedy_args;
typedef struct { rkv_view position, active; } rkv_advance_args;
typedef struct { rkv_view counts, token, active; } rkv_tally_args;
typedef struct { rkv_view adjusted, logits, counts, bias, active, options; int32_t first, count; } rkv_penalize_args;
typedef struct { rkv_view token, logprob, logits, adjusted, active, position, options; int32_t first, count; } rkv_sample_args;
typedef struct { rkv_view tokens, logprobs, logits, active, options; int32_t first, count; } rkv_likeliest_args;
typedef struct { rkv_view to, from; int32_t to_row, from_row, count; } rkv_copy_args;
typedef struct { rkv_view attended, lse, q; const rkv_rows_data *rows; const rkv_layer_data *layer; int32_t slot, count; } rkv_attend_chunk_args;
typedef struct { rkv_view attended, lse, q; const rkv_rows_data *rows; const rkv_layer_data *layer; rkv_view index, work; int32_t sink; } rkv_attend_args;
typedef struct { rkv_view centroids, labels, moved, keys; rkv_run run; } rkv_seed_centroids_args;
typedef struct { rkv_view labels, moved, keys, centroids, work; rkv_run run; } rkv_assign_args;
typedef struct { rkv_view order, offsets, labels, moved; rkv_run run; } rkv_group_args;
typedef struct { rkv_view centroids, keys, order, offsets, moved; rkv_run run; } rkv_centroid_means_args;
typedef struct { rkv_view tensor, order, work; rkv_run run; } rkv_permute_rows_args;
typedef struct { rkv_view scores, q, centroids, radius, offsets, count, active; float scale, bound; } rkv_centroid_scores_args;
typedef struct { rkv_view order, scores, active; } rkv_topk_args;
typedef struct { rkv_view index, order, offsets, active; } rkv_fill_budget_args;
typedef struct { rkv_view to, from, index; } rkv_gather_rows_args;
typedef struct { const rkv_rows_data *rows; int32_t sink, width; } rkv_set_tail_args;
typedef struct { rkv_view radius, keys, centroids, order, offsets; rkv_run run; } rkv_radius_args;
typedef struct { rkv_view index, bias, order, offsets, count, active; } rkv_fill_whole_args;
typedef struct { rkv_view attended, lse, q; const rkv_rows_data *rows; const rkv_layer_data *layer; rkv_view centroids, means, bias, work; } rkv_attend_estimates_args;
typedef struct { rkv_view bounds; const rkv_rows_data *rows; int32_t page, slot, begin, count; } rkv_page_bounds_args;
typedef struct { rkv_view scores, q, bounds; const rkv_rows_data *rows; float scale; int32_t page, sink; } rkv_page_scores_args;
typedef struct { rkv_view mass, q, lse, weights; const rkv_rows_data *rows; const rkv_layer_data *layer; int32_t slot, count, first; } rkv_attention_mass_args;
typedef struct { rkv_view rates, mass; const rkv_rows_data *rows; int32_t slot; } rkv_mass_rates_args;
typedef struct { rkv_view pooled, scores; int32_t slot, begin, end, kernel, mode; } rkv_pool_scores_args;
typedef struct { rkv_view keep, scores; int32_t slot, begin, end, count, row_end; } rkv_keep_args;
typedef struct { const rkv_rows_data *rows; rkv_view also, keep; int32_t slot, count; } rkv_compact_args;
typedef struct { rkv_view tensor, keep; int32_t slot, count; } rkv_pick_rows_args;
typedef struct { const rkv_rows_data *rows; rkv_view mass, scores; int32_t sink, recent, budget; } rkv_evict_args;
typedef struct { rkv_view latents; const rkv_rows_data *rows; rkv_view rotations, basis; int32_t slot, count; } rkv_project_rows_args;
typedef struct { rkv_view scores, q, latents, basis, rotations; const rkv_rows_data *rows; float scale; int32_t sink; } rkv_latent_scores_args;
typedef struct { rkv_view index, scores, active; float alpha; } rkv_trim_index_args;
typedef struct { rkv_view keys, latents, basis, index, rotations; const rkv_rows_data *rows; } rkv_reconstruct_args;
typedef struct { rkv_view mass, q, basis; int32_t slot, count; } rkv_channel_mass_args;
typedef struct { rkv_view to, basis, order; int32_t slot; } rkv_pick_channels_args;

/* The op table: every op once. X(name): rkv_<name>_args above, kernel rkv_kernel_<name>. The tests count it. */
#define RKV_OPS(X) \
  X(pack) X(rotations) X(embed) X(attn_in) X(attn_out) X(head) X(greedy) X(advance) X(copy) X(attend_chunk) X(attend) \
  X(seed_centroids) X(assign) X(group) X(centroid_means) X(permute_rows) X(centroid_scores) X(topk) X(fill_budget) X(gather_rows) X(set_tail) \
  X(attend_estimates) X(radius) X(fill_whole) X(page_bounds) X(page_scores) X(attention_mass) X(mass_rates) X(pool_scores) X(keep) X(compact) \
  X(pick_rows) X(evict) X(project_rows) X(latent_scores) X(trim_index) X(reconstruct) X(channel_mass) X(pick_channels) \
  X(queries) X(tally) X(penalize) X(sample) X(likeliest)

typedef enum {
#define X(name) RKV_OP_##name,
  RKV_OPS(X)
#undef X
  RKV_OP_COUNT
} rkv_op_id;

#ifndef __cplusplus /* kernels read this as C++ */
_Static_assert(RKV_OP_COUNT < 64, "rkv_times promises at most 64");
#endif

/* Scratch memory of each worker, 64-byte aligned: for what is private to a piece. */
#define RKV_SCRATCH (1 << 20)

/* A CPU kernel. An op runs in stages 0, 1, ...; `pieces` is called by one thread before each stage, when the stage before it has ended,
 * and returns how many pieces the stage has (0 with a later stage to come is not allowed: give 1), or RKV_DONE when the op has ended, or
 * a negative code, which poisons the arena with `fault`. Small serial work (moving rowEnd on) may be done in `pieces`. `run` is called
 * once for every piece by any worker, in any order: results may not depend on who, or on how many workers there are. */
#define RKV_DONE 0
/* Bytes [from, to) from `begin` on were written, as those before them were: what fills large pages is moved into such, where the system can.
 * Decoding reads clusters from all over a plane, and with small pages a fifth of that time is looking up addresses. */
void rkv_os_settle(void *begin, size_t from, size_t to);
typedef struct rkv_kernel {
  int32_t (*pieces)(const void *args, int32_t stage);
  void (*run)(const void *args, int32_t stage, int32_t piece, void *scratch);
  const char *fault;   /* why `pieces` may fail, as a sentence's end; NULL = it cannot */
  int32_t whole;       /* 1: a cancel waits for this op's end */
} rkv_kernel;

typedef struct rkv_cpu {
  const char *name;
  size_t (*packed_bytes)(int32_t type, int32_t rows, int32_t cols); /* memory of a packed weight; 0 = type or shape not supported */
  rkv_kernel kernels[RKV_OP_COUNT];
} rkv_cpu;

/* Bytes of one row of `width` elements (RKV_Q8: width bytes and a scale). */
static inline size_t rkv_row_bytes(int32_t dtype, int32_t width) {
  switch (dtype) {
    case RKV_F16: case RKV_BF16: return (size_t)width * 2;
    case RKV_Q8: return (size_t)width + 4;
    default: return (size_t)width * 4;
  }
}
#endif
