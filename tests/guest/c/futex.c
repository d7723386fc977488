// futex: wait, wake, bitsets, requeue, time limits, private and shared, and a lock built on it.
#include "t.h"
#include <linux/futex.h>
#include <pthread.h>
static long fx(void *a, int op, long v, const void *t, void *b, long v3) { return syscall(SYS_futex, a, op, v, t, b, v3); }
static int word, word2;
static volatile int woken;
static void *sleeper(void *mask) {
  while (fx(&word, mask ? FUTEX_WAIT_BITSET_PRIVATE : FUTEX_WAIT_PRIVATE, 0, 0, 0, (long)mask) < 0 && errno == EINTR) {}
  __atomic_add_fetch(&woken, 1, __ATOMIC_SEQ_CST);
  return 0;
}
static void nap(void) { usleep(20000); }
// Wakes until n have been woken in all: sleepers may not have arrived yet.
static void wake_up_to(int n, long mask) {
  int got = 0;
  for (int i = 0; i < 2000 && got < n; i++) { got += fx(&word, FUTEX_WAKE_BITSET_PRIVATE, n - got, 0, 0, mask); usleep(1000); }
  CHECK(got == n);
}
static void basics(void) {
  struct timespec z = {0, 10000000}, bad = {0, 1000000000}, neg = {-1, 0};
  int one = 1;
  R(fx(&word, FUTEX_WAIT, 1, 0, 0, 0));
  R(fx(&word, FUTEX_WAIT, 0, &z, 0, 0));
  R(fx(&word, FUTEX_WAIT_PRIVATE, 0, &z, 0, 0));
  R(fx(&word, FUTEX_WAIT, 0, &bad, 0, 0));
  R(fx(&word, FUTEX_WAIT, 0, &neg, 0, 0));
  R(fx((char *)&word + 1, FUTEX_WAIT, 0, &z, 0, 0));
  R(fx((void *)8, FUTEX_WAIT, 0, &z, 0, 0));
  R(fx((void *)0xffff800000000000, FUTEX_WAIT, 0, &z, 0, 0));
  R(fx(&word, FUTEX_WAKE, 1, 0, 0, 0));
  R(fx((void *)8, FUTEX_WAKE_PRIVATE, 1, 0, 0, 0));
  R(fx((void *)8, FUTEX_WAKE, 1, 0, 0, 0));
  R(fx(&word, FUTEX_WAIT_BITSET, 0, &z, 0, 0));
  R(fx(&word, FUTEX_WAKE_BITSET, 1, 0, 0, 0));
  R(fx(&word, 99, 0, 0, 0, 0));
  R(fx(&word, FUTEX_WAIT, 0, (void *)8, 0, 0));
  R(fx(&word, FUTEX_CMP_REQUEUE, 1, (void *)1, &word2, 7));
  R(fx(&word, FUTEX_CMP_REQUEUE, 1, (void *)1, &word2, 0));
  struct timespec past = {1, 0};
  R(fx(&word, FUTEX_WAIT_BITSET, 0, &past, 0, -1));
  R(fx(&word, FUTEX_WAIT_BITSET | FUTEX_CLOCK_REALTIME, 0, &past, 0, -1));
  uint64_t t0 = mono_ns();
  struct timespec later;
  clock_gettime(CLOCK_MONOTONIC, &later);
  later.tv_nsec += 30000000;
  if (later.tv_nsec >= 1000000000) { later.tv_nsec -= 1000000000; later.tv_sec++; }
  R(fx(&word, FUTEX_WAIT_BITSET, 0, &later, 0, -1));
  CHECK(mono_ns() - t0 >= 29000000);
  (void)one;
}
static void wakes(void) {
  pthread_t t[6];
  woken = 0;
  for (int i = 0; i < 6; i++) pthread_create(&t[i], 0, sleeper, 0);
  wake_up_to(6, -1);
  for (int i = 0; i < 6; i++) pthread_join(t[i], 0);
  say("six woken: %d\n", woken);
  woken = 0;
  for (long i = 0; i < 6; i++) pthread_create(&t[i], 0, sleeper, (void *)(i < 3 ? 1L : 2L));
  wake_up_to(3, 2);
  pthread_join(t[3], 0); pthread_join(t[4], 0); pthread_join(t[5], 0);
  nap();
  say("by bitset: %d\n", woken);
  wake_up_to(3, 1);
  for (int i = 0; i < 3; i++) pthread_join(t[i], 0);
}
static int woken_at(int *w) { return fx(w, FUTEX_WAKE_PRIVATE, 1, 0, 0, 0) > 0; }
static void requeue(void) {
  pthread_t t[5];
  woken = 0;
  for (int i = 0; i < 5; i++) pthread_create(&t[i], 0, sleeper, 0);
  int moved = 0;
  for (int i = 0; i < 2000 && moved < 5; i++) { long r = fx(&word, FUTEX_CMP_REQUEUE_PRIVATE, 0, (void *)100, &word2, 0); CHECK(r >= 0); moved += r; usleep(1000); }
  nap();
  say("requeued %d, woken %d, at the old word %ld\n", moved, woken, fx(&word, FUTEX_WAKE_PRIVATE, 100, 0, 0, 0));
  int n = fx(&word2, FUTEX_WAKE_PRIVATE, 2, 0, 0, 0);
  n += fx(&word2, FUTEX_WAKE_PRIVATE, 100, 0, 0, 0);
  for (int i = 0; i < 5; i++) pthread_join(t[i], 0);
  say("woken at the new word %d\n", n);
  pthread_create(&t[0], 0, sleeper, 0);
  long r;
  do r = fx(&word, FUTEX_REQUEUE_PRIVATE, 0, (void *)100, &word2, 0); while (!woken_at(&word2));
  say("without a comparison %ld\n", r);
  pthread_join(t[0], 0);
}
static void between_processes(void) { // at different addresses, same object
  int fd = memfd_create("f", 0);
  ftruncate(fd, PG);
  int *a = mmap(0, PG, 3, MAP_SHARED, fd, 0), *b = mmap(0, PG, 3, MAP_SHARED, fd, 0);
  pid_t c = fork();
  if (!c) {
    while (__atomic_load_n(b, __ATOMIC_SEQ_CST) == 0) fx(b, FUTEX_WAIT, 0, 0, 0, 0);
    b[1] = 99;
    fx(b + 1, FUTEX_WAKE, 1, 0, 0, 0);
    _exit(0);
  }
  nap();
  __atomic_store_n(a, 1, __ATOMIC_SEQ_CST);
  fx(a, FUTEX_WAKE, 1, 0, 0, 0);
  while (__atomic_load_n(a + 1, __ATOMIC_SEQ_CST) == 0) fx(a + 1, FUTEX_WAIT, 0, 0, 0, 0);
  int st;
  waitpid(c, &st, 0);
  say("between processes: %d %d\n", a[1], st);
}
// FAST-16: a waiter is found through any mapping of its word, whatever happened to the page in between, and through no other's.
static void keys(void) {
  int fd = memfd_create("a", 0), other = memfd_create("b", 0);
  CHECK(!ftruncate(fd, 4 * PG) && !ftruncate(other, 4 * PG));
  int *a = mmap(0, 4 * PG, 3, MAP_SHARED, fd, 0), *b = mmap(0, PG, 3, MAP_SHARED, other, 0), *p = mmap(0, PG, 3, MAP_PRIVATE, fd, 0);
  int *r = mmap(0, PG, PROT_READ, MAP_SHARED, fd, 0), *q = (int *)anon(PG);
  for (int k = 0; k < 4; k++) { // a page that is there; one that is not; read-only eyes; cut off and made anew
    int *w = a + (k == 1 ? PG / 4 : 0), *way = k == 2 ? r : w;
    if (k != 1) *w = 0;
    *b = *q = 0;
    pid_t c = fork();
    if (!c) { CHECK(!fx(way, FUTEX_WAIT, 0, 0, 0, 0)); _exit(0); }
    nap();
    if (k == 3) { CHECK(!ftruncate(fd, 0) && !ftruncate(fd, 4 * PG)); *w = 0; }
    *p = 0; // a copy of its own
    long wrong = fx(b, FUTEX_WAKE, 9, 0, 0, 0) + fx(q, FUTEX_WAKE, 9, 0, 0, 0) + fx(p, FUTEX_WAKE, 9, 0, 0, 0) + fx(w + 1, FUTEX_WAKE, 9, 0, 0, 0) + fx(a + 2 * PG / 4, FUTEX_WAKE, 9, 0, 0, 0);
    int n = 0;
    while (!n && !wrong) n = fx(w, FUTEX_WAKE, 9, 0, 0, 0);
    int st;
    waitpid(c, &st, 0);
    say("key %d: %ld %d %d\n", k, wrong, n, st);
  }
  *q = 0; // private memory, before and after the page is shared with a child and copied
  pthread_t t;
  extern void *plain_sleeper(void *);
  pthread_create(&t, 0, plain_sleeper, q);
  nap();
  pid_t c = fork();
  if (!c) { long n = fx(q, FUTEX_WAKE, 9, 0, 0, 0); *q = 0; n += fx(q, FUTEX_WAKE, 9, 0, 0, 0); _exit(n != 0); }
  int st, n = 0;
  waitpid(c, &st, 0);
  *q = 0;
  while (!n) n = fx(q, FUTEX_WAKE, 9, 0, 0, 0);
  pthread_join(t, 0);
  say("private key: %d %d\n", st, n);
  close(fd); close(other); munmap(a, 4 * PG); munmap(b, PG); munmap(p, PG); munmap(r, PG); munmap(q, PG);
}
void *plain_sleeper(void *w) { CHECK(!fx(w, FUTEX_WAIT, 0, 0, 0, 0)); return 0; }
static int lock_word, shared_count;
static void lock(int *w) {
  int c = 0;
  if (__atomic_compare_exchange_n(w, &c, 1, 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED)) return;
  if (c != 2) c = __atomic_exchange_n(w, 2, __ATOMIC_ACQUIRE);
  while (c) { fx(w, FUTEX_WAIT_PRIVATE, 2, 0, 0, 0); c = __atomic_exchange_n(w, 2, __ATOMIC_ACQUIRE); }
}
static void unlock(int *w) { if (__atomic_exchange_n(w, 0, __ATOMIC_RELEASE) == 2) fx(w, FUTEX_WAKE_PRIVATE, 1, 0, 0, 0); }
static void *contend(void *x) {
  (void)x;
  for (int i = 0; i < 4000; i++) { lock(&lock_word); int v = shared_count; if (i % 64 == 0) sched_yield(); shared_count = v + 1; unlock(&lock_word); }
  return 0;
}
static void mutex(void) {
  pthread_t t[8];
  for (int i = 0; i < 8; i++) pthread_create(&t[i], 0, contend, 0);
  for (int i = 0; i < 8; i++) pthread_join(t[i], 0);
  say("mutual exclusion: %d\n", shared_count);
}
static void *robust_owner(void *m) { pthread_mutex_lock(m); return 0; } // dies holding it
static void robust(void) {
  pthread_mutexattr_t a;
  pthread_mutex_t m;
  pthread_mutexattr_init(&a);
  pthread_mutexattr_setrobust(&a, PTHREAD_MUTEX_ROBUST);
  pthread_mutex_init(&m, &a);
  pthread_t t;
  pthread_create(&t, 0, robust_owner, &m);
  pthread_join(t, 0);
  say("owner died: %d\n", pthread_mutex_lock(&m) == EOWNERDEAD);
  pthread_mutex_consistent(&m);
  pthread_mutex_unlock(&m);
}
struct waitv { uint64_t val, addr; uint32_t flags, reserved; };
static struct waitv many[129];
static long wv(void *w, unsigned n, unsigned flags, void *t, long clock) { return syscall(449, w, n, flags, t, clock); }
static void *waker(void *x) {
  int *w = x;
  __atomic_store_n(w, 1, __ATOMIC_SEQ_CST);
  while (fx(w, FUTEX_WAKE_PRIVATE, 1, 0, 0, 0) == 0) sched_yield();
  return 0;
}
static void several(void) { // futex_waitv
  static int w[128];
  struct timespec past = {1, 0}, bad = {0, 1000000000};
  for (int i = 0; i < 129; i++) many[i] = (struct waitv){0, (uint64_t)&w[i % 128], 2 | 128, 0};
  R(wv(many, 0, 0, 0, 0));
  R(wv(many, 129, 0, 0, 0));
  R(wv(many, 1, 1, 0, 0));
  R(wv(0, 1, 0, 0, 0));
  R(wv((void *)8, 1, 0, 0, 0));
  R(wv(many, 2, 0, &past, CLOCK_MONOTONIC));
  R(wv(many, 128, 0, &past, CLOCK_REALTIME));
  R(wv(many, 2, 0, &past, CLOCK_BOOTTIME));
  R(wv(many, 2, 0, &bad, CLOCK_MONOTONIC));
  R(wv(many, 2, 0, (void *)8, CLOCK_MONOTONIC));
#define ODD(what) do { struct waitv o = many[5]; what; R(wv(many, 9, 0, &past, CLOCK_MONOTONIC)); many[5] = o; } while (0)
  ODD(many[5].val = 1);
  ODD(many[5].val = 1ul << 32);
  ODD(many[5].addr = 0);
  ODD(many[5].addr++);
  ODD(many[5].addr = 1ul << 63);
  ODD(many[5].flags = 0);
  ODD(many[5].flags = 2);
  ODD(many[5].flags = 2 | 64);
  ODD(many[5].reserved = 1);
  R(fx(&w[4], FUTEX_WAKE_PRIVATE, 1, 0, 0, 0)); // nobody was left behind
  pthread_t t;
  for (int i = 0; i < 128; i += 127) {
    pthread_create(&t, 0, waker, &w[i]);
    long r = wv(many, 128, 0, 0, 0); // or the word has changed already: then the waker finds a waiter below
    if (r < 0) { CHECK(errno == EAGAIN); w[i] = 0; r = wv(many, 128, 0, 0, 0); }
    pthread_join(t, 0);
    CHECK(r == i);
    w[i] = 0;
  }
  say("woken by the first and by the last\n");
}
static void on_alarm(int s) { (void)s; }
static void interrupted(void) {
  struct sigaction sa = {.sa_handler = on_alarm};
  sigaction(SIGALRM, &sa, 0);
  struct itimerval it = {.it_value = {0, 20000}};
  setitimer(ITIMER_REAL, &it, 0);
  struct timespec t = {5, 0};
  R(fx(&word, FUTEX_WAIT, 0, &t, 0, 0));
  setitimer(ITIMER_REAL, &it, 0);
  R(fx(&word, FUTEX_WAIT, 0, 0, 0, 0));
}
int main(void) {
  basics(); wakes(); requeue(); between_processes(); keys(); mutex(); robust(); several(); interrupted();
  return 0;
}
