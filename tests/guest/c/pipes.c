// Pipes, poll, descriptors: sizes, ends, non-blocking, many writers, broken pipes.
#include "t.h"
#include <sys/ioctl.h>
#include <sys/select.h>
#include <sys/uio.h>
static int pf[2];
static volatile int got;
static void on_pipe(int s) { got = s; }
static void ends(void) {
  char b[16];
  CHECK(!pipe(pf));
  R(write(pf[0], "x", 1));
  R(read(pf[1], b, 1));
  R(write(pf[1], "hello", 5));
  int n;
  R(ioctl(pf[0], FIONREAD, &n));
  say("waiting %d\n", n);
  R(read(pf[0], b, 3));
  R(read(pf[0], b, 16));
  R(lseek(pf[0], 0, SEEK_SET));
  R(pread(pf[0], b, 1, 0));
  R(read(pf[0], b, 0));
  R(write(pf[1], 0, 0));
  close(pf[1]);
  R(read(pf[0], b, 1)); // the end
  close(pf[0]);
  CHECK(!pipe(pf));
  close(pf[0]);
  signal(SIGPIPE, SIG_IGN);
  R(write(pf[1], "x", 1));
  signal(SIGPIPE, on_pipe);
  R(write(pf[1], "x", 1));
  say("signal %d\n", got);
  close(pf[1]);
  R(read(pf[1], b, 1));
  R(pipe2(pf, 0x123));
  R(syscall(SYS_pipe2, 8L, 0));
}
static void nonblock(void) {
  char b[4096] = {0};
  CHECK(!pipe2(pf, O_NONBLOCK | O_CLOEXEC));
  say("flags %d %d %d\n", fcntl(pf[0], F_GETFL), fcntl(pf[1], F_GETFL), fcntl(pf[0], F_GETFD));
  R(read(pf[0], b, 1));
  long total = 0, w;
  while ((w = write(pf[1], b, sizeof b)) > 0) total += w;
  say("full after %ld: %s\n", total, ename(errno));
  struct pollfd p[2] = {{pf[0], POLLIN, 0}, {pf[1], POLLOUT, 0}};
  say("poll full: %d %x %x\n", poll(p, 2, 0), p[0].revents, p[1].revents);
  while (read(pf[0], b, sizeof b) > 0) {}
  say("poll empty: %d %x %x\n", poll(p, 2, 0), p[0].revents, p[1].revents);
  close(pf[1]);
  say("poll closed: %d %x\n", poll(p, 1, -1), p[0].revents);
  say("poll bad: %d", poll(p + 1, 1, 0)); say(" %x\n", p[1].revents);
  close(pf[0]);
  R(poll((void *)8, 1, 0));
  uint64_t t = mono_ns();
  R(poll(0, 0, 30));
  CHECK(mono_ns() - t >= 29000000);
  CHECK(!pipe(pf));
  fd_set r;
  FD_ZERO(&r); FD_SET(pf[0], &r);
  struct timeval tv = {0, 10000};
  R(select(pf[0] + 1, &r, 0, 0, &tv));
  write(pf[1], "z", 1);
  FD_SET(pf[0], &r);
  R(select(pf[0] + 1, &r, 0, 0, 0));
  struct timespec ts = {0, 0};
  struct pollfd q = {pf[0], POLLIN, 0};
  R(ppoll(&q, 1, &ts, 0));
  close(pf[0]); close(pf[1]);
}
static void stream(void) { // a large stream through a small pipe, odd sizes, checksum at the far end
  CHECK(!pipe(pf));
  pid_t c = fork();
  if (!c) {
    close(pf[0]);
    static unsigned char b[70001];
    uint64_t x = 1;
    for (int k = 0; k < 60; k++) {
      size_t n = 1 + (k * 7919) % 70000;
      for (size_t i = 0; i < n; i++) { x = x * 6364136223846793005ull + 1442695040888963407ull; b[i] = x >> 33; }
      for (size_t o = 0; o < n;) { ssize_t w = write(pf[1], b + o, n - o); CHECK(w > 0); o += w; }
    }
    _exit(0);
  }
  close(pf[1]);
  uint64_t x = 1, n = 0;
  static unsigned char b[5000];
  ssize_t r;
  while ((r = read(pf[0], b, 1 + n % 5000)) > 0)
    for (ssize_t i = 0; i < r; i++, n++) { x = x * 6364136223846793005ull + 1442695040888963407ull; CHECK(b[i] == (unsigned char)(x >> 33)); }
  int st;
  CHECK(waitpid(c, &st, 0) == c && st == 0);
  say("stream %lu\n", n);
  close(pf[0]);
}
static void atomic_writes(void) { // writes of up to PIPE_BUF do not mix
  CHECK(!pipe(pf));
  for (int k = 0; k < 4; k++) {
    pid_t c = fork();
    if (!c) { char b[512]; memset(b, 'A' + k, 512); for (int i = 0; i < 200; i++) CHECK(write(pf[1], b, 512) == 512); _exit(0); }
  }
  close(pf[1]);
  int n[4] = {0};
  char b[512];
  for (;;) {
    size_t o = 0;
    ssize_t r = 0;
    while (o < 512 && (r = read(pf[0], b + o, 512 - o)) > 0) o += r;
    if (o == 0) break;
    CHECK(o == 512);
    for (int i = 1; i < 512; i++) CHECK(b[i] == b[0]);
    n[b[0] - 'A']++;
  }
  while (wait(0) > 0) {}
  say("atomic %d %d %d %d\n", n[0], n[1], n[2], n[3]);
  close(pf[0]);
}
static void ring(void) { // a token around twelve processes
  int p[13][2];
  for (int i = 0; i < 13; i++) CHECK(!pipe(p[i]));
  for (int i = 0; i < 12; i++) {
    pid_t c = fork();
    if (!c) { int v; for (int k = 0; k < 50; k++) { CHECK(read(p[i][0], &v, 4) == 4); v++; CHECK(write(p[i + 1][1], &v, 4) == 4); } _exit(0); }
  }
  int v = 0;
  for (int k = 0; k < 50; k++) { write(p[0][1], &v, 4); CHECK(read(p[12][0], &v, 4) == 4); }
  while (wait(0) > 0) {}
  say("ring %d\n", v);
}
// Room for one writer, who cannot use it: the next one gets it.
static void passed_on(void) {
  int p[2];
  static char page[4096];
  CHECK(!pipe(p));
  for (int i = 0; i < 16; i++) CHECK(write(p[1], page, 4096) == 4096);
  pid_t bad = fork();
  if (!bad) _exit(write(p[1], (void *)8, 4096) == -1 && errno == EFAULT);
  until_asleep(bad);
  pid_t good = fork();
  if (!good) _exit(write(p[1], page, 4096) == 4096);
  until_asleep(good);
  CHECK(read(p[0], page, 4096) == 4096);
  int a, b;
  CHECK(waitpid(bad, &a, 0) == bad && waitpid(good, &b, 0) == good);
  say("passed on %d %d\n", WEXITSTATUS(a), WEXITSTATUS(b));
  close(p[0]); close(p[1]);
}
static void descriptors(void) {
  int d = dup(1);
  CHECK(d > 2);
  R(dup2(1, -1));
  R(dup2(999, 5));
  R(dup3(1, 1, 0));
  R(dup2(1, 1));
  R(close(999));
  R(close(-1));
  R(fcntl(999, F_GETFD));
  R(fcntl(1, 9999));
  CHECK(fcntl(1, F_DUPFD, 100) == 100);
  CHECK(fcntl(1, F_DUPFD_CLOEXEC, 100) == 101 && fcntl(101, F_GETFD) == 1);
  close(100); close(101);
  CHECK(!pipe(pf));
  struct iovec v[3] = {{"ab", 2}, {"", 0}, {"cde", 3}};
  R(writev(pf[1], v, 3));
  char x[2], y[8];
  struct iovec w[2] = {{x, 2}, {y, 8}};
  R(readv(pf[0], w, 2));
  say("%.2s %.3s\n", x, y);
  R(writev(pf[1], v, -1));
  R(writev(pf[1], v, 2000));
  R(writev(pf[1], (void *)8, 1));
  struct stat s;
  CHECK(!fstat(pf[0], &s) && S_ISFIFO(s.st_mode));
  // An offset belongs to the open file description.
  int f = open("/tmp/off", O_RDWR | O_CREAT | O_TRUNC, 0600), g = dup(f), h = open("/tmp/off", O_RDONLY);
  CHECK(write(f, "0123456789", 10) == 10);
  say("offsets %ld %ld %ld\n", (long)lseek(f, 0, 1), (long)lseek(g, 0, 1), (long)lseek(h, 0, 1));
  pid_t c = fork();
  if (!c) { lseek(g, 3, SEEK_SET); _exit(0); }
  waitpid(c, 0, 0);
  say("moved by a child %ld\n", (long)lseek(f, 0, 1));
  unlink("/tmp/off");
}
int main(void) {
  mkdir("/tmp", 0777);
  ends(); nonblock(); stream(); atomic_writes(); passed_on(); ring(); descriptors();
  return 0;
}
