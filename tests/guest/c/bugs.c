// Historic bugs of Linux's memory management (SPEC, BUG-n), one scenario each: `bugs N` ends well where the bug is
// absent. Where an interleaving matters it is forced: the test kernel's /sys/kernel/race makes a thread stand at a
// named point. tests/src/bugs.rs runs each also with its bug planted, and then it must fail.
#include "t.h"
#include <pthread.h>
#include <stdatomic.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/uio.h>

// A thread that stands would keep a process that failed from ending.
#undef CHECK
#define CHECK(c)                                                              \
  do {                                                                        \
    if (!(c)) {                                                               \
      say("FAILED %s:%d: %s (errno %d)\n", __FILE__, __LINE__, #c, errno);    \
      release_all();                                                          \
      _exit(1);                                                               \
    }                                                                         \
  } while (0)
static void release_all(void) {
  static const char *points[] = {"fast.read", "slow.start", "slow.faulted", "fork.share"};
  for (size_t i = 0; i < sizeof points / sizeof *points; i++) race("release", points[i]);
}

// --- /sys/kernel/debug/gup_test, whose pins play the device ----------------------------------------
struct gup_test {
  uint64_t get_usec, put_usec, addr, size;
  uint32_t per_call, gup_flags, test_flags, which[8];
};
struct pin_test {
  uint64_t addr, size;
  uint32_t flags;
};
#define GUP_FAST _IOWR('g', 1, struct gup_test)
#define GUP_SLOW _IOWR('g', 4, struct gup_test)
#define PIN_START _IOW('g', 7, struct pin_test)
#define PIN_STOP _IO('g', 8)
#define PIN_READ _IOW('g', 9, uint64_t)
#define PIN_WRITE 1u
#define PIN_FAST 2u

static int gup_fd(void) {
  static int fd = -1;
  if (fd < 0) {
    mount("none", "/sys/kernel/debug", "debugfs", 0, 0);
    fd = open("/sys/kernel/debug/gup_test", O_RDWR);
  }
  CHECK(fd >= 0);
  return fd;
}
static void pin(void *at, size_t len, uint32_t flags) {
  struct pin_test p = {(uint64_t)at, len, flags};
  CHECK(!ioctl(gup_fd(), PIN_START, &p));
}
// What the device finds in the first byte that it has pinned.
static char device_sees(size_t len) {
  char *b = malloc(len);
  uint64_t to = (uint64_t)b;
  CHECK(!ioctl(gup_fd(), PIN_READ, &to));
  char c = b[0];
  free(b);
  return c;
}
static void unpin(void) { CHECK(!ioctl(gup_fd(), PIN_STOP)); }
// Bytes that a walk over [at, at + len) got at.
static uint64_t walk(unsigned long how, uint64_t at, uint64_t len, uint32_t flags) {
  struct gup_test g = {.addr = at, .size = len, .per_call = len / PG, .gup_flags = flags};
  return ioctl(gup_fd(), how, &g) ? 0 : g.size;
}

// --- the script ------------------------------------------------------------------------------------
static void arm(const char *point) { CHECK(race("arm", point)); }
static void release(const char *point) { CHECK(race("release", point)); }
// Waits until the other thread stands at the point; it must not come through.
static void await(const char *point, atomic_int *through) {
  while (!stands(point)) {
    CHECK(!atomic_load(through));
    sched_yield();
  }
}

// --- threads and processes in lock step --------------------------------------------------------------
static atomic_int done;
static pthread_t thread;
static void go(void *(*f)(void *), void *arg) {
  atomic_store(&done, 0);
  CHECK(!pthread_create(&thread, 0, f, arg));
}
static void finish(void) { CHECK(!pthread_join(thread, 0)); }

struct child {
  pid_t pid;
  int go[2], came[2];
};
static void tell(int fd) { CHECK(write(fd, "x", 1) == 1); }
static void hear(int fd) {
  char c;
  CHECK(read(fd, &c, 1) == 1);
}
static struct child child_of(void (*f)(struct child *)) {
  struct child c;
  CHECK(!pipe(c.go) && !pipe(c.came));
  c.pid = fork();
  CHECK(c.pid >= 0);
  // Each keeps its own ends, so that the other's death is heard.
  close(c.pid ? c.go[0] : c.go[1]);
  close(c.pid ? c.came[1] : c.came[0]);
  if (!c.pid) {
    f(&c);
    _exit(0);
  }
  return c;
}
static void reap(struct child *c) {
  int st;
  CHECK(waitpid(c->pid, &st, 0) == c->pid);
  CHECK(WIFEXITED(st) && !WEXITSTATUS(st));
}
static void child_waits(struct child *c) {
  tell(c->came[1]);
  hear(c->go[0]);
}

static int file_of(const char *text) {
  char path[] = "/tmp/bugs.XXXXXX", page[PG] = {0};
  int fd = mkstemp(path);
  CHECK(fd >= 0 && !unlink(path));
  strcpy(page, text);
  CHECK(write(fd, page, PG) == (ssize_t)PG);
  return fd;
}
static void file_says(int fd, const char *text) {
  char b[64] = {0};
  CHECK(pread(fd, b, sizeof b - 1, 0) > 0);
  CHECK(!strcmp(b, text));
}
static int mem_fd(void) {
  int fd = open("/proc/self/mem", O_RDWR);
  CHECK(fd >= 0);
  return fd;
}

// --- BUG-1 (VMA-5, FAULT-8): Dirty COW ---------------------------------------------------------------
static void *poke(void *at) {
  int fd = mem_fd();
  CHECK(pwrite(fd, "evil", 5, (off_t)at) == 5);
  close(fd);
  atomic_store(&done, 1);
  return 0;
}
static void bug_1(void) {
  int fd = file_of("good");
  char *p = mmap(0, PG, PROT_READ, MAP_PRIVATE, fd, 0);
  CHECK(p != MAP_FAILED && !strcmp(p, "good"));
  arm("slow.faulted");
  go(poke, p);
  await("slow.faulted", &done);
  // The copy that the poke was given goes; its walk comes back to the file's page.
  CHECK(!madvise(p, PG, MADV_DONTNEED));
  CHECK(!strcmp(p, "good"));
  release("slow.faulted");
  finish();
  file_says(fd, "good");
  CHECK(!strcmp(p, "evil"));
}

// --- BUG-4 (UNSH-2): a child's reference outlives its mapping -------------------------------------------
static char *page_4;
static int pipe_4[2];
static void child_4(struct child *c) {
  struct iovec v = {page_4, PG};
  CHECK(vmsplice(pipe_4[1], &v, 1, 0) == (ssize_t)PG);
  CHECK(!munmap(page_4, PG));
  child_waits(c);
  char b[PG];
  CHECK(read(pipe_4[0], b, PG) == (ssize_t)PG);
  CHECK(b[0] == 'o');
}
static void bug_4(void) {
  page_4 = anon(PG);
  page_4[0] = 'o';
  CHECK(!pipe(pipe_4));
  struct child c = child_of(child_4);
  hear(c.came[0]);
  page_4[0] = 's'; // a secret
  tell(c.go[1]);
  reap(&c);
}

// --- BUG-5 (ADJ-4, UNSH-3, PIN-15): pinned, forked, written: the device must stay with the parent --------
static char *page_5;
static void child_5(struct child *c) {
  child_waits(c);
  CHECK(page_5[0] == 'o');
}
static void bug_5(void) {
  for (uint32_t how = PIN_WRITE; how <= (PIN_WRITE | PIN_FAST); how += PIN_FAST) {
    page_5 = anon(PG);
    page_5[0] = 'o';
    pin(page_5, PG, how);
    struct child c = child_of(child_5);
    hear(c.came[0]);
    page_5[0] = 'n';
    CHECK(device_sees(PG) == 'n');
    tell(c.go[1]);
    reap(&c);
    unpin();
  }
}

// --- BUG-6 (UNSH-1, UNSH-2, FAULT-9): a pin for reading goes stale ----------------------------------------
static void stale(char *p, uint32_t how, char before) {
  pin(p, PG, how);
  CHECK(device_sees(PG) == before);
  p[0] = 'n';
  CHECK(device_sees(PG) == 'n');
  unpin();
}
static void bug_6(void) {
  for (uint32_t how = 0; how <= PIN_FAST; how += PIN_FAST) {
    char *p = anon(PG);
    p[0] = 'o';
    struct child c = child_of(child_waits);
    hear(c.came[0]);
    stale(p, how, 'o'); // shared with the child
    tell(c.go[1]);
    reap(&c);
    stale(anon(PG), how, 0); // never touched
    p = anon(PG);
    CHECK(*(volatile char *)p == 0);
    stale(p, how, 0); // the zero page
    int fd = file_of("file");
    p = mmap(0, PG, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    CHECK(p != MAP_FAILED && p[0] == 'f');
    stale(p, how, 'f'); // the file's page
    file_says(fd, "file");
    close(fd);
  }
}

// --- BUG-7 (FAST-14, LOCK-11): fork against a fast pin ----------------------------------------------------
static struct child forked_7;
static void child_7(struct child *c) {
  child_waits(c);
  CHECK(page_5[0] == 'o');
}
static void *fork_7(void *unused) {
  forked_7 = child_of(child_7);
  atomic_store(&done, 1);
  return unused;
}
static atomic_int go_7, pinned_7;
static void *pin_7(void *unused) {
  while (!atomic_load(&go_7)) sched_yield();
  pin(page_5, PG, PIN_WRITE | PIN_FAST);
  atomic_store(&pinned_7, 1);
  return unused;
}
static void bug_7(void) {
  // The lowest mapping: fork comes to it first.
  page_5 = anon_at((void *)0x10000, PG, PROT_READ | PROT_WRITE);
  page_5[0] = 'o';
  gup_fd();
  pthread_t pinner; // made before fork has the lock that a new stack needs
  CHECK(!pthread_create(&pinner, 0, pin_7, 0));
  arm("fork.share");
  go(fork_7, 0);
  await("fork.share", &done); // found not pinned, still writable
  arm("slow.start");
  atomic_store(&go_7, 1);
  await("slow.start", &pinned_7); // the fast walk leaves it to the lock, where it waits for fork
  release("slow.start");
  release("fork.share");
  finish();
  CHECK(!pthread_join(pinner, 0));
  hear(forked_7.came[0]);
  page_5[0] = 'n';
  CHECK(device_sees(PG) == 'n');
  tell(forked_7.go[1]);
  reap(&forked_7);
  unpin();
}

// --- BUG-9 (FAST-2, FAST-13): a lockless walk in a table that is being freed ---------------------------------
static void *walk_9(void *at) {
  walk(GUP_FAST, (uint64_t)at, PG, 0);
  return 0;
}
static void *unmap_9(void *at) {
  CHECK(!munmap(at, PG));
  atomic_store(&done, 1);
  return 0;
}
static void bug_9(void) {
  // Alone in its tables: unmapping frees them.
  char *p = anon_at(BASE, PG, PROT_READ | PROT_WRITE);
  p[0] = 1;
  pthread_t walker;
  atomic_store(&done, 0);
  arm("fast.read");
  CHECK(!pthread_create(&walker, 0, walk_9, p));
  await("fast.read", &done);
  go(unmap_9, p);
  for (int i = 0; i < 200000 && !atomic_load(&done); i++) sched_yield();
  CHECK(!atomic_load(&done)); // it waits for the walker's interrupts
  release("fast.read");
  CHECK(!pthread_join(walker, 0));
  finish();
}

// --- BUG-14 (VMA-5): FORCE on shared mappings -------------------------------------------------------------
static void bug_14(void) {
  int fd = file_of("good"), mem = mem_fd();
  char path[64];
  snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
  int ro = open(path, O_RDONLY);
  CHECK(ro >= 0);
  int fds[2] = {fd, ro}; // may be made writable, and not
  for (int i = 0; i < 2; i++) {
    char *p = mmap(0, PG, PROT_READ, MAP_SHARED, fds[i], 0);
    CHECK(p != MAP_FAILED && p[0] == 'g');
    CHECK(pwrite(mem, "evil", 5, (off_t)p) == -1 && errno == EIO);
    file_says(fd, "good");
    CHECK(!munmap(p, PG));
  }
}

// --- BUG-17 (FAST-6): the fast path grants what the VMA denies -----------------------------------------------
static void bug_17(void) {
  char *p = anon(4 * PG);
  memset(p, 1, 4 * PG);
  CHECK(walk(GUP_FAST, (uint64_t)p, 4 * PG, 1) == 4 * PG);
  CHECK(!mprotect(p + 2 * PG, PG, PROT_NONE));
  CHECK(walk(GUP_FAST, (uint64_t)p + 2 * PG, PG, 0) == 0);
  CHECK(!mprotect(p + 3 * PG, PG, PROT_READ));
  CHECK(walk(GUP_FAST, (uint64_t)p + 3 * PG, PG, 1) == 0);
  static const uint64_t bad[] = {0x7ffffffff000, 0x800000000000, 0xffff800000000000, 0xffff888000000000,
                                 0xffffffff80000000, 0xfffffffffffff000};
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) CHECK(walk(GUP_FAST, bad[i], PG, 0) == 0);
}

// --- BUG-18 (VMA-1): a stack that grows under the read lock ---------------------------------------------------
static char *under_18;
static void *peek_18(void *unused) {
  char b[8];
  struct iovec to = {b, sizeof b}, from = {under_18, sizeof b};
  for (int i = 0; i < 500; i++)
    CHECK(process_vm_readv(getpid(), &to, 1, &from, 1, 0) == -1 && errno == EFAULT);
  return unused;
}
static int covered(char *at) {
  unsigned char v;
  return mincore(at, PG, &v) == 0;
}
static void bug_18(void) {
  char *p = mmap(BASE, 4 * PG, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_GROWSDOWN, -1, 0);
  CHECK(p == BASE);
  p[0] = 1;
  under_18 = p - PG;
  pthread_t t[4];
  for (int i = 0; i < 4; i++) CHECK(!pthread_create(&t[i], 0, peek_18, 0));
  for (int i = 0; i < 4; i++) CHECK(!pthread_join(t[i], 0));
  CHECK(!covered(under_18));
  *under_18 = 1; // a real access grows it
  CHECK(covered(under_18));
}

// --- BUG-19 (VMA-1): over the guard gap -------------------------------------------------------------------------
static void bug_19(void) {
  probe_install();
  char *other = anon_at(BASE, PG, PROT_READ | PROT_WRITE), *stack = BASE + 200 * PG;
  CHECK(mmap(stack, PG, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_GROWSDOWN, -1, 0) == stack);
  CHECK(!mlockall(MCL_CURRENT));
  CHECK(!covered(stack - PG));
  CHECK(!strcmp(probe(stack - PG, 'W'), "SEGV_MAPERR")); // within 256 pages of `other`
  CHECK(pwrite(mem_fd(), "x", 1, (off_t)(stack - PG)) == -1 && errno == EIO);
  CHECK(!covered(stack - PG));
  CHECK(!munlockall() && !munmap(other, PG));
  CHECK(!strcmp(probe(stack - PG, 'W'), "ok"));
}

// --- BUG-25 (SOFTD-1, WALK-6): a forced write and the fault handler disagree for ever ----------------------------
static void bug_25(void) {
  char *p = anon(PG);
  p[0] = 'o';
  CHECK(!mprotect(p, PG, PROT_READ));
  int fd = open("/proc/self/clear_refs", O_WRONLY);
  CHECK(fd >= 0 && write(fd, "4", 1) == 1); // writes are tracked, and none is known
  pid_t c = fork();
  CHECK(c >= 0);
  if (!c) _exit(pwrite(mem_fd(), "n", 1, (off_t)p) == 1 && p[0] == 'n' ? 0 : 1);
  int st = -1;
  for (int i = 0; i < 1000000 && waitpid(c, &st, WNOHANG) == 0; i++) sched_yield();
  if (st == -1) kill(c, SIGKILL);
  CHECK(st == 0);
}

// --- BUG-26 (VMA-11): secret memory by side doors -------------------------------------------------------------------
static void bug_26(void) {
  int fd = syscall(SYS_memfd_secret, 0), mem = mem_fd(), pp[2];
  CHECK(fd >= 0 && !ftruncate(fd, PG) && !pipe(pp));
  char *p = mmap(0, PG, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), b[8];
  CHECK(p != MAP_FAILED);
  p[0] = 's'; // just faulted in
  struct iovec to = {b, 1}, from = {p, 1};
  CHECK(walk(GUP_FAST, (uint64_t)p, PG, 0) == 0);
  CHECK(walk(GUP_SLOW, (uint64_t)p, PG, 0) == 0);
  CHECK(process_vm_readv(getpid(), &to, 1, &from, 1, 0) == -1 && errno == EFAULT);
  CHECK(pread(mem, b, 1, (off_t)p) == -1 && errno == EIO);
  CHECK(vmsplice(pp[1], &from, 1, 0) == -1 && errno == EFAULT);
  CHECK(p[0] == 's');
}

// --- BUG-29 (VMA-10): a debugger bound by its own protection keys -----------------------------------------------------
static void bug_29(void) {
  int pp[2], key = pkey_alloc(0, PKEY_DISABLE_ACCESS);
  CHECK(key > 0 && !pipe(pp));
  char *p = anon(PG), c = 0;
  CHECK(pread(mem_fd(), &c, 1, (off_t)p) == 1);
  CHECK(!pkey_mprotect(p, PG, PROT_READ | PROT_WRITE, key));
  CHECK(write(pp[1], p, 1) == -1 && errno == EFAULT); // one's own access
  struct iovec to = {&c, 1}, from = {p, 1};
  CHECK(process_vm_readv(getpid(), &to, 1, &from, 1, 0) == 1); // a debugger's
  CHECK(pwrite(mem_fd(), "d", 1, (off_t)p) == 1);
}

// --- BUG-30 (GATE-1, GATE-2): the gate page -------------------------------------------------------------------------------
static void bug_30(void) { // the kernel was started with vsyscall=emulate
  char *gate = (char *)0xffffffffff600000, b[3 * PG], seen = 0;
  struct iovec to = {b, PG}, from = {gate, PG};
  CHECK(process_vm_readv(getpid(), &to, 1, &from, 1, 0) == (ssize_t)PG && !memcmp(b, gate, PG));
  from = (struct iovec){gate - 8, 16}; // a page of nothing first
  CHECK(process_vm_readv(getpid(), &to, 1, &from, 1, 0) == -1 && errno == EFAULT);
  from = (struct iovec){gate + PG - 8, 16}, to.iov_len = 16; // and after it
  CHECK(process_vm_readv(getpid(), &to, 1, &from, 1, 0) == 8);
  for (long at = -3; at <= 3; at += 2) { // levels of tables that are missing
    from = (struct iovec){gate + at * (long)PG, 8};
    CHECK(process_vm_readv(getpid(), &to, 1, &from, 1, 0) == -1 && errno == EFAULT);
    from.iov_base = (char *)0xffff880000000000 + (at + 3) * (1l << 39);
    CHECK(process_vm_readv(getpid(), &to, 1, &from, 1, 0) == -1 && errno == EFAULT);
  }
  from = (struct iovec){gate, 8};
  CHECK(process_vm_writev(getpid(), &to, 1, &from, 1, 0) == -1 && errno == EFAULT);
  pid_t c = fork(); // FORCE
  if (!c) { ptrace(PTRACE_TRACEME, 0, 0, 0); raise(SIGSTOP); _exit(0); }
  int st;
  CHECK(waitpid(c, &st, 0) == c && WIFSTOPPED(st));
  errno = 0;
  CHECK(ptrace(PTRACE_PEEKDATA, c, gate + 0x400, 0) == *(long *)(gate + 0x400) && !errno);
  CHECK(ptrace(PTRACE_POKEDATA, c, gate + 0x400, 0) == -1 && errno == EIO);
  kill(c, SIGKILL);
  CHECK(waitpid(c, &st, 0) == c && *(gate + 0xfff) == (char)0xcc && !seen);
}

// --- BUG-31 (LOOP-1, FAST-17): pages got before the error are the caller's ---------------------------------------
static void bug_31(void) {
  char *p = anon(4 * PG), *b = malloc(4 * PG);
  memset(p, 1, 4 * PG);
  CHECK(!munmap(p + 3 * PG, PG));
  struct iovec v = {p, 4 * PG};
  int pp[2];
  CHECK(!pipe(pp));
  CHECK(vmsplice(pp[1], &v, 1, 0) == 3 * (ssize_t)PG);
  CHECK(read(pp[0], b, 4 * PG) == 3 * (ssize_t)PG);
}

int main(int argc, char **argv) {
  static const struct { int n; void (*run)(void); } bugs[] = {
      {1, bug_1}, {4, bug_4}, {5, bug_5}, {6, bug_6}, {7, bug_7}, {9, bug_9}, {14, bug_14},
      {17, bug_17}, {18, bug_18}, {19, bug_19}, {25, bug_25}, {26, bug_26}, {29, bug_29}, {30, bug_30}, {31, bug_31}};
  int n = argc > 1 ? atoi(argv[1]) : 0;
  for (size_t i = 0; i < sizeof bugs / sizeof *bugs; i++)
    if (bugs[i].n == n) {
      bugs[i].run();
      say("BUG-%d: not here\n", n);
      return 0;
    }
  say("no such scenario: %d\n", n);
  return 2;
}
