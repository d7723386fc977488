// vmsplice: a process's pages in a pipe by reference, and what may and may not be seen through it (BUG-4).
#include "t.h"
#include <sys/ioctl.h>
#include <sys/uio.h>
static int a[2], b[2];
static char buf[1 << 17];
static long vm(int fd, void *p, size_t n, unsigned fl) { struct iovec v = {p, n}; return vmsplice(fd, &v, 1, fl); }
static int waiting(int f) { int n = -1; ioctl(f, FIONREAD, &n); return n; }
static void pipes(void) { CHECK(!pipe(a) && !pipe(b)); }
static void shut(void) { close(a[0]); close(a[1]); close(b[0]); close(b[1]); }
static void errnos(void) {
  pipes();
  char *p = anon(4 * PG);
  munmap(p + 3 * PG, PG);
  strcpy(p, "text");
  int f = open("/dev/null", O_RDWR), path = open("/", O_PATH);
  struct iovec many[1025];
  for (int i = 0; i < 1025; i++) many[i] = (struct iovec){p, 0};
  R(vm(a[1], p, 4, 0x10));
  R(vm(-1, p, 4, 0));
  R(vm(f, p, 4, 0));
  R(vm(path, p, 4, 0));
  R(vm(f, p, 0, 0));
  R(vmsplice(a[1], many, 1025, 0));
  R(vmsplice(a[1], many, 1024, 0));
  R(vmsplice(a[1], many, 0, 0));
  R(vmsplice(a[1], (void *)8, 1, 0));
  R(vm(a[1], p, -1, 0));
  R(vm(a[1], (void *)-4096L, 8, 0));
  R(vm(a[1], (void *)8, 8, 0));
  R(vm(a[1], p + 3 * PG, 8, 0));
  R(vm(a[1], p + 2 * PG + 10, 2 * PG, 0)); // as far as it goes
  R(waiting(a[0]));
  R(vm(a[0], buf, sizeof buf, SPLICE_F_NONBLOCK));
  R(vm(a[0], buf, 1, SPLICE_F_NONBLOCK));
  R(mprotect(p, PG, PROT_NONE));
  R(vm(a[1], p, 4, 0));
  R(mprotect(p, PG, PROT_READ));
  R(vm(a[1], p, 4, SPLICE_F_GIFT));
  R(vm(a[0], (void *)8, 4, 0));
  R(vm(a[0], p, 4, 0)); // not writable
  R(waiting(a[0]));
  R(vm(a[0], buf, 100, 0));
  say("%.4s\n", buf);
  close(a[1]);
  R(vm(a[0], buf, 1, 0));
  close(b[0]);
  signal(SIGPIPE, SIG_IGN);
  R(vm(b[1], p, 1, 0));
  signal(SIGPIPE, SIG_DFL);
  shut(); close(f); close(path); munmap(p, 3 * PG);
}
static void amounts(void) {
  pipes();
  char *p = anon(64 * PG);
  for (size_t i = 0; i < 64 * PG; i++) p[i] = i * 31 + i / PG;
  R(vm(a[1], p, 64 * PG, 0)); // what fits
  R(vm(a[1], p, 1, SPLICE_F_NONBLOCK));
  CHECK(read(a[0], buf, 16 * PG) == 16 * PG && !memcmp(buf, p, 16 * PG));
  R(vm(a[1], p + 100, 16 * PG, 0)); // seventeen pages, one too many
  CHECK(read(a[0], buf, 16 * PG) == 16 * PG - 100 && !memcmp(buf, p + 100, 16 * PG - 100));
  struct iovec v[12];
  size_t at = 0;
  for (int i = 0; i < 12; i++) { v[i] = (struct iovec){p + at, i % 4 ? 1000 + i * 300 : 0}; at += v[i].iov_len + 5; }
  long n = vmsplice(a[1], v, 12, 0);
  say("vector %ld\n", n);
  for (int i = 0; i < 12 && n > 0; i++) { size_t want = v[i].iov_len < (size_t)n ? v[i].iov_len : n; CHECK(read(a[0], buf, want) == (long)want && !memcmp(buf, v[i].iov_base, want)); n -= want; }
  R(waiting(a[0]));
  R(fcntl(a[1], F_SETPIPE_SZ, 256 * 1024));
  R(vm(a[1], p, 64 * PG, 0));
  struct iovec w[3] = {{buf, 10}, {buf + 10, 3 * PG}, {buf + 10 + 3 * PG, 7}};
  R(vmsplice(a[0], w, 3, 0));
  CHECK(!memcmp(buf, p, 17 + 3 * PG));
  R(waiting(a[0]));
  shut(); munmap(p, 64 * PG);
}
// The pipe holds the page: the writer's later stores are seen, unmapping changes nothing, and no write to the pipe
// reaches the page.
static void references(void) {
  pipes();
  char *p = anon(2 * PG);
  strcpy(p, "before");
  for (int i = 0; i < 16; i++) CHECK(write(a[1], buf, PG) == PG);
  CHECK(read(a[0], buf, 16 * PG) == 16 * PG);
  R(vm(a[1], p, 7, 0));
  R(write(a[1], "intruder", 8));
  say("memory \"%s\" %d\n", p, p[8]);
  strcpy(p, "BEFORE");
  CHECK(read(a[0], buf, 15) == 15);
  say("pipe \"%s\" \"%.8s\"\n", buf, buf + 7);
  strcpy(p, "gone");
  R(vm(a[1], p, 5, SPLICE_F_GIFT));
  R(tee(a[0], b[1], 5, 0));
  munmap(p, 2 * PG);
  for (int i = 0; i < 50; i++) { char *q = anon(16 * PG); memset(q, 'z', 16 * PG); munmap(q, 16 * PG); } // the frame is not reused
  CHECK(read(a[0], buf, 5) == 5);
  say("%s", buf);
  CHECK(read(b[0], buf, 5) == 5);
  say(" %s\n", buf);
  // Zeroes that were never touched, and a shared file page.
  p = anon(PG);
  R(vm(a[1], p, 4, 0));
  p[0] = 1;
  CHECK(read(a[0], buf, 4) == 4);
  say("zero %d\n", buf[1]);
  int fd = memfd_create("f", 0);
  CHECK(!ftruncate(fd, PG));
  char *m = mmap(0, PG, PROT_READ, MAP_SHARED, fd, 0);
  R(vm(a[1], m, 4, 0));
  R(write(a[1], "more", 4));
  CHECK(pwrite(fd, "file", 4, 0) == 4);
  CHECK(read(a[0], buf, 8) == 8);
  say("%.8s %d\n", buf, m[4]);
  munmap(m, PG); munmap(p, PG); close(fd); shut();
}
// BUG-4: a child holds a page that it shares with its parent and unmaps it; the parent's next write must not be seen.
static void cow_leak(int gift) {
  pipes();
  char *p = anon(PG);
  int go[2];
  CHECK(!pipe(go));
  strcpy(p, "old");
  pid_t c = fork();
  if (!c) {
    CHECK(vm(a[1], p, 16, gift ? SPLICE_F_GIFT : 0) == 16);
    munmap(p, PG);
    CHECK(write(b[1], "g", 1) == 1);
    char got[16], x;
    CHECK(read(go[0], &x, 1) == 1); // the parent says when
    CHECK(read(a[0], got, 16) == 16);
    say("child reads \"%s\"\n", got);
    _exit(strcmp(got, "old") != 0);
  }
  char x;
  CHECK(read(b[0], &x, 1) == 1);
  strcpy(p, "secret");
  CHECK(write(go[1], "w", 1) == 1);
  int st;
  CHECK(waitpid(c, &st, 0) == c && st == 0);
  // The other way: the parent's page is in the pipe, the child's writes are its own.
  strcpy(p, "parent");
  CHECK(vm(a[1], p, 16, 0) == 16);
  if (!(c = fork())) { strcpy(p, "child"); _exit(0); }
  CHECK(waitpid(c, &st, 0) == c && st == 0);
  CHECK(read(a[0], buf, 16) == 16);
  say("parent reads \"%s\"\n", buf);
  munmap(p, PG); close(go[0]); close(go[1]); shut();
}
static void stream(void) { // through a pipe between processes; the sender keeps its pages until the receiver has them
  enum { LEN = 300 * 4096 + 123 };
  pipes();
  char *p = anon(LEN);
  for (int i = 0; i < LEN; i++) p[i] = rng() >> 40;
  pid_t c = fork();
  if (!c) {
    for (size_t o = 0, n; o < LEN; o += n) { n = 1 + o * 7 % 50000; if (n > LEN - o) n = LEN - o; long k = vm(a[1], p + o, n, 0); CHECK(k > 0); n = k; }
    _exit(0);
  }
  close(a[1]);
  size_t o = 0;
  for (long n; (n = vm(a[0], buf, 1 + o % 70000, 0)) > 0; o += n) CHECK(!memcmp(buf, p + o, n));
  int st;
  CHECK(waitpid(c, &st, 0) == c && st == 0);
  say("streamed %zu\n", o);
  shut();
}
int main(void) {
  errnos(); amounts(); references(); cow_leak(0); cow_leak(1); stream();
  return 0;
}
