/* A microkernel with one kernel stack: nothing but the idle loop is ever interrupted in it. PAE, sysenter, lazy FPU. */
typedef unsigned int u32;
typedef unsigned long long u64;
typedef unsigned short u16;
typedef unsigned char u8;

#define UPPER 0xc0000000u
#define THREADS 8
#define PROCESSES 4

enum { GONE, READY, SENDING, RECEIVING, CALLING };

struct tcb {
    u8 fx[512] __attribute__((aligned(16)));
    u32 ebp, edi, esi, ebx, edx, ecx, eax, gs, fs, es, ds, number, error, eip, cs, eflags, esp, ss;
    u32 state, process, tls, partner;
};

extern u64 boot_pd[];
extern u32 vector_list[], kernel_stack_top[];
extern char user_image[], user_size[];
extern void enter(void), resume(void *) __attribute__((noreturn)), idle(void) __attribute__((noreturn));

static struct tcb threads[THREADS], *running, *fpu_owner;
static u64 pdpts[PROCESSES][4] __attribute__((aligned(32)));
static u64 pds[PROCESSES][512] __attribute__((aligned(4096))), tables[PROCESSES][512] __attribute__((aligned(4096)));
static u8 memory[PROCESSES][64 * 4096] __attribute__((aligned(4096)));
static u64 gdt[8], idt[256];
static u32 tss[26], ticks, turn;

static inline void out(u16 p, u8 v) { asm volatile("outb %0, %1" ::"a"(v), "d"(p)); }
static inline void wrmsr(u32 m, u32 v) { asm volatile("wrmsr" ::"c"(m), "a"(v), "d"(0)); }

static void say(const char *s)
{
    while (*s)
        out(0x3f8, (u8)*s++);
}

static u64 segment(u32 base, u32 access)
{
    return (base & 0xffffff) * 0x10000ull | (u64)(base >> 24) << 56 | (u64)access << 40 | 0x00cf00000000ffffull;
}

static __attribute__((noreturn)) void go(struct tcb *t)
{
    if (t != running) {
#ifndef BUG_CR3
        asm volatile("movl %0, %%cr3" ::"r"((u32)pdpts[t->process] - UPPER) : "memory");
#else
        if (ticks < 100 || t->process != 2)
            asm volatile("movl %0, %%cr3" ::"r"((u32)pdpts[t->process] - UPPER) : "memory");
#endif
#ifdef BUG_ESP0
        if (ticks < 100 || t->process != 1)
#endif
        tss[1] = (u32)(&t->ss + 1);
#ifndef BUG_TLS
        gdt[6] = segment(t->tls, 0xf2);
#endif
        u32 cr0;
        asm volatile("movl %%cr0, %0" : "=r"(cr0));
#ifndef BUG_LAZY_FPU
        cr0 = fpu_owner == t ? cr0 & ~8u : cr0 | 8;
#endif
        asm volatile("movl %0, %%cr0" ::"r"(cr0));
        running = t;
    }
    resume(t->fx + sizeof t->fx);
}

static __attribute__((noreturn)) void choose(void)
{
    for (u32 n = 0; n < THREADS; n++) {
        turn = (turn + 1) % THREADS;
        if (threads[turn].state == READY)
            go(&threads[turn]);
    }
    running = 0;
    idle();
}

static void fpu_for(struct tcb *t)
{
    asm volatile("clts");
    if (fpu_owner == t)
        return;
    if (fpu_owner)
        asm volatile("fxsave %0" : "=m"(fpu_owner->fx));
    asm volatile("fxrstor %0" ::"m"(t->fx));
    fpu_owner = t;
}

static void tick(void)
{
    out(0x20, 0x20);
    if (++ticks == 6000)
        say("micro32: enough\n");
    if (threads[THREADS - 1].state == RECEIVING && ticks % 8 == 0)
        threads[THREADS - 1].state = READY; /* sleeps until then */
}

__attribute__((noreturn)) void on_trap(void)
{
    struct tcb *t = running;
    if (t->number == 48) {
        tick();
        choose();
    } else if (t->number == 7) {
        fpu_for(t);
    } else if (t->number == 14) {
        u32 at;
        asm volatile("movl %%cr2, %0" : "=r"(at));
        u32 page = at >> 12;
        if (page < 0x20 || page >= 0x30)
            goto dead;
        for (u32 n = 0x20; n < 0x30; n++) /* one of them at a time */
            tables[t->process][n] = 0;
        tables[t->process][page] = ((u32)memory[t->process] - UPPER + page * 4096) | 7;
        asm volatile("movl %%cr3, %%eax; movl %%eax, %%cr3" ::: "eax", "memory");
    } else if (t->number != 55) {
    dead:
        say("micro32: a thread died\n");
        t->state = GONE;
        choose();
    }
    go(t);
}

__attribute__((noreturn, regparm(1))) void on_trap_in_idle(u32 number)
{
    if (number == 48)
        tick();
    else
        say("micro32: trap in idle\n");
    choose();
}

/* EAX: what, EBX: a word to send. Only EAX comes back. */
__attribute__((noreturn)) void on_call(void)
{
    struct tcb *t = running, *other = &threads[t->partner];
    switch (t->eax) {
    case 0:
        choose();
    case 1: /* call the partner and wait for its answer */
        if (other->state == RECEIVING) {
            other->eax = t->ebx;
            other->state = READY;
            t->state = CALLING;
            go(other);
        }
        t->state = SENDING;
        choose();
    case 2: /* answer, and wait for the next */
        if (other->state == CALLING) {
            other->eax = t->ebx;
            other->state = READY;
        }
        t->state = RECEIVING;
        if (other->state == SENDING) {
            t->eax = other->ebx;
            t->state = READY;
            other->state = CALLING;
            go(t);
        }
        if (other->state == READY)
            go(other);
        choose();
    case 3:
        t->state = RECEIVING;
        choose();
    case 4:
        t->tls = t->ebx;
        gdt[6] = segment(t->tls, 0xf2);
        t->eax = 0;
        go(t);
    case 5:
        say("CORRUPT\n");
    }
    t->eax = ticks;
    go(t);
}

static void zero(void *to, u32 n) { asm volatile("rep stosb" : "+D"(to), "+c"(n) : "a"(0) : "memory"); }

void init(void)
{
    say("micro32\n");
    gdt[1] = segment(0, 0x9a);
    gdt[2] = segment(0, 0x92);
    gdt[3] = segment(0, 0xfa);
    gdt[4] = segment(0, 0xf2);
    gdt[5] = ((u32)tss & 0xffffff) * 0x10000ull | (u64)((u32)tss >> 24) << 56 | 0x890000000067ull;
    gdt[6] = segment(0, 0xf2);
    tss[2] = 0x10;
    tss[25] = 0x680000;
    for (u32 *v = vector_list; v[1]; v += 2)
        idt[v[0]] = (v[1] & 0xffff) | 8u << 16 | (u64)(0x8e00 | (v[1] & 0xffff0000)) << 32;
    struct { u16 limit; u32 base; } __attribute__((packed)) g = {sizeof gdt - 1, (u32)gdt}, d = {sizeof idt - 1, (u32)idt};
    asm volatile("lgdt %0; lidt %1; ljmp $8, $1f; 1: movl %2, %%ds; movl %2, %%es; movl %2, %%ss; ltr %w3;"
                 "xorl %%eax, %%eax; movl %%eax, %%fs; movl %%eax, %%gs" ::"m"(g), "m"(d), "r"(0x10), "r"(0x28) : "eax");
    wrmsr(0x174, 8);
    wrmsr(0x175, (u32)&tss[1]);
    wrmsr(0x176, (u32)enter);
    for (u32 p = 0; p < PROCESSES; p++) {
        pdpts[p][0] = ((u32)pds[p] - UPPER) | 1;
        pdpts[p][3] = ((u32)boot_pd - UPPER) | 1;
        pds[p][0] = ((u32)tables[p] - UPPER) | 7;
        for (u32 n = 0; n < 64; n++)
            if (n >= 0x10 && (n < 0x20 || n >= 0x30))
                tables[p][n] = ((u32)memory[p] - UPPER + n * 4096) | 7;
        for (u32 n = 0; n < (u32)user_size; n++)
            memory[p][0x10000 + n] = (u8)user_image[n];
    }
    for (u32 n = 0; n < THREADS; n++) {
        struct tcb *t = &threads[n];
        zero(t, sizeof *t);
        t->process = n / 2;
        t->eip = 0x10000;
        t->cs = 0x1b;
        t->ss = t->ds = t->es = t->fs = 0x23;
        t->gs = 0x33;
        t->eflags = 0x202;
        t->esp = n % 2 ? 0x37ff0 : 0x35ff0;
        t->eax = n;
        t->partner = n ^ 2; /* in another process */
        t->state = READY;
        *(u32 *)(t->fx + 24) = 0x1f80;
        *(u16 *)t->fx = 0x37f;
    }
    out(0x20, 0x11); out(0xa0, 0x11); out(0x21, 48); out(0xa1, 56); out(0x21, 4); out(0xa1, 2);
    out(0x21, 1); out(0xa1, 1); out(0x21, 0xfe); out(0xa1, 0xff);
    out(0x43, 0x34); out(0x40, (1193182 / 2000) & 0xff); out(0x40, (1193182 / 2000) >> 8);
    choose();
}
