// splice, tee, sendfile: errno, positions, references instead of copies, and pages that a pipe must never write.
#include "t.h"
#include <sys/ioctl.h>
#include <sys/sendfile.h>
#include <sys/uio.h>
static int a[2], b[2], fd;
static char buf[1 << 17];
static volatile int got;
static void on_pipe(int s) { got = s; }
static void pipes(void) { CHECK(!pipe(a) && !pipe(b)); }
static void shut(void) { close(a[0]); close(a[1]); close(b[0]); close(b[1]); }
static int waiting(int f) { int n = -1; ioctl(f, FIONREAD, &n); return n; }
static void drain(const char *what, int f) { // what is in a pipe, as text
  memset(buf, 0, sizeof buf);
  int n = waiting(f) ? read(f, buf, sizeof buf) : 0;
  say("%s: %d \"%.60s\"\n", what, n, buf);
}
static void file(const char *text, size_t len) { // an anonymous file; tmpfs on both systems
  if (fd > 0) close(fd);
  fd = memfd_create("splice", 0);
  CHECK(fd > 0 && !ftruncate(fd, len) && pwrite(fd, text, strlen(text), 0) == (ssize_t)strlen(text));
}
static void errnos(void) {
  loff_t at = 0, minus = -1, high = INT64_MAX;
  pipes();
  file("0123456789", 8192);
  int dir = open("/", O_RDONLY | O_DIRECTORY), null = open("/dev/null", O_RDWR), full = open("/dev/full", O_RDWR), where = open("/", O_PATH);
  R(splice(fd, 0, a[1], 0, 0, 0x100));
  R(splice(fd, 0, a[1], 0, 1, 0x100));
  R(splice(-1, 0, a[1], 0, 1, 0));
  R(splice(fd, 0, -1, 0, 1, 0));
  R(splice(where, 0, a[1], 0, 1, 0));
  R(splice(fd, 0, fd, 0, 1, 0));
  R(splice(a[0], 0, a[1], 0, 1, 0));
  R(splice(a[1], 0, b[1], 0, 1, 0));
  R(splice(fd, 0, a[0], 0, 1, 0));
  R(splice(a[0], &at, b[1], 0, 1, 0));
  R(splice(a[0], 0, b[1], &at, 1, 0));
  R(splice(fd, 0, a[1], &at, 1, 0));
  R(splice(fd, (void *)8, a[1], 0, 1, 0));
  R(splice(fd, &minus, a[1], 0, 1, 0));
  R(splice(fd, &high, a[1], 0, 1, 0));
  R(splice(fd, 0, a[1], 0, -1, 0));
  R(splice(dir, 0, a[1], 0, 1, 0));
  R(splice(null, 0, a[1], 0, 1, 0));
  R(splice(a[0], 0, b[1], 0, 1, SPLICE_F_NONBLOCK));
  CHECK(write(a[1], "x", 1) == 1);
  R(splice(a[0], 0, full, 0, 1, 0));
  R(fcntl(fd, F_SETFL, O_APPEND));
  R(splice(a[0], 0, fd, 0, 1, 0));
  R(sendfile(fd, fd, &at, 1));
  R(fcntl(fd, F_SETFL, 0));
  R(tee(a[0], b[1], 1, 0x10));
  R(tee(a[0], b[1], 0, 0));
  R(tee(a[0], a[1], 1, 0));
  R(tee(fd, b[1], 1, 0));
  R(tee(a[0], -1, 1, 0));
  R(tee(b[0], a[1], 1, SPLICE_F_NONBLOCK));
  R(sendfile(a[1], b[0], 0, 1));
  R(sendfile(a[1], b[0], &at, 1));
  R(sendfile(null, a[0], 0, 1));
  R(sendfile(a[1], dir, 0, 1));
  R(sendfile(full, fd, 0, 1));
  R(sendfile(-1, fd, 0, 1));
  R(sendfile(a[1], -1, 0, 1));
  R(sendfile(a[1], fd, (void *)8, 1));
  R(sendfile(a[1], fd, &minus, 1));
  R(sendfile(a[1], fd, 0, -1));
  drain("left", a[0]);
  signal(SIGPIPE, on_pipe);
  close(b[0]);
  CHECK(write(a[1], "y", 1) == 1);
  R(splice(fd, 0, b[1], 0, 1, 0)); say("signal %d\n", got); got = 0;
  R(splice(a[0], 0, b[1], 0, 1, 0)); say("signal %d\n", got); got = 0;
  R(tee(a[0], b[1], 1, 0)); say("signal %d\n", got); got = 0;
  R(sendfile(b[1], fd, 0, 1)); say("signal %d\n", got);
  drain("kept", a[0]);
  close(a[1]);
  R(splice(a[0], 0, fd, 0, 9, 0)); // the end
  signal(SIGPIPE, SIG_DFL);
  shut(); close(dir); close(null); close(full); close(where);
}
static void positions(void) {
  pipes();
  file("0123456789", 10);
  loff_t at = 4, to = 20;
  R(splice(fd, 0, a[1], 0, 3, 0));
  R(splice(fd, &at, a[1], 0, 3, SPLICE_F_MOVE | SPLICE_F_MORE));
  say("own %ld, at %ld\n", (long)lseek(fd, 0, SEEK_CUR), (long)at);
  R(splice(fd, 0, a[1], 0, 100, 0));
  R(splice(fd, 0, a[1], 0, 100, 0));
  R(splice(a[0], 0, fd, &to, 5, 0));
  say("own %ld, to %ld\n", (long)lseek(fd, 0, SEEK_CUR), (long)to);
  R(lseek(fd, 0, SEEK_SET));
  R(splice(a[0], 0, fd, 0, 100, 0));
  say("own %ld\n", (long)lseek(fd, 0, SEEK_CUR));
  char t[32] = {0};
  R(pread(fd, t, 31, 0));
  for (int i = 0; i < 25; i++) say("%c", t[i] ? t[i] : '.');
  say("\n");
  at = 1;
  R(sendfile(a[1], fd, &at, 4));
  say("at %ld, own %ld\n", (long)at, (long)lseek(fd, 0, SEEK_CUR));
  R(sendfile(a[1], fd, 0, 4));
  say("own %ld\n", (long)lseek(fd, 0, SEEK_CUR));
  drain("sent", a[0]);
  int other = memfd_create("to", 0);
  at = 0;
  R(sendfile(other, fd, &at, 1000));
  R(copy_file_range(fd, &(loff_t){1}, other, &(loff_t){2}, 3, 0));
  memset(t, 0, sizeof t);
  R(pread(other, t, 31, 0));
  say("other %ld %.10s\n", (long)lseek(other, 0, SEEK_CUR), t);
  close(other); shut();
}
// The pipe holds the file's page, not a copy; and what is written to the pipe never reaches the page.
static void references(void) {
  pipes();
  for (int i = 0; i < 16; i++) CHECK(write(a[1], buf, PG) == PG); // every place of the ring once held a page that grows
  CHECK(read(a[0], buf, 16 * PG) == (ssize_t)(16 * PG));
  file("secret of the file", 2 * PG);
  loff_t at = 0;
  R(splice(fd, &at, a[1], 0, 6, 0));
  R(write(a[1], "-overwritten-", 13));
  R(writev(a[1], (struct iovec[]){{"+", 1}, {"more", 4}}, 2));
  char t[32] = {0};
  CHECK(pread(fd, t, 31, 0) == 31);
  say("file \"%s\"\n", t);
  R(pwrite(fd, "SECRET", 6, 0)); // by reference: the reader sees it
  drain("pipe", a[0]);
  // After a cut the pipe has the page for itself.
  at = 0;
  R(splice(fd, &at, a[1], 0, 6, 0));
  R(ftruncate(fd, 0));
  R(ftruncate(fd, 6));
  R(pwrite(fd, "new", 3, 0));
  R(waiting(a[0]));
  CHECK(read(a[0], t, 6) == 6);
  // A hole is zeroes, and stays so.
  file("", 3 * PG);
  at = PG - 2;
  R(splice(fd, &at, a[1], 0, 4, 0));
  R(write(a[1], "zz", 2));
  memset(t, 1, 8);
  CHECK(read(a[0], t, 8) == 6);
  say("hole %d%d%d%d %.2s\n", t[0], t[1], t[2], t[3], t + 4);
  CHECK(pread(fd, t, 8, PG) == 8);
  say("still %d%d\n", t[0], t[2]);
  shut();
}
static void tees(void) {
  pipes();
  CHECK(write(a[1], "hello", 5) == 5);
  R(tee(a[0], b[1], 3, 0));
  R(tee(a[0], b[1], 100, 0));
  R(write(a[1], " world", 6));
  R(write(b[1], "|b", 2));
  R(waiting(a[0])); R(waiting(b[0]));
  drain("a", a[0]);
  R(write(a[1], "again", 5)); // not into the page that b still has
  drain("b", b[0]);
  drain("a", a[0]);
  // Part of a buffer moves, the rest stays and grows.
  CHECK(write(a[1], "0123456789", 10) == 10);
  R(splice(a[0], 0, b[1], 0, 4, 0));
  R(write(a[1], "AB", 2));
  R(write(b[1], "XY", 2));
  drain("a", a[0]);
  drain("b", b[0]);
  CHECK(write(a[1], "whole", 5) == 5);
  R(splice(a[0], 0, b[1], 0, 100, 0));
  R(write(b[1], "-grown", 6));
  R(waiting(a[0]));
  drain("b", b[0]);
  // Full on one side.
  CHECK(fcntl(b[1], F_SETPIPE_SZ, PG) == PG);
  CHECK(write(b[1], "f", 1) == 1);
  CHECK(write(a[1], "x", 1) == 1);
  R(splice(a[0], 0, b[1], 0, 1, SPLICE_F_NONBLOCK));
  R(tee(a[0], b[1], 1, SPLICE_F_NONBLOCK));
  CHECK(fcntl(b[1], F_SETFL, O_NONBLOCK) == 0);
  R(splice(a[0], 0, b[1], 0, 1, 0));
  R(splice(fd, &(loff_t){0}, b[1], 0, 1, 0));
  shut();
}
static void sizes(void) {
  pipes();
  R(fcntl(a[0], F_GETPIPE_SZ));
  R(fcntl(a[0], F_SETPIPE_SZ, 0));
  R(fcntl(a[0], F_SETPIPE_SZ, 4097));
  R(fcntl(a[1], F_GETPIPE_SZ));
  R(fcntl(a[0], F_SETPIPE_SZ, 1 << 20));
  R(fcntl(a[0], F_SETPIPE_SZ, (1u << 31) + 1));
  R(fcntl(a[0], F_SETPIPE_SZ, -1));
  R(fcntl(fd, F_SETPIPE_SZ, 4096));
  R(fcntl(fd, F_GETPIPE_SZ));
  for (int i = 0; i < 3; i++) { memset(buf, 'a' + i, PG); CHECK(write(a[1], buf, PG) == PG); }
  R(fcntl(a[0], F_SETPIPE_SZ, 2 * PG));
  R(fcntl(a[0], F_SETPIPE_SZ, 4 * PG));
  CHECK(read(a[0], buf, PG) == PG && buf[0] == 'a');
  R(fcntl(a[0], F_SETPIPE_SZ, 2 * PG));
  R(fcntl(a[0], F_SETPIPE_SZ, 32 * PG));
  CHECK(read(a[0], buf, 2 * PG) == 2 * PG && buf[0] == 'b' && buf[PG] == 'c' && buf[2 * PG - 1] == 'c');
  CHECK(fcntl(b[1], F_SETPIPE_SZ, PG) == PG);
  int child = fork(); // a writer that waits goes on when the pipe grows
  if (!child) { memset(buf, 'w', 2 * PG); for (int i = 0; i < 2; i++) CHECK(write(b[1], buf, PG) == PG); _exit(0); }
  CHECK(fcntl(b[1], F_SETPIPE_SZ, 8 * PG) == 8 * PG);
  int st;
  CHECK(waitpid(child, &st, 0) == child && st == 0);
  R(waiting(b[0]));
  shut();
}
static void devices(void) {
  pipes();
  int null = open("/dev/null", O_RDWR), zero = open("/dev/zero", O_RDWR), version = open("/proc/meminfo", O_RDONLY);
  R(splice(zero, 0, a[1], 0, 1 << 20, 0));
  R(splice(a[0], 0, null, 0, 1 << 20, 0));
  R(splice(a[0], 0, null, 0, 1, SPLICE_F_NONBLOCK));
  R(splice(version, 0, a[1], 0, 9, 0));
  R(splice(a[0], 0, zero, 0, 4, 0));
  drain("proc", a[0]);
  R(sendfile(null, fd, &(loff_t){0}, 7));
  R(splice(a[0], 0, zero, 0, 0, 0));
  close(null); close(zero); close(version); shut();
}
// Bad addresses: what was copied counts, what was not stays where it is.
static void faults(void) {
  pipes();
  char *p = anon(2 * PG);
  munmap(p + PG, PG);
  memset(p, 'p', PG);
  R(write(a[1], p + PG - 50, 100));
  R(waiting(a[0]));
  R(write(a[1], "0123456789", 10));
  R(write(a[1], p + PG - 5, 10));
  R(waiting(a[0]));
  R(read(a[0], p + PG - 5, 10));
  R(waiting(a[0]));
  CHECK(read(a[0], buf, 10) == 10);
  R(write(a[1], buf, 2 * PG));
  R(read(a[0], p, 2 * PG));
  R(waiting(a[0]));
  R(splice(fd, (loff_t *)(p + PG), a[1], 0, 1, 0));
  shut();
  munmap(p, PG);
}
// A file, a process with two pipes between, and a file: all by splice, odd sizes, checked at the end.
static void stream(void) {
  enum { LEN = 1234567 };
  int from = memfd_create("from", 0), to = memfd_create("to", 0);
  CHECK(!ftruncate(from, LEN) && !ftruncate(to, LEN));
  char *f = mmap(0, LEN, 3, MAP_SHARED, from, 0);
  for (int i = 0; i < LEN; i++) f[i] = rng() >> 40;
  pipes();
  pid_t c = fork();
  if (!c) {
    close(a[1]); close(b[0]);
    long n;
    for (int k = 1; (n = splice(a[0], 0, b[1], 0, 1 + k * 7919 % 9000, k & SPLICE_F_MORE)) > 0; k++) {}
    CHECK(n == 0);
    _exit(0);
  }
  pid_t d = fork();
  if (!d) {
    close(a[0]); close(b[0]); close(b[1]);
    for (long n, left = LEN, k = 1; left; left -= n, k++) {
      n = 1 + k * 104729 % 30000;
      n = k & 1 ? splice(from, 0, a[1], 0, n, 0) : sendfile(a[1], from, 0, n);
      CHECK(n > 0);
    }
    _exit(0);
  }
  close(a[0]); close(a[1]); close(b[1]);
  long n, sum = 0;
  while ((n = splice(b[0], 0, to, 0, 50000, 0)) > 0) sum += n;
  CHECK(n == 0);
  int st;
  CHECK(waitpid(c, &st, 0) == c && st == 0);
  CHECK(waitpid(d, &st, 0) == d && st == 0);
  char *t = mmap(0, LEN, PROT_READ, MAP_SHARED, to, 0);
  say("streamed %ld %s\n", sum, memcmp(f, t, LEN) ? "differs" : "same");
  munmap(f, LEN); munmap(t, LEN); close(from); close(to); close(b[0]);
}
static void in_the_way(int s) { got = s; }
static void waits(void) { // both kinds of wait end with a signal, and go on when there is something to do
  struct sigaction sa = {.sa_handler = in_the_way};
  sigaction(SIGALRM, &sa, 0);
  pipes();
  struct itimerval every = {{0, 10000}, {0, 10000}};
  setitimer(ITIMER_REAL, &every, 0);
  R(splice(a[0], 0, b[1], 0, 1, 0));
  R(splice(a[0], 0, fd, 0, 1, 0));
  R(tee(a[0], b[1], 1, 0));
  for (int i = 0; i < 16; i++) CHECK(write(a[1], buf, PG) == PG);
  R(splice(fd, &(loff_t){0}, a[1], 0, 1, 0));
  setitimer(ITIMER_REAL, &(struct itimerval){0}, 0);
  pid_t c = fork();
  if (!c) { CHECK(splice(fd, &(loff_t){0}, a[1], 0, 1, 0) == 1); CHECK(write(b[1], "go", 2) == 2); _exit(0); }
  int null = open("/dev/null", O_RDWR);
  R(splice(a[0], 0, null, 0, PG, 0));
  R(splice(b[0], 0, null, 0, 2, 0));
  int st;
  CHECK(waitpid(c, &st, 0) == c && st == 0);
  R(waiting(a[0]));
  close(null); shut();
}
int main(void) {
  errnos(); positions(); references(); tees(); sizes(); devices(); faults(); stream(); waits();
  return 0;
}
