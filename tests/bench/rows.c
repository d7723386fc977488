// rows ROW COUNT: does one operation of the benchmark COUNT times and prints `PROFILE COUNT TICKS`.
// The profiler counts between the two calls of ticks().
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096, AREA = 64 << 20 };
__attribute__((noinline)) uint64_t ticks(void) {
  uint32_t low, high;
  __asm__ volatile("lfence; rdtsc" : "=a"(low), "=d"(high)::"memory");
  return (uint64_t)high << 32 | low;
}
static char *area(size_t length) {
  char *p = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) exit(2);
  return p;
}
static void write_each(char *p, size_t n) { for (size_t i = 0; i < n; i++) ((volatile char *)p)[i * PAGE] = 1; }

int main(int argc, char **argv) {
  if (argc == 2 && !strcmp(argv[1], "child")) return 0;
  if (argc != 3) return 1;
  const char *row = argv[1];
  size_t n = strtoul(argv[2], NULL, 10);
  int to[2], from[2];
  char byte = 'p';
  uint64_t t = 0;
  if (!strcmp(row, "null_syscall")) {
    t = ticks();
    for (size_t i = 0; i < n; i++) syscall(SYS_getppid);
  } else if (!strcmp(row, "anon_write_fault")) {
    char *p = area(AREA);
    t = ticks();
    write_each(p, n);
  } else if (!strcmp(row, "munmap_per_page")) {
    char *p = area(AREA);
    write_each(p, n);
    t = ticks();
    munmap(p, n * PAGE);
  } else if (!strcmp(row, "mmap_touch_munmap") || !strcmp(row, "mmap_munmap_untouched")) {
    int touch = row[5] == 't';
    t = ticks();
    for (size_t i = 0; i < n; i++) {
      char *p = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (touch) *(volatile char *)p = 1;
      munmap(p, PAGE);
    }
  } else if (!strcmp(row, "fork_exit_wait_64MB") || !strcmp(row, "fork_exit_wait_small")) {
    if (!strcmp(row, "fork_exit_wait_64MB")) write_each(area(AREA), AREA / PAGE);
    t = ticks();
    for (size_t i = 0; i < n; i++) {
      pid_t c = fork();
      if (!c) _exit(0);
      waitpid(c, NULL, 0);
    }
  } else if (!strcmp(row, "vfork_exec_exit_wait")) {
    t = ticks();
    for (size_t i = 0; i < n; i++) {
      pid_t c = vfork();
      if (!c) {
        execl("/proc/self/exe", "rows", "child", (char *)0);
        _exit(1);
      }
      waitpid(c, NULL, 0);
    }
  } else if (!strcmp(row, "map_populate_per_page")) {
    t = ticks();
    mmap(NULL, n * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  } else if (!strcmp(row, "mlock_per_page")) {
    char *p = mmap(NULL, n * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    t = ticks();
    if (mlock(p, n * 4096)) return 2;
  } else if (!strcmp(row, "munlock_per_page")) {
    char *p = mmap(NULL, n * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_LOCKED, -1, 0);
    t = ticks();
    if (munlock(p, n * 4096)) return 2;
  } else if (!strcmp(row, "mremap_move_64MB")) {
    char *p = area(AREA);
    write_each(p, AREA / PAGE);
    t = ticks();
    for (size_t i = 0; i < n; i++) p = mremap(p, AREA, AREA, MREMAP_MAYMOVE | MREMAP_FIXED, p + (i & 1 ? -256L : 256L) * (1L << 20));
  } else if (!strcmp(row, "pipe_ping_pong")) {
    if (pipe(to) || pipe(from)) return 2;
    pid_t c = fork();
    if (!c) {
      while (read(to[0], &byte, 1) == 1 && byte == 'p') if (write(from[1], &byte, 1) != 1) break;
      _exit(0);
    }
    t = ticks();
    for (size_t i = 0; i < n; i++) if (write(to[1], &byte, 1) != 1 || read(from[0], &byte, 1) != 1) return 2;
  } else if (!strcmp(row, "vm_readv_1p") || !strcmp(row, "vm_readv_16p")) {
    size_t length = row[9] == '1' && row[10] == '6' ? 16 * PAGE : PAGE;
    char *p = area(16 * PAGE), *q = area(16 * PAGE);
    write_each(p, 16);
    write_each(q, 16);
    struct iovec local = {q, length}, remote = {p, length};
    t = ticks();
    for (size_t i = 0; i < n; i++) if (process_vm_readv(getpid(), &local, 1, &remote, 1, 0) != (ssize_t)length) return 2;
  } else if (!strcmp(row, "vmsplice_16p")) {
    char *p = area(16 * PAGE), *q = area(16 * PAGE);
    write_each(p, 16);
    write_each(q, 16);
    struct iovec all = {p, 16 * PAGE};
    if (pipe(to)) return 2;
    t = ticks();
    for (size_t i = 0; i < n; i++) if (vmsplice(to[1], &all, 1, 0) != (ssize_t)all.iov_len || read(to[0], q, 16 * PAGE) != (ssize_t)all.iov_len) return 2;
  } else if (!strncmp(row, "gup_", 4) || !strncmp(row, "pin_", 4)) {
    static const char *const kinds[] = {"gup_fast", "pin_fast", "pin_longterm", "gup_slow", "pin_slow"};
    const char *batch = strstr(row, "_b");
    unsigned kind = 0;
    while (kind < 5 && strncmp(row, kinds[kind], batch ? (size_t)(batch - row) : 0)) kind++;
    if (!batch || kind == 5) return 1;
    struct { uint64_t get_us, put_us, address, size; uint32_t pages_per_call, flags, test_flags, which[8]; } r = {.size = n * PAGE, .pages_per_call = atoi(batch + 2), .flags = 1};
    char *p = area(AREA);
    write_each(p, n);
    r.address = (uint64_t)p;
    mkdir("/sys/kernel/debug", 0700);
    mount("none", "/sys/kernel/debug", "debugfs", 0, NULL);
    int device = open("/sys/kernel/debug/gup_test", O_RDWR);
    t = ticks();
    if (ioctl(device, _IOWR('g', kind + 1, r), &r)) return 2;
  } else {
    return 1;
  }
  t = ticks() - t;
  if (!strcmp(row, "pipe_ping_pong")) {
    byte = 'q';
    if (write(to[1], &byte, 1) != 1) return 2;
    wait(NULL);
  }
  printf("PROFILE %zu %llu\n", n, (unsigned long long)t);
  return 0;
}
