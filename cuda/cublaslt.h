/* cublaslt.h: prefill's large products through NVIDIA's cuBLASLt, where its library is on the machine; it is opened at run time, as the
 * driver is. Where it is not, or has nothing for a shape, the kernels of tensor.cu multiply. */
#ifndef RKV_CUDA_CUBLASLT_H
#define RKV_CUDA_CUBLASLT_H
#include "cuda.h"

/* Opens it for the current context: the library that RECALLKV_CUBLASLT names (one that is not there: our own kernels), or the newest that the
 * system finds. NULL: it cannot be had. */
rkv_lt *rkv_lt_open(void);
void rkv_lt_close(rkv_lt *lt);
/* Its version: 130200 is 13.2.0. */
int32_t rkv_lt_version(const rkv_lt *lt);

/* Enqueues a product of halves of `dtype`. With RKV_SWIGLU y has room for twice its rows. False: nothing was launched that counts, and tensor.cu
 * has to do it. The same shape takes the same algorithm, none of which adds in an order that changes from run to run. */
bool rkv_lt_multiply(rkv_cuda *c, const rkv_tensor_product *p, int32_t dtype);
#endif
