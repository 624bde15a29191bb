/* linear_quant_pack.c: GGUF's blocks, put into the order of linear_quant.h. Nothing is rounded: the same bits, elsewhere. */
#include "linear_quant.h"

static void put_word(char *panel, int64_t at, int32_t row, uint32_t word) { memcpy(panel + at + row * 4, &word, 4); }
static void put_half(char *panel, int64_t at, int32_t row, const uint8_t *half) { memcpy(panel + at + row * 2, half, 2); }

/* q[32] of a part as unsigned numbers. `block` is a file's block; Q8_0 is copied as it stands and does not come here. */
static void part_of(uint8_t *q /*[32]*/, const uint8_t *block, int32_t type, int32_t part) {
  if (RKV_ONE_PART(type)) {                                            /* byte i: k = i and k = 16 + i; fifth bits in their order */
    const int32_t has_fifth = type == RKV_WEIGHT_Q5_0 || type == RKV_WEIGHT_Q5_1;
    const uint8_t *low = block + rkv_quant_file_bytes(type) - 16, *upper = low - 4;
    for (int32_t i = 0; i < 16; i++) q[i] = low[i] & 15, q[16 + i] = low[i] >> 4;
    for (int32_t i = 0; i < 32 && has_fifth; i++) q[i] |= (uint8_t)((upper[i / 8] >> i % 8 & 1) << 4);
  } else if (type == RKV_WEIGHT_Q6_K) {                                /* 128 k at a time: four runs of 32 share the bytes of their upper bits */
    const int32_t run = part % 4;
    const uint8_t *low = block + part / 4 * 64 + run % 2 * 32, *upper = block + 128 + part / 4 * 32;
    for (int32_t i = 0; i < 32; i++) q[i] = (uint8_t)((low[i] >> run / 2 * 4 & 15) | (upper[i] >> run * 2 & 3) << 4);
  } else {                                                             /* 64 k at a time: low halves are the first 32, high halves the next */
    const uint8_t *low = block + (type == RKV_WEIGHT_Q5_K ? 48 : 16) + part / 2 * 32;
    for (int32_t i = 0; i < 32; i++) q[i] = low[i] >> part % 2 * 4 & 15;
    if (type == RKV_WEIGHT_Q5_K)
      for (int32_t i = 0; i < 32; i++) q[i] |= (uint8_t)((block[16 + i] >> part & 1) << 4);
  }
}

/* The eight scales and minima of Q4_K and Q5_K, from 12 bytes to three words. */
static void put_scales(char *panel, int64_t at, int32_t row, const uint8_t *s /*[12]*/) {
  uint32_t words[3] = {0};
  for (int32_t f = 0; f < 16; f++) {
    const int32_t b = f / 2, is_min = f % 2;
    uint32_t field;
    if (b < 4) field = s[b + 4 * is_min] & 63;
    else field = (is_min ? s[b + 4] >> 4 : s[b + 4] & 15) | (uint32_t)(s[b - 4 + 4 * is_min] >> 6) << 4;
    if (f < 15) words[f / 5] |= field << f % 5 * 6;
    else
      for (int32_t w = 0; w < 3; w++) words[w] |= (field >> 2 * w & 3) << 30;
  }
  for (int32_t w = 0; w < 3; w++) put_word(panel, at + w * 4 * RKV_PANEL, row, words[w]);
}

static void put_part(char *panel, int64_t at, int32_t row, const uint8_t *q /*[32]*/, int32_t type) {
  uint32_t upper[2] = {0};
  for (int32_t g = 0; g < 4; g++) {
    uint32_t word = 0;
    for (int32_t i = 0; i < 4; i++) {
      const uint32_t a = q[8 * g + i], b = q[8 * g + 4 + i];
      word |= ((a & 15) | (b & 15) << 4) << 8 * i;
      if (RKV_HAS_FIFTH(type)) upper[0] |= (a >> 4 | b >> 4 << 1) << (8 * i + 2 * g);
      if (type == RKV_WEIGHT_Q6_K) upper[g / 2] |= (a >> 4 | b >> 4 << 2) << (8 * i + 4 * (g % 2));
    }
    put_word(panel, at + rkv_quant_upper(type) + g * 4 * RKV_PANEL, row, word);
  }
  for (int32_t w = 0; w * 4 * RKV_PANEL < rkv_quant_upper(type); w++) put_word(panel, at + w * 4 * RKV_PANEL, row, upper[w]);
}

/* -16 d, for 0 means -16 in Q5_0: a float16 too, four steps of its exponent up (subnormals are doubled into place); one that is too large has no
 * meaning, and becomes an infinity. */
static void put_minimum(char *panel, int64_t at, int32_t row, const uint8_t *half) {
  uint16_t d;
  memcpy(&d, half, 2);
  uint32_t size = d & 0x7fffu;
  for (int32_t i = 0; i < 4 && size != 0 && size < 0x7c00; i++) size = size < 0x400 ? size * 2 : size < 0x7800 ? size + 0x400 : 0x7c00;
  const uint16_t minimum = (uint16_t)(size | ((d & 0x8000u) ^ 0x8000u));
  memcpy(panel + at + row * 2, &minimum, 2);
}

static void put_head(char *panel, int64_t at, int32_t row, const uint8_t *block, int32_t type) {
  if (type == RKV_WEIGHT_Q6_K) {
    put_half(panel, at, row, block + 208);
    for (int32_t w = 0; w < 4; w++) memcpy(panel + at + (2 + 4 * w) * RKV_PANEL + row * 4, block + 192 + 4 * w, 4);
    return;
  }
  put_half(panel, at, row, block);
  if (!RKV_HAS_MINIMA(type)) return;
  if (type == RKV_WEIGHT_Q5_0) {
    put_minimum(panel, at + 2 * RKV_PANEL, row, block);
    return;
  }
  put_half(panel, at + 2 * RKV_PANEL, row, block + 2);
  if (RKV_ONE_PART(type)) return;
  put_scales(panel, at + 4 * RKV_PANEL, row, block + 4);
}

void RKV_FN(rkv_quant_pack)(char *panel, const char *const *from, int32_t type, int32_t cols) {
  static const uint8_t zeros[256] = {0};                               /* whose scales are 0 too */
  const int32_t block = rkv_quant_block(type);
  for (int32_t b = 0; b < cols / block; b++) {
    const int64_t at = (int64_t)b * rkv_quant_bytes(type) * RKV_PANEL;
    for (int32_t row = 0; row < RKV_PANEL; row++) {
      const uint8_t *source = from[row] ? (const uint8_t *)from[row] + (int64_t)b * rkv_quant_file_bytes(type) : zeros;
      put_head(panel, at, row, source, type);
      for (int32_t part = 0; part < block / RKV_PART; part++) {
        const int64_t to = at + rkv_quant_head(type) + part * rkv_quant_part(type);
        if (type == RKV_WEIGHT_Q8_0) {
          for (int32_t w = 0; w < 8; w++) {
            uint32_t word;
            memcpy(&word, source + 2 + 4 * w, 4);
            put_word(panel, to + w * 4 * RKV_PANEL, row, word ^ 0x80808080);
          }
          continue;
        }
        uint8_t q[RKV_PART];
        part_of(q, source, type, part);
        put_part(panel, to, row, q, type);
      }
    }
  }
}
