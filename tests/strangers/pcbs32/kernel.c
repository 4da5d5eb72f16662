/* An array of PCBs that two CPUs share; a CPU's descriptor table is its own, and GS finds its data. */
typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned char u8;
typedef unsigned long long u64;

#define CPUS 2
#define PCBS 10
#define SPACES 2
#define UPPER 0xc0000000u
#define PHYS(p) ((u32)(p) - UPPER)
#define VIRT(p) ((void *)((u32)(p) + UPPER))
#define ASM asm volatile
#define REGPARM __attribute__((regparm(1)))
#define FAST 0x100

enum { FREE, READY, RUNNING, ASLEEP };
struct saved {
    u32 gs, fs, es, ds, edi, esi, ebp, unused, ebx, edx, ecx, eax, vector, code, eip, cs, eflags, esp, ss;
};
struct pcb {
    u8 fpu[512] __attribute__((aligned(16)));
    struct saved s;
    u32 tls, wake;
    int state, space;
};
/* self 0, running 4, stack 8 */
struct cpu {
    struct cpu *self;
    struct pcb *now;
    u32 stack, id;
    int space;
    u64 gdt[8];
    u32 tss[26];
};

extern u64 boot_pd[];
extern u32 gates[][2], ap_stack;
extern char user_image[], user_bytes[], ap_start[], ap_start_end[], ap_upper[], fast_gate[];
void leave(void) __attribute__((noreturn));

static struct cpu cpus[CPUS];
static struct pcb pcbs[PCBS];
static u8 stacks[CPUS][8192] __attribute__((aligned(4096)));
static u64 pdpts[SPACES][4] __attribute__((aligned(32))), pds[SPACES][512] __attribute__((aligned(4096)));
static u64 idt[256];
static int big_lock;
static volatile int cpus_up;
static u32 ticks, turn;

static inline void outb(u16 p, u8 v) { ASM("outb %0, %1" ::"a"(v), "d"(p)); }
static inline u8 inb(u16 p) { u8 v; ASM("inb %1, %0" : "=a"(v) : "d"(p)); return v; }
static inline void wrmsr(u32 m, u32 v) { ASM("wrmsr" ::"c"(m), "a"(v), "d"(0) : "memory"); }
static inline struct cpu *me(void) { struct cpu *c; ASM("movl %%gs:0, %0" : "=r"(c)); return c; }
static volatile u32 *apic(u32 at) { return VIRT(0x3fc00000 + at); }

static void take(void) { while (__atomic_exchange_n(&big_lock, 1, __ATOMIC_ACQUIRE)) ASM("pause"); }
static void drop(void) { __atomic_store_n(&big_lock, 0, __ATOMIC_RELEASE); }

#include "../serial.h"

static u64 segment(u32 base, u32 access)
{
    return (base & 0xffffffull) << 16 | (u64)(base >> 24) << 56 | (u64)access << 40 | 0x00cf00000000ffffull;
}

/* With the lock, which goes: what to load, copied to the top of the CPU's stack; 0 to idle. */
static struct saved *go_on(struct cpu *c, struct saved *s, int stay)
{
    struct pcb *p = c->now, *old = p;
    if (!stay || !p || p->state != RUNNING) {
        if (p && p->state == RUNNING)
            p->state = READY;
        p = 0;
        for (u32 n = 0; n < PCBS && !p; n++) {
            turn = (turn + 1) % PCBS;
            if (pcbs[turn].state == READY)
                p = &pcbs[turn];
        }
        c->now = p;
    }
    if (p)
        p->state = RUNNING;
#ifdef BUG_EARLY
    drop();
    for (volatile int i = 0; i < 300; i++)
        ;
#endif
    if (old != p) {
        if (old) {
            old->s = *s;
#ifdef BUG_COPY_ESP
            if (ticks > 300)
                old->s.esp += 4;
#endif
            ASM("fxsave %0" : "=m"(old->fpu));
        }
        if (p) {
#ifdef BUG_FPU
            if (ticks < 300 || p != &pcbs[2])
#endif
            ASM("fxrstor %0" ::"m"(p->fpu));
            if (p->space != c->space) {
#ifdef BUG_CR3
                if (ticks < 300 || p->space)
#endif
                ASM("movl %0, %%cr3" ::"r"(PHYS(pdpts[p->space])) : "memory");
                c->space = p->space;
            }
#ifdef BUG_TLS
            cpus[0].gdt[7] = segment(p->tls, 0xf2);
#else
            c->gdt[7] = segment(p->tls, 0xf2);
#endif
            s = (struct saved *)c->stack - 1;
            *s = p->s;
        }
    }
#ifndef BUG_EARLY
    drop();
#endif
    return p ? s : 0;
}

static void tick(struct cpu *c)
{
    *apic(0xb0) = 0;
    if (c->id)
        return;
    if (++ticks == 2000)
        print("pcbs32: through\n");
    for (u32 n = 0; n < PCBS; n++)
        if (pcbs[n].state == ASLEEP && pcbs[n].wake <= ticks)
            pcbs[n].state = READY;
    if (ticks % 3 == 0)
        *apic(0x300) = 0xc0000 | 0x41;
}

static void call(struct pcb *p, struct saved *s)
{
    switch (s->eax) {
    case 0: s->eax = (u32)(p - pcbs); break;
    case 1: p->state = READY; s->eax = 0; break;
    case 2: print("CORRUPT\n"); break;
    case 3: p->state = ASLEEP; p->wake = ticks + s->ebx; s->eax = 0; break;
    case 4:
#ifdef BUG_IOPL
        s->eflags |= 0x3000;
#endif
        s->eax = ticks;
        break;
#ifdef BUG_CALL_EBX
    case 5: s->ebx = ticks; break;
#else
    case 5: s->eax = ticks; break;
#endif
    }
}

REGPARM struct saved *on_trap(struct saved *s)
{
    struct cpu *c = me();
    take();
    switch (s->vector) {
    case FAST: case 0x80:
        call(c->now, s);
        if (c->now->state != RUNNING && s->vector == FAST)
            s->vector = 0x80; /* may be taken up again anywhere: by iret */
        return go_on(c, s, 1);
    case 0x40: tick(c); return go_on(c, s, 0);
    case 0x41: *apic(0xb0) = 0; return go_on(c, s, 1);
    case 6: s->eip += 2; return go_on(c, s, 1);
    case 3: case 0xff: return go_on(c, s, 1);
    }
    panic("trap\n");
    return 0;
}

REGPARM struct saved *on_trap_in_idle(struct saved *s)
{
    struct cpu *c = me();
    take();
    if (s->vector == 0x40)
        tick(c);
    else
        *apic(0xb0) = 0;
    return go_on(c, s, 0);
}

static void this_cpu(u32 n)
{
    struct cpu *c = &cpus[n];
    c->self = c;
    c->id = n;
    c->space = -1;
    c->stack = (u32)stacks[n] + sizeof stacks[n];
    c->tss[1] = c->stack;
    c->tss[2] = 16;
    c->tss[25] = 0x680000;
    u32 t = (u32)c->tss;
    c->gdt[1] = segment(0, 0x9a), c->gdt[2] = segment(0, 0x92), c->gdt[3] = segment(0, 0xfa), c->gdt[4] = segment(0, 0xf2);
    c->gdt[5] = (t & 0xffffffull) << 16 | (u64)(t >> 24) << 56 | 0x890000000067ull;
    c->gdt[6] = segment((u32)c, 0x92), c->gdt[7] = segment(0, 0xf2);
    struct { u16 limit; u32 base; } __attribute__((packed)) g = {sizeof c->gdt - 1, (u32)c->gdt}, d = {sizeof idt - 1, (u32)idt};
    ASM("lgdt %0; lidt %1; pushl $8; pushl $1f; lret; 1: movl %2, %%ds; movl %2, %%es; movl %2, %%ss; movl %3, %%gs;"
        "movl %4, %%fs; ltr %w5" ::"m"(g), "m"(d), "r"(16), "r"(0x30), "r"(0), "r"(0x28) : "memory");
    wrmsr(0x174, 8);
    wrmsr(0x175, c->stack);
    wrmsr(0x176, (u32)fast_gate);
    *apic(0xf0) = 0x1ff;
    *apic(0x3e0) = 3;
    *apic(0x320) = 0x20000 | 0x40;
    *apic(0x380) = 50000;
}

static __attribute__((noreturn)) void begin(void)
{
    struct cpu *c = me();
    take();
    ASM("jmp leave" ::"a"(go_on(c, 0, 0)));
    __builtin_unreachable();
}

void ap_main(void)
{
    this_cpu(1);
    cpus_up++;
    begin();
}

void kmain(void)
{
    print("pcbs32\n");
    for (u32 (*e)[2] = gates; (*e)[1]; e++) {
        u32 n = (*e)[0], type = n == 0x80 || n == 3 ? 0xee00 : 0x8e00;
        idt[n] = ((*e)[1] & 0xffff) | 8u << 16 | (u64)(type | ((*e)[1] & 0xffff0000)) << 32;
    }
    outb(0x21, 0xff);
    outb(0xa1, 0xff);
    for (u32 p = 0; p < SPACES; p++) {
        pdpts[p][0] = PHYS(pds[p]) | 1;
        pdpts[p][3] = PHYS(boot_pd) | 1;
        pds[p][2] = (0x1000000 + p * 0x400000) | 0x87;
        pds[p][3] = (0x1200000 + p * 0x400000) | 0x87;
        for (u32 n = 0; n < (u32)user_bytes; n++)
            ((char *)VIRT(0x1000000 + p * 0x400000))[n] = user_image[n];
    }
    for (u32 n = 0; n < 8; n++) {
        struct pcb *p = &pcbs[n];
        p->s = (struct saved){.eip = 0x400000, .cs = 0x1b, .eflags = 0x202, .ss = 0x23, .ds = 0x23, .es = 0x23, .gs = 0x3b};
        p->s.fs = n & 1 ? 0x23 : 0;
        p->s.esp = 0x600000 + (n + 1) * 0x8000 - 16;
        p->s.ebx = n;
        p->tls = 0x700000 + n * 0x100;
        *(u32 *)VIRT(0x1200000 + (n & 1) * 0x400000 + 0x100000 + n * 0x100) = n;
        *(u16 *)p->fpu = 0x37f;
        *(u32 *)(p->fpu + 24) = 0x1f80;
        p->space = n & 1;
        p->state = READY;
    }
    for (u32 n = 0; ap_start + n < ap_start_end; n++)
        ((char *)VIRT(0x8000))[n] = ap_start[n];
    cpus_up = 1;
    this_cpu(0);
    ap_stack = (u32)stacks[1] + sizeof stacks[1];
    *apic(0x310) = 1 << 24;
    *apic(0x300) = 0x4500;
    for (volatile int i = 0; i < 200000; i++)
        ;
    *apic(0x310) = 1 << 24;
    *apic(0x300) = 0x4608;
    while (cpus_up != 2)
        ASM("pause");
    begin();
}

void *memcpy(void *to, const void *from, u32 n)
{
    void *r = to;
    ASM("rep movsb" : "+D"(to), "+S"(from), "+c"(n) :: "memory");
    return r;
}

void *memset(void *to, int v, u32 n)
{
    void *r = to;
    ASM("rep stosb" : "+D"(to), "+c"(n) : "a"(v) : "memory");
    return r;
}
