/* decode.cu: decode attention over rows of 16 bits, heads of 64 or 128 channels, groups of up to eight heads, on tensor cores. A block's
 * warps take turns over a piece's rows, 16 at a time, which come through a ring in shared memory that each warp fills for itself, ahead of
 * its need; they are merged in order. Queries and probabilities stay exact: three halves each. What is cut how: plan.cuh. The block that
 * ends last merges a unit's pieces, in their order; with an index per head attention.cu does, because what is counted there is a share of all
 * heads. */
#include "mma.cuh"
#include "plan.cuh"

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

/* grid: units, slots, pieces, so that blocks without work come last. SETS: four heads each. Rows are the 16 lines of a product. Its eight
 * columns are four heads twice, first halves and second; the third halves go by a second product, beside zeros. The lane of a sum therefore
 * knows one head. shared: the warps' rings. */
template <int DTYPE, int DIM, int SETS>
DEVICE void decode(const rkv_attend_args &a, const rkv_rows_data &kv, const rkv_layer_data &layer) {
  constexpr int ROW = DIM * 2, CHUNKS = DIM / 8, AT_ONCE = 32 / CHUNKS, STAGE = 2 * 16 * ROW, WARPS_OF = RKV_DECODE_WARPS, STAGES = RKV_DECODE_STAGES;
  extern __shared__ __align__(1024) unsigned char shared[];
  __shared__ float tops[WARPS_OF][4 * SETS], totals[WARPS_OF][4 * SETS];
  __shared__ uint4 halves_of_q[SETS][2][DIM / 32][32]; /* of a lane's column, its channels of each 32: first or second halves; third or none */
  __shared__ int is_last;
  const int slot = blockIdx.y, piece = blockIdx.z, g = LANE / 4, t = LANE % 4, limit = gridDim.z;
  const plan p = plan_of(a, kv, layer, slot, blockIdx.x);
  if (!kv.active[slot]) return;
  const int is_merged_here = !is_per_head(a, layer);
  if (piece >= p.pieces) {
    if (p.pieces == 0 && piece == 0 && is_merged_here)
      for (int i = THREAD; i < p.heads * DIM; i += THREADS) { /* no row: nothing attended */
        const int64_t row = (int64_t)slot * layer.heads + p.head + i / DIM;
        ((float *)a.attended.data)[row * DIM + i % DIM] = 0;
        if (i % DIM == 0 && a.lse.data) ((float *)a.lse.data)[row] = -INFINITE;
      }
    return;
  }
  const int64_t plane = (((int64_t)slot * kv.kv_heads + p.kv_head) * kv.capacity) * ROW;
  const char *keys = (const char *)kv.keys.data + plane + LANE % CHUNKS * 16, *values = (const char *)kv.values.data + plane + LANE % CHUNKS * 16;
  const int places = p.sink + p.chosen + p.tail, end = least(places, (piece + 1) * p.piece_rows);
  int place = piece * p.piece_rows + WARP * 16, ahead = place, chosen = 0, tail = 0; /* rows that this lane has seen of each source */
  /* Lane i and lane i + 16 know row i of sixteen: an index is read once, and before its rows are wanted. */
  const auto rows_from = [&](int at) { return at + LANE % 16 < end ? row_at(p, layer.window, at + LANE % 16) : -1; };
  int later = rows_from(ahead);
  const unsigned ring = shared_address(shared) + WARP * STAGES * STAGE, ring_end = ring + STAGES * STAGE;
  /* Sixteen keys, then their values; which of them are rows. */
  const auto copy_rows = [&](unsigned stage) {
    const int rows = later, at = ahead + LANE % 16;
    if (ahead < end) {
      chosen += rows >= 0 && at >= p.sink && at < p.sink + p.chosen;
      tail += rows >= 0 && at >= p.sink + p.chosen;
      ahead += 16 * WARPS_OF;
      later = rows_from(ahead);
#pragma unroll
      for (int i = 0; i < 16; i += AT_ONCE) {
        const int line = i + LANE / CHUNKS, row = __shfl_sync(0xffffffffu, rows, line), is_there = row >= 0;
        const int64_t from = is_there ? (int64_t)row * ROW : 0;
        const unsigned to = chunk_at(stage, line, LANE % CHUNKS, ROW);
        copy16(to, keys + from, is_there);
        copy16(to + 16 * ROW, values + from, is_there);
      }
    }
    copies_end(); /* a group in any case: they are counted */
    return __ballot_sync(0xffffffffu, rows >= 0);
  };
  unsigned there[STAGES] = {0}; /* of the stages to come */
  const auto copy_next = [&](unsigned stage) {
#pragma unroll
    for (int i = 1; i < STAGES; i++) there[i - 1] = there[i];
    there[STAGES - 1] = copy_rows(stage);
  };
#pragma unroll 1
  for (int i = 0; i < STAGES; i++) copy_next(ring + i * STAGE);
  for (int i = WARP; i < SETS * (DIM / 32); i += WARPS_OF) {
    const int set = i / (DIM / 32), at = i % (DIM / 32), head = 4 * set + g / 2;
    const float *from = (const float *)a.q.data + ((int64_t)slot * layer.heads + p.head + head) * DIM + at * 32 + t * 2;
    unsigned part[4][3];
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const float2 x = head < p.heads ? *(const float2 *)(from + 8 * j) : make_float2(0, 0);
      split<DTYPE>(part[j], x.x, x.y);
    }
    halves_of_q[set][0][at][LANE] = g % 2 ? make_uint4(part[0][1], part[1][1], part[2][1], part[3][1]) : make_uint4(part[0][0], part[1][0], part[2][0], part[3][0]);
    halves_of_q[set][1][at][LANE] = g % 2 ? make_uint4(0, 0, 0, 0) : make_uint4(part[0][2], part[1][2], part[2][2], part[3][2]);
  }
  float out[SETS][DIM / 16][4], top[SETS], sum[SETS]; /* of head t of each four: lines g and g + 8 of 16 channels, in two columns that belong together */
#pragma unroll
  for (int s = 0; s < SETS; s++) {
    top[s] = -INFINITE;
    sum[s] = 0;
#pragma unroll
    for (int i = 0; i < DIM / 16; i++)
#pragma unroll
      for (int j = 0; j < 4; j++) out[s][i][j] = 0;
  }
  __syncthreads();
  uint4 q[SETS][2][DIM / 32];
#pragma unroll
  for (int i = 0; i < SETS * 2 * (DIM / 32); i++) q[i / (2 * (DIM / 32))][i / (DIM / 32) % 2][i % (DIM / 32)] = halves_of_q[i / (2 * (DIM / 32))][i / (DIM / 32) % 2][i % (DIM / 32)][LANE];
  for (unsigned stage = ring; place < end; place += 16 * WARPS_OF, stage = stage + STAGE == ring_end ? ring : stage + STAGE) {
    copies_wait<STAGES - 1>();
    __syncwarp();
    float logit[SETS][2], third[SETS][4], c[SETS][4]; /* of head t: rows g and g + 8 */
#pragma unroll
    for (int i = 0; i < DIM / 16; i++) {
      unsigned k[4];
      load_four(k, chunk_at(stage, LANE % 16, 2 * i + LANE / 16, ROW));
#pragma unroll
      for (int s = 0; s < SETS; s++) {
        const uint4 first = q[s][0][i / 2], rest = q[s][1][i / 2];
        if (i == 0) {
          multiply_new<DTYPE>(third[s], k, rest.x, rest.y);
          multiply_new<DTYPE>(c[s], k, first.x, first.y);
        } else {
          multiply<DTYPE>(third[s], k, i % 2 ? rest.z : rest.x, i % 2 ? rest.w : rest.y);
          multiply<DTYPE>(c[s], k, i % 2 ? first.z : first.x, i % 2 ? first.w : first.y);
        }
      }
    }
    unsigned b[SETS][2], rest[SETS][2];
#pragma unroll
    for (int s = 0; s < SETS; s++) {
      logit[s][0] = c[s][0] + (c[s][1] + third[s][0]);
      logit[s][1] = c[s][2] + (c[s][3] + third[s][2]);
      float now = top[s];
#pragma unroll
      for (int h = 0; h < 2; h++) {
        logit[s][h] = there[0] >> (8 * h + g) & 1 ? cap_logit(logit[s][h], layer) : -INFINITE;
        now = larger(logit[s][h], now);
      }
#pragma unroll
      for (int i = 4; i < 32; i *= 2) now = fmaxf(now, __shfl_xor_sync(0xffffffffu, now, i));
      if (__any_sync(0xffffffffu, now > top[s])) { /* seldom, but for the first */
        const float old = top[s] == -INFINITE ? 0 : expf(top[s] - now);
        sum[s] *= old;
#pragma unroll
        for (int i = 0; i < DIM / 16; i++)
#pragma unroll
          for (int j = 0; j < 4; j++) out[s][i][j] *= old;
        top[s] = now;
      }
#pragma unroll
      for (int h = 0; h < 2; h++) logit[s][h] = logit[s][h] == -INFINITE ? 0 : expf(logit[s][h] - now);
      sum[s] += logit[s][0] + logit[s][1];
      /* Probabilities turn from lines to columns: this lane's column is a half of head g / 2, its lines are rows 2t, 2t + 1 of each eight. */
      unsigned low[3], high[3];
      split<DTYPE>(low, __shfl_sync(0xffffffffu, logit[s][0], 8 * t + g / 2), __shfl_sync(0xffffffffu, logit[s][0], 8 * t + 4 + g / 2));
      split<DTYPE>(high, __shfl_sync(0xffffffffu, logit[s][1], 8 * t + g / 2), __shfl_sync(0xffffffffu, logit[s][1], 8 * t + 4 + g / 2));
      b[s][0] = g % 2 ? low[1] : low[0], b[s][1] = g % 2 ? high[1] : high[0];
      rest[s][0] = g % 2 ? 0 : low[2], rest[s][1] = g % 2 ? 0 : high[2];
    }
#pragma unroll
    for (int i = 0; i < DIM / 16; i++) {
      unsigned v[4];
      load_four_turned(v, chunk_at(stage + 16 * ROW, LANE / 16 * 8 + LANE % 8, 2 * i + LANE / 8 % 2, ROW));
#pragma unroll
      for (int s = 0; s < SETS; s++) {
        float x[4];
        multiply_new<DTYPE>(x, v, rest[s][0], rest[s][1]);
        multiply<DTYPE>(x, v, b[s][0], b[s][1]);
#pragma unroll
        for (int j = 0; j < 4; j++) out[s][i][j] += x[j];
      }
    }
    __syncwarp();
    copy_next(stage);
  }
  copies_wait<0>();
  __syncthreads(); /* the rings are free */
  float *outs = (float *)shared; /* [warp][head][DIM + 8] */
#pragma unroll
  for (int s = 0; s < SETS; s++) {
#pragma unroll
    for (int i = 4; i < 32; i *= 2) sum[s] += __shfl_xor_sync(0xffffffffu, sum[s], i);
    if (g == 0) tops[WARP][4 * s + t] = top[s], totals[WARP][4 * s + t] = sum[s];
    float *to = outs + (WARP * 4 * SETS + 4 * s + t) * (DIM + 8) + g;
#pragma unroll
    for (int i = 0; i < DIM / 16; i++) {
      to[16 * i] = out[s][i][0] + out[s][i][1];
      to[16 * i + 8] = out[s][i][2] + out[s][i][3];
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
        const float2 v = *(const float2 *)(outs + (w * 4 * SETS + h) * (DIM + 8) + i * 32 + 2 * LANE);
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
  int *ticket = ended + slot * gridDim.x + blockIdx.x;
  __syncthreads();
  if (THREAD == 0) {
    __threadfence();
    is_last = atomicAdd(ticket, 1) == p.pieces - 1;
  }
  __syncthreads();
  if (!is_last) return;
  __threadfence();
  if (THREAD == 0) *ticket = 0;
  for (int h = WARP; h < p.heads; h += WARPS_OF) {
    const int64_t row = (int64_t)slot * layer.heads + p.head + h;
    merge_head<DIM>((float *)a.attended.data + row * DIM, a.lse.data ? (float *)a.lse.data + row : NULL, (const float *)a.work.data + row * limit * (DIM + 2), p.pieces);
  }
}

#define DECODE(name, dtype, dim, sets)                                                                                                           \
  KERNEL __launch_bounds__(32 * RKV_DECODE_WARPS, sets == 1 ? 3 : 2) kernel_decode_##name(const __grid_constant__ rkv_attend_args a,              \
                                                                                          const __grid_constant__ rkv_rows_data kv,                \
                                                                                          const __grid_constant__ rkv_layer_data layer) {          \
    begin();                                                                                                                                      \
    decode<dtype, dim, sets>(a, kv, layer);                                                                                                       \
  }
DECODE(bf16_64, RKV_BF16, 64, 1)
DECODE(bf16_128, RKV_BF16, 128, 1)
DECODE(f16_64, RKV_F16, 64, 1)
DECODE(f16_128, RKV_F16, 128, 1)
/* groups of five to eight heads */
DECODE(wide_bf16_64, RKV_BF16, 64, 2)
DECODE(wide_bf16_128, RKV_BF16, 128, 2)
DECODE(wide_f16_64, RKV_F16, 64, 2)
DECODE(wide_f16_128, RKV_F16, 128, 2)
