/* mma.cuh: tensor cores as every GPU from sm_80 on has them: 16 x 8 x 16 products of halves summed in f32, tiles that arrive in shared memory
 * by asynchronous copies of 16 bytes, and the loads that hand a tile out to a warp. */
#ifndef RKV_MMA_CUH
#define RKV_MMA_CUH
#include "common.cuh"

/* Rows of shared tiles are 128 or 256 bytes; the 16-byte chunks of a row are exchanged by the row's last three bits, so that neither the copies
 * nor the loads of eight rows meet in a bank. */
DEVICE unsigned shared_address(const void *p) { return (unsigned)__cvta_generic_to_shared(p); }
DEVICE unsigned chunk_at(unsigned tile, int row, int chunk, int row_bytes) { return tile + row * row_bytes + ((chunk ^ (row & 7)) << 4); }

/* Sixteen bytes, or zeros. */
DEVICE void copy16(unsigned to, const void *from, int is_there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(is_there ? 16 : 0));
}
DEVICE void copy_sixteen(unsigned to, const void *from) { asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from)); }
/* Asks for a line of the second cache. */
DEVICE void prefetch(const void *from) { asm volatile("prefetch.global.L2 [%0];" ::"l"(from)); }
DEVICE void copies_end() { asm volatile("cp.async.commit_group;"); }
template <int LEFT>
DEVICE void copies_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(LEFT)); }

DEVICE void load_four(unsigned r[4], unsigned address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address));
}
DEVICE void load_four_turned(unsigned r[4], unsigned address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address));
}

DEVICE float4 shared_float4(unsigned address) {
  float4 v;
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "r"(address) : "memory");
  return v;
}

/* c[16, 8] += a[16, 16] b[16, 8]. */
template <int DTYPE>
DEVICE void multiply(float c[4], const unsigned a[4], unsigned b0, unsigned b1) {
  if (DTYPE == RKV_BF16)
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  else
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* c[16, 8] = a[16, 16] b[16, 8]. */
template <int DTYPE>
DEVICE void multiply_new(float c[4], const unsigned a[4], unsigned b0, unsigned b1) {
  if (DTYPE == RKV_BF16)
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %10, %10, %10};"
                 : "=f"(c[0]), "=f"(c[1]), "=f"(c[2]), "=f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(0.0f));
  else
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %10, %10, %10};"
                 : "=f"(c[0]), "=f"(c[1]), "=f"(c[2]), "=f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(0.0f));
}

/* Two numbers as halves, the first in the low bits; f16 is cut off at its largest number. */
template <int DTYPE>
DEVICE unsigned halves(float low, float high) {
  if (DTYPE == RKV_BF16) {
    const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
    return *(const unsigned *)&both;
  }
  const __half2 both = __floats2half2_rn(fminf(fmaxf(low, -65504.0f), 65504.0f), fminf(fmaxf(high, -65504.0f), 65504.0f));
  return *(const unsigned *)&both;
}

/* The two numbers of a pair of halves. */
template <int DTYPE>
DEVICE float2 two_of(unsigned pair) {
  if (DTYPE == RKV_BF16) return __bfloat1622float2(*(const __nv_bfloat162 *)&pair);
  return __half22float2(*(const __half2 *)&pair);
}

/* Two numbers of f32 as three pairs of halves, of which they are the sums: 24 bits of bf16; of f16 what its range allows. */
template <int DTYPE>
DEVICE void split(unsigned part[3], float a, float b) {
#pragma unroll
  for (int i = 0; i < 3; i++) {
    part[i] = halves<DTYPE>(a, b);
    const float2 taken = two_of<DTYPE>(part[i]);
    a -= taken.x;
    b -= taken.y;
  }
}

#endif
