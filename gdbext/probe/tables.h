/*
 * Descriptor tables and selectors as the reader tells them: QEMU shows plugins neither IDTR nor GDTR, and a machine that
 * goes on from a snapshot loads none.
 */
#pragma once

#include "emit.h"

/* The vCPU has loaded the interrupt table at `base`. Under idt_lock. */
static void load_idt(vcpu *v, uint64_t base, uint32_t limit)
{
    v->idt = idt_load(v->idt, base, limit);
    if (!v->idt) {
        go_untold("an interrupt table");
    }
}

/* Take what the reader has told since the last time. */
static inline void take_tables(vcpu *v)
{
    const ring_control *c = ring_cpu(&shared, v->index);
    uint32_t told = atomic_load_explicit(SHARED(c->tables_told, uint32_t), memory_order_acquire);

    if (told == v->tables_told) {
        return;
    }
    v->tables_told = told;
    v->gdt = c->gdt;
    v->gdt_limit = c->gdt_limit;
    v->task = (uint16_t)(c->selectors & 0xfff8);
    v->ldt = (uint16_t)(c->selectors >> 16 & 0xfff8);
    v->code_segment.known = false;
    v->flat_ss = v->flat_cs = v->flat_user = 0;
    pthread_mutex_lock(&idt_lock);
    if (!v->idt || v->idt->base != c->idt || v->idt->limit != c->idt_limit) {
        load_idt(v, c->idt, c->idt_limit);
    }
    if (v->idt) {
        idt_note_segments(v->idt, v->gdt, v->gdt_limit);
    }
    pthread_mutex_unlock(&idt_lock);
}
