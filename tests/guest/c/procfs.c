// What /proc says about this process and the machine: the parts programs read, checked against what is known.
#include "t.h"
static char buf[65536];
static long slurp(const char *p) {
  int f = open(p, O_RDONLY);
  if (f < 0) { say("%s: %s\n", p, ename(errno)); return -1; }
  long n = 0, r;
  while ((r = read(f, buf + n, sizeof buf - 1 - n)) > 0) n += r;
  buf[n] = 0;
  close(f);
  return n;
}
static long field(const char *name) { // a "Name:   123 kB" line
  char *p = buf;
  size_t l = strlen(name);
  while (p && *p) { if (!strncmp(p, name, l) && p[l] == ':') return strtol(p + l + 1, 0, 10); p = strchr(p, '\n'); if (p) p++; }
  return -1;
}
static int has(const char *s) { return strstr(buf, s) != 0; }
int main(int argc, char **argv) {
  (void)argc;
  slurp("/proc/self/status");
  char want[64];
  snprintf(want, 64, "Name:\t%.15s\n", strrchr(argv[0], '/') ? strrchr(argv[0], '/') + 1 : argv[0]);
  say("status: name %d pid %d ppid %d threads %ld uid %d\n", has(want), field("Pid") == getpid(), field("PPid") == getppid(), field("Threads"), has("Uid:\t"));
  say("status: state %d, VmSize %d, VmRSS %d, VmPeak %d, SigCgt %d\n", has("State:\tR"), field("VmSize") > 0, field("VmRSS") > 0, field("VmPeak") > 0, has("SigCgt:\t"));
  long rss0 = field("VmRSS"), size0 = field("VmSize");
  char *p = anon(4 * MB);
  for (int i = 0; i < 1024; i++) p[i * PG] = 1;
  slurp("/proc/self/status");
  long d = field("VmRSS") - rss0;
  say("4 MiB touched: size +%ld kB, resident about +4096 %d\n", field("VmSize") - size0, d >= 4096 - 256 && d <= 4096 + 512);
  slurp("/proc/self/statm");
  long sz, rs, sh;
  CHECK(sscanf(buf, "%ld %ld %ld", &sz, &rs, &sh) == 3);
  say("statm: %d\n", sz > 1024 && rs >= 1024 && sh <= rs);
  munmap(p, 4 * MB);
  slurp("/proc/self/status");
  d = field("VmRSS") - rss0;
  say("given back: %d\n", d < 512);
  slurp("/proc/self/stat");
  int pid, pp;
  char comm[32], s;
  CHECK(sscanf(buf, "%d %31s %c %d", &pid, comm, &s, &pp) == 4);
  int n = 1;
  for (char *q = strrchr(buf, ')'); q && *q; q++) n += *q == ' ';
  say("stat: pid %d state %c ppid %d, %d fields\n", pid == getpid(), s, pp == getppid(), n + 1);
  long l = slurp("/proc/self/cmdline");
  say("cmdline: %d\n", l == (long)strlen(argv[0]) + 1 && !strcmp(buf, argv[0]));
  char link[256];
  ssize_t k = readlink("/proc/self/exe", link, 255);
  CHECK(k > 0);
  link[k] = 0;
  struct stat a, b;
  CHECK(!stat(link, &a) && !stat("/proc/self/exe", &b));
  say("exe: same file %d\n", a.st_ino == b.st_ino && a.st_dev == b.st_dev);
  CHECK(!chdir("/tmp") && (k = readlink("/proc/self/cwd", link, 255)) > 0);
  say("cwd: %.*s\n", (int)k, link);
  int f = open("/dev/null", O_RDONLY);
  char path[64];
  snprintf(path, 64, "/proc/self/fd/%d", f);
  k = readlink(path, link, 255);
  say("fd: %.*s\n", (int)k, link);
  int pf[2];
  CHECK(!pipe(pf));
  snprintf(path, 64, "/proc/self/fd/%d", pf[0]);
  k = readlink(path, link, 255);
  say("fd of a pipe: %d\n", k > 6 && !strncmp(link, "pipe:[", 6));
  snprintf(path, 64, "/proc/self/fd/%d", 777);
  R(readlink(path, link, 255));
  // A file opened again through /proc
  int m = memfd_create("again", 0);
  CHECK(write(m, "content", 7) == 7);
  snprintf(path, 64, "/proc/self/fd/%d", m);
  int m2 = open(path, O_RDWR);
  char c8[8] = "";
  say("opened again: %zd %s\n", read(m2, c8, 7), c8);
  // maps and smaps
  char *q = mmap(BASE, 8 * PG, 1, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  CHECK(q == BASE);
  slurp("/proc/self/maps");
  say("maps: range %d, stack %d, heap-or-not, vdso-or-not, exe %d\n", has("100000000000-100000008000 r--p 00000000"), has("[stack]"), has("procfs"));
  mprotect(q, 8 * PG, 3);
  for (int i = 0; i < 3; i++) q[i * PG] = 1;
  slurp("/proc/self/smaps");
  char *e = strstr(buf, "100000000000-");
  CHECK(e);
  long ssize = -1, srss = -1, sdirty = -1;
  for (char *x = e; x && *x; x = strchr(x, '\n') ? strchr(x, '\n') + 1 : 0) {
    if (ssize < 0 && sscanf(x, "Size: %ld", &ssize) == 1) continue;
    if (srss < 0 && sscanf(x, "Rss: %ld", &srss) == 1) continue;
    if (sscanf(x, "Private_Dirty: %ld", &sdirty) == 1) break;
  }
  say("smaps: size %ld rss %ld dirty %ld\n", ssize, srss, sdirty);
  slurp("/proc/meminfo");
  long total = field("MemTotal"), fr = field("MemFree"), av = field("MemAvailable");
  say("meminfo: %d\n", total > 0 && fr > 0 && fr < total && av > 0 && field("Cached") >= 0);
  slurp("/proc/vmstat");
  say("vmstat: %d\n", has("pgfault ") && has("nr_free_pages "));
  slurp("/proc/cpuinfo");
  say("cpuinfo: %d\n", has("processor\t: 0") && has("flags\t\t:"));
  slurp("/proc/stat");
  say("stat: %d\n", !strncmp(buf, "cpu ", 4) && has("btime "));
  slurp("/proc/loadavg");
  double la;
  say("loadavg: %d\n", sscanf(buf, "%lf", &la) == 1);
  slurp("/proc/uptime");
  double up;
  say("uptime: %d\n", sscanf(buf, "%lf", &up) == 1 && up > 0);
  slurp("/proc/mounts");
  say("mounts: root %d, proc %d\n", has(" / "), has(" /proc proc "));
  slurp("/sys/devices/system/cpu/online");
  say("online: %d\n", buf[0] == '0');
  pid_t c = fork();
  if (!c) { for (;;) pause(); }
  snprintf(path, 64, "/proc/%d/cmdline", c);
  l = slurp(path);
  say("the child's cmdline: %d\n", l == (long)strlen(argv[0]) + 1);
  kill(c, SIGKILL);
  siginfo_t i;
  waitid(P_PID, c, &i, WEXITED | WNOWAIT);
  snprintf(path, 64, "/proc/%d/stat", c);
  slurp(path);
  say("a zombie: %d\n", strstr(buf, ") Z ") != 0);
  waitpid(c, 0, 0);
  R(access(path, F_OK));
  R(open("/proc/none", O_RDONLY));
  R(mkdir("/proc/x", 0777));
  return 0;
}
