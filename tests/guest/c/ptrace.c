// ptrace: every request, every kind of stop, and what becomes of tracer and tracee when the other one dies.
#include "t.h"
#include <linux/ptrace.h>
#include <pthread.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/uio.h>
#include <sys/user.h>
#undef PTRACE_GETREGS
#include <asm/ptrace.h>

#ifndef PTRACE_EVENT_STOP
#define PTRACE_EVENT_STOP 128
#endif
#define O(x) PTRACE_O_##x

static long pt(int req, pid_t pid, void *addr, void *data) {
  return syscall(SYS_ptrace, req, pid, addr, data);
}
#define PT(req, pid, addr, data) pt(req, pid, (void *)(unsigned long)(addr), (void *)(unsigned long)(data))

static const char *signame(int s) {
  static char b[16];
  switch (s) {
    case SIGTRAP: return "TRAP";
    case SIGTRAP | 0x80: return "TRAP|80";
    case SIGSTOP: return "STOP";
    case SIGCONT: return "CONT";
    case SIGUSR1: return "USR1";
    case SIGUSR2: return "USR2";
    case SIGCHLD: return "CHLD";
    case SIGSEGV: return "SEGV";
    case SIGKILL: return "KILL";
    case SIGTERM: return "TERM";
    case SIGTSTP: return "TSTP";
    case SIGILL: return "ILL";
  }
  snprintf(b, sizeof b, "%d", s);
  return b;
}

static void status(const char *what, int st) {
  if (WIFEXITED(st)) say("%s: exit %d\n", what, WEXITSTATUS(st));
  else if (WIFSIGNALED(st)) say("%s: killed %s\n", what, signame(WTERMSIG(st)));
  else if (WIFCONTINUED(st)) say("%s: continued\n", what);
  else say("%s: stop %s event %d\n", what, signame(WSTOPSIG(st)), st >> 16);
}

// Waits for one event of `pid` and says it.
static int await(const char *what, pid_t pid) {
  int st = 0;
  pid_t r = waitpid(pid, &st, __WALL);
  if (r != pid) {
    say("%s: wait %s\n", what, r < 0 ? ename(errno) : "other");
    return -1;
  }
  status(what, st);
  return st;
}

static void res(const char *what, long r) {
  if (r < 0) say("%s: %s\n", what, ename(errno));
  else say("%s: %ld\n", what, r);
}

static struct user_regs_struct regs(pid_t p) {
  struct user_regs_struct r;
  CHECK(PT(12, p, 0, &r) == 0);
  return r;
}

static void siginfo(const char *what, pid_t p) {
  siginfo_t si;
  memset(&si, 0, sizeof si);
  if (PT(PTRACE_GETSIGINFO, p, 0, &si) < 0) say("%s: siginfo %s\n", what, ename(errno));
  else
    say("%s: signo %s code %#x\n", what, signame(si.si_signo), si.si_code);
}

// A child that asks to be traced, stops, and runs `f`.
static pid_t traced(void (*f)(void)) {
  pid_t p = fork();
  CHECK(p >= 0);
  if (p == 0) {
    CHECK(PT(PTRACE_TRACEME, 0, 0, 0) == 0);
    raise(SIGSTOP);
    f();
    _exit(7);
  }
  int st;
  CHECK(waitpid(p, &st, 0) == p && WIFSTOPPED(st) && WSTOPSIG(st) == SIGSTOP);
  return p;
}

static void finish(pid_t p) {
  int st;
  kill(p, SIGKILL);
  while (waitpid(p, &st, __WALL) == p && !WIFEXITED(st) && !WIFSIGNALED(st)) {}
}

static void nothing(void) {}
static volatile long cell = 41;
static const volatile long constant = 99;
__attribute__((noinline)) static long target_fn(long a) { return a * 3 + cell; }

// ---- memory, registers
static void calls_target(void) {
  long r = target_fn(5);
  _exit(r == 15 + cell ? (int)r : 1);
}

// What a debugger may write, and where it goes: a copy of its own, never a file and never what others share.
static void mappings(void) {
  char name[64];
  sprintf(name, "/tmp/ptrace.%d", getpid());
  int rw = open(name, O_RDWR | O_CREAT | O_TRUNC, 0600), ro = open(name, O_RDONLY);
  CHECK(rw >= 0 && ro >= 0 && unlink(name) == 0 && write(rw, "original", 8) == 8);
  struct {
    const char *what;
    int prot, flags, fd;
    char *at;
  } m[] = {{"private file", PROT_READ, MAP_PRIVATE, ro},
           {"shared file, read-only for good", PROT_READ, MAP_SHARED, ro},
           {"shared file, read-only now", PROT_READ, MAP_SHARED, rw},
           {"shared file", PROT_READ | PROT_WRITE, MAP_SHARED, rw},
           {"no rights", PROT_NONE, MAP_PRIVATE, ro},
           {"no rights, anonymous", PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1}};
  enum { N = sizeof m / sizeof *m };
  for (int i = 0; i < N; i++) CHECK((m[i].at = mmap(0, PG, m[i].prot, m[i].flags, m[i].fd, 0)) != MAP_FAILED);
  pid_t p = traced(nothing);
  for (int i = 0; i < N; i++) {
    long w = 0, old = 0, back = 0;
    char file[9] = "";
    res(m[i].what, PT(PTRACE_PEEKDATA, p, m[i].at, &old));
    memcpy(&w, "debugger", 8);
    int e = PT(PTRACE_POKEDATA, p, m[i].at, w) < 0 ? errno : 0;
    CHECK(PT(PTRACE_PEEKDATA, p, m[i].at, &back) == 0);
    CHECK(pread(rw, file, 8, 0) == 8);
    say("%s: %.8s, poke %s, then %.8s, file %.8s", m[i].what, (char *)&old, e ? ename(e) : "0", (char *)&back, file);
    if (m[i].prot) say(", ours %.8s", m[i].at);
    say("\n");
  }
  finish(p);
  for (int i = 0; i < N; i++) munmap(m[i].at, PG);
  close(rw);
  close(ro);
}

static void memory(void) {
  mappings();
  pid_t p = traced(calls_target);
  long w = 0;
  res("peek", PT(PTRACE_PEEKDATA, p, &cell, &w));
  say("cell %ld\n", w);
  res("poke", PT(PTRACE_POKEDATA, p, &cell, 100));
  res("peek again", PT(PTRACE_PEEKDATA, p, &cell, &w));
  say("theirs %ld ours %ld\n", w, cell);
  res("poke constant", PT(PTRACE_POKETEXT, p, &constant, 98));
  res("peek constant", PT(PTRACE_PEEKTEXT, p, &constant, &w));
  say("theirs %ld ours %ld\n", w, constant);
  res("peek nowhere", PT(PTRACE_PEEKDATA, p, 8, &w));
  res("poke nowhere", PT(PTRACE_POKEDATA, p, 8, 1));
  res("peek kernel", PT(PTRACE_PEEKDATA, p, 0xffff800000000000, &w));
  res("peek to nowhere", PT(PTRACE_PEEKDATA, p, &cell, 8));
  char name[64], byte;
  snprintf(name, sizeof name, "/proc/%d/mem", p);
  int fd = open(name, O_RDWR);
  CHECK(fd >= 0);
  res("mem read", pread(fd, &w, sizeof w, (long)&cell));
  w = 55;
  res("mem write", pwrite(fd, &w, sizeof w, (long)&cell));
  res("mem nowhere", pread(fd, &w, sizeof w, 8));
  res("mem constant", pwrite(fd, &w, sizeof w, (long)&constant));
  CHECK(lseek(fd, (long)&cell, SEEK_SET) == (long)&cell);
  CHECK(read(fd, &byte, 1) == 1 && byte == 55);
  close(fd);
  // A breakpoint in text that is mapped from a file, shared with us.
  long text = 0;
  CHECK(PT(PTRACE_PEEKTEXT, p, target_fn, &text) == 0);
  CHECK(PT(PTRACE_POKETEXT, p, target_fn, (text & ~0xffL) | 0xcc) == 0);
  say("our text %s\n", *(volatile unsigned char *)target_fn == 0xcc ? "changed" : "unchanged");
  CHECK(PT(PTRACE_CONT, p, 0, 0) == 0);
  await("breakpoint", p);
  siginfo("breakpoint", p);
  struct user_regs_struct r = regs(p);
  say("at %ld arg %llu orig %lld\n", (long)(r.rip - (unsigned long)target_fn), r.rdi, r.orig_rax);
  CHECK(PT(PTRACE_POKETEXT, p, target_fn, text) == 0);
  r.rip--;
  r.rdi = 7;
  res("setregs", PT(13, p, 0, &r));
  CHECK(PT(PTRACE_CONT, p, 0, 0) == 0);
  await("done", p); // 7 * 3 + 55 differs from what the child expects
  res("after", PT(PTRACE_CONT, p, 0, 0));

  p = traced(calls_target);
  r = regs(p);
  struct user_regs_struct bad = r;
  bad.cs = 0;
  res("cs 0", PT(13, p, 0, &bad));
  bad = r;
  bad.fs_base = 1UL << 48;
  res("fs_base high", PT(13, p, 0, &bad));
  res("poke cs", PT(PTRACE_POKEUSR, p, offsetof(struct user_regs_struct, cs), 0x10));
  res("poke rbx", PT(PTRACE_POKEUSR, p, offsetof(struct user_regs_struct, rbx), 0x1234));
  CHECK(PT(PTRACE_PEEKUSR, p, offsetof(struct user_regs_struct, rbx), &w) == 0);
  say("rbx %#lx\n", w);
  res("user odd", PT(PTRACE_PEEKUSR, p, 3, &w));
  res("user end", PT(PTRACE_PEEKUSR, p, 4096, &w));
  res("user middle", PT(PTRACE_POKEUSR, p, 300, 1));
  w = r.eflags | 0x3000 | 0x20000 | 0x200; // IOPL and VM are not the program's
  CHECK(PT(PTRACE_POKEUSR, p, offsetof(struct user_regs_struct, eflags), w) == 0);
  say("flags kept %d\n", ((regs(p).eflags ^ r.eflags) & 0x23000) == 0);
  struct iovec iov = {&r, sizeof r};
  res("getregset", PT(PTRACE_GETREGSET, p, 1, &iov));
  say("len %zu same rbx %d\n", iov.iov_len, r.rbx == 0x1234);
  iov.iov_len = 16;
  res("getregset short", PT(PTRACE_GETREGSET, p, 1, &iov));
  say("len %zu\n", iov.iov_len);
  iov.iov_len = 13;
  res("getregset odd", PT(PTRACE_GETREGSET, p, 1, &iov));
  res("getregset kind", PT(PTRACE_GETREGSET, p, 77, &iov));
  res("getregset nowhere", PT(PTRACE_GETREGSET, p, 1, 8));
  res("getregs nowhere", PT(12, p, 0, 8));
  r = regs(p);
  r.rip = 0x800000000000; // not canonical
  res("rip high", PT(13, p, 0, &r));
  CHECK(PT(PTRACE_CONT, p, 0, 0) == 0);
  await("rip high", p);
  CHECK(PT(PTRACE_CONT, p, 0, SIGSEGV) == 0);
  await("rip high", p);

  p = traced(calls_target);
  r = regs(p);
  r.rip = 0xffffffff81000000;
  r.rsp = 0xffff888000000000;
  r.eflags = ~0UL;
  CHECK(PT(13, p, 0, &r) == 0);
  CHECK(PT(PTRACE_CONT, p, 0, 0) == 0);
  int st = 0;
  CHECK(waitpid(p, &st, 0) == p && WIFSTOPPED(st));
  say("rip kernel: stopped by a fault %d\n", WSTOPSIG(st) == SIGSEGV || WSTOPSIG(st) == SIGTRAP);
  finish(p);
}

// ---- extended state
static void floats(void) {
  unsigned long in[2] = {0x1111, 0x2222}, out[2];
  asm volatile(
      "movdqu %1, %%xmm7\n int3\n movdqu %%xmm7, %0"
      : "=m"(out)
      : "m"(in)
      : "xmm7");
  _exit(out[0] == 0x3333 && out[1] == 0x2222 ? 3 : 4);
}

static void extended(void) {
  pid_t p = traced(floats);
  CHECK(PT(PTRACE_CONT, p, 0, 0) == 0);
  await("int3", p);
  siginfo("int3", p);
  struct user_fpregs_struct fp;
  CHECK(PT(14, p, 0, &fp) == 0);
  unsigned long *x7 = (unsigned long *)((char *)fp.xmm_space + 7 * 16);
  say("xmm7 %#lx %#lx mxcsr %#x cwd %#x\n", x7[0], x7[1], fp.mxcsr, fp.cwd);
  x7[0] = 0x3333;
  res("setfpregs", PT(15, p, 0, &fp));
  fp.mxcsr = 0xffffffff;
  res("bad mxcsr", PT(15, p, 0, &fp));
  static unsigned char xs[16384];
  struct iovec iov = {xs, sizeof xs};
  res("xstate", PT(PTRACE_GETREGSET, p, 0x202, &iov));
  unsigned long feat, have;
  memcpy(&feat, xs + 464, 8);
  memcpy(&have, xs + 512, 8);
  say("sse on %d x7 %d\n", (feat & 3) == 3 && (have & 2), !memcmp(xs + 160 + 7 * 16, x7, 16));
  res("xstate back", PT(PTRACE_SETREGSET, p, 0x202, &iov));
  iov.iov_len = 512;
  res("xstate part", PT(PTRACE_SETREGSET, p, 0x202, &iov));
  unsigned long wrong = 1UL << 62;
  memcpy(xs + 512, &wrong, 8);
  iov.iov_len = sizeof xs;
  CHECK(PT(PTRACE_GETREGSET, p, 0x202, &iov) == 0);
  memcpy(xs + 512, &wrong, 8);
  res("xstate wrong", PT(PTRACE_SETREGSET, p, 0x202, &iov));
  CHECK(PT(PTRACE_CONT, p, 0, 0) == 0);
  await("floats", p);
}

// ---- steps
extern char step_begin[], step_end[];
static void steps_here(void) {
  asm volatile(
      "mov $39, %%eax\n"
      ".global step_begin\n step_begin:\n"
      "xor %%ecx, %%ecx\n"
      "inc %%ecx\n"
      "mov $39, %%eax\n"
      "syscall\n"
      "nop\n"
      "pushf\n"
      "pop %%rdx\n"
      ".global step_end\n step_end:\n"
      "nop\n" ::
          : "rax", "rcx", "rdx", "r11", "memory");
  _exit(9);
}

static void on_usr1(int s) { (void)s; }

static void step_handler(void) {
  signal(SIGUSR1, on_usr1);
  raise(SIGUSR1);
  _exit(5);
}

static void steps(void) {
  pid_t p = traced(steps_here);
  long text = 0;
  CHECK(PT(PTRACE_PEEKTEXT, p, step_begin, &text) == 0);
  CHECK(PT(PTRACE_POKETEXT, p, step_begin, (text & ~0xffL) | 0xcc) == 0);
  CHECK(PT(PTRACE_CONT, p, 0, 0) == 0);
  await("begin", p);
  CHECK(PT(PTRACE_POKETEXT, p, step_begin, text) == 0);
  CHECK(PT(PTRACE_POKEUSR, p, offsetof(struct user_regs_struct, rip), step_begin) == 0);
  int n = 0;
  for (;;) {
    CHECK(PT(PTRACE_SINGLESTEP, p, 0, 0) == 0);
    int st = 0;
    CHECK(waitpid(p, &st, 0) == p && WIFSTOPPED(st) && WSTOPSIG(st) == SIGTRAP);
    siginfo_t si;
    CHECK(PT(PTRACE_GETSIGINFO, p, 0, &si) == 0);
    struct user_regs_struct r = regs(p);
    n++;
    say("step %d: +%ld code %d addr %d tf %d\n", n, (long)(r.rip - (unsigned long)step_begin), si.si_code,
        si.si_addr == (void *)r.rip, !!(r.eflags & 0x100));
    if (r.rip == (unsigned long)step_end) {
      say("flags pushed with tf %d\n", !!(r.rdx & 0x100));
      break;
    }
    CHECK(n < 20);
  }
  CHECK(PT(PTRACE_CONT, p, 0, 0) == 0);
  await("stepped", p);

  p = traced(step_handler);
  CHECK(PT(PTRACE_CONT, p, 0, 0) == 0);
  await("usr1", p);
  CHECK(PT(PTRACE_SINGLESTEP, p, 0, SIGUSR1) == 0);
  await("into handler", p);
  siginfo("into handler", p);
  say("at handler %d\n", regs(p).rip == (unsigned long)on_usr1);
  CHECK(PT(PTRACE_CONT, p, 0, 0) == 0);
  await("end", p);
}

// ---- debug registers
#define DR(n) (offsetof(struct user, u_debugreg) + 8 * (n))
static volatile long watched[2];
static void touches(void) {
  watched[1] = 1;
  watched[0] = 7;
  long a = watched[0];
  long b = target_fn(a);
  int null = open("/dev/zero", O_RDONLY);
  read(null, (void *)watched, sizeof watched); // the kernel's own write
  watched[0] = b;
  _exit(watched[0] == 7 * 3 + cell ? 13 : 14);
}

static void debug_stop(const char *what, pid_t p) {
  await(what, p);
  siginfo(what, p);
  long w = 0;
  CHECK(PT(PTRACE_PEEKUSR, p, DR(6), &w) == 0);
  say("%s: hit %#lx\n", what, w & 0xf);
}

static void debug_registers(void) {
  pid_t p = traced(touches);
  long w = 0;
  res("dr0", PT(PTRACE_POKEUSR, p, DR(0), watched));
  res("dr1", PT(PTRACE_POKEUSR, p, DR(1), target_fn));
  res("dr4", PT(PTRACE_POKEUSR, p, DR(4), 1));
  CHECK(PT(PTRACE_POKEUSR, p, DR(2), 0xffffffff81000000) != 0);
  CHECK(PT(PTRACE_POKEUSR, p, DR(7), 0x1 | 0xaUL << 16) != 0); // what nobody may: I/O
  CHECK(PT(PTRACE_PEEKUSR, p, DR(7), &w) == 0 && w == 0);
  res("dr7", PT(PTRACE_POKEUSR, p, DR(7), 0x1 | 0x4 | 0x9UL << 16)); // writes of 8 bytes; an instruction
  CHECK(PT(PTRACE_PEEKUSR, p, DR(0), &w) == 0 && w == (long)watched);
  CHECK(PT(PTRACE_PEEKUSR, p, DR(7), &w) == 0);
  say("dr7 %#lx\n", w);
  CHECK(PT(PTRACE_CONT, p, 0, 0) == 0);
  debug_stop("write", p);
  CHECK(PT(PTRACE_PEEKDATA, p, watched, &w) == 0);
  say("written %ld\n", w);
  CHECK(PT(PTRACE_CONT, p, 0, 0) == 0);
  debug_stop("instruction", p);
  say("at target %d\n", regs(p).rip == (unsigned long)target_fn);
  CHECK(PT(PTRACE_CONT, p, 0, 0) == 0);
  debug_stop("write again", p);
  res("dr7 off", PT(PTRACE_POKEUSR, p, DR(7), 0));
  CHECK(PT(PTRACE_CONT, p, 0, 0) == 0);
  await("end", p);
}

// ---- system calls
static void some_calls(void) {
  syscall(SYS_getppid, 1, 2, 3, 4, 5, 6);
  long r = syscall(SYS_getuid);
  long q = syscall(SYS_getgid);
  syscall(SYS_close, 12345);
  _exit(r == 4242 && q == -1 && errno ? 6 : 8);
}

static void call_info(const char *what, pid_t p) {
  struct ptrace_syscall_info i;
  memset(&i, 0, sizeof i);
  long n = PT(PTRACE_GET_SYSCALL_INFO, p, sizeof i, &i);
  if (n < 0) {
    say("%s: info %s\n", what, ename(errno));
    return;
  }
  say("%s: info %ld op %d arch %#x", what, n, i.op, i.arch);
  if (i.op == 1) say(" nr %llu", i.entry.nr);
  if (i.op == 1 && i.entry.nr == SYS_getppid)
    say(" args %llu %llu %llu", i.entry.args[0], i.entry.args[1], i.entry.args[5]);
  if (i.op == 2) say(" rval %lld err %d", i.exit.is_error ? i.exit.rval : 0, i.exit.is_error);
  say("\n");
}

static void calls(void) {
  pid_t p = traced(some_calls);
  res("options", PT(PTRACE_SETOPTIONS, p, 0, O(TRACESYSGOOD)));
  res("bad options", PT(PTRACE_SETOPTIONS, p, 0, 1 << 25));
  call_info("stop", p);
  for (int i = 0; i < 64; i++) {
    CHECK(PT(PTRACE_SYSCALL, p, 0, 0) == 0);
    int st = 0;
    CHECK(waitpid(p, &st, 0) == p);
    if (WIFEXITED(st)) {
      status("calls", st);
      break;
    }
    CHECK(WSTOPSIG(st) == (SIGTRAP | 0x80));
    struct user_regs_struct r = regs(p);
    struct ptrace_syscall_info si;
    CHECK(PT(PTRACE_GET_SYSCALL_INFO, p, sizeof si, &si) > 0);
    if (r.orig_rax == SYS_getppid || r.orig_rax == SYS_close || r.orig_rax == SYS_exit_group) call_info("call", p);
    if (si.op == 1) {
      if ((long)r.rax != -ENOSYS) say("rax on entry %lld\n", r.rax);
      if (r.orig_rax == SYS_getgid) { // none at all: -1, and -ENOSYS becomes EPERM's errno by our hand
        r.orig_rax = -1;
        r.rax = -EPERM;
        CHECK(PT(13, p, 0, &r) == 0);
      }
    } else if (r.orig_rax == SYS_getuid) {
      r.rax = 4242;
      CHECK(PT(13, p, 0, &r) == 0);
    }
  }
  // An entry stop left by CONT has no exit stop; a signal sent along arrives.
  p = traced(some_calls);
  CHECK(PT(PTRACE_SYSCALL, p, 0, 0) == 0);
  await("old style", p);
  siginfo("old style", p);
  call_info("old style", p);
  CHECK(PT(PTRACE_CONT, p, 0, SIGUSR1) == 0);
  await("injected", p);
  siginfo("injected", p);
  CHECK(PT(PTRACE_CONT, p, 0, SIGUSR1) == 0);
  await("injected", p);
}

// ---- signals
static volatile int got, got_code, got_value;
static void on_info(int s, siginfo_t *si, void *u) {
  (void)u;
  got = s;
  got_code = si->si_code;
  got_value = si->si_value.sival_int;
}

static void takes_signals(void) {
  struct sigaction sa = {.sa_sigaction = on_info, .sa_flags = SA_SIGINFO};
  sigaction(SIGUSR1, &sa, 0);
  sigaction(SIGUSR2, &sa, 0);
  raise(SIGUSR1); // suppressed
  int a = got;
  raise(SIGUSR1); // becomes SIGUSR2
  int b = got, bc = got_code;
  raise(SIGUSR1); // gets another siginfo
  int c = got, cv = got_value;
  sigset_t m;
  sigemptyset(&m);
  sigaddset(&m, SIGUSR1);
  sigaddset(&m, SIGTERM);
  sigprocmask(SIG_BLOCK, &m, 0);
  kill(getpid(), SIGTERM);
  union sigval v = {.sival_int = 77};
  sigqueue(getpid(), SIGRTMIN, v);
  raise(SIGCHLD); // ignored, and yet a stop
  _exit(a == 0 && b == SIGUSR2 && bc == SI_USER && c == SIGUSR1 && cv == 1234 ? 11 : 12);
}

static void signals(void) {
  pid_t p = traced(takes_signals);
  siginfo("raise", p);
  res("bad signal", PT(PTRACE_CONT, p, 0, 65));
  res("bad signal", PT(PTRACE_CONT, p, 0, -1));
  CHECK(PT(PTRACE_CONT, p, 0, 0) == 0);
  await("first", p);
  siginfo("first", p);
  CHECK(PT(PTRACE_CONT, p, 0, 0) == 0);
  await("second", p);
  CHECK(PT(PTRACE_CONT, p, 0, SIGUSR2) == 0);
  await("third", p);
  siginfo_t si;
  CHECK(PT(PTRACE_GETSIGINFO, p, 0, &si) == 0);
  si.si_code = SI_QUEUE;
  si.si_value.sival_int = 1234;
  res("setsiginfo", PT(PTRACE_SETSIGINFO, p, 0, &si));
  CHECK(PT(PTRACE_CONT, p, 0, SIGUSR1) == 0);
  int st;
  CHECK(waitpid(p, &st, 0) == p && WIFSTOPPED(st));
  say("realtime: %d\n", WSTOPSIG(st) == SIGRTMIN);
  unsigned long mask = 0;
  res("mask", PT(PTRACE_GETSIGMASK, p, 8, &mask));
  say("mask %#lx\n", mask);
  res("mask size", PT(PTRACE_GETSIGMASK, p, 4, &mask));
  struct { unsigned long off; unsigned flags; int nr; } args = {0, 1, 8};
  static siginfo_t sis[8];
  long n = PT(PTRACE_PEEKSIGINFO, p, &args, sis);
  res("peeksiginfo", n);
  for (long i = 0; i < n; i++) say("pending %s code %d\n", signame(sis[i].si_signo), sis[i].si_code);
  args.off = 1;
  res("peeksiginfo past", PT(PTRACE_PEEKSIGINFO, p, &args, sis));
  args.flags = 2;
  res("peeksiginfo flags", PT(PTRACE_PEEKSIGINFO, p, &args, sis));
  CHECK(PT(PTRACE_CONT, p, 0, 0) == 0);
  await("ignored", p);
  CHECK(PT(PTRACE_CONT, p, 0, 0) == 0);
  await("signals", p);
}

// ---- attach, group stops, seize
static void waits(void) {
  for (;;) pause();
}

static char letter(pid_t p) {
  char name[64], b[512];
  snprintf(name, sizeof name, "/proc/%d/stat", p);
  int fd = open(name, O_RDONLY);
  int n = read(fd, b, sizeof b - 1);
  close(fd);
  b[n > 0 ? n : 0] = 0;
  char *at = strrchr(b, ')');
  return at ? at[2] : '?';
}

// A child that runs `f`, which sleeps.
static pid_t running(void (*f)(void)) {
  int fds[2];
  char c;
  CHECK(pipe(fds) == 0);
  pid_t p = fork();
  if (p == 0) {
    write(fds[1], "x", 1);
    f();
    _exit(0);
  }
  CHECK(read(fds[0], &c, 1) == 1);
  close(fds[0]);
  close(fds[1]);
  while (letter(p) != 'S') sched_yield();
  return p;
}

static int tracer_pid(pid_t p) {
  char name[64], b[2048];
  snprintf(name, sizeof name, "/proc/%d/status", p);
  int fd = open(name, O_RDONLY);
  int n = read(fd, b, sizeof b - 1);
  close(fd);
  b[n > 0 ? n : 0] = 0;
  char *at = strstr(b, "TracerPid:");
  return at ? atoi(at + 10) : -1;
}

static void attaching(void) {
  pid_t p = running(waits);
  res("not ours", PT(PTRACE_CONT, p, 0, 0));
  res("no such", PT(PTRACE_ATTACH, 32767, 0, 0));
  res("ourselves", PT(PTRACE_ATTACH, getpid(), 0, 0));
  res("attach", PT(PTRACE_ATTACH, p, 0, 0));
  res("twice", PT(PTRACE_ATTACH, p, 0, 0));
  await("attached", p);
  siginfo("attached", p);
  say("tracer %s state %c\n", tracer_pid(p) == getpid() ? "us" : "?", letter(p));
  res("interrupt", PT(PTRACE_INTERRUPT, p, 0, 0));
  res("listen", PT(PTRACE_LISTEN, p, 0, 0));
  res("unknown", PT(12345, p, 0, 0));
  CHECK(PT(PTRACE_CONT, p, 0, 0) == 0);
  res("runs", PT(PTRACE_CONT, p, 0, 0));
  res("runs", PT(PTRACE_PEEKUSR, p, 0, &p));
  // A group stop: first the signal, then the stop itself.
  kill(p, SIGSTOP);
  await("sigstop", p);
  CHECK(PT(PTRACE_CONT, p, 0, SIGSTOP) == 0);
  await("group stop", p);
  siginfo("group stop", p);
  CHECK(PT(PTRACE_CONT, p, 0, 0) == 0); // runs on in a stopped group
  kill(p, SIGCONT);
  await("sigcont", p);
  res("detach bad", PT(PTRACE_DETACH, p, 0, 99));
  res("detach", PT(PTRACE_DETACH, p, 0, 0));
  say("tracer %d\n", tracer_pid(p));
  res("not ours", PT(PTRACE_CONT, p, 0, 0));
  // Attaching to what stands still already.
  kill(p, SIGSTOP);
  int st;
  CHECK(waitpid(p, &st, WUNTRACED) == p && WIFSTOPPED(st));
  CHECK(PT(PTRACE_ATTACH, p, 0, 0) == 0);
  CHECK(waitpid(p, &st, WNOHANG) == p);
  status("stood", st);
  siginfo("stood", p);
  res("detach", PT(PTRACE_DETACH, p, 0, SIGTERM)); // at a group stop the signal goes nowhere
  CHECK(waitpid(p, &st, WNOHANG | WUNTRACED) == 0 && tracer_pid(p) == 0);
  kill(p, SIGTERM);
  kill(p, SIGCONT);
  await("detached", p);

  // Seized.
  p = running(waits);
  res("seize addr", PT(PTRACE_SEIZE, p, 8, 0));
  res("seize options", PT(PTRACE_SEIZE, p, 0, 1 << 25));
  res("seize", PT(PTRACE_SEIZE, p, 0, O(TRACESYSGOOD)));
  CHECK(waitpid(p, &st, WNOHANG) == 0);
  res("interrupt", PT(PTRACE_INTERRUPT, p, 0, 0));
  await("interrupted", p);
  siginfo("interrupted", p);
  struct user_regs_struct r = regs(p);
  say("in pause %d restarts %d\n", r.orig_rax == SYS_pause, (long)r.rax == -514 || (long)r.rax == -512);
  res("interrupt again", PT(PTRACE_INTERRUPT, p, 0, 0));
  CHECK(PT(PTRACE_SYSCALL, p, 0, 0) == 0);
  await("again", p);
  CHECK(PT(PTRACE_SYSCALL, p, 0, 0) == 0);
  await("restarted", p);
  call_info("restarted", p);
  CHECK(PT(PTRACE_CONT, p, 0, 0) == 0);
  kill(p, SIGSTOP);
  await("sigstop", p);
  CHECK(PT(PTRACE_CONT, p, 0, SIGSTOP) == 0);
  await("group stop", p);
  siginfo("group stop", p);
  res("listen", PT(PTRACE_LISTEN, p, 0, 0));
  res("listening", PT(PTRACE_CONT, p, 0, 0));
  CHECK(waitpid(p, &st, WNOHANG) == 0);
  kill(p, SIGCONT);
  await("cont event", p);
  siginfo("cont event", p);
  CHECK(PT(PTRACE_CONT, p, 0, 0) == 0);
  await("cont signal", p);
  CHECK(PT(PTRACE_CONT, p, 0, SIGCONT) == 0);
  res("kill", PT(PTRACE_KILL, p, 0, 0));
  await("killed", p);
}

// ---- events
static void *thread(void *a) { return a; }
static void family(void) {
  int st;
  pid_t c = fork();
  if (c == 0) _exit(1);
  waitpid(c, &st, 0);
  c = vfork();
  if (c == 0) _exit(2);
  waitpid(c, &st, 0);
  pthread_t t;
  pthread_create(&t, 0, thread, 0);
  pthread_join(t, 0);
  _exit(3);
}

static void events(void) {
  pid_t p = traced(family);
  res("options", PT(PTRACE_SETOPTIONS, p, 0,
                    O(TRACEFORK) | O(TRACEVFORK) | O(TRACECLONE) | O(TRACEVFORKDONE) | O(TRACEEXIT)));
  unsigned long msg = 7;
  res("message", PT(PTRACE_GETEVENTMSG, p, 0, &msg));
  CHECK(PT(PTRACE_CONT, p, 0, 0) == 0);
  for (int i = 0; i < 3; i++) {
    await("parent", p);
    CHECK(PT(PTRACE_GETEVENTMSG, p, 0, &msg) == 0);
    pid_t c = msg;
    await("child", c);
    siginfo("child", c);
    say("child rax %lld tracer %d\n", regs(c).rax, tracer_pid(c) == getpid());
    CHECK(PT(PTRACE_CONT, c, 0, 0) == 0);
    CHECK(PT(PTRACE_CONT, p, 0, 0) == 0);
    await("child end", c);
    CHECK(PT(PTRACE_GETEVENTMSG, c, 0, &msg) == 0);
    say("with %#lx\n", msg);
    CHECK(PT(PTRACE_CONT, c, 0, 0) == 0);
    if (i < 2) {
      await("child gone", c);
    } else { // the thread's own status, or the group's if that has ended already
      int st;
      CHECK(waitpid(c, &st, __WALL) == c && WIFEXITED(st) && (WEXITSTATUS(st) == 0 || WEXITSTATUS(st) == 3));
    }
    if (i == 1) {
      await("vfork done", p);
      CHECK(PT(PTRACE_GETEVENTMSG, p, 0, &msg) == 0);
      say("same child %d\n", msg == (unsigned long)c);
      CHECK(PT(PTRACE_CONT, p, 0, 0) == 0);
    }
    if (i < 2) {
      await("told", p); // SIGCHLD
      CHECK(PT(PTRACE_CONT, p, 0, 0) == 0);
    }
  }
  await("parent end", p);
  CHECK(PT(PTRACE_CONT, p, 0, 0) == 0);
  await("parent gone", p);
}

static void execs(void) {
  char *argv[] = {"/proc/self/exe", "child", 0};
  execv("/proc/self/exe", argv);
  _exit(99);
}

static void *execs_in_thread(void *a) {
  (void)a;
  execs();
  return 0;
}

static void thread_execs(void) {
  pthread_t t;
  pthread_create(&t, 0, execs_in_thread, 0);
  for (;;) pause();
}

static void exec_events(void) {
  pid_t p = traced(execs);
  CHECK(PT(PTRACE_CONT, p, 0, 0) == 0);
  await("exec old style", p);
  siginfo("exec old style", p);
  CHECK(PT(PTRACE_CONT, p, 0, 0) == 0);
  await("exec end", p);

  p = traced(execs);
  CHECK(PT(PTRACE_SETOPTIONS, p, 0, O(TRACEEXEC) | O(TRACESYSGOOD)) == 0);
  CHECK(PT(PTRACE_SYSCALL, p, 0, 0) == 0);
  await("exec entry", p);
  CHECK(PT(PTRACE_SYSCALL, p, 0, 0) == 0);
  await("exec", p);
  unsigned long msg = 0;
  CHECK(PT(PTRACE_GETEVENTMSG, p, 0, &msg) == 0);
  say("from ourselves %d\n", msg == (unsigned long)p);
  CHECK(PT(PTRACE_SYSCALL, p, 0, 0) == 0);
  await("exec exit", p);
  call_info("exec exit", p);
  CHECK(PT(PTRACE_CONT, p, 0, 0) == 0);
  await("exec end", p);

  p = traced(thread_execs);
  CHECK(PT(PTRACE_SETOPTIONS, p, 0, O(TRACEEXEC) | O(TRACECLONE)) == 0);
  CHECK(PT(PTRACE_CONT, p, 0, 0) == 0);
  await("clone", p);
  CHECK(PT(PTRACE_GETEVENTMSG, p, 0, &msg) == 0);
  pid_t t = msg;
  await("thread", t);
  CHECK(PT(PTRACE_CONT, p, 0, 0) == 0);
  CHECK(PT(PTRACE_CONT, t, 0, 0) == 0);
  await("thread execs", p);
  CHECK(PT(PTRACE_GETEVENTMSG, p, 0, &msg) == 0);
  say("from the thread %d\n", msg == (unsigned long)t);
  res("thread id is gone", PT(PTRACE_CONT, t, 0, 0));
  CHECK(PT(PTRACE_CONT, p, 0, 0) == 0);
  await("exec end", p);
}

// ---- death
static void deaths(void) {
  // SIGKILL ends every kind of stop.
  pid_t p = traced(some_calls);
  kill(p, SIGKILL);
  await("killed in signal stop", p);
  p = traced(some_calls);
  CHECK(PT(PTRACE_SYSCALL, p, 0, 0) == 0);
  await("in a call", p);
  kill(p, SIGKILL);
  await("killed in call stop", p);
  p = running(waits);
  CHECK(PT(PTRACE_SEIZE, p, 0, 0) == 0);
  CHECK(PT(PTRACE_INTERRUPT, p, 0, 0) == 0);
  await("in event stop", p);
  kill(p, SIGKILL);
  await("killed in event stop", p);

  // The tracer dies: its tracee runs on alone, or dies with it.
  for (int with = 0; with < 2; with++) {
    int out[2];
    char c = 0;
    CHECK(pipe(out) == 0);
    pid_t t = running(waits);
    pid_t tracer = fork();
    if (tracer == 0) {
      CHECK(PT(PTRACE_SEIZE, t, 0, with ? O(EXITKILL) : 0) == 0);
      CHECK(PT(PTRACE_INTERRUPT, t, 0, 0) == 0);
      int st;
      CHECK(waitpid(t, &st, __WALL) == t);
      write(out[1], "s", 1);
      pause();
    }
    CHECK(read(out[0], &c, 1) == 1);
    say("stopped %c tracer %d\n", letter(t), tracer_pid(t) == tracer);
    int st = 0;
    CHECK(waitpid(t, &st, WNOHANG | WUNTRACED) == 0); // the stop is the tracer's
    finish(tracer);
    say("tracer %d\n", tracer_pid(t) > 0);
    if (!with) kill(t, SIGTERM);
    await(with ? "with its tracer" : "alone", t);
    close(out[0]);
    close(out[1]);
  }

  // The end of somebody else's tracee shows to the parent after the tracer has waited.
  int go[2], ready[2];
  char c;
  CHECK(pipe(go) == 0 && pipe(ready) == 0);
  pid_t t = running(waits);
  pid_t tracer = fork();
  if (tracer == 0) {
    int st;
    CHECK(PT(PTRACE_SEIZE, t, 0, 0) == 0);
    kill(t, SIGKILL);
    siginfo_t si;
    CHECK(waitid(P_PID, t, &si, WEXITED | WNOWAIT | __WALL) == 0);
    write(ready[1], "r", 1);
    CHECK(read(go[0], &c, 1) == 1);
    CHECK(waitpid(t, &st, __WALL) == t);
    status("tracer sees", st);
    _exit(0);
  }
  CHECK(read(ready[0], &c, 1) == 1);
  int st;
  res("parent before", waitpid(t, &st, WNOHANG));
  CHECK(write(go[1], "g", 1) == 1);
  await("tracer", tracer);
  await("parent after", t);

  // waitid, and looking without taking.
  p = traced(nothing);
  CHECK(PT(PTRACE_SYSCALL, p, 0, 0) == 0);
  siginfo_t si;
  memset(&si, 0, sizeof si);
  res("waitid", waitid(P_PID, p, &si, WSTOPPED | WNOWAIT | __WALL));
  say("code %d status %s pid %d\n", si.si_code, signame(si.si_status), si.si_pid == p);
  CHECK(waitpid(p, &st, WNOHANG) == p && WIFSTOPPED(st));
  CHECK(waitpid(p, &st, WNOHANG) == 0);
  finish(p);
  res("nobody left", waitpid(-1, &st, __WALL));
}

// ---- many threads, stopped and killed at random while the tracer looks at them
static void *busy(void *a) {
  (void)a;
  for (;;) syscall(SYS_getppid);
  return 0;
}

static void crowd(void) {
  for (int i = 0; i < 3; i++) {
    pthread_t t;
    pthread_create(&t, 0, busy, 0);
  }
  busy(0);
}

static void storm(void) {
  for (int round = 0; round < 8; round++) {
    pid_t p = traced(crowd);
    CHECK(PT(PTRACE_SETOPTIONS, p, 0, O(TRACECLONE) | O(TRACESYSGOOD)) == 0);
    CHECK(PT(PTRACE_SYSCALL, p, 0, 0) == 0);
    int stops = 0, dead = 0;
    for (;;) {
      int st;
      pid_t t = waitpid(-1, &st, __WALL);
      if (t < 0) break;
      if (!WIFSTOPPED(st)) {
        CHECK(WIFSIGNALED(st) && WTERMSIG(st) == SIGKILL);
        dead++;
        if (t == p) break;
        continue;
      }
      struct user_regs_struct r;
      struct user_fpregs_struct f;
      if (PT(12, t, 0, &r) == 0) PT(13, t, 0, &r);
      if (PT(14, t, 0, &f) == 0) PT(15, t, 0, &f);
      if (++stops == 60 + 7 * round) kill(p, SIGKILL);
      PT(stops % 3 ? PTRACE_SYSCALL : PTRACE_SINGLESTEP, t, 0, 0);
    }
    CHECK(dead >= 1);
    int st;
    CHECK(waitpid(-1, &st, __WALL) == -1 && errno == ECHILD);
  }
  say("storm over\n");
}

// Linux lets nothing but the tracer end the stop of a process that exits. Here SIGKILL ends every stop.
static void exit_kill(void) {
  pid_t p = traced(nothing);
  CHECK(PT(PTRACE_SETOPTIONS, p, 0, O(TRACEEXIT)) == 0);
  CHECK(PT(PTRACE_CONT, p, 0, 0) == 0);
  await("exit", p);
  int st;
  kill(p, SIGKILL);
  CHECK(waitpid(p, &st, 0) == p && !WIFSTOPPED(st));
}

static const struct {
  const char *name;
  void (*run)(void);
} parts[] = {{"memory", memory}, {"extended", extended}, {"steps", steps}, {"debug", debug_registers}, {"calls", calls},
             {"signals", signals}, {"attaching", attaching}, {"events", events}, {"exec", exec_events},
             {"deaths", deaths}, {"storm", storm}, {"exitkill", exit_kill}};

// Without arguments everything; with some, the parts that are named ("child": what the exec tests run).
int main(int argc, char **argv) {
  if (argc == 2 && !strcmp(argv[1], "child")) _exit(21);
  for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
    int wanted = argc == 1 && parts[i].run != exit_kill;
    for (int a = 1; a < argc; a++) wanted |= !strcmp(argv[a], parts[i].name);
    if (!wanted) continue;
    say("-- %s\n", parts[i].name);
    parts[i].run();
  }
  say("ok\n");
  return 0;
}
