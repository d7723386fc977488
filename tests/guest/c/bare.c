// What nobody can take hold of (PFN-8, PFN-10, VMA-3): every call that wants a program's pages says EFAULT, whatever stands behind
// them. bare window DISK: a device's registers. bare bad DISK: page table entries that nobody made, planted by the test
// kernel's /sys/kernel/race; bare low DISK and bare high DISK: of frames between two pieces of memory. bare one: one of them, met
// once; the kernel's log tells. Checks itself.
#include "t.h"
#include <linux/aio_abi.h>
#include <linux/futex.h>
#include <linux/io_uring.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/uio.h>

// An address that no memory and no device answers to: present, for programs, to be written.
static uint64_t nowhere = 0xff00000000UL | 7;
#define SPECIAL 0x200UL // a frame that nobody counts
#define NO_KIND (7UL << 9)

static void plant(char *at, uint64_t entry) {
  char b[48];
  snprintf(b, sizeof b, "%#lx %#lx", (unsigned long)at, (unsigned long)entry);
  CHECK(race("entry", b));
}

// --- every way to a page -----------------------------------------------------------------------------
#define FAULTS(c) CHECK((errno = 0, (c) == -1) && errno == EFAULT)

static void straight(const char *disk, char *p) {
  int d = open(disk, O_RDWR | O_DIRECT);
  CHECK(d >= 0);
  FAULTS(pwrite(d, p, 512, 0));
  FAULTS(pread(d, p, 512, 0));
  struct iovec v = {p, PG};
  FAULTS(preadv(d, &v, 1, 0));
  aio_context_t ctx = 0;
  CHECK(!syscall(SYS_io_setup, 1, &ctx));
  struct iocb r = {.aio_lio_opcode = IOCB_CMD_PREAD, .aio_fildes = (uint32_t)d, .aio_buf = (uint64_t)p, .aio_nbytes = 512}, *l = &r;
  long n = syscall(SYS_io_submit, ctx, 1, &l);
  struct io_event e = {.res = -EFAULT};
  CHECK(n == 1 ? syscall(SYS_io_getevents, ctx, 1, 1, &e, 0) == 1 : errno == EFAULT);
  CHECK(e.res == -EFAULT && !syscall(SYS_io_destroy, ctx) && !close(d));
}

static void ring(const char *disk, char *p) {
  struct io_uring_params u = {0};
  int r = syscall(SYS_io_uring_setup, 2, &u), d = open(disk, O_RDONLY | O_DIRECT);
  CHECK(r >= 0 && d >= 0);
  struct iovec v = {p, PG};
  FAULTS(syscall(SYS_io_uring_register, r, IORING_REGISTER_BUFFERS, &v, 1));
  char *m = mmap(0, PG, PROT_READ | PROT_WRITE, MAP_SHARED, r, IORING_OFF_SQ_RING);
  struct io_uring_sqe *s = mmap(0, PG, PROT_READ | PROT_WRITE, MAP_SHARED, r, IORING_OFF_SQES);
  CHECK(m != MAP_FAILED && s != MAP_FAILED);
  *s = (struct io_uring_sqe){.opcode = IORING_OP_READ, .fd = d, .addr = (uint64_t)p, .len = 512};
  *(unsigned *)(m + u.sq_off.array) = 0;
  __atomic_store_n((unsigned *)(m + u.sq_off.tail), 1, __ATOMIC_RELEASE);
  CHECK(syscall(SYS_io_uring_enter, r, 1, 1, IORING_ENTER_GETEVENTS, 0, 8) == 1);
  struct io_uring_cqe *c = (void *)(m + u.cq_off.cqes);
  CHECK(c->res == -EFAULT);
  CHECK(!munmap(m, PG) && !munmap(s, PG) && !close(r) && !close(d));
}

static void pipes(char *p) {
  int f[2];
  struct iovec v = {p, 100};
  CHECK(!pipe(f));
  FAULTS(vmsplice(f[1], &v, 1, 0));
  close(f[0]);
  close(f[1]);
}

static void itself(char *p) {
  char b[8];
  struct iovec here = {b, 8}, there = {p, 8};
  FAULTS(process_vm_readv(getpid(), &here, 1, &there, 1, 0));
  FAULTS(process_vm_writev(getpid(), &here, 1, &there, 1, 0));
}

static void from_outside(char *p) {
  char b[8];
  struct iovec here = {b, 8}, there = {p, 8};
  int m = open("/proc/self/mem", O_RDWR);
  CHECK(m >= 0 && pread(m, b, 8, (off_t)p) == -1 && errno == EIO && pwrite(m, b, 8, (off_t)p) == -1 && errno == EIO && !close(m));
  // A debugger's child is its own process, with the same entry.
  pid_t c = fork();
  if (!c) {
    ptrace(PTRACE_TRACEME, 0, 0, 0);
    raise(SIGSTOP);
    _exit(0);
  }
  int st;
  CHECK(waitpid(c, &st, 0) == c && WIFSTOPPED(st));
  errno = 0;
  CHECK(ptrace(PTRACE_PEEKDATA, c, p, 0) == -1 && errno == EIO);
  CHECK(ptrace(PTRACE_POKEDATA, c, p, 0) == -1 && errno == EIO);
  FAULTS(process_vm_readv(c, &here, 1, &there, 1, 0));
  CHECK(!ptrace(PTRACE_CONT, c, 0, 0) && waitpid(c, &st, 0) == c && !st);
}

static void kernel_test(char *p) {
  struct { uint64_t addr, size; uint32_t flags; } ask = {(uint64_t)p, PG, 0};
  mount("none", "/sys/kernel/debug", "debugfs", 0, 0);
  int g = open("/sys/kernel/debug/gup_test", O_RDWR);
  CHECK(g >= 0);
  for (ask.flags = 0; ask.flags < 4; ask.flags++) FAULTS(ioctl(g, _IOW('g', 7, ask), &ask));
  CHECK(!close(g));
}

static void device(char *p) {
  struct { uint64_t addr; uint32_t len, offset, to_device, end; } dma = {(uint64_t)p, 16, 0, 0, 0};
  struct { uint64_t addr, len; } buffer = {(uint64_t)p, PG};
  int d = open("/dev/edu", O_RDWR);
  CHECK(d >= 0);
  for (; dma.to_device < 2; dma.to_device++) FAULTS(ioctl(d, _IOW('e', 2, dma), &dma));
  FAULTS(ioctl(d, _IOW('e', 3, buffer), &buffer));
  CHECK(!close(d));
}

static void all_ways(const char *disk, char *p) {
  straight(disk, p);
  ring(disk, p);
  pipes(p);
  itself(p);
  kernel_test(p);
  device(p);
  CHECK(pins_held() == 0);
}

// --- a device's registers ----------------------------------------------------------------------------
static void window(const char *disk) {
  int d = open("/dev/edu", O_RDWR);
  for (int kind = MAP_SHARED; kind <= MAP_PRIVATE; kind++) {
    char *p = mmap(0, PG, PROT_READ | PROT_WRITE, kind, d, 0);
    CHECK(p != MAP_FAILED && (*(volatile uint32_t *)p & 0xffff) == 0xed);
    all_ways(disk, p);
    from_outside(p);
    // A word that another process could mean is known by its page; one that nobody else means, by its address.
    FAULTS(syscall(SYS_futex, p, FUTEX_WAKE, 1, 0, 0, 0));
    CHECK(syscall(SYS_futex, p, FUTEX_WAKE | FUTEX_PRIVATE_FLAG, 1, 0, 0, 0) == 0);
    CHECK(!mlock(p, PG) && madvise(p, PG, MADV_POPULATE_READ) == -1 && errno == EINVAL);
    CHECK(!munmap(p, PG));
  }
}

// --- entries that nobody made ------------------------------------------------------------------------
static char *at; // the page in the middle of three
static void place(void) {
  char *p = anon_at(BASE, 3 * PG, PROT_READ | PROT_WRITE);
  p[0] = 1;
  p[2 * PG] = 3;
  at = p + PG;
}
static void fine(void) { CHECK(at[-PG] == 1 && at[PG] == 3); }

static const char *bad_disk;
static void tried(uint64_t entry) {
  plant(at, entry);
  all_ways(bad_disk, at);
  if (entry != NO_KIND) from_outside(at); // no child gets that
  fine();
}
static void counted(void) { tried(nowhere); }
static void special(void) { tried(nowhere | SPECIAL); }
static void no_kind(void) { tried(NO_KIND); }
static void passed(void) { // who has nothing to ask of a page
  plant(at, nowhere);
  CHECK(!mprotect(at, PG, PROT_READ) && !mprotect(at, PG, PROT_READ | PROT_WRITE));
  CHECK(!mlock(at - PG, 2 * PG) && !munlock(at - PG, 2 * PG) && !madvise(at, PG, MADV_DONTNEED));
  *at = 2;
  CHECK(*at == 2);
  fine();
}
static void touched(void) { plant(at, NO_KIND); *(volatile char *)at = 1; }
static void forked(void) {
  plant(at, nowhere);
  pid_t c = fork();
  if (!c) { fine(); _exit(0); }
  int st;
  CHECK(waitpid(c, &st, 0) == c && !st);
  fine();
}
static void bad(const char *disk) {
  bad_disk = disk;
  CHECK(!strcmp(in_child(counted), "exit 0"));
  CHECK(!strcmp(in_child(special), "exit 0"));
  CHECK(!strcmp(in_child(no_kind), "exit 0"));
  CHECK(!strcmp(in_child(passed), "exit 0"));
  CHECK(!strcmp(in_child(touched), "signal 7"));
  CHECK(!strcmp(in_child(forked), "exit 0"));
  // Nobody else has noticed.
  at[0] = 2;
  fine();
  CHECK(at[0] == 2);
}

// Met once: a mapping with it in its middle goes.
static void one(void) {
  plant(at, nowhere);
  CHECK(!munmap(at - PG, 3 * PG));
}

int main(int argc, char **argv) {
  CHECK(argc > 1);
  place();
  if (!strcmp(argv[1], "window")) window(argv[2]);
  else if (!strcmp(argv[1], "one")) {
    CHECK(!strcmp(in_child(one), "exit 0"));
    fine();
  } else {
    if (!strcmp(argv[1], "low")) nowhere = 0xa0000 | 7; // a display's old window below 1 MiB
    if (!strcmp(argv[1], "high")) nowhere = 0xd0000000 | 7; // what PCI has below 4 GiB
    bad(argv[2]);
  }
  say("ok\n");
}
