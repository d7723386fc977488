// A QEMU plugin: counts the instructions that a guest executes, halts aside. Where the guest executes `nopl 0x50494e46(%rax)` (0f 1f 80
// 46 4e 49 50), which does nothing on any CPU, the count so far is written as a line to the file that the plugin is given as `out=`.
//
// The few declarations of QEMU 7.2's plugin interface (version 1) that this needs; Debian has no header of it.
#include <stdint.h>
#include <stdio.h>
#include <string.h>

typedef uint64_t id_t_;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
enum op { ADD_U64 };
enum regs { NO_REGS };
void qemu_plugin_register_vcpu_tb_trans_cb(id_t_, void (*)(id_t_, struct qemu_plugin_tb *));
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *);
size_t qemu_plugin_insn_size(const struct qemu_plugin_insn *);
void qemu_plugin_register_vcpu_insn_exec_inline(struct qemu_plugin_insn *, enum op, void *, uint64_t);
void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *, void (*)(unsigned, void *), enum regs, void *);

__attribute__((visibility("default"))) int qemu_plugin_version = 1;

static const unsigned char mark[] = {0x0f, 0x1f, 0x80, 0x46, 0x4e, 0x49, 0x50};
static uint64_t count;
static FILE *out;

static void marked(unsigned cpu, void *unused) {
  (void)cpu, (void)unused;
  fprintf(out, "%llu\n", (unsigned long long)count);
  fflush(out);
}

static void translated(id_t_ id, struct qemu_plugin_tb *tb) {
  (void)id;
  for (size_t i = 0; i < qemu_plugin_tb_n_insns(tb); i++) {
    struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);
    qemu_plugin_register_vcpu_insn_exec_inline(insn, ADD_U64, &count, 1);
    if (qemu_plugin_insn_size(insn) == sizeof mark && !memcmp(qemu_plugin_insn_data(insn), mark, sizeof mark))
      qemu_plugin_register_vcpu_insn_exec_cb(insn, marked, NO_REGS, NULL);
  }
}

__attribute__((visibility("default"))) int qemu_plugin_install(id_t_ id, const void *info, int argc, char **argv) {
  (void)info;
  if (argc != 1 || strncmp(argv[0], "out=", 4) || !(out = fopen(argv[0] + 4, "w"))) return 1;
  qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
  return 0;
}
