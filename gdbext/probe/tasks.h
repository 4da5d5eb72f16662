/*
 * Hardware task switches of ia32: the CPU keeps the context that it leaves in that task's TSS, and takes all of the next
 * one from its own (Intel SDM vol. 3A, chapter 8). A task gate in the interrupt table makes an entry that pushes no
 * frame; iret with NT set, or a far jump or call that names a TSS, resumes what a TSS holds.
 */
#pragma once

#include "entry.h"

enum { TSS_BACKLINK, TSS_CR3 = 7, TSS_EIP, TSS_EFLAGS, TSS_EAX, TSS_ES = 18, TSS_CS, TSS_SS, TSS_DS, TSS_FS, TSS_GS,
       TSS_LDT, TSS_WORDS = 26 };
enum { RFLAGS_NT = 1 << 14 };

typedef struct {
    uint32_t base, word[TSS_WORDS];
} tss;

/* Read the TSS of which `d` is the descriptor; false if it is another's, or cannot be read. */
static bool read_tss_of(vcpu *v, uint64_t d, tss *t)
{
    enum { TSS32 = 0x9, BUSY = 0x2 };

    t->base = descriptor_base(d);
    if ((d >> 40 & 0x1f & ~(unsigned)BUSY) != TSS32) {
        return false;
    }
    const uint8_t *bytes = vcpu_memory(v, t->base, sizeof(t->word));
    if (bytes) {
        memcpy(t->word, bytes, sizeof(t->word));
    }
    return bytes != NULL;
}

static bool read_tss(vcpu *v, uint16_t selector, tss *t)
{
    return selector && read_tss_of(v, vcpu_descriptor(v, selector), t);
}

/* The base that the CPU loads with `selector` in the task of `t`. */
static uint32_t base_in_task(vcpu *v, const tss *t, uint16_t selector)
{
    if (t->word[TSS_EFLAGS] & RFLAGS_VM) {
        return (uint32_t)selector << 4;
    }
    if (selector < 4) {
        return 0;
    }
    if (!(selector & 4)) {
        return descriptor_base(vcpu_descriptor(v, selector));
    }
    uint32_t table = descriptor_base(vcpu_descriptor(v, (uint16_t)t->word[TSS_LDT]));
    return descriptor_base(descriptor_in(v, table, UINT32_MAX, (uint16_t)(selector & ~4u)));
}

static bool is_user_task(const tss *t)
{
    return (t->word[TSS_CS] & 3) == 3 || (t->word[TSS_EFLAGS] & RFLAGS_VM);
}

/* The CPU runs on the TSS `t` from now on, which `selector` names. */
static void enter_task(vcpu *v, uint16_t selector, const tss *t)
{
    v->task = selector;
    vcpu_forget_space(v);
    v->ldt = (uint16_t)t->word[TSS_LDT] & ~7u;
}

/* The context that `t` holds. `addr` says where it is kept. */
static void fill_from_tss(vcpu *v, ctx_row *row, const tss *t)
{
    uint64_t *general = row_general(row);

    for (unsigned i = 0; i < 8; i++) {
        general[i] = t->word[TSS_EAX + i];
    }
    row->rip = t->word[TSS_EIP];
    row->rflags = t->word[TSS_EFLAGS];
    row->cr3 = t->word[TSS_CR3] + (is_user_task(t) ? base_in_task(v, t, (uint16_t)t->word[TSS_CS]) : 0);
    row->es = (uint16_t)t->word[TSS_ES], row->cs = (uint16_t)t->word[TSS_CS], row->ss = (uint16_t)t->word[TSS_SS];
    row->ds = (uint16_t)t->word[TSS_DS], row->fs = (uint16_t)t->word[TSS_FS], row->gs = (uint16_t)t->word[TSS_GS];
    row->fs_base = base_in_task(v, t, row->fs);
    row->gs_base = base_in_task(v, t, row->gs);
    row->addr = t->base;
    row->flags |= CTX_FLAG_LINEAR32;
}

/* Did a task gate lead to `pc`? The task that it names runs from where its TSS says, and names the one it interrupted. */
static bool deliver_task(vcpu *v, uint64_t pc)
{
    const idt_table *table = v->idt;
    unsigned vector = VECTOR_UNKNOWN, found = 0;
    uint16_t to = 0;
    tss own, was;

    if (!table || !table->tasks || table->bits != 32 || !(vcpu_reg(v, REG_RFLAGS) & RFLAGS_NT)) {
        return false;
    }
    for (unsigned at = 0; at < IDT_GATES; at++) {
        uint16_t task = table->gate[at].task;
        if (task && task != v->task && read_tss(v, task, &own) && own.word[TSS_EIP] == pc) {
            vector = at, to = task, found++;
        }
    }
    if (!found || !read_tss(v, to, &own) || !read_tss(v, (uint16_t)own.word[TSS_BACKLINK], &was)) {
        return false;
    }
    enter_task(v, to, &own);
    v->task_called = false;
    delivery d = {.vector = found == 1 ? vector : VECTOR_UNKNOWN,
                  .soft = found == 1 && v->soft.pending && v->soft.vector == vector,
                  .error_pushed = found == 1 && pushes_error(vector)};
    update_alarm(v);
    ctx_row *row = begin(v, CTX_KIND_ENTRY, how_of(&d), pc, 32);
    fill_context(v, row);
    row->cpl = (uint16_t)vcpu_reg(v, REG_CS) & 3;
    row->vector = (uint16_t)d.vector;
    if (found == 1 && pushes_error(vector) && vcpu_words(v, vcpu_reg(v, REG_RSP), 4, 1, row->stack)) {
        row->error = (uint32_t)row->stack[0];
        row->flags |= CTX_FLAG_ERROR_CODE;
        row->stack[0] = 0;
    }
    fill_from_tss(v, row, &was);
    emit_entry(v, row);
    return true;
}

/* Beginnings of the tasks that the gates of `v` name: they move on with every run. True if one was translated before. */
static bool find_task_entries(vcpu *any, const vcpu *v)
{
    bool stale = false;

    for (unsigned at = 0; at < IDT_GATES && v->idt && v->idt->tasks; at++) {
        uint16_t task = v->idt->gate[at].task;
        tss t;
        if (task && read_tss_of(any, descriptor_in(any, v->gdt, v->gdt_limit, task), &t)) {
            stale |= add_target(t.word[TSS_EIP], vcpu_read, any);
        }
    }
    return stale;
}
