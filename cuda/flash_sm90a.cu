/* flash_sm90a.cu: what flash.cu does, on the tensor-core instructions that Hopper alone has. A block has 128 queries of one head, four warps 64 of
 * them; four more warps bring keys and values, 128 rows at a time, into a ring of four tiles. A tile's softmax runs while the values of the tile
 * before are multiplied. Source: FlashAttention-3 (arXiv 2407.08608). */
#include "wgmma.cuh"

#define QUERIES RKV_FLASH_QUERIES
#define KEYS RKV_FLASH_SM90A_KEYS
#define TILES RKV_FLASH_SM90A_TILES
#define BRINGERS 128
#define USERS 256
#define LOG2_E 1.4426950408889634f

DEVICE float power(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/* Where 16 bytes of a row lie in a tile of `rows` rows. */
DEVICE unsigned tile_chunk(unsigned tile, int rows, int row, int chunk) { return chunk_at(tile + chunk / 8 * rows * 128, row, chunk % 8, 128); }

template <int DIM>
DEVICE void bring(unsigned tiles, unsigned full, unsigned empty, const char *keys, const char *values, int steps, int visible) {
  for (int i = 0; i < 2 * steps; i++) {
    const unsigned tile = tiles + i % TILES * (KEYS * DIM * 2);
    const char *rows = i % 2 ? values : keys;
    const int first = i / 2 * KEYS;
    if (i >= TILES) barrier_wait(empty + i % TILES * 8, (i / TILES - 1) % 2);
#pragma unroll 8
    for (int j = 0; j < KEYS * DIM / 8 / BRINGERS; j++) {
      const int id = j * BRINGERS + THREAD, r = id / (DIM / 8), chunk = id % (DIM / 8), is_row = first + r < visible; /* a probability of 0 may not meet a NaN */
      copy16(tile_chunk(tile, KEYS, r, chunk), rows + (is_row ? (int64_t)(first + r) * DIM * 2 : 0) + chunk * 16, is_row);
    }
    copies_end();
    if (i < 2) continue;
    copies_wait<2>();
    show_products();
    barrier_arrive(full + (i - 2) % TILES * 8);
  }
  copies_wait<0>();
  show_products();
  for (int i = 2 * steps - 2; i < 2 * steps; i++) barrier_arrive(full + i % TILES * 8);
}

/* What a thread knows of its two queries, 8 rows apart; four threads share each. */
struct running { float top[2], sum[2]; };

/* Scores of rows [first, first + KEYS) become probabilities before their division; old: what earlier sums are worth now. */
DEVICE void soften(float (&s)[KEYS / 8][4], running &r, float old[2], float scale, int first, int self, int last, int window, const int *position) {
  if (first + KEYS > self - LANE / 4 + 1 || window > 0)
#pragma unroll
    for (int i = 0; i < KEYS / 2; i++) {
      const int row = first + i / 4 * 8 + LANE % 4 * 2 + i % 2, mine = self + i / 2 % 2 * 8;
      int is_seen = row <= mine;
      if (window > 0) is_seen = is_seen && mine < last && position[mine] - position[row] < window;
      if (!is_seen) s[i / 4][i % 4] = -INFINITE;
    }
#pragma unroll
  for (int h = 0; h < 2; h++) {
    float now = r.top[h];
#pragma unroll
    for (int j = 0; j < KEYS / 8; j++) now = fmaxf(now, fmaxf(s[j][2 * h], s[j][2 * h + 1]));
    now = fmaxf(now, __shfl_xor_sync(0xffffffffu, now, 1));
    now = fmaxf(now, __shfl_xor_sync(0xffffffffu, now, 2));
    const float shift = now == -INFINITE ? 0 : now * scale;
    float part = 0;
    old[h] = power(r.top[h] == -INFINITE ? -INFINITE : r.top[h] * scale - shift);
#pragma unroll
    for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
      for (int e = 2 * h; e < 2 * h + 2; e++) {
        s[j][e] = power(fmaf(s[j][e], scale, -shift));
        part += s[j][e];
      }
    r.sum[h] = fmaf(r.sum[h], old[h], part);
    r.top[h] = now;
  }
}

template <int DTYPE, int DIM>
DEVICE void scores(float (&s)[KEYS / 8][4], unsigned q, unsigned tile) {
#pragma unroll
  for (int k = 0; k < DIM / 16; k++)
    multiply_rows<DTYPE>(s, tile_at(q + k / 4 * (QUERIES * 128) + k % 4 * 32, 16), tile_at(tile + k / 4 * (KEYS * 128) + k % 4 * 32, 16), k > 0);
  products_end();
}

template <int DTYPE, int DIM>
DEVICE void weigh(float (&out)[DIM / 8][4], const unsigned (&p)[KEYS / 16][4], unsigned tile) {
#pragma unroll
  for (int k = 0; k < KEYS / 16; k++) multiply_columns<DTYPE>(out, p[k], tile_at(tile + k * 2048, KEYS * 128));
  products_end();
}

template <int DTYPE>
DEVICE void pack(unsigned (&p)[KEYS / 16][4], const float (&s)[KEYS / 8][4]) {
#pragma unroll
  for (int i = 0; i < KEYS / 4; i++) p[i / 4][i % 4] = halves<DTYPE>(s[i / 2][i % 2 * 2], s[i / 2][i % 2 * 2 + 1]);
}

template <int DTYPE, int DIM>
DEVICE void flash(const rkv_attend_chunk_args &a, const rkv_rows_data &kv, const rkv_layer_data &layer) {
  extern __shared__ __align__(1024) unsigned char shared[];
  __shared__ unsigned long long barriers[2 * TILES];
  const unsigned queries = shared_address(shared), tiles = queries + QUERIES * DIM * 2, full = shared_address(barriers), empty = full + TILES * 8;
  const int head = blockIdx.x, q0 = (gridDim.y - 1 - blockIdx.y) * QUERIES, base = kv.row_end[a.slot] - a.count; /* the longest first */
  const int64_t plane = ((int64_t)a.slot * kv.kv_heads + head / (layer.heads / layer.kv_heads)) * kv.capacity;
  const int visible = base + least(q0 + QUERIES, a.count), steps = ceil_div(visible, KEYS);
  if (THREAD == 0)
    for (int i = 0; i < TILES; i++) barrier_make(full + i * 8, BRINGERS), barrier_make(empty + i * 8, USERS / 32);
  __syncthreads();
  if (THREAD < BRINGERS) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    bring<DIM>(tiles, full, empty, (const char *)kv.keys.data + plane * DIM * 2, (const char *)kv.values.data + plane * DIM * 2, steps, visible);
    return;
  }
  asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
  for (int i = THREAD - BRINGERS; i < QUERIES * DIM / 2; i += USERS) {
    const int r = i / (DIM / 2), d = i % (DIM / 2) * 2;
    float2 both = make_float2(0, 0);
    if (q0 + r < a.count) both = *(const float2 *)((const float *)a.q.data + ((int64_t)(q0 + r) * layer.heads + head) * DIM + d);
    *(unsigned *)(shared + (tile_chunk(0, QUERIES, r, d / 8) + d % 8 * 2)) = halves<DTYPE>(both.x, both.y);
  }
  show_products();
  asm volatile("bar.sync 1, %0;" ::"n"(USERS) : "memory");
  const int row = (WARP - BRINGERS / 32) * 16 + LANE / 4, self = base + q0 + row, last = base + a.count; /* of this thread's first query */
  const unsigned mine = queries + (WARP - BRINGERS / 32) / 4 * (64 * 128);
  const int *position = kv.position + plane;
  const float scale = layer.scale * LOG2_E;
  float s[KEYS / 8][4], out[DIM / 8][4], old[2];
  unsigned p[KEYS / 16][4];
  running r = {{-INFINITE, -INFINITE}, {0, 0}};
#pragma unroll
  for (int i = 0; i < DIM / 2; i++) out[i / 4][i % 4] = 0;
  barrier_wait(full, 0);
  hold(s);
  products_begin();
  scores<DTYPE, DIM>(s, mine, tiles);
  products_wait<0>();
  hold(s);
  if (LANE == 0) barrier_arrive(empty);
  soften(s, r, old, scale, 0, self, last, layer.window, position);
  pack<DTYPE>(p, s);
  for (int step = 0; step + 1 < steps; step++) {
    const int key = 2 * step + 2, value = 2 * step + 1;
    barrier_wait(full + key % TILES * 8, key / TILES % 2);
    hold(s);
    hold(out);
    products_begin();
    scores<DTYPE, DIM>(s, mine, tiles + key % TILES * (KEYS * DIM * 2));
    barrier_wait(full + value % TILES * 8, value / TILES % 2);
    products_begin();
    weigh<DTYPE, DIM>(out, p, tiles + value % TILES * (KEYS * DIM * 2));
    products_wait<1>();
    hold(s);
    if (LANE == 0) barrier_arrive(empty + key % TILES * 8);
    soften(s, r, old, scale, (step + 1) * KEYS, self, last, layer.window, position);
    products_wait<0>();
    hold(out);
    if (LANE == 0) barrier_arrive(empty + value % TILES * 8);
#pragma unroll
    for (int i = 0; i < DIM / 2; i++) out[i / 4][i % 4] *= old[i / 2 % 2];
    pack<DTYPE>(p, s);
  }
  const int value = 2 * steps - 1;
  barrier_wait(full + value % TILES * 8, value / TILES % 2);
  hold(out);
  products_begin();
  weigh<DTYPE, DIM>(out, p, tiles + value % TILES * (KEYS * DIM * 2));
  products_wait<0>();
  hold(out);
#pragma unroll
  for (int h = 0; h < 2; h++) {
    r.sum[h] += __shfl_xor_sync(0xffffffffu, r.sum[h], 1);
    r.sum[h] += __shfl_xor_sync(0xffffffffu, r.sum[h], 2);
    const int query = q0 + row + h * 8;
    if (query >= a.count) continue;
    const int64_t at = (int64_t)query * layer.heads + head;
    const float inverse = r.sum[h] == 0 ? 0 : 1 / r.sum[h];
    float *to = (float *)a.attended.data + at * DIM + LANE % 4 * 2;
#pragma unroll
    for (int j = 0; j < DIM / 8; j++) *(float2 *)(to + j * 8) = make_float2(out[j][2 * h] * inverse, out[j][2 * h + 1] * inverse);
    if (a.lse.data && LANE % 4 == 0) ((float *)a.lse.data)[at] = r.sum[h] == 0 ? -INFINITE : r.top[h] * scale / LOG2_E + logf(r.sum[h]);
  }
}

/* grid: heads, blocks of queries. */
#define FLASH(name, dtype, dim)                                                                                                             \
  KERNEL __launch_bounds__(BRINGERS + USERS, 1) kernel_flash_sm90a_##name(const __grid_constant__ rkv_attend_chunk_args a,                  \
                                                                          const __grid_constant__ rkv_rows_data kv, const __grid_constant__ rkv_layer_data layer) { \
    begin();                                                                                                                                \
    flash<dtype, dim>(a, kv, layer);                                                                                                        \
  }
FLASH(bf16_64, RKV_BF16, 64)
FLASH(bf16_128, RKV_BF16, 128)
FLASH(f16_64, RKV_F16, 64)
FLASH(f16_128, RKV_F16, 128)
