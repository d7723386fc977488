// A large folio of the kernel's, mapped page by page: pins of it are counted on its head, whoever maps it (PIN-2, PIN-12, LOOP-5,
// FAST-8). No host has it: every claim is checked here.
#include "t.h"
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/uio.h>

struct request { uint64_t get_us, put_us, addr, size; uint32_t per_call, gup_flags, test_flags, which[8]; };
struct longterm { uint64_t addr, size; uint32_t flags; };
#define GET_FAST _IOWR('g', 1, struct request)
#define PIN_FAST _IOWR('g', 2, struct request)
#define PIN_LONG _IOWR('g', 3, struct request)
#define GET _IOWR('g', 4, struct request)
#define PIN _IOWR('g', 5, struct request)
#define START _IOW('g', 7, struct longterm)
#define STOP _IO('g', 8)
#define READ _IOW('g', 9, uint64_t)
#define PAGES 512UL

static int dev;
static long ask(unsigned long cmd, void *p, uint64_t pages, uint32_t per_call) {
  struct request r = {.addr = (uint64_t)p, .size = pages * PG, .per_call = per_call, .gup_flags = 1};
  return ioctl(dev, cmd, &r) ? -1 : (long)(r.size / PG);
}
static uint64_t frame(void *p) {
  int f = open("/proc/self/pagemap", O_RDONLY);
  uint64_t w = 0;
  CHECK(pread(f, &w, 8, (uint64_t)p / PG * 8) == 8);
  close(f);
  return w >> 63 ? w & ((1UL << 55) - 1) : 0;
}
static uint64_t flags(uint64_t frame) {
  int f = open("/proc/kpageflags", O_RDONLY);
  uint64_t w = 0;
  CHECK(pread(f, &w, 8, frame * 8) == 8);
  close(f);
  return w;
}
static int bit(uint64_t w, int n) { return w >> n & 1; }

int main(void) {
  CHECK(!mount("none", "/sys/kernel/debug", "debugfs", 0, 0) || errno == EBUSY);
  dev = open("/sys/kernel/debug/gup_test", O_RDWR);
  int c = open("/sys/kernel/debug/compound", O_RDWR), ro = open("/sys/kernel/debug/compound", O_RDONLY);
  CHECK(dev >= 0 && c >= 0 && ro >= 0);
  // Only what a driver's memory can be: shared, and writable.
  CHECK(mmap(0, PG, PROT_READ, MAP_PRIVATE, c, 0) == MAP_FAILED && errno == EINVAL);
  CHECK(mmap(0, PG, PROT_READ, MAP_SHARED, ro, 0) == MAP_FAILED && errno == EINVAL);
  CHECK(mmap(0, PG, PROT_READ | PROT_WRITE, MAP_SHARED, ro, 0) == MAP_FAILED && errno == EACCES);
  CHECK(read(c, &c, 1) == -1 && errno == EINVAL);
  char *p = mmap(0, (PAGES + 8) * PG, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_LOCKED, c, 0);
  CHECK(p != MAP_FAILED);
  // Never locked (POP-3), and neither bare frames nor memory of the program's own.
  FILE *f = fopen("/proc/self/smaps", "r");
  char line[256], from[32];
  int in = 0, seen = 0;
  CHECK(f);
  snprintf(from, sizeof from, "%lx-", (unsigned long)p);
  while (fgets(line, sizeof line, f)) {
    in |= !strncmp(line, from, strlen(from));
    if (in && !strncmp(line, "VmFlags:", 8)) { seen = !strcmp(line, "VmFlags: rd wr sh mr mw me ms sd mm \n"); break; }
  }
  CHECK(!fclose(f) && seen);
  // It is there without a fault, in a row, one folio; past its end is nothing.
  uint64_t first = frame(p);
  CHECK(first && first % PAGES == 0);
  for (uint64_t i = 0; i < PAGES; i++) CHECK(frame(p + i * PG) == first + i && p[i * PG] == 0);
  CHECK(frame(p + PAGES * PG) == 0);
  CHECK(bit(flags(first), 15) && !bit(flags(first), 16)); // COMPOUND_HEAD, COMPOUND_TAIL
  CHECK(!bit(flags(first + 77), 15) && bit(flags(first + 77), 16));
  probe_install();
  CHECK(!strcmp(probe(p + PAGES * PG, 'r'), "BUS_ADRERR"));
  for (uint64_t i = 0; i < PAGES; i++) memset(p + i * PG, i, 16);

  // Every way to it, from any page, over its end.
  static const unsigned long ways[] = {GET_FAST, PIN_FAST, PIN_LONG, GET, PIN};
  for (int w = 0; w < 5; w++) {
    CHECK(ask(ways[w], p, PAGES, PAGES) == PAGES);
    CHECK(ask(ways[w], p + 3 * PG, 100, 7) == 100);
    CHECK(ask(ways[w], p + (PAGES - 5) * PG, 5, 5) == 5);
    CHECK(pins_held() == 0);
  }
  // Held while its mapping is forked, moved, made read-only and taken away.
  struct longterm l = {(uint64_t)p, PAGES * PG, 1};
  CHECK(!ioctl(dev, START, &l) && pins_held() == PAGES);
  pid_t k = fork();
  if (!k) {
    CHECK(p[100 * PG] == 100 && frame(p + 100 * PG) == first + 100);
    p[100 * PG] = 99;
    _exit(0);
  }
  int st;
  CHECK(waitpid(k, &st, 0) == k && st == 0 && p[100 * PG] == 99);
  char *q = mremap(p, PAGES * PG, PAGES * PG, MREMAP_MAYMOVE | MREMAP_FIXED, p + (1UL << 32));
  CHECK(q == p + (1UL << 32) && frame(q + 5 * PG) == first + 5 && q[5 * PG] == 5);
  CHECK(!mprotect(q, 10 * PG, PROT_READ) && !strcmp(probe(q, 'W'), "SEGV_ACCERR"));
  CHECK(!mprotect(q, 10 * PG, PROT_READ | PROT_WRITE));
  q[0] = 42;
  CHECK(frame(q) == first);
  CHECK(!munmap(q + 200 * PG, 100 * PG) && !munmap(q, PAGES * PG) && close(c) == 0 && pins_held() == PAGES);
  char *back = malloc(PAGES * PG);
  uint64_t to = (uint64_t)back;
  CHECK(!ioctl(dev, READ, &to) && back[0] == 42 && back[100 * PG] == 99 && back[511 * PG] == (char)511);
  CHECK(!ioctl(dev, STOP) && pins_held() == 0);
  // Another process's, by the slow way.
  c = open("/sys/kernel/debug/compound", O_RDWR);
  p = mmap(0, 16 * PG, PROT_READ | PROT_WRITE, MAP_SHARED, c, 496 * PG);
  CHECK(p != MAP_FAILED);
  strcpy(p + 15 * PG, "the last page");
  k = fork();
  if (!k) for (;;) pause();
  char text[16] = "";
  struct iovec here = {text, 14}, there = {p + 15 * PG, 14};
  CHECK(process_vm_readv(k, &here, 1, &there, 1, 0) == 14 && !strcmp(text, "the last page"));
  CHECK(!munmap(p, 16 * PG) && !close(c));
  CHECK(process_vm_readv(k, &here, 1, &there, 1, 0) == 14);
  kill(k, SIGKILL);
  CHECK(waitpid(k, &st, 0) == k && pins_held() == 0);
  say("ok\n");
  return 0;
}
