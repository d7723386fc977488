// Copy on write: who sees which content after fork, and the zero page.
#include "t.h"
#define N 512
static char *p;
static int sums_ok(int seed) {
  for (int i = 0; i < N; i++)
    for (unsigned k = 0; k < PG; k += 509)
      if ((unsigned char)p[i * PG + k] != (unsigned char)(seed + i * 3)) return 0;
  return 1;
}
static void paint(int seed) { for (int i = 0; i < N; i++) memset(p + i * PG, seed + i * 3, PG); }
static void both_write(void) {
  paint(1);
  int a[2], b[2];
  CHECK(!pipe(a) && !pipe(b));
  char x;
  pid_t c = fork();
  CHECK(c >= 0);
  if (!c) {
    CHECK(read(a[0], &x, 1) == 1); // the parent wrote first
    CHECK(sums_ok(1));
    paint(50);
    CHECK(write(b[1], "k", 1) == 1 && read(a[0], &x, 1) == 1 && sums_ok(50));
    _exit(7);
  }
  paint(100);
  CHECK(write(a[1], "g", 1) == 1 && read(b[0], &x, 1) == 1 && sums_ok(100));
  CHECK(write(a[1], "g", 1) == 1);
  int st;
  CHECK(waitpid(c, &st, 0) == c && WEXITSTATUS(st) == 7 && sums_ok(100));
  close(a[0]); close(a[1]); close(b[0]); close(b[1]);
  say("both sides write: ok\n");
}
static void generations(void) { // eight generations, each changes its own eighth and checks all the others
  paint(9);
  int depth = 0;
  for (; depth < 8; depth++) {
    pid_t c = fork();
    CHECK(c >= 0);
    if (c) {
      int st;
      CHECK(waitpid(c, &st, 0) == c);
      for (int i = 0; i < N; i++) {
        int g = i / 64;
        unsigned char want = g < depth ? 200 + g : 9 + i * 3;
        CHECK((unsigned char)p[i * PG + 1] == want);
      }
      if (depth == 0) { CHECK(WEXITSTATUS(st) == 0); say("generations: ok\n"); return; }
      _exit(WEXITSTATUS(st));
    }
    for (int i = depth * 64; i < depth * 64 + 64; i++) p[i * PG + 1] = 200 + depth;
  }
  _exit(0);
}
static void many_children(void) {
  paint(30);
  pid_t c[8];
  for (int k = 0; k < 8; k++) {
    c[k] = fork();
    CHECK(c[k] >= 0);
    if (!c[k]) {
      for (int r = 0; r < 20; r++) {
        for (int i = k; i < N; i += 8) p[i * PG + 77] = k + r;
        for (int i = 0; i < N; i++) CHECK((unsigned char)p[i * PG + 77] == (unsigned char)(i % 8 == k ? k + r : 30 + i * 3));
        if (r == 10) sched_yield();
      }
      _exit(40 + k);
    }
  }
  int sum = 0;
  for (int k = 0; k < 8; k++) { int st; CHECK(waitpid(c[k], &st, 0) == c[k] && WIFEXITED(st)); sum += WEXITSTATUS(st); }
  CHECK(sums_ok(30));
  say("many children: %d\n", sum);
}
static void zero_page(void) {
  char *z = anon(256 * PG);
  long sum = 0;
  for (int i = 0; i < 256; i++) sum += z[i * PG];
  CHECK(sum == 0);
  for (int i = 0; i < 256; i += 3) { CHECK(z[i * PG + 9] == 0); z[i * PG + 9] = i; }
  for (int i = 0; i < 256; i++) CHECK((unsigned char)z[i * PG + 9] == (i % 3 == 0 ? i : 0) && z[i * PG + 10] == 0);
  pid_t c = fork();
  if (!c) {
    for (int i = 0; i < 256; i++) { CHECK((unsigned char)z[i * PG + 9] == (i % 3 == 0 ? i : 0)); z[i * PG] = 1; }
    _exit(0);
  }
  int st;
  waitpid(c, &st, 0);
  CHECK(st == 0);
  for (int i = 0; i < 256; i++) CHECK(z[i * PG] == 0);
  munmap(z, 256 * PG);
  say("zero page: ok\n");
}
static void faults_counted(void) {
  struct rusage a, b;
  char *z = anon(128 * PG);
  getrusage(RUSAGE_SELF, &a);
  for (int i = 0; i < 128; i++) z[i * PG] = 1;
  getrusage(RUSAGE_SELF, &b);
  long n = b.ru_minflt - a.ru_minflt;
  CHECK(b.ru_majflt == a.ru_majflt);
  say("a fault a page: %d\n", n >= 8 && n <= 132); // Linux may map several at once
  munmap(z, 128 * PG);
}
static void by_the_kernel(void) { // a system call writes into shared pages: copies as a store would
  char *z = anon(4 * PG);
  memset(z, 'o', 4 * PG);
  int pf[2];
  CHECK(!pipe(pf));
  pid_t c = fork();
  if (!c) {
    CHECK(write(pf[1], "0123456789", 10) == 10);
    CHECK(read(pf[0], z + PG - 5, 10) == 10);
    CHECK(!memcmp(z + PG - 6, "o0123456789o", 12));
    _exit(0);
  }
  int st;
  waitpid(c, &st, 0);
  CHECK(st == 0 && !memcmp(z + PG - 6, "oooooooooooo", 12));
  char *ro = anon(PG);
  mprotect(ro, PG, 1);
  CHECK(write(pf[1], "0123456789", 10) == 10);
  R(read(pf[0], ro, 10));
  R(read(pf[0], (char *)1, 1));
  R(write(pf[1], (char *)0xffff800000000000, 1));
  munmap(z, 4 * PG);
  say("by the kernel: ok\n");
}
int main(void) {
  p = anon(N * PG);
  both_write();
  generations();
  many_children();
  zero_page();
  faults_counted();
  by_the_kernel();
  return 0;
}
