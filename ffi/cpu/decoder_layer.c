/* decoder_layer.c: the two halves of a decoder layer, with the attention cut out between them. */
#include "decoder.h"
#include "rowtypes.h"

/* ---- attn_in: norm | q, k, v products | biases, q/k norms, rotation, append | rowEnd ---------------------------------------------- */

typedef struct { const int32_t *active; int32_t n; } taking_part;

/* A chunk is of one slot; a step's row i is slot i's. */
static taking_part rows_of(const rkv_attn_in_args *op) {
  const int32_t *active = op->slot == RKV_STEP ? op->rows->active : NULL;
  return (taking_part){active, rkv_active_count(active, op->count)};
}

/* Rows [row, row + more) have come to stay. */
static void settle(const rkv_rows_data *kv, int32_t slot, int32_t row, int32_t more) {
  const rkv_view *of[2] = {&kv->keys, &kv->values};
  for (int32_t i = 0; i < 2 && more; i++) {
    const size_t bytes = rkv_row_bytes(of[i]->dtype, kv->head_dim);
    for (int32_t h = 0; h < kv->kv_heads; h++)
      rkv_os_settle((char *)of[i]->data + ((size_t)slot * kv->kv_heads + h) * kv->capacity * bytes, row * bytes, (row + more) * bytes);
  }
}

/* Moves rowEnd on by what was appended. Negative when a row did not fit. */
static int32_t move_row_end(const rkv_attn_in_args *op) {
  const rkv_rows_data *kv = op->rows;
  int32_t code = RKV_DONE;
  for (int32_t s = 0; s < kv->slots; s++) {
    int32_t more = 0;
    if (op->slot == s) more = op->count;
    else if (op->slot == RKV_STEP && s < op->count) more = kv->active[s] != 0;
    if (more > kv->capacity - kv->row_end[s]) {
      more = kv->capacity - kv->row_end[s];
      code = RKV_RANGE;
    }
    settle(kv, s, kv->row_end[s], more);
    kv->row_end[s] += more;
  }
  return code;
}

static int32_t in_form(const rkv_layer_data *layer) { return RKV_FN(rkv_form_for)(layer->q, layer->k, layer->v); }

/* A row of x, normed, as products want it. */
static void norm_row(void *to, const float *x, const rkv_weight_data *norm, const rkv_layer_data *layer, int32_t form, float *normed) {
  rkv_norm(normed, x, norm->packed, layer->hidden, layer->eps);
  RKV_FN(rkv_prepare)(to, normed, layer->hidden, 0, layer->hidden, form);
}

static int32_t finish_rows(const rkv_layer_data *layer) { return rkv_light_rows((layer->heads + 2 * layer->kv_heads) * layer->head_dim * 4); }

int32_t RKV_FN(rkv_attn_in_pieces)(const void *args, int32_t stage) {
  const rkv_attn_in_args *op = args;
  const rkv_layer_data *layer = op->layer;
  const int32_t n = rows_of(op).n;
  if (n == 0) return RKV_DONE;
  switch (stage) {
    case 0: return rkv_ceil_div(n, rkv_light_rows(layer->hidden));
    case 1: return RKV_FN(rkv_product_pieces)(layer->q, n) + RKV_FN(rkv_product_pieces)(layer->k, n) + RKV_FN(rkv_product_pieces)(layer->v, n);
    case 2: return rkv_ceil_div(n, finish_rows(layer));
    default: return move_row_end(op);
  }
}

/* x[0 .. 2 half) rotated by pairs (i, i + half). Source: RoFormer (arXiv 2104.09864), in halves. */
static void rotate(float *x, const float *rotation /*[2, half]*/, int32_t half) {
  const float *cosine = rotation, *sine = rotation + half;
  int32_t i = 0;
  for (; i + RKV_LANES <= half; i += RKV_LANES) {
    const rkv_vec a = rkv_load(x + i), b = rkv_load(x + half + i), c = rkv_load(cosine + i), s = rkv_load(sine + i);
    rkv_store(x + i, rkv_fma(a, c, -(b * s)));
    rkv_store(x + half + i, rkv_fma(b, c, a * s));
  }
  for (; i < half; i++) {
    const float a = x[i], b = x[half + i], c = cosine[i], s = sine[i];
    x[i] = rkv_fma1(a, c, -(b * s));
    x[half + i] = rkv_fma1(b, c, a * s);
  }
}

/* x[heads, headDim]: bias, norm per head, rotation, as far as the layer has them. */
static void finish_heads(float *x, const rkv_weight_data *bias, const rkv_weight_data *norm, const float *rotation, int32_t heads, const rkv_layer_data *layer) {
  const int32_t dim = layer->head_dim;
  if (bias) rkv_add(x, bias->packed, heads * dim);
  for (int32_t h = 0; h < heads; h++) {
    if (norm) rkv_norm(x + h * dim, x + h * dim, norm->packed, dim, layer->eps);
    rotate(x + h * dim, rotation, layer->rope_dim / 2);
  }
}

/* Work holds, rows close together: the normed rows (room for floats), then k, then v. */
static void attn_in_product(const rkv_attn_in_args *op, int32_t n, const int32_t *rows, int32_t piece, void *scratch) {
  const rkv_layer_data *layer = op->layer;
  const int32_t kv_width = layer->kv_heads * layer->head_dim;
  float *normed = op->work.data, *k = normed + (int64_t)n * layer->hidden, *v = k + (int64_t)n * kv_width, *block = scratch;
  const rkv_weight_data *weights[3] = {layer->q, layer->k, layer->v};
  float *outs[3] = {op->q.data, k, v};
  int32_t which = 0;
  for (int32_t pieces; which < 2 && piece >= (pieces = RKV_FN(rkv_product_pieces)(weights[which], n)); which++) piece -= pieces;
  const rkv_weight_data *weight = weights[which];
  const rkv_block at = RKV_FN(rkv_product_block)(weight, n, piece);
  RKV_FN(rkv_product)(block, weight, rkv_rows_of(normed, in_form(layer), layer->hidden), at, (char *)scratch + RKV_SCRATCH_PRODUCT);
  for (int32_t i = 0; i < at.rows; i++) {
    const int32_t row = which == 0 ? rkv_row_of(rows, at.row + i) : at.row + i;
    memcpy(outs[which] + (int64_t)row * weight->rows + at.col, block + i * RKV_BLOCK_COLS, (size_t)at.cols * 4);
  }
}

static void finish_row(const rkv_attn_in_args *op, int32_t n, int32_t i, int32_t row) {
  const rkv_layer_data *layer = op->layer;
  const rkv_rows_data *kv = op->rows;
  const int32_t dim = layer->head_dim, kv_width = layer->kv_heads * dim;
  const float *rotation = (const float *)op->rotations.data + (int64_t)row * layer->rope_dim;
  float *k = (float *)op->work.data + (int64_t)n * layer->hidden + (int64_t)i * kv_width, *v = k + (int64_t)n * kv_width;
  finish_heads((float *)op->q.data + (int64_t)row * layer->heads * dim, layer->q_bias, layer->q_norm, rotation, layer->heads, layer);
  finish_heads(k, layer->k_bias, layer->k_norm, rotation, layer->kv_heads, layer);
  if (layer->v_bias) rkv_add(v, layer->v_bias->packed, kv_width);
  const int32_t slot = op->slot == RKV_STEP ? row : op->slot;
  const int64_t to = op->slot == RKV_STEP ? kv->row_end[slot] : (int64_t)kv->row_end[slot] + row;
  if (to >= kv->capacity) return;
  const size_t key_bytes = rkv_row_bytes(kv->keys.dtype, dim), value_bytes = rkv_row_bytes(kv->values.dtype, dim);
  for (int32_t h = 0; h < layer->kv_heads; h++) {
    const int64_t place = ((int64_t)slot * layer->kv_heads + h) * kv->capacity + to;
    rkv_row_from_f32((char *)kv->keys.data + (size_t)place * key_bytes, k + h * dim, kv->keys.dtype, dim);
    rkv_row_from_f32((char *)kv->values.data + (size_t)place * value_bytes, v + h * dim, kv->values.dtype, dim);
    kv->position[place] = ((const int32_t *)op->position.data)[row];
  }
}

void RKV_FN(rkv_attn_in_run)(const void *args, int32_t stage, int32_t piece, void *scratch) {
  const rkv_attn_in_args *op = args;
  const rkv_layer_data *layer = op->layer;
  const taking_part part = rows_of(op);
  const int32_t *rows = rkv_active_rows((int32_t *)((char *)scratch + RKV_SCRATCH_ROWS), part.active, op->count);
  if (stage == 1) {
    attn_in_product(op, part.n, rows, piece, scratch);
    return;
  }
  const int32_t size = stage ? finish_rows(layer) : rkv_light_rows(layer->hidden);
  for (int32_t i = piece * size, end = rkv_min_int(part.n, i + size); i < end; i++) {
    const int32_t row = rkv_row_of(rows, i);
    if (stage) finish_row(op, part.n, i, row);
    else norm_row(rkv_row_in(op->work.data, in_form(layer), layer->hidden, i), (const float *)op->x.data + (int64_t)row * layer->hidden, layer->attn_norm, layer, in_form(layer), scratch);
  }
}

/* ---- queries: norm | q product | bias, q norm, rotation ---------------------------------------------------------------------------- */

int32_t RKV_FN(rkv_queries_pieces)(const void *args, int32_t stage) {
  const rkv_queries_args *op = args;
  const int32_t n = rkv_active_count(op->active.data, op->count);
  if (n == 0) return RKV_DONE;
  switch (stage) {
    case 0: return rkv_ceil_div(n, rkv_light_rows(op->layer->hidden));
    case 1: return RKV_FN(rkv_product_pieces)(op->layer->q, n);
    case 2: return rkv_ceil_div(n, finish_rows(op->layer));
    default: return RKV_DONE;
  }
}

void RKV_FN(rkv_queries_run)(const void *args, int32_t stage, int32_t piece, void *scratch) {
  const rkv_queries_args *op = args;
  const rkv_layer_data *layer = op->layer;
  const int32_t n = rkv_active_count(op->active.data, op->count), width = layer->heads * layer->head_dim;
  const int32_t *rows = rkv_active_rows((int32_t *)((char *)scratch + RKV_SCRATCH_ROWS), op->active.data, op->count);
  float *normed = op->work.data, *q = op->q.data, *block = scratch;
  if (stage == 1) {
    const rkv_block at = RKV_FN(rkv_product_block)(layer->q, n, piece);
    RKV_FN(rkv_product)(block, layer->q, rkv_rows_of(normed, in_form(layer), layer->hidden), at, (char *)scratch + RKV_SCRATCH_PRODUCT);
    for (int32_t i = 0; i < at.rows; i++)
      memcpy(q + (int64_t)rkv_row_of(rows, at.row + i) * width + at.col, block + i * RKV_BLOCK_COLS, (size_t)at.cols * 4);
    return;
  }
  const int32_t size = stage ? finish_rows(layer) : rkv_light_rows(layer->hidden);
  for (int32_t i = piece * size, end = rkv_min_int(n, i + size); i < end; i++) {
    const int64_t row = rkv_row_of(rows, i);
    if (stage) finish_heads(q + row * width, layer->q_bias, layer->q_norm, (const float *)op->rotations.data + row * layer->rope_dim, layer->heads, layer);
    else norm_row(rkv_row_in(normed, in_form(layer), layer->hidden, i), (const float *)op->x.data + row * layer->hidden, layer->attn_norm, layer, in_form(layer), scratch);
  }
}

/* ---- attn_out: o's rows | o product and residual | norm | gate, up and their product | down product and residual -------------------- */

/* What passes between the stages. Work holds rows close together: first those that o reads, then in their place the normed ones, and
 * behind `hidden` floats for each row those that down reads. */
typedef struct {
  const rkv_layer_data *layer;
  int32_t n, width, o_form, in_form, down_form;
  const int32_t *rows;
  char *normed, *activated;
} out_plan;

static out_plan out_plan_of(const rkv_attn_out_args *op) {
  const rkv_layer_data *layer = op->layer;
  out_plan p = {.layer = layer, .n = rkv_active_count(op->active.data, op->count), .width = layer->heads * layer->head_dim, .normed = op->work.data};
  p.o_form = p.width <= layer->hidden + layer->intermediate ? RKV_FN(rkv_form_for)(layer->o, NULL, NULL) : RKV_FORM_F32;
  p.in_form = RKV_FN(rkv_form_for)(layer->gate, layer->up, NULL);
  p.down_form = RKV_FN(rkv_form_for)(layer->down, NULL, NULL);
  p.activated = p.normed + (int64_t)p.n * layer->hidden * 4;
  return p;
}

int32_t RKV_FN(rkv_attn_out_pieces)(const void *args, int32_t stage) {
  const rkv_attn_out_args *op = args;
  const rkv_layer_data *layer = op->layer;
  const int32_t n = rkv_active_count(op->active.data, op->count);
  if (n == 0) return RKV_DONE;
  switch (stage) {
    case 0: return rkv_ceil_div(n, rkv_light_rows(layer->heads * layer->head_dim));
    case 1: return RKV_FN(rkv_product_pieces)(layer->o, n);
    case 2: return rkv_ceil_div(n, rkv_light_rows(layer->hidden));
    case 3: return RKV_FN(rkv_product_pieces)(layer->gate, n);
    case 4: return RKV_FN(rkv_product_pieces)(layer->down, n);
    default: return RKV_DONE;
  }
}

/* x's rows += the outputs of a block, plus a bias where there is one. */
static void add_block(const rkv_attn_out_args *op, const int32_t *rows, rkv_block at, float *block, const rkv_weight_data *bias) {
  for (int32_t i = 0; i < at.rows; i++) {
    float *from = block + i * RKV_BLOCK_COLS;
    if (bias) rkv_add(from, (const float *)bias->packed + at.col, at.cols);
    rkv_add((float *)op->x.data + (int64_t)rkv_row_of(rows, at.row + i) * op->layer->hidden + at.col, from, at.cols);
  }
}

/* gate[i] = silu(gate[i]) * up[i], silu(g) = g / (1 + e^-g). Whole vectors: a block's rows have room up to RKV_BLOCK_COLS. */
static void swiglu(float *gate, const float *up, int32_t n) {
  for (int32_t i = 0; i < n; i += RKV_LANES) {
    const rkv_vec g = rkv_load(gate + i);
    rkv_store(gate + i, g / (rkv_set1(1.0f) + rkv_exp(-g)) * rkv_load(up + i));
  }
}

/* gate and up may be packed as different types (mixed files), so `up` follows the blocks of `gate`. */
static void gate_up(const out_plan *p, int32_t piece, void *scratch) {
  const rkv_layer_data *layer = p->layer;
  const rkv_operand normed = rkv_rows_of(p->normed, p->in_form, layer->hidden);
  float *gate = scratch, *up = gate + RKV_BLOCK_ROWS * RKV_BLOCK_COLS;
  const rkv_block at = RKV_FN(rkv_product_block)(layer->gate, p->n, piece);
  RKV_FN(rkv_product)(gate, layer->gate, normed, at, (char *)scratch + RKV_SCRATCH_PRODUCT);
  RKV_FN(rkv_product)(up, layer->up, normed, at, (char *)scratch + RKV_SCRATCH_PRODUCT);
  for (int32_t i = 0; i < at.rows; i++) {
    swiglu(gate + i * RKV_BLOCK_COLS, up + i * RKV_BLOCK_COLS, at.cols);
    RKV_FN(rkv_prepare)(rkv_row_in(p->activated, p->down_form, layer->intermediate, at.row + i), gate + i * RKV_BLOCK_COLS, layer->intermediate, at.col, at.cols, p->down_form);
  }
}

static void light_row(const rkv_attn_out_args *op, const out_plan *p, int32_t stage, int32_t i, float *normed) {
  const rkv_layer_data *layer = p->layer;
  const int64_t row = rkv_row_of(p->rows, i);
  if (stage == 2) norm_row(rkv_row_in(p->normed, p->in_form, layer->hidden, i), (const float *)op->x.data + row * layer->hidden, layer->ffn_norm, layer, p->in_form, normed);
  else if (p->o_form != RKV_FORM_F32) RKV_FN(rkv_prepare)(rkv_row_in(p->normed, p->o_form, p->width, i), (const float *)op->attended.data + row * p->width, p->width, 0, p->width, p->o_form);
}

void RKV_FN(rkv_attn_out_run)(const void *args, int32_t stage, int32_t piece, void *scratch) {
  const rkv_attn_out_args *op = args;
  const rkv_layer_data *layer = op->layer;
  out_plan p = out_plan_of(op);
  p.rows = rkv_active_rows((int32_t *)((char *)scratch + RKV_SCRATCH_ROWS), op->active.data, op->count);
  if (stage == 3) {
    gate_up(&p, piece, scratch);
  } else if (stage % 2 == 0 && stage < 4) {
    const int32_t size = rkv_light_rows(stage ? layer->hidden : p.width);
    for (int32_t i = piece * size, end = rkv_min_int(p.n, i + size); i < end; i++) light_row(op, &p, stage, i, scratch);
  } else {
    const int32_t is_down = stage == 4;
    const rkv_weight_data *weight = is_down ? layer->down : layer->o;
    rkv_operand operand = is_down ? rkv_rows_of(p.activated, p.down_form, layer->intermediate) : rkv_rows_of(p.normed, p.o_form, p.width);
    if (!is_down && p.o_form == RKV_FORM_F32) operand = (rkv_operand){op->attended.data, (int64_t)p.width * 4, p.rows, RKV_FORM_F32};
    const rkv_block at = RKV_FN(rkv_product_block)(weight, p.n, piece);
    RKV_FN(rkv_product)(scratch, weight, operand, at, (char *)scratch + RKV_SCRATCH_PRODUCT);
    add_block(op, p.rows, at, scratch, is_down ? NULL : layer->o_bias);
  }
}
