// debugfs where systems have it, mounted and unmounted elsewhere.
#include "t.h"
#include <sys/mount.h>
#include <sys/statfs.h>
int main(void) {
  struct stat s;
  struct statfs f;
  CHECK(!stat("/sys/kernel/debug", &s));
  say("directory %d\n", S_ISDIR(s.st_mode));
  mkdir("/tmp", 0777);
  mkdir("/tmp/debug", 0777);
  R(mount("none", "/tmp/debug", "debugfs", 0, 0));
  CHECK(!statfs("/tmp/debug", &f) && !stat("/tmp/debug", &s));
  say("type %lx mode %o\n", (long)f.f_type, s.st_mode);
  R(open("/tmp/debug/there_is_no_such_file", O_RDONLY));
  R(open("/tmp/debug/nor_can_there_be", O_RDWR | O_CREAT, 0600));
  R(mkdir("/tmp/debug/new", 0700));
  R(umount("/tmp/debug"));
  R(rmdir("/tmp/debug"));
  R(mount("none", "/tmp", "tracefs_is_not_here", 0, 0));
  return 0;
}
