/* launch_linear.c: weights onto the device, and products with them. Steps go row by row of x, so that no slot's bits depend on the others;
 * the chunks of a prefill go by tiles, on tensor cores where widths and types allow. */
#include <string.h>
#include "cublaslt.h"
#include "linear.h"

static const struct { int32_t weights, bytes; } blocks[] = {{1, 4}, {1, 2}, {1, 2}, {32, 34}, {32, 18}, {256, 144}, {256, 176}, {256, 210}, {32, 20}, {32, 22}, {32, 24}};

static size_t file_row(int32_t type, int32_t cols) { return (size_t)(cols / blocks[type].weights) * (size_t)blocks[type].bytes; }
size_t rkv_cuda_stride(int32_t type, int32_t cols) { return (file_row(type, cols) + 15) / 16 * 16; }

/* ---- pack: rows as in the file, at a stride; a vector as f32 ---- */

static void upload(rkv_cuda *c, void *to, const void *from, size_t bytes) {
  if (c->result == 0) c->result = cuMemcpyHtoDAsync_v2((CUdeviceptr)(uintptr_t)to, from, bytes, c->stream);
}

#define STAGED (4 << 20)
#define VOCABULARY (1 << 16) /* a matrix of more rows is a table of tokens: prefill does not multiply with it */

/* Prefill unpacks what is quantised into halves: room for the largest two matrices there are. Between ops, so that no op allocates. */
static void grow_scratch(rkv_cuda *c, const rkv_weight_data *w) {
  const size_t bytes = (size_t)w->rows * (size_t)w->cols * 4;
  if (w->type < RKV_WEIGHT_Q8_0 || w->rows > VOCABULARY || w->rows == 1 || bytes <= c->scratch_bytes || c->result != 0) return;
  if ((c->result = cuStreamSynchronize(c->stream)) != 0) return;
  if (c->scratch != 0) cuMemFree_v2(c->scratch);
  c->scratch_bytes = bytes;
  if ((c->result = cuMemAlloc_v2(&c->scratch, bytes)) != 0) c->scratch = 0, c->scratch_bytes = 0;
}

void rkv_cuda_pack(rkv_cuda *c, rkv_arena_object *arena, const void *args) {
  const rkv_pack_args *a = args;
  const rkv_weight_data *w = a->weight;
  const size_t bytes = file_row(w->type, w->cols), stride = rkv_cuda_stride(w->type, w->cols);
  (void)arena;
  grow_scratch(c, w);
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

rkv_product rkv_product_of(const rkv_weight_data *w, const float *x, int64_t x_stride, float *y, int64_t y_stride, const int32_t *active, int32_t count, int32_t mode) {
  return (rkv_product){.w = w->packed, .stride = (int64_t)rkv_cuda_stride(w->type, w->cols), .type = w->type, .rows = w->rows, .cols = w->cols,
                       .x = x, .y = y, .x_stride = x_stride, .y_stride = y_stride, .active = active, .count = count, .mode = mode};
}

static rkv_kernel_id of_type(int32_t type, rkv_kernel_id f32) { /* kernels follow one another: f32, f16, bf16, quant */
  return (rkv_kernel_id)(f32 + (type < RKV_WEIGHT_Q8_0 ? type : RKV_WEIGHT_Q8_0));
}

static uint32_t step_shared(const rkv_cuda *c) {
  return c->capability < 90 ? RKV_STEP_SHARED(RKV_STEP_DEPTH_BEFORE, RKV_STEP_TILES_BEFORE) : RKV_STEP_SHARED(RKV_STEP_DEPTH, RKV_STEP_TILES);
}

/* Halves in whole vectors, few rows of x, and the shared memory of a large GPU: the tensor cores' way of a step. */
static bool fits_step(const rkv_cuda *c, const rkv_product *p, int32_t count) {
  if (c->shared < step_shared(c)) return false;
  for (int32_t i = 0; i < count; i++) {
    if ((p[i].type != RKV_WEIGHT_BF16 && p[i].type != RKV_WEIGHT_F16) || p[i].type != p[0].type || p[i].cols % 32 != 0 || p[i].count > 64) return false;
    if (p[i].mode == RKV_SWIGLU && (p[i].gated_type != p[i].type || count > 1)) return false;
    if (p[i].x_stride % 4 != 0 || (uintptr_t)p[i].x % 16 != 0) return false;
  }
  return true;
}

/* Products of the same x. Steps go row by row, so that no slot's bits depend on the others; long chunks by tiles. */
void rkv_multiply(rkv_cuda *c, const rkv_product *p, int32_t count) {
  if (p[0].active == NULL && p[0].count > 2 * RKV_FEW) {
    for (int32_t i = 0; i < count; i++) {
      int32_t type = p[i].mode == RKV_SWIGLU && p[i].gated_type != p[i].type ? RKV_WEIGHT_Q8_0 : p[i].type;
      rkv_product one = p[i];
      rkv_launch(c, of_type(type, RKV_KERNEL_many_f32), (uint64_t)rkv_blocks(one.rows, RKV_MANY), (uint32_t)rkv_blocks(one.count, RKV_MANY), 1, 256, 0, (void *[]){&one});
    }
    return;
  }
  if (fits_step(c, p, count)) {
    rkv_products all = {.products = count};
    int32_t tiles = 0, is_gated = p[0].mode == RKV_SWIGLU, is_f16 = p[0].type == RKV_WEIGHT_F16, is_wide = p[0].count > RKV_FEW && c->shared >= RKV_WIDE_SHARED;
    for (int32_t i = 0; i < count; i++) {
      all.of[i] = p[i];
      tiles += rkv_blocks(p[i].rows, is_gated ? 8 : 16);
    }
    rkv_launch(c, (rkv_kernel_id)(RKV_KERNEL_step_bf16 + 4 * is_wide + 2 * is_f16 + is_gated), (uint64_t)(tiles < c->processors ? tiles : c->processors), 1, 1,
               (is_wide ? 16 : 32) * RKV_STEP_WARPS, is_wide ? RKV_WIDE_SHARED : step_shared(c), (void *[]){&all});
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

/* ---- tensor cores ---- */

int32_t rkv_tensor_dtype(const rkv_weight_data *w) { return w->type == RKV_WEIGHT_BF16 ? RKV_BF16 : RKV_F16; }

bool rkv_fits_tensor(const rkv_cuda *c, const rkv_weight_data *w, int32_t count, const int32_t *active) {
  if (active != NULL || count < RKV_TENSOR_ROWS || w->cols < RKV_TENSOR_COLS || w->cols % 64 != 0 || w->type == RKV_WEIGHT_F32 || w->rows % 2 != 0) return false;
  return w->type < RKV_WEIGHT_Q8_0 || (size_t)w->rows * (size_t)w->cols * 4 <= c->scratch_bytes;
}

/* The weight as halves: as it lies, or unpacked into half `place` of the scratch. */
static const void *halves_of(rkv_cuda *c, const rkv_weight_data *w, int32_t place, int64_t *stride) {
  int64_t packed = (int64_t)rkv_cuda_stride(w->type, w->cols);
  *stride = packed;
  if (w->type < RKV_WEIGHT_Q8_0) return w->packed;
  *stride = (int64_t)w->cols * 2;
  void *to = (void *)(uintptr_t)(c->scratch + (size_t)place * ((size_t)w->rows * (size_t)w->cols * 2)), *from = w->packed;
  int32_t type = w->type, cols = w->cols;
  LAUNCH(c, unpack, w->rows, 1, 1, 128, 0, &to, &from, &packed, &type, &cols);
  return to;
}

void rkv_tensor_multiply(rkv_cuda *c, const rkv_weight_data *w, const rkv_weight_data *gated, const void *x, void *y, const rkv_weight_data *bias, int32_t count, int32_t mode) {
  rkv_tensor_product p = {.x = x, .y = y, .x_stride = (int64_t)w->cols * 2, .rows = w->rows, .cols = w->cols, .count = count, .mode = mode};
  p.y_stride = (int64_t)w->rows * (mode == RKV_SWIGLU ? 2 : 4);
  p.bias = bias == NULL ? NULL : bias->packed;
  p.w = halves_of(c, w, 0, &p.stride);
  if (gated != NULL) p.gated = halves_of(c, gated, 1, &p.gated_stride);
  if (c->lt != NULL && rkv_lt_multiply(c, &p, rkv_tensor_dtype(w))) return;
  const int32_t columns = mode == RKV_SWIGLU ? 64 : 128;
  rkv_launch(c, rkv_tensor_dtype(w) == RKV_BF16 ? RKV_KERNEL_tensor_bf16 : RKV_KERNEL_tensor_f16, (uint64_t)rkv_blocks(count, 128), (uint32_t)rkv_blocks(w->rows, columns), 1, 256,
             RKV_TENSOR_SHARED, (void *[]){&p});
}

void rkv_norm_halves(rkv_cuda *c, void *to, const float *x, const rkv_weight_data *weight, int32_t count, float eps, int32_t dtype) {
  const float *w = weight->packed;
  int32_t width = weight->cols;
  LAUNCH(c, norm_halves, count, 1, 1, 256, 0, &to, &x, &w, &width, &eps, &dtype);
}

void rkv_to_halves(rkv_cuda *c, void *to, const float *x, int64_t count, int32_t dtype) {
  int64_t pairs = count / 2;
  LAUNCH(c, to_halves, rkv_blocks(pairs, 1024), 1, 1, 256, 0, &to, &x, &pairs, &dtype);
}
