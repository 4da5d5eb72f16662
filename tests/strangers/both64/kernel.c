/* 64-bit and 32-bit processes side by side. Selectors and bases are loaded at a switch only where they change. */
#ifndef CPUS
#define CPUS 2
#endif
#include "../base64.h"

#define THREADS 13
#define SPACES 2
#define DEMAND 0x800000ul
#define TICK 0x40

struct saved { u64 r15, r14, r13, r12, r11, r10, r9, r8, rbp, rdi, rsi, rbx, rdx, rcx, rax, number, code, rip, cs, rflags, rsp, ss; };
struct thread {
    u64 sp, top, cr3, wake, fs_base, gs_base, tls;
    u16 ds, es, fs, gs;
    int state, space, narrow;
    u64 number;
    u8 fx[512] __attribute__((aligned(16)));
};
struct cpu {
    struct cpu *self;
    u64 user_sp, stack;
    struct thread *now, *idle;
    u64 id;
    u64 gdt[12];
};
enum { FREE, READY, RUNNING, ASLEEP };

extern char user_image[], user_bytes[], gates[], syscall_entry[], compat_entry[], thread_start[], user32_begin[];
void swtch(u64 *from, u64 to);

static struct cpu cpus[CPUS];
static struct thread threads[THREADS], idles[CPUS];
static u8 stacks[THREADS][8192] __attribute__((aligned(4096))), idle_stacks[CPUS][8192] __attribute__((aligned(4096)));
static u64 pml4s[SPACES][512] __attribute__((aligned(4096))), pdpts[SPACES][512] __attribute__((aligned(4096)));
static u64 pds[SPACES][512] __attribute__((aligned(4096))), demand[SPACES][512] __attribute__((aligned(4096)));
static u8 pages[SPACES][16][4096] __attribute__((aligned(4096)));
static u64 ldt[2];
static int queue, printing;
static u64 ticks, turn;

static inline struct cpu *me(void) { struct cpu *c; ASM("movq %%gs:0, %0" : "=r"(c)); return c; }

static void say(const char *s)
{
    u64 f = irq_off();
    spin_take(&printing);
    print(s);
    spin_drop(&printing);
    irq_back(f);
}

static u64 segment(u64 base, u64 access) { return (base & 0xffffff) << 16 | (base >> 24 & 0xff) << 56 | access << 40 | 0x00cf00000000fffful; }

static void load_gs(u16 to)
{
#ifdef BUG_LOAD_GS
    if (ticks > 100 && to) {
        ASM("movl %0, %%gs" ::"r"((u32)to));
        return;
    }
#endif
    ASM("swapgs; movl %0, %%gs; mfence; swapgs" ::"r"((u32)to) : "memory");
}

static void segments(struct cpu *c, struct thread *from, struct thread *to)
{
    u32 s;
    ASM("movl %%ds, %0" : "=r"(s)); from->ds = (u16)s;
    ASM("movl %%es, %0" : "=r"(s)); from->es = (u16)s;
    ASM("movl %%fs, %0" : "=r"(s)); from->fs = (u16)s;
    ASM("movl %%gs, %0" : "=r"(s)); from->gs = (u16)s;
    from->fs_base = rdmsr(MSR_FS);
    from->gs_base = rdmsr(MSR_KGS);
#ifdef BUG_TLS
    if (to->number != 3 || ticks < 200)
#endif
    c->gdt[8] = segment(to->tls, 0xf2);
#ifdef BUG_DS
    if (to->number != 5 || ticks < 200)
#endif
    if (from->ds | to->ds)
        ASM("movl %0, %%ds" ::"r"((u32)to->ds));
    if (from->es | to->es)
        ASM("movl %0, %%es" ::"r"((u32)to->es));
#ifdef BUG_FS_SEL
    if (to->fs && from->fs == to->fs && ticks > 200)
        to->fs = 0x23;
#endif
    if (from->fs | to->fs)
        ASM("movl %0, %%fs" ::"r"((u32)to->fs));
#ifdef BUG_FS_BASE
    if (!to->fs && (ticks < 200 || from->fs))
#else
    if (!to->fs)
#endif
        wrmsr(MSR_FS, to->fs_base);
    if (from->gs | to->gs)
        load_gs(to->gs);
    if (!to->gs)
        wrmsr(MSR_KGS, to->gs_base);
}

static void settle(void) { spin_drop(&queue); }
void began(void) { settle(); }

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
        c->stack = to->top;
        set_rsp0(c->id, to->top);
        segments(c, t, to);
        ASM("fxsaveq %0" : "=m"(t->fx));
        ASM("fxrstorq %0" ::"m"(to->fx));
        ASM("movq %0, %%cr3" ::"r"(to->cr3) : "memory");
        swtch(&t->sp, to->sp);
    }
    settle();
    irq_back(f);
}

void on_trap(struct saved *s)
{
    u64 at;
    struct cpu *c = me();
    void on_call(struct saved *s);
    switch (s->number) {
    case 0x80: on_call(s); return;
    case TICK:
        wrmsr(0x80b, 0);
        if (c->id == 0) {
            if (++ticks == 2500)
                say("both64: both done\n");
            for (u64 n = 0; n < THREADS; n++)
                if (threads[n].state == ASLEEP && threads[n].wake <= ticks)
                    threads[n].state = READY;
        }
        if (s->cs & 3)
            yield(READY);
        return;
    case 127: case 3: return;
    case 6: s->rip += 2; return;
    case 14:
        ASM("movq %%cr2, %0" : "=r"(at));
        if (at - DEMAND < 0x10000) {
            int p = c->now->space;
            demand[p][(at - DEMAND) >> 12] = PHYS(pages[p][(at - DEMAND) >> 12]) | 7;
            return;
        }
    }
    panic("trap\n");
}

void on_call(struct saved *s)
{
    struct thread *t = me()->now;
    u64 a = t->narrow ? (u32)s->rbx : s->rdi, b = s->rsi;
    u64 nr = (u32)s->rax;
    ASM("sti");
    switch (nr) {
    case 0: s->rax = t->number; break;
    case 1: yield(READY); s->rax = 0; break;
    case 2: say("CORRUPT\n"); break;
    case 3: s->rax = *(volatile u64 *)a + b; break;
    case 4:
        for (u64 n = 0; n < 16; n++)
            demand[t->space][n] = 0;
        ASM("movq %0, %%cr3" ::"r"(t->cr3) : "memory");
        s->rax = 0;
        break;
    case 6: t->wake = ticks + a; yield(ASLEEP); s->rax = 0; break;
    case 7: {
        u64 x = a;
        for (u64 n = 0; n < b; n++)
            x = x * 6364136223846793005ul + n;
        s->rax = x;
        break;
    }
    }
    ASM("cli");
}

static void spawn(u64 n)
{
    struct thread *t = &threads[n];
    t->number = n;
    t->narrow = n & 1;
    t->space = (int)(n >> 1 & 1);
    t->cr3 = PHYS(pml4s[t->space]);
    t->top = (u64)stacks[n] + sizeof stacks[n];
    t->tls = 0x610000 + n * 0x100;
    struct saved *s = (struct saved *)t->top - 1;
    *s = (struct saved){.rip = 0x400000, .cs = 0x2b, .rflags = 0x202, .rsp = 0x700000 + (n + 1) * 0x8000 - 8, .ss = 0x23, .rdi = n};
    u8 *memory = VIRT(0x2400000 + (u64)t->space * 0x400000);
    *(u64 *)(memory + 0x10000 + n * 0x100) = n;
    *(u64 *)(memory + 0x20000 + n * 0x100) = n + 100;
    *(u64 *)(memory + 0x30000) = 0x1d7;
    if (t->narrow) {
        s->rip = (u64)user32_begin, s->cs = 0x1b;
        t->ds = t->es = 0x23, t->fs = 7, t->gs = 0x43;
    } else
        t->fs_base = 0x610000 + n * 0x100, t->gs_base = 0x620000 + n * 0x100;
    *(u32 *)(t->fx + 24) = 0x1f80;
    *(u16 *)t->fx = 0x37f;
    u64 *sp = (u64 *)s;
    *--sp = (u64)thread_start;
    sp -= 6;
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
    load_tables(n);
    u64 t = (u64)tss[n], l = (u64)ldt;
    c->gdt[1] = 0x00209a0000000000, c->gdt[2] = 0x0000920000000000, c->gdt[3] = segment(0, 0xfa), c->gdt[4] = segment(0, 0xf2);
    c->gdt[5] = 0x0020fa0000000000;
    c->gdt[6] = 0x67 | (t & 0xffffff) << 16 | 0x89ul << 40 | (t >> 24 & 0xff) << 56, c->gdt[7] = t >> 32;
    c->gdt[8] = segment(0, 0xf2);
    c->gdt[10] = 0xf | (l & 0xffffff) << 16 | 0x82ul << 40 | (l >> 24 & 0xff) << 56, c->gdt[11] = l >> 32;
    struct { u16 limit; u64 base; } __attribute__((packed)) g = {sizeof c->gdt - 1, (u64)c->gdt};
    ASM("lgdt %0; ltr %w1; lldt %w2" ::"m"(g), "r"(0x30), "r"(0x50));
    wrmsr(MSR_GS, (u64)c);
    wrmsr(MSR_KGS, 0);
    wrmsr(0xc0000081, 0x0018000800000000ul);
    wrmsr(0xc0000082, (u64)syscall_entry);
    wrmsr(0xc0000083, (u64)compat_entry);
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
    print("both64\n");
    for (u64 n = 0; n < 128; n++)
        gate(n, gates + 16 * n, n == 3 ? 0xee00 : 0x8e00);
    for (u64 n = 129; n < 256; n++)
        gate(n, gates + 16 * 127, 0x8e00);
    gate(128, gates + 16 * 128, 0xee00);
    outb(0x21, 0xff);
    outb(0xa1, 0xff);
    ldt[0] = segment(0x630000, 0xf2);
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
    print("both64: all CPUs are up\n");
    idle();
}
