/*
 * Who is about to arrive at an entry point, and who has: the callbacks of the instructions that go there and of the
 * first one there.
 */
#pragma once

#include "events.h"

/* A page mapped at several addresses is translated once, for whichever came first: `pc`, or the one that RIP tells. It
 * does so where a block begins, but for a few ways there on which QEMU leaves it behind; those are no deliveries. */
static uint64_t here(vcpu *v, uint64_t pc)
{
    uint64_t rip = vcpu_linear(v, vcpu_reg(v, REG_RIP), (uint16_t)vcpu_reg(v, REG_CS));
    return ((rip ^ pc) & PAGE_OFFSET) == 0 ? rip : pc;
}

static void on_entry_point(unsigned index, void *userdata)
{
    vcpu *v = vcpus[index];
    uint64_t pc = here(v, (uint64_t)userdata), sp = vcpu_sp(v, vcpu_bits(v));
    log_record record;
    if (v->log) {
        log_unmark(v->log);
    }
    bool heard = hear(v, pc, &record);

    if (heard && BY_LOG_ALONE) {
        emit_heard(v, &record);
        return;
    }
    if (emit_call(v, pc, sp) || told_of_entries || deliver_task(v, pc) || deliver(v, pc, sp, false, 0)) {
        return;
    }
    if (heard) {
        emit_heard(v, &record);
    } else {
        ring_cpu(&shared, index)->stray++;
        v->score->jump_target = 0; /* this was that jump */
    }
}

/* QEMU 10.2 and later: an interrupt or exception was delivered, the frame is on the stack. */
static CB_DISCON(on_discontinuity, index, from, to)
{
    CB_UNUSED();
    (void)type_;
    (void)from;
    vcpu *v = vcpu_of(index);
    if (v->idt && (vcpu_reg(v, REG_CR0) & CR0_PE)) {
        pthread_mutex_lock(&idt_lock);
        idt_refresh(v->idt, vcpu_bits(v), vcpu_read, v);
        pthread_mutex_unlock(&idt_lock);
        if (!deliver_task(v, to)) {
            deliver(v, to, vcpu_sp(v, vcpu_bits(v)), true, 0);
        }
    }
}

/* This thread's vCPU is at a call to where nobody knows: what it runs next is the entry point. */
static _Thread_local const vcpu *calling;

/* Is a block of kernel code that is translated now where that call goes? RCX tells `syscall`s. */
static bool is_called_first(vcpu *any, unsigned bits)
{
    const vcpu *v = calling;

    calling = NULL;
    return v && (v->call.sysenter || (v->call.syscall && bits == 64 && vcpu_reg(any, REG_RCX) == v->call.next));
}

/* `syscall` and `sysenter` are about to run: note what they lose, and that their entry is genuine. */
static void on_call(unsigned index, void *userdata)
{
    const site *s = userdata;
    vcpu *v = vcpu_of(index);

    v->call.cs = (uint16_t)vcpu_reg(v, REG_CS);
    v->call.ss = (uint16_t)vcpu_reg(v, REG_SS);
    v->call.syscall = s->insn.kind == OP_SYSCALL;
    v->call.sysenter = s->insn.kind == OP_SYSENTER;
    v->call.next = s->pc + s->insn.length;
    last_caller = v->call.cs | (uint32_t)v->call.ss << 16;
    if (v->call.sysenter) {
        v->call.rsp = vcpu_reg(v, REG_RSP);
        v->call.rflags = vcpu_reg(v, REG_RFLAGS);
    }
    calling = (v->call.syscall && !v->lstar) || (v->call.sysenter && !v->sysenter_eip) ? v : NULL;
}

/* User code leaves by a far jump or call, to a task or through a call gate: see muted.h. */
static void on_users_far(unsigned index, void *userdata)
{
    (void)userdata;
    vcpu_of(index);
}

static void on_int(unsigned index, void *userdata)
{
    const site *s = userdata;
    vcpu *v = is_muted(vcpus[index]) ? vcpus[index] : vcpu_of(index); /* goes on so until the handler */

    v->soft.pending = true;
    v->soft.vector = (uint8_t)s->insn.imm;
    v->soft.next = s->pc + s->insn.length;
}
