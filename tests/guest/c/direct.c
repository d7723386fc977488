// direct DISK SLOW: a disk that holds the pattern below is read and written, straight from and to this program's pages and by
// way of the kernel's. SLOW is the same image behind a disk that takes its time. Checks itself; the host looks at the
// image afterwards.
#include "t.h"
#include <pthread.h>
#include <stdatomic.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>

#define BLKGETSIZE64 _IOR(0x12, 114, size_t)
#define BLKSSZGET _IO(0x12, 104)
#define BLKDISCARD _IO(0x12, 119)
#define SIZE (64UL * MB)
// What stands where: the host's pattern below, what `load` writes above.
#define LOAD_AT (32 * MB)

static int d, slow; // O_DIRECT
static long copied(void) { return number_in("/sys/kernel/debug/block", "copied"); }
static long moved(void) { return number_in("/sys/kernel/debug/block", "direct"); }
static char *pages(size_t n, int prot) {
  char *p = mmap(0, n * PG, prot, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(p != MAP_FAILED);
  return p;
}

static void sizes(const char *disk) {
  uint64_t bytes = 0;
  int block = 0;
  CHECK(!ioctl(d, BLKGETSIZE64, &bytes) && bytes == SIZE);
  CHECK(!ioctl(d, BLKSSZGET, &block) && block == 512);
  CHECK(lseek(d, 0, SEEK_END) == (off_t)SIZE && lseek(d, 0, SEEK_SET) == 0);
  CHECK(ioctl(d, 0x12345, 0) == -1 && errno == ENOTTY);
  CHECK(ioctl(d, BLKGETSIZE64, 8) == -1 && errno == EFAULT);
  struct stat st;
  CHECK(!stat(disk, &st) && S_ISBLK(st.st_mode));
}

// Alignment, ends, rights.
static void edges(void) {
  char *p = pages(16, PROT_READ | PROT_WRITE);
  CHECK(pread(d, p + 1, 512, 0) == -1 && errno == EINVAL);
  CHECK(pread(d, p, 511, 0) == -1 && errno == EINVAL);
  CHECK(pread(d, p, 512, 100) == -1 && errno == EINVAL);
  CHECK(pread(d, p, 0, 0) == 0);
  CHECK(pread(d, p, 512, SIZE) == 0 && pread(d, p, 512, SIZE + 512) == 0);
  CHECK(pread(d, p, 8 * PG, SIZE - PG) == (ssize_t)PG && is_pattern(p, SIZE - PG, PG));
  CHECK(pwrite(d, p, 512, SIZE) == -1 && errno == ENOSPC);
  CHECK(pread(d, p + 512, 512, 1536) == 512 && is_pattern(p + 512, 1536, 512));
  // Untouched, shared, read-only, forbidden, half there.
  CHECK(pread(d, pages(16, PROT_READ | PROT_WRITE), 16 * PG, 0) == 16 * PG);
  char *s = mmap(0, 16 * PG, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  CHECK(pread(d, s, 16 * PG, PG) == 16 * PG && is_pattern(s, PG, 16 * PG));
  CHECK(pread(d, pages(4, PROT_READ), 4 * PG, 0) == -1 && errno == EFAULT);
  CHECK(pread(d, pages(4, PROT_NONE), 4 * PG, 0) == -1 && errno == EFAULT);
  CHECK(pwrite(d, pages(4, PROT_NONE), 4 * PG, LOAD_AT) == -1 && errno == EFAULT);
  CHECK(pread(d, (char *)8, 512, 0) == -1 && errno == EINVAL);
  CHECK(pread(d, (char *)0xffff888000000000, 4096, 0) == -1 && errno == EFAULT);
  CHECK(pread(d, (char *)-4096L, 4096, 0) == -1 && errno == EFAULT);
  char *h = pages(16, PROT_READ | PROT_WRITE);
  CHECK(!munmap(h + 3 * PG, 13 * PG));
  CHECK(pread(d, h, 16 * PG, 5 * PG) == 3 * PG && is_pattern(h, 5 * PG, 3 * PG));
  CHECK(pread(d, h + 2 * PG + 512, 4 * PG, 0) == (ssize_t)PG - 512 && is_pattern(h + 2 * PG + 512, 0, PG - 512));
  // From pages that nobody has written: zeroes.
  CHECK(pwrite(d, pages(2, PROT_READ), 2 * PG, LOAD_AT) == 2 * PG);
  CHECK(pread(d, p, 2 * PG, LOAD_AT) == 2 * PG && p[0] == 0 && !memcmp(p, p + 1, 2 * PG - 1));
}

static void vectors(void) {
  char *p = pages(64, PROT_READ | PROT_WRITE);
  struct iovec v[3] = {{p + 3 * PG + 512, 1024}, {p + 20 * PG, 9 * PG}, {p, PG}};
  CHECK(preadv(d, v, 3, 7 * PG) == 1024 + 10 * PG);
  CHECK(is_pattern(v[0].iov_base, 7 * PG, 1024) && is_pattern(v[1].iov_base, 7 * PG + 1024, 9 * PG));
  CHECK(is_pattern(p, 7 * PG + 1024 + 9 * PG, PG));
  v[1].iov_len = 100;
  CHECK(preadv(d, v, 3, 0) == -1 && errno == EINVAL);
  // Large: more than one transfer.
  char *big = pages(1024, PROT_READ | PROT_WRITE);
  CHECK(pread(d, big, 4 * MB, 512) == 4 * MB && is_pattern(big, 512, 4 * MB));
}

// Each CPU's requests have a queue of their own, whose interrupts come to that CPU; one line calls one CPU for all.
#define LOOKS 20
struct row { char kind[20]; long count[8]; };
static int interrupts(struct row *rows, int cpus) {
  FILE *f = fopen("/proc/interrupts", "r");
  char line[400];
  int n = 0;
  CHECK(f && fgets(line, sizeof line, f));
  for (; fgets(line, sizeof line, f); n++) {
    char *at = strchr(line, ':') + 1;
    CHECK(n < 100);
    for (int i = 0; i < cpus; i++) rows[n].count[i] = strtol(at, &at, 10);
    CHECK(sscanf(at, "%19s", rows[n].kind) == 1);
  }
  CHECK(n > 0 && !fclose(f));
  return n;
}
static void queues(void) {
  static struct row before[100], after[100];
  int cpus = sysconf(_SC_NPROCESSORS_ONLN), used[100] = {0};
  char *p = pages(1, PROT_READ | PROT_WRITE);
  cpu_set_t all, one;
  CHECK(cpus <= 8 && !sched_getaffinity(0, sizeof all, &all));
  for (int k = 0; k < cpus; k++) {
    CPU_ZERO(&one);
    CPU_SET(k, &one);
    CHECK(!sched_setaffinity(0, sizeof one, &one));
    int n = interrupts(before, cpus), rows = 0;
    for (int i = 0; i < LOOKS; i++) CHECK(pread(d, p, PG, i * PG) == (ssize_t)PG);
    CHECK(interrupts(after, cpus) == n);
    for (int r = 0; r < n; r++)
      for (int i = 0; i < cpus; i++) {
        long come = after[r].count[i] - before[r].count[i];
        if (!come) continue;
        CHECK(come >= LOOKS && ++rows == 1);
        CHECK(!strcmp(after[r].kind, "line") || (i == k && !used[r]++));
      }
    CHECK(rows == 1);
  }
  CHECK(!sched_setaffinity(0, sizeof all, &all));
}

// BUG-5: a device fills one half of a page while its process forks and writes the other half. Rounds go on until enough
// of them had a page that was pinned before the fork and after the write.
#define ENOUGH 15
#define ROUNDS 400
#define HALVES 4
static char *half;
static atomic_int go, done, over;
static void *reader(void *a) {
  (void)a;
  for (int i = 1; i <= ROUNDS; i++) {
    while (atomic_load(&go) < i) {
      if (atomic_load(&over)) return 0;
      sched_yield();
    }
    struct iovec v[HALVES];
    for (int k = 0; k < HALVES; k++) v[k] = (struct iovec){half + k * PG, PG / 2};
    CHECK(preadv(slow, v, HALVES, i * 64 * KB) == HALVES * PG / 2);
    atomic_store(&done, i);
  }
  return 0;
}
static void forks(void) {
  half = pages(HALVES, PROT_READ | PROT_WRITE);
  pthread_t t;
  CHECK(!pthread_create(&t, 0, reader, 0));
  for (int i = 1, met = 0; met < ENOUGH; i++) {
    CHECK(i <= ROUNDS);
    memset(half, 0, HALVES * PG);
    atomic_store(&go, i);
    long before = moved();
    while (!pins_held() && atomic_load(&done) < i) before = moved();
    pid_t c = fork();
    CHECK(c >= 0);
    if (!c) _exit(0);
    for (int k = 0; k < HALVES; k++) half[k * PG + PG - 1] = i;
    // Each page's bytes are counted after it is unpinned and before the next one is pinned.
    met += pins_held() && moved() == before;
    while (atomic_load(&done) < i) sched_yield();
    for (int k = 0; k < HALVES; k++) {
      CHECK(half[k * PG + PG - 1] == (char)i);
      CHECK(is_pattern(half + k * PG, i * 64 * KB + k * PG / 2, PG / 2));
    }
    CHECK(waitpid(c, 0, 0) == c);
  }
  atomic_store(&over, 1);
  CHECK(!pthread_join(t, 0));
}

// Four threads, each with a region of its own: blocks that carry their number and generation.
#define REGION (2 * MB)
static void *load(void *n) {
  long me = (long)n;
  uint64_t rng = me + 1, base = LOAD_AT + me * REGION;
  static _Thread_local uint32_t generation[REGION / 4096];
  char *p = pages(16, PROT_READ | PROT_WRITE);
  for (int i = 0; i < 1500; i++) {
    rng = rng * 6364136223846793005 + 1442695040888963407;
    int first = (rng >> 33) % (REGION / PG - 8), count = 1 + (rng >> 20) % 8, write = rng >> 60 & 1;
    if (write)
      for (int k = 0; k < count; k++)
        for (size_t b = 0; b < PG; b += 16) {
          uint64_t w[2] = {base + (first + k) * PG + b, generation[first + k] + 1};
          memcpy(p + k * PG + b, w, 16);
        }
    ssize_t want = count * PG, got = write ? pwrite(d, p, want, base + first * PG) : pread(d, p, want, base + first * PG);
    CHECK(got == want);
    for (int k = 0; k < count; k++) {
      if (write) { generation[first + k]++; continue; }
      if (!generation[first + k]) continue;
      for (size_t b = 0; b < PG; b += 16) {
        uint64_t w[2];
        memcpy(w, p + k * PG + b, 16);
        CHECK(w[0] == base + (first + k) * PG + b && w[1] == generation[first + k]);
      }
    }
  }
  return 0;
}

// Sector 2048 of this disk cannot be read or written.
static void bad(const char *disk) {
  char *p = pages(256, PROT_READ | PROT_WRITE);
  for (int how = 0; how <= O_DIRECT; how += O_DIRECT) {
    int b = open(disk, O_RDWR | how);
    CHECK(b >= 0);
    CHECK(pread(b, p, 512, MB) == -1 && errno == EIO);
    CHECK(pwrite(b, p, 512, MB) == -1 && errno == EIO);
    CHECK(pread(b, p, 512, MB - 512) == 512 && is_pattern(p, MB - 512, 512));
    // Its neighbour; in the cache, a page is there or not.
    off_t next = MB + (how ? 512 : PG);
    CHECK(pread(b, p, 512, next) == 512 && is_pattern(p, next, 512));
    // All that came before it counts in the cache; it is an error of all that went straight, as in Linux.
    off_t at = lseek(b, MB - 512 * KB, SEEK_SET);
    ssize_t n = read(b, p, MB);
    if (how) CHECK(n == -1 && errno == EIO && lseek(b, 0, SEEK_CUR) == at);
    else CHECK(n == 512 * (ssize_t)KB && is_pattern(p, at, n) && lseek(b, 0, SEEK_CUR) == at + n);
    close(b);
  }
  CHECK(pins_held() == 0);
  say("ok\n");
}

// This disk stops answering after a few requests; another goes on.
static void lost(const char *disk, const char *other) {
  int b = open(disk, O_RDONLY | O_DIRECT), o = open(other, O_RDONLY | O_DIRECT), tries = 0;
  char *p = pages(64, PROT_READ | PROT_WRITE);
  CHECK(b >= 0 && o >= 0);
  while (pread(b, p, 64 * PG, 0) == 64 * PG) CHECK(++tries < 100);
  CHECK(errno == EIO && pins_held() == 0);
  CHECK(pread(b, p, PG, 0) == -1 && errno == EIO);
  CHECK(fsync(b) == -1 && errno == EIO);
  CHECK(pread(o, p, 64 * PG, 0) == 64 * PG && is_pattern(p, 0, 64 * PG) && pins_held() == 0);
  say("ok\n");
}

// All of one disk to another.
static void copy(const char *from, const char *to) {
  int a = open(from, O_RDONLY | O_DIRECT), b = open(to, O_WRONLY | O_DIRECT);
  CHECK(a >= 0 && b >= 0);
  long before = copied(), straight = moved();
  size_t step = 256 * 1024;
  char *p = pages(step / PG, PROT_READ | PROT_WRITE);
  ssize_t n;
  while ((n = read(a, p, step)) > 0) CHECK(write(b, p, n) == n);
  CHECK(n == 0 && !fsync(b));
  CHECK(copied() == before && moved() == straight + 2 * (long)SIZE && pins_held() == 0);
  say("ok\n");
}

int main(int argc, char **argv) {
  CHECK(!mount("none", "/sys/kernel/debug", "debugfs", 0, 0) || errno == EBUSY);
  if (argc == 4 && !strcmp(argv[1], "copy")) return copy(argv[2], argv[3]), 0;
  if (argc == 4 && !strcmp(argv[1], "lost")) return lost(argv[2], argv[3]), 0;
  CHECK(argc == 3);
  if (!strcmp(argv[1], "bad")) return bad(argv[2]), 0;
  d = open(argv[1], O_RDWR | O_DIRECT);
  slow = open(argv[2], O_RDONLY | O_DIRECT);
  CHECK(d >= 0 && slow >= 0);
  // QEMU's NVMe does not say that it is read-only.
  int w = open(argv[2], O_RDWR);
  CHECK(strstr(argv[2], "nvme") ? w >= 0 && !close(w) : w == -1 && errno == EACCES);
  struct stat st;
  CHECK(!strstr(argv[1], "nvme") || (!stat(argv[1], &st) && st.st_rdev == makedev(259, 0)));
  long before = copied();
  sizes(argv[1]);
  edges();
  vectors();
  queues();
  forks();
  pthread_t t[4];
  for (long i = 0; i < 4; i++) CHECK(!pthread_create(&t[i], 0, load, (void *)i));
  for (int i = 0; i < 4; i++) pthread_join(t[i], 0);
  CHECK(copied() == before && moved() > 4 * (long)MB && pins_held() == 0);
  // By way of the kernel's memory: any address and length; parts of blocks.
  int b = open(argv[1], O_RDWR);
  char text[] = "written in the middle of a block", back[100000];
  CHECK(pread(b, back, 99999, 12345 * 8) == 99999 && is_pattern(back, 12345 * 8, 99992));
  CHECK(pwrite(b, text, sizeof text, 48 * MB + 1000) == sizeof text && !fsync(b));
  CHECK(pread(d, half, PG, 48 * MB) == (ssize_t)PG && !strcmp(half + 1000, text));
  CHECK(is_pattern(half, 48 * MB, 1000) && is_pattern(half + 1040, 48 * MB + 1040, PG - 1040));
  CHECK(pwrite(b, (char *)8, 512, 0) == -1 && errno == EFAULT);
  CHECK(pread(b, back, sizeof back, SIZE - 10) == 10 && pwrite(b, back, 20, SIZE - 10) == 10);
  CHECK(copied() > before);
  // What is discarded is gone, from the cache as well; this disk has zeroes there.
  uint64_t range[2] = {60 * MB, MB};
  CHECK(pread(b, back, PG, 60 * MB) == (ssize_t)PG && is_pattern(back, 60 * MB, PG));
  CHECK(!ioctl(b, BLKDISCARD, range));
  for (int i = 0; i < 2; i++) {
    CHECK(pread(i ? d : b, half, PG, 60 * MB) == (ssize_t)PG && half[0] == 0 && !memcmp(half, half + 1, PG - 1));
    CHECK(pread(i ? d : b, half, PG, 61 * MB) == (ssize_t)PG && is_pattern(half, 61 * MB, PG));
  }
  int r = open(argv[1], O_RDONLY);
  CHECK(ioctl(r, BLKDISCARD, range) == -1 && errno == EBADF && ioctl(r, BLKDISCARD, 8) == -1 && errno == EBADF);
  CHECK(ioctl(b, BLKDISCARD, 8) == -1 && errno == EFAULT);
  uint64_t wrong[][2] = {{60 * MB, 100}, {60 * MB + 1, 512}, {60 * MB, 0}, {SIZE, 512}, {SIZE - 512, 1024}, {512, -512UL}};
  for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) CHECK(ioctl(b, BLKDISCARD, wrong[i]) == -1 && errno == EINVAL);
  say("ok\n");
  return 0;
}
