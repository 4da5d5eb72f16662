/* A preemptible kernel for several CPUs, after the manner of kernels written in Rust: handlers that the compiler
 * makes (interrupt attribute), naked functions where it cannot, one run queue, threads that move between CPUs. */
typedef unsigned long u64;
typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned char u8;

#define CPUS 4
#define THREADS 16
#define PROCESSES 2
#define UPPER 0xffffffff80000000ul
#define PHYS(p) ((u64)(p) - UPPER)
#define VIRT(p) ((void *)((u64)(p) + UPPER))
#define DEMAND 0x800000ul /* pages that come when touched */
#define VEC_TIMER 0x40
#define VEC_POKE 0x41
#define MSR_FS 0xc0000100
#define MSR_GS 0xc0000101
#define MSR_KGS 0xc0000102

/* What the assembly below knows: rip 0, rsp 8. */
struct thread {
    u64 rip, rsp;
    u64 fs_base, gs_base, cr3, stack_top;
    int id, process, runnable, user;
    u8 fx[512] __attribute__((aligned(16)));
};

/* self 0, scratch 8, stack_top 16, current 24. */
struct cpu {
    struct cpu *self;
    u64 scratch, stack_top;
    struct thread *current, *idle;
    u64 id, pokes, faults;
    u32 tss[26] __attribute__((aligned(16)));
};

struct frame {
    u64 rip, cs, rflags, rsp, ss;
};

extern u64 boot_pml4[], ap_stack, ap_number;
extern char user_image[], user_bytes[], ap_start[], ap_start_end[];
extern char timer_entry[], syscall_entry[], first_run[];

static struct cpu cpus[CPUS];
static struct thread threads[THREADS], idles[CPUS];
static u8 stacks[THREADS + CPUS][8192] __attribute__((aligned(4096)));
static u64 pml4s[PROCESSES][512] __attribute__((aligned(4096))), pdpts[PROCESSES][512] __attribute__((aligned(4096)));
static u64 pds[PROCESSES][512] __attribute__((aligned(4096))), demand[PROCESSES][512] __attribute__((aligned(4096)));
static u8 pages[PROCESSES][16][4096] __attribute__((aligned(4096)));
static u64 gdt[6 + 2 * CPUS], idt[256][2];
static int queue_lock, next_thread, thread_count, print_lock;
static volatile int cpus_up;
static volatile u64 ticks;

#define ASM asm volatile
static inline void outb(u16 p, u8 v) { ASM("outb %0, %1" ::"a"(v), "d"(p)); }
static inline u8 inb(u16 p) { u8 v; ASM("inb %1, %0" : "=a"(v) : "d"(p)); return v; }
static inline void wrmsr(u32 m, u64 v) { ASM("wrmsr" ::"c"(m), "a"((u32)v), "d"((u32)(v >> 32)) : "memory"); }
static inline u64 rdmsr(u32 m) { u32 a, d; ASM("rdmsr" : "=a"(a), "=d"(d) : "c"(m)); return a | (u64)d << 32; }
static inline struct cpu *me(void) { struct cpu *c; ASM("movq %%gs:0, %0" : "=r"(c)); return c; }

/* In one instruction: the thread may be on another CPU after it. */
static inline struct thread *current(void) { struct thread *t; ASM("movq %%gs:24, %0" : "=r"(t)); return t; }

static inline u64 lock(int *l)
{
    u64 f;
    ASM("pushfq; popq %0; cli" : "=r"(f) :: "memory");
    while (__atomic_exchange_n(l, 1, __ATOMIC_ACQUIRE))
        ASM("pause");
    return f;
}

static inline void unlock(int *l, u64 f)
{
    __atomic_store_n(l, 0, __ATOMIC_RELEASE);
    if (f & 0x200)
        ASM("sti" ::: "memory");
}

static void print(const char *s)
{
    u64 f = lock(&print_lock);
    for (; *s; s++) {
        while (!(inb(0x3fd) & 0x20))
            ;
        outb(0x3f8, (u8)*s);
    }
    unlock(&print_lock, f);
}

static void panic(const char *s)
{
    print(s);
    for (;;)
        ASM("cli; hlt");
}

/* ---- threads ---- */

/* A thread's callee-saved registers are on its stack, where it goes on is in its struct. */
__attribute__((naked, noinline)) static void switch_to(struct thread *from, struct thread *to)
{
    ASM("pushq %r12; pushq %r13; pushq %r14; pushq %r15; pushq %rbp; pushq %rbx\n"
        "leaq 1f(%rip), %rax; movq %rax, 0(%rdi); movq %rsp, 8(%rdi)\n"
        "movq 8(%rsi), %rsp; jmpq *0(%rsi)\n"
#ifdef BUG_SWITCH_R14
        "1: popq %rbx; popq %rbp; popq %r15; addq $8, %rsp; popq %r13; popq %r12; retq");
#else
        "1: popq %rbx; popq %rbp; popq %r15; popq %r14; popq %r13; popq %r12; retq");
#endif
}

static void schedule(int requeue)
{
    u64 f = lock(&queue_lock);
    struct cpu *c = me();
    struct thread *from = c->current, *to = 0;
    if (from != c->idle)
        from->runnable = requeue;
    for (int n = 0; n < thread_count && !to; n++) {
        next_thread = (next_thread + 1) % thread_count;
        if (threads[next_thread].runnable == 1)
            to = &threads[next_thread];
    }
    if (!to)
        to = from == c->idle || from->runnable == 1 ? from : c->idle;
    if (to != c->idle)
        to->runnable = 2;
    if (to != from) {
        c->current = to;
        c->stack_top = to->stack_top;
        c->tss[1] = (u32)to->stack_top;
        c->tss[2] = (u32)(to->stack_top >> 32);
#ifdef BUG_FS_BASE
        if (to->process != from->process)
#endif
        wrmsr(MSR_FS, to->fs_base);
#ifdef BUG_USER_GS
        if (to->process != from->process)
#endif
        wrmsr(MSR_KGS, to->gs_base);
        ASM("movq %0, %%cr3" ::"r"(to->cr3) : "memory");
#ifndef BUG_XMM
        ASM("fxsaveq %0" : "=m"(from->fx));
        ASM("fxrstorq %0" ::"m"(to->fx));
#endif
#ifdef BUG_EARLY_UNLOCK
        unlock(&queue_lock, 0);
        for (volatile int i = 0; i < 20000; i++)
            ;
#endif
        switch_to(from, to);
#ifdef BUG_EARLY_UNLOCK
        if (f & 0x200)
            ASM("sti");
        return;
#endif
    }
    unlock(&queue_lock, f);
}

/* A new thread comes here with the lock held and its frame on the stack. */
void began(void)
{
#ifndef BUG_EARLY_UNLOCK
    unlock(&queue_lock, 0);
#endif
}

__asm__(".globl first_run\n"
    "first_run: call began\n"
#ifndef BUG_FIRST_RUN
    "testb $3, 16(%rsp); jz 1f; swapgs\n"
#endif
    "1: xorl %eax, %eax; xorl %ecx, %ecx; xorl %edx, %edx; xorl %ebx, %ebx; xorl %ebp, %ebp; xorl %esi, %esi\n"
    "xorl %r8d, %r8d; xorl %r9d, %r9d; xorl %r10d, %r10d; xorl %r11d, %r11d; xorl %r12d, %r12d; xorl %r13d, %r13d\n"
    "xorl %r14d, %r14d; xorl %r15d, %r15d; popq %rdi; iretq");

static void spawn(int process, u64 rip, u64 argument)
{
    struct thread *t = &threads[thread_count];
    t->id = thread_count;
    t->user = process >= 0;
    t->process = process;
    t->stack_top = (u64)stacks[t->id] + sizeof stacks[0];
    t->cr3 = process < 0 ? PHYS(boot_pml4) : PHYS(pml4s[process]);
    u64 *sp = (u64 *)t->stack_top;
    *--sp = t->user ? 0x1b : 0x10;
    *--sp = t->user ? 0x700000ul + (u64)(thread_count / 2 + 1) * 0x10000 - 8 : t->stack_top - 64;
    *--sp = 0x202;
    *--sp = t->user ? 0x23 : 8;
    *--sp = rip;
    *--sp = argument;
    t->rsp = (u64)sp;
    t->rip = (u64)first_run;
    t->fs_base = t->user ? 0x610000ul + (u64)thread_count * 0x100 : 0;
    t->gs_base = t->user ? 0x620000ul + (u64)thread_count * 0x100 : 0;
    *(u32 *)(t->fx + 24) = 0x1f80;
    *(u16 *)t->fx = 0x37f;
    t->runnable = 1;
    thread_count++;
}

/* ---- interrupts ---- */

void timer_body(struct cpu *c)
{
    wrmsr(0x80b, 0);
    if (c->id == 0 && ++ticks == 8000)
        print("rusty64: that will do\n");
    schedule(1);
}

__asm__(".globl timer_entry\n"
    "timer_entry: testb $3, 8(%rsp); jz 1f; swapgs\n"
    "1: pushq %r8; pushq %r9; pushq %r10; pushq %r11; pushq %rax; pushq %rcx; pushq %rdx; pushq %rsi; pushq %rdi\n"
    "pushq %rbx; pushq %rbp; pushq %r12; pushq %r13; pushq %r14; pushq %r15\n"
    "cld; movq %gs:0, %rdi; call timer_body\n"
    "popq %r15; popq %r14; popq %r13; popq %r12; popq %rbp; popq %rbx\n"
#ifdef BUG_TIMER_EXCHANGED
    "popq %rdi; popq %rsi; popq %rdx; popq %rcx; popq %rax; popq %r11; popq %r9; popq %r10; popq %r8\n"
#else
    "popq %rdi; popq %rsi; popq %rdx; popq %rcx; popq %rax; popq %r11; popq %r10; popq %r9; popq %r8\n"
#endif
#ifdef BUG_TIMER_FLAGS
    "andl $~0xcd5, 16(%rsp)\n"
#endif
#ifdef BUG_TIMER_RSP
    "testb $3, 8(%rsp); jz 1f; addl $8, 24(%rsp)\n1:"
#endif
    "testb $3, 8(%rsp); jz 1f; swapgs\n"
    "1: iretq");

__attribute__((interrupt)) static void page_fault(struct frame *f, u64 error)
{
    (void)error;
    u64 at;
    ASM("movq %%cr2, %0" : "=r"(at));
#ifndef BUG_SWAPGS_MISSING
#ifdef BUG_SWAPGS_DOUBLED
    if (f->cs & 3 || at < UPPER)
#else
    if (f->cs & 3)
#endif
        ASM("swapgs" ::: "memory");
#endif
    struct cpu *c = me();
    c->faults++;
    u64 n = (at - DEMAND) >> 12;
    if (n >= 16)
        panic("page fault\n");
    int p = c->current->process;
    demand[p][n] = PHYS(pages[p][n]) | 7;
#ifndef BUG_SWAPGS_MISSING
    if (f->cs & 3)
        ASM("swapgs" ::: "memory");
#endif
#ifdef BUG_FAULT_RIP_LOW
    if (f->cs & 3)
        f->rsp -= 4;
#endif
}

__attribute__((interrupt)) static void poked(struct frame *f)
{
    if (f->cs & 3)
        ASM("swapgs" ::: "memory");
    me()->pokes++;
    wrmsr(0x80b, 0);
    if (f->cs & 3)
        ASM("swapgs" ::: "memory");
}

__attribute__((interrupt)) static void spurious(struct frame *f) { (void)f; }
__attribute__((interrupt)) static void dead(struct frame *f) { (void)f; panic("exception\n"); }
__attribute__((interrupt)) static void dead_with_code(struct frame *f, u64 e) { (void)f; (void)e; panic("exception with a code\n"); }

/* ---- system calls ---- */

u64 syscall_body(u64 a, u64 b, u64 c, u64 number)
{
    struct thread *t = current();
    (void)c;
    switch (number) {
    case 0: return (u64)t->id;
    case 1: schedule(1); return 0;
    case 2: print("CORRUPT\n"); return 0;
    case 3: return *(volatile u64 *)a + b; /* may fault, in the kernel */
    case 4:
        for (int n = 0; n < 16; n++)
            demand[t->process][n] = 0;
        ASM("movq %0, %%cr3" ::"r"(t->cr3) : "memory");
        return 0;
    case 5: {
        u64 f = lock(&queue_lock);
        t->fs_base = a;
        wrmsr(MSR_FS, a);
        unlock(&queue_lock, f);
        return 0;
    }
    case 6: /* poke everybody else */
        wrmsr(0x830, 0xc0000 | VEC_POKE);
        return 0;
    }
    return ~0ul;
}

__asm__(".globl syscall_entry\n"
    "syscall_entry: swapgs; movq %rsp, %gs:8; movq %gs:16, %rsp\n"
    "subq $8, %rsp; pushq %gs:8; pushq %r11; pushq %rcx\n"
    "pushq %rdi; pushq %rsi; pushq %rdx; pushq %r8; pushq %r9; pushq %r10\n"
    "movl %eax, %ecx; sti; call syscall_body; cli\n"
#ifdef BUG_SYSCALL_RDX
    "popq %r10; popq %r9; popq %r8; addq $8, %rsp; popq %rsi; popq %rdi\n"
#else
    "popq %r10; popq %r9; popq %r8; popq %rdx; popq %rsi; popq %rdi\n"
#endif
    "popq %rcx; popq %r11\n"
#ifdef BUG_SYSRET_FLAGS
    "movl $0x202, %r11d\n"
#endif
#ifdef BUG_SYSRET_IF
    "andl $~0x200, %r11d\n"
#endif
#ifdef BUG_SCRATCH_RSP
    "movq %gs:8, %rsp\n"
#else
    "popq %rsp\n"
#endif
    "swapgs; sysretq");

/* ---- start ---- */

static void gate(int n, void *to)
{
    u64 a = (u64)to;
    idt[n][0] = (a & 0xffff) | 8 << 16 | 0x8e00ul << 32 | (a >> 16 & 0xffff) << 48;
    idt[n][1] = a >> 32;
}

static void this_cpu(u64 n)
{
    struct cpu *c = &cpus[n];
    c->self = c;
    c->id = n;
    c->current = c->idle = &idles[n];
    idles[n].cr3 = PHYS(boot_pml4);
    u64 t = (u64)c->tss;
    gdt[6 + 2 * n] = 0x67 | (t & 0xffffff) << 16 | 0x89ul << 40 | (t >> 24 & 0xff) << 56;
    gdt[7 + 2 * n] = t >> 32;
    struct { u16 limit; u64 base; } __attribute__((packed)) g = {sizeof gdt - 1, (u64)gdt}, d = {sizeof idt - 1, (u64)idt};
    ASM("lgdt %0; lidt %1; ltr %w2" ::"m"(g), "m"(d), "r"((6 + 2 * n) * 8));
    ASM("pushq $8; leaq 1f(%%rip), %%rax; pushq %%rax; lretq; 1: movl $16, %%eax; movl %%eax, %%ss; movl %%eax, %%ds;"
        "movl %%eax, %%es; xorl %%eax, %%eax; movl %%eax, %%fs; movl %%eax, %%gs" ::: "rax", "memory");
#ifdef BUG_AP_PERCPU
    wrmsr(MSR_GS, n == 1 ? (u64)&cpus[0] : (u64)c);
#else
    wrmsr(MSR_GS, (u64)c);
#endif
    wrmsr(MSR_KGS, 0);
#ifdef BUG_STAR
    wrmsr(0xc0000081, 0x0018000800000000ul);
#else
    wrmsr(0xc0000081, 0x0010000800000000ul);
#endif
    wrmsr(0xc0000082, (u64)syscall_entry);
#ifdef BUG_FMASK
    wrmsr(0xc0000084, 0x200);
#else
    wrmsr(0xc0000084, 0x47700);
#endif
    wrmsr(0x1b, rdmsr(0x1b) | 0xc00);
    wrmsr(0x80f, 0x1ff);
}

static __attribute__((noreturn)) void idle(void)
{
    wrmsr(0x83e, 3);
    wrmsr(0x832, 0x20000 | VEC_TIMER);
    wrmsr(0x838, 31250);
    for (;;)
        ASM("sti; hlt");
}

void ap_main(u64 n)
{
    this_cpu(n);
    cpus_up++;
    idle();
}

/* A thread of the kernel's own, which is preempted wherever it is. */
static void worker(u64 seed)
{
    u64 sum = seed;
    for (u64 n = 1;; n++) {
        for (u64 i = 0; i < 20000; i++)
            sum = (sum ^ i) * 0x9e3779b97f4a7c15ul + n;
        if (sum == 1)
            print("one\n");
        schedule(1);
    }
}

void rust_main(void)
{
    print("rusty64\n");
    gdt[1] = 0x00209a0000000000;
    gdt[2] = 0x0000920000000000;
    gdt[3] = 0x0000f20000000000;
    gdt[4] = 0x0020fa0000000000;
    for (int n = 0; n < 256; n++)
        gate(n, n >= 32 ? (void *)spurious : n == 8 || (n >= 10 && n < 14) || n == 17 ? (void *)dead_with_code : (void *)dead);
    gate(14, (void *)page_fault);
    gate(VEC_TIMER, timer_entry);
    gate(VEC_POKE, (void *)poked);
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
    __builtin_memcpy(VIRT(0x2000000), user_image, (u64)user_bytes);
    for (u64 n = 0; n < 10; n++)
        spawn((int)(n & 1), 0x400000, n >> 1);
    spawn(-1, (u64)worker, 1);
    spawn(-1, (u64)worker, 2);
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
    print("rusty64: all CPUs are up\n");
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
