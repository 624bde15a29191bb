/* kernels.h: between the launches (C) and the kernels (CUDA C++): which kernels there are, and what they take beside the ops' own structs. */
#ifndef RKV_KERNELS_H
#define RKV_KERNELS_H
#include <stdint.h>

/* Modules: cuda/<name>.cu, one fatbin each. Those named _sm90a are for compute capability 9.0 alone. */
#define RKV_MODULE_NAMES(X) X(linear) X(step) X(tensor) X(decoder) X(attention) X(decode) X(chunk) X(flash) X(flash_sm90a) X(assign) X(cluster) X(scores) X(recall) X(select) X(keep) X(latent) X(sample)

/* X(module, name): kernel_<name>. */
#define RKV_KERNELS(X) \
  X(linear, pack_vector) X(linear, few_f32) X(linear, few_f16) X(linear, few_bf16) X(linear, few_quant) \
  X(linear, many_f32) X(linear, many_f16) X(linear, many_bf16) X(linear, many_quant) X(linear, unpack) \
  X(step, step_bf16) X(step, step_gated_bf16) X(step, step_f16) X(step, step_gated_f16) \
  X(step, wide_bf16) X(step, wide_gated_bf16) X(step, wide_f16) X(step, wide_gated_f16) \
  X(tensor, tensor_bf16) X(tensor, tensor_f16) X(tensor, norm_halves) X(tensor, to_halves) X(tensor, swiglu_halves) \
  X(decoder, rotations) X(decoder, embed) X(decoder, norm) X(decoder, finish) X(decoder, move_row_end) X(decoder, advance) \
  X(attention, attend) X(attention, attend_merge) X(attention, estimates) X(attention, estimates_merge) X(attention, mass) X(attention, mass_rates) \
  X(decode, decode_bf16_64) X(decode, decode_bf16_128) X(decode, decode_f16_64) X(decode, decode_f16_128) \
  X(decode, decode_wide_bf16_64) X(decode, decode_wide_bf16_128) X(decode, decode_wide_f16_64) X(decode, decode_wide_f16_128) \
  X(chunk, attend_chunk) X(flash, flash_bf16_64) X(flash, flash_bf16_128) X(flash, flash_f16_64) X(flash, flash_f16_128) \
  X(flash_sm90a, flash_sm90a_bf16_64) X(flash_sm90a, flash_sm90a_bf16_128) X(flash_sm90a, flash_sm90a_f16_64) X(flash_sm90a, flash_sm90a_f16_128) \
  X(assign, centroid_lengths) X(assign, assign) X(assign, assign_64) X(assign, assign_128) X(assign, moved) X(cluster, seed_centroids) X(cluster, group) X(cluster, group_count) X(cluster, group_scan) \
  X(cluster, group_place) X(cluster, centroid_means) X(cluster, radius) X(cluster, permute) X(cluster, permute_back) \
  X(scores, centroid_scores) X(scores, choose) X(scores, page_bounds) X(scores, page_scores) \
  X(recall, recall_bf16_64) X(recall, recall_bf16_128) X(recall, recall_f16_64) X(recall, recall_f16_128) \
  X(recall, recall_wide_bf16_64) X(recall, recall_wide_bf16_128) X(recall, recall_wide_f16_64) X(recall, recall_wide_f16_128) \
  X(select, topk) X(select, fill_budget) X(select, fill_whole) \
  X(select, gather_rows) X(select, set_tail) \
  X(keep, pool_scores) X(keep, keep) X(keep, move_rows) X(keep, clear_moved) X(keep, cut_rows) X(keep, evict) X(keep, evicted) \
  X(latent, project_rows) X(latent, latent_scores) X(latent, trim_index) X(latent, reconstruct) X(latent, channel_mass) X(latent, pick_channels) \
  X(sample, greedy) X(sample, tally) X(sample, penalize) X(sample, sample) X(sample, likeliest)

typedef enum {
#define X(module, name) RKV_KERNEL_##name,
  RKV_KERNELS(X)
#undef X
  RKV_KERNEL_COUNT
} rkv_kernel_id;

typedef enum {
#define X(name) RKV_MODULE_##name,
  RKV_MODULE_NAMES(X)
#undef X
  RKV_MODULES
} rkv_module_id;

extern const unsigned char *const rkv_fatbins[RKV_MODULES]; /* NULL: built without nvcc */

/* What a product does with its sums. */
#define RKV_STORE 0
#define RKV_ADD 1    /* y += sum (+ bias) */
#define RKV_SWIGLU 2 /* y = silu(sum) * sum of `gated` */

/* y[count, rows] = x[count, cols] w[rows, cols]^T; rows of x that are not active are skipped. */
typedef struct {
  const void *w, *gated;
  int64_t stride, gated_stride; /* bytes of a row */
  int32_t type, gated_type, rows, cols;
  const float *x;
  float *y;
  int64_t x_stride, y_stride;
  const float *bias;
  const int32_t *active; /* [count]; NULL: all */
  int32_t count, mode;
} rkv_product;

/* Up to three products of the same rows of x, of weights of one type. */
typedef struct { rkv_product of[3]; int32_t products; } rkv_products;

/* The same on tensor cores, x and w as halves. cols is a multiple of 64, strides are bytes; with RKV_SWIGLU y is halves, with as much room behind
 * them, else f32. */
typedef struct {
  const void *w, *gated, *x;
  void *y;
  const float *bias;
  int64_t stride, gated_stride, x_stride, y_stride;
  int32_t rows, cols, count, mode;
} rkv_tensor_product;

/* What becomes heads: q[rows, heads, headDim] in place, k and v[rows, kvHeads, headDim]; biases and norms NULL where a model has none. */
typedef struct {
  float *q;
  const float *k, *v, *q_bias, *k_bias, *v_bias, *q_norm, *k_norm;
  const float *rotations;  /* [rows, ropeDim] */
  const int32_t *position; /* [rows] */
} rkv_heads;

#define RKV_SWIGLU_PART 0.0625f /* cuBLASLt leaves gate and up as halves: so much of them, or large ones would not fit f16 */
#define RKV_TENSOR_SHARED (3 * 2 * 128 * 64 * 2) /* bytes of a block's tiles */
#define RKV_FLASH_QUERIES 128
#define RKV_FLASH_SM90A_KEYS 128 /* rows of a tile */
#define RKV_FLASH_SM90A_TILES 4

/* Rows of x that one pass over the weights serves. */
#define RKV_FEW 8
#define RKV_FEW_WARPS 4   /* output rows of a block of `few` */
/* Steps on tensor cores: shares of the columns, of which each is a warp's; stages of its ring; slices of x under way; tiles of a pass over the
 * columns with eight slots (and where there is less shared memory, before Hopper), and with 32, where half as many warps have two shares each. */
#define RKV_STEP_WARPS 16
#define RKV_STEP_STAGES 3
#define RKV_STEP_DEPTH 2
#define RKV_STEP_TILES 7
#define RKV_STEP_DEPTH_BEFORE 1
#define RKV_STEP_TILES_BEFORE 4
#define RKV_WIDE 32
#define RKV_WIDE_STAGES 6
#define RKV_WIDE_TILES 4
#define RKV_STEP_SHARED(depth, tiles) (RKV_STEP_WARPS * (RKV_STEP_STAGES * 2048 + (depth) * RKV_FEW * 256 + (tiles) * 16 * RKV_FEW * 4)) /* 216 KiB, 160 KiB */
#define RKV_WIDE_SHARED (RKV_STEP_WARPS / 2 * (RKV_WIDE_STAGES * 2048 + RKV_WIDE * 256 + RKV_WIDE_TILES * 16 * RKV_WIDE * 4)) /* 224 KiB */

#define RKV_MANY 64       /* rows and columns of a block of `many` */

#define RKV_PIECES 32     /* of a unit of decode attention, at most: eight KV heads then fill every multiprocessor twice, more slots make more */
#define RKV_PIECES_OF_INDEX 12 /* where an index says which rows: fewer, and fewer blocks that find nothing to do */
#define RKV_DECODE_WARPS 4 /* of a block of decode attention; three blocks on a multiprocessor */
#define RKV_DECODE_STAGES 2
#define RKV_DECODE_SHARED(dim) (RKV_DECODE_WARPS * RKV_DECODE_STAGES * 64 * (dim)) /* 64 KiB for 128 channels */
#define RKV_RECALL_TEAMS(sets) ((sets) == 1 ? 3 : 2) /* of a block that chooses rows and attends them: each has as many warps, and a ring as large */
#define RKV_RECALL_FIXED (20 << 10) /* bytes of shared memory that such a block has beside its rings, at most */
#define RKV_TICKETS 8192  /* units of all slots */
#define RKV_ATTEND_THREADS 128
#define RKV_CHUNK_QUERIES 16
#define RKV_CHUNK_KEYS 32
#define RKV_ASSIGN_KEYS 64
#define RKV_ASSIGN_TILE RKV_PIECE /* keys of a block on tensor cores: work has a word for each */
#define RKV_MEANS 256     /* threads of a block of means */
#define RKV_BUCKET_BITS 9
#define RKV_BUCKETS (1 << RKV_BUCKET_BITS) /* of ranks, when a step's clusters are ordered */
#define RKV_SORTED 4096   /* ids that a block of topk sorts at a time */

#endif
