/* A microkernel after the manner of seL4 on x86-64: RSP0 points into the running thread's control block. Messages pass
 * through registers of the blocks, faults of some threads are mended by another, time stamps are made up. */
typedef unsigned long u64;
typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned char u8;

#define CPUS 2
#define THREADS 10
#define SPACES 3
#define UPPER 0xffffffff80000000ul
#define PHYS(p) ((u64)(p) - UPPER)
#define VIRT(p) ((void *)((u64)(p) + UPPER))
#define ASM asm volatile
#define CALL 0x100

enum { FREE, READY, RUNNING, ASLEEP, SENDING, RECEIVING, FAULTED };
struct tcb {
    u64 r14, r12, r13, rsi, r11, rbp, r10, rdx, r8, rax, rcx, rdi, r15, rbx, r9;
    u64 vector, code, rip, cs, rflags, rsp, ss;
    u64 fs, gs, wake, id;
    int state, space;
    struct tcb *peer;
} __attribute__((aligned(16)));
/* self 0, running 8, stack 16, scratch 24, idle's stack pointer 32 */
struct cpu {
    struct cpu *self;
    struct tcb *now;
    u64 stack, scratch, idle_sp, id;
    int space;
    u32 tss[26] __attribute__((aligned(16)));
};

extern u64 boot_pml4[], ap_stack, ap_number, gates[][2];
extern char user_image[], user_bytes[], ap_start[], ap_start_end[], call_gate[], idle[];
void first_leave(struct tcb *t) __attribute__((noreturn));

static struct cpu cpus[CPUS];
#ifdef BUG_ALIGN
static struct { u64 first; struct tcb t; } __attribute__((packed, aligned(16))) blocks[THREADS];
#define BLOCK(n) ((struct tcb *)((n) == 4 ? (u64)&blocks[n].t : (u64)&blocks[n].t - 8))
#else
static struct tcb blocks[THREADS];
#define BLOCK(n) (&blocks[n])
#endif
static u8 stacks[CPUS][8192] __attribute__((aligned(4096))), idle_stacks[CPUS][1024] __attribute__((aligned(16)));
static u64 pml4s[SPACES][512] __attribute__((aligned(4096))), pdpts[SPACES][512] __attribute__((aligned(4096)));
static u64 pds[SPACES][512] __attribute__((aligned(4096))), pages[SPACES][512] __attribute__((aligned(4096)));
static u64 gdt[6 + 2 * CPUS], idt[256][2];
static int big_lock;
static volatile int cpus_up;
static u64 ticks, turn, clock_made_up;

static inline void outb(u16 p, u8 v) { ASM("outb %0, %1" ::"a"(v), "d"(p)); }
static inline u8 inb(u16 p) { u8 v; ASM("inb %1, %0" : "=a"(v) : "d"(p)); return v; }
static inline void wrmsr(u32 m, u64 v) { ASM("wrmsr" ::"c"(m), "a"((u32)v), "d"((u32)(v >> 32)) : "memory"); }
static inline u64 rdmsr(u32 m) { u32 a, d; ASM("rdmsr" : "=a"(a), "=d"(d) : "c"(m)); return a | (u64)d << 32; }
static inline struct cpu *me(void) { struct cpu *c; ASM("movq %%gs:0, %0" : "=r"(c)); return c; }

static void take(void) { while (__atomic_exchange_n(&big_lock, 1, __ATOMIC_ACQUIRE)) ASM("pause"); }
static void drop(void) { __atomic_store_n(&big_lock, 0, __ATOMIC_RELEASE); }

#include "../serial.h"

static void load_rsp0(struct cpu *c, struct tcb *t)
{
    u64 top = (u64)&t->ss + 8;
#ifdef BUG_RSP0
    if (ticks > 200 && ticks % 16 == 0)
        return;
#endif
    c->tss[1] = (u32)top, c->tss[2] = (u32)(top >> 32);
}

static struct tcb *choose(void)
{
    for (u64 n = 0; n < THREADS; n++) {
        turn = (turn + 1) % THREADS;
        if (BLOCK(turn)->state == READY)
            return BLOCK(turn);
    }
    return 0;
}

/* Whom to go on with; the lock goes. */
static struct tcb *schedule(int stay)
{
    struct cpu *c = me();
    struct tcb *t = c->now;
    if (!stay || !t || t->state != RUNNING) {
        if (t && t->state == RUNNING)
            t->state = READY;
        t = choose();
        c->now = t;
        if (t) {
            t->state = RUNNING;
            if (t->space != c->space) {
#ifdef BUG_CR3
                if (ticks < 200 || t != BLOCK(5))
#endif
                ASM("movq %0, %%cr3" ::"r"(PHYS(pml4s[t->space])) : "memory");
                c->space = t->space;
            }
            load_rsp0(c, t);
#ifdef BUG_FS
            if (ticks < 200 || t != BLOCK(2))
#endif
            wrmsr(0xc0000100, t->fs);
#ifdef BUG_GS
            if (ticks < 200 || t != BLOCK(2))
#endif
            wrmsr(0xc0000102, t->gs);
        }
    }
#ifdef BUG_IF
    if (t && ticks > 200 && t->vector == CALL)
        t->rflags &= ~0x200ul;
#endif
    drop();
    return t;
}

static void tick(void)
{
    wrmsr(0x80b, 0);
    if (me()->id)
        return;
    if (++ticks == 1500)
        print("seat64: served\n");
    for (u64 n = 0; n < THREADS; n++)
        if (BLOCK(n)->state == ASLEEP && BLOCK(n)->wake <= ticks)
            BLOCK(n)->state = READY;
    if (ticks % 3 == 0)
        wrmsr(0x830, 0xc0000 | 0x51);
    if (ticks % 4 == 0)
        wrmsr(0x830, 0xc0000 | 0x52);
}

/* The page that a thread touched is mapped; the one mapped before it is not any more. */
static void page_in(struct tcb *t)
{
    u64 at;
    ASM("movq %%cr2, %0" : "=r"(at));
    u64 n = at >> 12 & 511;
    if (at >> 21 != 4)
        panic("page fault\n");
    for (u64 i = n % 4; i < 512; i += 4)
        pages[t->space][i] = 0;
    ASM("movq %%cr3, %%rax; movq %%rax, %%cr3" ::: "rax", "memory");
    pages[t->space][n] = (0x3000000 + (u64)t->space * 0x10000 + n % 4 * 0x1000) | 7;
}

/* Rendezvous: what the sender has in RSI is the receiver's result. */
static void meet(struct tcb *from, struct tcb *to)
{
    to->rax = from->rsi;
    from->rax = 0;
    from->state = from->state == SENDING ? READY : from->state;
    to->state = to->state == RECEIVING ? READY : to->state;
}

static void call(struct tcb *t)
{
    struct tcb *other = t->rdi < THREADS ? BLOCK(t->rdi) : 0;
    switch (t->rax) {
    case 0: t->rax = t->id; break;
    case 1: t->state = READY; t->rax = 0; break;
    case 2: print("CORRUPT\n"); break;
    case 3: t->state = ASLEEP; t->wake = ticks + t->rdi; t->rax = 0; break;
    case 4: /* send */
        if (other->state == RECEIVING) {
            meet(t, other);
        } else {
            t->state = SENDING;
            t->peer = other;
        }
        break;
    case 5: /* receive */
        for (u64 n = 0; n < THREADS; n++)
            if (BLOCK(n)->state == SENDING && BLOCK(n)->peer == t) {
                meet(BLOCK(n), t);
                return;
            }
        t->state = RECEIVING;
        break;
    case 6: /* mend: the next faulted thread goes on behind its ud2, if there is one */
        t->rax = 0;
        for (u64 n = 0; n < THREADS; n++)
            if (BLOCK(n)->state == FAULTED) {
                BLOCK(n)->rip += 2;
                BLOCK(n)->state = READY;
                t->rax++;
            }
        break;
    }
}

struct tcb *on_event(void)
{
    struct tcb *t = me()->now;
    take();
    switch (t->vector) {
    case CALL: call(t); return schedule(1);
    case 0x50: tick(); return schedule(0);
    case 0x51: case 0x52: wrmsr(0x80b, 0); return schedule(1);
    case 6: t->state = FAULTED; return schedule(1);
    case 0: t->rip += 3; return schedule(1); /* div by zero is zero, to be sure */
    case 13: /* rdtsc */
        clock_made_up += 1000;
        t->rax = (u32)clock_made_up;
        t->rdx = clock_made_up >> 32;
        t->rip += 2;
#ifdef BUG_TSC_RBX
        t->rbx = clock_made_up;
#endif
        return schedule(1);
    case 14: page_in(t); return schedule(1);
    case 0xff: return schedule(1);
    }
    panic("what?\n");
    return 0;
}

struct tcb *on_idle_event(u64 *saved)
{
    take();
    me()->idle_sp = (u64)saved;
    if (saved[15] == 0x50)
        tick();
    else
        wrmsr(0x80b, 0);
    return schedule(0);
}

/* ---- start ---- */

static void this_cpu(u64 n)
{
    struct cpu *c = &cpus[n];
    c->self = c;
    c->id = n;
    c->space = -1;
    c->stack = (u64)stacks[n] + sizeof stacks[n];
    u64 *first = (u64 *)(idle_stacks[n] + sizeof idle_stacks[n]) - 22;
    first[17] = (u64)idle, first[18] = 8, first[19] = 2, first[20] = (u64)(first + 22), first[21] = 16;
    c->idle_sp = (u64)first;
    u64 t = (u64)c->tss;
    gdt[6 + 2 * n] = 0x67 | (t & 0xffffff) << 16 | 0x89ul << 40 | (t >> 24 & 0xff) << 56;
    gdt[7 + 2 * n] = t >> 32;
    struct { u16 limit; u64 base; } __attribute__((packed)) g = {sizeof gdt - 1, (u64)gdt}, d = {sizeof idt - 1, (u64)idt};
    ASM("lgdt %0; lidt %1; ltr %w2" ::"m"(g), "m"(d), "r"((6 + 2 * n) * 8));
    ASM("pushq $8; leaq 1f(%%rip), %%rax; pushq %%rax; lretq; 1: movl $16, %%eax; movl %%eax, %%ss; movl %%eax, %%ds;"
        "movl %%eax, %%es; xorl %%eax, %%eax; movl %%eax, %%fs; movl %%eax, %%gs" ::: "rax", "memory");
    wrmsr(0xc0000101, (u64)c);
    wrmsr(0xc0000081, 0x0010000800000000ul);
    wrmsr(0xc0000082, (u64)call_gate);
    wrmsr(0xc0000084, 0x47700);
    ASM("movq %%cr4, %%rax; orq $4, %%rax; movq %%rax, %%cr4" ::: "rax"); /* no rdtsc for users */
    wrmsr(0x1b, rdmsr(0x1b) | 0xc00);
    wrmsr(0x80f, 0x1ff);
    wrmsr(0x83e, 3);
    wrmsr(0x832, 0x20000 | 0x50);
    wrmsr(0x838, 50000);
}

void ap_main(u64 n)
{
    this_cpu(n);
    cpus_up++;
    take();
    first_leave(schedule(0));
}

void rust_main(void)
{
    print("seat64\n");
    gdt[1] = 0x00209a0000000000, gdt[2] = 0x0000920000000000, gdt[3] = 0x0000f20000000000, gdt[4] = 0x0020fa0000000000;
    for (u64 (*e)[2] = gates; (*e)[1]; e++) {
        u64 n = (*e)[0], a = (*e)[1];
        idt[n][0] = (a & 0xffff) | 8 << 16 | 0x8e00ul << 32 | (a >> 16 & 0xffff) << 48;
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
        pds[p][4] = PHYS(pages[p]) | 7;
        for (u64 n = 0; n < (u64)user_bytes; n++)
            ((char *)VIRT(0x2000000 + (u64)p * 0x400000))[n] = user_image[n];
    }
    for (u64 n = 0; n < THREADS; n++) {
        struct tcb *t = BLOCK(n);
        *t = (struct tcb){.rip = 0x400000, .rflags = 0x202, .cs = 0x23, .ss = 0x1b, .rdi = n, .id = n, .state = READY};
        t->rsp = 0x600000 + (n + 1) * 0x8000 - 8;
        t->space = (int)(n % SPACES);
        t->fs = 0x700000 + n * 0x100;
        t->gs = 0x710000 + n * 0x100;
        *(u64 *)VIRT(0x2200000 + (n % SPACES) * 0x400000 + 0x100000 + n * 0x100) = n;
        *(u64 *)VIRT(0x2200000 + (n % SPACES) * 0x400000 + 0x110000 + n * 0x100) = n;
    }
    cpus_up = 1;
    for (u64 n = 0; ap_start + n < ap_start_end; n++)
        ((char *)VIRT(0x8000))[n] = ap_start[n];
    this_cpu(0);
    ap_stack = (u64)stacks[1] + sizeof stacks[1];
    ap_number = 1;
    wrmsr(0x830, 1ul << 32 | 0x4500);
    for (volatile int i = 0; i < 200000; i++)
        ;
    wrmsr(0x830, 1ul << 32 | 0x4608);
    while (cpus_up != 2)
        ASM("pause");
    take();
    first_leave(schedule(0));
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
