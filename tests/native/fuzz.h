/* fuzz.h: the entry points of the library with arguments that nobody should give: native --fuzz COUNT [--seed N] [isa ...]. Each call is
 * taken or refused with a sentence; what breaks memory or is undefined shows in a build with -Dsanitize=address or undefined. */
#ifndef FUZZ_H
#define FUZZ_H
#include "native.h"

void fuzz_ops(const rkv_cpu *cpu, int32_t count);   /* ops, and what makes the objects that they take */
void fuzz_files(const rkv_cpu *cpu, int32_t count); /* rkv_file, rkv_weight, rkv_load_rows: what stands between a file's header and memory */

/* A number from the edges: 0, -1, the largest, powers of two; now and then any at all. */
int32_t edge(void);
/* A file of `size` random bytes, the same path at each call. */
const char *fuzz_file(size_t size);
#endif
