/* launch_decoder.c: the decoder's ops as launches. */
#include "linear.h"

static const float *vector(const rkv_weight_data *weight) { return weight == NULL ? NULL : weight->packed; }

static void norm(rkv_cuda *c, float *to, const float *x, const rkv_weight_data *weight, const int32_t *active, int32_t count, int32_t width, float eps) {
  const float *w = weight->packed;
  LAUNCH(c, norm, count, 1, 1, active != NULL ? 1024 : 256, 0, &to, &x, &w, &active, &width, &eps);
}

/* ---- ops ---- */

void rkv_cuda_rotations(rkv_cuda *c, rkv_arena_object *arena, const void *args) {
  rkv_rotations_args a = *(const rkv_rotations_args *)args;
  (void)arena;
  LAUNCH(c, rotations, rkv_blocks((int64_t)a.count * a.frequencies.shape[0], 128), 1, 1, 128, 0, &a);
}

void rkv_cuda_embed(rkv_cuda *c, rkv_arena_object *arena, const void *args) {
  rkv_embed_args a = *(const rkv_embed_args *)args;
  const rkv_weight_data *w = a.model->embed;
  const void *table = w->packed;
  int64_t stride = (int64_t)rkv_cuda_stride(w->type, w->cols);
  int32_t type = w->type, vocab = a.model->vocab, hidden = a.model->hidden;
  (void)arena;
  if (w->rows == 1) type = RKV_WEIGHT_F32; /* a table of one row was packed as a vector */
  LAUNCH(c, embed, a.count, 1, 1, 256, 0, &a, &table, &stride, &type, &vocab, &hidden);
}

static rkv_heads heads_of(const rkv_layer_data *l, float *q, const float *k, const float *v, const rkv_view *rotations, const int32_t *position) {
  return (rkv_heads){.q = q, .k = k, .v = v, .q_bias = vector(l->q_bias), .k_bias = vector(l->k_bias), .v_bias = vector(l->v_bias), .q_norm = vector(l->q_norm),
                     .k_norm = vector(l->k_norm), .rotations = rotations->data, .position = position};
}

static void finish(rkv_cuda *c, rkv_arena_object *arena, rkv_heads a, rkv_rows_data kv, rkv_layer_data layer, const int32_t *active, int32_t slot, int32_t count) {
  int32_t *fault = rkv_fault_of(arena);
  const int32_t heads = layer.heads + (kv.keys.data != NULL ? 2 * layer.kv_heads : 0), warps = slot != RKV_STEP ? 8 : heads < 32 ? heads : 32;
  LAUNCH(c, finish, count, slot == RKV_STEP ? 1 : rkv_blocks(heads, warps), 1, (uint32_t)(32 * warps), warps * layer.head_dim * 4, &a, &kv, &layer, &active, &slot, &fault);
}

/* Whether products of one x can all go on tensor cores, with the same halves. */
static bool fits_all(const rkv_cuda *c, const rkv_weight_data *const *weights, int32_t n, int32_t count, const int32_t *active) {
  for (int32_t i = 0; i < n; i++)
    if (!rkv_fits_tensor(c, weights[i], count, active) || rkv_tensor_dtype(weights[i]) != rkv_tensor_dtype(weights[0])) return false;
  return true;
}

static void in_f32(rkv_cuda *c, const rkv_attn_in_args *a, float *normed, float *k, float *v, const int32_t *active) {
  const rkv_layer_data *l = a->layer;
  const int32_t hidden = l->hidden, q_width = l->heads * l->head_dim, kv_width = l->kv_heads * l->head_dim, count = a->count;
  float *q = a->q.data;
  norm(c, normed, a->x.data, l->attn_norm, active, count, hidden, l->eps);
  const rkv_product products[] = {rkv_product_of(l->q, normed, hidden, q, q_width, active, count, RKV_STORE), rkv_product_of(l->k, normed, hidden, k, kv_width, active, count, RKV_STORE),
                                  rkv_product_of(l->v, normed, hidden, v, kv_width, active, count, RKV_STORE)};
  rkv_multiply(c, products, 3);
}

rkv_heads rkv_attn_products(rkv_cuda *c, const rkv_attn_in_args *a) {
  const rkv_layer_data *l = a->layer;
  const int32_t hidden = l->hidden, kv_width = l->kv_heads * l->head_dim, count = a->count;
  const int32_t *active = a->slot == RKV_STEP ? a->rows->active : NULL;
  float *normed = a->work.data, *k = normed + (int64_t)count * hidden, *v = k + (int64_t)count * kv_width, *q = a->q.data;
  const bool is_tensor = fits_all(c, (const rkv_weight_data *[]){l->q, l->k, l->v}, 3, count, active);
  if (is_tensor) {
    rkv_norm_halves(c, normed, a->x.data, l->attn_norm, count, l->eps, rkv_tensor_dtype(l->q));
    rkv_tensor_multiply(c, l->q, NULL, normed, q, NULL, count, RKV_STORE);
    rkv_tensor_multiply(c, l->k, NULL, normed, k, NULL, count, RKV_STORE);
    rkv_tensor_multiply(c, l->v, NULL, normed, v, NULL, count, RKV_STORE);
  } else {
    in_f32(c, a, normed, k, v, active);
  }
  return heads_of(l, q, k, v, &a->rotations, a->position.data);
}

void rkv_cuda_attn_in(rkv_cuda *c, rkv_arena_object *arena, const void *args) {
  const rkv_attn_in_args *a = args;
  rkv_rows_data kv = *a->rows;
  int32_t slot = a->slot, count = a->count;
  finish(c, arena, rkv_attn_products(c, a), kv, *a->layer, slot == RKV_STEP ? kv.active : NULL, slot, count);
  if (slot != RKV_STEP) LAUNCH(c, move_row_end, 1, 1, 1, 32, 0, &kv, &slot, &count); /* a step moved it on */
}

void rkv_cuda_queries(rkv_cuda *c, rkv_arena_object *arena, const void *args) {
  const rkv_queries_args *a = args;
  const rkv_layer_data *l = a->layer;
  const int32_t *active = a->active.data;
  float *normed = a->work.data, *q = a->q.data;
  norm(c, normed, a->x.data, l->attn_norm, active, a->count, l->hidden, l->eps);
  const rkv_product p = rkv_product_of(l->q, normed, l->hidden, q, l->heads * l->head_dim, active, a->count, RKV_STORE);
  rkv_multiply(c, &p, 1);
  finish(c, arena, heads_of(l, q, NULL, NULL, &a->rotations, NULL), (rkv_rows_data){0}, *l, active, RKV_STEP, a->count);
}

/* x += Wo attended; h = norm(x); x += Wdown (silu(Wgate h) * (Wup h)), each product with what its weights allow. Work holds halves here. */
static void out_halves(rkv_cuda *c, const rkv_attn_out_args *a) {
  const rkv_layer_data *l = a->layer;
  const int32_t count = a->count;
  float *x = a->x.data;
  void *halves = a->work.data, *activated = (char *)halves + (int64_t)count * l->hidden * 2;
  rkv_to_halves(c, halves, a->attended.data, (int64_t)count * l->heads * l->head_dim, rkv_tensor_dtype(l->o));
  rkv_tensor_multiply(c, l->o, NULL, halves, x, l->o_bias, count, RKV_ADD);
  rkv_norm_halves(c, halves, x, l->ffn_norm, count, l->eps, rkv_tensor_dtype(l->gate));
  rkv_tensor_multiply(c, l->gate, l->up, halves, activated, NULL, count, RKV_SWIGLU);
  rkv_tensor_multiply(c, l->down, NULL, activated, x, NULL, count, RKV_ADD);
}

void rkv_cuda_attn_out(rkv_cuda *c, rkv_arena_object *arena, const void *args) {
  const rkv_attn_out_args *a = args;
  const rkv_layer_data *l = a->layer;
  const int32_t hidden = l->hidden, wide = l->intermediate, count = a->count, *active = a->active.data;
  float *x = a->x.data, *normed = a->work.data, *activated = normed + (int64_t)count * hidden;
  (void)arena;
  if (rkv_fits_tensor(c, l->o, count, active) && fits_all(c, (const rkv_weight_data *[]){l->gate, l->up, l->down}, 3, count, active)) {
    out_halves(c, a);
    return;
  }
  rkv_product o = rkv_product_of(l->o, a->attended.data, (int64_t)l->heads * l->head_dim, x, hidden, active, count, RKV_ADD);
  o.bias = vector(l->o_bias);
  rkv_multiply(c, &o, 1);
  norm(c, normed, x, l->ffn_norm, active, count, hidden, l->eps);
  rkv_product gate = rkv_product_of(l->gate, normed, hidden, activated, wide, active, count, RKV_SWIGLU);
  gate.gated = l->up->packed;
  gate.gated_type = l->up->type;
  gate.gated_stride = (int64_t)rkv_cuda_stride(l->up->type, l->up->cols);
  rkv_multiply(c, &gate, 1);
  const rkv_product down = rkv_product_of(l->down, activated, wide, x, hidden, active, count, RKV_ADD);
  rkv_multiply(c, &down, 1);
}

void rkv_cuda_head(rkv_cuda *c, rkv_arena_object *arena, const void *args) {
  const rkv_head_args *a = args;
  const rkv_model_data *m = a->model;
  const int32_t *active = a->active.data ? (const int32_t *)a->active.data + a->first : NULL;
  float *work = a->work.data;
  (void)arena;
  norm(c, work, (const float *)a->x.data + (int64_t)a->first * m->hidden, m->output_norm, active, a->count, m->hidden, m->eps);
  const rkv_product p = rkv_product_of(m->output, work, m->hidden, (float *)a->logits.data + (int64_t)a->first * m->vocab, m->vocab, active, a->count, RKV_STORE);
  rkv_multiply(c, &p, 1);
}

void rkv_cuda_advance(rkv_cuda *c, rkv_arena_object *arena, const void *args) {
  const rkv_advance_args *a = args;
  int32_t *position = a->position.data, slots = a->position.shape[0];
  const int32_t *active = a->active.data;
  (void)arena;
  LAUNCH(c, advance, 1, 1, 1, 64, 0, &position, &active, &slots);
}

static size_t copy_row(const rkv_view *v) { return rkv_row_bytes(v->dtype, v->rank == 1 ? 1 : v->shape[v->rank - 1]); }

void rkv_cuda_copy(rkv_cuda *c, rkv_arena_object *arena, const void *args) {
  const rkv_copy_args *a = args;
  const size_t row = copy_row(&a->to), bytes = (size_t)a->count * row;
  (void)arena;
  if (c->result != 0 || bytes == 0) return;
  c->result = cuMemcpyDtoDAsync_v2((CUdeviceptr)(uintptr_t)a->to.data + (size_t)a->to_row * row, (CUdeviceptr)(uintptr_t)a->from.data + (size_t)a->from_row * row, bytes, c->stream);
}
