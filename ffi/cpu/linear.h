/* linear.h: products with packed weights. y = W x for one row of x or for many, from one packed layout.
 *
 * A packed matrix [rows, cols] is a sequence of panels. A panel holds RKV_PANEL output rows side by side (the last one is filled up with
 * zeros) and runs over all cols, so that one vector load gives the weights of neighbouring outputs for one k:
 *   F32         [cols][RKV_PANEL]
 *   F16         [cols][RKV_PANEL]
 *   BF16        [cols / 2][RKV_PANEL][2]      pairs of k, as the BF16 dot product wants them; an odd last k is paired with 0
 *   quantised   blocks of 32 or 256 k, as linear_quant.h has them
 *
 * Every output is summed in one fixed order, whatever the number of rows, workers or the path taken: k in blocks of RKV_DEPTH, one chain
 * of fused multiply-adds in each (weights as f32), and the blocks' sums added in order. */
#ifndef RKV_LINEAR_H
#define RKV_LINEAR_H
#include "cpu.h"

#define RKV_PANEL 32          /* output rows of a panel: two vectors of 16 floats */
#define RKV_DEPTH 128         /* k of a block: RKV_DEPTH * RKV_PANEL floats are 16 KiB, half of a small L1 cache */
#define RKV_BLOCK_ROWS 128    /* rows of x that share a block of weights: RKV_BLOCK_ROWS * RKV_DEPTH floats lie in L2 */
#define RKV_BLOCK_PANELS 4    /* panels that share a copied block of x */
#define RKV_BLOCK_COLS (RKV_BLOCK_PANELS * RKV_PANEL)

/* Scratch of RKV_FN(rkv_product): a block of x, a panel's block of weights. */
#define RKV_PRODUCT_SCRATCH ((RKV_BLOCK_ROWS + RKV_PANEL) * RKV_DEPTH * 4)

/* Rows of an operand: row i of the call lies at x + (map ? map[i] : i) * stride. */
typedef struct rkv_operand {
  const float *x;
  int64_t stride;
  const int32_t *map;
} rkv_operand;

/* The outputs of one piece: rows [row, row + rows) of the call, output columns [col, col + cols); col is a multiple of RKV_PANEL. */
typedef struct rkv_block { int32_t row, rows, col, cols; } rkv_block;

/* How many pieces a product with `count` rows has, and which outputs one of them makes. Both depend on shapes alone. */
int32_t RKV_FN(rkv_product_pieces)(const rkv_weight_data *weight, int32_t count);
rkv_block RKV_FN(rkv_product_block)(const rkv_weight_data *weight, int32_t count, int32_t piece);

/* c[block.rows, RKV_BLOCK_COLS] = the outputs of a block; columns from block.cols on, up to the panel's end, are padding.
 * scratch: RKV_PRODUCT_SCRATCH bytes. */
void RKV_FN(rkv_product)(float *c, const rkv_weight_data *weight, rkv_operand operand, rkv_block block, void *scratch);

/* c[rows, 0 .. cols) (+)= a[rows, RKV_DEPTH] b[depth, RKV_PANEL], the f32 kernel under every product of many rows and under prefill
 * attention. c's rows are ldc floats apart; whole vectors are written (cols is rounded up to RKV_LANES). */
void RKV_FN(rkv_panel_product)(float *c, int32_t ldc, const float *a, int32_t rows, const float *b, int32_t depth, int32_t cols, int32_t add);

/* Bytes of one panel over `cols`, 0 where type or cols is not supported. */
size_t RKV_FN(rkv_panel_bytes)(int32_t type, int32_t cols);
size_t RKV_FN(rkv_packed_bytes)(int32_t type, int32_t rows, int32_t cols);

/* One row of a packed matrix as f32. */
void RKV_FN(rkv_unpack_row)(float *to, const rkv_weight_data *weight, int32_t row);

#endif
