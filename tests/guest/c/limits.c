// The edges of what the interface can hold: paths, links, descriptors, vectors, pipes, families of processes.
#include "t.h"
#include <limits.h>
#include <sys/eventfd.h>
#include <sys/uio.h>
static char big[2 * PATH_MAX];
static char *path(size_t n) { // "./././.../x" of n bytes
  memset(big, 0, sizeof big);
  for (size_t i = 0; i + 1 < n; i++) big[i] = i % 2 ? '/' : '.';
  big[n - 1] = n % 2 ? 'x' : '/';
  return big;
}
static char *name(size_t n) {
  memset(big, 'n', n);
  big[n] = 0;
  return big;
}
static void paths(void) {
  say("-- paths\n");
  int fd = open("x", O_CREAT | O_RDWR, 0600);
  CHECK(fd >= 0);
  close(fd);
  R(access(path(4093), F_OK));
  R(access(path(4095), F_OK));
  R(access(path(4096), F_OK));
  R(access(path(4097), F_OK));
  R(mkdir(name(255), 0700));
  R(rmdir(name(255)));
  R(mkdir(name(256), 0700));
  R(access(name(256), F_OK));
  R(symlink(path(4095), "far"));
  R(access("far", F_OK));
  R(readlink("far", big, sizeof big));
  unlink("far");
  R(symlink(path(4097), "far"));
  R(symlink("", "far"));
  R(access("", F_OK));
  R(open("", O_RDONLY));
  R(mkdir("", 0700));
  R(rename("x", ""));
  // A page whose neighbour is not there: a name that ends in time, and one that does not.
  char *p = anon(2 * PG);
  CHECK(!mprotect(p + PG, PG, PROT_NONE));
  p[PG - 2] = 'x';
  R(access(p + PG - 2, F_OK));
  p[PG - 1] = 'x';
  R(access(p + PG - 2, F_OK));
  R(access((char *)-1L, F_OK));
  R(access((char *)-4096L, F_OK));
  R(access((char *)(1L << 63), F_OK));
  munmap(p, 2 * PG);
  // A deep tree: each step relative, then the whole name is longer than can be told.
  int depth = 0;
  char *step = strdup(name(200));
  while (depth < 30 && !mkdir(step, 0700) && !chdir(step)) depth++;
  R(syscall(SYS_getcwd, big, sizeof big));
  R(syscall(SYS_getcwd, big, 100L));
  char *s = getcwd(0, 0);
  say("deep %d, told %d\n", depth, s && s[0] == '/');
  while (depth-- && !chdir("..")) CHECK(!rmdir(step));
  // Links of links.
  char from[32], to[32];
  strcpy(to, "x");
  for (int i = 1; i <= 42; i++) {
    sprintf(from, "l%d", i);
    CHECK(!symlink(to, from));
    strcpy(to, from);
  }
  R(access("l1", F_OK));
  R(access("l40", F_OK));
  R(access("l41", F_OK));
  R(open("l2", O_RDONLY | O_NOFOLLOW));
  CHECK(!symlink("b", "a") && !symlink("a", "b") && !symlink("self/self", "self"));
  R(access("a", F_OK));
  R(open("a", O_CREAT | O_RDWR, 0600));
  R(open("self", O_RDONLY));
  R(chdir("self"));
  R(execl("a", "a", NULL));
  R(truncate("b", 0));
  R(link("a", "c"));
  R(unlink("c"));
  R(rename("a", "b"));
  for (int i = 1; i <= 42; i++) { sprintf(from, "l%d", i); unlink(from); }
  unlink("b"); unlink("self"); unlink("x");
}
static void descriptors(void) {
  say("-- descriptors\n");
  struct rlimit o, l;
  CHECK(!getrlimit(RLIMIT_NOFILE, &o));
  l = o;
  l.rlim_cur = 64;
  CHECK(!setrlimit(RLIMIT_NOFILE, &l));
  int n = 0, pf[2], last = -1;
  for (int f; (f = dup(0)) >= 0; n++) last = f;
  say("full at %d: %s\n", last, ename(errno));
  R(open("/dev/null", O_RDONLY));
  R(pipe(pf));
  R(eventfd(0, 0));
  R(memfd_create("m", 0));
  R(fcntl(0, F_DUPFD, 0));
  R(fcntl(0, F_DUPFD, 64));
  R(dup2(0, 63));
  R(dup2(0, 64));
  R(dup2(0, -1));
  R(dup2(0, 1 << 30));
  R(dup2(999, 999));
  R(dup3(0, 0, 0));
  close(last);
  R(pipe(pf)); // one is free, two are needed
  R(open("/dev/null", O_RDONLY) == last);
  R(close_range(last - 9, -1, 0));
  R(fcntl(last, F_GETFD));
  R(close_range(9, 3, 0));
  R(close_range(3, -1, 8));
  CHECK(!close_range(3, -1, 0));
  CHECK(!setrlimit(RLIMIT_NOFILE, &o));
  l.rlim_cur = l.rlim_max + 1;
  if (o.rlim_max != RLIM_INFINITY) R(setrlimit(RLIMIT_NOFILE, &l));
}
static void vectors(void) {
  say("-- vectors\n");
  static struct iovec v[IOV_MAX + 1];
  static char b[IOV_MAX + 1];
  int fd = memfd_create("v", 0);
  for (int i = 0; i <= IOV_MAX; i++) v[i] = (struct iovec){b + i, 1};
  memset(b, 'b', sizeof b);
  R(writev(fd, v, IOV_MAX));
  R(writev(fd, v, IOV_MAX + 1));
  R(writev(fd, v, -1));
  R(writev(fd, v, 0));
  R(writev(fd, (void *)-1L, 1));
  R(writev(fd, 0, 1));
  v[1].iov_len = -1;
  R(writev(fd, v, 2));
  v[1].iov_len = LONG_MAX;
  R(pwritev(fd, v, 2, 0)); // more than a length can say: cut, and the range is not the program's
  v[1] = (struct iovec){(void *)16, 10};
  R(pwritev(fd, v, 2, 0)); // one byte came over
  R(pwritev(fd, v + 1, 1, 0));
  R(pwritev(fd, v, 1, -1));
  R(pread(fd, b, 1, -1));
  R(pread(fd, b, -1, 0));
  R(pread(fd, b, 1, LONG_MAX));
  R(pread(fd, (char *)-8L, 8, 0));
  R(pwrite(fd, b, 2, LONG_MAX));
  R(pread(fd, b, LONG_MAX, 0));
  R(lseek(fd, -1, SEEK_SET));
  R(lseek(fd, LONG_MAX, SEEK_CUR));
  R(lseek(fd, LONG_MAX, SEEK_END));
  R(lseek(fd, 0, 9));
  R(ftruncate(fd, -1));
  R(fallocate(fd, 0, LONG_MAX, 1));
  R(fallocate(fd, 0, -1, 1));
  R(fallocate(fd, 0, 0, 0));
  close(fd);
}
static void sizes(void) { // RLIMIT_FSIZE
  say("-- sizes\n");
  struct rlimit o, l;
  CHECK(!getrlimit(RLIMIT_FSIZE, &o));
  int fd = memfd_create("s", 0);
  char *p = anon(4 * PG);
  CHECK(pwrite(fd, p, 4 * PG, 0) == 4 * PG);
  l = (struct rlimit){PG + 100, o.rlim_max};
  CHECK(!setrlimit(RLIMIT_FSIZE, &l));
  signal(SIGXFSZ, SIG_IGN);
  R(pwrite(fd, p, PG, 0));
  R(pwrite(fd, p, PG, PG)); // up to the limit
  R(pwrite(fd, p, PG, 2 * PG)); // inside the file, but beyond the limit
  R(pwrite(fd, p, PG, PG + 100));
  R(pwrite(fd, p, 0, 2 * PG));
  R(ftruncate(fd, 3 * PG)); // smaller is never too large
  R(ftruncate(fd, 5 * PG));
  R(fallocate(fd, 0, 0, 5 * PG));
  R(ftruncate(fd, 0));
  R(ftruncate(fd, PG + 100));
  R(ftruncate(fd, PG + 101));
  R(lseek(fd, 0, SEEK_END));
  signal(SIGXFSZ, SIG_DFL);
  pid_t c = fork();
  struct rlimit none = {0, 0};
  if (!c) { setrlimit(RLIMIT_CORE, &none); write(fd, p, PG); _exit(0); }
  int st;
  CHECK(waitpid(c, &st, 0) == c);
  say("killed by %d\n", WIFSIGNALED(st) ? WTERMSIG(st) : 0);
  CHECK(!setrlimit(RLIMIT_FSIZE, &o));
  R(write(fd, p, PG));
  close(fd);
  munmap(p, 4 * PG);
}
static void too_long(int s) { say("  signal %d\n", s); _exit(3); }
static void spin(void) { for (;;) __asm__ volatile(""); }
static void after_a_second(void) {
  struct rlimit l = {1, 10};
  signal(SIGXCPU, too_long);
  CHECK(!setrlimit(RLIMIT_CPU, &l));
  spin();
}
static void at_the_hard_limit(void) { // inherited, and it is no signal that could be caught
  struct rlimit l = {1, 1};
  signal(SIGXCPU, SIG_IGN);
  CHECK(!setrlimit(RLIMIT_CPU, &l));
  say("  in a child: %s\n", in_child(spin));
}
static void times(void) { // RLIMIT_CPU
  say("-- times\n");
  say("%s\n", in_child(after_a_second));
  say("%s\n", in_child(at_the_hard_limit));
}
static void pipes(void) {
  say("-- pipes\n");
  int pf[2];
  CHECK(!pipe2(pf, O_NONBLOCK));
  char *p = anon(MB);
  R(write(pf[1], p, MB));
  R(write(pf[1], p, 1));
  R(read(pf[0], p, 1));
  R(write(pf[1], p, 1)); // its page has no room for one more
  R(read(pf[0], p, 4095));
  R(write(pf[1], p, 4097)); // part of it
  R(fcntl(pf[1], F_SETPIPE_SZ, 4096)); // more is in it
  R(fcntl(pf[1], F_SETPIPE_SZ, -1));
  R(fcntl(pf[1], F_SETPIPE_SZ, 1 << 20));
  R(fcntl(pf[1], F_GETPIPE_SZ));
  R(read(pf[0], (char *)-4096L, 4096));
  R(read(pf[0], (char *)16, 4096));
  R(read(pf[0], p, MB));
  R(read(pf[0], p, 1));
  R(write(pf[0], p, 1));
  R(read(pf[1], p, 1));
  R(lseek(pf[0], 0, SEEK_SET));
  close(pf[1]);
  R(read(pf[0], p, 1));
  close(pf[0]);
  munmap(p, MB);
}
static int tree(int depth) { // two children each
  if (!depth) return 1;
  int n = 1, st;
  pid_t c[2];
  for (int i = 0; i < 2; i++) {
    c[i] = fork();
    CHECK(c[i] >= 0);
    if (!c[i]) _exit(tree(depth - 1));
  }
  for (int i = 0; i < 2; i++) {
    CHECK(waitpid(c[i], &st, 0) == c[i] && WIFEXITED(st));
    n += WEXITSTATUS(st);
  }
  return n;
}
static void families(void) {
  say("-- families\n");
  say("a tree of %d\n", tree(5));
  pid_t first = fork();
  if (!first) { // a chain: each waits for the next
    for (int i = 0; i < 40; i++) {
      pid_t c = fork();
      CHECK(c >= 0);
      if (c) {
        int st;
        CHECK(waitpid(c, &st, 0) == c);
        _exit(WEXITSTATUS(st) + 1);
      }
    }
    _exit(0);
  }
  int st;
  CHECK(waitpid(first, &st, 0) == first);
  say("a chain of %d\n", WEXITSTATUS(st));
  R(waitpid(-1, &st, 0));
  R(waitpid(1 << 30, &st, 0));
  R(waitpid(INT_MIN, &st, 0));
  R(syscall(SYS_wait4, -1, &st, 0x80, 0L));
  R(syscall(SYS_waitid, 9, 0L, 0L, WEXITED, 0L));
  R(syscall(SYS_waitid, P_ALL, 0L, 0L, 0, 0L));
  R(syscall(SYS_waitid, P_PID, 0L, 0L, WEXITED, 0L));
  R(kill(1 << 30, 0));
  R(kill(0, 65));
  R(kill(0, -1));
  R(syscall(SYS_tgkill, 0, 0, 0));
  R(syscall(SYS_tgkill, getpid(), 1 << 30, 0));
  R(syscall(SYS_tkill, -1, 0));
  R(setpgid(0, -1));
  R(setpgid(1 << 30, 0));
  R(getpgid(1 << 30));
  R(getsid(-5));
  R(syscall(SYS_clone, CLONE_THREAD, 0L, 0L, 0L, 0L));
  R(syscall(SYS_clone, CLONE_SIGHAND, 0L, 0L, 0L, 0L));
  R(syscall(SYS_clone, CLONE_FS | CLONE_NEWNS, 0L, 0L, 0L, 0L));
  R(syscall(SYS_clone3, 0L, 64L));
  R(syscall(SYS_clone3, -1L, 64L));
  R(syscall(SYS_clone3, big, 63L));
  R(syscall(SYS_clone3, big, 1L << 40));
}
int main(void) {
  char dir[64];
  sprintf(dir, "/tmp/limits.%d", getpid());
  CHECK(!mkdir(dir, 0700) && !chdir(dir));
  signal(SIGPIPE, SIG_IGN);
  paths();
  CHECK(!chdir("/") && !rmdir(dir));
  descriptors();
  vectors();
  sizes();
  times();
  pipes();
  families();
  return 0;
}
