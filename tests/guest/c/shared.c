// Shared and private mappings of files: one content through every window, and truncation.
#include "t.h"
static const char *path = "/tmp/shared.file";
static void windows(const char *what, int fd) {
  CHECK(!ftruncate(fd, 16 * PG));
  char *a = mmap(0, 16 * PG, 3, MAP_SHARED, fd, 0), *b = mmap(0, 8 * PG, 3, MAP_SHARED, fd, 4 * PG), *v = mmap(0, 16 * PG, 3, MAP_PRIVATE, fd, 0);
  CHECK(a != MAP_FAILED && b != MAP_FAILED && v != MAP_FAILED);
  for (int i = 0; i < 16; i++) a[i * PG + 3] = 'a' + i;
  CHECK(b[3] == 'e' && b[7 * PG + 3] == 'l' && v[3] == 'a' && v[15 * PG + 3] == 'p');
  b[3] = 'X';
  char c[2];
  CHECK(a[4 * PG + 3] == 'X' && pread(fd, c, 1, 4 * PG + 3) == 1 && c[0] == 'X' && v[4 * PG + 3] == 'X');
  v[4 * PG + 3] = 'P'; // private from here on
  CHECK(a[4 * PG + 3] == 'X' && pread(fd, c, 1, 4 * PG + 3) == 1 && c[0] == 'X');
  CHECK(pwrite(fd, "Y", 1, 4 * PG + 3) == 1 && a[4 * PG + 3] == 'Y' && b[3] == 'Y' && v[4 * PG + 3] == 'P');
  CHECK(pwrite(fd, "Z", 1, 5 * PG + 3) == 1 && v[5 * PG + 3] == 'Z'); // not yet copied: still the file's
  // A child writes through the shared window, and into its own private one.
  pid_t k = fork();
  if (!k) { a[6 * PG] = 61; v[6 * PG] = 62; v[4 * PG + 3] = 'C'; _exit(v[6 * PG] == 62 ? 0 : 1); }
  int st;
  waitpid(k, &st, 0);
  CHECK(st == 0 && a[6 * PG] == 61 && v[6 * PG] == 61 && v[4 * PG + 3] == 'P' && b[2 * PG] == 61);
  // Truncation: the page with the new end keeps its head, its tail reads zero, beyond is SIGBUS.
  a[2 * PG + 200] = 1;
  CHECK(!ftruncate(fd, 2 * PG + 100));
  say("%s: below the end %s, ", what, probe(a + PG, 'w'));
  say("tail %s (%d), ", probe(a + 2 * PG + 200, 'w'), a[2 * PG + 200]);
  say("beyond %s, ", probe(a + 3 * PG, 'r'));
  say("%s, ", probe(a + 15 * PG, 'W'));
  say("b %s, ", probe(b, 'r'));
  say("private copy %s, ", probe(v + 4 * PG + 3, 'r'));
  say("private clean %s\n", probe(v + 7 * PG, 'r'));
  CHECK(!ftruncate(fd, 16 * PG)); // grown again: zero, not the old content
  CHECK(a[3 * PG + 3] == 0 && a[15 * PG + 3] == 0 && a[2 * PG + 200] == 0 && b[3] == 0 && a[3] == 'a');
  say("%s: system call on a page beyond the end: ", what);
  CHECK(!ftruncate(fd, PG));
  int pf[2];
  CHECK(!pipe(pf));
  R(write(pf[1], a + 2 * PG, 1));
  close(pf[0]); close(pf[1]);
  munmap(a, 16 * PG); munmap(b, 8 * PG); munmap(v, 16 * PG);
}
static void anonymous(void) {
  volatile int *s = mmap(0, 64 * PG, 3, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  CHECK(s != MAP_FAILED);
  for (int k = 0; k < 4; k++) {
    pid_t c = fork();
    CHECK(c >= 0);
    if (!c) {
      for (int r = 0; r < 5000; r++) __atomic_add_fetch(&s[0], 1, __ATOMIC_SEQ_CST);
      for (int i = 1; i < 64; i++) __atomic_add_fetch(&s[i * 1024], k + 1, __ATOMIC_SEQ_CST); // first touch by whoever comes first
      _exit(0);
    }
  }
  int st;
  for (int k = 0; k < 4; k++) { CHECK(wait(&st) > 0 && st == 0); }
  CHECK(s[0] == 20000);
  for (int i = 1; i < 64; i++) CHECK(s[i * 1024] == 10);
  munmap((void *)s, 64 * PG);
  say("anonymous shared: %d\n", 20000);
}
static void outlives(void) { // a mapping outlives descriptor and name
  int fd = open("/tmp/gone", O_RDWR | O_CREAT | O_TRUNC, 0600);
  CHECK(fd >= 0 && write(fd, "still here", 10) == 10);
  char *a = mmap(0, PG, 3, MAP_SHARED, fd, 0);
  close(fd);
  CHECK(!unlink("/tmp/gone") && !memcmp(a, "still here", 10));
  a[0] = 'S';
  CHECK(!memcmp(a, "Still here", 10) && a[10] == 0);
  munmap(a, PG);
  CHECK(open("/tmp/gone", O_RDONLY) < 0);
  fd = open("/dev/shm/x", O_RDWR | O_CREAT | O_TRUNC, 0600);
  CHECK(fd >= 0 && !ftruncate(fd, PG));
  a = mmap(0, PG, 3, MAP_SHARED, fd, 0);
  strcpy(a, "dev shm");
  char b[8];
  CHECK(pread(fd, b, 8, 0) == 8 && !strcmp(b, "dev shm"));
  close(fd);
  unlink("/dev/shm/x");
  say("outlives: %s\n", a);
}
static void special(void) {
  int z = open("/dev/zero", O_RDWR);
  CHECK(z >= 0);
  char *a = mmap(0, 2 * PG, 3, MAP_PRIVATE, z, 0);
  CHECK(a != MAP_FAILED && a[5] == 0);
  a[5] = 1;
  say("/dev/zero: %d\n", a[5]);
  int n = open("/dev/null", O_RDWR);
  R(mmap(0, PG, 3, MAP_PRIVATE, n, 0));
}
static void around(void) { // every page of a large file through a private, then a written mapping
  int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0644);
  static char buf[64 * 4096];
  for (unsigned i = 0; i < sizeof buf; i++) buf[i] = (i >> 12) * 7 + i;
  for (int k = 0; k < 16; k++) CHECK(write(fd, buf, sizeof buf) == sizeof buf);
  char *a = mmap(0, 16 * sizeof buf, 3, MAP_PRIVATE, fd, 0);
  for (unsigned i = 0; i < 16 * sizeof buf; i += 1021) CHECK(a[i] == buf[i % sizeof buf]);
  for (int i = 0; i < 1024; i += 2) a[i * PG] = 1;
  for (int i = 1; i < 1024; i += 2) CHECK(a[i * PG] == buf[i % 64 * PG]);
  CHECK(pread(fd, buf, 1, 2 * PG) == 1 && buf[0] == 14);
  munmap(a, 16 * sizeof buf);
  close(fd);
  say("around: ok\n");
}
int main(void) {
  probe_install();
  mkdir("/tmp", 0777);
  int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0644), m = memfd_create("w", 0);
  CHECK(fd >= 0 && m >= 0);
  windows("file", fd);
  windows("memfd", m);
  anonymous();
  outlives();
  special();
  around();
  unlink(path);
  return 0;
}
