/* launch_decoder.c: the decoder's ops as launches. */
#include <string.h>
#include "cuda.h"

static const struct { int32_t weights, bytes; } blocks[] = {{1, 4}, {1, 2}, {1, 2}, {32, 34}, {32, 18}, {256, 144}, {256, 176}, {256, 210}};

static size_t file_row(int32_t type, int32_t cols) { return (size_t)(cols / blocks[type].weights) * (size_t)blocks[type].bytes; }
size_t rkv_cuda_stride(int32_t type, int32_t cols) { return (file_row(type, cols) + 15) / 16 * 16; }

static const float *vector(const rkv_weight_data *weight) { return weight == NULL ? NULL : weight->packed; }

/* ---- pack: rows as in the file, at a stride; a vector as f32 ---- */

static void upload(rkv_cuda *c, void *to, const void *from, size_t bytes) {
  if (c->result == 0) c->result = cuMemcpyHtoDAsync_v2((CUdeviceptr)(uintptr_t)to, from, bytes, c->stream);
}

#define STAGED (4 << 20)

void rkv_cuda_pack(rkv_cuda *c, rkv_arena_object *arena, const void *args) {
  const rkv_pack_args *a = args;
  const rkv_weight_data *w = a->weight;
  const size_t bytes = file_row(w->type, w->cols), stride = rkv_cuda_stride(w->type, w->cols);
  (void)arena;
  if (w->rows == 1) {
    CUdeviceptr staged = 0;
    if ((c->result = cuMemAlloc_v2(&staged, bytes)) != 0) return;
    void *from = (void *)(uintptr_t)staged, *to = w->packed;
    int32_t type = w->type, cols = w->cols, rotated = a->rotated;
    upload(c, from, a->source, bytes);
    LAUNCH(c, pack_vector, rkv_blocks(cols, 256), 1, 1, 256, 0, &to, &from, &type, &cols, &rotated);
    const CUresult result = cuStreamSynchronize(c->stream);
    if (c->result == 0) c->result = result;
    cuMemFree_v2(staged);
    return;
  }
  if (a->rotated == 0 && bytes == stride) {
    upload(c, w->packed, a->source, (size_t)w->rows * stride);
  } else { /* through the ring of writes, row by row in the order of the device */
    const int64_t half = a->rotated > 0 ? w->rows / a->rotated / 2 : 0, most = STAGED / (int64_t)stride < 1 ? 1 : STAGED / (int64_t)stride;
    for (int64_t first = 0; first < w->rows && c->result == 0; first += most) {
      const int64_t count = w->rows - first < most ? w->rows - first : most;
      if ((c->result = cuStreamSynchronize(c->stream)) != 0) return;
      if ((size_t)count * stride > RKV_UPLOAD) return (void)(c->result = RKV_CU_OUT_OF_MEMORY);
      c->uploaded = (size_t)count * stride;
      for (int64_t i = 0; i < count; i++) {
        const int64_t row = first + i, in_head = half ? row % (2 * half) : 0;
        const int64_t source = half ? row - in_head + in_head % half * 2 + in_head / half : row;
        memcpy(c->upload + (size_t)i * stride, (const char *)a->source + (size_t)source * bytes, bytes);
        memset(c->upload + (size_t)i * stride + bytes, 0, stride - bytes);
      }
      upload(c, (char *)w->packed + (size_t)first * stride, c->upload, (size_t)count * stride);
    }
  }
  const CUresult result = cuStreamSynchronize(c->stream); /* the file may be let go */
  if (c->result == 0) c->result = result;
}

/* ---- products ---- */

static rkv_product product(const rkv_weight_data *w, const float *x, int64_t x_stride, float *y, int64_t y_stride, const int32_t *active, int32_t count, int32_t mode) {
  return (rkv_product){.w = w->packed, .stride = (int64_t)rkv_cuda_stride(w->type, w->cols), .type = w->type, .rows = w->rows, .cols = w->cols,
                       .x = x, .y = y, .x_stride = x_stride, .y_stride = y_stride, .active = active, .count = count, .mode = mode};
}

static rkv_kernel_id of_type(int32_t type, rkv_kernel_id f32) { /* kernels follow one another: f32, f16, bf16, quant */
  return (rkv_kernel_id)(f32 + (type < RKV_WEIGHT_Q8_0 ? type : RKV_WEIGHT_Q8_0));
}

/* Products of the same x. Steps go row by row, so that no slot's bits depend on the others; long chunks by tiles. */
static void multiply(rkv_cuda *c, const rkv_product *p, int32_t count) {
  if (p[0].active == NULL && p[0].count > 2 * RKV_FEW) {
    for (int32_t i = 0; i < count; i++) {
      int32_t type = p[i].mode == RKV_SWIGLU && p[i].gated_type != p[i].type ? RKV_WEIGHT_Q8_0 : p[i].type;
      rkv_product one = p[i];
      rkv_launch(c, of_type(type, RKV_KERNEL_many_f32), (uint64_t)rkv_blocks(one.rows, RKV_MANY), (uint32_t)rkv_blocks(one.count, RKV_MANY), 1, 256, 0, (void *[]){&one});
    }
    return;
  }
  for (int32_t first = 0; first < count;) { /* neighbours of one type share a launch */
    rkv_products all = {.products = 0};
    int32_t rows = 0, type = p[first].mode == RKV_SWIGLU && p[first].gated_type != p[first].type ? RKV_WEIGHT_Q8_0 : p[first].type;
    while (first < count && all.products < 3 && (all.products == 0 || p[first].type == all.of[0].type)) {
      rows = p[first].rows > rows ? p[first].rows : rows;
      all.of[all.products++] = p[first++];
    }
    rkv_launch(c, of_type(type, RKV_KERNEL_few_f32), (uint64_t)rkv_blocks(rows, RKV_FEW_WARPS), (uint32_t)all.products, 1, 32 * RKV_FEW_WARPS, 0, (void *[]){&all});
  }
}

static void norm(rkv_cuda *c, float *to, const float *x, const rkv_weight_data *weight, const int32_t *active, int32_t count, int32_t width, float eps) {
  const float *w = weight->packed;
  LAUNCH(c, norm, count, 1, 1, 256, 0, &to, &x, &w, &active, &width, &eps);
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

static void finish(rkv_cuda *c, rkv_arena_object *arena, float *q, const float *k, const float *v, rkv_rows_data kv, rkv_layer_data layer, rkv_view rotations,
                   const int32_t *position, const int32_t *active, int32_t slot, int32_t count) {
  const float *q_bias = vector(layer.q_bias), *k_bias = vector(layer.k_bias), *v_bias = vector(layer.v_bias);
  const float *q_norm = vector(layer.q_norm), *k_norm = vector(layer.k_norm);
  int32_t *fault = rkv_fault_of(arena);
  LAUNCH(c, finish, count, 1, 1, 256, 8 * layer.head_dim * 4, &q, &k, &v, &kv, &layer, &rotations, &position, &active, &slot, &q_bias, &k_bias, &v_bias, &q_norm, &k_norm,
         &fault);
}

void rkv_cuda_attn_in(rkv_cuda *c, rkv_arena_object *arena, const void *args) {
  const rkv_attn_in_args *a = args;
  const rkv_layer_data *l = a->layer;
  const int32_t hidden = l->hidden, q_width = l->heads * l->head_dim, kv_width = l->kv_heads * l->head_dim, count = a->count;
  const int32_t *active = a->slot == RKV_STEP ? a->rows->active : NULL;
  float *normed = a->work.data, *k = normed + (int64_t)count * hidden, *v = k + (int64_t)count * kv_width, *q = a->q.data;
  norm(c, normed, a->x.data, l->attn_norm, active, count, hidden, l->eps);
  const rkv_product products[] = {product(l->q, normed, hidden, q, q_width, active, count, RKV_STORE), product(l->k, normed, hidden, k, kv_width, active, count, RKV_STORE),
                                  product(l->v, normed, hidden, v, kv_width, active, count, RKV_STORE)};
  multiply(c, products, 3);
  finish(c, arena, q, k, v, *a->rows, *l, a->rotations, a->position.data, active, a->slot, count);
  rkv_rows_data kv = *a->rows;
  int32_t slot = a->slot, appended = count;
  LAUNCH(c, move_row_end, 1, 1, 1, 64, 0, &kv, &slot, &appended);
}

void rkv_cuda_queries(rkv_cuda *c, rkv_arena_object *arena, const void *args) {
  const rkv_queries_args *a = args;
  const rkv_layer_data *l = a->layer;
  const int32_t *active = a->active.data;
  float *normed = a->work.data, *q = a->q.data;
  norm(c, normed, a->x.data, l->attn_norm, active, a->count, l->hidden, l->eps);
  const rkv_product p = product(l->q, normed, l->hidden, q, l->heads * l->head_dim, active, a->count, RKV_STORE);
  multiply(c, &p, 1);
  finish(c, arena, q, NULL, NULL, (rkv_rows_data){0}, *l, a->rotations, NULL, active, RKV_STEP, a->count);
}

void rkv_cuda_attn_out(rkv_cuda *c, rkv_arena_object *arena, const void *args) {
  const rkv_attn_out_args *a = args;
  const rkv_layer_data *l = a->layer;
  const int32_t hidden = l->hidden, wide = l->intermediate, count = a->count, *active = a->active.data;
  float *x = a->x.data, *normed = a->work.data, *activated = normed + (int64_t)count * hidden;
  (void)arena;
  rkv_product o = product(l->o, a->attended.data, (int64_t)l->heads * l->head_dim, x, hidden, active, count, RKV_ADD);
  o.bias = vector(l->o_bias);
  multiply(c, &o, 1);
  norm(c, normed, x, l->ffn_norm, active, count, hidden, l->eps);
  rkv_product gate = product(l->gate, normed, hidden, activated, wide, active, count, RKV_SWIGLU);
  gate.gated = l->up->packed;
  gate.gated_type = l->up->type;
  gate.gated_stride = (int64_t)rkv_cuda_stride(l->up->type, l->up->cols);
  multiply(c, &gate, 1);
  const rkv_product down = product(l->down, activated, wide, x, hidden, active, count, RKV_ADD);
  multiply(c, &down, 1);
}

void rkv_cuda_head(rkv_cuda *c, rkv_arena_object *arena, const void *args) {
  const rkv_head_args *a = args;
  const rkv_model_data *m = a->model;
  const int32_t *active = a->active.data ? (const int32_t *)a->active.data + a->first : NULL;
  float *work = a->work.data;
  (void)arena;
  norm(c, work, (const float *)a->x.data + (int64_t)a->first * m->hidden, m->output_norm, active, a->count, m->hidden, m->eps);
  const rkv_product p = product(m->output, work, m->hidden, (float *)a->logits.data + (int64_t)a->first * m->vocab, m->vocab, active, a->count, RKV_STORE);
  multiply(c, &p, 1);
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
