// Speaks gdb's remote protocol to Debian's gdbserver over a pipe: breakpoint, registers, memory, step, signal, end.
// The program that is debugged is this one.
#include "t.h"

static volatile long cell = 41;
__attribute__((noinline, noclone)) long target_fn(long a) { return a * 2 + cell; }

static int debuggee(void) {
  long r = target_fn(4);
  raise(SIGUSR1);
  return r == 108 ? 6 : 7;
}

static int to, from;

static int byte(void) {
  unsigned char c;
  if (read(from, &c, 1) != 1) {
    say("gdbserver is gone\n");
    _exit(1);
  }
  return c;
}

static void send_packet(const char *body) {
  char b[512];
  unsigned char sum = 0;
  for (const char *c = body; *c; c++) sum += *c;
  int n = snprintf(b, sizeof b, "$%s#%02x", body, sum);
  CHECK(write(to, b, n) == n);
  while (byte() != '+') {}
}

// The next reply that is no console output.
static char *reply(void) {
  static char b[65536];
  for (;;) {
    while (byte() != '$') {}
    size_t n = 0;
    for (int c; (c = byte()) != '#';) {
      if (c == '*' && n > 0) { // run length
        for (int times = byte() - 29; times > 0 && n < sizeof b - 1; times--, n++) b[n] = b[n - 1];
        continue;
      }
      CHECK(n < sizeof b - 1);
      b[n++] = c;
    }
    b[n] = 0;
    byte();
    byte();
    CHECK(write(to, "+", 1) == 1);
    if (b[0] != 'O' || !strcmp(b, "OK")) return b;
  }
}

static char *ask(const char *body) {
  send_packet(body);
  return reply();
}

// A stop reply without what depends on the machine.
static void stop(const char *what, const char *r) { say("%s: %.3s\n", what, r); }

static unsigned long rip(void) {
  char *g = ask("g");
  unsigned long v = 0;
  for (int i = 7; i >= 0; i--) {
    unsigned b;
    CHECK(sscanf(g + 16 * 16 + 2 * i, "%2x", &b) == 1);
    v = v << 8 | b;
  }
  return v;
}

int main(int argc, char **argv) {
  if (argc > 1) return debuggee();
  int in[2], out[2];
  CHECK(pipe(in) == 0 && pipe(out) == 0);
  pid_t p = fork();
  if (p == 0) {
    dup2(in[0], 0);
    dup2(out[1], 1);
    int null = open("/dev/null", O_WRONLY);
    dup2(null, 2);
    char self[256] = "";
    readlink("/proc/self/exe", self, sizeof self - 1);
    execl("/usr/bin/gdbserver", "gdbserver", "--once", "-", self, "child", (char *)0);
    _exit(127);
  }
  close(in[0]);
  close(out[1]);
  to = in[1];
  from = out[0];
  char b[128];
  say("features %d\n", strstr(ask("qSupported:swbreak+"), "PacketSize") != 0);
  stop("first", ask("?"));
  snprintf(b, sizeof b, "Z0,%lx,1", (long)target_fn);
  say("breakpoint %s\n", ask(b));
  stop("continue", ask("vCont;c"));
  say("at target %d\n", rip() == (unsigned long)target_fn);
  snprintf(b, sizeof b, "m%lx,8", (long)&cell);
  say("cell %s\n", ask(b));
  snprintf(b, sizeof b, "M%lx,1:64", (long)&cell);
  say("write %s\n", ask(b));
  snprintf(b, sizeof b, "m%lx,8", (long)&cell);
  say("cell %s\n", ask(b));
  snprintf(b, sizeof b, "m%lx,4", 8L);
  say("nowhere %.1s\n", ask(b));
  snprintf(b, sizeof b, "z0,%lx,1", (long)target_fn);
  say("remove %s\n", ask(b));
  stop("step", ask("vCont;s"));
  unsigned long at = rip();
  say("stepped %d\n", at > (unsigned long)target_fn && at < (unsigned long)target_fn + 16);
  stop("signal", ask("vCont;c"));
  stop("end", ask("vCont;c"));
  return 0;
}
