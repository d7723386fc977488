// Vector registers survive preemption, system calls, faults, signals and fork, each thread its own.
#include "t.h"
#include <cpuid.h>
#include <immintrin.h>
#include <pthread.h>
static int have_avx;
#define ROUNDS 300
__attribute__((target("avx"), noinline)) static int avx_round(uint64_t seed, int how) {
  uint64_t v[16][4], w[16][4];
  for (int i = 0; i < 16; i++) for (int k = 0; k < 4; k++) v[i][k] = seed * 0x9e3779b97f4a7c15ull + i * 1000003 + k;
  long nr = how == 1 ? SYS_sched_yield : SYS_getppid, ret;
  char *fresh = how == 2 ? anon(PG) : (char *)&ret;
#define LD(n) "vmovdqu " #n "*32(%[v]), %%ymm" #n ";"
#define ST(n) "vmovdqu %%ymm" #n ", " #n "*32(%[w]);"
  __asm__ volatile(LD(0) LD(1) LD(2) LD(3) LD(4) LD(5) LD(6) LD(7) LD(8) LD(9) LD(10) LD(11) LD(12) LD(13) LD(14) LD(15)
                   "cmp $2, %[how]; je 2f; cmp $3, %[how]; je 3f;"
                   "mov %[nr], %%rax; syscall; jmp 9f;"
                   "2: movb $1, (%[fresh]); jmp 9f;" // a page fault
                   "3: mov $20000, %%ecx; 4: dec %%ecx; jnz 4b;" // time for a timer tick
                   "9:" ST(0) ST(1) ST(2) ST(3) ST(4) ST(5) ST(6) ST(7) ST(8) ST(9) ST(10) ST(11) ST(12) ST(13) ST(14) ST(15)
                   : : [v] "r"(v), [w] "r"(w), [how] "r"((long)how), [nr] "r"(nr), [fresh] "r"(fresh)
                   : "rax", "rcx", "r11", "memory", "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
  if (how == 2) munmap(fresh, PG);
  return !memcmp(v, w, sizeof v);
}
__attribute__((noinline)) static int sse_round(uint64_t seed) {
  uint64_t v[2] = {seed, ~seed}, w[2];
  __asm__ volatile("movdqu %1, %%xmm9; mov $24, %%eax; syscall; movdqu %%xmm9, %0" : "=m"(w) : "m"(v) : "rax", "rcx", "r11", "xmm9", "memory");
  return !memcmp(v, w, 16);
}
static void *worker(void *x) {
  long k = (long)x;
  // Rounding mode and exception mask belong to the thread too.
  _mm_setcsr((_mm_getcsr() & ~0x6000u) | (k & 3) << 13);
  for (long i = 0; i < ROUNDS; i++) {
    CHECK(sse_round(k * 1000 + i));
    if (have_avx) CHECK(avx_round(k << 32 | i, i & 3));
    CHECK((_mm_getcsr() >> 13 & 3) == (k & 3));
  }
  return 0;
}
static volatile int ticks;
static void trash(int s) { // a handler that uses every register; compiled for any CPU
  (void)s;
  ticks++;
  if (have_avx) __asm__ volatile("vzeroall" ::: "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
  else __asm__ volatile("pxor %%xmm9, %%xmm9" ::: "xmm9");
  _mm_setcsr(0x1f80 | 3 << 13);
}
int main(void) {
  unsigned a, b, c, d;
  __cpuid(1, a, b, c, d);
  have_avx = (c >> 27 & 1) && (c >> 28 & 1) && ({ unsigned lo, hi; __asm__("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0)); (lo & 6) == 6; });
  pthread_t t[8];
  for (long k = 0; k < 8; k++) pthread_create(&t[k], 0, worker, (void *)k);
  for (int k = 0; k < 8; k++) pthread_join(t[k], 0);
  say("threads: ok\n");
  struct sigaction sa = {.sa_handler = trash};
  sigaction(SIGALRM, &sa, 0);
  struct itimerval it = {{0, 2000}, {0, 2000}};
  setitimer(ITIMER_REAL, &it, 0);
  for (long i = 0; ticks < 50; i++) {
    if (have_avx) CHECK(avx_round(i, 3));
    CHECK(sse_round(i) && (_mm_getcsr() >> 13 & 3) == 0);
  }
  it = (struct itimerval){0};
  setitimer(ITIMER_REAL, &it, 0);
  say("signals: ok\n");
  // A child starts with its parent's registers and changes only its own; a new image starts clean.
  double x = 1.5, y;
  __asm__ volatile("movsd %0, %%xmm13" ::"m"(x) : "xmm13");
  register long pid __asm__("rax");
  __asm__ volatile("mov $57, %%eax; syscall" : "=a"(pid)::"rcx", "r11", "memory");
  long p = pid;
  __asm__ volatile("movsd %%xmm13, %0" : "=m"(y));
  if (p == 0) _exit(y == 1.5 ? 0 : 1);
  int st;
  waitpid(p, &st, 0);
  say("fork: child %d, parent %d\n", st, y == 1.5);
  return 0;
}
