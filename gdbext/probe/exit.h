/*
 * Exits: an iret, sysret or sysexit is about to run. The context is what it will load, beside the live registers.
 */
#pragma once

#include "switch.h"
#include "muted.h"

enum { SYSRET_FLAGS = 0x3c7fd7 };

/* Does the reader want to look before this context is resumed? */
static bool wants_verdict(const ctx_row *row, bool *caught)
{
    const ring_header *h = shared.header;

    *caught = h->catch && row->rip == h->catch_rip && row->rsp == h->catch_rsp && ledger_space(row) == h->catch_space;
    return *caught || (h->halt && !(row->flags & (CTX_FLAG_IDENTICAL | CTX_FLAG_SELF)));
}

/* The word in front of the instruction at which user code goes on: by it a kernel may know where it may send it. */
static void fill_in_front(vcpu *v, ctx_row *row)
{
    const uint8_t *bytes = vcpu_memory(v, row->rip - sizeof(uint32_t), sizeof(uint32_t));

    if (bytes) {
        memcpy(&row->value, bytes, sizeof(uint32_t));
    }
}

/* Tell who stored last into the words below the frame that the exit `row` pops; `row` moves behind these rows. */
static ctx_row *tell_last_stores(vcpu *v, ctx_row *row)
{
    _Alignas(ctx_row) uint8_t copy[RING_SIMD_ROW_SIZE];
    const ctx_row *leaving = (const ctx_row *)copy;
    last_store s;

    memcpy(copy, row, shared.row_size);
    for (uint64_t at = leaving->frame - STORE_SAVED * leaving->size; at < leaving->frame; at += leaving->size) {
        if (store_last(at, leaving->size, &s)) {
            row = begin(v, CTX_KIND_STORE, 0, s.pc, leaving->mode);
            row->cpu = (uint16_t)s.cpu;
            row->match = s.event;
            row->addr = s.at;
            row->value = s.value;
            row->size = (uint8_t)s.size;
            row->frame = leaving->frame;
            row->flags |= CTX_FLAG_NO_BASES | CTX_FLAG_NO_KERNEL_GS;
            emit(v, row);
        }
    }
    row = ring_reserve(&shared, v->index);
    memcpy(row, copy, shared.row_size);
    return row;
}

static void emit_exit(vcpu *v, ctx_row *row)
{
    ring_control *c = ring_cpu(&shared, v->index);
    bool caught, to_user = is_users(row) && !(row->flags & CTX_FLAG_UNREADABLE);

    c->exits++;
    c->self = v->self_irets + v->score->self_irets;
    v->last = (last_event){.kind = CTX_KIND_EXIT, .pc = row->pc, .rip = row->rip, .frame = row->frame};
    v->score->jump_target = 0;
    if (!(row->flags & (CTX_FLAG_UNREADABLE | CTX_FLAG_SELF))) {
        ledger_resume(row, simd_of(row));
    }
    v->score->leaving = 0;
    if (row->flags & CTX_FLAG_IDENTICAL) {
        c->identical++;
    } else if (!(row->flags & CTX_FLAG_SELF)) {
        c->unmatched += !row->match;
        if (!row->match) {
            read_tables(v, vcpu_bits(v)); /* its entry may have gone by: a gate is new, its handler's code is not */
        }
        if (to_user) {
            fill_in_front(v, row);
        }
        v->score->switching = 0; /* a switch that ends in an iret, to a thread that was preempted */
    }
    if (row->how == CTX_HOW_IRET && !(row->flags & (CTX_FLAG_UNREADABLE | CTX_FLAG_SELF)) && frame_popped(row) &&
        !(row->flags & CTX_FLAG_IDENTICAL)) {
        atomic_store(&frame_was_changed, true);
    }
    if (last_stores && row->how == CTX_HOW_IRET && !(row->flags & (CTX_FLAG_IDENTICAL | CTX_FLAG_UNREADABLE | CTX_FLAG_SELF))) {
        row = tell_last_stores(v, row);
    }
    ring_number(&shared, row);
    bool wait = wants_verdict(row, &caught);
    publish(v, row, wait, caught);
    if (to_user) {
        mute_log(v);
    }
}

typedef struct {
    uint64_t at;
    unsigned words;
    uint64_t w[FRAME_WORDS];
} popped;

/* The words that `iret` will pop. In 64-bit code always five; elsewhere three, or five to an outer ring. */
static void read_popped(vcpu *v, const site *s, popped *p)
{
    uint64_t rsp = vcpu_reg(v, REG_RSP);

    p->at = s->bits == 64 ? rsp : vcpu_stack(v, rsp);
    p->words = vcpu_words(v, p->at, s->insn.size, FRAME_WORDS, p->w);
}

enum { POPF_LOADS = 0x247fd5 };

/* The kernel's way of serialising: an iret to the next instruction with the stack as it was before the pushes. Not where
 * the CPU pushed that frame: what lies behind an iret may be a handler that was interrupted before it began. */
static bool is_self(const site *s, const popped *p, uint16_t live_cs)
{
    uint64_t end = p->at + (s->bits == 64 ? 5u : 3u) * s->insn.size;

    return p->w[FRAME_RIP] == s->pc + s->insn.length && p->w[FRAME_CS] == live_cs &&
           (s->bits == 32 || p->w[FRAME_RSP] == end) && !frame_stands(p->at, p->w);
}

static void fill_popped(vcpu *v, ctx_row *row, const site *s, const popped *p, uint16_t live_cs)
{
    bool outer = (p->w[FRAME_CS] & 3) > (live_cs & 3u) || (p->w[FRAME_RFLAGS] & RFLAGS_VM);

    row->frame = p->at;
    if (p->words < 3 || (p->words < 5 && (s->bits == 64 || outer))) {
        row->flags |= CTX_FLAG_UNREADABLE;
        return;
    }
    row->rip = p->w[FRAME_RIP];
    row->cs = (uint16_t)p->w[FRAME_CS];
    row->rflags = p->w[FRAME_RFLAGS];
    memcpy(row->stack, p->w, (p->words < STACK_WORDS ? p->words : STACK_WORDS) * sizeof(*p->w));
    if (s->bits == 64 || outer) {
        row->rsp = p->w[FRAME_RSP];
        row->ss = (uint16_t)p->w[FRAME_SS];
    } else {
        row->rsp = p->at + 3u * s->insn.size;
        row->ss = (uint16_t)vcpu_reg(v, REG_SS);
        row->flags |= CTX_FLAG_NO_STACK;
    }
    if (s->bits == 32 && outer) {
        row->cr3 += user_base(v, row->cs, row->rflags);
    }
    if ((p->w[FRAME_RFLAGS] & RFLAGS_VM) && p->words >= FRAME_WORDS) {
        row->es = (uint16_t)p->w[5], row->ds = (uint16_t)p->w[6];
        row->fs = (uint16_t)p->w[7], row->gs = (uint16_t)p->w[8];
    }
    row->flags |= s->bits == 32 || !vcpu_is_code64(v, row->cs) ? CTX_FLAG_LINEAR32 : 0;
}

/* The selector that a far jump or call, ltr or lldt names. */
static uint64_t far_selector(vcpu *v, const site *s)
{
    if (s->insn.reg != NO_REG) {
        return vcpu_reg(v, s->insn.reg);
    }
    if (!s->insn.memory) {
        return (uint64_t)s->insn.imm;
    }
    unsigned behind = s->insn.kind == OP_LTR || s->insn.kind == OP_LLDT ? 0 : s->insn.size;
    const uint8_t *bytes = vcpu_memory(v, operand_address(v, s) + behind, 2);
    return bytes ? bytes[0] | (unsigned)bytes[1] << 8 : 0;
}

/* The task of the TSS `t` is about to run on. */
static void emit_task_exit(vcpu *v, const site *s, const tss *t)
{
    ctx_row *row = begin(v, CTX_KIND_EXIT, CTX_HOW_TASK, s->pc, s->bits);

    fill_context(v, row);
    row->cpl = (uint16_t)vcpu_reg(v, REG_CS) & 3;
    row->size = 4;
    fill_from_tss(v, row, t);
    emit_exit(v, row);
}

/* One end of a switch that code asked for: the context that is left, or taken up. */
static void emit_task_switch(vcpu *v, uint8_t kind, const site *s, uint64_t at, const tss *t)
{
    ctx_row *row = begin(v, kind, CTX_HOW_TASK, s->pc, s->bits);

    if (t) {
        fill_from_tss(v, row, t);
    } else {
        fill_context(v, row);
        row->cs = (uint16_t)vcpu_reg(v, REG_CS), row->ss = (uint16_t)vcpu_reg(v, REG_SS);
        row->rip = s->pc + s->insn.length;
        row->rflags = vcpu_reg(v, REG_RFLAGS);
        row->flags |= CTX_FLAG_FLAGS_PARTIAL;
    }
    row->cpl = row->cs & 3;
    row->addr = at;
    emit(v, row);
}

static void on_ltr(unsigned index, void *userdata)
{
    const site *s = userdata;
    vcpu *v = vcpu_of(index);

    v->task = (uint16_t)far_selector(v, s) & ~7u;
}

static void on_lldt(unsigned index, void *userdata)
{
    const site *s = userdata;
    vcpu *v = vcpu_of(index);

    v->ldt = (uint16_t)far_selector(v, s) & ~7u;
}

/* A far jump or call: to a TSS, directly or through a task gate in the GDT, it switches tasks. */
static void on_far(unsigned index, void *userdata)
{
    enum { TASK_GATE = 0x5 };
    const site *s = userdata;
    vcpu *v = vcpu_of(index);
    uint16_t to = (uint16_t)far_selector(v, s) & ~3u;
    uint64_t d = vcpu_descriptor(v, to);
    tss own, next;

    if ((d >> 40 & 0x1f) == TASK_GATE) {
        to = (uint16_t)(d >> 16) & ~3u;
        d = vcpu_descriptor(v, to);
    }
    if (!read_tss_of(v, d, &next)) {
        return;
    }
    if (read_tss(v, v->task, &own)) {
        emit_task_switch(v, CTX_KIND_SWITCH_OUT, s, own.base, NULL);
    }
    enter_task(v, to, &next);
    v->task_called = s->insn.kind == OP_FAR_CALL;
    if (is_user_task(&next)) {
        emit_task_exit(v, s, &next);
    } else {
        emit_task_switch(v, CTX_KIND_SWITCH_IN, s, next.base, &next);
    }
}

/* An iret with NT set: back to the task that the running one's TSS names. */
static void on_task_return(vcpu *v, const site *s)
{
    tss own, next;
    uint16_t to = read_tss(v, v->task, &own) ? own.word[TSS_BACKLINK] & 0xfffc : 0;

    if (!read_tss(v, to, &next)) {
        return;
    }
    enter_task(v, to, &next);
    if (v->task_called && !is_user_task(&next)) {
        emit_task_switch(v, CTX_KIND_SWITCH_IN, s, next.base, &next);
    } else {
        emit_task_exit(v, s, &next);
    }
}

static bool self_wanted;

static void on_iret(unsigned index, void *userdata)
{
    const site *s = userdata;
    vcpu *v = vcpu_of(index);
    uint16_t live_cs = (uint16_t)vcpu_reg(v, REG_CS);
    popped p;

    take_tables(v);
    if (s->bits == 32 && (vcpu_reg(v, REG_RFLAGS) & RFLAGS_NT)) {
        on_task_return(v, s);
        return;
    }
    read_popped(v, s, &p);
    bool self = p.words >= (s->bits == 64 ? 5 : 3) && is_self(s, &p, live_cs);
    if (self && !self_wanted) {
        ring_cpu(&shared, index)->self = ++v->self_irets + v->score->self_irets;
        return;
    }
    if (p.words >= 3 && (p.w[FRAME_CS] & 3) == 3) {
        meet_user(v);
        update_alarm(v);
    }
    if (p.words >= (s->bits == 64 ? 5 : 3) && ((p.w[FRAME_CS] ^ live_cs) & 3) == 0) { /* back from a switch that ends in an iret? */
        uint64_t rsp = s->bits == 64 ? p.w[FRAME_RSP] : p.at + 3u * s->insn.size;
        arrive(v, s, rsp - s->insn.size, p.w[FRAME_RIP], ledger_waits(p.w[FRAME_RIP], rsp));
        v->far.at = p.w[FRAME_RIP]; /* a far return may have been interrupted, behind its popf */
        v->far.rsp = rsp;
        v->far.flags = (p.w[FRAME_RFLAGS] & POPF_LOADS) | RFLAGS_ONE;
    }
    ctx_row *row = begin(v, CTX_KIND_EXIT, CTX_HOW_IRET, s->pc, s->bits);
    fill_context(v, row);
    row->cpl = live_cs & 3;
    row->size = s->insn.size;
    fill_popped(v, row, s, &p, live_cs);
    row->flags |= self ? CTX_FLAG_SELF : 0;
    v->self_irets += self;
    emit_exit(v, row);
}

/* RIP from RCX, RFLAGS from R11, selectors from STAR (Intel SDM vol. 2, SYSRET; AMD takes SS as it is, so does QEMU). */
static void on_sysret(unsigned index, void *userdata)
{
    const site *s = userdata;
    vcpu *v = vcpu_of(index);
    bool code64 = s->insn.size == 8;
    uint64_t star = v->star ? v->star : last_star;

    meet_user(v);
    update_alarm(v);
    ctx_row *row = begin(v, CTX_KIND_EXIT, CTX_HOW_SYSRET, s->pc, s->bits);
    fill_context(v, row);
    row->size = s->insn.size;
    row->rip = code64 ? row->rcx : (uint32_t)row->rcx;
    row->rflags = (row->r11 & SYSRET_FLAGS) | RFLAGS_ONE;
    if (star) {
        row->cs = (uint16_t)(((star >> 48) + (code64 ? 16 : 0)) | 3);
        row->ss = (uint16_t)((star >> 48) + 8);
    } else { /* written before the machine's snapshot was made */
        row->cs = (uint16_t)last_caller;
        row->ss = (uint16_t)(last_caller >> 16);
    }
    row->flags |= code64 ? 0 : CTX_FLAG_LINEAR32;
    emit_exit(v, row);
}

/* RIP from RDX, RSP from RCX, selectors from SYSENTER_CS (Intel SDM vol. 2, SYSEXIT). */
static void on_sysexit(unsigned index, void *userdata)
{
    const site *s = userdata;
    vcpu *v = vcpu_of(index);
    bool code64 = s->insn.size == 8;

    meet_user(v);
    update_alarm(v);
    ctx_row *row = begin(v, CTX_KIND_EXIT, CTX_HOW_SYSEXIT, s->pc, s->bits);
    fill_context(v, row);
    row->size = s->insn.size;
    row->rip = code64 ? row->rdx : (uint32_t)row->rdx;
    row->rsp = code64 ? row->rcx : (uint32_t)row->rcx;
    row->rflags = vcpu_reg(v, REG_RFLAGS);
    row->flags |= CTX_FLAG_FLAGS_PARTIAL | (code64 ? 0 : CTX_FLAG_LINEAR32);
    if (v->sysenter_cs) {
        row->cs = (uint16_t)((v->sysenter_cs + (code64 ? 32 : 16)) | 3);
        row->ss = (uint16_t)((v->sysenter_cs + (code64 ? 40 : 24)) | 3);
    } else {
        row->cs = (uint16_t)last_caller;
        row->ss = (uint16_t)(last_caller >> 16);
    }
    emit_exit(v, row);
}
