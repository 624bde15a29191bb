/* attention.cu: decode attention over sink rows, chosen rows and the tail, and what is merged into it or told of it.
 *
 * What a head attends is a list of places: sink, index, tail, one after another. It is cut into pieces; each makes a partial softmax (sum of
 * values, largest logit, sum of probabilities), and these are merged in piece order. How it is cut depends on the slot's own length alone. */
#include "common.cuh"
#include "plan.cuh"

#define TILE 64 /* rows at a time: eight for each group of 16 lanes */
#define GROUPS (RKV_ATTEND_THREADS / 16)

/* `H` heads from `head` on over a piece. 128 * CHUNKS >= headDim. shared: q [H][128 * CHUNKS], sums [GROUPS][H][128 * CHUNKS]. */
template <int DTYPE, int H, int CHUNKS>
DEVICE void attend_heads(const rkv_attend_args &a, const rkv_rows_data &kv, const rkv_layer_data &layer, const plan &p, int head, int heads, int piece, float *shared) {
  const int dim = layer.head_dim, width = 128 * CHUNKS, group = THREAD / 16, lane = THREAD % 16, eight = loads_eight(DTYPE, dim), limit = gridDim.x;
  const int64_t bytes = row_bytes(DTYPE, dim), plane = (((int64_t)p.slot * kv.kv_heads + p.kv_head) * kv.capacity) * bytes;
  const char *keys = (const char *)kv.keys.data + plane, *values = (const char *)kv.values.data + plane;
  float *q = shared, *sums = shared + H * width;
  __shared__ int list[TILE];
  __shared__ float s[H][TILE], top[H], sum[H], factor[H];
  float acc[CHUNKS][H][8];
#pragma unroll
  for (int i = 0; i < CHUNKS * H * 8; i++) acc[i / (8 * H)][i / 8 % H][i % 8] = 0;
  __syncthreads();
  for (int i = THREAD; i < H * width; i += THREADS) {
    const int h = i / width, d = i % width;
    q[i] = h < heads && d < dim ? ((const float *)a.q.data)[((int64_t)p.slot * layer.heads + head + h) * dim + d] : 0;
  }
  if (THREAD < H) top[THREAD] = -INFINITE, sum[THREAD] = 0;
  const int places = p.sink + p.chosen + p.tail, end = least(places, (piece + 1) * p.piece_rows);
  for (int place = piece * p.piece_rows; place < end; place += TILE) {
    __syncthreads();
    if (THREAD < TILE) list[THREAD] = place + THREAD < end ? row_at(p, layer.window, place + THREAD) : -1;
    __syncthreads();
#pragma unroll 4
    for (int j = group; j < TILE; j += GROUPS) {
      const int row = list[j];
      float dot[H];
#pragma unroll
      for (int h = 0; h < H; h++) dot[h] = 0;
      if (row >= 0)
#pragma unroll
        for (int c = 0; c < CHUNKS; c++) {
          float k[8];
          load8(k, DTYPE, keys + row * bytes, c * 128 + lane * 8, dim, eight);
#pragma unroll
          for (int h = 0; h < H; h++)
#pragma unroll
            for (int i = 0; i < 8; i++) dot[h] = fmaf(k[i], q[h * width + c * 128 + lane * 8 + i], dot[h]);
        }
#pragma unroll
      for (int h = 0; h < H; h++)
        for (int i = 8; i > 0; i /= 2) dot[h] += __shfl_xor_sync(0xffffffffu, dot[h], i);
      if (lane == 0) {
        const float scale = DTYPE == RKV_Q8 && row >= 0 ? q8_scale(keys + row * bytes, dim) : 1;
#pragma unroll
        for (int h = 0; h < H; h++) s[h][j] = row >= 0 ? cap_logit(dot[h] * scale, layer) : -INFINITE;
      }
    }
    __syncthreads();
    for (int h = WARP; h < H; h += WARPS) { /* a head per warp: two logits a lane */
      const float x = s[h][LANE], y = s[h][LANE + 32], before = top[h], now = fmaxf(before, warp_max(larger(x, y)));
      const float px = x == -INFINITE ? 0 : expf(x - now), py = y == -INFINITE ? 0 : expf(y - now);
      const float tile = warp_sum(px + py), old = before == -INFINITE ? 0 : expf(before - now);
      s[h][LANE] = px;
      s[h][LANE + 32] = py;
      __syncwarp(); /* every lane has read top */
      if (LANE == 0) {
        top[h] = now;
        sum[h] = fmaf(sum[h], old, tile);
        factor[h] = old;
      }
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < CHUNKS * H * 8; i++) acc[i / (8 * H)][i / 8 % H][i % 8] *= factor[i / 8 % H];
#pragma unroll 4
    for (int j = group; j < TILE; j += GROUPS) {
      const int row = list[j];
      if (row < 0) continue;
      const float scale = DTYPE == RKV_Q8 ? q8_scale(values + row * bytes, dim) : 1;
#pragma unroll
      for (int c = 0; c < CHUNKS; c++) {
        float v[8];
        load8(v, DTYPE, values + row * bytes, c * 128 + lane * 8, dim, eight);
#pragma unroll
        for (int h = 0; h < H; h++)
#pragma unroll
          for (int i = 0; i < 8; i++) acc[c][h][i] = fmaf(s[h][j] * scale, v[i], acc[c][h][i]);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < CHUNKS * H * 8; i++) {
    const int c = i / (8 * H), h = i / 8 % H;
    sums[(group * H + h) * width + c * 128 + lane * 8 + i % 8] = acc[c][h][i % 8];
  }
  __syncthreads();
  for (int i = THREAD; i < heads * dim; i += THREADS) {
    const int h = i / dim, d = i % dim;
    float total = 0;
    for (int g = 0; g < GROUPS; g++) total += sums[(g * H + h) * width + d];
    ((float *)a.work.data)[(((int64_t)p.slot * layer.heads + head + h) * limit + piece) * (dim + 2) + d] = total;
  }
  if (THREAD < heads) {
    float *to = (float *)a.work.data + (((int64_t)p.slot * layer.heads + head + THREAD) * limit + piece) * (dim + 2) + dim;
    to[0] = top[THREAD];
    to[1] = sum[THREAD];
  }
}

template <int DTYPE>
DEVICE void attend_piece(const rkv_attend_args &a, const rkv_rows_data &kv, const rkv_layer_data &layer, const plan &p, int piece, float *shared) {
  for (int h = 0; h < p.heads;) {
    const int left = p.heads - h, dim = layer.head_dim;
    if (dim <= 128 && left > 1) attend_heads<DTYPE, 4, 1>(a, kv, layer, p, p.head + h, least(4, left), piece, shared), h += 4;
    else if (dim <= 128) attend_heads<DTYPE, 1, 1>(a, kv, layer, p, p.head + h, 1, piece, shared), h++;
    else if (dim <= 256) attend_heads<DTYPE, 2, 2>(a, kv, layer, p, p.head + h, least(2, left), piece, shared), h += 2;
    else attend_heads<DTYPE, 1, 4>(a, kv, layer, p, p.head + h, 1, piece, shared), h++;
  }
}

/* grid: pieces, units, slots. */
KERNEL __launch_bounds__(RKV_ATTEND_THREADS) kernel_attend(const __grid_constant__ rkv_attend_args a, const __grid_constant__ rkv_rows_data kv,
                                                        const __grid_constant__ rkv_layer_data layer) {
  begin();
  extern __shared__ float shared[];
  const int slot = blockIdx.z;
  if (!kv.active[slot]) return;
  const plan p = plan_of(a, kv, layer, slot, blockIdx.y);
  const int piece = blockIdx.x;
  if (piece >= p.pieces) return;
  switch (kv.keys.dtype) {
    case RKV_F16: attend_piece<RKV_F16>(a, kv, layer, p, piece, shared); break;
    case RKV_BF16: attend_piece<RKV_BF16>(a, kv, layer, p, piece, shared); break;
    case RKV_Q8: attend_piece<RKV_Q8>(a, kv, layer, p, piece, shared); break;
    default: attend_piece<RKV_F32>(a, kv, layer, p, piece, shared);
  }
}

/* Merges `pieces` partial softmaxes, after one that is known already (sum before: 0 or 1). weights[pieces] of shared memory. */
DEVICE void merge(float *attended, float *lse, const float *partials, int pieces, int dim, int has_before, float *weights, float *shared) {
  const float before = has_before ? *lse : -INFINITE;
  float top = before, sum = 0;
  for (int i = THREAD; i < pieces; i += THREADS)
    if (partials[i * (int64_t)(dim + 2) + dim + 1] != 0) top = larger(partials[i * (int64_t)(dim + 2) + dim], top);
  top = block_max(top, shared);
  for (int i = THREAD; i < pieces; i += THREADS) {
    const float *p = partials + i * (int64_t)(dim + 2) + dim, w = p[1] == 0 ? 0 : expf(p[0] - top);
    weights[i] = w;
    sum = fmaf(w, p[1], sum);
  }
  const float own = before == -INFINITE ? 0 : expf(before - top), total = block_sum(sum, shared) + own, inverse = total == 0 ? 0 : 1 / total;
  for (int d = THREAD; d < dim; d += THREADS) {
    float x = own == 0 ? 0 : attended[d] * own;
#pragma unroll 8
    for (int i = 0; i < pieces; i++) x = fmaf(weights[i], partials[i * (int64_t)(dim + 2) + d], x);
    attended[d] = x * inverse;
  }
  __syncthreads();
  if (THREAD == 0 && lse) *lse = total == 0 ? -INFINITE : top + logf(total);
}

/* Rows of units [first, end) of a slot that its step read. */
DEVICE void count_rows(const rkv_attend_args &a, const rkv_rows_data &kv, const rkv_layer_data &layer, int slot, int first, int end, int *shared) {
  const int units = is_per_head(a, layer) ? layer.heads : layer.kv_heads, share = units / layer.kv_heads, n = end - first;
  int chosen = 0, tail = 0;
  const plan p = plan_of(a, kv, layer, slot, first);
#pragma unroll 4
  for (int64_t i = THREAD; i < (int64_t)n * p.chosen; i += THREADS) chosen += p.index[i] >= 0 && p.index[i] < p.row_end;
  for (int u = first; u < end && layer.window > 0; u++) {
    const plan one = plan_of(a, kv, layer, slot, u);
    for (int i = THREAD; i < one.tail; i += THREADS) tail += row_at(one, layer.window, one.sink + one.chosen + i) >= 0;
  }
  chosen = block_sum_int(chosen, shared);
  tail = layer.window > 0 ? block_sum_int(tail, shared) : p.tail * n;
  if (THREAD != 0) return;
  unsigned long long *counters = (unsigned long long *)kv.attended + (int64_t)slot * 4; /* integers: the order of adding is no matter */
  atomicAdd(counters, (unsigned long long)((int64_t)p.sink * n / share));
  atomicAdd(counters + 1, (unsigned long long)(chosen / share));
  atomicAdd(counters + 2, (unsigned long long)(tail / share));
}

/* grid: heads, slots. */
KERNEL kernel_attend_merge(const __grid_constant__ rkv_attend_args a, const __grid_constant__ rkv_rows_data kv, const __grid_constant__ rkv_layer_data layer) {
  begin();
  extern __shared__ float weights[];
  __shared__ float shared[32];
  __shared__ int counts[32];
  const int head = blockIdx.x, slot = blockIdx.y, dim = layer.head_dim, limit = pieces_at_most(a, kv);
  if (!kv.active[slot]) return;
  const plan p = plan_of(a, kv, layer, slot, is_per_head(a, layer) ? head : head / (layer.heads / layer.kv_heads));
  const int64_t row = (int64_t)slot * layer.heads + head;
  merge((float *)a.attended.data + row * dim, a.lse.data ? (float *)a.lse.data + row : NULL, (const float *)a.work.data + row * limit * (dim + 2), p.pieces, dim, 0, weights,
        shared);
  const int group = layer.heads / layer.kv_heads;
  if (!is_per_head(a, layer) && head % group == 0) count_rows(a, kv, layer, slot, head / group, head / group + 1, counts);
  else if (is_per_head(a, layer) && head == 0) count_rows(a, kv, layer, slot, 0, layer.heads, counts); /* a share of the sum over heads */
}

/* ---- the fourth source: clusters that were not chosen enter as one row each. grid: pieces, heads, slots ---- */

KERNEL __launch_bounds__(RKV_ATTEND_THREADS) kernel_estimates(const __grid_constant__ rkv_attend_estimates_args a, const __grid_constant__ rkv_rows_data kv,
                                                           const __grid_constant__ rkv_layer_data layer) {
  begin();
  __shared__ float s[RKV_PIECE], shared[32];
  const int piece = blockIdx.x, head = blockIdx.y, slot = blockIdx.z, dim = layer.head_dim, all = a.centroids.shape[2], n = a.bias.shape[1];
  if (!kv.active[slot]) return;
  const int64_t plane = ((int64_t)slot * layer.kv_heads + head / (layer.heads / layer.kv_heads)) * all + piece * RKV_PIECE;
  const float *centroids = (const float *)a.centroids.data + plane * dim, *means = (const float *)a.means.data + plane * dim;
  const float *q = (const float *)a.q.data + ((int64_t)slot * layer.heads + head) * dim;
  const float *bias = (const float *)a.bias.data + ((int64_t)slot * n + head / (layer.heads / n)) * all + piece * RKV_PIECE;
  const int count = least(RKV_PIECE, all - piece * RKV_PIECE);
  float top = -INFINITE, sum = 0;
  for (int c = WARP; c < count; c += WARPS) {
    const float weight = bias[c];
    float x = -INFINITE;
    if (weight > -INFINITE) x = cap_logit(warp_dot(q, RKV_F32, centroids + (int64_t)c * dim, dim), layer) + weight;
    if (LANE == 0) s[c] = x;
    top = larger(x, top);
  }
  top = block_max(top, shared);
  for (int c = THREAD; c < count; c += THREADS) {
    const float p = s[c] == -INFINITE ? 0 : expf(s[c] - top);
    s[c] = p;
    sum += p;
  }
  sum = block_sum(sum, shared);
  float *to = (float *)a.work.data + (((int64_t)slot * layer.heads + head) * gridDim.x + piece) * (dim + 2);
  for (int d = THREAD; d < dim; d += THREADS) {
    float x = 0;
    for (int c = 0; c < count; c++)
      if (s[c] != 0) x = fmaf(s[c], means[(int64_t)c * dim + d], x);
    to[d] = x;
  }
  if (THREAD == 0) to[dim] = top, to[dim + 1] = sum;
}

KERNEL kernel_estimates_merge(const __grid_constant__ rkv_attend_estimates_args a, const __grid_constant__ rkv_rows_data kv, const __grid_constant__ rkv_layer_data layer) {
  begin();
  extern __shared__ float weights[];
  __shared__ float shared[32];
  __shared__ int counts[32];
  const int head = blockIdx.x, slot = blockIdx.y, dim = layer.head_dim, pieces = ceil_div(a.centroids.shape[2], RKV_PIECE), n = a.bias.shape[1];
  if (!kv.active[slot]) return;
  const int64_t row = (int64_t)slot * layer.heads + head, entries = (int64_t)n * a.bias.shape[2];
  merge((float *)a.attended.data + row * dim, (float *)a.lse.data + row, (const float *)a.work.data + row * pieces * (dim + 2), pieces, dim, 1, weights, shared);
  if (head != 0) return;
  int count = 0;
  for (int64_t i = THREAD; i < entries; i += THREADS) count += ((const float *)a.bias.data)[slot * entries + i] > -INFINITE;
  count = block_sum_int(count, counts);
  if (THREAD == 0) kv.attended[(int64_t)slot * 4 + 3] += count / (n / layer.kv_heads);
}

/* ---- how much attention each row has drawn: a thread owns a row and goes through the queries in order. grid: row tiles, units, slots ---- */

#define MASS_ROWS 64
#define MASS_PAIRS 8

KERNEL __launch_bounds__(MASS_ROWS) kernel_mass(const __grid_constant__ rkv_attention_mass_args a, const __grid_constant__ rkv_rows_data kv,
                                             const __grid_constant__ rkv_layer_data layer) {
  begin();
  extern __shared__ float q[];
  const int is_step = a.slot == RKV_STEP, slot = is_step ? blockIdx.z : a.slot, units = a.mass.shape[1], unit = blockIdx.y, dim = layer.head_dim, dtype = kv.keys.dtype;
  if (is_step && !kv.active[slot]) return;
  const int row_end = kv.row_end[slot], first_row = blockIdx.x * MASS_ROWS, row = first_row + THREAD, heads = layer.heads / units, head = unit * heads;
  if (first_row >= row_end) return;
  const int64_t plane = ((int64_t)slot * kv.kv_heads + head / (layer.heads / layer.kv_heads)) * kv.capacity, bytes = row_bytes(dtype, dim);
  const int *position = kv.position + plane;
  const char *key = (const char *)kv.keys.data + (plane + least(row, row_end - 1)) * bytes;
  const int eight = loads_eight(dtype, dim);
  const float scale = row_scale(dtype, key, dim);
  const int base = is_step ? row_end - 1 : row_end - a.count, query0 = is_step ? slot : most(a.first, first_row - base), queries = is_step ? 1 : a.count - query0;
  float *mass = (float *)a.mass.data + ((int64_t)slot * units + unit) * kv.capacity + row;
  float total = row < row_end ? *mass : 0;
  for (int first = 0; first < queries * heads; first += MASS_PAIRS) {
    const int pairs = least(MASS_PAIRS, queries * heads - first);
    __syncthreads();
    for (int i = THREAD; i < pairs * dim; i += THREADS) {
      const int pair = first + i / dim;
      q[i] = ((const float *)a.q.data)[((int64_t)(query0 + pair / heads) * layer.heads + head + pair % heads) * dim + i % dim];
    }
    __syncthreads();
    float dot[MASS_PAIRS] = {0};
    for (int d = 0; d < dim; d += 8) {
      float k[8];
      load8(k, dtype, key, d, dim, eight);
#pragma unroll
      for (int pair = 0; pair < MASS_PAIRS; pair++)
        if (pair < pairs)
          for (int i = 0; i < 8 && d + i < dim; i++) dot[pair] = fmaf(k[i], q[pair * dim + d + i], dot[pair]);
    }
#pragma unroll
    for (int pair = 0; pair < MASS_PAIRS; pair++) {
      if (pair >= pairs) continue;
      const int query = query0 + (first + pair) / heads, self = is_step ? base : base + query;
      const float lse = ((const float *)a.lse.data)[(int64_t)query * layer.heads + head + (first + pair) % heads];
      if (row > self || row >= row_end || !(lse != -INFINITE)) continue;
      if (layer.window > 0 && position[self] - position[row] >= layer.window) continue;
      total += expf(cap_logit(dot[pair] * scale, layer) - lse) * (a.weights.data ? ((const float *)a.weights.data)[query] : 1.0f);
    }
  }
  if (row < row_end) *mass = total;
}

KERNEL kernel_mass_rates(const __grid_constant__ rkv_mass_rates_args a, const __grid_constant__ rkv_rows_data kv) {
  begin();
  const int units = a.mass.shape[1], unit = blockIdx.y, slot = a.slot == RKV_STEP ? blockIdx.z : a.slot, row = blockIdx.x * THREADS + THREAD;
  if ((a.slot == RKV_STEP && !kv.active[slot]) || row >= kv.row_end[slot]) return;
  const int *position = kv.position + ((int64_t)slot * kv.kv_heads + unit / (units / kv.kv_heads)) * kv.capacity;
  const int64_t at = ((int64_t)slot * units + unit) * kv.capacity + row;
  ((float *)a.rates.data)[at] = ((const float *)a.mass.data)[at] / (float)(position[kv.row_end[slot] - 1] - position[row] + 1);
}
