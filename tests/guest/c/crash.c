// Leaves a core file in a known place, two threads deep in known functions, and prints it: for the host to read.
#pragma GCC optimize("no-omit-frame-pointer", "no-optimize-sibling-calls")
#include "t.h"
#include <pthread.h>

static volatile int ready;
volatile long crash_marker = 1;

__attribute__((noinline)) void *waiting(void *a) {
  ready = 1;
  for (;;) pause();
  return a;
}
__attribute__((noinline, noclone)) int innermost(volatile int *p) {
  crash_marker = 4711;
  sched_yield(); // a leaf would have no frame
  return *p + 1;
}
__attribute__((noinline, noclone)) int middle(volatile int *p) { return innermost(p) + 1; }
__attribute__((noinline, noclone)) int outermost(volatile int *p) { return middle(p) + 1; }

int main(void) {
  CHECK(chdir("/tmp") == 0);
  pid_t p = fork();
  if (p == 0) {
    struct rlimit r = {RLIM_INFINITY, RLIM_INFINITY};
    CHECK(setrlimit(RLIMIT_CORE, &r) == 0);
    pthread_t t;
    pthread_attr_t small; // the console prints holes, too
    CHECK(pthread_attr_init(&small) == 0 && pthread_attr_setstacksize(&small, 16 * PG) == 0);
    CHECK(pthread_create(&t, &small, waiting, 0) == 0);
    while (!ready) sched_yield();
    return outermost((volatile int *)0x20);
  }
  int st;
  CHECK(waitpid(p, &st, 0) == p && WIFSIGNALED(st) && WCOREDUMP(st));
  int fd = open("core", O_RDONLY);
  static char b[1 << 16];
  ssize_t n;
  while ((n = read(fd, b, sizeof b)) > 0)
    for (ssize_t o = 0; o < n;) {
      ssize_t w = write(1, b + o, n - o);
      CHECK(w > 0);
      o += w;
    }
  return 0;
}
