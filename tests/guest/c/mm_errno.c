// What mmap, munmap, mprotect, brk, mremap, madvise, mincore, msync and memfd_create refuse, and how.
#include "t.h"
#define S6(n, a, b, c, d, e, f) syscall(n, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))
#define MM(a, l, p, fl, fd, o) S6(SYS_mmap, a, l, p, fl, fd, o)
#define UN(a, l) syscall(SYS_munmap, (long)(a), (long)(l))
#define MP(a, l, p) syscall(SYS_mprotect, (long)(a), (long)(l), (long)(p))
#define RE(a, o, n, f, t) syscall(SYS_mremap, (long)(a), (long)(o), (long)(n), (long)(f), (long)(t))
#define AD(a, l, w) syscall(SYS_madvise, (long)(a), (long)(l), (long)(w))
#define ANON (MAP_PRIVATE | MAP_ANONYMOUS)
#define TOP 0x7ffffffff000UL

static void t_mmap(int fd, int ro, int dir, int pfd) {
  say("-- mmap\n");
  R(MM(0, 0, 3, ANON, -1, 0));
  R(MM(0, -1UL, 3, ANON, -1, 0));
  R(MM(0, -4095UL, 3, ANON, -1, 0));
  R(MM(0, -4096UL, 3, ANON, -1, 0));
  R(MM(0, TOP + PG, 3, ANON, -1, 0));
  R(MM(0, 1UL << 63, 3, ANON, -1, 0));
  A(MM(0, 1, 3, ANON, -1, 0));
  R(MM(0, PG, 3, MAP_ANONYMOUS, -1, 0));
  R(MM(0, PG, 3, 0, fd, 0));
  R(MM(0, PG, 3, MAP_PRIVATE, -1, 0));
  R(MM(0, PG, 3, MAP_PRIVATE, 999, 0));
  R(MM(0, PG, 3, MAP_PRIVATE, fd, 1));
  R(MM(0, PG, 3, ANON, -1, 5));
  A(MM(0, PG, 3, ANON, -1, PG));
  R(MM(0, PG, 3, MAP_SHARED, ro, 0));
  A(MM(0, PG, 1, MAP_SHARED, ro, 0));
  A(MM(0, PG, 3, MAP_PRIVATE, ro, 0));
  R(MM(0, PG, 1, MAP_PRIVATE, dir, 0));
  R(MM(0, PG, 1, MAP_PRIVATE, pfd, 0));
  R(MM(0, PG * 2, 1, MAP_PRIVATE, fd, -PG));
  R(MM(0, PG, 1, MAP_PRIVATE, fd, 1UL << 63));
  R(MM(BASE + 1, PG, 3, ANON | MAP_FIXED, -1, 0));
  R(MM(TOP, PG, 3, ANON | MAP_FIXED, -1, 0));
  R(MM(TOP - PG, 2 * PG, 3, ANON | MAP_FIXED, -1, 0));
  R(MM(-PG, PG, 3, ANON | MAP_FIXED, -1, 0));
  R(MM(0xffff800000000000, PG, 3, ANON | MAP_FIXED, -1, 0));
  A(MM(0xffff800000000000, PG, 3, ANON, -1, 0)); // only a hint
  A(MM(BASE, 4 * PG, 3, ANON | MAP_FIXED, -1, 0));
  R(MM(BASE, PG, 3, ANON | MAP_FIXED_NOREPLACE, -1, 0));
  R(MM(BASE + 3 * PG, 2 * PG, 3, ANON | MAP_FIXED_NOREPLACE, -1, 0));
  R(MM(BASE - PG, 2 * PG, 3, ANON | MAP_FIXED_NOREPLACE, -1, 0));
  CHECK(MM(BASE + 4 * PG, PG, 3, ANON | MAP_FIXED_NOREPLACE, -1, 0) == (long)(BASE + 4 * PG));
  R(MM(0, PG, 3, MAP_SHARED | MAP_ANONYMOUS | MAP_GROWSDOWN, -1, 0));
  A(MM(0, PG, 3, 3 /* SHARED_VALIDATE */, fd, 0));
  R(MM(0, PG, 3, 3 | 0x200000, fd, 0)); // an unknown flag
  A(MM(0, PG, 3, ANON | 0x200000, -1, 0));
  UN(BASE, 5 * PG);
}
static void t_munmap(void) {
  say("-- munmap\n");
  anon_at(BASE, 8 * PG, 3);
  R(UN(BASE, 0));
  R(UN(BASE + 1, PG));
  R(UN(BASE, -1UL));
  R(UN(BASE, TOP));
  R(UN(TOP, PG));
  R(UN(TOP + PG, PG));
  R(UN(-PG, PG));
  R(UN(-PG, 2 * PG));
  R(UN(BASE, TOP + PG));
  R(UN(BASE + 100 * PG, PG)); // nothing there
  R(UN(BASE + PG, 1));
  maps_in("one hole", BASE, BASE + 8 * PG);
  R(UN(BASE - PG, 32 * PG)); // over gaps
  maps_in("nothing", BASE, BASE + 8 * PG);
}
static void t_mprotect(int ro) {
  say("-- mprotect\n");
  anon_at(BASE, 8 * PG, 3);
  UN(BASE + 4 * PG, PG);
  R(MP(BASE, 0, 1));
  R(MP(BASE + 1, PG, 1));
  R(MP(BASE + 1, 0, 1));
  R(MP(BASE, PG, 0x10));
  R(MP(BASE, PG, 0x40000000));
  R(MP(BASE, -1UL, 1));
  R(MP(BASE, -PG, 1));
  R(MP(BASE + 20 * PG, PG, 1));
  R(MP(BASE + 3 * PG, 3 * PG, 1)); // ENOMEM, but the page before the hole has changed
  maps_in("up to the hole", BASE, BASE + 8 * PG);
  R(MP(TOP, PG, 1));
  R(MP(-PG, PG, 1));
  R(MP(BASE, PG, PROT_GROWSDOWN | PROT_READ));
  R(MP(BASE, PG, PROT_GROWSUP | PROT_READ));
  R(MP(BASE, PG, PROT_GROWSUP | PROT_GROWSDOWN | PROT_READ));
  UN(BASE, 8 * PG);
  CHECK(MM(BASE, PG, 1, MAP_SHARED | MAP_FIXED, ro, 0) == (long)BASE);
  R(MP(BASE, PG, 3));
  R(MP(BASE, PG, 4));
  UN(BASE, PG);
}
static void t_brk(void) {
  say("-- brk\n");
  char *b = (char *)syscall(SYS_brk, 0);
  CHECK((char *)syscall(SYS_brk, 1) == b);
  CHECK((char *)syscall(SYS_brk, -1L) == b);
  CHECK((char *)syscall(SYS_brk, TOP + PG) == b);
  CHECK((char *)syscall(SYS_brk, b + 3) == b + 3);
  CHECK((char *)syscall(SYS_brk, b + 3 * PG) == b + 3 * PG);
  memset(b, 7, 3 * PG);
  CHECK((char *)syscall(SYS_brk, b + 1) == b + 1);
  CHECK((char *)syscall(SYS_brk, b + 3 * PG) == b + 3 * PG);
  CHECK(b[0] == 7 && b[2 * PG] == 0 && b[3 * PG - 1] == 0); // what was given back comes back zero
  CHECK((char *)syscall(SYS_brk, b) == b);
  struct rlimit o, l;
  getrlimit(RLIMIT_DATA, &o);
  l = o; l.rlim_cur = 0;
  CHECK(!setrlimit(RLIMIT_DATA, &l));
  CHECK((char *)syscall(SYS_brk, b + 64 * PG) == b);
  CHECK(!setrlimit(RLIMIT_DATA, &o));
  char *up = (char *)(((long)b + 16 * PG) & -PG);
  anon_at(up, PG, 3);
  CHECK((char *)syscall(SYS_brk, up + 8 * PG) == b); // in the way
  munmap(up, PG);
  say("brk holds\n");
}
static void t_mremap(int fd) {
  say("-- mremap\n");
  anon_at(BASE, 8 * PG, 3);
  R(RE(BASE, PG, 0, 0, 0));
  R(RE(BASE + 1, PG, PG, 0, 0));
  R(RE(BASE, PG, PG, 0x80, 0));
  R(RE(BASE, PG, PG, MREMAP_FIXED, BASE + 64 * PG));
  R(RE(BASE, PG, 2 * PG, 0, 0));             // in the way
  R(RE(BASE, 16 * PG, 16 * PG, MREMAP_MAYMOVE, 0) == (long)BASE ? 1 : -1);
  R(RE(BASE, 16 * PG, 32 * PG, MREMAP_MAYMOVE, 0)); // over the end of the mapping
  R(RE(BASE + 32 * PG, PG, 2 * PG, MREMAP_MAYMOVE, 0)); // nothing there
  R(RE(BASE, PG, TOP, MREMAP_MAYMOVE, 0));
  R(RE(BASE, 2 * PG, 2 * PG, MREMAP_MAYMOVE | MREMAP_FIXED, BASE + PG)); // overlap
  R(RE(BASE, 2 * PG, 2 * PG, MREMAP_MAYMOVE | MREMAP_FIXED, BASE + 64 * PG + 5));
  R(RE(BASE, 2 * PG, 2 * PG, MREMAP_MAYMOVE | MREMAP_FIXED, TOP));
  R(RE(BASE, 2 * PG, 2 * PG, MREMAP_MAYMOVE | MREMAP_FIXED, -PG));
  R(RE(BASE, 0, PG, MREMAP_MAYMOVE, 0)); // old size 0 is for shared mappings
  R(RE(BASE, PG, 2 * PG, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, 0));
  R(RE(BASE, PG, PG, MREMAP_DONTUNMAP, 0));
  R(RE(TOP + PG, PG, PG, 0, 0));
  CHECK(RE(BASE, 8 * PG, 4 * PG, 0, 0) == (long)BASE);
  CHECK(RE(BASE, 4 * PG, 6 * PG, 0, 0) == (long)BASE);
  maps_in("shrunk, grown", BASE, BASE + 16 * PG);
  UN(BASE, 16 * PG);
  CHECK(MM(BASE, 2 * PG, 3, MAP_SHARED | MAP_FIXED, fd, 0) == (long)BASE);
  char *q = (char *)RE(BASE, 0, 2 * PG, MREMAP_MAYMOVE, 0); // a second window
  CHECK(q != MAP_FAILED && q != BASE);
  BASE[5] = 'z';
  CHECK(q[5] == 'z');
  UN(q, 2 * PG);
  UN(BASE, 2 * PG);
}
static void t_madvise(void) {
  say("-- madvise\n");
  anon_at(BASE, 4 * PG, 3);
  R(AD(BASE, 0, MADV_DONTNEED));
  R(AD(BASE, 0, 77777));
  R(AD(BASE, PG, 77777));
  R(AD(BASE, PG, -1));
  R(AD(BASE + 1, PG, MADV_DONTNEED));
  R(AD(BASE, -1UL, MADV_DONTNEED));
  R(AD(BASE, -PG, MADV_DONTNEED));
  R(AD(BASE, 1, MADV_DONTNEED));
  R(AD(BASE, 8 * PG, MADV_DONTNEED)); // runs into nothing
  R(AD(BASE + 32 * PG, PG, MADV_DONTNEED));
  R(AD(BASE, PG, MADV_NORMAL));
  R(AD(BASE, PG, MADV_RANDOM));
  R(AD(BASE, PG, MADV_SEQUENTIAL));
  R(AD(BASE, 4 * PG, MADV_NORMAL));
  R(AD(BASE, PG, MADV_DONTFORK));
  R(AD(BASE, PG, MADV_DOFORK));
  R(AD(BASE, PG, MADV_WIPEONFORK));
  R(AD(BASE, PG, MADV_KEEPONFORK));
  char *s = mmap(0, PG, 3, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  R(AD(s, PG, MADV_WIPEONFORK));
  R(AD(s, PG, MADV_WILLNEED));
  R(AD(s, PG, MADV_DONTNEED));
  UN(s, PG);
  UN(BASE, 4 * PG);
}
static void t_mincore(void) {
  say("-- mincore\n");
  unsigned char v[8];
  anon_at(BASE, 4 * PG, 3);
  BASE[PG] = 1;
  memset(v, 0xee, 8);
  R(syscall(SYS_mincore, BASE, 4 * PG, v));
  say("resident %d%d%d%d, byte after %x\n", v[0] & 1, v[1] & 1, v[2] & 1, v[3] & 1, v[4]);
  R(syscall(SYS_mincore, BASE + 1, PG, v));
  R(syscall(SYS_mincore, BASE, 8 * PG, v));
  R(syscall(SYS_mincore, BASE, PG, 1L));
  R(syscall(SYS_mincore, BASE, 0, v));
  R(syscall(SYS_mincore, BASE, -1UL, v));
  R(syscall(SYS_mincore, TOP + PG, PG, v));
  say("-- msync\n");
  R(syscall(SYS_msync, BASE, PG, MS_SYNC));
  R(syscall(SYS_msync, BASE, PG, MS_ASYNC));
  R(syscall(SYS_msync, BASE, PG, MS_INVALIDATE));
  R(syscall(SYS_msync, BASE, PG, MS_SYNC | MS_ASYNC));
  R(syscall(SYS_msync, BASE, PG, 64));
  R(syscall(SYS_msync, BASE + 1, PG, MS_SYNC));
  R(syscall(SYS_msync, BASE, 0, MS_SYNC));
  R(syscall(SYS_msync, BASE, 8 * PG, MS_SYNC));
  R(syscall(SYS_msync, BASE, -PG, MS_SYNC));
  UN(BASE, 4 * PG);
}
static void t_memfd(void) {
  say("-- memfd_create\n");
  char longname[300];
  memset(longname, 'a', sizeof longname);
  longname[249] = 0;
  int f = syscall(SYS_memfd_create, longname, 0);
  CHECK(f >= 0);
  close(f);
  longname[249] = 'a'; longname[250] = 0;
  R(syscall(SYS_memfd_create, longname, 0));
  R(syscall(SYS_memfd_create, 1L, 0));
  R(syscall(SYS_memfd_create, "x", 0x4000));
  f = syscall(SYS_memfd_create, "hello", 1 /* CLOEXEC */);
  CHECK(f >= 0 && (fcntl(f, F_GETFD) & FD_CLOEXEC));
  R(ftruncate(f, -1));
  R(ftruncate(f, 3 * PG + 5));
  struct stat st;
  fstat(f, &st);
  say("size %ld, regular %d, links %ld\n", (long)st.st_size, S_ISREG(st.st_mode), (long)st.st_nlink);
  R(pwrite(f, "abc", 3, 4 * PG));
  R(lseek(f, 0, SEEK_END));
  CHECK(mmap(BASE, 2 * PG, 1, MAP_SHARED | MAP_FIXED, f, PG) == BASE);
  maps_in("a memfd", BASE, BASE + 8 * PG);
  UN(BASE, 2 * PG);
  close(f);
}
int main(void) {
  mkdir("/tmp", 0777);
  const char *path = "/tmp/mm_errno.file";
  int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0644), ro = open(path, O_RDONLY), dir = open("/tmp", O_RDONLY), pf[2];
  CHECK(fd >= 0 && ro >= 0 && dir >= 0 && !pipe(pf) && !ftruncate(fd, 4 * PG));
  t_mmap(fd, ro, dir, pf[0]);
  t_munmap();
  t_mprotect(ro);
  t_brk();
  t_mremap(fd);
  t_madvise();
  t_mincore();
  t_memfd();
  unlink(path);
  return 0;
}
