// Processes: fork, vfork, clone, statuses, orphans, groups, limits, identity.
#include "t.h"
#include <sys/prctl.h>
#include <linux/sched.h>
static int st;
static void status(const char *w, pid_t got, pid_t want) {
  say("%s: %s, exited %d (%d), signalled %d (%d)\n", w, got == want ? "own child" : got == -1 ? ename(errno) : "other", WIFEXITED(st), WIFEXITED(st) ? WEXITSTATUS(st) : 0, WIFSIGNALED(st), WIFSIGNALED(st) ? WTERMSIG(st) : 0);
}
static void statuses(void) {
  int codes[] = {0, 1, 127, 255, 256, -1};
  for (unsigned i = 0; i < 6; i++) { pid_t c = fork(); if (!c) _exit(codes[i]); status("exit", waitpid(c, &st, 0), c); }
  int sigs[] = {SIGKILL, SIGTERM, SIGHUP, SIGALRM, SIGPIPE, 40};
  for (unsigned i = 0; i < 6; i++) { pid_t c = fork(); if (!c) { for (;;) pause(); } kill(c, sigs[i]); status("killed", waitpid(c, &st, 0), c); }
  st = 0;
  R(waitpid(-1, &st, 0));
  R(waitpid(1, &st, 0));
  pid_t c = fork();
  if (!c) { for (;;) pause(); }
  R(waitpid(c, &st, WNOHANG));
  R(waitpid(c, &st, 0x10000));
  R(wait4(c, (int *)8, WNOHANG, 0));
  siginfo_t i = {0};
  R(waitid(P_PID, c, &i, WEXITED | WNOHANG));
  say("waitid filled %d\n", i.si_pid);
  R(waitid(P_PID, c, &i, 0));
  R(waitid(99, c, &i, WEXITED));
  kill(c, 9);
  R(waitid(P_PID, c, &i, WEXITED | WNOWAIT));
  say("code %d status %d own %d\n", i.si_code, i.si_status, i.si_pid == c);
  R(waitid(P_ALL, 0, &i, WEXITED));
  R(waitid(P_ALL, 0, &i, WEXITED));
  struct rusage ru;
  c = fork();
  if (!c) { for (volatile int k = 0; k < 1000000; k++) {} _exit(0); }
  CHECK(wait4(c, &st, 0, &ru) == c && ru.ru_minflt > 0);
}
static void order(void) { // any child; each exactly once
  pid_t c[20];
  int seen[20] = {0};
  for (int i = 0; i < 20; i++) { c[i] = fork(); CHECK(c[i] >= 0); if (!c[i]) { usleep((20 - i) * 500); _exit(i); } }
  for (int n = 0; n < 20; n++) {
    pid_t w = wait(&st);
    for (int i = 0; i < 20; i++) if (c[i] == w) { CHECK(WEXITSTATUS(st) == i); seen[i]++; }
  }
  for (int i = 0; i < 20; i++) CHECK(seen[i] == 1);
  R(wait(&st));
}
static volatile int vf;
static void vforks(void) {
  vf = 1;
  pid_t c = vfork();
  if (!c) { vf = 2; _exit(5); } // shares memory; the parent waits
  CHECK(vf == 2);
  status("vfork", waitpid(c, &st, 0), c);
  c = vfork();
  if (!c) { execl("/proc/self/exe", "proc", "child", "a b", "", (char *)0); _exit(1); }
  status("vfork exec", waitpid(c, &st, 0), c);
  c = vfork();
  if (!c) { execl("/does/not/exist", "x", (char *)0); _exit(errno); }
  status("vfork exec fails", waitpid(c, &st, 0), c);
}
static void orphans(void) {
  int pf[2], of[2];
  CHECK(!pipe(pf) && !pipe(of) && !prctl(PR_SET_CHILD_SUBREAPER, 1));
  pid_t top = getpid(), c = fork();
  if (!c) {
    pid_t g = fork();
    if (!g) { while (getppid() != top) usleep(1000); write(of[1], "o", 1); _exit(66); }
    write(pf[1], &g, sizeof g);
    _exit(0);
  }
  pid_t g;
  char b;
  CHECK(read(pf[0], &g, sizeof g) == sizeof g);
  status("parent of the orphan", waitpid(c, &st, 0), c);
  CHECK(read(of[0], &b, 1) == 1);
  status("orphan comes to its subreaper", waitpid(-1, &st, 0), g);
  prctl(PR_SET_CHILD_SUBREAPER, 0);
}
static int thread_fn(void *x) { *(volatile int *)x = 12345; return 3; }
static void clones(void) {
  char *stk = anon(64 * KB);
  volatile int v = 0;
  pid_t c = clone(thread_fn, stk + 64 * KB, CLONE_VM | SIGCHLD, (void *)&v);
  CHECK(waitpid(c, &st, 0) == c && v == 12345);
  status("clone VM", c, c);
  v = 0;
  c = clone(thread_fn, stk + 64 * KB, SIGCHLD, (void *)&v);
  CHECK(waitpid(c, &st, 0) == c && v == 0);
  c = clone(thread_fn, stk + 64 * KB, CLONE_VM, (void *)&v); // no exit signal: only with __WCLONE or __WALL
  R(waitpid(c, &st, 0));
  CHECK(waitpid(c, &st, __WALL) == c);
  pid_t tid = 77;
  c = clone(thread_fn, stk + 64 * KB, CLONE_VM | CLONE_PARENT_SETTID | CLONE_CHILD_CLEARTID | SIGCHLD, (void *)&v, &tid, 0, &tid);
  CHECK(waitpid(c, &st, 0) == c && tid == 0);
  R(syscall(SYS_clone, CLONE_THREAD, 0, 0, 0, 0));
  R(syscall(SYS_clone, CLONE_SIGHAND, 0, 0, 0, 0));
  R(syscall(SYS_clone, CLONE_THREAD | CLONE_SIGHAND, 0, 0, 0, 0));
  int fd = open("/dev/null", O_RDONLY);
  CHECK(fd >= 0);
  struct clone_args a = {.flags = CLONE_FILES, .exit_signal = SIGCHLD};
  c = syscall(SYS_clone3, &a, sizeof a);
  if (!c) { close(fd); _exit(0); }
  CHECK(waitpid(c, &st, 0) == c);
  R(fcntl(fd, F_GETFD)); // one table: closed here too
  R(syscall(SYS_clone3, &a, 8));
  R(syscall(SYS_clone3, 8L, sizeof a));
  a.exit_signal = 200;
  R(syscall(SYS_clone3, &a, sizeof a));
  a.exit_signal = SIGCHLD; a.stack = 0x1000; a.stack_size = 0;
  R(syscall(SYS_clone3, &a, sizeof a));
  a = (struct clone_args){.flags = CLONE_FS, .exit_signal = SIGCHLD};
  CHECK(!chdir("/"));
  c = syscall(SYS_clone3, &a, sizeof a);
  if (!c) { CHECK(!chdir("/tmp")); _exit(0); }
  CHECK(waitpid(c, &st, 0) == c);
  char cwd[64];
  say("cwd shared: %s\n", getcwd(cwd, sizeof cwd));
}
static void groups(void) {
  pid_t c = fork();
  if (!c) {
    CHECK(setsid() == getpid() && getsid(0) == getpid() && getpgrp() == getpid());
    R(setsid());
    pid_t k[3];
    for (int i = 0; i < 3; i++) { k[i] = fork(); if (!k[i]) { setpgid(0, i ? k[0] : 0); for (;;) pause(); } setpgid(k[i], i ? k[0] : 0); }
    CHECK(getpgid(k[2]) == k[0] && getpgid(k[0]) == k[0]);
    CHECK(!kill(-k[0], SIGTERM));
    int n = 0;
    while (waitpid(-k[0], &st, 0) > 0) { CHECK(WIFSIGNALED(st)); n++; }
    say("a group of %d killed\n", n);
    R(setpgid(99999999, 0));
    R(setpgid(0, -1));
    R(getpgid(99999999));
    R(kill(-99999999, 0));
    _exit(0);
  }
  CHECK(waitpid(c, &st, 0) == c && st == 0);
}
static void identity(void) {
  pid_t p = getpid(), c = fork();
  if (!c) _exit(getppid() == p && getpid() != p ? 0 : 1);
  CHECK(waitpid(c, &st, 0) == c && st == 0);
  char n[16];
  CHECK(!prctl(PR_SET_NAME, "a-name-that-is-too-long") && !prctl(PR_GET_NAME, n));
  say("name %s, umask %o", n, umask(027));
  say(" then %o\n", umask(022));
  struct rlimit l = {10, 5};
  R(setrlimit(RLIMIT_NOFILE, &l));
  R(getrlimit(99, &l));
  l = (struct rlimit){20, 20};
  c = fork();
  if (!c) {
    CHECK(!setrlimit(RLIMIT_NOFILE, &l));
    int f, n = 0;
    while ((f = open("/dev/null", O_RDONLY)) >= 0) n = f;
    say("highest descriptor %d, then %s\n", n, ename(errno));
    R(dup2(0, 20));
    R(pipe((int[2]){0, 0}));
    _exit(0);
  }
  waitpid(c, &st, 0);
  R(prctl(PR_SET_PDEATHSIG, 99));
  cpu_set_t s;
  CHECK(sched_getaffinity(0, sizeof s, &s) > 0 || CPU_COUNT(&s) > 0);
  R(sched_yield());
  R(syscall(SYS_sched_getaffinity, 0, 1, &s));
}
static void alarm_kills(void) { struct itimerval it = {.it_value = {0, 10000}}; setitimer(ITIMER_REAL, &it, 0); for (;;) {} }
static void many(void) { // a thousand short lives
  for (int i = 0; i < 1000; i++) { pid_t c = fork(); CHECK(c >= 0); if (!c) _exit(i & 127); CHECK(waitpid(c, &st, 0) == c && WEXITSTATUS(st) == (i & 127)); }
  say("a thousand lives\n");
}
int main(int argc, char **argv) {
  if (argc > 1) { say("%d arguments: [%s] [%s] [%s]\n", argc, argv[1], argv[2], argv[3]); return 77; }
  mkdir("/tmp", 0777);
  umask(022);
  statuses(); order(); vforks(); orphans(); clones(); groups(); identity();
  say("busy loop under an alarm: %s\n", in_child(alarm_kills)); // user code is preempted
  many();
  return 0;
}
