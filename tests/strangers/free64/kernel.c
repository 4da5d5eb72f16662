/* Four CPUs, one queue, kernel code that is preempted like any other; fork copies pages when they are written to. */
typedef unsigned long u64;
typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned char u8;

#define CPUS 4
#define THREADS 24
#define USER 0xffff900000000000ul
#define PAGES 64 /* of a process */
#define FRAMES 1024
#define KSTACK 8192
#define TICK 64
#define POKE 65

struct frame {
    u64 r12, r13, r14, r15, rbx, rbp, rdi, rsi, rdx, rcx, rax, r11, r10, r9, r8, number, error, rip, cs, flags, rsp, ss;
};

struct context { u64 rbx, rbp, r12, r13, r14, r15, rsp, rip; };

enum { FREE, READY, RUNNING, WAITING, IDLE };

struct process {
    u64 top[512] __attribute__((aligned(4096))), third[512], second[512], pages[512];
    u32 used;
};

struct thread {
    u8 fx[512] __attribute__((aligned(16)));
    struct context context;
    u64 stack, fs, until, handler, alarm, every;
    struct process *process;
    u32 state, number, parent;
};

struct cpu {
    u64 number, stack, user_rsp;
    struct thread *running, *idle;
    u32 lapic, armed;
    u64 gdt[9], tss[13 + 1];
} __attribute__((aligned(64)));

extern u64 gates[], boot_pml4[], stack_of_next, number_of_next;
extern char user_image[], user_bytes[], fixups[], fixups_end[], ap_start[], ap_end[];
extern void pvh_entry(void), syscall_gate(void), nmi_gate(void), leave(void);
extern long context_save(struct context *) __attribute__((returns_twice));
extern void context_resume(struct context *) __attribute__((noreturn));
extern u64 peek(u64, u64 *);

static struct process processes[THREADS];
static struct thread threads[THREADS], idlers[CPUS];
static struct cpu cpus[CPUS];
static u8 stacks[THREADS + CPUS][KSTACK] __attribute__((aligned(4096)));
static u8 ist[CPUS][4096] __attribute__((aligned(16)));
static u8 memory[FRAMES][4096] __attribute__((aligned(4096)));
static u16 shared[FRAMES];
static u64 idt[256][2];
static volatile u64 ticks, up;
static volatile u32 lock;
static u32 turn;

static inline void out(u16 p, u8 v) { asm volatile("outb %0, %1" ::"a"(v), "d"(p)); }
static inline void wrmsr(u32 m, u64 v) { asm volatile("wrmsr" ::"c"(m), "a"((u32)v), "d"((u32)(v >> 32)) : "memory"); }
static inline u64 rdmsr(u32 m) { u32 a, d; asm volatile("rdmsr" : "=a"(a), "=d"(d) : "c"(m)); return a | (u64)d << 32; }
static inline u64 flags_off(void) { u64 f; asm volatile("pushfq; popq %0; cli" : "=r"(f)::"memory"); return f; }
static inline void flags_back(u64 f) { if (f & 0x200) asm volatile("sti" ::: "memory"); }
static inline struct cpu *me(void) { u64 n; asm volatile("movq %%gs:0, %0" : "=r"(n)::"memory"); return &cpus[n]; }

static void give(void) { __atomic_store_n(&lock, 0, __ATOMIC_RELEASE); }

/* Whoever holds the lock is not preempted; returns the flags as they were. */
static u64 take(void)
{
    u64 f = flags_off();
    while (__atomic_exchange_n(&lock, 1, __ATOMIC_ACQUIRE))
        asm volatile("pause");
    return f;
}

static void release(u64 f)
{
    give();
    flags_back(f);
}

/* Compilers call these. */
void *memcpy(void *to, const void *from, u64 n)
{
    void *back = to;
    asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(n)::"memory");
    return back;
}

void *memset(void *to, int value, u64 n)
{
    void *back = to;
    asm volatile("rep stosb" : "+D"(to), "+c"(n) : "a"(value) : "memory");
    return back;
}

static void say(const char *s)
{
    while (*s)
        out(0x3f8, (u8)*s++);
}

static __attribute__((noreturn)) void stop(const char *why)
{
    say(why);
    for (;;)
        asm volatile("cli; hlt");
}

static void arm(struct cpu *c)
{
    c->armed = c->running != c->idle || c->number == 0;
    wrmsr(0x838, c->armed ? 40000 : 0);
}

static void poke_idle(void)
{
    for (u32 n = 0; n < CPUS; n++)
        if (cpus[n].running && cpus[n].running == cpus[n].idle && n != me()->number) {
            wrmsr(0x830, (u64)cpus[n].lapic << 32 | POKE);
            return;
        }
}

/* With the lock held and interrupts off; comes back likewise, perhaps on another CPU. */
static __attribute__((noinline)) void pick(void)
{
    struct cpu *c = me();
    struct thread *from = c->running, *to = c->idle;
    for (u32 n = 0; n < THREADS; n++) {
        turn = (turn + 1) % THREADS;
        if (threads[turn].state == READY) {
            to = &threads[turn];
            break;
        }
    }
    if (to == c->idle && from->state == RUNNING) {
        arm(c);
        return;
    }
    if (from->state == RUNNING)
        from->state = READY;
    if (to == from) {
        to->state = RUNNING;
        arm(c);
        return;
    }
    if (to != c->idle)
        to->state = RUNNING;
    asm volatile("fxsave64 %0" : "=m"(from->fx));
#ifndef BUG_FX
    asm volatile("fxrstor64 %0" ::"m"(to->fx));
#endif
    c->running = to;
    arm(c);
    c->stack = to->stack;
#ifdef BUG_RSP0
    if (ticks < 100 || to->number != 4)
#endif
    *(u64 *)((u8 *)c->tss + 4) = to->stack;
#ifdef BUG_FS
    if (ticks < 100 || to->number != 5)
#endif
    wrmsr(0xc0000100, to->fs);
    asm volatile("movq %0, %%cr3" ::"r"(to->process ? (u64)to->process->top : (u64)boot_pml4) : "memory");
    if (context_save(&from->context) == 0)
        context_resume(&to->context);
}

static void yield(void)
{
    u64 f = take();
    pick();
    release(f);
}

static void first_run(void)
{
    give();
    asm volatile("movq %0, %%rsp; jmp leave" ::"r"((struct frame *)me()->stack - 1));
    __builtin_unreachable();
}

static void sleep_until(u64 when)
{
    u64 f = take();
    me()->running->until = when;
    me()->running->state = WAITING;
    pick();
    release(f);
}

/* Pages */

static u32 frame_of(u64 entry) { return (u32)(((entry & 0xfffffff000ul) - (u64)memory) >> 12); }

static u32 new_page(void)
{
    for (u32 n = 0; n < FRAMES; n++)
        if (!shared[n]) {
            shared[n] = 1;
            return n;
        }
    stop("free64: no memory\n");
}

static void map(struct process *p, u32 page, u32 frame, u64 bits) { p->pages[page] = (u64)memory[frame] | bits; }

static struct process *new_process(void)
{
    for (u32 n = 0; n < THREADS; n++) {
        struct process *p = &processes[n];
        if (p->used)
            continue;
        p->used = 1;
        p->top[0] = boot_pml4[0];
        p->top[USER >> 39 & 511] = (u64)p->third | 7;
        p->third[0] = (u64)p->second | 7;
        p->second[0] = (u64)p->pages | 7;
        return p;
    }
    stop("free64: no process\n");
}

static void drop_pages(struct process *p)
{
    for (u32 n = 0; n < PAGES; n++) {
        if (p->pages[n] & 1)
            shared[frame_of(p->pages[n])]--;
        p->pages[n] = 0;
    }
}

static void load_image(struct process *p)
{
    for (u32 n = 0; n * 4096ul < (u64)user_bytes; n++) {
        u32 frame = new_page();
        for (u32 i = 0; i < 4096; i++)
            memory[frame][i] = (u8)user_image[n * 4096ul + i];
        map(p, n, frame, 7);
    }
    map(p, PAGES - 2, new_page(), 7);
    map(p, PAGES - 1, new_page(), 7);
}

static int page_fault(struct process *p, u64 at)
{
    u64 page = (at - USER) >> 12;
    if (!p || page >= PAGES)
        return 0;
    u64 held = take(), old = p->pages[page];
    if (!(old & 1)) {
        map(p, (u32)page, new_page(), 7);
    } else if (!(old & 2)) {
        u32 was = frame_of(old), now = was;
        if (shared[was] > 1) {
            now = new_page();
            for (u32 i = 0; i < 4096; i++)
                memory[now][i] = memory[was][i];
            shared[was]--;
        }
        map(p, (u32)page, now, 7);
    }
    release(held);
    asm volatile("invlpg (%0)" ::"r"(at) : "memory");
    return 1;
}

/* Threads */

static struct thread *new_thread(struct process *p)
{
    for (u32 n = 0; n < THREADS; n++) {
        struct thread *t = &threads[n];
        if (t->state != FREE)
            continue;
        t->number = n;
        t->state = IDLE;
        t->process = p;
        t->stack = (u64)stacks[n] + KSTACK;
        t->handler = t->alarm = t->every = t->fs = 0;
        t->context = (struct context){.rsp = t->stack - sizeof(struct frame) - 8, .rip = (u64)first_run};
        *(u32 *)(t->fx + 24) = 0x1f80;
        *(u16 *)t->fx = 0x37f;
        return t;
    }
    stop("free64: no thread\n");
}

static void begin(struct thread *t, u64 rip, u64 rsp, u64 argument)
{
    struct frame *f = (struct frame *)t->stack - 1;
    for (u32 i = 0; i < sizeof *f / 8; i++)
        ((u64 *)f)[i] = 0;
    f->rip = rip, f->rsp = rsp, f->rdi = argument;
    f->cs = t->process ? 0x23 : 8, f->ss = t->process ? 0x1b : 0x10;
    f->flags = 0x202;
    t->state = READY;
}

static u64 fork(struct frame *f)
{
    u64 held = take();
    struct thread *old = me()->running;
    struct process *p = new_process();
    for (u32 n = 0; n < PAGES; n++)
        if (old->process->pages[n] & 1) {
            old->process->pages[n] &= ~2ul;
            p->pages[n] = old->process->pages[n];
            shared[frame_of(p->pages[n])]++;
        }
    struct thread *t = new_thread(p);
    struct frame *copy = (struct frame *)t->stack - 1;
    *copy = *f;
    copy->rax = 0;
    t->fs = old->fs;
    t->parent = old->number;
    asm volatile("fxsave64 %0" : "=m"(t->fx));
    t->state = READY;
    poke_idle();
    release(held);
    asm volatile("movq %0, %%cr3" ::"r"(old->process->top) : "memory");
    return t->number;
}

static void end(void)
{
    take();
    struct thread *t = me()->running;
    drop_pages(t->process);
    t->process->used = 0;
    if (threads[t->parent].state == WAITING && threads[t->parent].until == ~0ul)
        threads[t->parent].state = READY;
    t->state = FREE;
    pick();
    stop("free64: risen from the dead\n");
}

/* Signals: all registers go onto the user's stack, below the red zone. */
static void signal(struct frame *f)
{
    struct thread *t = me()->running;
    if (!t->every || ticks < t->alarm)
        return;
    t->alarm = ticks + t->every;
    struct frame *to = (struct frame *)((f->rsp - 128 - sizeof *f) & ~15ul);
    *to = *f;
    f->rdi = (u64)to;
    f->rsp = (u64)to - 8;
    f->rip = t->handler;
}

static const u64 KEPT = 0xcd5;

static void put_context(struct frame *f, const struct frame *from)
{
    u64 flags = f->flags;
    *f = *from;
    f->cs = 0x23, f->ss = 0x1b;
    f->flags = (flags & ~KEPT) | (from->flags & KEPT);
#ifdef BUG_IOPL
    f->flags = from->flags | 0x3000;
#endif
}

int call(struct frame *f)
{
    struct thread *t = me()->running;
    u64 value;
    int whole = f->rax == 6 || f->rax == 7;
    if (!whole) /* a context is exchanged with interrupts off */
        asm volatile("sti" ::: "memory");
    switch (f->rax) {
    case 0: yield(); f->rax = ticks; break;
    case 1: f->rax = fork(f); break;
    case 2: end(); break;
    case 3: /* exec */
        value = take();
        drop_pages(t->process);
        load_image(t->process);
        release(value);
        asm volatile("movq %0, %%cr3" ::"r"(t->process->top) : "memory");
        value = f->rdi;
        for (u32 i = 0; i < 15; i++)
            ((u64 *)f)[i] = 0;
        f->rdi = value;
        f->rip = USER;
        f->rsp = USER + PAGES * 4096ul;
        f->flags = 0x202;
        whole = 1;
        break;
    case 4: f->rax = peek(f->rdi, &value); break;
    case 5: t->handler = f->rdi; t->every = f->rsi; t->alarm = ticks + f->rsi; f->rax = 0; break;
    case 6: /* the return of a signal's handler, and any other change of context */
    case 7:
        put_context(f, (struct frame *)f->rdi);
        break;
    case 8: sleep_until(ticks + f->rdi); f->rax = ticks; break;
    case 9: sleep_until(~0ul); f->rax = 0; break;
    case 10: wrmsr(0xc0000100, t->fs = f->rdi); f->rax = 0; break;
    case 11: say((const char *)f->rdi); f->rax = 0; break;
    default: f->rax = t->number;
    }
    asm volatile("cli" ::: "memory");
    signal(f);
#ifdef BUG_CALL_R12
    f->r12 ^= 8;
#endif
#ifdef BUG_SYSRET_IF
    if (ticks > 100)
        f->flags &= ~0x200ul;
#endif
#ifdef BUG_SYSRET_FLAGS
    f->flags = 0x202;
#endif
    return whole || f->rdi == (u64)f->rsp + 8;
}

void trap(struct frame *f)
{
    struct cpu *c = me();
    u64 at;
    switch (f->number) {
    case 14:
        asm volatile("movq %%cr2, %0" : "=r"(at));
        struct process *p = c->running->process;
        if (f->flags & 0x200)
            asm volatile("sti" ::: "memory");
        if (page_fault(p, at))
            break;
        for (u32 *fix = (u32 *)fixups; fix < (u32 *)fixups_end; fix += 2)
            if (f->rip == (u64)pvh_entry + fix[0]) {
                f->rip = (u64)pvh_entry + fix[1];
                return;
            }
        stop("free64: page fault\n");
    case TICK:
        wrmsr(0x80b, 0);
        if (c->number == 0) {
            u64 now = ++ticks;
            if (now == 500)
                say("free64: over\n");
            take();
            for (u32 n = 0; n < THREADS; n++)
                if (threads[n].state == WAITING && threads[n].until <= now) {
                    threads[n].state = READY;
                    poke_idle();
                }
            give();
            if (now % 16 == 0) /* the watchdog */
                wrmsr(0x830, (u64)cpus[now / 16 % CPUS].lapic << 32 | 4 << 8);
        }
        yield();
        break;
    case POKE:
        wrmsr(0x80b, 0);
        yield();
        break;
    case 255:
        return;
    default:
        stop("free64: unexpected trap\n");
    }
    asm volatile("cli" ::: "memory");
    if (f->cs & 3)
        signal(f);
#ifdef BUG_FAULT_IF
    if (f->number == 14 && f->cs & 3 && ticks > 100)
        f->flags &= ~0x200ul;
#endif
#ifdef BUG_TICK_RSP
    if (f->number == TICK && f->cs & 3 && ticks > 100)
        f->rsp -= 16;
#endif
}

/* Kernel threads, preempted anywhere but where they have turned interrupts off. */
static void worker(u64 n)
{
    for (u64 i = 1;; i++) {
        u64 a = i * n, b = i ^ n, c = ~i, d = i + 7;
        for (u32 k = 0; k < 20000; k++)
            asm volatile("" : "+r"(a), "+r"(b), "+r"(c), "+r"(d));
        if (a != i * n || b != (i ^ n) || c != ~i || d != i + 7)
            say("CORRUPT\n");
        if (i % 8 == 0)
            sleep_until(ticks + 1);
    }
}

static void idle(void)
{
    for (;;)
        asm volatile("sti; hlt");
}

static void start_cpu(u64 n)
{
    struct cpu *c = &cpus[n];
    c->number = n;
    u64 t = (u64)c->tss;
    *(u64 *)((u8 *)c->tss + 36) = (u64)ist[n] + sizeof ist[n];
    c->gdt[1] = 0x00209a0000000000, c->gdt[2] = 0x0000920000000000;
    c->gdt[3] = 0x0000f20000000000, c->gdt[4] = 0x0020fa0000000000;
    c->gdt[5] = 0x67 | (t & 0xffffff) << 16 | 0x89ul << 40 | (t >> 24 & 0xff) << 56;
    c->gdt[6] = t >> 32;
    struct { u16 limit; u64 base; } __attribute__((packed)) g = {sizeof c->gdt - 1, (u64)c->gdt}, d = {4095, (u64)idt};
    asm volatile("lgdt %0; lidt %1; ltr %w2; movw %w3, %%fs; movw %w3, %%gs" ::"m"(g), "m"(d), "r"(0x28), "r"(0));
    wrmsr(0xc0000101, (u64)c);
#ifdef BUG_STAR
    wrmsr(0xc0000081, 0x8ul << 32 | 0x8ul << 48);
#else
    wrmsr(0xc0000081, 0x8ul << 32 | 0x10ul << 48);
#endif
    wrmsr(0xc0000082, (u64)syscall_gate);
#ifdef BUG_FMASK
    wrmsr(0xc0000084, 0x200);
#else
    wrmsr(0xc0000084, 0x44700);
#endif
    wrmsr(0x1b, rdmsr(0x1b) | 0xc00);
    wrmsr(0x80f, 0x1ff);
    c->lapic = (u32)rdmsr(0x802);
    wrmsr(0x83e, 3);
    wrmsr(0x832, TICK);
    struct thread *i = &idlers[n];
    i->state = IDLE;
    i->stack = (u64)stacks[THREADS + n] + KSTACK;
    *(u32 *)(i->fx + 24) = 0x1f80;
    *(u16 *)i->fx = 0x37f;
    c->stack = i->stack;
    *(u64 *)((u8 *)c->tss + 4) = i->stack;
    c->idle = i;
    c->running = i;
    arm(c);
    asm volatile("movq %0, %%rsp; movq %1, %%rax; jmp *%%rax" ::"r"(i->stack - 8), "r"(idle) : "rax", "memory");
    __builtin_unreachable();
}

void other_cpu(u64 n)
{
    up++;
    start_cpu(n);
}

void kernel(void)
{
    say("free64\n");
    out(0x21, 0xff);
    out(0xa1, 0xff);
    for (u64 *g = gates; g[1]; g += 2) {
        idt[g[0]][0] = (g[1] & 0xffff) | 8 << 16 | 0x8e00ul << 32 | (g[1] >> 16 & 0xffff) << 48;
        idt[g[0]][1] = g[1] >> 32;
    }
    u64 nmi = (u64)nmi_gate;
    idt[2][0] = (nmi & 0xffff) | 8 << 16 | 1ul << 32 | 0x8e00ul << 32 | (nmi >> 16 & 0xffff) << 48;
    for (u64 n = 0; ap_start + n < ap_end; n++)
        ((u8 *)0x8000)[n] = (u8)ap_start[n];
    wrmsr(0x1b, rdmsr(0x1b) | 0xc00);
    for (u64 n = 1; n < CPUS; n++) {
        number_of_next = n;
        stack_of_next = (u64)stacks[THREADS + n] + KSTACK;
        wrmsr(0x830, (u64)n << 32 | 0x4500);
        for (volatile int i = 0; i < 100000; i++)
            ;
        wrmsr(0x830, (u64)n << 32 | 0x4608);
        while (up < n)
            asm volatile("pause");
    }
    for (u64 n = 0; n < 8; n++) {
        struct process *p = new_process();
        load_image(p);
        begin(new_thread(p), USER, USER + PAGES * 4096ul, n);
    }
    begin(new_thread(0), (u64)worker, (u64)stacks[8] + KSTACK - 264, 3);
    begin(new_thread(0), (u64)worker, (u64)stacks[9] + KSTACK - 264, 5);
    start_cpu(0);
}
