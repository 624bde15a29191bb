/* attention_pairs.c: prefill attention where the instruction set multiplies pairs of BF16: queries, keys, probabilities and values are rounded to
 * BF16, products are summed in f32. Rows of f32 keep to attention_chunk.c. The walk is the same: a block of (query, head) pairs of one KV
 * head goes through the rows tile by tile with an online softmax, and a query's bits do not depend on the chunk it came in.
 *
 * A tile of keys and values is laid out once for the block. Then GROUP pairs at a time take it from logits to sums, so that logits and
 * probabilities never leave the first cache. Logits are in units of ln 2, since 2^x is cheaper than e^x. */
#include "attention.h"
#if RKV_PAIRS

#define TILE 128                     /* rows; tiles begin at multiples of it */
#define GROUP 12                     /* pairs that share a register tile of rkv_panel_pairs */

typedef struct {
  const rkv_attend_chunk_args *op;
  int32_t kv_head, group, dim, words, width;   /* words: pairs of channels; width: dim rounded up to whole panels */
  int32_t first, rows;                         /* pairs [first, first + rows): query pair / group, head pair % group of the group */
  int64_t base;                                /* the row of query 0 */
  const int32_t *position;                     /* of the KV head's rows */
  uint32_t *q;                                 /* [RKV_PAIRS_BLOCK][words] */
  uint32_t *keys;                              /* [TILE / PANEL][words][PANEL]: pairs of channels */
  uint32_t *values;                            /* [width / PANEL][TILE / 2][PANEL]: pairs of rows */
  uint32_t *p;                                 /* [GROUP][TILE / 2] */
  float *s;                                    /* [GROUP][TILE] */
  float *acc;                                  /* [RKV_PAIRS_BLOCK][width] */
  float *largest, *sum;                        /* [RKV_PAIRS_BLOCK]: the running softmax */
} block;

typedef struct { int32_t begin, end; } range;

/* ---- a tile of rows ----------------------------------------------------------------------------------------------------------------- */

RKV_INLINE rkv_vec row_vector(const char *row, int32_t d, int32_t dim, int32_t dtype) {
  if (d >= dim) return (rkv_vec){0};
  const rkv_vec v = dim - d >= RKV_LANES ? rkv_row_load(dtype, row, d) : rkv_row_load_part(dtype, row, d, dim - d);
  return dtype == RKV_Q8 ? v * rkv_set1(rkv_q8_scale(row, dim)) : v;
}

RKV_INLINE void lay_keys(const block *b, const char *keys, int32_t rows, int32_t dtype) {
  const size_t bytes = rkv_row_bytes(dtype, b->dim);
  for (int32_t j = 0; j < rows; j += RKV_LANES)
    for (int32_t d = 0; d < b->dim; d += 2 * RKV_LANES) {
      rkv_vec v[RKV_LANES];
      RKV_UNROLL for (int32_t i = 0; i < RKV_LANES; i++) {
        const char *row = keys + (size_t)rkv_min_int(j + i, rows - 1) * bytes;     /* what fills up the last vector is seen by nobody */
        v[i] = (rkv_vec)rkv_pairs_of(row_vector(row, d, b->dim, dtype), row_vector(row, d + RKV_LANES, b->dim, dtype));
      }
      rkv_transpose(v);
      uint32_t *to = b->keys + ((int64_t)(j / RKV_PANEL) * b->words + d / 2) * RKV_PANEL + j % RKV_PANEL;
      for (int32_t i = 0, n = rkv_min_int(RKV_LANES, b->words - d / 2); i < n; i++) rkv_store((float *)to + i * RKV_PANEL, v[i]);
    }
}

/* Values of rows [begin, end); what fills up the last pair, and all before begin, is 0. Whether all are finite. */
RKV_INLINE int32_t lay_values(const block *b, const char *values, range rows, int32_t dtype) {
  const size_t bytes = rkv_row_bytes(dtype, b->dim);
  rkv_vec zero = {0};                                                  /* a sum of 0 * v: NaN as soon as one v is not finite */
  for (int32_t j = 0; j < rows.end; j += 2)
    for (int32_t d = 0; d < b->width; d += RKV_LANES) {
      rkv_vec v[2];
      RKV_UNROLL for (int32_t i = 0; i < 2; i++) {
        v[i] = j + i >= rows.begin && j + i < rows.end ? row_vector(values + (size_t)(j + i) * bytes, d, b->dim, dtype) : (rkv_vec){0};
        zero += v[i] * rkv_set1(0);
      }
      const rkv_uvec words = rkv_weave(rkv_pairs_of(v[0], v[1]));
      memcpy(b->values + ((int64_t)(d / RKV_PANEL) * (TILE / 2) + j / 2) * RKV_PANEL + d % RKV_PANEL, &words, sizeof words);
    }
  return rkv_sum(zero) == 0;
}

static void key_tile(const block *b, const char *keys, int32_t rows, int32_t dtype) {
  switch (dtype) {
    case RKV_F16: lay_keys(b, keys, rows, RKV_F16); break;
    case RKV_BF16: lay_keys(b, keys, rows, RKV_BF16); break;
    default: lay_keys(b, keys, rows, RKV_Q8);
  }
}

static int32_t value_tile(const block *b, const char *values, range rows, int32_t dtype) {
  switch (dtype) {
    case RKV_F16: return lay_values(b, values, rows, RKV_F16);
    case RKV_BF16: return lay_values(b, values, rows, RKV_BF16);
    default: return lay_values(b, values, rows, RKV_Q8);
  }
}

/* ---- softmax ------------------------------------------------------------------------------------------------------------------------ */

static int64_t row_of_pair(const block *b, int32_t pair) { return b->base + (b->first + pair) / b->group; }

/* -1 where the layer's window hides rows [row, row + n) from the query at row `self`. */
static rkv_ivec hidden(const block *b, int64_t self, int64_t row, int32_t n) {
  rkv_ivec position = {0};
  memcpy(&position, b->position + row, (size_t)n * 4);
  return b->position[self] - position >= b->op->layer->window;
}

/* Logits of a pair to probabilities relative to the running maximum; what was summed so far is brought to it. Returns the rows it sees;
 * outside them, in [0, columns), probabilities are 0. */
static range soften(const block *b, int32_t pair, float *s, uint32_t *p, int64_t tile, int32_t rows, int32_t columns) {
  const rkv_layer_data *layer = b->op->layer;
  const int64_t self = row_of_pair(b, pair);
  const int32_t end = (int32_t)(self + 1 - tile < rows ? self + 1 - tile : rows);
  const float cap = layer->soft_cap;
  rkv_vec most = rkv_set1(-INFINITY);
  int32_t begin = 0, j = 0;
  if (cap <= 0 && layer->window <= 0)
    for (; j + RKV_LANES <= end; j += RKV_LANES) most = rkv_max(rkv_load(s + j), most);
  for (; j < end; j += RKV_LANES) {
    rkv_vec v = rkv_load(s + j);
    if (cap > 0) v = rkv_soft_cap(v, cap) * rkv_set1(RKV_LOG2_E);
    if (end - j < RKV_LANES) v = rkv_first(v, end - j, rkv_set1(-INFINITY));
    if (layer->window > 0) v = rkv_select(hidden(b, self, tile + j, rkv_min_int(end - j, RKV_LANES)), rkv_set1(-INFINITY), v);
    rkv_store(s + j, v);
    most = rkv_max(v, most);
  }
  if (layer->window > 0)
    while (begin < end && b->position[self] - b->position[tile + begin] >= layer->window) begin++;
  const float before = b->largest[pair], here = end > 0 ? rkv_max_lane(most) : -INFINITY, now = here > before ? here : before;
  if (begin >= end || now == -INFINITY) {
    memset(p, 0, (size_t)((columns + 1) / 2) * 4);
    return (range){0, 0};
  }
  const rkv_vec shift = rkv_set1(now);
  rkv_vec sum = {0};
  for (j = 0; j < columns; j += 2 * RKV_LANES) {
    rkv_vec e[2];
    RKV_UNROLL for (int32_t i = 0; i < 2; i++) {
      e[i] = j + i * RKV_LANES < end ? rkv_exp2(rkv_load(s + j + i * RKV_LANES) - shift) : (rkv_vec){0};
      sum += e[i];
    }
    const rkv_uvec words = rkv_pairs_of(e[0], e[1]);
    memcpy(p + j / 2, &words, sizeof words);
  }
  const float factor = before == now ? 1 : rkv_exp2(rkv_set1(before - now))[0];
  b->largest[pair] = now;
  b->sum[pair] = rkv_fma1(b->sum[pair], factor, rkv_sum(sum));
  if (factor != 1)
    for (int32_t d = 0; d < b->width; d += RKV_LANES) {
      float *acc = b->acc + (int64_t)pair * b->width + d;
      rkv_store(acc, rkv_load(acc) * rkv_set1(factor));
    }
  return (range){begin, end};
}

/* ---- a block of queries ------------------------------------------------------------------------------------------------------------- */

/* Whether the window hides all of a tile from all queries of the block. */
static int32_t is_hidden(const block *b, int64_t tile, int32_t rows) {
  const int32_t window = b->op->layer->window;
  if (window <= 0) return 0;
  int32_t nearest = INT32_MIN, earliest = INT32_MAX;
  for (int32_t j = 0; j < rows; j++) nearest = rkv_max_int(nearest, b->position[tile + j]);
  for (int32_t r = 0; r < b->rows; r++) earliest = rkv_min_int(earliest, b->position[row_of_pair(b, r)]);
  return (int64_t)earliest - nearest >= window;
}

static void add_values(const block *b, int32_t pair, int32_t pairs, const uint32_t *p, int32_t columns) {
  for (int32_t d = 0; d < b->width; d += RKV_PANEL)
    RKV_FN(rkv_panel_pairs)(b->acc + (int64_t)pair * b->width + d, b->width, p, TILE / 2, pairs, b->values + (int64_t)(d / RKV_PANEL) * (TILE / 2) * RKV_PANEL, (columns + 1) / 2, 1);
}

static void attend_tile(const block *b, int64_t tile, int32_t rows) {
  const rkv_rows_data *kv = b->op->rows;
  if (is_hidden(b, tile, rows)) return;
  const int64_t place = ((int64_t)b->op->slot * kv->kv_heads + b->kv_head) * kv->capacity + tile;
  const char *values = (const char *)kv->values.data + (size_t)place * rkv_row_bytes(kv->values.dtype, b->dim);
  key_tile(b, (const char *)kv->keys.data + (size_t)place * rkv_row_bytes(kv->keys.dtype, b->dim), rows, kv->keys.dtype);
  const int32_t finite = value_tile(b, values, (range){0, rows}, kv->values.dtype);
  for (int32_t pair = 0; pair < b->rows; pair += GROUP) {
    const int32_t pairs = rkv_min_int(GROUP, b->rows - pair);
    const int64_t newest = row_of_pair(b, pair + pairs - 1) + 1 - tile;
    if (newest <= 0) continue;
    const int32_t columns = (int32_t)(newest < rows ? newest : rows);
    for (int32_t j = 0; j < columns; j += RKV_PANEL)
      RKV_FN(rkv_panel_pairs)(b->s + j, TILE, b->q + (int64_t)pair * b->words, b->words, pairs, b->keys + (int64_t)(j / RKV_PANEL) * b->words * RKV_PANEL, b->words, 0);
    for (int32_t i = 0; i < pairs; i++) {
      uint32_t *p = b->p + i * (TILE / 2);
      const range seen = soften(b, pair + i, b->s + i * TILE, p, tile, rows, columns);
      if (finite || seen.begin >= seen.end) continue;
      value_tile(b, values, seen, kv->values.dtype);                   /* 0 times what a pair does not see may be NaN: it goes alone */
      add_values(b, pair + i, 1, p, seen.end);
    }
    if (finite) add_values(b, pair, pairs, b->p, columns);
  }
}

/* Queries in units of logits, so that their products need no scale. */
static void start(const block *b) {
  const rkv_attend_chunk_args *op = b->op;
  const rkv_vec scale = rkv_set1(op->layer->soft_cap > 0 ? op->layer->scale : op->layer->scale * RKV_LOG2_E);
  for (int32_t pair = 0; pair < b->rows; pair++) {
    const int32_t query = (b->first + pair) / b->group, head = b->kv_head * b->group + (b->first + pair) % b->group;
    const char *q = (const char *)((const float *)op->q.data + ((int64_t)query * op->layer->heads + head) * b->dim);
    for (int32_t d = 0; d < b->dim; d += 2 * RKV_LANES) {
      const rkv_uvec words = rkv_pairs_of(row_vector(q, d, b->dim, RKV_F32) * scale, row_vector(q, d + RKV_LANES, b->dim, RKV_F32) * scale);
      memcpy(b->q + (int64_t)pair * b->words + d / 2, &words, (size_t)rkv_min_int(RKV_LANES, b->words - d / 2) * 4);
    }
    b->largest[pair] = -INFINITY;
    b->sum[pair] = 0;
  }
  memset(b->acc, 0, (size_t)b->rows * (size_t)b->width * 4);
}

static void finish(const block *b) {
  const rkv_attend_chunk_args *op = b->op;
  for (int32_t pair = 0; pair < b->rows; pair++) {
    const int32_t query = (b->first + pair) / b->group, head = b->kv_head * b->group + (b->first + pair) % b->group;
    const int64_t row = (int64_t)query * op->layer->heads + head;
    const float sum = b->sum[pair], inverse = sum == 0 ? 0 : 1 / sum, *acc = b->acc + (int64_t)pair * b->width;
    float *to = (float *)op->attended.data + row * b->dim;
    for (int32_t d = 0; d < b->dim; d++) to[d] = acc[d] * inverse + 0.0f;
    if (op->lse.data) ((float *)op->lse.data)[row] = b->largest[pair] * (1 / RKV_LOG2_E) + logf(sum);
  }
}

void RKV_FN(rkv_attend_pairs)(const rkv_attend_chunk_args *op, int32_t kv_head, int32_t first, int32_t rows, void *scratch) {
  const rkv_rows_data *kv = op->rows;
  const int32_t dim = op->layer->head_dim, group = op->layer->heads / op->layer->kv_heads;
  block b = {.op = op, .kv_head = kv_head, .group = group, .dim = dim, .words = (dim + 1) / 2, .width = rkv_ceil_div(dim, RKV_PANEL) * RKV_PANEL, .first = first, .rows = rows};
  b.base = (int64_t)kv->row_end[op->slot] - op->count;
  b.position = kv->position + ((int64_t)op->slot * op->layer->kv_heads + kv_head) * kv->capacity;
  b.keys = scratch;
  b.values = b.keys + TILE * b.words;
  b.p = b.values + TILE / 2 * b.width;
  b.s = (float *)(b.p + GROUP * TILE / 2);
  b.acc = b.s + GROUP * TILE;
  b.largest = b.acc + RKV_PAIRS_BLOCK * b.width;
  b.sum = b.largest + RKV_PAIRS_BLOCK;
  b.q = (uint32_t *)(b.sum + RKV_PAIRS_BLOCK);
  start(&b);
  const int64_t visible = row_of_pair(&b, rows - 1) + 1;
  for (int64_t tile = 0; tile < visible; tile += TILE) attend_tile(&b, tile, (int32_t)(visible - tile < TILE ? visible - tile : TILE));
  finish(&b);
}
#endif
