/* flash.cu: prefill attention on tensor cores, for rows of 16 bits and heads of 64 or 128 channels. A block has 128 queries of one head, a warp
 * 16 of them; keys and values come 64 rows at a time, the next while the present ones are used. The softmax runs along, so nothing that grows
 * with the length is kept. Source: FlashAttention-2 (arXiv 2307.08691). */
#include "mma.cuh"

#define QUERIES RKV_FLASH_QUERIES
#define KEYS 64
#define LOG2_E 1.4426950408889634f

DEVICE float power(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/* 64 rows of keys or values; what lies past the last visible row is zeros: a probability of 0 may not meet a NaN. */
template <int DIM>
DEVICE void load_rows(unsigned to, const char *rows, int first, int visible) {
#pragma unroll
  for (int i = 0; i < KEYS * DIM / 8 / 256; i++) {
    const int id = i * 256 + THREAD, r = id / (DIM / 8), chunk = id % (DIM / 8), is_row = first + r < visible;
    copy16(chunk_at(to, r, chunk, DIM * 2), rows + (is_row ? (int64_t)(first + r) * DIM * 2 : 0) + chunk * 16, is_row);
  }
}

template <int DTYPE, int DIM>
DEVICE void flash(const rkv_attend_chunk_args &a, const rkv_rows_data &kv, const rkv_layer_data &layer) {
  extern __shared__ __align__(1024) unsigned char shared[];
  const unsigned tiles = shared_address(shared); /* [2][keys, values][KEYS][DIM]; the queries pass through it first */
  const int head = blockIdx.x, q0 = (gridDim.y - 1 - blockIdx.y) * QUERIES, base = kv.row_end[a.slot] - a.count; /* the longest first */
  const int64_t plane = ((int64_t)a.slot * kv.kv_heads + head / (layer.heads / layer.kv_heads)) * kv.capacity;
  const char *keys = (const char *)kv.keys.data + plane * DIM * 2, *values = (const char *)kv.values.data + plane * DIM * 2;
  const int *position = kv.position + plane;
  const int visible = base + least(q0 + QUERIES, a.count), steps = ceil_div(visible, KEYS);
  unsigned q[DIM / 16][4];
  for (int i = THREAD; i < QUERIES * DIM / 2; i += 256) {
    const int r = i / (DIM / 2), d = i % (DIM / 2) * 2;
    float2 both = make_float2(0, 0);
    if (q0 + r < a.count) both = *(const float2 *)((const float *)a.q.data + ((int64_t)(q0 + r) * layer.heads + head) * DIM + d);
    *(unsigned *)(shared + (chunk_at(0, r, d / 8, DIM * 2) + d % 8 * 2)) = halves<DTYPE>(both.x, both.y);
  }
  __syncthreads();
#pragma unroll
  for (int k = 0; k < DIM / 16; k++) load_four(q[k], chunk_at(tiles, WARP * 16 + LANE % 16, k * 2 + LANE / 16, DIM * 2));
  __syncthreads();
  const unsigned pair = 2 * KEYS * DIM * 2;
  load_rows<DIM>(tiles, keys, 0, visible);
  copies_end();
  load_rows<DIM>(tiles + pair / 2, values, 0, visible);
  copies_end();
  float out[DIM / 8][4], top[2] = {-INFINITE, -INFINITE}, sum[2] = {0, 0};
#pragma unroll
  for (int i = 0; i < DIM / 2; i++) out[i / 4][i % 4] = 0;
  const int self = base + q0 + WARP * 16 + LANE / 4; /* the row of this thread's first query; its second is 8 further */
  const float scale = layer.soft_cap > 0 ? LOG2_E : layer.scale * LOG2_E;
  for (int step = 0; step < steps; step++) {
    const unsigned tile = tiles + step % 2 * pair, other = tiles + (step + 1) % 2 * pair;
    const int first = step * KEYS;
    copies_wait<1>(); /* keys are there */
    __syncthreads();
    if (step + 1 < steps) load_rows<DIM>(other, keys, first + KEYS, visible);
    copies_end();
    float s[KEYS / 8][4];
#pragma unroll
    for (int i = 0; i < KEYS / 2; i++) s[i / 4][i % 4] = 0;
#pragma unroll
    for (int k = 0; k < DIM / 16; k++)
#pragma unroll
      for (int j = 0; j < KEYS / 16; j++) {
        unsigned b[4];
        load_four(b, chunk_at(tile, j * 16 + LANE / 16 * 8 + LANE % 8, k * 2 + LANE / 8 % 2, DIM * 2));
        multiply<DTYPE>(s[2 * j], q[k], b[0], b[1]);
        multiply<DTYPE>(s[2 * j + 1], q[k], b[2], b[3]);
      }
    if (layer.soft_cap > 0)
#pragma unroll
      for (int i = 0; i < KEYS / 2; i++) s[i / 4][i % 4] = soft_cap(s[i / 4][i % 4] * layer.scale, layer.soft_cap);
    if (first + KEYS > base + q0 + WARP * 16 + 1 || layer.window > 0)
#pragma unroll
      for (int i = 0; i < KEYS / 2; i++) {
        const int row = first + i / 4 * 8 + LANE % 4 * 2 + i % 2, mine = self + i / 2 % 2 * 8;
        int is_seen = row <= mine;
        if (layer.window > 0) is_seen = is_seen && mine < base + a.count && position[mine] - position[row] < layer.window;
        if (!is_seen) s[i / 4][i % 4] = -INFINITE;
      }
#pragma unroll
    for (int h = 0; h < 2; h++) { /* the two queries of a thread; four threads share them */
      float now = top[h];
#pragma unroll
      for (int j = 0; j < KEYS / 8; j++) now = fmaxf(now, fmaxf(s[j][2 * h], s[j][2 * h + 1]));
      now = fmaxf(now, __shfl_xor_sync(0xffffffffu, now, 1));
      now = fmaxf(now, __shfl_xor_sync(0xffffffffu, now, 2));
      const float shift = now == -INFINITE ? 0 : now * scale, old = power(top[h] == -INFINITE ? -INFINITE : top[h] * scale - shift);
      float part = 0;
#pragma unroll
      for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
        for (int e = 2 * h; e < 2 * h + 2; e++) {
          s[j][e] = power(fmaf(s[j][e], scale, -shift));
          part += s[j][e];
        }
      sum[h] = fmaf(sum[h], old, part);
      top[h] = now;
#pragma unroll
      for (int j = 0; j < DIM / 8; j++) out[j][2 * h] *= old, out[j][2 * h + 1] *= old;
    }
    copies_wait<1>(); /* values are there */
    __syncthreads();
    if (step + 1 < steps) load_rows<DIM>(other + pair / 2, values, first + KEYS, visible);
    copies_end();
#pragma unroll
    for (int k = 0; k < KEYS / 16; k++) {
      const unsigned p[4] = {halves<DTYPE>(s[2 * k][0], s[2 * k][1]), halves<DTYPE>(s[2 * k][2], s[2 * k][3]), halves<DTYPE>(s[2 * k + 1][0], s[2 * k + 1][1]),
                             halves<DTYPE>(s[2 * k + 1][2], s[2 * k + 1][3])};
#pragma unroll
      for (int j = 0; j < DIM / 16; j++) {
        unsigned b[4];
        load_four_turned(b, chunk_at(tile + pair / 2, k * 16 + LANE % 16, j * 2 + LANE / 16, DIM * 2));
        multiply<DTYPE>(out[2 * j], p, b[0], b[1]);
        multiply<DTYPE>(out[2 * j + 1], p, b[2], b[3]);
      }
    }
  }
#pragma unroll
  for (int h = 0; h < 2; h++) {
    sum[h] += __shfl_xor_sync(0xffffffffu, sum[h], 1);
    sum[h] += __shfl_xor_sync(0xffffffffu, sum[h], 2);
    const int query = q0 + WARP * 16 + LANE / 4 + h * 8;
    if (query >= a.count) continue;
    const int64_t row = (int64_t)query * layer.heads + head;
    const float inverse = sum[h] == 0 ? 0 : 1 / sum[h];
    float *to = (float *)a.attended.data + row * DIM + LANE % 4 * 2;
#pragma unroll
    for (int j = 0; j < DIM / 8; j++) *(float2 *)(to + j * 8) = make_float2(out[j][2 * h] * inverse, out[j][2 * h + 1] * inverse);
    if (a.lse.data && LANE % 4 == 0) ((float *)a.lse.data)[row] = sum[h] == 0 ? -INFINITE : top[h] * scale / LOG2_E + logf(sum[h]);
  }
}

/* grid: heads, blocks of queries. */
#define FLASH(name, dtype, dim)                                                                                                                    \
  KERNEL __launch_bounds__(256, 1) kernel_flash_##name(const __grid_constant__ rkv_attend_chunk_args a, const __grid_constant__ rkv_rows_data kv, \
                                                       const __grid_constant__ rkv_layer_data layer) {                                             \
    begin();                                                                                                                                       \
    flash<dtype, dim>(a, kv, layer);                                                                                                               \
  }
FLASH(bf16_64, RKV_BF16, 64)
FLASH(bf16_128, RKV_BF16, 128)
FLASH(f16_64, RKV_F16, 64)
FLASH(f16_128, RKV_F16, 128)
