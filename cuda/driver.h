/* driver.h: the part of the CUDA driver's interface that this backend uses, opened at run time, so that one library serves machines with
 * and without a GPU. Prototypes by hand, after NVIDIA's CUDA Driver API reference; the names with _v2 are those that its headers map to. */
#ifndef RKV_CUDA_DRIVER_H
#define RKV_CUDA_DRIVER_H
#include <stddef.h>
#include <stdint.h>

typedef int CUresult; /* 0: success */
typedef int CUdevice;
typedef unsigned long long CUdeviceptr;
typedef struct CUctx_st *CUcontext;
typedef struct CUmod_st *CUmodule;
typedef struct CUfunc_st *CUfunction;
typedef struct CUstream_st *CUstream;
typedef struct CUevent_st *CUevent;
typedef struct CUgraph_st *CUgraph;
typedef struct CUgraphExec_st *CUgraphExec;
typedef unsigned long long CUmemHandle;

typedef struct { int type, id; } CUmemLocation;
typedef struct {
  int type;                 /* 1: pinned, the only one there is */
  int handle_types;         /* 0: not shared between processes */
  CUmemLocation location;   /* type 1: a device */
  void *win32;
  struct { unsigned char compression, rdma; unsigned short usage; unsigned char reserved[4]; } flags;
} CUmemProp;
typedef struct { CUmemLocation location; int flags; } CUmemAccess; /* flags 3: read and write */

typedef struct { int id; char pad[4]; union { int flag; unsigned of[3]; char bytes[64]; } value; } CUattribute;
typedef struct { unsigned grid[3], block[3], shared; CUstream stream; CUattribute *attributes; unsigned count; } CUconfig;

#define RKV_CU_OUT_OF_MEMORY 2
#define RKV_CU_OVERLAP 6         /* of a launch: it may begin while the one before it ends */
#define RKV_CU_CLUSTER 4         /* of a launch: blocks of a cluster */
#define RKV_CU_NON_BLOCKING 1    /* of a stream: it does not wait for the legacy stream */
#define RKV_CU_NO_TIMING 2       /* of an event */
#define RKV_CU_MAPPED 3          /* of host memory: portable, and the device sees it */
#define RKV_CU_THREAD_LOCAL 1    /* of a capture: other threads go on as they were */
#define RKV_CU_SHARED_LIMIT 8    /* of a function: bytes of dynamic shared memory it may ask for */

#define RKV_CU_FUNCTIONS(X)                                                                                                       \
  X(cuInit, (unsigned)) X(cuDeviceGetCount, (int *)) X(cuDeviceGet, (CUdevice *, int)) X(cuDeviceGetName, (char *, int, CUdevice)) \
  X(cuDeviceGetAttribute, (int *, int, CUdevice)) X(cuGetErrorString, (CUresult, const char **))                                  \
  X(cuDevicePrimaryCtxRetain, (CUcontext *, CUdevice)) X(cuDevicePrimaryCtxRelease_v2, (CUdevice)) X(cuCtxSetCurrent, (CUcontext)) \
  X(cuModuleLoadData, (CUmodule *, const void *)) X(cuModuleUnload, (CUmodule)) X(cuModuleGetFunction, (CUfunction *, CUmodule, const char *)) \
  X(cuFuncSetAttribute, (CUfunction, int, int)) X(cuFuncGetAttribute, (int *, int, CUfunction)) X(cuMemGetInfo_v2, (size_t *, size_t *))                                          \
  X(cuStreamCreate, (CUstream *, unsigned)) X(cuStreamCreateWithPriority, (CUstream *, unsigned, int)) X(cuCtxGetStreamPriorityRange, (int *, int *)) \
  X(cuStreamWaitEvent, (CUstream, CUevent, unsigned)) X(cuStreamDestroy_v2, (CUstream)) X(cuStreamSynchronize, (CUstream))                  \
  X(cuEventCreate, (CUevent *, unsigned)) X(cuEventDestroy_v2, (CUevent)) X(cuEventRecord, (CUevent, CUstream)) X(cuEventSynchronize, (CUevent)) \
  X(cuMemAddressReserve, (CUdeviceptr *, size_t, size_t, CUdeviceptr, unsigned long long)) X(cuMemAddressFree, (CUdeviceptr, size_t)) \
  X(cuMemCreate, (CUmemHandle *, size_t, const CUmemProp *, unsigned long long)) X(cuMemRelease, (CUmemHandle))                   \
  X(cuMemMap, (CUdeviceptr, size_t, size_t, CUmemHandle, unsigned long long)) X(cuMemUnmap, (CUdeviceptr, size_t))                \
  X(cuMemSetAccess, (CUdeviceptr, size_t, const CUmemAccess *, size_t)) X(cuMemGetAllocationGranularity, (size_t *, const CUmemProp *, int)) \
  X(cuMemHostAlloc, (void **, size_t, unsigned)) X(cuMemFreeHost, (void *)) X(cuMemAlloc_v2, (CUdeviceptr *, size_t)) X(cuMemFree_v2, (CUdeviceptr)) \
  X(cuMemcpyHtoDAsync_v2, (CUdeviceptr, const void *, size_t, CUstream)) X(cuMemcpyDtoHAsync_v2, (void *, CUdeviceptr, size_t, CUstream)) \
  X(cuMemcpyDtoDAsync_v2, (CUdeviceptr, CUdeviceptr, size_t, CUstream)) X(cuMemsetD8Async, (CUdeviceptr, unsigned char, size_t, CUstream)) \
  X(cuLaunchKernelEx, (const CUconfig *, CUfunction, void **, void **))                                                           \
  X(cuStreamBeginCapture_v2, (CUstream, int)) X(cuStreamEndCapture, (CUstream, CUgraph *)) X(cuGraphDestroy, (CUgraph))           \
  X(cuGraphInstantiateWithFlags, (CUgraphExec *, CUgraph, unsigned long long)) X(cuGraphExecDestroy, (CUgraphExec)) X(cuGraphLaunch, (CUgraphExec, CUstream))

#define X(name, arguments) extern CUresult(*name) arguments;
RKV_CU_FUNCTIONS(X)
#undef X

/* Opens the driver once. 0, or RKV_DEVICE with a sentence (rkv_refuse). */
int32_t rkv_driver_open(void);
/* The driver's words for a result. */
const char *rkv_driver_words(CUresult result);
#endif
