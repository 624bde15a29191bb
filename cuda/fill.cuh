/* fill.cuh: the rows of clusters, best first, until a budget is full. */
#ifndef RKV_FILL_CUH
#define RKV_FILL_CUH
#include "common.cuh"

/* A block's work, whose warps all find the places and take clusters in turn. `cluster(i)`: first row and rows of the i-th best, of `clusters`; no
 * rows: no more come. `put(i, row)`: place i of the budget, -1 where there is none. */
template <class Cluster, class Put>
DEVICE void fill_rows(int clusters, int budget, Cluster cluster, Put put) {
  int filled = 0;
#pragma unroll 1
  for (int base = 0; base < clusters && filled < budget; base += 32) {
    const int2 own = base + LANE < clusters ? cluster(base + LANE) : make_int2(0, 0);
    int end = own.y;
    for (int i = 1; i < 32; i *= 2) {
      const int before = __shfl_up_sync(0xffffffffu, end, i);
      if (LANE >= i) end += before;
    }
    const int start = filled + end - own.y, rows = most(0, least(own.y, budget - start));
    const int taken = __popc(__ballot_sync(0xffffffffu, start < budget && base + LANE < clusters));
#pragma unroll 1
    for (int i = WARP; i < taken; i += WARPS) {
      const int first = __shfl_sync(0xffffffffu, own.x, i), at = __shfl_sync(0xffffffffu, start, i), count = __shfl_sync(0xffffffffu, rows, i);
#pragma unroll 1
      for (int r = LANE; r < count; r += 32) put(at + r, first + r);
    }
    filled += __shfl_sync(0xffffffffu, end, 31);
  }
#pragma unroll 1
  for (int i = filled + THREAD; i < budget; i += THREADS) put(i, -1);
}

#endif
