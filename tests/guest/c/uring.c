// io_uring without a library: set-up, requests, registered buffers (LT-2, BUG-5), waiting, timeouts, what does not fit, and
// shared memory full of nonsense.
#include "t.h"
#include <linux/io_uring.h>
#include <poll.h>
#include <sys/resource.h>
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
static void ours(void) {
  struct utsname u;
  uname(&u);
  if (!strstr(u.version, "Pinfold")) return;
  nonsense();
  FILE *f = fopen("/proc/vmstat", "r");
  char line[128];
  long got = -1, gone = -2;
  while (fgets(line, sizeof line, f)) { sscanf(line, "nr_foll_pin_acquired %ld", &got); sscanf(line, "nr_foll_pin_released %ld", &gone); }
  fclose(f);
  CHECK(got == gone);
}
int main(void) {
  struct io_uring_params p = {0};
  long fd = setup(1, &p);
  struct utsname u;
  int major = 0, minor = 0;
  uname(&u);
  sscanf(u.release, "%d.%d", &major, &minor);
  if (fd < 0 || major < 6 || (major == 6 && minor < 12)) return LACKING; // older ones say other things
  close((int)fd);
  set_up(), simple(), buffers(), limits(), waiting(), timeouts(), too_many(), ours();
  say("done\n");
  return 0;
}
