// Files and directories: create, read, write, seek, link, rename, list, and what is refused.
#include "t.h"
#include <sys/uio.h>
#include <dirent.h>
#include <sys/statfs.h>
#include <sys/sendfile.h>
#define D "/tmp/fs.d"
static int names(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }
static void list(const char *d) {
  DIR *h = opendir(d);
  CHECK(h);
  char *n[64];
  int k = 0;
  for (struct dirent *e; (e = readdir(h)) && k < 64;) { char b[300]; snprintf(b, 300, "%s%s", e->d_name, e->d_type == DT_DIR ? "/" : e->d_type == DT_LNK ? "@" : ""); n[k++] = strdup(b); }
  closedir(h);
  qsort(n, k, sizeof *n, names);
  say("%s:", d);
  for (int i = 0; i < k; i++) say(" %s", n[i]);
  say("\n");
}
static void files(void) {
  char b[64];
  int f = open(D "/a", O_RDWR | O_CREAT | O_EXCL, 0640);
  CHECK(f >= 0);
  R(open(D "/a", O_RDWR | O_CREAT | O_EXCL, 0640));
  R(open(D "/none", O_RDONLY));
  R(open(D "/a/b", O_RDONLY));
  R(open(D "/none/b", O_RDWR | O_CREAT, 0600));
  R(open(D, O_WRONLY));
  R(open("", O_RDONLY));
  R(open((char *)8, O_RDONLY));
  R(open(D "/a", O_RDONLY | O_DIRECTORY));
  R(write(f, "hello, world", 12));
  R(lseek(f, -5, SEEK_END));
  R(read(f, b, 64));
  R(lseek(f, -100, SEEK_CUR));
  R(lseek(f, 0, 99));
  R(lseek(f, 100000, SEEK_SET));
  R(read(f, b, 64));
  R(write(f, "!", 1));
  R(pread(f, b, 10, 50000));
  CHECK(b[0] == 0 && b[9] == 0); // a hole
  R(pread(f, b, 10, -1));
  R(pwrite(f, "HELLO", 5, 0));
  R(lseek(f, 0, SEEK_CUR));
  R(read(f, (char *)8, 5));
  R(lseek(f, 0, SEEK_SET));
  R(read(f, (char *)8, 5));
  R(read(f, b, 5));
  say("%.5s\n", b);
  struct stat s;
  CHECK(!fstat(f, &s));
  say("mode %o size %ld links %ld\n", s.st_mode, (long)s.st_size, (long)s.st_nlink);
  int g = open(D "/a", O_WRONLY | O_APPEND);
  CHECK(g >= 0 && write(g, "end", 3) == 3);
  say("append at %ld\n", (long)lseek(g, 0, SEEK_CUR));
  R(read(g, b, 1));
  R(ftruncate(g, 5));
  R(truncate(D "/a", 8));
  R(truncate(D "/none", 8));
  R(truncate(D, 8));
  CHECK(pread(f, b, 64, 0) == 8 && !memcmp(b, "HELLO\0\0\0", 8));
  close(g);
  g = open(D "/a", O_WRONLY | O_TRUNC);
  CHECK(!fstat(f, &s) && s.st_size == 0);
  close(f); close(g);
  f = open(D "/a", O_RDONLY);
  R(write(f, "x", 1));
  R(ftruncate(f, 1));
  R(fcntl(f, F_GETFL) & O_ACCMODE);
  close(f);
}
static void dirs(void) {
  R(mkdir(D "/d", 0755));
  R(mkdir(D "/d", 0755));
  R(mkdir(D "/d/e", 0700));
  R(mkdir(D "/x/y", 0700));
  R(rmdir(D "/d"));
  R(rmdir(D "/a"));
  R(unlink(D "/d"));
  R(unlink(D "/none"));
  for (int i = 0; i < 20; i++) { char p[64]; snprintf(p, 64, D "/d/f%02d", i); int f = open(p, O_CREAT | O_WRONLY, 0600); CHECK(f >= 0); close(f); }
  list(D "/d");
  R(rename(D "/d/f00", D "/d/g"));
  R(rename(D "/d/f01", D "/d/g"));
  R(rename(D "/d/none", D "/d/g"));
  R(rename(D "/d", D "/d/e/in"));
  R(rename(D "/a", D "/d"));
  R(rename(D "/d/e", D "/a"));
  R(rename(D "/d/e", D "/moved"));
  R(link(D "/a", D "/hard"));
  struct stat s, t;
  CHECK(!stat(D "/a", &s) && !stat(D "/hard", &t) && s.st_ino == t.st_ino);
  say("links %ld\n", (long)t.st_nlink);
  R(link(D "/d", D "/harddir"));
  R(symlink("a", D "/soft"));
  R(symlink("loop", D "/loop"));
  R(symlink("d", D "/softdir"));
  R(open(D "/loop", O_RDONLY));
  R(open(D "/soft", O_RDONLY | O_NOFOLLOW));
  char b[64];
  ssize_t n = readlink(D "/soft", b, 64);
  say("readlink %.*s\n", (int)n, b);
  R(readlink(D "/a", b, 64));
  R(readlink(D "/soft", b, 0));
  CHECK(!lstat(D "/soft", &s) && S_ISLNK(s.st_mode) && !stat(D "/soft", &s) && S_ISREG(s.st_mode));
  CHECK(!stat(D "/softdir/../a", &s) && !stat(D "/softdir/g", &s));
  list(D);
  R(unlink(D "/soft"));
  R(unlink(D "/hard"));
  R(chdir(D "/d"));
  say("cwd %s\n", getcwd(b, 64));
  R(getcwd(b, 3) ? 0 : -1);
  R(access("g", F_OK));
  R(access("../a", W_OK));
  R(access("nope", F_OK));
  R(chdir("g"));
  R(chdir(".."));
  int d = open(D, O_RDONLY | O_DIRECTORY);
  CHECK(d >= 0);
  R(openat(d, "a", O_RDONLY) >= 0 ? 0 : -1);
  R(mkdirat(d, "at", 0700));
  R(unlinkat(d, "at", 0));
  R(unlinkat(d, "at", AT_REMOVEDIR));
  R(openat(999, "a", O_RDONLY));
  R(faccessat(d, "a", R_OK, 0));
  R(read(d, b, 1));
  R(write(d, b, 1));
  R(chmod(D "/a", 0400));
  CHECK(!stat(D "/a", &s));
  say("mode %o\n", s.st_mode);
  char longname[300];
  memset(longname, 'n', 299);
  longname[299] = 0;
  R(open(longname, O_CREAT | O_RDWR, 0600));
  char *path = malloc(5000);
  memset(path, '/', 4999);
  path[4999] = 0;
  R(open(path, O_RDONLY));
}
static void more(void) {
  struct statfs sf;
  R(statfs("/tmp", &sf));
  R(statfs("/none", &sf));
  int z = open("/dev/zero", O_RDONLY), n = open("/dev/null", O_RDWR), fu = open("/dev/full", O_RDWR), u = open("/dev/urandom", O_RDONLY);
  char b[64] = "x";
  CHECK(z >= 0 && n >= 0 && fu >= 0 && u >= 0);
  R(read(z, b, 64));
  CHECK(b[0] == 0 && b[63] == 0);
  R(read(n, b, 64));
  R(write(n, b, 64));
  R(write(fu, b, 64));
  R(read(u, b, 64));
  char c[64];
  CHECK(read(u, c, 64) == 64 && memcmp(b, c, 64));
  R(syscall(SYS_getrandom, b, 64, 0));
  R(syscall(SYS_getrandom, b, 64, 0x80));
  int f = open(D "/big", O_RDWR | O_CREAT, 0600);
  static char big[300000];
  for (unsigned i = 0; i < sizeof big; i++) big[i] = i * 7 + (i >> 8);
  CHECK(write(f, big, sizeof big) == sizeof big);
  static char back[300000];
  CHECK(pread(f, back, sizeof back, 0) == sizeof back && !memcmp(big, back, sizeof big));
  struct stat s;
  CHECK(!fstat(f, &s) && s.st_blocks >= 586);
  R(fallocate(f, 0, 0, 400000));
  CHECK(!fstat(f, &s));
  say("size %ld\n", (long)s.st_size);
  R(fsync(f));
  struct rlimit l = {1000, RLIM_INFINITY}, o;
  getrlimit(RLIMIT_FSIZE, &o);
  (void)l;
  // An open file outlives its name; the space comes back with the last descriptor.
  CHECK(!unlink(D "/big") && pread(f, back, 100, 1000) == 100 && !memcmp(back, big + 1000, 100));
  CHECK(!fstat(f, &s) && s.st_nlink == 0);
  close(f);
  struct timespec ts[2] = {{1000000000, 5}, {1100000000, 6}};
  CHECK(!utimensat(AT_FDCWD, D "/a", ts, 0) && !stat(D "/a", &s));
  say("times %ld %ld\n", (long)s.st_atime, (long)s.st_mtime);
}
static void wipe(const char *d) {
  DIR *h = opendir(d);
  if (!h) return;
  for (struct dirent *e; (e = readdir(h));) {
    if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, "..")) continue;
    char p[512];
    snprintf(p, 512, "%s/%s", d, e->d_name);
    if (unlink(p)) wipe(p);
  }
  closedir(h);
  rmdir(d);
}
// Structures at the end of the address space, and writes that are on the medium.
static void ends(void) {
  R(syscall(SYS_openat2, AT_FDCWD, "/", (void *)-8L, 24));
  R(syscall(SYS_openat2, AT_FDCWD, "/", (void *)-8L, 64));
  struct iovec v = {"x", 1};
  int f = open(D "/synced", O_RDWR | O_CREAT, 0600), n = open("/dev/null", O_WRONLY), p[2];
  CHECK(f >= 0 && n >= 0 && !pipe(p));
  for (int flags = 2; flags <= 6; flags += 2) {
    R(pwritev2(f, &v, 1, 0, flags));
    R(pwritev2(n, &v, 1, -1, flags));
    R(pwritev2(p[1], &v, 1, -1, flags));
    R(preadv2(p[0], &v, 0, -1, flags));
  }
  R(pwritev2(f, &v, 1, 0, 1 << 30));
  close(f); close(n); close(p[0]); close(p[1]);
}
int main(void) {
  umask(022);
  mkdir("/tmp", 0777);
  wipe(D);
  CHECK(!mkdir(D, 0755));
  files(); dirs(); more(); ends();
  wipe(D);
  R(access(D, F_OK));
  return 0;
}
