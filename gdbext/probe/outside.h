/*
 * What is done to the machine from outside while its vCPUs stand still: a snapshot is loaded in place of its state. A
 * vCPU that goes on elsewhere than it stood shows that; what was interrupted before is then another time's.
 *
 * A debugger that edits registers, jumps or calls a function changes less: of those that are compared, two must differ.
 * Machines that idle in the same place before and after go unnoticed.
 */
#pragma once

#include "events.h"

/* The vCPU as it stands. What was delivered to it is heard, but for a handler that it has not begun: that tells itself. */
static vcpu *standing_vcpu(unsigned index)
{
    vcpu *v = vcpus[index];
    log_record record;

    if (v->log) {
        hear(v, vcpu_linear(v, vcpu_reg(v, REG_RIP), (uint16_t)vcpu_reg(v, REG_CS)), &record);
    }
    return v;
}

static void note_standing(vcpu *v, standing *s)
{
    ctx_row row = {0};

    vcpu_general(v, &row);
    *s = (standing){true, {row.rbx, row.rbp, row.r12, row.r13, row.r14, row.r15, vcpu_reg(v, REG_CR3),
                           vcpu_reg(v, REG_RIP), row.rsp & ~(uint64_t)PAGE_OFFSET}};
}

/* The vCPU is about to stand still. */
static CB_VCPU(on_vcpu_idle, index)
{
    CB_UNUSED();
    vcpu *v = standing_vcpu(index);
    if (v->buffer) {
        note_standing(v, &v->standing);
    }
}

/* A vCPU that stood still runs again. The reader may have wished for stores meanwhile, or told of tables. */
static CB_VCPU(on_vcpu_resume, index)
{
    CB_UNUSED();
    vcpu *v = standing_vcpu(index);
    standing now;
    unsigned moved = 0;

    take_tables(v);
    if (v->standing.known && (vcpu_reg(v, REG_CR0) & CR0_PE)) { /* else it was reset */
        note_standing(v, &now);
        for (unsigned i = 0; i < STANDING; i++) {
            moved += now.word[i] != v->standing.word[i];
        }
    }
    v->standing.known = false;
    if (moved > 1) {
        forget_all(v);
        ctx_row *row = begin(v, CTX_KIND_RESTORED, 0, vcpu_reg(v, REG_RIP), vcpu_bits(v));
        fill_small(v, row);
        emit(v, row);
    }
    look_at_wishes();
}
