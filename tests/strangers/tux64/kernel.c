/* A kernel after the manner of Linux: run queues that steal from each other, signals, restarted calls, vfork and exec,
 * an exception table, NMIs at any moment, a debugger with breakpoints on sysret, an interrupt stack. */
typedef unsigned long u64;
typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned char u8;

#define CPUS 4
#define TASKS 20
#define PROCESSES 3
#define UPPER 0xffffffff80000000ul
#define PHYS(p) ((u64)(p) - UPPER)
#define VIRT(p) ((void *)((u64)(p) + UPPER))
#define DEMAND 0x800000ul
#define TICK 0x40
#define CALL 0x41
#define ASM asm volatile

struct regs { u64 r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rax, rcx, rdx, rsi, rdi, orig, rip, cs, flags, rsp, ss; };

enum { FREE, READY, BLOCKED };
struct task {
    u64 sp, top, fs, gs, cr3, handler;
    int id, process, signals, handling;
    volatile int state, on_cpu;
    struct task *waits; /* vfork's parent */
    u8 fx[512] __attribute__((aligned(16)));
};

/* Known to entry.S: self 0, scratch 8, top 16, current 24, trampoline 32, irq_top 40, in_irq 48, state 56. */
struct cpu {
    struct cpu *self;
    u64 scratch, top;
    struct task *current;
    u64 trampoline, irq_top, in_irq, state, id, polls;
    struct task *idle, *queue[TASKS];
    int lock, resched;
    u32 tss[26] __attribute__((aligned(16)));
    u8 stacks[3][4096] __attribute__((aligned(16))); /* trampoline, #DB, NMI */
    u8 irq_stack[8192] __attribute__((aligned(16)));
};

extern u64 boot_pml4[], ap_stack, ap_number, entries[][2];
extern char user_image[], user_bytes[], ap_start[], ap_start_end[];
extern char entry_call[], began[], the_sysret[], load_user_at[], load_user_fixup[];
struct task *switch_to(struct task *from, struct task *to);
void on_interrupt_stack(void (*fn)(struct regs *), struct regs *r, u64 top);
u64 load_user(u64 at);
void serialize(void);

static struct cpu cpus[CPUS];
static struct task tasks[TASKS], idles[CPUS];
static u8 stacks[TASKS + CPUS][8192] __attribute__((aligned(4096)));
static u64 pml4s[PROCESSES][512] __attribute__((aligned(4096))), pdpts[PROCESSES][512] __attribute__((aligned(4096)));
static u64 pds[PROCESSES][512] __attribute__((aligned(4096))), demand[PROCESSES][512] __attribute__((aligned(4096)));
static u8 pages[PROCESSES][16][4096] __attribute__((aligned(4096)));
static u64 gdt[6 + 2 * CPUS], idt[256][2];
static int print_lock, shoot_lock;
static volatile int cpus_up, acks;
static volatile u64 ticks, nmis, traps;

static inline void outb(u16 p, u8 v) { ASM("outb %0, %1" ::"a"(v), "d"(p)); }
static inline u8 inb(u16 p) { u8 v; ASM("inb %1, %0" : "=a"(v) : "d"(p)); return v; }
static inline void wrmsr(u32 m, u64 v) { ASM("wrmsr" ::"c"(m), "a"((u32)v), "d"((u32)(v >> 32)) : "memory"); }
static inline u64 rdmsr(u32 m) { u32 a, d; ASM("rdmsr" : "=a"(a), "=d"(d) : "c"(m)); return a | (u64)d << 32; }
static inline struct cpu *me(void) { struct cpu *c; ASM("movq %%gs:0, %0" : "=r"(c)); return c; }
static inline struct task *current(void) { struct task *t; ASM("movq %%gs:24, %0" : "=r"(t)); return t; }

static inline void take(int *l) { while (__atomic_exchange_n(l, 1, __ATOMIC_ACQUIRE)) ASM("pause"); }
static inline void drop(int *l) { __atomic_store_n(l, 0, __ATOMIC_RELEASE); }

static void print(const char *s)
{
    take(&print_lock);
    for (; *s; s++) {
        while (!(inb(0x3fd) & 0x20))
            ;
        outb(0x3f8, (u8)*s);
    }
    drop(&print_lock);
}

static __attribute__((noreturn)) void panic(const char *s)
{
    print(s);
    for (;;)
        ASM("cli; hlt");
}

/* ---- run queues ---- */

static void enqueue(struct cpu *c, struct task *t)
{
    take(&c->lock);
    for (int n = 0; n < TASKS; n++)
        if (!c->queue[n]) {
            c->queue[n] = t;
            break;
        }
    drop(&c->lock);
}

/* The CPU's own first task, or the last one of somebody else's. */
static struct task *pick(struct cpu *c, struct task *prev)
{
    struct task *found = 0;
    take(&c->lock);
    for (int i = 0; i < TASKS; i++) {
        int n = c == me() ? i : TASKS - 1 - i;
        struct task *t = c->queue[n];
        if (!t)
            continue;
#ifdef BUG_STEAL
        found = t;
#else
        if (t == prev || !t->on_cpu)
            found = t;
#endif
        if (!found)
            continue;
        for (int m = n; m < TASKS - 1; m++)
            c->queue[m] = c->queue[m + 1];
        c->queue[TASKS - 1] = 0;
        break;
    }
    drop(&c->lock);
    return found;
}

struct task *finish_switch(struct task *prev, struct task *next)
{
    struct cpu *c = me();
    c->current = next;
    c->top = next->top;
    prev->on_cpu = 0;
    return prev;
}

/* With interrupts off. */
static void schedule(void)
{
    struct cpu *c = me();
    struct task *prev = c->current, *next;
    c->resched = 0;
    if (prev != c->idle && prev->state == READY)
        enqueue(c, prev);
#ifdef BUG_STEAL
    next = pick(&cpus[(c->id + 1) % CPUS], prev); /* a thief by nature, who does not ask whether the task still runs */
    if (!next)
#endif
    next = pick(c, prev);
    for (u64 n = 1; !next && n < CPUS; n++)
        next = pick(&cpus[(c->id + n) % CPUS], prev);
    if (!next)
        next = c->idle;
    if (next == prev)
        return;
    next->on_cpu = 1;
#ifdef BUG_STEAL
    for (volatile int n = 0; n < 3000; n++)
        ;
#endif
    ASM("fxsaveq %0" : "=m"(prev->fx));
    ASM("fxrstorq %0" ::"m"(next->fx));
#ifdef BUG_FS
    if (next->process != prev->process)
#endif
    wrmsr(0xc0000100, next->fs);
    prev->gs = rdmsr(0xc0000102);
#ifdef BUG_GS
    if (next->process != prev->process)
#endif
    wrmsr(0xc0000102, next->gs);
    if (next->cr3 != prev->cr3 && next->process >= 0) /* an idle thread keeps its predecessor's */
        ASM("movq %0, %%cr3" ::"r"(next->cr3) : "memory");
    switch_to(prev, next);
}

/* ---- tasks ---- */

static struct task *new_task(int process)
{
    static int lock;
    struct task *t = 0;
    take(&lock);
    for (int n = 0; n < TASKS && !t; n++)
        if (tasks[n].state == FREE && !tasks[n].on_cpu)
            t = &tasks[n];
    if (t)
        t->state = BLOCKED;
    drop(&lock);
    if (!t)
        return 0;
    t->id = (int)(t - tasks);
    t->process = process;
    t->cr3 = PHYS(pml4s[process]);
    t->handler = 0;
    t->signals = t->handling = 0;
    t->waits = 0;
    t->top = (u64)stacks[t->id] + sizeof stacks[0];
    *(u32 *)(t->fx + 24) = 0x1f80;
    *(u16 *)t->fx = 0x37f;
    return t;
}

/* What switch_to pops, under the registers that the first return to user mode pops. */
static struct regs *dress(struct task *t, u64 function)
{
    struct regs *r = (struct regs *)t->top - 1;
    u64 *sp = (u64 *)r;
    *--sp = (u64)began;
    *--sp = 0;
    *--sp = function;
    for (int n = 0; n < 4; n++)
        *--sp = 0;
    t->sp = (u64)sp;
    return r;
}

static void spawn(int process, u64 kind)
{
    struct task *t = new_task(process);
    struct regs *r = dress(t, 0);
    r->rip = 0x400000;
    r->rdi = kind;
    r->cs = 0x23, r->ss = 0x1b, r->flags = 0x202;
    r->rsp = 0x700000 + (u64)(t->id + 1) * 0x8000 - 8;
    t->fs = 0x610000 + (u64)t->id * 0x100;
    t->gs = 0x620000 + (u64)t->id * 0x100;
    t->state = READY;
    enqueue(&cpus[t->id % CPUS], t);
}

/* A thread of the kernel's own. */
static void daemon(u64 n)
{
    for (;;) {
        for (u64 i = 0; i < 3000; i++)
            ASM("" : "+r"(n));
        serialize();
        ASM("cli");
        schedule();
        ASM("sti");
    }
}

static u64 vfork(struct regs *r)
{
    struct task *parent = current(), *child = new_task(parent->process);
    if (!child)
        return ~0ul;
    *dress(child, 0) = *r;
    ((struct regs *)child->top - 1)->rax = 0;
    child->fs = parent->fs;
    child->gs = rdmsr(0xc0000102);
    child->waits = parent;
    ASM("fxsaveq %0" : "=m"(child->fx));
    ASM("cli");
    parent->state = BLOCKED;
    child->state = READY;
    enqueue(me(), child);
    schedule();
    ASM("sti");
    return (u64)child->id;
}

static void wake_parent(struct task *t)
{
    struct task *parent = t->waits;
    t->waits = 0;
    if (parent) {
        parent->state = READY;
        enqueue(me(), parent);
    }
}

static __attribute__((noreturn)) void leave(void)
{
    ASM("cli");
    wake_parent(current());
    current()->state = FREE;
    schedule();
    panic("a dead task runs\n");
}

/* ---- signals ---- */

static void copy(u64 *to, const u64 *from, u64 bytes)
{
    for (u64 n = 0; n < bytes / 8; n++)
        to[n] = from[n];
}

static void deliver(struct task *t, struct regs *r)
{
    u64 sp = ((r->rsp - 128 - sizeof *r) & ~15ul) - 8;
    t->signals = 0;
    t->handling = 1;
    copy((u64 *)sp, (u64 *)r, sizeof *r);
    r->rip = t->handler;
    r->rsp = sp;
    r->rdi = 10;
    r->flags &= ~0x400ul;
}

static void signal_return(struct regs *r)
{
    copy((u64 *)r, (u64 *)r->rsp, sizeof *r);
    if (!(r->cs & 3))
        r->cs = 0x23;
    r->ss = 0x1b;
#ifdef BUG_SIGRETURN_FLAGS
    r->flags |= 0x202;
#else
    r->flags = (r->flags & 0xcd5) | 0x202;
#endif
    current()->handling = 0;
}

/* Before every return to user mode, with interrupts off at the end. */
static void exit_work(struct regs *r)
{
    for (;;) {
        ASM("cli");
        struct task *t = current();
        if (me()->resched)
            schedule();
        else if (t->signals && t->handler && !t->handling)
            deliver(t, r);
        else
            return;
    }
}

/* ---- interrupts ---- */

static void tick(struct regs *r)
{
    struct cpu *c = me();
    (void)r;
    wrmsr(0x80b, 0);
    c->resched = 1;
    if (c->id)
        return;
    ticks++;
    if (ticks == 1500)
        print("tux64: finished\n");
    for (int n = 0; n < TASKS; n++)
        if (tasks[n].handler && (ticks + (u64)n) % 8 == 0)
            tasks[n].signals = 1;
    if (ticks % 3 == 0)
        wrmsr(0x830, 0xc0400); /* NMI to all others */
}

static void called(struct regs *r)
{
    (void)r;
    ASM("movq %%cr3, %%rax; movq %%rax, %%cr3" ::: "rax", "memory");
    serialize();
    __atomic_fetch_add(&acks, 1, __ATOMIC_SEQ_CST);
    wrmsr(0x80b, 0);
}

static void page_fault(struct regs *r)
{
    u64 at;
    ASM("movq %%cr2, %0" : "=r"(at));
    ASM("sti");
    u64 n = (at - DEMAND) >> 12;
    int p = current()->process;
    if (n < 16) {
        demand[p][n] = PHYS(pages[p][n]) | 7;
    } else if (r->rip == (u64)load_user_at) {
        r->rip = (u64)load_user_fixup;
    } else {
        panic("page fault\n");
    }
    ASM("cli");
}

void handle(struct regs *r, u64 n)
{
    switch (n) {
    case TICK:
    case CALL:
        if (!me()->in_irq) {
            me()->in_irq = 1;
            on_interrupt_stack(n == TICK ? tick : called, r, me()->irq_top);
            me()->in_irq = 0;
        }
        break;
    case 14:
        page_fault(r);
        break;
    case 6: /* an instruction that is carried out here: its result is in RAX */
        r->rax = (u64)current()->id;
        r->rip += 2;
        break;
    case 3:
        break;
    case 13: /* the context that a signal handler gave back is impossible: start the task anew */
        if (!(r->cs & 3))
            panic("general protection\n");
        r->cs = 0x23, r->ss = 0x1b;
        r->rip = 0x400000;
        r->rdi = 3;
        break;
    case 0xff:
        break;
    default:
        panic("unexpected\n");
    }
    if (r->cs & 3)
        exit_work(r);
}

void handle_paranoid(struct regs *r, u64 n)
{
    me()->polls++;
    if (n == 2) {
        nmis++;
#ifdef BUG_NMI_R9
        if ((nmis & 31) == 0)
            r->r9 = nmis;
#endif
        return;
    }
    traps++;
    ASM("movq %0, %%dr6" ::"r"(0xffff0ff0ul));
    r->flags |= 0x10000;
}

/* ---- system calls ---- */

static void shoot_down(void)
{
    take(&shoot_lock);
    acks = 0;
    wrmsr(0x830, 0xc0000 | CALL);
    while (acks != CPUS - 1)
        ASM("pause");
    drop(&shoot_lock);
}

u64 system_call(struct regs *r)
{
    struct task *t = current();
    u64 until;
    ASM("sti");
    switch (r->orig) {
    case 0: r->rax = (u64)t->id; break;
    case 1: me()->resched = 1; r->rax = 0; break;
    case 2: print("CORRUPT\n"); break;
    case 3: r->rax = load_user(r->rdi); break;
    case 4:
        for (int n = 0; n < 16; n++)
            demand[t->process][n] = 0;
        shoot_down();
        ASM("movq %%cr3, %%rax; movq %%rax, %%cr3" ::: "rax", "memory");
        r->rax = 0;
        break;
    case 5: ASM("cli"); t->fs = r->rdi; wrmsr(0xc0000100, t->fs); r->rax = 0; break;
    case 6: t->handler = r->rdi; r->rax = 0; break;
    case 7:
        signal_return(r);
#ifdef BUG_SIGRETURN_SYSRET
        r->rcx = r->rip;
        r->r11 = r->flags;
        return 1;
#endif
        exit_work(r);
        return 0;
    case 8: /* sleep; a signal ends it, and it is made again */
        until = ticks + r->rdi;
        r->rax = 0;
        while (ticks < until) {
            if (t->signals && t->handler && !t->handling) {
                r->rax = r->orig;
                r->rip -= 2;
                r->rcx = r->rip;
                break;
            }
            ASM("cli");
            schedule();
            ASM("sti");
        }
        break;
    case 9: r->rax = vfork(r); break;
    case 10: { /* exec */
        u64 rip = r->rdi, argument = r->rsi;
        wake_parent(t);
        *r = (struct regs){.rip = rip, .rcx = rip, .rdi = argument, .cs = 0x23, .ss = 0x1b, .flags = 0x202, .r11 = 0x202};
        r->rsp = 0x700000 + (u64)(t->id + 1) * 0x8000 - 8;
        break;
    }
    case 11: leave();
    case 12: /* a breakpoint of the debugger's on every return by sysret, of this CPU */
        ASM("movq %0, %%dr0; movq %1, %%dr7" ::"r"(the_sysret), "r"(r->rdi ? 0x2ul : 0ul));
        r->rax = 0;
        break;
    }
    exit_work(r);
    return r->rcx == r->rip && r->r11 == r->flags;
}

/* ---- start ---- */

static void this_cpu(u64 n)
{
    struct cpu *c = &cpus[n];
    c->self = c;
    c->id = n;
    c->current = c->idle = &idles[n];
    idles[n].process = -1;
    idles[n].top = (u64)stacks[TASKS + n] + sizeof stacks[0];
    c->top = idles[n].top;
    c->trampoline = (u64)c->stacks[0] + sizeof c->stacks[0];
    c->irq_top = (u64)c->irq_stack + sizeof c->irq_stack;
    u64 ist[3] = {c->trampoline, (u64)c->stacks[1] + 4096, (u64)c->stacks[2] + 4096};
    for (int i = 0; i < 3; i++) {
        u32 *slot = i ? &c->tss[9 + 2 * (i - 1)] : &c->tss[1];
        slot[0] = (u32)ist[i], slot[1] = (u32)(ist[i] >> 32);
    }
    u64 t = (u64)c->tss;
    gdt[6 + 2 * n] = 0x67 | (t & 0xffffff) << 16 | 0x89ul << 40 | (t >> 24 & 0xff) << 56;
    gdt[7 + 2 * n] = t >> 32;
    struct { u16 limit; u64 base; } __attribute__((packed)) g = {sizeof gdt - 1, (u64)gdt}, d = {sizeof idt - 1, (u64)idt};
    ASM("lgdt %0; lidt %1; ltr %w2" ::"m"(g), "m"(d), "r"((6 + 2 * n) * 8));
    ASM("pushq $8; leaq 1f(%%rip), %%rax; pushq %%rax; lretq; 1: movl $16, %%eax; movl %%eax, %%ss; movl %%eax, %%ds;"
        "movl %%eax, %%es; xorl %%eax, %%eax; movl %%eax, %%fs; movl %%eax, %%gs" ::: "rax", "memory");
    wrmsr(0xc0000101, (u64)c);
    wrmsr(0xc0000102, 0);
    wrmsr(0xc0000081, 0x0010000800000000ul);
    wrmsr(0xc0000082, (u64)entry_call);
    wrmsr(0xc0000084, 0x47700);
    wrmsr(0x1b, rdmsr(0x1b) | 0xc00);
    wrmsr(0x80f, 0x1ff);
}

static __attribute__((noreturn)) void idle(void)
{
    wrmsr(0x83e, 3);
    wrmsr(0x832, 0x20000 | TICK);
    wrmsr(0x838, 62500);
    for (;;) {
        ASM("cli");
        schedule();
        ASM("sti; hlt");
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
    print("tux64\n");
    gdt[1] = 0x00209a0000000000;
    gdt[2] = 0x0000920000000000;
    gdt[3] = 0x0000f20000000000;
    gdt[4] = 0x0020fa0000000000;
    for (u64 (*e)[2] = entries; (*e)[1]; e++) {
        u64 n = (*e)[0], a = (*e)[1], ist = n == 1 || n == 2 ? n : 0;
#ifdef BUG_DEBUG_STACK
        if (n == 1)
            ist = 0;
#endif
        idt[n][0] = (a & 0xffff) | 8 << 16 | ist << 32 | (n == 3 ? 0xee00ul : 0x8e00ul) << 32 | (a >> 16 & 0xffff) << 48;
        idt[n][1] = a >> 32;
    }
    outb(0x21, 0xff);
    outb(0xa1, 0xff);
    for (int p = 0; p < PROCESSES; p++) {
        pml4s[p][511] = boot_pml4[511];
        pml4s[p][0] = PHYS(pdpts[p]) | 7;
        pdpts[p][0] = PHYS(pds[p]) | 7;
        pds[p][2] = 0x2000000 | 0x85;
        pds[p][3] = (0x2200000 + (u64)p * 0x200000) | 0x87;
        pds[p][4] = PHYS(demand[p]) | 7;
    }
    for (u64 n = 0; n < (u64)user_bytes; n++)
        ((char *)VIRT(0x2000000))[n] = user_image[n];
    for (int n = 0; n < 14; n++)
        spawn(n % PROCESSES, (u64)n % 7);
    struct task *t = new_task(0);
    dress(t, (u64)daemon);
    t->process = -1;
    t->state = READY;
    enqueue(&cpus[1], t);
    this_cpu(0);
    for (u64 n = 0; ap_start + n < ap_start_end; n++)
        ((char *)VIRT(0x8000))[n] = ap_start[n];
    for (u64 n = 1; n < CPUS; n++) {
        ap_stack = (u64)stacks[TASKS + n] + sizeof stacks[0];
        ap_number = n;
        wrmsr(0x830, n << 32 | 0x4500);
        for (volatile int i = 0; i < 200000; i++)
            ;
        wrmsr(0x830, n << 32 | 0x4608);
        while (cpus_up != (int)n)
            ASM("pause");
    }
    print("tux64: all CPUs are up\n");
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
