/* linear.c: products with packed weights (linear.h). Many rows: blocks of x and of weights go through a register tile. Few rows: the
 * weights are read once, from where they lie, by as many streams as keep the multipliers' latency hidden. */
#include "linear_quant.h"

/* Rows of the register tile: with two vectors of weights, as many accumulators as leave room for the operands. */
#if RKV_LANES == 16 || defined(__aarch64__)
#define TILE_ROWS 12
#else
#define TILE_ROWS 6
#endif
#define FEW_ROWS RKV_FEW_ROWS /* up to here weights are used straight from the panel */
#define PIECE_BYTES (32 << 10) /* weights per piece when there are few rows: about 1 us, a hand-off's worth */

/* ---- the register tile --------------------------------------------------------------------------------------------------------- */

/* sum + a step: lanes of weights with the word of x that all of them share, a float or a pair. `form` is a constant. */
RKV_INLINE rkv_vec add_step(rkv_vec sum, rkv_vec weights, const uint32_t *x, int32_t form) {
#if RKV_PAIRS
  if (form == RKV_FORM_PAIRS) return rkv_add_pairs(sum, (rkv_uvec)weights, x);
#endif
  return (void)form, rkv_fma((rkv_vec)rkv_set1_word(x), weights, sum);
}

/* c[rows, vecs] (+)= a[rows, lda] b[depth, RKV_PANEL] in words of four bytes; rows, vecs and form are constants at every call. */
RKV_INLINE void tile(float *c, int32_t ldc, const uint32_t *a, int32_t lda, const uint32_t *b, int32_t depth, int32_t add, int32_t rows, int32_t vecs, int32_t form) {
  rkv_vec sum[TILE_ROWS][2];
  RKV_UNROLL for (int32_t i = 0; i < rows; i++)
    RKV_UNROLL for (int32_t v = 0; v < vecs; v++) sum[i][v] = (rkv_vec){0};
  for (int32_t k = 0; k < depth; k++) {
    rkv_vec w[2];
    RKV_UNROLL for (int32_t v = 0; v < vecs; v++) w[v] = rkv_load((const float *)(b + k * RKV_PANEL + v * RKV_LANES));
    RKV_UNROLL for (int32_t i = 0; i < rows; i++)
      RKV_UNROLL for (int32_t v = 0; v < vecs; v++) sum[i][v] = add_step(sum[i][v], w[v], a + i * lda + k, form);
  }
  RKV_UNROLL for (int32_t i = 0; i < rows; i++)
    RKV_UNROLL for (int32_t v = 0; v < vecs; v++) {
      float *to = c + (int64_t)i * ldc + v * RKV_LANES;
      rkv_store(to, add ? rkv_load(to) + sum[i][v] : sum[i][v]);
    }
}

RKV_INLINE void tiles(float *c, int32_t ldc, const uint32_t *a, int32_t lda, int32_t rows, const uint32_t *b, int32_t depth, int32_t add, int32_t vecs, int32_t form) {
#define TAKE(n) tile(c, ldc, a, lda, b, depth, add, n, vecs, form), c += (int64_t)(n) * ldc, a += (n) * lda, rows -= (n)
  while (rows >= TILE_ROWS) TAKE(TILE_ROWS);
#if TILE_ROWS > 8
  if (rows >= 8) TAKE(8);
#endif
  if (rows >= 4) TAKE(4);
  if (rows >= 2) TAKE(2);
  if (rows >= 1) TAKE(1);
#undef TAKE
}

void RKV_FN(rkv_panel_product)(float *c, int32_t ldc, const float *a, int32_t rows, const float *b, int32_t depth, int32_t cols, int32_t add) {
  const uint32_t *x = (const uint32_t *)a, *weights = (const uint32_t *)b;
  int32_t col = 0;
  for (; col + RKV_LANES < cols; col += 2 * RKV_LANES) tiles(c + col, ldc, x, RKV_DEPTH, rows, weights + col, depth, add, 2, RKV_FORM_F32);
  if (col < cols) tiles(c + col, ldc, x, RKV_DEPTH, rows, weights + col, depth, add, 1, RKV_FORM_F32);
}

#if RKV_PAIRS
void RKV_FN(rkv_panel_pairs)(float *c, int32_t ldc, const uint32_t *a, int32_t lda, int32_t rows, const uint32_t *b, int32_t depth, int32_t add) {
  tiles(c, ldc, a, lda, rows, b, depth, add, 2, RKV_FORM_PAIRS);
}
#endif

/* ---- few rows -------------------------------------------------------------------------------------------------------------------- */

/* Weights of RKV_LANES outputs from `col` of a panel on, for one step. */
RKV_INLINE rkv_vec load_weights(int32_t type, const char *panel, int32_t step, int32_t col) {
  if (rkv_form_of(type) == RKV_FORM_PAIRS || type == RKV_WEIGHT_F32) {
    const float *at = (const float *)panel + (int64_t)step * RKV_PANEL + col;
#if RKV_PAIRS
    const uint16_t *halves = (const uint16_t *)at;
    if (type == RKV_WEIGHT_F16) return (rkv_vec)rkv_pairs_of(rkv_from_f16(rkv_load_half(halves)), rkv_from_f16(rkv_load_half(halves + RKV_LANES)));
#endif
    return rkv_load(at);
  }
  rkv_uvec pair;
  memcpy(&pair, panel + ((int64_t)(step >> 1) * RKV_PANEL + col) * 4, sizeof pair);
  if (type == RKV_WEIGHT_F16) return rkv_from_f16(__builtin_convertvector(step & 1 ? pair >> 16 : pair & 0xffff, rkv_hvec));
  return (rkv_vec)(step & 1 ? pair & 0xffff0000u : pair << 16);
}

typedef struct { int32_t begin, end; } steps;

/* c[rows, vecs * RKV_LANES] (+)= for outputs from `col` of a row of panels on, over steps that begin at a block; x[i] has their words. type,
 * rows and vecs are constants. */
RKV_INLINE void few(float *c, const char *panels, size_t panel_bytes, int32_t col, const uint32_t *const *x, steps over, int32_t type, int32_t rows, int32_t vecs) {
  const char *panel[4];
  RKV_UNROLL for (int32_t v = 0; v < vecs; v++) panel[v] = panels + (size_t)((col + v * RKV_LANES) / RKV_PANEL) * panel_bytes;
  const int32_t within = col % RKV_PANEL, form = rkv_form_of(type);
  for (int32_t k0 = over.begin; k0 < over.end; k0 += RKV_DEPTH) {
    const int32_t end = rkv_min_int(over.end, k0 + RKV_DEPTH);
    rkv_vec sum[FEW_ROWS][4];
    RKV_UNROLL for (int32_t i = 0; i < rows; i++)
      RKV_UNROLL for (int32_t v = 0; v < vecs; v++) sum[i][v] = (rkv_vec){0};
#define STEP(k)                                                                                                                    {                                                                                                                                rkv_vec w[4];                                                                                                                  RKV_UNROLL for (int32_t v = 0; v < vecs; v++) w[v] = load_weights(type, panel[v], k, (within + v * RKV_LANES) % RKV_PANEL);       RKV_UNROLL for (int32_t i = 0; i < rows; i++)                                                                                    RKV_UNROLL for (int32_t v = 0; v < vecs; v++) sum[i][v] = add_step(sum[i][v], w[v], x[i] + (k) - over.begin, form);        }
    int32_t k = k0;
    for (; k + 2 <= end; k += 2) {
      STEP(k)
      STEP(k + 1)
    }
    if (k < end) STEP(k)
#undef STEP
    RKV_UNROLL for (int32_t i = 0; i < rows; i++)
      RKV_UNROLL for (int32_t v = 0; v < vecs; v++) {
        float *to = c + i * RKV_BLOCK_COLS + col + v * RKV_LANES;
        rkv_store(to, k0 ? rkv_load(to) + sum[i][v] : sum[i][v]);
      }
  }
}

/* With 16 lanes a pair of panels gives four streams of sums. With fewer registers, one row still has four, more rows two each. */
RKV_INLINE void few_panels(float *c, const char *panels, size_t panel_bytes, int32_t outputs, const uint32_t *const *x, steps over, int32_t type, int32_t rows) {
  const int32_t vecs = RKV_LANES == 16 || rows == 1 ? 4 : 2;
  int32_t col = 0;
  for (; col + vecs * RKV_LANES <= outputs; col += vecs * RKV_LANES) few(c, panels, panel_bytes, col, x, over, type, rows, vecs);
  for (; col < outputs; col += 2 * RKV_LANES) few(c, panels, panel_bytes, col, x, over, type, rows, 2);
}

#define FEW_TYPE(type)                                                                     \
  switch (rows) {                                                                          \
    case 1: few_panels(c, panels, panel_bytes, outputs, x, over, type, 1); break;          \
    case 2: few_panels(c, panels, panel_bytes, outputs, x, over, type, 2); break;          \
    case 3: few_panels(c, panels, panel_bytes, outputs, x, over, type, 3); break;          \
    default: few_panels(c, panels, panel_bytes, outputs, x, over, type, 4); break;         \
  }                                                                                        \
  break;

static void few_rows(float *c, const char *panels, size_t panel_bytes, int32_t outputs, const uint32_t *const *x, steps over, int32_t type, int32_t rows) {
  switch (type) {
    case RKV_WEIGHT_F32: FEW_TYPE(RKV_WEIGHT_F32)
    case RKV_WEIGHT_F16: FEW_TYPE(RKV_WEIGHT_F16)
    default: FEW_TYPE(RKV_WEIGHT_BF16)
  }
}

RKV_INLINE void unpack(uint32_t *b, const char *panel, int32_t type, steps over) {
  for (int32_t k = over.begin; k < over.end; k++, b += RKV_PANEL)
    for (int32_t col = 0; col < RKV_PANEL; col += RKV_LANES) rkv_store((float *)b + col, load_weights(type, panel, k, col));
}

/* A panel's weights of some steps as the tile wants them: where they lie, or in b. */
static const uint32_t *panel_words(uint32_t *b, const char *panel, int32_t type, steps over) {
  if (type == RKV_WEIGHT_F32 || (RKV_PAIRS && type == RKV_WEIGHT_BF16)) return (const uint32_t *)panel + (int64_t)over.begin * RKV_PANEL;
  if (type == RKV_WEIGHT_F16) unpack(b, panel, RKV_WEIGHT_F16, over);
  else unpack(b, panel, RKV_WEIGHT_BF16, over);
  return b;
}

/* ---- pieces ---------------------------------------------------------------------------------------------------------------------- */

/* Panels of a piece: with few rows as many as are worth a hand-off, in pairs; else a whole block. */
static int32_t panels_per_piece(const rkv_weight_data *weight, int32_t count) {
  if (count > FEW_ROWS) return RKV_BLOCK_PANELS;
  const size_t fit = PIECE_BYTES / RKV_FN(rkv_panel_bytes)(weight->type, weight->cols);
  return fit >= RKV_BLOCK_PANELS ? RKV_BLOCK_PANELS : 2;
}

int32_t RKV_FN(rkv_product_pieces)(const rkv_weight_data *weight, int32_t count) {
  return rkv_ceil_div(count, RKV_BLOCK_ROWS) * rkv_ceil_div(weight->rows, panels_per_piece(weight, count) * RKV_PANEL);
}

rkv_block RKV_FN(rkv_product_block)(const rkv_weight_data *weight, int32_t count, int32_t piece) {
  const int32_t width = panels_per_piece(weight, count) * RKV_PANEL, across = rkv_ceil_div(weight->rows, width);
  const int32_t row = piece / across * RKV_BLOCK_ROWS, col = piece % across * width;
  return (rkv_block){row, rkv_min_int(RKV_BLOCK_ROWS, count - row), col, rkv_min_int(width, weight->rows - col)};
}

/* Row i of a block. */
static const void *row_at(const rkv_operand *operand, rkv_block block, int32_t i) {
  return (const char *)operand->x + (operand->map ? operand->map[block.row + i] : block.row + i) * operand->stride;
}

/* Rows of x that come as floats are prepared here, a depth at a time. */
static void quant_product(float *c, const rkv_weight_data *weight, const char *panels, size_t panel_bytes, const rkv_operand *operand, rkv_block block, char *scratch) {
  const int32_t cols = weight->cols, count = rkv_ceil_div(block.cols, RKV_PANEL);
  char *laid = scratch + RKV_BLOCK_ROWS * RKV_QUANT_DEPTH * 4;
  for (int32_t k = 0; k < cols; k += RKV_QUANT_DEPTH) {
    const int32_t depth = rkv_min_int(RKV_QUANT_DEPTH, cols - k);
    rkv_x_rows x = {.quads = scratch, .blocks = scratch + depth * (int32_t)sizeof(rkv_quad), .stride = RKV_FN(rkv_form_bytes)(RKV_FORM_BYTES, depth)};
    if (operand->form == RKV_FORM_F32) {
      for (int32_t i = 0; i < block.rows; i++)
        RKV_FN(rkv_prepare)(scratch + i * x.stride, (const float *)row_at(operand, block, i) + k, depth, 0, depth, RKV_FORM_BYTES);
    } else {
      const char *first = row_at(operand, block, 0);
      x = (rkv_x_rows){first + k * (int64_t)sizeof(rkv_quad), first + cols * (int64_t)sizeof(rkv_quad) + k / RKV_PART * (int64_t)sizeof(rkv_x_block), operand->stride};
    }
    RKV_FN(rkv_quant_rows)(c, panels, panel_bytes, count, x, k, depth, weight->type, block.rows, laid);
  }
}

/* Row i's words of some steps, in the form of the weights: where they lie, or prepared in `to` from floats. */
static const uint32_t *row_words(uint32_t *to, const rkv_operand *operand, rkv_block block, int32_t i, steps over, int32_t cols, int32_t form) {
  const uint32_t *row = row_at(operand, block, i);
  if (operand->form == form) return row + over.begin;
  const int32_t k = over.begin * 2, n = rkv_min_int(cols, over.end * 2) - k;
  RKV_FN(rkv_prepare)(to, (const float *)row + k, n, 0, n, form);
  return to;
}

static void word_product(float *c, const rkv_weight_data *weight, const char *panels, size_t panel_bytes, const rkv_operand *operand, rkv_block block, uint32_t *scratch) {
  const int32_t type = weight->type, form = rkv_form_of(type), cols = weight->cols, count = rkv_ceil_div(block.cols, RKV_PANEL);
  const int32_t end = form == RKV_FORM_PAIRS ? rkv_ceil_div(cols, 2) : cols;
  if (block.rows <= FEW_ROWS) {
    enum { ROOM = RKV_PRODUCT_SCRATCH / 4 / FEW_ROWS / RKV_DEPTH * RKV_DEPTH };
    const uint32_t *x[FEW_ROWS];
    for (steps over = {0, 0}; over.begin < end; over.begin = over.end) {
      over.end = operand->form == form ? end : rkv_min_int(end, over.begin + ROOM);
      for (int32_t i = 0; i < block.rows; i++) x[i] = row_words(scratch + i * ROOM, operand, block, i, over, cols, form);
      few_rows(c, panels, panel_bytes, count * RKV_PANEL, x, over, type, block.rows);
    }
    return;
  }
  uint32_t *a = scratch, *b = a + RKV_BLOCK_ROWS * RKV_DEPTH;
  for (steps over = {0, 0}; over.begin < end; over.begin = over.end) {
    over.end = rkv_min_int(end, over.begin + RKV_DEPTH);
    const int32_t depth = over.end - over.begin;
    for (int32_t i = 0; i < block.rows; i++) {                           /* close together: rows that lie a power of two apart share few lines of L1 */
      uint32_t *to = a + i * RKV_DEPTH;
      const uint32_t *from = row_words(to, operand, block, i, over, cols, form);
      if (from != to) memcpy(to, from, (size_t)depth * 4);
    }
    for (int32_t p = 0; p < count; p++) {
      const uint32_t *words = panel_words(b, panels + (size_t)p * panel_bytes, type, over);
      float *to = c + p * RKV_PANEL;
#if RKV_PAIRS
      if (form == RKV_FORM_PAIRS) {
        RKV_FN(rkv_panel_pairs)(to, RKV_BLOCK_COLS, a, RKV_DEPTH, block.rows, words, depth, over.begin > 0);
        continue;
      }
#endif
      RKV_FN(rkv_panel_product)(to, RKV_BLOCK_COLS, (const float *)a, block.rows, (const float *)words, depth, RKV_PANEL, over.begin > 0);
    }
  }
}

void RKV_FN(rkv_product)(float *c, const rkv_weight_data *weight, rkv_operand operand, rkv_block block, void *scratch) {
  const size_t panel_bytes = RKV_FN(rkv_panel_bytes)(weight->type, weight->cols);
  const char *panels = (const char *)weight->packed + (size_t)(block.col / RKV_PANEL) * panel_bytes;
  if (rkv_form_of(weight->type) == RKV_FORM_BYTES) quant_product(c, weight, panels, panel_bytes, &operand, block, scratch);
  else word_product(c, weight, panels, panel_bytes, &operand, block, scratch);
}
