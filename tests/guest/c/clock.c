// Time: clocks that agree, sleeps that are long enough, timers, limits of what is accepted.
#include "t.h"
#include <sys/sysinfo.h>
#include <sys/times.h>
#include <sys/utsname.h>
static volatile int ticks;
static void tick(int s) { (void)s; ticks++; }
int main(void) {
  uint64_t last = mono_ns();
  for (int i = 0; i < 20000; i++) { uint64_t t = mono_ns(); CHECK(t >= last); last = t; }
  struct timespec a, b;
  struct timeval tv;
  clock_gettime(CLOCK_REALTIME, &a);
  gettimeofday(&tv, 0);
  CHECK(tv.tv_sec - a.tv_sec <= 1 && a.tv_sec > 1700000000);
  CHECK(time(0) - a.tv_sec <= 1);
  int ids[] = {0, 1, 2, 3, 4, 5, 6, 7};
  for (int i = 0; i < 8; i++) { CHECK(!clock_gettime(ids[i], &a)); clock_getres(ids[i], &b); }
  R(clock_gettime(99, &a));
  R(syscall(SYS_clock_gettime, 0, 8L));
  R(syscall(SYS_nanosleep, 8L, 0));
  R(nanosleep(&(struct timespec){0, 1000000000}, 0));
  R(nanosleep(&(struct timespec){-1, 0}, 0));
  R(nanosleep(&(struct timespec){0, 0}, 0));
  for (int ms = 1; ms <= 32; ms *= 2) {
    uint64_t t = mono_ns();
    CHECK(!nanosleep(&(struct timespec){0, ms * 1000000}, 0));
    CHECK(mono_ns() - t >= ms * 1000000ull && mono_ns() - t < 2000000000ull);
  }
  clock_gettime(CLOCK_MONOTONIC, &a);
  a.tv_nsec += 20000000;
  if (a.tv_nsec >= 1000000000) { a.tv_nsec -= 1000000000; a.tv_sec++; }
  R(clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &a, 0));
  clock_gettime(CLOCK_MONOTONIC, &b);
  CHECK(b.tv_sec > a.tv_sec || (b.tv_sec == a.tv_sec && b.tv_nsec >= a.tv_nsec));
  R(clock_nanosleep(99, 0, &a, 0));
  signal(SIGALRM, tick);
  struct itimerval it = {{0, 5000}, {0, 5000}}, old;
  CHECK(!setitimer(ITIMER_REAL, &it, 0));
  while (ticks < 10) {}
  CHECK(!getitimer(ITIMER_REAL, &old) && old.it_interval.tv_usec == 5000);
  it = (struct itimerval){0};
  CHECK(!setitimer(ITIMER_REAL, &it, &old));
  int seen = ticks;
  usleep(20000);
  CHECK(ticks == seen);
  say("ten ticks\n");
  R(alarm(100));
  R(alarm(0) > 98);
  R(setitimer(99, &it, 0));
  it.it_value.tv_usec = 2000000;
  R(setitimer(ITIMER_REAL, &it, 0));
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &a);
  for (volatile int i = 0; i < 5000000; i++) {}
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &b);
  CHECK(b.tv_sec > a.tv_sec || b.tv_nsec > a.tv_nsec);
  struct rusage ru;
  CHECK(!getrusage(RUSAGE_SELF, &ru));
  R(getrusage(99, &ru));
  struct tms t;
  CHECK(times(&t) != (clock_t)-1);
  struct sysinfo si;
  CHECK(!sysinfo(&si) && si.totalram > 0 && si.procs > 0 && si.mem_unit > 0);
  struct utsname u;
  CHECK(!uname(&u));
  say("%s %s, release is 6 or newer: %d\n", u.sysname, u.machine, atoi(u.release) >= 6);
  return 0;
}
