// Reads 8 KiB of /dev/vda straight into two pages, and says in which frames they lie: for one.gdb and the book ("One request").
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int main(void) {
  char *buffer;
  if (posix_memalign((void **)&buffer, 4096, 8192)) return 1;
  memset(buffer, 1, 8192);
  int map = open("/proc/self/pagemap", O_RDONLY), disk = open("/dev/vda", O_RDONLY | O_DIRECT);
  for (char *page = buffer; page < buffer + 8192; page += 4096) {
    uint64_t entry = 0;
    if (pread(map, &entry, 8, (uintptr_t)page / 4096 * 8) != 8) return 2;
    printf("%p is in frame %#llx\n", page, (unsigned long long)(entry & ((1ull << 55) - 1)));
  }
  fflush(stdout);
  printf("read %zd\n", pread(disk, buffer, 8192, 0x100000));
  return 0;
}
