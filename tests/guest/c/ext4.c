// Files of ext4 on a disk. `ext4 WHAT DISK...` mounts the (first) disk, does something, says what every file holds (the
// host finds the same on the image), and unmounts. What it does between can be done to any file system.
#include "ext4.h"
#include <dirent.h>
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/sendfile.h>
#include <sys/statfs.h>
#include <sys/xattr.h>

static void put(const char *name, const char *text) {
  int f = made(name, O_WRONLY | O_TRUNC);
  CHECK(write(f, text, strlen(text)) == (ssize_t)strlen(text) && !close(f));
}
static const char *get(const char *name) {
  static char b[9000];
  int f = open(name, O_RDONLY);
  CHECK(f >= 0);
  ssize_t n = read(f, b, sizeof b - 1);
  CHECK(n >= 0 && !close(f));
  b[n] = 0;
  return b;
}
static long counter(const char *name) {
  static char b[4096];
  int f = open("/sys/kernel/debug/block", O_RDONLY);
  CHECK(f >= 0);
  ssize_t n = read(f, b, sizeof b - 1);
  CHECK(n > 0 && !close(f));
  b[n] = 0;
  char *at = strstr(b, name);
  CHECK(at);
  return atol(at + strlen(name));
}

static void names(void) {
  struct stat st, su;
  char long_name[300];
  // Names that move within a directory, and go. First of all: where blocks have been freed, hashed directories lie in pieces, and
  // `rsext4` 0.9.2 forgets to count blocks of their extent trees (decision 0012).
  char from[60], to[60];
  for (int i = 0; i < 900; i++) {
    snprintf(from, sizeof from, M "short%d.%d", i / 300, i % 300), snprintf(to, sizeof to, M "renamed%d.%d", i / 300, i % 300);
    CHECK(!close(made(from, O_WRONLY)) && !rename(from, to));
    if (i % 2) CHECK(!unlink(to));
  }
  // Many names: the directory is hashed soon. Half of them go again.
  CHECK(!mkdir(M "many", 0755));
  char name[60];
  for (int i = 0; i < 1200; i++) {
    snprintf(name, sizeof name, M "many/a name of some length %d", i);
    CHECK(!close(made(name, O_WRONLY)));
  }
  for (int i = 0; i < 1200; i += 2) {
    snprintf(name, sizeof name, M "many/a name of some length %d", i);
    CHECK(!unlink(name));
  }
  CHECK(mkdir(M "d", 0750) == 0 && !stat(M "d", &st) && st.st_mode == (S_IFDIR | 0750) && st.st_nlink == 2);
  CHECK(mkdir(M "d", 0750) == -1 && errno == EEXIST);
  CHECK(mkdir(M "none/x", 0750) == -1 && errno == ENOENT);
  memset(long_name, 'n', 256), long_name[256] = 0;
  int dir = open(M "d", O_RDONLY | O_DIRECTORY);
  CHECK(openat(dir, long_name, O_CREAT | O_WRONLY, 0600) == -1 && errno == ENAMETOOLONG);
  long_name[255] = 0;
  int f = openat(dir, long_name, O_CREAT | O_EXCL | O_WRONLY, 0600);
  CHECK(f >= 0 && write(f, "long", 4) == 4 && !close(f) && openat(dir, long_name, O_CREAT | O_EXCL | O_WRONLY, 0600) == -1 && errno == EEXIST);
  put(M "a", "content of a");
  CHECK(!link(M "a", M "d/b") && !stat(M "d/b", &st) && st.st_nlink == 2 && !stat(M "a", &su) && su.st_ino == st.st_ino);
  put(M "d/b", "written as b");
  CHECK(!strcmp(get(M "a"), "written as b") && !unlink(M "a") && !stat(M "d/b", &st) && st.st_nlink == 1);
  CHECK(!symlink("b", M "d/s") && !strcmp(get(M "d/s"), "written as b"));
  char target[100];
  CHECK(readlink(M "d/s", target, sizeof target) == 1 && *target == 'b' && !lstat(M "d/s", &st) && S_ISLNK(st.st_mode) && st.st_size == 1);
  memset(long_name, 't', 200), long_name[200] = 0;
  CHECK(!symlink(long_name, M "d/far") && readlink(M "d/far", target, sizeof target) == sizeof target && open(M "d/far", O_RDONLY) == -1 && errno == ENOENT);
  CHECK(link(M "d", M "e") == -1 && errno == EPERM);
  CHECK(unlink(M "d") == -1 && errno == EISDIR && rmdir(M "d/b") == -1 && errno == ENOTDIR && rmdir(M "d") == -1 && errno == ENOTEMPTY);
  // Renames: over a file, over an empty directory, into itself, exchanged.
  put(M "new", "new one");
  CHECK(!rename(M "new", M "d/b") && !strcmp(get(M "d/b"), "new one"));
  CHECK(!mkdir(M "x", 0755) && !mkdir(M "x/y", 0755) && !mkdir(M "z", 0755) && !rename(M "x/y", M "z"));
  CHECK(rename(M "x", M "x/q") == -1 && errno == EINVAL && rename(M "d/b", M "z") == -1 && errno == EISDIR && rename(M "z", M "d/b") == -1 && errno == ENOTDIR);
  CHECK(rename(M "x", M "d") == -1 && errno == ENOTEMPTY && !rename(M "z", M "x/y") && !stat(M "x", &st) && st.st_nlink == 3);
  put(M "left", "left"), put(M "x/right", "right");
  CHECK(!syscall(SYS_renameat2, AT_FDCWD, M "left", AT_FDCWD, M "x/right", 2) && !strcmp(get(M "left"), "right") && !strcmp(get(M "x/right"), "left"));
  CHECK(syscall(SYS_renameat2, AT_FDCWD, M "left", AT_FDCWD, M "x/right", 1) == -1 && errno == EEXIST);
  // A file without a name lives as long as it is open.
  f = made(M "gone", O_RDWR);
  CHECK(write(f, "still here", 10) == 10 && !unlink(M "gone") && stat(M "gone", &st) == -1 && errno == ENOENT);
  CHECK(pread(f, target, 10, 0) == 10 && !memcmp(target, "still here", 10) && !fstat(f, &st) && !st.st_nlink && !close(f));
  // A directory without a name, in which somebody stands.
  CHECK(!mkdir(M "gone", 0755) && !chdir(M "gone") && !rmdir(M "gone") && open("q", O_CREAT | O_WRONLY, 0600) == -1 && errno == ENOENT && !chdir("/"));
  // Attributes.
  struct timespec t[2] = {{1000000000, 0}, {1100000000, 0}};
  CHECK(!chmod(M "left", 0604) && !chown(M "left", 12, 34) && !utimensat(AT_FDCWD, M "left", t, 0));
  CHECK(!mknod(M "null", S_IFCHR | 0666, 0x103) && !mkfifo(M "fifo", 0600));
  f = open(M "null", O_WRONLY);
  CHECK(f >= 0 && write(f, "x", 1) == 1 && !close(f));
  for (int round = 0; round < 2; round++) {
    DIR *d = opendir(M "many");
    CHECK(d);
    int seen = 0, dots = 0;
    char had[1200] = {0};
    for (struct dirent *e; (e = readdir(d));) {
      int i;
      if (sscanf(e->d_name, "a name of some length %d", &i) != 1) dots++;
      else {
        CHECK(i % 2 && !had[i] && e->d_type == DT_REG);
        had[i] = 1, seen++;
      }
    }
    CHECK(seen == 600 && dots == 2 && !closedir(d));
    CHECK(!close(dir));
    if (!round) again();
    dir = open(M "d", O_RDONLY | O_DIRECTORY);
  }
  CHECK(!close(dir));
  CHECK(!stat(M "left", &st) && st.st_mode == (S_IFREG | 0604) && st.st_uid == 12 && st.st_gid == 34 && st.st_mtim.tv_sec == 1100000000 && st.st_size == 5);
  CHECK(!stat(M "x", &st) && st.st_nlink == 3 && !lstat(M "null", &st) && S_ISCHR(st.st_mode) && st.st_rdev == 0x103);
  CHECK(!strcmp(get(M "d/b"), "new one") && !strcmp(get(M "left"), "right"));
}

static int resident(char *p) {
  unsigned char v;
  CHECK(!mincore(p, PG, &v));
  return v & 1;
}

static void data(void) {
  struct stat st;
  char *b = anon(MB), *c = anon(MB);
  fill(b, 0, MB);
  int f = made(M "f", O_RDWR), d = open(M "f", O_RDWR | O_DIRECT);
  CHECK(d >= 0);
  // In pieces that fit nothing; then all of it again, from memory, from the disk, around the cache.
  for (size_t at = 0; at < MB; at += 1000) CHECK(pwrite(f, b + at, at + 1000 > MB ? MB - at : 1000, at) > 0);
  for (int round = 0; round < 3; round++) {
    CHECK(pread(round == 2 ? d : f, c, MB, 0) == (ssize_t)MB && is_pattern(c, 0, MB));
    if (!round) CHECK(!fsync(f) && !posix_fadvise(f, 0, 0, POSIX_FADV_DONTNEED));
  }
  CHECK(!fstat(f, &st) && st.st_size == (off_t)MB && st.st_blocks >= 2048 && st.st_blocks < 2100);
  // Shorter and longer again: zeroes come, also into what is in memory, mapped and on the disk.
  char *s = mmap(0, MB, PROT_READ | PROT_WRITE, MAP_SHARED, f, 0), *p = mmap(0, MB, PROT_READ | PROT_WRITE, MAP_PRIVATE, f, 0);
  CHECK(s != MAP_FAILED && p != MAP_FAILED && is_pattern(s, 0, MB) && is_pattern(p, 0, MB));
  probe_install();
  CHECK(!ftruncate(f, 10 * PG + 100) && s[10 * PG + 99] && !s[10 * PG + 100] && !strcmp(probe(s + 11 * PG, 'r'), "BUS_ADRERR"));
  s[10 * PG + 200] = 1; // behind the end: nobody keeps it
  CHECK(!msync(s, 11 * PG, MS_SYNC) && !ftruncate(f, 20 * PG) && pread(f, c, 20 * PG, 0) == 20 * (ssize_t)PG);
  for (size_t i = 10 * PG + 100; i < 20 * PG; i++) CHECK(!c[i] && !s[i]);
  CHECK(is_pattern(c, 0, 10 * PG + 96));
  // Stores, and what a private mapping keeps to itself.
  memset(s + 12 * PG, 'S', PG), memset(p + 13 * PG, 'P', PG);
  CHECK(!msync(s + 12 * PG, PG, MS_SYNC) && pread(d, c, 2 * PG, 12 * PG) == 2 * (ssize_t)PG && c[0] == 'S' && c[PG - 1] == 'S' && !c[PG]);
  // Direct writes: over what is there, over what is dirty, at the end, past it.
  fill(b, 7 * MB, MB);
  s[3 * PG] = 'x';
  CHECK(pwrite(d, b, 4 * PG, 2 * PG) == 4 * (ssize_t)PG && is_pattern(s + 2 * PG, 7 * MB, 4 * PG));
  CHECK(pwrite(d, b, 8 * PG, 18 * PG) == 8 * (ssize_t)PG && !fstat(f, &st) && st.st_size == 26 * (off_t)PG);
  CHECK(pwrite(d, b + 1024, 512, 40 * PG) == 512 && !fstat(f, &st) && st.st_size == 40 * (off_t)PG + 512);
  CHECK(pread(f, c, 41 * PG, 0) == 40 * (ssize_t)PG + 512 && is_pattern(c + 18 * PG, 7 * MB, 8 * PG) && is_pattern(c + 40 * PG, 7 * MB + 1024, 512));
  for (size_t i = 26 * PG; i < 40 * PG; i++) CHECK(!c[i]);
  CHECK(pread(d, c, PG, 40 * PG) == 512 && pread(d, c, PG, 41 * PG) == 0 && pwrite(d, b + 1, 512, 0) == -1 && errno == EINVAL);
  // Holes.
  off_t hole = lseek(f, 0, SEEK_HOLE);
  CHECK(hole > 10 * (off_t)PG + 100 && hole <= 11 * (off_t)PG);
  CHECK(!fallocate(f, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 4 * PG + 10, 4 * PG));
  CHECK(lseek(f, 4 * PG, SEEK_HOLE) > 4 * (off_t)PG && lseek(f, 4 * PG, SEEK_HOLE) <= 5 * (off_t)PG && lseek(f, 5 * PG, SEEK_DATA) == 8 * (off_t)PG);
  CHECK(s[4 * PG + 8] && !s[4 * PG + 11] && !s[6 * PG] && !s[8 * PG + 8] && s[8 * PG + 11]);
  CHECK(pread(d, c, 6 * PG, 4 * PG) == 6 * (ssize_t)PG && c[9] && !c[10] && !c[4 * PG + 9] && c[4 * PG + 10]);
  CHECK(!fallocate(f, 0, 50 * PG, 10 * PG) && !fstat(f, &st) && st.st_size == 60 * (off_t)PG && pread(f, c, PG, 55 * PG) == (ssize_t)PG && !c[0]);
  CHECK(pwrite(f, "kept", 4, 55 * PG + 9) == 4 && !fsync(f) && pread(d, c, PG, 55 * PG) == (ssize_t)PG && !memcmp(c + 9, "kept", 4) && !c[0] && !c[20]);
  CHECK(!fallocate(f, FALLOC_FL_ZERO_RANGE, 18 * PG + 5, PG) && !s[19 * PG + 4] && s[19 * PG + 5]);
  CHECK(fallocate(f, FALLOC_FL_COLLAPSE_RANGE, 0, PG) == -1 && errno == EOPNOTSUPP);
  // mincore, sendfile, copy_file_range, append.
  CHECK(!munmap(p, MB) && !msync(s, 26 * PG, MS_SYNC) && !munmap(s, MB) && !fsync(f) && !posix_fadvise(f, 0, 0, POSIX_FADV_DONTNEED));
  s = mmap(0, 26 * PG, PROT_READ, MAP_SHARED, f, 0);
  CHECK(s != MAP_FAILED && !resident(s) && *(volatile char *)s >= -128 && resident(s) && !readahead(f, 20 * PG, PG) && resident(s + 20 * PG));
  int g = made(M "g", O_RDWR), h = made(M "h", O_RDWR);
  off_t from = 3;
  CHECK(sendfile(g, f, &from, 20000) == 20000 && sendfile(g, f, &from, 20000) == 20000 && lseek(g, 0, SEEK_END) == 40000);
  loff_t in = 100, out = 5000;
  CHECK(syscall(SYS_copy_file_range, g, &in, h, &out, 30000, 0) == 30000 && lseek(h, 0, SEEK_END) == 35000);
  CHECK(pread(g, c, 30000, 100) == 30000 && pread(h, b, 35000, 0) == 35000 && !memcmp(c, b + 5000, 30000) && !b[4999]);
  // Sparse, far out; and as long as no file can be.
  CHECK(pwrite(h, "far", 3, 1L << 38) == 3 && !fstat(h, &st) && st.st_blocks < 200 && pread(h, c, 8, (1L << 38) - 4) == 7 && !memcmp(c, "\0\0\0\0far", 7));
  CHECK(!ftruncate(h, 7) && ftruncate(h, 1L << 62) == -1 && errno == EFBIG && pwrite(h, "x", 1, 1L << 45) == -1 && errno == EFBIG);
  CHECK(!munmap(s, 26 * PG) && !close(f) && !close(d) && !close(g) && !close(h));
  again();
  f = open(M "f", O_RDWR);
  CHECK(f >= 0 && pread(f, c, 4, 55 * PG + 9) == 4 && !memcmp(c, "kept", 4) && pread(f, c, PG, 12 * PG) == (ssize_t)PG && c[7] == 'S' && !close(f));
  CHECK(!stat(M "f", &st) && st.st_size == 60 * (off_t)PG);
}

// A disk that is full, and goes on.
static void full(void) {
  struct statfs fs;
  char *b = anon(MB);
  CHECK(!statfs("/mnt", &fs) && fs.f_type == 0xef53);
  long before = fs.f_bfree;
  for (int round = 0; round < 2; round++) {
    int f = made(M "full", O_RDWR | (round ? O_DIRECT : 0));
    size_t at = 0;
    for (;;) {
      fill(b, at, MB);
      ssize_t n = write(f, b, MB);
      if (n < 0) break;
      at += n;
      CHECK(at < 600 * MB);
    }
    // A direct write that fails has written nothing.
    CHECK(errno == ENOSPC && at > MB && !fsync(f) && !statfs("/mnt", &fs) && fs.f_bfree < (round ? 64 + MB / PG : 64));
    CHECK(!round || lseek(f, 0, SEEK_END) == (off_t)at);
    // A store to a hole has no block.
    int g = made(M "hole", O_RDWR);
    CHECK(!ftruncate(g, 4 * MB));
    char *s = mmap(0, 4 * MB, PROT_READ | PROT_WRITE, MAP_SHARED, g, 0);
    CHECK(s != MAP_FAILED && s[PG] == 0);
    probe_install();
    int bus = 0;
    for (size_t i = 0; i < 4 * MB; i += PG) bus |= !strcmp(probe(s + i, 'w'), "BUS_ADRERR");
    CHECK(bus && !munmap(s, 4 * MB) && !close(g) && !unlink(M "hole"));
    // All that was taken is there.
    for (size_t i = 0; i + MB <= at; i += MB) CHECK(pread(f, b, MB, i) == (ssize_t)MB && is_pattern(b, i, MB));
    CHECK(!close(f) && !unlink(M "full"));
    again();
    CHECK(!statfs("/mnt", &fs) && labs((long)fs.f_bfree - before) < 8);
    put(M "after", "goes on");
  }
}

static void readonly(void) {
  again();
  CHECK(!umount("/mnt"));
  // A mount that comes to nothing keeps no disk.
  CHECK(!close(made("/tmp/plain", O_WRONLY)) && mount(disk, "/tmp/plain", "ext4", 0, "") == -1 && errno == ENOTDIR);
  mounted(disk, "/mnt", MS_RDONLY);
  CHECK(open(M "seed/one", O_RDWR) == -1 && errno == EROFS && open(M "new", O_CREAT | O_WRONLY, 0600) == -1 && errno == EROFS);
  CHECK(unlink(M "seed/one") == -1 && errno == EROFS && mkdir(M "d", 0700) == -1 && errno == EROFS && truncate(M "seed/one", 0) == -1 && errno == EROFS);
  CHECK(mount(disk, "/tmp", "ext4", 0, "") == -1 && errno == EBUSY);
  CHECK(mount("", "/mnt", "", MS_REMOUNT, 0) == -1 && errno == EROFS && !mount("", "/mnt", "", MS_REMOUNT | MS_RDONLY, 0));
  int f = open(M "seed/one", O_RDONLY);
  CHECK(f >= 0 && mmap(0, PG, PROT_READ | PROT_WRITE, MAP_SHARED, f, 0) == MAP_FAILED && errno == EACCES && umount("/mnt") == -1 && errno == EBUSY && !close(f));
  CHECK(mount("/dev/zero", "/tmp", "ext4", 0, "") == -1 && errno == ENOTBLK && mount("/dev/none", "/tmp", "ext4", 0, "") == -1 && errno == ENOENT);
}

// Between the last user of a file system and the thread that unmounts it, where umount is made to stand: who mounts the disk again
// waits.
#define LAST "unmount.last"
static void twice(void) {
  char name[40], state = 0, *b = anon(PG);
  int st, raw = open(disk, O_RDONLY | O_DIRECT);
  CHECK(raw >= 0);
  for (int i = 0; i < 10; i++) {
    snprintf(name, sizeof name, M "round%d", i);
    put(name, "of the first mount");
    CHECK(race("arm", LAST));
    pid_t first = fork();
    if (!first) _exit(umount("/mnt") != 0);
    while (!stands(LAST)) CHECK(!waitpid(first, &st, WNOHANG));
    pid_t second = fork();
    if (!second) _exit(mount(disk, "/mnt", "ext4", 0, "") != 0);
    // It sleeps, and has not come further when we have read more of the disk than a mount does.
    int waits = 1;
    for (int reads = 0; waits && (reads < 500 || state != 'D'); reads++) {
      waits = pread(raw, b, PG, reads % 500 * PG) == (ssize_t)PG && !waitpid(second, &st, WNOHANG);
      state = task_state(second);
    }
    CHECK(race("release", LAST) && waits && waitpid(first, &st, 0) == first && !st && waitpid(second, &st, 0) == second && !st);
    CHECK(!strcmp(get(name), "of the first mount"));
    put(name, "of the second");
    again();
    CHECK(!strcmp(get(name), "of the second"));
  }
  CHECK(!close(raw));
}

// Extended attributes, in the inode and in a block of their own; and times, to the nanosecond, which the host finds the same.
static int is(const char *name, const char *key, const void *value, size_t len) {
  static char b[5000];
  return lgetxattr(name, key, 0, 0) == (ssize_t)len && lgetxattr(name, key, b, sizeof b) == (ssize_t)len && !memcmp(b, value, len);
}
static void times(const char *name) {
  struct stat st;
  CHECK(!lstat(name, &st));
  say("times %s %lx %lx %lx %lx %lx %lx\n", name + strlen("/mnt"), st.st_atim.tv_sec, st.st_atim.tv_nsec, st.st_mtim.tv_sec, st.st_mtim.tv_nsec,
      st.st_ctim.tv_sec, st.st_ctim.tv_nsec);
}
static void attributes(void) {
  static char b[5000], names[500];
  struct stat st, su;
  memset(b, 'v', sizeof b);
  put(M "x", "content");
  CHECK(!mkdir(M "dir", 0755) && !symlink("x", M "link"));
  CHECK(listxattr(M "x", 0, 0) == 0 && getxattr(M "x", "user.none", b, 10) == -1 && errno == ENODATA);
  CHECK(!setxattr(M "x", "user.mime", "text/plain", 10, 0) && is(M "x", "user.mime", "text/plain", 10) && is(M "link", "user.mime", "", 0) == 0);
  CHECK(getxattr(M "link", "user.mime", b, 10) == 10 && getxattr(M "x", "user.mime", b, 9) == -1 && errno == ERANGE);
  CHECK(setxattr(M "x", "user.mime", "y", 1, XATTR_CREATE) == -1 && errno == EEXIST && setxattr(M "x", "user.new", "y", 1, XATTR_REPLACE) == -1 && errno == ENODATA);
  CHECK(setxattr(M "x", "user.mime", "y", 1, 4) == -1 && errno == EINVAL && setxattr(M "x", "user.", "y", 1, 0) == -1 && errno == EINVAL);
  CHECK(setxattr(M "x", "", "y", 1, 0) == -1 && errno == ERANGE && setxattr(M "x", "odd.name", "y", 1, 0) == -1 && errno == EOPNOTSUPP);
  CHECK(lsetxattr(M "link", "user.mime", "y", 1, 0) == -1 && errno == EPERM && setxattr(M "x", "user.big", b, 70000, 0) == -1 && errno == E2BIG);
  CHECK(setxattr(M "x", "user.big", b, 5000, 0) == -1 && errno == ENOSPC && setxattr("/tmp", "user.x", "y", 1, 0) == -1 && errno == EOPNOTSUPP);
  memset(b, 'v', sizeof b);
  int f = open(M "x", O_RDWR);
  CHECK(f >= 0 && !fstat(f, &st) && !fsetxattr(f, "user.long", b, 3000, XATTR_CREATE) && !fstat(f, &su) && su.st_blocks == st.st_blocks + 8);
  CHECK(!setxattr(M "x", "trusted.root", "only", 4, 0) && !setxattr(M "dir", "user.of a directory", "", 0, 0) && is(M "dir", "user.of a directory", "", 0));
  ssize_t n = flistxattr(f, names, sizeof names);
  CHECK(n == flistxattr(f, 0, 0) && n == sizeof "user.mime" + sizeof "user.long" + sizeof "trusted.root" && flistxattr(f, names, n - 1) == -1 && errno == ERANGE);
  CHECK(!mkdir(M "sticky", 0) && !chmod(M "sticky", 01777));
  pid_t c = fork();
  if (!c) {
    // Somebody else.
    CHECK(!chmod(M "x", 0644) && !setuid(77) && getxattr(M "x", "trusted.root", b, 10) == -1 && errno == ENODATA && is(M "x", "user.mime", "text/plain", 10));
    CHECK(setxattr(M "x", "user.mime", "y", 1, 0) == -1 && errno == EACCES && setxattr(M "x", "trusted.root", "y", 1, 0) == -1 && errno == EPERM);
    CHECK(listxattr(M "x", 0, 0) == n - (ssize_t)sizeof "trusted.root");
    CHECK(setxattr(M "sticky", "user.x", "y", 1, 0) == -1 && errno == EPERM && getxattr(M "sticky", "user.x", b, 10) == -1 && errno == ENODATA);
    _exit(0);
  }
  int status;
  CHECK(waitpid(c, &status, 0) == c && !status && !close(f));
  again();
  CHECK(is(M "x", "user.mime", "text/plain", 10) && is(M "x", "user.long", b, 3000) && is(M "x", "trusted.root", "only", 4));
  CHECK(!removexattr(M "x", "user.mime") && removexattr(M "x", "user.mime") == -1 && errno == ENODATA && !setxattr(M "x", "user.long", "short", 5, 0));
  put(M "gone", "gone");
  CHECK(!setxattr(M "gone", "user.long", b, 3000, 0) && !unlink(M "gone"));
  // relatime: the first access after a change is news, and the next is not.
  put(M "read", "read");
  CHECK(!stat(M "read", &st) && !strcmp(get(M "read"), "read") && !stat(M "read", &su));
  CHECK(su.st_atim.tv_sec > st.st_atim.tv_sec || su.st_atim.tv_nsec > st.st_atim.tv_nsec);
  CHECK(!strcmp(get(M "read"), "read") && !stat(M "read", &st) && st.st_atim.tv_nsec == su.st_atim.tv_nsec);
  CHECK(!umount("/mnt"));
  mounted(disk, "/mnt", MS_NOATIME), put(M "quiet", "q");
  CHECK(!stat(M "quiet", &st) && *get(M "quiet") && !stat(M "quiet", &su));
  CHECK(su.st_atim.tv_nsec == st.st_atim.tv_nsec && su.st_atim.tv_sec == st.st_atim.tv_sec);
  again();
  put(M "made", "1"), put(M "linked", "2"), put(M "moved", "3"), put(M "set", "4");
  CHECK(!mkdir(M "parent", 0755));
  struct timespec t[2] = {{1000000001, 123456789}, {1100000001, 987654321}};
  CHECK(!link(M "linked", M "parent/l") && !rename(M "moved", M "parent/moved") && !utimensat(AT_FDCWD, M "set", t, 0) && !chmod(M "made", 0600));
  CHECK(*get(M "linked") == '2' && !setxattr(M "made", "user.x", "y", 1, 0));
  // All is read once, so that it is no news later.
  tell_all();
  sync();
  times(M "made"), times(M "linked"), times(M "parent/moved"), times(M "set"), times(M "parent");
  // What the disk does not say: O_TMPFILE.
  CHECK(open("/mnt", O_TMPFILE | O_RDWR, 0600) == -1 && errno == EOPNOTSUPP);
}

// A program that lies on the disk.
static void program(void) {
  int in = open("/proc/self/exe", O_RDONLY), out = open(M "prog", O_CREAT | O_WRONLY, 0755);
  CHECK(in >= 0 && out >= 0);
  ssize_t n;
  while ((n = sendfile(out, in, 0, 1 << 20)) > 0) {}
  CHECK(!n && !close(in) && !close(out));
  again();
  for (int i = 0; i < 2; i++) {
    pid_t c = fork();
    if (!c) execl(M "prog", "prog", "exit", (char *)0), _exit(1);
    int st;
    CHECK(waitpid(c, &st, 0) == c && WIFEXITED(st) && WEXITSTATUS(st) == 33);
  }
}

// 64 MiB from disk to disk, past the CPU.
static void copy(const char *to) {
  mounted(to, "/mnt/to", 0);
  long copied = counter("copied "), direct = counter("direct ");
  int in = open(M "big", O_RDONLY | O_DIRECT), out = open(M "to/big", O_CREAT | O_RDWR | O_DIRECT, 0644);
  CHECK(in >= 0 && out >= 0);
  char *b = anon(MB);
  for (size_t at = 0; at < 64 * MB; at += MB) CHECK(read(in, b, MB) == (ssize_t)MB && write(out, b, MB) == (ssize_t)MB);
  CHECK(read(in, b, MB) == 0 && !fsync(out));
  // Over it once more: blocks that the file has.
  for (size_t at = 0; at < 64 * MB; at += MB) CHECK(pread(in, b, MB, at) == (ssize_t)MB && pwrite(out, b, MB, at) == (ssize_t)MB);
  CHECK(counter("copied ") == copied && counter("direct ") == direct + 256 * (long)MB && pins_held() == 0 && !close(in) && !close(out));
  CHECK(sum(M "big") == sum(M "to/big"));
  CHECK(!umount("/mnt/to"));
}

// Several processes, each with its own way to the same file; every block says whose it is.
#define BLOCKS 64
#define USERS 4
struct block {
  uint64_t file, number, generation, check, body[508];
};
static uint64_t checked(const struct block *k) {
  uint64_t h = k->file * 31 + k->number * 17 + k->generation;
  for (int i = 0; i < 508; i++) h = (h ^ k->body[i]) * 0x9e3779b97f4a7c15;
  return h;
}
static int whole(const struct block *k, uint64_t file, uint64_t number) {
  if (!k->generation && !k->check) return 1;
  return k->file == file && k->number == number && k->check == checked(k);
}
static void user(int me, int rounds) {
  char name[40];
  uint64_t x = 88172645463325252 + me * 7919;
  struct block *k = (struct block *)anon(PG);
  for (int r = 0; r < rounds; r++) {
    x ^= x << 13, x ^= x >> 7, x ^= x << 17;
    uint64_t file = x % 3, n = (x >> 8) % BLOCKS;
    int way = (x >> 20) % 3;
    // Each block has one writer, who reads it, too.
    uint64_t mine = n - n % USERS + me;
    snprintf(name, sizeof name, M "load%d", (int)file);
    int f = open(name, O_RDWR | (way == 1 ? O_DIRECT : 0));
    CHECK(f >= 0);
    struct block *s = way == 2 ? mmap(0, BLOCKS * PG, PROT_READ | PROT_WRITE, MAP_SHARED, f, 0) : 0;
    CHECK(s != MAP_FAILED);
    *k = (struct block){file, mine, r + 1, 0, {0}};
    for (int i = 0; i < 508; i++) k->body[i] = x * (i + 1);
    k->check = checked(k);
    if (s) memcpy(&s[mine], k, PG);
    else CHECK(pwrite(f, k, PG, mine * PG) == (ssize_t)PG);
    if (x >> 40 & 1) CHECK(!fsync(f));
    memset(k, 0, PG);
    if (s) memcpy(k, &s[mine], PG);
    else CHECK(pread(f, k, PG, mine * PG) == (ssize_t)PG);
    CHECK(whole(k, file, mine) && k->generation == (uint64_t)r + 1);
    if (s) CHECK(!munmap(s, BLOCKS * PG));
    CHECK(!close(f));
    // Something else for the file system to do.
    snprintf(name, sizeof name, M "own%d", me);
    if (r % 8 == 0) {
      f = made(name, O_RDWR);
      CHECK(write(f, k, r % 4096) == r % 4096 && !ftruncate(f, r % 100) && !close(f));
    } else if (r % 8 == 5) CHECK(!unlink(name) || errno == ENOENT);
  }
  _exit(0);
}
static void load(int rounds) {
  char name[40];
  for (int i = 0; i < 3; i++) {
    snprintf(name, sizeof name, M "load%d", i);
    int f = made(name, O_RDWR);
    CHECK(!ftruncate(f, BLOCKS * PG) && !close(f));
  }
  pid_t c[USERS];
  for (int i = 0; i < USERS; i++)
    if (!(c[i] = fork())) user(i, rounds);
  for (int i = 0; i < USERS; i++) {
    int st;
    CHECK(waitpid(c[i], &st, 0) == c[i] && !st);
  }
  again();
  struct block *k = (struct block *)anon(PG);
  for (int i = 0; i < 3; i++) {
    snprintf(name, sizeof name, M "load%d", i);
    int f = open(name, O_RDONLY);
    for (int n = 0; n < BLOCKS; n++) CHECK(pread(f, k, PG, n * PG) == (ssize_t)PG && whole(k, i, n));
    CHECK(!close(f));
  }
}

// Promises, each with its number: when `fsync` has returned, the number goes to a block of the disk behind the file system. Whoever
// cuts the power knows from that what must be there (`tests/src/plug.rs`).
static size_t promise(char *b, uint64_t i) {
  size_t len = 104 + i * 7919 % 30000 / 8 * 8;
  fill(b, i << 24, len);
  return len;
}
static void plug(int rounds) {
  char *b = anon(64 * KB), name[40];
  int marker = open(disk, O_RDWR | O_DIRECT), dir = open("/mnt", O_RDONLY | O_DIRECTORY), book = made(M "book", O_WRONLY | O_APPEND);
  CHECK(marker >= 0 && dir >= 0);
  for (uint64_t i = 1; i <= (uint64_t)rounds; i++) {
    // Written aside and put in place: the old one or the new one, and whole.
    size_t len = promise(b, i);
    int f = made(M "aside", O_WRONLY | O_TRUNC);
    CHECK(write(f, b, len) == (ssize_t)len && !fsync(f) && !close(f));
    snprintf(name, sizeof name, M "slot%d", (int)(i % 8));
    CHECK(!rename(M "aside", name) && !fsync(dir));
    // A book that grows.
    fill(b, i << 24, 64);
    CHECK(write(book, b, 64) == 64 && !fsync(book));
    // What nobody has promised.
    snprintf(name, sizeof name, M "noise%d", (int)(i % 5));
    f = made(name, O_RDWR);
    fill(b, i, 64 * KB);
    CHECK(pwrite(f, b, i * 997 % 60000 / 8 * 8, i * 3001 % 90000) >= 0 && !ftruncate(f, i * 4099 % 70000) && !close(f));
    if (i % 3 == 0) CHECK(!unlink(name));
    snprintf(name, sizeof name, M "dir%d", (int)(i % 4));
    CHECK(i % 8 < 4 ? !mkdir(name, 0755) || errno == EEXIST : !rmdir(name) || errno == ENOENT);
    if (i % 7 == 0) sync();
    *(uint64_t *)b = i;
    CHECK(pwrite(marker, b, 512, 40 * MB) == 512);
  }
  CHECK(!close(marker) && !close(dir) && !close(book));
}

// Disks whose power was cut, each with the number of the last promise: what was promised is there, and they are good to go on.
static int holds(const char *name, uint64_t i) {
  static char want[64 * KB], have[64 * KB];
  size_t len = promise(want, i);
  int f = open(name, O_RDONLY);
  CHECK(f >= 0);
  ssize_t n = read(f, have, sizeof have);
  CHECK(!close(f));
  return n == (ssize_t)len && !memcmp(have, want, len);
}
static void pulled(int n, char **v) {
  char name[40], b[64], page[64];
  for (int d = 0; d < n; d += 2) {
    if (d) {
      CHECK(!umount("/mnt"));
      mounted(v[d], "/mnt", 0);
    }
    uint64_t kept = atoi(v[d + 1]);
    for (uint64_t i = kept > 8 ? kept - 7 : 1; i <= kept; i++) {
      snprintf(name, sizeof name, M "slot%d", (int)(i % 8));
      CHECK(holds(name, i) || holds(name, i + 8));
    }
    if (kept) {
      int f = open(M "book", O_RDONLY);
      CHECK(f >= 0);
      for (uint64_t i = 1; i <= kept; i++) {
        fill(b, i << 24, 64);
        CHECK(read(f, page, 64) == 64 && !memcmp(page, b, 64));
      }
      CHECK(!close(f));
    }
    put(M "after", "goes on");
    disk = v[d];
    again();
    CHECK(!strcmp(get(M "after"), "goes on"));
  }
}

// Page 100 of a file cannot be read: an error for who asks for it, SIGBUS for who touches it, and nobody else notices.
static void unread(void) {
  char *b = anon(64 * PG);
  int f = open(M "unread", O_RDONLY), d = open(M "unread", O_RDONLY | O_DIRECT), st;
  CHECK(f >= 0 && d >= 0);
  CHECK(pread(f, b, PG, 100 * PG) == -1 && errno == EIO && pread(d, b, PG, 100 * PG) == -1 && errno == EIO);
  CHECK(pread(f, b, PG, 101 * PG) == (ssize_t)PG && b[0] == 7 && pread(d, b, PG, 99 * PG) == (ssize_t)PG && b[0] == 7);
  CHECK(pread(f, b, 64 * PG, 90 * PG) == 10 * (ssize_t)PG && pread(d, b, 64 * PG, 90 * PG) == -1 && errno == EIO);
  char *s = mmap(0, MB, PROT_READ, MAP_SHARED, f, 0);
  CHECK(s != MAP_FAILED);
  for (int page = 99; page <= 101; page++) {
    pid_t c = fork();
    if (!c) _exit(*(volatile char *)(s + page * PG));
    CHECK(waitpid(c, &st, 0) == c);
    CHECK(page == 100 ? WIFSIGNALED(st) && WTERMSIG(st) == SIGBUS : WIFEXITED(st) && WEXITSTATUS(st) == 7);
  }
  CHECK(!munmap(s, MB) && !close(f) && !close(d) && !unlink(M "unread"));
}

// The disk refuses a block of a file to be written.
static void bad(void) {
  unread();
  char *b = anon(PG);
  int f = open(M "victim", O_RDWR), g = open(M "victim", O_RDWR), other = made(M "other", O_RDWR);
  CHECK(f >= 0 && g >= 0);
  for (size_t at = 0; at < MB; at += PG) {
    fill(b, at, PG);
    CHECK(pwrite(f, b, PG, at) == (ssize_t)PG);
  }
  // Told once to each.
  CHECK(fsync(f) == -1 && errno == EIO && !fsync(f) && fsync(g) == -1 && errno == EIO && !fsync(g));
  CHECK(pwrite(other, b, PG, 0) == (ssize_t)PG && !fsync(other) && !close(other));
  char *s = mmap(0, MB, PROT_READ | PROT_WRITE, MAP_SHARED, f, 0);
  CHECK(s != MAP_FAILED);
  memset(s, 's', MB);
  CHECK(msync(s, MB, MS_SYNC) == -1 && errno == EIO);
  CHECK(!munmap(s, MB) && !close(f) && !close(g));
}

// More is written than there is memory, by calls and by mappings: writers wait for the disk, and nothing is refused or lost.
static void larger(void) {
  char *b = anon(MB);
  long total = kib("/proc/meminfo", "MemTotal:");
  CHECK(total < 80 * 1024);
  int f = made(M "written", O_RDWR), g = made(M "stored", O_RDWR);
  CHECK(!ftruncate(g, 96 * MB));
  for (size_t at = 0; at < 96 * MB; at += MB) {
    fill(b, at, MB);
    CHECK(pwrite(f, b, MB, at) == (ssize_t)MB && kib("/proc/meminfo", "Dirty:") <= total / 4);
  }
  for (size_t at = 0; at < 96 * MB; at += MB) {
    fill(b, at, MB);
    char *s = mmap(0, MB, PROT_READ | PROT_WRITE, MAP_SHARED, g, at);
    CHECK(s != MAP_FAILED);
    memcpy(s, b, MB);
    CHECK(!munmap(s, MB) && kib("/proc/meminfo", "Dirty:") <= total / 4);
  }
  for (size_t at = 0; at < 96 * MB; at += MB)
    CHECK(pread(f, b, MB, at) == (ssize_t)MB && is_pattern(b, at, MB) && pread(g, b, MB, at) == (ssize_t)MB && is_pattern(b, at, MB));
  CHECK(!close(f) && !close(g));
}

// The journal is larger than the memory that there is, and the kernel does not keep all of it.
static void journal(void) {
  int f = made(M "f", O_RDWR), o = made(M "open", O_RDWR);
  long before = kib("/proc/meminfo", "MemFree:");
  for (int i = 0; i < 4000; i++) {
    CHECK(pwrite(f, &i, sizeof i, i % 50 * PG) == sizeof i && !fsync(f));
    // Half of the time there is a file without a name.
    if (i == 1000) CHECK(!unlink(M "open"));
    if (i == 1500) CHECK(!close(o));
    CHECK(kib("/proc/meminfo", "MemFree:") > before - 14 * 1024);
  }
  CHECK(!close(f));
}

// Memory is gone: a call is refused, or does all that it should.
static void shortage(void) {
  static char b[64 * KB], name[60], to[60], big[PG * 8];
  CHECK(!mlockall(MCL_CURRENT | MCL_FUTURE));
  memset(b, 'b', sizeof b), memset(big, 'B', sizeof big);
  int hog = memfd_create("hog", 0), made_ones = 0, refused = 0;
  CHECK(hog >= 0);
  ssize_t n;
  for (int round = 0; round < 3; round++) {
    while ((n = write(hog, b, sizeof b)) > 0) {}
    CHECK(n == -1 && (errno == ENOMEM || errno == ENOSPC));
    for (int i = 0; i < 300; i++) {
      snprintf(name, sizeof name, M "short%d.%d", round, i), snprintf(to, sizeof to, M "renamed%d.%d", round, i);
      int f = open(name, O_CREAT | O_EXCL | O_RDWR, 0600);
      if (f < 0) {
        CHECK(errno == ENOMEM);
        refused++;
        continue;
      }
      n = write(f, big, sizeof big);
      CHECK(n > 0 || (n == -1 && errno == ENOMEM));
      CHECK(!fsync(f) && !close(f));
      if (rename(name, to)) {
        CHECK(errno == ENOMEM);
        memcpy(to, name, sizeof to);
      }
      if (i % 2 && unlink(to)) CHECK(errno == ENOMEM);
      made_ones++;
    }
    // A little more room: calls begin to succeed.
    CHECK(!ftruncate(hog, lseek(hog, 0, SEEK_CUR) - (off_t)MB) && lseek(hog, 0, SEEK_END) > 0);
  }
  CHECK(!close(hog) && !munlockall());
  CHECK(made_ones && refused);
  put(M "after", "goes on");
}

// File systems that somebody has tampered with: whatever a call says, the kernel lives, and so does a sound disk beside them.
static int poke(const char *name, const struct stat *st, int type, struct FTW *w) {
  static char b[1 << 16];
  (void)type, (void)w;
  if (S_ISDIR(st->st_mode)) return 0;
  int f = open(name, O_RDWR | O_NONBLOCK);
  if (f >= 0) {
    while (read(f, b, sizeof b) > 0) {}
    pwrite(f, b, 5000, 3000);
    char *s = mmap(0, 2 * PG, PROT_READ | PROT_WRITE, MAP_SHARED, f, 0);
    if (s != MAP_FAILED) probe(s + PG, 'r'), probe(s, 'w'), munmap(s, 2 * PG);
    fallocate(f, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, PG, 3 * PG);
    ftruncate(f, 100), fsync(f), close(f);
  }
  char other[PATH_MAX];
  snprintf(other, sizeof other, "%s.x", name);
  if (st->st_ino % 3 == 0) rename(name, other);
  if (st->st_ino % 3 == 1) unlink(name);
  return 0;
}
static void hostile(int n, char **disks) {
  int were = 0;
  probe_install();
  mkdir("/bad", 0755);
  for (int i = 0; i < n; i++) {
    if (mount(disks[i], "/bad", "ext4", 0, "")) continue;
    were++;
    nftw("/bad", poke, 20, FTW_PHYS);
    mkdir("/bad/new", 0755);
    int f = open("/bad/new/file", O_CREAT | O_RDWR, 0644);
    if (f >= 0) {
      for (int k = 0; k < 20; k++) write(f, disks, 4096 * 3 + k);
      fsync(f), close(f);
    }
    sync();
    CHECK(!umount("/bad"));
  }
  say("%d of %d were mounted\n", were, n);
  put(M "sound", "still");
}

// File systems of more groups of blocks, or of a larger journal, than there is memory for.
static void lists(int n, char **disks) {
  mkdir("/bad", 0755);
  for (int i = 0; i < n; i++) CHECK(mount(disks[i], "/bad", "ext4", 0, "") == -1 && errno == ENOMEM);
  put(M "sound", "still");
}

int main(int n, char **v) {
  if (n == 2 && !strcmp(v[1], "exit")) return 33;
  CHECK(n >= 3);
  disk = v[2];
  const char *what = v[1];
  mounted(disk, "/mnt", 0);
  if (!strcmp(what, "names")) names();
  else if (!strcmp(what, "data")) data();
  else if (!strcmp(what, "full")) full();
  else if (!strcmp(what, "readonly")) readonly();
  else if (!strcmp(what, "attributes")) attributes();
  else if (!strcmp(what, "twice")) twice();
  else if (!strcmp(what, "program")) program();
  else if (!strcmp(what, "copy")) copy(v[3]);
  else if (!strcmp(what, "load")) load(atoi(v[3]));
  else if (!strcmp(what, "bad")) bad();
  else if (!strcmp(what, "larger")) larger();
  else if (!strcmp(what, "journal")) journal();
  else if (!strcmp(what, "shortage")) shortage();
  else if (!strcmp(what, "hostile")) hostile(n - 3, v + 3);
  else if (!strcmp(what, "lists")) lists(n - 3, v + 3);
  else if (!strcmp(what, "plug")) plug(atoi(v[3]));
  else if (!strcmp(what, "pulled")) pulled(n - 2, v + 2);
  else CHECK(!"such a test");
  tell_all();
  CHECK(!umount("/mnt"));
  say("ok\n");
  return 0;
}
