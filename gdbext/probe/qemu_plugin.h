/*
 * The part of QEMU's plugin interface and of glib that the probe uses, declared here because distributions do not
 * package qemu-plugin.h and because the probe must build with nothing but a C compiler. Both are in the QEMU process.
 *
 * API is the interface generation an object is built for: 4 (QEMU 9.2, 10.0), 5 (10.1, 10.2), 6 (11.0), 7 (11.1).
 * A wrong callback signature loads and stays silent, so QEMU's own version check must see the true number.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#if !defined(API) || API < 4 || API > 7
#error "build with -DAPI=4 to 7"
#endif

#define EXPORT __attribute__((visibility("default")))
#define OPTIONAL __attribute__((weak)) /* tested by address before use */

typedef struct {
    uint8_t *data;
    unsigned len;
} GByteArray;

typedef struct {
    char *data;
    unsigned len;
} GArray;

GByteArray *g_byte_array_new(void);
uint8_t *g_byte_array_free(GByteArray *array, int free_segment);
unsigned g_array_get_element_size(GArray *array);
char *g_array_free(GArray *array, int free_segment);

typedef uint64_t qemu_plugin_id_t;
typedef uint32_t qemu_plugin_meminfo_t;

typedef struct {
    const char *target_name;
    struct {
        int min, cur;
    } version;
    bool system_emulation;
    union {
        struct {
            int smp_vcpus, max_vcpus;
        } system;
    };
} qemu_info_t;

struct qemu_plugin_tb;
struct qemu_plugin_insn;
struct qemu_plugin_register;
struct qemu_plugin_scoreboard;
struct qemu_plugin_hwaddr;

typedef struct {
    struct qemu_plugin_scoreboard *score;
    size_t offset;
} qemu_plugin_u64;

/* The head of a register descriptor; the array's element size tells the rest. */
typedef struct {
    struct qemu_plugin_register *handle;
    const char *name;
} qemu_plugin_reg_descriptor;

enum { QEMU_PLUGIN_CB_NO_REGS, QEMU_PLUGIN_CB_R_REGS };
enum { QEMU_PLUGIN_MEM_R = 1, QEMU_PLUGIN_MEM_W, QEMU_PLUGIN_MEM_RW };
enum { QEMU_PLUGIN_COND_EQ = 2, QEMU_PLUGIN_COND_NE };
enum { QEMU_PLUGIN_INLINE_ADD_U64, QEMU_PLUGIN_INLINE_STORE_U64 };
enum { QEMU_PLUGIN_DISCON_INTERRUPT = 1 };

typedef struct {
    int type; /* log2 of the size */
    union {
        uint8_t u8;
        uint16_t u16;
        uint32_t u32;
        uint64_t u64;
        struct {
            uint64_t low, high;
        } u128;
    } data;
} qemu_plugin_mem_value;

typedef void (*vcpu_udata_cb)(unsigned vcpu, void *userdata);
typedef void (*vcpu_mem_cb)(unsigned vcpu, qemu_plugin_meminfo_t info, uint64_t vaddr, void *userdata);

/* Callbacks whose signature changed: declared with THIS_ID and USERDATA so that one definition fits every API. */
#if API >= 7
#define CB_VCPU(name, vcpu) void name(unsigned vcpu, void *userdata_)
#define CB_TB(name, tb) void name(struct qemu_plugin_tb *tb, void *userdata_)
#define CB_PLAIN(name) void name(void *userdata_)
#define CB_DISCON(name, vcpu, from, to) \
    void name(unsigned vcpu, int type_, uint64_t from, uint64_t to, void *userdata_)
#define CB_UNUSED() (void)userdata_
#define CB_REGISTER_ARG , void *userdata
#define CB_NULL , NULL
#else
#define CB_VCPU(name, vcpu) void name(qemu_plugin_id_t id_, unsigned vcpu)
#define CB_TB(name, tb) void name(qemu_plugin_id_t id_, struct qemu_plugin_tb *tb)
#define CB_PLAIN(name) void name(qemu_plugin_id_t id_)
#define CB_DISCON(name, vcpu, from, to) \
    void name(qemu_plugin_id_t id_, unsigned vcpu, int type_, uint64_t from, uint64_t to)
#define CB_UNUSED() (void)id_
#define CB_REGISTER_ARG
#define CB_NULL
#endif

typedef CB_VCPU((*vcpu_cb), vcpu);
typedef CB_TB((*tb_cb), tb);
typedef CB_PLAIN((*reset_cb));
typedef CB_DISCON((*discon_cb), vcpu, from, to);

/* At exit the generations before 7 pass id and userdata, 7 the userdata alone. */
#if API >= 7
typedef void (*atexit_cb)(void *userdata);
#define CB_ATEXIT(name) void name(void *userdata_)
#else
typedef void (*atexit_cb)(qemu_plugin_id_t id, void *userdata);
#define CB_ATEXIT(name) void name(qemu_plugin_id_t id_, void *userdata_)
#endif

void qemu_plugin_register_vcpu_init_cb(qemu_plugin_id_t id, vcpu_cb cb CB_REGISTER_ARG);
void qemu_plugin_register_vcpu_idle_cb(qemu_plugin_id_t id, vcpu_cb cb CB_REGISTER_ARG);
void qemu_plugin_register_vcpu_resume_cb(qemu_plugin_id_t id, vcpu_cb cb CB_REGISTER_ARG);
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id, tb_cb cb CB_REGISTER_ARG);
OPTIONAL void qemu_plugin_register_vcpu_discon_cb(qemu_plugin_id_t id, int types, discon_cb cb CB_REGISTER_ARG);
void qemu_plugin_register_atexit_cb(qemu_plugin_id_t id, atexit_cb cb, void *userdata);
#if API >= 7
void qemu_plugin_reset(qemu_plugin_id_t id, reset_cb cb, void *userdata);
#else
void qemu_plugin_reset(qemu_plugin_id_t id, reset_cb cb);
#endif

void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *insn, vcpu_udata_cb cb, int flags, void *userdata);
void qemu_plugin_register_vcpu_insn_exec_cond_cb(struct qemu_plugin_insn *insn, vcpu_udata_cb cb, int flags, int cond,
                                                 qemu_plugin_u64 entry, uint64_t imm, void *userdata);
void qemu_plugin_register_vcpu_insn_exec_inline_per_vcpu(struct qemu_plugin_insn *insn, int op, qemu_plugin_u64 entry,
                                                         uint64_t imm);
void qemu_plugin_register_vcpu_mem_cb(struct qemu_plugin_insn *insn, vcpu_mem_cb cb, int flags, int rw, void *userdata);

size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *tb);
uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *tb);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *tb, size_t index);
size_t qemu_plugin_insn_data(const struct qemu_plugin_insn *insn, void *dest, size_t length);
uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *insn);
unsigned qemu_plugin_mem_size_shift(qemu_plugin_meminfo_t info);
qemu_plugin_mem_value qemu_plugin_mem_get_value(qemu_plugin_meminfo_t info);
struct qemu_plugin_hwaddr *qemu_plugin_get_hwaddr(qemu_plugin_meminfo_t info, uint64_t vaddr);
bool qemu_plugin_hwaddr_is_io(const struct qemu_plugin_hwaddr *haddr);

GArray *qemu_plugin_get_registers(void);
#if API >= 6
bool qemu_plugin_read_register(struct qemu_plugin_register *handle, GByteArray *buffer);
#else
int qemu_plugin_read_register(struct qemu_plugin_register *handle, GByteArray *buffer);
#endif
void qemu_plugin_outs(const char *text);
bool qemu_plugin_read_memory_vaddr(uint64_t address, GByteArray *data, size_t length);

struct qemu_plugin_scoreboard *qemu_plugin_scoreboard_new(size_t element_size);
void qemu_plugin_scoreboard_free(struct qemu_plugin_scoreboard *score);
void *qemu_plugin_scoreboard_find(struct qemu_plugin_scoreboard *score, unsigned vcpu);
