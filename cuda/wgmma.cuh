/* wgmma.cuh: tensor cores as Hopper alone has them (sm_90a): four warps together multiply tiles that lie in shared memory, asynchronously. Tiles
 * are columns of 64 halves: [width / 64][rows][128 bytes], the 16-byte chunks of a row exchanged as chunk_at has it. */
#ifndef RKV_WGMMA_CUH
#define RKV_WGMMA_CUH
#include "mma.cuh"

/* Where a tile is, for the instructions. `columns`: bytes from one column of 64 halves to the next, where products run along the tile's rows
 * (PTX ISA, Asynchronous Warpgroup Level Matrix Shared Memory Layout: eight rows are 1,024 bytes, exchanged over 128). */
DEVICE unsigned long long tile_at(unsigned address, unsigned columns) {
  return (address & 0x3ffff) >> 4 | (unsigned long long)(columns >> 4) << 16 | (unsigned long long)(1024 >> 4) << 32 | 1ull << 62;
}

DEVICE void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void products_end() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int LEFT>
DEVICE void products_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory"); }
/* Keeps the compiler from moving sums across a begin or a wait. */
template <int N>
DEVICE void hold(float (&sums)[N][4]) {
#pragma unroll
  for (int i = 0; i < N; i++) asm volatile("" : "+f"(sums[i][0]), "+f"(sums[i][1]), "+f"(sums[i][2]), "+f"(sums[i][3])::"memory");
}

#define SUMS_1(c, i) "+f"(c[i][0]), "+f"(c[i][1]), "+f"(c[i][2]), "+f"(c[i][3])
#define SUMS_4(c, i) SUMS_1(c, i), SUMS_1(c, i + 1), SUMS_1(c, i + 2), SUMS_1(c, i + 3)
#define NAMES_32 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define NAMES_64 \
  NAMES_32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, " \
           "%60, %61, %62, %63"

/* c[64, 128] = a[64, 16] b[128, 16]^T, or += with `adds`. */
#define BY_ROWS(type) \
  asm volatile("{.reg .pred p; setp.ne.b32 p, %66, 0; wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " {" NAMES_64 "}, %64, %65, p, 1, 1, 0, 0;}" \
               : SUMS_4(c, 0), SUMS_4(c, 4), SUMS_4(c, 8), SUMS_4(c, 12) : "l"(a), "l"(b), "r"(adds))
template <int DTYPE>
DEVICE void multiply_rows(float (&c)[16][4], unsigned long long a, unsigned long long b, int adds) {
  if (DTYPE == RKV_BF16) BY_ROWS("bf16");
  else BY_ROWS("f16");
}

/* c[64, 128 or 64] += a[64, 16] b[16, 128 or 64], a in registers as multiply() of mma.cuh has it. */
#define BY_COLUMNS_128(type) \
  asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " {" NAMES_64 "}, {%64, %65, %66, %67}, %68, 1, 1, 1, 1;" \
               : SUMS_4(c, 0), SUMS_4(c, 4), SUMS_4(c, 8), SUMS_4(c, 12) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))
#define BY_COLUMNS_64(type) \
  asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type " {" NAMES_32 "}, {%32, %33, %34, %35}, %36, 1, 1, 1, 1;" \
               : SUMS_4(c, 0), SUMS_4(c, 4) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))
template <int DTYPE>
DEVICE void multiply_columns(float (&c)[16][4], const unsigned a[4], unsigned long long b) {
  if (DTYPE == RKV_BF16) BY_COLUMNS_128("bf16");
  else BY_COLUMNS_128("f16");
}
template <int DTYPE>
DEVICE void multiply_columns(float (&c)[8][4], const unsigned a[4], unsigned long long b) {
  if (DTYPE == RKV_BF16) BY_COLUMNS_64("bf16");
  else BY_COLUMNS_64("f16");
}

/* ---- barriers in shared memory: who brings a tile and who uses it ---- */

DEVICE void barrier_make(unsigned barrier, int arrivals) { asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory"); }
DEVICE void barrier_arrive(unsigned barrier) { asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(barrier) : "memory"); }
/* Waits for the end of a round; `odd`: of the second, fourth, ... */
DEVICE void barrier_wait(unsigned barrier, int odd) {
  asm volatile("{.reg .pred p; again: mbarrier.try_wait.parity.shared.b64 p, [%0], %1; @!p bra again;}" ::"r"(barrier), "r"(odd) : "memory");
}
/* What this thread has written is there for wgmma, which reads past the caches of ordinary loads. */
DEVICE void show_products() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

#endif
