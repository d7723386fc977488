// Protection keys (VMA-10, BUG-29): calls and their errors, what a key refuses the program and the kernel's copies,
// signals, threads, fork, exec, execute-only memory. Without keys in the CPU only the refusals are shown.
#include "t.h"
#include <pthread.h>
#include <sys/uio.h>
#include <ucontext.h>

#ifndef SEGV_PKUERR
#define SEGV_PKUERR 4
#endif
#define AD 1u
#define WD 2u
static unsigned rd(void) { unsigned a, d; __asm__ volatile("rdpkru" : "=a"(a), "=d"(d) : "c"(0)); return a; }
static void wr(unsigned v) { __asm__ volatile("wrpkru" ::"a"(v), "d"(0), "c"(0) : "memory"); }
static void rights(int key, unsigned r) { wr((rd() & ~(3u << 2 * key)) | r << 2 * key); }
static long alloc(unsigned long flags, unsigned long r) { return syscall(SYS_pkey_alloc, flags, r); }
static long release(int key) { return syscall(SYS_pkey_free, key); }
static long protect(void *p, size_t len, int prot, int key) { return syscall(SYS_pkey_mprotect, p, len, prot, key); }

static int last_code, last_key;
static unsigned handler_pkru, frame_pkru;
static unsigned *saved_pkru(void *u) {
  struct _libc_fpstate *fp = ((ucontext_t *)u)->uc_mcontext.fpregs;
  unsigned b = 0, a = 9, c = 0, d = 0;
  __asm__("cpuid" : "=b"(b), "+a"(a), "+c"(c), "=d"(d) : : );
  a = 13, c = 9;
  __asm__("cpuid" : "=b"(b), "+a"(a), "+c"(c), "=d"(d) : : );
  return (unsigned *)((char *)fp + b);
}
static void on_segv(int s, siginfo_t *i, void *u) {
  (void)s;
  handler_pkru = rd();
  last_code = i->si_code;
  last_key = i->si_code == SEGV_PKUERR ? (int)i->si_pkey : -1;
  frame_pkru = *saved_pkru(u);
  siglongjmp(probe_jmp, 1);
}
static const char *try(volatile char *p, char how) {
  static char b[64];
  unsigned was = rd();
  if (!sigsetjmp(probe_jmp, 1)) {
    if (how == 'w') *p = 1;
    else if (how == 'x') ((void (*)(void))p)();
    else (void)*p;
    return "ok";
  }
  unsigned in_frame = frame_pkru;
  wr(was);
  snprintf(b, 64, "%s key %d, frame keeps the rights %d", last_code == SEGV_PKUERR ? "PKUERR" : last_code == SEGV_ACCERR ? "ACCERR" : "MAPERR", last_key, in_frame == was);
  return b;
}
static void fix_rights(int s, siginfo_t *i, void *u) { // the handler changes what the program continues with
  (void)s;
  *saved_pkru(u) &= ~(3u << 2 * i->si_pkey);
}
static void *in_thread(void *p) {
  say("a thread's rights are its maker's: %d\n", rd() == *(unsigned *)p);
  wr(0x55555554);
  return 0;
}
static long key_of(void *p) { // smaps
  FILE *f = fopen("/proc/self/smaps", "r");
  char line[512], want[32];
  int in = 0;
  long key = -1;
  snprintf(want, 32, "%lx-", (long)p);
  while (fgets(line, sizeof line, f)) {
    if (strchr(line, '-') && strchr(line, '-') < line + 17 && line[0] != 'P' && line[0] != 'V') in = !strncmp(line, want, strlen(want));
    if (in && key < 0) sscanf(line, "ProtectionKey: %ld", &key);
  }
  fclose(f);
  return key;
}
int main(int argc, char **argv) {
  (void)argc;
  unsigned a = 7, b = 0, c = 0, d = 0;
  __asm__("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d) : : );
  char *p = anon_at(BASE, 8 * PG, PROT_READ | PROT_WRITE);
  R(alloc(1, 0));
  R(alloc(0, 4));
  R(release(-1));
  R(release(16));
  R(release(5));
  R(protect(p, PG, PROT_READ, 5));
  R(protect(p, PG, PROT_READ, 16));
  R(protect(p, PG, PROT_READ, -2));
  R(protect(p, PG, PROT_READ | PROT_WRITE, -1));
  R(protect(p + 1, PG, PROT_READ, -1));
  R(protect(p, 0, PROT_READ, 99));
  if (!(c & 16)) {
    R(alloc(0, 0));
    R(release(0));
    return LACKING;
  }
  if (getenv("AGAIN")) { say("after exec: %x\n", rd()); return 0; }
  say("a program begins with %x\n", rd());
  struct sigaction sa = {.sa_sigaction = on_segv, .sa_flags = SA_SIGINFO | SA_NODEFER};
  CHECK(!sigaction(SIGSEGV, &sa, 0));
  int k = (int)alloc(0, AD);
  say("key %d, rights %x\n", k, rd() >> 2 * k & 3);
  int k2 = (int)alloc(0, WD);
  say("key %d, rights %x\n", k2, rd() >> 2 * k2 & 3);
  memset(p, 7, 8 * PG);
  R(protect(p, 4 * PG, PROT_READ | PROT_WRITE, k));
  say("key in smaps: %ld %ld\n", key_of(p), key_of(p + 4 * PG));
  say("read %s\n", try(p, 'r'));
  say("write %s\n", try(p, 'w'));
  say("a handler has %x\n", handler_pkru);
  rights(k, WD);
  say("read %s\n", try(p, 'r'));
  say("write %s\n", try(p, 'w'));
  rights(k, 0);
  say("write %s\n", try(p, 'w'));
  R(protect(p, PG, PROT_READ, k));
  say("write %s\n", try(p, 'w')); // the mapping refuses, not the key
  R(protect(p, PG, PROT_READ | PROT_WRITE, k));
  // Plain mprotect keeps the key; the other key is another's.
  CHECK(!mprotect(p, PG, PROT_READ) && !mprotect(p, PG, PROT_READ | PROT_WRITE));
  say("key in smaps: %ld\n", key_of(p));
  R(protect(p + PG, PG, PROT_READ | PROT_WRITE, k2));
  say("read %s\n", try(p + PG, 'r'));
  say("write %s\n", try(p + PG, 'w'));
  R(protect(p + PG, PG, PROT_READ | PROT_WRITE, 0));
  say("write %s\n", try(p + PG, 'w'));
  // A page that is not there yet.
  char *fresh = anon_at(BASE + 64 * PG, 2 * PG, PROT_READ | PROT_WRITE);
  R(protect(fresh, 2 * PG, PROT_READ | PROT_WRITE, k));
  rights(k, AD);
  say("read %s\n", try(fresh, 'r'));
  say("write %s\n", try(fresh + PG, 'w'));
  // The kernel copies with the caller's rights.
  int z = open("/dev/zero", O_RDONLY), n = open("/dev/null", O_WRONLY), m = memfd_create("m", 0);
  R(read(z, p, 16));
  R(write(m, p, 16));
  R(read(z, p + PG, 16));
  R(write(m, p + PG, 16));
  rights(k, WD);
  R(read(z, p, 16));
  R(write(m, p, 16));
  R(pread(m, p, 16, 0));
  rights(k, 0);
  R(read(z, p, 16));
  (void)n;
  // The handler's change of the frame is what the program goes on with.
  rights(k, AD);
  sa.sa_sigaction = fix_rights;
  CHECK(!sigaction(SIGSEGV, &sa, 0));
  p[0] = 9;
  say("allowed by the handler: %x\n", rd() >> 2 * k & 3);
  sa.sa_sigaction = on_segv;
  CHECK(!sigaction(SIGSEGV, &sa, 0));
  // Threads, fork, exec.
  rights(k, WD);
  unsigned mine = rd();
  pthread_t t;
  CHECK(!pthread_create(&t, 0, in_thread, &mine) && !pthread_join(t, 0));
  say("rights are a thread's own: %d\n", rd() == mine);
  sched_yield();
  pid_t ch = fork();
  if (!ch) {
    say("a child's rights: %d, its key: %ld\n", rd() == mine, key_of(p));
    say("write %s\n", try(p, 'w'));
    rights(k, 0);
    p[0] = 3;
    say("a copy has the key: %s\n", (rights(k, AD), try(p, 'r')));
    _exit(0);
  }
  CHECK(waitpid(ch, 0, 0) == ch);
  ch = fork();
  if (!ch) {
    setenv("AGAIN", "1", 1);
    wr(0);
    execl(argv[0], argv[0], (char *)0);
    _exit(9);
  }
  int status;
  CHECK(waitpid(ch, &status, 0) == ch && status == 0);
  // Execute-only memory: code runs, nobody reads it.
  rights(k, 0);
  char *x = anon_at(BASE + 256 * PG, PG, PROT_READ | PROT_WRITE);
  x[0] = (char)0xc3; // ret
  R(mprotect(x, PG, PROT_EXEC));
  say("run %s\n", try(x, 'x'));
  const char *r = try(x, 'r');
  say("read %s\n", strncmp(r, "PKUERR", 6) ? r : "PKUERR");
  say("a key of its own: %d\n", key_of(x) > 0 && key_of(x) != k && key_of(x) != k2);
  R(write(m, x, 1));
  long xkey = key_of(x);
  R(release((int)xkey));
  R(mprotect(x, PG, PROT_READ));
  say("read %s, key %ld\n", try(x, 'r'), key_of(x));
  char *y = mmap(BASE + 300 * PG, PG, PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  say("mapped execute-only: the same key %d\n", key_of(y) == xkey);
  // Every key, and one given back.
  int count = 0;
  while (alloc(0, 0) > 0) count++;
  R(alloc(0, 0));
  say("%d more keys\n", count);
  R(release(k2));
  say("given back, got again: %d\n", alloc(0, 0) == k2);
  R(release(0));
  // Neighbours with different keys are different mappings, with the same key one.
  char *q = anon_at(BASE + 512 * PG, 4 * PG, PROT_READ | PROT_WRITE);
  R(protect(q + PG, PG, PROT_READ | PROT_WRITE, k));
  maps_in("two keys", q, q + 4 * PG);
  R(protect(q, 4 * PG, PROT_READ | PROT_WRITE, k));
  maps_in("one key", q, q + 4 * PG);
  return 0;
}
