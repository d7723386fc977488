// What mappings do: splitting, merging, moving, growing, forgetting, and what is seen through them.
#include "t.h"
static void fill(char *p, int pages, int seed) {
  for (int i = 0; i < pages; i++) memset(p + i * PG, seed + i, PG);
}
static int holds(char *p, int pages, int seed) {
  for (int i = 0; i < pages; i++)
    for (unsigned k = 0; k < PG; k += 61)
      if ((unsigned char)p[i * PG + k] != (unsigned char)(seed + i)) return 0;
  return 1;
}
static int zero(char *p, int pages) {
  for (size_t k = 0; k < pages * PG; k++) if (p[k]) return 0;
  return 1;
}
static void split_merge(void) {
  say("-- split and merge\n");
  anon_at(BASE, 16 * PG, 3);
  mprotect(BASE + 4 * PG, 4 * PG, 1);
  maps_in("protected middle", BASE, BASE + 16 * PG);
  mprotect(BASE + 4 * PG, 4 * PG, 3);
  maps_in("whole again", BASE, BASE + 16 * PG);
  for (int i = 0; i < 16; i += 2) mprotect(BASE + i * PG, PG, 0);
  maps_in("combed", BASE, BASE + 16 * PG);
  mprotect(BASE, 16 * PG, 3);
  maps_in("combed back", BASE, BASE + 16 * PG);
  for (int i = 0; i < 16; i += 2) mprotect(BASE + i * PG, PG, 0);
  for (int i = 0; i < 16; i += 2) { say("%s, ", probe(BASE + i * PG, 'r')); say("%s; ", probe(BASE + i * PG + PG, 'w')); }
  say("\n");
  munmap(BASE, 16 * PG);
  anon_at(BASE, 2 * PG, 3);
  anon_at(BASE + 4 * PG, 2 * PG, 3);
  anon_at(BASE + 2 * PG, 2 * PG, 3); // closes the gap
  maps_in("closed gap", BASE, BASE + 16 * PG);
  munmap(BASE, 6 * PG);
  fill(anon_at(BASE, 8 * PG, 3), 8, 1);
  anon_at(BASE + 2 * PG, 3 * PG, 3); // MAP_FIXED over data
  CHECK(holds(BASE, 2, 1) && zero(BASE + 2 * PG, 3) && holds(BASE + 5 * PG, 3, 6));
  munmap(BASE + 1 * PG, PG);
  say("hole: %s\n", probe(BASE + PG, 'r'));
  CHECK(holds(BASE, 1, 1) && holds(BASE + 5 * PG, 3, 6));
  munmap(BASE, 8 * PG);
}
static void protect(void) {
  say("-- protection\n");
  fill(anon_at(BASE, 4 * PG, 3), 4, 3);
  mprotect(BASE, PG, 1);
  mprotect(BASE + PG, PG, 0);
  mprotect(BASE + 2 * PG, PG, 5);
  say("r--: read %s, ", probe(BASE, 'r')); say("write %s, ", probe(BASE, 'w')); say("exec %s\n", probe(BASE, 'x'));
  say("---: read %s, ", probe(BASE + PG, 'r')); say("write %s\n", probe(BASE + PG, 'W'));
  say("r-x: write %s\n", probe(BASE + 2 * PG, 'w'));
  mprotect(BASE, 4 * PG, 3);
  CHECK(holds(BASE, 4, 3));
  BASE[0] = (char)0xc3; // ret
  say("rw-: exec %s\n", probe(BASE, 'x'));
  mprotect(BASE, PG, 7);
  say("rwx: exec %s\n", probe(BASE, 'x'));
  mprotect(BASE + PG, PG, PROT_WRITE);
  say("-w-: write %s\n", probe(BASE + PG, 'W'));
  mprotect(BASE, 4 * PG, 1);
  CHECK(BASE[PG] == 1);
  munmap(BASE, 4 * PG);
  say("gone: %s, ", probe(BASE, 'r')); say("%s\n", probe(BASE + 3 * PG, 'W'));
  say("non-canonical: %s\n", probe((char *)0x800000000000000, 'r'));
  say("kernel half: %s\n", probe((char *)0xffff888000000000, 'r'));
  say("end of user half: %s\n", probe((char *)0x7ffffffff000, 'r'));
}
static void remap(void) {
  say("-- mremap\n");
  char *a = anon_at(BASE, 600 * PG, 3), *b = BASE + 512 * 1024 * PG + 3 * PG;
  fill(a, 600, 9);
  CHECK(mremap(a, 600 * PG, 600 * PG, MREMAP_MAYMOVE | MREMAP_FIXED, b) == b); // over table borders, unaligned
  CHECK(holds(b, 600, 9));
  say("left behind: %s, ", probe(a, 'r')); say("%s\n", probe(a + 599 * PG, 'r'));
  CHECK(mremap(b, 600 * PG, 600 * PG, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, 0) != MAP_FAILED);
  say("kept but empty: %s %d\n", probe(b, 'r'), b[5]);
  maps_cover("what DONTUNMAP keeps", b, b + 700 * PG);
  munmap(b, 600 * PG);
  fill(anon_at(BASE, 4 * PG, 3), 4, 9);
  anon_at(BASE + 4 * PG, PG, 1); // blocks growth
  a = mremap(BASE, 4 * PG, 9 * PG, MREMAP_MAYMOVE);
  CHECK(a != MAP_FAILED && a != BASE && holds(a, 4, 9) && zero(a + 4 * PG, 5));
  CHECK(mremap(a, 9 * PG, 2 * PG, 0) == a);
  say("cut off: %s\n", probe(a + 2 * PG, 'r'));
  CHECK(mremap(a, 2 * PG, 4 * PG, MREMAP_MAYMOVE) != MAP_FAILED);
  munmap(BASE, 16 * PG);
  // FIXED replaces what was there and shrinks on the way.
  fill(anon_at(BASE, 8 * PG, 3), 8, 1);
  fill(anon_at(BASE + 32 * PG, 8 * PG, 3), 8, 101);
  CHECK(mremap(BASE, 8 * PG, 3 * PG, MREMAP_MAYMOVE | MREMAP_FIXED, BASE + 34 * PG) == BASE + 34 * PG);
  CHECK(holds(BASE + 32 * PG, 2, 101) && holds(BASE + 34 * PG, 3, 1) && holds(BASE + 37 * PG, 3, 106));
  maps_cover("after a move", BASE, BASE + 64 * PG);
  munmap(BASE, 64 * PG);
  // Aligned 2 MiB regions: the tables themselves can move.
  a = anon_at((char *)0x110000000000, 8 * MB, 3);
  fill(a, 2048, 5);
  b = (char *)0x120000000000;
  CHECK(mremap(a, 8 * MB, 8 * MB, MREMAP_MAYMOVE | MREMAP_FIXED, b) == b && holds(b, 2048, 5));
  say("aligned: %s\n", probe(a, 'r'));
  // A child shares the frames; the move must not disturb its copy.
  pid_t c = fork();
  if (!c) _exit(holds(b, 2048, 5) ? 0 : 1);
  CHECK(mremap(b, 8 * MB, 8 * MB, MREMAP_MAYMOVE | MREMAP_FIXED, a) == a);
  fill(a, 2048, 77);
  int st;
  waitpid(c, &st, 0);
  CHECK(st == 0 && holds(a, 2048, 77));
  munmap(a, 8 * MB);
}
static void advise(void) {
  say("-- madvise\n");
  fill(anon_at(BASE, 8 * PG, 3), 8, 1);
  madvise(BASE + PG, 2 * PG, MADV_DONTNEED);
  CHECK(holds(BASE, 1, 1) && zero(BASE + PG, 2) && holds(BASE + 3 * PG, 5, 4));
  int fd = memfd_create("m", 0);
  CHECK(!ftruncate(fd, 4 * PG));
  char *s = mmap(0, 4 * PG, 3, MAP_SHARED, fd, 0), *p = mmap(0, 4 * PG, 3, MAP_PRIVATE, fd, 0);
  fill(s, 4, 40);
  CHECK(holds(p, 4, 40));
  fill(p, 4, 50);
  madvise(s, 4 * PG, MADV_DONTNEED); // shared content stays in the object
  CHECK(holds(s, 4, 40));
  madvise(p, 2 * PG, MADV_DONTNEED); // a private copy is forgotten
  CHECK(holds(p, 2, 40) && holds(p + 2 * PG, 2, 52));
  munmap(s, 4 * PG); munmap(p, 4 * PG); close(fd);
  // fork advice
  fill(BASE, 8, 60);
  CHECK(!madvise(BASE, 2 * PG, MADV_DONTFORK) && !madvise(BASE + 2 * PG, 2 * PG, MADV_WIPEONFORK));
  pid_t c = fork();
  if (!c) {
    probe_install();
    say("child: DONTFORK %s, ", probe(BASE, 'r'));
    CHECK(zero(BASE + 2 * PG, 2) && holds(BASE + 4 * PG, 4, 64));
    BASE[2 * PG] = 9;
    pid_t g = fork(); // wiping is inherited
    if (!g) _exit(BASE[2 * PG] == 0 ? 0 : 1);
    int st; waitpid(g, &st, 0);
    say("WIPEONFORK %d\n", st);
    _exit(st != 0);
  }
  int st;
  waitpid(c, &st, 0);
  CHECK(st == 0 && holds(BASE, 8, 60));
  CHECK(!madvise(BASE, 2 * PG, MADV_DOFORK) && !madvise(BASE + 2 * PG, 2 * PG, MADV_KEEPONFORK));
  c = fork();
  if (!c) _exit(holds(BASE, 8, 60) ? 0 : 1);
  waitpid(c, &st, 0);
  CHECK(st == 0);
  munmap(BASE, 8 * PG);
}
static void grow(void) {
  say("-- growing down\n");
  char *p = mmap(BASE + 1024 * PG, PG, 3, MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_FIXED, -1, 0);
  CHECK(p == BASE + 1024 * PG);
  p[0] = 1;
  for (int i = 1; i <= 20; i++) p[-i * (long)PG] = i;
  maps_cover("a grown range", BASE, BASE + 2048 * PG);
  say("far below: %s\n", probe(p - 300 * PG, 'W'));
  for (int i = 1; i <= 20; i++) CHECK(p[-i * (long)PG] == i);
  munmap(BASE, 2048 * PG);
  // Something below, nearer than the gap of 256 pages: no growth towards it, unless it may not be accessed.
  p = mmap(BASE + 1024 * PG, PG, 3, MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_FIXED, -1, 0);
  anon_at(p - 300 * PG, PG, 3);
  say("above the gap: %s\n", probe(p - 40 * PG, 'W'));
  say("into the gap: %s\n", probe(p - 60 * PG, 'W'));
  mprotect(p - 300 * PG, PG, 0);
  say("towards PROT_NONE: %s\n", probe(p - 60 * PG, 'W'));
  munmap(BASE, 2048 * PG);
  p = mmap(BASE + 1024 * PG, PG, 3, MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_FIXED, -1, 0);
  // A system call's buffer grows it too.
  int pf[2];
  CHECK(!pipe(pf) && write(pf[1], "xyz", 3) == 3);
  R(read(pf[0], (char *)(0x100000000000 + 1022 * PG), 3));
  munmap(BASE, 2048 * PG);
}
static void hints(void) {
  say("-- hints\n");
  char *h = BASE + 100 * PG;
  CHECK(mmap(h, PG, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == h);     // a free hint is taken
  CHECK(mmap(h, PG, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != h);     // a used one is not
  char *u = mmap(h + 5 * PG + 123, PG, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  say("odd hint: %s\n", u == h + 5 * PG ? "rounded down" : u == h + 6 * PG ? "rounded up" : "elsewhere");
  // Top-down: the next one lies right below the last.
  char *a = anon(64 * PG), *b = anon(64 * PG);
  say("next below: %d\n", b + 64 * PG == a);
  // A hole is found again.
  munmap(a, 64 * PG);
  say("hole reused: %d\n", anon(64 * PG) == a);
  char *lo = mmap(0, PG, 3, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
  say("32bit: %d\n", lo != MAP_FAILED && (unsigned long)lo < (1UL << 31));
}
static void limits(void) {
  say("-- limits\n");
  struct rlimit o, l;
  getrlimit(RLIMIT_AS, &o);
  l = o; l.rlim_cur = 64 * MB;
  CHECK(!setrlimit(RLIMIT_AS, &l));
  A(mmap(0, 128 * MB, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  A(mmap(0, 1 * MB, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  setrlimit(RLIMIT_AS, &o);
  // 65530 VMAs at most; alternate protection makes one each.
  char *p = mmap(0, 140000 * PG, 3, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  CHECK(p != MAP_FAILED);
  int n = 0;
  errno = 0;
  while (n < 70000 && !mprotect(p + 2 * n * PG, PG, 1)) n++;
  say("VMA limit: %s, near 32k splits: %d\n", ename(errno), n > 32000 && n < 32800);
  CHECK(!munmap(p, 140000 * PG));
}
int main(void) {
  probe_install();
  split_merge();
  protect();
  remap();
  advise();
  grow();
  hints();
  limits();
  return 0;
}
