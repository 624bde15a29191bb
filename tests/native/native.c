/* native.c: the tests' memory, random numbers, runner and main.
 * Usage: native [--fuzz COUNT [--seed N]] [isa ...]; without names, all instruction sets that this machine can run. */
#include "native.h"
#include "fuzz.h"
#include <pthread.h>

#if defined(__x86_64__)
extern const rkv_cpu rkv_cpu_baseline, rkv_cpu_avx2, rkv_cpu_avx512, rkv_cpu_avx512bf16;
static const rkv_cpu *const cpus[] = {&rkv_cpu_baseline, &rkv_cpu_avx2, &rkv_cpu_avx512, &rkv_cpu_avx512bf16};
#else
extern const rkv_cpu rkv_cpu_neon;
static const rkv_cpu *const cpus[] = {&rkv_cpu_neon};
#endif

int failures, checks;

/* ---- running an op ------------------------------------------------------------------------------------------------------------------ */

typedef struct { const rkv_kernel *kernel; const void *args; int32_t stage, left; } race;

static void *racer(void *given) {
  race *r = given;
  void *scratch = aligned_alloc(64, RKV_SCRATCH);
  memset(scratch, 0xff, RKV_SCRATCH);
  for (int32_t piece; (piece = __atomic_sub_fetch(&r->left, 1, __ATOMIC_SEQ_CST)) >= 0;) r->kernel->run(r->args, r->stage, piece, scratch);
  free(scratch);
  return NULL;
}

int32_t run_op(const rkv_cpu *cpu, rkv_op_id op, const void *args, int order) {
  static void *scratch;
  const rkv_kernel *kernel = &cpu->kernels[op];
  if (!scratch) scratch = aligned_alloc(64, RKV_SCRATCH);
  for (int32_t stage = 0;; stage++) {
    const int32_t pieces = kernel->pieces(args, stage);
    if (pieces <= 0) return pieces;
    memset(scratch, 0xff, RKV_SCRATCH);
    if (order == 2) {
      race r = {kernel, args, stage, pieces};
      pthread_t other;
      pthread_create(&other, NULL, racer, &r);
      racer(&r);
      pthread_join(other, NULL);
    } else
      for (int32_t i = 0; i < pieces; i++) kernel->run(args, stage, order ? pieces - 1 - i : i, scratch);
  }
}

int32_t isa_of(const rkv_cpu *cpu) {
  char runnable[256] = "";
  rkv_isas((uint8_t *)runnable, sizeof runnable - 1);
  int32_t place = 0;
  for (char *name = strtok(runnable, " "); name != NULL && strcmp(name, cpu->name) != 0; name = strtok(NULL, " ")) place++;
  return place;
}

int32_t await_job(int32_t device, int32_t job) {
  int32_t pairs[128];
  for (;;) {
    const int32_t n = rkv_wait(rkv_results(device), pairs);
    if (n < 0) return n;
    for (int32_t i = 0; i < n; i++)
      if (pairs[2 * i] == job) return pairs[2 * i + 1];
  }
}

/* ---- numbers and memory ------------------------------------------------------------------------------------------------------------- */

static uint64_t state;
void seed(uint64_t value) { state = value * 0x9e3779b97f4a7c15u + 1; }
static uint32_t next(void) {                                          /* xorshift64*, upper half */
  state ^= state >> 12, state ^= state << 25, state ^= state >> 27;
  return (uint32_t)((state * 0x2545f4914f6cdd1du) >> 32);
}
int32_t below(int32_t n) { return (int32_t)(((uint64_t)next() * (uint64_t)n) >> 32); }
float normal(void) {
  double sum = 0;
  for (int i = 0; i < 12; i++) sum += next() / 4294967296.0;
  return (float)(sum - 6);
}

#define MARK 0x7f
#define MARK_BYTES 256
static struct { unsigned char *data; size_t n; } blocks[4096];
static int used;

void *bytes(size_t n) {
  unsigned char *data = aligned_alloc(64, (n + MARK_BYTES + 63) / 64 * 64);
  if (!data || used == 4096) abort();
  memset(data, 0xff, n);
  memset(data + n, MARK, MARK_BYTES);
  blocks[used].data = data, blocks[used++].n = n;
  return data;
}
float *floats(size_t n) { return bytes(n * 4); }
float *normals(size_t n) {
  float *p = floats(n);
  for (size_t i = 0; i < n; i++) p[i] = normal();
  return p;
}
int32_t *ints(size_t n) {
  int32_t *p = bytes(n * 4);
  memset(p, 0, n * 4);
  return p;
}
void free_all(void) {
  while (used) {
    used--;
    for (int i = 0; i < MARK_BYTES; i++)
      if (blocks[used].data[blocks[used].n + (size_t)i] != MARK) {
        CHECK(0, "a kernel wrote %d bytes behind a block of %zu", i, blocks[used].n);
        break;
      }
    free(blocks[used].data);
  }
}

rkv_view view(void *data, int32_t dtype, int32_t rank, const int32_t *shape) {
  rkv_view v = {.data = data, .dtype = dtype, .rank = rank};
  memcpy(v.shape, shape, (size_t)rank * 4);
  return v;
}
int same(const float *a, const float *b, size_t n) { return memcmp(a, b, n * 4) == 0; }

/* ---- dtypes --------------------------------------------------------------------------------------------------------------------------- */

float value_of(uint16_t bits, int32_t type) {
  if (type == RKV_BF16) {
    const uint32_t word = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &word, 4);
    return value;
  }
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  const double size = exponent == 31 ? (mantissa ? (double)NAN : (double)INFINITY) : exponent ? ldexp(1024 + mantissa, exponent - 25) : ldexp(mantissa, -24);
  return (float)(bits & 0x8000 ? -size : size);
}

/* The nearest of all, found by bisection over the magnitudes. */
uint16_t bits_of(float value, int32_t type) {
  const float size = fabsf(value);
  uint16_t low = 0, high = type == RKV_BF16 ? 0x7f80 : 0x7c00;
  while (high - low > 1) {
    const uint16_t middle = (uint16_t)(low + (high - low) / 2);
    if (value_of(middle, type) <= size) low = middle;
    else high = middle;
  }
  const double below_it = (double)size - (double)value_of(low, type), above = (double)value_of(high, type) - (double)size;
  const uint16_t nearest = below_it < above || (below_it == above && low % 2 == 0) ? low : high;
  return (uint16_t)(nearest | (signbit(value) ? 0x8000 : 0));
}

double row_value(const void *row, int32_t dtype, int32_t width, int32_t i) {
  if (dtype == RKV_F32) return (double)((const float *)row)[i];
  if (dtype != RKV_Q8) return (double)value_of(((const uint16_t *)row)[i], dtype);
  float scale;
  memcpy(&scale, (const char *)row + width, 4);
  return (double)((const int8_t *)row)[i] * (double)scale;
}

taking taken_by(const rkv_cpu *cpu, int32_t type) {
  if (type >= RKV_WEIGHT_Q8_0) return AS_BYTES;
  return type != RKV_WEIGHT_F32 && strcmp(cpu->name, "avx512bf16") == 0 ? AS_BF16 : AS_F32;
}

double as_bf16(double value) { return (double)value_of(bits_of((float)value, RKV_BF16), RKV_BF16); }

weight random_weight(const rkv_cpu *cpu, int32_t type, int32_t rows, int32_t cols, float size, int32_t rotated) {
  const size_t n = (size_t)rows * (size_t)cols, packed = cpu->packed_bytes(type, rows, cols);
  void *source = bytes(n * 4);
  weight w = {.data = {.packed = bytes(packed), .bytes = packed, .type = type, .rows = rows, .cols = cols}, .value = bytes(n * 8)};
  double *in_file = bytes(n * 8);
  if (type > RKV_WEIGHT_BF16) random_blocks(source, in_file, type, n, size);
  else
    for (size_t i = 0; i < n; i++) {
      const float value = normal() * size;
      if (type == RKV_WEIGHT_F32) ((float *)source)[i] = value, in_file[i] = (double)value;
      else ((uint16_t *)source)[i] = bits_of(value, type), in_file[i] = (double)value_of(bits_of(value, type), type);
    }
  const int32_t items = rows == 1 ? cols : rows, per_item = rows == 1 ? 1 : cols, dim = rotated ? items / rotated : 1;
  for (int32_t r = 0; r < items; r++) {
    const int32_t in_head = r % dim, to = rotated ? r - in_head + in_head / 2 + in_head % 2 * (dim / 2) : r; /* pair element 2i + p goes to p * half + i */
    memcpy(w.value + (size_t)to * (size_t)per_item, in_file + (size_t)r * (size_t)per_item, (size_t)per_item * 8);
  }
  rkv_pack_args args = {.weight = &w.data, .source = source, .rotated = rotated};
  run_op(cpu, RKV_OP_pack, &args, 1);
  return w;
}

/* ---- KV rows -------------------------------------------------------------------------------------------------------------------------- */

rkv_rows_data make_rows(int32_t slots, int32_t kv_heads, int32_t capacity, int32_t dim, int32_t key_dtype, int32_t value_dtype) {
  const size_t rows = (size_t)slots * (size_t)kv_heads * (size_t)capacity;
  rkv_rows_data data = {.slots = slots, .kv_heads = kv_heads, .capacity = capacity, .head_dim = dim};
  data.keys = VIEW(bytes(rows * rkv_row_bytes(key_dtype, dim)), key_dtype, slots, kv_heads, capacity, dim);
  data.values = VIEW(bytes(rows * rkv_row_bytes(value_dtype, dim)), value_dtype, slots, kv_heads, capacity, dim);
  data.position = bytes(rows * 4);
  data.row_end = ints((size_t)slots), data.tail_begin = ints((size_t)slots);
  data.attended = (int64_t *)ints((size_t)slots * 8);
  int32_t *active = ints((size_t)slots);
  for (int32_t s = 0; s < slots; s++) active[s] = 1;
  data.active = active;
  return data;
}

char *row_of(const rkv_rows_data *rows, const rkv_view *tensor, int32_t slot, int32_t kv_head, int32_t row) {
  return (char *)tensor->data + (((size_t)slot * (size_t)rows->kv_heads + (size_t)kv_head) * (size_t)rows->capacity + (size_t)row) * rkv_row_bytes(tensor->dtype, rows->head_dim);
}

static void random_row(char *row, int32_t dtype, int32_t dim) {
  for (int32_t i = 0; i < dim; i++) {
    const float value = normal();
    if (dtype == RKV_F32) memcpy(row + i * 4, &value, 4);
    else if (dtype == RKV_Q8) row[i] = (char)(below(255) - 127);
    else {
      const uint16_t bits = bits_of(value, dtype);
      memcpy(row + i * 2, &bits, 2);
    }
  }
  const float scale = 0.01f + 0.0001f * (float)below(100);
  if (dtype == RKV_Q8) memcpy(row + dim, &scale, 4);
}

void fill_rows(rkv_rows_data *rows, int32_t slot, int32_t end) {
  for (int32_t h = 0; h < rows->kv_heads; h++)
    for (int32_t j = 0; j < end; j++) {
      random_row(row_of(rows, &rows->keys, slot, h, j), rows->keys.dtype, rows->head_dim);
      random_row(row_of(rows, &rows->values, slot, h, j), rows->values.dtype, rows->head_dim);
      rows->position[((size_t)slot * (size_t)rows->kv_heads + (size_t)h) * (size_t)rows->capacity + (size_t)j] = j;
    }
  rows->row_end[slot] = end;
}

/* ---- main ----------------------------------------------------------------------------------------------------------------------------- */

static int is_wanted(const char *name, int count, char **names) {
  char runnable[256] = " ";
  if (count == 0) {
    const int32_t n = rkv_isas((uint8_t *)runnable + 1, 200);
    memcpy(runnable + 1 + n, " ", 2);
    char word[64];
    snprintf(word, sizeof word, " %s ", name);
    return strstr(runnable, word) != NULL;
  }
  for (int i = 0; i < count; i++)
    if (strcmp(names[i], name) == 0) return 1;
  return 0;
}

/* The number after `name`, which is taken out of the arguments; `otherwise` when it is not there. */
static int32_t option(const char *name, int32_t otherwise, int *argc, char **argv) {
  for (int i = 1; i + 1 < *argc; i++) {
    if (strcmp(argv[i], name) != 0) continue;
    const int32_t value = (int32_t)strtol(argv[i + 1], NULL, 10);
    memmove(argv + i, argv + i + 2, (size_t)(*argc - i - 2) * sizeof *argv);
    *argc -= 2;
    return value;
  }
  return otherwise;
}

int main(int argc, char **argv) {
  static const struct { const char *name; void (*run)(const rkv_cpu *); } tests[] = {
    {"linear", test_linear}, {"decoder", test_decoder}, {"layer", test_layer}, {"attend_chunk", test_attend_chunk}, {"attention", test_attention},
    {"queue", test_queue},
  };
  const int32_t fuzzed = option("--fuzz", 0, &argc, argv), start = option("--seed", 1, &argc, argv);
  for (size_t c = 0; c < sizeof cpus / sizeof *cpus; c++) {
    if (!is_wanted(cpus[c]->name, argc - 1, argv + 1)) continue;
    if (fuzzed > 0) {
      seed((uint64_t)start);
      fuzz_ops(cpus[c], fuzzed);
      fuzz_files(cpus[c], fuzzed);
    }
    for (size_t t = 0; fuzzed == 0 && t < sizeof tests / sizeof *tests; t++) {
      const int before = failures;
      checks = 0;
      tests[t].run(cpus[c]);
      printf("%-11s %-13s %7d checks, %d failed\n", cpus[c]->name, tests[t].name, checks, failures - before);
    }
  }
  return failures != 0;
}
