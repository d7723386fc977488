// SIGSEGV and SIGBUS as a process sees them: code, address, alternate stack, stack growth and its end.
#include "t.h"
#include <ucontext.h>
static char *alt;
static sigjmp_buf out;
static volatile int on_alt;
static volatile uint64_t seen_addr, seen_code, seen_err, seen_trapno, seen_cr2;
static void h(int s, siginfo_t *i, void *u) {
  (void)s;
  char here;
  on_alt = &here > alt && &here < alt + 64 * KB;
  ucontext_t *c = u;
  seen_addr = (uint64_t)i->si_addr; seen_code = i->si_code;
  seen_err = c->uc_mcontext.gregs[REG_ERR]; seen_trapno = c->uc_mcontext.gregs[REG_TRAPNO]; seen_cr2 = c->uc_mcontext.gregs[REG_CR2];
  siglongjmp(out, 1);
}
__attribute__((noinline)) static int deep(int n) {
  volatile char buf[4096];
  buf[0] = n; buf[4095] = n;
  return n ? deep(n - 1) + buf[0] + buf[4095] : 0;
}
__attribute__((noinline, optimize("O0"))) static int endless(int n) {
  volatile char buf[1024];
  buf[5] = n;
  return endless(n + 1) + buf[5];
}
static void overflow(void) {
  say("-- stack\n");
  struct rlimit l = {2 * MB, 2 * MB};
  CHECK(!setrlimit(RLIMIT_STACK, &l));
  CHECK(deep(300) != 1); // 1.2 MB: grows
  if (!sigsetjmp(out, 1)) endless(0);
  char here;
  uint64_t d = (uint64_t)&here - seen_addr;
  say("overflow: on the alternate stack %d, code %s, depth about the limit %d\n", on_alt, seen_code == SEGV_MAPERR ? "MAPERR" : "ACCERR", d > 1 * MB && d < 2 * MB + 64 * KB);
}
static void dies_without_altstack(void) {
  struct sigaction sa = {.sa_sigaction = h, .sa_flags = SA_SIGINFO};
  sigaction(SIGSEGV, &sa, 0); // its frame cannot be built
  stack_t off = {.ss_flags = SS_DISABLE};
  sigaltstack(&off, 0);
  struct rlimit l = {1 * MB, 1 * MB};
  setrlimit(RLIMIT_STACK, &l);
  struct rlimit nocore = {0, 0};
  setrlimit(RLIMIT_CORE, &nocore);
  endless(0);
}
static void dies_blocked(void) { // a blocked fault kills
  sigset_t s;
  sigfillset(&s);
  sigprocmask(SIG_BLOCK, &s, 0);
  *(volatile int *)8 = 1;
}
static void dies_ignored(void) {
  signal(SIGSEGV, SIG_IGN);
  *(volatile int *)8 = 1;
}
static void dies_default(void) { signal(SIGSEGV, SIG_DFL); *(volatile int *)8 = 1; }
static void dies_ill(void) { __asm__ volatile("ud2"); }
static void dies_fpe(void) { volatile int z = 0; __asm__ volatile("idivl %0" ::"m"(z), "a"(1), "d"(0)); }
static void dies_trap(void) { __asm__ volatile("int3"); }
static void dies_hlt(void) { __asm__ volatile("hlt"); }
static void dies_io(void) { __asm__ volatile("outb %%al, $0x80" ::"a"(0)); }
static void dies_cr3(void) { long v; __asm__ volatile("mov %%cr3, %0" : "=r"(v)); }
static void dies_jump(void) { ((void (*)(void))0x1234)(); }
static void dies_stackptr(void) { __asm__ volatile("mov $0x10, %rsp; push %rax"); }
static void dies_int80ish(void) { __asm__ volatile("int $0x55"); }
static void fault(const char *what, volatile char *p, char how) {
  seen_addr = seen_code = seen_err = 0;
  if (!sigsetjmp(out, 1)) {
    if (how == 'r') (void)*p;
    else if (how == 'w') *p = 1;
    else ((void (*)(void))p)();
    say("%s: no fault\n", what);
    return;
  }
  say("%s: code %lu, addr %s, cr2 %s, err %lx, trap %lu\n", what, seen_code, seen_addr == (uint64_t)p ? "right" : "wrong", seen_cr2 == (uint64_t)p ? "right" : "other", seen_err, seen_trapno);
}
static void other(void) {
  say("-- exceptions\n");
  struct sigaction sa = {.sa_sigaction = h, .sa_flags = SA_SIGINFO | SA_ONSTACK};
  int sigs[] = {SIGILL, SIGFPE, SIGTRAP};
  void (*f[])(void) = {dies_ill, dies_fpe, dies_trap};
  for (int k = 0; k < 3; k++) {
    sigaction(sigs[k], &sa, 0);
    if (!sigsetjmp(out, 1)) f[k]();
    say("signal %d: code %ld, trap %lu\n", sigs[k], (long)seen_code, seen_trapno);
    signal(sigs[k], SIG_DFL);
  }
}
static int fixed;
static void fixer(int s, siginfo_t *i, void *u) { // repairs and returns: the instruction runs again
  (void)s; (void)u;
  fixed++;
  mprotect((void *)((uint64_t)i->si_addr & -PG), PG, 3);
}
static void repair(void) {
  say("-- repair and return\n");
  struct sigaction sa = {.sa_sigaction = fixer, .sa_flags = SA_SIGINFO};
  sigaction(SIGSEGV, &sa, 0);
  volatile char *p = mmap(0, 64 * PG, 0, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  for (int i = 0; i < 64; i++) p[i * PG] = i;
  for (int i = 0; i < 64; i++) CHECK(p[i * PG] == i);
  say("repaired %d\n", fixed);
}
int main(void) {
  alt = anon(64 * KB);
  stack_t ss = {.ss_sp = alt, .ss_size = 64 * KB}, got;
  CHECK(!sigaltstack(&ss, 0) && !sigaltstack(0, &got) && got.ss_sp == alt && got.ss_size == 64 * KB && got.ss_flags == 0);
  ss.ss_size = 100;
  R(sigaltstack(&ss, 0));
  ss.ss_flags = 0x1234;
  R(sigaltstack(&ss, 0));
  struct sigaction sa = {.sa_sigaction = h, .sa_flags = SA_SIGINFO | SA_ONSTACK};
  CHECK(!sigaction(SIGSEGV, &sa, 0));
  say("-- faults\n");
  char *p = anon_at(BASE, 4 * PG, 1);
  fault("read nothing", BASE + 8 * PG, 'r');
  fault("write nothing", BASE + 8 * PG + 5, 'w');
  fault("jump to nothing", BASE + 8 * PG + 5, 'x');
  fault("write to read-only, untouched", p + 3, 'w');
  fault("read it", p, 'r');
  fault("write to read-only, touched", p + 3, 'w');
  fault("execute data", p, 'x');
  fault("null", (char *)0, 'r');
  fault("kernel address", (char *)0xffffffff80000000, 'r');
  fault("direct map", (char *)0xffff888000001000, 'w');
  mprotect(p, PG, 0);
  fault("PROT_NONE", p + 100, 'r');
  other();
  say("-- deaths\n");
  signal(SIGSEGV, SIG_DFL);
#define D(f) say(#f ": %s\n", in_child(f))
  D(dies_without_altstack); D(dies_blocked); D(dies_ignored); D(dies_default); D(dies_ill); D(dies_fpe); D(dies_trap);
  D(dies_hlt); D(dies_io); D(dies_cr3); D(dies_jump); D(dies_stackptr); D(dies_int80ish);
  CHECK(!sigaction(SIGSEGV, &sa, 0));
  overflow();
  repair();
  return 0;
}
