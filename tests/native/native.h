/* native.h: what the tests of the CPU kernels share. They call kernels as the queue does, through the op table of every instruction set
 * that this machine can run, and compare with naive loops in f64. Inputs are random but seeded; memory that a kernel may not read holds
 * NaN, memory behind an output holds a mark. */
#ifndef NATIVE_H
#define NATIVE_H
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "../../ffi/core/ops.h"

extern int failures, checks;
#define CHECK(condition, ...)                                      \
  do {                                                             \
    checks++;                                                      \
    if (!(condition) && failures++ < 20) {                         \
      printf("%s:%d: ", __FILE__, __LINE__);                       \
      printf(__VA_ARGS__);                                         \
      printf("\n");                                                \
    }                                                              \
  } while (0)

/* Runs an op to its end. order 0: pieces one after another; 1: backwards; 2: on two threads, whoever comes first. Returns the last
 * `pieces`: RKV_DONE or a fault. */
int32_t run_op(const rkv_cpu *cpu, rkv_op_id op, const void *args, int order);

/* Place of an instruction set in rkv_isas: what rkv_open takes. */
int32_t isa_of(const rkv_cpu *cpu);

/* Blocks until `job` of a device has arrived; its code. */
int32_t await_job(int32_t device, int32_t job);

/* Seeded numbers: uniform in [0, n), and about normal. */
void seed(uint64_t value);
int32_t below(int32_t n);
float normal(void);

/* Memory of the current case, freed by free_all. floats: full of NaN; every block has a mark behind it that free_all checks. */
void *bytes(size_t n);
float *floats(size_t n);
float *normals(size_t n);
int32_t *ints(size_t n);
void free_all(void);

rkv_view view(void *data, int32_t dtype, int32_t rank, const int32_t *shape);
#define VIEW(data, dtype, ...) view(data, dtype, sizeof((int32_t[]){__VA_ARGS__}) / 4, (const int32_t[]){__VA_ARGS__})
#define NONE ((rkv_view){0})

/* A value rounded to a 16-bit dtype and back, and its bits. */
uint16_t bits_of(float value, int32_t type);
float value_of(uint16_t bits, int32_t type);
/* Element i of a row of any dtype. */
double row_value(const void *row, int32_t dtype, int32_t width, int32_t i);

/* Blocks of `n` random weights of a quantised type, and what they mean. */
void random_blocks(uint8_t *source, double *value, int32_t type, size_t n, float size);

/* A packed weight of random numbers (times `size`), and what it stands for in f64. rows == 1: a vector. */
typedef struct { rkv_weight_data data; double *value; } weight;
/* How products take a row of x for weights of a type: as it is, as bytes of blocks of 32, or both sides as BF16. */
typedef enum { AS_F32, AS_BYTES, AS_BF16 } taking;
taking taken_by(const rkv_cpu *cpu, int32_t type);
double as_bf16(double value);
weight random_weight(const rkv_cpu *cpu, int32_t type, int32_t rows, int32_t cols, float size, int32_t rotated);

/* KV rows full of NaN, and row (slot, kv_head, row) of one of their tensors. */
rkv_rows_data make_rows(int32_t slots, int32_t kv_heads, int32_t capacity, int32_t dim, int32_t key_dtype, int32_t value_dtype);
char *row_of(const rkv_rows_data *rows, const rkv_view *tensor, int32_t slot, int32_t kv_head, int32_t row);
/* Rows [0, end) of a slot become random, at positions 0, 1, ... */
void fill_rows(rkv_rows_data *rows, int32_t slot, int32_t end);

/* Whether two blocks of floats hold the same bits. */
int same(const float *a, const float *b, size_t n);

void test_linear(const rkv_cpu *cpu);
void test_decoder(const rkv_cpu *cpu);
void test_layer(const rkv_cpu *cpu);
void test_attention(const rkv_cpu *cpu);
void test_attend_chunk(const rkv_cpu *cpu);
void test_queue(const rkv_cpu *cpu);
#endif
