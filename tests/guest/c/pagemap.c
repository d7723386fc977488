// What the kernel shows of single pages: /proc/PID/pagemap, kpagecount, kpageflags, smaps, vmstat, getrusage.
#include "t.h"
#include <sys/prctl.h>
#include <sys/uio.h>

#define PRESENT (1UL << 63)
#define FILEP (1UL << 61)
#define EXCL (1UL << 56)
#define PFN ((1UL << 55) - 1)
#define END 0x7ffffffffUL // pages of the address space

static int pm, kc, kf;
static uint64_t word(int f, uint64_t i) {
  uint64_t w = 0x1234;
  CHECK(pread(f, &w, 8, i * 8) == 8);
  return w;
}
static uint64_t map_of(const void *p) { return word(pm, (uintptr_t)p / PG); }
static void show(const char *what, const void *p) {
  uint64_t w = map_of(p), pfn = w & PFN;
  say("%s: present %d file %d exclusive %d pfn %d", what, !!(w & PRESENT), !!(w & FILEP), !!(w & EXCL), pfn != 0);
  if (pfn) {
    // LRU and what belongs to it come late on Linux, REFERENCED and UPTODATE depend on how the page came.
    static const struct { int bit; const char *name; } k[] = {{6, "slab"}, {8, "writeback"}, {10, "buddy"}, {11, "mmap"},
      {12, "anon"}, {14, "swapbacked"}, {15, "head"}, {16, "tail"}, {20, "nopage"}, {24, "zero"}, {26, "table"}};
    uint64_t f = word(kf, pfn);
    say(", count %lu, flags", (f >> 24 & 1) ? 0 : (unsigned long)word(kc, pfn));
    for (size_t i = 0; i < sizeof k / sizeof *k; i++)
      if (f >> k[i].bit & 1) say(" %s", k[i].name);
  }
  say("\n");
}

// The block of smaps for the mapping at p, without its address; soft-dirty and keys depend on how Linux was built.
static void smaps(const char *what, char *p) {
  FILE *f = fopen("/proc/self/smaps", "r");
  CHECK(f);
  char line[512], want[32];
  snprintf(want, sizeof want, "%lx-", (unsigned long)p);
  int in = 0;
  say("smaps of %s:\n", what);
  while (fgets(line, sizeof line, f)) {
    unsigned long a, b;
    char *sd;
    if (sscanf(line, "%lx-%lx ", &a, &b) == 2 && strchr(line, '-') < line + 17) {
      in = !strncmp(line, want, strlen(want));
      continue;
    }
    if (!in || !strncmp(line, "ProtectionKey", 13)) continue;
    if (!strncmp(line, "VmFlags:", 8) && (sd = strstr(line, " sd"))) memmove(sd, sd + 3, strlen(sd + 3) + 1);
    say("  %s", line);
  }
  fclose(f);
}
static long vmstat(const char *name) {
  FILE *f = fopen("/proc/vmstat", "r");
  CHECK(f);
  char n[64];
  long v, r = -1;
  while (fscanf(f, "%63s %ld", n, &v) == 2)
    if (!strcmp(n, name)) r = v;
  fclose(f);
  return r;
}

int main(void) {
  probe_install();
  prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
  pm = open("/proc/self/pagemap", O_RDONLY);
  kc = open("/proc/kpagecount", O_RDONLY);
  kf = open("/proc/kpageflags", O_RDONLY);
  CHECK(pm >= 0 && kc >= 0 && kf >= 0);

  // --- private memory
  char *p = anon_at(BASE, 16 * PG, PROT_READ | PROT_WRITE);
  show("never touched", p);
  (void)*(volatile char *)(p + PG);
  show("read", p + PG);
  p[2 * PG] = 1;
  show("written", p + 2 * PG);
  show("a hole", p + 16 * PG);
  CHECK(!mprotect(p + 2 * PG, PG, PROT_NONE));
  show("no access", p + 2 * PG);
  CHECK(!mprotect(p + 2 * PG, PG, PROT_READ | PROT_WRITE));
  int pp[2], qq[2];
  CHECK(!pipe(pp) && !pipe(qq));
  pid_t c = fork();
  if (!c) { write(pp[1], "x", 1); char x; read(qq[0], &x, 1); _exit(0); }
  char x;
  CHECK(read(pp[0], &x, 1) == 1);
  show("shared with a child", p + 2 * PG);
  uint64_t before = map_of(p + 2 * PG) & PFN;
  p[2 * PG] = 2;
  show("copied", p + 2 * PG);
  say("the copy is another frame: %d\n", (map_of(p + 2 * PG) & PFN) != before);
  char path[64];
  snprintf(path, 64, "/proc/%d/pagemap", c);
  int child = open(path, O_RDONLY);
  CHECK(child >= 0);
  say("the child has the old one: %d\n", (word(child, (uintptr_t)(p + 2 * PG) / PG) & PFN) == before);
  CHECK(write(qq[1], "x", 1) == 1 && waitpid(c, 0, 0) == c);
  uint64_t w;
  R(pread(child, &w, 8, (uintptr_t)p / PG * 8));
  close(child);
  snprintf(path, 64, "/proc/%d/pagemap", c);
  R(open(path, O_RDONLY));

  // --- files
  int m = memfd_create("m", 0);
  CHECK(!ftruncate(m, 4 * PG));
  char *s = mmap(BASE + 64 * PG, 4 * PG, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, m, 0);
  char *t = mmap(BASE + 96 * PG, 4 * PG, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, m, 0);
  CHECK(s == BASE + 64 * PG && t == BASE + 96 * PG);
  s[0] = 1;
  show("shared, one mapping", s);
  (void)*(volatile char *)t;
  show("shared, two mappings", s);
  t[0] = 2;
  show("private copy", t);
  show("the original", s);
  say("never mapped: %d\n", (int)(map_of(s + PG) >> 61));

  // --- offsets, lengths, addresses
  R(pread(pm, &w, 8, 4));
  R(pread(pm, &w, 7, 0));
  R(pread(pm, &w, 0, 0));
  R(pread(pm, &w, 0, 3));
  static uint64_t many[4096];
  R(pread(pm, many, 64, (END - 2) * 8));
  R(pread(pm, many, 64, END * 8));
  R(pread(pm, many, 64, 1L << 61));
  R(pread(pm, many, 64, -8L));
  R(lseek(pm, 16, SEEK_SET));
  R(lseek(pm, 8, SEEK_CUR));
  R(lseek(pm, 0, SEEK_END));
  R(lseek(kf, 0, SEEK_END));
  R(lseek(pm, 0, SEEK_DATA));
  R(lseek(pm, 0, SEEK_CUR));
  R(read(pm, (void *)8, 4096));
  R(lseek(pm, 0, SEEK_CUR));
  R(read(pm, many, sizeof many));
  R(lseek(pm, 0, SEEK_CUR));
  // Across tables, holes and mappings at once.
  for (int i = 0; i < 16; i++) p[i * PG] = 1;
  R(pread(pm, many, sizeof many, (uintptr_t)(BASE - 2048 * PG) / PG * 8));
  int n = 0, first = -1;
  for (int i = 0; i < 4096; i++)
    if (many[i] & PRESENT) { n++; if (first < 0) first = i; }
  say("%d present, the first is %d\n", n, first);
  // A page in the middle that cannot be written: nothing is told, nothing moves.
  char *bad = anon(2 * PG);
  CHECK(!mprotect(bad + PG, PG, PROT_NONE));
  R(pread(pm, bad, 2 * PG, 0));
  R(pread(kf, &w, 8, 4));
  R(pread(kf, &w, 4, 8));
  R(pread(kc, &w, 8, 1L << 55));
  R(pread(kc, &w, 8, -8L));
  R(pread(kc, (void *)8, 8, 0));
  R(pwrite(kc, &w, 8, 0));
  R(write(pm, &w, 8));
  // Pages that are there one after the other are counted once each.
  int sum = 0;
  for (int i = 0; i < 16; i++) sum += (int)word(kc, map_of(p + i * PG) & PFN);
  say("16 pages are mapped %d times\n", sum);

  // --- without rights
  pid_t u = fork();
  if (!u) {
    CHECK(!setresuid(65534, 65534, 65534) && !prctl(PR_SET_DUMPABLE, 1, 0, 0, 0));
    R(open("/proc/kpagecount", O_RDONLY));
    R(open("/proc/kpageflags", O_RDONLY));
    R(open("/proc/1/pagemap", O_RDONLY));
    CHECK((pm = open("/proc/self/pagemap", O_RDONLY)) >= 0);
    p[0] = 3;
    show("without rights", p);
    _exit(0);
  }
  CHECK(waitpid(u, 0, 0) == u);

  // --- smaps
  char *q = anon_at(BASE + 1024 * PG, 8 * PG, PROT_READ | PROT_WRITE);
  q[0] = q[PG] = 1;
  (void)*(volatile char *)(q + 2 * PG);
  smaps("three pages used of eight", q);
  anon_at(BASE + 1100 * PG, 4 * PG, PROT_NONE);
  smaps("nothing allowed", BASE + 1100 * PG);
  CHECK(!mprotect(BASE + 1100 * PG, 4 * PG, PROT_READ | PROT_WRITE));
  smaps("allowed later", BASE + 1100 * PG);
  CHECK(!mprotect(BASE + 1100 * PG, 4 * PG, PROT_READ));
  smaps("taken back, nothing written", BASE + 1100 * PG);
  CHECK(mmap(BASE + 1200 * PG, 4 * PG, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0) != MAP_FAILED);
  CHECK(!madvise(BASE + 1200 * PG, 4 * PG, MADV_DONTFORK) && !madvise(BASE + 1200 * PG, 4 * PG, MADV_RANDOM));
  smaps("no promise, not for children, at random", BASE + 1200 * PG);
  smaps("shared", s);
  (void)*(volatile char *)t; // Pinfold forgets at fork that a page was used
  smaps("private of a file", t);

  // --- rollup: the lines
  FILE *f = fopen("/proc/self/smaps_rollup", "r");
  CHECK(f);
  char line[256];
  CHECK(fgets(line, sizeof line, f));
  say("rollup: %s", strchr(line, ' '));
  while (fgets(line, sizeof line, f)) { *strchr(line, ':') = 0; say(" %s", line); }
  say("\n");
  fclose(f);

  // --- faults
  struct rusage a, b;
  long pf = vmstat("pgfault");
  CHECK(pf > 0 && vmstat("nr_free_pages") > 0 && vmstat("nr_mlock") >= 0 && vmstat("nr_unevictable") >= 0);
  CHECK(vmstat("nr_page_table_pages") > 0 && vmstat("nr_anon_pages") > 0 && vmstat("nr_mapped") > 0);
  char *g = anon_at(BASE + 2048 * PG, 300 * PG, PROT_READ | PROT_WRITE);
  CHECK(!getrusage(RUSAGE_SELF, &a));
  for (int i = 0; i < 300; i++) g[i * PG] = 1;
  CHECK(!getrusage(RUSAGE_SELF, &b));
  say("300 pages touched: %ld minor faults, %ld major\n", b.ru_minflt - a.ru_minflt, b.ru_majflt - a.ru_majflt);
  // What the kernel faults in on somebody's behalf counts for whoever asked (FAULT-11).
  char *ahead = mmap(BASE + 4096 * PG, 300 * PG, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE | MAP_FIXED, -1, 0);
  CHECK(ahead == BASE + 4096 * PG && !getrusage(RUSAGE_SELF, &a));
  say("300 pages populated: %ld\n", a.ru_minflt - b.ru_minflt);
  CHECK(!madvise(ahead, 300 * PG, MADV_DONTNEED) && !mlock(ahead, 300 * PG) && !getrusage(RUSAGE_SELF, &b));
  say("300 pages locked: %ld\n", b.ru_minflt - a.ru_minflt);
  CHECK(!munlock(ahead, 300 * PG) && !madvise(ahead, 300 * PG, MADV_DONTNEED));
  pid_t other = fork();
  if (!other) { for (;;) pause(); }
  static char into[20 * PG];
  memset(into, 1, sizeof into);
  struct iovec to = {into, sizeof into}, from = {ahead, sizeof into};
  CHECK(!getrusage(RUSAGE_SELF, &a) && process_vm_readv(other, &to, 1, &from, 1, 0) == sizeof into && !getrusage(RUSAGE_SELF, &b));
  // More where pages of the reader's own were still shared with the child.
  long taken = b.ru_minflt - a.ru_minflt;
  say("20 pages of another's read: at least 20 %d\n", taken >= 20);
  kill(other, SIGKILL);
  CHECK(waitpid(other, 0, 0) == other);
  pid_t d = fork();
  if (!d) { for (int i = 0; i < 300; i++) g[i * PG] = 2; _exit(0); }
  CHECK(waitpid(d, 0, 0) == d && !getrusage(RUSAGE_CHILDREN, &b));
  say("the children's: at least 300 %d\n", b.ru_minflt >= 300);
  say("pgfault went up by 600 and more: %d\n", vmstat("pgfault") - pf >= 600);
  return 0;
}
