// memfd_secret (VMA-11): what may be done with it, what is refused, and that it is gone when it is given back.
#include "t.h"
#include <sys/prctl.h>

static int secret(unsigned flags) { return (int)syscall(SYS_memfd_secret, flags); }
static int fd;
static long locked(void) {
  FILE *f = fopen("/proc/self/status", "r");
  char line[128];
  long v = -1;
  while (fgets(line, sizeof line, f)) sscanf(line, "VmLck: %ld", &v);
  fclose(f);
  return v;
}
static void letters(char *p) { // VmFlags of the mapping at p; soft-dirty depends on how Linux was built
  FILE *f = fopen("/proc/self/smaps", "r");
  char line[512], want[32], *sd;
  int in = 0;
  snprintf(want, 32, "%lx-", (long)p);
  while (fgets(line, sizeof line, f)) {
    if (strchr(line, '-') && strchr(line, '-') < line + 17 && line[0] != 'V' && line[0] != 'P') in = !strncmp(line, want, strlen(want));
    if (!in) continue;
    if (!strncmp(line, "VmFlags:", 8)) {
      if ((sd = strstr(line, " sd"))) memmove(sd, sd + 3, strlen(sd + 3) + 1);
      say("%s", line);
    }
    if (!strncmp(line, "Rss:", 4) || !strncmp(line, "Locked:", 7)) say("%s", line);
  }
  fclose(f);
}
int main(void) {
  probe_install();
  char b[4096];
  R(secret(1));
  R(secret(O_NONBLOCK));
  R(secret(~0u));
  fd = secret(0);
  CHECK(fd >= 0);
  int e = secret(O_CLOEXEC);
  say("close on exec: %d %d\n", fcntl(fd, F_GETFD), fcntl(e, F_GETFD));
  say("flags %x\n", fcntl(fd, F_GETFL));
  char path[64];
  snprintf(path, 64, "/proc/self/fd/%d", fd);
  ssize_t n = readlink(path, b, 99);
  say("name %.*s\n", (int)n, b);
  struct stat st;
  CHECK(!fstat(fd, &st));
  say("mode %o size %ld\n", st.st_mode, (long)st.st_size);
  R(open(path, O_RDWR));
  R(read(fd, b, 1));
  R(write(fd, b, 1));
  R(pread(fd, b, 1, 0));
  R(pwrite(fd, b, 1, 0));
  R(lseek(fd, 0, SEEK_SET));
  R(fallocate(fd, 0, 0, PG));
  R(ftruncate(fd, 0));
  R(ftruncate(fd, -1));
  R(ftruncate(fd, 4 * PG));
  R(ftruncate(fd, 4 * PG));
  R(ftruncate(fd, 0));
  A(mmap(0, PG, 3, MAP_PRIVATE, fd, 0));
  A(mmap(0, PG, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0));
  long before = locked();
  char *p = mmap(BASE, 4 * PG, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
  CHECK(p == BASE);
  say("locked +%ld kB\n", locked() - before);
  letters(p);
  memset(p, 0x55, 2 * PG);
  letters(p);
  say("read %s, zero %d\n", probe(p + 2 * PG, 'r'), p[3 * PG]);
  R(madvise(p, 4 * PG, MADV_DONTNEED));
  R(munlock(p, 4 * PG));
  R(mlock(p, 4 * PG));
  say("locked +%ld kB\n", locked() - before);
  R(mprotect(p, PG, PROT_READ | PROT_EXEC));
  R(mprotect(p, 4 * PG, PROT_READ));
  say("write %s\n", probe(p, 'w'));
  R(mprotect(p, 4 * PG, PROT_READ | PROT_WRITE));
  say("write %s\n", probe(p, 'w'));
  // Calls copy by the program's own addresses.
  int pp[2];
  CHECK(!pipe(pp));
  R(write(pp[1], p, 64));
  R(read(pp[0], p + PG, 64));
  // Another mapping sees the same bytes; beyond the end is nothing.
  char *q = mmap(BASE + 64 * PG, 8 * PG, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
  CHECK(q == BASE + 64 * PG);
  p[3 * PG] = 77;
  say("shared %d, beyond %s\n", q[3 * PG], probe(q + 4 * PG, 'r'));
  // A child shares it; its mapping is not locked.
  pid_t c = fork();
  if (!c) { p[0] = 42; say("a child: locked %ld kB, sees %d\n", locked(), p[3 * PG]); _exit(0); }
  CHECK(waitpid(c, 0, 0) == c);
  say("a child wrote %d\n", p[0]);
  // Kept by a mapping without a descriptor, moved, cut.
  close(fd);
  char *m = mremap(p, 4 * PG, 4 * PG, MREMAP_MAYMOVE | MREMAP_FIXED, BASE + 256 * PG);
  say("moved: %d %d\n", m == BASE + 256 * PG, m[3 * PG]);
  CHECK(!munmap(m + PG, PG) && !munmap(q, 8 * PG));
  say("a rest: %d\n", m[3 * PG]);
  CHECK(!munmap(m, 4 * PG));
  say("locked +%ld kB\n", locked() - before);
  // Limits: without the right to lock, RLIMIT_MEMLOCK counts.
  c = fork();
  if (!c) {
    struct rlimit r = {8 * PG, 8 * PG};
    CHECK(!setrlimit(RLIMIT_MEMLOCK, &r) && !setresuid(65534, 65534, 65534));
    int f = secret(0);
    CHECK(f >= 0 && !ftruncate(f, 64 * PG));
    A(mmap(0, 9 * PG, 3, MAP_SHARED, f, 0));
    A(mmap(0, 6 * PG, 3, MAP_SHARED, f, 0));
    A(mmap(0, 3 * PG, 3, MAP_SHARED, f, 0));
    A(mmap(0, 2 * PG, 3, MAP_SHARED, f, 0));
    _exit(0);
  }
  CHECK(waitpid(c, 0, 0) == c);
  // Many pages, many times: frames go and come.
  for (int round = 0; round < 4; round++) {
    int f = secret(0);
    CHECK(!ftruncate(f, 256 * PG));
    char *a = mmap(0, 256 * PG, 3, MAP_SHARED, f, 0);
    CHECK(a != MAP_FAILED);
    close(f);
    for (int i = 0; i < 256; i++) { CHECK(a[i * PG] == 0 && a[i * PG + 4095] == 0); memset(a + i * PG, 0xaa, PG); }
    if (round % 2) CHECK(!munmap(a, 256 * PG));
  }
  char *z = anon(1024 * PG);
  long sum = 0;
  for (int i = 0; i < 1024; i++) sum += z[i * PG] + z[i * PG + 77];
  say("what comes back is %ld\n", sum);
  return 0;
}
