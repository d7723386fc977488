// What a tracer follows: a family that makes calls, in an order that does not depend on who is quicker.
#include "t.h"
#include <pthread.h>

static void on_usr1(int s) { (void)s; }

int main(void) {
  // Whatever the tracer was started with: descriptors begin at 3.
  syscall(SYS_close_range, 3u, ~0u, 0);
  int null = open("/dev/null", O_WRONLY), st;
  pid_t p = fork();
  if (p == 0) {
    write(null, "child", 5);
    _exit(3);
  }
  waitpid(p, &st, 0);
  p = vfork();
  if (p == 0) {
    char *argv[] = {"/proc/self/exe", 0};
    if (access("/nowhere", R_OK) < 0) _exit(4);
    execv(argv[0], argv);
  }
  waitpid(p, &st, 0);
  signal(SIGUSR1, on_usr1);
  kill(getpid(), SIGUSR1);
  write(null, "parent", 6);
  close(77);
  return 5;
}
