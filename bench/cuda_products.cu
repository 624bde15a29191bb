/* cuda_products.cu: the products of a step of Llama-3.1-8B alone (cuda/step.cu, bf16, 1 and 8 slots), each as a graph of 32 layers, beside what
 * bulk copies of the same bytes in the same order take when nothing else is done. On a Hopper GPU with CUDA's toolkit:
 *     nvcc -O3 -std=c++17 -arch=sm_90 -o products bench/cuda_products.cu && ./products */
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cuda_runtime.h>
#include <vector>
#include "../cuda/step.cu"

#define CHECK(call)                                                         \
  do {                                                                      \
    const cudaError_t result = (call);                                      \
    if (result != cudaSuccess) {                                            \
      fprintf(stderr, "%s: %s\n", #call, cudaGetErrorString(result));       \
      exit(1);                                                              \
    }                                                                       \
  } while (0)

#define LAYERS 32
#define HIDDEN 4096
#define NARROW 1024 /* keys, values */
#define WIDE 14336
#define CHUNK 16384 /* bytes of a bulk copy */
#define COPIES 12   /* under way on a multiprocessor */
#define SHARED RKV_STEP_SHARED(RKV_STEP_DEPTH, RKV_STEP_TILES)

static const char *const names[] = {"q, k, v", "o", "gate and up", "down"};
static const size_t weights[] = {(size_t)(HIDDEN + 2 * NARROW) * HIDDEN, (size_t)HIDDEN *HIDDEN, (size_t)2 * WIDE *HIDDEN, (size_t)HIDDEN *WIDE};
static cudaStream_t stream;
static int processors;
static char *layers[LAYERS];
static float *x, *y;

__global__ void random_halves(unsigned short *to, size_t n, unsigned seed) {
  for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x) {
    unsigned hash = ((unsigned)i ^ seed) * 2654435761u;
    hash = (hash ^ hash >> 15) * 2246822519u;
    to[i] = (unsigned short)(__float_as_uint((float)((int)(hash >> 16) - 32768) * (0.05f / 32768)) >> 16);
  }
}

/* One thread a multiprocessor keeps COPIES under way, the first of them before the kernel in front has ended. */
__global__ void __launch_bounds__(32, 1) copies_alone(const char *from, size_t bytes) {
  extern __shared__ __align__(1024) unsigned char ring[];
  __shared__ unsigned long long arrived[COPIES];
  if (threadIdx.x > 0) return;
  const size_t chunks = bytes / CHUNK;
  const auto ask = [&](size_t chunk, int place) {
    if (chunk >= chunks) return;
    asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(shared_address(&arrived[place])), "r"(CHUNK) : "memory");
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(shared_address(ring + place * CHUNK)), "l"(from + chunk * CHUNK), "r"(CHUNK),
                 "r"(shared_address(&arrived[place])) : "memory");
  };
  for (int i = 0; i < COPIES; i++) asm volatile("mbarrier.init.shared.b64 [%0], 1;" ::"r"(shared_address(&arrived[i])) : "memory");
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  for (int i = 0; i < COPIES; i++) ask(blockIdx.x + (size_t)i * gridDim.x, i);
  begin();
  int place = 0, odd = 0;
  for (size_t chunk = blockIdx.x; chunk < chunks; chunk += gridDim.x) {
    asm volatile("{.reg .pred p; again: mbarrier.try_wait.parity.shared.b64 p, [%0], %1; @!p bra again;}" ::"r"(shared_address(&arrived[place])), "r"(odd) : "memory");
    ask(chunk + (size_t)COPIES * gridDim.x, place);
    if (++place == COPIES) place = 0, odd ^= 1;
  }
}

template <typename... Parameters, typename... Arguments>
static void launch(void (*kernel)(Parameters...), int threads, int shared, Arguments... arguments) {
  cudaLaunchAttribute overlap = {};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = processors, config.blockDim = threads, config.dynamicSmemBytes = shared, config.stream = stream, config.attrs = &overlap, config.numAttrs = 1;
  CHECK(cudaLaunchKernelEx(&config, kernel, arguments...));
}

static rkv_product product(const void *w, int rows, int cols, float *to, int slots, int mode) {
  rkv_product p = {};
  p.w = w, p.stride = cols * 2, p.type = RKV_WEIGHT_BF16, p.rows = rows, p.cols = cols, p.x = x, p.y = to, p.x_stride = cols, p.y_stride = rows, p.count = slots, p.mode = mode;
  return p;
}

/* Product `which` of a layer, or, with no slots, its bytes alone. */
static void run(int layer, int which, int slots) {
  const char *w = layers[layer];
  for (int i = 0; i < which; i++) w += weights[i] * 2;
  if (slots == 0) return launch(copies_alone, 32, COPIES * CHUNK, w, weights[which] * 2);
  rkv_products all = {};
  all.products = 1;
  if (which == 0) {
    all.products = 3;
    all.of[0] = product(w, HIDDEN, HIDDEN, y, slots, RKV_STORE);
    all.of[1] = product(w + (size_t)HIDDEN * HIDDEN * 2, NARROW, HIDDEN, y + 8 * HIDDEN, slots, RKV_STORE);
    all.of[2] = product(w + (size_t)(HIDDEN + NARROW) * HIDDEN * 2, NARROW, HIDDEN, y + 8 * (HIDDEN + NARROW), slots, RKV_STORE);
  } else if (which == 2) {
    all.of[0] = product(w, WIDE, HIDDEN, y, slots, RKV_SWIGLU);
    all.of[0].gated = w + (size_t)WIDE * HIDDEN * 2, all.of[0].gated_stride = HIDDEN * 2, all.of[0].gated_type = RKV_WEIGHT_BF16;
  } else all.of[0] = product(w, HIDDEN, which == 1 ? HIDDEN : WIDE, y, slots, RKV_ADD);
  launch(which == 2 ? kernel_step_gated_bf16 : kernel_step_bf16, 32 * RKV_STEP_WARPS, SHARED, all);
}

/* Microseconds of a layer: the median of twenty replays of a graph of all layers. */
static double timed(int first, int end, int slots) {
  cudaGraph_t graph;
  cudaGraphExec_t recorded;
  cudaEvent_t before, after;
  std::vector<float> times;
  CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int layer = 0; layer < LAYERS; layer++)
    for (int which = first; which < end; which++) run(layer, which, slots);
  CHECK(cudaStreamEndCapture(stream, &graph));
  CHECK(cudaGraphInstantiate(&recorded, graph, 0));
  CHECK(cudaEventCreate(&before));
  CHECK(cudaEventCreate(&after));
  for (int i = 0; i < 23; i++) {
    float milliseconds;
    CHECK(cudaEventRecord(before, stream));
    CHECK(cudaGraphLaunch(recorded, stream));
    CHECK(cudaEventRecord(after, stream));
    CHECK(cudaStreamSynchronize(stream));
    CHECK(cudaEventElapsedTime(&milliseconds, before, after));
    if (i >= 3) times.push_back(milliseconds);
  }
  CHECK(cudaGraphExecDestroy(recorded));
  CHECK(cudaGraphDestroy(graph));
  std::sort(times.begin(), times.end());
  return times[times.size() / 2] * 1e3 / LAYERS;
}

int main() {
  CHECK(cudaStreamCreate(&stream));
  CHECK(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, 0));
  const size_t each = weights[0] + weights[1] + weights[2] + weights[3];
  for (int i = 0; i < LAYERS; i++) {
    CHECK(cudaMalloc(&layers[i], each * 2));
    random_halves<<<1024, 256, 0, stream>>>((unsigned short *)layers[i], each, (unsigned)i);
  }
  CHECK(cudaMalloc(&x, 8 * WIDE * 4));
  CHECK(cudaMalloc(&y, 8 * WIDE * 4));
  CHECK(cudaMemset(x, 0, 8 * WIDE * 4));
  CHECK(cudaMemset(y, 0, 8 * WIDE * 4));
  CHECK(cudaFuncSetAttribute(kernel_step_bf16, cudaFuncAttributeMaxDynamicSharedMemorySize, SHARED));
  CHECK(cudaFuncSetAttribute(kernel_step_gated_bf16, cudaFuncAttributeMaxDynamicSharedMemorySize, SHARED));
  CHECK(cudaFuncSetAttribute(copies_alone, cudaFuncAttributeMaxDynamicSharedMemorySize, COPIES * CHUNK));
  for (int slots : {1, 8, 0}) {
    printf(slots ? "%d slots:" : "bytes alone:", slots);
    for (int which = 0; which < 4; which++) {
      const double us = timed(which, which + 1, slots);
      printf(" %s %.1f us, %.2f TB/s;", names[which], us, (double)weights[which] * 2 / us / 1e6);
    }
    printf(" all four %.1f us\n", timed(0, 4, slots));
  }
}
