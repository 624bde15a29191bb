/* core.h: what the files of ffi/core share. Objects live behind handles; an op, once checked, is an entry of its device's queue. */
#ifndef RKV_CORE_H
#define RKV_CORE_H
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include "ops.h"

/* ---- why.c: sentences of refused calls ---- */

/* Keeps a sentence for this thread and returns `code`. */
int32_t rkv_refuse(int32_t code, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* ---- handles.c ---- */

typedef enum { KIND_NONE, KIND_DEVICE, KIND_ARENA, KIND_TENSOR, KIND_FILE, KIND_WEIGHT, KIND_LAYER, KIND_MODEL, KIND_ROWS, KIND_TAPE } rkv_kind;

/* A handle of a new object, or RKV_LIMIT. */
int32_t rkv_handle_new(rkv_kind kind, void *object);
/* The object behind a handle, or NULL with a sentence: `what` is how the sentence calls it. */
void *rkv_handle_get(int32_t handle, rkv_kind kind, const char *action, const char *what);
rkv_kind rkv_handle_kind(int32_t handle);
void rkv_handle_free(int32_t handle);

/* ---- os.c: the operating system ---- */

void *rkv_os_reserve(size_t bytes);               /* address space, zeros when touched; NULL: none left */
void rkv_os_unreserve(void *memory, size_t bytes);
void rkv_os_discard(void *begin, size_t bytes);   /* gives whole pages back; they read as zeros, mapped files as they were */
void rkv_os_use_whole(void *begin, size_t bytes); /* all of it will be used: large pages waste nothing */
size_t rkv_os_page(void);
void rkv_os_memory(int64_t *total, int64_t *available); /* of the machine, or of what the control group allows */
int64_t rkv_os_touched(void);                     /* bytes of its own memory that the process has touched */
int32_t rkv_os_cores(void);
void rkv_os_stay(int32_t worker); /* binds this thread to one of the process's cores, where the system can */
void rkv_os_pin(void);                            /* the library stays loaded until the process ends */
uint64_t rkv_os_nanoseconds(void);
const void *rkv_os_map(const char *path, size_t *bytes); /* NULL: errno says why */
void rkv_os_unmap(const void *memory, size_t bytes);
bool rkv_os_pipe(int fds[2]);
void rkv_os_write(int fd, const void *data, size_t bytes);
int32_t rkv_os_read(int fd, void *data, size_t bytes);

static inline void rkv_os_pause(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

/* ---- objects ---- */

typedef struct rkv_device rkv_device;
typedef struct rkv_arena_object rkv_arena_object;

/* What an arena owns, as a list: handles end with it. */
typedef struct rkv_object {
  struct rkv_object *next;
  rkv_arena_object *arena;
  void *extra; /* memory of the object's own, or NULL */
  int32_t handle;
} rkv_object;

typedef struct { rkv_object object; rkv_view view; size_t bytes; int32_t *committed; /* rows per slot, object.extra; NULL: all at once */ } rkv_tensor_object;
typedef struct { rkv_object object; rkv_weight_data data; } rkv_weight_object;
typedef struct { rkv_object object; rkv_layer_data data; } rkv_layer_object;
typedef struct { rkv_object object; rkv_model_data data; } rkv_model_object;
typedef struct { rkv_object object; rkv_rows_data data; } rkv_rows_object;

typedef struct {
  rkv_device *closer; /* the device whose queue may still read it; NULL: none */
  const uint8_t *bytes;
  size_t size;
  char name[256];
} rkv_file_object;

/* ---- queue.c: one queue per device ---- */

typedef enum { ENTRY_OP, ENTRY_WRITE, ENTRY_READ, ENTRY_FENCE, ENTRY_LOAD, ENTRY_REPLAY, ENTRY_RELEASE, ENTRY_DISCARD, ENTRY_FREE_ARENA, ENTRY_FREE_TAPE, ENTRY_FREE_FILE, ENTRY_STOP } rkv_entry_kind;

#define RKV_ARGS 448 /* bytes of the largest op; the assertions below hold it */
#define X(name) _Static_assert(sizeof(rkv_##name##_args) <= RKV_ARGS, "RKV_ARGS is too small for " #name);
RKV_OPS(X)
#undef X
/* Bytes of a mapped file on their way to a tensor. */
typedef struct { uint8_t *to; const uint8_t *from; size_t bytes; uint32_t *sums; } rkv_load;

typedef struct rkv_entry {
  rkv_arena_object *arena;
  rkv_entry_kind kind;
  int32_t op; /* ENTRY_OP: rkv_op_id; ENTRY_FENCE, ENTRY_READ: job */
  union {
    _Alignas(16) uint8_t args[RKV_ARGS];
    struct { void *to; size_t bytes; void *staging; uint8_t inlined[RKV_ARGS - 32]; } copy; /* staging NULL: the bytes are inlined */
    struct { void *begin; size_t bytes, stride; int32_t planes; } release;
    rkv_load load;
    struct rkv_tape *tape;
    void *object;
  } as;
} rkv_entry;

typedef struct rkv_tape {
  rkv_object object;
  rkv_entry *entries;
  int32_t count, room;
  int32_t arenas[16], arena_count; /* handles of all arenas that its ops use */
  void *recorded;                  /* what a remote device made of it at the first replay */
} rkv_tape;

struct rkv_arena_object {
  rkv_device *device;
  int32_t handle;
  uint8_t *memory;
  size_t reserved, used;
  _Atomic int64_t committed;
  rkv_object *objects;
  rkv_tape *recording;
  void *pages; /* a remote device's own notes on `memory` */
  atomic_int cancel, poisoned;
  atomic_int timed; /* 0, or RKV_CLOCK_OPS, RKV_CLOCK_REPLAYS */
  _Atomic int64_t *times; /* [ops + 1, 2]: runs and nanoseconds, replays last; NULL until it is timed once */
  bool cut; /* the queue's own: an op was left out or cut short since the last job */
  char fault[256]; /* written once, before poisoned is set */
};

/* Places in an arena's memory: `planes` runs of `bytes` bytes, `stride` apart. */
typedef struct rkv_span { uint8_t *begin; size_t bytes, stride; int32_t planes; } rkv_span;

/* What a queue asks of a device whose memory is not the process's and which works behind the queue's back. Unless said otherwise these are
 * called by the queue's thread, in the order of the entries, and return before the work is done. */
typedef struct rkv_remote {
  void *(*reserve)(void *state, rkv_arena_object *arena, size_t bytes); /* any thread; address space; NULL: none left */
  void (*unreserve)(void *state, rkv_arena_object *arena);              /* waits for the arena's work; forgets its tapes */
  /* Any thread: zeros where there was no memory. 0, or what rkv_refuse returned. Memory that was taken is added to arena->committed. */
  int32_t (*commit)(void *state, rkv_arena_object *arena, const rkv_span *span, const char *action);
  void (*disclaim)(void *state, rkv_arena_object *arena, const rkv_span *span); /* any thread: a release of these is about to be enqueued */
  void (*release)(void *state, rkv_arena_object *arena, const rkv_span *span);
  void (*memory)(void *state, int64_t *total, int64_t *available);      /* any thread */
  void (*write)(void *state, rkv_arena_object *arena, void *to, const void *from, size_t bytes); /* `from` is free again on return */
  /* Brings `bytes` bytes to the host (none for a fence), then calls rkv_job_finish with `code`, or with what went wrong. */
  void (*read)(void *state, rkv_arena_object *arena, int32_t job, void *to, const void *from, size_t bytes, int32_t code);
  int32_t (*replay)(void *state, rkv_arena_object *arena, struct rkv_tape *tape); /* as `run` */
  void (*forget)(void *state, struct rkv_tape *tape);                   /* frees tape->recorded */
  void (*settle)(void *state);                                          /* waits for all work */
} rkv_remote;

/* What a queue asks of the machine behind it. */
typedef struct rkv_backend {
  int32_t kind;
  /* Runs an op to its end. 0, or a negative code and its sentence in arena->fault. */
  int32_t (*run)(void *state, rkv_arena_object *arena, int32_t op, const void *args);
  /* The same for a kernel that is no op; NULL where memory is remote. */
  int32_t (*share)(void *state, rkv_arena_object *arena, const rkv_kernel *kernel, const void *args);
  size_t (*packed_bytes)(void *state, int32_t type, int32_t rows, int32_t cols);
  void (*describe)(void *state, char *text, size_t bytes);
  void (*close)(void *state);
  const rkv_remote *remote; /* NULL: memory is the process's, and an op has ended when `run` returns */
} rkv_backend;

#define RKV_RING 8192
#define RKV_KEPT 512 /* places of the ring that ops leave to fences, reads and closes: a full queue can be awaited */
struct rkv_device {
  const rkv_backend *backend;
  void *state;
  int32_t handle;
  int pipe[2];
  rkv_entry *ring;
  _Atomic uint64_t head, tail; /* entries taken, entries given */
  pthread_mutex_t mutex;
  pthread_cond_t given;
  atomic_int asleep;
  atomic_int users; /* its handle, its arenas, the files it reads: the device ends with the last of them */
};

int32_t rkv_device_start(const rkv_backend *backend, void *state); /* returns a device */
void rkv_job_finish(rkv_device *device, int32_t job, int32_t code); /* any thread: its bytes have arrived */
/* An entry to be filled, or NULL with a sentence when no more than `kept` places are free (RKV_KEPT for ops); then rkv_queue_give. */
rkv_entry *rkv_queue_entry(rkv_device *device, int32_t kept, const char *action);
void rkv_queue_give(rkv_device *device);
/* Elements [offset, offset + count) of a tensor as bytes; whole rows for RKV_Q8. 0, or a refusal. */
int32_t rkv_span_of(rkv_tensor_object *tensor, int32_t offset, int64_t count, const char *action, uint8_t **begin, size_t *bytes);
int32_t rkv_refuse_recording(const rkv_arena_object *arena, const char *action); /* 0, or RKV_RECORDING */

/* ---- memory.c ---- */

/* Room of an arena for `bytes`, 64-byte aligned (large: page-aligned); NULL with a sentence. Memory is checked and counted when `commit`. */
void *rkv_arena_take(rkv_arena_object *arena, size_t bytes, bool commit, const char *action);
/* Gives an object, and the memory `extra` of its own, to an arena; returns its handle, or frees both. */
int32_t rkv_arena_own(rkv_arena_object *arena, rkv_object *object, void *extra, rkv_kind kind);
void rkv_arena_disown(rkv_object *object); /* whoever calls this frees it */
void rkv_arena_free(rkv_arena_object *arena);
void rkv_arena_close(rkv_arena_object *arena);
void rkv_file_close(rkv_file_object *file);

/* ---- crc.c, load.c: saved tensors ---- */

#define RKV_BLOCK ((size_t)16 << 10) /* bytes of a block, which has a checksum of its own */
void rkv_crc(uint32_t *sums, const uint8_t *data, size_t bytes); /* of each block, the last one of what is left */
extern const rkv_kernel rkv_load_kernel;                         /* args: rkv_load */
void rkv_load_remote(rkv_device *device, rkv_arena_object *arena, const rkv_load *load);

/* ---- pool.c, dispatch.c: the CPU ---- */

typedef struct rkv_pool rkv_pool;
rkv_pool *rkv_pool_new(const rkv_cpu *cpu, int32_t threads, bool pinned);
void rkv_pool_close(rkv_pool *pool);
int32_t rkv_pool_run(rkv_pool *pool, rkv_arena_object *arena, const char *name, const rkv_kernel *kernel, const void *args);
const rkv_cpu *rkv_pool_cpu(const rkv_pool *pool);
int32_t rkv_pool_threads(const rkv_pool *pool);

/* ---- cuda/: opens the CUDA device; returns a device, or a refusal that says what is missing ---- */

int32_t rkv_cuda_open(void);

extern const char *const rkv_op_names[RKV_OP_COUNT]; /* as TypeScript calls them */

#endif
