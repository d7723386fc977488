// cached DISK: a disk that holds `pattern`, read through its page cache, by read and by mappings. Checks itself.
//   cached DISK          all of the below
//   cached small DISK    more than fits into memory
//   cached bad DISK      sector 2048 cannot be read
//   cached stale DISK    a store between cleaning and writing, in the test kernel
#include "t.h"
#include <pthread.h>
#include <stdatomic.h>
#include <sys/ioctl.h>
#include <sys/mount.h>

#define SIZE (64UL * MB)

static const char *disk;
static int opened(int flags) {
  int d = open(disk, flags);
  CHECK(d >= 0);
  return d;
}
static char *mapped(int d, size_t len, int prot, int flags, off_t at) {
  char *p = mmap(0, len, prot, flags, d, at);
  CHECK(p != MAP_FAILED);
  return p;
}
static long major(void) {
  struct rusage r;
  CHECK(!getrusage(RUSAGE_SELF, &r));
  return r.ru_majflt;
}
static void drop(void) {
  int d = open("/proc/sys/vm/drop_caches", O_WRONLY);
  CHECK(d >= 0 && write(d, "1", 1) == 1 && !close(d));
}
static int resident(char *p) {
  unsigned char b;
  CHECK(!mincore(p, PG, &b));
  return b & 1;
}
static void reads(void) {
  int d = opened(O_RDONLY);
  static char b[300000];
  for (off_t at = 0; at < (off_t)MB; at += 1000 * 8)
    CHECK(pread(d, b, 200000, at) == 200000 && is_pattern(b, at, 200000));
  CHECK(pread(d, b, 100, SIZE - 40) == 40 && is_pattern(b, SIZE - 40, 40));
  CHECK(pread(d, b, 100, SIZE) == 0 && pread(d, b, 100, SIZE + 5) == 0);
  CHECK(pread(d, (char *)8, 100, 0) == -1 && errno == EFAULT);
  char *half = anon(2 * PG);
  CHECK(!munmap(half + PG, PG));
  CHECK(pread(d, half + PG - 96, 4096, 8) == 96 && is_pattern(half + PG - 96, 8, 96));
  CHECK(!close(d));
}

// What a first touch costs, and what mincore and smaps say.
static void mappings(void) {
  int d = opened(O_RDWR);
  char *s = mapped(d, SIZE, PROT_READ, MAP_SHARED, 0), *p = mapped(d, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE, 0);
  drop();
  CHECK(!resident(s + 20 * PG) && !resident(p + 20 * PG));
  long m = major();
  CHECK(is_pattern(s + 20 * PG, 20 * PG, PG) && major() == m + 1);
  CHECK(resident(s + 20 * PG) && resident(s + 31 * PG) && !resident(s + 32 * PG));
  CHECK(is_pattern(p + 21 * PG, 21 * PG, 2 * PG) && major() == m + 1);
  CHECK(kib("/proc/self/status", "RssFile:") >= 12);
  // A private copy is its process's own; so is that of a page that must be read first.
  p[20 * PG] ^= 1;
  p[400 * PG] ^= 1;
  CHECK(major() == m + 2);
  CHECK(is_pattern(s + 20 * PG, 20 * PG, PG) && is_pattern(s + 400 * PG, 400 * PG, PG));
  CHECK(is_pattern(p + 20 * PG + 8, 20 * PG + 8, PG - 8) && p[20 * PG] != s[20 * PG]);
  // Read by the kernel into and from pages that are not there.
  int pipes[2];
  CHECK(!pipe(pipes));
  CHECK(write(pipes[1], s + 1000 * PG, PG) == (ssize_t)PG && read(pipes[0], p + 2000 * PG + 8, PG) == (ssize_t)PG);
  CHECK(is_pattern(p + 2000 * PG + 8, 1000 * PG, PG));
  // Populate, over more than a window.
  CHECK(!madvise(s + 3000 * PG, 100 * PG, MADV_POPULATE_READ) && resident(s + 3099 * PG));
  char *l = mapped(d, 40 * PG, PROT_READ, MAP_SHARED | MAP_POPULATE, 5000 * PG);
  m = major();
  CHECK(is_pattern(l, 5000 * PG, 40 * PG) && major() == m);
  // Advice.
  CHECK(!madvise(s + 6000 * PG, 20 * PG, MADV_WILLNEED) && resident(s + 6019 * PG) && !resident(s + 6200 * PG));
  CHECK(!posix_fadvise(d, 6300 * PG, 4 * PG, POSIX_FADV_WILLNEED) && resident(s + 6303 * PG));
  CHECK(!readahead(d, 6400 * PG, 4 * PG) && resident(s + 6403 * PG));
  CHECK(!posix_fadvise(d, 6300 * PG + 1, 4 * PG, POSIX_FADV_DONTNEED) && resident(s + 6300 * PG) && !resident(s + 6301 * PG));
  CHECK(posix_fadvise(d, 0, -1, POSIX_FADV_DONTNEED) == EINVAL && readahead(d, -1, 5) == 0);
  // fork, and a child that reads what is not there yet.
  pid_t c = fork();
  if (!c) _exit(!(is_pattern(s + 8000 * PG, 8000 * PG, 64 * PG) && is_pattern(p + 8000 * PG, 8000 * PG, 64 * PG)));
  int st;
  CHECK(waitpid(c, &st, 0) == c && !st);
  CHECK(!munmap(s, SIZE) && !munmap(p, SIZE) && !munmap(l, 40 * PG) && !close(d));
}

// Every way to write is seen by everyone who reads.
static void writes(void) {
  int d = opened(O_RDWR), o = opened(O_RDWR | O_DIRECT);
  off_t at = 40 * MB;
  char *s = mapped(d, MB, PROT_READ, MAP_SHARED, at), *b = anon(PG);
  for (int i = 0; i < 200; i++) {
    off_t in = i % 7 * PG;
    CHECK(is_pattern(s + 100 * PG, at + 100 * PG, PG));
    memset(b, i + 1, PG);
    if (i & 1) CHECK(pwrite(d, b, 100, at + in + 50) == 100);
    else CHECK(pwrite(o, b, PG, at + in) == (ssize_t)PG);
    CHECK((unsigned char)s[in + 50] == i + 1 && (unsigned char)s[in + 149] == i + 1);
    char x[100];
    CHECK(pread(d, x, 100, at + in + 50) == 100 && !memcmp(x, b, 100));
    CHECK(pread(o, b, PG, at + in) == (ssize_t)PG && (unsigned char)b[50] == i + 1);
  }
  CHECK(!munmap(s, MB) && !close(d) && !close(o));
}

// A child whose entries were copied while the page was dirty, and cleaned since. 0: it has written.
static int fork_dirties(char *p) {
  *p = 'x';
  pid_t c = fork();
  if (!c) {
    CHECK(!msync(p, PG, MS_SYNC));
    *p = 'C';
    _exit(0);
  }
  int st;
  return waitpid(c, &st, 0) != c || st || msync(p, PG, MS_SYNC);
}

// A write through a mapping is seen at once by who shares the pages, and by the disk when somebody asks: a direct read, msync,
// fsync, sync_file_range.
static void stores(void) {
  int d = opened(O_RDWR), o = opened(O_RDWR | O_DIRECT);
  off_t at = 44 * MB;
  char *s = mapped(d, MB, PROT_READ | PROT_WRITE, MAP_SHARED, at), *b = anon(PG), *t = mapped(d, MB, PROT_READ, MAP_SHARED, at);
  for (int i = 1; i <= 120; i++) {
    size_t in = i % 5 * PG + 9;
    // Clean, or dirty and written a moment ago: the page must be marked again either way.
    s[in] = i;
    CHECK(t[in] == i);
    char c;
    CHECK(pread(d, &c, 1, at + in) == 1 && c == i);
    if (i % 4 == 1) CHECK(!msync(s, MB, MS_SYNC));
    if (i % 4 == 2) CHECK(!fsync(d));
    if (i % 4 == 3) CHECK(!sync_file_range(d, at, MB, SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER));
    CHECK(pread(o, b, PG, at + in - 9) == (ssize_t)PG);
    CHECK(b[9] == i);
    CHECK(is_pattern(b + 16, at + in + 7, PG - 16));
  }
  // A child's stores, and ours after its birth.
  pid_t c = fork();
  if (!c) {
    s[20 * PG] = 'c';
    _exit(0);
  }
  s[21 * PG] = 'p';
  int st;
  CHECK(waitpid(c, &st, 0) == c && !st && !msync(s, MB, MS_SYNC) && !fork_dirties(s + 20 * PG));
  CHECK(pread(o, b, PG, at + 20 * PG) == (ssize_t)PG && *b == 'C' && pread(o, b, PG, at + 21 * PG) == (ssize_t)PG && *b == 'p');
  // The kernel's own: it stores for read(2), and a device for a pinned page.
  CHECK(pread(d, s + 30 * PG, 3 * PG, 8 * MB) == 3 * (ssize_t)PG && pread(o, s + 34 * PG, PG, 9 * MB) == (ssize_t)PG);
  CHECK(!munmap(s, MB) && !munmap(t, MB) && !fsync(d));
  CHECK(pread(o, b, PG, at + 32 * PG) == (ssize_t)PG && is_pattern(b, 8 * MB + 2 * PG, PG));
  CHECK(pread(o, b, PG, at + 34 * PG) == (ssize_t)PG && is_pattern(b, 9 * MB, PG));
  CHECK(!close(d) && !close(o));
}

// Readers never see what was there before a write that has returned.
#define READERS 3
static char *window;
static int plain;
static atomic_uint written, over;
static void *watch(void *a) {
  (void)a;
  // A page that leaves the cache leaves its mappings a moment later: each way goes forwards by itself.
  unsigned seen[2] = {0}, looks = 0;
  while (!atomic_load(&over) || looks < 100) {
    unsigned least = atomic_load(&written), got, way = looks++ & 1;
    if (way) got = *(volatile unsigned *)window;
    else CHECK(pread(plain, &got, 4, 50 * MB) == 4);
    CHECK(got >= least && got >= seen[way] && got <= atomic_load(&written) + 1);
    seen[way] = got;
  }
  return 0;
}
static void races(void) {
  plain = opened(O_RDONLY);
  int o = opened(O_RDWR | O_DIRECT);
  unsigned *b = (unsigned *)anon(PG);
  CHECK(pwrite(o, b, PG, 50 * MB) == (ssize_t)PG);
  window = mapped(plain, PG, PROT_READ, MAP_SHARED, 50 * MB);
  pthread_t t[READERS];
  for (int i = 0; i < READERS; i++) CHECK(!pthread_create(&t[i], 0, watch, 0));
  for (unsigned i = 1; i <= 300; i++) {
    b[0] = i;
    CHECK(pwrite(o, b, PG, 50 * MB) == (ssize_t)PG);
    atomic_store(&written, i);
  }
  atomic_store(&over, 1);
  for (int i = 0; i < READERS; i++) CHECK(!pthread_join(t[i], 0));
  CHECK(!munmap(window, PG) && !close(o) && !close(plain));
}

// A store after the cleaning of its page and before the write: the CPU that stores has forgotten that it may, so the page is marked
// again, and stores that follow are written, too (rmap/clean.rs). fsync is made to stand between.
#define CLEANED "writeback.cleaned"
static atomic_int stood, through;
static void *syncs(void *a) {
  // The thread `writeback` may have been faster.
  while (!atomic_load(&stood)) {
    CHECK(!fsync(*(int *)a));
    atomic_fetch_add(&through, 1);
  }
  return 0;
}
static void stale(void) {
  int d = opened(O_RDWR), o = opened(O_RDWR | O_DIRECT);
  volatile unsigned *s = (void *)mapped(d, PG, PROT_READ | PROT_WRITE, MAP_SHARED, 52 * MB);
  unsigned *b = (unsigned *)anon(PG);
  for (unsigned i = 1; i <= 100; i++) {
    pthread_t t;
    s[0] = i;
    atomic_store(&stood, 0), atomic_store(&through, 0);
    CHECK(race("arm", CLEANED) && !pthread_create(&t, 0, syncs, &d));
    // Our TLB has the entry until somebody takes it away.
    while (s[1] = i, !stands(CLEANED)) CHECK(atomic_load(&through) < 1000);
    atomic_store(&stood, 1);
    s[2] = i;
    CHECK(race("release", CLEANED) && !pthread_join(t, 0));
    s[3] = i;
    CHECK(pread(o, b, PG, 52 * MB) == (ssize_t)PG);
    CHECK(b[0] == i && b[1] == i && b[2] == i && b[3] == i);
  }
  CHECK(!munmap((void *)s, PG) && !close(d) && !close(o));
}

// More than there is memory: what was read first makes room for what is read last, mapped or not.
static void small(void) {
  CHECK(kib("/proc/meminfo", "MemTotal:") < (long)(SIZE / KB));
  int d = opened(O_RDONLY);
  char *s = mapped(d, SIZE, PROT_READ, MAP_SHARED, 0);
  static char b[64 * 1024];
  for (int round = 0; round < 2; round++) {
    for (uint64_t at = 0; at < SIZE; at += sizeof b)
      CHECK(pread(d, b, sizeof b, at) == sizeof b && is_pattern(b, at, sizeof b));
    for (uint64_t at = 0; at < SIZE; at += PG) CHECK(is_pattern(s + at, at, 64));
  }
  // Anonymous memory takes it all back.
  size_t most = kib("/proc/meminfo", "MemAvailable:") * KB * 3 / 4;
  // Wherever in filling and letting go we stand.
  for (uint64_t at = 0; at < 2 * MB; at += sizeof b) CHECK(pread(d, b, sizeof b, at) == sizeof b);
  CHECK(kib("/proc/meminfo", "Buffers:") > 1000);
  char *a = anon(most);
  for (size_t i = 0; i < most; i += PG) a[i] = 1;
  CHECK(!munmap(a, most) && is_pattern(s, 0, 64));
}

static void bad(void) {
  int d = opened(O_RDONLY);
  static char b[128 * 1024];
  off_t broken = 2048 * 512;
  probe_install();
  char *s = mapped(d, 2 * MB, PROT_READ, MAP_SHARED, 0);
  CHECK(!strcmp(probe(s + broken, 'r'), "BUS_ADRERR"));
  CHECK(pread(d, b, PG, broken) == -1 && errno == EIO);
  CHECK(pread(d, b, sizeof b, broken - 64 * 1024) == 64 * 1024);
  int pipes[2];
  CHECK(!pipe(pipes) && write(pipes[1], s + broken, 100) == -1 && errno == EFAULT);
  CHECK(madvise(s, 2 * MB, MADV_POPULATE_READ) == -1 && errno == EFAULT);
  CHECK(is_pattern(s + broken - PG, broken - PG, PG) && is_pattern(s + broken + 16 * PG, broken + 16 * PG, PG));
  // A child dies of it, alone.
  pid_t c = fork();
  if (!c) {
    signal(SIGBUS, SIG_DFL);
    _exit(((volatile char *)s)[broken]);
  }
  int st;
  CHECK(waitpid(c, &st, 0) == c && WIFSIGNALED(st) && WTERMSIG(st) == SIGBUS);
}

int main(int n, char **v) {
  disk = v[n - 1];
  if (n == 3 && !strcmp(v[1], "small")) small();
  else if (n == 3 && !strcmp(v[1], "bad")) bad();
  else if (n == 3 && !strcmp(v[1], "stale")) stale();
  else {
    CHECK(n == 2);
    reads();
    mappings();
    writes();
    stores();
    races();
  }
  say("ok\n");
  return 0;
}
