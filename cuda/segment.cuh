/* segment.cuh: where the tensors of a segment that is clustered lie. */
#ifndef RKV_SEGMENT_CUH
#define RKV_SEGMENT_CUH
#include "common.cuh"

DEVICE int64_t plane_of(const rkv_view &view, const rkv_run &run, int head) { return (int64_t)run.slot * view.shape[1] + head; }
DEVICE int *ints(const rkv_view &view, const rkv_run &run, int head) { return (int *)view.data + plane_of(view, run, head) * view.shape[2]; }
DEVICE float *centroids_of(const rkv_view &view, const rkv_run &run, int head) {
  return (float *)view.data + (plane_of(view, run, head) * view.shape[2] + run.cluster) * view.shape[3];
}
DEVICE const char *keys_of(const rkv_view &view, const rkv_run &run, int head) {
  return (const char *)view.data + plane_of(view, run, head) * view.shape[2] * row_bytes(view.dtype, view.shape[3]);
}
DEVICE int *flag(const rkv_view &moved, const rkv_run &run, int head) { return (int *)moved.data + (int64_t)run.slot * moved.shape[1] + head; }
DEVICE int is_at_rest(const rkv_view &moved, const rkv_run &run, int head) { return moved.data && !*flag(moved, run, head); }

#endif
