/* mass.c: how much attention each row has drawn. With the log-sum-exp of attention known, a probability is one exponential of one dot
 * product, so this takes one pass and no buffer that grows with the length.
 *
 * A piece owns MASS_ROWS rows of one row of `mass` and goes through the queries in order: every sum runs over the queries, and the heads that
 * share it, one by one, whatever chunk they came in. */
#include "attention.h"

#define MASS_ROWS RKV_DEPTH /* rows whose keys a piece holds, transposed */
#define PAIRS 96            /* (query, head) pairs whose logits are made at a time: eight register tiles of 12 */

typedef struct {
  const rkv_attention_mass_args *op;
  int32_t slot, unit, kv_head, head, heads; /* unit: a row of mass; it sums query heads [head, head + heads) */
  int64_t base;                             /* the row of query 0 (of a step: of its only query) */
  int32_t query, queries;                   /* queries of q: [query, query + queries); a step has one, the slot's */
  int32_t row, rows;                        /* rows of this piece */
  const int32_t *position;
  float *keys, *q, *s, *mass;
} block;

static int32_t is_step(const rkv_attention_mass_args *op) { return op->slot == RKV_STEP; }

/* Rows held by the slot, or by the longest active one. */
static int32_t longest(const rkv_attention_mass_args *op) {
  const rkv_rows_data *kv = op->rows;
  if (!is_step(op)) return kv->row_end[op->slot];
  int32_t most = 0;
  for (int32_t s = 0; s < kv->slots; s++)
    if (kv->active[s]) most = rkv_max_int(most, kv->row_end[s]);
  return most;
}

int32_t RKV_FN(rkv_attention_mass_pieces)(const void *args, int32_t stage) {
  const rkv_attention_mass_args *op = args;
  if (stage) return RKV_DONE;
  return rkv_ceil_div(longest(op), MASS_ROWS) * op->mass.shape[1] * (is_step(op) ? op->rows->slots : 1);
}

/* Adds the probabilities of one pair to the rows it sees. s: its logits. */
static void add_pair(const block *b, float *s, int64_t self, float lse, float weight) {
  const rkv_layer_data *layer = b->op->layer;
  const int32_t seen = (int32_t)(self + 1 - b->row < b->rows ? self + 1 - b->row : b->rows);
  if (!(lse != -INFINITY)) return;
  for (int32_t j = 0; j < seen; j += RKV_LANES) {
    const int32_t n = rkv_min_int(RKV_LANES, seen - j);
    rkv_vec x = rkv_load(s + j) * rkv_set1(layer->scale);
    if (layer->soft_cap > 0) x = rkv_soft_cap(x, layer->soft_cap);
    rkv_vec p = rkv_exp(x - rkv_set1(lse)) * rkv_set1(weight);
    if (layer->window > 0) {
      rkv_ivec position = {0};
      memcpy(&position, b->position + b->row + j, (size_t)n * 4);
      p = rkv_select(b->position[self] - position >= layer->window, (rkv_vec){0}, p);
    }
    if (n == RKV_LANES) rkv_store(b->mass + j, rkv_load(b->mass + j) + p);
    else rkv_store_part(b->mass + j, rkv_load_part(b->mass + j, n) + p, n);
  }
}

/* Pairs [first, first + pairs): pair / heads is the query, pair % heads the head. */
static void add_pairs(const block *b, int32_t first, int32_t pairs) {
  const rkv_attention_mass_args *op = b->op;
  const int32_t dim = op->layer->head_dim, all = op->layer->heads;
  for (int32_t i = 0; i < pairs; i++) {
    const int64_t at = (int64_t)(b->query + (first + i) / b->heads) * all + b->head + (first + i) % b->heads;
    for (int32_t d = 0; d < dim; d += RKV_DEPTH)
      memcpy(b->q + ((int64_t)(d / RKV_DEPTH) * PAIRS + i) * RKV_DEPTH, (const float *)op->q.data + at * dim + d, (size_t)rkv_min_int(RKV_DEPTH, dim - d) * 4);
  }
  for (int32_t j = 0; j < b->rows; j += RKV_PANEL)
    for (int32_t d = 0; d < dim; d += RKV_DEPTH)
      RKV_FN(rkv_panel_product)(b->s + j, MASS_ROWS, b->q + (int64_t)(d / RKV_DEPTH) * PAIRS * RKV_DEPTH, pairs,
                                b->keys + ((int64_t)(j / RKV_PANEL) * dim + d) * RKV_PANEL, rkv_min_int(RKV_DEPTH, dim - d), RKV_PANEL, d > 0);
  for (int32_t i = 0; i < pairs; i++) {
    const int32_t query = b->query + (first + i) / b->heads, head = b->head + (first + i) % b->heads;
    const int64_t self = is_step(op) ? b->base : b->base + query;
    add_pair(b, b->s + i * MASS_ROWS, self, ((const float *)op->lse.data)[(int64_t)query * all + head],
             op->weights.data ? ((const float *)op->weights.data)[query] : 1);
  }
}

void RKV_FN(rkv_attention_mass_run)(const void *args, int32_t stage, int32_t piece, void *scratch) {
  (void)stage;
  const rkv_attention_mass_args *op = args;
  const rkv_rows_data *kv = op->rows;
  const int32_t units = op->mass.shape[1], tiles = rkv_ceil_div(longest(op), MASS_ROWS), dim = op->layer->head_dim;
  block b = {.op = op, .slot = is_step(op) ? piece / (units * tiles) : op->slot, .unit = piece / tiles % units, .row = piece % tiles * MASS_ROWS};
  if (is_step(op) && !kv->active[b.slot]) return;
  const int32_t row_end = kv->row_end[b.slot];
  b.rows = rkv_min_int(MASS_ROWS, row_end - b.row);
  if (b.rows <= 0) return;
  b.heads = op->layer->heads / units;
  b.head = b.unit * b.heads;
  b.kv_head = b.head / (op->layer->heads / op->layer->kv_heads);
  b.base = is_step(op) ? row_end - 1 : row_end - op->count;
  b.query = is_step(op) ? b.slot : rkv_max_int(op->first, (int32_t)(b.row - b.base)); /* earlier ones see none of these rows */
  b.queries = is_step(op) ? 1 : op->count - b.query;
  const int64_t plane = ((int64_t)b.slot * kv->kv_heads + b.kv_head) * kv->capacity;
  b.position = kv->position + plane;
  b.mass = (float *)op->mass.data + ((int64_t)b.slot * units + b.unit) * kv->capacity + b.row;
  b.keys = scratch;
  b.s = b.keys + (int64_t)dim * MASS_ROWS;
  b.q = b.s + PAIRS * MASS_ROWS;
  RKV_FN(rkv_key_panels)(b.keys, (const char *)kv->keys.data + (size_t)(plane + b.row) * rkv_row_bytes(kv->keys.dtype, dim), b.rows, dim, kv->keys.dtype);
  const int32_t pairs = b.queries * b.heads;
  for (int32_t i = 0; i < pairs; i += PAIRS) add_pairs(&b, i, rkv_min_int(PAIRS, pairs - i));
}

/* ---- mass_rates: RKV_PIECE rows per piece ------------------------------------------------------------------------------------------------ */

int32_t RKV_FN(rkv_mass_rates_pieces)(const void *args, int32_t stage) {
  const rkv_mass_rates_args *op = args;
  const int32_t slots = op->slot == RKV_STEP ? op->rows->slots : 1;
  return stage == 0 ? slots * op->mass.shape[1] * rkv_ceil_div(op->rows->capacity, RKV_PIECE) : RKV_DONE;
}

void RKV_FN(rkv_mass_rates_run)(const void *args, int32_t stage, int32_t piece, void *scratch) {
  (void)stage, (void)scratch;
  const rkv_mass_rates_args *op = args;
  const rkv_rows_data *kv = op->rows;
  const int32_t units = op->mass.shape[1], pieces = rkv_ceil_div(kv->capacity, RKV_PIECE), unit = piece / pieces % units;
  const int32_t slot = op->slot == RKV_STEP ? piece / pieces / units : op->slot;
  if (op->slot == RKV_STEP && !kv->active[slot]) return;
  const int64_t plane = ((int64_t)slot * units + unit) * kv->capacity;
  const int32_t *position = kv->position + ((int64_t)slot * kv->kv_heads + unit / (units / kv->kv_heads)) * kv->capacity;
  const int32_t row_end = kv->row_end[slot], first = piece % pieces * RKV_PIECE, end = rkv_min_int(row_end, first + RKV_PIECE);
  const float *mass = (const float *)op->mass.data + plane;
  float *rates = (float *)op->rates.data + plane;
  for (int32_t r = first; r < end; r++) rates[r] = mass[r] / (float)(position[row_end - 1] - position[r] + 1);
}
