/* decoder.cu: what lies between the products: rotations, embedding, norms, biases, appending to the KV rows. */
#include "heads.cuh"
#include "quant.cuh"

/* Angles in f64: at position 100,000 an f32 angle would be off by 0.004. */
KERNEL kernel_rotations(const __grid_constant__ rkv_rotations_args a) {
  begin();
  const int half = a.frequencies.shape[0];
  const int64_t i = (int64_t)blockIdx.x * THREADS + THREAD;
  if (i >= (int64_t)a.count * half) return;
  const int row = (int)(i / half), k = (int)(i % half);
  double sine, cosine;
  sincos((double)((const int *)a.position.data)[row] * (double)((const float *)a.frequencies.data)[k], &sine, &cosine);
  float *to = (float *)a.rotations.data + (int64_t)row * 2 * half + k;
  to[0] = (float)(cosine * (double)a.factor);
  to[half] = (float)(sine * (double)a.factor);
}

/* A row of the table is a row of a weight: a block takes one token, through the product with a unit vector being a copy. */
DEVICE float weight_at(int type, const unsigned char *row, int k) {
  const int part = k % 256 / 32, i = k % 32;
  switch (type) {
    case RKV_WEIGHT_F32: return ((const float *)row)[k];
    case RKV_WEIGHT_F16: return __half2float(((const __half *)row)[k]);
    case RKV_WEIGHT_BF16: return __bfloat162float(((const __nv_bfloat16 *)row)[k]);
    case RKV_WEIGHT_Q8_0: {
      const unsigned char *b = row + k / 32 * 34;
      return half_at(b) * (float)(signed char)b[2 + i];
    }
    case RKV_WEIGHT_Q4_0: {
      const unsigned char *b = row + k / 32 * 18;
      return half_at(b) * (float)((b[2 + i % 16] >> i / 16 * 4 & 15) - 8);
    }
    case RKV_WEIGHT_Q4_1:
    case RKV_WEIGHT_Q5_0:
    case RKV_WEIGHT_Q5_1: return small_block_weight(type, row, k);
    case RKV_WEIGHT_Q6_K: {
      const unsigned char *b = row + k / 256 * 210;
      const int run = part % 4, q = (b[part / 4 * 64 + run % 2 * 32 + i] >> run / 2 * 4 & 15) | (b[128 + part / 4 * 32 + i] >> run * 2 & 3) << 4;
      return half_at(b + 208) * (float)(signed char)b[192 + k % 256 / 16] * (float)(q - 32);
    }
    default: {
      const int is_five = type == RKV_WEIGHT_Q5_K;
      const unsigned char *b = row + k / 256 * (is_five ? 176 : 144);
      int scale, minimum, q = b[(is_five ? 48 : 16) + part / 2 * 32 + i] >> part % 2 * 4 & 15;
      if (is_five) q |= (b[16 + i] >> part & 1) << 4;
      k_scale(b + 4, part, &scale, &minimum);
      return fmaf(half_at(b) * (float)scale, (float)q, -(half_at(b + 2) * (float)minimum));
    }
  }
}

KERNEL kernel_embed(const __grid_constant__ rkv_embed_args a, const unsigned char *table, int64_t stride, int type, int vocab, int hidden) {
  begin();
  const int row = blockIdx.x;
  if (a.active.data && !((const int *)a.active.data)[row]) return;
  const int token = ((const int *)a.token.data)[row], is_known = token >= 0 && token < vocab;
  float *x = (float *)a.x.data + (int64_t)row * hidden;
  for (int k = THREAD; k < hidden; k += THREADS) x[k] = is_known ? weight_at(type, table + token * stride, k) : NOT_A_NUMBER;
}

/* to = x / sqrt(mean(x^2) + eps) * weight. Source: RMSNorm (arXiv 1910.07467). */
KERNEL kernel_norm(float *to, const float *x, const float *weight, const int *active, int width, float eps) {
  begin();
  __shared__ float shared[32];
  const int row = blockIdx.x;
  if (active && !active[row]) return;
  x += (int64_t)row * width;
  to += (int64_t)row * width;
  float sum = 0;
  if (width % 4 == 0 && width <= 4 * THREADS) { /* once read, kept */
    const int k = 4 * THREAD, is_there = k < width;
    const float4 v = is_there ? *(const float4 *)(x + k) : make_float4(0, 0, 0, 0), w = is_there ? *(const float4 *)(weight + k) : v;
    sum = fmaf(v.x, v.x, fmaf(v.y, v.y, fmaf(v.z, v.z, v.w * v.w)));
    const float factor = 1.0f / sqrtf(block_sum(sum, shared) / (float)width + eps);
    if (is_there) *(float4 *)(to + k) = make_float4(v.x * factor * w.x, v.y * factor * w.y, v.z * factor * w.z, v.w * factor * w.w);
    return;
  }
#pragma unroll 2
  for (int k = THREAD; k < width; k += THREADS) sum = fmaf(x[k], x[k], sum);
  const float factor = 1.0f / sqrtf(block_sum(sum, shared) / (float)width + eps);
#pragma unroll 2
  for (int k = THREAD; k < width; k += THREADS) to[k] = x[k] * factor * weight[k];
}

/* q in place; k and v from work to the KV rows. A block has as many heads of one row of x as warps, or, in a step, all of them: there it moves
 * the slot's rowEnd on as well. grid: rows, runs of heads. `kv.keys.data` NULL: only the queries are wanted. */
KERNEL __launch_bounds__(1024, 1) kernel_finish(const __grid_constant__ rkv_heads a, const __grid_constant__ rkv_rows_data kv, const __grid_constant__ rkv_layer_data layer,
                                                const int *active, int slot, int *fault) {
  begin();
  extern __shared__ float heads[];
  const int row = blockIdx.x, all = layer.heads + (kv.keys.data ? 2 * layer.kv_heads : 0);
  if (active && !active[row]) return;
  const int is_step = slot == RKV_STEP, to_slot = is_step ? row : slot;
  const int64_t to = !kv.keys.data ? 0 : is_step ? kv.row_end[to_slot] : (int64_t)kv.row_end[to_slot] + row;
  float *head = heads + WARP * layer.head_dim;
  const bool is_room = to < kv.capacity;
  if (!is_room && kv.keys.data && THREAD == 0) *(volatile int *)fault = 1;
#pragma unroll 1
  for (int h = blockIdx.y * WARPS + WARP; h < all; h += gridDim.y * WARPS) {
    if (h >= layer.heads && !is_room) break; /* those that follow are rows too */
    make_head(head, layer.head_dim, a, layer, row, h, a.rotations + (int64_t)row * layer.rope_dim);
    const int g = h - layer.heads, is_value = g >= layer.kv_heads;
    if (g < 0) keep_query(head, layer.head_dim, a, layer, row, h);
    else keep_row(head, layer.head_dim, is_value ? kv.values.dtype : kv.keys.dtype, kv, to_slot, to, a.position[row], g - is_value * layer.kv_heads, is_value);
    __syncwarp();
  }
  if (!is_step || !kv.keys.data) return;
  __syncthreads(); /* all have read it */
  if (THREAD == 0 && is_room) kv.row_end[to_slot] = (int)to + 1;
}

/* rowEnd moves on by what a chunk appended. */
KERNEL kernel_move_row_end(const __grid_constant__ rkv_rows_data kv, int slot, int count) {
  begin();
  if (THREAD == 0) kv.row_end[slot] += least(count, most(0, kv.capacity - kv.row_end[slot]));
}

KERNEL kernel_advance(int *position, const int *active, int slots) {
  begin();
  for (int s = THREAD; s < slots; s += THREADS) position[s] += active[s] != 0;
}
