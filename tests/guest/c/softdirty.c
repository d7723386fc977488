// Soft-dirty pages: clear_refs, then pagemap tells which pages were written since (SOFTD-1). Checks itself: not
// every Linux is built with it.
#include "t.h"
#include <pthread.h>

#define N 8
static int pm;
static int dirty(const void *p) {
  uint64_t w;
  CHECK(pread(pm, &w, 8, (uintptr_t)p / PG * 8) == 8);
  return w >> 55 & 1;
}
static void forget(int what) {
  char t[4];
  int f = open("/proc/self/clear_refs", O_WRONLY);
  CHECK(f >= 0 && write(f, t, snprintf(t, 4, "%d\n", what)) == 2);
  close(f);
}
static void expect(const char *what, const char *p, const char *pages) {
  char got[N + 1] = "";
  for (int i = 0; pages[i]; i++) got[i] = dirty(p + i * PG) ? 'd' : '.';
  if (strcmp(got, pages)) { say("FAILED %s: %s, not %s\n", what, got, pages); _exit(1); }
  say("%s: %s\n", what, got);
}
static volatile int stop;
static char *area;
static void *writer(void *a) {
  (void)a;
  while (!stop) for (int i = 0; i < N; i++) ((volatile char *)area)[i * PG]++;
  return 0;
}
static void cycle(const char *kind, char *p) {
  expect("new", p, "dddddddd");
  p[0] = 1;
  (void)*(volatile char *)(p + PG);
  forget(4);
  expect(kind, p, "........");
  (void)*(volatile char *)p, (void)*(volatile char *)(p + PG), (void)*(volatile char *)(p + 2 * PG);
  expect("read", p, "........");
  p[0] = p[PG] = p[2 * PG] = p[3 * PG] = 1;
  expect("written", p, "dddd....");
  forget(4);
  CHECK(!mprotect(p, N * PG, PROT_READ) && !mprotect(p, N * PG, PROT_READ | PROT_WRITE));
  expect("rights changed", p, "........");
  p[4 * PG] = 1, p[0] = 1;
  expect("written", p, "d...d...");
  // The kernel's own write counts, and a child's does not.
  int z = open("/dev/zero", O_RDONLY);
  forget(4);
  CHECK(read(z, p + 5 * PG, 1) == 1);
  expect("written by a call", p, ".....d..");
  pid_t c = fork();
  if (!c) {
    int own = open("/proc/self/pagemap", O_RDONLY);
    pm = own;
    // Entries of shared memory are not copied, but found again.
    expect("a child begins with", p, *kind == 's' ? "........" : ".....d..");
    p[6 * PG] = 1;
    _exit(dirty(p + 6 * PG) ? 0 : 1);
  }
  int st;
  CHECK(waitpid(c, &st, 0) == c && st == 0);
  expect("a child wrote", p, ".....d..");
  p[6 * PG] = 2;
  expect("copied", p, ".....dd.");
}
int main(void) {
  pm = open("/proc/self/pagemap", O_RDONLY);
  CHECK(pm >= 0);
  char *p = anon_at(BASE, N * PG, PROT_READ | PROT_WRITE);
  cycle("private", p);
  int m = memfd_create("m", 0);
  CHECK(!ftruncate(m, N * PG));
  char *s = mmap(BASE + 64 * PG, N * PG, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, m, 0);
  char *t = mmap(BASE + 128 * PG, N * PG, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, m, 0);
  CHECK(s == BASE + 64 * PG && t == BASE + 128 * PG);
  cycle("shared", s);
  CHECK(munmap(t, N * PG) == 0);
  t = mmap(t, N * PG, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, m, 0);
  cycle("private of a file", t);
  // Through another mapping: this one's entries know nothing.
  char *s2 = mmap(BASE + 192 * PG, N * PG, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, m, 0);
  CHECK(s2 == BASE + 192 * PG);
  (void)*(volatile char *)s2;
  forget(4);
  s[0] = 1;
  say("by another mapping: %d %d\n", dirty(s), dirty(s2));
  CHECK(dirty(s) && !dirty(s2));
  // Moved pages have changed.
  forget(4);
  char *q = mremap(p, N * PG, N * PG, MREMAP_MAYMOVE | MREMAP_FIXED, BASE + 1024 * PG);
  CHECK(q == BASE + 1024 * PG);
  expect("moved", q, "dddddddd");
  // Uses: 1 to 3 leave the marks alone, 5 lowers the peak, the rest is refused.
  forget(4);
  q[0] = 1;
  forget(1), forget(2), forget(3);
  expect("uses forgotten", q, "d.......");
  int f = open("/proc/self/clear_refs", O_RDWR);
  CHECK(f >= 0);
  char b[4];
  R(write(f, "0", 1));
  R(write(f, "6", 1));
  R(write(f, "-1", 2));
  R(write(f, "4x", 2));
  R(write(f, "", 0));
  R(write(f, " 1 \n", 4));
  R(write(f, (char *)8, 1));
  R(read(f, b, 4));
  struct rusage u;
  char *big = anon(16 * MB);
  memset(big, 1, 16 * MB);
  CHECK(!getrusage(RUSAGE_SELF, &u) && u.ru_maxrss >= 16 * 1024);
  munmap(big, 16 * MB);
  forget(5);
  char line[128];
  long hwm = -1;
  FILE *st = fopen("/proc/self/status", "r");
  while (fgets(line, sizeof line, st)) sscanf(line, "VmHWM: %ld", &hwm);
  fclose(st);
  say("peak forgotten: %d\n", hwm > 0 && hwm < 16 * 1024);
  // Another thread writes all the time: each round finds each page written again.
  area = anon(N * PG);
  pthread_t th;
  CHECK(!pthread_create(&th, 0, writer, 0));
  for (int round = 0; round < 50; round++) {
    unsigned char was[N];
    forget(4);
    for (int i = 0; i < N; i++) was[i] = ((volatile unsigned char *)area)[i * PG];
    for (int i = 0; i < N; i++)
      while (((volatile unsigned char *)area)[i * PG] == was[i]) sched_yield();
    for (int i = 0; i < N; i++) CHECK(dirty(area + i * PG));
  }
  stop = 1;
  pthread_join(th, 0);
  say("no write was missed\n");
  return 0;
}
