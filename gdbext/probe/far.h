/*
 * Returns that resume what was interrupted: kernel code may go back to kernel code by popf and lret, which pop what
 * iret would, in another order, or by popf and ret. Nothing but the ledger tells them from any other return: somebody
 * waits there. Of a near return, which any function may end with, the registers have to tell it, too.
 *
 * RFLAGS as they are live lack the arithmetic flags. Known are those that a popf right before has popped, or an iret to
 * the far return itself, which was interrupted (not what a popf left on this CPU before that, long ago). Known is, too,
 * that there was none, nor sahf, since the handler was entered: from the first such exit on they are counted.
 */
#pragma once

#include "exit.h"

enum { FAR_WORDS = 4, FAR_RIP = 0, FAR_CS, FAR_RSP, FAR_SS };

static atomic_bool far_seen; /* a far return has resumed what was interrupted */

/* Does somebody wait where `row` goes? A far return within one ring leaves SS, which means nothing to 64-bit code, alone. */
static bool far_resumes(ctx_row *row, bool inner)
{
    pthread_mutex_lock(&ledger_lock);
    uint16_t place = *ledger_find(row->rip, row->rsp, ledger_space(row));
    if (place != LEDGER_NONE && inner && row->mode == 64) {
        row->ss = ledger[place].ss;
    }
    pthread_mutex_unlock(&ledger_lock);
    return place != LEDGER_NONE;
}

/* A popf from which nothing but pops (reg) leads to a far return (imm behind it): what they make of RFLAGS and RSP. */
static void on_popf(unsigned index, void *userdata)
{
    const site *s = userdata;
    vcpu *v = vcpu_of(index);
    uint64_t rsp = vcpu_reg(v, REG_RSP), at = s->bits == 64 ? rsp : vcpu_stack(v, rsp), flags;

    v->far.at = 0;
    if (vcpu_words(v, at, s->insn.size, 1, &flags) != 1) {
        return;
    }
    v->far.at = s->pc + s->insn.length + (uint64_t)s->insn.imm;
    v->far.rsp = rsp + (s->insn.reg + 1u) * s->insn.size;
    v->far.flags = (flags & POPF_LOADS) | RFLAGS_ONE;
}

static void on_far_return(unsigned index, void *userdata)
{
    const site *s = userdata;
    vcpu *v = vcpu_of(index);
    uint16_t live_cs = (uint16_t)vcpu_reg(v, REG_CS);
    uint64_t rsp = vcpu_reg(v, REG_RSP), at = s->bits == 64 ? rsp : vcpu_stack(v, rsp), w[FAR_WORDS];
    unsigned words = vcpu_words(v, at, s->insn.size, FAR_WORDS, w);
    bool outer = words >= 2 && (w[FAR_CS] & 3) > (live_cs & 3u);

    if (words < (outer ? 4u : 2u)) {
        return;
    }
    ctx_row *row = begin(v, CTX_KIND_EXIT, CTX_HOW_FAR, s->pc, s->bits);
    fill_context(v, row);
    row->cpl = live_cs & 3;
    row->size = s->insn.size;
    row->rip = w[FAR_RIP];
    row->cs = (uint16_t)w[FAR_CS];
    row->rsp = outer ? w[FAR_RSP] : at + 2u * s->insn.size + (uint64_t)s->insn.imm;
    row->ss = outer ? (uint16_t)w[FAR_SS] : (uint16_t)vcpu_reg(v, REG_SS);
    row->rflags = vcpu_reg(v, REG_RFLAGS);
    row->flags |= s->bits == 32 || !vcpu_is_code64(v, row->cs) ? CTX_FLAG_LINEAR32 : 0;
    if (s->bits == 32 && outer) {
        row->cr3 += user_base(v, row->cs, row->rflags);
    }
    if (!far_resumes(row, !outer)) {
        return; /* the row is not published, and its place is used for the next */
    }
    if (v->far.at == s->pc && v->far.rsp == rsp) {
        row->rflags = v->far.flags;
    } else {
        row->flags |= CTX_FLAG_FLAGS_PARTIAL;
        row->value = atomic_load(&far_seen) && v->last.kind == CTX_KIND_ENTRY && v->flag_loads == v->score->flag_loads;
    }
    v->far.at = 0;
    bool first = !atomic_exchange(&far_seen, true);
    emit_exit(v, row);
    if (first) {
        flush_translations();
    }
}

/* Somebody waits where a near return goes to. No function gives back what was in RAX, RCX and RDX; few of the other
 * registers may differ, too, if this resumes him. */
static bool near_resumes(ctx_row *row)
{
    enum { RAX, RCX, RDX, GENERAL = 16, MOST_LOST = 2 };
    unsigned lost = 0, scratch = 0;

    pthread_mutex_lock(&ledger_lock);
    uint16_t place = *ledger_find(row->rip, row->rsp, 0);
    if (place != LEDGER_NONE) {
        for (unsigned n = 0; n < GENERAL; n++) {
            bool differs = ledger[place].gpr[n] != row_general(row)[n];
            lost += differs;
            scratch += differs && n <= RDX;
        }
        row->ss = row->mode == 64 ? ledger[place].ss : row->ss;
    }
    pthread_mutex_unlock(&ledger_lock);
    return place != LEDGER_NONE && lost <= MOST_LOST && scratch < 2;
}

/* A popf right in front of a near return: it is the exit, if both resume somebody. */
static void on_popf_ret(unsigned index, void *userdata)
{
    const site *s = userdata;
    vcpu *v = vcpu_of(index);
    uint64_t rsp = vcpu_reg(v, REG_RSP), at = s->bits == 64 ? rsp : vcpu_stack(v, rsp), w[2];

    if (vcpu_words(v, at, s->insn.size, 2, w) != 2 || !ledger_waits(w[1], at + 2u * s->insn.size + (uint64_t)s->insn.imm)) {
        return;
    }
    ctx_row *row = begin(v, CTX_KIND_EXIT, CTX_HOW_NEAR, s->pc, s->bits);
    fill_context(v, row);
    row->cs = (uint16_t)vcpu_reg(v, REG_CS);
    row->cpl = row->cs & 3;
    row->ss = (uint16_t)vcpu_reg(v, REG_SS);
    row->size = s->insn.size;
    row->rip = w[1];
    row->rsp = at + 2u * s->insn.size + (uint64_t)s->insn.imm;
    row->rflags = (w[0] & POPF_LOADS) | RFLAGS_ONE;
    row->flags |= s->bits == 32 ? CTX_FLAG_LINEAR32 : 0;
    if (near_resumes(row)) {
        emit_exit(v, row);
    }
}
