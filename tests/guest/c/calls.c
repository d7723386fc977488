// calls DIR: what calls about files say, where that is easily got wrong. Every claim holds on Linux's ext4 (`calls .` on your
// machine); `calls DIR DISK` mounts the disk there first.
#include "t.h"
#include <limits.h>
#include <sys/mount.h>
#include <sys/sendfile.h>
#include <sys/uio.h>

// Not in every libc.
#define HIPRI 1
#define DSYNC 2
#define NOWAIT 8
#define APPEND 0x10
#define NOAPPEND 0x20
#define UNKNOWN 0x1000

static long size(int f) {
  struct stat st;
  CHECK(!fstat(f, &st));
  return st.st_size;
}
// `pages` of the pattern, on the disk; opened with `flags`.
static int file(const char *name, size_t pages, int flags) {
  int f = open(name, O_CREAT | O_TRUNC | O_WRONLY, 0644);
  char *b = anon((pages + 1) * PG);
  for (size_t i = 0; i < pages * PG; i += 8) *(uint64_t *)(b + i) = pattern(i);
  CHECK(f >= 0 && write(f, b, pages * PG) == (ssize_t)(pages * PG) && !fsync(f) && !close(f) && !munmap(b, (pages + 1) * PG));
  f = open(name, flags);
  CHECK(f >= 0);
  return f;
}
#define FAILS(c, e) CHECK((c) == -1 && errno == (e))

// Memory that is there in part: of a direct transfer nothing counts then.
static void direct(void) {
  int d = file("direct", 64, O_RDWR | O_DIRECT), f = open("direct", O_RDWR);
  char *h = anon(16 * PG), *b = anon(64 * PG);
  CHECK(f >= 0 && !munmap(h + 3 * PG, PG) && !mprotect(h + 6 * PG, PG, PROT_READ) && !mprotect(h + 8 * PG, PG, PROT_NONE));
  FAILS(pread(d, h, 16 * PG, 5 * PG), EFAULT);
  FAILS(pread(d, h + 4 * PG, 4 * PG, 0), EFAULT);
  FAILS(pread(d, h + 7 * PG, 4 * PG, 0), EFAULT);
  CHECK(pread(d, h + 4 * PG, 2 * PG, PG) == 2 * (ssize_t)PG && is_pattern(h + 4 * PG, PG, 2 * PG));
  CHECK(lseek(d, 8 * PG, SEEK_SET) == 8 * (off_t)PG);
  FAILS(read(d, h, 16 * PG), EFAULT);
  CHECK(lseek(d, 0, SEEK_CUR) == 8 * (off_t)PG);
  struct iovec v[3] = {{b, PG}, {(char *)PG, PG}, {b, PG}};
  FAILS(preadv(d, v, 3, 0), EFAULT);
  // Writes: inside, and past the end, where the file must not grow.
  FAILS(pwritev(d, v, 3, 0), EFAULT);
  FAILS(pwrite(d, h, 8 * PG, 32 * PG), EFAULT);
  FAILS(pwrite(d, h, 8 * PG, 63 * PG), EFAULT);
  FAILS(pwrite(d, h, 8 * PG, 80 * PG), EFAULT);
  CHECK(size(d) == 64 * (long)PG && pread(f, b, PG, 63 * PG) == (ssize_t)PG);
  FAILS(write(d, h, 16 * PG), EFAULT);
  CHECK(lseek(d, 0, SEEK_CUR) == 8 * (off_t)PG && pwrite(d, h + 4 * PG, 2 * PG, 64 * PG) == 2 * (ssize_t)PG && size(d) == 66 * (long)PG);
  // More pages than one transfer has.
  char *large = anon(300 * PG);
  CHECK(!munmap(large + 290 * PG, 10 * PG));
  FAILS(pwrite(d, large, 300 * PG, 66 * PG), EFAULT);
  CHECK(size(d) == 66 * (long)PG && pwrite(d, large, 290 * PG, 66 * PG) == 290 * (ssize_t)PG);
  FAILS(pread(d, large, 300 * PG, 0), EFAULT);
  // Behind the end there is nothing to be aligned to.
  CHECK(pread(d, b, 511, 400 * PG) == 0 && pread(d, b, PG, 356 * PG) == 0);
  FAILS(pread(d, b, 511, 0), EINVAL);
  // The file itself as the buffer.
  char *s = mmap(0, 64 * PG, PROT_READ | PROT_WRITE, MAP_SHARED, d, 0);
  CHECK(s != MAP_FAILED && pread(d, s, 4 * PG, 16 * PG) == 4 * (ssize_t)PG && is_pattern(s, 16 * PG, 4 * PG));
  CHECK(!fsync(d) && pread(d, b, 4 * PG, 0) == 4 * (ssize_t)PG && is_pattern(b, 16 * PG, 4 * PG));
  s[0] = 'q';
  CHECK(pwrite(d, s, 4 * PG, 40 * PG) == 4 * (ssize_t)PG && pread(d, b, 4 * PG, 40 * PG) == 4 * (ssize_t)PG && b[0] == 'q');
  // Another file as the buffer: shared, and the disk gets it; private, and it does not. Then behind its end.
  int o = file("direct2", 16, O_RDWR);
  char *os = mmap(0, 16 * PG, PROT_READ | PROT_WRITE, MAP_SHARED, o, 0), *op = mmap(0, 16 * PG, PROT_READ | PROT_WRITE, MAP_PRIVATE, o, 0);
  CHECK(os != MAP_FAILED && op != MAP_FAILED && pread(d, op, 4 * PG, 20 * PG) == 4 * (ssize_t)PG && is_pattern(os, 0, 16 * PG) && is_pattern(op, 20 * PG, 4 * PG));
  CHECK(pread(d, os, 4 * PG, 24 * PG) == 4 * (ssize_t)PG && is_pattern(os, 24 * PG, 4 * PG) && is_pattern(op, 20 * PG, 4 * PG));
  CHECK(!fsync(o) && !posix_fadvise(o, 0, 0, POSIX_FADV_DONTNEED) && pread(o, b, 4 * PG, 0) == 4 * (ssize_t)PG && is_pattern(b, 24 * PG, 4 * PG));
  CHECK(!ftruncate(o, 2 * PG + 100));
  FAILS(pread(d, os + 3 * PG, PG, 0), EFAULT);
  FAILS(pwrite(d, os, 8 * PG, 0), EFAULT);
  CHECK(!munmap(s, 64 * PG) && !munmap(os, 16 * PG) && !munmap(op, 16 * PG) && !close(o) && !close(f) && !close(d));
}

static long reads(int f, struct iovec *v, long at, int flags) { return syscall(SYS_preadv2, f, v, 1, at, 0, flags); }
static long writes(int f, struct iovec *v, long at, int flags) { return syscall(SYS_pwritev2, f, v, 1, at, 0, flags); }
static void flags(void) {
  char b[100] = "";
  struct iovec v = {b, 100}, page = {anon(PG), PG}, none = {b, 0}, wrong = {(char *)PG, 100};
  int f = file("flags", 8, O_RDWR), a = open("flags", O_RDWR | O_APPEND), w = open("flags", O_WRONLY), d = open("flags", O_RDWR | O_DIRECT);
  CHECK(a >= 0 && w >= 0 && d >= 0);
  // -1 is the file's own position.
  CHECK(reads(f, &v, -1, 0) == 100 && lseek(f, 0, SEEK_CUR) == 100 && reads(f, &v, 0, HIPRI | DSYNC) == 100 && lseek(f, 0, SEEK_CUR) == 100);
  FAILS(reads(f, &v, -2, 0), EINVAL);
  // Whose fault it is first.
  FAILS(reads(f, &v, 0, UNKNOWN), EOPNOTSUPP);
  FAILS(writes(f, &v, 0, UNKNOWN), EOPNOTSUPP);
  FAILS(writes(f, &v, 0, APPEND | NOAPPEND), EINVAL);
  FAILS(reads(-1, &v, 0, UNKNOWN), EBADF);
  FAILS(reads(w, &v, 0, UNKNOWN), EBADF);
  FAILS(reads(f, (struct iovec *)8, 0, UNKNOWN), EFAULT);
  CHECK(reads(f, &none, 0, UNKNOWN) == 0);
  // What is in memory, and no waiting for the disk.
  CHECK(!posix_fadvise(f, 0, 0, POSIX_FADV_DONTNEED));
  FAILS(reads(f, &v, 0, NOWAIT), EAGAIN);
  CHECK(reads(f, &v, 0, 0) == 100 && reads(f, &v, 0, NOWAIT) == 100 && is_pattern(b, 0, 96) && reads(f, &v, 8 * PG, NOWAIT) == 0);
  FAILS(reads(f, &wrong, 0, NOWAIT), EFAULT);
  FAILS(writes(f, &v, 0, NOWAIT), EOPNOTSUPP);
  // At the end, or not.
  CHECK(writes(f, &v, 0, APPEND) == 100 && size(f) == 8 * (long)PG + 100 && lseek(f, 0, SEEK_CUR) == 100);
  CHECK(writes(f, &v, -1, APPEND | DSYNC) == 100 && size(f) == 8 * (long)PG + 200 && lseek(f, 0, SEEK_CUR) == size(f));
  memset(b, 'n', 100);
  CHECK(writes(a, &v, 50, NOAPPEND) == 100 && size(f) == 8 * (long)PG + 200 && pread(f, b, 100, 100) == 100 && b[49] == 'n' && b[50] != 'n');
  CHECK(writes(a, &v, 50, 0) == 100 && size(f) == 8 * (long)PG + 300);
  CHECK(!ftruncate(f, 8 * PG) && writes(d, &page, 0, APPEND) == (ssize_t)PG && size(f) == 9 * (long)PG);
  // Pipes, and files in memory.
  int p[2], m = syscall(SYS_memfd_create, "m", 0);
  CHECK(!pipe(p) && m >= 0);
  FAILS(reads(p[0], &v, -1, NOWAIT), EAGAIN);
  FAILS(reads(p[0], &v, 0, 0), ESPIPE);
  CHECK(writes(p[1], &v, -1, NOWAIT) == 100 && reads(p[0], &v, -1, NOWAIT) == 100);
  CHECK(writes(m, &v, 0, 0) == 100 && writes(m, &v, 0, APPEND) == 100 && size(m) == 200);
  FAILS(reads(m, &v, 0, NOWAIT), EOPNOTSUPP);
  FAILS(writes(m, &v, 0, NOWAIT), EOPNOTSUPP);
  CHECK(!close(f) && !close(a) && !close(w) && !close(d) && !close(m) && !close(p[0]) && !close(p[1]));
}

static long copied(int f, long at, int g, long to, size_t len) { return syscall(SYS_copy_file_range, f, &at, g, &to, len, 0); }
static void copies(void) {
  int f = file("from", 8, O_RDWR), g = file("to", 0, O_RDWR), m = syscall(SYS_memfd_create, "m", 0);
  char *b = anon(8 * PG);
  CHECK(copied(f, 0, g, 0, 100000) == 8 * (long)PG && pread(g, b, 8 * PG, 0) == 8 * (ssize_t)PG && is_pattern(b, 0, 8 * PG));
  // No byte of what there is lies where it goes to, whatever was asked for.
  CHECK(copied(f, 0, f, 8 * PG, 1 << 30) == 8 * (long)PG && size(f) == 16 * (long)PG && pread(f, b, 8 * PG, 8 * PG) == 8 * (ssize_t)PG && is_pattern(b, 0, 8 * PG));
  FAILS(copied(f, 0, f, 100, 5000), EINVAL);
  FAILS(copied(f, 0, f, 0, 5), EINVAL);
  FAILS(copied(f, -1, g, 0, 5), EOVERFLOW);
  CHECK(copied(f, LONG_MAX, g, 0, 5) == 0 && copied(f, 16 * PG, g, 0, 5) == 0);
  FAILS(copied(f, 0, m, 0, 5), EXDEV);
  CHECK(!close(f) && !close(g) && !close(m));
}

static void ranges(void) {
  int f = file("ranges", 8, O_RDWR);
  FAILS(readahead(f, 0, -1), EINVAL);
  CHECK(!readahead(f, -1, 100));
  FAILS(sync_file_range(-1, 0, 0, 99), EBADF);
  FAILS(sync_file_range(f, 0, 0, 99), EINVAL);
  // A private page that was written goes with the bytes behind it when the file is cut, and stays when they are punched out.
  char *s = mmap(0, 8 * PG, PROT_READ | PROT_WRITE, MAP_SHARED, f, 0), *p = mmap(0, 8 * PG, PROT_READ | PROT_WRITE, MAP_PRIVATE, f, 0);
  CHECK(s != MAP_FAILED && p != MAP_FAILED);
  p[2 * PG] = p[6 * PG] = 'p', s[2 * PG] = 's';
  CHECK(!fallocate(f, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 2 * PG, PG) && !s[2 * PG] && p[2 * PG] == 'p');
  CHECK(!ftruncate(f, 4 * PG) && !strcmp(probe(p + 6 * PG, 'r'), "BUS_ADRERR") && !ftruncate(f, 8 * PG) && !p[6 * PG] && p[2 * PG] == 'p');
  CHECK(!munmap(s, 8 * PG) && !munmap(p, 8 * PG) && !close(f));
}

// Nobody writes a program that runs, and nobody runs a file that is being written.
static void running(void) {
  int in = open("/proc/self/exe", O_RDONLY), out = open("prog", O_CREAT | O_RDWR | O_TRUNC, 0755), go[2], here[2], st;
  ssize_t n;
  CHECK(in >= 0 && out >= 0 && !pipe(go) && !pipe(here));
  while ((n = sendfile(out, in, 0, 1 << 20)) > 0) {}
  CHECK(!n);
  FAILS(execl("prog", "prog", "wait", (char *)0), ETXTBSY);
  CHECK(!close(out));
  pid_t c = fork();
  if (!c) {
    CHECK(dup2(go[0], 0) == 0 && dup2(here[1], 1) == 1 && !close(go[1]));
    execl("prog", "prog", "wait", (char *)0);
    _exit(1);
  }
  char x;
  CHECK(read(here[0], &x, 1) == 1);
  FAILS(open("prog", O_WRONLY), ETXTBSY);
  FAILS(open("prog", O_RDONLY | O_TRUNC), ETXTBSY);
  FAILS(truncate("prog", 5), ETXTBSY);
  CHECK(!rename("prog", "moved") && !unlink("moved") && !close(go[1]) && waitpid(c, &st, 0) == c && WEXITSTATUS(st) == 44);
}

int main(int n, char **v) {
  char x = 0;
  if (n == 2 && !strcmp(v[1], "wait")) return write(1, &x, 1) == 1 && read(0, &x, 1) == 0 ? 44 : 1;
  CHECK(n >= 2 && (n == 2 || !mount(v[2], v[1], "ext4", 0, "")) && !chdir(v[1]));
  probe_install();
  direct();
  flags();
  copies();
  ranges();
  running();
  CHECK(!chdir("/") && (n == 2 || !umount(v[1])));
  say("ok\n");
  return 0;
}
