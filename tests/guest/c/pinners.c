// pinners THREADS ROUNDS: each thread, on a CPU of its own, pins and unpins 512 pages of its own by the fast path, ROUNDS
// times, through gup_test's benchmark. For `profile --atomics`.
#include "t.h"
#include <pthread.h>
#include <sys/ioctl.h>
#include <sys/mount.h>

#define PAGES 512
struct gup_test { uint64_t get, put, addr, size; uint32_t nr, gup_flags, test_flags, which[8]; };
#define PIN_FAST_BENCHMARK _IOWR('g', 2, struct gup_test)

static long rounds;
static pthread_barrier_t all;

static void *pin(void *n) {
  cpu_set_t cpu;
  CPU_ZERO(&cpu);
  CPU_SET((long)n, &cpu);
  CHECK(!sched_setaffinity(0, sizeof cpu, &cpu));
  char *p = mmap(0, PAGES * PG, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  CHECK(p != MAP_FAILED);
  int dev = open("/sys/kernel/debug/gup_test", O_RDWR);
  CHECK(dev >= 0);
  pthread_barrier_wait(&all);
  for (long i = 0; i < rounds; i++) {
    struct gup_test r = {.addr = (uint64_t)p, .size = PAGES * PG, .nr = PAGES, .gup_flags = 1};
    CHECK(!ioctl(dev, PIN_FAST_BENCHMARK, &r) && r.size == PAGES * PG);
  }
  return 0;
}

int main(int argc, char **argv) {
  CHECK(argc == 3);
  long n = atol(argv[1]);
  rounds = atol(argv[2]);
  CHECK(n >= 1 && n <= 8 && (!mount("none", "/sys/kernel/debug", "debugfs", 0, 0) || errno == EBUSY));
  pthread_t t[8];
  pthread_barrier_init(&all, 0, n);
  for (long i = 0; i < n; i++) CHECK(!pthread_create(&t[i], 0, pin, (void *)i));
  for (long i = 0; i < n; i++) pthread_join(t[i], 0);
  return 0;
}
