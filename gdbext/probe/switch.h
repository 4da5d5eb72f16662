/*
 * Voluntary stack switches: a block stores RSP to memory (or, as setjmp does, RSP as it is behind its return), and that
 * or one nearby loads it. Seen as two events: the function's first instruction on the way out, with the callee-saved
 * registers still in place, and the return (tail jump, jump to the return address, or iret there) that ends it on the
 * way in, which finds RSP as the thread's own way out left it. Who comes to a stack that another vCPU came to, and has
 * not left, is seen, too.
 */
#pragma once

#include "decode.h"
#include "emit.h"
#include "frames.h"

/* An instruction that has a callback. */
typedef struct site {
    struct site *next;
    uint64_t pc;
    unsigned bits;
    uint8_t bytes[16];
    insn insn;
} site;

/* Linear where the segments begin at 0 or, in 32-bit kernel code, where the stack's does; of GS, the offset. */
static uint64_t operand_address(vcpu *v, const site *s)
{
    const mem_operand *m = &s->insn.mem;
    uint64_t address = (uint64_t)m->disp + (m->rip_relative ? s->pc + s->insn.length : 0);

    if (m->base != NO_REG) {
        address += vcpu_reg(v, m->base);
    }
    if (m->index != NO_REG) {
        address += vcpu_reg(v, m->index) << m->scale;
    }
    address = m->address32 ? (uint32_t)address : address;
    return s->bits == 32 ? vcpu_stack(v, address) : address;
}

enum { AWAY_SLOTS = 16384, NEAR_BYTES = 256 };

static inline bool is_near(uint64_t a, uint64_t b)
{
    return (a > b ? a - b : b - a) < NEAR_BYTES;
}

static struct {
    uint64_t rsp, seq, back; /* back: the return address there */
} away[AWAY_SLOTS];
static pthread_mutex_t away_lock = PTHREAD_MUTEX_INITIALIZER;

static unsigned away_slot(uint64_t rsp)
{
    return (unsigned)(rsp * 0x9e3779b97f4a7c15ull >> 50) & (AWAY_SLOTS - 1);
}

static void fill_switch(vcpu *v, ctx_row *row, uint64_t pc, unsigned bits)
{
    row->pc = row->rip = pc;
    row->mode = (uint8_t)bits;
    vcpu_general(v, row);
    row->cs = (uint16_t)vcpu_reg(v, REG_CS);
    row->cpl = row->cs & 3;
    row->cr3 = vcpu_reg(v, REG_CR3);
    row->rsp = vcpu_sp(v, bits);
    vcpu_words(v, row->rsp, bits / 8, STACK_WORDS, row->stack);
    row->flags = parity_flags(v) | CTX_FLAG_NO_BASES | CTX_FLAG_NO_KERNEL_GS;
}

/* The event by which a thread went away that left RSP so (and returns to `back`, unless that is 0); 0 for none. */
static uint64_t take_away(uint64_t rsp, uint64_t back)
{
    unsigned slot = away_slot(rsp);
    uint64_t seq = 0;

    pthread_mutex_lock(&away_lock);
    if (away[slot].rsp == rsp && (back == 0 || away[slot].back == back)) {
        seq = away[slot].seq;
        away[slot].rsp = away[slot].seq = 0;
    }
    pthread_mutex_unlock(&away_lock);
    return seq;
}

/* True if another vCPU took up the thread that had left RSP so, and has not switched since. */
static bool stands_there(const vcpu *v, uint64_t rsp)
{
    for (unsigned i = 0; i < vcpu_most; i++) {
        if (i != v->index && rsp != 0 && vcpus[i]->came_to == rsp) {
            return true;
        }
    }
    return false;
}

/* First instruction of a block that may switch: remember, for by the time we are sure it has changed registers. */
static void on_leaving(unsigned index, void *userdata)
{
    const site *s = userdata;
    vcpu *v = vcpu_of(index);

    memset(&v->away, 0, sizeof(v->away));
    fill_switch(v, &v->away, s->pc, s->bits);
    v->score->leaving = s->pc;
    take_away(v->away.rsp, 0); /* who stands here now has come back by another way, or is gone */
}

/* RSP is about to be loaded by a block that is, or is near, the one that stored it: it is a switch. */
static void on_switch(unsigned index, void *userdata)
{
    const site *s = userdata;
    vcpu *v = vcpu_of(index);

    v->score->leaving = 0;
    if (!is_near(s->pc, v->away.pc)) {
        return;
    }
    v->score->switching = 1;
    atomic_store(&v->came_to, 0);
    if (frame_stands(v->away.rsp, v->away.stack)) {
        return; /* what is saved here was interrupted, not called: it went away by its entry, and an iret brings it back */
    }
    ctx_row *row = begin(v, CTX_KIND_SWITCH_OUT, 0, v->away.pc, v->away.mode);
    uint64_t time = row->time;
    uint8_t kind = row->kind;
    memcpy(row, &v->away, sizeof(*row));
    row->kind = kind, row->time = time, row->cpu = (uint16_t)index, row->star = last_star;
    ring_number(&shared, row);
    unsigned slot = away_slot(row->rsp);
    pthread_mutex_lock(&away_lock);
    away[slot].rsp = row->rsp;
    away[slot].seq = row->seq;
    away[slot].back = row->stack[0];
    pthread_mutex_unlock(&away_lock);
    publish(v, row, false, false);
}

/* A thread that went away by a switch function is about to return from it: RSP is or will be `rsp` at its return.
 * `back`: the return address, 0: it is on the stack. `interrupted`: the event, if any, that interrupted who goes on
 * there; where that was after the thread went away, it had come back by a way that is not seen. False: it runs for the
 * first time, or goes on by no switch. */
static bool arrive(vcpu *v, const site *s, uint64_t rsp, uint64_t back, uint64_t interrupted)
{
    uint64_t match = take_away(rsp, back);

    if (match ? match < interrupted : !stands_there(v, rsp)) {
        return false;
    }
    atomic_store(&v->came_to, rsp);
    v->score->switching = 0;
    ctx_row *row = begin(v, CTX_KIND_SWITCH_IN, 0, s->pc, s->bits);
    fill_switch(v, row, s->pc, s->bits);
    row->rsp = rsp;
    row->stack[0] = back ? back : row->stack[0];
    row->match = match;
    emit(v, row);
    return true;
}

/* Where an indirect jump goes; 0 if that cannot be read. */
static uint64_t far_target(vcpu *v, const site *s)
{
    if (s->insn.reg != NO_REG) {
        return vcpu_reg(v, s->insn.reg);
    }
    const uint8_t *bytes = vcpu_memory(v, operand_address(v, s), s->bits / 8);
    uint64_t target = 0;
    if (bytes) {
        memcpy(&target, bytes, s->bits / 8);
    }
    return target;
}

/* The end of a switch function, on a vCPU that has switched. It may jump to the return address of another one, which
 * has kept RSP as it is behind its own return (setjmp and longjmp). */
static void on_arriving(unsigned index, void *userdata)
{
    const site *s = userdata;
    vcpu *v = vcpu_of(index);
    uint64_t rsp = vcpu_sp(v, s->bits);

    if (!arrive(v, s, rsp, 0, 0) && s->insn.kind == OP_JUMP_FAR) {
        uint64_t target = far_target(v, s);
        if (target) {
            arrive(v, s, rsp - s->bits / 8, target, 0);
        }
    }
}
