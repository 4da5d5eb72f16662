/*
 * Entries: the first instruction of a handler is about to run.
 *
 * QEMU 10.2 and later say when an interrupt is delivered. Earlier ones do not: there a callback on the handler's
 * first instruction must tell a delivery from a resume and from a jump, by the frame that the CPU has just pushed
 * (Intel SDM vol. 3A, 6.12.1 and 6.14.2).
 */
#pragma once

#include "gates.h"
#include "tables.h"

enum { FRAME_RIP, FRAME_CS, FRAME_RFLAGS, FRAME_RSP, FRAME_SS, FRAME_WORDS = 9 };
enum { VECTOR_NMI = 2, VECTOR_EXCEPTIONS = 32, VECTOR_SYSCALL = 0x100, VECTOR_SYSENTER, VECTOR_UNKNOWN = 0xffff };

#define ERROR_CODE_VECTORS (1u << 8 | 0x1fu << 10 | 1u << 17 | 1u << 21 | 1u << 29 | 1u << 30)
#define RFLAGS_RESERVED (~0x3f7fd7ull)
#define RFLAGS_ONE 2u

typedef struct {
    uint64_t pc, sp;
    unsigned bits;
    uint16_t live_cs;
    unsigned vector;
    const idt_gate *gate;
    bool soft, error_pushed;
    uint64_t at; /* of the RIP word */
    unsigned words;
    uint64_t raw[FRAME_WORDS + 1]; /* from sp up */
    const uint64_t *frame;         /* in raw */
    const log_record *heard;       /* it is over, and this tells of it; NULL: it is just now */
} delivery;

static bool pushes_error(unsigned vector)
{
    return vector < VECTOR_EXCEPTIONS && (ERROR_CODE_VECTORS >> vector & 1);
}

/* Can the words at `w` be what the CPU pushes? */
static bool plausible_frame(const delivery *d, const uint64_t *w, uint64_t at)
{
    bool from_user = (w[FRAME_CS] & 3) > (d->live_cs & 3u) || (w[FRAME_RFLAGS] & RFLAGS_VM);

    if ((w[FRAME_RFLAGS] & RFLAGS_RESERVED) || !(w[FRAME_RFLAGS] & RFLAGS_ONE)) {
        return false;
    }
    if (w[FRAME_CS] > 0xffff || (w[FRAME_CS] < 4 && !(w[FRAME_RFLAGS] & RFLAGS_VM))) {
        return false;
    }
    if (!from_user && (w[FRAME_CS] & 3) < (d->live_cs & 3u)) {
        return false;
    }
    if (d->bits == 64) {
        bool same_stack = !from_user && !(d->gate && d->gate->ist);
        return w[FRAME_SS] <= 0xffff && (!same_stack || (w[FRAME_RSP] & ~15ull) == at + 40);
    }
    return !from_user || w[FRAME_SS] <= 0xffff;
}

/* Read the stack and find the frame on it: directly, or above an error code, which has 16 bits. */
static bool find_frame(vcpu *v, delivery *d, bool may_push_error)
{
    unsigned size = d->bits / 8;
    bool may_not = true; /* no interrupt pushes one, and who has not programmed the PICs anew gets theirs from 8 on */

    d->words = vcpu_words(v, d->sp, size, FRAME_WORDS + 1, d->raw);
    if (d->bits == 64) { /* the CPU aligns RSP to 16 before it pushes: the error code shows in bit 3 */
        bool error = (d->sp & 15) == 0;
        if ((d->sp & 7) || (error && !may_push_error)) {
            return false;
        }
        may_push_error = error;
        may_not = !error;
    } else {
        may_push_error = may_push_error && d->raw[0] <= 0xffff;
    }
    for (int with_error = 1; with_error >= 0; with_error--) {
        const uint64_t *w = d->raw + with_error;
        uint64_t at = d->sp + (uint64_t)with_error * size;
        unsigned least = (d->bits == 64 ? 5 : 3) + (unsigned)with_error;
        if ((with_error ? may_push_error : may_not) && d->words >= least && plausible_frame(d, w, at)) {
            d->error_pushed = with_error;
            d->frame = w;
            d->at = at;
            d->words -= with_error;
            return true;
        }
    }
    return false;
}

/* Which of the vectors whose gates lead to this handler was it? False: none, or no frame that the CPU could push. */
static bool identify(vcpu *v, delivery *d)
{
    const idt_table *t = v->idt;
    unsigned with = 0, without = 0, found = 0, exceptions = 0;
    bool soft_fits = false;
    unsigned first[2] = {VECTOR_UNKNOWN, VECTOR_UNKNOWN}; /* without, with an error code */

    for (unsigned vector = 0; vector < IDT_GATES; vector++) {
        if (t->target[vector] != d->pc) {
            continue;
        }
        bool error = pushes_error(vector);
        first[error] = first[error] == VECTOR_UNKNOWN ? vector : first[error];
        error ? with++ : without++;
        exceptions += vector < VECTOR_EXCEPTIONS;
        found++;
        d->gate = &t->gate[vector];
        soft_fits |= v->soft.pending && v->soft.vector == vector;
    }
    if (found == 0 || !find_frame(v, d, with > 0)) {
        return false;
    }
    bool error = d->error_pushed || without == 0;
    d->vector = (error ? with : without) == 1 ? first[error] : VECTOR_UNKNOWN;
    /* A page mapped at several addresses is translated once: only its offset is sure. */
    if (soft_fits && !d->error_pushed && ((d->frame[FRAME_RIP] ^ v->soft.next) & PAGE_OFFSET) == 0) {
        d->soft = true;
        d->vector = v->soft.vector;
    }
    if (d->vector != VECTOR_UNKNOWN) {
        d->gate = &t->gate[d->vector];
    } else if (exceptions == 0) {
        d->vector |= CTX_HOW_INTERRUPT << 16; /* which one is unknown, but not what kind */
    } else if (exceptions == found) {
        d->vector |= CTX_HOW_EXCEPTION << 16;
    }
    return true;
}

static uint8_t how_of(const delivery *d)
{
    if (d->soft) {
        return CTX_HOW_SOFT;
    }
    if ((d->vector & 0xffff) == VECTOR_UNKNOWN) {
        return (uint8_t)(d->vector >> 16);
    }
    bool exception = d->vector < VECTOR_EXCEPTIONS && pushes_error(d->vector) == d->error_pushed;
    return d->vector == VECTOR_NMI ? CTX_HOW_NMI : exception ? CTX_HOW_EXCEPTION : CTX_HOW_INTERRUPT;
}

/* Number, enter into the ledger and publish: in this order, so that an exit elsewhere finds and follows it. */
static void emit_entry(vcpu *v, ctx_row *row)
{
    ring_control *c = ring_cpu(&shared, v->index);

    if (row->how == CTX_HOW_SYSCALL || row->how == CTX_HOW_SYSENTER) {
        c->syscalls++;
    }
    c->entries++;
    v->soft.pending = v->call.syscall = v->call.sysenter = false;
    v->score->jump_target = 0;
    v->score->leaving = 0;
    v->flag_loads = v->score->flag_loads;
    v->last = (last_event){.kind = CTX_KIND_ENTRY, .pc = row->pc, .rip = row->rip, .frame = row->frame};
    memcpy(v->last.words, row->stack, sizeof(v->last.words));
    ring_number(&shared, row);
    ledger_add(row, simd_of(row));
    if (row->frame) {
        frame_pushed(row);
    }
    publish(v, row, false, false);
}

/* Where the code segment of 32-bit user code begins. Kernels that give programs segments of their own, all from 0 on, tell
 * them apart by that, not by page tables. */
static uint32_t user_base(vcpu *v, uint16_t cs, uint64_t rflags)
{
    if (cs == v->flat_user || (rflags & RFLAGS_VM)) {
        return 0;
    }
    uint64_t d = vcpu_descriptor(v, cs);
    if (cs & 4) {
        uint64_t table = v->ldt ? vcpu_descriptor(v, v->ldt) : 0;
        return table ? descriptor_base(descriptor_in(v, descriptor_base(table), UINT16_MAX, (uint16_t)(cs & ~4u))) : 0;
    }
    v->flat_user = d && descriptor_base(d) == 0 ? cs : v->flat_user;
    return descriptor_base(d);
}

static void fill_frame(vcpu *v, ctx_row *row, const delivery *d)
{
    const uint64_t *w = d->frame;
    bool vm86 = w[FRAME_RFLAGS] & RFLAGS_VM;
    bool outer = vm86 || ((w[FRAME_CS] ^ d->live_cs) & 3);

    row->frame = d->at;
    row->rip = w[FRAME_RIP];
    row->cs = (uint16_t)w[FRAME_CS];
    row->rflags = w[FRAME_RFLAGS];
    if (d->bits == 64 || outer) {
        row->rsp = w[FRAME_RSP];
        row->ss = (uint16_t)w[FRAME_SS];
    } else {
        row->rsp = d->at + 3 * 4;
        row->ss = d->heard ? row->ss : (uint16_t)vcpu_reg(v, REG_SS);
        row->flags |= CTX_FLAG_NO_STACK;
    }
    if (d->bits == 32 && outer) {
        row->cr3 += user_base(v, row->cs, row->rflags);
    }
    if (vm86 && d->words >= FRAME_WORDS) { /* the CPU pushed and cleared them (SDM vol. 3B, 21.3.1) */
        row->es = (uint16_t)w[5], row->ds = (uint16_t)w[6], row->fs = (uint16_t)w[7], row->gs = (uint16_t)w[8];
    }
    memcpy(row->stack, w, (d->words < STACK_WORDS ? d->words : STACK_WORDS) * sizeof(*w));
    if (d->error_pushed) {
        row->error = (uint32_t)d->raw[0];
        row->flags |= CTX_FLAG_ERROR_CODE;
    }
    row->flags |= d->gate && d->gate->ist ? CTX_FLAG_IST : 0;
    row->flags |= d->bits == 32 || !vcpu_is_code64(v, row->cs) ? CTX_FLAG_LINEAR32 : 0;
}

static void fill_heard(ctx_row *row, const log_record *r);

static void emit_delivery(vcpu *v, const delivery *d)
{
    uint64_t frame_cs = d->frame[FRAME_CS];

    if ((frame_cs & 3) == 3 || (d->frame[FRAME_RFLAGS] & RFLAGS_VM)) {
        meet_user(v);
    }
    update_alarm(v);
    ctx_row *row = begin(v, CTX_KIND_ENTRY, how_of(d), d->pc, d->bits);
    fill_context(v, row);
    if (d->heard) {
        fill_heard(row, d->heard);
    }
    row->cpl = d->live_cs & 3;
    row->vector = (uint16_t)d->vector;
    fill_frame(v, row, d);
    emit_entry(v, row);
}

/* The stack pointer of the interrupted context, where it runs on the same privilege level. */
static uint64_t inner_sp(const delivery *d)
{
    return d->bits == 64 ? d->frame[FRAME_RSP] : d->at + 3 * 4;
}

/* A handler of this vCPU began on top of another whose first instruction never ran: that one's entry comes first. */
static bool is_unseen(const vcpu *v, const delivery *d)
{
    bool seen = v->last.kind == CTX_KIND_ENTRY && v->last.pc == d->frame[FRAME_RIP] &&
                v->last.frame - inner_sp(d) <= 8; /* it begins with RSP there, or at the error code below */
    bool resumed = v->last.kind == CTX_KIND_EXIT && v->last.rip == d->frame[FRAME_RIP];
    return (d->frame[FRAME_CS] & 3) == (d->live_cs & 3u) && !seen && !resumed;
}

static bool emit_call(vcpu *v, uint64_t pc, uint64_t sp);

/* As `identify` says, by the table as it was last read. */
static bool identify_by_table(vcpu *v, delivery *d)
{
    d->bits = v->idt->bits;
    return d->bits && identify(v, d);
}

/* The handler at `pc` starts with the stack at `sp`. `told`: QEMU itself said so. False: this is no entry. */
static bool deliver(vcpu *v, uint64_t pc, uint64_t sp, bool told, unsigned depth)
{
    delivery d = {.pc = pc, .sp = sp, .live_cs = (uint16_t)vcpu_reg(v, REG_CS)};

    if (!v->idt) {
        return false;
    }
    if (!identify_by_table(v, &d)) {
        read_tables(v, vcpu_bits(v)); /* a gate may be new, and lead to a handler that has long been translated */
        if (!identify_by_table(v, &d)) {
            return false;
        }
    }
    if (!told) {
        bool resumed = v->last.kind == CTX_KIND_EXIT && d.frame[FRAME_RIP] != v->last.rip &&
                       vcpu_linear(v, v->last.rip, d.live_cs) == pc;
        bool jumped = v->score->jump_target && ((v->score->jump_target ^ pc) & PAGE_OFFSET) == 0 &&
                      v->last.kind == CTX_KIND_ENTRY && v->last.frame == d.at &&
                      memcmp(v->last.words, d.frame, (d.bits == 64 ? 5 : 3) * sizeof(*d.frame)) == 0;
        if (resumed || jumped) {
            return false;
        }
    }
    if (depth < 4 && is_unseen(v, &d) && !emit_call(v, d.frame[FRAME_RIP], inner_sp(&d)) && !told &&
        is_target(d.frame[FRAME_RIP])) {
        deliver(v, d.frame[FRAME_RIP], inner_sp(&d), false, depth + 1);
    }
    emit_delivery(v, &d);
    return true;
}

/* `syscall` saved RIP in RCX and RFLAGS in R11; the selectors were noted when it ran. `sp`: RSP, not live any more where
 * something came before the handler's first instruction. */
static void emit_syscall(vcpu *v, uint64_t pc, uint64_t sp)
{
    meet_user(v);
    update_alarm(v);
    ctx_row *row = begin(v, CTX_KIND_ENTRY, CTX_HOW_SYSCALL, pc, 64);
    fill_context(v, row);
    row->vector = VECTOR_SYSCALL;
    row->rip = row->rcx;
    row->rsp = sp;
    row->rflags = row->r11;
    row->cs = v->call.cs;
    row->ss = v->call.ss;
    row->flags |= vcpu_is_code64(v, row->cs) ? 0 : CTX_FLAG_LINEAR32;
    emit_entry(v, row);
}

/* `sysenter` saves nothing: what it forgets was noted when it ran. */
static void emit_sysenter(vcpu *v, uint64_t pc, unsigned bits)
{
    meet_user(v);
    update_alarm(v);
    ctx_row *row = begin(v, CTX_KIND_ENTRY, CTX_HOW_SYSENTER, pc, bits);
    fill_context(v, row);
    row->vector = VECTOR_SYSENTER;
    row->rip = v->call.next;
    row->rsp = v->call.rsp;
    row->rflags = v->call.rflags;
    row->cs = v->call.cs;
    row->ss = v->call.ss;
    row->flags |= CTX_FLAG_FLAGS_PARTIAL | (bits == 64 && vcpu_is_code64(v, row->cs) ? 0 : CTX_FLAG_LINEAR32);
    emit_entry(v, row);
}

/* Is `pc` where the call goes that this vCPU has begun? Then its entry is now, before whatever overtook it: neither
 * instruction clears TF by itself, NMIs come at any time, and the first instruction may be out of reach. */
static bool emit_call(vcpu *v, uint64_t pc, uint64_t sp)
{
    if (v->call.syscall && !v->lstar && vcpu_reg(v, REG_RCX) == v->call.next) {
        v->lstar = pc; /* written before the machine's snapshot was made */
    } else if (v->call.sysenter && !v->sysenter_eip) {
        v->sysenter_eip = pc;
    }
    if (v->call.syscall && (pc == v->lstar || pc == v->cstar)) {
        emit_syscall(v, pc, sp);
    } else if (v->call.sysenter && pc == v->sysenter_eip) {
        emit_sysenter(v, pc, vcpu_bits(v));
    } else {
        return false;
    }
    return true;
}
