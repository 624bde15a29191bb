/* attention_chunk.c: prefill attention. Queries of one KV head's group go through the rows tile by tile with an online softmax; no buffer
 * grows with the length. Source: FlashAttention (arXiv 2205.14135).
 *
 * A query's bits must not depend on the chunk it came in, so tiles begin at absolute multiples of TILE rows, a query's sums run over
 * the whole tile in row order, and rows it may not see enter with probability 0. (0 times a NaN would be one: values of a tile that some
 * query may not see are checked, and if one is not finite, every query goes through its own rows alone.) */
#include "attention.h"

#define TILE RKV_DEPTH        /* rows of a tile, so that probabilities have the stride of a product's operand */
#define BLOCK 96              /* (query, head) pairs of a piece: eight register tiles of 12; they share every K and V load */

typedef struct {
  const rkv_attend_chunk_args *op;
  int32_t kv_head, group, dim, first, rows; /* pairs [first, first + rows): query pair / group, head pair % group of the group */
  int64_t base;                             /* the row of query 0 */
  const int32_t *position;                  /* of the KV head's rows */
  float *q;                                 /* [ceil(dim / DEPTH)][BLOCK][DEPTH] */
  float *s;                                 /* [BLOCK][TILE]: logits, then probabilities */
  float *acc;                               /* [ceil(dim / PANEL)][BLOCK][PANEL] */
  float *tile;                              /* keys as [TILE / PANEL][dim][PANEL], then values as [ceil(dim / PANEL)][TILE][PANEL] */
  float *largest, *sum;                     /* [BLOCK]: the running softmax */
} block;

static int32_t block_rows(const rkv_attend_chunk_args *op) { return rkv_in_pairs(op->rows) ? RKV_PAIRS_BLOCK : BLOCK; }
static int32_t blocks_of(const rkv_attend_chunk_args *op) { return rkv_ceil_div(op->count * (op->layer->heads / op->layer->kv_heads), block_rows(op)); }

int32_t RKV_FN(rkv_attend_chunk_pieces)(const void *args, int32_t stage) {
  const rkv_attend_chunk_args *op = args;
  return stage ? RKV_DONE : op->layer->kv_heads * blocks_of(op);
}

/* ---- a tile of rows as f32 panels --------------------------------------------------------------------------------------------------- */

RKV_INLINE void keys_to_panels(float *to, const char *keys, int32_t rows, int32_t dim, int32_t dtype) {
  const size_t bytes = rkv_row_bytes(dtype, dim);
  for (int32_t j = 0; j < rows; j += RKV_LANES)
    for (int32_t d = 0; d < dim; d += RKV_LANES) {
      const int32_t width = rkv_min_int(RKV_LANES, dim - d);
      rkv_vec v[RKV_LANES];
      for (int32_t i = 0; i < RKV_LANES; i++) {
        const char *row = keys + (size_t)(j + i) * bytes;
        v[i] = (rkv_vec){0};
        if (j + i >= rows) continue;
        v[i] = width == RKV_LANES ? rkv_row_load(dtype, row, d) : rkv_row_load_part(dtype, row, d, width);
        if (dtype == RKV_Q8) v[i] *= rkv_set1(rkv_q8_scale(row, dim));
      }
      rkv_transpose(v);
      float *column = to + ((int64_t)(j / RKV_PANEL) * dim + d) * RKV_PANEL + j % RKV_PANEL;
      for (int32_t i = 0; i < width; i++) rkv_store(column + i * RKV_PANEL, v[i]);
    }
}

/* Whether all values are finite. */
RKV_INLINE int32_t values_to_panels(float *to, const char *values, int32_t rows, int32_t dim, int32_t dtype) {
  const size_t bytes = rkv_row_bytes(dtype, dim);
  rkv_vec zero = {0};                                                  /* a sum of 0 * v: NaN as soon as one v is not finite */
  for (int32_t j = 0; j < rows; j++) {
    const char *row = values + (size_t)j * bytes;
    const rkv_vec scale = rkv_set1(rkv_row_scale(dtype, row, dim));
    for (int32_t d = 0; d < dim; d += RKV_LANES) {
      rkv_vec v = dim - d >= RKV_LANES ? rkv_row_load(dtype, row, d) : rkv_row_load_part(dtype, row, d, dim - d);
      if (dtype == RKV_Q8) v *= scale;
      zero += v * rkv_set1(0);
      rkv_store(to + ((int64_t)(d / RKV_PANEL) * TILE + j) * RKV_PANEL + d % RKV_PANEL, v);
    }
  }
  return rkv_sum(zero) == 0;
}

void RKV_FN(rkv_key_panels)(float *to, const char *keys, int32_t rows, int32_t dim, int32_t dtype) {
  switch (dtype) {
    case RKV_F16: keys_to_panels(to, keys, rows, dim, RKV_F16); break;
    case RKV_BF16: keys_to_panels(to, keys, rows, dim, RKV_BF16); break;
    case RKV_Q8: keys_to_panels(to, keys, rows, dim, RKV_Q8); break;
    default: keys_to_panels(to, keys, rows, dim, RKV_F32);
  }
}

static int32_t value_panels(float *to, const char *values, int32_t rows, int32_t dim, int32_t dtype) {
  switch (dtype) {
    case RKV_F16: return values_to_panels(to, values, rows, dim, RKV_F16);
    case RKV_BF16: return values_to_panels(to, values, rows, dim, RKV_BF16);
    case RKV_Q8: return values_to_panels(to, values, rows, dim, RKV_Q8);
    default: return values_to_panels(to, values, rows, dim, RKV_F32);
  }
}

/* ---- softmax ------------------------------------------------------------------------------------------------------------------------- */

typedef struct { int32_t begin, end; } range;

/* -1 where the layer's window hides rows [row, row + n) from the query at row `self`. */
static rkv_ivec hidden(const block *b, int64_t self, int64_t row, int32_t n) {
  rkv_ivec position = {0};
  memcpy(&position, b->position + row, (size_t)n * 4);
  return b->position[self] - position >= b->op->layer->window;
}

/* Rows of the tile that a pair sees; its logits, -inf where hidden inside that range, and their maximum. */
static range see(const block *b, int32_t pair, int64_t tile, int32_t rows, rkv_vec *largest) {
  const rkv_layer_data *layer = b->op->layer;
  const int64_t self = b->base + (b->first + pair) / b->group;
  float *s = b->s + pair * TILE;
  range seen = {0, (int32_t)(self + 1 - tile < rows ? self + 1 - tile : rows)};
  *largest = rkv_set1(-INFINITY);
  if (seen.end <= 0) return (range){0, 0};
  for (int32_t j = 0; j < seen.end; j += RKV_LANES) {
    rkv_vec v = rkv_load(s + j) * rkv_set1(layer->scale);
    if (layer->soft_cap > 0) v = rkv_soft_cap(v, layer->soft_cap);
    const int32_t n = seen.end - j;
    if (n < RKV_LANES)
      for (int32_t i = n; i < RKV_LANES; i++) v[i] = -INFINITY;
    if (layer->window > 0) v = rkv_select(hidden(b, self, tile + j, rkv_min_int(n, RKV_LANES)), rkv_set1(-INFINITY), v);
    rkv_store(s + j, v);
    *largest = rkv_max(v, *largest);
  }
  if (layer->window > 0)
    while (seen.begin < seen.end && b->position[self] - b->position[tile + seen.begin] >= layer->window) seen.begin++;
  return seen;
}

/* Logits to probabilities relative to the running maximum; what was summed so far is brought to it. Outside its range a pair's
 * probabilities are 0 in all of [0, rows). */
static range soften(const block *b, int32_t pair, int64_t tile, int32_t rows) {
  float *s = b->s + pair * TILE;
  rkv_vec largest;
  const range seen = see(b, pair, tile, rows, &largest);
  if (seen.begin >= seen.end) {
    memset(s, 0, (size_t)rows * 4);
    return (range){0, 0};
  }
  const float before = b->largest[pair], tiles = rkv_max_lane(largest), now = tiles > before ? tiles : before;
  const rkv_vec shift = rkv_set1(now);
  rkv_vec sum = {0};
  int32_t j = 0;
  for (; j < seen.end; j += RKV_LANES) {
    const rkv_vec p = rkv_exp(rkv_load(s + j) - shift);
    sum += p;
    rkv_store(s + j, p);
  }
  if (j < rows) memset(s + j, 0, (size_t)(rows - j) * 4);
  const float factor = rkv_exp1(before - now);
  b->largest[pair] = now;
  b->sum[pair] = rkv_fma1(b->sum[pair], factor, rkv_sum(sum));
  if (factor != 1)
    for (int32_t d = 0; d < b->dim; d += RKV_LANES) {
      float *acc = b->acc + ((int64_t)(d / RKV_PANEL) * BLOCK + pair) * RKV_PANEL + d % RKV_PANEL;
      rkv_store(acc, rkv_load(acc) * rkv_set1(factor));
    }
  return seen;
}

/* acc[pairs, dim] += probabilities[pairs, seen rows] values[seen rows, dim] */
static void gather(const block *b, int32_t pair, int32_t pairs, range seen) {
  for (int32_t d = 0; d < b->dim; d += RKV_PANEL)
    RKV_FN(rkv_panel_product)(b->acc + ((int64_t)(d / RKV_PANEL) * BLOCK + pair) * RKV_PANEL, RKV_PANEL, b->s + pair * TILE + seen.begin, pairs,
                              b->tile + ((int64_t)(d / RKV_PANEL) * TILE + seen.begin) * RKV_PANEL, seen.end - seen.begin, rkv_min_int(RKV_PANEL, b->dim - d), 1);
}

/* ---- a block of queries ------------------------------------------------------------------------------------------------------------- */

/* Whether the window hides all of a tile from all queries of the block. */
static int32_t is_hidden(const block *b, int64_t tile, int32_t rows) {
  const int32_t window = b->op->layer->window;
  if (window <= 0) return 0;
  int32_t nearest = INT32_MIN, earliest = INT32_MAX;
  for (int32_t j = 0; j < rows; j++) nearest = rkv_max_int(nearest, b->position[tile + j]);
  for (int32_t r = 0; r < b->rows; r += b->group) earliest = rkv_min_int(earliest, b->position[b->base + (b->first + r) / b->group]);
  earliest = rkv_min_int(earliest, b->position[b->base + (b->first + b->rows - 1) / b->group]);
  return (int64_t)earliest - nearest >= window;
}

static void attend_tile(const block *b, int64_t tile, int32_t rows) {
  const rkv_rows_data *kv = b->op->rows;
  const int64_t place = ((int64_t)b->op->slot * kv->kv_heads + b->kv_head) * kv->capacity + tile;
  if (is_hidden(b, tile, rows)) return;
  RKV_FN(rkv_key_panels)(b->tile, (const char *)kv->keys.data + (size_t)place * rkv_row_bytes(kv->keys.dtype, b->dim), rows, b->dim, kv->keys.dtype);
  for (int32_t j = 0; j < rows; j += RKV_PANEL)
    for (int32_t d = 0; d < b->dim; d += RKV_DEPTH)
      RKV_FN(rkv_panel_product)(b->s + j, TILE, b->q + (int64_t)(d / RKV_DEPTH) * BLOCK * RKV_DEPTH, b->rows,
                                b->tile + ((int64_t)(j / RKV_PANEL) * b->dim + d) * RKV_PANEL, rkv_min_int(RKV_DEPTH, b->dim - d), RKV_PANEL, d > 0);
  const int32_t finite = value_panels(b->tile, (const char *)kv->values.data + (size_t)place * rkv_row_bytes(kv->values.dtype, b->dim), rows, b->dim, kv->values.dtype);
  range all = {rows, 0};
  for (int32_t pair = 0; pair < b->rows; pair++) {
    const range seen = soften(b, pair, tile, rows);
    if (!finite && seen.begin < seen.end) gather(b, pair, 1, seen);
    all.begin = rkv_min_int(all.begin, seen.begin);
    all.end = rkv_max_int(all.end, seen.end);
  }
  if (finite && all.begin < all.end) gather(b, 0, b->rows, all);
}

static void start(block *b) {
  const rkv_attend_chunk_args *op = b->op;
  for (int32_t pair = 0; pair < b->rows; pair++) {
    const int32_t query = (b->first + pair) / b->group, head = b->kv_head * b->group + (b->first + pair) % b->group;
    const float *q = (const float *)op->q.data + ((int64_t)query * op->layer->heads + head) * b->dim;
    for (int32_t d = 0; d < b->dim; d += RKV_DEPTH)
      memcpy(b->q + ((int64_t)(d / RKV_DEPTH) * BLOCK + pair) * RKV_DEPTH, q + d, (size_t)rkv_min_int(RKV_DEPTH, b->dim - d) * 4);
    b->largest[pair] = -INFINITY;
    b->sum[pair] = 0;
  }
  memset(b->acc, 0, (size_t)rkv_ceil_div(b->dim, RKV_PANEL) * BLOCK * RKV_PANEL * 4);
}

static void finish(const block *b) {
  const rkv_attend_chunk_args *op = b->op;
  for (int32_t pair = 0; pair < b->rows; pair++) {
    const int32_t query = (b->first + pair) / b->group, head = b->kv_head * b->group + (b->first + pair) % b->group;
    const int64_t row = (int64_t)query * op->layer->heads + head;
    const float sum = b->sum[pair], inverse = sum == 0 ? 0 : 1 / sum;
    float *to = (float *)op->attended.data + row * b->dim;
    for (int32_t d = 0; d < b->dim; d++) to[d] = b->acc[((int64_t)(d / RKV_PANEL) * BLOCK + pair) * RKV_PANEL + d % RKV_PANEL] * inverse + 0.0f;
    if (op->lse.data) ((float *)op->lse.data)[row] = b->largest[pair] + logf(sum);
  }
}

/* The last queries see the most rows: their blocks come first, so that the workers end together. */
void RKV_FN(rkv_attend_chunk_run)(const void *args, int32_t stage, int32_t piece, void *scratch) {
  const rkv_attend_chunk_args *op = args;
  const rkv_rows_data *kv = op->rows;
  const int32_t kv_heads = op->layer->kv_heads, dim = op->layer->head_dim, group = op->layer->heads / kv_heads;
  (void)stage;
  block b = {.op = op, .kv_head = piece % kv_heads, .group = group, .dim = dim, .first = (blocks_of(op) - 1 - piece / kv_heads) * block_rows(op)};
  b.rows = rkv_min_int(block_rows(op), op->count * group - b.first);
#if RKV_PAIRS
  if (rkv_in_pairs(kv)) {
    RKV_FN(rkv_attend_pairs)(op, b.kv_head, b.first, b.rows, scratch);
    return;
  }
#endif
  b.base = (int64_t)kv->row_end[op->slot] - op->count;
  b.position = kv->position + ((int64_t)op->slot * kv_heads + b.kv_head) * kv->capacity;
  b.q = scratch;
  b.s = b.q + (int64_t)rkv_ceil_div(dim, RKV_DEPTH) * BLOCK * RKV_DEPTH;
  b.acc = b.s + BLOCK * TILE;
  b.largest = b.acc + (int64_t)rkv_ceil_div(dim, RKV_PANEL) * BLOCK * RKV_PANEL;
  b.sum = b.largest + BLOCK;
  b.tile = b.sum + BLOCK;
  start(&b);
  const int64_t visible = b.base + (b.first + b.rows - 1) / group + 1;
  for (int64_t tile = 0; tile < visible; tile += TILE) attend_tile(&b, tile, (int32_t)(visible - tile < TILE ? visible - tile : TILE));
  finish(&b);
}
