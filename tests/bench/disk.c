// disk RAW EXT4 [ROW]: what disks and files on them cost, in guest instructions outside halt. RAW is a block device, EXT4 one with
// a file `data` in its root; each 8 bytes at `at` of either hold `at`. ROW runs that row alone. The same program runs on Linux.
//
// Each row is done in rounds, with marks for `count.c` around each: `BENCH name times rounds` says how many operations a round
// has, in the order of the marks. Each row checks that the work was done, outside of its marks where that costs something.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { PAGE = 4096, LARGE = 256 << 10, MOST = 32, LENGTH = 48 << 20, PAGES = LENGTH / PAGE, ROUNDS = 9 };

__attribute__((noinline)) void mark(void) { __asm__ volatile(".byte 0x0f, 0x1f, 0x80, 0x46, 0x4e, 0x49, 0x50" ::: "memory"); }
static void demand(int holds, const char *what) {
  if (holds) return;
  printf("BENCH-INVALID %s: %s\n", what, strerror(errno));
  fflush(stdout);
  _exit(3);
}
static const char *only;
static int wanted(const char *name) { return !only || !strcmp(only, name); }
static void row(const char *name, size_t times) { printf("BENCH %s %zu %d\n", name, times, ROUNDS), fflush(stdout); }
static int right(const char *bytes, size_t length, uint64_t at) {
  for (size_t i = 0; i < length; i += 8)
    if (*(const uint64_t *)(bytes + i) != at + i) return 0;
  return 1;
}

// --- direct: `size` bytes a request, `depth` in flight ------------------------------------------------
static char *buffer;
static aio_context_t context;
static size_t batch(int fd, size_t size, unsigned depth, size_t at) {
  if (depth == 1) return demand(pread(fd, buffer, size, at) == (ssize_t)size, "pread"), (at + size) % LENGTH;
  struct iocb blocks[MOST], *list[MOST];
  struct io_event events[MOST];
  for (unsigned i = 0; i < depth; i++, at = (at + size) % LENGTH) {
    blocks[i] = (struct iocb){.aio_fildes = fd, .aio_lio_opcode = IOCB_CMD_PREAD, .aio_buf = (uintptr_t)(buffer + i * size), .aio_nbytes = size, .aio_offset = at};
    list[i] = &blocks[i];
  }
  demand(syscall(SYS_io_submit, context, depth, list) == depth, "io_submit");
  demand(syscall(SYS_io_getevents, context, depth, depth, events, NULL) == depth, "io_getevents");
  for (unsigned i = 0; i < depth; i++) demand(events[i].res == (int64_t)size, "a request");
  return at;
}
static void direct(const char *name, int fd, size_t size, unsigned depth, size_t batches) {
  if (!wanted(name)) return;
  memset(buffer, 0xff, MOST * LARGE);
  size_t at = 0;
  for (int round = -1; round < ROUNDS; round++) { // the first is to warm up
    size_t last = at;
    if (round >= 0) mark();
    for (size_t i = 0; i < batches; i++) at = batch(fd, size, depth, last = at);
    if (round >= 0) mark();
    for (unsigned i = 0; i < depth; i++) demand(right(buffer + i * size, size, (last + i * size) % LENGTH), "what was read");
  }
  row(name, depth * batches);
}

// --- the page cache --------------------------------------------------------------------------------
static void forget(int fd) {
  demand(!fsync(fd), "fsync");
  demand(!posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED), "posix_fadvise");
}
static size_t cached(const char *map) {
  static unsigned char pages[PAGES];
  demand(!mincore((void *)map, LENGTH, pages), "mincore");
  size_t n = 0;
  for (size_t i = 0; i < PAGES; i++) n += pages[i] & 1;
  return n;
}
static void touch(const char *name, int fd, int cold) {
  if (!wanted(name)) return;
  for (int round = -1; round < ROUNDS; round++) {
    char *map = mmap(NULL, LENGTH, PROT_READ, MAP_SHARED, fd, 0);
    demand(map != MAP_FAILED, "mmap");
    if (cold) forget(fd);
    uint64_t sum = 0;
    if (round >= 0) demand(cached(map) == (cold ? 0 : PAGES), "what is cached"), mark();
    for (size_t i = 0; i < PAGES; i++) sum += *(volatile uint64_t *)(map + i * PAGE);
    if (round >= 0) mark();
    demand(sum == (uint64_t)PAGE * PAGES * (PAGES - 1) / 2, "what was mapped");
    munmap(map, LENGTH);
  }
  row(name, PAGES);
}

static void files(const char *path) {
  enum { READS = 2048, SYNCS = 32 };
  int fd = open(path, O_RDWR);
  demand(fd >= 0, path);
  touch("mmap_file_fault_cold", fd, 1);
  touch("mmap_file_fault_cached", fd, 0);
  if (wanted("cached_read_4K")) {
    for (int round = -1; round < ROUNDS; round++) {
      if (round >= 0) mark();
      for (size_t i = 0; i < READS; i++) demand(pread(fd, buffer, PAGE, i * PAGE) == PAGE, "pread");
      if (round >= 0) mark();
      demand(right(buffer, PAGE, (READS - 1) * PAGE), "what was read");
    }
    row("cached_read_4K", READS);
  }
  if (wanted("fsync_4K")) {
    for (int round = -1; round < ROUNDS; round++) {
      if (round >= 0) mark();
      for (size_t i = 0; i < SYNCS; i++) {
        demand(pwrite(fd, buffer, PAGE, i * PAGE) == PAGE, "pwrite");
        demand(!fsync(fd), "fsync");
      }
      if (round >= 0) mark();
    }
    row("fsync_4K", SYNCS);
  }
  close(fd);
}

int main(int argc, char **argv) {
  if (argc != 3 && argc != 4) return 2;
  only = argv[3];
  demand(!posix_memalign((void **)&buffer, PAGE, MOST * LARGE), "memory");
  madvise(buffer, MOST * LARGE, MADV_NOHUGEPAGE); // small pages are what is measured; EINVAL where there are no others
  // Neighbours come from different places, always: how many pieces a request has must not be left to chance.
  for (size_t i = 0; i < MOST * LARGE / PAGE; i++) buffer[i * 37 % (MOST * LARGE / PAGE) * PAGE] = 1;
  demand(!syscall(SYS_io_setup, MOST, &context), "io_setup");
  int fd = open(argv[1], O_RDONLY | O_DIRECT);
  demand(fd >= 0, argv[1]);
  direct("odirect_read_4K", fd, PAGE, 1, 256);
  direct("odirect_read_4K_32", fd, PAGE, MOST, 32);
  direct("odirect_read_256K", fd, LARGE, 1, 64);
  direct("odirect_read_256K_32", fd, LARGE, MOST, 8);
  close(fd);
  mkdir("/mnt", 0755);
  demand(!mount(argv[2], "/mnt", "ext4", 0, NULL), "mount");
  fd = open("/mnt/data", O_RDONLY | O_DIRECT);
  demand(fd >= 0, "/mnt/data");
  direct("odirect_file_read_4K", fd, PAGE, 1, 256);
  close(fd);
  files("/mnt/data");
  demand(!umount("/mnt"), "umount");
  printf("BENCH-END\n");
  return 0;
}
