// unplug DISK OTHER: DISK is taken out by the host while it has 32 requests, a thread reads it, and pages of its cache are dirty; the
// host presses the button when it finds a mark on OTHER, which notices nothing, and leaves one there when it has DISK, whose image it
// looks at afterwards. unplug edu OTHER: the same of a device that is at work. unplug ext4 OTHER DISK [nameless]: files on DISK are in
// use, one that has no name among them. unplug mounting OTHER DISK: somebody is mounting it. unplug silent OTHER DISK: it does not answer. unplug early OTHER DISK: the button is pressed
// before the machine begins. Checks itself.
#include "t.h"
#include <linux/aio_abi.h>
#include <pthread.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/sysmacros.h>

#define BLKGETSIZE64 _IOR(0x12, 114, size_t)
#define DEEP 32
#define MARK_AT (63 * MB)

static const char *disk;
static int d, cached, other;
static _Atomic int gone;

// A result of a disk that may be going: all of what was asked, or why nothing.
static int whole(long res, const char *p, uint64_t at) {
  if (res == (long)PG) { CHECK(is_pattern(p, at, PG)); return 1; }
  CHECK(res == 0 || res == -EIO);
  return 0;
}
static void *reads_it(void *p) {
  for (int i = 0;; i = (i + 1) % 1024) {
    long n = pread(d, p, PG, i * PG);
    if (!whole(n < 0 ? -errno : n, p, i * PG)) break;
  }
  return 0;
}
static void *reads_another(void *p) {
  for (int i = 0; !gone; i = (i + 1) % 1024) CHECK(pread(other, p, PG, i * PG) == (long)PG && is_pattern(p, i * PG, PG));
  return 0;
}
static void mark(void) {
  char *p = anon(PG);
  memset(p, 1, PG);
  CHECK(pwrite(other, p, PG, MARK_AT) == (long)PG);
}

// Always 32 in flight, until one is refused: so those that came before it were not, in whatever order they end.
static void until_it_goes(void) {
  aio_context_t c = 0;
  struct iocb b[DEEP], *l;
  struct io_event e;
  char *p = anon(DEEP * PG);
  int begun = 0, flying = 0, last = -1, refused = 1 << 30;
  CHECK(!syscall(SYS_io_setup, DEEP, &c));
  for (int k = 0; k < DEEP || flying; k++) {
    int slot = k;
    if (k >= DEEP) {
      CHECK(syscall(SYS_io_getevents, c, 1, 1, &e, 0) == 1);
      slot = (struct iocb *)(uintptr_t)e.obj - b;
      flying--;
      int n = e.data;
      if (!whole(e.res, p + slot * PG, n % 1024 * PG)) { if (n < refused) refused = n; }
      else if (n > last) last = n;
      if (refused <= begun) continue;
    }
    if (k == DEEP) mark();
    b[slot] = (struct iocb){.aio_lio_opcode = IOCB_CMD_PREAD, .aio_fildes = d, .aio_buf = (uintptr_t)(p + slot * PG), .aio_nbytes = PG, .aio_offset = begun % 1024 * PG, .aio_data = begun};
    l = &b[slot];
    CHECK(syscall(SYS_io_submit, c, 1, &l) == 1);
    begun++, flying++;
  }
  if (refused <= last || refused < DEEP) say("%d was refused, %d was not\n", refused, last);
  // The first were begun before the button was pressed.
  CHECK(last < refused && refused >= DEEP && refused < begun);
  CHECK(!syscall(SYS_io_destroy, c));
}

static void disks(void) {
  struct stat st;
  d = open(disk, O_RDWR | O_DIRECT);
  cached = open(disk, O_RDWR);
  CHECK(d >= 0 && cached >= 0 && !fstat(d, &st) && !mknod("/tmp/node", S_IFBLK | 0600, st.st_rdev));
  char *m = mmap(0, PG, PROT_READ | PROT_WRITE, MAP_SHARED, cached, 40 * MB), *seen = mmap(0, PG, PROT_READ, MAP_SHARED, cached, 41 * MB);
  CHECK(m != MAP_FAILED && seen != MAP_FAILED && is_pattern(seen, 41 * MB, PG));
  CHECK(pwrite(cached, "written", 8, 39 * MB) == 8);
  strcpy(m, "stored");
  pthread_t t[2];
  CHECK(!pthread_create(&t[0], 0, reads_it, anon(PG)) && !pthread_create(&t[1], 0, reads_another, anon(PG)));
  until_it_goes();
  pthread_join(t[0], 0);
  // It is emptied when it has let go.
  uint64_t size;
  do CHECK(!ioctl(d, BLKGETSIZE64, &size)); while (size);
  char *p = anon(PG);
  CHECK(pread(d, p, PG, 0) == 0 && pread(cached, p, PG, 0) == 0);
  CHECK(pwrite(d, p, PG, 0) == -1 && errno == ENOSPC);
  CHECK(pwrite(cached, p, PG, 0) == -1 && errno == ENOSPC);
  for (int i = 0; i < 2; i++) {
    const char *how;
    while (how = probe(i ? m : seen, 'r'), !strcmp(how, "ok")) sched_yield();
    CHECK(!strcmp(how, "BUS_ADRERR"));
  }
  CHECK(fsync(cached) == -1 && errno == EIO);
  CHECK(stat(disk, &st) == -1 && errno == ENOENT);
  CHECK(open("/tmp/node", O_RDONLY) == -1 && errno == ENXIO);
  gone = 1;
  pthread_join(t[1], 0);
  CHECK(pins_held() == 0);
}

struct dma { uint64_t addr; uint32_t len, offset, to_device; };
#define EDU_DMA _IOW('e', 2, struct dma)
static void edu(void) {
  int fd = open("/dev/edu", O_RDWR), n = 0;
  char *p = anon(PG);
  volatile uint32_t *registers = mmap(0, PG, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  struct dma to = {(uintptr_t)p, 4000, 0, 1}, from = {(uintptr_t)p, 4000, 0, 0};
  CHECK(fd >= 0 && registers != MAP_FAILED && (*registers & 0xffff) == 0xed);
  memset(p, 'e', 4000);
  CHECK(!ioctl(fd, EDU_DMA, &to));
  do {
    memset(p, 0, PG);
    if (ioctl(fd, EDU_DMA, &from)) break;
    CHECK(p[0] == 'e' && p[3999] == 'e');
    if (!n) mark();
  } while (++n);
  // What had begun has ended well.
  CHECK(errno == EIO && p[0] == 0 && n > 0);
  CHECK(open("/dev/edu", O_RDONLY) == -1 && errno == ENOENT);
  while ((*registers & 0xffff) == 0xed) sched_yield();
  CHECK(ioctl(fd, EDU_DMA, &to) == -1 && errno == EIO && pins_held() == 0);
}

// Until the host has it.
static void wait_until_it_is_out(void) {
  char *p = anon(PG);
  do CHECK(pread(other, p, PG, MARK_AT + PG) == (long)PG); while (strcmp(p, "out"));
}

// What nobody has synced is on the disk; what is in use afterwards fails, and lets go.
static void files(int nameless) {
  CHECK(!mkdir("/mnt", 0700) || errno == EEXIST);
  CHECK(!mount(disk, "/mnt", "ext4", 0, 0) && !mkdir("/mnt/dir", 0700));
  int fd = open("/mnt/dir/file", O_RDWR | O_CREAT, 0600), second = open("/mnt/second", O_RDWR | O_CREAT, 0600);
  CHECK(fd >= 0 && second >= 0 && pwrite(fd, "written", 8, 0) == 8 && !ftruncate(fd, 64 * PG));
  char *m = mmap(0, 64 * PG, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  // By way of the mapping alone.
  CHECK(m != MAP_FAILED && !fsync(fd));
  strcpy(m + 63 * PG, "stored");
  CHECK(pwrite(second, m, 8 * PG, 0) == 8 * PG);
  if (nameless) CHECK(!unlink("/mnt/second"));
  mark();
  wait_until_it_is_out();
  char *p = anon(PG);
  CHECK(open("/mnt/another", O_RDWR | O_CREAT, 0600) == -1 && errno == EIO);
  CHECK(pread(fd, p, PG, 30 * PG) == -1 && errno == EIO);
  CHECK(fsync(fd) == -1 && errno == EIO);
  CHECK(!munmap(m, 64 * PG) && !close(fd) && !close(second) && !umount("/mnt"));
  CHECK(mount(disk, "/mnt", "ext4", 0, 0) == -1 && errno == ENOENT);
}

// The disk's button is pressed while somebody stands in the middle of mounting it: his file system is left clean, too.
#define CLAIMED "mount.claimed"
static void mounting(void) {
  struct stat st;
  int status;
  char *p = anon(PG);
  pid_t mounter = fork();
  if (!mounter) {
    CHECK((!mkdir("/mnt", 0700) || errno == EEXIST) && race("arm", CLAIMED));
    // It may be gone as soon as it is there.
    if (mount(disk, "/mnt", "ext4", 0, 0)) CHECK(errno == EIO);
    else CHECK(!umount("/mnt"));
    _exit(0);
  }
  while (!stands(CLAIMED)) CHECK(!waitpid(mounter, &status, WNOHANG));
  mark();
  while (!stat(disk, &st)) sched_yield();
  CHECK(errno == ENOENT);
  // It would be out long before the other disk has done all this.
  for (int i = 0; i < 5000; i++) CHECK(pread(other, p, PG, i % 500 * PG) == (long)PG);
  CHECK(pread(other, p, PG, MARK_AT + PG) == (long)PG && race("release", CLAIMED));
  CHECK(strcmp(p, "out") && waitpid(mounter, &status, 0) == mounter && !status);
}

static void silent(void) {
  aio_context_t c = 0;
  struct iocb b[DEEP], *l[DEEP];
  struct io_event e[DEEP];
  char *p = anon(DEEP * 64 * PG);
  CHECK(!syscall(SYS_io_setup, DEEP, &c));
  for (int i = 0; i < DEEP; i++) {
    b[i] = (struct iocb){.aio_lio_opcode = IOCB_CMD_PREAD, .aio_fildes = d, .aio_buf = (uintptr_t)(p + i * 64 * PG), .aio_nbytes = 64 * PG, .aio_offset = i * MB};
    l[i] = &b[i];
  }
  CHECK(syscall(SYS_io_submit, c, DEEP, l) == DEEP);
  mark();
  CHECK(syscall(SYS_io_getevents, c, DEEP, DEEP, e, 0) == DEEP);
  // One that is reset may end what it has, well or not.
  for (int i = 0; i < DEEP; i++) CHECK(e[i].res == -EIO || e[i].res == 64 * (long)PG);
  CHECK(pins_held() == 0);
}

int main(int argc, char **argv) {
  CHECK(argc >= 3);
  probe_install();
  other = open(argv[2], O_RDWR | O_DIRECT);
  CHECK(other >= 0);
  disk = argc > 3 ? argv[3] : argv[1];
  if (!strcmp(argv[1], "edu")) edu();
  else if (!strcmp(argv[1], "ext4")) files(argc > 4);
  else if (!strcmp(argv[1], "mounting")) mounting();
  else if (!strcmp(argv[1], "silent")) { d = open(disk, O_RDONLY | O_DIRECT); CHECK(d >= 0); silent(); }
  else if (strcmp(argv[1], "early")) disks();
  wait_until_it_is_out();
  struct stat st;
  if (argc > 3) CHECK(stat(disk, &st) == -1 && errno == ENOENT);
  say("ok\n");
}
