// Shared by the programs that work on files of an ext4 disk, which they mount and whose files the host finds again as they say.
#pragma once
#include "t.h"
#include <ftw.h>
#include <sys/mount.h>

#define M "/mnt/"
static const char *disk;

static void mounted(const char *on, const char *where, int flags) {
  mkdir(where, 0755);
  CHECK(!mount(on, where, "ext4", flags, ""));
}
static void again(void) {
  CHECK(!umount("/mnt"));
  mounted(disk, "/mnt", 0);
}
static void fill(char *p, uint64_t at, size_t len) {
  for (size_t i = 0; i < len; i += 8) *(uint64_t *)(p + i) = pattern(at + i);
}
static int made(const char *name, int flags) {
  int f = open(name, O_CREAT | flags, 0644);
  CHECK(f >= 0);
  return f;
}

// What a file holds, in 64 bits (FNV-1a).
static uint64_t sum(const char *name) {
  static char b[1 << 16];
  uint64_t h = 0xcbf29ce484222325;
  int f = open(name, O_RDONLY);
  CHECK(f >= 0);
  ssize_t n;
  while ((n = read(f, b, sizeof b)) > 0)
    for (ssize_t i = 0; i < n; i++) h = (h ^ (unsigned char)b[i]) * 0x100000001b3;
  CHECK(!n && !close(f));
  return h;
}
static int tell(const char *name, const struct stat *st, int type, struct FTW *w) {
  (void)type, (void)w;
  if (S_ISREG(st->st_mode)) say("file %s %lu %016lx\n", name + strlen("/mnt"), (unsigned long)st->st_size, (unsigned long)sum(name));
  else if (!S_ISDIR(st->st_mode)) say("other %s %o\n", name + strlen("/mnt"), st->st_mode);
  return 0;
}
static void tell_all(void) { CHECK(!nftw("/mnt", tell, 20, FTW_PHYS)); }
