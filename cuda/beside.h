/* beside.h: a prompt's segments are clustered on a stream of their own, beside the next chunk. Whatever is enqueued after them waits for them,
 * unless it is one of the few things known to touch other memory: so results are those of one stream, to the bit. */
#ifndef RKV_CUDA_BESIDE_H
#define RKV_CUDA_BESIDE_H
#include "cuda.h"

/* Streams and events. 0, or what the driver says. */
CUresult rkv_beside_start(rkv_cuda *c);
void rkv_beside_stop(rkv_cuda *c);

/* Before an op is launched: picks c->target, and lets it wait for what came before it. */
void rkv_beside_begin(rkv_cuda *c, int32_t op, const void *args);
/* After it was launched. */
void rkv_beside_end(rkv_cuda *c);
/* Before bytes are written by the main stream. */
void rkv_beside_write(rkv_cuda *c, const void *to, size_t bytes);
/* Before anything else on the main stream: it waits for all that runs beside it. */
void rkv_beside_join(rkv_cuda *c);
/* Records an event that comes when all that was enqueued is done; the main stream does not wait. */
CUresult rkv_beside_record(rkv_cuda *c, CUevent event);
#endif
