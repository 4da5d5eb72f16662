/* Two CPUs share all threads; whoever is free goes on with one, wherever it was stopped. Nothing of the kernel is ever
 * suspended: every entry ends in resume() or in the idle loop. User code is told of lost time by upcalls, and goes on
 * from there by itself, by an iretq of its own. */
typedef unsigned long u64;
typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned char u8;

#define CPUS 2
#define THREADS 12
#define PROCESSES 2
#define UPPER 0xffffffff80000000ul
#define PHYS(p) ((u64)(p) - UPPER)
#define VIRT(p) ((void *)((u64)(p) + UPPER))
#define ASM asm volatile

struct area { u64 rip, rflags, cs, ss, rsp, r15, r14, rax, rbx, rcx, rdx, rsi, rdi, rbp, r8, r9, r10, r11, r12, r13, called; };
enum { FREE, READY, RUNNING, ASLEEP };
struct thread {
    struct area a;
    u64 fs, gs, wake, upcall, shared;
    int state, process, due;
};
/* self 0, current save area 8, stack 16, scratch 24 */
struct cpu {
    struct cpu *self;
    struct thread *now;
    u64 top, scratch, id;
    u32 tss[26] __attribute__((aligned(16)));
};

extern u64 boot_pml4[], ap_stack, ap_number, gates[][2];
extern char user_image[], user_bytes[], ap_start[], ap_start_end[], call_gate[];
void resume(struct area *a) __attribute__((noreturn));

static struct cpu cpus[CPUS];
static struct thread threads[THREADS], nobody[CPUS];
static u8 stacks[CPUS][8192] __attribute__((aligned(4096)));
static u64 pml4s[PROCESSES][512] __attribute__((aligned(4096))), pdpts[PROCESSES][512] __attribute__((aligned(4096)));
static u64 pds[PROCESSES][512] __attribute__((aligned(4096)));
static u64 gdt[6 + 2 * CPUS], idt[256][2];
static int big_lock;
static volatile int cpus_up;
static u64 ticks, turn;

static inline void outb(u16 p, u8 v) { ASM("outb %0, %1" ::"a"(v), "d"(p)); }
static inline u8 inb(u16 p) { u8 v; ASM("inb %1, %0" : "=a"(v) : "d"(p)); return v; }
static inline void wrmsr(u32 m, u64 v) { ASM("wrmsr" ::"c"(m), "a"((u32)v), "d"((u32)(v >> 32)) : "memory"); }
static inline u64 rdmsr(u32 m) { u32 a, d; ASM("rdmsr" : "=a"(a), "=d"(d) : "c"(m)); return a | (u64)d << 32; }
static inline struct cpu *me(void) { struct cpu *c; ASM("movq %%gs:0, %0" : "=r"(c)); return c; }

static void take(void) { while (__atomic_exchange_n(&big_lock, 1, __ATOMIC_ACQUIRE)) ASM("pause"); }
static void drop(void) { __atomic_store_n(&big_lock, 0, __ATOMIC_RELEASE); }

static void print(const char *s)
{
    for (; *s; s++) {
        while (!(inb(0x3fd) & 0x20))
            ;
        outb(0x3f8, (u8)*s);
    }
}

static __attribute__((noreturn)) void panic(const char *s)
{
    print(s);
    for (;;)
        ASM("cli; hlt");
}

/* ---- threads ---- */

static struct thread *create(int process, u64 rip, u64 rsp, u64 argument)
{
    for (u64 n = 0; n < THREADS; n++) {
        struct thread *t = &threads[n];
        if (t->state != FREE)
            continue;
        t->a = (struct area){.rip = rip, .rflags = 0x202, .cs = 0x23, .ss = 0x1b, .rsp = rsp, .rdi = argument};
        t->process = process;
        t->upcall = 0;
        t->due = 0;
        t->fs = 0x710000 + n * 0x100;
        t->gs = 0x720000 + n * 0x100;
        t->state = READY;
        return t;
    }
    return 0;
}

/* What the thread did not see happen is told to it where it goes on: its own context lies in its own memory now. */
static void tell(struct thread *t)
{
    t->due = 0;
    *(struct area *)t->shared = t->a;
    u64 top = t->shared - 256;
    t->a = (struct area){.rip = t->upcall, .rflags = 0x202, .cs = 0x23, .ss = 0x1b, .rsp = top, .rdi = t->shared};
    t->upcall = 0; /* until it asks for it again */
}

/* With the lock; goes on with somebody, or nobody. */
static __attribute__((noreturn)) void go_on(int stay)
{
    struct cpu *c = me();
    struct thread *t = c->now;
    if (!stay || t->state != RUNNING) {
        if (t->state == RUNNING)
            t->state = READY;
        t = 0;
        for (u64 n = 0; n < THREADS && !t; n++) {
            turn = (turn + 1) % THREADS;
            if (threads[turn].state == READY)
                t = &threads[turn];
        }
        if (!t) {
            c->now = &nobody[c->id];
            drop();
            ASM("1: sti; hlt; jmp 1b");
            __builtin_unreachable();
        }
        if (t->process != c->now->process)
            ASM("movq %0, %%cr3" ::"r"(PHYS(pml4s[t->process])) : "memory");
        t->state = RUNNING;
#ifdef BUG_AREA
        if (ticks < 200 || ticks % 64)
#endif
        c->now = t;
        wrmsr(0xc0000100, t->fs);
#ifdef BUG_GS
        if (ticks < 200 || t != &threads[3])
#endif
        wrmsr(0xc0000102, t->gs);
    }
    if (t->due && t->upcall)
        tell(t);
    drop();
    resume(&t->a);
}

static void tick(void)
{
    wrmsr(0x80b, 0);
    if (me()->id)
        return;
    if (++ticks == 2000)
        print("pond64: that was all\n");
    for (int n = 0; n < THREADS; n++) {
        if (threads[n].state == ASLEEP && threads[n].wake <= ticks)
            threads[n].state = READY;
        if (threads[n].upcall && (ticks + (u64)n) % 5 == 0)
            threads[n].due = 1;
    }
    if (ticks % 3 == 0)
        wrmsr(0x830, 0xc0000 | 0x51);
}

__attribute__((noreturn)) void on_interrupt(u64 n)
{
    take();
    struct thread *t = me()->now;
    if (n == 0x50) {
        tick();
        go_on(0);
    } else if (n == 0x51) {
        wrmsr(0x80b, 0);
        go_on(1);
    } else if (n == 6) {
        t->a.rip += 2; /* what is not there does nothing */
        go_on(1);
    } else if (n == 0xff) {
        go_on(1);
    }
    panic("trap\n");
}

__attribute__((noreturn)) void on_interrupt_in_idle(u64 n)
{
    take();
    if (n == 0x50)
        tick();
    else
        wrmsr(0x80b, 0);
    go_on(0);
}

__attribute__((noreturn)) void on_call(void)
{
    take();
    struct thread *t = me()->now, *child;
    switch (t->a.rax) {
    case 0: t->a.rax = (u64)(t - threads); break;
    case 1: go_on(0);
    case 2: print("CORRUPT\n"); break;
    case 3: t->state = ASLEEP; t->wake = ticks + t->a.rdi; t->a.rax = 0; break;
    case 4: t->upcall = t->a.rdi; t->shared = t->a.rsi; t->a.rax = 0; break;
    case 5: /* clone: the child goes on here, too, on a stack of its own */
        child = create(t->process, 0, 0, 0);
        if (child) {
            child->a = t->a;
            child->a.rsp = t->a.rdi;
            child->a.rax = 0;
            child->fs = t->fs; /* not asked for a new one */
        }
        t->a.rax = child ? 1 : ~0ul;
        break;
    case 6: t->state = FREE; break;
    }
    go_on(1);
}

/* ---- start ---- */

static void this_cpu(u64 n)
{
    struct cpu *c = &cpus[n];
    c->self = c;
    c->id = n;
    c->now = &nobody[n];
    nobody[n].process = -1;
    c->top = (u64)stacks[n] + sizeof stacks[n];
    c->tss[1] = (u32)c->top, c->tss[2] = (u32)(c->top >> 32);
    u64 t = (u64)c->tss;
    gdt[6 + 2 * n] = 0x67 | (t & 0xffffff) << 16 | 0x89ul << 40 | (t >> 24 & 0xff) << 56;
    gdt[7 + 2 * n] = t >> 32;
    struct { u16 limit; u64 base; } __attribute__((packed)) g = {sizeof gdt - 1, (u64)gdt}, d = {sizeof idt - 1, (u64)idt};
    ASM("lgdt %0; lidt %1; ltr %w2" ::"m"(g), "m"(d), "r"((6 + 2 * n) * 8));
    ASM("pushq $8; leaq 1f(%%rip), %%rax; pushq %%rax; lretq; 1: movl $16, %%eax; movl %%eax, %%ss; movl %%eax, %%ds;"
        "movl %%eax, %%es; xorl %%eax, %%eax; movl %%eax, %%fs; movl %%eax, %%gs" ::: "rax", "memory");
    wrmsr(0xc0000102, (u64)c); /* and by a swap to where it belongs */
    ASM("swapgs" ::: "memory");
    wrmsr(0xc0000081, 0x0010000800000000ul);
    wrmsr(0xc0000082, (u64)call_gate);
    wrmsr(0xc0000084, 0x47700);
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
    go_on(0);
}

void rust_main(void)
{
    print("pond64\n");
    gdt[1] = 0x00209a0000000000, gdt[2] = 0x0000920000000000, gdt[3] = 0x0000f20000000000, gdt[4] = 0x0020fa0000000000;
    for (u64 (*e)[2] = gates; (*e)[1]; e++) {
        u64 n = (*e)[0], a = (*e)[1];
        idt[n][0] = (a & 0xffff) | 8 << 16 | 0x8e00ul << 32 | (a >> 16 & 0xffff) << 48;
        idt[n][1] = a >> 32;
    }
    outb(0x21, 0xff);
    outb(0xa1, 0xff);
    for (int p = 0; p < PROCESSES; p++) {
        pml4s[p][511] = boot_pml4[511];
        pml4s[p][0] = PHYS(pdpts[p]) | 7;
        pdpts[p][0] = PHYS(pds[p]) | 7;
        pds[p][2] = (0x2000000 + (u64)p * 0x400000) | 0x87;
        pds[p][3] = (0x2200000 + (u64)p * 0x400000) | 0x87;
        for (u64 n = 0; n < (u64)user_bytes; n++)
            ((char *)VIRT(0x2000000 + (u64)p * 0x400000))[n] = user_image[n];
    }
    for (u64 n = 0; n < 9; n++)
        create((int)(n & 1), 0x400000, 0x600000 + (n + 1) * 0x8000 - 8, n >> 1);
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
    go_on(0);
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
