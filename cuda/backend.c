/* backend.c: the CUDA device: opening it, running ops, and a recorded step as one graph. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "beside.h"
#include "cublaslt.h"

static const rkv_cuda_op ops[RKV_OP_COUNT] = {
#define X(name) [RKV_OP_##name] = rkv_cuda_##name,
  RKV_OPS(X)
#undef X
};

static const struct { const char *name; int32_t module; } kernels[RKV_KERNEL_COUNT] = {
#define X(module, name) [RKV_KERNEL_##name] = {"kernel_" #name, RKV_MODULE_##module},
  RKV_KERNELS(X)
#undef X
};

static void launch(rkv_cuda *c, rkv_kernel_id kernel, CUconfig config, uint32_t ranks, void **parameters) {
  CUattribute attributes[] = {{.id = RKV_CU_OVERLAP, .value.flag = 1}, {.id = RKV_CU_CLUSTER, .value.of = {ranks, 1, 1}}};
  if (c->result != 0 || config.grid[0] == 0 || config.grid[1] == 0 || config.grid[2] == 0) return;
  config.stream = c->target;
  config.attributes = attributes;
  config.count = c->capability < 90 ? 0 : ranks > 1 ? 2 : 1;
  c->result = cuLaunchKernelEx(&config, c->functions[kernel], parameters, NULL);
}

void rkv_launch(rkv_cuda *c, rkv_kernel_id kernel, uint64_t x, uint32_t y, uint32_t z, uint32_t threads, uint32_t shared, void **parameters) {
  launch(c, kernel, (CUconfig){{(unsigned)x, y, z}, {threads, 1, 1}, shared, NULL, NULL, 0}, 1, parameters);
}

void rkv_launch_clusters(rkv_cuda *c, rkv_kernel_id kernel, uint32_t x, uint32_t y, uint32_t ranks, uint32_t threads, uint32_t shared, void **parameters) {
  launch(c, kernel, (CUconfig){{x * ranks, y, 1}, {threads, 1, 1}, shared, NULL, NULL, 0}, ranks, parameters);
}

static int32_t run(void *state, rkv_arena_object *arena, int32_t op, const void *args) {
  rkv_cuda *c = state;
  cuCtxSetCurrent(c->context);
  c->result = 0;
  rkv_beside_begin(c, op, args);
  ops[op](c, arena, args);
  rkv_beside_end(c);
  if (c->result == 0) return 0;
  rkv_cuda_poison(c, arena, "Cannot run %s: the device failed (%s)", rkv_op_names[op], rkv_driver_words(c->result));
  return RKV_DEVICE;
}

/* ---- a recorded step ---- */

static bool are_ops(const rkv_tape *tape, int32_t i, const int32_t *wanted, int32_t count) {
  if (i + count > tape->count) return false;
  for (int32_t j = 0; j < count; j++)
    if (tape->entries[i + j].op != wanted[j]) return false;
  return true;
}

/* Launches entry i, with those behind it that one launch can do as well; returns how many. Results are the same to the bit. */
static int32_t launch_entries(rkv_cuda *c, rkv_arena_object *arena, const rkv_tape *tape, int32_t i) {
  static const int32_t wanted[] = {RKV_OP_attn_in, RKV_OP_centroid_scores, RKV_OP_topk, RKV_OP_fill_budget, RKV_OP_attend};
  const rkv_entry *at = &tape->entries[i];
  if (are_ops(tape, i, wanted, 5) && rkv_cuda_recall(c, arena, at[0].as.args, at[1].as.args, at[2].as.args, at[3].as.args, at[4].as.args)) return 5;
  if (are_ops(tape, i, wanted + 1, 3) && rkv_cuda_choose(c, at[0].as.args, at[1].as.args, at[2].as.args)) return 3;
  ops[at->op](c, arena, at->as.args);
  return 1;
}

/* The graph of a tape: its launches, captured instead of run. */
static CUresult capture(rkv_cuda *c, rkv_arena_object *arena, rkv_tape *tape, CUgraphExec *graph) {
  CUgraph captured = NULL;
  CUresult result = cuStreamBeginCapture_v2(c->stream, RKV_CU_THREAD_LOCAL);
  if (result != 0) return result;
  c->result = 0;
  for (int32_t i = 0; i < tape->count && c->result == 0;) i += launch_entries(c, arena, tape, i);
  result = cuStreamEndCapture(c->stream, &captured);
  if (c->result != 0) result = c->result;
  if (result == 0) result = cuGraphInstantiateWithFlags(graph, captured, 0);
  if (captured != NULL) cuGraphDestroy(captured);
  return result;
}

static int32_t replay(void *state, rkv_arena_object *arena, rkv_tape *tape) {
  rkv_cuda *c = state;
  rkv_cuda_arena *a = arena->pages;
  CUresult result = 0;
  cuCtxSetCurrent(c->context);
  rkv_beside_join(c);
  if (tape->recorded == NULL) {
    rkv_recording *r = calloc(1, sizeof *r);
    result = r == NULL ? RKV_CU_OUT_OF_MEMORY : capture(c, arena, tape, &r->graph);
    if (result == 0) {
      r->next = a->recordings;
      a->recordings = tape->recorded = r;
    } else {
      free(r);
    }
  }
  if (result == 0) result = cuGraphLaunch(((rkv_recording *)tape->recorded)->graph, c->stream);
  if (result == 0) return 0;
  rkv_cuda_poison(c, arena, "Cannot replay a step: the device failed (%s)", rkv_driver_words(result));
  return RKV_DEVICE;
}

static void forget(void *state, rkv_tape *tape) {
  rkv_cuda *c = state;
  rkv_cuda_arena *a = tape->object.arena->pages;
  cuCtxSetCurrent(c->context);
  for (rkv_recording **at = &a->recordings; *at != NULL; at = &(*at)->next) {
    rkv_recording *r = *at;
    if (r != tape->recorded) continue;
    *at = r->next;
    cuGraphExecDestroy(r->graph);
    free(r);
    return;
  }
}

/* ---- the device ---- */

static size_t packed_bytes(void *state, int32_t type, int32_t rows, int32_t cols) {
  (void)state;
  if (rows == 1) return (size_t)cols * 4;
  return (size_t)rows * rkv_cuda_stride(type, cols);
}

static void describe(void *state, char *text, size_t bytes) {
  const rkv_cuda *c = state;
  const int32_t version = c->lt == NULL ? 0 : rkv_lt_version(c->lt);
  const int length = snprintf(text, bytes, "cuda %s, %d multiprocessors, compute capability %d.%d", c->name, c->processors, c->capability / 10, c->capability % 10);
  if (version > 0 && length > 0 && (size_t)length < bytes) snprintf(text + length, bytes - (size_t)length, ", cuBLASLt %d.%d", version / 10000, version / 100 % 100);
}

static void close_device(void *state) {
  rkv_cuda *c = state;
  cuCtxSetCurrent(c->context);
  cuStreamSynchronize(c->stream);
  cuStreamSynchronize(c->beside);
  rkv_transfer_stop(c);
  rkv_lt_close(c->lt);
  if (c->scratch != 0) cuMemFree_v2(c->scratch);
  for (int32_t i = 0; i < RKV_MODULES; i++)
    if (c->modules[i] != NULL) cuModuleUnload(c->modules[i]);
  rkv_beside_stop(c);
  cuStreamDestroy_v2(c->side);
  cuDevicePrimaryCtxRelease_v2(c->device);
  free(c);
}

static const rkv_remote remote = {
  .reserve = rkv_cuda_reserve, .unreserve = rkv_cuda_unreserve, .commit = rkv_cuda_commit, .disclaim = rkv_cuda_disclaim, .release = rkv_cuda_release,
  .memory = rkv_cuda_memory, .write = rkv_cuda_write, .read = rkv_cuda_read, .replay = replay, .forget = forget, .settle = rkv_cuda_settle,
};
static const rkv_backend backend = {.kind = RKV_CUDA, .run = run, .packed_bytes = packed_bytes, .describe = describe, .close = close_device, .remote = &remote};

#define ATTRIBUTE_PROCESSORS 16
#define ATTRIBUTE_MAJOR 75
#define ATTRIBUTE_MINOR 76
#define ATTRIBUTE_SHARED 97 /* bytes of shared memory that a block may opt into */

static bool is_left_out(const rkv_cuda *c, int32_t module) { return module == RKV_MODULE_flash_sm90a && c->capability != 90; }

/* Loads the kernels; each may have as much shared memory as the device allows. */
static CUresult load_kernels(rkv_cuda *c, const char **what) {
  CUresult result;
  for (int32_t i = 0; i < RKV_MODULES; i++) {
    *what = "kernels";
    if (is_left_out(c, i)) continue;
    if ((result = cuModuleLoadData(&c->modules[i], rkv_fatbins[i])) != 0) return result;
  }
  for (int32_t i = 0; i < RKV_KERNEL_COUNT; i++) {
    int fixed = 0;
    *what = kernels[i].name;
    if (is_left_out(c, kernels[i].module)) continue;
    if ((result = cuModuleGetFunction(&c->functions[i], c->modules[kernels[i].module], kernels[i].name)) != 0) return result;
    if ((result = cuFuncGetAttribute(&fixed, 1, c->functions[i])) != 0) return result;
    if ((result = cuFuncSetAttribute(c->functions[i], RKV_CU_SHARED_LIMIT, c->shared - fixed)) != 0) return result;
  }
  return 0;
}

static CUresult set_up(rkv_cuda *c, const char **what) {
  CUresult result;
  int major = 0, minor = 0;
  CUmemProp prop = {.type = 1};
  *what = "device";
  if ((result = cuDeviceGet(&c->device, 0)) != 0) return result;
  prop.location = (CUmemLocation){1, c->device};
  if ((result = cuDevicePrimaryCtxRetain(&c->context, c->device)) != 0) return result;
  if ((result = cuCtxSetCurrent(c->context)) != 0) return result;
  cuDeviceGetName(c->name, sizeof c->name, c->device);
  cuDeviceGetAttribute(&c->processors, ATTRIBUTE_PROCESSORS, c->device);
  cuDeviceGetAttribute(&c->shared, ATTRIBUTE_SHARED, c->device);
  cuDeviceGetAttribute(&major, ATTRIBUTE_MAJOR, c->device);
  cuDeviceGetAttribute(&minor, ATTRIBUTE_MINOR, c->device);
  c->capability = 10 * major + minor;
  *what = "memory";
  if ((result = cuMemGetAllocationGranularity(&c->granule, &prop, 0)) != 0) return result;
  *what = "streams";
  if ((result = rkv_beside_start(c)) != 0 || (result = cuStreamCreate(&c->side, RKV_CU_NON_BLOCKING)) != 0) return result;
  c->lt = rkv_lt_open();
  return load_kernels(c, what);
}

int32_t rkv_cuda_open(void) {
  if (rkv_fatbins[0] == NULL) return rkv_refuse(RKV_DEVICE, "Cannot open cuda: this library was built without CUDA kernels (zig build -Dcuda, with nvcc)");
  int32_t code = rkv_driver_open();
  if (code != 0) return code;
  int count = 0;
  CUresult result = cuDeviceGetCount(&count);
  if (result != 0 || count == 0) return rkv_refuse(RKV_DEVICE, "Cannot open cuda: the driver sees no NVIDIA GPU (%s)", result ? rkv_driver_words(result) : "none there");
  rkv_cuda *c = calloc(1, sizeof *c);
  if (c == NULL) return rkv_refuse(RKV_MEMORY, "Cannot open cuda: the process is out of memory");
  const char *what = "";
  rkv_os_pin();
  if ((result = set_up(c, &what)) != 0 || !rkv_transfer_start(c)) {
    free(c);
    return rkv_refuse(RKV_DEVICE, "Cannot open cuda: %s cannot be had (%s)", result ? what : "host memory", result ? rkv_driver_words(result) : "pinning failed");
  }
  int32_t device = rkv_device_start(&backend, c);
  if (device < 0) close_device(c);
  return device;
}
