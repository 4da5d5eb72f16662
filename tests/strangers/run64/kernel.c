/* User code is called like a function: a thread of the kernel runs it, looks why it came back, and runs it again. The
 * kernel's threads have a thread-local area of their own behind FS; the CPU's data is behind GS. */
#ifndef CPUS
#define CPUS 4
#endif
#include "../base64.h"

#define THREADS 14
#define SPACES 2
#define DEMAND 0x800000ul
#define TICK 0x40
#define POKE 0x41

struct context {
    u64 r15, r14, r13, r12, r11, r10, r9, r8, rbp, rdi, rsi, rbx, rdx, rcx, rax, number, error, rip, cs, rflags, rsp, ss, fs, gs;
};
struct local { struct thread *self; u64 turns; };
struct thread {
    struct context c;
    u64 sp, cr3, wake;
    int state, space, number;
    struct local local;
    u8 fx[512] __attribute__((aligned(16)));
};
struct cpu {
    struct cpu *self;
    u64 sp;
    struct context *context;
    u64 scratch;
    struct thread *now, *idle, *before;
    u64 id, wanted;
};
enum { FREE, READY, RUNNING, ASLEEP };

extern char user_image[], user_bytes[], gates[], syscall_entry[];
u64 run_user(struct context *);
void swtch(u64 *from, u64 to);

static struct cpu cpus[CPUS];
static struct thread threads[THREADS], idles[CPUS];
static u8 stacks[THREADS][8192] __attribute__((aligned(4096))), idle_stacks[CPUS][8192] __attribute__((aligned(4096)));
static u64 pml4s[SPACES][512] __attribute__((aligned(4096))), pdpts[SPACES][512] __attribute__((aligned(4096)));
static u64 pds[SPACES][512] __attribute__((aligned(4096))), demand[SPACES][512] __attribute__((aligned(4096)));
static u8 pages[SPACES][16][4096] __attribute__((aligned(4096)));
static int queue;
static u64 ticks, turn;

static inline struct cpu *me(void) { struct cpu *c; ASM("movq %%gs:0, %0" : "=r"(c)); return c; }
static inline struct thread *myself(void) { struct thread *t; ASM("movq %%fs:0, %0" : "=r"(t)); return t; }
static inline void count_turn(void) { ASM("incq %%fs:8" ::: "memory"); }

/* Interrupts are off. Whoever goes on unlocks. */
static void settle(void)
{
    spin_drop(&queue);
}

static void yield(int state)
{
    u64 f = irq_off();
    spin_take(&queue);
    struct cpu *c = me();
    struct thread *t = c->now, *to = 0;
    t->state = state;
    for (u64 n = 0; n < THREADS && !to; n++) {
        turn = (turn + 1) % THREADS;
        if (threads[turn].state == READY)
            to = &threads[turn];
    }
    if (!to)
        to = c->idle;
    to->state = RUNNING;
    if (to != t) {
        c->now = to;
        ASM("fxsaveq %0" : "=m"(t->fx));
#ifdef BUG_FX
        if (to->number != 5)
#endif
        ASM("fxrstorq %0" ::"m"(to->fx));
        ASM("movq %0, %%cr3" ::"r"(to->cr3) : "memory");
#ifdef BUG_EARLY
        settle();
        for (volatile int i = 0; i < 2000; i++) ;
        swtch(&t->sp, to->sp);
        irq_back(f);
        return;
#endif
        swtch(&t->sp, to->sp);
    }
    settle();
    irq_back(f);
}

static void tick(struct cpu *c)
{
    wrmsr(0x80b, 0);
    c->wanted = 1;
    if (c->id)
        return;
    if (++ticks == 2500)
        print("run64: ran\n");
    spin_take(&queue);
    for (u64 n = 0; n < THREADS; n++)
        if (threads[n].state == ASLEEP && threads[n].wake <= ticks)
            threads[n].state = READY;
    spin_drop(&queue);
    if (CPUS > 1 && ticks % 4 == 0)
        wrmsr(0x830, 0xc0000 | POKE);
}

void on_kernel_trap(u64 number, u64 error)
{
    (void)error;
    u64 at;
    switch (number) {
    case TICK: {
        struct cpu *c = me();
        tick(c);
        if (c->now != c->idle)
            yield(READY);
        return;
    }
    case POKE: wrmsr(0x80b, 0); return;
    case 127: return;
    case 14: /* user memory that is not there yet */
        ASM("movq %%cr2, %0" : "=r"(at));
        if (at - DEMAND < 0x10000) {
            struct thread *t = myself();
            demand[t->space][(at - DEMAND) >> 12] = PHYS(pages[t->space][(at - DEMAND) >> 12]) | 7;
            return;
        }
    }
    panic("trap in the kernel\n");
}

static u64 call(struct thread *t, u64 nr, u64 a, u64 b)
{
    switch (nr) {
    case 0: return (u64)t->number;
    case 1: yield(READY); return 0;
    case 2: print("CORRUPT\n"); return 0;
    case 3: return *(volatile u64 *)a + b;
    case 4:
        for (u64 n = 0; n < 16; n++)
            demand[t->space][n] = 0;
        ASM("movq %0, %%cr3" ::"r"(t->cr3) : "memory");
        return 0;
    case 5: t->c.fs = a; return 0;
    case 6: t->wake = ticks + a; yield(ASLEEP); return 0;
    case 7: { /* long work of the kernel's */
        u64 x = a;
        for (u64 n = 0; n < b; n++)
            x = x * 6364136223846793005ul + n;
        return x;
    }
    }
    return ~0ul;
}

/* The life of a thread: its user code is called, and called again. */
static __attribute__((noreturn)) void life(struct thread *t)
{
    u64 calls = 0, traps = 0, other = 0;
    for (;;) {
        struct cpu *c = me();
#ifdef BUG_RSP0
        if (t->number != 3 || ticks < 100)
#endif
        set_rsp0(c->id, (u64)__builtin_frame_address(0) - 512);
        u64 why = run_user(&t->c);
        count_turn();
        if (myself() != t)
            panic("another thread's area\n");
        switch (why) {
        case 0x100:
            ASM("sti");
            calls++;
            t->c.rax = call(t, t->c.rax, t->c.rdi, t->c.rsi);
            ASM("cli");
            break;
        case TICK: tick(me()); yield(READY); traps++; break;
        case POKE: wrmsr(0x80b, 0); other++; break;
        case 127: break;
        case 3: break;
        case 14: on_kernel_trap(14, t->c.error); traps++; break;
        default: panic("trap\n");
        }
        if (t->local.turns < calls)
            panic("turns\n");
    }
}

void began(struct thread *t)
{
    settle();
    life(t);
}

__asm__(".globl thread_start\nthread_start: movq %rbx, %rdi; xorl %ebp, %ebp; call began\n");
extern char thread_start[];

static void spawn(u64 n)
{
    struct thread *t = &threads[n];
    t->number = (int)n;
    t->space = (int)(n & 1);
    t->cr3 = PHYS(pml4s[n & 1]);
    t->c = (struct context){.rip = 0x400000, .cs = 0x23, .rflags = 0x202, .rsp = 0x700000 + (n + 1) * 0x8000 - 8, .ss = 0x1b, .rdi = n};
    t->c.fs = 0x610000 + n * 0x100;
    t->c.gs = 0x620000 + n * 0x100;
    *(u64 *)VIRT(0x2410000 + (n & 1) * 0x400000 + n * 0x100) = n;
    *(u64 *)VIRT(0x2420000 + (n & 1) * 0x400000 + n * 0x100) = n + 100;
    t->local.self = t;
    *(u32 *)(t->fx + 24) = 0x1f80;
    *(u16 *)t->fx = 0x37f;
    u64 *sp = (u64 *)(stacks[n] + sizeof stacks[n]);
    *--sp = 0;
    *--sp = (u64)thread_start;
    *--sp = 0;
    *--sp = (u64)t;
    *--sp = 0, *--sp = 0, *--sp = 0, *--sp = 0;
    *--sp = (u64)&t->local;
    t->sp = (u64)sp;
    t->state = READY;
}

static void this_cpu(u64 n)
{
    struct cpu *c = &cpus[n];
    c->self = c;
    c->id = n;
    c->now = c->idle = &idles[n];
    idles[n].number = -1;
    idles[n].cr3 = PHYS(boot_pml4);
    idles[n].local.self = &idles[n];
    ASM("movq %%cr4, %%rax; orl $0x10000, %%eax; movq %%rax, %%cr4" ::: "rax");
    load_tables(n);
    wrmsr(MSR_GS, (u64)c);
    wrmsr(MSR_KGS, 0);
    wrmsr(MSR_FS, (u64)&idles[n].local);
    wrmsr(0xc0000081, 0x0010000800000000ul);
    wrmsr(0xc0000082, (u64)syscall_entry);
    wrmsr(0xc0000084, 0x47700);
}

static __attribute__((noreturn)) void idle(void)
{
    ticks_on(TICK, 40000);
    for (;;) {
        ASM("sti; hlt; cli");
        yield(READY - 1); /* not in the queue: it is found as the CPU's idle thread */
    }
}

void ap_main(u64 n)
{
    this_cpu(n);
    cpus_up++;
    idle();
}

void rust_main(void)
{
    print("run64\n");
    for (u64 n = 0; n < 128; n++)
        gate(n, gates + 16 * n, n == 3 ? 0xee00 : 0x8e00);
    for (u64 n = 128; n < 256; n++)
        gate(n, gates + 16 * 127, 0x8e00);
    outb(0x21, 0xff);
    outb(0xa1, 0xff);
    for (u64 p = 0; p < SPACES; p++) {
        pml4s[p][511] = boot_pml4[511];
        pml4s[p][0] = PHYS(pdpts[p]) | 7;
        pdpts[p][0] = PHYS(pds[p]) | 7;
        pds[p][2] = (0x2000000 + p * 0x200000) | 0x87;
        pds[p][3] = (0x2400000 + p * 0x400000) | 0x87;
        pds[p][4] = PHYS(demand[p]) | 7;
        __builtin_memcpy(VIRT(0x2000000 + p * 0x200000), user_image, (u64)user_bytes);
    }
    this_cpu(0);
    for (u64 n = 0; n < THREADS; n++)
        spawn(n);
    start_others(idle_stacks[0], sizeof idle_stacks[0]);
    print("run64: all CPUs are up\n");
    idle();
}
