/* quant.c: random blocks of GGUF's quantised types, and what they mean, taken apart one weight at a time. */
#include "native.h"

static double half_at(const uint8_t *at) {
  uint16_t bits;
  memcpy(&bits, at, 2);
  return (double)value_of(bits, RKV_F16);
}

/* Weight k of a block. */
static double weight_of(const uint8_t *b, int32_t type, int32_t k) {
  switch (type) {
    case RKV_WEIGHT_Q8_0: return half_at(b) * (int8_t)b[2 + k];
    case RKV_WEIGHT_Q4_0: return half_at(b) * ((k < 16 ? b[2 + k] & 15 : b[2 + k - 16] >> 4) - 8);
    case RKV_WEIGHT_Q4_1: return half_at(b) * (k < 16 ? b[4 + k] & 15 : b[4 + k - 16] >> 4) + half_at(b + 2);
    case RKV_WEIGHT_Q5_0: return half_at(b) * ((k < 16 ? b[6 + k] & 15 : b[6 + k - 16] >> 4) + (b[2 + k / 8] >> k % 8 & 1) * 16 - 16);
    case RKV_WEIGHT_Q5_1: return half_at(b) * ((k < 16 ? b[8 + k] & 15 : b[8 + k - 16] >> 4) + (b[4 + k / 8] >> k % 8 & 1) * 16) + half_at(b + 2);
    case RKV_WEIGHT_Q6_K: {
      const int32_t chunk = k / 128, in = k % 128, low = b[64 * chunk + in % 64], high = b[128 + 32 * chunk + in % 32] >> 2 * (in / 32) & 3;
      return half_at(b + 208) * (int8_t)b[192 + k / 16] * (((in < 64 ? low & 15 : low >> 4) | high << 4) - 32);
    }
    default: {
      const uint8_t *s = b + 4;
      const int32_t part = k / 32, low = b[(type == RKV_WEIGHT_Q5_K ? 48 : 16) + part / 2 * 32 + k % 32];
      const int32_t scale = part < 4 ? s[part] & 63 : (s[part + 4] & 15) | s[part - 4] >> 6 << 4;
      const int32_t least = part < 4 ? s[part + 4] & 63 : s[part + 4] >> 4 | s[part] >> 6 << 4;
      int32_t q = part % 2 ? low >> 4 : low & 15;
      if (type == RKV_WEIGHT_Q5_K) q |= (b[16 + k % 32] >> part & 1) << 4;
      return half_at(b) * scale * q - half_at(b + 2) * least;
    }
  }
}

/* source: the blocks of `n` weights; value: what they mean. */
void random_blocks(uint8_t *source, double *value, int32_t type, size_t n, float size) {
  static const struct { size_t weights, bytes; int32_t halves[2]; float share; } formats[] = {
    {32, 34, {0, 0}, 1.0f / 64}, {32, 18, {0, 0}, 1.0f / 4}, {256, 144, {0, 2}, 1.0f / 256}, {256, 176, {0, 2}, 1.0f / 512}, {256, 210, {208, 208}, 1.0f / 1024},
    {32, 20, {0, 2}, 1.0f / 8}, {32, 22, {0, 0}, 1.0f / 8}, {32, 24, {0, 2}, 1.0f / 16},
  };
  const int32_t f = type - RKV_WEIGHT_Q8_0;
  for (size_t block = 0; block < n / formats[f].weights; block++) {
    uint8_t *b = source + block * formats[f].bytes;
    for (size_t i = 0; i < formats[f].bytes; i++) b[i] = (uint8_t)below(256);
    for (int32_t h = 0; h < 2; h++) {
      const uint16_t d = bits_of((0.5f + fabsf(normal())) * size * formats[f].share, RKV_F16);
      memcpy(b + formats[f].halves[h], &d, 2);
    }
    for (size_t k = 0; k < formats[f].weights; k++) value[block * formats[f].weights + k] = weight_of(b, type, (int32_t)k);
  }
}
