/* A plugin of qemu's user emulation: whenever the program calls getppid, which does nothing else, it writes what was
 * executed since the last such call. The declarations are those of qemu-plugin.h, interface version 1.
 *
 *   gcc -O2 -shared -fPIC count.c -o count.so;  qemu-aarch64 -plugin count.so,counts=FILE[,caches=BYTES:WAYS:...] PROGRAM
 *
 * Lines of FILE:
 *   block NUMBER HEX    a straight piece of code and its bytes, before it is first counted
 *   ran NUMBER TIMES    how often it was executed
 *   missed LEVEL MISSES STREAMED    with caches: lines that a level did not have, and those of them that follow on
 *                       one that it missed before, which a prefetcher would have brought
 *   call INSTRUCTIONS   the end of what was executed before a call
 *
 * Caches are of 64-byte lines, each set ordered by use, each level asked for what the one before it misses. Addresses
 * are the program's own; all threads share them.
 */
#include <inttypes.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define GETPPID 173 /* on aarch64 */
#define LINE 6      /* bits of a line's bytes */
#define STREAMS 8   /* followed at once by a level's prefetcher */
#define LEVELS 4

typedef uint64_t qemu_plugin_id_t;
typedef uint32_t qemu_plugin_meminfo_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
typedef struct qemu_info_t qemu_info_t;
enum qemu_plugin_op { QEMU_PLUGIN_INLINE_ADD_U64 };
enum qemu_plugin_cb_flags { QEMU_PLUGIN_CB_NO_REGS };
enum qemu_plugin_mem_rw { QEMU_PLUGIN_MEM_R = 1, QEMU_PLUGIN_MEM_W, QEMU_PLUGIN_MEM_RW };

void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, struct qemu_plugin_tb *));
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *, enum qemu_plugin_op, void *, uint64_t);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *);
void qemu_plugin_register_vcpu_mem_cb(struct qemu_plugin_insn *,
                                      void (*)(unsigned, qemu_plugin_meminfo_t, uint64_t, void *),
                                      enum qemu_plugin_cb_flags, enum qemu_plugin_mem_rw, void *);
unsigned qemu_plugin_mem_size_shift(qemu_plugin_meminfo_t);
void qemu_plugin_register_vcpu_syscall_cb(
    qemu_plugin_id_t, void (*)(qemu_plugin_id_t, unsigned, int64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                               uint64_t, uint64_t, uint64_t));

int qemu_plugin_version = 1;

struct block {
    uint64_t times, before; /* executed, and that at the last call */
    size_t instructions;
    uint32_t *code;
    bool told;
};

struct cache {
    uint64_t *lines; /* sets x ways, those of a set from the last used to the longest unused */
    size_t sets, ways;
    uint64_t next[STREAMS]; /* lines that a prefetcher would bring */
    unsigned oldest;
    uint64_t misses, streamed;
};

static struct block **blocks;
static size_t known, room;
static struct cache caches[LEVELS];
static int levels;
static bool looking; /* from the first call on */
static FILE *counts;

static bool has(struct cache *cache, uint64_t line) {
    uint64_t *set = cache->lines + line % cache->sets * cache->ways, taken = line;
    for (size_t way = 0; way < cache->ways; way++) { /* the line comes first, those before it move back by one */
        uint64_t other = set[way];
        set[way] = taken;
        if (other == line) return true;
        taken = other;
    }
    cache->misses++;
    for (int n = 0; n < STREAMS; n++)
        if (cache->next[n] == line) {
            cache->next[n]++;
            cache->streamed++;
            return false;
        }
    cache->next[cache->oldest++ % STREAMS] = line + 1;
    return false;
}

static void accessed(unsigned cpu, qemu_plugin_meminfo_t info, uint64_t address, void *nothing) {
    if (!looking) return;
    uint64_t last = (address + (1u << qemu_plugin_mem_size_shift(info)) - 1) >> LINE;
    for (uint64_t line = address >> LINE; line <= last; line++)
        for (int level = 0; level < levels && !has(&caches[level], line); level++)
            ;
}

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *tb) {
    struct block *block = calloc(1, sizeof *block);
    block->instructions = qemu_plugin_tb_n_insns(tb);
    block->code = calloc(block->instructions, sizeof *block->code);
    for (size_t n = 0; n < block->instructions; n++) {
        struct qemu_plugin_insn *instruction = qemu_plugin_tb_get_insn(tb, n);
        memcpy(&block->code[n], qemu_plugin_insn_data(instruction), sizeof *block->code);
        if (levels)
            qemu_plugin_register_vcpu_mem_cb(instruction, accessed, QEMU_PLUGIN_CB_NO_REGS, QEMU_PLUGIN_MEM_RW, NULL);
    }
    if (known == room) blocks = realloc(blocks, (room = 2 * room + 1024) * sizeof *blocks);
    blocks[known++] = block;
    qemu_plugin_register_vcpu_tb_exec_inline(tb, QEMU_PLUGIN_INLINE_ADD_U64, &block->times, 1);
}

static void called(qemu_plugin_id_t id, unsigned cpu, int64_t number, uint64_t a, uint64_t b, uint64_t c, uint64_t d,
                   uint64_t e, uint64_t f, uint64_t g, uint64_t h) {
    if (number != GETPPID) return;
    uint64_t executed = 0;
    for (size_t n = 0; n < known; n++) {
        struct block *block = blocks[n];
        uint64_t times = block->times - block->before;
        if (!times) continue;
        executed += times * block->instructions;
        block->before = block->times;
        if (!looking) continue;
        if (!block->told) {
            fprintf(counts, "block %zu ", n);
            for (size_t each = 0; each < block->instructions; each++) fprintf(counts, "%08" PRIx32, block->code[each]);
            fputc('\n', counts);
            block->told = true;
        }
        fprintf(counts, "ran %zu %" PRIu64 "\n", n, times);
    }
    for (int level = 0; level < levels; level++) {
        fprintf(counts, "missed %d %" PRIu64 " %" PRIu64 "\n", level, caches[level].misses, caches[level].streamed);
        caches[level].misses = caches[level].streamed = 0;
    }
    fprintf(counts, "call %" PRIu64 "\n", executed);
    fflush(counts);
    looking = true;
}

static bool take_caches(char *text) {
    for (char *word = strtok(text, ":"); word; word = strtok(NULL, ":")) {
        size_t bytes = strtoull(word, NULL, 10);
        char *ways = strtok(NULL, ":");
        if (!ways || levels == LEVELS) return false;
        struct cache *cache = &caches[levels++];
        cache->ways = strtoull(ways, NULL, 10);
        cache->sets = (bytes >> LINE) / cache->ways;
        cache->lines = malloc(cache->sets * cache->ways * sizeof *cache->lines);
        memset(cache->lines, 0xff, cache->sets * cache->ways * sizeof *cache->lines);
    }
    return true;
}

int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int count, char **arguments) {
    for (int i = 0; i < count; i++) {
        if (!strncmp(arguments[i], "counts=", 7)) counts = fopen(arguments[i] + 7, "w");
        if (!strncmp(arguments[i], "caches=", 7) && !take_caches(arguments[i] + 7)) return 1;
    }
    if (!counts) return 1;
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_vcpu_syscall_cb(id, called);
    return 0;
}
