/* linear.h: products with packed weights. y = W x for one row of x or for many, from one packed layout.
 *
 * A packed matrix [rows, cols] is a sequence of panels. A panel holds RKV_PANEL output rows side by side (the last one is filled up with
 * zeros) and runs over all cols, so that one vector load gives the weights of neighbouring outputs for one k:
 *   F32         [cols][RKV_PANEL]
 *   F16, BF16   [cols / 2][RKV_PANEL][2]      pairs of k, as the BF16 dot product wants them; an odd last k is paired with 0
 *   quantised   blocks of 32 or 256 k, as linear_quant.h has them
 *
 * Every output is summed in one fixed order, whatever the number of rows, workers or the path taken. F32, F16 and BF16: k in blocks of
 * RKV_DEPTH steps, one chain of sums in each, and the blocks' sums added in order. A step is one k, a fused multiply-add of the weight as
 * f32. Where the instruction set multiplies pairs of BF16 (RKV_PAIRS), F16 and BF16 weights meet rows rounded to BF16, and a step is two k:
 * memory keeps F16, but a weight counts as the nearest BF16, numbers below 2^-126 count as 0, and an output is off by at most 2^-8
 * sum |w[k] x[k]| (F16: twice that) beyond what f32 sums cost. Quantised weights meet rows that are quantised too, 32 k at a time to signed bytes and a scale: the products are exact in 32 bits, and one chain of fused multiply-adds over
 * the blocks of k brings them to their scales. So an output is off by at most sum |w[k]| * largest |x| of k's block / 254. */
#ifndef RKV_LINEAR_H
#define RKV_LINEAR_H
#include "cpu.h"

#define RKV_PANEL 32          /* output rows of a panel: two vectors of 16 floats */
#define RKV_DEPTH 128         /* steps of a block: RKV_DEPTH * RKV_PANEL floats or pairs are 16 KiB, half of a small L1 cache */
#define RKV_BLOCK_ROWS 128    /* rows of x that share a block of weights: RKV_BLOCK_ROWS * RKV_DEPTH floats lie in L2 */
#define RKV_BLOCK_PANELS 4    /* panels that share a copied block of x */
#define RKV_BLOCK_COLS (RKV_BLOCK_PANELS * RKV_PANEL)

#define RKV_QUANT_DEPTH 1024  /* the same for quantised weights: bytes, and a row of x and its blocks stay in L1 while panels pass */

/* Scratch of RKV_FN(rkv_product): a block of x, a panel's block of weights. */
#define RKV_PRODUCT_SCRATCH (RKV_BLOCK_ROWS * RKV_QUANT_DEPTH * 4 + RKV_PANEL * RKV_QUANT_DEPTH * 2)

/* What a row of x may be kept as. A prepared row takes no more room than its floats, and is made once for all products that read it. A product
 * can take either; it prepares floats itself. */
#define RKV_FORM_F32 0
#define RKV_FORM_BYTES 1      /* for quantised weights */
#define RKV_FORM_PAIRS 2      /* of BF16, an odd last one with 0: for F16 and BF16 weights where RKV_PAIRS */

/* Rows of an operand: row i of the call lies at x + (map ? map[i] : i) * stride bytes, in one of the forms. */
typedef struct rkv_operand {
  const void *x;
  int64_t stride;
  const int32_t *map;
  int32_t form;
} rkv_operand;

/* The form that suits all of these weights (NULL: none), and the bytes of a row of `cols` in it. */
int32_t RKV_FN(rkv_form_for)(const rkv_weight_data *a, const rkv_weight_data *b, const rkv_weight_data *c);
int64_t RKV_FN(rkv_form_bytes)(int32_t form, int32_t cols);
/* Elements [k, k + n) of a row of `cols` from x[n]. Prepared rows are made of whole blocks: k is a multiple of 32, and n unless the row ends. */
void RKV_FN(rkv_prepare)(void *row, const float *x, int32_t cols, int32_t k, int32_t n, int32_t form);

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
/* The same over pairs of BF16 (RKV_PAIRS): c[rows, RKV_PANEL] (+)= a[rows, lda] b[depth, RKV_PANEL]. */
void RKV_FN(rkv_panel_pairs)(float *c, int32_t ldc, const uint32_t *a, int32_t lda, int32_t rows, const uint32_t *b, int32_t depth, int32_t add);

/* Bytes of one panel over `cols`, 0 where type or cols is not supported. */
size_t RKV_FN(rkv_panel_bytes)(int32_t type, int32_t cols);
size_t RKV_FN(rkv_packed_bytes)(int32_t type, int32_t rows, int32_t cols);

/* One row of a packed matrix as f32. */
void RKV_FN(rkv_unpack_row)(float *to, const rkv_weight_data *weight, int32_t row);

#endif
