// /dev/mem: a device's registers by their address, and RAM only where the kernel was told that it may be seen (PFN-1, PFN-2, PFN-4, PFN-5, PFN-6).
// Checks itself; "ram": it was.
#include "t.h"
#include <sys/ioctl.h>

struct dma { uint64_t addr; uint32_t len, offset, to_device, end; };
#define DMA _IOW('e', 2, struct dma)

static int m, d;
static char b[3 * PG];
static uint64_t address(volatile void *p) {
  int f = open("/proc/self/pagemap", O_RDONLY);
  uint64_t w;
  CHECK(f >= 0 && pread(f, &w, 8, (uint64_t)p / PG * 8) == 8 && w >> 63 && !close(f));
  return (w & ((1UL << 55) - 1)) * PG + (uint64_t)p % PG;
}
static long at(const char *file, const char *line) { return kib(file, line); }
static volatile uint32_t *map(size_t len, int prot, int flags, uint64_t pa) { return mmap(0, len, prot, flags, m, pa); }
static int refused(size_t len, uint64_t pa, int why) {
  errno = 0;
  return map(len, PROT_READ, MAP_SHARED, pa) == MAP_FAILED && errno == why && map(len, PROT_READ | PROT_WRITE, MAP_PRIVATE, pa) == MAP_FAILED && errno == why;
}
static int pinned(volatile void *p) {
  struct dma r = {(uint64_t)p, 16, 0, 1};
  return ioctl(d, DMA, &r);
}

// What the device's own file shows and what lies at its address are the same.
static uint64_t devices(void) {
  volatile uint32_t *r = mmap(0, PG, PROT_READ | PROT_WRITE, MAP_SHARED, d, 0);
  CHECK(r != MAP_FAILED && (r[0] & 0xffff) == 0xed);
  uint64_t pa = address(r);
  CHECK(pa > MB);
  long rss = at("/proc/self/status", "RssFile:");
  volatile uint32_t *w = map(2 * PG, PROT_READ | PROT_WRITE, MAP_SHARED, pa);
  CHECK(w != MAP_FAILED && w[0] == r[0] && address(w) == pa);
  w[1] = 0x1234;
  CHECK(r[1] == ~0x1234u && at("/proc/self/status", "RssFile:") == rss);
  CHECK(pinned(w) == -1 && errno == EFAULT && pins_held() == 0);
  pid_t c = fork();
  if (!c) { w[1] = 5; _exit(w[0] != r[0]); }
  int st;
  CHECK(waitpid(c, &st, 0) == c && !st && w[1] == ~5u);
  CHECK(!munmap((void *)(w + PG / 4), PG) && w[0] == r[0]);
  volatile uint32_t *p = map(PG, PROT_READ | PROT_WRITE, MAP_PRIVATE, pa);
  CHECK(p != MAP_FAILED && p[0] == r[0]);
  p[1] = 7;
  CHECK(p[1] == 7 && r[1] == ~5u && address(p) != pa && !munmap((void *)p, PG));
  CHECK(!munmap((void *)w, PG) && r[1] == ~5u && !munmap((void *)r, PG));
  return pa;
}

// The firmware below 1 MiB begins at its end.
static void firmware(void) {
  CHECK(pread(m, b, 5, 0xffff0) == 5 && (uint8_t)b[0] == 0xea);
  volatile uint32_t *p = map(PG, PROT_READ, MAP_SHARED, 0xff000);
  CHECK(p != MAP_FAILED && !memcmp((char *)p + 0xff0, b, 5) && !munmap((void *)p, PG));
}

static void positions(void) {
  CHECK(lseek(m, 0x1008, SEEK_SET) == 0x1008 && lseek(m, 8, SEEK_CUR) == 0x1010 && lseek(m, -16, SEEK_CUR) == 0x1000);
  CHECK(lseek(m, 0, SEEK_END) == -1 && errno == EINVAL);
  CHECK(lseek(m, 0, SEEK_DATA) == -1 && errno == EINVAL);
  CHECK(lseek(m, -1, SEEK_SET) == -1 && errno == EOVERFLOW && lseek(m, 0, SEEK_CUR) == 0x1000);
  CHECK(lseek(m, -0x80000000L, SEEK_SET) == -0x80000000L && lseek(m, 0, SEEK_CUR) == -0x80000000L);
  CHECK(read(m, b, 8) == -1 && errno == EFAULT && write(m, b, 8) == -1 && errno == EFAULT);
  CHECK(lseek(m, -(off_t)PG, SEEK_SET) == -(off_t)PG && read(m, b, PG) == -1 && errno == EOVERFLOW);
  CHECK(pread(m, b, 8, -8) == -1 && errno == EINVAL && pwrite(m, b, 8, -8) == -1 && errno == EINVAL);
  CHECK(pread(m, b, 8, 1L << 40) == -1 && errno == EFAULT && pwrite(m, b, 8, 1L << 40) == -1 && errno == EFAULT);
  CHECK(lseek(m, 0xffff0, SEEK_SET) == 0xffff0 && read(m, b, 8) == 8 && lseek(m, 0, SEEK_CUR) == 0xffff8);
}

// Mappings end where the processor's addresses do.
static void ends(void) {
  FILE *f = fopen("/proc/cpuinfo", "r");
  int bits = 0;
  while (f && fgets(b, sizeof b, f) && sscanf(b, "address sizes : %d bits", &bits) != 1);
  CHECK(bits >= 36 && bits <= 52 && !fclose(f));
  uint64_t end = 1UL << bits;
  CHECK(refused(PG, end, EINVAL) && refused(2 * PG, end - PG, EINVAL) && refused(PG, 1UL << 62, EINVAL));
  CHECK(refused(PG, -PG, EINVAL) && refused(2 * PG, -PG, EINVAL) && refused(0, MB, EINVAL) && refused(-PG, 0, ENOMEM));
  volatile uint32_t *p = map(PG, PROT_READ, MAP_SHARED, end - PG);
  probe_install();
  CHECK(p != MAP_FAILED && !strcmp(probe((char *)p, 'r'), "ok") && !munmap((void *)p, PG));
  int ro = open("/dev/mem", O_RDONLY);
  CHECK(ro >= 0 && mmap(0, PG, PROT_READ | PROT_WRITE, MAP_SHARED, ro, 0xff000) == MAP_FAILED && errno == EACCES && !close(ro));
}

static void nobody(void) {
  CHECK(!chmod("/dev/mem", 0666));
  pid_t c = fork();
  if (!c) {
    CHECK(!setuid(1000) && open("/dev/mem", O_RDONLY) == -1 && errno == EPERM);
    // What was opened before stays open.
    CHECK(pread(m, b, 5, 0xffff0) == 5);
    _exit(0);
  }
  int st;
  CHECK(waitpid(c, &st, 0) == c && !st && !chmod("/dev/mem", 0600));
}

static void no_ram(uint64_t bar) {
  char *all = anon(MB), *p = all;
  uint64_t pa;
  do { // a page that lies above 1 MiB
    CHECK((p += PG) < all + MB);
    strcpy(p, "mine");
  } while ((pa = address(p)) <= MB);
  CHECK(pread(m, b, 8, pa) == -1 && errno == EPERM && pwrite(m, "theirs", 7, pa) == -1 && errno == EPERM && !strcmp(p, "mine"));
  CHECK(refused(PG, pa, EPERM) && refused(3 * PG, pa - PG, EPERM));
  CHECK(refused(bar + PG, 0, EPERM)); // all of it, and a device
  // Below 1 MiB it looks empty, and what is between is not read alone.
  memset(b, 1, sizeof b);
  CHECK(pread(m, b, 2 * PG, 0x8ff8) == 2 * PG);
  for (size_t i = 0; i < 2 * PG; i++) CHECK(!b[i]);
  CHECK(b[2 * PG] == 1 && pwrite(m, b, PG, 0x9000) == PG && refused(PG, 0x9000, EPERM));
  CHECK(lseek(m, MB - 8, SEEK_SET) == MB - 8 && read(m, b, 16) == -1 && errno == EPERM && lseek(m, 0, SEEK_CUR) == MB - 8);
  CHECK(pread(m, (void *)8, 16, 0x9000) == -1 && errno == EFAULT);
  CHECK(!munmap(all, MB));
}

static void ram(uint64_t bar) {
  char *p = anon(PG);
  strcpy(p, "mine");
  uint64_t pa = address(p);
  CHECK(pread(m, b, 5, pa) == 5 && !strcmp(b, "mine"));
  CHECK(pwrite(m, "theirs", 7, pa) == 7 && !strcmp(p, "theirs"));
  long rss = at("/proc/self/status", "RssAnon:");
  volatile char *w = (void *)map(PG, PROT_READ | PROT_WRITE, MAP_SHARED, pa);
  CHECK((void *)w != MAP_FAILED && !strcmp((char *)w, "theirs") && at("/proc/self/status", "RssAnon:") == rss);
  w[0] = 'T';
  CHECK(!strcmp(p, "Theirs") && pinned(w) == -1 && errno == EFAULT && !pinned(p));
  // A private copy lets go of nothing, and a fork counts nothing.
  char *c = (void *)map(PG, PROT_READ | PROT_WRITE, MAP_PRIVATE, pa);
  CHECK((void *)c != MAP_FAILED && !strcmp(c, "Theirs"));
  strcpy(c, "a copy");
  pid_t k = fork();
  if (!k) { w[0] = 't'; _exit(strcmp(c, "a copy") || strcmp((char *)w, "theirs")); }
  int st;
  CHECK(waitpid(k, &st, 0) == k && !st && !strcmp((char *)w, "theirs") && !strcmp(c, "a copy"));
  CHECK(!munmap(c, PG) && !munmap((void *)w, PG) && !strcmp(p, "theirs"));
  // Programs' memory that ends early.
  char *two = anon(2 * PG);
  CHECK(!munmap(two + PG, PG));
  memset(two, 'x', PG);
  CHECK(pwrite(m, two + PG - 3, 16, pa) == 3 && !strcmp(p, "xxxirs"));
  CHECK(pread(m, two + PG - 3, 16, pa) == -1 && errno == EFAULT && pread(m, (void *)8, 8, pa) == -1 && errno == EFAULT);
  CHECK(pwrite(m, two + PG, 16, pa) == -1 && errno == EFAULT);
  // What the kernel has put out of its own reach is not read.
  int f = syscall(SYS_memfd_secret, 0);
  CHECK(f >= 0 && !ftruncate(f, PG));
  char *s = mmap(0, PG, PROT_READ | PROT_WRITE, MAP_SHARED, f, 0);
  CHECK(s != MAP_FAILED);
  strcpy(s, "secret");
  uint64_t hidden = address(s);
  CHECK(pread(m, b, 8, hidden) == -1 && errno == EFAULT && pwrite(m, b, 8, hidden) == -1 && errno == EFAULT && !strcmp(s, "secret"));
  CHECK(refused(bar + PG, 0, EINVAL)); // partly
  CHECK(!munmap(s, PG) && !close(f) && !munmap(two, PG) && !munmap(p, PG));
}

// A program with a file, and then a device, in the midst of its arguments: who asks for those is not shown it.
static void shows_until(char **argv, const char *end) {
  int f = open("/proc/self/cmdline", O_RDONLY);
  ssize_t want = end - argv[0], n = f < 0 ? -1 : read(f, b, sizeof b);
  CHECK(n == want && !memcmp(b, argv[0], n) && !close(f));
}
static void arguments(char **argv) {
  char *page = (char *)(((uint64_t)argv[1] + PG - 1) & -PG);
  int file = open("/proc/self/exe", O_RDONLY);
  shows_until(argv, argv[1] + strlen(argv[1]) + 1);
  CHECK(file >= 0 && mmap(page, PG, PROT_READ, MAP_PRIVATE | MAP_FIXED, file, 0) == page && *page == 0x7f);
  shows_until(argv, page);
  CHECK(mmap(page, PG, PROT_READ, MAP_SHARED | MAP_FIXED, d, 0) == page && (*(volatile uint32_t *)page & 0xffff) == 0xed);
  shows_until(argv, page);
  _exit(0);
}
static void long_arguments(void) {
  char text[2 * PG + 10], *argv[] = {"devmem", text, 0};
  int st;
  memset(text, 'a', sizeof text), text[sizeof text - 1] = 0;
  pid_t c = fork();
  if (!c) _exit(execv("/proc/self/exe", argv));
  CHECK(waitpid(c, &st, 0) == c && !st);
}

int main(int argc, char **argv) {
  m = open("/dev/mem", O_RDWR);
  d = open("/dev/edu", O_RDWR);
  CHECK(m >= 0 && d >= 0);
  if (argc > 1 && argv[1][0] == 'a') arguments(argv);
  long_arguments();
  uint64_t bar = devices();
  firmware();
  positions();
  ends();
  nobody();
  if (argc > 1) ram(bar);
  else no_ram(bar);
  say("ok\n");
  return 0;
}
