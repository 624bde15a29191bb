/* driver.c: finds the CUDA driver and the functions of driver.h in it. */
#include "driver.h"
#include <dlfcn.h>
#include <pthread.h>
#include "../ffi/core/core.h"

#define X(name, arguments) CUresult(*name) arguments;
RKV_CU_FUNCTIONS(X)
#undef X

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static void *library;

static int32_t find_all(void) {
  void *found = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (found == NULL) return rkv_refuse(RKV_DEVICE, "Cannot open cuda: there is no NVIDIA driver (%s)", dlerror());
#define X(name, arguments)                                                                                     \
  *(void **)&name = dlsym(found, #name);                                                                       \
  if (name == NULL) return rkv_refuse(RKV_DEVICE, "Cannot open cuda: the NVIDIA driver is too old: it has no %s", #name);
  RKV_CU_FUNCTIONS(X)
#undef X
  CUresult result = cuInit(0);
  if (result != 0) return rkv_refuse(RKV_DEVICE, "Cannot open cuda: the NVIDIA driver does not start (%s)", rkv_driver_words(result));
  library = found;
  return 0;
}

int32_t rkv_driver_open(void) {
  pthread_mutex_lock(&mutex);
  int32_t code = library != NULL ? 0 : find_all();
  pthread_mutex_unlock(&mutex);
  return code;
}

const char *rkv_driver_words(CUresult result) {
  const char *words = NULL;
  if (cuGetErrorString == NULL || cuGetErrorString(result, &words) != 0 || words == NULL) words = "an error without a name";
  return words;
}
