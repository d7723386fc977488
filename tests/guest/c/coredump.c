// Core files: which signals leave one, what is in it, and what keeps it from being written.
#include "t.h"
#include <elf.h>
#include <pthread.h>
#include <sys/prctl.h>
#include <sys/procfs.h>

static char dir[64], self[256];
static volatile long marker = 1;
static char *map_region(size_t len, int flags, int fd) {
  char *p = mmap(0, len, PROT_READ | PROT_WRITE, flags, fd, 0);
  CHECK(p != MAP_FAILED);
  return p;
}

__attribute__((noinline)) static void crash_here(long value) {
  marker = value;
  *(volatile int *)0x10 = 1;
}
extern char after_crash[];
__attribute__((noinline)) static void after(void) { asm volatile(".global after_crash\nafter_crash:"); }

static void *sleeper(void *a) {
  (void)a;
  for (;;) pause();
}

// What the crashing child maps; the addresses reach the parent through shared memory.
static struct shared {
  char *heap, *sparse, *none, *dont, *shared_anon, *file_private, *file_shared, *lib;
  int tid;
} *sh;

static void crash(void) {
  for (int i = 0; i < 2; i++) {
    pthread_t t;
    pthread_create(&t, 0, sleeper, 0);
  }
  sh->heap = malloc(100);
  strcpy(sh->heap, "on the heap");
  sh->sparse = map_region(1024 * MB, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);
  strcpy(sh->sparse + 512 * MB, "in the middle");
  sh->none = map_region(2 * PG, MAP_PRIVATE | MAP_ANONYMOUS, -1);
  strcpy(sh->none, "no rights");
  CHECK(mprotect(sh->none, 2 * PG, PROT_NONE) == 0);
  sh->dont = map_region(2 * PG, MAP_PRIVATE | MAP_ANONYMOUS, -1);
  strcpy(sh->dont, "secret");
  CHECK(madvise(sh->dont, 2 * PG, MADV_DONTDUMP) == 0);
  sh->shared_anon = map_region(2 * PG, MAP_SHARED | MAP_ANONYMOUS, -1);
  strcpy(sh->shared_anon, "shared");
  int fd = open("data", O_RDWR | O_CREAT, 0600);
  CHECK(ftruncate(fd, 4 * PG) == 0);
  sh->file_private = map_region(2 * PG, MAP_PRIVATE, fd);
  sh->file_private[PG] = 'w';
  sh->file_shared = map_region(2 * PG, MAP_SHARED, fd);
  sh->file_shared[0] = 's';
  int elf = open("/proc/self/exe", O_RDONLY);
  sh->lib = mmap(0, 2 * PG, PROT_READ, MAP_PRIVATE, elf, 0);
  crash_here(4711);
}

// Runs `f` in a child with a core limit; says how it ended and whether there is a file.
static long run(const char *what, void (*f)(void), rlim_t limit) {
  unlink("core");
  pid_t p = fork();
  if (p == 0) {
    struct rlimit r = {limit, RLIM_INFINITY};
    CHECK(setrlimit(RLIMIT_CORE, &r) == 0);
    f();
    _exit(0);
  }
  siginfo_t si;
  CHECK(waitid(P_PID, p, &si, WEXITED | WNOWAIT) == 0);
  int st;
  CHECK(waitpid(p, &st, 0) == p);
  struct stat s;
  int there = stat("core", &s) == 0;
  say("%s: signal %d dumped %d code %d file %d", what, WTERMSIG(st), !!WCOREDUMP(st), si.si_code, there);
  if (there) say(" mode %o", s.st_mode & 0777);
  say("\n");
  return there ? s.st_size : -1;
}

static char *core;
static size_t core_len;
static Elf64_Phdr *ph;
static int nph;

// What the core holds of an address: its segment, or null.
static Elf64_Phdr *segment(const void *at) {
  for (int i = 0; i < nph; i++)
    if (ph[i].p_type == PT_LOAD && ph[i].p_vaddr <= (unsigned long)at &&
        (unsigned long)at < ph[i].p_vaddr + ph[i].p_memsz)
      return &ph[i];
  return 0;
}

static void shows(const char *what, const void *at) {
  Elf64_Phdr *s = segment(at);
  if (!s) {
    say("%s: not there\n", what);
    return;
  }
  unsigned long off = (unsigned long)at - s->p_vaddr;
  say("%s: flags %u ", what, s->p_flags);
  if (off >= s->p_filesz) say("left out\n");
  else
    say("\"%.20s\"\n", core + s->p_offset + off);
}

static void inspect(pid_t *threads) {
  int fd = open("core", O_RDONLY);
  struct stat st;
  CHECK(fstat(fd, &st) == 0);
  core_len = st.st_size;
  core = mmap(0, core_len, PROT_READ, MAP_PRIVATE | MAP_NORESERVE, fd, 0);
  CHECK(core != MAP_FAILED);
  say("sparse %d\n", core_len > 1024 * MB && st.st_blocks < 64 * 2048);
  Elf64_Ehdr *e = (void *)core;
  say("magic %d type %d machine %d\n", !memcmp(e->e_ident, ELFMAG, 4), e->e_type, e->e_machine);
  ph = (void *)(core + e->e_phoff);
  nph = e->e_phnum;
  CHECK(ph[0].p_type == PT_NOTE);
  char *at = core + ph[0].p_offset, *end = at + ph[0].p_filesz;
  int status = 0;
  while (at < end) {
    Elf64_Nhdr *n = (void *)at;
    char *name = at + 12, *d = name + ((n->n_namesz + 3) & ~3);
    if (n->n_type == NT_PRSTATUS) {
      prstatus_t *ps = (void *)d;
      struct user_regs_struct *r = (void *)ps->pr_reg;
      if (status++ == 0) {
        say("status: %u bytes signal %d code %d pid %d\n", n->n_descsz, ps->pr_cursig, ps->pr_info.si_code,
            ps->pr_pid == sh->tid);
        say("rip in crash_here %d\n", r->rip >= (unsigned long)crash_here && r->rip < (unsigned long)crash_here + 64);
        say("stack \"%s\"\n", segment((void *)r->rsp) ? "there" : "missing");
      } else {
        say("thread: pid %d stack \"%s\"\n", ps->pr_pid != sh->tid, segment((void *)r->rsp) ? "there" : "missing");
      }
    } else if (n->n_type == NT_PRPSINFO) {
      prpsinfo_t *pi = (void *)d;
      say("psinfo: %u bytes \"%.16s\" pid %d\n", n->n_descsz, pi->pr_fname, pi->pr_pid == sh->tid);
      say("args \"%.80s\"\n", strstr(pi->pr_psargs, "coredump") ? "coredump" : pi->pr_psargs);
    } else if (n->n_type == NT_SIGINFO) {
      siginfo_t *si = (void *)d;
      say("siginfo: %u bytes signo %d code %d addr %p\n", n->n_descsz, si->si_signo, si->si_code, si->si_addr);
    } else if (n->n_type == NT_AUXV) {
      unsigned long *a = (void *)d;
      int ok = 0;
      for (; a[0]; a += 2) ok |= a[0] == AT_PAGESZ && a[1] == 4096;
      say("auxv %d ends %d\n", ok, (char *)(a + 2) == d + n->n_descsz);
    } else if (n->n_type == NT_FILE) {
      unsigned long *w = (void *)d, count = w[0], mine = 0;
      char *f = (char *)(w + 2 + 3 * count);
      for (unsigned long i = 0; i < count; i++, f += strlen(f) + 1) {
        if (!strcmp(f, self) && w[2 + 3 * i] <= (unsigned long)crash_here && (unsigned long)crash_here < w[3 + 3 * i])
          mine = 1;
      }
      say("files page %lu ours %lu\n", w[1], mine);
    } else if (n->n_type == NT_FPREGSET) {
      if (status == 1) say("fpregs %u\n", n->n_descsz);
    } else if (n->n_type == 0x202) {
      if (status == 1) say("xstate \"%s\" %d\n", name, n->n_descsz >= 576);
    }
    at = d + ((n->n_descsz + 3) & ~3);
  }
  say("threads %d\n", status);
  say("marker %ld\n", *(long *)(core + segment((void *)&marker)->p_offset + ((long)&marker - segment((void *)&marker)->p_vaddr)));
  shows("heap", sh->heap);
  shows("sparse", sh->sparse + 512 * MB);
  shows("sparse untouched", sh->sparse + 700 * MB);
  say("sparse size %lu\n", segment(sh->sparse + 512 * MB)->p_filesz / MB >= 1024);
  shows("no rights", sh->none);
  shows("dontdump", sh->dont);
  shows("shared anon", sh->shared_anon);
  shows("file private written", sh->file_private + PG);
  shows("file shared", sh->file_shared);
  say("elf header %d\n", segment(sh->lib) && segment(sh->lib)->p_filesz == PG &&
                             !memcmp(core + segment(sh->lib)->p_offset, ELFMAG, 4));
  for (int i = 1; i < nph; i++) CHECK(ph[i].p_offset % PG == 0 && ph[i].p_offset + ph[i].p_filesz <= core_len);
  munmap(core, core_len);
  close(fd);
}

static void crash_first(void) {
  sh->tid = getpid();
  crash();
}
static void by_abort(void) { abort(); }
static void by_quit(void) { raise(SIGQUIT); }
static void by_term(void) { raise(SIGTERM); }
static void by_trap(void) { asm volatile("int3"); }
static void by_kill(void) { raise(SIGKILL); }
static void in_thread(void) {
  pthread_t t;
  pthread_create(&t, 0, (void *(*)(void *))crash_here, (void *)5);
  for (;;) pause();
}
static void undumpable(void) {
  CHECK(prctl(PR_SET_DUMPABLE, 0) == 0);
  abort();
}
static void filtered(const char *filter) {
  int fd = open("/proc/self/coredump_filter", O_RDWR);
  CHECK(write(fd, filter, strlen(filter)) > 0);
  char b[32] = "";
  CHECK(pread(fd, b, sizeof b - 1, 0) > 0);
  say("filter %s", b);
  close(fd);
  crash();
}
static void filter_nothing(void) { filtered("0"); }
static void filter_files(void) { filtered("0xf"); }

static void outline(const char *what) {
  int fd = open("core", O_RDONLY);
  Elf64_Ehdr e;
  static Elf64_Phdr p[128];
  CHECK(pread(fd, &e, sizeof e, 0) == sizeof e && e.e_phnum <= 128);
  CHECK(pread(fd, p, e.e_phnum * sizeof *p, e.e_phoff) == (ssize_t)(e.e_phnum * sizeof *p));
  ph = p;
  nph = e.e_phnum;
  struct {
    const char *name;
    char *at;
  } t[] = {{"marker", (char *)&marker}, {"heap", sh->heap}, {"shared anon", sh->shared_anon},
           {"file private", sh->file_private}, {"file shared", sh->file_shared}, {"elf", sh->lib}};
  say("%s:", what);
  for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
    Elf64_Phdr *s = segment(t[i].at);
    say(" %s %s,", t[i].name, !s ? "none" : s->p_filesz == 0 ? "no" : s->p_filesz == s->p_memsz ? "whole" : "part");
  }
  say("\n");
  close(fd);
}

// Only on a machine of one's own: the pattern is everybody's.
static void patterns(void) {
  static const char *const t[][2] = {{"my.%e.%s.%%", "my.coredump.6.%"}, {"core%", "core"}, {"%q%u%g%d", "001"},
                                     {"sub/x.%f", "sub/x.coredump"}, {"%E", 0}, {"|/bin/cat", 0}};
  CHECK(mkdir("sub", 0700) == 0);
  for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
    int fd = open("/proc/sys/kernel/core_pattern", O_WRONLY | O_TRUNC);
    CHECK(fd >= 0 && write(fd, t[i][0], strlen(t[i][0])) > 0);
    close(fd);
    pid_t p = fork();
    if (p == 0) {
      struct rlimit r = {RLIM_INFINITY, RLIM_INFINITY};
      setrlimit(RLIMIT_CORE, &r);
      abort();
    }
    int st;
    CHECK(waitpid(p, &st, 0) == p);
    int dumped = !!WCOREDUMP(st);
    if (t[i][0][0] == '|') CHECK(!dumped);
    else
      CHECK(dumped);
    if (t[i][1]) CHECK(access(t[i][1], F_OK) == 0);
    if (!strcmp(t[i][0], "%E")) {
      char name[256];
      strcpy(name, self);
      for (char *c = name; *c; c++)
        if (*c == '/') *c = '!';
      CHECK(access(name, F_OK) == 0);
    }
  }
  int fd = open("/proc/sys/kernel/core_pattern", O_WRONLY | O_TRUNC);
  CHECK(write(fd, "core\n", 5) == 5);
  close(fd);
  fd = open("/proc/sys/kernel/core_uses_pid", O_WRONLY);
  CHECK(write(fd, "1\n", 2) == 2);
  pid_t p = fork();
  if (p == 0) {
    struct rlimit r = {RLIM_INFINITY, RLIM_INFINITY};
    setrlimit(RLIMIT_CORE, &r);
    abort();
  }
  int st;
  CHECK(waitpid(p, &st, 0) == p);
  char name[32];
  snprintf(name, sizeof name, "core.%d", p);
  CHECK(access(name, F_OK) == 0);
  CHECK(write(fd, "0\n", 2) == 2);
  close(fd);

  // SIGKILL ends a dump at any time. The program dies in any case, by the signal it had.
  for (int i = 0; i < 20; i++) {
    unlink("core");
    p = fork();
    if (p == 0) {
      struct rlimit r = {RLIM_INFINITY, RLIM_INFINITY};
      setrlimit(RLIMIT_CORE, &r);
      char *m = map_region(32 * MB, MAP_PRIVATE | MAP_ANONYMOUS, -1);
      memset(m, 1, 32 * MB);
      pthread_t t;
      pthread_create(&t, 0, sleeper, 0);
      abort();
    }
    struct stat s;
    while (stat("core", &s) < 0 || s.st_size < i * 64 * 1024)
      if (waitpid(p, &st, WNOHANG) == p) goto dead;
    kill(p, SIGKILL);
    CHECK(waitpid(p, &st, 0) == p);
  dead:
    CHECK(WIFSIGNALED(st) && (WTERMSIG(st) == SIGABRT || WTERMSIG(st) == SIGKILL));
  }
  say("patterns ok\n");
}

int main(int argc, char **argv) {
  int n = readlink("/proc/self/exe", self, sizeof self - 1);
  CHECK(n > 0);
  sprintf(dir, "/tmp/core.%d", getpid());
  CHECK(mkdir(dir, 0700) == 0 && chdir(dir) == 0);
  sh = (void *)map_region(PG, MAP_SHARED | MAP_ANONYMOUS, -1);
  prctl(PR_SET_NAME, "coredump");
  if (argc > 1 && !strcmp(argv[1], "patterns")) {
    patterns();
    return 0;
  }
  say("default ");
  char b[32] = "";
  int fd = open("/proc/self/coredump_filter", O_RDONLY);
  CHECK(read(fd, b, sizeof b - 1) > 0);
  close(fd);
  say("%s", b);
  run("crash", crash_first, RLIM_INFINITY);
  inspect(0);
  run("abort", by_abort, RLIM_INFINITY);
  run("quit", by_quit, RLIM_INFINITY);
  run("trap", by_trap, RLIM_INFINITY);
  run("term", by_term, RLIM_INFINITY);
  run("kill", by_kill, RLIM_INFINITY);
  run("thread", in_thread, RLIM_INFINITY);
  run("no limit", by_abort, 0);
  run("short limit", by_abort, 4095);
  long size = run("limited", by_abort, 3 * PG);
  say("cut %d\n", size >= 0 && size <= 3 * (long)PG);
  run("undumpable", undumpable, RLIM_INFINITY);
  run("nothing", filter_nothing, RLIM_INFINITY);
  outline("nothing");
  run("files", filter_files, RLIM_INFINITY);
  outline("files");
  // What was there is replaced, never written through.
  CHECK(unlink("core") == 0 && symlink("victim", "core") == 0);
  fd = open("victim", O_CREAT | O_WRONLY, 0600);
  CHECK(write(fd, "v", 1) == 1);
  close(fd);
  pid_t p = fork();
  if (p == 0) {
    struct rlimit r = {RLIM_INFINITY, RLIM_INFINITY};
    setrlimit(RLIMIT_CORE, &r);
    abort();
  }
  int st;
  CHECK(waitpid(p, &st, 0) == p);
  struct stat s;
  say("symlink: dumped %d victim %ld\n", !!WCOREDUMP(st), stat("victim", &s) == 0 ? (long)s.st_size : -1);
  unlink("core");
  unlink("victim");
  unlink("data");
  CHECK(chdir("/") == 0 && rmdir(dir) == 0);
  say("ok\n");
  return 0;
}
