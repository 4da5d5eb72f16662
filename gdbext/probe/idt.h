/*
 * The interrupt descriptor tables the vCPUs have loaded.
 *
 * A table is read again whenever kernel code is translated: gates are mostly written in place, long after lidt, and a
 * handler that was never run is translated when it first is. What that leaves open is in heard.h, and so is when there is no
 * need of it.
 *
 * Tables are changed under the lock. A vCPU reads the gates of its own without: one that is being rewritten is delivered
 * through by nobody who knows which gate it will be.
 *
 * Gates: Intel SDM vol. 3A, figures 6-2 and 6-8. A gate names an offset into a code segment; blocks are known by linear
 * address. The two are one but for 32-bit kernels whose segments begin elsewhere than at 0.
 */
#pragma once

#include <pthread.h>
#include <stdlib.h>

#include "targets.h"

enum { IDT_TABLES = 1024, IDT_BYTES = 4096, IDT_PAGES = 2, IDT_GATES = 256 };
enum { NO_MARK = 0xffff };

typedef struct {
    uint64_t target;   /* 0: no usable gate */
    uint16_t task;     /* a task gate's TSS, 0 for others */
    uint16_t selector; /* of the target's code segment */
    uint8_t ist, dpl;
    bool trap;
} idt_gate;

typedef struct {
    uint64_t base, gdt; /* gdt: of the vCPU that loaded it last */
    uint32_t limit, gdt_limit;
    unsigned loaded; /* by how many vCPUs */
    unsigned bits;   /* 32 or 64, 0 before it is read */
    unsigned tasks;  /* task gates met */
    bool read;
    uint8_t bytes[IDT_BYTES];
    uint16_t mark[IDT_PAGES][2]; /* where in bytes the first and the last present gate of each page lie; NO_MARK: none */
    uint64_t target[IDT_GATES]; /* beside the gates: searched at every entry */
    idt_gate gate[IDT_GATES];
} idt_table;

static idt_table *idt_tables[IDT_TABLES];
static unsigned idt_count;
/* Every vCPU reads them at every store that is looked at: nothing that is written often shares their cache line. */
static struct {
    _Alignas(128) _Atomic uint64_t changes; /* of what is loaded, and of gates */
    _Atomic uint32_t new_blocks;            /* of kernel code, translated so far: see gates.h */
} idt_told;
static _Alignas(128) pthread_mutex_t idt_lock = PTHREAD_MUTEX_INITIALIZER;

static uint16_t gate_selector(const uint8_t *raw)
{
    return (uint16_t)(raw[2] | raw[3] << 8);
}

static idt_gate idt_decode(const uint8_t *raw, unsigned bits)
{
    enum { PRESENT = 0x80, TASK_GATE = 0x5, INTERRUPT_GATE = 0xe, TRAP_GATE = 0xf };
    unsigned kind = raw[5] & 0x1f;
    if ((raw[5] & PRESENT) && kind == TASK_GATE && bits == 32) {
        return (idt_gate){.task = gate_selector(raw), .dpl = raw[5] >> 5 & 3};
    }
    if (!(raw[5] & PRESENT) || (kind != INTERRUPT_GATE && kind != TRAP_GATE)) {
        return (idt_gate){0};
    }
    uint64_t target = raw[0] | raw[1] << 8 | (uint64_t)raw[6] << 16 | (uint64_t)raw[7] << 24;
    if (bits == 64) {
        uint32_t high;
        memcpy(&high, raw + 8, sizeof(high));
        target |= (uint64_t)high << 32;
    }
    return (idt_gate){target, 0, gate_selector(raw), bits == 64 ? raw[4] & 7 : 0, raw[5] >> 5 & 3, kind == TRAP_GATE};
}

/* Where the segment begins that the descriptor `d` describes (Intel SDM vol. 3A, figure 3-8). */
static inline uint32_t descriptor_base(uint64_t d)
{
    return (uint32_t)((d >> 16 & 0xffffff) | (d >> 56) << 24);
}

/* Where the code segment begins that the 32-bit gate `raw` names; 0 as long as its descriptor cannot be read. */
static uint32_t idt_code_base(const idt_table *t, const uint8_t *raw, memory_reader reader, void *context)
{
    uint16_t selector = gate_selector(raw);
    uint8_t bytes[8];
    uint64_t d;

    if ((selector & 4) || t->gdt == 0 || (selector | 7u) > t->gdt_limit ||
        !reader(context, t->gdt + (selector & ~7u), bytes, sizeof(bytes))) {
        return 0;
    }
    memcpy(&d, bytes, sizeof(d));
    return descriptor_base(d);
}

/* The table's first `length` bytes, as far as they are mapped: a limit may reach behind the last gate's page. What is not
 * stays as it was. False: nothing is mapped. */
static bool idt_read(const idt_table *t, size_t length, uint8_t *to, memory_reader reader, void *context)
{
    size_t first = PAGE_SIZE - t->base % PAGE_SIZE;

    if (reader(context, t->base, to, length)) {
        return true;
    }
    memcpy(to, t->bytes, length);
    bool begins = first < length && reader(context, t->base, to, first);
    return (first < length && reader(context, t->base + first, to + first, length - first)) || begins;
}

/* How many bytes of gates a table has. */
static inline size_t idt_length(const idt_table *t)
{
    return t->limit < IDT_BYTES ? t->limit + 1u : IDT_BYTES;
}

/* How many bytes of it are read: whole gates. */
static inline size_t idt_read_length(const idt_table *t)
{
    size_t size = t->bits == 64 ? 16 : 8, gates = (t->limit + 1) / size;
    return (gates > IDT_GATES ? IDT_GATES : gates) * size;
}

/* Choose the gates by which each page of the table is known. */
static void idt_mark(idt_table *t, size_t size, size_t gates)
{
    enum { PRESENT = 0x80 };

    memset(t->mark, 0xff, sizeof(t->mark));
    for (size_t at = gates * size; at >= size;) {
        at -= size;
        size_t page = (t->base % PAGE_SIZE + at) / PAGE_SIZE;
        if ((t->bytes[at + 5] & PRESENT) && (t->base % PAGE_SIZE + at + size - 1) / PAGE_SIZE == page) {
            t->mark[page][0] = (uint16_t)at;
            t->mark[page][1] = t->mark[page][1] == NO_MARK ? (uint16_t)at : t->mark[page][1];
        }
    }
}

/* Read the table again, on a vCPU that runs `bits`-bit code; true if a new target was translated before. A table may
 * be loaded in 32-bit code and serve 64-bit code later, never the reverse. Unreadable for now: it stays as it was. */
static bool idt_refresh(idt_table *t, unsigned bits, memory_reader reader, void *context)
{
    if (bits > t->bits) {
        t->bits = bits;
        t->read = false;
    }
    uint8_t now[IDT_BYTES];
    size_t size = t->bits == 64 ? 16 : 8, length = idt_read_length(t), gates = length / size;
    bool stale = false;

    if (gates == 0 || !idt_read(t, length, now, reader, context) || (t->read && memcmp(now, t->bytes, length) == 0)) {
        return false;
    }
    for (unsigned vector = 0; vector < gates; vector++) {
        const uint8_t *raw = now + vector * size;
        if (t->read && memcmp(raw, t->bytes + vector * size, size) == 0) {
            continue;
        }
        t->gate[vector] = idt_decode(raw, t->bits);
        if (t->bits == 32 && t->gate[vector].target) {
            t->gate[vector].target = (uint32_t)(t->gate[vector].target + idt_code_base(t, raw, reader, context));
        }
        t->target[vector] = t->gate[vector].target;
        t->tasks += t->gate[vector].task != 0;
        stale |= add_target(t->target[vector], reader, context);
    }
    memcpy(t->bytes, now, length);
    idt_mark(t, size, gates);
    idt_told.changes++;
    t->read = true;
    return stale;
}

/* The segments of the vCPU that has loaded `t` lie at `gdt` now. */
static void idt_note_segments(idt_table *t, uint64_t gdt, uint32_t limit)
{
    if (t->gdt != gdt || t->gdt_limit != limit) {
        t->gdt = gdt;
        t->gdt_limit = limit;
        t->read = false;
    }
}

/* Note that a vCPU loads the table at `base` in place of `old`. NULL where there is no memory for its record, or too many are
 * loaded. */
static idt_table *idt_load(idt_table *old, uint64_t base, uint32_t limit)
{
    idt_table **place = NULL;

    if (old) {
        old->loaded--;
    }
    for (unsigned i = 0; i < idt_count; i++) {
        idt_table *t = idt_tables[i];
        if (t->base == base && t->limit == limit) {
            idt_told.changes += t->loaded == 0;
            t->loaded++;
            t->bits = t->loaded > 1 ? t->bits : 0; /* nobody else's: decode it anew for the mode it will serve */
            return t;
        }
        if (t->loaded == 0) {
            place = &idt_tables[i];
        }
    }
    if (idt_count < IDT_TABLES) {
        place = &idt_tables[idt_count];
    }
    idt_table *t = place ? calloc(1, sizeof(*t)) : NULL;
    if (t) {
        t->base = base;
        t->limit = limit;
        t->loaded = 1;
        memset(t->mark, 0xff, sizeof(t->mark));
        idt_told.changes++;
        if (place == &idt_tables[idt_count]) {
            idt_count++;
        } else {
            free(*place);
        }
        *place = t;
    }
    return t;
}
