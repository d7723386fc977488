// The gate page (GATE-1, GATE-2) as it is unless somebody says otherwise: calls, and nothing to read.
#include "t.h"
#include <sys/uio.h>
static char *const gate = (char *)0xffffffffff600000;
int main(void) {
  FILE *f = fopen("/proc/self/maps", "r");
  char line[256], last[256] = "";
  while (fgets(line, sizeof line, f)) strcpy(last, line);
  fclose(f);
  if (!strstr(last, "--xp") || !strstr(last, "[vsyscall]")) return LACKING;
  say("%s", last);
  probe_install();
  struct timeval now, before;
  gettimeofday(&before, 0);
  long r = ((long (*)(struct timeval *, void *))gate)(&now, 0);
  say("gettimeofday %ld %d\n", r, now.tv_sec >= before.tv_sec && now.tv_sec <= before.tv_sec + 100);
  time_t t = 0;
  r = ((long (*)(time_t *))(gate + 0x400))(&t);
  say("time %d %d\n", r == t, t >= before.tv_sec && t <= before.tv_sec + 100);
  unsigned cpu = 99, node = 99;
  r = ((long (*)(unsigned *, unsigned *, void *))(gate + 0x800))(&cpu, &node, 0);
  say("getcpu %ld %d %u\n", r, cpu < 99, node);
  say("elsewhere in it: %s\n", probe(gate + 0x10, 'x'));
  say("past it: %s\n", probe(gate + PG, 'x'));
  say("read: %s\n", probe(gate, 'r'));
  say("write: %s\n", probe(gate, 'W'));
  if (!sigsetjmp(probe_jmp, 1)) { ((long (*)(void *))(gate + 0x400))((void *)8); say("nowhere: done\n"); }
  else say("nowhere: signal %d\n", probe_info.si_signo);
  // A return address that is none.
  pid_t c = fork();
  if (!c) {
    signal(SIGSEGV, SIG_DFL);
    asm volatile("push %0; jmp *%1" ::"r"(0x8000000000000000), "r"(gate + 0x400), "D"(0L) : "memory");
  }
  int st;
  CHECK(waitpid(c, &st, 0) == c);
  say("back to nowhere: signal %d\n", st & 0x7f);
  char b[16];
  struct iovec to = {b, 16}, from = {gate, 16};
  R(process_vm_readv(getpid(), &to, 1, &from, 1, 0));
  R(process_vm_writev(getpid(), &to, 1, &from, 1, 0));
  return 0;
}
