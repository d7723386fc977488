// Direct requests to files of ext4 that end by themselves, by io_submit and by a ring. `flights load DISK`: many at once, on a file in
// many pieces, with holes, ends, bad memory, and what others have cached. `flights slow DISK` on what `load` has left, and a disk that
// takes its time: they are in flight while their process forks, unmaps, closes, ends. `flights race DISK` (test kernels): one has landed and has
// not ended; who takes blocks away waits for it. `flights bad DISK`: a block of /victim cannot be read or written.
#include "ext4.h"
#include <linux/aio_abi.h>
#include <linux/io_uring.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/statfs.h>
#include <sys/uio.h>

#define DEEP 32
// A way to ask: a context or, with `fd`, a ring.
struct way {
  int fd;
  aio_context_t c;
  struct iocb all[DEEP];
  struct io_uring_params p;
  char *mem;
  struct io_uring_sqe *sqes;
};
static void open_way(struct way *w, int ring) {
  memset(w, 0, sizeof *w);
  if (!ring) { CHECK(!syscall(SYS_io_setup, 2 * DEEP, &w->c)); return; }
  w->fd = (int)syscall(SYS_io_uring_setup, DEEP, &w->p);
  CHECK(w->fd > 0 && w->p.sq_entries == DEEP);
  w->mem = mmap(0, w->p.sq_off.array + 4 * DEEP + 16 * w->p.cq_entries, PROT_READ | PROT_WRITE, MAP_SHARED, w->fd, IORING_OFF_SQ_RING);
  w->sqes = mmap(0, 64 * DEEP, PROT_READ | PROT_WRITE, MAP_SHARED, w->fd, IORING_OFF_SQES);
  CHECK((void *)w->mem != MAP_FAILED && (void *)w->sqes != MAP_FAILED);
}
static void close_way(struct way *w) {
  if (!w->fd) { CHECK(!syscall(SYS_io_destroy, w->c)); return; }
  CHECK(!munmap(w->mem, w->p.sq_off.array + 4 * DEEP + 16 * w->p.cq_entries) && !munmap(w->sqes, 64 * DEEP) && !close(w->fd));
}
enum { READ, WRITE, READV, WRITEV, READ_FIXED, WRITE_FIXED };
// Asks for one; `n` of vectors is how many.
static void begin(struct way *w, int i, int what, int fd, void *p, size_t n, off_t at) {
  if (!w->fd) {
    static const int op[] = {IOCB_CMD_PREAD, IOCB_CMD_PWRITE, IOCB_CMD_PREADV, IOCB_CMD_PWRITEV};
    struct iocb *l = &w->all[i];
    *l = (struct iocb){.aio_lio_opcode = op[what], .aio_fildes = fd, .aio_buf = (uintptr_t)p, .aio_nbytes = n, .aio_offset = at, .aio_data = i};
    CHECK(syscall(SYS_io_submit, w->c, 1, &l) == 1);
    return;
  }
  static const int op[] = {IORING_OP_READ, IORING_OP_WRITE, IORING_OP_READV, IORING_OP_WRITEV, IORING_OP_READ_FIXED, IORING_OP_WRITE_FIXED};
  unsigned *tail = (unsigned *)(w->mem + w->p.sq_off.tail), k = *tail % DEEP;
  w->sqes[k] = (struct io_uring_sqe){.opcode = op[what], .fd = fd, .addr = (uintptr_t)p, .len = n, .off = at, .user_data = i};
  ((unsigned *)(w->mem + w->p.sq_off.array))[k] = k;
  __atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
  CHECK(syscall(SYS_io_uring_enter, w->fd, 1, 0, 0, 0, 8) == 1);
}
// Waits for one; what came of it.
static long end(struct way *w, int *i) {
  if (!w->fd) {
    struct io_event e;
    CHECK(syscall(SYS_io_getevents, w->c, 1, 1, &e, 0) == 1);
    *i = e.data;
    return e.res;
  }
  unsigned *head = (unsigned *)(w->mem + w->p.cq_off.head);
  while (*head == __atomic_load_n((unsigned *)(w->mem + w->p.cq_off.tail), __ATOMIC_ACQUIRE))
    CHECK(syscall(SYS_io_uring_enter, w->fd, 0, 1, IORING_ENTER_GETEVENTS, 0, 8) == 0);
  struct io_uring_cqe *c = (struct io_uring_cqe *)(w->mem + w->p.cq_off.cqes) + *head % w->p.cq_entries;
  *i = c->user_data;
  long res = c->res;
  __atomic_store_n(head, *head + 1, __ATOMIC_RELEASE);
  return res;
}
static long one(struct way *w, int what, int fd, void *p, size_t n, off_t at) {
  int i;
  begin(w, 7, what, fd, p, n, at);
  long res = end(w, &i);
  CHECK(i == 7);
  return res;
}
// DEEP reads of `len` each from `at` on; and their ends.
static void begin_all(struct way *w, int fd, char *p, size_t len, off_t at) {
  for (int i = 0; i < DEEP; i++) begin(w, i, READ, fd, p + i * len, len, at + i * len);
}
static void end_all(struct way *w, char *p, size_t len, off_t at) {
  char seen[DEEP] = {0};
  for (int n = 0, i; n < DEEP; n++) {
    CHECK(end(w, &i) == (long)len && i >= 0 && i < DEEP && !seen[i]++);
    if (p) CHECK(is_pattern(p + i * len, at + i * len, len));
  }
}

// Written in turns: neither file has two blocks in a row.
#define PIECES 256
static void make(void) {
  char *b = anon(4 * MB);
  int f = made(M "frag", O_RDWR | O_DIRECT), o = made(M "other", O_RDWR | O_DIRECT), p = made(M "plain", O_RDWR | O_DIRECT);
  fill(b, 0, 4 * MB);
  for (int i = 0; i < PIECES; i++) CHECK(pwrite(f, b + i * PG, PG, i * PG) == (ssize_t)PG && pwrite(o, b, PG, i * PG) == (ssize_t)PG);
  CHECK(pwrite(p, b, 4 * MB, 0) == 4 * (ssize_t)MB && !close(f) && !close(o) && !close(p) && !munmap(b, 4 * MB));
}
static int zero(const char *p, size_t len) {
  for (size_t i = 0; i < len; i++) if (p[i]) return 0;
  return 1;
}

static void *loader(void *n) {
  long me = (long)n, at = me * 64 * PG;
  struct way w;
  open_way(&w, me & 1);
  int d = open(M "frag", O_RDWR | O_DIRECT), c = open(M "frag", O_RDWR), i;
  CHECK(d >= 0 && c >= 0);
  char *p = anon(64 * PG), *q = anon(64 * PG);
  for (uint64_t g = 1; g <= 20; g++) {
    for (size_t k = 0; k < 64 * PG; k += 16) memcpy(p + k, (uint64_t[]){at + k, g}, 16);
    // Page by page; all at once, in many pieces. What others have cached is not what they see afterwards.
    if (g % 2) {
      for (int r = 0; r < 2; r++) {
        for (i = 0; i < DEEP; i++) begin(&w, i, WRITE, d, p + (r * DEEP + i) * PG, PG, at + (r * DEEP + i) * PG);
        end_all(&w, 0, PG, 0);
      }
    } else CHECK(one(&w, WRITE, d, p, 64 * PG, at) == 64 * (long)PG);
    CHECK(pread(c, q, 64 * PG, at) == 64 * (ssize_t)PG && !memcmp(p, q, 64 * PG));
    // What others have in memory only is seen.
    memcpy(p + g * PG, (uint64_t[]){~g, g}, 16);
    CHECK(pwrite(c, p + g * PG, 16, at + g * PG) == 16);
    memset(q, 0, 64 * PG);
    struct iovec v[2] = {{q, 512}, {q + 512, 64 * PG - 512}};
    CHECK(one(&w, g % 3 ? READ : READV, d, g % 3 ? (void *)q : v, g % 3 ? 64 * PG : 2, at) == 64 * (long)PG && !memcmp(p, q, 64 * PG));
  }
  close_way(&w);
  CHECK(!close(d) && !close(c));
  return 0;
}
static void edges(int ring) {
  struct way w;
  open_way(&w, ring);
  char *b = anon(64 * PG), *c = anon(64 * PG), name[40];
  struct stat st;
  fill(b, 0, 64 * PG);
  snprintf(name, sizeof name, M "edges%d", ring);
  int f = made(name, O_RDWR), d = open(name, O_RDWR | O_DIRECT), s = open(name, O_RDWR | O_DIRECT | O_DSYNC), a = open(name, O_WRONLY | O_DIRECT | O_APPEND);
  CHECK(d >= 0 && s >= 0 && a >= 0);
  // A file grows by them; holes and what was never written are zeroes; then there is something.
  CHECK(one(&w, WRITE, d, b, 8 * PG, 0) == 8 * (long)PG && one(&w, WRITE, d, b + 16 * PG, 8 * PG, 16 * PG) == 8 * (long)PG);
  CHECK(!fallocate(f, 0, 24 * PG, 8 * PG) && !fstat(f, &st) && st.st_size == 32 * (off_t)PG);
  memset(c, 1, 64 * PG);
  CHECK(one(&w, READ, d, c, 64 * PG, 0) == 32 * (long)PG && is_pattern(c, 0, 8 * PG) && zero(c + 8 * PG, 8 * PG));
  CHECK(is_pattern(c + 16 * PG, 16 * PG, 8 * PG) && zero(c + 24 * PG, 8 * PG) && c[32 * PG] == 1);
  CHECK(one(&w, WRITE, d, b + 4 * PG, 24 * PG, 4 * PG) == 24 * (long)PG && one(&w, READ, d, c, 32 * PG, 0) == 32 * (long)PG);
  CHECK(is_pattern(c, 0, 28 * PG) && zero(c + 28 * PG, 4 * PG));
  // The end: behind it, across it, one that is no whole sector.
  CHECK(one(&w, READ, d, c, PG, 32 * PG) == 0 && one(&w, READ, d, c, 4 * PG, 30 * PG) == 2 * (long)PG);
  CHECK(one(&w, WRITE, a, b + 32 * PG, 2 * PG, 0) == 2 * (long)PG && !fstat(f, &st) && st.st_size == 34 * (off_t)PG);
  CHECK(pwrite(f, b + 34 * PG, 100, 34 * PG) == 100 && one(&w, READ, d, c, 8 * PG, 30 * PG) == 4 * (long)PG + 100 && !memcmp(c + 2 * PG, b + 32 * PG, 2 * PG + 100));
  CHECK(one(&w, WRITE, d, b + 33 * PG, 2 * PG, 33 * PG) == 2 * (long)PG && !fstat(f, &st) && st.st_size == 35 * (off_t)PG);
  // Blocks that are there, behind a dirty page that is not written yet.
  CHECK(pwrite(f, b + 35 * PG, 5 * PG, 35 * PG) == 5 * (ssize_t)PG && one(&w, READ, d, c, 8 * PG, 32 * PG) == 8 * (long)PG && !memcmp(c, b + 32 * PG, 8 * PG));
  CHECK(one(&w, WRITE, s, b + 1 * PG, PG, PG) == (long)PG && one(&w, READ, d, c + 512, 1024, 512) == 1024 && is_pattern(c + 512, 512, 1024));
  CHECK(one(&w, WRITE, d, b + 512, 1024, 512) == 1024 && one(&w, READ, d, c, PG, 0) == (long)PG && is_pattern(c, 0, PG));
  // Bad memory, and what does not lie right.
  CHECK(one(&w, READ, d, c + 1, 512, 0) == -EINVAL && one(&w, READ, d, c, 100, 0) == -EINVAL && one(&w, READ, d, c, PG, 100) == -EINVAL);
  CHECK(one(&w, READ, d, anon_at(BASE, PG, PROT_NONE), PG, 0) == -EFAULT && one(&w, READ, d, anon_at(BASE + 4 * PG, PG, PROT_READ), PG, 0) == -EFAULT);
  CHECK(one(&w, WRITE, d, BASE, PG, 0) == -EFAULT);
  // What comes before bad memory does not count, and makes no file longer.
  char *half = anon_at(BASE + 8 * PG, 3 * PG, PROT_READ | PROT_WRITE);
  anon_at(BASE + 11 * PG, PG, PROT_NONE);
  CHECK(!fstat(f, &st) && lseek(d, 5 * PG, SEEK_SET) == 5 * (off_t)PG);
  for (int way = 0; way < 2; way++) {
    off_t at = way ? st.st_size : 5 * (off_t)PG;
    if (!way) CHECK(one(&w, READ, d, half, 4 * PG, at) == -EFAULT && read(d, half, 4 * PG) == -1 && errno == EFAULT);
    CHECK(one(&w, WRITE, d, half + 512, 3 * PG, at) == -EFAULT && pwrite(d, half + 512, 3 * PG, at) == -1 && errno == EFAULT);
    CHECK(one(&w, WRITE, d, half, 4 * PG, at) == -EFAULT && pwrite(d, half, 4 * PG, at) == -1 && errno == EFAULT && pins_held() == 0);
  }
  off_t size = st.st_size;
  CHECK(!fstat(f, &st) && st.st_size == size && lseek(d, 0, SEEK_CUR) == 5 * (off_t)PG && !munmap(half, 4 * PG));
  if (ring) {
    CHECK(!syscall(SYS_io_uring_register, w.fd, IORING_REGISTER_BUFFERS, &(struct iovec){c, 64 * PG}, 1));
    memset(c, 1, 64 * PG);
    int frag = open(M "frag", O_RDONLY | O_DIRECT), plain = open(M "frag", O_RDONLY);
    char *e = anon(40 * PG);
    CHECK(pread(plain, e, 40 * PG, 3 * PG) == 40 * (ssize_t)PG && one(&w, READ_FIXED, frag, c + PG, 40 * PG, 3 * PG) == 40 * (long)PG && !memcmp(c + PG, e, 40 * PG));
    CHECK(one(&w, WRITE_FIXED, d, c + 5 * PG, 10 * PG, 5 * PG) == 10 * (long)PG && one(&w, READ, d, e, 10 * PG, 5 * PG) == 10 * (long)PG && !memcmp(c + 5 * PG, e, 10 * PG));
    CHECK(!close(frag) && !close(plain));
  }
  CHECK(pins_held() == (ring ? 64 : 0));
  close_way(&w);
  CHECK(!close(f) && !close(d) && !close(s) && !close(a) && !munmap(BASE, PG) && !munmap(BASE + 4 * PG, PG));
  while (pins_held()) sched_yield();
}
static void load(void) {
  make();
  char *p = anon(DEEP * PG);
  for (int ring = 0; ring < 2; ring++) {
    struct way w;
    open_way(&w, ring);
    int d = open(M "frag", O_RDONLY | O_DIRECT);
    CHECK(d >= 0);
    for (int r = 0; r < 8; r++) begin_all(&w, d, p, PG, r * DEEP * PG), end_all(&w, p, PG, r * DEEP * PG);
    close_way(&w);
    CHECK(!close(d));
    edges(ring);
  }
  pthread_t t[4];
  for (long i = 0; i < 4; i++) CHECK(!pthread_create(&t[i], 0, loader, (void *)i));
  for (int i = 0; i < 4; i++) pthread_join(t[i], 0);
  CHECK(pins_held() == 0);
}

static void slow(int ring) {
  struct way w;
  open_way(&w, ring);
  int d = open(M "plain", O_RDWR | O_DIRECT), o = open(M "other", O_RDWR | O_DIRECT), f = open(M "plain", O_RDWR), i;
  char *p = anon(MB);
  CHECK(d >= 0 && o >= 0 && f >= 0);
  // They are in flight while the call is back; so are the pieces of one.
  begin_all(&w, d, p, PG, MB);
  CHECK(pins_held() > 0);
  end_all(&w, p, PG, MB);
  CHECK(pins_held() == 0);
  fill(p, 0, DEEP * PG);
  begin(&w, 3, WRITE, o, p, DEEP * PG, DEEP * PG);
  CHECK(pins_held() > 1 && end(&w, &i) == DEEP * (long)PG && i == 3 && pins_held() == 0);
  begin(&w, 3, READ, o, p + 64 * PG, DEEP * PG, DEEP * PG);
  CHECK(pins_held() > 1 && end(&w, &i) == DEEP * (long)PG && !memcmp(p, p + 64 * PG, DEEP * PG));
  // BUG-5, BUG-6: each fills one half of a page while the process forks and writes the other.
  for (int round = 1; round <= 3; round++) {
    memset(p, 0, DEEP * PG);
    for (i = 0; i < DEEP; i++) begin(&w, i, READ, d, p + i * PG, PG / 2, round * MB + i * PG);
    pid_t child = fork();
    CHECK(child >= 0);
    if (!child) _exit(0);
    for (i = 0; i < DEEP; i++) p[i * PG + PG - 1] = round;
    for (int n = 0; n < DEEP; n++) CHECK(end(&w, &i) == PG / 2);
    for (i = 0; i < DEEP; i++) CHECK(p[i * PG + PG - 1] == (char)round && is_pattern(p + i * PG, round * MB + i * PG, PG / 2));
    CHECK(waitpid(child, 0, 0) == child);
  }
  // Memory that goes away, a file that is closed: it stays open until they are over, and no longer.
  begin_all(&w, d, p, PG, 2 * MB);
  CHECK(!munmap(p, DEEP * PG) && !close(d) && !close(o) && !close(f));
  end_all(&w, 0, PG, 0);
  again();
  // A program that ends.
  pid_t child = fork();
  CHECK(child >= 0);
  if (!child) {
    struct way mine;
    open_way(&mine, ring);
    begin_all(&mine, open(M "plain", O_RDONLY | O_DIRECT), anon(DEEP * PG), PG, 0);
    _exit(0);
  }
  int st;
  CHECK(waitpid(child, &st, 0) == child && !st && (ring || pins_held() == 0));
  // Who takes the blocks away comes when it is over.
  f = open(M "plain", O_RDWR), d = open(M "plain", O_RDWR | O_DIRECT), p = anon(DEEP * PG);
  CHECK(f >= 0 && d >= 0);
  begin_all(&w, d, p, PG, 3 * MB);
  CHECK(!ftruncate(f, MB) && pins_held() == 0);
  end_all(&w, p, PG, 3 * MB);
  fill(p, 3 * MB, DEEP * PG);
  CHECK(!ftruncate(f, 3 * MB) && pwrite(f, p, DEEP * PG, 3 * MB) == DEEP * (ssize_t)PG && !close(f) && !close(d));
  char *rest = anon(4 * MB);
  fill(rest, 0, 4 * MB);
  f = open(M "plain", O_RDWR);
  CHECK(pwrite(f, rest, 4 * MB, 0) == 4 * (ssize_t)MB && !close(f) && !munmap(rest, 4 * MB));
  close_way(&w);
}

// A request that has landed stands before it ends.
#define LANDED "flight.landed"
static char *mine;
static int cut_all(int f, int d) { return ftruncate(f, 0); }
static int cut_some(int f, int d) { return ftruncate(f, 100 * PG + 5); }
static int punch(int f, int d) { return fallocate(f, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 20 * PG); }
static int clear(int f, int d) { return fallocate(f, FALLOC_FL_ZERO_RANGE, 3 * PG, 20 * PG); }
static int opened(int f, int d) { f = open(M "victim", O_RDWR | O_TRUNC); return f < 0 || close(f); }
static int copied(int f, int d) { return pwrite(f, mine, PG, 10 * PG) != (ssize_t)PG; }
static int straight(int f, int d) { return pwrite(d, mine, PG, 10 * PG) != (ssize_t)PG; }
static void races(void) {
  static int (*const ops[])(int, int) = {cut_all, cut_some, punch, clear, opened, copied, straight};
  struct { atomic_int done; long pins; } *told = mmap(0, PG, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  char *b = anon(MB), *p = anon(PG), *q = anon(PG);
  mine = anon(PG);
  memset(mine, 'm', PG);
  fill(b, 0, MB);
  int o = made(M "bystander", O_RDWR | O_DIRECT), i, st;
  CHECK(pwrite(o, b, MB, 0) == (ssize_t)MB);
  for (int round = 0; round < 4; round++) {
    struct way w;
    open_way(&w, round & 1);
    int write = round >> 1;
    for (size_t k = 0; k <= sizeof ops / sizeof *ops; k++) {
      int f = made(M "victim", O_RDWR), d = open(M "victim", O_RDWR | O_DIRECT);
      CHECK(d >= 0 && pwrite(f, b, MB, 0) == (ssize_t)MB && !fsync(f));
      memset(p, 'w', PG);
      struct statfs before, now;
      sync();
      CHECK(!statfs("/mnt", &before) && race("arm", LANDED));
      begin(&w, 5, write ? WRITE : READ, d, p, PG, 10 * PG);
      while (!stands(LANDED)) sched_yield();
      if (k < sizeof ops / sizeof *ops) {
        told->done = 0;
        pid_t child = fork();
        CHECK(child >= 0);
        if (!child) {
          CHECK(!ops[k](f, d));
          told->pins = pins_held(), told->done = 1;
          _exit(0);
        }
        while (task_state(child) != 'D') CHECK(!told->done);
        // Whatever the disk had to do for it is done after this, and still it sleeps.
        for (off_t n = 0; n < 40 || task_state(child) != 'D'; n++)
          CHECK(!told->done && pread(o, q, PG, n % 40 * PG) == (ssize_t)PG && is_pattern(q, n % 40 * PG, PG));
        CHECK(!told->done && race("release", LANDED));
        CHECK(waitpid(child, &st, 0) == child && !st && told->done && told->pins == 0);
        CHECK(end(&w, &i) == (long)PG && i == 5 && (write || is_pattern(p, 10 * PG, PG)));
        // Written over what was in flight.
        if (ops[k] == copied || ops[k] == straight) CHECK(pread(f, q, PG, 10 * PG) == (ssize_t)PG && !memcmp(q, mine, PG));
        CHECK(!close(f) && !close(d));
        continue;
      }
      // It loses its name and its users: its blocks are nobody's only when it is over.
      CHECK(!unlink(M "victim") && !close(f) && !close(d));
      sync();
      CHECK(!statfs("/mnt", &now) && now.f_bfree == before.f_bfree && umount("/mnt") == -1 && errno == EBUSY);
      CHECK(race("release", LANDED) && end(&w, &i) == (long)PG && (write || is_pattern(p, 10 * PG, PG)));
      sync();
      CHECK(!statfs("/mnt", &now) && now.f_bfree >= before.f_bfree + MB / PG);
    }
    close_way(&w);
  }
  CHECK(!close(o) && pins_held() == 0);
}

// Block 100 of /victim is bad.
static void bad(int ring) {
  struct way w;
  open_way(&w, ring);
  int d = open(M "victim", O_RDWR | O_DIRECT), i;
  char *p = anon(2 * DEEP * PG);
  CHECK(d >= 0);
  for (int what = READ; what <= WRITE; what++) {
    memset(p, 7, DEEP * PG);
    for (i = 0; i < DEEP; i++) begin(&w, i, what, d, p + i * PG, PG, (80 + i) * PG);
    for (int n = 0; n < DEEP; n++) {
      long res = end(&w, &i);
      CHECK(res == (i == 20 ? -EIO : (long)PG));
      for (size_t k = 0; i != 20 && k < PG; k++) CHECK(p[i * PG + k] == 7);
    }
    CHECK(one(&w, what, d, p, 2 * DEEP * PG, 60 * PG) == -EIO && one(&w, what, d, p, DEEP * PG, 120 * PG) == DEEP * (long)PG);
  }
  CHECK(pins_held() == 0 && !close(d));
  close_way(&w);
  // Nobody can read it.
  if (ring) CHECK(!unlink(M "victim"));
}

int main(int n, char **v) {
  CHECK(n == 3);
  disk = v[2];
  mounted(disk, "/mnt", 0);
  if (!strcmp(v[1], "load")) load();
  else if (!strcmp(v[1], "slow")) slow(0), slow(1);
  else if (!strcmp(v[1], "race")) races();
  else if (!strcmp(v[1], "bad")) bad(0), bad(1);
  else CHECK(!"such a test");
  tell_all();
  CHECK(!umount("/mnt"));
  say("ok\n");
  return 0;
}
