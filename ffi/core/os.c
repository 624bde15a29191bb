/* os.c: every call of the operating system, in one place. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#if defined(__APPLE__)
#include <sys/sysctl.h>
#endif
#include "core.h"

#ifndef MAP_NORESERVE
#define MAP_NORESERVE 0
#endif

size_t rkv_os_page(void) { return (size_t)sysconf(_SC_PAGESIZE); }

void *rkv_os_reserve(size_t bytes) {
  void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return NULL;
#if defined(MADV_HUGEPAGE)
  madvise(memory, bytes, MADV_HUGEPAGE); /* rows and weights are read in long runs */
#endif
  return memory;
}

void rkv_os_unreserve(void *memory, size_t bytes) { munmap(memory, bytes); }

void rkv_os_discard(void *begin, size_t bytes) {
  size_t page = rkv_os_page();
  uintptr_t from = ((uintptr_t)begin + page - 1) / page * page, to = ((uintptr_t)begin + bytes) / page * page;
  if (to > from) madvise((void *)from, to - from, MADV_DONTNEED);
}

int32_t rkv_os_cores(void) {
  long cores = sysconf(_SC_NPROCESSORS_ONLN);
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) cores = CPU_COUNT(&set);
#endif
  return cores < 1 ? 1 : cores > 256 ? 256 : (int32_t)cores;
}

#if defined(__linux__)
/* The number in a one-line file, or -1 ("max", or no such file). */
static int64_t number_of(const char *path) {
  FILE *file = fopen(path, "re");
  if (file == NULL) return -1;
  long long value = -1;
  if (fscanf(file, "%lld", &value) != 1) value = -1;
  fclose(file);
  return value;
}

void rkv_os_memory(int64_t *total, int64_t *available) {
  *total = *available = 0;
  FILE *file = fopen("/proc/meminfo", "re");
  char line[128];
  long long kib;
  while (file != NULL && fgets(line, sizeof line, file) != NULL) {
    if (sscanf(line, "MemTotal: %lld kB", &kib) == 1) *total = kib * 1024;
    if (sscanf(line, "MemAvailable: %lld kB", &kib) == 1) *available = kib * 1024;
  }
  if (file != NULL) fclose(file);
  int64_t most = number_of("/sys/fs/cgroup/memory.max"), now = number_of("/sys/fs/cgroup/memory.current");
  if (most > 0 && now >= 0) {
    if (most < *total) *total = most;
    if (most - now < *available) *available = most - now;
  }
}
#else
void rkv_os_memory(int64_t *total, int64_t *available) {
  *total = (int64_t)sysconf(_SC_PHYS_PAGES) * (int64_t)rkv_os_page();
  *available = *total;
}
#endif

/* Deno closes its libraries at exit while their threads still run: without this the process would crash. */
void rkv_os_pin(void) {
  Dl_info info;
  if (dladdr((void *)(uintptr_t)&rkv_os_pin, &info) && info.dli_fname) (void)dlopen(info.dli_fname, RTLD_NOW | RTLD_NOLOAD | RTLD_NODELETE);
}

uint64_t rkv_os_nanoseconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

const void *rkv_os_map(const char *path, size_t *bytes) {
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return NULL;
  struct stat info;
  void *memory = NULL;
  if (fstat(fd, &info) == 0) {
    if (!S_ISREG(info.st_mode) || info.st_size == 0) errno = EINVAL;
    else memory = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_SHARED, fd, 0);
  }
  int error = errno;
  close(fd);
  if (memory == NULL || memory == MAP_FAILED) {
    errno = error;
    return NULL;
  }
  madvise(memory, (size_t)info.st_size, MADV_WILLNEED);
  *bytes = (size_t)info.st_size;
  return memory;
}

void rkv_os_unmap(const void *memory, size_t bytes) { munmap((void *)(uintptr_t)memory, bytes); }

bool rkv_os_pipe(int fds[2]) {
  if (pipe(fds) != 0) return false;
  fcntl(fds[0], F_SETFD, FD_CLOEXEC);
  fcntl(fds[1], F_SETFD, FD_CLOEXEC);
  return true;
}

void rkv_os_write(int fd, const void *data, size_t bytes) {
  while (write(fd, data, bytes) < 0 && errno == EINTR) {}
}

int32_t rkv_os_read(int fd, void *data, size_t bytes) {
  ssize_t got;
  do got = read(fd, data, bytes);
  while (got < 0 && errno == EINTR);
  return (int32_t)got;
}
