/* tensor.cu: prefill's large products on tensor cores: y[count, rows] = x[count, cols] w[rows, cols]^T with x and w as halves, sums in f32.
 * A block makes 128 x 128 outputs from tiles of 64 k, three of them under way. */
#include "mma.cuh"

#define ROWS 128
#define COLS 128
#define DEPTH 64
#define STAGES 3
#define TILE_BYTES (ROWS * DEPTH * 2)
#define STAGE_BYTES (2 * TILE_BYTES)

/* Output column of row r of the tile of weights. With SwiGLU 16 columns of gate stand beside the same 16 of up, in one warp. */
DEVICE int column_of(const rkv_tensor_product &p, int r) { return p.mode == RKV_SWIGLU ? blockIdx.y * (COLS / 2) + r / 32 * 16 + r % 16 : blockIdx.y * COLS + r; }

DEVICE void load_stage(const rkv_tensor_product &p, unsigned stage, int k0) {
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const int id = i * 256 + THREAD, r = id / 8, chunk = id % 8, row = blockIdx.x * ROWS + r, is_row = row < p.count;
    copy16(chunk_at(stage, r, chunk, 128), (const char *)p.x + (is_row ? row * p.x_stride : 0) + (k0 + chunk * 8) * 2, is_row);
    const int col = column_of(p, r), is_col = col < p.rows, is_up = p.mode == RKV_SWIGLU && r % 32 >= 16;
    const char *w = (const char *)(is_up ? p.gated : p.w) + (is_col ? col * (is_up ? p.gated_stride : p.stride) : 0);
    copy16(chunk_at(stage + TILE_BYTES, r, chunk, 128), w + (k0 + chunk * 8) * 2, is_col);
  }
}

DEVICE float quick_silu(float g) { return g / (1 + __expf(-g)); }

template <int DTYPE>
DEVICE void product(const rkv_tensor_product &p) {
  extern __shared__ __align__(1024) unsigned char tiles[];
  const unsigned base = shared_address(tiles);
  const int row0 = WARP / 4 * 64, col0 = WARP % 4 * 32, steps = p.cols / DEPTH;
  float sum[4][4][4];
#pragma unroll
  for (int i = 0; i < 64; i++) sum[i / 16][i / 4 % 4][i % 4] = 0;
#pragma unroll
  for (int s = 0; s < STAGES - 1; s++) {
    if (s < steps) load_stage(p, base + s * STAGE_BYTES, s * DEPTH);
    copies_end();
  }
  for (int step = 0; step < steps; step++) {
    copies_wait<STAGES - 2>();
    __syncthreads();
    const int next = step + STAGES - 1;
    if (next < steps) load_stage(p, base + next % STAGES * STAGE_BYTES, next * DEPTH);
    copies_end();
    const unsigned x = base + step % STAGES * STAGE_BYTES, w = x + TILE_BYTES;
#pragma unroll
    for (int k = 0; k < DEPTH / 16; k++) {
      unsigned a[4][4], b[2][4];
#pragma unroll
      for (int i = 0; i < 4; i++) load_four(a[i], chunk_at(x, row0 + i * 16 + LANE % 16, k * 2 + LANE / 16, 128));
#pragma unroll
      for (int j = 0; j < 2; j++) load_four(b[j], chunk_at(w, col0 + j * 16 + LANE / 16 * 8 + LANE % 8, k * 2 + LANE / 8 % 2, 128));
#pragma unroll
      for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) multiply<DTYPE>(sum[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
    }
  }
#pragma unroll
  for (int i = 0; i < 4; i++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int64_t row = blockIdx.x * ROWS + row0 + i * 16 + half * 8 + LANE / 4;
      if (row >= p.count) continue;
      if (p.mode == RKV_SWIGLU) {
#pragma unroll
        for (int j = 0; j < 2; j++) { /* columns of gate; up's are two tiles further */
          const int col = blockIdx.y * (COLS / 2) + col0 / 2 + j * 8 + LANE % 4 * 2;
          const float *gate = sum[i][j] + half * 2, *up = sum[i][j + 2] + half * 2;
          if (col < p.rows) *(unsigned *)((char *)p.y + row * p.y_stride + col * 2) = halves<DTYPE>(quick_silu(gate[0]) * up[0], quick_silu(gate[1]) * up[1]);
        }
        continue;
      }
#pragma unroll
      for (int j = 0; j < 4; j++) {
        const int col = blockIdx.y * COLS + col0 + j * 8 + LANE % 4 * 2;
        float *y = (float *)((char *)p.y + row * p.y_stride) + col;
#pragma unroll
        for (int e = 0; e < 2; e++)
          if (col + e < p.rows) {
            float v = sum[i][j][half * 2 + e];
            if (p.mode == RKV_ADD) v += (p.bias ? p.bias[col + e] : 0) + y[e];
            y[e] = v;
          }
      }
    }
}

KERNEL __launch_bounds__(256, 2) kernel_tensor_bf16(const __grid_constant__ rkv_tensor_product p) { begin(); product<RKV_BF16>(p); }
KERNEL __launch_bounds__(256, 2) kernel_tensor_f16(const __grid_constant__ rkv_tensor_product p) { begin(); product<RKV_F16>(p); }

/* ---- what they take: rows as halves. width is even ---- */

DEVICE void put_two(int dtype, void *row, int k, float a, float b) { ((unsigned *)row)[k / 2] = dtype == RKV_BF16 ? halves<RKV_BF16>(a, b) : halves<RKV_F16>(a, b); }

/* As norm of decoder.cu. grid: rows. */
KERNEL kernel_norm_halves(void *to, const float *x, const float *weight, int width, float eps, int dtype) {
  begin();
  __shared__ float shared[32];
  x += (int64_t)blockIdx.x * width;
  to = (char *)to + (int64_t)blockIdx.x * width * 2;
  float sum = 0;
  for (int k = THREAD; k < width; k += THREADS) sum = fmaf(x[k], x[k], sum);
  const float factor = 1.0f / sqrtf(block_sum(sum, shared) / (float)width + eps);
  for (int k = 2 * THREAD; k < width; k += 2 * THREADS) put_two(dtype, to, k, x[k] * factor * weight[k], x[k + 1] * factor * weight[k + 1]);
}

/* gate = silu(gate) * up, in eights; both as cuBLASLt left them. */
template <int DTYPE>
DEVICE void swiglu_halves(uint4 *gate, const uint4 *up, int64_t i) {
  uint4 g = gate[i], u = up[i];
  unsigned *to = (unsigned *)&g;
  const unsigned *with = (const unsigned *)&u;
#pragma unroll
  for (int j = 0; j < 4; j++) {
    const float2 a = two_of<DTYPE>(to[j]), b = two_of<DTYPE>(with[j]);
    to[j] = halves<DTYPE>(quick_silu(a.x / RKV_SWIGLU_PART) * (b.x / RKV_SWIGLU_PART), quick_silu(a.y / RKV_SWIGLU_PART) * (b.y / RKV_SWIGLU_PART));
  }
  gate[i] = g;
}

KERNEL kernel_swiglu_halves(uint4 *gate, const uint4 *up, int64_t eights, int dtype) {
  begin();
  const int64_t i = (int64_t)blockIdx.x * THREADS + THREAD;
  if (i >= eights) return;
  if (dtype == RKV_BF16) swiglu_halves<RKV_BF16>(gate, up, i);
  else swiglu_halves<RKV_F16>(gate, up, i);
}

KERNEL kernel_to_halves(void *to, const float *x, int64_t pairs, int dtype) {
  begin();
  for (int64_t i = (int64_t)blockIdx.x * THREADS + THREAD; i < pairs; i += (int64_t)gridDim.x * THREADS) {
    const float2 both = ((const float2 *)x)[i];
    put_two(dtype, (unsigned *)to + i, 0, both.x, both.y);
  }
}
