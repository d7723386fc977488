// io_uring without a library: set-up, requests, registered buffers (LT-2, BUG-5), waiting, timeouts, what does not fit, and
// shared memory full of nonsense. uring disk DISK SLOW: requests to a disk that holds the host's pattern, 32 at a time, while their
// process forks, ends, runs another program, closes the ring. uring bad DISK: one sector of it cannot be read.
// uring lost DISK OTHER: it stops answering. uring gather: requests that wait take memory until it is short.
#include "t.h"
#include <linux/io_uring.h>
#include <poll.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/sysinfo.h>
#include <sys/uio.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
struct ring {
  int fd;
  struct io_uring_params p;
  char *mem, *sqes;
  size_t size;
  unsigned sent;
};
static long setup(unsigned n, void *p) { return syscall(SYS_io_uring_setup, n, p); }
static long enter(int fd, unsigned n, unsigned least, unsigned flags) { return syscall(SYS_io_uring_enter, fd, n, least, flags, 0, 8); }
static long reg(int fd, unsigned op, void *arg, unsigned n) { return syscall(SYS_io_uring_register, fd, op, arg, n); }
#define SQ(r, f) (*(volatile unsigned *)((r)->mem + (r)->p.sq_off.f))
#define CQ(r, f) (*(volatile unsigned *)((r)->mem + (r)->p.cq_off.f))
static void open_ring(struct ring *r, unsigned n, unsigned flags) {
  memset(r, 0, sizeof *r);
  r->p.flags = flags;
  r->fd = (int)setup(n, &r->p);
  CHECK(r->fd >= 0);
  size_t sq = r->p.sq_off.array + 4 * r->p.sq_entries, cq = r->p.cq_off.cqes + 16 * r->p.cq_entries;
  r->size = sq > cq ? sq : cq;
  r->mem = mmap(0, r->size, PROT_READ | PROT_WRITE, MAP_SHARED, r->fd, IORING_OFF_SQ_RING);
  r->sqes = mmap(0, 64 * r->p.sq_entries, PROT_READ | PROT_WRITE, MAP_SHARED, r->fd, IORING_OFF_SQES);
  CHECK(r->mem != MAP_FAILED && r->sqes != MAP_FAILED);
}
static void close_ring(struct ring *r) {
  munmap(r->mem, r->size);
  munmap(r->sqes, 64 * r->p.sq_entries);
  close(r->fd);
}
static struct io_uring_sqe *ask(struct ring *r, int op, int fd, const void *addr, unsigned len, uint64_t off) {
  unsigned i = SQ(r, tail) & (r->p.sq_entries - 1);
  struct io_uring_sqe *s = (struct io_uring_sqe *)r->sqes + i;
  memset(s, 0, sizeof *s);
  *s = (struct io_uring_sqe){.opcode = (uint8_t)op, .fd = fd, .addr = (uint64_t)addr, .len = len, .off = off, .user_data = ++r->sent};
  ((volatile unsigned *)(r->mem + r->p.sq_off.array))[i] = i;
  __atomic_store_n((unsigned *)(r->mem + r->p.sq_off.tail), SQ(r, tail) + 1, __ATOMIC_RELEASE);
  return s;
}
static int take(struct ring *r, struct io_uring_cqe *to) {
  unsigned head = CQ(r, head);
  if (head == __atomic_load_n((unsigned *)(r->mem + r->p.cq_off.tail), __ATOMIC_ACQUIRE)) return 0;
  *to = ((struct io_uring_cqe *)(r->mem + r->p.cq_off.cqes))[head & (r->p.cq_entries - 1)];
  CQ(r, head) = head + 1;
  return 1;
}
static unsigned done(struct ring *r) { return CQ(r, tail) - CQ(r, head); }
static const char *res(int n) { static char b[16]; return n < 0 ? ename(-n) : (snprintf(b, 16, "%d", n), b); }
static int show(struct ring *r, const char *what) { // everything that is there
  struct io_uring_cqe c;
  int n = 0;
  say("%s:", what);
  for (; take(r, &c); n++) say(" #%d %s", (int)c.user_data, res(c.res));
  say("\n");
  return n;
}
static int one(struct ring *r) { // submits what is queued, waits for one completion and returns it
  struct io_uring_cqe c;
  CHECK(enter(r->fd, 1, 1, IORING_ENTER_GETEVENTS) == 1);
  CHECK(take(r, &c) && c.user_data == r->sent);
  return c.res;
}
#define ONE(r, ...) (ask(r, __VA_ARGS__), one(r))
static int file(void) { int fd = memfd_create("uring", 0); CHECK(fd >= 0); return fd; }

static void set_up(void) {
  struct io_uring_params p = {0};
  R(setup(0, &p));
  R(setup(4, 0));
  R(setup(40000, &p));
  p.flags = 1u << 31;
  R(setup(4, &p));
  p = (struct io_uring_params){.resv = {0, 0, 1}};
  R(setup(4, &p));
  p = (struct io_uring_params){.flags = IORING_SETUP_CQSIZE, .cq_entries = 2};
  R(setup(4, &p));
  p = (struct io_uring_params){.flags = IORING_SETUP_CQSIZE};
  R(setup(4, &p));
  p = (struct io_uring_params){.flags = IORING_SETUP_TASKRUN_FLAG};
  R(setup(4, &p));
  struct ring r;
  open_ring(&r, 5, 0);
  say("entries %u %u, told %u %u, masks %u %u\n", r.p.sq_entries, r.p.cq_entries, SQ(&r, ring_entries), CQ(&r, ring_entries), SQ(&r, ring_mask), CQ(&r, ring_mask));
  say("close on exec: %d\n", fcntl(r.fd, F_GETFD));
  CHECK(r.p.features & IORING_FEAT_SINGLE_MMAP);
  volatile unsigned *cq = mmap(0, PG, PROT_READ | PROT_WRITE, MAP_SHARED, r.fd, IORING_OFF_CQ_RING);
  CHECK(cq != MAP_FAILED && cq[r.p.cq_off.ring_entries / 4] == r.p.cq_entries);
  CHECK(mmap(0, PG, PROT_READ, MAP_SHARED, r.fd, 0x20000000) == MAP_FAILED); say("elsewhere: %s\n", ename(errno));
  R(enter(r.fd, 0, 0, 1u << 30));
  R(enter(99, 0, 0, 0));
  R(enter(0, 0, 0, 0));
  R(reg(r.fd, 77, 0, 0));
  char b;
  R(read(r.fd, &b, 1));
  close_ring(&r);
}
static void simple(void) {
  struct ring r;
  open_ring(&r, 8, 0);
  for (int i = 0; i < 3; i++) ask(&r, IORING_OP_NOP, -1, 0, 0, 0);
  R(enter(r.fd, 9, 3, IORING_ENTER_GETEVENTS));
  show(&r, "three");
  int fd = file(), ro = open("/proc/self/exe", O_RDONLY);
  char b[64] = "", w[] = "written";
  struct iovec v[2] = {{w, 3}, {w + 3, 4}}, u[2] = {{b, 2}, {b + 2, 62}};
  say("write %d\n", ONE(&r, IORING_OP_WRITE, fd, w, 7, 100));
  say("writev %d\n", ONE(&r, IORING_OP_WRITEV, fd, v, 2, 107));
  say("fsync %d\n", ONE(&r, IORING_OP_FSYNC, fd, 0, 0, 0));
  say("readv %d", ONE(&r, IORING_OP_READV, fd, u, 2, 100));
  say(" %s\n", b);
  say("read %d", ONE(&r, IORING_OP_READ, fd, b, 4, 103));
  say(" %.4s\n", b);
  say("at the end %d\n", ONE(&r, IORING_OP_READ, fd, b, 4, 1000));
  CHECK(lseek(fd, 110, SEEK_SET) == 110);
  say("at the position %d", ONE(&r, IORING_OP_READ, fd, b, 4, -1));
  say(" %.4s %ld\n", b, (long)lseek(fd, 0, SEEK_CUR));
  say("no file: %s\n", res(ONE(&r, IORING_OP_READ, 999, b, 4, 0)));
  say("not writable: %s\n", res(ONE(&r, IORING_OP_WRITE, ro, b, 4, 0)));
  say("nowhere: %s\n", res(ONE(&r, IORING_OP_READ, fd, (void *)8, 4, 100)));
  say("beyond: %s\n", res(ONE(&r, IORING_OP_READ, fd, (void *)-8, 4, 100)));
  say("no such thing: %s\n", res(ONE(&r, 250, fd, b, 4, 0)));
  ask(&r, IORING_OP_FSYNC, fd, 0, 0, 0)->fsync_flags = 8;
  say("bad flags: %s\n", res(one(&r)));
  ask(&r, IORING_OP_NOP, -1, 0, 0, 0)->flags = 128;
  say("bad flags: %s\n", res(one(&r)));
  say("readv of nothing: %s\n", res(ONE(&r, IORING_OP_READV, fd, 0, 1, 0)));
  say("readv of too many: %s\n", res(ONE(&r, IORING_OP_READV, fd, u, 1025, 0)));
  // A submission that is none ends the call; the next one goes on after it.
  ask(&r, 250, 0, 0, 0, 0), ask(&r, IORING_OP_NOP, 0, 0, 0, 0);
  R(enter(r.fd, 2, 0, 0));
  R(enter(r.fd, 2, 0, 0));
  show(&r, "after a bad one");
  // So does one that the array does not name right.
  ask(&r, IORING_OP_NOP, 0, 0, 0, 0);
  ((volatile unsigned *)(r.mem + r.p.sq_off.array))[(SQ(&r, tail) - 1) & 7] = 12345;
  R(enter(r.fd, 1, 0, 0));
  say("dropped %u\n", SQ(&r, dropped));
  close(fd), close(ro);
  close_ring(&r);
}
static void buffers(void) {
  struct ring r;
  open_ring(&r, 8, 0);
  int fd = file();
  char *p = anon(8 * PG), *q = anon(4 * PG);
  memset(p, 'p', 8 * PG);
  struct iovec v[3] = {{p + 100, 5 * PG}, {q, 4 * PG}, {0, 0}};
  R(reg(r.fd, IORING_REGISTER_BUFFERS, v, 0));
  R(reg(r.fd, IORING_REGISTER_BUFFERS, v, 20000));
  R(reg(r.fd, IORING_REGISTER_BUFFERS, (void *)8, 1));
  R(reg(r.fd, IORING_REGISTER_BUFFERS, &(struct iovec){(void *)8, 8}, 1));
  R(reg(r.fd, IORING_REGISTER_BUFFERS, &(struct iovec){p, 0}, 1));
  R(reg(r.fd, IORING_REGISTER_BUFFERS, &(struct iovec){0, 5}, 1));
  R(reg(r.fd, IORING_REGISTER_BUFFERS, &(struct iovec){p, 2ul << 30}, 1));
  R(reg(r.fd, IORING_REGISTER_BUFFERS, &(struct iovec){p, -1}, 1));
  R(reg(r.fd, IORING_REGISTER_BUFFERS, &(struct iovec){p + 7 * PG, 900 * PG}, 1));
  R(reg(r.fd, IORING_UNREGISTER_BUFFERS, 0, 0));
  R(reg(r.fd, IORING_REGISTER_BUFFERS, v, 3));
  R(reg(r.fd, IORING_REGISTER_BUFFERS, v, 3));
  ask(&r, IORING_OP_WRITE_FIXED, fd, p + 100, 5 * PG, 0);
  say("write %d\n", one(&r));
  ask(&r, IORING_OP_READ_FIXED, fd, q + 10, 3 * PG, 50)->buf_index = 1;
  say("read %d", one(&r));
  say(" %c %c\n", q[10], q[3 * PG + 9]);
  ask(&r, IORING_OP_READ_FIXED, fd, q - 1, 5, 0)->buf_index = 1;
  say("before it: %s\n", res(one(&r)));
  ask(&r, IORING_OP_READ_FIXED, fd, q + 4 * PG - 4, 5, 0)->buf_index = 1;
  say("past it: %s\n", res(one(&r)));
  ask(&r, IORING_OP_READ_FIXED, fd, q, 5, 0)->buf_index = 2;
  say("an empty one: %s\n", res(one(&r)));
  ask(&r, IORING_OP_READ_FIXED, fd, q, 5, 0)->buf_index = 3;
  say("none: %s\n", res(one(&r)));
  // The pages that were registered are meant, not what is mapped there now.
  memset(q, 'q', 4 * PG);
  munmap(q, 4 * PG);
  ask(&r, IORING_OP_WRITE_FIXED, fd, q, 2 * PG, 0)->buf_index = 1;
  char b[4] = "";
  say("unmapped: %d", one(&r));
  CHECK(pread(fd, b, 3, PG) == 3);
  say(" %s\n", b);
  char *again = mmap(q, 4 * PG, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  CHECK(again == q);
  memset(q, 'n', 4 * PG);
  ask(&r, IORING_OP_WRITE_FIXED, fd, q, 2 * PG, 0)->buf_index = 1;
  say("mapped anew: %d", one(&r));
  CHECK(pread(fd, b, 3, PG) == 3);
  say(" %s\n", b);
  // BUG-5: they stay with the process that registered them. Its child has copies.
  memset(p, 'a', 8 * PG);
  int go[2];
  CHECK(!pipe(go));
  pid_t c = fork();
  if (!c) { CHECK(read(go[0], b, 1) == 1); _exit(p[200] == 'a' && p[2 * PG] == 'a' ? 3 : 4); }
  memset(p, 'b', PG);
  CHECK(pwrite(fd, "xyz", 3, 0) == 3);
  say("into the parent: %d", ONE(&r, IORING_OP_READ_FIXED, fd, p + 2 * PG, 3, 0));
  say(" %.4s", p + 2 * PG);
  p[3 * PG] = 'c'; // written after fork, read through the pin
  ONE(&r, IORING_OP_WRITE_FIXED, fd, p + 3 * PG, 1, 0);
  CHECK(pread(fd, b, 1, 0) == 1 && write(go[1], b, 1) == 1);
  int st;
  CHECK(waitpid(c, &st, 0) == c);
  say(" %c, child %d\n", b[0], WEXITSTATUS(st));
  // A child uses the ring: the buffers are still the parent's pages.
  c = fork();
  if (!c) { p[100] = 'd'; ask(&r, IORING_OP_WRITE_FIXED, fd, p + 100, 1, 0); _exit(one(&r) == 1 ? 5 : 6); }
  CHECK(waitpid(c, &st, 0) == c && pread(fd, b, 1, 0) == 1);
  say("a child asks: %d %c\n", WEXITSTATUS(st), b[0]);
  R(reg(r.fd, IORING_UNREGISTER_BUFFERS, 0, 0));
  R(reg(r.fd, IORING_UNREGISTER_BUFFERS, 0, 0));
  close(fd), close(go[0]), close(go[1]);
  close_ring(&r);
  munmap(p, 8 * PG), munmap(q, 4 * PG);
}
static long status(const char *row) {
  char line[128];
  long n = -1;
  FILE *f = fopen("/proc/self/status", "r");
  while (fgets(line, sizeof line, f)) if (!strncmp(line, row, strlen(row))) n = atol(line + strlen(row) + 1);
  fclose(f);
  return n;
}
static void limits(void) {
  pid_t c = fork();
  if (!c) {
    struct ring r;
    char *p = anon(64 * PG);
    open_ring(&r, 1, 0);
    say("VmPin %ld", status("VmPin"));
    CHECK(!reg(r.fd, IORING_REGISTER_BUFFERS, &(struct iovec){p, 64 * PG}, 1));
    say(" %ld", status("VmPin"));
    CHECK(!reg(r.fd, IORING_UNREGISTER_BUFFERS, 0, 0));
    say(" %ld\n", status("VmPin"));
    struct rlimit l = {32 * PG, 32 * PG};
    CHECK(!setrlimit(RLIMIT_MEMLOCK, &l) && !setresuid(54321, 54321, 54321));
    struct iovec v[2] = {{p, 20 * PG}, {p + 20 * PG, 20 * PG}};
    open_ring(&r, 1, 0); // the first one belongs to root
    R(reg(r.fd, IORING_REGISTER_BUFFERS, v, 2));
    R(reg(r.fd, IORING_REGISTER_BUFFERS, v, 1));
    _exit(0); // pinned
  }
  int st;
  CHECK(waitpid(c, &st, 0) == c && !st);
}
static void on_alarm(int s) { (void)s; }
static struct timespec ms(int n) { return (struct timespec){.tv_nsec = n * 1000000l}; }
static void waiting(void) {
  struct ring r;
  open_ring(&r, 8, 0);
  int p[2];
  char b[8] = "";
  CHECK(!pipe(p));
  // A reader of an empty pipe waits, and the next request does not wait for it.
  ask(&r, IORING_OP_READ, p[0], b, 8, 0), ask(&r, IORING_OP_NOP, 0, 0, 0, 0);
  R(enter(r.fd, 2, 1, IORING_ENTER_GETEVENTS));
  show(&r, "a reader waits");
  CHECK(write(p[1], "hello", 5) == 5);
  R(enter(r.fd, 0, 1, IORING_ENTER_GETEVENTS));
  show(&r, b);
  // Written by another while this one waits.
  ask(&r, IORING_OP_READ, p[0], b, 8, 0);
  pid_t c = fork();
  if (!c) { CHECK(write(p[1], "child", 5) == 5); _exit(0); }
  R(enter(r.fd, 1, 1, IORING_ENTER_GETEVENTS));
  show(&r, b);
  int st;
  CHECK(waitpid(c, &st, 0) == c);
  // poll hears of it.
  struct pollfd f = {r.fd, POLLIN, 0};
  ask(&r, IORING_OP_READ, p[0], b, 8, 0);
  R(enter(r.fd, 1, 0, 0));
  say("poll %d\n", poll(&f, 1, 0));
  c = fork();
  if (!c) { CHECK(write(p[1], "again", 5) == 5); _exit(0); }
  R(poll(&f, 1, -1));
  R(enter(r.fd, 0, 1, IORING_ENTER_GETEVENTS));
  show(&r, b);
  CHECK(waitpid(c, &st, 0) == c);
  // Cancelled.
  ask(&r, IORING_OP_READ, p[0], b, 8, 0);
  R(enter(r.fd, 1, 0, 0));
  ask(&r, IORING_OP_ASYNC_CANCEL, -1, (void *)(uint64_t)r.sent, 0, 0);
  R(enter(r.fd, 1, 2, IORING_ENTER_GETEVENTS));
  struct io_uring_cqe x, y;
  CHECK(take(&r, &x) && take(&r, &y)); // in either order
  if (x.user_data > y.user_data) { struct io_uring_cqe t = x; x = y; y = t; }
  say("cancelled: %s", res(x.res)); say(" by %s\n", res(y.res));
  say("nothing to cancel: %s\n", res(ONE(&r, IORING_OP_ASYNC_CANCEL, -1, (void *)777, 0, 0)));
  // A nonblocking file is waited for as well.
  fcntl(p[0], F_SETFL, O_NONBLOCK);
  ask(&r, IORING_OP_READ, p[0], b, 8, 0);
  R(enter(r.fd, 1, 0, 0));
  CHECK(write(p[1], "later", 5) == 5);
  R(enter(r.fd, 0, 1, IORING_ENTER_GETEVENTS));
  show(&r, b);
  fcntl(p[0], F_SETFL, 0);
  // Over several pages of a registered buffer.
  char *big = anon(3 * PG), *from = anon(2 * PG);
  memset(from, 'f', 2 * PG);
  CHECK(!reg(r.fd, IORING_REGISTER_BUFFERS, &(struct iovec){big, 3 * PG}, 1) && write(p[1], from, 2 * PG) == 2 * PG);
  say("fixed, of a pipe: %d", ONE(&r, IORING_OP_READ_FIXED, p[0], big + 10, 3 * PG - 10, 0));
  say(" %c\n", big[2 * PG + 9]);
  ask(&r, IORING_OP_READ, p[0], b, 8, 0);
  R(enter(r.fd, 1, 0, 0)); // waits for ever: goes with the ring
  close_ring(&r);
  close(p[0]), close(p[1]);
}
static void timeouts(void) {
  struct ring r;
  open_ring(&r, 8, 0);
  struct timespec t = ms(5), far = {.tv_sec = 1000};
  say("timeout: %s\n", res(ONE(&r, IORING_OP_TIMEOUT, -1, &t, 1, 0)));
  ask(&r, IORING_OP_TIMEOUT, -1, &far, 1, 2), ask(&r, IORING_OP_NOP, 0, 0, 0, 0), ask(&r, IORING_OP_NOP, 0, 0, 0, 0);
  R(enter(r.fd, 3, 3, IORING_ENTER_GETEVENTS));
  show(&r, "after two");
  ask(&r, IORING_OP_TIMEOUT, -1, &far, 1, 0);
  R(enter(r.fd, 1, 0, 0));
  ask(&r, IORING_OP_TIMEOUT_REMOVE, -1, (void *)(uint64_t)r.sent, 0, 0);
  R(enter(r.fd, 1, 2, IORING_ENTER_GETEVENTS));
  struct io_uring_cqe x, y;
  CHECK(take(&r, &x) && take(&r, &y));
  if (x.user_data > y.user_data) { struct io_uring_cqe z = x; x = y; y = z; }
  say("removed: %s", res(x.res)); say(" by %s\n", res(y.res));
  say("not there: %s\n", res(ONE(&r, IORING_OP_TIMEOUT_REMOVE, -1, (void *)777, 0, 0)));
  say("two times: %s\n", res(ONE(&r, IORING_OP_TIMEOUT, -1, &t, 2, 0)));
  say("no time: %s\n", res(ONE(&r, IORING_OP_TIMEOUT, -1, (void *)8, 1, 0)));
  t.tv_sec = -1;
  say("long ago: %s\n", res(ONE(&r, IORING_OP_TIMEOUT, -1, &t, 1, 0)));
  clock_gettime(CLOCK_MONOTONIC, &t);
  ask(&r, IORING_OP_TIMEOUT, -1, &t, 1, 0)->timeout_flags = IORING_TIMEOUT_ABS;
  say("just now: %s\n", res(one(&r)));
  // poll hears of it.
  t = ms(5);
  struct pollfd f = {r.fd, POLLIN, 0};
  ask(&r, IORING_OP_TIMEOUT, -1, &t, 1, 0);
  R(enter(r.fd, 1, 0, 0));
  R(poll(&f, 1, -1));
  show(&r, "polled");
  // Waiting has an end of its own.
  struct io_uring_getevents_arg a = {.ts = (uint64_t)&t};
  R(syscall(SYS_io_uring_enter, r.fd, 0, 1, IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG, &a, sizeof a));
  R(syscall(SYS_io_uring_enter, r.fd, 0, 1, IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG, &a, 8));
  struct sigaction sa = {.sa_handler = on_alarm};
  sigaction(SIGALRM, &sa, 0);
  ualarm(5000, 0);
  R(enter(r.fd, 0, 1, IORING_ENTER_GETEVENTS));
  ask(&r, IORING_OP_TIMEOUT, -1, &far, 1, 0);
  R(enter(r.fd, 1, 0, 0));
  close_ring(&r);
}
static void too_many(void) {
  struct ring r;
  open_ring(&r, 4, 0);
  for (int k = 0; k < 3; k++) {
    for (int i = 0; i < 4; i++) ask(&r, IORING_OP_NOP, 0, 0, 0, 0);
    R(enter(r.fd, 4, 0, 0));
  }
  say("overflown: %d\n", !!(SQ(&r, flags) & IORING_SQ_CQ_OVERFLOW));
  int n = show(&r, "what fits");
  R(enter(r.fd, 0, 1, IORING_ENTER_GETEVENTS));
  n += show(&r, "the rest");
  say("%d, overflown: %d, lost: %u\n", n, !!(SQ(&r, flags) & IORING_SQ_CQ_OVERFLOW), CQ(&r, overflow));
  // A wild head loses completions, and nothing else.
  CQ(&r, head) = 0x80000000;
  for (int i = 0; i < 4; i++) ask(&r, IORING_OP_NOP, 0, 0, 0, 0);
  enter(r.fd, 4, 0, 0);
  CQ(&r, head) = CQ(&r, tail);
  close_ring(&r);
}
// As `enter` for completions, but not for ever.
static long enter_for_20s(int fd, unsigned n, unsigned least) {
  struct timespec t = {.tv_sec = 20};
  struct io_uring_getevents_arg a = {.ts = (uint64_t)&t};
  return syscall(SYS_io_uring_enter, fd, n, least, IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG, &a, sizeof a);
}
static void at_once(void) { // what a call would have to wait for half-way makes nobody wait in the kernel
  struct ring r;
  int p[2], s[2];
  char *b = anon(MB);
  open_ring(&r, 8, 0);
  alarm(60);
  CHECK(!pipe(p));
  say("more than a pipe holds: %d\n", ONE(&r, IORING_OP_WRITE, p[1], b, 128 * KB, 0));
  ask(&r, IORING_OP_WRITE, p[1], b, 5000, 0);
  R(enter(r.fd, 1, 0, 0));
  show(&r, "to a full one");
  CHECK(read(p[0], b, 64 * KB) == 64 * KB);
  R(enter(r.fd, 0, 1, IORING_ENTER_GETEVENTS));
  show(&r, "to one with room");
  CHECK(read(p[0], b, 64 * KB) == 5000);
  CHECK(!reg(r.fd, IORING_REGISTER_BUFFERS, &(struct iovec){b, MB}, 1));
  say("of a registered buffer: %d\n", ONE(&r, IORING_OP_WRITE_FIXED, p[1], b, 128 * KB, 0));
  CHECK(!socketpair(AF_UNIX, SOCK_STREAM, 0, s));
  int n = ONE(&r, IORING_OP_WRITE, s[0], b, MB, 0);
  CHECK(n > 0 && n < (int)MB);
  close(s[0]), close(s[1]);
  // A message stays one, whatever pages it lies in.
  CHECK(!socketpair(AF_UNIX, SOCK_SEQPACKET, 0, s));
  say("a message: %d", ONE(&r, IORING_OP_WRITE_FIXED, s[0], b + 100, 3 * PG, 0));
  say(" %d\n", ONE(&r, IORING_OP_READ_FIXED, s[1], b + 64 * KB + 10, 16 * KB, 0));
  close(s[0]), close(s[1]);
  // Ready to be written, but not this.
  int e = eventfd(0, 0);
  uint64_t count = -5ul, five = 5;
  CHECK(write(e, &count, 8) == 8);
  ask(&r, IORING_OP_WRITE, e, &five, 8, 0);
  R(enter(r.fd, 1, 0, 0));
  show(&r, "too much to count");
  CHECK(read(e, &count, 8) == 8 && count == -5ul);
  R(enter(r.fd, 0, 1, IORING_ENTER_GETEVENTS));
  show(&r, "counted");
  say("in two pages: %d", ONE(&r, IORING_OP_READ_FIXED, e, b + PG - 4, 8, 0));
  memcpy(&count, b + PG - 4, 8);
  say(" %lu\n", count);
  close(p[0]), close(p[1]), close(e);
  alarm(0);
  close_ring(&r);
  munmap(b, MB);
}
static void shared(void) { // by two processes, both of which wait for it
  for (int round = 0; round < 10; round++) {
    struct ring r;
    int p[2], st;
    char b[8] = "";
    open_ring(&r, 8, 0);
    CHECK(!pipe(p));
    ask(&r, IORING_OP_READ, p[0], b, 8, 0);
    CHECK(enter(r.fd, 1, 0, 0) == 1);
    pid_t me = getpid(), child = fork();
    if (!child) _exit(enter_for_20s(r.fd, 0, 1) != 0);
    until_asleep(child);
    pid_t writer = fork();
    if (!writer) { until_asleep(me); _exit(write(p[1], "hello", 5) != 5); }
    CHECK(enter_for_20s(r.fd, 0, 1) == 0 && !strcmp(b, "hello"));
    CHECK(waitpid(child, &st, 0) == child && !st && waitpid(writer, &st, 0) == writer && !st);
    close(p[0]), close(p[1]);
    close_ring(&r);
  }
  // The one who asked has ended: the other hears it when there is something to read.
  int p[2], told[2], res = 0;
  CHECK(!pipe(p) && !pipe(told));
  pid_t c = fork();
  if (!c) {
    struct ring r;
    struct io_uring_cqe e;
    open_ring(&r, 8, 0);
    ask(&r, IORING_OP_READ, p[0], anon(PG), 8, 0);
    CHECK(enter(r.fd, 1, 0, 0) == 1);
    pid_t heir = fork();
    if (heir) { until_asleep(heir); _exit(0); }
    CHECK(enter_for_20s(r.fd, 0, 1) == 0 && take(&r, &e) && write(told[1], &e.res, 4) == 4);
    _exit(0);
  }
  close(told[1]);
  CHECK(waitpid(c, 0, 0) == c && write(p[1], "x", 1) == 1 && read(told[0], &res, 4) == 4);
  say("of one who has ended: %s\n", res == -ECANCELED ? "ECANCELED" : "?");
  close(p[0]), close(p[1]), close(told[0]);
}
static struct ring both;
static void *waiter(void *go) {
  (void)go;
  CHECK(enter_for_20s(both.fd, 0, 1) == 0);
  return 0;
}
static void cancelled(void) { // while it is being done: the completion of who cancels says what became of it
  int p[2];
  CHECK(!pipe(p) && fcntl(p[1], F_SETPIPE_SZ, MB) == (int)MB);
  char *from = anon(MB);
  memset(from, 'x', MB);
  for (int round = 0; round < 20; round++) {
    pthread_t t;
    volatile char *to = anon(MB);
    open_ring(&both, 8, 0);
    ask(&both, IORING_OP_READ, p[0], (char *)to, MB, 0);
    CHECK(enter(both.fd, 1, 0, 0) == 1 && !pthread_create(&t, 0, waiter, 0));
    CHECK(write(p[1], from, MB) == (ssize_t)MB);
    while (*to != 'x') sched_yield(); // the other thread copies now
    ask(&both, IORING_OP_ASYNC_CANCEL, -1, (void *)1, 0, 0);
    CHECK(enter(both.fd, 1, 2, IORING_ENTER_GETEVENTS) == 1);
    struct io_uring_cqe a, b;
    CHECK(take(&both, &a) && take(&both, &b));
    ask(&both, IORING_OP_NOP, 0, 0, 0, 0); // for him who waits
    CHECK(enter(both.fd, 1, 0, 0) == 1 && !pthread_join(t, 0));
    // Nothing there any more: then it has ended before.
    if (a.user_data == 1) CHECK(a.res == (int)MB && b.user_data == 2 && (b.res == -ENOENT || b.res == -EALREADY));
    else CHECK(a.user_data == 2 && a.res == -EALREADY && b.user_data == 1 && b.res == (int)MB);
    munmap((char *)to, MB);
    close_ring(&both);
  }
  close(p[0]), close(p[1]);
  munmap(from, MB);
}
enum { GO = 100, STAY = 500 };
static struct ring go[GO], stay[STAY];
static void *closer(void *from) {
  while (!CQ(&stay[0], tail)) ; // they end now
  for (int i = (int)(long)from; i < GO; i += 2) close(go[i].fd);
  return 0;
}
static void many_timeouts(void) { // while other rings go
  struct timespec far = {.tv_sec = 1000};
  for (int round = 0; round < 5; round++) {
    for (int i = 0; i < GO; i++) {
      open_ring(&go[i], 1, 0);
      ask(&go[i], IORING_OP_TIMEOUT, -1, &far, 1, 0);
      CHECK(enter(go[i].fd, 1, 0, 0) == 1);
    }
    uint64_t due = mono_ns() + 100 * 1000000ul;
    struct timespec t = {due / 1000000000, due % 1000000000};
    for (int i = 0; i < STAY; i++) {
      open_ring(&stay[i], 1, 0);
      ask(&stay[i], IORING_OP_TIMEOUT, -1, &t, 1, 0)->timeout_flags = IORING_TIMEOUT_ABS;
      CHECK(enter(stay[i].fd, 1, 0, 0) == 1);
    }
    // One of them is not on the CPU that ends the timeouts.
    pthread_t other;
    CHECK(!pthread_create(&other, 0, closer, (void *)1));
    closer(0);
    CHECK(!pthread_join(other, 0));
    for (int i = 0; i < STAY; i++) {
      struct io_uring_cqe e;
      CHECK(enter_for_20s(stay[i].fd, 0, 1) == 0 && take(&stay[i], &e) && e.res == -ETIME);
      close_ring(&stay[i]);
    }
    for (int i = 0; i < GO; i++) munmap(go[i].mem, go[i].size), munmap(go[i].sqes, 64);
  }
}
// IORING_SQ_TASKRUN says whether there is something to do: also when one thread calls a request while another looks at it.
enum { ROUNDS = 5000 };
static unsigned came;
static void meet(void) { // of two; at once, so that both do the next thing at the same time
  unsigned n = (__atomic_fetch_add(&came, 1, __ATOMIC_SEQ_CST) | 1) + 1;
  while ((int)(__atomic_load_n(&came, __ATOMIC_SEQ_CST) - n) < 0) sched_yield();
}
static const uint64_t zero = 0; // written to an eventfd it calls who waits for it to be readable, which it is not
static void *caller(void *fd) {
  for (int i = 0; i < ROUNDS; i++) {
    meet();
    CHECK(write((int)(long)fd, &zero, 8) == 8);
    meet();
  }
  return 0;
}
static void taskrun(void) {
  struct ring r;
  pthread_t t;
  uint64_t b;
  int e = eventfd(0, 0);
  open_ring(&r, 1, IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG);
  ask(&r, IORING_OP_READ, e, &b, 8, 0);
  CHECK(e >= 0 && enter(r.fd, 1, 0, 0) == 1 && !pthread_create(&t, 0, caller, (void *)(long)e));
  for (int i = 0; i < ROUNDS; i++) {
    CHECK(write(e, &zero, 8) == 8);
    meet();
    CHECK(enter(r.fd, 0, 0, IORING_ENTER_GETEVENTS) == 0);
    meet();
    CHECK(enter(r.fd, 0, 0, IORING_ENTER_GETEVENTS) == 0);
    CHECK(!(SQ(&r, flags) & IORING_SQ_TASKRUN));
  }
  CHECK(!pthread_join(t, 0) && !done(&r));
  // Another calls it: this one hears of it by the flag alone.
  pid_t c = fork();
  if (!c) _exit(write(e, &(uint64_t){5}, 8) != 8);
  while (!(SQ(&r, flags) & IORING_SQ_TASKRUN) && !done(&r)) sched_yield();
  R(enter(r.fd, 0, 0, IORING_ENTER_GETEVENTS));
  int st;
  CHECK(done(&r) == 1 && b == 5 && !(SQ(&r, flags) & IORING_SQ_TASKRUN) && waitpid(c, &st, 0) == c && !st);
  close(e);
  close_ring(&r);
}
static void *four(void *r) {
  CHECK(enter_for_20s(((struct ring *)r)->fd, 0, 4) == 0);
  return 0;
}
static void overflow(struct ring *r) {
  for (int i = 0; i < 12; i++) {
    ask(r, IORING_OP_NOP, 0, 0, 0, 0);
    if (i % 4 == 3) CHECK(enter(r->fd, 4, 0, 0) == 4);
  }
  CHECK(SQ(r, flags) & IORING_SQ_CQ_OVERFLOW);
}
// What ends a wait for more completions than there are.
static void ends(void) {
  struct ring r;
  int p[2], st;
  char b[8] = "";
  struct timespec far = {.tv_sec = 1000}, soon = ms(1);
  struct io_uring_getevents_arg a = {.ts = (uint64_t)&soon};
  pid_t me = getpid();
  CHECK(!pipe(p));
  open_ring(&r, 8, 0);
  alarm(60);
  CHECK(!sigaction(SIGUSR1, &(struct sigaction){.sa_handler = on_alarm}, 0));
  // A timeout that is counted down, and one whose time has come.
  ask(&r, IORING_OP_TIMEOUT, -1, &far, 1, 1), ask(&r, IORING_OP_READ, p[0], b, 8, 0);
  R(enter(r.fd, 2, 0, 0));
  pid_t c = fork();
  if (!c) { until_asleep(me); _exit(write(p[1], "hello", 5) != 5); }
  R(enter(r.fd, 0, 4, IORING_ENTER_GETEVENTS));
  show(&r, b);
  CHECK(waitpid(c, &st, 0) == c && !st);
  c = fork();
  if (!c) _exit(enter(r.fd, 0, 4, IORING_ENTER_GETEVENTS) != 0);
  until_asleep(c);
  ask(&r, IORING_OP_TIMEOUT, -1, &soon, 1, 0);
  R(enter(r.fd, 1, 0, 0));
  CHECK(waitpid(c, &st, 0) == c && !st);
  show(&r, "timeout");
  // One that is removed does not.
  ask(&r, IORING_OP_TIMEOUT, -1, &far, 1, 0);
  R(enter(r.fd, 1, 0, 0));
  c = fork();
  if (!c) _exit(enter(r.fd, 0, 3, IORING_ENTER_GETEVENTS) != 0 || CQ(&r, tail) - CQ(&r, head) < 3);
  until_asleep(c);
  ask(&r, IORING_OP_TIMEOUT_REMOVE, -1, (void *)(uint64_t)r.sent, 0, 0);
  R(enter(r.fd, 1, 0, 0));
  until_asleep(c);
  ask(&r, IORING_OP_NOP, 0, 0, 0, 0);
  R(enter(r.fd, 1, 0, 0));
  CHECK(waitpid(c, &st, 0) == c && !st);
  CQ(&r, head) = CQ(&r, tail);
  // The end of the time, and a signal: that is said if there is nothing to take.
  ask(&r, IORING_OP_NOP, 0, 0, 0, 0);
  R(enter(r.fd, 1, 0, 0));
  R(syscall(SYS_io_uring_enter, r.fd, 0, 4, IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG, &a, sizeof a));
  for (int i = 0; i < 2; i++) {
    c = fork();
    if (!c) { until_asleep(me); _exit(kill(me, SIGUSR1)); }
    R(enter(r.fd, 0, 4, IORING_ENTER_GETEVENTS));
    CHECK(waitpid(c, &st, 0) == c && !st);
    show(&r, "a signal");
  }
  R(syscall(SYS_io_uring_enter, r.fd, 0, 4, IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG, &a, sizeof a));
  soon.tv_nsec = -1;
  R(syscall(SYS_io_uring_enter, r.fd, 0, 0, IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG, &a, sizeof a));
  R(syscall(SYS_io_uring_enter, r.fd, 0, 1, IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG, &a, sizeof a));
  soon.tv_sec = -1;
  R(syscall(SYS_io_uring_enter, r.fd, 0, 1, IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG, &a, sizeof a));
  a.ts = 8;
  R(syscall(SYS_io_uring_enter, r.fd, 0, 1, IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG, &a, sizeof a));
  R(enter(r.fd, 0, 0, IORING_ENTER_SQ_WAIT | IORING_ENTER_SQ_WAKEUP));
  alarm(0);
  close(p[0]), close(p[1]);
  close_ring(&r);
}
static void backlog(void) { // who slept through what there was hears of what had no room
  for (int round = 0; round < 50; round++) {
    struct ring r;
    pthread_t t;
    open_ring(&r, 4, 0);
    CHECK(!pthread_create(&t, 0, four, &r));
    for (int i = 0; i < round % 4; i++) sched_yield();
    overflow(&r);
    CQ(&r, head) = CQ(&r, tail);
    CHECK(!pthread_join(t, 0));
    close_ring(&r);
  }
  struct ring r;
  struct epoll_event e = {EPOLLIN | EPOLLET};
  int p = epoll_create1(0);
  open_ring(&r, 4, 0);
  CHECK(p >= 0 && !epoll_ctl(p, EPOLL_CTL_ADD, r.fd, &e));
  R(epoll_wait(p, &e, 1, 0));
  overflow(&r);
  R(epoll_wait(p, &e, 1, 0));
  R(epoll_wait(p, &e, 1, 0));
  CQ(&r, head) = CQ(&r, tail);
  R(enter(r.fd, 0, 0, IORING_ENTER_GETEVENTS));
  R(epoll_wait(p, &e, 1, 0));
  // New requests are done nevertheless.
  overflow(&r), overflow(&r);
  int n = 0;
  do n += done(&r), CQ(&r, head) = CQ(&r, tail), enter(r.fd, 0, 0, IORING_ENTER_GETEVENTS);
  while (done(&r));
  say("%d in all, lost: %u\n", n, CQ(&r, overflow));
  close(p);
  close_ring(&r);
}
static unsigned long seed = 1;
static unsigned rnd(void) { seed = seed * 6364136223846793005ul + 1442695040888963407ul; return (unsigned)(seed >> 33); }
static void nonsense(void) { // of this kernel only: a host has operations that do harm
  for (int round = 0; round < 40; round++) {
    pid_t c = fork();
    if (!c) {
      struct ring r;
      seed = round + 1;
      open_ring(&r, 1 + rnd() % 64, round & 1 ? IORING_SETUP_SUBMIT_ALL : 0);
      int fds[4] = {file(), r.fd, -1, -1};
      CHECK(!pipe(fds + 2));
      char *p = anon(16 * PG);
      struct iovec v[2] = {{p, 4 * PG}, {p + 5 * PG, 8 * PG}};
      alarm(20);
      for (int i = 0; i < 300; i++) {
        unsigned *s = (unsigned *)r.sqes + rnd() % (16 * r.p.sq_entries);
        switch (rnd() % 12) {
        case 0: *s = rnd(); break;
        case 1: ((unsigned *)r.mem)[rnd() % (r.size / 4)] = rnd(); break;
        case 2: SQ(&r, tail) = SQ(&r, tail) + rnd() % 100 - 3; break;
        case 3: CQ(&r, head) = rnd() % 3 ? CQ(&r, tail) : rnd(); break;
        case 4: reg(r.fd, rnd() % 10, rnd() % 4 ? (void *)v : p + rnd() % (20 * PG), rnd() % 4); break;
        case 5: munmap(p + rnd() % 16 * PG, PG); break;
        case 6: mmap(p + rnd() % 16 * PG, PG, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0); break;
        case 7: if (fcntl(fds[3], F_SETFL, O_NONBLOCK) || write(fds[3], p, rnd() % 5000) < 0) {} break;
        default: {
          struct io_uring_sqe *q = (struct io_uring_sqe *)r.sqes + (SQ(&r, tail) & (r.p.sq_entries - 1));
          *q = (struct io_uring_sqe){.opcode = rnd() % 25, .fd = fds[rnd() % 4], .addr = rnd() % 8 ? (uint64_t)p + rnd() % (16 * PG) : rnd(), .len = rnd() % 20000, .off = rnd() % 3 ? rnd() % 9999 : -1u, .user_data = rnd() % 4, .buf_index = rnd() % 3 ? 0 : rnd() % 3};
          if (!(rnd() % 16)) q->flags = (uint8_t)rnd();
          ((volatile unsigned *)(r.mem + r.p.sq_off.array))[SQ(&r, tail) & (r.p.sq_entries - 1)] = SQ(&r, tail) & (r.p.sq_entries - 1);
          SQ(&r, tail) = SQ(&r, tail) + 1;
          struct timespec soon = {.tv_nsec = 100000};
          struct io_uring_getevents_arg a = {.ts = (uint64_t)&soon};
          syscall(SYS_io_uring_enter, r.fd, rnd() % 8, rnd() % 3, rnd() % 2 ? IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG : 0, &a, sizeof a);
        }
        }
      }
      _exit(0);
    }
    int st;
    CHECK(waitpid(c, &st, 0) == c && (!st || st == SIGALRM || st == SIGSEGV || st == SIGBUS));
  }
}
static void endless(void) { // of this kernel only: Linux charges them to the program's group
  struct ring r;
  int n = 0;
  open_ring(&r, 64, 0);
  do for (int i = 0; i < 64; i++) ask(&r, IORING_OP_NOP, 0, 0, 0, 0);
  while (n++ < 1000 && enter(r.fd, 64, 0, 0) == 64);
  CHECK(n < 100 && errno == EBUSY);
  CQ(&r, head) = CQ(&r, tail);
  CHECK(enter(r.fd, 64, 0, 0) == 64);
  close_ring(&r);
}
static void ours(void) {
  struct utsname u;
  uname(&u);
  if (!strstr(u.version, "Pinfold")) return;
  endless();
  nonsense();
  FILE *f = fopen("/proc/vmstat", "r");
  char line[128];
  long got = -1, gone = -2;
  while (fgets(line, sizeof line, f)) { sscanf(line, "nr_foll_pin_acquired %ld", &got); sscanf(line, "nr_foll_pin_released %ld", &gone); }
  fclose(f);
  CHECK(got == gone);
}
// The rest is about disks.
#define DEEP 32
static int d, slow;
static long figure(const char *name) { return kib("/sys/kernel/debug/block", name); }
// DEEP reads of `len` from `at` on; they are named by their number, from `r->sent + 1` on.
static void begin(struct ring *r, int op, int fd, char *p, size_t len, off_t at) {
  r->sent = 0;
  for (int i = 0; i < DEEP; i++) ask(r, op, fd, p + i * len, (unsigned)len, at + i * len);
  CHECK(enter(r->fd, DEEP, 0, 0) == DEEP);
}
static void finish(struct ring *r, char *p, size_t len, off_t at) {
  struct io_uring_cqe c;
  char seen[DEEP + 1] = {0};
  CHECK(enter(r->fd, 0, DEEP, IORING_ENTER_GETEVENTS) == 0);
  for (int i = 0; i < DEEP; i++) {
    CHECK(take(r, &c) && c.user_data >= 1 && c.user_data <= DEEP && !seen[c.user_data]++ && c.res == (int)len);
    size_t k = c.user_data - 1;
    CHECK(is_pattern(p + k * len, at + k * len, len));
  }
  CHECK(!done(r));
}
static void drop_all(struct ring *r) { // whatever came of them
  struct io_uring_cqe c;
  CHECK(enter(r->fd, 0, DEEP, IORING_ENTER_GETEVENTS) == 0);
  for (int i = 0; i < DEEP; i++) CHECK(take(r, &c));
}
static void until_unpinned(void) { while (pins_held()) sched_yield(); }
static void *loader(void *n) {
  uint64_t at = 32 * MB + (long)n * MB;
  struct ring r;
  struct io_uring_cqe c;
  char *p = anon(16 * PG);
  open_ring(&r, 64, 0);
  CHECK(!reg(r.fd, IORING_REGISTER_BUFFERS, &(struct iovec){p, 16 * PG}, 1));
  for (uint64_t g = 1; g <= 40; g++) {
    int fixed = g & 1;
    for (size_t k = 0; k < 16 * PG; k += 16) memcpy(p + k, (uint64_t[]){at + k, g}, 16);
    for (int w = 1; w >= 0; w--) {
      int op = fixed ? w ? IORING_OP_WRITE_FIXED : IORING_OP_READ_FIXED : w ? IORING_OP_WRITE : IORING_OP_READ;
      for (int i = 0; i < 16; i++) ask(&r, op, d, p + i * PG, PG, at + i * PG);
      CHECK(enter(r.fd, 16, 16, IORING_ENTER_GETEVENTS) == 16);
      for (int i = 0; i < 16; i++) CHECK(take(&r, &c) && c.res == (int)PG);
      if (w) memset(p, 0, 16 * PG);
    }
    for (size_t k = 0; k < 16 * PG; k += 16) CHECK(!memcmp(p + k, (uint64_t[]){at + k, g}, 16));
  }
  close_ring(&r);
  return 0;
}
static void straight(void) { // nothing is copied
  struct ring r;
  char *p = anon(1024 * PG), *q = p + 512 * PG;
  open_ring(&r, 64, 0);
  CHECK(!reg(r.fd, IORING_REGISTER_BUFFERS, (struct iovec[]){{p + 512, 600 * PG}, {p, 512 * PG}}, 2));
  long copies = figure("copied"), moved = figure("direct");
  CHECK(ONE(&r, IORING_OP_READ, d, q, 64 * PG, 0) == 64 * PG && is_pattern(q, 0, 64 * PG));
  CHECK(ONE(&r, IORING_OP_READ, d, q + 512, 200 * PG, 512) == 200 * PG && is_pattern(q + 512, 512, 200 * PG));
  struct iovec v[3] = {{p + 3 * PG + 512, 1024}, {p + 20 * PG, 9 * PG}, {p, PG}};
  CHECK(ONE(&r, IORING_OP_READV, d, v, 3, 7 * PG) == 1024 + 10 * PG);
  CHECK(is_pattern(v[0].iov_base, 7 * PG, 1024) && is_pattern(v[1].iov_base, 7 * PG + 1024, 9 * PG) && is_pattern(p, 7 * PG + 1024 + 9 * PG, PG));
  // Registered: over the border of what is pinned at once, too.
  memset(p, 0, 1024 * PG);
  CHECK(ONE(&r, IORING_OP_READ_FIXED, d, p + 512, 600 * PG, 3 * PG) == 600 * PG && is_pattern(p + 512, 3 * PG, 600 * PG) && !p[511] && !p[600 * PG + 512]);
  ask(&r, IORING_OP_READ_FIXED, d, p + 100 * PG, PG, 0)->buf_index = 1;
  CHECK(one(&r) == (int)PG && is_pattern(p + 100 * PG, 0, PG));
  // At the file's own position, and with what is waited for.
  CHECK(lseek(d, MB, SEEK_SET) == (off_t)MB && ONE(&r, IORING_OP_READ_FIXED, d, p + 512, 2 * PG, -1) == 2 * PG && is_pattern(p + 512, MB, 2 * PG));
  CHECK(lseek(d, 0, SEEK_CUR) == (off_t)MB + 2 * (off_t)PG);
  ask(&r, IORING_OP_WRITE_FIXED, d, p + 512, 2 * PG, MB)->rw_flags = RWF_DSYNC;
  CHECK(one(&r) == 2 * PG);
  CHECK(figure("copied") == copies && figure("direct") == moved + 1024 + 879 * (long)PG);
  // As O_DIRECT will have it.
  CHECK(ONE(&r, IORING_OP_READ, d, p + 1, 512, 0) == -EINVAL && ONE(&r, IORING_OP_READ, d, p, 511, 0) == -EINVAL);
  CHECK(ONE(&r, IORING_OP_READ_FIXED, d, p + 513, 512, 0) == -EINVAL && ONE(&r, IORING_OP_READ_FIXED, d, p + 512, 511, 0) == -EINVAL);
  CHECK(ONE(&r, IORING_OP_READ_FIXED, d, p + 512, 512, 1) == -EINVAL && ONE(&r, IORING_OP_WRITE_FIXED, d, p + 520, 512, 0) == -EINVAL);
  CHECK(ONE(&r, IORING_OP_READ, d, anon_at(BASE, PG, PROT_NONE), PG, 0) == -EFAULT);
  CHECK(ONE(&r, IORING_OP_READ, d, anon_at(BASE + 4 * PG, PG, PROT_READ), PG, 0) == -EFAULT);
  CHECK(ONE(&r, IORING_OP_READ_FIXED, d, p + 512, PG, 64 * MB) == 0 && ONE(&r, IORING_OP_WRITE_FIXED, d, p + 512, PG, 64 * MB) == -ENOSPC);
  CHECK(ONE(&r, IORING_OP_READ_FIXED, d, p + 512, 4 * PG, 64 * MB - PG) == (int)PG && is_pattern(p + 512, 64 * MB - PG, PG));
  CHECK(figure("copied") == copies);
  close_ring(&r);
  munmap(p, 1024 * PG);
}
static void disk(char **argv) {
  CHECK(!mount("none", "/sys/kernel/debug", "debugfs", 0, 0) || errno == EBUSY);
  d = open(argv[2], O_RDWR | O_DIRECT), slow = open(argv[3], O_RDONLY | O_DIRECT);
  CHECK(d >= 0 && slow >= 0);
  straight();
  struct ring r;
  struct io_uring_cqe c;
  char *p = anon(DEEP * 64 * PG);
  open_ring(&r, 64, 0);
  for (int i = 0; i < 8; i++) { begin(&r, IORING_OP_READ, d, p, PG, i * MB); finish(&r, p, PG, i * MB); }
  // Several transfers each.
  begin(&r, IORING_OP_READ, d, p, 64 * PG, 0); finish(&r, p, 64 * PG, 0);
  // They are in flight while the call is back: a slow disk has not answered all of them yet.
  int seen = 0;
  for (int tries = 0; tries < 20 && !seen; tries++) {
    begin(&r, IORING_OP_READ, slow, p, 4 * PG, 0);
    seen = pins_held() > 0 && done(&r) < DEEP;
    struct pollfd f = {r.fd, POLLIN, 0};
    CHECK(poll(&f, 1, -1) == 1 && done(&r));
    finish(&r, p, 4 * PG, 0);
    CHECK(!pins_held());
  }
  CHECK(seen);
  // None of them can be called back.
  begin(&r, IORING_OP_READ, slow, p, PG, 0);
  ask(&r, IORING_OP_ASYNC_CANCEL, -1, (void *)(uint64_t)DEEP, 0, 0)->user_data = 77;
  CHECK(enter(r.fd, 1, DEEP + 1, IORING_ENTER_GETEVENTS) == 1);
  for (int i = 0; i <= DEEP; i++) CHECK(take(&r, &c) && c.res == (c.user_data == 77 ? -ENOENT : (int)PG));
  // BUG-5, BUG-6: each fills one half of a page while the process forks and writes the other.
  for (int round = 1; round <= 8; round++) {
    int fixed = round & 1;
    memset(p, 0, DEEP * PG);
    if (fixed) CHECK(!reg(r.fd, IORING_REGISTER_BUFFERS, &(struct iovec){p, DEEP * PG}, 1));
    for (int i = 0; i < DEEP; i++) ask(&r, fixed ? IORING_OP_READ_FIXED : IORING_OP_READ, slow, p + i * PG, PG / 2, round * MB + i * PG);
    CHECK(enter(r.fd, DEEP, 0, 0) == DEEP);
    // What is in flight keeps its pages.
    if (fixed) CHECK(!reg(r.fd, IORING_UNREGISTER_BUFFERS, 0, 0));
    pid_t child = fork();
    CHECK(child >= 0);
    if (!child) _exit(0);
    for (int i = 0; i < DEEP; i++) p[i * PG + PG - 1] = (char)round;
    drop_all(&r);
    for (int i = 0; i < DEEP; i++) CHECK(p[i * PG + PG - 1] == (char)round && is_pattern(p + i * PG, round * MB + i * PG, PG / 2));
    CHECK(waitpid(child, 0, 0) == child);
    until_unpinned();
  }
  // A child has the ring, too, and hears of what his parent asked; and the parent of what the child did.
  for (int i = 0; i < 2; i++) {
    pid_t child = fork();
    if (!child) {
      begin(&r, IORING_OP_READ, slow, p, PG, 0);
      if (i) finish(&r, p, PG, 0);
      _exit(0);
    }
    int st;
    CHECK(waitpid(child, &st, 0) == child && !st);
    if (!i) drop_all(&r);
  }
  // Memory that goes away meanwhile, a program that ends, one that runs another, a ring that is closed.
  begin(&r, IORING_OP_READ, slow, p, PG, 0);
  CHECK(!munmap(p, DEEP * PG));
  drop_all(&r);
  for (int how = 0; how < 8; how++) {
    pid_t child = fork();
    CHECK(child >= 0);
    if (!child) {
      struct ring mine;
      char *q = anon(DEEP * PG);
      open_ring(&mine, 64, 0);
      if (how & 1) CHECK(!reg(mine.fd, IORING_REGISTER_BUFFERS, &(struct iovec){q, DEEP * PG}, 1));
      begin(&mine, how & 1 ? IORING_OP_READ_FIXED : IORING_OP_READ, slow, q, PG, 0);
      if (how / 2 == 1) execl("/proc/self/exe", "uring", "none", (char *)0);
      if (how / 2 == 2) close_ring(&mine), until_unpinned();
      if (how / 2 == 3) close(slow), close_ring(&mine), munmap(q, DEEP * PG);
      _exit(0);
    }
    int st;
    CHECK(waitpid(child, &st, 0) == child && st == 0);
    until_unpinned();
  }
  // More than there is room for: they wait for it.
  struct ring small;
  memset(&small, 0, sizeof small);
  open_ring(&small, 4, 0);
  int n = 0;
  p = anon(16 * PG);
  for (int k = 0; k < 3; k++) {
    for (int i = 0; i < 4; i++) ask(&small, IORING_OP_READ, slow, p + i * PG, PG, i * PG);
    CHECK(enter(small.fd, 4, 0, 0) == 4);
  }
  while (!(SQ(&small, flags) & IORING_SQ_CQ_OVERFLOW)) sched_yield();
  until_unpinned();
  while (n < 12) { CHECK(enter(small.fd, 0, 1, IORING_ENTER_GETEVENTS) == 0); for (; take(&small, &c); n++) CHECK(c.res == (int)PG); }
  close_ring(&small);
  // What others have read before is not what they read afterwards.
  int cached = open(argv[2], O_RDONLY);
  char old[PG], fresh[PG];
  CHECK(!reg(r.fd, IORING_REGISTER_BUFFERS, &(struct iovec){p, PG}, 1));
  for (int fixed = 0; fixed < 2; fixed++) {
    int op = fixed ? IORING_OP_WRITE_FIXED : IORING_OP_WRITE;
    CHECK(pread(cached, old, PG, 40 * MB) == (ssize_t)PG && is_pattern(old, 40 * MB, PG));
    memset(p, 7, PG);
    CHECK(ONE(&r, op, d, p, PG, 40 * MB) == (int)PG);
    CHECK(pread(cached, fresh, PG, 40 * MB) == (ssize_t)PG && !memcmp(fresh, p, PG));
    memcpy(p, old, PG);
    CHECK(ONE(&r, op, d, p, PG, 40 * MB) == (int)PG);
    CHECK(pread(cached, fresh, PG, 40 * MB) == (ssize_t)PG && !memcmp(fresh, old, PG));
  }
  close(cached);
  pthread_t t[4];
  for (long i = 0; i < 4; i++) CHECK(!pthread_create(&t[i], 0, loader, (void *)i));
  for (int i = 0; i < 4; i++) pthread_join(t[i], 0);
  // Taken without a call, by whoever looks at the ring.
  ask(&r, IORING_OP_READ, d, p + PG, PG, 0);
  CHECK(enter(r.fd, 1, 0, 0) == 1);
  while (!take(&r, &c)) ;
  CHECK(c.res == (int)PG && is_pattern(p + PG, 0, PG));
  close_ring(&r);
  until_unpinned();
  say("ok\n");
}
static void bad(const char *name) {
  struct ring r;
  struct io_uring_cqe c;
  int fd = open(name, O_RDWR | O_DIRECT);
  char *p = anon(DEEP * PG);
  CHECK(fd >= 0);
  open_ring(&r, 64, 0);
  CHECK(!reg(r.fd, IORING_REGISTER_BUFFERS, &(struct iovec){p, DEEP * PG}, 1));
  for (int fixed = 0; fixed < 2; fixed++) {
    memset(p, 0, DEEP * PG);
    begin(&r, fixed ? IORING_OP_READ_FIXED : IORING_OP_READ, fd, p, PG, MB - 16 * PG);
    CHECK(enter(r.fd, 0, DEEP, IORING_ENTER_GETEVENTS) == 0);
    while (take(&r, &c)) {
      size_t k = c.user_data - 1, at = MB - 16 * PG + k * PG;
      CHECK(c.res == (at == MB ? -EIO : (int)PG) && (at == MB || is_pattern(p + k * PG, at, PG)));
    }
  }
  close_ring(&r);
  until_unpinned();
  say("ok\n");
}
static void lost(const char *name, const char *other) {
  struct ring r;
  struct io_uring_cqe c;
  int b = open(name, O_RDONLY | O_DIRECT), o = open(other, O_RDONLY | O_DIRECT);
  char *p = anon(DEEP * 64 * PG);
  CHECK(b >= 0 && o >= 0);
  open_ring(&r, 64, 0);
  begin(&r, IORING_OP_READ, b, p, 64 * PG, 0);
  CHECK(enter(r.fd, 0, DEEP, IORING_ENTER_GETEVENTS) == 0);
  // A device that is reset may end what it has, well or not.
  for (int i = 0; i < DEEP; i++) {
    CHECK(take(&r, &c));
    size_t at = (c.user_data - 1) * 64 * PG;
    CHECK(c.res == -EIO || (c.res == 64 * (int)PG && is_pattern(p + at, at, 64 * PG)));
  }
  CHECK(!pins_held());
  CHECK(ONE(&r, IORING_OP_READ, b, p, PG, 0) == -EIO);
  begin(&r, IORING_OP_READ, o, p, PG, 0); finish(&r, p, PG, 0);
  close_ring(&r);
  say("ok\n");
}
// Reads of what never comes, until one is refused; in many rings, so that no list of theirs needs much at once.
#define RINGS 64
static void gather(void) {
  static struct ring all[RINGS];
  static int never[RINGS];
  struct io_uring_cqe c = {0};
  struct timespec far = {.tv_sec = 1000};
  uint64_t word, n = 0;
  int full[2], st, i;
  char b;
  // Whatever this process needs itself it has before memory is short.
  for (i = 0; i < RINGS; i++) {
    open_ring(&all[i], 256, 0);
    CHECK((never[i] = eventfd(0, 0)) >= 0 && ONE(&all[i], IORING_OP_NOP, 0, 0, 0, 0) == 0);
    memset(all[i].sqes, 0, 64 * 256);
  }
  CHECK(!pipe(full) && kib("/proc/meminfo", "MemFree:") > 16 * 1024);
  pid_t filler = fork();
  CHECK(filler >= 0);
  if (!filler) {
    while (kib("/proc/meminfo", "MemFree:") > 3 * 1024) memset(anon(64 * KB), 1, 64 * KB);
    for (write(full[1], "f", 1);;) pause();
  }
  CHECK(read(full[0], &b, 1) == 1);
  for (i = 0; i < RINGS && !c.res; i++)
    for (int k = 0; k < 500 && !c.res; k++, n++) {
      ask(&all[i], IORING_OP_READ, never[i], &word, 8, 0);
      CHECK(enter(all[i].fd, 1, 0, 0) == 1 && (!take(&all[i], &c) || c.res == -EAGAIN));
    }
  struct sysinfo info; // a file is not opened now
  CHECK(c.res == -EAGAIN && n > 500 && !sysinfo(&info) && info.freeram * info.mem_unit > 512 * KB);
  // So are timeouts, after a few for which what that read gave back may do.
  struct ring *r = &all[0];
  for (c.res = 0, n = 0; n < 400 && !c.res; n++) {
    ask(r, IORING_OP_TIMEOUT, -1, &far, 1, 0);
    CHECK(enter(r->fd, 1, 0, 0) == 1 && (!take(r, &c) || c.res == -EAGAIN));
  }
  // What can be done at once is done, and who waits already waits on, however often he is called.
  CHECK(c.res == -EAGAIN && ONE(r, IORING_OP_NOP, 0, 0, 0, 0) == 0);
  for (i = 1; i <= 3; i++) {
    word = i;
    CHECK(write(never[0], &word, 8) == 8 && enter(r->fd, 0, 1, IORING_ENTER_GETEVENTS) == 0);
    CHECK(take(r, &c) && c.res == 8 && word == (uint64_t)i && !take(r, &c));
  }
  for (i = 0; i < RINGS; i++) close_ring(&all[i]), close(never[i]);
  CHECK(!kill(filler, SIGKILL) && waitpid(filler, &st, 0) == filler);
  CHECK((never[0] = eventfd(0, 0)) >= 0);
  open_ring(r, 4, 0);
  ask(r, IORING_OP_READ, never[0], &word, 8, 0), ask(r, IORING_OP_TIMEOUT, -1, &far, 1, 0);
  CHECK(enter(r->fd, 2, 0, 0) == 2 && !done(r));
  close_ring(r);
  say("ok\n");
}
int main(int argc, char **argv) {
  if (argc == 2) return strcmp(argv[1], "gather") ? 0 : (gather(), 0);
  if (argc > 2) return !strcmp(argv[1], "disk") ? disk(argv) : !strcmp(argv[1], "bad") ? bad(argv[2]) : lost(argv[2], argv[3]), 0;
  struct io_uring_params p = {0};
  long fd = setup(1, &p);
  struct utsname u;
  int major = 0, minor = 0;
  uname(&u);
  sscanf(u.release, "%d.%d", &major, &minor);
  if (fd < 0 || major < 6 || (major == 6 && minor < 12)) return LACKING; // older ones say other things
  close((int)fd);
  set_up(), simple(), buffers(), limits(), waiting(), timeouts(), too_many(), at_once(), shared(), cancelled(), many_timeouts(), taskrun(), ends(), backlog(), ours();
  say("done\n");
  return 0;
}
