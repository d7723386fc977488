// Ends, or speaks, as it is told: what the launcher must carry through unchanged.
#include "t.h"
#include <sys/ioctl.h>
#include <termios.h>
int main(int argc, char **argv) {
  if (argc < 2) return 99;
  if (!strcmp(argv[1], "signal")) { struct rlimit r = {0, 0}; setrlimit(RLIMIT_CORE, &r); kill(getpid(), atoi(argv[2])); for (;;) pause(); }
  if (!strcmp(argv[1], "forever")) for (;;) {}
  if (!strcmp(argv[1], "cpus")) { say("%ld cpus\n", sysconf(_SC_NPROCESSORS_ONLN)); return 0; }
  if (!strcmp(argv[1], "bytes")) {
    unsigned char b[256], c;
    for (int i = 0; i < 256; i++) b[i] = i;
    CHECK(write(1, b, 256) == 256 && write(1, "a\nb\r\n", 5) == 5);
    struct termios t;
    say("%s\n", isatty(0) || isatty(1) || isatty(2) || !tcgetattr(1, &t) ? "a tty" : "no tty");
    say("%s\n", read(0, &c, 1) == 0 ? "stdin ends" : "stdin gives something");
    CHECK(write(2, "to stderr\n", 10) == 10);
    return 0;
  }
  return atoi(argv[1]);
}
