// /dev/edu: QEMU's teaching device copies from and to pinned pages, for a call and for longer, while their process forks, writes
// and unmaps (PIN-10, LT-2, BUG-5). Checks itself.
#include "t.h"
#include <pthread.h>
#include <stdatomic.h>
#include <sys/ioctl.h>

struct dma { uint64_t addr; uint32_t len, offset, to_device, end; };
struct buffer { uint64_t addr, len; };
#define FACTORIAL _IOWR('e', 1, uint32_t)
#define DMA _IOW('e', 2, struct dma)
#define REGISTER _IOW('e', 3, struct buffer)
#define UNREGISTER _IO('e', 4)
#define DMA_REGISTERED _IOW('e', 5, struct dma)

static int d;
static int run(unsigned long how, void *at, uint32_t len, uint32_t offset, int to_device) {
  struct dma r = {(uint64_t)at, len, offset, to_device};
  return ioctl(d, how, &r);
}
static int put(void *at, uint32_t len, uint32_t offset) { return run(DMA, at, len, offset, 1); }
static int get(void *at, uint32_t len, uint32_t offset) { return run(DMA, at, len, offset, 0); }
static int hold(void *at, uint64_t len) { struct buffer b = {(uint64_t)at, len}; return ioctl(d, REGISTER, &b); }
static char *pages(size_t n, int prot) {
  char *p = mmap(0, n * PG, prot, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(p != MAP_FAILED);
  return p;
}

static void factorials(void) {
  uint32_t want = 1;
  for (uint32_t n = 0; n < 14; n++) {
    if (n) want *= n;
    uint32_t v = n;
    CHECK(!ioctl(d, FACTORIAL, &v) && v == want);
  }
}

static void refused(void) {
  char *p = pages(2, PROT_READ | PROT_WRITE);
  CHECK(put(p, 0, 0) == -1 && errno == EINVAL);
  CHECK(put(p, 4096, 0) == -1 && errno == EINVAL);
  CHECK(put(p, 100, 4000) == -1 && errno == EINVAL);
  CHECK(put(p, 1, 0xffffffff) == -1 && errno == EINVAL);
  CHECK(put((void *)8, 16, 0) == -1 && errno == EFAULT);
  CHECK(get((void *)-16L, 16, 0) == -1 && errno == EFAULT);
  CHECK(get((void *)0xffff888000000000, 16, 0) == -1 && errno == EFAULT);
  CHECK(get(pages(1, PROT_READ), 16, 0) == -1 && errno == EFAULT);
  CHECK(put(pages(1, PROT_NONE), 16, 0) == -1 && errno == EFAULT);
  CHECK(ioctl(d, UNREGISTER) == -1 && errno == ENXIO);
  CHECK(run(DMA_REGISTERED, 0, 16, 0, 1) == -1 && errno == ENXIO);
  CHECK(hold(p, 0) == -1 && errno == EINVAL);
  CHECK(hold(p, -1UL) == -1 && errno == EINVAL);
  CHECK(hold(p + PG, 2 * PG) == -1 && errno == EFAULT && pins_held() == 0);
  CHECK(ioctl(d, 1, 0) == -1 && errno == ENOTTY);
  CHECK(ioctl(d, DMA, 8) == -1 && errno == EFAULT);
}

// The device fills the first half of a page; its process forks meanwhile and writes the second.
static char *page;
static atomic_int begun, done;
static void *fills(void *a) {
  (void)a;
  atomic_store(&begun, 1);
  CHECK(!get(page, 2000, 0));
  atomic_store(&done, 1);
  return 0;
}
static void forks(void) {
  char *from = pages(1, PROT_READ | PROT_WRITE);
  for (int i = 0; i < 2000; i++) from[i] = i * 7 + 1;
  CHECK(!put(from, 2000, 0));
  page = pages(1, PROT_READ | PROT_WRITE);
  memset(page, 1, PG);
  pthread_t t;
  CHECK(!pthread_create(&t, 0, fills, 0));
  while (!pins_held()) sched_yield();
  int n = 0;
  while (!atomic_load(&done)) {
    pid_t c = fork();
    CHECK(c >= 0);
    if (!c) _exit(page[PG - 1] == (n ? (char)n : 1) ? 0 : 1);
    page[PG - 1] = ++n;
    int st;
    CHECK(waitpid(c, &st, 0) == c);
  }
  pthread_join(t, 0);
  CHECK(n > 0 && page[PG - 1] == (char)n && !memcmp(page, from, 2000));
}

static void registered(void) {
  char *p = pages(4, PROT_READ | PROT_WRITE);
  CHECK(!hold(p + 100, 3 * PG) && pins_held() == 4);
  CHECK(hold(p, PG) == -1 && errno == EBUSY);
  CHECK(run(DMA_REGISTERED, (void *)(3 * PG - 8), 16, 0, 0) == -1 && errno == EINVAL);
  strcpy(p + 100 + PG - 5, "across two pages");
  CHECK(!run(DMA_REGISTERED, (void *)(PG - 5), 17, 8, 1));
  pid_t c = fork();
  if (!c) { CHECK(!strcmp(p + 100 + PG - 5, "across two pages")); _exit(0); }
  int st;
  CHECK(waitpid(c, &st, 0) == c && st == 0);
  // After the fork the buffer is still what the device sees, and the other way round.
  strcpy(p + 100, "written after the fork");
  CHECK(!run(DMA_REGISTERED, 0, 23, 100, 1));
  CHECK(!run(DMA_REGISTERED, (void *)(2 * PG), 23, 100, 0) && !strcmp(p + 100 + 2 * PG, "written after the fork"));
  // Without its mapping the memory stays the device's.
  CHECK(!munmap(p, 4 * PG) && pins_held() == 4);
  CHECK(!run(DMA_REGISTERED, (void *)PG, 23, 100, 0));
  CHECK(!ioctl(d, UNREGISTER) && pins_held() == 0);
  // Whoever dies lets go.
  c = fork();
  if (!c) {
    d = open("/dev/edu", O_RDWR);
    CHECK(!hold(pages(1, PROT_READ | PROT_WRITE), PG) && pins_held() == 1);
    kill(getpid(), SIGKILL);
  }
  CHECK(waitpid(c, &st, 0) == c && WIFSIGNALED(st) && pins_held() == 0);
}

int main(void) {
  d = open("/dev/edu", O_RDWR);
  CHECK(d >= 0);
  factorials();
  refused();
  forks();
  registered();
  char *p = pages(2, PROT_READ | PROT_WRITE);
  CHECK(!put(p + 1, 4089, 6) && !get(p + PG - 3, 4089, 6) && pins_held() == 0);
  say("ok\n");
  return 0;
}
