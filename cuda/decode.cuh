/* decode.cuh: decode attention over rows of 16 bits, heads of 64 or 128 channels, groups of up to eight heads, on tensor cores. The warps of a
 * team take turns over a piece's rows, 16 at a time, which come through a ring in shared memory that each warp fills for itself, ahead of its
 * need; they are merged in order. Queries and probabilities stay exact: three halves each. What is cut how: plan.cuh. */
#ifndef RKV_DECODE_CUH
#define RKV_DECODE_CUH
#include "mma.cuh"
#include "plan.cuh"

/* Shared by a team; and by a block, the halves of its queries: of a lane's column, its channels of each 32: first or second; third or none. */
template <int SETS>
struct team_room { float tops[RKV_DECODE_WARPS][4 * SETS], totals[RKV_DECODE_WARPS][4 * SETS]; };
template <int DIM, int SETS>
struct query_halves { uint4 of[SETS][2][DIM / 32][32]; };

DEVICE void team_sync(int team) { asm volatile("bar.sync %0, %1;" ::"r"(team), "n"(32 * RKV_DECODE_WARPS) : "memory"); }

/* SETS: four heads each. The eight columns of a product are four heads twice, first halves and second; the third halves go by a second product,
 * beside zeros. A whole block's, or that of the warps from 0 to `warps`. */
template <int DTYPE, int DIM, int SETS>
DEVICE void split_queries(query_halves<DIM, SETS> &to, const float *q /*[heads][DIM]*/, int heads, int warps) {
  const int g = LANE / 4, t = LANE % 4;
  for (int i = WARP; i < SETS * (DIM / 32); i += warps) {
    const int set = i / (DIM / 32), at = i % (DIM / 32), head = 4 * set + g / 2;
    const float *from = q + head * DIM + at * 32 + t * 2;
    unsigned part[4][3];
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const float2 x = head < heads ? *(const float2 *)(from + 8 * j) : make_float2(0, 0);
      split<DTYPE>(part[j], x.x, x.y);
    }
    to.of[set][0][at][LANE] = g % 2 ? make_uint4(part[0][1], part[1][1], part[2][1], part[3][1]) : make_uint4(part[0][0], part[1][0], part[2][0], part[3][0]);
    to.of[set][1][at][LANE] = g % 2 ? make_uint4(0, 0, 0, 0) : make_uint4(part[0][2], part[1][2], part[2][2], part[3][2]);
  }
}

/* Team `team` of a block (its number is that of its barrier), warp `warp` of it. Rows are the 16 lines of a product; the lane of a sum knows one
 * head. The piece's sums go to work. `ready`: called when the first rows are on their way; after it the queries' halves are there. Counts rows
 * read. rings: the warps', RKV_DECODE_SHARED(DIM) bytes. */
template <int DTYPE, int DIM, int SETS, class Ready>
DEVICE void attend_piece(const rkv_attend_args &a, const rkv_rows_data &kv, const rkv_layer_data &layer, const plan &p, int piece, int team, int warp, unsigned char *rings,
                         team_room<SETS> &room, const query_halves<DIM, SETS> &queries, Ready ready) {
  constexpr int ROW = DIM * 2, CHUNKS = DIM / 8, AT_ONCE = 32 / CHUNKS, STAGE = 2 * 16 * ROW, WARPS_OF = RKV_DECODE_WARPS, STAGES = RKV_DECODE_STAGES;
  const int g = LANE / 4, t = LANE % 4, limit = pieces_at_most(a, kv);
  const int64_t plane = (((int64_t)p.slot * kv.kv_heads + p.kv_head) * kv.capacity) * ROW;
  const char *keys = (const char *)kv.keys.data + plane + LANE % CHUNKS * 16, *values = (const char *)kv.values.data + plane + LANE % CHUNKS * 16;
  const int places = p.sink + p.chosen + p.tail, end = least(places, (piece + 1) * p.piece_rows);
  int place = piece * p.piece_rows + warp * 16, ahead = place, chosen = 0, tail = 0; /* rows that this lane has seen of each source */
  /* Lane i and lane i + 16 know row i of sixteen: an index is read once, and before its rows are wanted. */
  const auto rows_from = [&](int at) { return at + LANE % 16 < end ? row_at(p, layer.window, at + LANE % 16) : -1; };
  int later = rows_from(ahead);
  const unsigned ring = shared_address(rings) + warp * STAGES * STAGE, ring_end = ring + STAGES * STAGE;
  /* Sixteen keys, then their values; which of them are rows. */
  const auto copy_rows = [&](unsigned stage) {
    const int rows = later, at = ahead + LANE % 16;
    if (ahead < end) {
      chosen += rows >= 0 && at >= p.sink && at < p.sink + p.chosen;
      tail += rows >= 0 && at >= p.sink + p.chosen;
      ahead += 16 * WARPS_OF;
      later = rows_from(ahead);
      if (a.index.data && later >= 0) /* few rows, and far between: those beyond the ring are asked for as well, keys by one half of the lanes */
        for (int i = 0; i < ROW; i += 128) prefetch((const char *)(LANE < 16 ? kv.keys : kv.values).data + plane + (int64_t)later * ROW + i);
#pragma unroll 2
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
  ready();
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
  uint4 q[SETS][2][DIM / 32];
#pragma unroll
  for (int i = 0; i < SETS * 2 * (DIM / 32); i++) q[i / (2 * (DIM / 32))][i / (DIM / 32) % 2][i % (DIM / 32)] = queries.of[i / (2 * (DIM / 32))][i / (DIM / 32) % 2][i % (DIM / 32)][LANE];
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
  team_sync(team); /* the rings are free */
  float *outs = (float *)rings; /* [warp][head][DIM + 8] */
#pragma unroll
  for (int s = 0; s < SETS; s++) {
#pragma unroll
    for (int i = 4; i < 32; i *= 2) sum[s] += __shfl_xor_sync(0xffffffffu, sum[s], i);
    if (g == 0) room.tops[warp][4 * s + t] = top[s], room.totals[warp][4 * s + t] = sum[s];
    float *to = outs + (warp * 4 * SETS + 4 * s + t) * (DIM + 8) + g;
#pragma unroll
    for (int i = 0; i < DIM / 16; i++) {
      to[16 * i] = out[s][i][0] + out[s][i][1];
      to[16 * i + 8] = out[s][i][2] + out[s][i][3];
    }
  }
  team_sync(team);
  for (int h = warp; h < p.heads; h += WARPS_OF) {
    float all = -INFINITE, total = 0, weight[WARPS_OF], x[DIM / 32];
#pragma unroll
    for (int w = 0; w < WARPS_OF; w++) all = fmaxf(all, room.tops[w][h]);
#pragma unroll
    for (int w = 0; w < WARPS_OF; w++) {
      weight[w] = room.totals[w][h] == 0 ? 0 : expf(room.tops[w][h] - all);
      total = fmaf(weight[w], room.totals[w][h], total);
    }
    float *to = (float *)a.work.data + (((int64_t)p.slot * layer.heads + p.head + h) * limit + piece) * (DIM + 2);
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
  if (is_per_head(a, layer)) return; /* what is counted there is a share of all heads */
  if (LANE >= 16) chosen = tail = 0; /* two lanes know each row */
  chosen = warp_sum_int(chosen);
  tail = warp_sum_int(tail);
  unsigned long long *counters = (unsigned long long *)kv.attended + (int64_t)p.slot * 4; /* integers: the order of adding is no matter */
  if (LANE == 0 && chosen > 0) atomicAdd(counters + 1, (unsigned long long)chosen);
  if (LANE == 0 && tail > 0) atomicAdd(counters + 2, (unsigned long long)tail);
  if (warp == 0 && LANE == 0 && piece == 0) atomicAdd(counters, (unsigned long long)p.sink);
}

/* A warp merges a head's pieces. What they left is asked for eight at a time, before their weights are known. */
template <int DIM>
DEVICE void merge_head(float *to, float *lse, const float *partials, int pieces) {
  const float *mine = partials + LANE * (DIM + 2) + DIM;
  const float top = LANE < pieces ? __ldcg(mine) : -INFINITE, sum = LANE < pieces ? __ldcg(mine + 1) : 0;
  float all, weight, total = 0, x[DIM / 32];
#pragma unroll
  for (int d = 0; d < DIM / 32; d++) x[d] = 0;
#pragma unroll 1
  for (int first = 0; first < pieces; first += 8) {
    float2 v[8][DIM / 64];
#pragma unroll
    for (int i = 0; i < 8 * (DIM / 64); i++) {
      const int piece = i / (DIM / 64), d = i % (DIM / 64);
      v[piece][d] = first + piece < pieces ? __ldcg((const float2 *)(partials + (first + piece) * (DIM + 2) + d * 64 + 2 * LANE)) : make_float2(0, 0);
    }
    if (first == 0) {
      all = warp_max(sum == 0 ? -INFINITE : top);
      weight = sum == 0 ? 0 : expf(top - all);
      total = warp_sum(weight * sum);
    }
#pragma unroll
    for (int i = 0; i < 8; i++) {
      const float w = __shfl_sync(0xffffffffu, weight, (first + i) % 32); /* 0 behind the last */
#pragma unroll
      for (int d = 0; d < DIM / 64; d++) {
        x[2 * d] = fmaf(w, v[i][d].x, x[2 * d]);
        x[2 * d + 1] = fmaf(w, v[i][d].y, x[2 * d + 1]);
      }
    }
  }
  const float inverse = total == 0 ? 0 : 1 / total;
#pragma unroll
  for (int d = 0; d < DIM / 32; d += 2) *(float2 *)(to + d * 32 + 2 * LANE) = make_float2(x[d] * inverse, x[d + 1] * inverse);
  if (LANE == 0 && lse) *lse = total == 0 ? -INFINITE : all + logf(total);
}

#endif
