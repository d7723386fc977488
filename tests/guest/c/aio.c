// aio: what io_setup and its kin answer, on a file; Linux says the same. aio disk DISK SLOW: requests to a disk that holds
// the host's pattern (direct.c), 32 at a time, some of them of another's address space, of bad memory, given up by exit, exec and
// io_destroy. aio bad DISK: one sector of it cannot be read. aio lost DISK OTHER: it stops answering. aio silent DISK OTHER: it stops
// answering while all wait for it.
#include "t.h"
#include <linux/aio_abi.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/uio.h>

static long setup(unsigned n, aio_context_t *c) { return syscall(SYS_io_setup, n, c); }
static long destroy(aio_context_t c) { return syscall(SYS_io_destroy, c); }
static long submit(aio_context_t c, long n, struct iocb **l) { return syscall(SYS_io_submit, c, n, l); }
static long events(aio_context_t c, long min, long n, struct io_event *e, struct timespec *t) { return syscall(SYS_io_getevents, c, min, n, e, t); }
static struct iocb iocb(int op, int fd, void *p, size_t n, off_t at) {
  return (struct iocb){.aio_lio_opcode = op, .aio_fildes = fd, .aio_buf = (uintptr_t)p, .aio_nbytes = n, .aio_offset = at, .aio_data = at};
}
// Submits one; its result, or the call's errno.
static void one(aio_context_t c, const char *what, struct iocb b) {
  struct iocb *l = &b;
  struct io_event e;
  b.aio_data = 77;
  long n = submit(c, 1, &l);
  if (n != 1) { say("%s: submit %s\n", what, ename(errno)); return; }
  CHECK(events(c, 1, 1, &e, 0) == 1 && e.data == 77 && e.obj == (uintptr_t)&b && e.res2 == 0);
  if (e.res < 0) say("%s: %s\n", what, ename(-e.res)); else say("%s: %ld\n", what, (long)e.res);
}

static void facts(void) {
  aio_context_t c = 0, d = 1;
  struct timespec now = {0, 0}, soon = {0, 2000000};
  struct io_event e[4];
  R(setup(0, &c)); R(setup(1, &d)); R(setup(1, (void *)8)); d = 0; R(setup(1u << 31, &d)); R(setup(100000, &d));
  R(setup(8, &c));
  char line[256];
  FILE *f = fopen("/proc/self/maps", "r");
  while (fgets(line, sizeof line, f)) if (strtoul(line, 0, 16) == c) say("%.4s %s", strchr(line, ' ') + 1, strchr(line, '/'));
  fclose(f);
  uint32_t *ring = (void *)c;
  say("magic %x compat %u incompat %u header %u head %u tail %u\n", ring[4], ring[5], ring[6], ring[7], ring[2], ring[3]);
  int fd = open("aio.data", O_RDWR | O_CREAT | O_TRUNC, 0600), r = open("aio.data", O_RDONLY), dir = open(".", O_RDONLY), p[2];
  CHECK(fd >= 0 && r >= 0 && dir >= 0 && !pipe(p));
  char *m = anon(16 * PG), *none = anon_at(BASE, PG, PROT_NONE), *ro = anon_at(BASE + 4 * PG, PG, PROT_READ);
  memset(m, 'a', 16 * PG);
  one(c, "write", iocb(IOCB_CMD_PWRITE, fd, m, 8 * PG, 0));
  one(c, "read", iocb(IOCB_CMD_PREAD, r, m + 8 * PG, 4 * PG, PG));
  CHECK(m[8 * PG] == 'a');
  one(c, "read past the end", iocb(IOCB_CMD_PREAD, r, m, PG, 8 * PG));
  one(c, "read the end", iocb(IOCB_CMD_PREAD, r, m, 4 * PG, 7 * PG));
  struct iovec v[2] = {{m, 100}, {m + PG, 200}}, bad[1] = {{m, -1}};
  one(c, "writev", iocb(IOCB_CMD_PWRITEV, fd, v, 2, 0));
  one(c, "readv", iocb(IOCB_CMD_PREADV, fd, v, 2, 8 * PG - 150));
  one(c, "readv of a bad vector", iocb(IOCB_CMD_PREADV, fd, bad, 1, 0));
  one(c, "readv of no vector", iocb(IOCB_CMD_PREADV, fd, (void *)8, 1, 0));
  one(c, "readv of too many", iocb(IOCB_CMD_PREADV, fd, v, 1025, 0));
  one(c, "fsync", iocb(IOCB_CMD_FSYNC, fd, 0, 0, 0));
  one(c, "fdsync", iocb(IOCB_CMD_FDSYNC, fd, 0, 0, 0));
  one(c, "fsync with a length", iocb(IOCB_CMD_FSYNC, fd, 0, 1, 0));
  one(c, "fsync of a pipe", iocb(IOCB_CMD_FSYNC, p[0], 0, 0, 0));
  one(c, "write to a reader", iocb(IOCB_CMD_PWRITE, r, m, PG, 0));
  one(c, "no file", iocb(IOCB_CMD_PREAD, 99, m, PG, 0));
  one(c, "a directory", iocb(IOCB_CMD_PREAD, dir, m, PG, 0));
  one(c, "to a pipe", iocb(IOCB_CMD_PWRITE, p[1], m, 5, 0));
  one(c, "from a pipe", iocb(IOCB_CMD_PREAD, p[0], m, PG, 0));
  one(c, "PROT_NONE", iocb(IOCB_CMD_PREAD, fd, none, PG, 0));
  one(c, "read-only", iocb(IOCB_CMD_PREAD, fd, ro, PG, 0));
  one(c, "write from read-only", iocb(IOCB_CMD_PWRITE, fd, ro, PG, 0));
  one(c, "the kernel's", iocb(IOCB_CMD_PREAD, fd, (void *)0xffff888000000000, PG, 0));
  one(c, "half there", iocb(IOCB_CMD_PREAD, fd, ro - PG, 2 * PG, 0));
  one(c, "a negative offset", iocb(IOCB_CMD_PREAD, fd, m, PG, -1));
  one(c, "a negative length", iocb(IOCB_CMD_PREAD, fd, m, -1, 0));
  one(c, "no such command", iocb(99, fd, m, PG, 0));
  one(c, "noop", iocb(IOCB_CMD_NOOP, fd, m, PG, 0));
  struct iocb b = iocb(IOCB_CMD_PREAD, fd, m, PG, 0), b2 = b, *l[3] = {&b, &b2, (void *)8};
  b.aio_reserved2 = 1; one(c, "reserved", b); b.aio_reserved2 = 0;
  b.aio_rw_flags = 1 << 30; one(c, "flags", b); b.aio_rw_flags = 0;
  b.aio_flags = IOCB_FLAG_RESFD; b.aio_resfd = fd; one(c, "resfd of a file", b); b.aio_resfd = 99; one(c, "no resfd", b);
  int ev = eventfd(0, EFD_NONBLOCK);
  uint64_t count = 0;
  b.aio_resfd = ev; one(c, "resfd", b); one(c, "resfd", b);
  while (read(ev, &count, 8) != 8) sched_yield();
  if (count == 1) { uint64_t more; while (read(ev, &more, 8) != 8) sched_yield(); count += more; }
  say("counted %lu\n", count);
  b.aio_flags = 0;
  R(submit(c, 3, l)); R(events(c, 2, 4, e, 0)); R(submit(c, 0, l)); R(submit(c, -1, l)); R(submit(c, 1, (void *)8));
  R(submit(c + 1, 1, l)); R(submit(0, 1, l)); R(submit(c, 1, l + 2));
  R(events(c, 0, 4, e, 0)); R(events(c, 1, 4, e, &now)); R(events(c, 1, 4, e, &soon));
  R(events(c, 5, 4, e, &now)); R(events(c, -1, 4, e, &now)); R(events(c, 0, -1, e, &now)); R(events(0, 0, 1, e, &now)); R(events(c, 0, 1, e, (void *)8));
  R(submit(c, 2, l)); R(events(c, 1, 4, (void *)8, 0)); R(events(c, 1, 1, e, 0)); R(events(c, 1, 4, e, 0));
  say("head is tail: %d\n", ring[2] == ring[3]);
  R(syscall(SYS_io_cancel, c, &b, e)); b.aio_key = 1; R(syscall(SYS_io_cancel, c, &b, e)); R(syscall(SYS_io_cancel, c, 8, e)); R(syscall(SYS_io_cancel, 0, &b, e));
  struct { void *set; size_t size; } mask = {&(uint64_t){0}, 8}, wrong = {mask.set, 7};
  R(syscall(SYS_io_pgetevents, c, 1, 4, e, &soon, &mask)); R(syscall(SYS_io_pgetevents, c, 1, 4, e, &soon, &wrong));
  R(syscall(SYS_io_pgetevents, c, 1, 4, e, &soon, 0)); R(syscall(SYS_io_pgetevents, c, 1, 4, e, &soon, 8));
  // A child has the ring, not the context.
  if (!fork()) { R(submit(c, 1, l)); R(events(c, 0, 1, e, &now)); R(destroy(c)); _exit(0); }
  wait(0);
  // More than there is room for: some are refused, and all that were not end.
  long done = 0, n, took = 0;
  struct io_event many[64];
  while ((n = submit(c, 1, l)) == 1 && done < 100000) done++;
  say("full: %s\n", n == -1 ? ename(errno) : "no");
  CHECK(done >= 8);
  while ((n = events(c, 0, 64, many, &now)) > 0) took += n;
  CHECK(took == done && n == 0);
  R(submit(c, 1, l)); R(destroy(c)); R(destroy(c)); R(destroy(0)); R(events(c, 0, 1, e, 0));
  c = 0; R(setup(4, &c)); CHECK(!munmap((void *)c, PG)); R(submit(c, 1, l)); R(events(c, 0, 1, e, &now)); R(destroy(c));
  unlink("aio.data");
}

// The rest is about disks.
#define DEEP 32
static int d, slow;
static struct iocb all[DEEP], *list[DEEP];
// DEEP reads of `len` from `at` on.
static void begin(aio_context_t c, int fd, char *p, size_t len, off_t at) {
  for (int i = 0; i < DEEP; i++) { all[i] = iocb(IOCB_CMD_PREAD, fd, p + i * len, len, at + i * len); list[i] = &all[i]; }
  CHECK(submit(c, DEEP, list) == DEEP);
}
static void finish(aio_context_t c, char *p, size_t len, off_t at) {
  struct io_event e[DEEP];
  char seen[DEEP] = {0};
  CHECK(events(c, DEEP, DEEP, e, 0) == DEEP);
  for (int i = 0; i < DEEP; i++) {
    int k = (struct iocb *)(uintptr_t)e[i].obj - all;
    CHECK(k >= 0 && k < DEEP && !seen[k]++ && e[i].res == (long)len && e[i].data == at + k * len);
    CHECK(is_pattern(p + k * len, at + k * len, len));
  }
}
// The result of one.
static long result(aio_context_t c, struct iocb b) {
  struct iocb *l = &b;
  struct io_event e;
  CHECK(submit(c, 1, &l) == 1 && events(c, 1, 1, &e, 0) == 1);
  return e.res;
}
static void *loader(void *n) {
  uint64_t at = 32 * MB + (long)n * MB;
  aio_context_t c = 0;
  CHECK(!setup(64, &c));
  char *p = anon(16 * PG);
  struct iocb b[16], *l[16];
  struct io_event e[16];
  for (uint64_t g = 1; g <= 40; g++) {
    for (int i = 0; i < 16; i++) {
      for (size_t k = 0; k < PG; k += 16) memcpy(p + i * PG + k, (uint64_t[]){at + i * PG + k, g}, 16);
      b[i] = iocb(IOCB_CMD_PWRITE, d, p + i * PG, PG, at + i * PG);
      l[i] = &b[i];
    }
    CHECK(submit(c, 16, l) == 16 && events(c, 16, 16, e, 0) == 16);
    for (int i = 0; i < 16; i++) CHECK(e[i].res == (long)PG);
    memset(p, 0, 16 * PG);
    for (int i = 0; i < 16; i++) b[i].aio_lio_opcode = IOCB_CMD_PREAD;
    CHECK(submit(c, 16, l) == 16 && events(c, 16, 16, e, 0) == 16);
    for (int i = 0; i < 16; i++)
      for (size_t k = 0; k < PG; k += 16) CHECK(!memcmp(p + i * PG + k, (uint64_t[]){at + i * PG + k, g}, 16));
  }
  CHECK(!destroy(c));
  return 0;
}
static void disk(char **argv) {
  d = open(argv[2], O_RDWR | O_DIRECT), slow = open(argv[3], O_RDONLY | O_DIRECT);
  CHECK(d >= 0 && slow >= 0);
  aio_context_t c = 0;
  CHECK(!setup(64, &c));
  char *p = anon(DEEP * 64 * PG);
  for (int i = 0; i < 8; i++) { begin(c, d, p, PG, i * MB); finish(c, p, PG, i * MB); }
  // Several transfers each.
  begin(c, d, p, 64 * PG, 0); finish(c, p, 64 * PG, 0);
  CHECK(result(c, iocb(IOCB_CMD_PREAD, d, p + 512, 200 * PG, 512)) == 200 * PG && is_pattern(p + 512, 512, 200 * PG));
  struct iovec v[3] = {{p + 3 * PG + 512, 1024}, {p + 20 * PG, 9 * PG}, {p, PG}};
  CHECK(result(c, iocb(IOCB_CMD_PREADV, d, v, 3, 7 * PG)) == 1024 + 10 * PG);
  CHECK(is_pattern(v[0].iov_base, 7 * PG, 1024) && is_pattern(v[1].iov_base, 7 * PG + 1024, 9 * PG) && is_pattern(p, 7 * PG + 1024 + 9 * PG, PG));
  // They are in flight while the call is back: a slow disk has not answered all of them yet.
  struct timespec now = {0, 0};
  struct io_event e[DEEP];
  int seen = 0;
  for (int tries = 0; tries < 20 && !seen; tries++) {
    begin(c, slow, p, 4 * PG, 0);
    seen = pins_held() > 0;
    long n = events(c, 0, DEEP, e, &now);
    CHECK(n >= 0 && n <= DEEP && events(c, DEEP - n, DEEP, e, 0) == DEEP - n && pins_held() == 0);
  }
  CHECK(seen);
  // BUG-5, BUG-6: each fills one half of a page while the process forks and writes the other.
  for (int round = 1; round <= 8; round++) {
    memset(p, 0, DEEP * PG);
    for (int i = 0; i < DEEP; i++) all[i] = iocb(IOCB_CMD_PREAD, slow, p + i * PG, PG / 2, round * MB + i * PG);
    CHECK(submit(c, DEEP, list) == DEEP);
    pid_t child = fork();
    CHECK(child >= 0);
    if (!child) _exit(0);
    for (int i = 0; i < DEEP; i++) p[i * PG + PG - 1] = round;
    CHECK(events(c, DEEP, DEEP, e, 0) == DEEP);
    for (int i = 0; i < DEEP; i++) CHECK(p[i * PG + PG - 1] == (char)round && is_pattern(p + i * PG, round * MB + i * PG, PG / 2));
    CHECK(waitpid(child, 0, 0) == child);
  }
  // Memory that goes away meanwhile, a program that ends, one that runs another, a context that is destroyed.
  begin(c, slow, p, PG, 0);
  CHECK(!munmap(p, DEEP * PG) && events(c, DEEP, DEEP, e, 0) == DEEP);
  for (int how = 0; how < 3; how++) {
    pid_t child = fork();
    CHECK(child >= 0);
    if (!child) {
      aio_context_t mine = 0;
      CHECK(!setup(64, &mine));
      begin(mine, slow, anon(DEEP * PG), PG, 0);
      if (how == 1) execl("/proc/self/exe", "aio", "none", (char *)0);
      if (how == 2) { CHECK(!destroy(mine) && pins_held() == 0); }
      _exit(0);
    }
    int st;
    CHECK(waitpid(child, &st, 0) == child && st == 0 && pins_held() == 0);
  }
  // Faults and edges.
  p = anon(16 * PG);
  CHECK(result(c, iocb(IOCB_CMD_PREAD, d, p + 1, 512, 0)) == -EINVAL && result(c, iocb(IOCB_CMD_PREAD, d, p, 511, 0)) == -EINVAL);
  CHECK(result(c, iocb(IOCB_CMD_PREAD, d, anon_at(BASE, PG, PROT_NONE), PG, 0)) == -EFAULT);
  CHECK(result(c, iocb(IOCB_CMD_PREAD, d, anon_at(BASE + 4 * PG, PG, PROT_READ), PG, 0)) == -EFAULT);
  CHECK(result(c, iocb(IOCB_CMD_PREAD, d, p, PG, 64 * MB)) == 0 && result(c, iocb(IOCB_CMD_PWRITE, d, p, PG, 64 * MB)) == -ENOSPC);
  CHECK(!munmap(p + 3 * PG, PG) && result(c, iocb(IOCB_CMD_PREAD, d, p, 8 * PG, 0)) == 3 * PG && is_pattern(p, 0, 3 * PG));
  // Of what is more than one bio on Linux no part counts, and who does not wait is told no more than that.
  char *q = anon_at(BASE + 8 * PG, 300 * PG, PROT_READ | PROT_WRITE);
  CHECK(!munmap(q + 250 * PG, PG) && result(c, iocb(IOCB_CMD_PREAD, d, q, 300 * PG, 0)) == -EIO && pread(d, q, 300 * PG, 0) == -1 && errno == EFAULT);
  CHECK(result(c, iocb(IOCB_CMD_PREAD, d, q, 256 * PG, 0)) == 250 * PG && pread(d, q, 256 * PG, 0) == 250 * (ssize_t)PG && is_pattern(q, 0, 250 * PG));
  CHECK(result(c, iocb(IOCB_CMD_PWRITE, d, q, 300 * PG, 0)) == -EIO && pwrite(d, q, 300 * PG, 0) == -1 && errno == EFAULT);
  CHECK(result(c, iocb(IOCB_CMD_PWRITE, d, q, 256 * PG, 0)) == 250 * PG && pwrite(d, q, 256 * PG, 0) == 250 * (ssize_t)PG);
  CHECK(result(c, iocb(IOCB_CMD_PREAD, d, q + 250 * PG, 300 * PG, 0)) == -EIO && result(c, iocb(IOCB_CMD_PREAD, d, q + 250 * PG, 256 * PG, 0)) == -EFAULT);
  struct iovec two[2] = {{q, 200 * PG}, {q + 200 * PG, 57 * PG}};
  CHECK(preadv(d, two, 2, 0) == -1 && errno == EFAULT && (two[1].iov_len -= PG, preadv(d, two, 2, 0)) == 250 * (ssize_t)PG && !munmap(q, 300 * PG));
  CHECK(result(c, iocb(IOCB_CMD_FSYNC, d, 0, 0, 0)) == 0);
  // What others have read before is not what they read afterwards.
  int cached = open(argv[2], O_RDONLY);
  char old[PG], fresh[PG];
  CHECK(pread(cached, old, PG, 40 * MB) == (ssize_t)PG && is_pattern(old, 40 * MB, PG));
  memset(p, 7, PG);
  CHECK(result(c, iocb(IOCB_CMD_PWRITE, d, p, PG, 40 * MB)) == (long)PG);
  CHECK(pread(cached, fresh, PG, 40 * MB) == (ssize_t)PG && !memcmp(fresh, p, PG));
  memcpy(p, old, PG);
  CHECK(result(c, iocb(IOCB_CMD_PWRITE, d, p, PG, 40 * MB)) == (long)PG);
  CHECK(pread(cached, fresh, PG, 40 * MB) == (ssize_t)PG && !memcmp(fresh, old, PG) && !close(cached));
  pthread_t t[4];
  for (long i = 0; i < 4; i++) CHECK(!pthread_create(&t[i], 0, loader, (void *)i));
  for (int i = 0; i < 4; i++) pthread_join(t[i], 0);
  // Taken without a call, by whoever looks at the ring.
  struct iocb b = iocb(IOCB_CMD_PREAD, d, p, PG, 0), *l = &b;
  volatile uint32_t *ring = (void *)c;
  CHECK(submit(c, 1, &l) == 1);
  while (ring[2] == ring[3]) ;
  ring[2] = ring[3];
  CHECK(events(c, 0, 1, e, &now) == 0 && pins_held() == 0);
  say("ok\n");
}
static void bad(const char *disk) {
  aio_context_t c = 0;
  CHECK(!setup(64, &c));
  int fd = open(disk, O_RDWR | O_DIRECT);
  char *p = anon(DEEP * PG);
  CHECK(fd >= 0 && (!mount("none", "/sys/kernel/debug", "debugfs", 0, 0) || errno == EBUSY));
  long straight = number_in("/sys/kernel/debug/block", "direct");
  begin(c, fd, p, PG, MB - 16 * PG);
  struct io_event e[DEEP];
  CHECK(events(c, DEEP, DEEP, e, 0) == DEEP);
  for (int i = 0; i < DEEP; i++) {
    size_t at = e[i].data;
    CHECK(e[i].res == (at == MB ? -EIO : (long)PG) && (at == MB || is_pattern(p + (at - (MB - 16 * PG)), at, PG)));
  }
  CHECK(number_in("/sys/kernel/debug/block", "direct") == straight + (DEEP - 1) * (long)PG);
  CHECK(pins_held() == 0);
  say("ok\n");
}
static void lost(const char *disk, const char *other) {
  aio_context_t c = 0;
  CHECK(!setup(64, &c));
  int b = open(disk, O_RDONLY | O_DIRECT), o = open(other, O_RDONLY | O_DIRECT);
  char *p = anon(DEEP * 64 * PG);
  CHECK(b >= 0 && o >= 0);
  begin(c, b, p, 64 * PG, 0);
  struct io_event e[DEEP];
  // A device that is reset may end what it has, well or not.
  CHECK(events(c, DEEP, DEEP, e, 0) == DEEP);
  for (int i = 0; i < DEEP; i++) CHECK(e[i].res == -EIO || (e[i].res == 64 * (long)PG && is_pattern(p + e[i].data, e[i].data, 64 * PG)));
  CHECK(pins_held() == 0);
  CHECK(result(c, iocb(IOCB_CMD_PREAD, b, p, PG, 0)) == -EIO);
  begin(c, o, p, PG, 0); finish(c, p, PG, 0);
  say("ok\n");
}
// The disk answers a write, one more when the host finds a mark on the other, then nothing. One thread has filled its queue and waits for
// room; a write to the disk's cache waits, too, for the page that it needs, and what has ended waits for that one: the other disk must not.
#define MANY 40
static const char *names[2];
static _Atomic int written, begun;
static void *filler(void *p) {
  aio_context_t c = 0;
  int fd = open(names[0], O_RDWR | O_DIRECT);
  CHECK(fd >= 0 && !setup(64, &c));
  for (int i = 0; i < MANY; i++) {
    struct iocb b = iocb(IOCB_CMD_PWRITE, fd, p, (i ? 64 : 1) * PG, i * MB), *l = &b;
    CHECK(submit(c, 1, &l) == 1);
    begun++;
  }
  struct io_event e[MANY];
  int good = 0;
  CHECK(events(c, MANY, MANY, e, 0) == MANY);
  for (int i = 0; i < MANY; i++) {
    CHECK(e[i].res == -EIO || e[i].res == (e[i].data ? 64 : 1) * (long)PG);
    good += e[i].res > 0;
  }
  CHECK(good >= 2);
  return 0;
}
static void *bystander(void *p) {
  aio_context_t c = 0;
  int fd = open(names[1], O_RDWR | O_DIRECT), buffered = open(names[1], O_RDWR);
  CHECK(fd >= 0 && buffered >= 0 && !setup(64, &c));
  // Who writes to the cache has its lock. Then a write is over: its slot is another's.
  while (task_state(getpid()) != 'D') sched_yield();
  int before = begun;
  char *ones = anon(PG);
  memset(ones, 1, PG);
  CHECK(pwrite(fd, ones, PG, 63 * MB) == (long)PG);
  while (begun == before && !written) sched_yield();
  CHECK(result(c, iocb(IOCB_CMD_PWRITE, fd, p, PG, MB)) == (long)PG);
  CHECK(pwrite(buffered, "x", 1, 2 * MB) == 1 && !fsync(buffered) && !written);
  return 0;
}
static void silent(void) {
  int fd = open(names[0], O_RDWR);
  pthread_t t[2];
  char *p = anon(64 * PG), *q = anon(PG);
  memset(p, 1, 64 * PG);
  CHECK(fd >= 0 && !pthread_create(&t[0], 0, filler, p));
  while (pins_held() < 33 * 64) sched_yield();
  CHECK(!pthread_create(&t[1], 0, bystander, q));
  CHECK(pwrite(fd, "x", 1, 60 * MB) == -1 && errno == EIO);
  written = 1;
  for (int i = 0; i < 2; i++) pthread_join(t[i], 0);
  CHECK(pins_held() == 0 && fsync(fd) == -1 && errno == EIO);
  say("ok\n");
}
// A write to the disk's cache waits for a page of a slow disk. Requests that overwrite the disk directly end after it, so they gather,
// many for each call: memory gets short, and then no more are taken.
#define SPANS 1024
static void gather(const char *disk, const char *slow) {
  int fd = open(disk, O_RDWR | O_DIRECT), cached = open(disk, O_RDWR), s = open(slow, O_RDONLY);
  aio_context_t c = 0;
  CHECK(fd >= 0 && cached >= 0 && s >= 0 && !setup(128, &c));
  char *p = anon(PG), *far = mmap(0, MB, PROT_READ, MAP_SHARED, s, 0), b;
  CHECK(far != MAP_FAILED && pread(cached, &b, 1, 60 * MB) == 1);
  memset(p, 1, PG);
  struct iovec v[SPANS];
  for (int i = 0; i < SPANS; i++) v[i] = (struct iovec){p, 512};
  while (kib("/proc/meminfo", "MemFree:") > 3 * 1024) memset(anon(64 * KB), 1, 64 * KB);
  // After this the slow disk waits until the host finds a mark on the other one.
  CHECK(pread(s, &b, 1, 0) == 1);
  pid_t writer = fork();
  CHECK(writer >= 0);
  if (!writer) { CHECK(pwrite(cached, far + MB / 2, 1, 60 * MB) == 1); _exit(0); }
  while (task_state(writer) != 'D') sched_yield();
  struct iocb w = iocb(IOCB_CMD_PWRITEV, fd, v, SPANS, 0), *l = &w;
  struct io_event e[128];
  int n = 0, whole = 0;
  while (submit(c, 1, &l) == 1) n++;
  int why = errno;
  // It still waits.
  CHECK(waitpid(writer, 0, WNOHANG) == 0 && n < 128 && why == EAGAIN);
  CHECK(pwrite(fd, p, 512, 63 * MB) == 512);
  CHECK(events(c, n, n, e, 0) == n && waitpid(writer, 0, 0) == writer);
  for (int i = 0; i < n; i++) {
    CHECK(e[i].res == -EAGAIN || (e[i].res > 0 && e[i].res % 512 == 0));
    whole += e[i].res == SPANS * 512;
  }
  CHECK(whole && pins_held() == 0 && result(c, w) == SPANS * 512);
  say("ok\n");
}
int main(int argc, char **argv) {
  if (argc == 1) facts();
  else if (!strcmp(argv[1], "disk")) disk(argv);
  else if (!strcmp(argv[1], "bad")) bad(argv[2]);
  else if (!strcmp(argv[1], "lost")) lost(argv[2], argv[3]);
  else if (!strcmp(argv[1], "silent")) names[0] = argv[2], names[1] = argv[3], silent();
  else if (!strcmp(argv[1], "gather")) gather(argv[2], argv[3]);
}
