/* decode.cu: decode attention of a block for each piece (decode.cuh). The block that ends last merges a unit's pieces, in their order; with an index
 * per head attention.cu does, because what is counted there is a share of all heads. */
#include "decode.cuh"

/* Pieces of units that have ended; 0 between launches. */
__device__ int ended[RKV_TICKETS];

/* grid: units, slots, pieces, so that blocks without work come last. shared: the warps' rings. */
template <int DTYPE, int DIM, int SETS>
DEVICE void decode(const rkv_attend_args &a, const rkv_rows_data &kv, const rkv_layer_data &layer) {
  extern __shared__ __align__(1024) unsigned char shared[];
  __shared__ team_room<SETS> room;
  __shared__ query_halves<DIM, SETS> queries;
  __shared__ int is_last;
  const int slot = blockIdx.y, piece = blockIdx.z, limit = gridDim.z;
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
  attend_piece<DTYPE, DIM, SETS>(a, kv, layer, p, piece, 0, WARP, shared, room, queries, [&] {
    split_queries<DTYPE, DIM, SETS>(queries, (const float *)a.q.data + ((int64_t)slot * layer.heads + p.head) * DIM, p.heads, WARPS);
    __syncthreads();
  });
  if (!is_merged_here) return;
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
  for (int h = WARP; h < p.heads; h += WARPS) {
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
