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

// Its registers, mapped (PFN-2, PFN-4, PFN-6, PFN-9, PFN-12): nothing counts them, nobody pins them, and a private write copies a page.
static int says(const char *file, const char *line, const char *word) {
  FILE *f = fopen(file, "r");
  CHECK(f);
  char b[512];
  int in = 0, found = 0;
  while (fgets(b, sizeof b, f)) {
    if (strstr(b, "/dev/edu")) in = 1;
    else if (in && !strncmp(b, line, strlen(line))) { found = strstr(b, word) != 0; break; }
  }
  fclose(f);
  return found;
}
static void registers(void) {
  probe_install();
  size_t all = MB;
  volatile uint32_t *r = mmap(0, all, PROT_READ | PROT_WRITE, MAP_SHARED, d, 0);
  CHECK(r != MAP_FAILED && (r[0] & 0xffff) == 0xed);
  CHECK(says("/proc/self/smaps", "VmFlags:", " io ") && says("/proc/self/smaps", "VmFlags:", " pf "));
  CHECK(says("/proc/self/smaps", "Rss:", " 0 kB"));
  r[1] = 0x12345678;
  CHECK(r[1] == ~0x12345678u);
  r[2] = 10;
  while (r[8] & 1) sched_yield();
  CHECK(r[2] == 3628800);
  pid_t c = fork();
  if (!c) _exit((r[0] & 0xffff) != 0xed);
  int st;
  CHECK(waitpid(c, &st, 0) == c && !st);
  // Nobody takes hold of it.
  CHECK(put((void *)r, 16, 0) == -1 && errno == EFAULT && get((void *)r, 16, 0) == -1 && errno == EFAULT);
  CHECK(hold((void *)r, PG) == -1 && errno == EFAULT && pins_held() == 0);
  CHECK(madvise((void *)r, PG, MADV_DONTNEED) == -1 && errno == EINVAL);
  CHECK(mremap((void *)r, all, all + PG, MREMAP_MAYMOVE) == MAP_FAILED && errno == EFAULT);
  CHECK(!mprotect((void *)r, PG, PROT_READ) && !strcmp(probe((char *)r, 'W'), "SEGV_ACCERR") && r[1] == ~0x12345678u);
  CHECK(!mprotect((void *)r, PG, PROT_READ | PROT_WRITE));
  r[1] = 1;
  CHECK(r[1] == ~1u);
  volatile uint32_t *m = mremap((void *)r, PG, PG, MREMAP_MAYMOVE | MREMAP_FIXED, BASE);
  CHECK(m == (void *)BASE && (m[0] & 0xffff) == 0xed && !strcmp(probe((char *)r, 'r'), "SEGV_MAPERR"));
  // Private: the device is not told.
  volatile uint32_t *p = mmap(0, 2 * PG, PROT_READ | PROT_WRITE, MAP_PRIVATE, d, 0);
  CHECK(p != MAP_FAILED && (p[0] & 0xffff) == 0xed && p[1] == ~1u);
  p[1] = 7;
  p[1023] = 8;
  CHECK(p[1] == 7 && p[1023] == 8 && m[1] == ~1u);
  c = fork();
  if (!c) {
    p[1] = 9;
    _exit(p[1] != 9 || m[1] != ~1u);
  }
  CHECK(waitpid(c, &st, 0) == c && !st && p[1] == 7);
  CHECK(!munmap((void *)p, 2 * PG) && !munmap((void *)m, PG) && !munmap((void *)((char *)r + PG), all - PG));
  // No more than there is.
  CHECK(mmap(0, all + PG, PROT_READ, MAP_SHARED, d, 0) == MAP_FAILED && errno == EINVAL);
  CHECK(mmap(0, PG, PROT_READ, MAP_SHARED, d, all) == MAP_FAILED && errno == EINVAL);
  CHECK(mmap(0, PG, PROT_READ, MAP_SHARED, d, -(off_t)PG) == MAP_FAILED);
}

// A private copy of its registers (PFN-6, PFN-7): what the device had when it was written to, word for word; neither knows of the
// other from then on. Nothing of it is locked, whatever is asked.
static void private_copy(void) {
  volatile uint32_t *dev = mmap(0, PG, PROT_READ | PROT_WRITE, MAP_SHARED, d, 0);
  CHECK(dev != MAP_FAILED);
  CHECK(says("/proc/self/smaps", "VmFlags:", ": rd wr sh mr mw me ms pf io de dd sd \n"));
  dev[1] = 0x5a5a1234;
  uint32_t had[64];
  for (int i = 0; i < 64; i++) had[i] = dev[i];
  CHECK((had[0] & 0xffff) == 0xed && had[1] == ~0x5a5a1234u);
  volatile uint32_t *own = mmap((void *)BASE, PG, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED | MAP_LOCKED, d, 0);
  CHECK(own == (void *)BASE);
  CHECK(says("/proc/self/smaps", "VmFlags:", ": rd wr mr mw me pf io de ac dd sd \n") && says("/proc/self/smaps", "Rss:", " 0 kB"));
  CHECK(!mlock((void *)own, PG) && !mlockall(MCL_CURRENT));
  CHECK(!says("/proc/self/smaps", "VmFlags:", " lo ") && says("/proc/self/smaps", "Locked:", " 0 kB"));
  CHECK(!munlockall());
  dev[1] = 0x11112222;  // not copied yet: still the device
  CHECK(own[1] == ~0x11112222u);
  had[1] = ~0x11112222u;
  own[1000] = 7;  // where the device has nothing
  for (int i = 0; i < 64; i++) CHECK(own[i] == had[i]);
  CHECK(own[1000] == 7 && says("/proc/self/smaps", "Rss:", " 4 kB") && says("/proc/self/smaps", "Anonymous:", " 4 kB"));
  own[1] = 8;
  own[2] = 3;
  CHECK(dev[1] == ~0x11112222u && dev[2] == had[2]);
  dev[1] = 9;
  CHECK(own[1] == 8 && own[2] == 3 && dev[1] == ~9u);
  // It is a page like any other now: pinned, and what the device reads.
  CHECK(!put((void *)own, 64, 0) && !get((char *)own + 2048, 64, 0) && own[512] == had[0] && own[513] == 8 && pins_held() == 0);
  // A child has the copy, and of what was not written the device.
  volatile uint32_t *both = mmap(0, 2 * PG, PROT_READ | PROT_WRITE, MAP_PRIVATE, d, 0);
  CHECK(both != MAP_FAILED);
  both[1024] = 1;
  pid_t c = fork();
  if (!c) _exit(both[1] != ~9u || both[1024] != 1 || own[1] != 8);
  int st;
  CHECK(waitpid(c, &st, 0) == c && !st);
  CHECK(!munmap((void *)both, 2 * PG) && !munmap((void *)own, PG) && !munmap((void *)dev, PG));
}

// A program plays with the mapped registers while requests are under way: each moves what it should, and ends; no page is let go of while
// the device is at work.
static volatile uint32_t *regs;
enum { FACTORIAL_OF = 0x08 / 4, STATUS = 0x20 / 4, RAISE = 0x60 / 4, ACK = 0x64 / 4, FROM = 0x80 / 4, TO = 0x88 / 4, COUNT = 0x90 / 4, COMMAND = 0x98 / 4 };
enum { GO = 1, INTERRUPTS = 4 };
static atomic_int game;
static void *plays(void *a) {
  (void)a;
  for (int g; (g = atomic_load(&game)) >= 0;) {
    if (g == 0) regs[RAISE] = 0x101;       // interrupts that nobody waits for
    else if (g == 1) regs[ACK] = 0x101;    // those that somebody waits for, taken
    else regs[STATUS] = 0;                 // or not asked for
  }
  return 0;
}
static void all_is_well(void (*before)(void)) {
  static char n;
  char *from = pages(1, PROT_READ | PROT_WRITE), *to = pages(1, PROT_READ | PROT_WRITE);
  memset(from, ++n, PG);
  if (before) before();
  CHECK(!put(from, 1000, 0) && !(regs[COMMAND] & GO) && pins_held() == 0);
  if (before) before();
  CHECK(!get(to, 1000, 0) && !(regs[COMMAND] & GO) && pins_held() == 0);
  CHECK(!memcmp(from, to, 1000) && to[1000] == 0);
  uint32_t v = 10;
  CHECK(before || (!ioctl(d, FACTORIAL, &v) && v == 3628800));
  CHECK(!munmap(from, PG) && !munmap(to, PG));
}
// Transfers of the program's own: the device reads the machine's memory, and tells of the end or does not.
static void own(uint32_t how) {
  regs[FROM] = MB;
  regs[TO] = 0x40000 + 4000;
  regs[COUNT] = 8;
  regs[COMMAND] = GO | how;
}
static void own_told(void) { own(INTERRUPTS); }
static void own_silent(void) { own(0); }
// A computation of the program's own, of some seconds.
static void busy(void) {
  regs[STATUS] = 0;
  regs[FACTORIAL_OF] = 1000000000;
  uint32_t v = 5;
  CHECK(!ioctl(d, FACTORIAL, &v) && v == 120);
}
static void games(void) {
  regs = mmap(0, MB, PROT_READ | PROT_WRITE, MAP_SHARED, d, 0);
  CHECK(regs != MAP_FAILED);
  all_is_well(own_told);
  all_is_well(own_silent);
  busy();
  pthread_t t;
  CHECK(!pthread_create(&t, 0, plays, 0));
  for (int g = 0; g < 3; g++) {
    atomic_store(&game, g);
    for (int i = 0; i < 3; i++) all_is_well(0);
  }
  atomic_store(&game, -1);
  pthread_join(t, 0);
}

// A device that never ends is given up: what it was lent stays pinned for ever, and nobody waits for it any more (disk_timeout=1).
static atomic_int rounds;
static void *starts_again(void *a) {
  int r = atomic_load(&rounds);
  while (!(regs[COMMAND] & GO) && atomic_load(&rounds) == r);
  while (atomic_load(&rounds) == r) regs[COMMAND] = GO;
  return a;
}
static void stuck(int lasting) {
  regs = mmap(0, MB, PROT_READ | PROT_WRITE, MAP_SHARED, d, 0);
  CHECK(regs != MAP_FAILED);
  char *p = pages(1, PROT_READ | PROT_WRITE);
  memset(p, 1, PG);
  if (lasting) CHECK(!hold(p, PG));
  int failed;
  do { // until nobody sees the device between two transfers
    pthread_t t[2];
    CHECK(!put(p, 100, 0));
    for (int i = 0; i < 2; i++) CHECK(!pthread_create(&t[i], 0, starts_again, 0));
    errno = 0;
    failed = lasting ? run(DMA_REGISTERED, 0, 100, 0, 1) : put(p, 100, 0);
    CHECK(!failed || errno == ETIMEDOUT);
    atomic_fetch_add(&rounds, 1);
    for (int i = 0; i < 2; i++) pthread_join(t[i], 0);
  } while (!failed);
  CHECK(pins_held() == 1);
  CHECK(put(p, 16, 0) == -1 && errno == EIO && pins_held() == 1);
  uint32_t v = 3;
  CHECK(ioctl(d, FACTORIAL, &v) == -1 && errno == EIO);
  if (lasting) {
    CHECK(run(DMA_REGISTERED, 0, 100, 0, 1) == -1 && errno == EIO);
    CHECK(!ioctl(d, UNREGISTER) && !hold(p, PG) && !ioctl(d, UNREGISTER));
  }
  CHECK(!munmap(p, PG) && !close(d) && pins_held() == 1);
}

// Registered buffers count as memory that their user has locked.
static void limited(void) {
  int other = open("/dev/edu", O_RDWR);
  CHECK(other >= 0);
  pid_t c = fork();
  if (!c) {
    struct rlimit two = {2 * PG, 2 * PG};
    CHECK(!setrlimit(RLIMIT_MEMLOCK, &two) && !setuid(1000));
    char *p = pages(3, PROT_READ | PROT_WRITE);
    CHECK(hold(p, 3 * PG) == -1 && errno == ENOMEM && pins_held() == 0);
    CHECK(hold(p + 1, 2 * PG) == -1 && errno == ENOMEM);
    CHECK(!hold(p, 2 * PG) && pins_held() == 2 && kib("/proc/self/status", "VmPin:") == 8);
    struct buffer b = {(uint64_t)p, PG};
    CHECK(ioctl(other, REGISTER, &b) == -1 && errno == ENOMEM);
    CHECK(!ioctl(d, UNREGISTER) && !ioctl(other, REGISTER, &b) && kib("/proc/self/status", "VmPin:") == 4);
    CHECK(!ioctl(other, UNREGISTER));
    _exit(0);
  }
  int st;
  CHECK(waitpid(c, &st, 0) == c && st == 0 && !close(other));
}

int main(int argc, char **argv) {
  d = open("/dev/edu", O_RDWR);
  CHECK(d >= 0);
  if (argc > 1) {
    stuck(!strcmp(argv[1], "stuck_buffer"));
    say("ok\n");
    return 0;
  }
  factorials();
  refused();
  registers();
  private_copy();
  games();
  forks();
  registered();
  limited();
  char *p = pages(2, PROT_READ | PROT_WRITE);
  CHECK(!put(p + 1, 4089, 6) && !get(p + PG - 3, 4089, 6) && pins_held() == 0);
  say("ok\n");
  return 0;
}
