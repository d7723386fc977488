// /sys/kernel/debug/gup_test with Linux's ioctls: bad requests, counts, contents, and pins that end (PIN-9). No host has it:
// every claim is checked here.
#include "t.h"
#include <sys/ioctl.h>
#include <sys/mount.h>
struct request { uint64_t get_us, put_us, addr, size; uint32_t per_call, gup_flags, test_flags, which[8]; };
struct longterm { uint64_t addr, size; uint32_t flags; };
#define GET_FAST _IOWR('g', 1, struct request)
#define PIN_FAST _IOWR('g', 2, struct request)
#define PIN_LONG _IOWR('g', 3, struct request)
#define GET _IOWR('g', 4, struct request)
#define PIN _IOWR('g', 5, struct request)
#define DUMP _IOWR('g', 6, struct request)
#define START _IOW('g', 7, struct longterm)
#define STOP _IO('g', 8)
#define READ _IOW('g', 9, uint64_t)
static const unsigned long all[] = {GET_FAST, PIN_FAST, PIN_LONG, GET, PIN, DUMP};
static int dev;
static long pins(const char *which) { // a counter of /proc/vmstat
  FILE *f = fopen("/proc/vmstat", "r");
  CHECK(f);
  char line[128];
  long n = -1;
  size_t len = strlen(which);
  while (fgets(line, sizeof line, f)) if (!strncmp(line, which, len) && line[len] == ' ') n = atol(line + len);
  fclose(f);
  CHECK(n >= 0);
  return n;
}
static long held(void) { return pins("nr_foll_pin_acquired") - pins("nr_foll_pin_released"); }
static long ask(unsigned long cmd, void *p, uint64_t size, uint32_t per_call, uint32_t flags) { // bytes that were held, or -1
  struct request r = {.addr = (uint64_t)p, .size = size, .per_call = per_call, .gup_flags = flags};
  return ioctl(dev, cmd, &r) ? -1 : (long)r.size;
}
static void requests(void) {
  char *p = anon(64 * PG);
  memset(p, 1, 32 * PG);
  struct request r = {.addr = (uint64_t)p, .size = PG, .per_call = 1, .gup_flags = 1};
  CHECK(ioctl(dev, 0, &r) == -1 && errno == EINVAL);
  CHECK(ioctl(dev, _IOWR('g', 10, struct request), &r) == -1 && errno == EINVAL);
  CHECK(ioctl(dev, _IOWR('g', 1, char[64]), &r) == -1 && errno == EINVAL);
  for (size_t k = 0; k < sizeof all / sizeof *all; k++) {
    CHECK(ioctl(dev, all[k], 8) == -1 && errno == EFAULT);
    CHECK(ioctl(dev, all[k], 0x800000000000) == -1 && errno == EFAULT);
    CHECK(ioctl(dev, all[k], -4096L) == -1 && errno == EFAULT);
    long before = pins("nr_foll_pin_acquired");
    CHECK(ask(all[k], p, 32 * PG, 1, 1) == 32 * PG);
    CHECK(ask(all[k], p, 32 * PG, 512, 0) == 32 * PG);
    CHECK(ask(all[k], p + 32 * PG, 32 * PG, 7, 1) == 32 * PG); // nothing there yet
    CHECK(ask(all[k], p, 64 * PG, 5, 1) == 64 * PG);
    long taken = pins("nr_foll_pin_acquired") - before;
    CHECK(taken == (k == 1 || k == 2 || k == 4 ? 160 : 0));
    CHECK(held() == 0);
    CHECK(ask(all[k], p, 0, 1, 1) == 0);
    CHECK(ask(all[k], p, 64 * PG, 0, 1) == 0);
    CHECK(ask(all[k], p, PG - 1, 1, 1) == 0);
    CHECK(ask(all[k], p, 64 * PG, -1, 1) == 64 * PG);
    CHECK(ask(all[k], p, 64 * PG, 64, ~0u) == 0); // flags that are no caller's to say
    CHECK(ask(all[k], (void *)8, PG, 1, 0) == 0);
    CHECK(ask(all[k], (void *)0x7ffffffff000, 16 * PG, 16, 0) == 0); // the canonical hole
    CHECK(ask(all[k], (void *)0xffff800000000000, 16 * PG, 16, 0) == 0);
    CHECK(ask(all[k], (void *)-PG, 2 * PG, 2, 0) == 0);
    errno = 0;
    CHECK(ask(all[k], p, 1L << 52, 1, 1) == -1 && errno == ENOMEM);
    CHECK(ask(all[k], p, ~0UL, ~0u, 1) == -1 && errno == ENOMEM);
    CHECK(!mprotect(p + 8 * PG, PG, PROT_READ));
    CHECK(ask(all[k], p, 16 * PG, 8, 1) == 8 * PG); // ends where it may not write
    CHECK(ask(all[k], p, 16 * PG, 5, 1) == 10 * PG); // a short call counts whole, as on Linux
    CHECK(ask(all[k], p, 16 * PG, 16, 0) == 16 * PG);
    CHECK(!mprotect(p + 8 * PG, PG, PROT_READ | PROT_WRITE));
    CHECK(held() == 0);
  }
  CHECK(lseek(dev, 0, SEEK_SET) == -1 && errno == ESPIPE);
  char c;
  CHECK(read(dev, &c, 1) == -1 && errno == EINVAL && write(dev, &c, 1) == -1 && errno == EINVAL);
  munmap(p, 64 * PG);
  say("requests\n");
}
static long start(int fd, void *p, uint64_t size, uint32_t flags) { struct longterm l = {(uint64_t)p, size, flags}; return ioctl(fd, START, &l); }
static long see(int fd, char *to) { uint64_t at = (uint64_t)to; return ioctl(fd, READ, &at); }
// Pins of every kind of memory: the device sees what the process writes, whatever happens to either (BUG-5, BUG-6).
static void longterm(int fast, int write_, int fork_first) {
  char *p = anon(4 * PG), *seen = anon(4 * PG);
  uint32_t flags = (fast ? 2 : 0) | (write_ ? 1 : 0);
  strcpy(p, "one");
  if (fork_first) { pid_t c = fork(); if (!c) _exit(0); waitpid(c, 0, 0); c = fork(); if (!c) { pause(); _exit(0); } CHECK(c > 0); kill(c, SIGKILL); waitpid(c, 0, 0); }
  CHECK(!start(dev, p, 4 * PG, flags));
  CHECK(held() == 4);
  CHECK(start(dev, p, 4 * PG, flags) == -1 && errno == EINVAL);
  strcpy(p, "two"); strcpy(p + 3 * PG, "last");
  CHECK(!see(dev, seen) && !strcmp(seen, "two") && !strcmp(seen + 3 * PG, "last"));
  pid_t c = fork(); // the child gets a copy, the pinned page stays the parent's
  if (!c) { CHECK(!strcmp(p, "two")); strcpy(p, "child"); CHECK(!see(dev, seen) && !strcmp(seen, "two")); _exit(0); }
  int st;
  strcpy(p + PG, "parent");
  CHECK(waitpid(c, &st, 0) == c && st == 0);
  CHECK(!see(dev, seen) && !strcmp(seen, "two") && !strcmp(seen + PG, "parent"));
  CHECK(see(dev, (char *)8) == -1 && errno == EFAULT);
  munmap(p, 4 * PG); // pinned frames are not reused
  for (int i = 0; i < 20; i++) { char *q = anon(64 * PG); memset(q, 'z', 64 * PG); munmap(q, 64 * PG); }
  CHECK(!see(dev, seen) && !strcmp(seen, "two") && !strcmp(seen + 3 * PG, "last"));
  CHECK(held() == 4);
  CHECK(!ioctl(dev, STOP) && !ioctl(dev, STOP));
  CHECK(held() == 0);
  CHECK(see(dev, seen) == -1 && errno == EINVAL);
  munmap(seen, 4 * PG);
}
static void lifetimes(void) {
  char *p = anon(4 * PG);
  CHECK(start(dev, p, 0, 0) == -1 && errno == EINVAL);
  CHECK(start(dev, p, PG + 1, 0) == -1 && errno == EINVAL);
  CHECK(start(dev, p + 1, PG, 0) == -1 && errno == EINVAL);
  CHECK(start(dev, p, PG, 4) == -1 && errno == EINVAL);
  CHECK(start(dev, p, 1UL << 63, 0) == -1 && errno == EINVAL);
  CHECK(start(dev, p, 1UL << 52, 0) == -1 && errno == ENOMEM);
  CHECK(start(dev, (void *)PG, PG, 0) == -1 && errno == EFAULT);
  CHECK(!munmap(p + 3 * PG, PG));
  for (int f = 0; f < 4; f++) CHECK(start(dev, p, 4 * PG, f) == -1 && errno == EFAULT && held() == 0); // all or nothing
  pid_t c = fork(); // who dies lets go
  if (!c) { int d = open("/sys/kernel/debug/gup_test", O_RDWR); memset(p, 5, 3 * PG); CHECK(!start(d, p, 3 * PG, 1) && held() == 3); kill(getpid(), SIGKILL); }
  int st;
  CHECK(waitpid(c, &st, 0) == c && WIFSIGNALED(st));
  CHECK(held() == 0);
  int d = open("/sys/kernel/debug/gup_test", O_RDWR); // a dead process's pinned pages stay as long as the file
  c = fork();
  if (!c) { memset(p, 7, 3 * PG); CHECK(!start(d, p, 3 * PG, 1)); _exit(0); }
  CHECK(waitpid(c, &st, 0) == c && st == 0 && held() == 3);
  for (int i = 0; i < 20; i++) { char *q = anon(64 * PG); memset(q, 'z', 64 * PG); munmap(q, 64 * PG); }
  CHECK(!see(d, p) && p[0] == 7 && p[3 * PG - 1] == 7);
  close(d);
  CHECK(held() == 0);
  munmap(p, 3 * PG);
  say("lifetimes\n");
}
int main(void) {
  dev = open("/sys/kernel/debug/gup_test", O_RDWR);
  CHECK(dev >= 0);
  CHECK(held() == 0);
  requests();
  for (int k = 0; k < 8; k++) longterm(k & 1, k & 2, k & 4);
  say("longterm\n");
  lifetimes();
  return 0;
}
