/* Interrupt threads: a device's handler runs at once, on a stack of its own, on top of the thread it interrupted, which
 * cannot go on before. Where the handler has to wait for a lock, it becomes a thread, and the interrupted one goes on. */
#ifndef CPUS
#define CPUS 3
#endif
#include "../base64.h"

#define THREADS 14
#define SERVANTS 6
#define SPACES 2
#define DEMAND 0x800000ul
#define TICK 0x40
#define DEVICE 0x41

struct regs {
    u64 swapped, r15, r14, r13, r12, r11, r10, r9, r8, rbp, rdi, rsi, rbx, rdx, rcx, rax, number, code, rip, cs, rflags, rsp, ss;
};
struct thread {
    u64 sp, cr3, wake, fs, gs, top, number, space;
    struct thread *pinned; /* who is below an interrupt thread */
    int state, servant;
    u8 fx[512] __attribute__((aligned(16)));
};
struct cpu {
    struct cpu *self;
    u64 stack, scratch;
    struct thread *now, *idle, *before;
    u64 id;
    int becomes;
};
enum { FREE, READY, RUNNING, ASLEEP, BLOCKED };

extern char user_image[], user_bytes[], gates[], syscall_entry[], thread_start[];
void swtch(u64 *from, u64 to);
void on_top(u64 *from, u64 stack, void (*f)(void));
void below(u64 to) __attribute__((noreturn));

static struct cpu cpus[CPUS];
static struct thread threads[THREADS + SERVANTS], idles[CPUS];
static u8 stacks[THREADS + SERVANTS][8192] __attribute__((aligned(4096)));
static u8 idle_stacks[CPUS][8192] __attribute__((aligned(4096)));
static u64 pml4s[SPACES][512] __attribute__((aligned(4096))), pdpts[SPACES][512] __attribute__((aligned(4096)));
static u64 pds[SPACES][512] __attribute__((aligned(4096))), demand[SPACES][512] __attribute__((aligned(4096)));
static u8 pages[SPACES][16][4096] __attribute__((aligned(4096)));
static int queue, printing;
static u64 ticks, turn, served, waited;
static volatile u64 device_words;
static struct { struct thread *owner; int wanted; } lock;

static inline struct cpu *me(void) { struct cpu *c; ASM("movq %%gs:0, %0" : "=r"(c)); return c; }
#define MYSELF (me()->now)

static void say(const char *s)
{
    u64 f = irq_off();
    spin_take(&printing);
    print(s);
    spin_drop(&printing);
    irq_back(f);
}

/* Queue held. On the stack of who goes on. */
static void settle(void)
{
    struct cpu *c = me();
    if (c->before) {
        c->before->state = c->becomes;
        c->before = 0;
    }
    spin_drop(&queue);
}

static void user_state(struct cpu *c, struct thread *t, struct thread *to)
{
    if (!t->servant) {
        ASM("fxsaveq %0" : "=m"(t->fx));
        ASM("rdfsbase %0" : "=r"(t->fs));
        t->gs = rdmsr(MSR_KGS);
    }
    if (to->servant)
        return;
    c->stack = to->top;
#ifdef BUG_TOP
    if (to->number != 4 || ticks < 100)
#endif
    set_rsp0(c->id, to->top);
    ASM("movq %0, %%cr3" ::"r"(to->cr3) : "memory");
#ifdef BUG_FX
    if (to->number != 5 || ticks < 100)
#endif
    ASM("fxrstorq %0" ::"m"(to->fx));
#ifdef BUG_FS
    if (to->number != 1 || ticks < 100)
#endif
    ASM("wrfsbase %0" ::"r"(to->fs));
#ifdef BUG_GS
    if (to->number != 1 || ticks < 100)
#endif
    wrmsr(MSR_KGS, to->gs);
}

/* Interrupts off, queue held. */
static void leave_to(struct cpu *c, struct thread *t, struct thread *to, int state)
{
    c->before = t;
    c->becomes = state;
    to->state = RUNNING;
    c->now = to;
    user_state(c, t, to);
    swtch(&t->sp, to->sp);
}

static void yield(int state)
{
    u64 f = irq_off();
    spin_take(&queue);
    struct cpu *c = me();
    struct thread *t = c->now, *to = 0;
    for (u64 n = 0; n < THREADS + SERVANTS && !to; n++) {
        turn = (turn + 1) % (THREADS + SERVANTS);
        if (threads[turn].state == READY)
            to = &threads[turn];
    }
    if (!to && state != READY)
        to = c->idle;
    if (to && to != t)
        leave_to(c, t, to, t == c->idle ? FREE : state);
    settle();
    irq_back(f);
}

/* A lock that one waits for asleep; a handler that does lets go on whom it interrupted. */
static void take(void)
{
    u64 f = irq_off();
    spin_take(&queue);
    for (;;) {
        struct cpu *c = me();
        struct thread *t = c->now;
        if (!lock.owner) {
            lock.owner = t;
            break;
        }
        waited++;
        if (t->pinned) {
            struct thread *p = t->pinned;
#ifndef BUG_TWICE
            t->pinned = 0;
#endif
            c->before = t;
            c->becomes = BLOCKED;
            c->now = p;
            swtch(&t->sp, p->sp);
            settle();
            spin_take(&queue);
            continue;
        }
        spin_drop(&queue);
        yield(BLOCKED);
        spin_take(&queue);
    }
    spin_drop(&queue);
    irq_back(f);
}

static void drop(void)
{
    u64 f = irq_off();
    spin_take(&queue);
    lock.owner = 0;
    for (u64 n = 0; n < THREADS + SERVANTS; n++)
        if (threads[n].state == BLOCKED)
            threads[n].state = READY;
    spin_drop(&queue);
    irq_back(f);
}

static void serve(void)
{
    take();
    for (u64 n = 0; n < 50; n++)
        device_words += n;
    served++;
    drop();
    ASM("cli");
    spin_take(&queue);
    struct cpu *c = me();
    struct thread *t = c->now, *p = t->pinned;
    if (p) {
        t->pinned = 0;
        t->state = FREE;
        c->now = p;
        spin_drop(&queue);
        below(p->sp);
    }
    spin_drop(&queue);
    yield(FREE);
    __builtin_unreachable();
}

static void interrupt(struct cpu *c)
{
    struct thread *t = c->now, *s = 0;
    if (t->servant)
        return;
    spin_take(&queue);
    for (u64 n = THREADS; n < THREADS + SERVANTS && !s; n++)
        if (threads[n].state == FREE)
            s = &threads[n];
    if (s) {
        s->state = RUNNING;
        s->pinned = t;
        c->now = s;
    }
    spin_drop(&queue);
    if (!s)
        return;
    on_top(&t->sp, s->top, serve);
    /* The handler is over, or waits: then it has to be said that it is off its stack. */
    if (me()->before) {
        struct cpu *now = me();
        now->before->state = now->becomes;
        now->before = 0;
        spin_drop(&queue);
    }
}

void on_trap(struct regs *r)
{
    struct cpu *c = me();
    u64 at;
    switch (r->number) {
    case TICK:
        wrmsr(0x80b, 0);
        if (c->id == 0) {
            if (++ticks == 2500)
                say(served > 1000 && waited > 20 ? "intr64: over\n" : "intr64: little served\nintr64: over\n");
            spin_take(&queue);
            for (u64 n = 0; n < THREADS; n++)
                if (threads[n].state == ASLEEP && threads[n].wake <= ticks)
                    threads[n].state = READY;
            spin_drop(&queue);
            if (ticks % 2 == 0)
                wrmsr(0x830, 0x80000 | DEVICE); /* all CPUs */
        }
        if (r->cs & 3)
            yield(READY);
        break;
    case DEVICE:
        wrmsr(0x80b, 0);
        interrupt(c);
        break;
    case 3: case 127: break;
    case 14:
        ASM("movq %%cr2, %0" : "=r"(at));
        if (at - DEMAND < 0x10000) {
            struct thread *t = MYSELF;
            demand[t->space][(at - DEMAND) >> 12] = PHYS(pages[t->space][(at - DEMAND) >> 12]) | 7;
            break;
        }
        /* fallthrough */
    default:
        panic("trap\n");
    }
}

void system_call(struct regs *r)
{
    struct thread *t = MYSELF;
    u64 a = r->rdi, b = r->rsi;
    ASM("sti");
    switch (r->rax) {
    case 0:
        take();
        for (volatile int i = 0; i < 200; i++)
            ;
        drop();
        r->rax = t->number;
        break;
    case 1: yield(READY); r->rax = 0; break;
    case 2: say("CORRUPT\n"); break;
    case 3: r->rax = *(volatile u64 *)a + b; break;
    case 4:
        for (u64 n = 0; n < 16; n++)
            demand[t->space][n] = 0;
        ASM("movq %0, %%cr3" ::"r"(t->cr3) : "memory");
        break;
    case 6: t->wake = ticks + a; yield(ASLEEP); r->rax = 0; break;
    case 7: {
        u64 x = a;
        for (u64 n = 0; n < b; n++)
            x = x * 6364136223846793005ul + n;
        r->rax = x;
        break;
    }
    }
}

u64 began(struct thread *t)
{
    settle();
    return t->top - sizeof(struct regs);
}

static void spawn(u64 n)
{
    struct thread *t = &threads[n];
    t->number = n;
    t->top = (u64)stacks[n] + sizeof stacks[n];
    if (n >= THREADS) {
        t->servant = 1;
        return;
    }
    t->space = n & 1;
    t->cr3 = PHYS(pml4s[n & 1]);
    t->fs = 0x610000 + n * 0x100;
    t->gs = 0x620000 + n * 0x100;
    *(u64 *)VIRT(0x2410000 + (n & 1) * 0x400000 + n * 0x100) = n;
    *(u64 *)VIRT(0x2420000 + (n & 1) * 0x400000 + n * 0x100) = n + 100;
    *(u32 *)(t->fx + 24) = 0x1f80;
    *(u16 *)t->fx = 0x37f;
    struct regs *r = (struct regs *)t->top - 1;
    *r = (struct regs){.rip = 0x400000, .cs = 0x23, .rflags = 0x202, .rsp = 0x700000 + (n + 1) * 0x8000 - 8, .ss = 0x1b, .rdi = n};
    u64 *sp = (u64 *)r;
    *--sp = 0;
    *--sp = (u64)thread_start;
    *--sp = 0;
    *--sp = (u64)t;
    *--sp = 0, *--sp = 0, *--sp = 0, *--sp = 0;
    t->sp = (u64)sp;
    t->state = READY;
}

static void this_cpu(u64 n)
{
    struct cpu *c = &cpus[n];
    c->self = c;
    c->id = n;
    c->now = c->idle = &idles[n];
    idles[n].number = 99;
    idles[n].cr3 = PHYS(boot_pml4);
    idles[n].top = (u64)idle_stacks[n] + 2048;
    ASM("movq %%cr4, %%rax; orl $0x10000, %%eax; movq %%rax, %%cr4" ::: "rax");
    load_tables(n);
    wrmsr(MSR_GS, (u64)c);
    wrmsr(MSR_KGS, 0);
    wrmsr(0xc0000081, 0x0010000800000000ul);
    wrmsr(0xc0000082, (u64)syscall_entry);
    wrmsr(0xc0000084, 0x47700);
    ASM("fxsaveq %0" : "=m"(idles[n].fx));
}

static __attribute__((noreturn)) void idle(void)
{
    ticks_on(TICK, 40000 + 333 * me()->id);
    for (;;) {
        ASM("sti; hlt; cli");
        yield(READY);
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
    print("intr64\n");
    for (u64 n = 0; n < 256; n++)
        gate(n, gates + 16 * (n < 128 ? n : 127), n == 3 ? 0xee00 : 0x8e00);
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
    for (u64 n = 0; n < THREADS + SERVANTS; n++)
        spawn(n);
    start_others(idle_stacks[0], sizeof idle_stacks[0]);
    print("intr64: all CPUs are up\n");
    idle();
}
