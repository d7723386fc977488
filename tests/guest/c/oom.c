// Pinfold only: memory runs out. The process with the largest resident set dies, everybody else goes on.
#include "t.h"
static int st;
static void hog(int pf) {
  write(pf, "h", 1);
  for (size_t n = 0;; n++) { char *p = mmap(0, 1 * MB, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0); if (p == MAP_FAILED) continue; memset(p, n, 1 * MB); }
}
int main(void) {
  int pf[2], go[2];
  char b;
  CHECK(!pipe(pf) && !pipe(go));
  for (int round = 0; round < 3; round++) {
    pid_t modest = fork(), c;
    if (!modest) {
      char *p = anon(16 * MB);
      for (int i = 0; i < 4096; i++) p[i * PG] = i;
      write(pf[1], "m", 1);
      CHECK(read(go[0], &b, 1) == 1);
      for (int i = 0; i < 4096; i++) CHECK(p[i * PG] == (char)i);
      _exit(5);
    }
    CHECK(read(pf[0], &b, 1) == 1 && b == 'm');
    c = fork();
    if (!c) { hog(pf[1]); _exit(0); }
    CHECK(read(pf[0], &b, 1) == 1 && b == 'h');
    CHECK(waitpid(c, &st, 0) == c);
    say("hog: killed %d by %d\n", WIFSIGNALED(st), WTERMSIG(st));
    CHECK(write(go[1], "x", 1) == 1 && waitpid(modest, &st, 0) == modest);
    say("modest: exit %d\n", WEXITSTATUS(st));
  }
  // Two hogs at once, one of them with threads' worth of forks.
  pid_t k[2];
  for (int i = 0; i < 2; i++) { k[i] = fork(); if (!k[i]) hog(pf[1]); }
  int n = 0;
  for (int i = 0; i < 2; i++) { CHECK(waitpid(k[i], &st, 0) == k[i]); n += WIFSIGNALED(st) && WTERMSIG(st) == SIGKILL; }
  say("both hogs killed: %d\n", n);
  // The frames are back.
  char *p = anon(64 * MB);
  for (size_t i = 0; i < 64 * MB; i += PG) p[i] = 1;
  say("64 MiB again\n");
  return 0;
}
