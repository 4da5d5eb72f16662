/* A small kernel in the lower half, without a word in GS: cooperative threads, preempted through an IST stack. */
typedef unsigned long u64;
typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned char u8;

#define THREADS 7
#define USER 0x8000000000ul

struct regs {
    u64 r15, r14, r13, r12, r11, r10, r9, r8, rbp, rdi, rsi, rbx, rdx, rcx, rax, number, error, rip, cs, rflags, rsp, ss;
};

struct thread {
    u8 fx[512] __attribute__((aligned(16)));
    u64 sp, cr3, fs, stack, number;
};

extern u64 boot_pml4[], kernel_cr3, user_cr3, thread_stack, gdt[], idt[][2], gates[], ist_stack[];
extern u8 tss[];
extern char user_image[], user_size[], common_begin[], common_end[], first[];
extern void swap(u64 *, u64);

static struct thread threads[THREADS], *running;
static u8 stacks[THREADS][8192] __attribute__((aligned(4096)));
static u64 tops[3][512] __attribute__((aligned(4096))), thirds[3][2][512] __attribute__((aligned(4096)));
static u64 seconds[3][2][512] __attribute__((aligned(4096))), pages[3][512] __attribute__((aligned(4096)));
static u64 lows[512] __attribute__((aligned(4096)));
static u8 memory[3][32 * 4096] __attribute__((aligned(4096)));
static volatile u64 ticks;

static inline void out(u16 p, u8 v) { asm volatile("outb %0, %1" ::"a"(v), "d"(p)); }
static inline void wrmsr(u32 m, u64 v) { asm volatile("wrmsr" ::"c"(m), "a"((u32)v), "d"((u32)(v >> 32))); }

static void say(const char *s)
{
    while (*s)
        out(0x3f8, (u8)*s++);
}

static void next(void)
{
    struct thread *from = running, *to = &threads[(from->number + 1) % THREADS];
    asm volatile("fxsave64 %0" : "=m"(from->fx));
#ifndef BUG_FX
    asm volatile("fxrstor64 %0" ::"m"(to->fx));
#endif
    running = to;
    thread_stack = to->stack;
#ifdef BUG_CR3
    if (ticks < 50 || to->cr3 != (u64)tops[2])
#endif
    user_cr3 = to->cr3;
    wrmsr(0xc0000100, to->fs);
    swap(&from->sp, to->sp);
}

void trap(struct regs *r)
{
    u64 at;
    switch (r->number) {
    case 32:
        out(0x20, 0x20);
        if (++ticks == 6000)
            say("uni64: the end\n");
#ifdef BUG_RSP
        if (ticks > 100 && r->cs & 3)
            r->rsp -= 8;
#endif
        next();
        return;
    case 39:
        return;
    case 14:
        asm volatile("movq %%cr2, %0" : "=r"(at));
        at = (at - USER) >> 12;
        if (at >= 16 && at < 24 && r->cs & 3) {
            u64 *table = pages[(user_cr3 - (u64)tops) / 4096];
            for (int n = 16; n < 24; n++)
                table[n] &= ~1ul;
            table[at] |= 1;
            return;
        }
        break;
    case 128:
        if (r->rax == 1)
            next();
        else if (r->rax == 2)
            say("CORRUPT\n");
        else if (r->rax == 3)
            wrmsr(0xc0000100, running->fs = r->rdi);
        r->rax = ticks;
        return;
    }
    say("uni64: unexpected trap\n");
    for (;;)
        asm volatile("cli; hlt");
}

static u64 leaf(u64 n)
{
    volatile u64 a = n, b = n * 3, c = n ^ 0x55;
    u64 sum = 0;
    for (volatile int i = 0; i < 2000; i++)
        sum += a ^ b ^ c;
    return sum;
}

/* A kernel thread gives way by itself and is preempted besides; its leaf functions use the red zone. */
static void worker(void)
{
    for (u64 n = 1;; n++) {
        u64 once = leaf(n), again = leaf(n);
        if (once != again)
            say("CORRUPT\n");
        if (n % 4 == 0) {
            asm volatile("cli" ::: "memory");
            next();
            asm volatile("sti" ::: "memory");
        }
    }
}

static void thread(u64 n, u64 process, u64 entry)
{
    struct thread *t = &threads[n];
    t->number = n;
    t->stack = (u64)stacks[n] + sizeof stacks[n];
    struct regs *r = (struct regs *)t->stack - 1;
    for (u32 i = 0; i < sizeof *r / 8; i++)
        ((u64 *)r)[i] = 0;
    int user = process < 3;
    t->cr3 = user ? (u64)tops[process] : (u64)boot_pml4;
    r->rip = entry;
    r->rdi = n;
    r->cs = user ? 0x1b : 8;
    r->ss = user ? 0x23 : 0x10;
    r->rflags = 0x202;
    r->rsp = user ? USER + 0x1c000 + (n / 3) * 0x2000 : (u64)r - 256;
    u64 *sp = (u64 *)r;
    *--sp = (u64)first;
    *--sp = 2;
    for (int i = 0; i < 6; i++)
        *--sp = 0;
    t->sp = (u64)sp;
    *(u32 *)(t->fx + 24) = 0x1f80;
    *(u16 *)t->fx = 0x37f;
}

void kernel(void)
{
    say("uni64\n");
    u64 t = (u64)tss;
    gdt[5] = 0x67 | (t & 0xffffff) << 16 | 0x89ul << 40 | (t >> 24 & 0xff) << 56;
    gdt[6] = t >> 32;
    *(u64 *)(tss + 36) = (u64)ist_stack;
    *(u64 *)(tss + 4) = (u64)ist_stack;
    for (u64 *g = gates; g[1]; g += 2) {
        u64 ist = 1;
#ifdef BUG_RED_ZONE
        if (g[0] == 32)
            ist = 0;
#endif
        idt[g[0]][0] = (g[1] & 0xffff) | 8 << 16 | ist << 32 | (g[0] == 128 ? 0xee00ul : 0x8e00ul) << 32 | (g[1] >> 16) << 48;
    }
    struct { u16 limit; u64 base; } __attribute__((packed)) g = {63, (u64)gdt}, d = {4095, (u64)idt};
    asm volatile("lgdt %0; lidt %1; ltr %w2" ::"m"(g), "m"(d), "r"(0x28));
    for (int p = 0; p < 3; p++) {
        tops[p][0] = (u64)thirds[p][0] | 7;
        thirds[p][0][0] = (u64)seconds[p][0] | 7;
        seconds[p][0][(u64)common_begin >> 21] = (u64)lows | 7;
        tops[p][1] = (u64)thirds[p][1] | 7;
        thirds[p][1][0] = (u64)seconds[p][1] | 7;
        seconds[p][1][0] = (u64)pages[p] | 7;
        for (int n = 0; n < 32; n++)
            pages[p][n] = ((u64)memory[p] + (u64)n * 4096) | (n < 16 || n >= 24 ? 7 : 6);
        for (u64 n = 0; n < (u64)user_size; n++)
            memory[p][n] = (u8)user_image[n];
    }
    for (u64 at = (u64)common_begin; at < (u64)common_end; at += 4096)
        lows[at >> 12 & 511] = at | 3;
    for (u64 n = 0; n < 5; n++)
        thread(n, n % 3, USER);
    thread(5, 9, (u64)worker);
    thread(6, 9, (u64)worker);
    out(0x20, 0x11); out(0xa0, 0x11); out(0x21, 32); out(0xa1, 40); out(0x21, 4); out(0xa1, 2);
    out(0x21, 1); out(0xa1, 1); out(0x21, 0xfe); out(0xa1, 0xff);
    out(0x43, 0x34); out(0x40, (1193182 / 2000) & 0xff); out(0x40, (1193182 / 2000) >> 8);
    running = &threads[0];
    thread_stack = running->stack;
    user_cr3 = running->cr3;
    u64 nowhere;
    swap(&nowhere, running->sp);
}
