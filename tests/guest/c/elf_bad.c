// Malformed programs. Each is refused before the old image is lost, or runs as far as it can. Linux finds some faults
// only after the point of no return and kills: both count as "refused", and Pinfold must have given an errno.
#include "t.h"
#include <elf.h>
#include <stddef.h>
#include <sys/utsname.h>
#define AT 0x10000000UL
#define FILE_SIZE 8192
static struct image {
  Elf64_Ehdr e;
  Elf64_Phdr p[6];
  char interp[64];
  unsigned char code[64];
} good, im;
static unsigned char file[FILE_SIZE];
static int file_len, pinfold;
#define CODE offsetof(struct image, code)
static void make_good(void) {
  static const unsigned char code[] = {0x48, 0xff, 0x04, 0x25, 0, 0x20, 0, 0x10, // incq 0x10002000: the bss
                                       0xb8, 231, 0, 0, 0, 0xbf, 7, 0, 0, 0, 0x0f, 0x05}; // exit_group(7)
  memcpy(good.e.e_ident, "\177ELF\2\1\1", 7);
  good.e.e_type = ET_EXEC; good.e.e_machine = EM_X86_64; good.e.e_version = 1; good.e.e_entry = AT + CODE;
  good.e.e_phoff = sizeof(Elf64_Ehdr); good.e.e_ehsize = sizeof(Elf64_Ehdr); good.e.e_phentsize = sizeof(Elf64_Phdr); good.e.e_phnum = 2;
  good.p[0] = (Elf64_Phdr){PT_LOAD, PF_R | PF_X, 0, AT, AT, sizeof good, sizeof good, PG};
  good.p[1] = (Elf64_Phdr){PT_LOAD, PF_R | PF_W, PG, AT + PG, AT + PG, 100, 3 * PG, PG};
  memcpy(good.code, code, sizeof code);
}
static void fresh(void) { im = good; file_len = FILE_SIZE; }
static void attempt(const char *what) {
  memset(file, 0, sizeof file);
  memcpy(file, &im, sizeof im);
  int fd = open("/tmp/elf_bad.x", O_WRONLY | O_CREAT | O_TRUNC, 0755);
  CHECK(fd >= 0 && write(fd, file, file_len) == file_len && !close(fd));
  pid_t c = fork();
  CHECK(c >= 0);
  if (!c) {
    struct rlimit none = {0, 0};
    setrlimit(RLIMIT_CORE, &none);
    char *argv[] = {"x", 0}, *env[] = {0};
    execve("/tmp/elf_bad.x", argv, env);
    _exit(100 + errno % 100);
  }
  int st;
  CHECK(waitpid(c, &st, 0) == c);
  if (!what) return;
  if (WIFEXITED(st) && WEXITSTATUS(st) == 7) say("%s: runs\n", what);
  else if (WIFEXITED(st) && WEXITSTATUS(st) >= 100) {
    int e = WEXITSTATUS(st) - 100;
    say("%s: %s\n", what, e == ENOEXEC || e == ENOMEM || e == EINVAL || e == EPERM ? "refused" : ename(e));
  } else if (WIFSIGNALED(st) && (WTERMSIG(st) == SIGSEGV || WTERMSIG(st) == SIGKILL)) {
    if (pinfold) say("%s: KILLED by %d instead of refused\n", what, WTERMSIG(st));
    else say("%s: refused\n", what);
  } else say("%s: status %x\n", what, st);
}
static void runs_into(const char *what) { // good as a file, but the program dies
  int was = pinfold;
  pinfold = 0;
  attempt(what);
  pinfold = was;
}
#define CASE(...) do { fresh(); __VA_ARGS__; attempt(#__VA_ARGS__); } while (0)
static void interp(const char *path, int len) {
  im.e.e_phnum = 3;
  im.p[2] = (Elf64_Phdr){PT_INTERP, PF_R, offsetof(struct image, interp), 0, 0, len, len, 1};
  strcpy(im.interp, path);
}
int main(void) {
  struct utsname u;
  uname(&u);
  pinfold = strstr(u.version, "Pinfold") != 0;
  make_good();
  CASE();
  say("-- header\n");
  CASE(im.e.e_ident[0] = 0);
  CASE(im.e.e_ident[3] = 'G');
  CASE(im.e.e_machine = EM_ARM);
  CASE(im.e.e_type = ET_REL);
  CASE(im.e.e_type = ET_CORE);
  CASE(im.e.e_type = 0xff00);
  CASE(im.e.e_version = 77);
  CASE(im.e.e_phentsize = 55);
  CASE(im.e.e_phentsize = 0);
  CASE(im.e.e_phnum = 0);
  CASE(im.e.e_phnum = 0xffff);
  CASE(im.e.e_phnum = 1171);
  CASE(im.e.e_phoff = FILE_SIZE);
  CASE(im.e.e_phoff = FILE_SIZE - 60);
  CASE(im.e.e_phoff = -1UL);
  CASE(im.e.e_phoff = -56UL);
  CASE(im.e.e_phoff = 1UL << 63);
  CASE(im.e.e_shoff = -1UL; im.e.e_shnum = 0xffff);
  CASE(file_len = 0);
  CASE(file_len = 1);
  CASE(file_len = 4);
  CASE(file_len = 63);
  CASE(file_len = 64);
  CASE(file_len = 150);
  say("-- segments\n");
  CASE(im.p[1].p_filesz = 4 * PG);
  CASE(im.p[0].p_memsz = 1UL << 46);
  CASE(im.p[1].p_memsz = 1UL << 47);
  CASE(im.p[1].p_memsz = 1UL << 63);
  CASE(im.p[1].p_memsz = -1UL);
  CASE(im.p[1].p_memsz = -PG);
  CASE(im.p[1].p_filesz = im.p[1].p_memsz = -1UL);
  CASE(im.p[1].p_filesz = im.p[1].p_memsz = 1UL << 62);
  CASE(im.p[1].p_vaddr = 1UL << 47);
  CASE(im.p[1].p_vaddr = (1UL << 47) - PG);
  CASE(im.p[1].p_vaddr = 0xffffffff80000000UL);
  CASE(im.p[1].p_vaddr = 0xffff800000000000UL);
  CASE(im.p[1].p_vaddr = -PG);
  CASE(im.p[1].p_vaddr = AT + PG + 1);
  CASE(im.p[1].p_offset = PG + 1);
  CASE(im.p[1].p_offset = -PG);
  CASE(im.p[1].p_offset = (1UL << 63) - PG);
  CASE(im.p[1].p_offset = 1UL << 63);
  CASE(im.p[0].p_type = PT_NULL; im.p[1].p_type = PT_NULL);
  CASE(im.p[1].p_type = 0x12345678; im.p[0].p_memsz = 4 * PG);
  CASE(im.p[1].p_filesz = 0);
  CASE(im.p[1].p_filesz = 0; im.p[1].p_memsz = 0; im.e.e_phnum = 3; im.p[2] = good.p[1]);
  CASE(im.p[1].p_align = 3);
  CASE(im.p[1].p_align = 1UL << 63);
  CASE(im.p[1].p_align = 0);
  CASE(im.p[1].p_paddr = -1UL);
  CASE(im.e.e_phnum = 3; im.p[2] = im.p[1]; im.p[2].p_filesz = 50); // twice the same place
  CASE(im.p[1].p_vaddr = AT; im.p[1].p_offset = 0; im.p[1].p_flags = 7; im.p[1].p_filesz = PG); // over the first
  CASE(im.e.e_phnum = 3; im.p[2] = im.p[1]; im.p[2].p_vaddr = AT - 16 * PG); // downwards
  CASE(im.e.e_phnum = 3; im.p[2] = (Elf64_Phdr){PT_GNU_STACK, 0xffffffff, -1UL, -1UL, -1UL, -1UL, -1UL, -1UL});
  CASE(im.e.e_phnum = 3; im.p[2] = (Elf64_Phdr){PT_TLS, 7, -1UL, -1UL, -1UL, -1UL, -1UL, -1UL});
  CASE(im.e.e_phnum = 3; im.p[2] = (Elf64_Phdr){PT_PHDR, 7, -1UL, -1UL, -1UL, -1UL, -1UL, -1UL});
  say("-- what only running shows\n");
#define DIES(...) do { fresh(); __VA_ARGS__; runs_into(#__VA_ARGS__); } while (0)
  DIES(im.e.e_entry = 0);
  DIES(im.e.e_entry = 1UL << 40);
  DIES(im.e.e_entry = AT + PG);
  DIES(im.p[0].p_flags = PF_W);
  DIES(im.p[0].p_flags = 0);
  DIES(im.p[1].p_flags = PF_R);
  DIES(im.p[1].p_memsz = 100);
  DIES(im.p[0].p_filesz = 20);
  DIES(file_len = 300);
  say("-- interpreters\n");
  CASE(interp("/nowhere/ld.so", 15));
  CASE(interp("/tmp", 5));
  CASE(interp("/dev/null", 10));
  CASE(interp("/proc/self/maps", 16));
  CASE(interp("/tmp/elf_bad.x", 14)); // no NUL
  CASE(interp("", 1));
  CASE(interp("", 0));
  CASE(interp("x", 5000));
  CASE(interp("/nowhere", 9); im.p[2].p_offset = -1UL);
  CASE(interp("/nowhere", 9); im.p[2].p_offset = FILE_SIZE - 2);
  CASE(interp("/nowhere", 9); im.p[2].p_filesz = -1UL);
  int fd = open("/tmp/elf_bad.i", O_WRONLY | O_CREAT | O_TRUNC, 0755);
  CHECK(fd >= 0);
  CASE(interp("/tmp/elf_bad.i", 15)); // busy: open for writing
  CHECK(!ftruncate(fd, 10) && !close(fd));
  CASE(interp("/tmp/elf_bad.i", 15)); // short
  CHECK(!truncate("/tmp/elf_bad.i", 5000));
  CASE(interp("/tmp/elf_bad.i", 15)); // zeros
  chmod("/tmp/elf_bad.i", 0644);
  CASE(interp("/tmp/elf_bad.i", 15)); // not executable
  say("-- position-independent\n");
#define PIE(...) CASE(im.e.e_type = ET_DYN; __VA_ARGS__)
  PIE(im.p[0].p_type = im.p[1].p_type = PT_NULL);
  PIE(im.p[0].p_vaddr = im.p[1].p_vaddr = -PG);
  PIE(im.p[1].p_memsz = 1UL << 46);
  PIE(im.p[1].p_vaddr = 1UL << 46; im.p[1].p_memsz = 1UL << 46);
  unlink("/tmp/elf_bad.i");
  say("-- a program is not written while it runs, nor run while it is written\n");
  R(open("/proc/self/exe", O_WRONLY));
  R(open("/proc/self/exe", O_RDWR | O_TRUNC));
  R(open("/proc/self/exe", O_RDONLY | O_TRUNC));
  R(truncate("/proc/self/exe", 100));
  CASE();
  fd = open("/tmp/elf_bad.x", O_RDWR);
  CHECK(fd >= 0);
  R(execl("/tmp/elf_bad.x", "x", NULL));
  int second = dup(fd);
  close(fd);
  R(execl("/tmp/elf_bad.x", "x", NULL));
  close(second);
  fd = open("/tmp/elf_bad.x", O_RDONLY);
  if (!fork()) { fexecve(fd, (char *[]){"x", 0}, (char *[]){0}); _exit(1); }
  int st;
  wait(&st);
  say("open for reading: %d\n", WEXITSTATUS(st));
  close(fd);
  CHECK((fd = open("/tmp/elf_bad.x", O_WRONLY | O_TRUNC)) >= 0 && !close(fd)); // it has ended
  // Random damage: whatever happens, this process goes on.
  for (int i = 0; i < 200; i++) {
    fresh();
    int n = 1 + rng() % 4;
    if (rng() % 4 == 0) interp("/tmp/elf_bad.x", 15);
    while (n--) {
      size_t at = rng() % (sizeof im.e + 2 * sizeof im.p[0]);
      static const uint64_t edge[] = {0, 1, -1, 1ull << 63, 1ull << 47, 0x7ffffffff000, 0xfff, 0x1000};
      if (rng() % 2) ((unsigned char *)&im)[at] ^= 1 << rng() % 8;
      else memcpy((char *)&im + at / 8 * 8, &edge[rng() % 8], 8);
    }
    // Endless loops are a program's right: none starts, the code is too short to hold one.
    attempt(0);
  }
  CASE();
  unlink("/tmp/elf_bad.x");
  return 0;
}
