/*
 * Entries that QEMU's interrupt log tells of and no callback saw. A gate that is written by code which ran before, to lead
 * to code which ran before, is known only once it was used, unless its store was seen: its first entry is then made of the
 * log, before the event at which this vCPU comes to look, in the order in which things happened. What is then known of the
 * gate shows the next ones.
 *
 * Where there is no such log (somebody else's -d or -D, vCPUs that share a thread, no reader to have it begun) all stores are
 * looked at for good (gates.h).
 */
#pragma once

#include "tasks.h"

#ifndef BY_LOG_ALONE
#define BY_LOG_ALONE false /* true in a test: what the log says is to be what is seen */
#endif

/* The log of the vCPU that this thread runs; NULL: there is none. */
static _Thread_local const log_reader *own_log;

/* Is it sure that nothing was delivered since this thread's vCPU had its last event? */
static bool nothing_delivered(void)
{
    return own_log && !no_log && !watches_gates() && !own_log->muted && !log_look(own_log);
}

/* What the CPU loads as its stack pointer where it leaves the stack: out of the TSS at `base` (Intel SDM vol. 3A, figures
 * 8-2 and 8-11). `cpl`: the handler's. */
static uint64_t stack_in_tss(vcpu *v, uint64_t base, unsigned bits, unsigned cpl, unsigned ist)
{
    enum { RSP0 = 4, IST1 = 36 }; /* ESP0 is there, too, with SS0 behind it */
    uint64_t words[2] = {0};

    vcpu_words(v, base + (ist ? IST1 + 8 * (ist - 1) : RSP0 + 8 * cpl), bits / 8, bits == 32 ? 2 : 1, words);
    return bits == 64 ? words[0] : descriptor_base(vcpu_descriptor(v, (uint16_t)words[1])) + words[0];
}

/* Where the TSS lies that `selector` names. The log shows of addresses what the code that ran could use: in 32-bit code the
 * lower half. */
static uint64_t tss_base(vcpu *v, uint16_t selector, unsigned bits)
{
    uint64_t high = 0;

    if (bits == 64) {
        vcpu_words(v, v->gdt + (selector & ~7u) + 8, 4, 1, &high);
    }
    return descriptor_base(vcpu_descriptor(v, selector)) | high << 32;
}

/* A segment's base as the log shows it, which may be its lower half, while the register is `now`. */
static uint64_t base_of(uint64_t shown, uint64_t now)
{
    return shown == (uint32_t)now ? now : shown;
}

/* The words that the CPU must have pushed, all that virtual 8086 mode has. */
static void read_pushed(const vcpu *v, const delivery *d, uint64_t *pushed)
{
    static const char *const data[] = {"ES =", "DS =", "FS =", "GS ="};
    const log_record *r = d->heard;
    uint64_t base;

    log_number(r, "IP=", &pushed[FRAME_RIP]);
    pushed[FRAME_CS] = log_segment(r, "CS =", &base);
    if (r->soft) { /* the others, as int3, have one byte */
        pushed[FRAME_RIP] = d->soft ? v->soft.next - base : pushed[FRAME_RIP] + 1;
    }
    log_number(r, "FL=", &pushed[FRAME_RFLAGS]);
    log_number(r, "SP=", &pushed[FRAME_RSP]);
    pushed[FRAME_SS] = log_segment(r, "SS =", &base);
    for (unsigned i = 0; i < 4; i++) {
        pushed[FRAME_SS + 1 + i] = log_segment(r, data[i], &base);
    }
}

/* The frame, of `words` words: those that lie there, if they are the ones that were pushed, or these. */
static void fill_pushed(vcpu *v, delivery *d, const uint64_t *pushed, unsigned words)
{
    uint64_t *w = d->raw + d->error_pushed;

    d->words = vcpu_words(v, d->at, d->bits / 8, FRAME_WORDS, w);
    bool stand = d->words >= words && w[FRAME_RIP] == pushed[FRAME_RIP] && w[FRAME_CS] == pushed[FRAME_CS];
    if (!stand || ((w[FRAME_RFLAGS] ^ pushed[FRAME_RFLAGS]) & ~(uint64_t)RFLAGS_RF)) {
        memcpy(w, pushed, words * sizeof(*w));
        d->words = words;
    }
    d->raw[0] = d->error_pushed ? d->heard->error : d->raw[0];
    d->frame = w;
}

/* The registers of the interrupted context; what is in `row` are those of now. */
static void fill_heard(ctx_row *row, const log_record *r)
{
    static const char *const wide[] = {"RAX=", "RCX=", "RDX=", "RBX=", "RSP=", "RBP=", "RSI=", "RDI=",
                                       "R8 =", "R9 =", "R10=", "R11=", "R12=", "R13=", "R14=", "R15="};
    static const char *const small[] = {"EAX=", "ECX=", "EDX=", "EBX=", "ESP=", "EBP=", "ESI=", "EDI="};
    uint64_t *general = row_general(row), base;

    for (unsigned i = 0; i < 16; i++) {
        if (!log_number(r, wide[i], &general[i]) && i < 8) {
            log_number(r, small[i], &general[i]);
        }
    }
    log_number(r, "CR2=", &row->cr2);
    log_number(r, "CR3=", &row->cr3);
    row->ds = log_segment(r, "DS =", &base);
    row->es = log_segment(r, "ES =", &base);
    row->fs = log_segment(r, "FS =", &base);
    row->fs_base = base_of(base, row->fs_base);
    row->gs = log_segment(r, "GS =", &base);
    row->gs_base = base_of(base, row->gs_base);
    row->ss = log_segment(r, "SS =", &base);
    row->flags &= (uint16_t)~(CTX_FLAG_SIMD | CTX_FLAG_FPU_OFF);
    if (log_number(r, "FL=", &base) && (base & RFLAGS_VM)) {
        row->fs_base = row->gs_base = 0; /* delivery clears them (Intel SDM vol. 3B, 21.3.1) */
    }
}

/* Where the delivery of `r` went, by the gate as it is now. False: to no gate that is looked at. */
static bool identify_heard(vcpu *v, const log_record *r, delivery *d)
{
    const idt_gate *gate = &v->idt->gate[r->vector % IDT_GATES];
    unsigned size = v->idt->bits / 8;
    uint64_t pushed[FRAME_WORDS] = {0}, base, top;

    if (!gate->target) {
        return false;
    }
    *d = (delivery){.pc = gate->target, .bits = v->idt->bits, .vector = r->vector, .gate = gate, .heard = r,
                    .soft = r->soft && v->soft.pending && v->soft.vector == r->vector,
                    .live_cs = gate->selector,
                    .error_pushed = pushes_error(r->vector) && !r->soft && !r->external};
    read_pushed(v, d, pushed);
    unsigned cpl = d->live_cs & 3;
    bool vm86 = pushed[FRAME_RFLAGS] & RFLAGS_VM, outer = vm86 || (pushed[FRAME_CS] & 3) > cpl;
    if (outer || gate->ist) {
        top = stack_in_tss(v, tss_base(v, log_segment(r, "TR =", &base), d->bits), d->bits, cpl, gate->ist);
    } else {
        top = d->bits == 64 ? pushed[FRAME_RSP] : vcpu_stack_in(v, (uint16_t)pushed[FRAME_SS], pushed[FRAME_RSP]);
    }
    top = d->bits == 64 ? top & ~15ull : (uint32_t)top;
    unsigned words = vm86 ? FRAME_WORDS : d->bits == 64 || outer ? FRAME_SS + 1 : FRAME_RFLAGS + 1;
    d->at = top - words * size;
    d->sp = d->at - d->error_pushed * size;
    fill_pushed(v, d, pushed, words);
    return true;
}

/* Publish the entry of which `r` tells. */
static void emit_heard(vcpu *v, const log_record *r)
{
    uint64_t table = 0;
    delivery d;
    tss own;

    if (!v->idt || !log_number(r, "IDT=", &table) || table != v->idt->base) {
        return; /* in system management mode, or in real mode before it */
    }
    read_tables(v, vcpu_bits(v));
    if (!v->idt->bits) {
        return;
    }
    const idt_gate *gate = &v->idt->gate[r->vector % IDT_GATES];
    if (gate->task) {
        if (read_tss(v, gate->task, &own)) {
            deliver_task(v, own.word[TSS_EIP]);
        }
    } else if (identify_heard(v, r, &d)) {
        if (is_unseen(v, &d)) {
            emit_call(v, d.frame[FRAME_RIP], inner_sp(&d));
        }
        emit_delivery(v, &d);
        ring_cpu(&shared, v->index)->heard++;
    }
}

/* Take what the log says since this vCPU was last here. `pc`: it stands at the beginning of this handler, 0: elsewhere. True:
 * it was delivered there just now, says `last`, and this is for the caller to publish. */
static bool hear(vcpu *v, uint64_t pc, log_record *last)
{
    log_record next;
    bool held = false;

    if (!v->log) {
        return false;
    }
    log_unmute(v->log);
    if (!log_look(v->log)) {
        if (!log_rewind(v->log)) {
            go_untold("QEMU's log");
        }
        return false;
    }
    if (no_log) { /* begun by somebody, where it does not do */
        log_skip(v->log);
    }
    while (log_next(v->log, &next)) {
        if (held && !next.nested && !log_same_place(last, &next)) {
            emit_heard(v, last);
        }
        *last = next;
        held = true;
    }
    if (!held || v->log->failed) {
        return false;
    }
    if (pc && v->idt) {
        unsigned vector = last->vector % IDT_GATES;
        if (v->idt->target[vector] != pc) {
            read_tables(v, vcpu_bits(v));
        }
        if (v->idt->target[vector] == pc || v->idt->gate[vector].task) {
            return true;
        }
    }
    emit_heard(v, last);
    return false;
}
