/* decode.cu: decode attention over rows of 16 bits, heads of 64 or 128 channels, groups of up to eight heads, on tensor cores. Rows go straight
 * from memory to registers, 16 at a time for each warp, keys of the next ones while the present are used; a block's four warps take turns over
 * a piece's rows and are merged in order. Queries and probabilities stay exact: three halves each; the upper half of a product's 16 rows of
 * heads carries the second halves, so two products do for three. What is cut how: attention.cu. The block that ends last merges a unit's
 * pieces, in their order; with an index per head attention.cu does, because what is counted there is a share of all heads. */
#include "mma.cuh"
#include "plan.cuh"

DEVICE uint4 row_chunk(const char *rows, int row, int row_bytes, int at) {
  return row >= 0 ? *(const uint4 *)(rows + (int64_t)row * row_bytes + at) : make_uint4(0, 0, 0, 0);
}

/* Pieces of units that have ended; 0 between launches. */
__device__ int ended[RKV_TICKETS];

/* A warp merges a head's pieces. */
template <int DIM>
DEVICE void merge_head(float *to, float *lse, const float *partials, int pieces) {
  const float *mine = partials + LANE * (DIM + 2) + DIM;
  const float top = LANE < pieces ? __ldcg(mine) : -INFINITE, sum = LANE < pieces ? __ldcg(mine + 1) : 0;
  const float all = warp_max(sum == 0 ? -INFINITE : top), weight = sum == 0 ? 0 : expf(top - all), total = warp_sum(weight * sum), inverse = total == 0 ? 0 : 1 / total;
  float x[DIM / 32];
#pragma unroll
  for (int d = 0; d < DIM / 32; d++) x[d] = 0;
#pragma unroll 8
  for (int i = 0; i < RKV_PIECES; i++) {
    if (i >= pieces) break;
    const float w = __shfl_sync(0xffffffffu, weight, i);
#pragma unroll
    for (int d = 0; d < DIM / 32; d += 2) {
      const float2 v = __ldcg((const float2 *)(partials + i * (DIM + 2) + d * 32 + 2 * LANE));
      x[d] = fmaf(w, v.x, x[d]);
      x[d + 1] = fmaf(w, v.y, x[d + 1]);
    }
  }
#pragma unroll
  for (int d = 0; d < DIM / 32; d += 2) *(float2 *)(to + d * 32 + 2 * LANE) = make_float2(x[d] * inverse, x[d + 1] * inverse);
  if (LANE == 0 && lse) *lse = total == 0 ? -INFINITE : all + logf(total);
}

/* grid: pieces, units, slots. */
template <int DTYPE, int DIM>
DEVICE void decode(const rkv_attend_args &a, const rkv_rows_data &kv, const rkv_layer_data &layer) {
  __shared__ float tops[4][8], totals[4][8], outs[4][8][DIM];
  __shared__ uint4 first_halves[DIM / 16][32]; /* of queries, per 16 channels: first halves (k, k + 8), second */
  __shared__ uint2 third_halves[DIM / 16][32];
  __shared__ int is_last;
  const int slot = blockIdx.z, piece = blockIdx.x, g = LANE / 4, t = LANE % 4, limit = gridDim.x;
  const plan p = plan_of(a, kv, layer, slot, blockIdx.y);
  if (!kv.active[slot]) return;
  const int is_merged_here = !is_per_head(a, layer);
  if (piece >= p.pieces) {
    if (p.pieces == 0 && piece == 0 && is_merged_here)
      for (int h = WARP; h < p.heads; h += 4) {
        const int64_t row = (int64_t)slot * layer.heads + p.head + h;
        merge_head<DIM>((float *)a.attended.data + row * DIM, a.lse.data ? (float *)a.lse.data + row : NULL, NULL, 0);
      }
    return;
  }
  const int64_t plane = (((int64_t)slot * kv.kv_heads + p.kv_head) * kv.capacity) * DIM * 2;
  const char *keys = (const char *)kv.keys.data + plane, *values = (const char *)kv.values.data + plane;
  if (WARP < DIM / 32) { /* chunk t of 32 channels: pairs 0, 1 are one product's, 2, 3 the next one's */
    const float *from = (const float *)a.q.data + ((int64_t)slot * layer.heads + p.head + g) * DIM + WARP * 32 + t * 8;
    float4 u = make_float4(0, 0, 0, 0), v = u;
    if (g < p.heads) {
      u = *(const float4 *)from;
      v = *(const float4 *)(from + 4);
    }
    const float x[8] = {u.x, u.y, u.z, u.w, v.x, v.y, v.z, v.w};
#pragma unroll
    for (int j = 0; j < 2; j++) {
      unsigned one[3], two[3];
      split<DTYPE>(one, x[4 * j], x[4 * j + 1]);
      split<DTYPE>(two, x[4 * j + 2], x[4 * j + 3]);
      first_halves[2 * WARP + j][LANE] = make_uint4(one[0], one[1], two[0], two[1]);
      third_halves[2 * WARP + j][LANE] = make_uint2(one[2], two[2]);
    }
  }
  float out[DIM / 8][4], top = -INFINITE, sum = 0;
#pragma unroll
  for (int i = 0; i < DIM / 2; i++) out[i / 4][i % 4] = 0;
  const int places = p.sink + p.chosen + p.tail, end = least(places, (piece + 1) * p.piece_rows);
  int place = piece * p.piece_rows + WARP * 16;
  uint4 k[2][DIM / 32], v[DIM / 64][4];
  int seen = 0; /* bits: rows 2t, 2t + 1, 2t + 8, 2t + 9 of the present sixteen */
  const auto load_keys = [&](int at) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int row = at + 8 * h + g < end ? row_at(p, layer.window, at + 8 * h + g) : -1;
#pragma unroll
      for (int i = 0; i < DIM / 32; i++) k[h][i] = row_chunk(keys, row, DIM * 2, i * 64 + t * 16);
    }
  };
  const auto load_values = [&](int at) {
    seen = 0;
#pragma unroll
    for (int r = 0; r < 4; r++) {
      const int one = at + 2 * t + r % 2 + r / 2 * 8, row = one < end ? row_at(p, layer.window, one) : -1;
      seen |= (row >= 0) << r;
#pragma unroll
      for (int i = 0; i < DIM / 64; i++) v[i][r] = row_chunk(values, row, DIM * 2, i * 128 + g * 16);
    }
  };
  if (place < end) {
    load_keys(place);
    load_values(place);
  }
  __syncthreads();
  int chosen = 0, tail = 0; /* rows that this lane has seen of each source */
  for (; place < end; place += 64) {
    float s[2][2]; /* logits of head g: rows 2t, 2t + 1 of each eight */
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float c[4] = {0, 0, 0, 0}, third[4] = {0, 0, 0, 0};
#pragma unroll
      for (int i = 0; i < DIM / 32; i++) {
        const unsigned b[4] = {k[h][i].x, k[h][i].y, k[h][i].z, k[h][i].w};
#pragma unroll
        for (int j = 0; j < 2; j++) {
          const uint4 both = first_halves[2 * i + j][LANE];
          const uint2 third_half = third_halves[2 * i + j][LANE];
          const unsigned first[4] = {both.x, both.y, both.z, both.w}, last[4] = {third_half.x, 0, third_half.y, 0};
          multiply<DTYPE>(third, last, b[2 * j], b[2 * j + 1]);
          multiply<DTYPE>(c, first, b[2 * j], b[2 * j + 1]);
        }
      }
      s[h][0] = c[0] + (c[2] + third[0]);
      s[h][1] = c[1] + (c[3] + third[1]);
    }
    if (place + 64 < end) load_keys(place + 64);
    float now = top;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      float *x = &s[i / 2][i % 2];
      const int at = place + 2 * t + i % 2 + i / 2 * 8;
      chosen += seen >> i & 1 && at >= p.sink && at < p.sink + p.chosen;
      tail += seen >> i & 1 && at >= p.sink + p.chosen;
      *x = seen >> i & 1 ? cap_logit(*x, layer) : -INFINITE;
      now = larger(*x, now);
    }
    now = fmaxf(now, __shfl_xor_sync(0xffffffffu, now, 1));
    now = fmaxf(now, __shfl_xor_sync(0xffffffffu, now, 2));
    const float old = top == -INFINITE ? 0 : expf(top - now);
    float part = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      float *x = &s[i / 2][i % 2];
      *x = *x == -INFINITE ? 0 : expf(*x - now);
      part += *x;
    }
    sum = fmaf(sum, old, part);
    top = now;
    unsigned one[3], two[3];
    split<DTYPE>(one, s[0][0], s[0][1]);
    split<DTYPE>(two, s[1][0], s[1][1]);
    const unsigned first[4] = {one[0], one[1], two[0], two[1]}, last[4] = {one[2], 0, two[2], 0};
    /* Head g has its first halves' sums in c[0], c[1]; its second halves' in c[2], c[3]. All of them are head g's, so one factor does. */
#pragma unroll
    for (int i = 0; i < DIM / 64; i++) {
      const unsigned *r0 = (const unsigned *)&v[i][0], *r1 = (const unsigned *)&v[i][1], *r8 = (const unsigned *)&v[i][2], *r9 = (const unsigned *)&v[i][3];
#pragma unroll
      for (int d = 0; d < 8; d++) { /* channel g * 8 + d of these 64 */
        const unsigned pick = d % 2 ? 0x7632 : 0x5410, b0 = __byte_perm(r0[d / 2], r1[d / 2], pick), b1 = __byte_perm(r8[d / 2], r9[d / 2], pick);
        float c[4] = {0, 0, 0, 0};
        multiply<DTYPE>(c, last, b0, b1);
        multiply<DTYPE>(c, first, b0, b1);
        float *to = out[i * 8 + d];
#pragma unroll
        for (int e = 0; e < 4; e++) to[e] = fmaf(to[e], old, c[e]);
      }
    }
    if (place + 64 < end) load_values(place + 64);
  }
  sum += __shfl_xor_sync(0xffffffffu, sum, 1);
  sum += __shfl_xor_sync(0xffffffffu, sum, 2);
  if (t == 0) tops[WARP][g] = top, totals[WARP][g] = sum;
#pragma unroll
  for (int i = 0; i < DIM / 8; i++)
#pragma unroll
    for (int e = 0; e < 2; e++) outs[WARP][g][i / 8 * 64 + (2 * t + e) * 8 + i % 8] = out[i][e] + out[i][2 + e];
  __syncthreads();
  for (int i = THREAD; i < p.heads * DIM; i += THREADS) {
    const int h = i / DIM, d = i % DIM;
    float all = -INFINITE, total = 0, x = 0;
    for (int w = 0; w < 4; w++) all = fmaxf(all, tops[w][h]);
    for (int w = 0; w < 4; w++) {
      const float weight = totals[w][h] == 0 ? 0 : expf(tops[w][h] - all);
      total = fmaf(weight, totals[w][h], total);
      if (weight != 0) x = fmaf(weight, outs[w][h][d], x);
    }
    float *to = (float *)a.work.data + (((int64_t)slot * layer.heads + p.head + h) * limit + piece) * (DIM + 2);
    to[d] = x;
    if (d == 0) to[DIM] = all, to[DIM + 1] = total;
  }
  if (!is_merged_here) return;
  if (g > 0) chosen = tail = 0; /* eight lanes saw each row */
  chosen = warp_sum_int(chosen);
  tail = warp_sum_int(tail);
  unsigned long long *counters = (unsigned long long *)kv.attended + (int64_t)slot * 4; /* integers: the order of adding is no matter */
  if (LANE == 0 && chosen > 0) atomicAdd(counters + 1, (unsigned long long)chosen);
  if (LANE == 0 && tail > 0) atomicAdd(counters + 2, (unsigned long long)tail);
  if (THREAD == 0 && piece == 0) atomicAdd(counters, (unsigned long long)p.sink);
  int *ticket = ended + slot * gridDim.y + blockIdx.y;
  __threadfence();
  __syncthreads();
  if (THREAD == 0) is_last = atomicAdd(ticket, 1) == p.pieces - 1;
  __syncthreads();
  if (!is_last) return;
  __threadfence();
  if (THREAD == 0) *ticket = 0;
  for (int h = WARP; h < p.heads; h += 4) {
    const int64_t row = (int64_t)slot * layer.heads + p.head + h;
    merge_head<DIM>((float *)a.attended.data + row * DIM, a.lse.data ? (float *)a.lse.data + row : NULL, (const float *)a.work.data + row * limit * (DIM + 2), p.pieces);
  }
}

#define DECODE(name, dtype, dim)                                                                                                          \
  KERNEL __launch_bounds__(128, 3) kernel_decode_##name(const __grid_constant__ rkv_attend_args a, const __grid_constant__ rkv_rows_data kv, \
                                                        const __grid_constant__ rkv_layer_data layer) {                                   \
    begin();                                                                                                                              \
    decode<dtype, dim>(a, kv, layer);                                                                                                     \
  }
DECODE(bf16_64, RKV_BF16, 64)
DECODE(bf16_128, RKV_BF16, 128)
DECODE(f16_64, RKV_F16, 64)
DECODE(f16_128, RKV_F16, 128)
