/* dispatch.c: opens devices; picks the CPU's op table by what this machine can run. */
#include <stdio.h>
#include <string.h>
#include "core.h"
#if defined(__x86_64__)
#include <cpuid.h>
#endif

const char *const rkv_op_names[RKV_OP_COUNT] = {
#define X(name) [RKV_OP_##name] = #name,
  RKV_OPS(X)
#undef X
};

#if defined(__x86_64__)
extern const rkv_cpu rkv_cpu_baseline, rkv_cpu_avx2, rkv_cpu_avx512, rkv_cpu_avx512bf16;
static const rkv_cpu *const tables[] = {&rkv_cpu_baseline, &rkv_cpu_avx2, &rkv_cpu_avx512, &rkv_cpu_avx512bf16};

/* Place in `tables` of the best that processor and operating system support. */
static int32_t best(void) {
  unsigned a, b, c, d, lo, hi, b7, c7, d7;
  const unsigned avx = 1u << 27 | 1u << 28 | 1u << 12 | 1u << 29; /* OSXSAVE, AVX, FMA, F16C */
  if (!__get_cpuid(1, &a, &b, &c, &d) || (c & avx) != avx) return 0;
  __asm__("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
  if ((lo & 6) != 6 || !__get_cpuid_count(7, 0, &a, &b7, &c7, &d7) || !(b7 & 1u << 5)) return 0; /* AVX2 */
  const unsigned f512 = 1u << 16 | 1u << 17 | 1u << 28 | 1u << 30 | 1u << 31; /* F, DQ, CD, BW, VL */
  if ((lo & 0xe6) != 0xe6 || (b7 & f512) != f512) return 1;
  if (!(c7 & 1u << 11) || !__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a & 1u << 5)) return 2; /* VNNI, BF16 */
  return 3;
}
#else
extern const rkv_cpu rkv_cpu_neon;
static const rkv_cpu *const tables[] = {&rkv_cpu_neon};
static int32_t best(void) { return 0; }
#endif

int32_t rkv_isas(uint8_t *text, uint32_t bytes) {
  char names[128] = "";
  for (int32_t i = best(); i >= 0; i--) {
    strcat(names, tables[i]->name);
    if (i > 0) strcat(names, " ");
  }
  size_t length = strlen(names);
  if (length > bytes) length = bytes;
  memcpy(text, names, length);
  return (int32_t)length;
}

/* ---- the CPU as a backend ---- */

static int32_t cpu_run(void *pool, rkv_arena_object *arena, int32_t op, const void *args) {
  return rkv_pool_run(pool, arena, rkv_op_names[op], &rkv_pool_cpu(pool)->kernels[op], args);
}
static int32_t cpu_share(void *pool, rkv_arena_object *arena, const rkv_kernel *kernel, const void *args) {
  return rkv_pool_run(pool, arena, "core", kernel, args);
}
static size_t cpu_packed_bytes(void *pool, int32_t type, int32_t rows, int32_t cols) { return rkv_pool_cpu(pool)->packed_bytes(type, rows, cols); }
static void cpu_describe(void *pool, char *text, size_t bytes) {
  int32_t threads = rkv_pool_threads(pool);
  snprintf(text, bytes, "cpu %s, %d thread%s", rkv_pool_cpu(pool)->name, threads, threads == 1 ? "" : "s");
}
static void cpu_close(void *pool) { rkv_pool_close(pool); }
static const rkv_backend cpu_backend = {.kind = RKV_CPU, .run = cpu_run, .share = cpu_share, .packed_bytes = cpu_packed_bytes, .describe = cpu_describe, .close = cpu_close};

int32_t rkv_open(int32_t kind, int32_t threads, int32_t isa) {
  if (kind == RKV_CUDA) return rkv_cuda_open();
  if (kind != RKV_CPU) return rkv_refuse(RKV_RANGE, "Cannot open a device: kind is %d, want %d or %d", kind, RKV_CPU, RKV_CUDA);
  const bool pinned = threads >= RKV_PINNED;
  if (pinned) threads -= RKV_PINNED;
  int32_t most = best();
  if (isa < 0 || isa > most) return rkv_refuse(RKV_RANGE, "Cannot open cpu: isa is %d, want 0 to %d", isa, most);
  if (threads < 0 || threads > 256) return rkv_refuse(RKV_RANGE, "Cannot open cpu: threads is %d, want 0 to 256", threads);
  rkv_os_pin();
  rkv_pool *pool = rkv_pool_new(tables[most - isa], threads == 0 ? rkv_os_cores() : threads, pinned);
  if (pool == NULL) return rkv_refuse(RKV_MEMORY, "Cannot open cpu: no memory is left for its workers");
  int32_t device = rkv_device_start(&cpu_backend, pool);
  if (device < 0) rkv_pool_close(pool);
  return device;
}

int32_t rkv_describe(int32_t device, uint8_t *text, uint32_t bytes) {
  rkv_device *d = rkv_handle_get(device, KIND_DEVICE, "describe a device", "device");
  if (d == NULL) return RKV_STALE;
  char line[128] = "";
  d->backend->describe(d->state, line, sizeof line);
  size_t length = strlen(line);
  if (length > bytes) length = bytes;
  memcpy(text, line, length);
  return (int32_t)length;
}

int32_t rkv_device_memory(int32_t device, int64_t *sizes) {
  rkv_device *d = rkv_handle_get(device, KIND_DEVICE, "measure memory", "device");
  if (d == NULL) return RKV_STALE;
  if (d->backend->remote != NULL) d->backend->remote->memory(d->state, &sizes[0], &sizes[1]);
  else rkv_os_memory(&sizes[0], &sizes[1]);
  return 0;
}
