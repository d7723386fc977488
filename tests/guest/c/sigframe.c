// rt_sigreturn with garbage: what a handler may do to its frame, and what becomes of the process.
#include "t.h"
#include <ucontext.h>
typedef unsigned long ul;
static void (*spoil)(ucontext_t *);
static void on_segv(int s) {
  static volatile double d = 1.5; // whatever the frame held, a handler computes soundly
  say("  SIGSEGV caught%s\n", d * 2 == 3.0 ? "" : ", and 1.5 * 2 is not 3");
  _exit(3);
}
static void on_usr(int s, siginfo_t *i, void *u) { spoil(u); }
static void go(void) {
  struct rlimit none = {0, 0};
  setrlimit(RLIMIT_CORE, &none);
  struct sigaction sa = {.sa_sigaction = on_usr, .sa_flags = SA_SIGINFO};
  CHECK(!sigaction(SIGUSR1, &sa, 0));
  raise(SIGUSR1);
  __asm__ volatile("cld");
}
static void caught(void) { // as `go`, with a handler for what follows, on a stack of its own
  static char stack[65536];
  stack_t ss = {.ss_sp = stack, .ss_size = sizeof stack};
  struct sigaction sa = {.sa_handler = on_segv, .sa_flags = SA_ONSTACK | SA_NODEFER};
  CHECK(!sigaltstack(&ss, 0) && !sigaction(SIGSEGV, &sa, 0));
  go();
}
static void try(const char *what, void (*f)(ucontext_t *)) {
  spoil = f;
  say("%s: %s\n", what, in_child(go));
  say("  with a handler: %s\n", in_child(caught));
}
#define FP(u) ((unsigned char *)(u)->uc_mcontext.fpregs)
#define G(u, r) (u)->uc_mcontext.gregs[r]
static void nothing(ucontext_t *u) {}
static void rip_kernel(ucontext_t *u) { G(u, REG_RIP) = 0xffffffff81000000; }
static void rip_hole(ucontext_t *u) { G(u, REG_RIP) = 1l << 47; }
static void rip_top(ucontext_t *u) { G(u, REG_RIP) = 0x7ffffffff000; }
static void rip_zero(ucontext_t *u) { G(u, REG_RIP) = 0; }
// (A stack pointer that is not canonical is #SS on hardware and #GP in TCG.)
static void rsp_zero(ucontext_t *u) { G(u, REG_RSP) = 0; G(u, REG_RIP) = (ul)&on_segv; }
static void flags_all(ucontext_t *u) { G(u, REG_EFL) = ~0x100ul; }
static void flags_none(ucontext_t *u) { G(u, REG_EFL) = 0; }
static void cs_zero(ucontext_t *u) { G(u, REG_CSGSFS) &= ~0xfffful; }
static void cs_kernel(ucontext_t *u) { G(u, REG_CSGSFS) = G(u, REG_CSGSFS) & ~0xfffful | 0x10; }
static void cs_wild(ucontext_t *u) { G(u, REG_CSGSFS) = G(u, REG_CSGSFS) & ~0xfffful | 0xfff0; }
static void ss_wild(ucontext_t *u) { G(u, REG_CSGSFS) |= 0xffffl << 48; }
static void uc_flags(ucontext_t *u) { u->uc_flags = ~0ul; }
static void fp_null(ucontext_t *u) { u->uc_mcontext.fpregs = 0; }
static void fp_kernel(ucontext_t *u) { u->uc_mcontext.fpregs = (void *)0xffff888000000000; }
static void fp_wild(ucontext_t *u) { u->uc_mcontext.fpregs = (void *)0xdead0000; }
static void fp_end(ucontext_t *u) { u->uc_mcontext.fpregs = (void *)0x7fffffffefc0; }
static void fp_magic1(ucontext_t *u) { FP(u)[464] ^= 1; }
static void fp_size(ucontext_t *u) { *(uint32_t *)(FP(u) + 480) = 0xfffffff0; }
static void fp_size_small(ucontext_t *u) { *(uint32_t *)(FP(u) + 480) = 4; }
static void fp_mxcsr(ucontext_t *u) { *(uint32_t *)(FP(u) + 24) = 0xffffffff; }
static void fp_bv(ucontext_t *u) { *(uint64_t *)(FP(u) + 512) = ~0ull; }
static void fp_comp(ucontext_t *u) { *(uint64_t *)(FP(u) + 520) = ~0ull; }
static void fp_header(ucontext_t *u) { memset(FP(u) + 528, 0xff, 48); }
static void fp_regs(ucontext_t *u) { memset(FP(u) + 32, 0xff, 384); }
static void mask_all(ucontext_t *u) { memset(&u->uc_sigmask, 0xff, 8); }
static void stack_wild(ucontext_t *u) { u->uc_stack = (stack_t){(void *)-1l, 0x12345, -1l}; }
static void all_ones(ucontext_t *u) { memset(u, 0xff, 296); G(u, REG_EFL) = 0; } // (TCG does not check alignment)
static void all_zero(ucontext_t *u) { memset(u, 0, 296); }
static void frame_at(ul rsp) {
  __asm__ volatile("mov %0, %%rsp; mov $15, %%eax; syscall; ud2" ::"r"(rsp) : "memory");
}
static ul where;
static void bare(void) { struct rlimit n = {0, 0}; setrlimit(RLIMIT_CORE, &n); frame_at(where); }
static void after_mask(void) { // SIGKILL and SIGSTOP are never blocked
  sigset_t s;
  spoil = mask_all;
  go();
  sigprocmask(0, 0, &s);
  for (int i = 1; i < 32; i++) if (!sigismember(&s, i)) say("  open: %d\n", i);
}
static int faults;
static void on_segv_back(int s) { if (++faults > 3) { say("  again and again\n"); _exit(4); } }
static void goes_on(void) { // the registers were taken before the fault: a handler that returns gets where they lead
  struct sigaction sa = {.sa_handler = on_segv_back};
  CHECK(!sigaction(SIGSEGV, &sa, 0));
  spoil = fp_mxcsr;
  go();
  say("  %d fault, and on\n", faults);
}
int main(void) {
#define T(f) try(#f, f)
  T(nothing); T(rip_kernel); T(rip_hole); T(rip_top); T(rip_zero); T(rsp_zero);
  T(flags_all); T(flags_none); T(cs_zero); T(cs_kernel); T(cs_wild); T(ss_wild); T(uc_flags);
  T(fp_null); T(fp_kernel); T(fp_wild); T(fp_end); T(fp_magic1); T(fp_size); T(fp_size_small); T(fp_mxcsr); T(fp_bv);
  T(fp_comp); T(fp_header); T(fp_regs); T(mask_all); T(stack_wild); T(all_ones); T(all_zero);
  say("-- no frame at all\n");
  static const ul places[] = {0, 8, 7, 0x7ffffffff000, 0x7ffffffff008, 1ul << 47, 0xffff800000000000, -1ul, -8ul, -4096ul};
  for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
    where = places[i];
    say("%lx: %s\n", where, in_child(bare));
  }
  say("mask: %s\n", in_child(after_mask));
  say("a handler that returns: %s\n", in_child(goes_on));
  return 0;
}
