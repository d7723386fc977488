// A dynamically linked glibc program: interpreter, shared libraries, relocations, thread-local data, dlsym.
#include "t.h"
#include <dlfcn.h>
#include <math.h>
#include <pthread.h>
static __thread int tls = 5;
static int ctor_ran;
__attribute__((constructor)) static void ctor(void) { ctor_ran = 1; }
static void bye(void) { say("at exit\n"); }
static void *th(void *x) { tls += (int)(long)x; return (void *)(long)tls; }
static int cmp(const void *a, const void *b) { return *(int *)a - *(int *)b; }
int main(int argc, char **argv) {
  atexit(bye);
  volatile double two = 2;
  printf("constructor %d, argc %d, sqrt %.12f, pow %.6f\n", ctor_ran, argc, sqrt(two), pow(two, 0.5));
  fflush(stdout);
  pthread_t t[4];
  long sum = 0;
  for (long i = 0; i < 4; i++) pthread_create(&t[i], 0, th, (void *)i);
  for (int i = 0; i < 4; i++) { void *r; pthread_join(t[i], &r); sum += (long)r; }
  say("thread-local %ld, here %d\n", sum, tls);
  int v[] = {5, 3, 9, 1};
  qsort(v, 4, sizeof *v, cmp);
  say("sorted %d %d %d %d\n", v[0], v[1], v[2], v[3]);
  int (*f)(const char *) = (int (*)(const char *))dlsym(RTLD_DEFAULT, "atoi");
  say("dlsym %d\n", f ? f("4711") : -1);
  setenv("A", "b", 1);
  pid_t c = fork();
  if (!c) { say("child %s\n", getenv("A")); exit(3); }
  int st;
  waitpid(c, &st, 0);
  say("status %d\n", WEXITSTATUS(st));
  char *m = malloc(3 * MB);
  memset(m, 1, 3 * MB);
  free(m);
  (void)argv;
  return 0;
}
