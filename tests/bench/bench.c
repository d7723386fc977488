// What memory management costs, in guest instructions: under `-icount shift=0` one tick of the TSC is one
// instruction, so figures repeat exactly. The rows and what they divide by are those of linux-6.12.tsv.
//
// Each row checks, outside of its clock, that the work was done; a row that was won by not doing it ends the run
// with BENCH-INVALID. A row whose system call is not there prints `skip`.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096, MIB = 1 << 20, AREA = 64 * MIB, PAGES = AREA / PAGE };

// --- the clock, the rows, the checks -------------------------------------------------------------
static uint64_t started;
static inline uint64_t ticks(void) {
  uint32_t low, high;
  __asm__ volatile("lfence; rdtsc" : "=a"(low), "=d"(high)::"memory");
  return (uint64_t)high << 32 | low;
}
static inline void go(void) { started = ticks(); }
static inline uint64_t halt(void) { return ticks() - started; }
static void row(const char *name, uint64_t cost, uint64_t times) { printf("BENCH %s %llu\n", name, (unsigned long long)(cost / times)); fflush(stdout); }
static void skip(const char *name) { printf("BENCH %s skip\n", name); fflush(stdout); }
static void demand(int holds, const char *what) {
  if (holds) return;
  printf("BENCH-INVALID %s\n", what);
  fflush(stdout);
  _exit(3);
}
static char *area(size_t length, int flags) {
  char *p = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
  demand(p != MAP_FAILED, "mmap");
  madvise(p, length, MADV_NOHUGEPAGE); // small pages are what is measured; EINVAL where there are no others
  return p;
}
static void write_each(char *p, size_t length) { for (size_t i = 0; i < length; i += PAGE) ((volatile char *)p)[i] = 1; }
static void read_each(const char *p, size_t length) { for (size_t i = 0; i < length; i += PAGE) (void)((const volatile char *)p)[i]; }
static int all_are(const char *p, size_t length, char value) { for (size_t i = 0; i < length; i += PAGE) if (p[i] != value) return 0; return 1; }
static uint64_t minor_faults(void) { struct rusage u; getrusage(RUSAGE_SELF, &u); return u.ru_minflt; }
static size_t resident(char *p, size_t length) {
  static unsigned char map[PAGES];
  if (mincore(p, length, map)) return 0;
  size_t n = 0;
  for (size_t i = 0; i < length / PAGE; i++) n += map[i] & 1;
  return n;
}
static unsigned long locked_kib(void) {
  unsigned long n = ~0ul;
  char line[128];
  FILE *f = fopen("/proc/self/status", "r");
  while (f && fgets(line, sizeof line, f)) sscanf(line, "VmLck: %lu", &n);
  if (f) fclose(f);
  return n;
}
static int gone(char *p) { unsigned char b; return mincore(p, PAGE, &b) == -1 && errno == ENOMEM; }
static void bury(pid_t child) { int status; demand(waitpid(child, &status, 0) == child && status == 0, "a child"); }

// --- anonymous memory ----------------------------------------------------------------------------
static void anonymous(void) {
  char *p = area(AREA, 0);
  p[0] = 1;
  demand(resident(p, AREA) == 1, "one touch, one page");
  munmap(p, AREA);

  p = area(AREA, 0);
  uint64_t faults = minor_faults();
  go(); write_each(p, AREA); uint64_t cost = halt();
  demand(minor_faults() - faults >= PAGES, "a fault for every page");
  demand(resident(p, AREA) == PAGES, "every page resident");
  row("anon_write_fault", cost, PAGES);
  go(); munmap(p, AREA); cost = halt();
  demand(gone(p) && gone(p + AREA - PAGE), "unmapped");
  row("munmap_per_page", cost, PAGES);

  p = area(AREA, 0);
  faults = minor_faults();
  go(); read_each(p, AREA); cost = halt();
  demand(minor_faults() - faults >= PAGES, "a read fault for every page");
  row("zero_page_read_fault", cost, PAGES);
  go(); write_each(p, AREA); cost = halt();
  demand(resident(p, AREA) == PAGES && all_are(p, AREA, 1), "written over the zero page");
  row("zero_page_cow_fault", cost, PAGES);
  munmap(p, AREA);

  go();
  for (int i = 0; i < 2000; i++) { p = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0); munmap(p, PAGE); }
  cost = halt();
  demand(p != MAP_FAILED && gone(p), "mapped and unmapped");
  row("mmap_munmap_untouched", cost, 2000);
  go();
  for (int i = 0; i < 2000; i++) { p = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0); *(volatile char *)p = 1; munmap(p, PAGE); }
  cost = halt();
  demand(gone(p), "mapped, touched and unmapped");
  row("mmap_touch_munmap", cost, 2000);
}

// Leaves 64 MiB, touched.
static char *populated(void) {
  go();
  char *p = area(AREA, MAP_POPULATE);
  uint64_t cost = halt();
  demand(resident(p, AREA) == PAGES, "populated");
  row("map_populate_per_page", cost, PAGES);
  write_each(p, AREA);
  go();
  for (int i = 0; i < 8; i++) mprotect(p, AREA, i & 1 ? PROT_READ | PROT_WRITE : PROT_READ);
  cost = halt();
  write_each(p, AREA);
  demand(all_are(p, AREA, 1), "writable after mprotect");
  row("mprotect_per_page", cost, 8 * PAGES);
  go(); madvise(p, AREA, MADV_DONTNEED); cost = halt();
  demand(all_are(p, AREA, 0), "forgotten");
  row("dontneed_per_page", cost, PAGES);
  madvise(p, AREA, MADV_DONTNEED);
  // 24 times 64 MiB is more than the machine has: frees left for later must be paid here.
  go();
  for (int i = 0; i < 24; i++) { char *q = area(AREA, 0); write_each(q, AREA); munmap(q, AREA); }
  row("map_touch_unmap_per_page", halt(), 24 * PAGES);
  write_each(p, AREA);
  return p;
}

// --- processes -----------------------------------------------------------------------------------
static void forks(char *p) {
  go();
  for (int i = 0; i < 20; i++) { pid_t c = fork(); if (!c) _exit(0); waitpid(c, NULL, 0); }
  row("fork_exit_wait_64MB", halt(), 20);

  int gate[2];
  char byte;
  demand(!pipe(gate), "pipe");
  pid_t c = fork();
  if (!c) { if (read(gate[0], &byte, 1) != 1) _exit(1); _exit(all_are(p, AREA, 1) ? 0 : 1); } // the snapshot stands
  go();
  for (size_t i = 0; i < AREA; i += PAGE) ((volatile char *)p)[i] = 2;
  uint64_t cost = halt();
  demand(all_are(p, AREA, 2) && write(gate[1], "x", 1) == 1, "copied on write");
  bury(c);
  row("cow_fault_shared", cost, PAGES);
  close(gate[0]);
  close(gate[1]);
  c = fork();
  if (!c) _exit(0);
  bury(c);
  go(); write_each(p, AREA); cost = halt();
  demand(all_are(p, AREA, 1), "written again");
  row("cow_fault_reuse", cost, PAGES);
  munmap(p, AREA);

  go();
  for (int i = 0; i < 20; i++) { c = fork(); if (!c) _exit(0); waitpid(c, NULL, 0); }
  row("fork_exit_wait_small", halt(), 20);
  int status = -1;
  go();
  for (int i = 0; i < 20; i++) {
    c = vfork();
    if (!c) { execl("/proc/self/exe", "bench", "child", (char *)NULL); _exit(1); }
    waitpid(c, &status, 0);
  }
  cost = halt();
  demand(WIFEXITED(status) && WEXITSTATUS(status) == 44, "the new program ran");
  row("vfork_exec_exit_wait", cost, 20);
}

// --- moving, files -------------------------------------------------------------------------------
static void moving(void) {
  char *p = area(AREA, 0);
  write_each(p, AREA);
  go();
  char *q = mremap(p, AREA, AREA, MREMAP_MAYMOVE | MREMAP_FIXED, p + 256 * MIB);
  uint64_t cost = halt();
  if (q == MAP_FAILED) { skip("mremap_move_64MB"); munmap(p, AREA); return; }
  demand(gone(p) && resident(q, AREA) == PAGES && all_are(q, AREA, 1), "moved with its content");
  row("mremap_move_64MB", cost, 1);
  munmap(q, AREA);
}
static char *window(int fd, int flags) { char *p = mmap(NULL, AREA, PROT_READ | PROT_WRITE, flags, fd, 0); demand(p != MAP_FAILED, "a window"); return p; }
static void files(void) {
  int fd = memfd_create("bench", 0);
  if (fd < 0 || ftruncate(fd, AREA)) { skip("shmem_first_fault"); skip("shmem_minor_write_fault"); skip("file_private_cow_fault"); return; }
  char *p = window(fd, MAP_SHARED);
  go(); write_each(p, AREA); uint64_t cost = halt();
  demand(resident(p, AREA) == PAGES, "in the file");
  row("shmem_first_fault", cost, PAGES);
  munmap(p, AREA);
  p = window(fd, MAP_SHARED);
  go(); write_each(p, AREA); cost = halt();
  row("shmem_minor_write_fault", cost, PAGES);
  char *other = window(fd, MAP_SHARED);
  p[AREA - 1] = 77;
  demand(other[AREA - 1] == 77 && all_are(other, AREA, 1), "shared");
  munmap(p, AREA);
  p = window(fd, MAP_PRIVATE);
  go();
  for (size_t i = 0; i < AREA; i += PAGE) ((volatile char *)p)[i] = 3;
  cost = halt();
  demand(all_are(p, AREA, 3) && all_are(other, AREA, 1), "private copies");
  row("file_private_cow_fault", cost, PAGES);
  munmap(p, AREA);
  munmap(other, AREA);
  close(fd);
}

// --- what later kernels bring, and the calls around memory ---------------------------------------
static void locking(void) {
  char *p = area(AREA, 0);
  go();
  if (mlock(p, AREA)) { skip("mlock_per_page"); skip("munlock_per_page"); }
  else {
    uint64_t cost = halt();
    demand(resident(p, AREA) == PAGES && locked_kib() == AREA / 1024, "locked in");
    row("mlock_per_page", cost, PAGES);
    uint64_t faults = minor_faults();
    write_each(p, AREA);
    demand(minor_faults() == faults, "writable as it is");
    go(); munlock(p, AREA); cost = halt();
    demand(!locked_kib() && all_are(p, AREA, 1), "no longer locked, and there");
    row("munlock_per_page", cost, PAGES);
  }
  munmap(p, AREA);
}
static void other_spaces(char *from, char *to) {
  static const struct { const char *name; size_t pages, times; } kinds[] = {{"vm_readv_1p", 1, 200}, {"vm_readv_16p_per_page", 16, 200}, {"vm_readv_512p_per_page", 512, 8}};
  for (int k = 0; k < 3; k++) {
    size_t length = kinds[k].pages * PAGE;
    struct iovec local = {to, length}, remote = {from, length};
    int bad = 0;
    memset(to, 0, length);
    go();
    for (size_t i = 0; i < kinds[k].times; i++) bad |= process_vm_readv(getpid(), &local, 1, &remote, 1, 0) != (ssize_t)length;
    uint64_t cost = halt();
    if (bad) { skip(kinds[k].name); continue; }
    demand(!memcmp(from, to, length), "read from a space");
    row(kinds[k].name, cost, kinds[k].times * kinds[k].pages);
  }
}
static void splicing(char *from, char *to) {
  int ends[2], bad = pipe(ends);
  size_t length = 16 * PAGE;
  struct iovec all = {from, length};
  go();
  for (int i = 0; i < 200 && !bad; i++) {
    bad |= vmsplice(ends[1], &all, 1, 0) != (ssize_t)length;
    for (size_t got = 0; got < length && !bad;) { ssize_t n = read(ends[0], to, length - got); if (n <= 0) bad = 1; else got += n; }
  }
  uint64_t cost = halt();
  if (bad) skip("vmsplice_16p_per_page"); else row("vmsplice_16p_per_page", cost, 200 * 16);
  close(ends[0]);
  close(ends[1]);
}
static void ping_pong(void) {
  int there[2], back[2];
  char byte = 'p';
  demand(!pipe(there) && !pipe(back), "pipes");
  pid_t c = fork();
  if (!c) { while (read(there[0], &byte, 1) == 1 && byte == 'p') if (write(back[1], &byte, 1) != 1) _exit(1); _exit(0); }
  int good = 0;
  go();
  for (int i = 0; i < 500; i++) { good += write(there[1], &byte, 1); good += read(back[0], &byte, 1); }
  uint64_t cost = halt();
  demand(good == 1000, "every ball came back");
  row("pipe_ping_pong", cost, 500);
  byte = 'q';
  demand(write(there[1], &byte, 1) == 1, "the last ball");
  bury(c);
}
static void nobody_waits(void) {
  int word = 0;
  long woken = 0;
  go();
  for (int i = 0; i < 2000; i++) woken += syscall(SYS_futex, &word, FUTEX_WAKE, 1, NULL, NULL, 0);
  uint64_t cost = halt();
  demand(woken == 0, "nobody to wake");
  row("futex_wake_shared_none", cost, 2000);
}
// The kernel's own test device for taking references to user pages: Linux's ioctl numbers and structure.
static void references(char *p) {
  struct request { uint64_t get_us, put_us, address, size; uint32_t pages_per_call, flags, test_flags, which[8]; };
  static const struct { const char *name; unsigned number, batch; } kinds[] = {{"gup_fast_b1", 1, 1}, {"gup_fast_b512", 1, 512}, {"pin_fast_b1", 2, 1}, {"pin_fast_b512", 2, 512}, {"pin_longterm_b512", 3, 512}, {"gup_slow_b512", 4, 512}, {"pin_slow_b512", 5, 512}, {"pin_fast_thp_b512", 2, 512}};
  int device = open("/sys/kernel/debug/gup_test", O_RDWR);
  write_each(p, AREA); // a child has shared it
  for (unsigned k = 0; k < sizeof kinds / sizeof *kinds; k++) {
    char get[40], put[40], *at = p, *huge = NULL;
    snprintf(get, sizeof get, "%s_get", kinds[k].name);
    snprintf(put, sizeof put, "%s_put", kinds[k].name);
    int usable = device >= 0;
    if (usable && strstr(kinds[k].name, "thp")) {
      huge = mmap(NULL, AREA + 2 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      at = (char *)(((uintptr_t)huge + 2 * MIB - 1) & -(2 * MIB));
      usable = !madvise(at, AREA, MADV_HUGEPAGE);
      if (usable) write_each(at, AREA);
    }
    struct request r = {.address = (uint64_t)at, .size = AREA, .pages_per_call = kinds[k].batch, .flags = 1};
    go();
    if (!usable || ioctl(device, _IOWR('g', kinds[k].number, struct request), &r)) { skip(get); skip(put); }
    else {
      demand((r.get_us + r.put_us) * 1000 <= halt() + 2000, "an honest clock"); // a virtual microsecond is 1000 instructions
      demand(r.size == AREA, "references to all pages");
      row(get, r.get_us * 1000, PAGES);
      row(put, r.put_us * 1000, PAGES);
    }
    if (huge) munmap(huge, AREA + 2 * MIB);
  }
  if (device >= 0) close(device);
}
static void huge_pages(void) {
  char *all = mmap(NULL, 34 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  char *p = (char *)(((uintptr_t)all + 2 * MIB - 1) & -(2 * MIB));
  if (madvise(p, 32 * MIB, MADV_HUGEPAGE)) skip("thp_fault_per_2MB");
  else { go(); write_each(p, 32 * MIB); row("thp_fault_per_2MB", halt(), 16); }
  munmap(all, 34 * MIB);
}

int main(int argc, char **argv) {
  if (argc > 1 && !strcmp(argv[1], "child")) return 44;
  long parent = syscall(SYS_getppid);
  long sum = 0;
  go();
  for (int i = 0; i < 10000; i++) sum += syscall(SYS_getppid);
  uint64_t cost = halt();
  demand(sum == 10000 * parent, "the parent");
  row("null_syscall", cost, 10000);
  anonymous();
  forks(populated());
  moving();
  files();
  locking();
  char *from = area(AREA, 0), *to = area(AREA, 0);
  write_each(from, AREA);
  write_each(to, AREA);
  other_spaces(from, to);
  splicing(from, to);
  ping_pong();
  nobody_waits();
  references(from);
  huge_pages();
  printf("BENCH-END\n");
  return 0;
}
