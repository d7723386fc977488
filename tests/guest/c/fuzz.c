// Pinfold only: random system calls with random bit patterns. The kernel must survive, and the parent must
// find its own memory and files as they were. argv: seed, calls, children.
#include "t.h"
#include <pthread.h>
static char *arena;
static uint64_t odd(void) {
  static const uint64_t edge[] = {0, 1, 2, 3, 7, 8, 4095, 4096, 4097, 0x7fffffff, 0x80000000, 0xffffffff, 0x100000000, 0x7ffffffff000, 0x7fffffffffff, 0x800000000000, 0xffff800000000000, 0xffff888000000000, 0xffffffff80000000, 0xfffffffffffff000, -1, -8, 1ull << 63, 1ull << 62};
  switch (rng() % 8) {
  case 0: return edge[rng() % (sizeof edge / sizeof *edge)];
  case 1: return rng();
  case 2: return rng() >> rng() % 64;
  case 3: return rng() % 64;
  case 4: case 5: return (uint64_t)arena + rng() % (64 * PG);
  case 6: return (uint64_t)arena + (rng() % 64) * PG;
  default: return rng() % 8 * PG;
  }
}
static volatile long *done; // calls that the children of this round have made, shared
static pid_t self;
// Gives a call that could stop the machine, the parent or the fuzzing a form that cannot; 0: leave it out.
static int tame(long n, uint64_t *a) {
  static const int harmless[] = {0, SIGHUP, SIGUSR1, SIGUSR2, SIGCHLD, SIGCONT, SIGWINCH, SIGURG, 33, 40, 64};
  switch (n) {
  case SYS_exit: case SYS_exit_group: case SYS_reboot: case SYS_pause: case SYS_rt_sigsuspend: case SYS_rt_sigreturn:
  case SYS_vfork: case SYS_fork: case SYS_clone: case SYS_clone3: case SYS_pidfd_send_signal: case SYS_ptrace:
  case SYS_alarm: case SYS_setitimer: case SYS_mount: case SYS_umount2: case SYS_pivot_root: case SYS_swapon:
    return 0;
  case SYS_kill: case SYS_tkill: case SYS_rt_sigqueueinfo: a[0] = self; a[1] = harmless[a[1] % 11]; break;
  case SYS_tgkill: case SYS_rt_tgsigqueueinfo: a[0] = a[1] = self; a[2] = harmless[a[2] % 11]; break;
  case SYS_setrlimit: if (rng() % 8) return 0; break;
  case SYS_prlimit64: a[0] = 0; if (rng() % 8) a[2] = 0; break;
  case SYS_sched_setaffinity: case SYS_sched_setscheduler: case SYS_sched_setparam: case SYS_setpriority: a[0] = a[0] % 2 ? self : 1 << 30; break;
  case SYS_wait4: a[2] |= 1; break;
  case SYS_waitid: a[3] |= 1; break;
  case SYS_chroot: if (rng() % 16) return 0; break;
  case SYS_nanosleep: ((uint64_t *)(a[0] = (uint64_t)arena + 60 * PG))[0] = 0; *(uint64_t *)(arena + 60 * PG + 8) %= 1000; break;
  case SYS_clock_nanosleep: a[1] = 0; memset((void *)(a[2] = (uint64_t)arena + 60 * PG), 0, 16); break;
  case SYS_poll: a[2] %= 2; if (rng() % 4) a[1] %= 100; break;
  case SYS_ppoll: if (rng() % 4) a[1] %= 100; memset((void *)(a[2] = (uint64_t)arena + 60 * PG), 0, 16); break;
  case SYS_select: case SYS_pselect6: if (rng() % 4) a[0] %= 200; memset((void *)(a[4] = (uint64_t)arena + 60 * PG), 0, 16); break;
  case SYS_rt_sigtimedwait: memset((void *)(a[2] = (uint64_t)arena + 60 * PG), 0, 16); break;
  case SYS_epoll_wait: case SYS_epoll_pwait: a[3] %= 2; break;
  case SYS_futex: a[1] &= 0x1ff; if ((a[1] & 0x7f) == 0 || (a[1] & 0x7f) == 9) a[2] = 0x1234567; break;
  case 449: if (a[3] == 0) a[3] = 8; break; // futex_waitv: never for ever
  }
  return 1;
}
static void tick(int s) { (void)s; } // a call that blocks gets EINTR
static void open_all(void) { // descriptors of every kind below 24
  int pf[2];
  for (int i = 3; i < 24; i++) close(i);
  pipe2(pf, O_NONBLOCK);
  memfd_create("f", MFD_ALLOW_SEALING); open("/tmp/fuzz.a", O_RDWR | O_CREAT, 0600); open("/proc/self/status", O_RDONLY); open("/dev/zero", O_RDWR); open("/", O_RDONLY);
  syscall(SYS_epoll_create1, 0); syscall(SYS_eventfd2, 1, O_NONBLOCK); syscall(SYS_pidfd_open, getpid(), 0); syscall(SYS_socketpair, 1, 1 | O_NONBLOCK, 0, pf);
  open("/tmp", O_PATH); open("/proc/self/fd", O_RDONLY); open("/dev/random", O_RDONLY); open("/proc/self/mem", O_RDWR); open("/tmp/fuzz.a", O_RDONLY); open("/dev/full", O_RDWR); open("/proc/self/exe", O_RDONLY);
}
static void calls_of(uint64_t seed, int calls) {
  rng_state = seed * 0x9e3779b97f4a7c15 | 1;
  static const int mm[] = {SYS_mmap, SYS_munmap, SYS_mprotect, SYS_mremap, SYS_madvise, SYS_brk, SYS_mincore, SYS_msync};
  for (int i = 0; i < calls; i++) {
    long nr = rng() % 3 ? rng() % 340 : rng() % 4 == 0 ? (long)(400 + rng() % 112) : mm[rng() % 8];
    if (rng() % 200 == 0) nr = odd();
    uint64_t a[6];
    for (int k = 0; k < 6; k++) a[k] = odd();
    if (rng() % 2) a[0] = rng() % 24; // a descriptor more often than chance has it
    if (nr == SYS_munmap || nr == SYS_mmap || nr == SYS_mremap || nr == SYS_mprotect) { if (rng() % 4) a[1] %= 16 * PG; if (nr == SYS_mremap) a[2] %= 64 * PG; }
    if (!tame(nr, a)) continue;
    if (i % 512 == 511) open_all();
    syscall(nr, a[0], a[1], a[2], a[3], a[4], a[5]);
    if (done) __atomic_add_fetch(done, 1, __ATOMIC_RELAXED);
  }
}
struct part { uint64_t seed; int calls; };
static void *thread(void *x) { struct part p = *(struct part *)x; calls_of(p.seed, p.calls); return 0; }
static void child(uint64_t seed, int calls, int threads) {
  rng_state = seed * 0x9e3779b97f4a7c15 | 1;
  self = getpid();
  arena = mmap(0, 64 * PG, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  for (int i = 0; i < 64 * 512; i++) ((uint64_t *)arena)[i] = rng() % 4 ? odd() : rng();
  strcpy(arena, "/tmp/fuzz.a"); strcpy(arena + PG, "/dev/null"); strcpy(arena + 2 * PG, "/proc/self/maps"); strcpy(arena + 3 * PG, "fuzz.b");
  strcpy(arena + 4 * PG, "/proc/self/fd/9"); strcpy(arena + 5 * PG, "/tmp"); strcpy(arena + 6 * PG, "."); strcpy(arena + 7 * PG, "");
  chdir("/tmp");
  int n = open("/dev/null", O_RDWR);
  dup2(n, 0); dup2(n, 1); dup2(n, 2);
  open_all();
  signal(SIGSEGV, SIG_DFL);
  for (int i = 1; i < 64; i++) if (i != SIGSEGV && i != SIGBUS && i != SIGALRM) signal(i, SIG_IGN);
  struct sigaction sa = {.sa_handler = tick};
  struct itimerval every = {{0, 200000}, {0, 200000}};
  sigaction(SIGALRM, &sa, 0);
  setitimer(ITIMER_REAL, &every, 0);
  // The call that disarms the timer and then blocks is ended from outside.
  struct part p[4];
  pthread_t t;
  for (int i = 1; i < threads; i++) { p[i] = (struct part){seed * 31 + i, calls / threads}; pthread_create(&t, 0, thread, &p[i]); }
  calls_of(seed, calls / threads);
  _exit(0);
}
static int forks(uint64_t seed) { // clone with random flags, exec with random pointers, sigreturn to random frames
  rng_state = seed * 77 + 1;
  for (int i = 0; i < 30; i++) {
    pid_t c = fork();
    if (!c) {
      alarm(3);
      arena = anon(64 * PG);
      for (int k = 0; k < 64 * 512; k++) ((uint64_t *)arena)[k] = rng();
      switch (rng() % 4) {
      case 0: syscall(SYS_clone, odd() & ~0x4000ull /* VFORK */, 0, odd(), odd(), odd()); break;
      case 1: syscall(SYS_execve, odd(), odd(), odd()); break;
      case 2: __asm__ volatile("mov %0, %%rsp; mov $15, %%eax; syscall" ::"r"(arena + (rng() % 4096) * 8) : "memory"); break;
      default: syscall(SYS_clone3, odd(), odd()); break;
      }
      _exit(0);
    }
    int st;
    if (c > 0) waitpid(c, &st, 0);
  }
  return 0;
}
int main(int argc, char **argv) {
  uint64_t seed = argc > 1 ? strtoull(argv[1], 0, 0) : 1;
  int calls = argc > 2 ? atoi(argv[2]) : 5000, kids = argc > 3 ? atoi(argv[3]) : 8, st;
  long all = 0;
  uint64_t *mine = (uint64_t *)anon(256 * PG);
  done = mmap(BASE, PG, 3, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0); // far from what is aimed at
  for (int i = 0; i < 256 * 512; i++) mine[i] = i * 0x9e3779b97f4a7c15;
  for (int k = 0; k < kids; k++) {
    // Most children soon destroy themselves: others go on until the calls are made.
    *done = 0;
    for (int again = 0; *done < calls && again < 400 + calls / 10; again++) {
      pid_t c = fork();
      CHECK(c >= 0);
      if (!c) { setsid(); child(seed + k * 1000 + again, calls - *done, k % 2 ? 3 : 1); }
      long before = -1;
      int status, idle = 0;
      pid_t gone;
      while ((gone = waitpid(c, &status, WNOHANG)) == 0) {
        usleep(idle++ < 20 ? 500 : 20000);
        if (idle % 64 == 0) { if (*done == before) kill(c, SIGKILL); before = *done; } // it blocks for good
      }
      CHECK(gone == c);
    }
    all += *done;
    if (argc > 4) say("%d: %ld calls\n", k, (long)*done);
    for (int i = 0; i < 256 * 512; i++) CHECK(mine[i] == i * 0x9e3779b97f4a7c15);
  }
  pid_t c = fork();
  if (!c) { setsid(); _exit(forks(seed)); }
  CHECK(waitpid(c, &st, 0) == c);
  CHECK(all >= (long)calls * kids / 2);
  say("survived\n");
  if (argc > 4) say("%ld calls\n", all);
  return 0;
}
