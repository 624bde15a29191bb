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
  return memory == MAP_FAILED ? NULL : memory;
}

/* For weights only: of KV rows, a large page would take 2 MiB for the first row of every plane. */
void rkv_os_use_whole(void *begin, size_t bytes) {
#if defined(MADV_HUGEPAGE)
  size_t page = rkv_os_page();
  uintptr_t from = ((uintptr_t)begin + page - 1) / page * page, to = ((uintptr_t)begin + bytes) / page * page;
  if (to > from) madvise((void *)from, to - from, MADV_HUGEPAGE);
#else
  (void)begin, (void)bytes;
#endif
}

/* Large pages for KV rows only once rows fill them: for a plane's first row one would take 2 MiB. */
void rkv_os_settle(void *begin, size_t from, size_t to) {
#if defined(__linux__) && !defined(MADV_COLLAPSE)
#define MADV_COLLAPSE 25 /* Linux 6.1; others refuse, and nothing is lost */
#endif
#if defined(MADV_COLLAPSE)
  const uintptr_t large = 2 << 20, first = (uintptr_t)begin, end = (first + to) / large * large;
  uintptr_t at = (first + from) / large * large;
  if (at < first) at += large;
  for (; at < end; at += large) madvise((void *)at, large, MADV_COLLAPSE);
#else
  (void)begin, (void)from, (void)to;
#endif
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

void rkv_os_stay(int32_t worker) {
#if defined(__linux__)
  cpu_set_t set, one;
  if (sched_getaffinity(getpid(), sizeof set, &set) != 0) return; /* the process's, which no thread of ours has narrowed */
  int32_t left = worker % CPU_COUNT(&set), core = 0;
  while (!CPU_ISSET(core, &set) || left-- > 0) core++;
  CPU_ZERO(&one);
  CPU_SET(core, &one);
  sched_setaffinity(0, sizeof one, &one);
#else
  (void)worker;
#endif
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

/* How the two versions of control groups call the same things. */
typedef struct { const char *root, *limit, *usage, *cached[2]; } group_names;
static const group_names group_v1 = {"/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", {"total_inactive_file ", "total_active_file "}};
static const group_names group_v2 = {"/sys/fs/cgroup", "memory.max", "memory.current", {"inactive_file ", "active_file "}};

/* What a group holds only as a cache of files, and would give up: mapped weights are such. */
static int64_t cached_by(const char *dir, const group_names *names) {
  char path[640], line[128];
  snprintf(path, sizeof path, "%s/memory.stat", dir);
  FILE *file = fopen(path, "re");
  int64_t sum = 0;
  while (file != NULL && fgets(line, sizeof line, file) != NULL) {
    for (int32_t i = 0; i < 2; i++) {
      size_t length = strlen(names->cached[i]);
      if (strncmp(line, names->cached[i], length) == 0) sum += atoll(line + length);
    }
  }
  if (file != NULL) fclose(file);
  return sum;
}

/* Lowers total and available to what a group and the groups around it allow. */
static void limit_by(const char *group, const group_names *names, int64_t *total, int64_t *available) {
  char dir[512], path[640];
  const int64_t machine = *total;
  snprintf(dir, sizeof dir, "%s%s", names->root, group);
  for (;;) {
    snprintf(path, sizeof path, "%s/%s", dir, names->limit);
    int64_t most = number_of(path);
    snprintf(path, sizeof path, "%s/%s", dir, names->usage);
    int64_t held = most > 0 && most < machine ? number_of(path) : -1;
    if (held >= 0) {
      int64_t room = most - held + cached_by(dir, names);
      if (most < *total) *total = most;
      if (room < *available) *available = room;
    }
    char *slash = strrchr(dir, '/');
    if (slash == NULL || strlen(dir) <= strlen(names->root)) return;
    *slash = 0;
  }
}

static void limit_by_groups(int64_t *total, int64_t *available) {
  FILE *file = fopen("/proc/self/cgroup", "re");
  char line[512];
  while (file != NULL && fgets(line, sizeof line, file) != NULL) { /* "4:memory:/path" or "0::/path" */
    line[strcspn(line, "\n")] = 0;
    char *controllers = strchr(line, ':'), *group = controllers == NULL ? NULL : strchr(controllers + 1, ':');
    if (group == NULL) continue;
    *group++ = 0;
    if (strcmp(controllers, ":memory") == 0) limit_by(group, &group_v1, total, available);
    else if (strcmp(controllers, ":") == 0) limit_by(group, &group_v2, total, available);
  }
  if (file != NULL) fclose(file);
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
  limit_by_groups(total, available);
}

int64_t rkv_os_touched(void) {
  FILE *file = fopen("/proc/self/statm", "re");
  long long size, resident = 0, shared = 0;
  if (file == NULL) return 0;
  if (fscanf(file, "%lld %lld %lld", &size, &resident, &shared) != 3) resident = shared = 0;
  fclose(file);
  return (resident - shared) * (int64_t)rkv_os_page();
}
#else
int64_t rkv_os_touched(void) { return 0; }

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
#if defined(__linux__)
  return pipe2(fds, O_CLOEXEC) == 0; /* no moment in which a child that is just being started could inherit them */
#else
  return pipe(fds) == 0 && fcntl(fds[0], F_SETFD, FD_CLOEXEC) == 0 && fcntl(fds[1], F_SETFD, FD_CLOEXEC) == 0;
#endif
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
