/* cublaslt.c: products as cuBLASLt sees them. It counts in columns, so y[count, rows] = x[count, cols] w[rows, cols]^T is, to it, the
 * rows x count matrix (cols x rows)^T (cols x count). Declarations by hand after cublasLt.h and library_types.h, the same in 12 and 13. */
#include "cublaslt.h"
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

typedef struct cublasLtContext *cublasLtHandle_t;
typedef struct layout *cublasLtMatrixLayout_t;
typedef struct operation *cublasLtMatmulDesc_t;
typedef struct preference *cublasLtMatmulPreference_t;
typedef struct { uint64_t data[8]; } cublasLtMatmulAlgo_t;
typedef struct { cublasLtMatmulAlgo_t algo; size_t workspace; int state; float waves; int reserved[4]; } cublasLtMatmulHeuristicResult_t;

#define CUDA_R_32F 0
#define CUDA_R_16F 2
#define CUDA_R_16BF 14
#define CUBLAS_COMPUTE_32F 68
#define CUBLAS_OP_T 1
#define CUBLASLT_MATMUL_DESC_TRANSA 3
#define CUBLASLT_MATMUL_DESC_EPILOGUE 7
#define CUBLASLT_MATMUL_DESC_BIAS_POINTER 8
#define CUBLASLT_EPILOGUE_BIAS 4
#define CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES 1
#define CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK 3
#define CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES 5 /* then B, C, D */
#define CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE 2     /* parts of a sum wait in the workspace, and are added in order */
#define CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE 4

#define LT_FUNCTIONS(X)                                                                                                            \
  X(size_t, cublasLtGetVersion, (void)) X(int, cublasLtCreate, (cublasLtHandle_t *)) X(int, cublasLtDestroy, (cublasLtHandle_t))      \
  X(int, cublasLtMatrixLayoutCreate, (cublasLtMatrixLayout_t *, int, uint64_t, uint64_t, int64_t))                                    \
  X(int, cublasLtMatrixLayoutDestroy, (cublasLtMatrixLayout_t)) X(int, cublasLtMatmulDescCreate, (cublasLtMatmulDesc_t *, int, int))   \
  X(int, cublasLtMatmulDescDestroy, (cublasLtMatmulDesc_t))                                                                          \
  X(int, cublasLtMatmulDescSetAttribute, (cublasLtMatmulDesc_t, int, const void *, size_t))                                           \
  X(int, cublasLtMatmulPreferenceCreate, (cublasLtMatmulPreference_t *)) X(int, cublasLtMatmulPreferenceDestroy, (cublasLtMatmulPreference_t)) \
  X(int, cublasLtMatmulPreferenceSetAttribute, (cublasLtMatmulPreference_t, int, const void *, size_t))                               \
  X(int, cublasLtMatmulAlgoGetHeuristic, (cublasLtHandle_t, cublasLtMatmulDesc_t, cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,      \
    cublasLtMatrixLayout_t, cublasLtMatrixLayout_t, cublasLtMatmulPreference_t, int, cublasLtMatmulHeuristicResult_t *, int *))         \
  X(int, cublasLtMatmul, (cublasLtHandle_t, cublasLtMatmulDesc_t, const void *, const void *, cublasLtMatrixLayout_t, const void *,    \
    cublasLtMatrixLayout_t, const void *, const void *, cublasLtMatrixLayout_t, void *, cublasLtMatrixLayout_t,                        \
    const cublasLtMatmulAlgo_t *, void *, size_t, CUstream))

#define X(type, name, arguments) static type(*name) arguments;
LT_FUNCTIONS(X)
#undef X

#define WORKSPACE (32 << 20) /* bytes that NVIDIA recommends for Hopper */
#define ALIGNMENT 16         /* bytes, of every operand */
#define PLANS 64             /* shapes remembered: seven of a layer, for chunks of nine lengths */

typedef struct { int64_t stride; int32_t rows, cols, count, dtype, mode, has_bias; } shape;
typedef struct {
  shape of;
  bool is_made, is_possible;
  cublasLtMatmulDesc_t operation;
  cublasLtMatrixLayout_t w, x, y;
  cublasLtMatmulAlgo_t algorithm;
} plan;

struct rkv_lt {
  cublasLtHandle_t handle;
  cublasLtMatmulPreference_t preference;
  CUdeviceptr workspace;
  plan plans[PLANS];
  uint32_t made;
};

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static void *library;

static void *find_library(void) {
  static const char *const names[] = {"libcublasLt.so.13", "libcublasLt.so.12", "/usr/local/cuda/lib64/libcublasLt.so"};
  const char *named = getenv("RECALLKV_CUBLASLT");
  if (named != NULL) return dlopen(named, RTLD_NOW | RTLD_LOCAL);
  void *found = NULL;
  for (size_t i = 0; i < sizeof names / sizeof *names && found == NULL; i++) found = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
  return found;
}

static bool find_all(void) {
  pthread_mutex_lock(&mutex);
  void *found = library != NULL ? library : find_library();
  bool is_whole = found != NULL;
#define X(type, name, arguments) is_whole = is_whole && (*(void **)&name = dlsym(found, #name)) != NULL;
  LT_FUNCTIONS(X)
#undef X
  if (is_whole) library = found;
  pthread_mutex_unlock(&mutex);
  return is_whole;
}

static bool prefer(rkv_lt *lt) {
  const uint64_t workspace = WORKSPACE;
  const uint32_t reductions = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE | CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE, alignment = ALIGNMENT;
  if (cublasLtMatmulPreferenceCreate(&lt->preference) != 0) return false;
  int status = cublasLtMatmulPreferenceSetAttribute(lt->preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof workspace);
  status |= cublasLtMatmulPreferenceSetAttribute(lt->preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reductions, sizeof reductions);
  for (int i = 0; i < 4; i++) status |= cublasLtMatmulPreferenceSetAttribute(lt->preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES + i, &alignment, sizeof alignment);
  return status == 0;
}

rkv_lt *rkv_lt_open(void) {
  if (!find_all()) return NULL;
  rkv_lt *lt = calloc(1, sizeof *lt);
  if (lt == NULL) return NULL;
  if (cublasLtCreate(&lt->handle) == 0 && prefer(lt) && cuMemAlloc_v2(&lt->workspace, WORKSPACE) == 0) return lt;
  rkv_lt_close(lt);
  return NULL;
}

static void unmake(plan *p) {
  if (p->w != NULL) cublasLtMatrixLayoutDestroy(p->w);
  if (p->x != NULL) cublasLtMatrixLayoutDestroy(p->x);
  if (p->y != NULL) cublasLtMatrixLayoutDestroy(p->y);
  if (p->operation != NULL) cublasLtMatmulDescDestroy(p->operation);
  *p = (plan){0};
}

void rkv_lt_close(rkv_lt *lt) {
  if (lt == NULL) return;
  for (int i = 0; i < PLANS; i++) unmake(&lt->plans[i]);
  if (lt->workspace != 0) cuMemFree_v2(lt->workspace);
  if (lt->preference != NULL) cublasLtMatmulPreferenceDestroy(lt->preference);
  if (lt->handle != NULL) cublasLtDestroy(lt->handle);
  free(lt);
}

int32_t rkv_lt_version(const rkv_lt *lt) {
  (void)lt;
  return (int32_t)cublasLtGetVersion();
}

/* Describes a shape to cuBLASLt and keeps the algorithm that it expects to be fastest. */
static bool make(const rkv_lt *lt, plan *p, const shape *s, const float *bias) {
  const int transposed = CUBLAS_OP_T, halves = s->dtype == RKV_BF16 ? CUDA_R_16BF : CUDA_R_16F;
  const uint32_t epilogue = CUBLASLT_EPILOGUE_BIAS;
  cublasLtMatmulHeuristicResult_t found = {0};
  int count = 0;
  *p = (plan){.of = *s, .is_made = true};
  if (cublasLtMatmulDescCreate(&p->operation, CUBLAS_COMPUTE_32F, CUDA_R_32F) != 0) return false;
  if (cublasLtMatmulDescSetAttribute(p->operation, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed) != 0) return false;
  if (bias != NULL && cublasLtMatmulDescSetAttribute(p->operation, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue) != 0) return false;
  if (bias != NULL && cublasLtMatmulDescSetAttribute(p->operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof bias) != 0) return false;
  if (cublasLtMatrixLayoutCreate(&p->w, halves, (uint64_t)s->cols, (uint64_t)s->rows, s->stride / 2) != 0) return false;
  if (cublasLtMatrixLayoutCreate(&p->x, halves, (uint64_t)s->cols, (uint64_t)s->count, s->cols) != 0) return false;
  if (cublasLtMatrixLayoutCreate(&p->y, s->mode == RKV_SWIGLU ? halves : CUDA_R_32F, (uint64_t)s->rows, (uint64_t)s->count, s->rows) != 0) return false;
  if (cublasLtMatmulAlgoGetHeuristic(lt->handle, p->operation, p->w, p->x, p->y, p->y, lt->preference, 1, &found, &count) != 0) return false;
  p->algorithm = found.algo;
  return count > 0 && found.state == 0 && found.workspace <= WORKSPACE;
}

static plan *plan_of(rkv_lt *lt, const shape *s, const float *bias) {
  for (int i = 0; i < PLANS; i++)
    if (lt->plans[i].is_made && memcmp(&lt->plans[i].of, s, sizeof *s) == 0) return &lt->plans[i];
  plan *p = &lt->plans[lt->made++ % PLANS];
  unmake(p);
  p->is_possible = make(lt, p, s, bias);
  return p;
}

static bool multiply(rkv_cuda *c, const rkv_tensor_product *p, int32_t dtype, const void *w, int64_t stride, void *y, float factor) {
  const shape s = {.stride = stride, .rows = p->rows, .cols = p->cols, .count = p->count, .dtype = dtype, .mode = p->mode, .has_bias = p->bias != NULL};
  const float added = p->mode == RKV_ADD ? 1 : 0;
  if (((uintptr_t)w | (uintptr_t)p->x | (uintptr_t)y | (uintptr_t)stride | (uintptr_t)p->y_stride) % ALIGNMENT != 0) return false;
  plan *made = plan_of(c->lt, &s, p->bias);
  if (!made->is_possible) return false;
  if (p->bias != NULL && cublasLtMatmulDescSetAttribute(made->operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &p->bias, sizeof p->bias) != 0) return false;
  made->is_possible = cublasLtMatmul(c->lt->handle, made->operation, &factor, w, made->w, p->x, made->x, &added, y, made->y, y, made->y, &made->algorithm,
                                     (void *)(uintptr_t)c->lt->workspace, WORKSPACE, c->stream) == 0;
  return made->is_possible;
}

bool rkv_lt_multiply(rkv_cuda *c, const rkv_tensor_product *p, int32_t dtype) {
  if (c->result != 0) return true;
  if (p->mode != RKV_SWIGLU) return multiply(c, p, dtype, p->w, p->stride, p->y, 1);
  void *gate = p->y, *up = (char *)p->y + (int64_t)p->count * p->y_stride;
  if (!multiply(c, p, dtype, p->w, p->stride, gate, RKV_SWIGLU_PART) || !multiply(c, p, dtype, p->gated, p->gated_stride, up, RKV_SWIGLU_PART)) return false;
  int64_t eights = (int64_t)p->count * p->rows / 8;
  LAUNCH(c, swiglu_halves, rkv_blocks(eights, 256), 1, 1, 256, 0, &gate, &up, &eights, &dtype);
  return true;
}
