// /dev/fb0: a picture is drawn through a mapping, a line of it by write; the host looks at the screen (PFN-2, tests/src/screen.rs). Checks itself.
#include "t.h"
#include <linux/fb.h>
#include <sys/ioctl.h>

#define WIDTH 1024
#define HEIGHT 768
static uint32_t pixel(uint32_t x, uint32_t y) { return y == 100 ? 0x123456 : (x / 4) << 16 | (y / 3) << 8 | ((x ^ y) & 255); }

int main(void) {
  int f = open("/dev/fb0", O_RDWR);
  CHECK(f >= 0);
  struct fb_var_screeninfo v, w = {.xres = 640};
  struct fb_fix_screeninfo i;
  CHECK(!ioctl(f, FBIOGET_VSCREENINFO, &v) && !ioctl(f, FBIOGET_FSCREENINFO, &i));
  CHECK(v.xres == WIDTH && v.yres == HEIGHT && v.xres_virtual == WIDTH && v.yres_virtual == HEIGHT && !v.xoffset && !v.yoffset);
  CHECK(v.bits_per_pixel == 32 && v.red.offset == 16 && v.red.length == 8 && v.green.offset == 8 && v.green.length == 8);
  CHECK(v.blue.offset == 0 && v.blue.length == 8 && !v.transp.length && !v.grayscale && !v.nonstd && v.height == -1u && v.width == -1u);
  CHECK(!strcmp(i.id, "bochs-display") && i.type == FB_TYPE_PACKED_PIXELS && i.visual == FB_VISUAL_TRUECOLOR && i.line_length == 4 * WIDTH);
  CHECK(i.smem_start && i.smem_len == 16 * MB && !i.mmio_len && !i.accel);
  CHECK(!ioctl(f, FBIOPUT_VSCREENINFO, &w) && !memcmp(&v, &w, sizeof v));
  CHECK(ioctl(f, FBIOGET_VSCREENINFO, 8) == -1 && errno == EFAULT && ioctl(f, FBIOPUT_VSCREENINFO, 8) == -1 && errno == EFAULT);
  CHECK(ioctl(f, FBIOGET_FSCREENINFO, 8) == -1 && errno == EFAULT && ioctl(f, 0x46ff, 0) == -1 && errno == ENOTTY);

  // Not more than there is.
  char b[16] = "0123456789abcde";
  CHECK(mmap(0, i.smem_len + PG, PROT_READ, MAP_SHARED, f, 0) == MAP_FAILED && errno == EINVAL);
  CHECK(mmap(0, PG, PROT_READ, MAP_SHARED, f, i.smem_len) == MAP_FAILED && errno == EINVAL);
  CHECK(mmap(0, PG, PROT_READ, MAP_SHARED, f, 1UL << 40) == MAP_FAILED && errno == EINVAL);
  CHECK(pread(f, b, 16, i.smem_len) == 0 && pread(f, b, 16, 1UL << 40) == 0 && pread(f, b, 16, 1UL << 62) == 0);
  CHECK(pwrite(f, b, 16, i.smem_len) == -1 && errno == ENOSPC && pwrite(f, b, 16, i.smem_len + 1) == -1 && errno == EFBIG);
  CHECK(pwrite(f, b, 16, i.smem_len - 8) == 8 && pread(f, b + 8, 8, i.smem_len - 8) == 8 && !memcmp(b, b + 8, 8) && pread(f, b, 16, i.smem_len - 4) == 4);
  CHECK(pread(f, (void *)8, 16, 0) == -1 && errno == EFAULT && pwrite(f, (void *)8, 16, 0) == -1 && errno == EFAULT);

  uint32_t *p = mmap(0, i.smem_len, PROT_READ | PROT_WRITE, MAP_SHARED, f, 0);
  CHECK(p != MAP_FAILED);
  for (uint32_t y = 0; y < HEIGHT; y++)
    for (uint32_t x = 0; y != 100 && x < WIDTH; x++) p[y * WIDTH + x] = pixel(x, y);
  static uint32_t line[WIDTH], again[WIDTH];
  for (uint32_t x = 0; x < WIDTH; x++) line[x] = pixel(x, 100);
  CHECK(lseek(f, 100 * i.line_length, SEEK_SET) == 100 * i.line_length && write(f, line, sizeof line) == sizeof line);
  CHECK(!memcmp(p + 100 * WIDTH, line, sizeof line));
  // What follows is the next line.
  CHECK(read(f, again, sizeof again) == sizeof again && !memcmp(again, p + 101 * WIDTH, sizeof again));
  // A private copy is not seen; nor does whoever is forked lose the screen.
  uint32_t *q = mmap(0, PG, PROT_READ | PROT_WRITE, MAP_PRIVATE, f, 0);
  CHECK(q != MAP_FAILED && q[1] == pixel(1, 0));
  q[1] = 7;
  pid_t c = fork();
  if (!c) { p[0] = 0xabcdef; _exit(0); }
  int st;
  CHECK(waitpid(c, &st, 0) == c && !st && p[0] == 0xabcdef && p[1] == pixel(1, 0) && !munmap(q, PG));
  p[0] = pixel(0, 0);
  CHECK(!munmap(p, i.smem_len) && !close(f));
  say("drawn\n");
  CHECK(read(0, b, 1) == 1);
  return 0;
}
