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

/* c[rows, vecs] (+)= a[rows, RKV_DEPTH] b[depth, RKV_PANEL]; rows and vecs are constants at every call. */
RKV_INLINE void tile(float *c, int32_t ldc, const float *a, const float *b, int32_t depth, int32_t add, int32_t rows, int32_t vecs) {
  rkv_vec sum[TILE_ROWS][2];
  RKV_UNROLL for (int32_t i = 0; i < rows; i++)
    RKV_UNROLL for (int32_t v = 0; v < vecs; v++) sum[i][v] = (rkv_vec){0};
  for (int32_t k = 0; k < depth; k++) {
    rkv_vec w[2];
    RKV_UNROLL for (int32_t v = 0; v < vecs; v++) w[v] = rkv_load(b + k * RKV_PANEL + v * RKV_LANES);
    RKV_UNROLL for (int32_t i = 0; i < rows; i++) {
      const rkv_vec x = rkv_set1(a[i * RKV_DEPTH + k]);
      RKV_UNROLL for (int32_t v = 0; v < vecs; v++) sum[i][v] = rkv_fma(x, w[v], sum[i][v]);
    }
  }
  RKV_UNROLL for (int32_t i = 0; i < rows; i++)
    RKV_UNROLL for (int32_t v = 0; v < vecs; v++) {
      float *to = c + (int64_t)i * ldc + v * RKV_LANES;
      rkv_store(to, add ? rkv_load(to) + sum[i][v] : sum[i][v]);
    }
}

RKV_INLINE void tiles(float *c, int32_t ldc, const float *a, int32_t rows, const float *b, int32_t depth, int32_t add, int32_t vecs) {
#define STEP(n) c += (int64_t)(n) * ldc, a += (n) * RKV_DEPTH, rows -= (n)
  for (; rows >= TILE_ROWS; STEP(TILE_ROWS)) tile(c, ldc, a, b, depth, add, TILE_ROWS, vecs);
#if TILE_ROWS > 8
  if (rows >= 8) { tile(c, ldc, a, b, depth, add, 8, vecs); STEP(8); }
#endif
  if (rows >= 4) { tile(c, ldc, a, b, depth, add, 4, vecs); STEP(4); }
  if (rows >= 2) { tile(c, ldc, a, b, depth, add, 2, vecs); STEP(2); }
  if (rows >= 1) tile(c, ldc, a, b, depth, add, 1, vecs);
#undef STEP
}

void RKV_FN(rkv_panel_product)(float *c, int32_t ldc, const float *a, int32_t rows, const float *b, int32_t depth, int32_t cols, int32_t add) {
  int32_t col = 0;
  for (; col + RKV_LANES < cols; col += 2 * RKV_LANES) tiles(c + col, ldc, a, rows, b + col, depth, add, 2);
  if (col < cols) tiles(c + col, ldc, a, rows, b + col, depth, add, 1);
}

/* ---- few rows -------------------------------------------------------------------------------------------------------------------- */

/* Weights of RKV_LANES outputs from `col` of a panel on, for one k. */
RKV_INLINE rkv_vec load_weights(int32_t type, const char *panel, int32_t k, int32_t col) {
  if (type == RKV_WEIGHT_F16) return rkv_from_f16(rkv_load_half((const uint16_t *)panel + (int64_t)k * RKV_PANEL + col));
  if (type == RKV_WEIGHT_BF16) {
    rkv_uvec pair;
    memcpy(&pair, panel + ((int64_t)(k >> 1) * RKV_PANEL + col) * 4, sizeof pair);
    return (rkv_vec)(k & 1 ? pair & 0xffff0000u : pair << 16);
  }
  return rkv_load((const float *)panel + (int64_t)k * RKV_PANEL + col);
}

/* c[rows, vecs * RKV_LANES] for outputs from `col` of a row of panels on, over all of k. type, rows and vecs are constants. */
RKV_INLINE void few(float *c, const char *panels, size_t panel_bytes, int32_t col, const float *const *x, int32_t cols,
                    int32_t type, int32_t rows, int32_t vecs) {
  const char *panel[4];
  RKV_UNROLL for (int32_t v = 0; v < vecs; v++) panel[v] = panels + (size_t)((col + v * RKV_LANES) / RKV_PANEL) * panel_bytes;
  const int32_t within = col % RKV_PANEL;
  for (int32_t k0 = 0; k0 < cols; k0 += RKV_DEPTH) {
    const int32_t end = rkv_min_int(cols, k0 + RKV_DEPTH);
    rkv_vec sum[FEW_ROWS][4];
    RKV_UNROLL for (int32_t i = 0; i < rows; i++)
      RKV_UNROLL for (int32_t v = 0; v < vecs; v++) sum[i][v] = (rkv_vec){0};
#define STEP(k)                                                                                                                \
    {                                                                                                                          \
      rkv_vec w[4];                                                                                                            \
      RKV_UNROLL for (int32_t v = 0; v < vecs; v++) w[v] = load_weights(type, panel[v], k, (within + v * RKV_LANES) % RKV_PANEL); \
      RKV_UNROLL for (int32_t i = 0; i < rows; i++) {                                                                          \
        const rkv_vec a = rkv_set1(x[i][k]);                                                                                   \
        RKV_UNROLL for (int32_t v = 0; v < vecs; v++) sum[i][v] = rkv_fma(a, w[v], sum[i][v]);                                 \
      }                                                                                                                        \
    }
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
RKV_INLINE void few_panels(float *c, const char *panels, size_t panel_bytes, int32_t outputs, const float *const *x, int32_t cols,
                           int32_t type, int32_t rows) {
  const int32_t vecs = RKV_LANES == 16 || rows == 1 ? 4 : 2;
  int32_t col = 0;
  for (; col + vecs * RKV_LANES <= outputs; col += vecs * RKV_LANES) few(c, panels, panel_bytes, col, x, cols, type, rows, vecs);
  for (; col < outputs; col += 2 * RKV_LANES) few(c, panels, panel_bytes, col, x, cols, type, rows, 2);
}

#define FEW_TYPE(type)                                                                     \
  switch (rows) {                                                                          \
    case 1: few_panels(c, panels, panel_bytes, outputs, x, cols, type, 1); break;          \
    case 2: few_panels(c, panels, panel_bytes, outputs, x, cols, type, 2); break;          \
    case 3: few_panels(c, panels, panel_bytes, outputs, x, cols, type, 3); break;          \
    default: few_panels(c, panels, panel_bytes, outputs, x, cols, type, 4); break;         \
  }                                                                                        \
  break;

static void few_rows(float *c, const char *panels, size_t panel_bytes, int32_t outputs, const float *const *x, int32_t cols, int32_t type, int32_t rows) {
  switch (type) {
    case RKV_WEIGHT_F32: FEW_TYPE(RKV_WEIGHT_F32)
    case RKV_WEIGHT_F16: FEW_TYPE(RKV_WEIGHT_F16)
    default: FEW_TYPE(RKV_WEIGHT_BF16)
  }
}

RKV_INLINE void unpack(float *b, const char *panel, int32_t type, int32_t k, int32_t depth) {
  for (int32_t i = 0; i < depth; i++)
    for (int32_t col = 0; col < RKV_PANEL; col += RKV_LANES) rkv_store(b + i * RKV_PANEL + col, load_weights(type, panel, k + i, col));
}

/* b[depth, RKV_PANEL] = a panel's weights [k, k + depth) as f32; k is a multiple of RKV_DEPTH. */
static void unpack_panel(float *b, const char *panel, int32_t type, int32_t k, int32_t depth) {
  if (type == RKV_WEIGHT_F16) unpack(b, panel, RKV_WEIGHT_F16, k, depth);
  else unpack(b, panel, RKV_WEIGHT_BF16, k, depth);
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

void RKV_FN(rkv_product)(float *c, const rkv_weight_data *weight, rkv_operand operand, rkv_block block, void *scratch) {
  const size_t panel_bytes = RKV_FN(rkv_panel_bytes)(weight->type, weight->cols);
  const char *panels = (const char *)weight->packed + (size_t)(block.col / RKV_PANEL) * panel_bytes;
  const int32_t count = rkv_ceil_div(block.cols, RKV_PANEL), cols = weight->cols;
  if (rkv_quant_block(weight->type)) {
    quant_product(c, weight, panels, panel_bytes, &operand, block, scratch);
    return;
  }
  if (block.rows <= FEW_ROWS) {
    const float *x[FEW_ROWS];
    for (int32_t i = 0; i < block.rows; i++) x[i] = row_at(&operand, block, i);
    few_rows(c, panels, panel_bytes, count * RKV_PANEL, x, cols, weight->type, block.rows);
    return;
  }
  float *a = scratch, *b = a + RKV_BLOCK_ROWS * RKV_DEPTH;
  for (int32_t k = 0; k < cols; k += RKV_DEPTH) {
    const int32_t depth = rkv_min_int(RKV_DEPTH, cols - k);
    for (int32_t i = 0; i < block.rows; i++) memcpy(a + i * RKV_DEPTH, (const float *)row_at(&operand, block, i) + k, (size_t)depth * 4);
    for (int32_t p = 0; p < count; p++) {
      const char *panel = panels + (size_t)p * panel_bytes;
      const float *weights = b;
      if (weight->type == RKV_WEIGHT_F32) weights = (const float *)panel + (int64_t)k * RKV_PANEL;
      else unpack_panel(b, panel, weight->type, k, depth);
      RKV_FN(rkv_panel_product)(c + p * RKV_PANEL, RKV_BLOCK_COLS, a, block.rows, weights, depth, RKV_PANEL, k > 0);
    }
  }
}
