/* Handlers that gcc makes, and a scheduler below them that leaves and takes up threads by iret frames of its own. Work is
 * done on an interrupt stack with interrupts on; NMIs come at any moment and look at GS. Two CPUs, one queue. */
typedef unsigned long u64;
typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned char u8;

#define CPUS 2
#define THREADS 14
#define SPACES 2
#define UPPER 0xffffffff80000000ul
#define PHYS(p) ((u64)(p) - UPPER)
#define VIRT(p) ((void *)((u64)(p) + UPPER))
#define DEMAND 0x800000ul
#define ASM asm volatile
#define INTERRUPT __attribute__((interrupt)) static void

enum { FREE, READY, RUNNING, ASLEEP };
struct frame { u64 rip, cs, rflags, rsp, ss; };
struct thread {
    u64 sp, top, fs, gs, cr3, wake;
    int state, space;
    u8 fx[512] __attribute__((aligned(16)));
};
/* Known to paths.S: scratch 8, top 16, now 24, depth 32, irq_top 40. */
struct cpu {
    struct cpu *self;
    u64 scratch, top;
    struct thread *now;
    u64 depth, irq_top, id, nmis;
    struct thread *idle;
    u32 tss[26] __attribute__((aligned(16)));
    u8 nmi_stack[2048] __attribute__((aligned(16))), break_stack[2048] __attribute__((aligned(16)));
    u8 irq_stack[4096] __attribute__((aligned(16)));
};

extern u64 boot_pml4[], ap_stack, ap_number;
extern char user_image[], user_bytes[], ap_start[], ap_start_end[];
extern char call_entry[], thread_start[], peek_at[], peek_failed[];
void leave_for(u64 *save, u64 next);
void on_irq_stack(void (*fn)(void));
u64 peek(u64 at);

static struct cpu cpus[CPUS];
static struct thread threads[THREADS], idles[CPUS];
static u8 stacks[THREADS + CPUS][8192] __attribute__((aligned(4096)));
static u64 pml4s[SPACES][512] __attribute__((aligned(4096))), pdpts[SPACES][512] __attribute__((aligned(4096)));
static u64 pds[SPACES][512] __attribute__((aligned(4096))), demand[SPACES][512] __attribute__((aligned(4096)));
static u8 pages[SPACES][16][4096] __attribute__((aligned(4096)));
static u64 gdt[6 + 2 * CPUS], idt[256][2];
static int queue_lock, turn, thread_count;
static volatile int cpus_up;
static volatile u64 ticks, done;

static inline void outb(u16 p, u8 v) { ASM("outb %0, %1" ::"a"(v), "d"(p)); }
static inline u8 inb(u16 p) { u8 v; ASM("inb %1, %0" : "=a"(v) : "d"(p)); return v; }
static inline void wrmsr(u32 m, u64 v) { ASM("wrmsr" ::"c"(m), "a"((u32)v), "d"((u32)(v >> 32)) : "memory"); }
static inline u64 rdmsr(u32 m) { u32 a, d; ASM("rdmsr" : "=a"(a), "=d"(d) : "c"(m)); return a | (u64)d << 32; }
static inline struct cpu *me(void) { struct cpu *c; ASM("movq %%gs:0, %0" : "=r"(c)); return c; }
static inline struct thread *current(void) { struct thread *t; ASM("movq %%gs:24, %0" : "=r"(t)); return t; }
static inline void swapgs(void) { ASM("swapgs" ::: "memory"); }

static u64 take(void)
{
    u64 f;
    ASM("pushfq; popq %0; cli" : "=r"(f) :: "memory");
    while (__atomic_exchange_n(&queue_lock, 1, __ATOMIC_ACQUIRE))
        ASM("pause");
    return f;
}

static void drop(u64 f)
{
    __atomic_store_n(&queue_lock, 0, __ATOMIC_RELEASE);
    if (f & 0x200)
        ASM("sti" ::: "memory");
}

#include "../serial.h"

/* ---- threads ---- */

/* This CPU is `to`'s from now on. */
static void take_up(struct cpu *c, struct thread *from, struct thread *to)
{
    c->now = to;
#ifdef BUG_CALL_TOP
    if (ticks < 300 || to != &threads[2])
#endif
    c->top = to->top;
#ifdef BUG_RSP0
    if (ticks < 300 || to != &threads[2])
#endif
    c->tss[1] = (u32)to->top, c->tss[2] = (u32)(to->top >> 32);
#ifdef BUG_ONE_TSS
    for (int n = 0; n < CPUS && ticks > 100; n++)
        cpus[n].tss[1] = (u32)to->top, cpus[n].tss[2] = (u32)(to->top >> 32);
#endif
#ifdef BUG_FS
    if (to->space != from->space)
#endif
    wrmsr(0xc0000100, to->fs);
#ifdef BUG_GS
    if (to->space != from->space)
#endif
    wrmsr(0xc0000102, to->gs);
    ASM("fxsaveq %0" : "=m"(from->fx));
#ifdef BUG_FX
    if (to->space != from->space)
#endif
    ASM("fxrstorq %0" ::"m"(to->fx));
#ifdef BUG_CR3
    if (ticks < 300 || to != &threads[2])
#endif
    if (to->cr3)
        ASM("movq %0, %%cr3" ::"r"(to->cr3) : "memory");
}

static void schedule(int state)
{
    u64 f = take();
    struct cpu *c = me();
    struct thread *from = c->now, *to = 0;
    if (from != c->idle)
        from->state = state;
    for (int n = 0; n < thread_count && !to; n++) {
        turn = (turn + 1) % thread_count;
        if (threads[turn].state == READY)
            to = &threads[turn];
    }
    if (!to)
        to = c->idle;
    to->state = RUNNING;
    if (to != from) {
        take_up(c, from, to);
#ifdef BUG_EARLY
        __atomic_store_n(&queue_lock, 0, __ATOMIC_RELEASE);
        for (volatile int i = 0; i < 5000; i++)
            ;
#endif
        leave_for(&from->sp, to->sp);
    }
    drop(f);
}

void began(void) { __atomic_store_n(&queue_lock, 0, __ATOMIC_RELEASE); }

static void spawn(int space, u64 rip, u64 argument)
{
    struct thread *t = &threads[thread_count];
    int user = space >= 0;
    u64 n = (u64)thread_count++;
    t->space = space;
    t->cr3 = user ? PHYS(pml4s[space]) : 0;
    t->top = (u64)stacks[n] + sizeof stacks[0];
    t->fs = user ? 0x610000 + n * 64 : 0;
    t->gs = user ? 0x611000 + n * 64 : 0;
    *(u32 *)(t->fx + 24) = 0x1f80;
    *(u16 *)t->fx = 0x37f;
    u64 *sp = (u64 *)t->top;
    *--sp = user ? 0x1b : 0x10;
    *--sp = user ? 0x700000ul + (n + 1) * 0x8000 - 8 : t->top - 72;
    *--sp = 0x202;
    *--sp = user ? 0x23 : 8;
    *--sp = rip;
    *--sp = argument;
    u64 *at = sp;
    *--sp = 0x10; /* what leave_for() takes up */
    *--sp = (u64)at;
    *--sp = 2;
    *--sp = 8;
    *--sp = (u64)thread_start;
    for (int i = 0; i < 6; i++)
        *--sp = 0;
    t->sp = (u64)sp;
    t->state = READY;
}

/* ---- interrupts ---- */

static void account(void)
{
    struct cpu *c = me();
    if (c->id)
        return;
    u64 f = take();
    if (++ticks == 3000)
        print("attr64: made\n");
    for (int n = 0; n < thread_count; n++)
        if (threads[n].state == ASLEEP && threads[n].wake <= ticks)
            threads[n].state = READY;
    drop(f);
    if (ticks % 4 == 1)
        wrmsr(0x830, 0x80000 | 0x60); /* everybody's device */
    if (ticks % 4 == 3) {
        wrmsr(0x830, 0xc0000 | 0x400); /* NMIs, to the other and to this one */
        wrmsr(0x830, c->id << 32 | 0x400);
    }
}

static void work(void)
{
    for (volatile u64 i = 0; i < 30000; i++)
        ;
    done++;
}

INTERRUPT tick(struct frame *f)
{
    if (f->cs & 3)
        swapgs();
    on_irq_stack(account);
    wrmsr(0x80b, 0); /* only now: on a slow machine ticks would pile up on the stack */
#ifdef BUG_TICK_R12
    ASM("movq %0, %%r12" ::"r"(ticks)); /* and does not say so */
#endif
#ifdef BUG_TICK_XMM
    ASM("pxor %xmm1, %xmm1");
#endif
    if (!me()->depth)
        schedule(READY);
#ifdef BUG_TICK_FLAGS
    f->rflags &= ~0x8d5ul;
#endif
#ifdef BUG_TICK_RIP
    if (ticks % 64 == 0 && !(f->cs & 3))
        f->rsp += 8;
#endif
    if (f->cs & 3)
        swapgs();
}

INTERRUPT device(struct frame *f)
{
    if (f->cs & 3)
        swapgs();
    on_irq_stack(work);
    wrmsr(0x80b, 0);
#ifdef BUG_DEVICE_IF
    ASM("sti");
#endif
    if (f->cs & 3)
        swapgs();
#ifdef BUG_DEVICE_IF
    for (volatile int i = 0; i < 200; i++)
        ;
#endif
}

INTERRUPT nmi(struct frame *f)
{
#ifdef BUG_NMI_CS
    int swapped = f->cs & 3;
#else
    int swapped = (long)rdmsr(0xc0000101) >= 0;
    (void)f;
#endif
    if (swapped)
        swapgs();
    me()->nmis++;
#ifdef BUG_NMI_R14
    ASM("incq %r14");
#endif
    if (swapped)
        swapgs();
}

#ifdef BUG_PAGE_CODE
INTERRUPT page(struct frame *f)
#else
INTERRUPT page(struct frame *f, u64 code)
#endif
{
    u64 at;
#ifndef BUG_PAGE_CODE
    (void)code;
    if (f->cs & 3)
        swapgs();
#else
    (void)f; /* that is how it goes unnoticed */
#endif
    ASM("movq %%cr2, %0" : "=r"(at));
    u64 n = (at - DEMAND) >> 12;
    if (n >= 16)
        panic("page fault\n");
#ifndef BUG_PAGE_CODE
    struct thread *t = current();
    demand[t->space][n] = PHYS(pages[t->space][n]) | 7;
    if (f->cs & 3)
        swapgs();
#else
    for (int s = 0; s < SPACES; s++)
        demand[s][n] = PHYS(pages[s][n]) | 7;
#endif
}

INTERRUPT protection(struct frame *f, u64 code)
{
    (void)code;
    if (!(f->cs & 3)) {
#ifdef BUG_FIXUP_GS
        swapgs();
#endif
        if (f->rip != (u64)peek_at)
            panic("protection\n");
        f->rip = (u64)peek_failed;
        return;
    }
    f->rip++; /* a hlt in user code: nothing */
}

#ifdef BUG_BREAK_CODE
INTERRUPT breakpoint(struct frame *f, u64 code) { (void)f; (void)code; }
#else
INTERRUPT breakpoint(struct frame *f)
{
#ifdef BUG_USER_IF
    if (ticks > 200 && f->cs & 3)
        f->rflags &= ~0x200ul;
#endif
    (void)f;
    for (volatile int i = 0; i < 3000; i++)
        ;
}
#endif

INTERRUPT yield_gate(struct frame *f)
{
    if (f->cs & 3)
        swapgs();
    schedule(READY);
    if (f->cs & 3)
        swapgs();
}

INTERRUPT spurious(struct frame *f) { (void)f; }
INTERRUPT dead(struct frame *f) { (void)f; panic("exception\n"); }
INTERRUPT dead_with_code(struct frame *f, u64 code) { (void)f; (void)code; panic("exception with a code\n"); }

/* ---- system calls ---- */

u64 on_call(u64 a, u64 b, u64 c, u64 number)
{
    struct thread *t = current();
    (void)c;
#ifdef BUG_CALL_RBX
    ASM("movl %0, %%ebx" ::"r"((u32)ticks)); /* and does not say so */
#endif
    switch (number) {
    case 0: return (u64)(t - threads);
    case 1: schedule(READY); return 0;
    case 2: print("CORRUPT\n"); return 0;
    case 3: return peek(a) + b;
    case 4:
        for (int n = 0; n < 16; n++)
            demand[t->space][n] = 0;
        ASM("movq %0, %%cr3" ::"r"(t->cr3) : "memory");
        return 0;
    case 5:
        ASM("cli");
        t->fs = a;
        t->gs = b;
        wrmsr(0xc0000100, a);
        wrmsr(0xc0000102, b);
        ASM("sti");
        return 0;
    case 6:
        t->wake = ticks + a;
        schedule(ASLEEP);
        return 0;
    }
    return ~0ul;
}

/* Threads of the kernel's own: one that gives way of itself, one that does not, one that keeps values below RSP. */
static void giver(u64 seed)
{
    for (u64 n = 1;; n++) {
        u64 ok;
        ASM("movq %1, %%r13; movq %1, %%r15; notq %%r15; movl $1, %%edi; movq %2, %%rax; call *%%rax\n"
            "notq %%r15; xorl %%eax, %%eax; cmpq %%r13, %%r15; sete %%al"
            : "=&a"(ok) : "r"(seed + n), "b"((u64)schedule)
            : "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "memory");
        if (!ok)
            print("CORRUPT\n");
        for (volatile int i = 0; i < 3000; i++)
            ;
    }
}

static void keeper(u64 seed)
{
    u64 sum = seed;
    for (u64 n = 1;; n++) {
        for (u64 i = 0; i < 20000; i++)
            sum = (sum ^ i) * 0x9e3779b97f4a7c15ul + n;
        if (sum == 1)
            print("one\n");
#ifdef BUG_RED_ZONE
        ASM("movq %%rsp, -16(%%rsp); movl $300000, %%ecx; 1: cmpq -16(%%rsp), %%rsp; loop 1b" ::: "rcx", "memory");
#endif
        ASM("int $0x81" ::: "memory");
    }
}

/* ---- start ---- */

static void gate(int n, void *to, u64 ist)
{
    u64 a = (u64)to;
    idt[n][0] = (a & 0xffff) | 8 << 16 | ist << 32 | (n == 3 || n == 0x81 ? 0xee00ul : 0x8e00ul) << 32 | (a >> 16 & 0xffff) << 48;
    idt[n][1] = a >> 32;
}

static void this_cpu(u64 n)
{
    struct cpu *c = &cpus[n];
    c->self = c;
    c->id = n;
    c->now = c->idle = &idles[n];
    c->idle->state = RUNNING;
    c->idle->space = -1;
    c->irq_top = (u64)c->irq_stack + sizeof c->irq_stack;
    u64 t = (u64)c->tss, ist[2] = {(u64)c->nmi_stack + sizeof c->nmi_stack, (u64)c->break_stack + sizeof c->break_stack};
#ifdef BUG_IST
    ist[1] = ist[0];
#endif
    __builtin_memcpy(&c->tss[9], ist, sizeof ist);
    gdt[6 + 2 * n] = 0x67 | (t & 0xffffff) << 16 | 0x89ul << 40 | (t >> 24 & 0xff) << 56;
    gdt[7 + 2 * n] = t >> 32;
    struct { u16 limit; u64 base; } __attribute__((packed)) g = {sizeof gdt - 1, (u64)gdt}, d = {sizeof idt - 1, (u64)idt};
    ASM("lgdt %0; lidt %1; ltr %w2" ::"m"(g), "m"(d), "r"((6 + 2 * n) * 8));
    ASM("pushq $8; leaq 1f(%%rip), %%rax; pushq %%rax; lretq; 1: movl $16, %%eax; movl %%eax, %%ss; movl %%eax, %%ds;"
        "movl %%eax, %%es; xorl %%eax, %%eax; movl %%eax, %%fs; movl %%eax, %%gs" ::: "rax", "memory");
    wrmsr(0xc0000101, (u64)c);
    wrmsr(0xc0000102, 0);
    wrmsr(0xc0000081, 0x0010000800000000ul);
    wrmsr(0xc0000082, (u64)call_entry);
    wrmsr(0xc0000084, 0x47700);
    wrmsr(0x1b, rdmsr(0x1b) | 0xc00);
    wrmsr(0x80f, 0x1ff);
}

static __attribute__((noreturn)) void idle(void)
{
    wrmsr(0x83e, 3);
    wrmsr(0x832, 0x20000 | 0x70);
    wrmsr(0x838, 50000);
    for (;;)
        ASM("sti; hlt");
}

void ap_main(u64 n)
{
    this_cpu(n);
    cpus_up++;
    idle();
}

void rust_main(void)
{
    print("attr64\n");
    gdt[1] = 0x00209a0000000000, gdt[2] = 0x0000920000000000, gdt[3] = 0x0000f20000000000, gdt[4] = 0x0020fa0000000000;
    for (int n = 0; n < 256; n++)
        gate(n, n >= 32 ? (void *)spurious : n == 8 || (n >= 10 && n < 14) || n == 17 ? (void *)dead_with_code : (void *)dead, 0);
    gate(2, (void *)nmi, 1);
    gate(3, (void *)breakpoint, 2);
    gate(13, (void *)protection, 0);
    gate(14, (void *)page, 0);
    gate(0x70, (void *)tick, 0);
    gate(0x60, (void *)device, 0);
    gate(0x81, (void *)yield_gate, 0);
    outb(0x21, 0xff);
    outb(0xa1, 0xff);
    for (int p = 0; p < SPACES; p++) {
        pml4s[p][511] = boot_pml4[511];
        pml4s[p][0] = PHYS(pdpts[p]) | 7;
        pdpts[p][0] = PHYS(pds[p]) | 7;
        pds[p][2] = 0x2000000 | 0x85;
        pds[p][3] = (0x2200000 + (u64)p * 0x200000) | 0x87;
        pds[p][4] = PHYS(demand[p]) | 7;
    }
    __builtin_memcpy(VIRT(0x2000000), user_image, (u64)user_bytes);
    for (u64 n = 0; n < 8; n++)
        spawn((int)(n & 1), 0x400000, n >> 1);
    spawn(0, 0x400000, 4);
    spawn(0, 0x400000, 4);
    spawn(-1, (u64)giver, 1);
    spawn(-1, (u64)giver, 99);
    spawn(-1, (u64)keeper, 2);
    this_cpu(0);
    __builtin_memcpy(VIRT(0x8000), ap_start, (u64)(ap_start_end - ap_start));
    for (u64 n = 1; n < CPUS; n++) {
        ap_stack = (u64)stacks[THREADS + n] + sizeof stacks[0];
        ap_number = n;
        wrmsr(0x830, n << 32 | 0x4500);
        for (volatile int i = 0; i < 200000; i++)
            ;
        wrmsr(0x830, n << 32 | 0x4608);
        while (cpus_up != (int)n)
            ASM("pause");
    }
    idle();
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
