// POSIX threads: eight at once with mutexes, conditions, barriers, thread-local data, cancellation, signals.
#include "t.h"
#include <pthread.h>
#include <semaphore.h>
#define T 8
static pthread_mutex_t m = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t cv = PTHREAD_COND_INITIALIZER;
static pthread_barrier_t bar;
static long total, turn;
static __thread long mine[1000];
static void *add(void *x) {
  long k = (long)x, *h = malloc(100000);
  for (int i = 0; i < 1000; i++) CHECK(mine[i] == 0);
  for (int i = 0; i < 5000; i++) {
    pthread_mutex_lock(&m);
    total += k;
    pthread_mutex_unlock(&m);
    mine[i % 1000] += k;
    h[i] = mine[i % 1000];
    if (i % 500 == 0) pthread_barrier_wait(&bar);
  }
  for (int i = 0; i < 1000; i++) CHECK(mine[i] == 5 * k);
  CHECK(h[4999] == 5 * k);
  free(h);
  return (void *)(k * k);
}
static void *in_turn(void *x) {
  long k = (long)x;
  for (int r = 0; r < 50; r++) {
    pthread_mutex_lock(&m);
    while (turn % T != k) pthread_cond_wait(&cv, &m);
    turn++;
    pthread_cond_broadcast(&cv);
    pthread_mutex_unlock(&m);
  }
  return 0;
}
static sem_t ping, pong;
static void *ponger(void *x) { (void)x; for (int i = 0; i < 2000; i++) { sem_wait(&ping); sem_post(&pong); } return 0; }
static void *sleeper(void *x) { (void)x; for (;;) sleep(100); }
static volatile int sig_tid_ok;
static pthread_t target;
static void on_usr(int s) { (void)s; sig_tid_ok = pthread_equal(pthread_self(), target); }
static void *spin_for_signal(void *x) { (void)x; while (!sig_tid_ok) sched_yield(); return 0; }
static pthread_rwlock_t rw = PTHREAD_RWLOCK_INITIALIZER;
static long a, b;
static void *rwuser(void *x) {
  long k = (long)x;
  for (int i = 0; i < 2000; i++) {
    if (k == 0) { pthread_rwlock_wrlock(&rw); a++; if (i % 100 == 0) sched_yield(); b++; pthread_rwlock_unlock(&rw); }
    else { pthread_rwlock_rdlock(&rw); CHECK(a == b); pthread_rwlock_unlock(&rw); }
  }
  return 0;
}
static void *spawn_more(void *x) {
  long d = (long)x;
  if (!d) return (void *)1;
  pthread_t l, r;
  CHECK(!pthread_create(&l, 0, spawn_more, (void *)(d - 1)) && !pthread_create(&r, 0, spawn_more, (void *)(d - 1)));
  void *p, *q;
  pthread_join(l, &p); pthread_join(r, &q);
  return (void *)((long)p + (long)q);
}
static void exit_from_thread_body(void) {
  pthread_t t[3];
  for (int i = 0; i < 3; i++) pthread_create(&t[i], 0, sleeper, 0);
  exit(23); // takes sleeping threads along
}
static void *dies(void *x) { (void)x; *(volatile int *)16 = 1; return 0; }
static void fault_in_thread(void) { pthread_t t; pthread_create(&t, 0, dies, 0); sleep(100); }
static void *last_word(void *x) { (void)x; usleep(30000); _exit(17); return 0; }
static void leader_leaves(void) { pthread_t t; pthread_create(&t, 0, last_word, 0); pthread_exit(0); }
static void *execs(void *x) { (void)x; execl("/proc/self/exe", "threads", "after-exec", (char *)0); _exit(1); return 0; }
static void exec_from_thread(void) { pthread_t t[4]; for (int i = 0; i < 3; i++) pthread_create(&t[i], 0, sleeper, 0); pthread_create(&t[3], 0, execs, 0); sleep(100); }
int main(int argc, char **argv) {
  if (argc > 1) { say("%s: pid is tid %d\n", argv[1], getpid() == gettid()); return 31; }
  pthread_t t[T];
  pthread_barrier_init(&bar, 0, T);
  for (long k = 0; k < T; k++) CHECK(!pthread_create(&t[k], 0, add, (void *)(k + 1)));
  long sq = 0;
  for (int k = 0; k < T; k++) { void *r; pthread_join(t[k], &r); sq += (long)r; }
  say("total %ld, squares %ld\n", total, sq);
  for (long k = 0; k < T; k++) pthread_create(&t[k], 0, in_turn, (void *)k);
  for (int k = 0; k < T; k++) pthread_join(t[k], 0);
  say("turns %ld\n", turn);
  sem_init(&ping, 0, 0); sem_init(&pong, 0, 0);
  pthread_create(&t[0], 0, ponger, 0);
  for (int i = 0; i < 2000; i++) { sem_post(&ping); sem_wait(&pong); }
  pthread_join(t[0], 0);
  say("ping pong\n");
  pthread_create(&t[0], 0, sleeper, 0);
  usleep(10000);
  pthread_cancel(t[0]);
  void *r;
  pthread_join(t[0], &r);
  say("cancelled %d\n", r == PTHREAD_CANCELED);
  signal(SIGUSR1, on_usr);
  pthread_create(&target, 0, spin_for_signal, 0);
  pthread_kill(target, SIGUSR1);
  pthread_join(target, 0);
  say("signal went to its thread %d\n", sig_tid_ok);
  for (long k = 0; k < T; k++) pthread_create(&t[k], 0, rwuser, (void *)k);
  for (int k = 0; k < T; k++) pthread_join(t[k], 0);
  say("readers and a writer %ld %ld\n", a, b);
  say("tree of threads %ld\n", (long)spawn_more((void *)6));
  struct timespec ts;
  clock_gettime(CLOCK_REALTIME, &ts);
  ts.tv_nsec += 20000000;
  if (ts.tv_nsec >= 1000000000) { ts.tv_nsec -= 1000000000; ts.tv_sec++; }
  pthread_mutex_lock(&m);
  say("timed wait %s\n", ename(pthread_cond_timedwait(&cv, &m, &ts)));
  pthread_mutex_unlock(&m);
  struct rlimit nocore = {0, 0};
  setrlimit(RLIMIT_CORE, &nocore);
  say("exit in a process with threads: %s\n", in_child(exit_from_thread_body));
  say("fault in a thread: %s\n", in_child(fault_in_thread));
  say("leader leaves first: %s\n", in_child(leader_leaves));
  say("exec from a thread: %s\n", in_child(exec_from_thread));
  return 0;
}
