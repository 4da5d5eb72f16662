/* Threads with kernel stacks, saved by save() and taken up by restore(), on any of three CPUs. System calls are made with
 * interrupts on, and preempted. User code sets its FS and GS bases itself. */
typedef unsigned long u64;
typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned char u8;

#define CPUS 3
#define THREADS 12
#define SPACES 3
#define UPPER 0xffffffff80000000ul
#define PHYS(p) ((u64)(p) - UPPER)
#define VIRT(p) ((void *)((u64)(p) + UPPER))
#define ASM asm volatile

enum { FREE, READY, RUNNING, ASLEEP };
struct regs { u64 gs, r15, r14, r13, r12, r11, r10, r9, r8, rdi, rsi, rbp, rbx, rdx, rcx, rax, vector, code, rip, cs, rflags, rsp, ss; };
struct context { u64 back, rsp, rbx, rbp, r12, r13, r14, r15; };
struct cpu;
union thread {
    struct {
        struct cpu *cpu;
        struct context c;
        u64 fs, wake;
        int state, space;
    };
    u8 stack[8192];
} __attribute__((aligned(8192)));
struct cpu {
    struct cpu *self;
    union thread *now, *before, *idle;
    u64 id;
    int space;
    u32 tss[26] __attribute__((aligned(16)));
};

extern u64 boot_pml4[], ap_stack, ap_number, gates[][2], call_stack[][8], call_scratch[][8];
extern char user_image[], user_bytes[], ap_start[], ap_start_end[], to_user[], call_stub_0[], call_stub_1[], call_stub_2[];
int save(struct context *c) __attribute__((returns_twice));
void restore(struct context *c) __attribute__((noreturn));

static struct cpu cpus[CPUS];
static union thread threads[THREADS], idles[CPUS];
static u64 pml4s[SPACES][512] __attribute__((aligned(4096))), pdpts[SPACES][512] __attribute__((aligned(4096)));
static u64 pds[SPACES][512] __attribute__((aligned(4096)));
static u64 gdt[6 + 2 * CPUS], idt[256][2];
static int big_lock;
static volatile int cpus_up;
static volatile u64 ticks;
static u64 turn;

static inline void outb(u16 p, u8 v) { ASM("outb %0, %1" ::"a"(v), "d"(p)); }
static inline u8 inb(u16 p) { u8 v; ASM("inb %1, %0" : "=a"(v) : "d"(p)); return v; }
static inline void wrmsr(u32 m, u64 v) { ASM("wrmsr" ::"c"(m), "a"((u32)v), "d"((u32)(v >> 32)) : "memory"); }
static inline u64 rdmsr(u32 m) { u32 a, d; ASM("rdmsr" : "=a"(a), "=d"(d) : "c"(m)); return a | (u64)d << 32; }
static inline struct cpu *me(void) { struct cpu *c; ASM("movq %%gs:0, %0" : "=r"(c)); return c; }

static void take(void) { while (__atomic_exchange_n(&big_lock, 1, __ATOMIC_ACQUIRE)) ASM("pause"); }
static void drop(void) { __atomic_store_n(&big_lock, 0, __ATOMIC_RELEASE); }

#include "../serial.h"

/* On the new thread's stack, with the lock, which goes. */
static __attribute__((noinline)) void arrived(void)
{
    struct cpu *c = me();
    union thread *t = c->now;
    u64 top = (u64)(t + 1);
    t->cpu = c;
#ifdef BUG_RSP0
    if (ticks < 200 || t != &threads[3])
#endif
    c->tss[1] = (u32)top, c->tss[2] = (u32)(top >> 32);
#ifdef BUG_CALL_STACK
    if (ticks < 200 || t != &threads[3])
#endif
    call_stack[c->id][0] = top;
    if (t->space >= 0 && t->space != c->space) {
        ASM("movq %0, %%cr3" ::"r"(PHYS(pml4s[t->space])) : "memory");
        c->space = t->space;
    }
#ifdef BUG_FS
    if (ticks < 200 || t != &threads[3])
#endif
    ASM("wrfsbase %0" ::"r"(t->fs));
    drop();
}

/* With interrupts off and the lock. */
static void schedule(void)
{
    struct cpu *c = me();
    union thread *old = c->now, *t = 0;
    for (u64 n = 0; n < THREADS && !t; n++) {
        turn = (turn + 1) % THREADS;
        if (threads[turn].state == READY)
            t = &threads[turn];
    }
    if (!t)
        t = old->state == RUNNING ? old : c->idle;
    if (t == old) {
        drop();
        return;
    }
    if (old->state == RUNNING && old != c->idle)
        old->state = READY;
    t->state = RUNNING;
    ASM("rdfsbase %0" : "=r"(old->fs));
#ifdef BUG_EARLY
    drop();
    for (volatile int i = 0; i < 200; i++)
        ;
#endif
    if (!save(&old->c)) {
        c->now = t;
        /* GS is this CPU's; the thread's place on its stack says so from arrived() on. */
        restore(&t->c);
    }
    arrived();
}

static __attribute__((noreturn)) void idle(void)
{
    arrived();
    for (;;)
        ASM("sti; hlt; cli");
}

static void first_run(void)
{
    arrived();
    ASM("movq %0, %%rsp; jmp leave" ::"r"((struct regs *)(me()->now + 1) - 1));
}

static void tick(void)
{
    wrmsr(0x80b, 0);
    take();
    if (!me()->id) {
        if (++ticks == 1200)
            print("stub64: seen it all\n");
        for (int n = 0; n < THREADS; n++)
            if (threads[n].state == ASLEEP && threads[n].wake <= ticks)
                threads[n].state = READY;
        if (ticks % 3 == 0)
            wrmsr(0x830, 0xc0000 | 0x51);
    }
    schedule();
}

void on_trap(struct regs *r)
{
    switch (r->vector) {
    case 0x50: tick(); break;
    case 0x51: wrmsr(0x80b, 0); break;
    case 3: case 0xff: break;
    case 6: r->rip += 2; break;
    default: panic("trap\n");
    }
#ifdef BUG_IF
    if (ticks > 200 && r->vector == 3)
        r->rflags &= ~0x200ul;
#endif
}

void on_call(struct regs *r)
{
    union thread *t = (union thread *)((u64)r & -8192ul);
    switch (r->rax) {
    case 0: r->rax = (u64)(t - threads); break;
    case 2: print("CORRUPT\n"); break;
    case 3:
        ASM("cli");
        take();
        t->wake = ticks + r->rdi;
        t->state = ASLEEP;
        schedule();
        ASM("sti");
        r->rax = 0;
        break;
    case 4: /* work */
        for (volatile u64 i = 0; i < r->rdi; i++)
            ;
        r->rax = r->rdi;
        break;
    }
#ifdef BUG_SCRATCH
    ASM("cli");
    if (ticks > 200)
        r->rsp = call_scratch[me()->id][0];
    ASM("sti");
#endif
#ifdef BUG_CALL_RDX
    r->rdx = ticks;
#endif
}

/* ---- start ---- */

static void this_cpu(u64 n)
{
    static char *const stubs[] = {call_stub_0, call_stub_1, call_stub_2};
    struct cpu *c = &cpus[n];
    c->self = c;
    c->id = n;
    c->space = -1;
    c->idle = c->now = &idles[n];
    c->idle->space = -1;
    u64 t = (u64)c->tss;
    gdt[6 + 2 * n] = 0x67 | (t & 0xffffff) << 16 | 0x89ul << 40 | (t >> 24 & 0xff) << 56;
    gdt[7 + 2 * n] = t >> 32;
    struct { u16 limit; u64 base; } __attribute__((packed)) g = {sizeof gdt - 1, (u64)gdt}, d = {sizeof idt - 1, (u64)idt};
    ASM("lgdt %0; lidt %1; ltr %w2" ::"m"(g), "m"(d), "r"((6 + 2 * n) * 8));
    ASM("pushq $8; leaq 1f(%%rip), %%rax; pushq %%rax; lretq; 1: movl $16, %%eax; movl %%eax, %%ss; movl %%eax, %%ds;"
        "movl %%eax, %%es; xorl %%eax, %%eax; movl %%eax, %%fs; movl %%eax, %%gs" ::: "rax", "memory");
    ASM("movq %%cr4, %%rax; btsq $16, %%rax; movq %%rax, %%cr4; wrgsbase %0" ::"r"(c) : "rax");
    wrmsr(0xc0000081, 0x0010000800000000ul);
#ifdef BUG_LSTAR
    wrmsr(0xc0000082, (u64)stubs[n == 2 ? 1 : n]);
#else
    wrmsr(0xc0000082, (u64)stubs[n]);
#endif
    wrmsr(0xc0000084, 0x47700);
    wrmsr(0x1b, rdmsr(0x1b) | 0xc00);
    wrmsr(0x80f, 0x1ff);
    wrmsr(0x83e, 3);
    wrmsr(0x832, 0x20000 | 0x50);
    wrmsr(0x838, 60000);
    c->idle->c.back = (u64)idle;
    c->idle->c.rsp = (u64)(c->idle + 1) - 8;
    c->idle->state = RUNNING;
    take();
    restore(&c->idle->c);
}

void ap_main(u64 n)
{
    cpus_up++;
    this_cpu(n);
}

void rust_main(void)
{
    print("stub64\n");
    gdt[1] = 0x00209a0000000000, gdt[2] = 0x0000920000000000, gdt[3] = 0x0000f20000000000, gdt[4] = 0x0020fa0000000000;
    for (u64 (*e)[2] = gates; (*e)[1]; e++) {
        u64 n = (*e)[0], a = (*e)[1];
        idt[n][0] = (a & 0xffff) | 8 << 16 | (n == 3 ? 0xee00ul : 0x8e00ul) << 32 | (a >> 16 & 0xffff) << 48;
        idt[n][1] = a >> 32;
    }
    outb(0x21, 0xff);
    outb(0xa1, 0xff);
    for (int p = 0; p < SPACES; p++) {
        pml4s[p][511] = boot_pml4[511];
        pml4s[p][0] = PHYS(pdpts[p]) | 7;
        pdpts[p][0] = PHYS(pds[p]) | 7;
        pds[p][2] = (0x2000000 + (u64)p * 0x400000) | 0x87;
        pds[p][3] = (0x2200000 + (u64)p * 0x400000) | 0x87;
        for (u64 n = 0; n < (u64)user_bytes; n++)
            ((char *)VIRT(0x2000000 + (u64)p * 0x400000))[n] = user_image[n];
    }
    for (u64 n = 0; n < 10; n++) {
        union thread *t = &threads[n];
        struct regs *r = (struct regs *)(t + 1) - 1;
        *r = (struct regs){.rip = 0x400000, .rflags = 0x202, .cs = 0x23, .ss = 0x1b, .rdi = n};
        r->rsp = 0x600000 + (n + 1) * 0x8000 - 8;
        t->c.back = (u64)first_run;
        t->c.rsp = (u64)r - 8;
        t->space = (int)(n % SPACES);
        t->state = READY;
    }
    cpus_up = 1;
    for (u64 n = 0; ap_start + n < ap_start_end; n++)
        ((char *)VIRT(0x8000))[n] = ap_start[n];
    for (u64 n = 1; n < CPUS; n++) {
        ap_stack = (u64)(&idles[n] + 1);
        ap_number = n;
        wrmsr(0x1b, rdmsr(0x1b) | 0xc00);
        wrmsr(0x80f, 0x1ff);
        wrmsr(0x830, n << 32 | 0x4500);
        for (volatile int i = 0; i < 200000; i++)
            ;
        wrmsr(0x830, n << 32 | 0x4608);
        while (cpus_up != (int)n + 1)
            ASM("pause");
    }
    this_cpu(0);
}

void *memcpy(void *to, const void *from, u64 n)
{
    void *r = to;
    ASM("rep movsb" : "+D"(to), "+S"(from), "+c"(n) :: "memory");
    return r;
}

void *memset(void *to, int v, u64 n)
{
    void *r = to;
    ASM("rep stosb" : "+D"(to), "+c"(n) : "a"(v) : "memory");
    return r;
}
