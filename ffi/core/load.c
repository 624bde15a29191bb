/* load.c: the way back of saved tensors. Bytes go from a mapped file to a tensor and are summed where they have come to lie, by all workers
 * at once; whoever asked holds the sums against what the file says of itself. */
#include <string.h>
#include "core.h"

#define PIECE (2 << 20) /* a large page, so that two workers seldom touch the same one first; whole blocks */

static int32_t load_pieces(const void *args, int32_t stage) {
  const rkv_load *a = args;
  return stage > 0 ? RKV_DONE : (int32_t)((a->bytes + PIECE - 1) / PIECE);
}

/* Block group by block group, so that what is summed is still in the cache. */
static void load_run(const void *args, int32_t stage, int32_t piece, void *scratch) {
  const rkv_load *a = args;
  size_t begin = (size_t)piece * PIECE, end = a->bytes - begin < PIECE ? a->bytes : begin + PIECE;
  (void)stage, (void)scratch;
  for (size_t at = begin, most = 4 * RKV_BLOCK; at < end; at += most) {
    size_t bytes = end - at < most ? end - at : most;
    memcpy(a->to + at, a->from + at, bytes);
    rkv_crc(a->sums + at / RKV_BLOCK, a->to + at, bytes);
  }
}

const rkv_kernel rkv_load_kernel = {.pieces = load_pieces, .run = load_run};

/* To a device with a memory of its own: summed here, on the way. */
void rkv_load_remote(rkv_device *d, rkv_arena_object *arena, const rkv_load *a) {
  uint32_t sums[PIECE / RKV_BLOCK];
  for (size_t begin = 0; begin < a->bytes && !atomic_load(&arena->poisoned); begin += PIECE) {
    size_t bytes = a->bytes - begin < PIECE ? a->bytes - begin : PIECE;
    rkv_crc(sums, a->from + begin, bytes);
    d->backend->remote->write(d->state, arena, a->to + begin, a->from + begin, bytes);
    d->backend->remote->write(d->state, arena, a->sums + begin / RKV_BLOCK, sums, (bytes + RKV_BLOCK - 1) / RKV_BLOCK * sizeof *sums);
  }
}

int32_t rkv_load_rows(int32_t sums_handle, int32_t first, int32_t handle, int32_t offset, int32_t count, int32_t file_handle, int64_t at) {
  static const char *action = "load";
  rkv_tensor_object *tensor = rkv_handle_get(handle, KIND_TENSOR, action, "tensor");
  rkv_tensor_object *sums = tensor == NULL ? NULL : rkv_handle_get(sums_handle, KIND_TENSOR, action, "sums");
  rkv_file_object *file = sums == NULL ? NULL : rkv_handle_get(file_handle, KIND_FILE, action, "file");
  if (file == NULL) return RKV_STALE;
  rkv_arena_object *arena = tensor->object.arena;
  rkv_device *d = arena->device;
  if (rkv_refuse_recording(arena, action) != 0) return RKV_RECORDING;
  if (sums->object.arena->device != d) return rkv_refuse(RKV_DEVICE, "Cannot %s: sums is of another device than the tensor", action);
  if (file->closer != NULL && file->closer != d) return rkv_refuse(RKV_DEVICE, "Cannot %s: \"%s\" is read by another device", action, file->name);
  if (sums->view.dtype != RKV_U32) return rkv_refuse(RKV_DTYPE, "Cannot %s: sums has dtype %d, want %d (u32)", action, sums->view.dtype, RKV_U32);
  rkv_load load;
  uint8_t *sums_begin;
  size_t sums_bytes;
  if (rkv_span_of(tensor, offset, count, action, &load.to, &load.bytes) != 0) return RKV_RANGE;
  int64_t blocks = (int64_t)((load.bytes + RKV_BLOCK - 1) / RKV_BLOCK);
  if (rkv_span_of(sums, first, blocks, "load: of sums", &sums_begin, &sums_bytes) != 0) return RKV_RANGE;
  if (at < 0 || (uint64_t)at > file->size || load.bytes > file->size - (uint64_t)at) {
    return rkv_refuse(RKV_FILE, "Cannot %s: %llu bytes from byte %lld on end past \"%s\", which has %llu", action, (unsigned long long)load.bytes, (long long)at, file->name,
                      (unsigned long long)file->size);
  }
  if (load.bytes == 0) return 0;
  rkv_entry *entry = rkv_queue_entry(d, RKV_KEPT, action);
  if (entry == NULL) return RKV_LIMIT;
  if (file->closer == NULL) {
    file->closer = d;
    atomic_fetch_add(&d->users, 1);
  }
  if (d->backend->remote == NULL && load.bytes >= PIECE) rkv_os_use_whole(load.to, load.bytes);
  load.from = file->bytes + at;
  load.sums = (uint32_t *)(void *)sums_begin;
  *entry = (rkv_entry){.kind = ENTRY_LOAD, .arena = arena, .as.load = load};
  rkv_queue_give(d);
  return 0;
}
