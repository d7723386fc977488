// Signals: flags, masks, nesting, information, restarting, waiting.
#include "t.h"
#include <ucontext.h>
static volatile int count, depth, maxdepth, order[16], norder;
static siginfo_t info;
static void plain(int s) { count++; if (norder < 16) order[norder++] = s; }
static void with_info(int s, siginfo_t *i, void *u) { (void)s; (void)u; info = *i; count++; }
static void set(int s, void (*f)(int), int fl) { struct sigaction a = {.sa_handler = f, .sa_flags = fl}; CHECK(!sigaction(s, &a, 0)); }
static void seti(int s, int fl) { struct sigaction a = {.sa_sigaction = with_info, .sa_flags = fl | SA_SIGINFO}; CHECK(!sigaction(s, &a, 0)); }
static void nest(int s) {
  depth++;
  if (depth > maxdepth) maxdepth = depth;
  if (count++ < 3) raise(s);
  depth--;
}
static void nesting(void) {
  count = maxdepth = 0;
  set(SIGUSR1, nest, 0);
  raise(SIGUSR1);
  say("without NODEFER: %d deliveries, depth %d\n", count, maxdepth);
  count = maxdepth = 0;
  set(SIGUSR1, nest, SA_NODEFER);
  raise(SIGUSR1);
  say("with NODEFER: %d deliveries, depth %d\n", count, maxdepth);
  count = 0;
  set(SIGUSR2, plain, SA_RESETHAND);
  raise(SIGUSR2);
  struct sigaction a;
  sigaction(SIGUSR2, 0, &a);
  say("RESETHAND: %d, default again %d\n", count, a.sa_handler == SIG_DFL);
}
static void masks(void) {
  sigset_t s, o, p;
  sigemptyset(&s); sigaddset(&s, SIGUSR1); sigaddset(&s, SIGUSR2); sigaddset(&s, SIGRTMIN); sigaddset(&s, SIGRTMIN + 1);
  CHECK(!sigprocmask(SIG_BLOCK, &s, &o));
  norder = count = 0;
  set(SIGUSR1, plain, 0); set(SIGUSR2, plain, 0); set(SIGRTMIN, plain, 0); set(SIGRTMIN + 1, plain, 0);
  raise(SIGRTMIN + 1); raise(SIGRTMIN); raise(SIGRTMIN); raise(SIGUSR2); raise(SIGUSR1); raise(SIGUSR1);
  sigpending(&p);
  say("pending: %d %d %d\n", sigismember(&p, SIGUSR1), sigismember(&p, SIGRTMIN), sigismember(&p, SIGTERM));
  CHECK(count == 0);
  sigprocmask(SIG_SETMASK, &o, 0);
  say("delivered %d:", count);
  // All frames are stacked before the first handler runs: the last signal number runs first.
  for (int i = 0; i < norder; i++) say(" %d", order[i]);
  say("\n");
  R(sigprocmask(99, &s, 0));
  R(syscall(SYS_rt_sigprocmask, SIG_BLOCK, &s, 0, 4));
  R(syscall(SYS_rt_sigaction, SIGKILL, 0, &(struct sigaction){0}, 8));
  struct sigaction a = {.sa_handler = plain};
  R(sigaction(SIGKILL, &a, 0));
  R(sigaction(SIGSTOP, &a, 0));
  R(syscall(SYS_rt_sigaction, 65, &a, 0, 8));
  R(syscall(SYS_rt_sigaction, 0, &a, 0, 8));
  R(syscall(SYS_rt_sigaction, SIGUSR1, 1L, 0, 8));
  R(kill(getpid(), 65));
  R(kill(getpid(), 0));
  R(kill(99999999, 0));
  R(syscall(SYS_tgkill, getpid(), getpid(), 0));
  R(syscall(SYS_tgkill, getpid(), 99999999, 0));
  R(syscall(SYS_tgkill, -1, getpid(), 0));
  R(syscall(SYS_tgkill, 99999999, getpid(), 0));
}
static void information(void) {
  seti(SIGUSR1, 0); seti(SIGRTMIN, 0); seti(SIGCHLD, 0); seti(SIGALRM, 0);
  raise(SIGUSR1);
  say("raise: signo %d code %d own pid %d\n", info.si_signo, info.si_code, info.si_pid == getpid());
  kill(getpid(), SIGUSR1);
  say("kill: code %d own pid %d\n", info.si_code, info.si_pid == getpid());
  union sigval v = {.sival_int = 4711};
  CHECK(!sigqueue(getpid(), SIGRTMIN, v));
  say("sigqueue: code %d value %d\n", info.si_code, info.si_value.sival_int);
  count = 0;
  pid_t c = fork();
  if (!c) _exit(42);
  while (!count) usleep(1000);
  say("child exit: code %d status %d own child %d\n", info.si_code, info.si_status, info.si_pid == c);
  waitpid(c, 0, 0);
  count = 0;
  c = fork();
  if (!c) { for (;;) pause(); }
  kill(c, SIGTERM);
  while (!count) usleep(1000);
  say("child killed: code %d status %d\n", info.si_code, info.si_status);
  waitpid(c, 0, 0);
  signal(SIGCHLD, SIG_DFL);
  struct itimerval it = {.it_value = {0, 20000}};
  count = 0;
  CHECK(!setitimer(ITIMER_REAL, &it, 0));
  while (!count) usleep(1000);
  say("timer: signo %d code %d\n", info.si_signo, info.si_code == SI_KERNEL);
}
static void restart(void) {
  int pf[2];
  CHECK(!pipe(pf));
  for (int k = 0; k < 2; k++) {
    set(SIGUSR1, plain, k ? SA_RESTART : 0);
    count = 0;
    pid_t par = getpid(), c = fork();
    if (!c) {
      for (int i = 0; i < 3; i++) { usleep(30000); kill(par, SIGUSR1); if (!k) break; }
      usleep(30000);
      write(pf[1], "x", 1);
      _exit(0);
    }
    char b;
    ssize_t n = read(pf[0], &b, 1);
    say("read %s: %zd %s\n", k ? "with RESTART" : "without", n, n < 0 ? ename(errno) : "");
    if (n < 0) CHECK(read(pf[0], &b, 1) == 1);
    int st;
    while (waitpid(c, &st, 0) < 0) CHECK(errno == EINTR);
    say("signals %d\n", count);
  }
  // Never restarted: nanosleep (tells what is left), poll, sigsuspend, pause.
  set(SIGALRM, plain, SA_RESTART);
  struct itimerval it = {.it_value = {0, 30000}};
  struct timespec t = {5, 0}, rem = {0, 0};
  setitimer(ITIMER_REAL, &it, 0);
  R(nanosleep(&t, &rem));
  say("left: %d\n", rem.tv_sec == 4 && rem.tv_nsec > 0);
  setitimer(ITIMER_REAL, &it, 0);
  R(poll(0, 0, 5000));
  sigset_t none;
  sigemptyset(&none);
  setitimer(ITIMER_REAL, &it, 0);
  R(sigsuspend(&none));
  setitimer(ITIMER_REAL, &it, 0);
  R(pause());
  pid_t c = fork();
  if (!c) { usleep(80000); _exit(3); }
  setitimer(ITIMER_REAL, &it, 0);
  int st;
  R(waitpid(c, &st, 0) == c); // RESTART: it goes on
}
static void wait_for(void) {
  sigset_t s;
  sigemptyset(&s); sigaddset(&s, SIGUSR1); sigaddset(&s, SIGRTMIN + 2);
  sigprocmask(SIG_BLOCK, &s, 0);
  siginfo_t i;
  struct timespec z = {0, 0}, some = {0, 20000000};
  R(sigtimedwait(&s, &i, &z));
  R(sigtimedwait(&s, &i, &some));
  raise(SIGUSR1);
  R(sigtimedwait(&s, &i, &some));
  say("got %d code %d\n", i.si_signo, i.si_code);
  union sigval v = {.sival_int = 5};
  sigqueue(getpid(), SIGRTMIN + 2, v);
  sigqueue(getpid(), SIGRTMIN + 2, (union sigval){.sival_int = 6});
  CHECK(sigwaitinfo(&s, &i) == SIGRTMIN + 2 && i.si_value.sival_int == 5);
  CHECK(sigwaitinfo(&s, &i) == SIGRTMIN + 2 && i.si_value.sival_int == 6);
  R(sigtimedwait(&s, &i, &z));
  sigprocmask(SIG_UNBLOCK, &s, 0);
}
static volatile uint64_t regs_ok;
static void clobber(int s, siginfo_t *i, void *u) {
  (void)s; (void)i;
  ucontext_t *c = u;
  __asm__ volatile("xor %%ebx,%%ebx; mov $77,%%r12; mov $78,%%r15; pxor %%xmm0,%%xmm0; std; cld; cmp %%r12,%%r15" ::: "rbx", "r12", "r15", "xmm0", "cc");
  c->uc_mcontext.gregs[REG_R13] = 0x1234567; // what the handler writes there is what the program finds
}
static void registers(void) {
  struct sigaction a = {.sa_sigaction = clobber, .sa_flags = SA_SIGINFO};
  sigaction(SIGUSR1, &a, 0);
  uint64_t b, r12, r13, r15, fl;
  double d = 3.25, e;
  __asm__ volatile("mov $11,%%rbx; mov $12,%%r12; mov $13,%%r13; mov $15,%%r15; movsd %5,%%xmm7; stc;"
                   "mov $39,%%eax; syscall; mov %%eax,%%edi; mov $10,%%esi; mov $62,%%eax; syscall;" // kill(getpid(), SIGUSR1)
                   "pushf; pop %4; mov %%rbx,%0; mov %%r12,%1; mov %%r13,%2; mov %%r15,%3; movsd %%xmm7,%6"
                   : "=m"(b), "=m"(r12), "=m"(r13), "=m"(r15), "=&r"(fl) : "m"(d), "m"(e)
                   : "rax", "rbx", "rcx", "rdi", "rsi", "r11", "r12", "r13", "r15", "xmm7", "memory", "cc");
  say("registers: %lu %lu %lx %lu carry %lu %g\n", b, r12, r13, r15, fl & 1, e);
}
static void dies_default(void) { raise(SIGUSR2); }
static void dies_abort(void) { abort(); }
static void stop_and_go(void) {
  pid_t c = fork();
  if (!c) { raise(SIGSTOP); _exit(9); }
  int st;
  CHECK(waitpid(c, &st, WUNTRACED) == c);
  say("stopped %d by %d\n", WIFSTOPPED(st), WSTOPSIG(st));
  R(waitpid(c, &st, WNOHANG));
  kill(c, SIGCONT);
  CHECK(waitpid(c, &st, WCONTINUED) == c);
  if (WIFCONTINUED(st)) { say("continued\n"); CHECK(waitpid(c, &st, 0) == c); } else say("continued\n");
  say("exit %d\n", WEXITSTATUS(st));
}
int main(void) {
  struct rlimit nocore = {0, 0};
  setrlimit(RLIMIT_CORE, &nocore);
  nesting();
  masks();
  information();
  restart();
  wait_for();
  registers();
  signal(SIGUSR2, SIG_DFL);
  say("default: %s\n", in_child(dies_default));
  say("abort: %s\n", in_child(dies_abort));
  stop_and_go();
  return 0;
}
