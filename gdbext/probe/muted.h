/*
 * QEMU's log is muted while user code runs on a machine's only vCPU: most deliveries come from there, and each that is
 * written down costs 7 us. They go through gates as they stood when that code was resumed, for nobody else writes any, and
 * what those lead to is known and has our callback. The first of our callbacks after it ends that: user code leaves by none
 * of these gates only through a far call or jump, or where it is stopped from outside.
 *
 * User code that can write the interrupt table is not thought of.
 */
#pragma once

#include "heard.h"

static bool is_muted(const vcpu *v)
{
    return v->log && v->log->muted;
}

/* The code that `v` resumes now is a user's. */
static void mute_log(vcpu *v)
{
    bool can = v->log && v->log->way != MUTED_NEVER && vcpu_most == 1 && !BY_LOG_ALONE;

    if (!can || watches_gates() || !v->idt || !v->idt->read) {
        return;
    }
    uint64_t changes = idt_told.changes;
    read_tables(v, vcpu_bits(v));
    if (idt_told.changes == changes && v->idt->tasks == 0 && !atomic_load(&flush_pending)) {
        log_mute(v->log);
    }
}
