// Pinfold only: memory runs out. The process with the largest resident set dies, everybody else goes on.
#include "t.h"
#include <sys/file.h>
#include <sys/uio.h>
static int st;
static void hog(int pf) {
  write(pf, "h", 1);
  for (size_t n = 0;; n++) { char *p = mmap(0, 1 * MB, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0); if (p == MAP_FAILED) continue; memset(p, n, 1 * MB); }
}
// One process writes to a file and holds its lock while its bytes are paged in, which needs memory. The largest one, which must die, waits
// for that lock. It loses its memory where it stands: the first ends its write, then the second leaves, and no zero is in the file.
static char *bytes;
static void blocked(const char *fast, const char *disk) {
  int f = open("oom.file", O_RDWR | O_CREAT | O_TRUNC | O_APPEND, 0600), slow = open(disk, O_RDONLY), other = open(fast, O_RDWR | O_DIRECT), go[2], ready[2];
  char b, *far = mmap(0, MB, PROT_READ, MAP_SHARED, slow, 0), *mark = anon(PG);
  memset(mark, 1, PG);
  CHECK(f >= 0 && slow >= 0 && other >= 0 && far != MAP_FAILED && !pipe(go) && !pipe(ready));
  pid_t holder = fork();
  if (!holder) {
    // Of each page one byte; they come to lie in one.
    static struct iovec v[1024];
    char *holes = mmap(0, 1023 * PG, PROT_READ, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(holes != MAP_FAILED && read(go[0], &b, 1) == 1);
    v[0] = (struct iovec){far + MB / 2, 1};
    for (int i = 1; i < 1024; i++) v[i] = (struct iovec){holes + (i - 1) * PG, 1};
    CHECK(writev(f, v, 1024) == 1024);
    _exit(0);
  }
  pid_t victim = fork();
  if (!victim) {
    bytes = anon(MB);
    memset(bytes, 'v', MB);
    while (kib("/proc/meminfo", "MemFree:") > 4 * 1024) memset(anon(64 * KB), 1, 64 * KB);
    CHECK(write(ready[1], "r", 1) == 1 && read(go[0], &b, 1) == 1);
    write(f, bytes, MB);
    for (;;) pause();
  }
  // After this the disk waits until the host finds a mark on the other one.
  CHECK(read(ready[0], &b, 1) == 1 && pread(slow, &b, 1, 0) == 1 && write(go[1], "g", 1) == 1);
  while (task_state(holder) != 'D') sched_yield();
  CHECK(write(go[1], "g", 1) == 1);
  while (task_state(victim) != 'D') sched_yield();
  CHECK(task_state(holder) == 'D' && pwrite(other, mark, 512, 63 * MB) == 512);
  CHECK(waitpid(holder, &st, 0) == holder);
  say("holder: exit %d\n", WIFEXITED(st) ? WEXITSTATUS(st) : -1);
  CHECK(waitpid(victim, &st, 0) == victim);
  say("victim: killed %d by %d\n", WIFSIGNALED(st), WTERMSIG(st));
  struct stat now;
  CHECK(!fstat(f, &now));
  say("written: %ld\n", (long)now.st_size);
}
// Two processes in one space: both die, and the memory is back.
static int hog_in(void *pf) { hog(*(int *)pf); return 0; }
static void shared(void) {
  int pf[2];
  CHECK(!pipe(pf));
  pid_t c = fork();
  if (!c) {
    if (clone(hog_in, anon(MB) + MB, CLONE_VM | SIGCHLD, &pf[1]) < 0) _exit(1);
    for (;;) pause();
  }
  CHECK(waitpid(c, &st, 0) == c);
  say("both: killed %d by %d\n", WIFSIGNALED(st), WTERMSIG(st));
  char *p = anon(64 * MB);
  for (size_t i = 0; i < 64 * MB; i += PG) p[i] = 1;
  say("64 MiB again\n");
}
// Signals with information that nobody takes: more than there is memory for. Locks and timers are refused, too.
static int lockable;
static void small(void) {
  struct flock one = {.l_type = F_RDLCK, .l_len = 1};
  timer_t t;
  R(fcntl(lockable, F_SETLK, &one)); R(flock(lockable, LOCK_SH)); R(timer_create(CLOCK_MONOTONIC, 0, &t));
}
static void queued(void) {
  enum { N = 32 };
  pid_t c[N], filler;
  sigset_t set;
  siginfo_t info = {.si_signo = SIGRTMIN, .si_code = SI_QUEUE};
  int full[2], why = 0, pidfd;
  char b;
  sigfillset(&set);
  CHECK(!sigprocmask(SIG_BLOCK, &set, 0) && !pipe(full) && (lockable = open("/proc/self/exe", O_RDONLY)) >= 0);
  for (int i = 0; i < N; i++) { c[i] = fork(); CHECK(c[i] >= 0); if (!c[i]) for (;;) pause(); }
  // Whatever this process needs itself it has before memory is short.
  small();
  CHECK(!sigqueue(c[0], SIGRTMIN, (union sigval){0}) && (pidfd = (int)syscall(SYS_pidfd_open, c[0], 0)) >= 0 && (filler = fork()) >= 0);
  if (!filler) {
    while (kib("/proc/meminfo", "MemFree:") > 3 * 1024) memset(anon(64 * KB), 1, 64 * KB);
    for (write(full[1], "f", 1);;) pause();
  }
  CHECK(read(full[0], &b, 1) == 1);
  for (int i = 0; i < N && !why; i++)
    for (int k = 0; k < 4000 && !why; k++)
      if (sigqueue(c[i], SIGRTMIN, (union sigval){.sival_int = k})) why = errno;
  say("refused: %s\n", ename(why));
  R(syscall(SYS_pidfd_send_signal, pidfd, SIGRTMIN, &info, 0));
  // What is sent without its information if need be.
  CHECK(!sigqueue(c[N - 1], SIGUSR1, (union sigval){0}) && !kill(c[N - 1], SIGRTMIN));
  small();
  for (int i = 0; i < N; i++) { CHECK(!kill(c[i], SIGKILL) && waitpid(c[i], &st, 0) == c[i]); }
  CHECK(!kill(filler, SIGKILL) && waitpid(filler, &st, 0) == filler);
  small();
}
int main(int argc, char **argv) {
  if (argc == 2 && !strcmp(argv[1], "queued")) { queued(); return 0; }
  if (argc == 4) { blocked(argv[2], argv[3]); return 0; }
  if (argc == 2) { shared(); return 0; }
  int pf[2], go[2];
  char b;
  CHECK(!pipe(pf) && !pipe(go));
  for (int round = 0; round < 3; round++) {
    pid_t modest = fork(), c;
    if (!modest) {
      char *p = anon(16 * MB);
      for (int i = 0; i < 4096; i++) p[i * PG] = i;
      write(pf[1], "m", 1);
      CHECK(read(go[0], &b, 1) == 1);
      for (int i = 0; i < 4096; i++) CHECK(p[i * PG] == (char)i);
      _exit(5);
    }
    CHECK(read(pf[0], &b, 1) == 1 && b == 'm');
    c = fork();
    if (!c) { hog(pf[1]); _exit(0); }
    CHECK(read(pf[0], &b, 1) == 1 && b == 'h');
    CHECK(waitpid(c, &st, 0) == c);
    say("hog: killed %d by %d\n", WIFSIGNALED(st), WTERMSIG(st));
    CHECK(write(go[1], "x", 1) == 1 && waitpid(modest, &st, 0) == modest);
    say("modest: exit %d\n", WEXITSTATUS(st));
  }
  // Two hogs at once, one of them with threads' worth of forks.
  pid_t k[2];
  for (int i = 0; i < 2; i++) { k[i] = fork(); if (!k[i]) hog(pf[1]); }
  int n = 0;
  for (int i = 0; i < 2; i++) { CHECK(waitpid(k[i], &st, 0) == k[i]); n += WIFSIGNALED(st) && WTERMSIG(st) == SIGKILL; }
  say("both hogs killed: %d\n", n);
  // The frames are back.
  char *p = anon(64 * MB);
  for (size_t i = 0; i < 64 * MB; i += PG) p[i] = 1;
  say("64 MiB again\n");
  return 0;
}
