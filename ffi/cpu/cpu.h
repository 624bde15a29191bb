/* cpu.h: what the files of ffi/cpu share. Every one of them is compiled once per instruction set with -DRKV_ISA=<name>; the text is the
 * same, the vector type of simd.h is not. Functions that are not static are named through RKV_FN, so that the builds can live together.
 *
 * A kernel <op> is two functions (core/ops.h says when they are called):
 *   int32_t RKV_FN(rkv_<op>_pieces)(const void *args, int32_t stage)
 *   void    RKV_FN(rkv_<op>_run)(const void *args, int32_t stage, int32_t piece, void *scratch)
 * `args` points to the op's rkv_<op>_args; scratch is RKV_SCRATCH bytes, 64-byte aligned, private to the piece. */
#ifndef RKV_CPU_H
#define RKV_CPU_H
#include "../core/ops.h"

#define RKV_PASTE_(a, b) a##_##b
#define RKV_PASTE(a, b) RKV_PASTE_(a, b)
#define RKV_FN(name) RKV_PASTE(name, RKV_ISA)
#define RKV_STRING_(a) #a
#define RKV_STRING(a) RKV_STRING_(a)

#define X(name)                                                \
  int32_t RKV_FN(rkv_##name##_pieces)(const void *, int32_t);  \
  void RKV_FN(rkv_##name##_run)(const void *, int32_t, int32_t, void *);
RKV_OPS(X)
#undef X

/* The one symbol that core sees of a build (ffi/cpu/table.c). */
extern const rkv_cpu RKV_FN(rkv_cpu);

static inline int32_t rkv_min_int(int32_t a, int32_t b) { return a < b ? a : b; }
static inline int32_t rkv_max_int(int32_t a, int32_t b) { return a > b ? a : b; }
/* Pieces of `size` that cover `count`. */
static inline int32_t rkv_ceil_div(int32_t count, int32_t size) { return (int32_t)(((int64_t)count + size - 1) / size); }

#endif
