// mlock and its family, MAP_LOCKED, MAP_POPULATE, MADV_POPULATE_*: who may, how much, what it answers, what is
// resident and what is counted afterwards (SPEC POP-1 to POP-6, VMA-1, BUG-19).
#include "t.h"
#include <sys/prctl.h>

#ifndef MLOCK_ONFAULT
#define MLOCK_ONFAULT 1
#endif
#ifndef MCL_ONFAULT
#define MCL_ONFAULT 4
#endif
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MADV_DONTNEED_LOCKED
#define MADV_DONTNEED_LOCKED 24
#endif

#define RW (PROT_READ | PROT_WRITE)
#define ANON (MAP_PRIVATE | MAP_ANONYMOUS)

static const char *got(long r) { return r < 0 ? ename(errno) : "ok"; }
#define TELL(c)                                 \
  do {                                          \
    errno = 0;                                  \
    long tell_ = (long)(c);                     \
    say("%s: %s\n", #c, got(tell_));            \
  } while (0)
static int lock2(void *p, size_t n, int flags) { return syscall(SYS_mlock2, p, n, flags); }

// A number of /proc/self/status, in kB.
static long status(const char *key) {
  FILE *f = fopen("/proc/self/status", "r");
  char line[256];
  long n = -1;
  while (f && fgets(line, sizeof line, f))
    if (!strncmp(line, key, strlen(key))) n = atol(line + strlen(key) + 1);
  CHECK(f);
  fclose(f);
  return n;
}
// A number of smaps for the mapping that begins at p, in kB; and whether VmFlags has lo, lf.
static long smaps(void *p, const char *key) {
  FILE *f = fopen("/proc/self/smaps", "r");
  char line[512], start[32];
  snprintf(start, sizeof start, "%lx-", (unsigned long)p);
  long n = -1;
  int in = 0;
  while (f && fgets(line, sizeof line, f)) {
    if (strchr(line, '-') && strchr(line, '-') < strchr(line, ' ')) in = !strncmp(line, start, strlen(start));
    if (in && !strncmp(line, key, strlen(key))) n = atol(line + strlen(key) + 1);
    if (in && !strcmp(key, "lo") && !strncmp(line, "VmFlags:", 8)) n = !!strstr(line, " lo") + 2 * !!strstr(line, " lf");
  }
  CHECK(f);
  fclose(f);
  return n;
}
static long mlocked(void) {
  FILE *f = fopen("/proc/meminfo", "r");
  char line[256];
  long n = -1;
  while (f && fgets(line, sizeof line, f))
    if (!strncmp(line, "Mlocked:", 8)) n = atol(line + 8);
  CHECK(f);
  fclose(f);
  return n;
}
static int resident(char *p, int pages) {
  unsigned char v[256];
  CHECK(!mincore(p, pages * PG, v));
  int n = 0;
  for (int i = 0; i < pages; i++) n += v[i] & 1;
  return n;
}
static char *map(int pages, int prot, int flags) {
  char *p = mmap(NULL, pages * PG, prot, ANON | flags, -1, 0);
  CHECK(p != MAP_FAILED);
  return p;
}
// At a place with nothing beside it, so that it is a mapping of its own in smaps.
static char *alone(int pages, int prot, int flags) {
  char *p = map(pages + 2, PROT_NONE, 0);
  CHECK(mmap(p + PG, pages * PG, prot, ANON | MAP_FIXED | flags, -1, 0) == p + PG);
  return p + PG;
}
static void limit(long bytes) {
  struct rlimit r = {bytes, bytes};
  CHECK(!setrlimit(RLIMIT_MEMLOCK, &r));
}
static void reap(pid_t pid, const char *what) {
  int st;
  CHECK(pid > 0 && waitpid(pid, &st, 0) == pid);
  say("%s: %s %d\n", what, WIFEXITED(st) ? "exit" : "signal", WIFEXITED(st) ? WEXITSTATUS(st) : WTERMSIG(st));
}
// Runs f without any right beyond its limit.
static void plain(const char *what, void (*f)(void)) {
  pid_t pid = fork();
  if (!pid) {
    limit(64 * PG);
    CHECK(!setresgid(65534, 65534, 65534) && !setresuid(65534, 65534, 65534));
    // Who gave up its identity may look into its own /proc again.
    prctl(PR_SET_DUMPABLE, 1);
    f();
    _exit(0);
  }
  reap(pid, what);
}

static void arguments(void) {
  char *p = alone(8, RW, 0);
  TELL(mlock(p, 0));
  TELL(mlock(p + 1, 0));
  say("a byte's page: %ld kB\n", status("VmLck"));
  TELL(munlock(p + 5, 1));
  say("none: %ld kB\n", status("VmLck"));
  TELL(mlock(p + PG - 1, 2));
  say("two pages: %ld kB\n", status("VmLck"));
  TELL(munlock(p, 8 * PG));
  TELL(mlock(p, -1UL));
  TELL(mlock(p, -PG));
  TELL(mlock((void *)(1UL << 62), PG));
  TELL(mlock(p, 1UL << 50));
  TELL(munlock(p, 1UL << 50));
  TELL(munlock((void *)0x1000, PG));
  TELL(lock2(p, PG, 2));
  TELL(lock2(p, PG, -1));
  TELL(mlockall(0));
  TELL(mlockall(MCL_ONFAULT));
  TELL(mlockall(8 | MCL_CURRENT));
  TELL(munmap(p, 8 * PG));
  // A hole: what lies before it is locked all the same.
  p = alone(8, RW, 0);
  CHECK(!munmap(p + 4 * PG, PG));
  TELL(mlock(p, 8 * PG));
  say("before the hole: %ld kB, lo %ld, resident %d\n", status("VmLck"), smaps(p, "lo"), resident(p, 4));
  TELL(munlock(p, 8 * PG));
  TELL(munlock(p + 5 * PG, 3 * PG));
  say("left: %ld kB\n", status("VmLck"));
  // Nobody may touch it: locked and not there.
  p = alone(4, PROT_NONE, 0);
  TELL(mlock(p, 4 * PG));
  say("inaccessible: %ld kB\n", status("VmLck"));
  CHECK(!munlock(p, 4 * PG));
  // Execute only is a protection key where the machine has them, which is another story.
  for (int prot = 1; prot < 8; prot++) {
    if (prot == PROT_EXEC) continue;
    p = alone(4, prot, 0);
    long r = mlock(p, 4 * PG);
    say("prot %d: %s, %d resident, Rss %ld\n", prot, got(r), resident(p, 4), smaps(p, "Rss"));
    CHECK(!munlock(p, 4 * PG));
  }
}

static void files(void) {
  int fd = memfd_create("m", 0);
  CHECK(fd >= 0 && !ftruncate(fd, 3 * PG));
  char *p = mmap(NULL, 6 * PG, RW, MAP_SHARED, fd, 0);
  CHECK(p != MAP_FAILED);
  TELL(mlock(p, 6 * PG));
  say("beyond the end: %ld kB, Rss %ld, Locked %ld\n", status("VmLck"), smaps(p, "Rss"), smaps(p, "Locked"));
  CHECK(!ftruncate(fd, PG));
  say("cut: Rss %ld\n", smaps(p, "Rss"));
  CHECK(!ftruncate(fd, 6 * PG));
  TELL(mlock(p, 6 * PG));
  CHECK(!munlock(p, 6 * PG));
  TELL(mlock(p, 6 * PG));
  say("whole: Rss %ld\n", smaps(p, "Rss"));
  CHECK(!munmap(p, 6 * PG));
  say("unmapped: %ld kB\n", status("VmLck"));
  // Private: copies are made now, the file stays as it is.
  p = mmap(NULL, 6 * PG, RW, MAP_PRIVATE, fd, 0);
  CHECK(!mlock(p, 6 * PG));
  say("private: Anonymous %ld\n", smaps(p, "Anonymous"));
  CHECK(!munmap(p, 6 * PG));
  p = mmap(NULL, 6 * PG, PROT_READ, MAP_PRIVATE, fd, 0);
  CHECK(!mlock(p, 6 * PG));
  say("read only: Anonymous %ld\n", smaps(p, "Anonymous"));
  CHECK(!mprotect(p, 6 * PG, RW));
  say("made writable: Anonymous %ld\n", smaps(p, "Anonymous"));
  CHECK(!munmap(p, 6 * PG));
  close(fd);
}

static void all_and_future(void) {
  pid_t pid = fork();
  if (!pid) {
    char *before = alone(4, RW, 0);
    TELL(mlockall(MCL_FUTURE));
    say("future: before %ld\n", smaps(before, "lo"));
    char *p = alone(4, RW, 0);
    say("future: mapped %ld, resident %d\n", smaps(p, "lo"), resident(p, 4));
    char *end = sbrk(0);
    CHECK(sbrk(64 * PG) == end);
    end = (char *)(((unsigned long)end + PG - 1) & -PG);
    say("future: heap resident %d of 63\n", resident(end, 63));
    TELL(mlockall(MCL_FUTURE | MCL_ONFAULT));
    char *q = alone(4, RW, 0);
    say("on fault: %ld, resident %d\n", smaps(q, "lo"), resident(q, 4));
    q[PG] = 1;
    say("touched: resident %d, Locked %ld\n", resident(q, 4), smaps(q, "Locked"));
    char *r = alone(4, RW, MAP_POPULATE);
    say("populate on fault: resident %d\n", resident(r, 4));
    TELL(munlockall());
    say("after: %ld %ld, %ld kB\n", smaps(p, "lo"), smaps(q, "lo"), status("VmLck"));
    p = alone(4, RW, 0);
    say("again: %ld, resident %d\n", smaps(p, "lo"), resident(p, 4));
    TELL(mlockall(MCL_CURRENT));
    say("current: %ld, resident %d, every kB but what cannot be: %d\n", smaps(p, "lo"), resident(p, 4),
        status("VmLck") > 0 && status("VmLck") <= status("VmSize"));
    p = alone(4, RW, 0);
    say("new: %ld\n", smaps(p, "lo"));
    pid_t child = fork();
    if (!child) {
      say("child: %ld kB\n", status("VmLck"));
      CHECK(mlocked() >= 0);
      _exit(0);
    }
    reap(child, "child of the locked");
    // exec forgets.
    TELL(mlockall(MCL_CURRENT | MCL_FUTURE));
    execl("/proc/self/exe", "mlock", "look", NULL);
    _exit(9);
  }
  reap(pid, "all and future");
}

static void moving(void) {
  char *p = alone(8, RW, 0);
  CHECK(!mlock(p, 4 * PG));
  say("half: %ld kB\n", status("VmLck"));
  CHECK(!mlock(p, 8 * PG));
  say("whole once: %ld kB\n", status("VmLck"));
  TELL(madvise(p, PG, MADV_DONTNEED));
  p[0] = 7;
  TELL(madvise(p, PG, MADV_DONTNEED_LOCKED));
  say("gone: %d, resident %d\n", p[0], resident(p, 8));
  // Growth is brought in, wherever it goes.
  char *room = map(40, PROT_NONE, 0);
  CHECK(!munmap(room, 40 * PG));
  p = mremap(p, 8 * PG, 16 * PG, MREMAP_MAYMOVE);
  CHECK(p != MAP_FAILED);
  say("grown: %ld kB, resident %d\n", status("VmLck"), resident(p, 16));
  CHECK(mremap(p, 16 * PG, 4 * PG, 0) == p);
  say("shrunk: %ld kB\n", status("VmLck"));
  // (VmLck is not asked here: 6.18 forgets to take the old place off it.)
  pid_t pid = fork();
  if (!pid) {
    CHECK(!mlock(p, 4 * PG));
    char *q = mremap(p, 4 * PG, 4 * PG, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL);
    CHECK(q != MAP_FAILED);
    say("left behind: %ld %ld\n", smaps(p, "lo"), smaps(q, "lo"));
    _exit(0);
  }
  reap(pid, "left behind");
  CHECK(!munmap(p, 4 * PG));
  // After a fork pages are shared; a lock takes copies back.
  p = alone(8, RW, 0);
  memset(p, 3, 8 * PG);
  int go[2], done[2];
  CHECK(!pipe(go) && !pipe(done));
  pid = fork();
  if (!pid) {
    char c;
    CHECK(read(go[0], &c, 1) == 1);
    for (int i = 0; i < 8; i++) CHECK(p[i * PG] == 3);
    _exit(0);
  }
  say("shared: Private_Dirty %ld\n", smaps(p, "Private_Dirty"));
  CHECK(!mlock(p, 8 * PG));
  say("locked: Private_Dirty %ld\n", smaps(p, "Private_Dirty"));
  CHECK(write(go[1], "x", 1) == 1);
  reap(pid, "sharer");
  CHECK(!munmap(p, 8 * PG));
  say("end: %ld kB\n", status("VmLck"));
}

static void limits(void) {
  char *p = alone(100, RW, 0);
  TELL(mlock(p, 65 * PG));
  TELL(mlock(p, 64 * PG));
  TELL(mlock(p, 64 * PG));
  TELL(mlock(p + 32 * PG, 32 * PG));
  TELL(mlock(p + 32 * PG, 33 * PG));
  say("at the limit: %ld kB\n", status("VmLck"));
  TELL(mmap(NULL, PG, RW, ANON | MAP_LOCKED, -1, 0) == MAP_FAILED ? -1 : 0);
  TELL(mremap(p, 64 * PG, 100 * PG, MREMAP_MAYMOVE) == MAP_FAILED ? -1 : 0);
  CHECK(!munlock(p, 60 * PG));
  TELL(mmap(NULL, PG, RW, ANON | MAP_LOCKED, -1, 0) == MAP_FAILED ? -1 : 0);
  say("%ld kB\n", status("VmLck"));
  TELL(mlockall(MCL_CURRENT));
  TELL(mlockall(MCL_FUTURE));
  TELL(mmap(NULL, 100 * PG, RW, ANON, -1, 0) == MAP_FAILED ? -1 : 0);
  char *end = sbrk(0);
  say("heap of 80 pages: %s\n", sbrk(80 * PG) == (void *)-1 ? ename(errno) : "ok");
  CHECK(sbrk(0) == end);
  TELL(mlockall(MCL_CURRENT | MCL_FUTURE));
  TELL(munlockall());
  say("%ld kB\n", status("VmLck"));
  limit(0);
  TELL(mlock(p, PG));
  TELL(mlock(p, 0));
  TELL(lock2(p, PG, 2));
  TELL(mlockall(MCL_CURRENT));
  TELL(mlockall(0));
  TELL(munlock(p, PG));
  TELL(mmap(NULL, PG, RW, ANON | MAP_LOCKED, -1, 0) == MAP_FAILED ? -1 : 0);
  TELL(mmap(NULL, PG, RW, ANON, -1, 0) == MAP_FAILED ? -1 : 0);
}

// A locked stack grows as far as the limit lets it.
static __attribute__((noinline)) int deep(int pages) {
  volatile char here[PG];
  here[0] = pages;
  return pages ? deep(pages - 1) + here[0] : here[0];
}
static char *stack_start(void) {
  FILE *f = fopen("/proc/self/maps", "r");
  char line[512];
  unsigned long start = 0;
  while (f && fgets(line, sizeof line, f))
    if (strstr(line, "[stack]")) start = strtoul(line, NULL, 16);
  CHECK(f && start);
  fclose(f);
  return (char *)start;
}
static void stack(void) {
  char *low = stack_start();
  TELL(mlock(low, PG));
  say("one page: %ld kB\n", status("VmLck"));
  int pages = (int)(((char *)__builtin_frame_address(0) - low) / PG) + 30;
  deep(pages);
  long now = status("VmLck");
  say("what it grew by is locked: %d\n", now > 20 * 4 && now < 64 * 4);
  deep(pages + 100);
  say("not reached\n");
}

static void populate(void) {
  char *p = alone(8, RW, MAP_POPULATE);
  say("populated: %d, Anonymous %ld\n", resident(p, 8), smaps(p, "Anonymous"));
  p = alone(8, RW, MAP_POPULATE | MAP_NONBLOCK);
  say("nonblock: %d\n", resident(p, 8));
  p = alone(8, PROT_READ, MAP_POPULATE);
  say("read only: %d, Rss %ld\n", resident(p, 8), smaps(p, "Rss"));
  p = alone(8, PROT_NONE, MAP_POPULATE);
  say("none: %d\n", resident(p, 8));
  p = alone(8, PROT_WRITE, MAP_POPULATE);
  say("write only: %d, Anonymous %ld\n", resident(p, 8), smaps(p, "Anonymous"));
  p = alone(8, RW, MAP_LOCKED);
  say("locked: %d, lo %ld, Locked %ld\n", resident(p, 8), smaps(p, "lo"), smaps(p, "Locked"));
  CHECK(!munlock(p, 8 * PG));

  for (int prot = 0; prot < 8; prot++) {
    for (int how = MADV_POPULATE_READ; how <= MADV_POPULATE_WRITE; how++) {
      p = alone(8, prot, 0);
      long r = madvise(p, 8 * PG, how);
      say("advice %d, prot %d: %s, %d resident, Anonymous %ld\n", how, prot, got(r), resident(p, 8), smaps(p, "Anonymous"));
    }
  }
  p = alone(8, RW, 0);
  TELL(madvise(p + 1, PG, MADV_POPULATE_READ));
  TELL(madvise(p, 0, MADV_POPULATE_READ));
  TELL(madvise(p, -1UL, MADV_POPULATE_READ));
  TELL(madvise(p, -PG, MADV_POPULATE_READ));
  TELL(madvise(p, 1UL << 47, MADV_NORMAL));
  TELL(madvise((void *)(1UL << 60), PG, MADV_POPULATE_READ));
  CHECK(!munmap(p + 4 * PG, PG));
  TELL(madvise(p, 8 * PG, MADV_POPULATE_WRITE));
  say("before the hole %d, behind %d\n", resident(p, 4), resident(p + 5 * PG, 3));
  CHECK(!mprotect(p + 2 * PG, PG, PROT_READ));
  TELL(madvise(p, 4 * PG, MADV_POPULATE_WRITE));
  TELL(madvise(p, 4 * PG, MADV_POPULATE_READ));
  int fd = memfd_create("m", 0);
  CHECK(fd >= 0 && !ftruncate(fd, 3 * PG));
  p = mmap(NULL, 6 * PG, RW, MAP_SHARED, fd, 0);
  TELL(madvise(p, 6 * PG, MADV_POPULATE_READ));
  say("to the end of the file: Rss %ld\n", smaps(p, "Rss"));
  TELL(madvise(p, 6 * PG, MADV_POPULATE_WRITE));
  TELL(madvise(p, 3 * PG, MADV_POPULATE_WRITE));
  CHECK(!munmap(p, 6 * PG));
  p = mmap(NULL, 6 * PG, RW, MAP_SHARED | MAP_POPULATE, fd, 0);
  say("errors are nobody's: Rss %ld\n", smaps(p, "Rss"));
}

// BUG-19: touching ahead stays out of the gap below a stack, however close the next mapping is.
static void gap(void) {
  pid_t pid = fork();
  if (!pid) {
    char *room = map(600, PROT_NONE, 0);
    CHECK(!munmap(room, 600 * PG));
    char *top = room + 300 * PG, *low = top - 256 * PG;
    CHECK(mmap(top, 4 * PG, RW, ANON | MAP_FIXED | MAP_GROWSDOWN, -1, 0) == top);
    CHECK(mmap(low - PG, PG, RW, ANON | MAP_FIXED, -1, 0) == low - PG);
    TELL(mlockall(MCL_CURRENT));
    say("stack: resident %d, below it %d\n", resident(top, 4), resident(low - PG, 1));
    unsigned char v[256];
    int free_pages = 0;
    for (char *p = low; p < top; p += PG) free_pages += mincore(p, PG, v) == -1 && errno == ENOMEM;
    say("the gap: %d pages free\n", free_pages);
    top[-1] = 1;
    _exit(0);
  }
  reap(pid, "into the gap");
}

// Locked pages are counted while they are, and by nobody afterwards: ours are 4 MiB of whatever there is.
static void counted(void) {
  long before = mlocked();
  char *p = alone(1024, RW, 0);
  CHECK(!mlock(p, 1024 * PG));
  long locked = mlocked();
  pid_t pid = fork();
  if (!pid) {
    CHECK(!mlock(p, 512 * PG));
    _exit(0);
  }
  reap(pid, "a child's lock");
  CHECK(!munlock(p, 512 * PG));
  CHECK(!munmap(p, 1024 * PG));
  long after = mlocked();
  // Linux's counters lag behind, some pages on each CPU.
  say("Mlocked rose by 4 MiB: %d, and fell: %d\n", labs(locked - before - 4096) <= 1024, labs(after - before) <= 1024);
}

int main(int argc, char **argv) {
  if (argc > 1 && !strcmp(argv[1], "look")) {
    say("after exec: %ld kB\n", status("VmLck"));
    return 0;
  }
  (void)argv;
  limit(8 * MB);
  arguments();
  files();
  all_and_future();
  moving();
  populate();
  gap();
  counted();
  plain("limits", limits);
  plain("stack", stack);
  return 0;
}
