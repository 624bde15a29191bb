/* latent.cu: keys in fewer channels, ranked there, and brought back. */
#include "common.cuh"

/* Row `row` of rotations: cosines, then sines; NULL where none are given. */
DEVICE const float *rotation(const rkv_view &rotations, int64_t row) { return rotations.data ? (const float *)rotations.data + row * 2 * rotations.shape[2] : NULL; }

/* The plane of a basis [slots or 1, m, width, r]. */
DEVICE const float *basis_of(const rkv_view &basis, int slot, int row) {
  return (const float *)basis.data + ((int64_t)(basis.shape[0] == 1 ? 0 : slot) * basis.shape[1] + row) * basis.shape[2] * basis.shape[3];
}

/* A block undoes the rotation of pairs (j, j + half); a factor in cosines and sines is undone too. */
DEVICE void turn_back(float *x, const float *cosines, int half) {
  for (int j = THREAD; j < half; j += THREADS) {
    const float c = cosines[j], s = cosines[half + j], a = x[j], b = x[j + half], square = c * c + s * s;
    x[j] = (a * c + b * s) / square;
    x[j + half] = (b * c - a * s) / square;
  }
}

/* A block: to[c] (+)= x[width] basis[width, r], in the order of width. */
DEVICE void project(float *to, const float *x, const float *basis, int width, int r, int add) {
  for (int c = THREAD; c < r; c += THREADS) {
    float sum = add ? to[c] : 0;
    for (int w = 0; w < width; w++) sum = fmaf(x[w], basis[(int64_t)w * r + c], sum);
    to[c] = sum;
  }
}

/* grid: rows, units. shared: key [share * dim], latent [r]. */
KERNEL kernel_project_rows(const __grid_constant__ rkv_project_rows_args a, const __grid_constant__ rkv_rows_data kv) {
  begin();
  extern __shared__ float key[];
  const int i = blockIdx.x, unit = blockIdx.y, is_step = a.slot == RKV_STEP, slot = is_step ? i : a.slot, units = a.latents.shape[1];
  const int share = kv.kv_heads / units, dim = kv.head_dim, r = a.latents.shape[3];
  if (is_step && !kv.active[slot]) return;
  const int row = is_step ? kv.row_end[slot] - 1 : kv.row_end[slot] - a.count + i;
  if (row < 0) return;
  const float *turned = rotation(a.rotations, i);
  for (int d = THREAD; d < share * dim; d += THREADS) {
    const int64_t place = ((int64_t)slot * kv.kv_heads + unit * share + d / dim) * kv.capacity + row;
    key[d] = at_row(kv.keys.dtype, (const char *)kv.keys.data + place * row_bytes(kv.keys.dtype, dim), d % dim, dim);
  }
  __syncthreads();
  if (turned)
    for (int h = 0; h < share; h++) turn_back(key + h * dim, turned, a.rotations.shape[2]);
  __syncthreads();
  float *latent = key + share * dim;
  project(latent, key, basis_of(a.basis, slot, unit), share * dim, r, 0);
  __syncthreads();
  char *to = (char *)a.latents.data + (((int64_t)slot * units + unit) * kv.capacity + row) * row_bytes(a.latents.dtype, r);
  for (int c = THREAD; c < r; c += THREADS) put_at(a.latents.dtype, to, c, latent[c]);
}

/* One head's query in the channels of the basis, or with `add` on top of what is there. shared: q [dim]. */
DEVICE void project_query(const rkv_latent_scores_args &a, const rkv_rows_data &kv, float *to, int slot, int head, float *q, int add) {
  const int heads = a.q.shape[1], dim = a.q.shape[2], share = kv.kv_heads / a.latents.shape[1], kv_head = head / (heads / kv.kv_heads), r = a.basis.shape[3];
  const float *turned = rotation(a.rotations, slot);
  __syncthreads();
  for (int d = THREAD; d < dim; d += THREADS) q[d] = ((const float *)a.q.data)[((int64_t)slot * heads + head) * dim + d];
  __syncthreads();
  if (turned) turn_back(q, turned, a.rotations.shape[2]);
  __syncthreads();
  project(to, q, basis_of(a.basis, slot, kv_head / share) + (int64_t)(kv_head % share) * dim * r, dim, r, add);
  __syncthreads();
}

/* grid: rows of scores, slots. shared: q [dim], latent [r]. */
KERNEL __launch_bounds__(1024) kernel_latent_scores(const __grid_constant__ rkv_latent_scores_args a, const __grid_constant__ rkv_rows_data kv) {
  begin();
  extern __shared__ float q[];
  __shared__ float shared[32];
  const int n = a.scores.shape[1], heads = a.q.shape[1], row = blockIdx.x, slot = blockIdx.y, queries = heads / n, units = a.latents.shape[1];
  if (!kv.active[slot]) return;
  float *scores = (float *)a.scores.data + ((int64_t)slot * n + row) * kv.capacity, *latent = q + a.q.shape[2];
  const int first = a.sink, count = least(kv.tail_begin[slot], kv.row_end[slot]) - first, r = a.basis.shape[3], dtype = a.latents.dtype;
  for (int i = THREAD; i < kv.capacity; i += THREADS)
    if (i < first || i >= first + count) scores[i] = -INFINITE;
  if (count <= 0) return;
  const int64_t bytes = row_bytes(dtype, a.latents.shape[3]);
  const char *rows = (const char *)a.latents.data + (((int64_t)slot * units + row * queries / (heads / units)) * kv.capacity + first) * bytes;
  scores += first;
  if (units < kv.kv_heads || n != kv.kv_heads) { /* one query: the head's, or the sum over the heads */
    for (int g = 0; g < queries; g++) project_query(a, kv, latent, slot, row * queries + g, q, g > 0);
    for (int i = WARP; i < count; i += WARPS) {
      const float x = warp_dot(latent, dtype, rows + i * bytes, r);
      if (LANE == 0) scores[i] = x;
    }
    return;
  }
  for (int g = 0; g < queries; g++) { /* logits are made twice: for the softmax's sum, and for the score */
    project_query(a, kv, latent, slot, row * queries + g, q, 0);
    float top = -INFINITE, sum = 0;
    for (int i = WARP; i < count; i += WARPS) top = larger(warp_dot(latent, dtype, rows + i * bytes, r) * a.scale, top);
    top = block_max(top, shared);
    for (int i = WARP; i < count; i += WARPS) {
      const float x = warp_dot(latent, dtype, rows + i * bytes, r) * a.scale, share = x == x ? expf(x - top) : 0;
      if (LANE == 0) sum += share;
    }
    const float inverse = 1 / block_sum(sum, shared);
    for (int i = WARP; i < count; i += WARPS) {
      const float x = warp_dot(latent, dtype, rows + i * bytes, r) * a.scale, share = x == x ? expf(x - top) * inverse : 0;
      if (LANE == 0) scores[i] = g > 0 ? scores[i] + share : share;
    }
  }
}

/* A block per slot, a warp per head. */
KERNEL kernel_trim_index(const __grid_constant__ rkv_trim_index_args a) {
  begin();
  __shared__ int shared[32];
  const int slot = blockIdx.x, n = a.index.shape[1], budget = a.index.shape[2], width = a.scores.shape[2];
  if (!((const int *)a.active.data)[slot]) return;
  int *index = (int *)a.index.data + (int64_t)slot * n * budget, near_all = 0;
  for (int h = WARP; h < n && budget > 0; h += WARPS) {
    const float *scores = (const float *)a.scores.data + ((int64_t)slot * n + h) * width;
    const int *rows = index + (int64_t)h * budget;
    const float best = (unsigned)rows[0] < (unsigned)width ? scores[rows[0]] : -INFINITE;
    for (int first = 0; first < budget; first += 32) {
      const int row = first + LANE < budget ? rows[first + LANE] : -1;
      const int is_near = (unsigned)row < (unsigned)width && scores[row] > best - a.alpha;
      const unsigned nears = __ballot_sync(0xffffffffu, is_near);
      if (LANE == 0) near_all += nears == 0xffffffffu ? 32 : __ffs(~nears) - 1;
      if (nears != 0xffffffffu) break;
    }
  }
  const int count = (block_sum_int(near_all, shared) + n / 2) / n;
  for (int h = 0; h < n; h++)
    for (int i = count + THREAD; i < budget; i += THREADS) index[(int64_t)h * budget + i] = -1;
}

/* grid: rows of the index, units, slots. shared: latent [r], key [share * dim]. */
KERNEL kernel_reconstruct(const __grid_constant__ rkv_reconstruct_args a, const __grid_constant__ rkv_rows_data kv) {
  begin();
  extern __shared__ float latent[];
  const int i = blockIdx.x, unit = blockIdx.y, slot = blockIdx.z, units = a.index.shape[1], budget = a.index.shape[2], share = kv.kv_heads / units;
  const int dim = kv.head_dim, width = share * dim, r = a.latents.shape[3], dtype = a.latents.dtype;
  if (!kv.active[slot]) return;
  const int row = ((const int *)a.index.data)[((int64_t)slot * units + unit) * budget + i], is_row = row >= 0 && row < kv.row_end[slot];
  float *key = latent + r;
  if (is_row) {
    const char *from = (const char *)a.latents.data + (((int64_t)slot * units + unit) * kv.capacity + row) * row_bytes(dtype, r);
    for (int c = THREAD; c < r; c += THREADS) latent[c] = raw_at(dtype, from, c);
    __syncthreads();
    const float *basis = basis_of(a.basis, slot, unit);
    for (int w = WARP; w < width; w += WARPS) {
      const float x = warp_dot(latent, RKV_F32, basis + (int64_t)w * r, r);
      if (LANE == 0) key[w] = x;
    }
    __syncthreads();
  }
  const int half = a.rotations.data ? a.rotations.shape[2] : 0;
  for (int d = THREAD; d < width; d += THREADS) {
    const int h = d / dim, j = d % dim;
    const int64_t plane = (int64_t)slot * kv.kv_heads + unit * share + h;
    float x = 0;
    if (is_row) {
      const int position = kv.position[plane * kv.capacity + row];
      x = key[d];
      if (j < 2 * half && position >= 0 && position < a.rotations.shape[0]) {
        const float *turned = rotation(a.rotations, position);
        const float c = turned[j % half], s = turned[half + j % half], low = key[h * dim + j % half], high = key[h * dim + half + j % half];
        x = j < half ? low * c - high * s : high * c + low * s;
      }
    }
    ((float *)a.keys.data)[(plane * budget + i) * dim + j] = x;
  }
}

/* A thread per channel. grid: channels, heads. */
KERNEL kernel_channel_mass(const __grid_constant__ rkv_channel_mass_args a) {
  begin();
  const int head = blockIdx.y, kv_heads = a.mass.shape[1], width = a.mass.shape[2], heads = a.q.shape[1], dim = a.q.shape[2], group = heads / kv_heads;
  const int c = blockIdx.x * THREADS + THREAD;
  if (c >= width) return;
  float *mass = (float *)a.mass.data + ((int64_t)a.slot * kv_heads + head) * width + c;
  const float *basis = basis_of(a.basis, a.slot, head) + c;
  float total = *mass;
  for (int i = 0; i < a.count * group; i++) {
    const float *q = (const float *)a.q.data + ((int64_t)(i / group) * heads + head * group + i % group) * dim;
    float sum = 0;
    for (int d = 0; d < dim; d++) sum = fmaf(q[d], basis[(int64_t)d * width], sum);
    total += fabsf(sum);
  }
  *mass = total;
}

/* grid: rows of the basis, heads. */
KERNEL kernel_pick_channels(const __grid_constant__ rkv_pick_channels_args a) {
  begin();
  const int w = blockIdx.x, head = blockIdx.y, width = a.to.shape[2], r = a.to.shape[3], all = a.basis.shape[3];
  const int64_t plane = (int64_t)a.slot * a.to.shape[1] + head;
  const float *basis = basis_of(a.basis, a.slot, head) + (int64_t)w * all;
  const int *order = (const int *)a.order.data + plane * r;
  for (int c = THREAD; c < r; c += THREADS) ((float *)a.to.data)[(plane * width + w) * r + c] = (unsigned)order[c] < (unsigned)all ? basis[order[c]] : 0;
}
