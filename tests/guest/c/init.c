// The first program of a batch: runs the programs that /tests/list names, one after another, each with a time
// limit, and frames what each says:  RS begin NAME TIME | output | RS end NAME STATUS TIME PINS FRAMES
// A line of the list: NAME SECONDS PROGRAM ARGUMENTS... STATUS is the shell's, TIME the kernel log's, in microseconds;
// PINS and FRAMES are what it took and did not give back, files aside.
#include "t.h"
#include <ftw.h>
static volatile int late;
static void on_alarm(int s) { (void)s; late = 1; }
// Microseconds since boot, as the kernel log has them.
static unsigned long now(void) { return mono_ns() / 1000; }
// The last number of the line of a file in /proc that begins with NAME.
static long pins(void) { return number_in("/proc/vmstat", "nr_foll_pin_acquired") - number_in("/proc/vmstat", "nr_foll_pin_released"); }
static int gone(const char *path, const struct stat *st, int what, struct FTW *at) {
  (void)st; (void)what;
  if (at->level) remove(path);
  return 0;
}
static long frames(void) {
  nftw("/tmp", gone, 16, FTW_DEPTH | FTW_PHYS);
  nftw("/dev/shm", gone, 16, FTW_DEPTH | FTW_PHYS);
  int f = open("/proc/sys/vm/drop_caches", O_WRONLY);
  CHECK(f >= 0 && write(f, "3", 1) == 1);
  close(f);
  return number_in("/proc/vmstat", "nr_free_pages");
}
static void run(char *line) {
  char *w[32];
  int n = 0;
  for (char *t = strtok(line, " "); t && n < 31; t = strtok(0, " ")) w[n++] = t;
  w[n] = 0;
  if (n < 3) return;
  say("\x1e" "begin %s %lu\n", w[0], now());
  long held = pins(), unused = frames();
  late = 0;
  pid_t c = fork();
  if (c < 0) { say("init: fork: %s\n\x1e" "end %s 125 %lu\n", ename(errno), w[0], now()); return; }
  if (!c) {
    setsid();
    signal(SIGALRM, SIG_DFL);
    execv(w[2], w + 2);
    say("init: %s: %s\n", w[2], ename(errno));
    _exit(127);
  }
  alarm(atoi(w[1]));
  int st = 0;
  // Orphans come to us and are buried at once: programs look whether they are gone.
  for (pid_t w; (w = waitpid(-1, &st, __WALL)) != c;) if (w < 0 && late) { kill(c, SIGKILL); late = 2; }
  alarm(0);
  int code = WIFSIGNALED(st) ? 128 + WTERMSIG(st) : WEXITSTATUS(st);
  if (late) code = 124;
  // Whoever is left over goes too: each program starts alone.
  kill(-1, SIGKILL);
  while (waitpid(-1, 0, __WALL) > 0) {}
  unused -= frames();
  held -= pins();
  say("\x1e" "end %s %d %lu %ld %ld\n", w[0], code, now(), -held, unused);
}
int main(void) {
  struct sigaction sa = {.sa_handler = on_alarm};
  sigaction(SIGALRM, &sa, 0);
  static char list[65536];
  int f = open("/tests/list", O_RDONLY);
  CHECK(f >= 0);
  ssize_t n = 0, r;
  while ((r = read(f, list + n, sizeof list - 1 - n)) > 0) n += r;
  close(f);
  if (getppid() > 1) return 1; // it kills everybody else: only for the first program of a machine
  for (char *l = list, *e; *l; l = e + 1) {
    e = strchrnul(l, '\n');
    int last = !*e;
    *e = 0;
    run(l);
    if (last) break;
  }
  say("\x1e" "done\n");
  return 0;
}
