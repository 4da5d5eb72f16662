/*
 * One virtual CPU as the probe knows it: its registers by number, its memory, its descriptor tables, what it did last.
 * All of it is used only by the thread that runs the vCPU.
 */
#pragma once

#include "idt.h"
#include "layout.h"
#include "log.h"
#include "qemu_plugin.h"

/* Register numbers; the general ones in encoding order, which is the order of a row's columns. */
enum {
    REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
    REG_R8, REG_R11 = 11, REG_R15 = 15,
    REG_RIP, REG_RFLAGS, REG_CS, REG_SS, REG_DS, REG_ES, REG_FS, REG_GS, REG_FS_BASE, REG_GS_BASE, REG_KERNEL_GS_BASE,
    REG_CR0, REG_CR2, REG_CR3, REG_EFER, REG_MXCSR, REG_FCTRL, REG_FSTAT,
    REG_ST0, REG_XMM0 = REG_ST0 + 8, REG_COUNT = REG_XMM0 + 16,
};

enum { CR0_PE = 1 << 0, CR0_TS = 1 << 3, EFER_LMA = 1 << 10, RFLAGS_VM = 1 << 17 };

/* The general registers of a row: sixteen neighbouring columns. */
static inline uint64_t *row_general(const ctx_row *row)
{
    return (uint64_t *)((uintptr_t)row + offsetof(ctx_row, rax));
}

/* What inline code and conditional callbacks look at. */
typedef struct {
    uint64_t gs_alarm;    /* 1: a gs: access in kernel code would use the user's base */
    uint64_t leaving;     /* where RSP was stored by a block that may be switching stacks, 0: nowhere */
    uint64_t switching;   /* 1: a stack switch is under way */
    uint64_t jump_target; /* the handler that kernel code may just have jumped to */
    uint64_t self_irets;  /* counted by inline code: irets seen at translation to resume the next instruction */
    uint64_t flag_loads;  /* counted by inline code, once far returns were seen to resume contexts: see far.h */
    uint64_t spare[10];   /* vCPUs write all the time, and do not share a cache line, nor the one fetched along with it */
} score;

typedef struct {
    uint16_t selector;
    bool known, code64;
} code_segment;

/* The last event that moved contexts: tells a resumed or a jumped-to handler from one that was just entered. */
typedef struct {
    uint8_t kind;
    uint64_t pc, rip, frame;
    uint64_t words[5];
} last_event;

enum { STANDING = 9, REMEMBERED_PAGES = 512 };

/* A vCPU's registers as it stands still: callee-saved ones, CR3, RIP, and RSP's page. */
typedef struct {
    bool known;
    uint64_t word[STANDING];
} standing;

typedef struct {
    unsigned index;
    struct qemu_plugin_register *reg[REG_COUNT];
    unsigned word;      /* bytes of a general register in this target */
    GByteArray *buffer; /* for registers */
    GByteArray *memory; /* for guest memory */
    score *score;
    log_reader *log; /* QEMU's, of its interrupts; NULL: there is none, or no need */

    idt_table *idt;
    uint64_t gdt;
    uint32_t gdt_limit;
    unsigned table_words; /* operands of the lgdt or lidt under way that were seen */
    uint32_t table_limit;
    struct {
        bool known;
        uint64_t idt, gdt; /* by base */
        uint32_t idt_limit, gdt_limit;
        unsigned idt_bits;
    } outside; /* the tables outside system management mode: see on_smi */
    uint32_t tables_told; /* of what the reader tells, how much was taken */
    standing standing;
    code_segment code_segment;
    uint16_t task;    /* selector of the TSS it runs on, 0: not known */
    uint16_t ldt;     /* selector of its LDT, 0: none */
    bool task_called; /* by a far call: its iret resumes code that gave way by itself */
    uint16_t flat_ss, flat_cs, flat_user; /* selectors known to have base 0 */

    uint64_t lstar, cstar, sysenter_eip, star;
    uint16_t sysenter_cs;
    struct {
        bool syscall, sysenter;
        uint16_t cs, ss;
        uint64_t rsp, rflags, next; /* sysenter saves none of them */
    } call;
    struct {
        bool pending;
        uint8_t vector;
        uint64_t next;
    } soft; /* an `int n` is about to be delivered */

    struct {
        uint64_t at, rsp, flags;
    } far; /* a popf was followed by a far return at this address, and what RSP and RFLAGS will be there */
    uint64_t flag_loads; /* as the score had it at the last entry */

    bool parity_known, parity_kernel;
    bool gs_overridden; /* kernel code loaded its own base by hand while the user's is active by count */
    last_event last;
    unsigned resets;
    uint64_t self_irets; /* counted by callback */
    uint64_t tracked_at[RING_TRACKED_SLOTS]; /* where the tracked variables lie for this vCPU */
    uint64_t tableless[2][REMEMBERED_PAGES]; /* pages that hold no interrupt table, plus 1: see gates.h */
    uint64_t tableless_as_of;                /* idt_told.changes then */
    ctx_row away; /* registers at the start of that block */
    _Atomic uint64_t came_to; /* RSP with which it last took up a thread by a switch, 0 once it has switched again */
} vcpu;

static const char *const register_names[REG_COUNT] = {
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
    "rip", "eflags", "cs", "ss", "ds", "es", "fs", "gs", "fs_base", "gs_base", "k_gs_base",
    "cr0", "cr2", "cr3", "efer", "mxcsr", "fctrl", "fstat",
    "st0", "st1", "st2", "st3", "st4", "st5", "st6", "st7",
    "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7",
    "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15",
};

/* What pages below the kernel's half of the address space show goes with CR3. */
static inline void vcpu_forget_space(vcpu *v)
{
    memset(v->tableless[0], 0, sizeof(v->tableless[0]));
}

/* ia32 targets name the first eight eax … edi, and eip. */
static bool is_register(unsigned number, const char *name)
{
    const char *known = register_names[number];
    bool by_size = number < REG_R8 || number == REG_RIP;
    return strcmp(known, name) == 0 || (by_size && name[0] == 'e' && strcmp(known + 1, name + 1) == 0);
}

/* Look the registers up by name; those that a target does not have stay NULL and read as 0. */
static void vcpu_find_registers(vcpu *v, unsigned word)
{
    GArray *all = qemu_plugin_get_registers();
    unsigned size = g_array_get_element_size(all); /* the descriptor grew in API 6 */

    for (unsigned i = 0; i < all->len; i++) {
        const qemu_plugin_reg_descriptor *d = (const void *)(all->data + (size_t)i * size);
        for (unsigned number = 0; number < REG_COUNT; number++) {
            if (is_register(number, d->name)) {
                v->reg[number] = d->handle;
            }
        }
    }
    g_array_free(all, 1);
    v->word = word;
    v->buffer = g_byte_array_new();
    v->memory = g_byte_array_new();
}

static inline uint64_t vcpu_reg(vcpu *v, unsigned number)
{
    uint64_t value = 0;

    if (!v->reg[number]) {
        return 0;
    }
    v->buffer->len = 0; /* reading appends */
    qemu_plugin_read_register(v->reg[number], v->buffer);
    memcpy(&value, v->buffer->data, v->buffer->len < sizeof(value) ? v->buffer->len : sizeof(value));
    return value;
}

/* The sixteen (ia32: eight) general registers, into the row's columns. */
static inline void vcpu_general(vcpu *v, ctx_row *row)
{
    unsigned count = v->word == 8 ? 16 : 8;
    uint64_t *to = row_general(row);

    v->buffer->len = 0;
    for (unsigned i = 0; i < count; i++) {
        qemu_plugin_read_register(v->reg[i], v->buffer);
    }
    if (v->word == 8) {
        memcpy(to, v->buffer->data, 16 * 8);
        return;
    }
    for (unsigned i = 0; i < count; i++) {
        uint32_t value;
        memcpy(&value, v->buffer->data + i * 4, sizeof(value));
        to[i] = value;
    }
}

/* Guest virtual memory as this vCPU maps it now; NULL where it is unmapped. Valid until the next call. */
static inline const uint8_t *vcpu_memory(vcpu *v, uint64_t address, size_t length)
{
    if (v->word == 4) {
        address &= 0xffffffff;
    }
    return qemu_plugin_read_memory_vaddr(address, v->memory, length) && v->memory->len >= length ? v->memory->data
                                                                                                  : NULL;
}

/* Up to `most` words of `size` bytes from `address` up, widened; returns how many could be read. */
static unsigned vcpu_words(vcpu *v, uint64_t address, unsigned size, unsigned most, uint64_t *to)
{
    unsigned count = most;
    const uint8_t *bytes = vcpu_memory(v, address, (size_t)count * size);

    if (!bytes) { /* the stack may end with this page */
        count = (unsigned)(PAGE_SIZE - address % PAGE_SIZE) / size;
        bytes = count < most ? vcpu_memory(v, address, (size_t)count * size) : NULL;
    }
    if (!bytes) {
        return 0;
    }
    for (unsigned i = 0; i < count; i++) {
        to[i] = 0;
        memcpy(&to[i], bytes + i * size, size);
    }
    return count;
}

/* The descriptor that `selector` names in the table at `gdt`, 0 if it cannot be read or is in the LDT (Intel SDM vol. 3A,
 * figure 3-8). */
static uint64_t descriptor_in(vcpu *v, uint64_t gdt, uint32_t limit, uint16_t selector)
{
    uint64_t raw = 0;

    if (!(selector & 4) && gdt && (selector | 7u) <= limit) {
        const uint8_t *bytes = vcpu_memory(v, gdt + (selector & ~7u), 8);
        if (bytes) {
            memcpy(&raw, bytes, sizeof(raw));
        }
    }
    return raw;
}

static uint64_t vcpu_descriptor(vcpu *v, uint16_t selector)
{
    return descriptor_in(v, v->gdt, v->gdt_limit, selector);
}

/* Is `selector` a 64-bit code segment? Asked in long mode only, of user code: kernel code is 64-bit there. */
static bool vcpu_is_code64(vcpu *v, uint16_t selector)
{
    enum { LONG = 53 };
    code_segment *known = &v->code_segment;

    if ((selector & 3) != 3) {
        return true;
    }
    if (!known->known || known->selector != selector) {
        *known = (code_segment){selector, true, !v->gdt || (vcpu_descriptor(v, selector) >> LONG & 1)};
    }
    return known->code64;
}

/* Where `ss`:`sp` points in 32-bit code: the base is 0 but for the 16-bit stacks that return to 16-bit code. */
static uint64_t vcpu_stack_in(vcpu *v, uint16_t ss, uint64_t sp)
{
    enum { BIG = 54 };

    if (ss == v->flat_ss) {
        return sp;
    }
    uint64_t d = vcpu_descriptor(v, ss);
    uint64_t base = descriptor_base(d);
    if (d == 0 || base == 0) {
        v->flat_ss = d ? ss : v->flat_ss;
        return sp;
    }
    return (uint32_t)(base + (d >> BIG & 1 ? sp : sp & 0xffff));
}

/* Where SS:`sp` points now. */
static uint64_t vcpu_stack(vcpu *v, uint64_t sp)
{
    return vcpu_stack_in(v, (uint16_t)vcpu_reg(v, REG_SS), sp);
}

/* Where kernel code at RIP lies: in 32-bit code, its segment may begin elsewhere than at 0. */
static uint64_t vcpu_linear(vcpu *v, uint64_t rip, uint16_t cs)
{
    if (cs == v->flat_cs || vcpu_reg(v, REG_EFER) & EFER_LMA) {
        return rip;
    }
    uint64_t d = vcpu_descriptor(v, cs);
    v->flat_cs = d && descriptor_base(d) == 0 ? cs : v->flat_cs;
    return (uint32_t)(rip + descriptor_base(d));
}

/* Bits of the code that runs: 16 also stands for real mode, which the probe leaves alone. */
static unsigned vcpu_bits(vcpu *v)
{
    return vcpu_reg(v, REG_EFER) & EFER_LMA ? 64 : vcpu_reg(v, REG_CR0) & CR0_PE ? 32 : 16;
}

/* Where the stack pointer points in `bits`-bit code. */
static uint64_t vcpu_sp(vcpu *v, unsigned bits)
{
    uint64_t sp = vcpu_reg(v, REG_RSP);
    return bits == 32 ? vcpu_stack(v, sp) : sp;
}

static bool vcpu_read(void *context, uint64_t address, uint8_t *to, size_t length)
{
    const uint8_t *bytes = vcpu_memory(context, address, length);
    if (bytes) {
        memcpy(to, bytes, length);
    }
    return bytes != NULL;
}
