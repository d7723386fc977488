// process_vm_readv and process_vm_writev (LOCK-4): errno, partial counts, permissions, a process that is in the middle of things.
#include "t.h"
#include <sys/prctl.h>
#include <sys/uio.h>
static char here[8 * PG];
static long rd(pid_t p, void *l, size_t ln, void *r, size_t rn) { struct iovec a = {l, ln}, b = {r, rn}; return process_vm_readv(p, &a, 1, &b, 1, 0); }
static long wr(pid_t p, void *l, size_t ln, void *r, size_t rn) { struct iovec a = {l, ln}, b = {r, rn}; return process_vm_writev(p, &a, 1, &b, 1, 0); }
static long raw(int nr, long p, void *l, long ln, void *r, long rn, long fl) { return syscall(nr, p, l, ln, r, rn, fl); }
static int to[2], from[2];
static pid_t helper(void (*f)(void)) { // a child that has done `f` and waits
  CHECK(!pipe(to) && !pipe(from));
  pid_t c = fork();
  CHECK(c >= 0);
  if (!c) { close(to[1]); close(from[0]); f(); char b = 'r'; CHECK(write(from[1], &b, 1) == 1); CHECK(read(to[0], &b, 1) >= 0); _exit(0); }
  close(to[0]); close(from[1]);
  char b;
  CHECK(read(from[0], &b, 1) == 1);
  return c;
}
static void bury(pid_t c) { close(to[1]); close(from[0]); int st; CHECK(waitpid(c, &st, 0) == c); say("helper %x\n", st); }
static void nothing(void) {}
static void errnos(void) {
  char b[16] = "abc", c[16] = {0};
  struct iovec l = {c, 3}, r = {b, 3}, none = {c, 0}, neg = {c, -1}, high = {(void *)-4096L, 8}, many[1025];
  for (int i = 0; i < 1025; i++) many[i] = (struct iovec){c, 0};
  long me = getpid(), rv = SYS_process_vm_readv, wv = SYS_process_vm_writev;
  R(raw(rv, me, &l, 1, &r, 1, 1));
  R(raw(rv, me, &l, 1, &r, 1, 1L << 40));
  R(raw(rv, me, &l, 1025, &r, 1, 0));
  R(raw(rv, me, many, 1024, &r, 1, 0));
  R(raw(rv, me, &l, 1, many, 1025, 0));
  R(raw(rv, me, &l, 1, many, 1024, 0));
  R(raw(rv, me, &l, -1, &r, 1, 0));
  R(raw(rv, me, (void *)8, 1, &r, 1, 0));
  R(raw(rv, me, &l, 1, (void *)8, 1, 0));
  R(raw(rv, me, &neg, 1, &r, 1, 0));
  R(raw(rv, me, &l, 1, &neg, 1, 0));
  R(raw(rv, me, &high, 1, &r, 1, 0));
  R(raw(rv, me, &l, 1, &high, 1, 0));
  R(raw(rv, me, &none, 1, (void *)8, 1, 0));
  R(raw(rv, me, &l, 0, &r, 1, 0));
  R(raw(rv, 99999999, &none, 1, &r, 1, 0));
  R(raw(rv, 99999999, &l, 1, &none, 1, 0));
  R(raw(rv, 99999999, &l, 1, &r, 1, 0));
  R(raw(rv, -1, &l, 1, &r, 1, 0));
  R(raw(rv, 0, &l, 1, &r, 1, 0));
  R(raw(wv, me, &l, 1, &r, 1, 1));
  R(raw(wv, me, &l, 1, (struct iovec[]){{0, 3}}, 1, 0));
  R(raw(rv, me, &l, 1, &r, 1, 0));
  say("%s\n", c);
  pid_t z = fork();
  if (!z) _exit(0);
  siginfo_t si;
  CHECK(!waitid(P_PID, z, &si, WEXITED | WNOWAIT));
  R(raw(rv, z, &l, 1, &r, 1, 0)); // dead, not yet buried
  waitpid(z, 0, 0);
}
static void permissions(void) {
  char c;
  pid_t h = helper(nothing);
  R(rd(h, &c, 1, here, 1));
  pid_t other = fork();
  if (!other) {
    CHECK(!setresgid(1000, 1000, 1000) && !setresuid(1000, 1000, 1000));
    R(rd(h, &c, 1, here, 1));
    R(wr(h, &c, 1, here, 1));
    R(rd(getpid(), &c, 1, here, 1));
    _exit(0);
  }
  waitpid(other, 0, 0);
  bury(h);
}
// Vectors of different cuts: the bytes go in order, whatever the pieces.
static void vectors(void) {
  char *p = anon(4 * PG), *q = anon(4 * PG);
  for (size_t i = 0; i < 4 * PG; i++) p[i] = i * 7 + i / 251;
  struct iovec l[20], r[20];
  size_t lo = 0, ro = 0;
  for (int i = 0; i < 20; i++) {
    size_t ln = i % 5 ? 1 + i * 123 % 900 : 0, rn = i % 7 ? 1 + i * 457 % 1100 : 0;
    l[i] = (struct iovec){q + lo, ln}; r[i] = (struct iovec){p + ro, rn};
    lo += ln; ro += rn;
  }
  long n = process_vm_readv(getpid(), l, 20, r, 20, 0);
  say("in %zu, out %zu, moved %ld, %s\n", lo, ro, n, n > 0 && !memcmp(p, q, n) ? "same" : "differ");
  memset(q, 0, 4 * PG);
  n = process_vm_writev(getpid(), r, 20, l, 20, 0);
  say("moved %ld, %s\n", n, n > 0 && !memcmp(p, q, n) ? "same" : "differ");
  R(rd(getpid(), q, 4 * PG, p, 100));
  R(rd(getpid(), q, 100, p, 4 * PG));
  R(rd(getpid(), p, 4 * PG, p, 4 * PG)); // onto itself
  munmap(p, 4 * PG); munmap(q, 4 * PG);
}
static char *area;
static void make(void) { // read-write, read-only, none, hole, read-write never touched
  area = anon_at(BASE, 5 * PG, PROT_READ | PROT_WRITE);
  memset(area, 'A', PG); memset(area + PG, 'B', PG); memset(area + 2 * PG, 'C', PG);
  CHECK(!mprotect(area + PG, PG, PROT_READ) && !mprotect(area + 2 * PG, PG, PROT_NONE) && !munmap(area + 3 * PG, PG));
}
static void partial(void) {
  pid_t h = helper(make);
  char *a = BASE;
  R(rd(h, here, 8 * PG, a, 5 * PG)); // two pages
  say("%c %c\n", here[0], here[2 * PG - 1]);
  R(rd(h, here, PG, a + PG + 1, PG));
  R(rd(h, here, PG, a + 2 * PG, PG));
  R(rd(h, here, PG, a + 3 * PG, PG));
  here[0] = 1;
  R(rd(h, here, 2 * PG, a + 4 * PG, 2 * PG));
  say("fresh %d\n", here[0]);
  memset(here, 'w', sizeof here);
  R(wr(h, here, 8 * PG, a, 5 * PG)); // one page
  R(wr(h, here, 1, a + PG, 1));
  R(wr(h, here, 1, a + 4 * PG + 5, 1));
  R(rd(h, here + PG, 9, a + 4 * PG, 9));
  say("%d %c %d\n", here[PG + 4], here[PG + 5], here[PG + 6]);
  R(rd(h, here, PG + 1, a, PG + 1));
  say("%c %c\n", here[0], here[PG]);
  struct iovec l = {here, 8 * PG}, r[3] = {{a, 10}, {a + 3 * PG, 10}, {a, 10}};
  R(process_vm_readv(h, &l, 1, r, 3, 0));
  R(process_vm_readv(h, &l, 1, r + 1, 2, 0));
  // The caller's own side ends early.
  char *end = anon(2 * PG);
  munmap(end + PG, PG);
  R(rd(h, end + PG - 10, 20, a, 20));
  R(rd(h, end + PG, 20, a, 20));
  R(wr(h, end + PG - 10, 20, a, 20));
  munmap(end, PG);
  bury(h);
}
// What is written is private to whom it is written to; files and relatives never see it.
static void private_copies(void) {
  int fd = memfd_create("f", 0);
  CHECK(write(fd, "file", 4) == 4);
  area = mmap(BASE, PG, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, fd, 0);
  char *anon_ = anon_at(BASE + PG, PG, 3), *shared = mmap(BASE + 2 * PG, PG, 3, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  strcpy(anon_, "mine");
  pid_t h = helper(nothing);
  R(wr(h, "FILE", 4, area, 4));
  R(wr(h, "HERS", 4, anon_, 4));
  R(wr(h, "both", 4, shared, 4));
  char b[8] = {0}, c[8] = {0}, d[8] = {0};
  R(rd(h, b, 4, area, 4)); R(rd(h, c, 4, anon_, 4)); R(pread(fd, d, 4, 0));
  say("helper %s %s, file %s, here %.4s %s %s\n", b, c, d, area, anon_, shared);
  bury(h);
  munmap(BASE, 3 * PG); close(fd);
}
static void below_stack(void) { // a stack does not grow for others
  volatile char local = 1;
  char *sp = (char *)((uintptr_t)&local & -PG), c;
  unsigned long lo = 0;
  FILE *f = fopen("/proc/self/maps", "r");
  char line[256];
  while (fgets(line, sizeof line, f)) if (strstr(line, "[stack]")) sscanf(line, "%lx", &lo);
  fclose(f);
  R(rd(getpid(), &c, 1, (char *)lo - PG, 1));
  CHECK(sp >= (char *)lo);
}
static void unmap_race(void) { // a space that changes and dies under the copy: counts, never garbage
  for (int k = 0; k < 20; k++) {
    CHECK(!pipe(to));
    pid_t c = fork();
    if (!c) {
      char *p = anon_at(BASE, 64 * PG, 3);
      memset(p, 'x', 64 * PG);
      write(to[1], "r", 1);
      for (int i = 0;; i++) { munmap(p, 64 * PG); anon_at(BASE, 64 * PG, 3); memset(p, 'x', 64 * PG); if (i == 5 + k) _exit(0); }
    }
    char b;
    CHECK(read(to[0], &b, 1) == 1);
    static char buf[64 * PG];
    for (long n; (n = rd(c, buf, 64 * PG, BASE, 64 * PG)) != -1 || errno == EFAULT;)
      for (long i = 0; i < n; i++) CHECK(buf[i] == 'x' || buf[i] == 0);
    CHECK(errno == ESRCH);
    waitpid(c, 0, 0);
    close(to[0]); close(to[1]);
  }
  say("raced\n");
}
int main(void) {
  errnos(); permissions(); vectors(); partial(); private_copies(); below_stack(); unmap_race();
  return 0;
}
