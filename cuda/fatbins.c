/* fatbins.c: the compiled kernels, as bytes of this library. Built without nvcc, it has none. */
#include "kernels.h"
#include <stddef.h>

#define X(name) extern const unsigned char rkv_fatbin_##name[];
RKV_MODULE_NAMES(X)
#undef X

#if RKV_HAS_KERNELS
#define FATBIN _Alignas(64) const unsigned char
FATBIN rkv_fatbin_linear[] = {
#embed "linear.fatbin"
};
FATBIN rkv_fatbin_step[] = {
#embed "step.fatbin"
};
FATBIN rkv_fatbin_tensor[] = {
#embed "tensor.fatbin"
};
FATBIN rkv_fatbin_decoder[] = {
#embed "decoder.fatbin"
};
FATBIN rkv_fatbin_attention[] = {
#embed "attention.fatbin"
};
FATBIN rkv_fatbin_decode[] = {
#embed "decode.fatbin"
};
FATBIN rkv_fatbin_chunk[] = {
#embed "chunk.fatbin"
};
FATBIN rkv_fatbin_flash[] = {
#embed "flash.fatbin"
};
FATBIN rkv_fatbin_flash_sm90a[] = {
#embed "flash_sm90a.fatbin"
};
FATBIN rkv_fatbin_assign[] = {
#embed "assign.fatbin"
};
FATBIN rkv_fatbin_cluster[] = {
#embed "cluster.fatbin"
};
FATBIN rkv_fatbin_scores[] = {
#embed "scores.fatbin"
};
FATBIN rkv_fatbin_recall[] = {
#embed "recall.fatbin"
};
FATBIN rkv_fatbin_select[] = {
#embed "select.fatbin"
};
FATBIN rkv_fatbin_keep[] = {
#embed "keep.fatbin"
};
FATBIN rkv_fatbin_latent[] = {
#embed "latent.fatbin"
};
FATBIN rkv_fatbin_sample[] = {
#embed "sample.fatbin"
};
const unsigned char *const rkv_fatbins[RKV_MODULES] = {
#define X(name) rkv_fatbin_##name,
  RKV_MODULE_NAMES(X)
#undef X
};
#else
const unsigned char *const rkv_fatbins[RKV_MODULES] = {NULL};
#endif
