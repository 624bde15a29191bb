/* linear_quant.c: products of quantised weights with quantised rows (linear.h says what is promised). Few rows meet the weights where they lie,
 * as bytes taken apart in registers: then memory is the limit. For many rows a panel's bytes and scales are laid out once in scratch, and a
 * register tile of integer sums runs over them. */
#include "linear_quant.h"

#if RKV_LANES == 16 || defined(__aarch64__)
#define TILE_ROWS 6           /* with two vectors of weights: 12 integer and 12 float sums */
#elif defined(__AVX2__)
#define TILE_ROWS 4
#else
#define TILE_ROWS 2
#endif

/* Parts have two scales in Q6_K, so it takes two halves of a block of x. */
#define HALVES(type) ((type) == RKV_WEIGHT_Q6_K ? 2 : 1)
#define WIDE(type) ((type) == RKV_WEIGHT_Q8_0)

/* What an integer sum begins with: what its bytes will be too much by. `halves` and `excess` are constants. */
RKV_INLINE rkv_ivec first_sum(const rkv_x_block *x, int32_t half, int32_t halves, int32_t excess) {
  if (excess < 0) return (rkv_ivec){0};
  return rkv_set1_word(halves == 2 ? &x->less_half[half] : &x->less) << excess;
}

/* ---- few rows -------------------------------------------------------------------------------------------------------------------------- */

/* Bytes ahead of the part at hand that are asked for into L2. With a page of it two cores of a Zen 5 read Q4_K at 35 GB/s instead of 27, and with
 * four rows of x at 31 instead of 16; Q8_0, which is taken apart with nothing, at 44 instead of 38 with four rows, but with one row it reads 4 %
 * more with half a page (bench/ops.ts). */
#define AHEAD(type, rows) ((type) == RKV_WEIGHT_Q8_0 && (rows) == 1 ? 2048 : 4096)

RKV_INLINE void fetch_ahead(int32_t type, int32_t rows, rkv_part part) {
  const int32_t bytes = rkv_quant_part(type) + rkv_quant_head(type) * RKV_PART / rkv_quant_block(type);
  for (int32_t at = 0; at < bytes; at += 64) __builtin_prefetch(part.bits + AHEAD(type, rows) + at, 0, 2);
}

/* c[rows, vecs * RKV_LANES] for outputs from `col` on. type, rows and vecs are constants. */
RKV_INLINE void few(float *c, const char *panels, size_t panel_bytes, int32_t col, rkv_x_rows x, int32_t k0, int32_t depth, int32_t type, int32_t rows, int32_t vecs) {
  const int32_t within = col % RKV_PANEL, halves = HALVES(type);
  rkv_vec sum[RKV_FEW_ROWS][4];
  RKV_UNROLL for (int32_t i = 0; i < rows; i++)
    RKV_UNROLL for (int32_t v = 0; v < vecs; v++) sum[i][v] = k0 ? rkv_load(c + i * RKV_BLOCK_COLS + col + v * RKV_LANES) : (rkv_vec){0};
  const int32_t parts = rkv_quant_block(type) / RKV_PART;
  for (int32_t begin = 0; begin < depth; begin += parts * RKV_PART)
    RKV_UNROLL for (int32_t p = 0; p < parts; p++) { /* each by itself: what its scales are is then a constant */
      const int32_t k = begin + p * RKV_PART;
      rkv_part part[4];
      rkv_x_block block[RKV_FEW_ROWS];
      RKV_UNROLL for (int32_t v = 0; v < vecs; v++) part[v] = rkv_part_of(type, panels + (size_t)((col + v * RKV_LANES) / RKV_PANEL) * panel_bytes, k0 + begin, p);
      RKV_UNROLL for (int32_t v = 0; v < vecs; v += RKV_PANEL / RKV_LANES) fetch_ahead(type, rows, part[v]);
      RKV_UNROLL for (int32_t i = 0; i < rows; i++) block[i] = rkv_x_at(x, i, k / RKV_PART);
      RKV_UNROLL for (int32_t half = 0; half < halves; half++) {
        rkv_ivec dot[RKV_FEW_ROWS][4];
        RKV_UNROLL for (int32_t i = 0; i < rows; i++)
          RKV_UNROLL for (int32_t v = 0; v < vecs; v++) dot[i][v] = first_sum(&block[i], half, halves, rkv_quant_excess(type));
        RKV_UNROLL for (int32_t word = half * 4; word < (halves == 2 ? half * 4 + 4 : 8); word++) {
          rkv_quads w[4];
          RKV_UNROLL for (int32_t v = 0; v < vecs; v++) w[v] = rkv_quads_of(rkv_part_bytes(type, part[v], word, (within + v * RKV_LANES) % RKV_PANEL), WIDE(type));
          RKV_UNROLL for (int32_t i = 0; i < rows; i++)
            RKV_UNROLL for (int32_t v = 0; v < vecs; v++) dot[i][v] = rkv_add_quads(dot[i][v], w[v], rkv_x_quads(x, i) + k + word * 4, WIDE(type));
        }
        RKV_UNROLL for (int32_t v = 0; v < vecs; v++) {
          rkv_vec scale, offset;
          rkv_part_scale(type, part[v], half, (within + v * RKV_LANES) % RKV_PANEL, &scale, &offset);
          RKV_UNROLL for (int32_t i = 0; i < rows; i++) {
            sum[i][v] = rkv_fma(__builtin_convertvector(dot[i][v], rkv_vec), scale * rkv_set1(block[i].scale), sum[i][v]);
            if (RKV_HAS_MINIMA(type)) sum[i][v] = rkv_fma(offset, rkv_set1(-block[i].sum), sum[i][v]);
          }
        }
      }
    }
  RKV_UNROLL for (int32_t i = 0; i < rows; i++)
    RKV_UNROLL for (int32_t v = 0; v < vecs; v++) rkv_store(c + i * RKV_BLOCK_COLS + col + v * RKV_LANES, sum[i][v]);
}

RKV_INLINE void few_panels(float *c, const char *panels, size_t panel_bytes, int32_t outputs, rkv_x_rows x, int32_t k0, int32_t depth, int32_t type, int32_t rows) {
  const int32_t vecs = RKV_LANES >= 8 && rows == 1 ? 4 : 2;           /* a whole panel or two at a time where sums find registers */
  int32_t col = 0;
  for (; col + vecs * RKV_LANES <= outputs; col += vecs * RKV_LANES) few(c, panels, panel_bytes, col, x, k0, depth, type, rows, vecs);
  for (; col < outputs; col += 2 * RKV_LANES) few(c, panels, panel_bytes, col, x, k0, depth, type, rows, 2);
}

/* ---- many rows ------------------------------------------------------------------------------------------------------------------------- */

/* A part as it lies in scratch: eight words of four bytes for each output, and a scale (two in Q6_K) and a minimum. */
typedef struct {
  uint32_t bytes[8][RKV_PANEL];
  float scale[2][RKV_PANEL], offset[RKV_PANEL];
} laid_part;
_Static_assert(sizeof(laid_part) <= RKV_PART * RKV_PANEL * 2, "a laid part needs more scratch");

RKV_INLINE void lay_out(laid_part *to, const char *panel, int32_t type, int32_t k0, int32_t depth) {
  for (int32_t k = 0; k < depth; k += RKV_PART, to++) {
    const rkv_part part = rkv_part_at(type, panel, k0 + k);
    for (int32_t row = 0; row < RKV_PANEL; row += RKV_LANES) {
      RKV_UNROLL for (int32_t word = 0; word < 8; word++) {
        const rkv_uvec bytes = rkv_part_bytes(type, part, word, row);
        memcpy(to->bytes[word] + row, &bytes, sizeof bytes);
      }
      RKV_UNROLL for (int32_t half = 0; half < HALVES(type); half++) {
        rkv_vec scale, offset;
        rkv_part_scale(type, part, half, row, &scale, &offset);
        rkv_store(to->scale[half] + row, scale);
        rkv_store(to->offset + row, offset);
      }
    }
  }
}

/* c[rows, 2 vectors] for rows of x from `row` on; type and rows are constants. */
RKV_INLINE void tile(float *c, const laid_part *part, rkv_x_rows x, int32_t row, int32_t depth, int32_t add, int32_t type, int32_t rows) {
  const int32_t halves = HALVES(type);
  rkv_vec sum[TILE_ROWS][2];
  RKV_UNROLL for (int32_t i = 0; i < rows; i++)
    RKV_UNROLL for (int32_t v = 0; v < 2; v++) sum[i][v] = add ? rkv_load(c + i * RKV_BLOCK_COLS + v * RKV_LANES) : (rkv_vec){0};
  for (int32_t k = 0; k < depth; k += RKV_PART, part++)
    RKV_UNROLL for (int32_t half = 0; half < halves; half++) {
      rkv_ivec dot[TILE_ROWS][2];
      RKV_UNROLL for (int32_t i = 0; i < rows; i++) {
        const rkv_x_block *block = (const rkv_x_block *)(x.blocks + (row + i) * x.stride) + k / RKV_PART;
        RKV_UNROLL for (int32_t v = 0; v < 2; v++) dot[i][v] = first_sum(block, half, halves, rkv_quant_excess(type));
      }
      RKV_UNROLL for (int32_t word = half * 4; word < (halves == 2 ? half * 4 + 4 : 8); word++) {
        rkv_quads w[2];
        RKV_UNROLL for (int32_t v = 0; v < 2; v++) w[v] = rkv_quads_of(rkv_words((const char *)part->bytes[word], v * RKV_LANES), WIDE(type));
        RKV_UNROLL for (int32_t i = 0; i < rows; i++)
          RKV_UNROLL for (int32_t v = 0; v < 2; v++) dot[i][v] = rkv_add_quads(dot[i][v], w[v], rkv_x_quads(x, row + i) + k + word * 4, WIDE(type));
      }
      RKV_UNROLL for (int32_t i = 0; i < rows; i++) {
        const rkv_x_block *block = (const rkv_x_block *)(x.blocks + (row + i) * x.stride) + k / RKV_PART;
        RKV_UNROLL for (int32_t v = 0; v < 2; v++) {
          sum[i][v] = rkv_fma(__builtin_convertvector(dot[i][v], rkv_vec), rkv_load(part->scale[half] + v * RKV_LANES) * rkv_set1(block->scale), sum[i][v]);
          if (RKV_HAS_MINIMA(type)) sum[i][v] = rkv_fma(rkv_load(part->offset + v * RKV_LANES), rkv_set1(-block->sum), sum[i][v]);
        }
      }
    }
  RKV_UNROLL for (int32_t i = 0; i < rows; i++)
    RKV_UNROLL for (int32_t v = 0; v < 2; v++) rkv_store(c + i * RKV_BLOCK_COLS + v * RKV_LANES, sum[i][v]);
}

/* The laid parts' vectors from output `at` of the panel on, as if they were the first. */
static const laid_part *from_output(const laid_part *parts, int32_t at) { return (const laid_part *)((const char *)parts + at * 4); }

RKV_INLINE void many(float *c, const char *panels, size_t panel_bytes, int32_t count, rkv_x_rows x, int32_t k0, int32_t depth, int32_t type, int32_t rows, laid_part *parts) {
  for (int32_t p = 0; p < count; p++) {
    lay_out(parts, panels + (size_t)p * panel_bytes, type, k0, depth);
    for (int32_t row = 0; row < rows;) {
      const int32_t left = rows - row, n = left >= TILE_ROWS ? TILE_ROWS : left >= 4 && TILE_ROWS > 4 ? 4 : left >= 2 ? 2 : 1;
      for (int32_t at = 0; at < RKV_PANEL; at += 2 * RKV_LANES) {
        float *to = c + row * RKV_BLOCK_COLS + p * RKV_PANEL + at;
        const laid_part *from = from_output(parts, at);
        if (n == TILE_ROWS) tile(to, from, x, row, depth, k0, type, TILE_ROWS);
        else if (n == 4) tile(to, from, x, row, depth, k0, type, TILE_ROWS > 4 ? 4 : 1);
        else if (n == 2) tile(to, from, x, row, depth, k0, type, 2);
        else tile(to, from, x, row, depth, k0, type, 1);
      }
      row += n;
    }
  }
}

#define OF_ROWS(type)                                                                              \
  switch (rows) {                                                                                  \
    case 1: few_panels(c, panels, panel_bytes, count * RKV_PANEL, x, k0, depth, type, 1); break;   \
    case 2: few_panels(c, panels, panel_bytes, count * RKV_PANEL, x, k0, depth, type, 2); break;   \
    case 3: few_panels(c, panels, panel_bytes, count * RKV_PANEL, x, k0, depth, type, 3); break;   \
    case 4: few_panels(c, panels, panel_bytes, count * RKV_PANEL, x, k0, depth, type, 4); break;   \
    default: many(c, panels, panel_bytes, count, x, k0, depth, type, rows, scratch);               \
  }                                                                                                \
  break;

void RKV_FN(rkv_quant_rows)(float *c, const char *panels, size_t panel_bytes, int32_t count, rkv_x_rows x, int32_t k0, int32_t depth, int32_t type, int32_t rows, void *scratch) {
  switch (type) {
    case RKV_WEIGHT_Q8_0: OF_ROWS(RKV_WEIGHT_Q8_0)
    case RKV_WEIGHT_Q4_0: OF_ROWS(RKV_WEIGHT_Q4_0)
    case RKV_WEIGHT_Q4_K: OF_ROWS(RKV_WEIGHT_Q4_K)
    case RKV_WEIGHT_Q5_K: OF_ROWS(RKV_WEIGHT_Q5_K)
    case RKV_WEIGHT_Q6_K: OF_ROWS(RKV_WEIGHT_Q6_K)
    default: OF_ROWS(RKV_WEIGHT_Q5_1)
  }
}

/* ---- to f32 -------------------------------------------------------------------------------------------------------------------------- */

/* A part, rows [row, row + RKV_LANES): to[32, stride]. */
RKV_INLINE void unpack_part(float *to, int32_t stride, const char *panel, int32_t type, int32_t k, int32_t row) {
  const rkv_part part = rkv_part_at(type, panel, k);
  rkv_vec scale, offset;
  for (int32_t group = 0; group < 4; group++) {
    if (group % 2 == 0) rkv_part_scale(type, part, group / 2, row, &scale, &offset);
    RKV_UNROLL for (int32_t n = 0; n < 8; n++)
      rkv_store(to + (group * 8 + n) * stride, rkv_part_weight(type, rkv_part_q(type, part, group, n, row), scale, offset));
  }
}

static void unpack(float *to, int32_t stride, const char *panel, int32_t type, int32_t k, int32_t row) {
  switch (type) {
    case RKV_WEIGHT_Q8_0: unpack_part(to, stride, panel, RKV_WEIGHT_Q8_0, k, row); break;
    case RKV_WEIGHT_Q4_0: unpack_part(to, stride, panel, RKV_WEIGHT_Q4_0, k, row); break;
    case RKV_WEIGHT_Q4_K: unpack_part(to, stride, panel, RKV_WEIGHT_Q4_K, k, row); break;
    case RKV_WEIGHT_Q5_K: unpack_part(to, stride, panel, RKV_WEIGHT_Q5_K, k, row); break;
    case RKV_WEIGHT_Q6_K: unpack_part(to, stride, panel, RKV_WEIGHT_Q6_K, k, row); break;
    default: unpack_part(to, stride, panel, RKV_WEIGHT_Q5_1, k, row);
  }
}

void RKV_FN(rkv_quant_unpack_row)(float *to, const char *panel, int32_t type, int32_t row, int32_t cols) {
  float part[RKV_PART * RKV_LANES];
  for (int32_t k = 0; k < cols; k += RKV_PART) {
    unpack(part, RKV_LANES, panel, type, k, row / RKV_LANES * RKV_LANES);
    for (int32_t i = 0; i < RKV_PART; i++) to[k + i] = part[i * RKV_LANES + row % RKV_LANES];
  }
}
