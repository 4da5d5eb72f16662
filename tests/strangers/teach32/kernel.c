/* The kernel proper: processes, the scheduler in a context of its own, traps, system calls. */
#include "teach.h"

#define NPROC 8
#define KSTACK 4096
#define HZ 2500
#define USERPHYS(i) (0x800000u + (uint)(i) * 0x400000u) /* 4 MB each, mapped at 0 */
#define P2V(a) ((void *)((a) + KERNBASE))
#define HEAP 0x400000u

enum state { UNUSED, EMBRYO, SLEEPING, RUNNABLE, RUNNING, ZOMBIE };

struct proc {
    enum state state;
    int pid;
    struct proc *parent;
    char *kstack;
    struct trapframe *tf;
    struct context *context;
    void *chan;
    uint tls;
    uint *pgdir;
};

extern uint vectors[];
extern void trapret(void), quicktick(void);
extern void swtch(struct context **, struct context *);
extern char user_image[], user_size[];

uint bootdir[1024] __attribute__((aligned(4096))) = {
    [0] = 0x83,
#define M4(i) [512 + i] = ((uint)(i) << 22) | 0x83
    M4(0), M4(1), M4(2), M4(3), M4(4), M4(5), M4(6), M4(7), M4(8), M4(9), M4(10), M4(11), M4(12),
};
static uint pgdirs[NPROC][1024] __attribute__((aligned(4096)));
static uint heaptabs[NPROC][1024] __attribute__((aligned(4096)));
static uchar heapages[NPROC][4][4096] __attribute__((aligned(4096)));
static char kstacks[NPROC][KSTACK] __attribute__((aligned(4096)));
static struct proc procs[NPROC], *curproc;
static struct context *schedctx;
static int nextpid = 1, intena;
static volatile uint ticks;
static unsigned long long gdt[7], idt[256];
static uint tss[26];

static inline void outb(ushort p, uchar v) { asm volatile("outb %0, %1" ::"a"(v), "d"(p)); }
static inline uchar inb(ushort p) { uchar v; asm volatile("inb %1, %0" : "=a"(v) : "d"(p)); return v; }
static inline void cli(void) { asm volatile("cli" ::: "memory"); }
static inline void sti(void) { asm volatile("sti" ::: "memory"); }
static inline uint eflags(void) { uint f; asm volatile("pushfl; popl %0" : "=r"(f)); return f; }

static void putc(char c)
{
    while (!(inb(0x3fd) & 0x20))
        ;
    outb(0x3f8, (uchar)c);
}

static void puts(const char *s) { while (*s) putc(*s++); }

static void copy(void *to, const void *from, uint n)
{
    asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(n) :: "memory");
}

static void zero(void *to, uint n) { asm volatile("rep stosb" : "+D"(to), "+c"(n) : "a"(0) : "memory"); }

static unsigned long long segment(uint base, uint access)
{
    return (base & 0xffffffull) << 16 | (unsigned long long)(base >> 24) << 56 | (unsigned long long)access << 40 |
           0x00cf00000000ffffull;
}

static void panic(const char *s)
{
    cli();
    puts("panic: ");
    puts(s);
    for (;;)
        asm volatile("hlt");
}

/* Interrupts are off between here and the matching restore in whoever runs next. */
static __attribute__((noinline)) void sched(void)
{
    int ena = intena;
    swtch(&curproc->context, schedctx);
    intena = ena;
}

static __attribute__((noinline)) void yield(void)
{
    uint f = eflags();
    cli();
    curproc->state = RUNNABLE;
    sched();
    if (f & FL_IF)
        sti();
}

static __attribute__((noinline)) void sleep_on(void *chan)
{
    curproc->chan = chan;
    curproc->state = SLEEPING;
    sched();
    curproc->chan = 0;
}

static void wakeup(void *chan)
{
    for (struct proc *p = procs; p < procs + NPROC; p++)
        if (p->state == SLEEPING && p->chan == chan)
            p->state = RUNNABLE;
}

static void forkret(void) { sti(); }

static void switchuvm(struct proc *p)
{
#ifdef BUG_ESP0
    if (!tss[1])
#endif
    tss[1] = (uint)p->kstack + KSTACK;
#ifndef BUG_TLS
    gdt[SEG_UTLS] = segment(p->tls, 0xf2);
#endif
    asm volatile("movl %0, %%cr3" ::"r"((uint)p->pgdir - KERNBASE) : "memory");
}

static __attribute__((noreturn)) void scheduler(void)
{
    for (uint turn = 0, seen = 0;; turn++) {
        sti();
        if (!seen)
            asm volatile("hlt");
        cli();
        seen = 0;
        for (struct proc *p = procs; p < procs + NPROC; p++) {
            if (p->state != RUNNABLE)
                continue;
            seen++;
            curproc = p;
            switchuvm(p);
            p->state = RUNNING;
            swtch(&schedctx, p->context);
            asm volatile("movl %0, %%cr3" ::"r"((uint)bootdir - KERNBASE) : "memory");
            curproc = 0;
            sti();
            cli();
        }
        if (turn > 0xfffffff0)
            turn = 0;
    }
}

static struct proc *allocproc(void)
{
    for (int i = 0; i < NPROC; i++) {
        struct proc *p = &procs[i];
        if (p->state != UNUSED)
            continue;
        p->state = EMBRYO;
        p->pid = nextpid++;
#ifdef BUG_SHARED_KSTACK
        p->kstack = kstacks[i == 3 ? 2 : i];
#else
        p->kstack = kstacks[i];
#endif
        char *sp = p->kstack + KSTACK - sizeof *p->tf;
        p->tf = (struct trapframe *)sp;
        sp -= 4;
        *(uint *)sp = (uint)trapret;
        sp -= sizeof *p->context;
        p->context = (struct context *)sp;
        zero(p->context, sizeof *p->context);
        p->context->eip = (uint)forkret;
        p->pgdir = pgdirs[i];
        copy(p->pgdir, bootdir, 4096);
        p->pgdir[0] = USERPHYS(i) | 0x87;
        zero(heaptabs[i], 4096);
        p->pgdir[1] = ((uint)heaptabs[i] - KERNBASE) | 7;
        return p;
    }
    return 0;
}

static int fork(void)
{
    struct proc *p = allocproc();
    if (!p)
        return -1;
    copy(P2V(USERPHYS(p - procs)), P2V(USERPHYS(curproc - procs)), 0x10000);
    *p->tf = *curproc->tf;
    p->tf->eax = 0;
    p->tls = curproc->tls;
    p->parent = curproc;
    cli();
    p->state = RUNNABLE;
    sti();
    return p->pid;
}

static int wait(void)
{
    cli();
    for (;;) {
        for (struct proc *p = procs; p < procs + NPROC; p++)
            if (p->state == ZOMBIE && p->parent == curproc) {
                p->state = UNUSED;
                sti();
                return p->pid;
            }
        sleep_on(curproc);
    }
}

static void exit(void)
{
    cli();
    wakeup(curproc->parent);
    curproc->state = ZOMBIE;
    sched();
    panic("zombie");
}

static int sys_sleep(uint n)
{
    uint until = ticks + n;
    cli();
    while ((int)(until - ticks) > 0)
        sleep_on((void *)&ticks);
    sti();
    return 0;
}

static int __attribute__((noinline)) syscall(struct trapframe *tf)
{
    switch (tf->eax) {
    case SYS_fork: return fork();
    case SYS_exit: exit(); return 0;
    case SYS_wait: return wait();
    case SYS_getpid: return curproc->pid;
    case SYS_sleep: return sys_sleep(tf->ebx);
    case SYS_yield: yield(); return 0;
    case SYS_puts: puts((char *)tf->ebx); return 0;
    case SYS_settls:
        curproc->tls = tf->ebx;
        gdt[SEG_UTLS] = segment(tf->ebx, 0xf2);
#ifdef BUG_IOPL
        tf->eflags |= 0x3000;
#endif
        return 0;
    case SYS_uptime:
#ifdef BUG_SYSCALL_EBX
        tf->ebx = ticks;
#endif
        return (int)ticks;
    case SYS_over: puts("teach32: that is all\n"); return 0;
    }
    return -1;
}

void tick(void)
{
    ticks++;
    wakeup((void *)&ticks);
    outb(0x20, 0x20);
}

void trap(struct trapframe *tf)
{
    if (tf->trapno == T_SYSCALL) {
        curproc->tf = tf;
        tf->eax = (uint)syscall(tf);
#ifdef BUG_IF_LOST
        if (ticks > 200)
            tf->eflags &= ~FL_IF;
#endif
        return;
    }
    if (tf->trapno == T_IRQ0) {
        tick();
    } else if (tf->trapno == T_PGFLT) {
        uint va;
        asm volatile("movl %%cr2, %0" : "=r"(va));
        uint page = (va - HEAP) >> 12, i = (uint)(curproc - procs);
        if (page >= 64)
            panic("page fault");
        /* Four frames a process: the one that held another page loses it. */
        uint frame = (uint)heapages[i][page & 3] - KERNBASE;
        for (uint k = page & 3; k < 64; k += 4) {
            heaptabs[i][k] = 0;
            asm volatile("invlpg (%0)" ::"r"(HEAP + (k << 12)) : "memory");
        }
        heaptabs[i][page] = frame | 7;
    } else if (tf->trapno == 39 || tf->trapno == 47) {
        return; /* spurious */
    } else {
        panic("unexpected trap");
    }
    if (curproc && curproc->state == RUNNING && tf->trapno == T_IRQ0 && (tf->cs & 3)) {
#ifdef BUG_FLAGS
        curproc->tf = tf;
        tf->eflags = FL_IF | 2;
#endif
        yield();
    }
}

void kmain(void)
{
    gdt[SEG_KCODE] = segment(0, 0x9a);
    gdt[SEG_KDATA] = segment(0, 0x92);
    gdt[SEG_UCODE] = segment(0, 0xfa);
    gdt[SEG_UDATA] = segment(0, 0xf2);
    gdt[SEG_UTLS] = segment(0, 0xf2);
    uint t = (uint)tss;
    gdt[SEG_TSS] = (t & 0xffffffull) << 16 | (unsigned long long)(t >> 24) << 56 | 0x890000000067ull;
    tss[2] = SEG_KDATA << 3;
    tss[25] = 0x680000;
    struct { ushort limit; uint base; } __attribute__((packed)) g = {sizeof gdt - 1, (uint)gdt}, d = {sizeof idt - 1, (uint)idt};
    asm volatile("lgdt %0; ljmp $8, $1f; 1: movw %w1, %%ds; movw %w1, %%es; movw %w1, %%ss; movw %w2, %%fs;"
                 "movw %w2, %%gs; ltr %w3" ::"m"(g), "r"(SEG_KDATA << 3), "r"(0), "r"(SEG_TSS << 3));
    for (uint i = 0; i < 65; i++) {
        uint type = i == T_SYSCALL ? 0xef : 0x8e, at = vectors[i];
        idt[i] = (at & 0xffff) | 8u << 16 | (unsigned long long)(type << 8 | (at & 0xffff0000)) << 32;
    }
#ifdef BUG_SHORT_STUB
    idt[T_IRQ0] = ((uint)quicktick & 0xffff) | 8u << 16 | (unsigned long long)(0x8e00 | ((uint)quicktick & 0xffff0000)) << 32;
#endif
    asm volatile("lidt %0" ::"m"(d));
    outb(0x20, 0x11); outb(0xa0, 0x11); outb(0x21, 32); outb(0xa1, 40); outb(0x21, 4); outb(0xa1, 2);
    outb(0x21, 1); outb(0xa1, 1); outb(0x21, 0xfe); outb(0xa1, 0xff);
    outb(0x43, 0x34); outb(0x40, (1193182 / HZ) & 0xff); outb(0x40, (1193182 / HZ) >> 8);

    struct proc *p = allocproc();
    copy((char *)P2V(USERPHYS(0)) + 0x1000, user_image, (uint)user_size);
    zero(p->tf, sizeof *p->tf);
    p->tf->cs = SEG_UCODE << 3 | 3;
    p->tf->ds = p->tf->es = p->tf->ss = p->tf->fs = p->tf->gs = SEG_UDATA << 3 | 3;
    p->tf->eflags = FL_IF | 2;
    p->tf->esp = 0xf000;
    p->tf->eip = 0x1000;
    p->state = RUNNABLE;
    puts("teach32\n");
    scheduler();
}
