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

#endif
