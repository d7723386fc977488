// Many processes and threads at once, up to limits, and all of it given back.
#include "t.h"
#include <pthread.h>
static int st;
static void crowd(int n) {
  static pid_t c[1000];
  int pf[2];
  CHECK(!pipe(pf));
  for (int i = 0; i < n; i++) {
    c[i] = fork();
    CHECK(c[i] >= 0);
    if (!c[i]) { char *p = anon(8 * PG); for (int k = 0; k < 8; k++) p[k * PG] = i; write(pf[1], "r", 1); pause(); _exit(1); }
  }
  char b;
  for (int i = 0; i < n; i++) CHECK(read(pf[0], &b, 1) == 1); // all alive at once
  for (int i = 0; i < n; i++) kill(c[i], SIGKILL);
  int dead = 0;
  for (int i = 0; i < n; i++) { CHECK(waitpid(c[i], &st, 0) == c[i]); dead += WIFSIGNALED(st); }
  close(pf[0]); close(pf[1]);
  say("crowd of %d, %d killed\n", n, dead);
}
static int tree(int depth) { // every node waits for two children
  if (!depth) return 1;
  int sum = 0;
  pid_t c[2];
  for (int i = 0; i < 2; i++) { c[i] = fork(); CHECK(c[i] >= 0); if (!c[i]) _exit(tree(depth - 1)); }
  for (int i = 0; i < 2; i++) { CHECK(waitpid(c[i], &st, 0) == c[i] && WIFEXITED(st)); sum += WEXITSTATUS(st); }
  return sum;
}
static void *wait_here(void *b) { pthread_barrier_wait(b); return (void *)1; }
static void threads(int n) {
  static pthread_t t[1000];
  pthread_attr_t a;
  pthread_barrier_t bar;
  pthread_attr_init(&a);
  pthread_attr_setstacksize(&a, 64 * KB);
  pthread_barrier_init(&bar, 0, n + 1);
  for (int i = 0; i < n; i++) CHECK(!pthread_create(&t[i], &a, wait_here, &bar));
  pthread_barrier_wait(&bar);
  long sum = 0;
  for (int i = 0; i < n; i++) { void *r; pthread_join(t[i], &r); sum += (long)r; }
  say("%ld threads at once\n", sum);
}
static void limited(void) { // a bomb inside a limit of address space ends by itself
  struct rlimit l = {48 * MB, 48 * MB};
  CHECK(!setrlimit(RLIMIT_AS, &l));
  pthread_attr_t a;
  pthread_attr_init(&a);
  pthread_attr_setstacksize(&a, 4 * MB);
  pthread_t t;
  static pthread_barrier_t never;
  pthread_barrier_init(&never, 0, 1000);
  int n = 0, e;
  while (!(e = pthread_create(&t, &a, wait_here, &never))) n++;
  say("limited: %s, some %d\n", ename(e), n > 2 && n < 16);
  exit(0);
}
static void bomb(void) { // everybody forks until told to stop by the one that holds the leash
  setpgid(0, 0);
  for (int i = 0; i < 7; i++) fork();
  pause();
}
int main(void) {
  crowd(50);
  crowd(300);
  say("tree: %d leaves\n", tree(7));
  threads(200);
  say("bounded: %s\n", in_child(limited));
  pid_t c = fork();
  CHECK(c >= 0);
  setpgid(c, c);
  if (!c) { bomb(); _exit(0); }
  usleep(100000);
  CHECK(!kill(-c, SIGKILL));
  CHECK(waitpid(c, &st, 0) == c && WIFSIGNALED(st));
  usleep(50000);
  while (!kill(-c, SIGKILL)) usleep(10000); // until nobody is left in the group
  say("bomb: %s\n", ename(errno));
  crowd(100);
  return 0;
}
