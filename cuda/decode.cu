/* decode.cu: decode attention over rows of 16 bits, heads of 64 or 128 channels, groups of up to eight heads, on tensor cores. Rows go straight
 * from memory to registers, 16 at a time for each warp, keys of the next ones while the present are used; a block's warps take turns over
 * a piece's rows and are merged in order. Queries and probabilities stay exact: three halves each. What is cut how: attention.cu. The block
 * that ends last merges a unit's pieces, in their order; with an index per head attention.cu does, because what is counted there is a share of
 * all heads. */
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

/* grid: pieces, units, slots. SETS: four heads each. Rows are the 16 lines of a product. Its eight columns are four heads twice, first halves
 * and second; the third halves go by a second product, beside zeros. The lane of a sum therefore knows one head. */
template <int DTYPE, int DIM, int SETS, int WARPS_OF>
DEVICE void decode(const rkv_attend_args &a, const rkv_rows_data &kv, const rkv_layer_data &layer) {
  __shared__ float tops[WARPS_OF][4 * SETS], totals[WARPS_OF][4 * SETS];
  __shared__ __align__(16) float outs[WARPS_OF][4 * SETS][DIM + 8];
  __shared__ uint4 halves_of_q[SETS][2][DIM / 32][32]; /* of a lane's column, its channels of each 32: first or second halves; third or none */
  __shared__ int is_last;
  const int slot = blockIdx.z, piece = blockIdx.x, g = LANE / 4, t = LANE % 4, limit = gridDim.x;
  const plan p = plan_of(a, kv, layer, slot, blockIdx.y);
  if (!kv.active[slot]) return;
  const int is_merged_here = !is_per_head(a, layer);
  if (piece >= p.pieces) {
    if (p.pieces == 0 && piece == 0 && is_merged_here)
      for (int h = WARP; h < p.heads; h += WARPS_OF) {
        const int64_t row = (int64_t)slot * layer.heads + p.head + h;
        merge_head<DIM>((float *)a.attended.data + row * DIM, a.lse.data ? (float *)a.lse.data + row : NULL, NULL, 0);
      }
    return;
  }
  const int64_t plane = (((int64_t)slot * kv.kv_heads + p.kv_head) * kv.capacity) * DIM * 2;
  const char *keys = (const char *)kv.keys.data + plane, *values = (const char *)kv.values.data + plane;
  for (int i = WARP; i < SETS * (DIM / 32); i += WARPS_OF) {
    const int set = i / (DIM / 32), at = i % (DIM / 32), head = 4 * set + g / 2;
    const float *from = (const float *)a.q.data + ((int64_t)slot * layer.heads + p.head + head) * DIM + at * 32 + t * 8;
    float4 u = make_float4(0, 0, 0, 0), v = u;
    if (head < p.heads) {
      u = *(const float4 *)from;
      v = *(const float4 *)(from + 4);
    }
    unsigned part[4][3];
    split<DTYPE>(part[0], u.x, u.y);
    split<DTYPE>(part[1], u.z, u.w);
    split<DTYPE>(part[2], v.x, v.y);
    split<DTYPE>(part[3], v.z, v.w);
    halves_of_q[set][0][at][LANE] = g % 2 ? make_uint4(part[0][1], part[1][1], part[2][1], part[3][1]) : make_uint4(part[0][0], part[1][0], part[2][0], part[3][0]);
    halves_of_q[set][1][at][LANE] = g % 2 ? make_uint4(0, 0, 0, 0) : make_uint4(part[0][2], part[1][2], part[2][2], part[3][2]);
  }
  float out[SETS][DIM / 8], top[SETS], sum[SETS]; /* of head t of each four: channels d of a run of 8 */
#pragma unroll
  for (int s = 0; s < SETS; s++) {
    top[s] = -INFINITE;
    sum[s] = 0;
#pragma unroll
    for (int i = 0; i < DIM / 8; i++) out[s][i] = 0;
  }
  const int places = p.sink + p.chosen + p.tail, end = least(places, (piece + 1) * p.piece_rows);
  int place = piece * p.piece_rows + WARP * 16;
  uint4 k[2][DIM / 32], v[DIM / 64][4];
  /* Lane i and lane i + 16 know row i of sixteen: an index is read once, and before its rows are wanted. */
  const auto rows_from = [&](int at) { return at + LANE % 16 < end ? row_at(p, layer.window, at + LANE % 16) : -1; };
  const auto load_keys = [&](int rows) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int row = __shfl_sync(0xffffffffu, rows, 8 * h + g);
#pragma unroll
      for (int i = 0; i < DIM / 32; i++) k[h][i] = row_chunk(keys, row, DIM * 2, i * 64 + t * 16);
    }
  };
  const auto load_values = [&](int rows) {
#pragma unroll
    for (int r = 0; r < 4; r++) {
      const int row = __shfl_sync(0xffffffffu, rows, 2 * t + r % 2 + r / 2 * 8);
#pragma unroll
      for (int i = 0; i < DIM / 64; i++) v[i][r] = row_chunk(values, row, DIM * 2, i * 128 + g * 16);
    }
  };
  int rows = rows_from(place), later = rows_from(place + 16 * WARPS_OF);
  if (place < end) {
    load_keys(rows);
    load_values(rows);
  }
  __syncthreads();
  int chosen = 0, tail = 0; /* rows that this lane has seen of each source */
  for (; place < end; place += 16 * WARPS_OF) {
    float logit[SETS][2]; /* of head t: rows g and g + 8 */
#pragma unroll
    for (int s = 0; s < SETS; s++) {
      float c[4] = {0, 0, 0, 0}, third[4] = {0, 0, 0, 0};
#pragma unroll
      for (int i = 0; i < DIM / 32; i++) {
        const uint4 q = halves_of_q[s][0][i][LANE], rest = halves_of_q[s][1][i][LANE];
        const unsigned one[4] = {k[0][i].x, k[1][i].x, k[0][i].y, k[1][i].y}, two[4] = {k[0][i].z, k[1][i].z, k[0][i].w, k[1][i].w};
        multiply<DTYPE>(third, one, rest.x, rest.y);
        multiply<DTYPE>(c, one, q.x, q.y);
        multiply<DTYPE>(third, two, rest.z, rest.w);
        multiply<DTYPE>(c, two, q.z, q.w);
      }
      logit[s][0] = c[0] + (c[1] + third[0]);
      logit[s][1] = c[2] + (c[3] + third[2]);
    }
    const int there[2] = {__shfl_sync(0xffffffffu, rows, g), __shfl_sync(0xffffffffu, rows, 8 + g)}, at = place + LANE % 16;
    chosen += rows >= 0 && at >= p.sink && at < p.sink + p.chosen;
    tail += rows >= 0 && at >= p.sink + p.chosen;
    rows = later;
    if (place + 16 * WARPS_OF < end) load_keys(rows);
    later = rows_from(place + 32 * WARPS_OF);
#pragma unroll
    for (int s = 0; s < SETS; s++) {
      float now = top[s];
#pragma unroll
      for (int h = 0; h < 2; h++) {
        logit[s][h] = there[h] >= 0 ? cap_logit(logit[s][h], layer) : -INFINITE;
        now = larger(logit[s][h], now);
      }
#pragma unroll
      for (int i = 4; i < 32; i *= 2) now = fmaxf(now, __shfl_xor_sync(0xffffffffu, now, i));
      const float old = top[s] == -INFINITE ? 0 : expf(top[s] - now);
#pragma unroll
      for (int h = 0; h < 2; h++) logit[s][h] = logit[s][h] == -INFINITE ? 0 : expf(logit[s][h] - now);
      sum[s] = fmaf(sum[s], old, logit[s][0] + logit[s][1]);
      top[s] = now;
      /* Probabilities turn from lines to columns: this lane's column is a half of head g / 2, its lines are rows 2t, 2t + 1 of each eight. */
      unsigned low[3], high[3];
      split<DTYPE>(low, __shfl_sync(0xffffffffu, logit[s][0], 8 * t + g / 2), __shfl_sync(0xffffffffu, logit[s][0], 8 * t + 4 + g / 2));
      split<DTYPE>(high, __shfl_sync(0xffffffffu, logit[s][1], 8 * t + g / 2), __shfl_sync(0xffffffffu, logit[s][1], 8 * t + 4 + g / 2));
      const unsigned b[2] = {g % 2 ? low[1] : low[0], g % 2 ? high[1] : high[0]}, rest[2] = {g % 2 ? 0 : low[2], g % 2 ? 0 : high[2]};
#pragma unroll
      for (int i = 0; i < DIM / 16; i++) { /* lines g and g + 8 are channels of two runs of 8, in two halves of a head's or of one run */
        unsigned line[4];
#pragma unroll
        for (int half = 0; half < 2; half++) {
          const int run = DIM == 128 ? half : 0, d = DIM == 128 ? i : i + 4 * half, pick = d % 2 ? 0x7632 : 0x5410;
          const unsigned *r0 = (const unsigned *)&v[run][0], *r1 = (const unsigned *)&v[run][1], *r8 = (const unsigned *)&v[run][2], *r9 = (const unsigned *)&v[run][3];
          line[half] = __byte_perm(r0[d / 2], r1[d / 2], pick);
          line[2 + half] = __byte_perm(r8[d / 2], r9[d / 2], pick);
        }
        float c[4] = {0, 0, 0, 0};
        multiply<DTYPE>(c, line, rest[0], rest[1]);
        multiply<DTYPE>(c, line, b[0], b[1]);
        out[s][i] = fmaf(out[s][i], old, c[0] + c[1]);
        out[s][DIM / 16 + i] = fmaf(out[s][DIM / 16 + i], old, c[2] + c[3]);
      }
    }
    if (place + 16 * WARPS_OF < end) load_values(rows);
  }
#pragma unroll
  for (int s = 0; s < SETS; s++) {
#pragma unroll
    for (int i = 4; i < 32; i *= 2) sum[s] += __shfl_xor_sync(0xffffffffu, sum[s], i);
    if (g == 0) tops[WARP][4 * s + t] = top[s], totals[WARP][4 * s + t] = sum[s];
#pragma unroll
    for (int i = 0; i < DIM / 8; i += 4) {
      float *to = outs[WARP][4 * s + t] + (DIM == 128 ? i / 8 * 64 + g * 8 + i % 8 : g * 8 + i);
      *(float4 *)to = make_float4(out[s][i], out[s][i + 1], out[s][i + 2], out[s][i + 3]);
    }
  }
  __syncthreads();
  for (int h = WARP; h < p.heads; h += WARPS_OF) {
    float all = -INFINITE, total = 0, weight[WARPS_OF], x[DIM / 32];
#pragma unroll
    for (int w = 0; w < WARPS_OF; w++) all = fmaxf(all, tops[w][h]);
#pragma unroll
    for (int w = 0; w < WARPS_OF; w++) {
      weight[w] = totals[w][h] == 0 ? 0 : expf(tops[w][h] - all);
      total = fmaf(weight[w], totals[w][h], total);
    }
    float *to = (float *)a.work.data + (((int64_t)slot * layer.heads + p.head + h) * limit + piece) * (DIM + 2);
#pragma unroll
    for (int i = 0; i < DIM / 32; i += 2) {
      x[i] = x[i + 1] = 0;
#pragma unroll
      for (int w = 0; w < WARPS_OF; w++) {
        const float2 v = *(const float2 *)(outs[w][h] + i * 32 + 2 * LANE);
        if (weight[w] != 0) x[i] = fmaf(weight[w], v.x, x[i]), x[i + 1] = fmaf(weight[w], v.y, x[i + 1]);
      }
      *(float2 *)(to + i * 32 + 2 * LANE) = make_float2(x[i], x[i + 1]);
    }
    if (LANE == 0) to[DIM] = all, to[DIM + 1] = total;
  }
  if (!is_merged_here) return;
  if (LANE >= 16) chosen = tail = 0; /* two lanes know each row */
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
  for (int h = WARP; h < p.heads; h += WARPS_OF) {
    const int64_t row = (int64_t)slot * layer.heads + p.head + h;
    merge_head<DIM>((float *)a.attended.data + row * DIM, a.lse.data ? (float *)a.lse.data + row : NULL, (const float *)a.work.data + row * limit * (DIM + 2), p.pieces);
  }
}

#define DECODE(name, dtype, dim, sets, warps)                                                                                                        \
  KERNEL __launch_bounds__(32 * warps, sets == 1 ? 2 : 3) kernel_decode_##name(const __grid_constant__ rkv_attend_args a, const __grid_constant__ rkv_rows_data kv, \
                                                               const __grid_constant__ rkv_layer_data layer) {                                    \
    begin();                                                                                                                                      \
    decode<dtype, dim, sets, warps>(a, kv, layer);                                                                                                \
  }
DECODE(bf16_64, RKV_BF16, 64, 1, RKV_DECODE_WARPS)
DECODE(bf16_128, RKV_BF16, 128, 1, RKV_DECODE_WARPS)
DECODE(f16_64, RKV_F16, 64, 1, RKV_DECODE_WARPS)
DECODE(f16_128, RKV_F16, 128, 1, RKV_DECODE_WARPS)
/* groups of five to eight heads */
DECODE(wide_bf16_64, RKV_BF16, 64, 2, RKV_DECODE_WIDE_WARPS)
DECODE(wide_bf16_128, RKV_BF16, 128, 2, RKV_DECODE_WIDE_WARPS)
DECODE(wide_f16_64, RKV_F16, 64, 2, RKV_DECODE_WIDE_WARPS)
DECODE(wide_f16_128, RKV_F16, 128, 2, RKV_DECODE_WIDE_WARPS)
