// The first instruction of user mode reads the time-stamp counter: with counted instructions, how many there were
// since reset. No C library: nothing runs before _start.
__asm__(".globl _start\n"
        "_start: rdtsc\n"
        "shl $32, %rdx\n"
        "or %rdx, %rax\n"
        "mov %rax, %rdi\n"
        "and $-16, %rsp\n"
        "call report\n");
static long call(long number, long a, long b, long c) {
  long result;
  __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
  return result;
}
__attribute__((noreturn, used)) void report(unsigned long count) {
  char text[24];
  int at = sizeof text;
  text[--at] = '\n';
  do { text[--at] = '0' + count % 10; count /= 10; } while (count);
  call(1, 1, (long)(text + at), sizeof text - at);
  for (;;) call(231, 0, 0, 0);
}
