/* cuda.h: what the host files of cuda/ share. The backend runs a checked op by launching kernels on one stream; nothing waits but reads. */
#ifndef RKV_CUDA_H
#define RKV_CUDA_H
#include "../ffi/core/core.h"
#include "driver.h"
#include "kernels.h"

#define RKV_DOWNLOADS 64          /* reads and fences under way at a time */
#define RKV_DOWNLOAD (64 << 10)   /* bytes of one that need not wait: tokens, flags, logits of a small model */
#define RKV_UPLOAD (8 << 20)      /* bytes of the ring through which writes go */
#define RKV_FAULTS 4096           /* arenas of a device at a time */
#define RKV_BUILDS 128            /* segments that are clustered beside the rest */
#define RKV_BUILD_RANGES 16

/* A job that the finisher tells of when the stream has come to it. */
typedef struct {
  rkv_arena_object *arena;
  int32_t job, code;
  void *to;      /* where the bytes are wanted; NULL: a fence, or bytes that are there already */
  size_t bytes;
  CUevent event;
  uint8_t *staging; /* RKV_DOWNLOAD bytes of host memory that the device writes to */
} rkv_download;

/* Memory that the clustering of a segment reads or writes. */
typedef struct { uintptr_t begin, end; } rkv_range;
typedef struct { CUevent ended; rkv_range touched[RKV_BUILD_RANGES]; int32_t count; } rkv_build;

typedef struct rkv_lt rkv_lt; /* cublaslt.h */

typedef struct rkv_cuda {
  CUdevice device;
  CUcontext context;
  CUstream stream, beside, side; /* beside: clustering; side: zeroing of memory that nobody uses yet */
  CUstream target;               /* stream or beside: where launches go */
  char name[96];
  int32_t processors, capability; /* 90: compute capability 9.0 */
  int32_t shared;                 /* bytes of shared memory that a block may have */
  size_t granule;                 /* bytes of a page */
  CUmodule modules[RKV_MODULES];
  CUfunction functions[RKV_KERNEL_COUNT];
  CUresult result;                /* the first failure of the op that is being run */
  CUdeviceptr scratch;            /* halves of weights that prefill unpacks */
  size_t scratch_bytes;
  rkv_lt *lt;                     /* NULL: prefill multiplies with our own kernels */
  rkv_build builds[RKV_BUILDS];   /* [joined, begun): what the main stream has not waited for */
  uint64_t begun, joined;
  CUevent main_point;
  bool main_went_on;              /* since the second stream last waited for it */
  uint8_t *upload;
  size_t uploaded;
  rkv_download downloads[RKV_DOWNLOADS];
  uint64_t asked, finished;       /* downloads begun by the queue, ended by the finisher */
  bool stopping;
  pthread_t finisher;
  pthread_mutex_t mutex;          /* downloads */
  pthread_cond_t changed;
  pthread_mutex_t memory_mutex;   /* pages of all arenas, fault words */
  int32_t *faults;                /* [RKV_FAULTS] host memory that kernels write to: what went wrong on the device */
  bool fault_used[RKV_FAULTS];
} rkv_cuda;

/* ---- memory.c ---- */

typedef struct { size_t run; /* pages mapped together */ uint8_t is_mapped, is_single, is_disclaimed; } rkv_page;
typedef struct rkv_recording { struct rkv_recording *next; CUgraphExec graph; } rkv_recording;
typedef struct { rkv_page *pages; size_t count; int32_t *fault; rkv_recording *recordings; } rkv_cuda_arena; /* arena->pages */

void *rkv_cuda_reserve(void *state, rkv_arena_object *arena, size_t bytes);
void rkv_cuda_unreserve(void *state, rkv_arena_object *arena);
int32_t rkv_cuda_commit(void *state, rkv_arena_object *arena, const rkv_span *span, const char *action);
void rkv_cuda_disclaim(void *state, rkv_arena_object *arena, const rkv_span *span);
void rkv_cuda_release(void *state, rkv_arena_object *arena, const rkv_span *span);
void rkv_cuda_memory(void *state, int64_t *total, int64_t *available);

/* ---- transfer.c ---- */

bool rkv_transfer_start(rkv_cuda *c);
void rkv_transfer_stop(rkv_cuda *c);
void rkv_transfer_drain(rkv_cuda *c); /* until no job waits for the finisher */
void rkv_cuda_settle(void *state);
void rkv_cuda_write(void *state, rkv_arena_object *arena, void *to, const void *from, size_t bytes);
void rkv_cuda_read(void *state, rkv_arena_object *arena, int32_t job, void *to, const void *from, size_t bytes, int32_t code);
/* Poisons an arena, once. */
void rkv_cuda_poison(rkv_cuda *c, rkv_arena_object *arena, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* ---- launch_*.c: ops as launches ---- */

/* Keeps the first failure in c->result. A grid without blocks is not launched. */
void rkv_launch(rkv_cuda *c, rkv_kernel_id kernel, uint64_t x, uint32_t y, uint32_t z, uint32_t threads, uint32_t shared, void **parameters);
/* The same with clusters of `ranks` blocks along x, x of them: Hopper and later, or 1. */
void rkv_launch_clusters(rkv_cuda *c, rkv_kernel_id kernel, uint32_t x, uint32_t y, uint32_t ranks, uint32_t threads, uint32_t shared, void **parameters);
#define LAUNCH(c, kernel, x, y, z, threads, shared, ...) rkv_launch(c, RKV_KERNEL_##kernel, (uint64_t)(x), (uint32_t)(y), (uint32_t)(z), threads, (uint32_t)(shared), (void *[]){__VA_ARGS__})

static inline int32_t rkv_blocks(int64_t count, int32_t size) { return (int32_t)((count + size - 1) / size); }
static inline int32_t *rkv_fault_of(rkv_arena_object *arena) { return ((rkv_cuda_arena *)arena->pages)->fault; }

typedef void (*rkv_cuda_op)(rkv_cuda *c, rkv_arena_object *arena, const void *args);
#define X(name) void rkv_cuda_##name(rkv_cuda *c, rkv_arena_object *arena, const void *args);
RKV_OPS(X)
#undef X

/* Blocks that share a row of scores, and the floats of shared memory that its logits take; 0: they do not fit there. */
typedef struct { int32_t ranks, room; } rkv_score_shape;
rkv_score_shape rkv_shape_of_scores(const rkv_cuda *c, const rkv_centroid_scores_args *a);

/* The ops centroid_scores, topk and fill_budget as one launch; and, behind its products, attn_in with them and attend. false: they do not fit into
 * one, nothing was done. */
bool rkv_cuda_choose(rkv_cuda *c, const void *scores, const void *topk, const void *fill);
bool rkv_cuda_recall(rkv_cuda *c, rkv_arena_object *arena, const void *in, const void *scores, const void *topk, const void *fill, const void *attend);

/* The products of attn_in: what heads are made of. */
rkv_heads rkv_attn_products(rkv_cuda *c, const rkv_attn_in_args *a);

/* Bytes of a row of a weight on the device: as in the file, rounded up to 16. */
size_t rkv_cuda_stride(int32_t type, int32_t cols);
#endif
