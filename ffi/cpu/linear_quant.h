/* linear_quant.h: quantised weights in panels. The blocks are those of GGUF, bit for bit as many bytes (but for Q4_1 and Q5_0, below);
 * only their order is another one: 32 output rows lie side by side, so that one vector holds the same k of neighbouring rows.
 *
 * Everything is cut into parts of 32 k. The bits of a part are 32-bit words, one per row, in groups of 8 k: byte i of a group's word has
 * k = i in its low and k = 4 + i in its high half, so that a mask leaves four k as bytes, as integer dot products want them.
 *   Q8_0  d f16[32]                         | 8 x [32] words of four bytes, each 128 more than the number it stands for
 *   Q4_0  d f16[32]                         | 4 x [32] words
 *   Q5_1  d, m f16[32]                      | fifth bits [32], 4 x [32] words; Q4_1 and Q5_0 become this: no fifth bits, m = -16 d
 *   Q4_K  d, dmin f16[32], scales 3 x [32]  | 8 parts of 4 x [32] words
 *   Q5_K  the same                          | 8 parts of fifth bits [32], 4 x [32] words
 *   Q6_K  d f16[32], scales 4 x [32]        | 8 parts of upper bits 2 x [32], 4 x [32] words
 * scales of Q4_K and Q5_K: field 2b is part b's scale, 2b + 1 its minimum; five fields of 6 bits fill a word's lower 30 bits, the sixteenth
 * field is in the upper 2 bits of the three words. Scales of Q6_K: signed bytes, one for 16 k.
 * fifth bits: bit 8 i + 2 g + p belongs to k = 8 g + 4 p + i. upper bits: word g / 2, two bits from 8 i + 4 (g % 2) + 2 p on.
 *
 * A weight is q * scale - offset, fused where the instruction set can; scale = d * (sub-scale), offset = dmin * (sub-minimum), or -m, or 8 or
 * 32 scales. These are exact in f32, so a weight is rounded at most once. Source: ggml's block formats. */
#ifndef RKV_LINEAR_QUANT_H
#define RKV_LINEAR_QUANT_H
#include "linear.h"
#include "simd.h"

#define RKV_PART 32

/* Types that are Q5_1 in panels; of blocks of one part; with fifth bits; with a minimum beside each scale. */
#define RKV_AS_Q5_1(type) ((type) >= RKV_WEIGHT_Q4_1)
#define RKV_ONE_PART(type) ((type) == RKV_WEIGHT_Q8_0 || (type) == RKV_WEIGHT_Q4_0 || RKV_AS_Q5_1(type))
#define RKV_HAS_FIFTH(type) ((type) == RKV_WEIGHT_Q5_K || RKV_AS_Q5_1(type))
#define RKV_HAS_MINIMA(type) ((type) == RKV_WEIGHT_Q4_K || RKV_HAS_FIFTH(type))

/* Weights of a block, and its bytes in a panel, a row; 0 for types that have no blocks. */
static inline int32_t rkv_quant_block(int32_t type) { return type <= RKV_WEIGHT_BF16 || type >= RKV_WEIGHT_TYPES ? 0 : RKV_ONE_PART(type) ? RKV_PART : 256; }
static inline int32_t rkv_quant_bytes(int32_t type) {
  switch (type) {
    case RKV_WEIGHT_Q8_0: return 34;
    case RKV_WEIGHT_Q4_0: return 18;
    case RKV_WEIGHT_Q4_K: return 144;
    case RKV_WEIGHT_Q5_K: return 176;
    case RKV_WEIGHT_Q6_K: return 210;
    case RKV_WEIGHT_Q4_1:
    case RKV_WEIGHT_Q5_0:
    case RKV_WEIGHT_Q5_1: return 24;
    default: return 0;
  }
}
/* Its bytes in a file. */
static inline int32_t rkv_quant_file_bytes(int32_t type) { return type == RKV_WEIGHT_Q4_1 ? 20 : type == RKV_WEIGHT_Q5_0 ? 22 : rkv_quant_bytes(type); }

/* What rows of x become for weights of a type. */
static inline int32_t rkv_form_of(int32_t type) {
  if (rkv_quant_block(type)) return RKV_FORM_BYTES;
  return RKV_PAIRS && type != RKV_WEIGHT_F32 ? RKV_FORM_PAIRS : RKV_FORM_F32;
}

/* Of a panel's block: bytes before the first part, bytes of a part before its words, bytes of a part. */
static inline int32_t rkv_quant_head(int32_t type) { return (RKV_ONE_PART(type) ? RKV_HAS_MINIMA(type) ? 4 : 2 : type == RKV_WEIGHT_Q6_K ? 18 : 16) * RKV_PANEL; }
static inline int32_t rkv_quant_upper(int32_t type) { return (RKV_HAS_FIFTH(type) ? 4 : type == RKV_WEIGHT_Q6_K ? 8 : 0) * RKV_PANEL; }
static inline int32_t rkv_quant_part(int32_t type) { return rkv_quant_upper(type) + (type == RKV_WEIGHT_Q8_0 ? 32 : 16) * RKV_PANEL; }

/* Where a part lies: its block, its number there, its bits. */
typedef struct rkv_part { const char *block, *bits; int32_t number; } rkv_part;

/* Part `number` of the block that k lies in. */
RKV_INLINE rkv_part rkv_part_of(int32_t type, const char *panel, int32_t k, int32_t number) {
  rkv_part part = {.block = panel + (int64_t)(k / rkv_quant_block(type)) * rkv_quant_bytes(type) * RKV_PANEL, .number = number};
  part.bits = part.block + rkv_quant_head(type) + number * rkv_quant_part(type);
  return part;
}
RKV_INLINE rkv_part rkv_part_at(int32_t type, const char *panel, int32_t k) { return rkv_part_of(type, panel, k, k % rkv_quant_block(type) / RKV_PART); }

RKV_INLINE rkv_uvec rkv_words(const char *at, int32_t row) { rkv_uvec v; memcpy(&v, at + row * 4, sizeof v); return v; }
RKV_INLINE rkv_vec rkv_halves(const char *at, int32_t row) { return rkv_from_f16(rkv_load_half((const uint16_t *)at + row)); }

/* Field `f` of the packed scales of Q4_K and Q5_K, rows from `row` on. */
RKV_INLINE rkv_vec rkv_scale_field(const char *scales, int32_t row, int32_t f) {
  rkv_uvec field;
  if (f < 15) field = rkv_words(scales + f / 5 * 4 * RKV_PANEL, row) >> (uint32_t)(f % 5 * 6) & 63;
  else field = rkv_words(scales, row) >> 30 | rkv_words(scales + 4 * RKV_PANEL, row) >> 30 << 2 | rkv_words(scales + 8 * RKV_PANEL, row) >> 30 << 4;
  return __builtin_convertvector((rkv_ivec)field, rkv_vec);
}

/* scale and offset of a half (16 k) of a part; only Q6_K's halves differ. */
RKV_INLINE void rkv_part_scale(int32_t type, rkv_part part, int32_t half, int32_t row, rkv_vec *scale, rkv_vec *offset) {
  const rkv_vec d = rkv_halves(part.block, row);
  if (type == RKV_WEIGHT_Q8_0) {
    *scale = d;
    *offset = (rkv_vec){0};
  } else if (type == RKV_WEIGHT_Q4_0) {
    *scale = d;
    *offset = d * rkv_set1(8);
  } else if (RKV_AS_Q5_1(type)) {
    *scale = d;
    *offset = -rkv_halves(part.block + 2 * RKV_PANEL, row);
  } else if (type == RKV_WEIGHT_Q6_K) {
    const int32_t number = part.number * 2 + half;
    const rkv_ivec word = (rkv_ivec)rkv_words(part.block + 2 * RKV_PANEL + number / 4 * 4 * RKV_PANEL, row);
    *scale = d * __builtin_convertvector(word << (24 - number % 4 * 8) >> 24, rkv_vec);
    *offset = *scale * rkv_set1(32);
  } else {
    const char *scales = part.block + 4 * RKV_PANEL;
    *scale = d * rkv_scale_field(scales, row, part.number * 2);
    *offset = rkv_halves(part.block + 2 * RKV_PANEL, row) * rkv_scale_field(scales, row, part.number * 2 + 1);
  }
}

/* q of k = 8 group + n as a float, 0 <= n < 8 a constant. */
RKV_INLINE rkv_vec rkv_part_q(int32_t type, rkv_part part, int32_t group, int32_t n, int32_t row) {
  const int32_t p = n / 4, i = n % 4;
  if (type == RKV_WEIGHT_Q8_0) {
    const rkv_ivec word = (rkv_ivec)(rkv_words(part.bits + (group * 2 + p) * 4 * RKV_PANEL, row) ^ 0x80808080);
    return __builtin_convertvector(word << (24 - 8 * i) >> 24, rkv_vec);
  }
  rkv_uvec q = rkv_words(part.bits + rkv_quant_upper(type) + group * 4 * RKV_PANEL, row) >> (uint32_t)(8 * i + 4 * p) & 15;
  if (RKV_HAS_FIFTH(type)) {
    const rkv_uvec upper = rkv_words(part.bits, row) >> (uint32_t)(2 * group);
    q |= (upper >> (uint32_t)(8 * i + p) & 1) << 4;
  }
  if (type == RKV_WEIGHT_Q6_K) {
    const rkv_uvec upper = rkv_words(part.bits + group / 2 * 4 * RKV_PANEL, row) >> (uint32_t)(group % 2 * 4);
    q |= (upper >> (uint32_t)(8 * i + 2 * p) & 3) << 4;
  }
  return __builtin_convertvector((rkv_ivec)q, rkv_vec);
}

RKV_INLINE rkv_vec rkv_part_weight(int32_t type, rkv_vec q, rkv_vec scale, rkv_vec offset) {
  return type == RKV_WEIGHT_Q8_0 ? q * scale : rkv_fma(q, scale, -offset);
}

/* q of k = 4 word + 0 .. 3 as four bytes of each row, unsigned. */
RKV_INLINE rkv_uvec rkv_part_bytes(int32_t type, rkv_part part, int32_t word, int32_t row) {
  const int32_t group = word / 2, p = word % 2;
  if (type == RKV_WEIGHT_Q8_0) return rkv_words(part.bits + word * 4 * RKV_PANEL, row);
  rkv_uvec q = rkv_words(part.bits + rkv_quant_upper(type) + group * 4 * RKV_PANEL, row) >> (uint32_t)(4 * p) & 0x0f0f0f0f;
  if (RKV_HAS_FIFTH(type)) q |= (rkv_words(part.bits, row) >> (uint32_t)(2 * group + p) & 0x01010101) << 4;
  if (type == RKV_WEIGHT_Q6_K) q |= (rkv_words(part.bits + group / 2 * 4 * RKV_PANEL, row) >> (uint32_t)(4 * (group % 2) + 2 * p) & 0x03030303) << 4;
  return q;
}

/* Types without minima: 2^n is what a byte stands for too much; -1: nothing. */
static inline int32_t rkv_quant_excess(int32_t type) { return type == RKV_WEIGHT_Q8_0 ? RKV_SIGNED ? -1 : 7 : type == RKV_WEIGHT_Q4_0 ? 3 : type == RKV_WEIGHT_Q6_K ? 5 : -1; }

/* 32 k of a row of x: x[k] = scale * quad[k]. sum: scale times the sum of the quads; less: minus that sum, of all and of either half. */
typedef struct rkv_x_block { float scale, sum; int32_t less, less_half[2]; } rkv_x_block;

/* Rows of quantised x. A row: the quads of its cols, then its blocks. */
typedef struct rkv_x_rows { const char *quads, *blocks; int64_t stride; } rkv_x_rows;
RKV_INLINE const rkv_quad *rkv_x_quads(rkv_x_rows x, int32_t row) { return (const rkv_quad *)(x.quads + row * x.stride); }
RKV_INLINE rkv_x_block rkv_x_at(rkv_x_rows x, int32_t row, int32_t part) {
  rkv_x_block block;
  memcpy(&block, x.blocks + row * x.stride + part * (int64_t)sizeof block, sizeof block);
  return block;
}

/* c[rows, outputs] for `rows` of x, k from k0 to k0 + depth, added to c when k0 > 0. Up to RKV_FEW_ROWS rows go straight along the panels; more
 * need scratch: RKV_PANEL * RKV_QUANT_DEPTH * 2 bytes. */
#define RKV_FEW_ROWS 4
void RKV_FN(rkv_quant_rows)(float *c, const char *panels, size_t panel_bytes, int32_t count, rkv_x_rows x, int32_t k0, int32_t depth, int32_t type, int32_t rows, void *scratch);
void RKV_FN(rkv_quant_unpack_row)(float *to, const char *panel, int32_t type, int32_t row, int32_t cols);
/* Packs 32 rows (NULL: zeros) of `cols` weights. */
void RKV_FN(rkv_quant_pack)(char *panel, const char *const *from, int32_t type, int32_t cols);

#endif
