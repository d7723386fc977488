// SOCK_SEQPACKET pairs: messages stay whole and in order.
#include "t.h"
#include <sys/ioctl.h>
#include <sys/socket.h>

static int s[2];
static void *volatile bad = (void *)8;
static void fresh(void) {
  close(s[0]);
  close(s[1]);
  CHECK(!socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, s));
}
static void tell(const char *what, ssize_t r) { say("%s: %zd %s\n", what, r, r < 0 ? ename(errno) : ""); }
static int waiting(int fd) {
  int n = -1;
  CHECK(!ioctl(fd, FIONREAD, &n));
  return n;
}
static void polled(const char *what, int fd) {
  struct pollfd p = {fd, POLLIN | POLLOUT | POLLRDHUP, 0};
  poll(&p, 1, 0);
  say("%s: %x\n", what, p.revents);
}
static void on_pipe(int n) {
  (void)n;
  say("SIGPIPE\n");
}

int main(void) {
  char b[64];
  static char big[400000];
  signal(SIGPIPE, on_pipe);
  s[0] = s[1] = -1;
  fresh();
  polled("new", s[0]);
  tell("write", write(s[0], "abcdef", 6));
  tell("write", write(s[0], "xy", 2));
  say("waiting %d\n", waiting(s[1]));
  tell("nothing", read(s[1], b, 0));
  tell("part", read(s[1], b, 3));
  say("%.3s, waiting %d\n", b, waiting(s[1]));
  tell("next", read(s[1], b, sizeof b));
  say("%.2s\n", b);
  tell("none", read(s[1], b, sizeof b));
  tell("send", send(s[0], "q", 1, 0));
  tell("recv", recv(s[1], b, 1, 0));
  memset(big, 7, sizeof big);
  tell("long", write(s[0], big, 212960));
  tell("got", read(s[1], big, sizeof big));
  tell("too long", write(s[0], big, 212961));
  tell("a bad address", write(s[0], bad, 5));
  tell("write", write(s[0], "abc", 3));
  tell("to a bad address", read(s[1], bad, 5));
  tell("lost", read(s[1], b, 5));
  int n = 0;
  while (write(s[0], "z", 1) == 1) n++;
  say("full after %s: %s\n", n > 100 && n < 1000 ? "hundreds" : "?", ename(errno));
  polled("full", s[0]);
  polled("to be read", s[1]);
  close(s[0]);
  polled("closed", s[1]);
  for (; read(s[1], b, 5) == 1; n--) {}
  say("left %d\n", n);
  tell("end", read(s[1], b, 5));
  tell("no reader", write(s[1], "a", 1));
  s[0] = -1;
  fresh();
  CHECK(!shutdown(s[1], SHUT_RD));
  tell("not received", write(s[0], "a", 1));
  tell("the other way", write(s[1], "a", 1));
  tell("comes", read(s[0], b, 5));
  fresh();
  CHECK(!shutdown(s[0], SHUT_WR));
  tell("end", read(s[1], b, 5));
  tell("not sent", write(s[0], "a", 1));
  // Several writers and readers that wait: every message arrives once, whole.
  close(s[0]);
  close(s[1]);
  CHECK(!socketpair(AF_UNIX, SOCK_SEQPACKET, 0, s));
  for (int w = 0; w < 3; w++)
    if (!fork()) {
      close(s[1]);
      for (int i = 0; i < 500; i++) {
        int m[500];
        for (int k = 0; k < 500; k++) m[k] = w * 1000 + i;
        CHECK(write(s[0], m, sizeof m) == sizeof m);
      }
      _exit(0);
    }
  close(s[0]);
  int ends[2];
  CHECK(!pipe(ends));
  for (int r = 0; r < 2; r++)
    if (!fork()) {
      int m[600];
      long sum = 0;
      ssize_t got;
      while ((got = read(s[1], m, sizeof m)) > 0) {
        CHECK(got == 2000 && m[0] == m[499]);
        sum += m[0] + 1;
      }
      CHECK(write(ends[1], &sum, sizeof sum) == sizeof sum);
      _exit(0);
    }
  close(s[1]);
  long sums[2];
  CHECK(read(ends[0], &sums[0], 8) == 8 && read(ends[0], &sums[1], 8) == 8);
  say("sum %ld\n", sums[0] + sums[1]);
  int st;
  while (wait(&st) > 0) CHECK(!st);
  return 0;
}
