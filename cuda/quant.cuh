/* quant.cuh: what blocks of quantised weights have beside their numbers. */
#ifndef RKV_QUANT_CUH
#define RKV_QUANT_CUH
#include "common.cuh"

DEVICE float half_at(const unsigned char *p) { return __half2float(__ushort_as_half((unsigned short)(p[0] | p[1] << 8))); }

/* Scale and minimum of part `part` of a block of Q4_K or Q5_K: six bits each, in 12 bytes. */
DEVICE void k_scale(const unsigned char *s, int part, int *scale, int *minimum) {
  if (part < 4) {
    *scale = s[part] & 63;
    *minimum = s[part + 4] & 63;
  } else {
    *scale = (s[part + 4] & 15) | (s[part - 4] >> 6) << 4;
    *minimum = s[part + 4] >> 4 | (s[part] >> 6) << 4;
  }
}

/* Weight k of a row of Q4_1, Q5_0 or Q5_1: blocks of 32, with d, perhaps a minimum, perhaps fifth bits, then halves of bytes. */
DEVICE float small_block_weight(int type, const unsigned char *row, int k) {
  const int has_minimum = type != RKV_WEIGHT_Q5_0, has_fifth = type != RKV_WEIGHT_Q4_1, i = k % 32;
  const unsigned char *b = row + k / 32 * (18 + 2 * has_minimum + 4 * has_fifth), *upper = b + 2 + 2 * has_minimum, *low = upper + 4 * has_fifth;
  int q = low[i % 16] >> i / 16 * 4 & 15;
  if (has_fifth) q |= (upper[i / 8] >> i % 8 & 1) << 4;
  return has_minimum ? fmaf(half_at(b), (float)q, half_at(b + 2)) : half_at(b) * (float)(q - 16);
}

#endif
