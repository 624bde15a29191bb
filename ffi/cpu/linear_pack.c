/* linear_pack.c: from a weight as a file holds it to the panels of linear.h, once, at load. */
#include "linear_quant.h"

#define VECTOR_PIECE 4096     /* elements of a vector weight per piece: whole blocks of every type, and room in scratch for a panel of them */

size_t RKV_FN(rkv_panel_bytes)(int32_t type, int32_t cols) {
  switch (type) {
    case RKV_WEIGHT_F32: return (size_t)cols * RKV_PANEL * 4;
    case RKV_WEIGHT_F16:
    case RKV_WEIGHT_BF16: return (size_t)(cols / 2 + cols % 2) * RKV_PANEL * 4;
    default: {
      const int32_t block = rkv_quant_block(type);
      return block && cols % block == 0 ? (size_t)(cols / block) * (size_t)rkv_quant_bytes(type) * RKV_PANEL : 0;
    }
  }
}

size_t RKV_FN(rkv_packed_bytes)(int32_t type, int32_t rows, int32_t cols) {
  if (rows == 1) return RKV_FN(rkv_panel_bytes)(type, cols) ? (size_t)cols * 4 : 0;
  return (size_t)rkv_ceil_div(rows, RKV_PANEL) * RKV_FN(rkv_panel_bytes)(type, cols);
}

/* The file's row that becomes row `row`. Adjacent RoPE pairs (2i, 2i + 1) of a head are put back to (i, i + half). */
static int32_t source_row(int32_t row, int32_t rows, int32_t rotated) {
  if (rotated <= 0) return row;
  const int32_t dim = rows / rotated, half = dim / 2, within = row % dim;
  return row - within + (within < half ? 2 * within : 2 * (within - half) + 1);
}

/* The other way round: where the file's row `row` goes. */
static int32_t packed_row(int32_t row, int32_t rows, int32_t rotated) {
  if (rotated <= 0) return row;
  const int32_t dim = rows / rotated, within = row % dim;
  return row - within + within / 2 + within % 2 * (dim / 2);
}

static float element_of(const void *source, int32_t type, int64_t i) {
  if (type == RKV_WEIGHT_F32) {
    float value;
    memcpy(&value, (const char *)source + i * 4, 4);
    return value;
  }
  rkv_hvec half = {0};
  memcpy(&half, (const char *)source + i * 2, 2);
  return (type == RKV_WEIGHT_F16 ? rkv_from_f16(half) : rkv_from_bf16(half))[0];
}

/* Where k of a panel's row `r` lies among its halves. */
static int64_t place_of_half(int32_t k, int32_t r) { return ((int64_t)(k >> 1) * RKV_PANEL + r) * 2 + (k & 1); }

int32_t RKV_FN(rkv_pack_pieces)(const void *args, int32_t stage) {
  const rkv_weight_data *weight = ((const rkv_pack_args *)args)->weight;
  if (stage) return RKV_DONE;
  return weight->rows == 1 ? rkv_ceil_div(weight->cols, VECTOR_PIECE) : rkv_ceil_div(weight->rows, RKV_PANEL);
}

/* 64 columns of 32 rows at a time: the lines of the source are still in L1 when their other columns are wanted. */
#define PACK_COLS 64
#define PACK(element, place)                                                                                              \
  for (int32_t k0 = 0; k0 < cols; k0 += PACK_COLS)                                                                        \
    for (int32_t r = 0; r < RKV_PANEL; r++) {                                                                             \
      const char *from = from_row[r];                                                                                     \
      element *to = panel;                                                                                                \
      for (int32_t k = k0, end = rkv_min_int(cols, k0 + PACK_COLS); k < end; k++) {                                       \
        element value = 0;                                                                                                \
        if (from) memcpy(&value, from + (int64_t)k * (int64_t)sizeof value, sizeof value);                                \
        to[place] = value;                                                                                                \
      }                                                                                                                   \
    }

/* A vector weight becomes f32. What is quantised goes through a panel of one row. */
static void pack_vector(const rkv_pack_args *op, int32_t piece, char *scratch) {
  float *to = op->weight->packed;
  const int32_t cols = op->weight->cols, type = op->weight->type, begin = piece * VECTOR_PIECE, n = rkv_min_int(VECTOR_PIECE, cols - begin);
  float *values = (float *)scratch;
  const int32_t block = rkv_quant_block(type);
  if (block) {
    const char *from[RKV_PANEL] = {(const char *)op->source + (int64_t)(begin / block) * rkv_quant_file_bytes(type)};
    RKV_FN(rkv_quant_pack)(scratch + VECTOR_PIECE * 4, from, type, n);
    RKV_FN(rkv_quant_unpack_row)(values, scratch + VECTOR_PIECE * 4, type, 0, n);
  } else
    for (int32_t k = 0; k < n; k++) values[k] = element_of(op->source, type, begin + k);
  for (int32_t k = 0; k < n; k++) to[packed_row(begin + k, cols, op->rotated)] = values[k];
}

void RKV_FN(rkv_pack_run)(const void *args, int32_t stage, int32_t piece, void *scratch) {
  const rkv_pack_args *op = args;
  const rkv_weight_data *weight = op->weight;
  const int32_t rows = weight->rows, cols = weight->cols, type = weight->type;
  (void)stage;
  if (rows == 1) {
    pack_vector(op, piece, scratch);
    return;
  }
  const int32_t block = rkv_quant_block(type);
  const int64_t row_bytes = block ? (int64_t)(cols / block) * rkv_quant_file_bytes(type) : (int64_t)cols * (type == RKV_WEIGHT_F32 ? 4 : 2);
  void *panel = (char *)weight->packed + (size_t)piece * RKV_FN(rkv_panel_bytes)(type, cols);
  const char *from_row[RKV_PANEL];
  for (int32_t r = 0; r < RKV_PANEL; r++) {
    const int32_t row = piece * RKV_PANEL + r;
    from_row[r] = row < rows ? (const char *)op->source + source_row(row, rows, op->rotated) * row_bytes : NULL;
  }
  if (block) {
    RKV_FN(rkv_quant_pack)(panel, from_row, type, cols);
  } else if (type == RKV_WEIGHT_F32) {
    PACK(uint32_t, (int64_t)k * RKV_PANEL + r)
  } else {
    PACK(uint16_t, place_of_half(k, r))
    if (cols % 2)
      for (int32_t r = 0; r < RKV_PANEL; r++) ((uint16_t *)panel)[place_of_half(cols, r)] = 0;
  }
}

void RKV_FN(rkv_unpack_row)(float *to, const rkv_weight_data *weight, int32_t row) {
  const int32_t cols = weight->cols, r = row % RKV_PANEL;
  const void *panel = (const char *)weight->packed + (size_t)(row / RKV_PANEL) * RKV_FN(rkv_panel_bytes)(weight->type, cols);
  if (rkv_quant_block(weight->type)) {
    RKV_FN(rkv_quant_unpack_row)(to, panel, weight->type, r, cols);
    return;
  }
  for (int32_t k = 0; k < cols; k++) to[k] = element_of(panel, weight->type, weight->type == RKV_WEIGHT_F32 ? (int64_t)k * RKV_PANEL + r : place_of_half(k, r));
}
