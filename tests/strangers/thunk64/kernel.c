/* A kernel of today: page tables of user code's own, trampoline stacks, GS read and written by name, thunks for
 * every indirect jump and return. Threads, and what is kept of them while they do not run, are objects of slabs. */
typedef unsigned long u64;
typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned char u8;

#define CPUS 3
#define SPACES 3
#define UPPER 0xffffffff80000000ul
#define PHYS(p) ((u64)(p) - UPPER)
#define VIRT(p) ((void *)((u64)(p) + UPPER))
#define DEMAND 0x800000ul
#define USER_END 0x7ffffffff000ul
#define TICK 0x50
#define CALL 0x51
#define KICK 0x52
#define STACK 8192ul
#define ASM asm volatile

struct frame { u64 rbp, rbx, r15, r14, r13, r12, r11, r10, r9, r8, rax, rcx, rdx, rsi, rdi, code, rip, cs, flags, rsp, ss; };

/* What switch_to stores: link, rbp, r13, r15, r12, rbx, r14, rsp. */
struct node { struct node *older; u64 reg[7]; void *fx; u64 fs, gs; };
struct pending { struct pending *older; void *fx; u64 at; };

enum { READY, BLOCKED, DEAD };
struct thread {
    struct node *node; /* known to entry.S */
    struct thread *next, *all;
    u8 *stack;
    u64 top, cr3, handler, wake, fs, seed;
    struct pending *handling;
    int space, cpu, last, signals, queued, pinned, id;
    volatile int state, on_cpu;
};

struct work { struct work *next; struct thread *thread; int to; };

/* Known to entry.S: scratch 8, top 16, trampoline 32, frame 40. Mapped in both page tables. */
struct cpu {
    struct cpu *self;
    u64 scratch, top;
    struct thread *current;
    u64 trampoline;
    struct frame *frame;
    u64 id, polls, in_nmi;
    struct thread *idle, *queue;
    struct work *work;
    int lock, work_lock, resched;
    u64 gdt[16] __attribute__((aligned(16)));
    u32 tss[26] __attribute__((aligned(16)));
    u8 entry[4096] __attribute__((aligned(4096)));
    u8 ist[3][4096] __attribute__((aligned(4096)));
};

extern u64 boot_pml4[], ap_stack, ap_number, gates[][2], fixups[][2];
extern char user_image[], user_bytes[], ap_start[], ap_start_end[], both_start[], both_end[];
extern char call_gate[], behind_swapgs[], the_sysret[], began_user[], began_kernel[];
void switch_to(struct thread *from, struct thread *to, struct node *node);
void give_way(void);
u64 copy_from_user(void *to, u64 from, u64 words);
u64 copy_to_user(u64 to, const void *from, u64 words);

static struct cpu cpus[CPUS] __attribute__((section(".entry.data"), aligned(4096)));
static u64 idt[256][2] __attribute__((section(".entry.data"), aligned(4096)));
u64 bases[CPUS];
static struct thread idles[CPUS];
static u8 idle_stacks[CPUS][STACK] __attribute__((aligned(4096)));
static u64 pml4s[SPACES][2][512] __attribute__((aligned(8192)));
static u64 pdpts[SPACES][512] __attribute__((aligned(4096))), pds[SPACES][512] __attribute__((aligned(4096)));
static u64 demand[SPACES][512] __attribute__((aligned(4096)));
static u64 user_pdpt[512] __attribute__((aligned(4096))), user_pd[512] __attribute__((aligned(4096)));
static u64 user_pt[512] __attribute__((aligned(4096)));
static u8 pages[SPACES][16][4096] __attribute__((aligned(4096)));
static struct thread *all;
static int print_lock, shoot_lock, all_lock, next_id;
static volatile int cpus_up, acks;
static volatile u64 ticks, nmis, nested, traps, finished;

static inline void outb(u16 p, u8 v) { ASM("outb %0, %1" ::"a"(v), "d"(p)); }
static inline u8 inb(u16 p) { u8 v; ASM("inb %1, %0" : "=a"(v) : "d"(p)); return v; }
static inline void wrmsr(u32 m, u64 v) { ASM("wrmsr" ::"c"(m), "a"((u32)v), "d"((u32)(v >> 32)) : "memory"); }
static inline u64 rdmsr(u32 m) { u32 a, d; ASM("rdmsr" : "=a"(a), "=d"(d) : "c"(m)); return a | (u64)d << 32; }
static inline struct cpu *me(void) { struct cpu *c; ASM("movq %%gs:0, %0" : "=r"(c)); return c; }
static inline struct thread *current(void) { struct thread *t; ASM("movq %%gs:24, %0" : "=r"(t)); return t; }

/* With interrupts off. */
static inline void take(int *l) { while (__atomic_exchange_n(l, 1, __ATOMIC_ACQUIRE)) ASM("pause"); }
static inline void drop(int *l) { __atomic_store_n(l, 0, __ATOMIC_RELEASE); }
static inline u64 off(void) { u64 f; ASM("pushfq; popq %0; cli" : "=r"(f) :: "memory"); return f; }
static inline void back(u64 f) { if (f & 0x200) ASM("sti" ::: "memory"); }

static void print(const char *s)
{
    u64 f = off();
    take(&print_lock);
    for (; *s; s++) {
        while (!(inb(0x3fd) & 0x20))
            ;
        outb(0x3f8, (u8)*s);
    }
    drop(&print_lock);
    back(f);
}

static __attribute__((noreturn)) void panic(const char *s)
{
    print(s);
    for (;;)
        ASM("cli; hlt");
}

/* ---- slabs ---- */

struct slab { void *free; int lock; };
static struct slab threads, nodes, fxs, pendings, works, stacks;
static u8 arena[0x100000] __attribute__((aligned(4096)));
static u64 arena_used;

static void fill(struct slab *s, u64 size, u64 count)
{
    u8 *at = arena + arena_used;
    arena_used += (size * count + 4095) & ~4095ul;
    if (arena_used > sizeof arena)
        panic("no memory\n");
    for (u64 n = 0; n < count; n++) {
        void **object = (void **)(at + n * 7 % count * size); /* in an order that tells nothing */
        *object = s->free;
        s->free = object;
    }
}

static void *allot(struct slab *s)
{
    u64 f = off();
    take(&s->lock);
    void **object = s->free;
    if (object)
        s->free = *object;
    drop(&s->lock);
    back(f);
    return object;
}

static void release(struct slab *s, void *object)
{
    u64 f = off();
    take(&s->lock);
    *(void **)object = s->free;
    s->free = object;
    drop(&s->lock);
    back(f);
}

/* ---- run queues ---- */

static void put(struct cpu *c, struct thread *t)
{
    struct thread **at = &c->queue;
    while (*at)
        at = &(*at)->next;
    t->next = 0;
    t->queued = 1;
    *at = t;
}

static void wake(struct thread *t)
{
    u64 f = off();
    struct cpu *c = &cpus[t->cpu];
    take(&c->lock);
    if (t->state == BLOCKED) {
        t->state = READY;
        if (!t->queued)
            put(c, t);
    }
    drop(&c->lock);
    back(f);
}

/* The FPU is saved and loaded at every switch. */
static void *fpu_copy(void)
{
    void *fx = allot(&fxs);
    ASM("fxsaveq (%0)" ::"r"(fx) : "memory");
    return fx;
}

static void fpu_load(void *fx) { ASM("fxrstorq (%0)" ::"r"(fx) : "memory"); }

static u64 read_fs(void) { u64 v; ASM("rdfsbase %0" : "=r"(v)); return v; }
static void write_fs(u64 v) { ASM("wrfsbase %0" ::"r"(v)); }
/* The user's, that lies behind the kernel's. */
static u64 read_gs(void) { u64 v; ASM("swapgs; rdgsbase %0; swapgs" : "=r"(v)); return v; }
static void write_gs(u64 v) { ASM("swapgs; wrgsbase %0; swapgs" ::"r"(v)); }

static void bury(struct thread *t)
{
    struct thread **at = &all;
    take(&all_lock);
    while (*at != t)
        at = &(*at)->all;
    *at = t->all;
    drop(&all_lock);
    while (t->handling) {
        struct pending *p = t->handling;
        t->handling = p->older;
        release(&fxs, p->fx);
        release(&pendings, p);
    }
    release(&stacks, t->stack);
    release(&threads, t);
}

void finish_switch(struct thread *prev, struct thread *next, struct node *node)
{
    struct cpu *c = me();
    c->current = next;
#ifdef BUG_TOP_STALE
    cpus[next->last].top = next->top; /* where it was before it was moved */
#else
    c->top = next->top;
#endif
    next->last = (int)c->id;
#ifndef BUG_FREED_NODE
    release(&nodes, node);
#endif
    (void)node;
    if (prev->state == DEAD) {
        release(&fxs, prev->node->fx);
        release(&nodes, prev->node);
        bury(prev);
    } else {
        __atomic_store_n(&prev->on_cpu, 0, __ATOMIC_RELEASE);
    }
}

/* With interrupts off. */
void schedule(void)
{
    struct cpu *c = me();
    struct thread *prev = c->current, *next;
    take(&c->lock);
    c->resched = 0;
    if (prev != c->idle && prev->state == READY && !prev->queued)
        put(c, prev);
    next = c->queue;
    if (next) {
        c->queue = next->next;
        next->queued = 0;
    } else {
        next = c->idle;
    }
    drop(&c->lock);
    if (next == prev)
        return;
#ifdef BUG_MOVE_EARLY
    for (volatile int n = 0; n < 3000 && !next->pinned; n++)
        ;
#endif
    next->on_cpu = 1;
    struct node *node = allot(&nodes);
    node->fx = fpu_copy();
#ifdef BUG_FS
    node->fs = prev->fs;
#else
    node->fs = read_fs();
#endif
#ifdef BUG_GS
    write_gs(next->node->gs);
    node->gs = read_gs();
#else
    node->gs = read_gs();
    write_gs(next->node->gs);
#endif
    write_fs(next->node->fs);
#ifdef BUG_FPU
    if (next->last != (int)c->id) /* else it is still there */
#endif
    fpu_load(next->node->fx);
    release(&fxs, next->node->fx);
#ifdef BUG_LAZY_CR3
    if (next->cr3 && prev->cr3 && next->cr3 != prev->cr3)
#else
    if (next->cr3) /* a thread of the kernel's own keeps what there is */
#endif
        ASM("movq %0, %%cr3" ::"r"(next->cr3) : "memory");
#ifdef BUG_FREED_NODE
    release(&nodes, next->node);
    for (volatile int n = 0; n < 100; n++)
        ;
#endif
    switch_to(prev, next, node);
}

/* ---- work, which each CPU's worker does ---- */

static int queue_work(struct thread *t, int on, int to)
{
    struct work *w = allot(&works);
    if (!w)
        return 0;
    struct cpu *c = &cpus[on];
    u64 f = off();
    w->thread = t;
    w->to = to;
    take(&c->work_lock);
    w->next = c->work;
    c->work = w;
    drop(&c->work_lock);
    back(f);
    return 1;
}

/* A thread that sleeps until it is elsewhere. */
static void move(struct thread *t, int to)
{
#ifndef BUG_MOVE_EARLY
    while (__atomic_load_n(&t->on_cpu, __ATOMIC_ACQUIRE))
        give_way();
#endif
    t->cpu = to;
    wake(t);
}

/* One of those that wait in this CPU's queue. */
static void push_away(int to)
{
    u64 f = off();
    struct cpu *c = me();
    struct thread *t = 0;
    take(&c->lock);
    for (struct thread **at = &c->queue; *at; at = &(*at)->next)
        if (!(*at)->pinned && !(*at)->on_cpu) {
            t = *at;
            *at = t->next;
            break;
        }
    drop(&c->lock);
    if (t) {
        struct cpu *other = &cpus[to];
        take(&other->lock);
        t->cpu = to;
        put(other, t);
        drop(&other->lock);
    }
    back(f);
}

static void worker(u64 id)
{
    struct cpu *c = &cpus[id];
    for (;;) {
        u64 f = off();
        take(&c->work_lock);
        struct work *w = c->work;
        if (w)
            c->work = w->next;
        drop(&c->work_lock);
        back(f);
        if (w) {
            if (w->thread)
                move(w->thread, w->to);
            else
                push_away(w->to);
            release(&works, w);
            continue;
        }
        for (u64 i = 0; i < 4000; i++)
            ASM("" : "+r"(i));
        give_way();
    }
}

static void wrong(void) { print("CORRUPT\n"); }

#include "../spin64.h"

/* Never gives way. */
static void keeper(u64 seed)
{
    for (u64 n = seed;; n++) {
        spin(n * 0x1234567, 20000);
#ifdef BUG_RED_ZONE
        ASM("movq %%rsp, -16(%%rsp); movl $30000, %%ecx; 1: cmpq -16(%%rsp), %%rsp; loop 1b" ::: "rcx", "memory");
#endif
        ASM("int3");
    }
}

/* ---- threads ---- */

static struct thread *new_thread(int space)
{
    struct thread *t = allot(&threads);
    if (!t)
        return 0;
    *t = (struct thread){.space = space, .state = BLOCKED};
    t->stack = allot(&stacks);
    if (!t->stack) {
        release(&threads, t);
        return 0;
    }
    t->top = (u64)t->stack + STACK;
    t->cr3 = space < 0 ? 0 : PHYS(pml4s[space][0]);
    u64 f = off();
    take(&all_lock);
    t->id = next_id++;
    t->cpu = t->last = t->id % CPUS;
    t->all = all;
    all = t;
    drop(&all_lock);
    back(f);
    t->node = allot(&nodes);
    *t->node = (struct node){.fx = fpu_copy()};
    return t;
}

static struct frame *dress(struct thread *t)
{
    struct frame *r = (struct frame *)t->top - 1;
    u64 *sp = (u64 *)r;
    *--sp = (u64)began_user;
    t->node->reg[6] = (u64)sp;
    return r;
}

static void spawn(int space, u64 kind)
{
    struct thread *t = new_thread(space);
    struct frame *r = dress(t);
    *r = (struct frame){.rip = 0x400000, .rdi = kind, .cs = 0x33, .ss = 0x2b, .flags = 0x202};
    r->rsi = (u64)t->id;
    r->rsp = 0x700000 + (u64)(t->id % 32 + 1) * 0x8000 - 8;
    t->fs = t->node->fs = 0x610000 + (u64)t->id * 0x100;
    t->node->gs = 0x620000 + (u64)t->id * 0x100;
    wake(t);
}

static void spawn_kernel(void (*fn)(u64), u64 argument, int cpu)
{
    struct thread *t = new_thread(-1);
    u64 *sp = (u64 *)t->top - 2;
    *--sp = 0x10;
    *--sp = (u64)fn;
    *--sp = 0x202;
    *--sp = argument;
    *--sp = (u64)began_kernel;
    t->node->reg[6] = (u64)sp;
    t->cpu = cpu;
    t->pinned = fn == worker;
    wake(t);
}

static __attribute__((noreturn)) void leave(void)
{
    off();
    current()->state = DEAD;
    schedule();
    panic("a dead thread runs\n");
}

static u64 clone(struct frame *r)
{
    struct thread *t = new_thread(current()->space);
    if (!t)
        return ~0ul;
    struct frame *c = dress(t);
    *c = *r;
    c->rax = 0;
    c->rsp = r->rdi;
    t->fs = t->node->fs = read_fs();
    u64 f = off();
    t->node->gs = read_gs();
    back(f);
    u64 id = (u64)t->id;
    wake(t);
    return id;
}

/* ---- signals: the frame goes to the user's stack, the FPU's state into a chain of the thread's ---- */

static void start_anew(struct frame *r)
{
    *r = (struct frame){.rip = 0x400000, .rdi = 3, .cs = 0x33, .ss = 0x2b, .flags = 0x202, .rsp = r->rsp};
    r->rsp = 0x700000 + (u64)(current()->id % 32 + 1) * 0x8000 - 8;
}

static void deliver(struct thread *t, struct frame *r)
{
    struct pending *p = allot(&pendings);
    u64 at = ((r->rsp - 128 - sizeof *r) & ~15ul) - 8;
    t->signals = 0;
    if (!p)
        return;
    if (copy_to_user(at, r, sizeof *r / 8))
        panic("no stack for a signal\n");
    off();
    p->fx = fpu_copy();
    p->at = at;
    p->older = t->handling;
    t->handling = p;
    r->rip = t->handler;
    r->rsp = at;
    r->flags &= ~0x500ul;
}

static void sigreturn(struct frame *r)
{
    struct thread *t = current();
    struct pending *p = t->handling;
    struct frame f;
    if (!p || copy_from_user(&f, p->at, sizeof f / 8))
        panic("a return from no signal\n");
    t->handling = p->older;
    u64 i = off();
#ifndef BUG_SIGNAL_FPU
    fpu_load(p->fx);
#endif
    back(i);
    release(&fxs, p->fx);
    release(&pendings, p);
    *r = f;
    r->cs |= 3, r->ss = 0x2b;
#ifdef BUG_SIGNAL_IOPL
    r->flags |= 0x202;
#else
    r->flags = (f.flags & 0xdd5) | 0x202;
#endif
    if (r->rip >= USER_END)
#ifdef BUG_SYSRET_CANON
        r->rcx = r->rip, r->r11 = r->flags;
#else
        start_anew(r);
#endif
}

/* Before every return to user code, with interrupts off at the end. */
static void exit_work(struct frame *r)
{
    for (;;) {
        off();
        struct thread *t = current();
        if (me()->resched)
            schedule();
        else if (t->signals && t->handler && !t->handling)
            deliver(t, r);
        else
            return;
    }
}

/* ---- interrupts ---- */

struct frame *to_thread_stack(const struct frame *from)
{
    struct frame *to = (struct frame *)me()->top - 1;
    *to = *from;
#ifdef BUG_COPY_RSP
    to->rsp = from->rsp + (from->code == ~0ul ? 0 : 8);
#endif
    me()->frame = to;
    return to;
}

struct frame *from_failed_iret(const struct frame *from)
{
    struct frame *to = (struct frame *)me()->top - 1;
    const u64 *words = (const u64 *)from->rsp;
    *to = *from;
    to->rip = words[0], to->cs = words[1], to->flags = words[2], to->rsp = words[3], to->ss = words[4];
    me()->frame = to;
    return to;
}

static void tick(struct cpu *c)
{
    c->resched = 1;
    if (c->id)
        return;
    if (++ticks == 3000)
        print("thunk64: thought\n");
    take(&all_lock);
    for (struct thread *t = all; t; t = t->all) {
        if (t->handler && (ticks + (u64)t->id) % 8 == 0)
            t->signals = 1;
        if (t->wake && t->wake <= ticks) {
            t->wake = 0;
            wake(t);
        }
    }
    drop(&all_lock);
    if (ticks % 4 == 0)
        for (u64 n = 0; n < CPUS; n++)
            queue_work(0, (int)n, (int)((n + 1) % CPUS));
    if (ticks % 3 == 0)
        wrmsr(0x830, 0xc0400); /* NMIs to the others */
    if (ticks % 3 == 1)
        wrmsr(0x830, 0x400); /* and to this one */
    if (ticks % 5 == 0)
        wrmsr(0x830, 0xc0000 | KICK);
}

static void page_fault(struct frame *r)
{
    u64 at;
    ASM("movq %%cr2, %0" : "=r"(at));
    if (r->flags & 0x200)
        ASM("sti");
    u64 n = (at - DEMAND) >> 12;
    int p = current()->space;
    if (p >= 0 && n < 16) {
        demand[p][n] = PHYS(pages[p][n]) | 7;
    } else {
        u64 (*e)[2] = fixups;
        while ((*e)[0] && (*e)[0] != r->rip)
            e++;
        if (r->cs & 3 || !(*e)[0])
            panic("page fault\n");
        r->rip = (*e)[1];
    }
    off();
}

/* Whether kernel code is left by a far return. */
u64 handle(struct frame *r, u64 n)
{
    struct cpu *c = me();
    c->polls++;
    switch (n) {
    case TICK:
        wrmsr(0x80b, 0);
        tick(c);
        break;
    case CALL:
        ASM("movq %%cr3, %%rax; movq %%rax, %%cr3" ::: "rax", "memory");
        __atomic_fetch_add(&acks, 1, __ATOMIC_SEQ_CST);
        wrmsr(0x80b, 0);
        break;
    case KICK:
        c->resched = 1;
        wrmsr(0x80b, 0);
        break;
    case 1:
        traps++;
        ASM("movq %0, %%dr6" ::"r"(0xffff0ff0ul));
        break;
    case 2:
        nmis++;
        return 0; /* in haste: no work, and so no switch */
    case 3:
        break;
    case 6: /* an instruction that is carried out here */
        r->rax = (u64)current()->id;
        r->rip += 2;
        break;
    case 13: /* a context that a signal handler gave back is none */
        if (!(r->cs & 3))
            panic("general protection\n");
        start_anew(r);
        break;
    case 14:
        page_fault(r);
        break;
    }
    if (r->cs & 3) {
        exit_work(r);
        return 0;
    }
    struct thread *t = current();
    int own = r->rsp - (u64)t->stack < STACK && r->flags & 0x200 && !(r->flags & 0x100);
    if (own && (n == TICK || n == KICK) && me()->resched)
        schedule();
    return own && t->space < 0;
}

void handle_paranoid(struct frame *r, u64 n)
{
    struct cpu *c = me();
    c->polls++;
    if (n == 8)
        panic("double fault\n");
    if (n == 1) {
        traps++;
        ASM("movq %0, %%dr6" ::"r"(0xffff0ff0ul));
        r->flags |= 0x10000;
        if (traps % 4 == 0)
            ASM("int3");
        if (traps % 32 == 0)
            wrmsr(0x830, c->id << 32 | 0x400);
        return;
    }
    nmis++;
    if (c->in_nmi) {
        nested++;
        return;
    }
    c->in_nmi = 1;
    if (nmis % 4 == 0)
        ASM("int3"); /* whose iret lets NMIs in again */
    if (nmis % 8 == 0) {
        wrmsr(0x830, c->id << 32 | 0x400);
        for (volatile int i = 0; i < 100; i++)
            ;
    }
    c->in_nmi = 0;
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

typedef u64 call_fn(struct thread *t, struct frame *r);

static u64 call_id(struct thread *t, struct frame *r) { (void)r; return (u64)t->id; }
static u64 call_yield(struct thread *t, struct frame *r) { (void)t, (void)r; off(); me()->resched = 1; return 0; }
static u64 call_wrong(struct thread *t, struct frame *r) { (void)t, (void)r; wrong(); return 0; }
static u64 call_exit(struct thread *t, struct frame *r) { (void)t, (void)r; leave(); }
static u64 call_clone(struct thread *t, struct frame *r) { (void)t; return clone(r); }

static u64 call_peek(struct thread *t, struct frame *r)
{
    u64 words[2];
    (void)t;
    return copy_from_user(words, r->rdi, 2) ? ~0ul : words[0] ^ words[1];
}

static u64 call_unmap(struct thread *t, struct frame *r)
{
    (void)r;
    for (int n = 0; n < 16; n++)
        demand[t->space][n] = 0;
    shoot_down();
    ASM("movq %%cr3, %%rax; movq %%rax, %%cr3" ::: "rax", "memory");
    return 0;
}

static u64 call_set_fs(struct thread *t, struct frame *r)
{
    t->fs = r->rdi;
    write_fs(r->rdi);
    return 0;
}

static u64 call_handler(struct thread *t, struct frame *r) { t->handler = r->rdi; return 0; }
static u64 call_return(struct thread *t, struct frame *r) { (void)t; sigreturn(r); return r->rax; }

/* A signal ends it, and it is made again. */
static u64 call_sleep(struct thread *t, struct frame *r)
{
    u64 until = ticks + r->rdi;
    while (ticks < until) {
        if (t->signals && t->handler && !t->handling) {
            r->rip -= 2;
            return r->code;
        }
        u64 f = off();
        t->state = BLOCKED;
        t->wake = ticks + 1;
        schedule();
        back(f);
    }
    return 0;
}

/* A breakpoint at the one or the other delicate place, on this CPU. */
static u64 call_break(struct thread *t, struct frame *r)
{
    u64 f = off();
    (void)t;
    ASM("movq %0, %%dr0; movq %1, %%dr1; movq %2, %%dr7" ::"r"(the_sysret), "r"(behind_swapgs), "r"(r->rdi & 0xa));
    back(f);
    return 0;
}

static u64 call_move(struct thread *t, struct frame *r)
{
    u64 f = off();
    t->state = BLOCKED;
    int to = (int)(r->rdi % CPUS);
    if (!queue_work(t, to, to))
        t->state = READY;
    schedule();
    back(f);
    return (u64)t->cpu;
}

static call_fn *const calls[] = {call_id, call_yield, call_wrong, call_peek, call_unmap, call_set_fs, call_handler,
    call_return, call_sleep, call_clone, call_exit, call_break, call_move};

/* Whether sysret will do. */
u64 system_call(struct frame *r)
{
    struct thread *t = current();
    me()->frame = r;
    ASM("sti");
    if (r->code < sizeof calls / sizeof *calls)
        r->rax = calls[r->code](t, r);
    exit_work(r);
#if defined BUG_SYSRET_RCX
    return r->rip < USER_END && r->cs == 0x33;
#elif defined BUG_SYSRET_CANON
    return r->rcx == r->rip && r->r11 == r->flags;
#else
    return r->rcx == r->rip && r->r11 == r->flags && r->rip < USER_END && r->cs == 0x33 && !(r->flags & 0x10100);
#endif
}

/* ---- start ---- */

static void this_cpu(u64 n)
{
    struct cpu *c = &cpus[n];
    c->self = c;
    c->id = n;
    c->current = c->idle = &idles[n];
    idles[n].space = -1;
    idles[n].stack = idle_stacks[n];
    idles[n].top = (u64)idle_stacks[n] + STACK;
    idles[n].cpu = idles[n].last = (int)n;
    c->top = idles[n].top;
    c->trampoline = (u64)c->entry + sizeof c->entry;
    bases[n] = (u64)c;
    u64 entry = c->trampoline, ist[3] = {(u64)c->ist[0] + 4080, (u64)c->ist[1] + 4080, (u64)c->ist[2] + 4080};
#ifdef BUG_TRAMPOLINE
    if (n == 2)
        entry = (u64)cpus[1].entry + sizeof c->entry;
#endif
#ifdef BUG_IST_SHARED
    ist[0] = ist[1];
#endif
    c->tss[1] = (u32)entry, c->tss[2] = (u32)(entry >> 32);
    __builtin_memcpy(&c->tss[9], ist, sizeof ist);
    u64 t = (u64)c->tss;
    c->gdt[2] = 0x00af9b000000ffff, c->gdt[3] = 0x00cf93000000ffff;
    c->gdt[5] = 0x00cff3000000ffff, c->gdt[6] = 0x00affb000000ffff;
    c->gdt[8] = 0x67 | (t & 0xffffff) << 16 | 0x89ul << 40 | (t >> 24 & 0xff) << 56;
    c->gdt[9] = t >> 32;
    c->gdt[15] = 0x0040f50000000000 | n;
    struct { u16 limit; u64 base; } __attribute__((packed)) g = {sizeof c->gdt - 1, (u64)c->gdt}, d = {sizeof idt - 1, (u64)idt};
    ASM("lgdt %0; lidt %1; ltr %w2" ::"m"(g), "m"(d), "r"(8 * 8));
    ASM("pushq $16; leaq 1f(%%rip), %%rax; pushq %%rax; lretq; 1: movl $24, %%eax; movl %%eax, %%ss; xorl %%eax, %%eax;"
        "movl %%eax, %%ds; movl %%eax, %%es; movl %%eax, %%fs; movl %%eax, %%gs" ::: "rax", "memory");
    u64 cr4;
    ASM("movq %%cr4, %0; orq $0x310000, %0; movq %0, %%cr4; clac" : "=&r"(cr4)); /* FSGSBASE, SMEP, SMAP */
    ASM("wrgsbase %0" ::"r"(c));
    write_gs(0);
    write_fs(0);
    ASM("movq %0, %%cr3" ::"r"(PHYS(pml4s[0][0])) : "memory");
    wrmsr(0xc0000081, 0x0023001000000000ul);
    wrmsr(0xc0000082, (u64)call_gate);
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
        off();
        schedule();
        ASM("sti; hlt");
    }
}

void ap_main(u64 n)
{
    this_cpu(n);
    cpus_up++;
    while (cpus_up != CPUS - 1)
        ASM("pause");
    idle();
}

void rust_main(void)
{
    print("thunk64\n");
    for (u64 (*e)[2] = gates; (*e)[1]; e++) {
        u64 n = (*e)[0], a = (*e)[1], ist = n == 1 ? 1 : n == 2 ? 2 : n == 8 ? 3 : 0;
        idt[n][0] = (a & 0xffff) | 0x10 << 16 | ist << 32 | (n == 3 ? 0xee00ul : 0x8e00ul) << 32 | (a >> 16 & 0xffff) << 48;
        idt[n][1] = a >> 32;
    }
    outb(0x21, 0xff);
    outb(0xa1, 0xff);
    for (u64 at = (u64)both_start; at < (u64)both_end; at += 4096)
        user_pt[at >> 12 & 511] = PHYS(at) | 3;
    user_pd[0] = PHYS(user_pt) | 3;
    user_pdpt[510] = PHYS(user_pd) | 3;
    for (int p = 0; p < SPACES; p++) {
        pml4s[p][0][511] = boot_pml4[511];
        pml4s[p][1][511] = PHYS(user_pdpt) | 3;
        pml4s[p][0][0] = pml4s[p][1][0] = PHYS(pdpts[p]) | 7;
        pdpts[p][0] = PHYS(pds[p]) | 7;
        pds[p][2] = 0x2000000 | 0x85;
        pds[p][3] = (0x2200000 + (u64)p * 0x200000) | 0x87;
        pds[p][4] = PHYS(demand[p]) | 7;
    }
    __builtin_memcpy(VIRT(0x2000000), user_image, (u64)user_bytes);
    fill(&threads, 256, 30);
    fill(&nodes, 128, 40);
    fill(&fxs, 512, 80);
    fill(&pendings, 64, 40);
    fill(&works, 64, 60);
    fill(&stacks, STACK, 30);
    this_cpu(0);
    for (u64 n = 0; n < 14; n++)
        spawn((int)(n % SPACES), n % 7);
    for (int n = 0; n < CPUS; n++)
        spawn_kernel(worker, (u64)n, n);
    spawn_kernel(keeper, 77, 1);
    spawn_kernel(keeper, 99, 2);
    __builtin_memcpy(VIRT(0x8000), ap_start, (u64)(ap_start_end - ap_start));
    for (u64 n = 1; n < CPUS; n++) {
        ap_stack = (u64)idle_stacks[n] + STACK;
        ap_number = n;
        wrmsr(0x830, n << 32 | 0x4500);
        for (volatile int i = 0; i < 200000; i++)
            ;
        wrmsr(0x830, n << 32 | 0x4608);
        while (cpus_up != (int)n)
            ASM("pause");
    }
    print("thunk64: all CPUs are up\n");
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
