// meanwhile DISK (test kernels): a page of a file is read in, or made ready to be written, for a thread that holds no lock then, and
// stands before that or, with what it has read, behind it. Another one unmaps the page, maps something else in its place, protects it, cuts
// the file, writes it. The first goes on with what there is now.
#include "ext4.h"
#include <pthread.h>
#include <stdatomic.h>
#include <sys/uio.h>

static const char *const points[] = {"fault.unlocked", "page.read"};
#define LEN (64 * PG)
#define AT (20 * PG)

static int f, straight, other;
static char *base, *p, seen;
static const char *how;
static atomic_int done;

// What is done to the page: "ok", and what was seen there; or why not.
static const char *loads(void) {
  const char *what = probe(p, 'r');
  if (!strcmp(what, "ok")) seen = *p;
  return what;
}
static const char *stores(void) {
  const char *what = probe(p, 'W');
  if (!strcmp(what, "ok")) { CHECK(*p == 1); seen = p[1]; }
  return what;
}
static const char *copies(void) {
  struct iovec to = {&seen, 1}, from = {p, 1};
  return process_vm_readv(getpid(), &to, 1, &from, 1, 0) == 1 ? "ok" : ename(errno);
}
static const char *pins(void) {
  static char b[4096] __attribute__((aligned(4096)));
  if (pwrite(other, p, PG, 0) != (ssize_t)PG) return ename(errno);
  CHECK(pread(other, b, PG, 0) == (ssize_t)PG);
  seen = *b;
  return "ok";
}
static const char *(*const ways[])(void) = {loads, stores, copies, pins};

static char page[4096] __attribute__((aligned(4096)));
static void unmapped(void) { CHECK(!munmap(base, LEN)); }
static void replaced(void) {
  CHECK(mmap(p, PG, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == p);
  memset(p, 'n', PG);
}
static void protected(void) { CHECK(!mprotect(p, PG, PROT_NONE)); }
static void cut(void) { CHECK(!ftruncate(f, 5 * PG + 7)); }
static void written(void) { CHECK(pwrite(f, page, PG, AT) == (ssize_t)PG); }
static void behind(void) { CHECK(pwrite(straight, page, PG, AT) == (ssize_t)PG); }
static const struct { void (*change)(void); const char *touched, *asked; char seen; } changes[] = {
  {unmapped, "SEGV_MAPERR", "EFAULT", 0},
  {replaced, "ok", "ok", 'n'},
  {protected, "SEGV_ACCERR", "EFAULT", 0},
  {cut, "BUS_ADRERR", "EFAULT", 0},
  {written, "ok", "ok", 'm'},
  {behind, "ok", "ok", 'm'},
};

static void *act(void *way) {
  how = ways[(long)way]();
  atomic_store(&done, 1);
  return 0;
}
static void one(long way, size_t i, const char *point) {
  pthread_t t;
  char b[4096];
  base = mmap(0, LEN, PROT_READ | PROT_WRITE, MAP_SHARED, f, 0), p = base + AT;
  CHECK(base != MAP_FAILED && !fsync(f) && !posix_fadvise(f, 0, 0, POSIX_FADV_DONTNEED));
  // What is there is not ready to be written.
  if (ways[way] == stores) CHECK(pread(f, b, 1, AT) == 1);
  seen = 0, atomic_store(&done, 0);
  CHECK(race("arm", point) && !pthread_create(&t, 0, act, (void *)way));
  while (!stands(point)) { CHECK(!atomic_load(&done)); sched_yield(); }
  changes[i].change();
  CHECK(!atomic_load(&done) && race("release", point) && !pthread_join(t, 0));
  int touches = ways[way] == loads || ways[way] == stores;
  CHECK(!strcmp(how, touches ? changes[i].touched : changes[i].asked) && seen == changes[i].seen && !pins_held());
  // The file has what was written to it, and nothing comes back that was cut off.
  if (changes[i].change == cut) {
    static const char zeroes[4096];
    CHECK(pread(f, b, PG, AT) == 0 && !ftruncate(f, LEN) && pread(f, b, PG, AT) == (ssize_t)PG && !memcmp(b, zeroes, PG) && !memcmp(p, zeroes, PG));
  } else if (changes[i].seen == 'm') {
    CHECK(pread(f, b, PG, AT) == (ssize_t)PG && !memcmp(b + 1, page + 1, PG - 1) && *b == (ways[way] == stores ? 1 : 'm'));
  } else CHECK(pread(f, b, PG, AT) == (ssize_t)PG && is_pattern(b, AT, PG));
  if (changes[i].change != unmapped) CHECK(!munmap(base, LEN));
}

int main(int n, char **v) {
  CHECK(n == 2);
  disk = v[1];
  mounted(disk, "/mnt", 0);
  probe_install();
  memset(page, 'm', PG);
  char *b = anon(LEN);
  fill(b, 0, LEN);
  f = made(M "file", O_RDWR), straight = open(M "file", O_RDWR | O_DIRECT), other = made(M "other", O_RDWR | O_DIRECT);
  CHECK(straight >= 0);
  for (int round = 0; round < 6; round++)
    for (int where = 0; where < 2; where++)
      for (size_t way = 0; way < sizeof ways / sizeof *ways; way++)
        for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
          // Nothing is read for a store to what is there.
          if (where && ways[way] == stores) continue;
          CHECK(pwrite(f, b, LEN, 0) == (ssize_t)LEN);
          one(way, i, points[where]);
        }
  CHECK(!close(f) && !close(straight) && !close(other) && !munmap(b, LEN));
  tell_all();
  CHECK(!umount("/mnt"));
  say("ok\n");
  return 0;
}
