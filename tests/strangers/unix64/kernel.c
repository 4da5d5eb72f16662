/* A Unix in small: processes by fork and vfork, exec, signals whose handlers return, jump away, or go on as somebody else.
 * A system call leaves by sysret where nothing happened to its registers, else by iret. */
#ifndef CPUS
#define CPUS 2
#endif
#include "../base64.h"

#define PROCS 12
#define FIRST 9
#define TICK 0x40

struct regs {
    u64 r15, r14, r13, r12, r11, r10, r9, r8, rbp, rdi, rsi, rbx, rdx, rcx, rax, number, code, rip, cs, rflags, rsp, ss;
};
struct sigframe { struct regs r; u8 fx[512]; };
struct proc {
    u64 sp, cr3, wake, fs, gs, handler, alt;
    int state, pending, masked, slow, dead, borrows, parent;
    u64 number, every;
    u8 *xs;
};
struct cpu {
    struct cpu *self;
    u64 stack, user_sp;
    struct proc *now, *idle, *before;
    u64 id;
};
enum { FREE, READY, RUNNING, ASLEEP, WAITING };

extern char user_image[], user_bytes[], gates[], syscall_entry[], process_start[];
void swtch(u64 *from, u64 to);

static struct cpu cpus[CPUS];
static struct proc procs[PROCS], idles[CPUS];
static u8 stacks[PROCS][8192] __attribute__((aligned(4096))), idle_stacks[CPUS][8192] __attribute__((aligned(4096)));
static u8 heap[(PROCS + CPUS) * 8192] __attribute__((aligned(64)));
static u64 pml4s[PROCS][512] __attribute__((aligned(4096))), pdpts[PROCS][512] __attribute__((aligned(4096)));
static u64 pds[PROCS][512] __attribute__((aligned(4096)));
static int queue, printing;
static u64 ticks, turn, brk_, forks;

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

static u8 *allot(u64 n)
{
    u8 *p = heap + brk_;
    brk_ += (n + 63) & ~63ul;
    return p;
}

static inline void xsave(struct proc *p) { ASM("xsaveq (%0)" ::"r"(p->xs), "a"(7), "d"(0) : "memory"); }
static inline void xrstor(struct proc *p) { ASM("xrstorq (%0)" ::"r"(p->xs), "a"(7), "d"(0) : "memory"); }

/* On the stack of who comes: who went is off his own only now. */
static void settle(void)
{
    struct cpu *c = me();
    struct proc *b = c->before;
    c->before = 0;
    if (b && b->dead) {
        b->dead = 0;
        b->state = FREE;
    }
    spin_drop(&queue);
}

static void yield(int state)
{
    u64 f = irq_off();
    spin_take(&queue);
    struct cpu *c = me();
    struct proc *p = c->now, *to = 0;
    p->state = state;
#ifdef BUG_EXIT_EARLY
    if (p->dead)
        p->state = FREE, p->dead = 0;
#endif
    for (u64 n = 0; n < PROCS && !to; n++) {
        turn = (turn + 1) % PROCS;
        if (procs[turn].state == READY)
            to = &procs[turn];
    }
    if (!to)
        to = c->idle;
    to->state = RUNNING;
    if (to != p) {
        xsave(p);
        p->fs = rdmsr(MSR_FS);
        p->gs = rdmsr(MSR_KGS);
        c->now = to;
        c->before = p;
        c->stack = to == c->idle ? c->stack : (u64)stacks[to - procs] + sizeof stacks[0];
        set_rsp0(c->id, c->stack);
        ASM("movq %0, %%cr3" ::"r"(to->cr3) : "memory");
#ifdef BUG_XSAVE
        if (to->number != 5 || ticks < 150)
#endif
        xrstor(to);
#ifdef BUG_FS
        if (to->number != 4 || ticks < 150)
#endif
        wrmsr(MSR_FS, to->fs);
#ifdef BUG_GS
        if (to->number != 4 || ticks < 150)
#endif
        wrmsr(MSR_KGS, to->gs);
#ifdef BUG_EXIT_EARLY
        if (p->state == FREE) {
            spin_drop(&queue);
            for (volatile int i = 0; i < 40000; i++) ;
            spin_take(&queue);
        }
#endif
        swtch(&p->sp, to->sp);
    }
    settle();
    irq_back(f);
}

static void reset(struct proc *p, struct regs *r, u64 role)
{
    *r = (struct regs){.rip = 0x400000, .cs = 0x23, .rflags = 0x202, .rsp = 0x7ffff8, .ss = 0x1b, .rdi = role};
    p->handler = p->alt = 0;
    p->pending = p->masked = 0;
    p->every = 0;
}

static void own_space(struct proc *p)
{
    u64 n = (u64)(p - procs);
    p->cr3 = PHYS(pml4s[n]);
    p->borrows = 0;
}

/* A free slot, claimed; its stack, save area and page tables come with it. */
static struct proc *claim(void)
{
    u64 f = irq_off();
    spin_take(&queue);
    struct proc *p = 0;
    for (u64 n = FIRST; n < PROCS && !p; n++)
        if (procs[n].state == FREE)
            p = &procs[n];
    if (p)
        p->state = WAITING;
    spin_drop(&queue);
    irq_back(f);
    return p;
}

/* The child goes on behind the same call, with the same registers, and 0. */
static u64 fork(struct regs *r, int share)
{
    struct proc *p = MYSELF, *c = claim();
    if (!c)
        return ~0ul;
    u64 n = (u64)(c - procs), m = (u64)(p - procs);
    u8 *xs = c->xs;
    *c = (struct proc){.number = n, .xs = xs, .state = WAITING, .parent = (int)m};
    c->handler = p->handler;
    c->every = p->every;
    c->masked = p->masked;
    if (share) {
        c->cr3 = p->cr3;
        c->borrows = 1;
    } else {
        own_space(c);
        __builtin_memcpy(VIRT(0x2400000 + n * 0x200000), VIRT(0x2400000 + m * 0x200000), 0x200000);
    }
    u64 f = irq_off();
    xsave(p);
    __builtin_memcpy(c->xs, p->xs, 4096);
    c->fs = rdmsr(MSR_FS);
    c->gs = rdmsr(MSR_KGS);
    irq_back(f);
    struct regs *its = (struct regs *)(stacks[n] + sizeof stacks[0]) - 1;
    *its = *r;
    its->rax = 0;
    u64 *sp = (u64 *)its;
    *--sp = (u64)process_start;
    *--sp = 0;
    *--sp = (u64)c;
    *--sp = 0, *--sp = 0, *--sp = 0, *--sp = 0;
    c->sp = (u64)sp;
    forks++;
    __atomic_store_n(&c->state, READY, __ATOMIC_RELEASE);
    if (share)
        while (c->state != FREE && c->borrows && c->parent == (int)m) {
            p->wake = ticks + 1;
            yield(ASLEEP);
        }
    return n;
}

static __attribute__((noreturn)) void leave_for_good(void)
{
    struct proc *p = MYSELF;
    ASM("cli");
    p->borrows = 0; /* who lent the space goes on */
    p->dead = 1;
    yield(WAITING);
    __builtin_unreachable();
}

void began(struct proc *p)
{
    (void)p;
    settle();
}

static void deliver(struct proc *p, struct regs *r)
{
    p->pending = 0;
    p->masked = 1;
    u64 top = p->alt ? p->alt : r->rsp - 128;
    struct sigframe *f = (struct sigframe *)((top - sizeof *f) & ~63ul);
    f->r = *r;
    ASM("fxsaveq %0" : "=m"(f->fx));
    r->rip = p->handler;
    r->rdi = (u64)f;
    r->rsp = (u64)f - 8;
    r->rflags = 0x202;
    p->slow = 1;
}

/* On the way to user mode, interrupts off. True if sysret will do. */
int leave(struct regs *r)
{
    struct proc *p = MYSELF;
    if (p->pending && p->handler && !p->masked)
        deliver(p, r);
    int slow = p->slow;
    p->slow = 0;
    return !slow;
}

static void sigreturn(struct proc *p, struct regs *r, struct sigframe *f)
{
    *r = f->r;
#ifndef BUG_SIGRETURN_IOPL
    r->rflags = (r->rflags & 0xcd5) | 0x202;
#endif
    r->cs = 0x23;
    r->ss = 0x1b;
    ASM("fxrstorq %0" ::"m"(f->fx));
    p->masked = 0;
    p->slow = 1;
}

static void tick(struct cpu *c)
{
    wrmsr(0x80b, 0);
    if (c->id)
        return;
    if (++ticks == 2000)
        say(forks > 20 ? "unix64: done\n" : "unix64: few children\nunix64: done\n");
    spin_take(&queue);
    for (u64 n = 0; n < PROCS; n++) {
        struct proc *p = &procs[n];
        if (p->state == ASLEEP && p->wake <= ticks)
            p->state = READY;
        if (p->every && ticks % p->every == 0)
            p->pending = 1;
    }
    spin_drop(&queue);
}

void on_trap(struct regs *r)
{
    struct cpu *c = me();
    switch (r->number) {
    case TICK:
        tick(c);
        if (r->cs & 3)
            yield(READY);
        return;
    case 3: return;
    case 127: return;
    }
    panic("trap\n");
}

void system_call(struct regs *r)
{
    struct proc *p = MYSELF;
    u64 a = r->rdi, b = r->rsi;
    ASM("sti");
    switch (r->rax) {
    case 0: r->rax = p->number; break;
    case 1: yield(READY); r->rax = 0; break;
    case 2: say("CORRUPT\n"); break;
    case 3: p->wake = ticks + a; yield(ASLEEP); r->rax = 0; break;
    case 4: ASM("cli"); wrmsr(MSR_FS, a); wrmsr(MSR_KGS, b); break;
    case 5: p->handler = a; p->every = b; r->rax = 0; break;
    case 6: ASM("cli"); sigreturn(p, r, (struct sigframe *)a); break;
    case 7: p->masked = 0; r->rax = 0; break;
    case 8: p->alt = a; r->rax = 0; break;
    case 9: r->rax = fork(r, 0); break;
    case 10: r->rax = fork(r, 1); break;
    case 11: /* exec */
        if (p->borrows) {
            ASM("cli; movq %0, %%cr3" ::"r"(PHYS(pml4s[p - procs])) : "memory");
            own_space(p);
            ASM("sti");
        }
        ASM("cli");
        wrmsr(MSR_FS, 0x600000 + a * 0x100);
        wrmsr(MSR_KGS, 0x610000 + a * 0x100);
        reset(p, r, a);
        p->slow = 1;
        break;
    case 12: leave_for_good();
    case 13:
        while (procs[a].state != FREE && procs[a].parent == (int)p->number) {
            p->wake = ticks + 1;
            yield(ASLEEP);
        }
        r->rax = 0;
        break;
    case 14: {
        u64 x = a;
        for (u64 n = 0; n < b; n++)
            x = x * 6364136223846793005ul + n;
        r->rax = x;
        break;
    }
    case 16: p->masked = 1; r->rax = 0; break;
    case 15: r->rax = 0; p->slow = 1; break; /* a call that leaves by iret */
    }
}

static void spawn(u64 n)
{
    struct proc *p = &procs[n];
    p->number = n;
    own_space(p);
    p->fs = 0x600000 + n * 0x100;
    p->gs = 0x610000 + n * 0x100;
    struct regs *r = (struct regs *)(stacks[n] + sizeof stacks[0]) - 1;
    reset(p, r, n);
    p->slow = 1;
    u64 *sp = (u64 *)r;
    *--sp = (u64)process_start;
    *--sp = 0;
    *--sp = (u64)p;
    *--sp = 0, *--sp = 0, *--sp = 0, *--sp = 0;
    p->sp = (u64)sp;
    p->state = READY;
}

static void this_cpu(u64 n)
{
    struct cpu *c = &cpus[n];
    c->self = c;
    c->id = n;
    c->now = c->idle = &idles[n];
    idles[n].number = 99;
    idles[n].cr3 = PHYS(boot_pml4);
    ASM("movq %%cr4, %%rax; orl $0x40000, %%eax; movq %%rax, %%cr4" ::: "rax");
    ASM("xsetbv" ::"a"(7), "d"(0), "c"(0));
    load_tables(n);
    c->stack = (u64)idle_stacks[n] + sizeof idle_stacks[0] - 1024;
    wrmsr(MSR_GS, (u64)c);
    wrmsr(MSR_KGS, 0);
    wrmsr(0xc0000081, 0x0010000800000000ul);
    wrmsr(0xc0000082, (u64)syscall_entry);
    wrmsr(0xc0000084, 0x47700);
}

static __attribute__((noreturn)) void idle(void)
{
    ticks_on(TICK, 40000);
    for (;;) {
        ASM("sti; hlt; cli");
        yield(FREE);
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
    print("unix64\n");
    for (u64 n = 0; n < 128; n++)
        gate(n, gates + 16 * n, n == 3 ? 0xee00 : 0x8e00);
    for (u64 n = 128; n < 256; n++)
        gate(n, gates + 16 * 127, 0x8e00);
    outb(0x21, 0xff);
    outb(0xa1, 0xff);
    __builtin_memcpy(VIRT(0x2000000), user_image, (u64)user_bytes);
    for (u64 p = 0; p < PROCS; p++) {
        pml4s[p][511] = boot_pml4[511];
        pml4s[p][0] = PHYS(pdpts[p]) | 7;
        pdpts[p][0] = PHYS(pds[p]) | 7;
        pds[p][2] = 0x2000000 | 0x85;
        pds[p][3] = (0x2400000 + p * 0x200000) | 0x87;
        for (u64 n = 0; n < PROCS; n++) {
            *(u64 *)VIRT(0x2400000 + p * 0x200000 + n * 0x100) = n;
            *(u64 *)VIRT(0x2410000 + p * 0x200000 + n * 0x100) = n + 100;
        }
    }
    this_cpu(0);
    for (u64 n = 0; n < PROCS + CPUS; n++) {
        struct proc *p = n < PROCS ? &procs[n] : &idles[n - PROCS];
        p->xs = allot(4096);
        *(u32 *)(p->xs + 24) = 0x1f80;
        *(u16 *)p->xs = 0x37f;
        *(u64 *)(p->xs + 512) = 3;
    }
    for (u64 n = 0; n < FIRST; n++)
        spawn(n);
    start_others(idle_stacks[0], sizeof idle_stacks[0]);
    print("unix64: all CPUs are up\n");
    idle();
}
