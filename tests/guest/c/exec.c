// execve: arguments, environment, auxiliary vector, scripts, descriptors, signals, and everything malformed.
// A malformed program gives an errno while the old image still stands.
#include "t.h"
#include <elf.h>
#include <sys/auxv.h>
static int st;
static char *none[] = {0};
static void put(const char *path, const void *b, size_t n, int mode) {
  unlink(path);
  int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0755);
  CHECK(fd >= 0 && write(fd, b, n) == (ssize_t)n);
  close(fd);
  CHECK(!chmod(path, mode));
}
static void run(const char *what, const char *path, char **argv, char **envp) {
  pid_t c = fork();
  CHECK(c >= 0);
  if (!c) { execve(path, argv, envp); say("%s: %s\n", what, ename(errno)); _exit(113); }
  CHECK(waitpid(c, &st, 0) == c);
  if (WIFSIGNALED(st)) say("%s: signal %d\n", what, WTERMSIG(st));
  else if (WEXITSTATUS(st) != 113) say("%s: exit %d\n", what, WEXITSTATUS(st));
}
static void scripts(void) {
  char self[256];
  ssize_t n = readlink("/proc/self/exe", self, 200);
  CHECK(n > 0);
  self[n] = 0;
  char b[600];
  int k = snprintf(b, sizeof b, "#!%s tell\n", self);
  put("/tmp/s2", b, k, 0755);
  run("script", "/tmp/s2", (char *[]){"zero", "x", "y", 0}, none);
  k = snprintf(b, sizeof b, "#!   %s    tell  two words  \n", self);
  put("/tmp/s3", b, k, 0755);
  run("script with an argument", "/tmp/s3", (char *[]){"zero", 0}, none);
  put("/tmp/s4", "#!/tmp/s2\n", 10, 0755);
  run("script of a script", "/tmp/s4", (char *[]){"zero", "z", 0}, none);
  put("/tmp/s5", "#!/tmp/s5\n", 10, 0755);
  run("script of itself", "/tmp/s5", (char *[]){"zero", 0}, none);
  put("/tmp/s6", "#!/no/such/thing\n", 17, 0755);
  run("no interpreter", "/tmp/s6", (char *[]){"zero", 0}, none);
  put("/tmp/s7", "#!\n", 3, 0755);
  run("empty interpreter", "/tmp/s7", (char *[]){"zero", 0}, none);
  put("/tmp/s8", "echo hi\n", 8, 0755);
  run("text", "/tmp/s8", (char *[]){"zero", 0}, none);
  for (int i = 1; i <= 8; i++) { snprintf(b, sizeof b, "/tmp/s%d", i); unlink(b); }
}
static void refused(void) {
  put("/tmp/e0", "", 0, 0755);
  run("empty file", "/tmp/e0", (char *[]){"e", 0}, none);
  put("/tmp/e1", "x", 1, 0644);
  run("not executable", "/tmp/e1", (char *[]){"e", 0}, none);
  run("directory", "/tmp", (char *[]){"e", 0}, none);
  run("missing", "/tmp/none", (char *[]){"e", 0}, none);
  run("through a file", "/tmp/e1/x", (char *[]){"e", 0}, none);
  run("device", "/dev/null", (char *[]){"e", 0}, none);
  R(execve("/proc/self/exe", (char **)8, none));
  R(execve((char *)8, none, none));
  R(execve("/proc/self/exe", (char *[]){(char *)8, 0}, none));
  R(execve("/proc/self/exe", (char *[]){"x", 0}, (char **)0xffff800000000000));
  char *huge = malloc(200 * KB);
  memset(huge, 'a', 200 * KB);
  huge[200 * KB - 1] = 0;
  R(execve("/proc/self/exe", (char *[]){"x", huge, 0}, none)); // one string over 128 KiB
  char **many = malloc(3000 * sizeof *many);
  huge[4000] = 0;
  for (int i = 0; i < 2999; i++) many[i] = huge;
  many[2999] = 0;
  R(execve("/proc/self/exe", many, none)); // 12 MB in all
  unlink("/tmp/e0"); unlink("/tmp/e1");
  int fd = open("/tmp/busy", O_RDWR | O_CREAT | O_TRUNC, 0755);
  CHECK(fd >= 0);
  close(fd);
  unlink("/tmp/busy");
}
// --- ELF matrix --------------------------------------------------------------------------------
// A minimal static program: exit(33). One load segment, headers included.
static struct image { Elf64_Ehdr e; Elf64_Phdr p[2]; unsigned char code[64]; } good;
#define AT 0x600000UL
static void make_good(void) {
  memset(&good, 0, sizeof good);
  static const unsigned char exit33[] = {0xbf, 33, 0, 0, 0, 0xb8, 231, 0, 0, 0, 0x0f, 0x05};
  memcpy(good.code, exit33, sizeof exit33);
  memcpy(good.e.e_ident, ELFMAG, 4);
  good.e.e_ident[EI_CLASS] = ELFCLASS64; good.e.e_ident[EI_DATA] = ELFDATA2LSB; good.e.e_ident[EI_VERSION] = 1;
  good.e.e_type = ET_EXEC; good.e.e_machine = EM_X86_64; good.e.e_version = 1;
  good.e.e_entry = AT + __builtin_offsetof(struct image, code);
  good.e.e_phoff = sizeof(Elf64_Ehdr); good.e.e_ehsize = sizeof(Elf64_Ehdr); good.e.e_phentsize = sizeof(Elf64_Phdr); good.e.e_phnum = 1;
  good.p[0] = (Elf64_Phdr){.p_type = PT_LOAD, .p_flags = PF_R | PF_X, .p_vaddr = AT, .p_paddr = AT, .p_filesz = sizeof good, .p_memsz = sizeof good, .p_align = PG};
}
static void elf(const char *what) {
  put("/tmp/elf", &good, sizeof good, 0755);
  run(what, "/tmp/elf", (char *[]){"elf", 0}, none);
  make_good();
}
static void malformed(void) {
  make_good();
  elf("good");
  good.e.e_ident[0] = 'X'; elf("magic");
  good.e.e_machine = EM_386; elf("machine");
  good.e.e_machine = EM_AARCH64; elf("other machine");
  good.e.e_type = ET_REL; elf("relocatable");
  good.e.e_type = ET_CORE; elf("core");
  good.e.e_type = 99; elf("type 99");
  good.e.e_phentsize = 32; elf("small phentsize");
  good.e.e_phentsize = 64; elf("large phentsize");
  good.e.e_phnum = 0; elf("no program headers");
  good.e.e_phnum = 0xffff; elf("too many program headers");
  good.e.e_phoff = 1UL << 40; elf("program headers beyond the file");
  good.e.e_phoff = -8UL; elf("program headers at the end of everything");
  good.e.e_phoff = sizeof good - 10; elf("program headers cut off");
  put("/tmp/elf", &good, 40, 0755); run("cut in the header", "/tmp/elf", (char *[]){"elf", 0}, none);
  put("/tmp/elf", &good, 100, 0755); run("cut in the program headers", "/tmp/elf", (char *[]){"elf", 0}, none);
  // An interpreter that is not there, not an ELF, not terminated, too long, empty.
  for (int k = 0; k < 6; k++) {
    static const char *names[] = {"interpreter missing", "interpreter no ELF", "interpreter not terminated", "interpreter too long", "interpreter empty", "interpreter one byte"};
    static const char *paths[] = {"/no/ld.so", "/tmp/noelf", "/no/ld.so", "", "", ""};
    make_good();
    good.e.e_phnum = 2;
    good.p[1] = good.p[0];
    good.p[0] = (Elf64_Phdr){.p_type = PT_INTERP, .p_flags = PF_R, .p_offset = __builtin_offsetof(struct image, code) + 20, .p_align = 1};
    strcpy((char *)good.code + 20, paths[k]);
    good.p[0].p_filesz = good.p[0].p_memsz = k == 2 ? strlen(paths[k]) : k == 3 ? 100000 : k == 4 ? 0 : k == 5 ? 1 : strlen(paths[k]) + 1;
    put("/tmp/noelf", "this is not an ELF file, but it is long enough to hold a header of one: 64 bytes and more", 90, 0755);
    elf(names[k]);
  }
  unlink("/tmp/noelf");
  // Random damage: an errno or a dead child, never more than that; the outcomes are not compared.
  for (int i = 0; i < 400; i++) {
    make_good();
    unsigned char *b = (unsigned char *)&good;
    for (int k = 0; k < 1 + i % 4; k++) b[rng() % (sizeof(Elf64_Ehdr) + sizeof(Elf64_Phdr))] = rng();
    put("/tmp/elf", &good, sizeof good, 0755);
    pid_t c = fork();
    if (!c) { alarm(2); execve("/tmp/elf", none, none); _exit(113); }
    CHECK(waitpid(c, &st, 0) == c);
  }
  make_good();
  elf("good again");
  unlink("/tmp/elf");
}
static void tell(int argc, char **argv) {
  for (int i = 1; i < argc; i++) say("  argv[%d] = %s\n", i, strstr(argv[i], "/exec") ? "itself" : argv[i]);
  exit(50 + argc);
}
extern char **environ;
static void report(int argc, char **argv) {
  say("argc %d argv[0] %s argv[1] %s argv[3] [%s], after it %d\n", argc, argv[0], argv[1], argv[3], argv[argc] == 0);
  for (char **e = environ; *e; e++) say("env %s\n", *e);
  say("pagesz %lu, phent %lu, secure %lu, clktck %lu, uid %lu\n", getauxval(AT_PAGESZ), getauxval(AT_PHENT), getauxval(AT_SECURE), getauxval(AT_CLKTCK), getauxval(AT_UID));
  say("execfn %s, platform %s\n", (char *)getauxval(AT_EXECFN), (char *)getauxval(AT_PLATFORM));
  CHECK(getauxval(AT_PHDR) && getauxval(AT_PHNUM) && getauxval(AT_ENTRY) && getauxval(AT_RANDOM));
  unsigned char *r = (void *)getauxval(AT_RANDOM), any = 0;
  for (int i = 0; i < 16; i++) any |= r[i];
  CHECK(any && ((unsigned long)argv & 7) == 0);
  struct sigaction a, b, c;
  sigaction(SIGUSR1, 0, &a); sigaction(SIGUSR2, 0, &b); sigaction(SIGHUP, 0, &c);
  sigset_t m;
  sigprocmask(0, 0, &m);
  say("handler reset %d, ignored stays %d, mask kept %d, pending kept %d\n", a.sa_handler == SIG_DFL, b.sa_handler == SIG_IGN, sigismember(&m, SIGHUP), (sigpending(&m), sigismember(&m, SIGHUP)));
  say("descriptor kept %d, closed on exec %d\n", fcntl(30, F_GETFD), fcntl(31, F_GETFD));
  char comm[32] = "";
  int fd = open("/proc/self/comm", O_RDONLY);
  read(fd, comm, 31);
  say("comm %s", comm);
  stack_t s;
  sigaltstack(0, &s);
  say("altstack off %d\n", s.ss_flags == SS_DISABLE);
  exit(60);
}
static void nothing(int s) { (void)s; }
int main(int argc, char **argv) {
  if (argc > 1 && !strncmp(argv[1], "tell", 4)) tell(argc, argv);
  if (argc > 1 && !strcmp(argv[1], "report")) report(argc, argv);
  mkdir("/tmp", 0777);
  setvbuf(stdout, 0, _IONBF, 0);
  signal(SIGUSR1, nothing);
  signal(SIGUSR2, SIG_IGN);
  sigset_t m;
  sigemptyset(&m); sigaddset(&m, SIGHUP);
  sigprocmask(SIG_BLOCK, &m, 0);
  stack_t s = {.ss_sp = anon(64 * KB), .ss_size = 64 * KB};
  sigaltstack(&s, 0);
  dup2(1, 30); dup2(1, 31);
  fcntl(31, F_SETFD, FD_CLOEXEC);
  CHECK(execve != 0);
  pid_t c = fork();
  if (!c) { raise(SIGHUP); execve("/proc/self/exe", (char *[]){"a zero", "report", "", "last one", 0}, (char *[]){"A=1", "EMPTY=", "B=two words", 0}); _exit(1); }
  waitpid(c, &st, 0);
  CHECK(WEXITSTATUS(st) == 60);
  sigprocmask(SIG_UNBLOCK, &m, 0), signal(SIGHUP, SIG_IGN);
  scripts();
  refused();
  malformed();
  return 0;
}
