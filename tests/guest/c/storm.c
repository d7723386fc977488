// Threads that fault, unmap, protect, move and fork against each other, with content checks all the way.
// Every thread owns arenas that the others disturb only through what all threads share: the space, its
// lock, the page tables at the borders, the TLBs of the other CPUs. argv[1]: rounds per thread.
#include "t.h"
#include <pthread.h>
#define T 8
static int rounds = 400;
static char *common; // read by all, protected and unprotected by one
static volatile int stop;
static volatile long caught;
static __thread sigjmp_buf jb;
static __thread volatile int armed;
static void h(int s, siginfo_t *i, void *u) {
  (void)u; (void)i;
  if (!armed) { say("unexpected signal %d at %p\n", s, i->si_addr); _exit(3); }
  siglongjmp(jb, 1);
}
static void tag(char *p, int n, uint64_t t) { for (int i = 0; i < n; i++) { uint64_t *w = (uint64_t *)(p + i * PG); w[0] = t + i; w[511] = ~(t + i); w[i % 510 + 1] = t; } }
static int tagged(char *p, int n, uint64_t t) { for (int i = 0; i < n; i++) { uint64_t *w = (uint64_t *)(p + i * PG); if (w[0] != t + i || w[511] != ~(t + i) || w[i % 510 + 1] != t) return 0; } return 1; }
static uint64_t next(uint64_t *s) { *s ^= *s << 13; *s ^= *s >> 7; *s ^= *s << 17; return *s; }
static void *mapper(void *x) { // map, touch, check, split, unmap: stale translations show as foreign content
  uint64_t s = 77 + (long)x;
  for (int r = 0; r < rounds; r++) {
    int n = 1 + next(&s) % 40;
    char *p = anon(n * PG);
    for (int i = 0; i < n; i++) CHECK(*(uint64_t *)(p + i * PG) == 0); // fresh memory is zero
    tag(p, n, s);
    int cut = next(&s) % n;
    munmap(p + cut * PG, PG);
    for (int i = 0; i < cut; i++) CHECK(*(uint64_t *)(p + i * PG + 4088) == ~*(uint64_t *)(p + i * PG));
    if (cut) munmap(p, cut * PG); // not the whole range: another thread may live in the hole by now
    if (cut + 1 < n) munmap(p + (cut + 1) * PG, (n - cut - 1) * PG);
  }
  return 0;
}
static void *forker(void *x) { // a snapshot must hold in the child while every other thread goes on
  uint64_t s = 99 + (long)x;
  int n = 64;
  char *p = anon(n * PG);
  for (int r = 0; r < rounds / 16 + 1; r++) {
    tag(p, n, s + r);
    pid_t c = fork();
    CHECK(c >= 0);
    if (!c) {
      if (!tagged(p, n, s + r)) _exit(1);
      tag(p, n / 2, 5);
      _exit(tagged(p, n / 2, 5) ? 0 : 2);
    }
    tag(p, n, s + r + 1000000);
    int st;
    CHECK(waitpid(c, &st, 0) == c && st == 0);
    CHECK(tagged(p, n, s + r + 1000000));
  }
  return 0;
}
static void *protector(void *x) {
  (void)x;
  for (int r = 0; !stop; r++) { mprotect(common, 16 * PG, r & 1 ? PROT_READ | PROT_WRITE : PROT_READ); if (r % 8 == 0) usleep(500); }
  mprotect(common, 16 * PG, PROT_READ | PROT_WRITE);
  return 0;
}
static void *writer(void *x) { // may fault at any time; what was written before must stand
  long k = (long)x;
  volatile uint64_t *w = (uint64_t *)common + k;
  uint64_t last[16] = {0};
  for (int r = 1; r <= rounds * 4; r++) {
    int pg = r % 16;
    armed = 1;
    if (!sigsetjmp(jb, 1)) { w[pg * 512] = r; last[pg] = r; }
    else { __atomic_add_fetch(&caught, 1, __ATOMIC_RELAXED); if (w[pg * 512] == (uint64_t)r) last[pg] = r; }
    armed = 0;
    CHECK(w[pg * 512] == last[pg]);
  }
  return 0;
}
static void *mover(void *x) { // mremap back and forth, growing and shrinking
  uint64_t s = 1234 + (long)x;
  int n = 20;
  char *p = anon(n * PG);
  tag(p, n, 42);
  for (int r = 0; r < rounds; r++) {
    char *q = mremap(p, n * PG, n * PG, MREMAP_MAYMOVE | MREMAP_FIXED, BASE + ((long)x + 1) * 64 * MB + (next(&s) % 1000) * 32 * PG);
    if (q == p) continue;
    CHECK(q != MAP_FAILED || errno == EINVAL);
    if (q == MAP_FAILED) continue; // overlap with itself
    p = q;
    CHECK(tagged(p, n, 42));
    if (r % 16 == 0) { q = mremap(p, n * PG, 2 * n * PG, MREMAP_MAYMOVE); CHECK(q != MAP_FAILED && tagged(q, n, 42) && q[n * PG] == 0); p = mremap(q, 2 * n * PG, n * PG, 0); CHECK(p == q); }
  }
  return 0;
}
static void *forgetter(void *x) { // DONTNEED against readers of the same pages: zero or whole, never a mixture of owners
  (void)x;
  char *p = anon(32 * PG);
  for (int r = 1; r <= rounds; r++) {
    for (int i = 0; i < 32; i++) { uint64_t *w = (uint64_t *)(p + i * PG); w[3] = r; w[4] = r; }
    madvise(p + (r % 16) * PG, 16 * PG, MADV_DONTNEED);
    for (int i = 0; i < 32; i++) {
      uint64_t *w = (uint64_t *)(p + i * PG);
      int gone = i >= r % 16 && i < r % 16 + 16;
      CHECK(w[3] == w[4] && w[3] == (gone ? 0 : (uint64_t)r));
    }
  }
  return 0;
}
static char *slot[4];
static void *tearer(void *x) { // maps and unmaps what others are reading: they see the tag, zero or a fault, nothing else
  (void)x;
  for (int r = 0; !stop; r++) {
    int k = r % 4;
    char *p = mmap(slot[k], 4 * PG, 3, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    CHECK(p == slot[k]);
    for (int i = 0; i < 4; i++) *(volatile uint64_t *)(p + i * PG) = 0xabcdef00 + k;
    munmap(p, 4 * PG);
    if (r % 8 == 0) usleep(500);
  }
  return 0;
}
static void *reader(void *x) {
  uint64_t s = 5 + (long)x;
  for (int r = 0; r < rounds * 4; r++) {
    int k = next(&s) % 4;
    armed = 1;
    if (!sigsetjmp(jb, 1)) { uint64_t v = *(volatile uint64_t *)(slot[k] + next(&s) % 4 * PG); armed = 0; CHECK(v == 0 || v == 0xabcdef00u + k); }
    armed = 0;
  }
  return 0;
}
static void *brker(void *x) { (void)x; for (int r = 0; r < rounds; r++) { char *p = malloc(200000 + r * 16); memset(p, r, 200000); CHECK((unsigned char)p[199999] == (r & 255)); free(p); } return 0; }
int main(int argc, char **argv) {
  if (argc > 1) rounds = atoi(argv[1]);
  struct sigaction sa = {.sa_sigaction = h, .sa_flags = SA_SIGINFO | SA_NODEFER};
  sigaction(SIGSEGV, &sa, 0);
  sigaction(SIGBUS, &sa, 0);
  common = anon(16 * PG);
  for (int k = 0; k < 4; k++) slot[k] = (char *)0x180000000000 + k * 2 * MB - 2 * PG; // over table borders
  struct { void *(*f)(void *); int n, waits; } w[] = {{mapper, 2, 1}, {forker, 1, 1}, {writer, 2, 1}, {mover, 1, 1}, {forgetter, 1, 1}, {reader, 1, 1}, {brker, 1, 1}, {protector, 1, 0}, {tearer, 1, 0}};
  pthread_t t[16];
  int waits[16], n = 0;
  for (unsigned i = 0; i < sizeof w / sizeof *w; i++)
    for (int k = 0; k < w[i].n; k++) { waits[n] = w[i].waits; CHECK(!pthread_create(&t[n], 0, w[i].f, (void *)(long)n)); n++; }
  for (int i = 0; i < n; i++) if (waits[i]) pthread_join(t[i], 0);
  stop = 1;
  for (int i = 0; i < n; i++) if (!waits[i]) pthread_join(t[i], 0);
  say("storm of %d threads, %d rounds: ok\n", n, rounds);
  return 0;
}
