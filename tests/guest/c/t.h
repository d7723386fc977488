// Shared by the guest programs: output that never depends on stdio buffering, errno by name, and
// probes that turn a fault into a value. A program prints facts (compared with Linux byte for byte)
// and checks claims (exit status 1 at the first that does not hold).
#pragma once
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PG 4096UL
#define KB 1024UL
#define MB (1024UL * 1024)
#define BASE ((char *)0x100000000000) // free in every layout that Linux or Pinfold gives

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif
#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif

__attribute__((unused, format(printf, 1, 2))) static void say(const char *f, ...) {
  char b[1024];
  va_list a;
  va_start(a, f);
  int n = vsnprintf(b, sizeof b, f, a);
  va_end(a);
  if (n > (int)sizeof b - 1) n = sizeof b - 1;
  for (int o = 0; o < n;) {
    ssize_t w = write(1, b + o, n - o);
    if (w < 0 && errno == EINTR) continue;
    if (w <= 0) _exit(99);
    o += w;
  }
}

// The status of a program whose machine lacks what it is about.
#define LACKING 77

#define CHECK(c)                                                              \
  do {                                                                        \
    if (!(c)) {                                                               \
      say("FAILED %s:%d: %s (errno %d)\n", __FILE__, __LINE__, #c, errno);    \
      _exit(1);                                                               \
    }                                                                         \
  } while (0)

__attribute__((unused)) static const char *ename(int e) {
  static const struct { int n; const char *s; } t[] = {
      {EPERM, "EPERM"}, {ENOENT, "ENOENT"}, {ESRCH, "ESRCH"}, {EINTR, "EINTR"}, {EIO, "EIO"}, {ENXIO, "ENXIO"},
      {E2BIG, "E2BIG"}, {ENOEXEC, "ENOEXEC"}, {EBADF, "EBADF"}, {ECHILD, "ECHILD"}, {EAGAIN, "EAGAIN"},
      {ENOMEM, "ENOMEM"}, {EACCES, "EACCES"}, {EFAULT, "EFAULT"}, {EBUSY, "EBUSY"}, {EEXIST, "EEXIST"},
      {EXDEV, "EXDEV"}, {ENODEV, "ENODEV"}, {ENOTDIR, "ENOTDIR"}, {EISDIR, "EISDIR"}, {EINVAL, "EINVAL"},
      {ENFILE, "ENFILE"}, {EMFILE, "EMFILE"}, {ENOTTY, "ENOTTY"}, {ETXTBSY, "ETXTBSY"}, {EFBIG, "EFBIG"},
      {ENOSPC, "ENOSPC"}, {ESPIPE, "ESPIPE"}, {EROFS, "EROFS"}, {EMLINK, "EMLINK"}, {EPIPE, "EPIPE"},
      {ERANGE, "ERANGE"}, {EDEADLK, "EDEADLK"}, {ENAMETOOLONG, "ENAMETOOLONG"}, {ENOSYS, "ENOSYS"},
      {ENOTEMPTY, "ENOTEMPTY"}, {ELOOP, "ELOOP"}, {EOVERFLOW, "EOVERFLOW"}, {ETIMEDOUT, "ETIMEDOUT"},
      {EOPNOTSUPP, "EOPNOTSUPP"}, {ELIBBAD, "ELIBBAD"}};
  for (size_t i = 0; i < sizeof t / sizeof *t; i++)
    if (t[i].n == e) return t[i].s;
  static char b[16];
  snprintf(b, sizeof b, "errno %d", e);
  return b;
}

// A call and what it said; A only says whether it gave an address.
#define R(...)                                                                \
  do {                                                                        \
    errno = 0;                                                                \
    long r_ = (long)(__VA_ARGS__);                                            \
    if (r_ == -1) say("%s = %s\n", #__VA_ARGS__, ename(errno));               \
    else say("%s = %ld\n", #__VA_ARGS__, r_);                                 \
  } while (0)
#define A(...)                                                                \
  do {                                                                        \
    errno = 0;                                                                \
    long r_ = (long)(__VA_ARGS__);                                            \
    if (r_ == -1) say("%s = %s\n", #__VA_ARGS__, ename(errno));               \
    else say("%s = mapped\n", #__VA_ARGS__);                                  \
  } while (0)

__attribute__((unused)) static char *anon(size_t len) {
  char *p = mmap(0, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(p != MAP_FAILED);
  return p;
}
__attribute__((unused)) static char *anon_at(void *at, size_t len, int prot) {
  char *p = mmap(at, len, prot, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  CHECK(p == at);
  return p;
}

// What the host writes to a disk for us (`tests/src/disks.rs`), by its place.
__attribute__((unused)) static uint64_t pattern(uint64_t at) { return (at / 8 + 1) * 0x9e3779b97f4a7c15; }
__attribute__((unused)) static int is_pattern(const char *p, uint64_t at, size_t len) {
  for (size_t i = 0; i < len; i += 8) {
    uint64_t w;
    memcpy(&w, p + i, 8);
    if (w != pattern(at + i)) return 0;
  }
  return 1;
}

// The kilobytes that a line of a file of the kernel's says; -1: no such line.
__attribute__((unused)) static long kib(const char *file, const char *name) {
  FILE *f = fopen(file, "r");
  CHECK(f);
  char line[256];
  long n = -1;
  while (fgets(line, sizeof line, f))
    if (!strncmp(line, name, strlen(name))) n = atol(line + strlen(name));
  fclose(f);
  return n;
}

// What /proc/PID/stat says that it does.
__attribute__((unused)) static char task_state(pid_t pid) {
  char name[32], b[256];
  snprintf(name, sizeof name, "/proc/%d/stat", pid);
  int fd = open(name, O_RDONLY);
  ssize_t n = read(fd, b, sizeof b - 1);
  CHECK(fd >= 0 && n > 0 && !close(fd));
  b[n] = 0;
  char *end = strrchr(b, ')');
  CHECK(end);
  return end[2];
}
__attribute__((unused)) static void until_asleep(pid_t pid) {
  while (task_state(pid) != 'S') sched_yield();
}

// The test kernel's /sys/kernel/race makes a thread stand at a point: `arm`, and `release` it. Whether there was such a one.
__attribute__((unused)) static int race(const char *verb, const char *point) {
  char b[64];
  int fd = open("/sys/kernel/race", O_WRONLY), n = snprintf(b, sizeof b, "%s %s", verb, point);
  CHECK(fd >= 0);
  int done = write(fd, b, n) == n;
  CHECK(!close(fd));
  return done;
}
__attribute__((unused)) static int stands(const char *point) {
  char b[1024], want[64];
  int fd = open("/sys/kernel/race", O_RDONLY);
  CHECK(fd >= 0);
  int n = read(fd, b, sizeof b - 1);
  CHECK(n > 0 && !close(fd));
  b[n] = 0;
  snprintf(want, sizeof want, "%s stands\n", point);
  return strstr(b, want) != 0;
}

// --- probes ------------------------------------------------------------------------------------
static sigjmp_buf probe_jmp __attribute__((unused));
static siginfo_t probe_info __attribute__((unused));
__attribute__((unused)) static void probe_handler(int s, siginfo_t *i, void *u) {
  (void)s; (void)u;
  probe_info = *i;
  siglongjmp(probe_jmp, 1);
}
__attribute__((unused)) static void probe_install(void) {
  struct sigaction sa = {.sa_sigaction = probe_handler, .sa_flags = SA_SIGINFO | SA_NODEFER};
  CHECK(!sigaction(SIGSEGV, &sa, 0) && !sigaction(SIGBUS, &sa, 0));
}
// "ok", or the signal, its code, and whether si_addr is the address.
__attribute__((unused)) static const char *probe(volatile char *p, char how) {
  static char b[64];
  if (!sigsetjmp(probe_jmp, 1)) {
    if (how == 'w') *p = *p;
    else if (how == 'W') *p = 1; // blind write
    else if (how == 'x') ((void (*)(void))p)();
    else (void)*p;
    return "ok";
  }
  const char *sg = probe_info.si_signo == SIGSEGV ? "SEGV" : probe_info.si_signo == SIGBUS ? "BUS" : "?";
  const char *cd = "?";
  if (probe_info.si_signo == SIGSEGV) cd = probe_info.si_code == SEGV_MAPERR ? "MAPERR" : probe_info.si_code == SEGV_ACCERR ? "ACCERR" : probe_info.si_code == SI_KERNEL ? "KERNEL" : "?";
  if (probe_info.si_signo == SIGBUS) cd = probe_info.si_code == BUS_ADRERR ? "ADRERR" : "?";
  snprintf(b, sizeof b, "%s_%s%s", sg, cd, probe_info.si_addr == p ? "" : probe_info.si_addr == 0 ? " at 0" : " at another address");
  return b;
}

// The lines of /proc/self/maps inside [lo, hi): relative addresses, permissions, offset, name.
// `cover` joins neighbours that differ in nothing a process can use: Linux keeps two apart when their
// pages have different histories, and no program may depend on that.
__attribute__((unused)) static void maps_show(const char *what, char *lo, char *hi, int cover) {
  FILE *f = fopen("/proc/self/maps", "r");
  CHECK(f);
  say("maps of %s:\n", what);
  char line[512], last[300] = "";
  unsigned long from = 0, to = 0;
  while (fgets(line, sizeof line, f)) {
    unsigned long s, e, off, ino;
    char perm[8], name[256] = "", key[300];
    unsigned mj, mn;
    CHECK(sscanf(line, "%lx-%lx %4s %lx %x:%x %lu %255[^\n]", &s, &e, perm, &off, &mj, &mn, &ino, name) >= 7);
    if (e <= (unsigned long)lo || s >= (unsigned long)hi) continue;
    s -= (unsigned long)lo; e -= (unsigned long)lo;
    snprintf(key, sizeof key, "%s %lx %s", perm, off, name);
    if (cover && s == to && !strcmp(key, last)) { to = e; continue; }
    if (to) say("  %lx-%lx %s\n", from, to, last);
    from = s; to = e;
    strcpy(last, key);
  }
  if (to) say("  %lx-%lx %s\n", from, to, last);
  fclose(f);
}
#define maps_in(what, lo, hi) maps_show(what, lo, hi, 0)
#define maps_cover(what, lo, hi) maps_show(what, lo, hi, 1)

// Runs f in a child; the status as text: "exit N" or "signal N".
__attribute__((unused)) static const char *in_child(void (*f)(void)) {
  static char b[32];
  pid_t c = fork();
  CHECK(c >= 0);
  if (!c) { f(); _exit(0); }
  int st;
  while (waitpid(c, &st, 0) < 0) CHECK(errno == EINTR);
  if (WIFSIGNALED(st)) snprintf(b, sizeof b, "signal %d", WTERMSIG(st));
  else snprintf(b, sizeof b, "exit %d", WEXITSTATUS(st));
  return b;
}

__attribute__((unused)) static uint64_t rng_state = 0x9e3779b97f4a7c15;
__attribute__((unused)) static uint64_t rng(void) { // xorshift64*
  rng_state ^= rng_state >> 12; rng_state ^= rng_state << 25; rng_state ^= rng_state >> 27;
  return rng_state * 2685821657736338717ull;
}
__attribute__((unused)) static uint64_t mono_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}
__attribute__((unused)) static long number_in(const char *file, const char *name) {
  FILE *f = fopen(file, "r");
  CHECK(f);
  char line[256];
  long n = -1;
  while (fgets(line, sizeof line, f))
    if (!strncmp(line, name, strlen(name)) && line[strlen(name)] == ' ') n = atol(line + strlen(name));
  fclose(f);
  return n;
}
// Pins of user pages that somebody holds, as /proc/vmstat counts them.
__attribute__((unused)) static long pins_held(void) {
  FILE *f = fopen("/proc/vmstat", "r");
  char line[128];
  long n, sum = 0;
  CHECK(f);
  while (fgets(line, sizeof line, f)) {
    if (sscanf(line, "nr_foll_pin_acquired %ld", &n) == 1) sum += n;
    if (sscanf(line, "nr_foll_pin_released %ld", &n) == 1) sum -= n;
  }
  fclose(f);
  return sum;
}
