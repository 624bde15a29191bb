/* blocks.cuh: blocks that work together, as a cluster (Hopper and later; before, each block is one): they wait for each other and read each
 * other's shared memory. */
#ifndef RKV_BLOCKS_CUH
#define RKV_BLOCKS_CUH
#include "common.cuh"

DEVICE int cluster_rank() {
#if __CUDA_ARCH__ >= 900
  int rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
#else
  return 0;
#endif
}
DEVICE int cluster_ranks() {
#if __CUDA_ARCH__ >= 900
  int ranks;
  asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(ranks));
  return ranks;
#else
  return 1;
#endif
}
/* A wait for the others, in two halves: between them a block may go on with what is its own. */
DEVICE void cluster_arrive() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}
DEVICE void cluster_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}
DEVICE void cluster_sync() {
  cluster_arrive();
  cluster_wait();
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ < 900
  __syncthreads();
#endif
}
/* A float of this block's shared memory, or of the same place in another block of the cluster. */
DEVICE float shared_of(const float *mine, int rank) {
#if __CUDA_ARCH__ >= 900
  unsigned address;
  float x;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"((unsigned)__cvta_generic_to_shared(mine)), "r"(rank));
  asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(x) : "r"(address) : "memory");
  return x;
#else
  return *mine;
#endif
}
/* A word into this block's shared memory, or into the same place in another block of the cluster. */
DEVICE void put_shared_of(unsigned *mine, int rank, unsigned x) {
#if __CUDA_ARCH__ >= 900
  unsigned address;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"((unsigned)__cvta_generic_to_shared(mine)), "r"(rank));
  asm volatile("st.shared::cluster.u32 [%0], %1;" ::"r"(address), "r"(x) : "memory");
#else
  *mine = x;
#endif
}

/* Asks for bytes that will be wanted soon, up to the second cache: multiples of 16, at such an address. */
DEVICE void fetch_ahead(const void *from, int bytes) {
#if __CUDA_ARCH__ >= 900
  if (bytes > 0) asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes) : "memory");
#endif
}

#endif
