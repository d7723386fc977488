// A device that is told to reach what it was not given: its registers, mapped, take any address. With an IOMMU it is refused, reported and
// nothing changes; without one ("reaches") it does what it was told (K-22). Checks itself.
#include "t.h"
#include <sys/ioctl.h>
#include <sys/mount.h>

struct dma { uint64_t addr; uint32_t len, offset, to_device, end; };
#define DMA _IOW('e', 2, struct dma)
#define LEN 2000

static int d, on;
static volatile uint32_t *r;
static int run(void *at, int to_device) {
  struct dma t = {(uint64_t)at, LEN, 0, to_device, 0};
  return ioctl(d, DMA, &t);
}
static int put(void *at) { return run(at, 1); }
static int get(void *at) { return run(at, 0); }

static char *page(int c) {
  char *p = mmap(0, PG, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(p != MAP_FAILED);
  memset(p, c, PG);
  return p;
}
static uint64_t physical(void *p) {
  int f = open("/proc/self/pagemap", O_RDONLY);
  uint64_t w;
  CHECK(f >= 0 && pread(f, &w, 8, (uintptr_t)p / PG * 8) == 8 && w >> 63);
  close(f);
  uint64_t pa = (w & ((1UL << 55) - 1)) * PG;
  CHECK(pa);
  return pa;
}
static int all(const char *p, int c) {
  for (size_t i = 0; i < PG; i++)
    if (p[i] != (char)c) return 0;
  return 1;
}

// What the kernel says of the IOMMU; -1: that there is none.
static long says(const char *what) {
  FILE *f = fopen("/sys/kernel/debug/iommu", "r");
  CHECK(f);
  char word[32];
  long n = -1, v;
  while (fscanf(f, "%31s %ld", word, &v) == 2)
    if (!strcmp(word, what)) n = v;
  fclose(f);
  return n;
}

// The device moves its bytes, as its registers say and nobody else.
static void moves(uint64_t from, uint64_t to, int to_memory) {
  *(volatile uint64_t *)((char *)r + 0x80) = from;
  *(volatile uint64_t *)((char *)r + 0x88) = to;
  *(volatile uint64_t *)((char *)r + 0x90) = LEN;
  *(volatile uint64_t *)((char *)r + 0x98) = 1 | (to_memory ? 2 : 0);
  while (r[0x98 / 4] & 1) sched_yield();
}
static void writes(uint64_t pa) { moves(0x40000, pa, 1); }
static void reads(uint64_t pa) { moves(pa, 0x40000, 0); }

// The kernel hears of what was refused since `before`.
static void refused(long before) {
  for (int i = 0; on && i < 20000 && says("faults") == before; i++) sched_yield();
  CHECK(!on || says("faults") > before);
}

int main(int argc, char **argv) {
  on = !(argc > 1 && !strcmp(argv[1], "reaches"));
  CHECK(!mount("none", "/sys/kernel/debug", "debugfs", 0, 0) || errno == EBUSY);
  d = open("/dev/edu", O_RDWR);
  CHECK(d >= 0);
  r = mmap(0, MB, PROT_READ | PROT_WRITE, MAP_SHARED, d, 0);
  CHECK(r != MAP_FAILED && (r[0] & 0xffff) == 0xed);
  CHECK((says("faults") == -1) == !on);
  long faults = says("faults"), mapped = says("mapped");
  char *from = page('d'), *into = page('i'), *other = page('o');
  CHECK(!put(from) && !get(into) && !memcmp(from, into, LEN) && into[LEN] == 'i');
  CHECK(says("faults") == faults && says("mapped") == mapped);

  // A page that it was never given is not overwritten, and not read.
  writes(physical(other));
  CHECK(on ? all(other, 'o') : !memcmp(other, from, LEN));
  refused(faults);
  memset(other, 's', PG);
  faults = says("faults");
  reads(physical(other));
  refused(faults);
  memset(into, 'i', PG);
  CHECK(!get(into) && (on ? !memchr(into, 's', LEN) : !memcmp(into, other, LEN)));

  // Nor are those of transfers that are over: not the one that it read, not the one that it wrote a moment ago.
  CHECK(!put(from));
  faults = says("faults");
  writes(physical(from));
  CHECK(all(from, 'd'));
  refused(faults);
  memset(into, 'i', PG);
  CHECK(!get(into) && !memcmp(into, from, LEN));
  memset(into, 'i', PG);
  faults = says("faults");
  writes(physical(into));
  CHECK(on ? all(into, 'i') : !memcmp(into, from, LEN));
  refused(faults);

  // What it was given still works; nothing stays.
  for (int i = 0; i < 3; i++) {
    memset(from, 'a' + i, PG);
    CHECK(!put(from) && !get(into) && !memcmp(from, into, LEN));
  }
  CHECK(says("mapped") == mapped && pins_held() == 0);
  say("ok\n");
  return 0;
}
