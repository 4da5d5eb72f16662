/*
 * Translation: which instructions of a block get which callback or inline code.
 */
#pragma once

#include "arrival.h"

static struct qemu_plugin_scoreboard *scores;

enum { SITE_BUCKETS = 1 << 14 };

static site *sites[SITE_BUCKETS];
static pthread_mutex_t site_lock = PTHREAD_MUTEX_INITIALIZER;

/* One record for one instruction, however often it is translated. NULL without memory. */
static site *site_of(uint64_t pc, const uint8_t *bytes, unsigned bits, const insn *i)
{
    site **bucket = &sites[target_hash(pc) % SITE_BUCKETS];

    pthread_mutex_lock(&site_lock);
    site *s = *bucket;
    while (s && (s->pc != pc || s->bits != bits || s->insn.length != i->length || memcmp(s->bytes, bytes, i->length))) {
        s = s->next;
    }
    if (!s && (s = calloc(1, sizeof(*s)))) {
        s->pc = pc;
        s->bits = bits;
        s->insn = *i;
        memcpy(s->bytes, bytes, i->length);
        s->next = *bucket;
        *bucket = s;
    }
    pthread_mutex_unlock(&site_lock);
    if (!s) {
        go_untold("an instruction");
    }
    return s;
}

/* A block under translation. */
typedef struct {
    struct qemu_plugin_tb *tb;
    uint64_t start;
    unsigned bits;
    bool entry_point, stores_rsp;
} block;

/* Near the places where kernel code loads RSP lie the ends of switch functions: a bit for every 256 bytes, by hash. */
static _Atomic uint64_t rsp_loads[1024];

static void note_rsp_load(uint64_t pc)
{
    for (uint64_t at = pc / NEAR_BYTES - 1; at != pc / NEAR_BYTES + 2; at++) {
        atomic_fetch_or(&rsp_loads[at / 64 % 1024], 1ull << at % 64);
    }
}

static bool near_rsp_load(uint64_t pc)
{
    uint64_t at = pc / NEAR_BYTES;
    return rsp_loads[at / 64 % 1024] >> at % 64 & 1;
}

static uint64_t jump_target(const site *s)
{
    return s->pc + s->insn.length + (uint64_t)s->insn.imm;
}

static void call_at(struct qemu_plugin_insn *at, vcpu_udata_cb callback, void *userdata)
{
    qemu_plugin_register_vcpu_insn_exec_cb(at, callback, QEMU_PLUGIN_CB_R_REGS, userdata);
}

static void call_if(struct qemu_plugin_insn *at, vcpu_udata_cb callback, size_t member, void *userdata)
{
    qemu_plugin_u64 entry = {scores, member};
    qemu_plugin_register_vcpu_insn_exec_cond_cb(at, callback, QEMU_PLUGIN_CB_R_REGS, QEMU_PLUGIN_COND_NE, entry, 0,
                                                userdata);
}

/* RSP is stored, then loaded: see events.h. An interrupt's or system call's own change of stack is no switch. */
static void instrument_stack(block *b, struct qemu_plugin_insn *at, site *s)
{
    if (s->insn.kind == OP_LOAD_RSP) {
        call_if(at, on_switch, offsetof(score, leaving), s);
        note_rsp_load(s->pc);
    } else if (!b->entry_point && !b->stores_rsp) {
        struct qemu_plugin_insn *first = qemu_plugin_tb_get_insn(b->tb, 0);
        uint8_t bytes[16] = {0};
        insn i = decode(bytes, qemu_plugin_insn_data(first, bytes, sizeof(bytes)), b->bits);
        site *begins = site_of(b->start, bytes, b->bits, &i);
        if (begins) {
            call_at(first, on_leaving, begins);
        }
        b->stores_rsp = true;
    }
}

/* In kernel code: does the instruction get a callback? In real mode only those that load tables or MSRs do. */
static bool is_of_interest(const block *b, const insn *i)
{
    if (b->bits == 16) {
        return i->kind == OP_LIDT || i->kind == OP_LGDT || i->kind == OP_WRMSR || i->kind == OP_RSM || i->kind == OP_OUT;
    }
    switch (i->kind) {
    case OP_OTHER: case OP_CALL: case OP_JUMP_IF: return i->gs_memory;
    case OP_INVLPG: case OP_PAGING: return !told_of_entries;
    case OP_RET: case OP_JUMP: case OP_JUMP_FAR: return i->gs_memory || near_rsp_load(b->start);
    default: return true;
    }
}

static void instrument(block *b, struct qemu_plugin_insn *at, site *s)
{
    switch (s->insn.kind) {
    case OP_IRET: call_at(at, on_iret, s); break;
    case OP_FAR_RETURN: call_at(at, on_far_return, s); break;
    case OP_LOAD_FLAGS: call_at(at, on_popf, s); break;
    case OP_FLAGS_RET: call_at(at, on_popf_ret, s); break;
    case OP_LTR: call_at(at, on_ltr, s); break;
    case OP_LLDT: call_at(at, on_lldt, s); break;
    case OP_FAR_JUMP: case OP_FAR_CALL: call_at(at, on_far, s); break;
    case OP_SYSRET: call_at(at, on_sysret, s); break;
    case OP_SYSEXIT: call_at(at, on_sysexit, s); break;
    case OP_SWAPGS: call_at(at, on_swapgs, (void *)s->pc); break;
    case OP_WRMSR: call_at(at, on_wrmsr, s); break;
    case OP_WRFSBASE: case OP_WRGSBASE: call_at(at, on_wrbase, s); break;
    case OP_MOV_CR3: call_at(at, on_cr3, s); break;
    case OP_INVLPG: call_at(at, on_invlpg, s); break;
    case OP_PAGING: call_at(at, on_paging, s); break;
    case OP_RSM: call_at(at, on_rsm, s); break;
    case OP_OUT: call_at(at, on_out, s); break;
    case OP_SYSCALL: case OP_SYSENTER: call_at(at, on_call, s); break;
    case OP_INT_N: call_at(at, on_int, s); break;
    case OP_LIDT: case OP_LGDT:
        call_at(at, on_table, s);
        qemu_plugin_register_vcpu_mem_cb(at, on_table_operand, QEMU_PLUGIN_CB_R_REGS, QEMU_PLUGIN_MEM_R, s);
        break;
    case OP_STORE_RSP: case OP_LOAD_RSP: instrument_stack(b, at, s); break;
    case OP_RET: case OP_JUMP: case OP_JUMP_FAR:
        /* A jump that stays there is not the end. */
        if (near_rsp_load(b->start) && !(s->insn.kind == OP_JUMP && near_rsp_load(jump_target(s)))) {
            call_if(at, on_arriving, offsetof(score, switching), s);
        }
        break;
    default: break;
    }
    if (s->insn.gs_memory && s->bits == 64) {
        call_if(at, on_gs_access, offsetof(score, gs_alarm), s);
    }
}

/* Where a block goes from its last instruction. Kernel code that jumps, calls or runs on into a handler would look
 * like an entry: leave a note for it. */
static void note_end(struct qemu_plugin_insn *at, uint64_t next, const insn *i)
{
    bool jumps = i->kind == OP_JUMP || i->kind == OP_JUMP_IF || i->kind == OP_CALL;
    uint64_t target = jumps ? next + (uint64_t)i->imm : next;
    uint64_t handler = is_target(target) ? target : is_target(next) ? next : 0;

    if (handler && i->kind != OP_IRET) {
        qemu_plugin_u64 entry = {scores, offsetof(score, jump_target)};
        qemu_plugin_register_vcpu_insn_exec_inline_per_vcpu(at, QEMU_PLUGIN_INLINE_STORE_U64, entry, handler);
    }
}

/* An iret that is seen to be the kernel's way of serialising (it pushed the live CS and the address of the next
 * instruction) is counted without a callback: Linux runs many more of them than of all others. */
static bool count_self(const block *b, struct qemu_plugin_insn *at, bool cs_read, bool next_pushed)
{
    if (self_wanted || b->bits == 16 || !cs_read || !next_pushed) {
        return false;
    }
    qemu_plugin_u64 entry = {scores, offsetof(score, self_irets)};
    qemu_plugin_register_vcpu_insn_exec_inline_per_vcpu(at, QEMU_PLUGIN_INLINE_ADD_U64, entry, 1);
    return true;
}

static vcpu *translator(void);

/* Is `i`, at the end of a block, a popf from which nothing but pops leads to a far return, or right in front of a near
 * one? Once far returns were seen to resume contexts, what loads flags is counted. */
static bool note_flag_load(struct qemu_plugin_insn *at, uint64_t behind, unsigned bits, insn *i)
{
    enum { AHEAD = 16 };
    size_t left = PAGE_OFFSET + 1 - (behind & PAGE_OFFSET), length = left < AHEAD ? left : AHEAD;

    if (atomic_load(&far_seen)) {
        qemu_plugin_u64 entry = {scores, offsetof(score, flag_loads)};
        qemu_plugin_register_vcpu_insn_exec_inline_per_vcpu(at, QEMU_PLUGIN_INLINE_ADD_U64, entry, 1);
    }
    const uint8_t *bytes = i->size ? vcpu_memory(translator(), behind, length) : NULL;
    if (bytes && i->size == bits / 8 && (i->imm = near_return(bytes, length)) >= 0) {
        i->kind = OP_FLAGS_RET;
        return true;
    }
    i->imm = bytes ? far_return_ahead(bytes, length, bits, &i->reg) : -1;
    return i->imm >= 0;
}

/* All instructions of a block of kernel code. */
static void instrument_block(block *b)
{
    size_t count = qemu_plugin_tb_n_insns(b->tb), length = 0, length_before = 0;
    uint8_t both[2][16];
    uint8_t rsp_in = NO_REG;
    bool cs_read = false, told_stores = atomic_load(&stores_seen), watched = watches_gates();

    for (size_t n = 0; n < count; n++, length_before = length) {
        struct qemu_plugin_insn *at = qemu_plugin_tb_get_insn(b->tb, n);
        uint8_t *bytes = both[n & 1], *before = both[~n & 1];
        uint64_t pc = qemu_plugin_insn_vaddr(at);
        insn i = {.kind = OP_OTHER};

        length = qemu_plugin_insn_data(at, bytes, sizeof(both[0]));
        if (told_stores && b->bits != 16) {
            qemu_plugin_register_vcpu_mem_cb(at, on_store, QEMU_PLUGIN_CB_R_REGS, QEMU_PLUGIN_MEM_W, (void *)pc);
        }
        if (b->bits != 16 && watched && may_store(bytes, length, b->bits)) {
            qemu_plugin_register_vcpu_mem_cb(at, on_kernel_store, QEMU_PLUGIN_CB_NO_REGS, QEMU_PLUGIN_MEM_W, (void *)pc);
        }
        if (may_matter(bytes, length, b->bits)) {
            i = decode(bytes, length, b->bits);
        }
        if (i.kind == OP_IRET && count_self(b, at, cs_read, pushes(before, length_before, pc + length, b->bits))) {
            return; /* it ends its block */
        }
        if (i.kind == OP_LOAD_FLAGS && (b->bits == 16 || !note_flag_load(at, pc + length, b->bits, &i))) {
            i.kind = OP_OTHER;
        }
        cs_read |= reads_cs(bytes, length, b->bits);
        if (rsp_in != NO_REG && stores(bytes, length, rsp_in, b->bits)) {
            i = (insn){.kind = OP_STORE_RSP, .length = (uint8_t)length, .reg = NO_REG};
        }
        uint8_t taken = takes_rsp(bytes, length, b->bits);
        rsp_in = taken != NO_REG ? taken : rsp_in;
        site *s = is_of_interest(b, &i) ? site_of(pc, bytes, b->bits, &i) : NULL;
        if (s) {
            instrument(b, at, s);
        }
        if (n == count - 1 && b->bits != 16 && !told_of_entries) {
            note_end(at, pc + length, &i);
        }
    }
}

/* Does the table still show what was read of it? Without a copy: mostly it does. */
static bool is_unchanged(vcpu *any, const idt_table *t, unsigned bits)
{
    size_t length = idt_read_length(t);
    const uint8_t *now = t->read && bits <= t->bits ? vcpu_memory(any, t->base, length) : NULL;
    return now && memcmp(now, t->bytes, length) == 0;
}

/* Read the loaded tables again; where one leads to code that was translated before, start afresh. */
static void read_tables(vcpu *any, unsigned bits)
{
    bool stale = false;

    pthread_mutex_lock(&idt_lock);
    for (unsigned i = 0; i < idt_count; i++) {
        if (idt_tables[i]->loaded && !is_unchanged(any, idt_tables[i], bits)) {
            stale |= idt_refresh(idt_tables[i], bits, vcpu_read, any);
        }
    }
    for (unsigned i = 0; i < vcpu_most; i++) {
        stale |= find_task_entries(any, vcpus[i]);
    }
    pthread_mutex_unlock(&idt_lock);
    if (stale) {
        flush_translations();
    }
}

static block_head head_of(const struct qemu_plugin_tb *tb)
{
    block_head head = {.start = qemu_plugin_tb_vaddr(tb)};

    for (size_t n = 0; n < qemu_plugin_tb_n_insns(tb) && head.length < BLOCK_BYTES; n++) {
        struct qemu_plugin_insn *at = qemu_plugin_tb_get_insn(tb, n);
        head.length += qemu_plugin_insn_data(at, head.bytes + head.length, BLOCK_BYTES - head.length);
    }
    return head;
}

/* Does a block of kernel code begin a handler? One that runs first because something was delivered to it must be known now;
 * of others the log will tell. */
static bool begins_entry_point(vcpu *any, const block_head *head, unsigned bits)
{
    if (!told_of_entries && !nothing_delivered()) {
        read_tables(any, bits);
    }
    if (calling && is_called_first(any, bits)) {
        add_entry_point(any, head->start);
    }
    idt_told.new_blocks += note_translated(head);
    want_log();
    return is_targets_block(head, vcpu_read, any);
}

/* The translator's own view of the CPU it translates for: buffers of its thread, handles of any vCPU. */
static vcpu *translator(void)
{
    static _Thread_local vcpu *own;

    if (!own && (own = calloc(1, sizeof(*own)))) {
        vcpu_find_registers(own, vcpus[0]->word);
    }
    if (!own) {
        go_untold("a thread that translates");
    }
    return own;
}

static CB_TB(on_translation, tb)
{
    CB_UNUSED();
    vcpu *v = translator();
    block b = {.tb = tb, .start = qemu_plugin_tb_vaddr(tb)};
    size_t count = qemu_plugin_tb_n_insns(tb);

    if (!v || count == 0) {
        return;
    }
    b.bits = vcpu_bits(v);
    bool user = b.bits != 16 && (vcpu_reg(v, REG_CS) & 3) == 3;
    user = user || (b.bits == 32 && (vcpu_reg(v, REG_RFLAGS) & RFLAGS_VM));
    if (user) {
        /* Only what leaves user mode matters, and it ends its block. */
        struct qemu_plugin_insn *at = qemu_plugin_tb_get_insn(tb, count - 1);
        uint8_t bytes[16];
        size_t length = qemu_plugin_insn_data(at, bytes, sizeof(bytes));
        insn i = decode(bytes, length, b.bits);
        if (i.kind == OP_SYSCALL || i.kind == OP_SYSENTER || i.kind == OP_INT_N) {
            site *s = site_of(qemu_plugin_insn_vaddr(at), bytes, b.bits, &i);
            if (s) {
                instrument(&b, at, s);
            }
        } else if (leaves_segment(bytes, length, b.bits)) {
            call_at(at, on_users_far, NULL);
        }
        return;
    }
    struct qemu_plugin_insn *first = qemu_plugin_tb_get_insn(tb, 0);
    if (b.bits == 16) {
        if (b.start == 0xfffffff0) {
            call_at(first, on_reset, (void *)b.start);
        } else if (b.start % 256 == 0) {
            call_at(first, on_smi, NULL);
        }
    } else {
        block_head head = head_of(tb);
        b.entry_point = begins_entry_point(v, &head, b.bits);
        if (b.entry_point) {
            call_at(first, on_entry_point, (void *)b.start);
        }
    }
    instrument_block(&b);
}
