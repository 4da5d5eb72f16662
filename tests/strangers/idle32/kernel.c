/* A microkernel after the manner of seL4 on ia32: one kernel stack, contexts in the control blocks, an idle thread in
 * the kernel's ring whose stack is its own control block, blocked calls that are made again. */
typedef unsigned int u32;
typedef unsigned long long u64;
typedef unsigned short u16;
typedef unsigned char u8;

#define THREADS 6
#define USER 0x40000000u
#define MEMORY(n) (0x1000000u + (n) * 0x400000u)

enum { READY, ASLEEP, WAITING };

struct block {
    u32 edi, esi, edx, ecx, ebx, eax, ebp, fs, gs, es, ds, number, error, eip, cs, eflags, esp, ss;
};

struct thread {
    u32 state, wake, tls, messages;
    struct block b;
    u32 table[1024] __attribute__((aligned(4096)));
};

extern u32 vectors[];
extern char user_image[], user_size[];
void resume(struct block *b) __attribute__((noreturn));
void resume_call(struct block *b) __attribute__((noreturn));

static struct thread threads[THREADS], idle_thread, *now;
static u64 gdt[8], idt[256];
static u32 tss[26], ticks, turn;

static inline void out(u16 p, u8 v) { asm volatile("outb %0, %1" ::"a"(v), "d"(p)); }

static void say(const char *s)
{
    while (*s)
        out(0x3f8, (u8)*s++);
}

static u64 segment(u32 base, u32 access)
{
    return (base & 0xffffff) * 0x10000ull | (u64)(base >> 24) << 56 | (u64)access << 40 | 0x00cf00000000ffffull;
}

#ifdef BUG_IDLE
/* Compiled as other functions are: it pushes. */
static void idle(void)
{
    volatile u32 rounds = 0;
    for (;;) {
        asm volatile("hlt");
        rounds++;
    }
}
#else
__attribute__((naked)) static void idle(void)
{
    asm volatile("1: hlt; jmp 1b");
}
#endif

static __attribute__((noreturn)) void leave(int by_call)
{
    struct thread *t = &idle_thread;
    for (u32 n = 0; n < THREADS; n++) {
        u32 next = (turn + n) % THREADS;
        if (threads[next].state == READY) {
            t = &threads[next];
            break;
        }
    }
    if (t != now) {
        now = t;
        by_call = t->b.number == 128;
        if (t != &idle_thread) {
            asm volatile("movl %0, %%cr3" ::"r"(t->table) : "memory");
            tss[1] = (u32)(&t->b + 1);
#ifdef BUG_TLS
            if (ticks < 100 || t != &threads[1])
#endif
            gdt[6] = segment(t->tls, 0xf2);
            if (by_call)
                asm volatile("movw %w0, %%gs" ::"r"(0x33));
        }
    }
    if (by_call)
        resume_call(&t->b);
    resume(&t->b);
}

__attribute__((noreturn)) void on_trap(u32 number)
{
    struct thread *t = now;
    u32 at;
    switch (number) {
    case 32:
        out(0x20, 0x20);
        if (++ticks == 3000)
            say("idle32: enough of it\n");
        for (u32 n = 0; n < THREADS; n++)
            if (threads[n].state == ASLEEP && threads[n].wake <= ticks)
                threads[n].state = READY;
        turn++;
        leave(0);
    case 14: /* pages that were taken away */
        asm volatile("movl %%cr2, %0" : "=r"(at));
        if (at >> 22 != 0x140)
            break;
        t->table[0x140] = MEMORY(THREADS) | 0x87;
        leave(0);
    case 13: /* hlt of user code: a way to wait for the next tick */
        if (*(u8 *)t->b.eip != 0xf4)
            break;
        t->b.eip++;
        t->wake = ticks + 1;
        t->state = ASLEEP;
        leave(0);
    case 39:
        leave(0);
    }
    say("idle32: trap\n");
    for (;;)
        asm volatile("cli; hlt");
}

__attribute__((noreturn)) void on_call(u32 ecx, u32 edx)
{
    struct thread *t = now, *to;
    (void)edx;
    switch (t->b.eax) {
    case 0: t->b.eax = (u32)(t - threads); break;
    case 1: t->state = ASLEEP; t->wake = ticks + t->b.ebx; t->b.eax = 0; break;
    case 2: say("CORRUPT\n"); break;
    case 3: /* send: never waits */
        to = &threads[t->b.ebx % THREADS];
        to->messages++;
        if (to->state == WAITING)
            to->state = READY;
        t->b.eax = ecx;
        break;
    case 4: /* receive: made again when there is something */
        if (t->messages) {
            t->b.eax = t->messages;
            t->messages = 0;
            break;
        }
        t->state = WAITING;
        t->b.eip -= 2;
        break;
    case 5: t->tls = t->b.ebx; gdt[6] = segment(t->tls, 0xf2); asm volatile("movw %w0, %%gs" ::"r"(0x33)); t->b.eax = 0; break;
    case 6: t->table[0x140] = 0; asm volatile("movl %0, %%cr3" ::"r"(t->table) : "memory"); break;
    }
    leave(1);
}

void kernel(void)
{
    say("idle32\n");
    gdt[1] = segment(0, 0x9a), gdt[2] = segment(0, 0x92), gdt[3] = segment(0, 0xfa), gdt[4] = segment(0, 0xf2);
    gdt[5] = ((u32)tss & 0xffffff) * 0x10000ull | (u64)((u32)tss >> 24) << 56 | 0x890000000067ull;
    gdt[6] = segment(0, 0xf2);
    tss[2] = 0x10;
    tss[25] = 0x680000;
    for (u32 *v = vectors; v[1]; v += 2)
        idt[v[0]] = (v[1] & 0xffff) | 8u << 16 | (u64)((v[0] == 128 ? 0xee00 : 0x8e00) | (v[1] & 0xffff0000)) << 32;
    struct { u16 limit; u32 base; } __attribute__((packed)) g = {sizeof gdt - 1, (u32)gdt}, d = {sizeof idt - 1, (u32)idt};
    asm volatile("lgdt %0; lidt %1; ljmp $8, $1f; 1: movw %w2, %%ds; movw %w2, %%es; movw %w2, %%ss; ltr %w3;"
                 "xorl %%eax, %%eax; movw %%ax, %%fs; movw %%ax, %%gs" ::"m"(g), "m"(d), "r"(0x10), "r"(0x28) : "eax");
    for (u32 n = 0; n < THREADS; n++) {
        struct thread *t = &threads[n];
        for (u32 i = 0; i < 16; i++)
            t->table[i] = i << 22 | 0x83;
        t->table[USER >> 22] = MEMORY(n) | 0x87;
        t->b.eip = USER;
        t->b.cs = 0x1b;
        t->b.ss = t->b.ds = t->b.es = 0x23;
        t->b.gs = 0x33;
        t->b.eflags = 0x202;
        t->b.esp = USER + 0x30000 - 16;
        t->b.ebx = n;
        for (u32 i = 0; i < (u32)user_size; i++)
            ((u8 *)MEMORY(n))[i] = (u8)user_image[i];
    }
    idle_thread.b.eip = (u32)idle;
    idle_thread.b.cs = 8;
    idle_thread.b.ds = idle_thread.b.es = 0x10;
    idle_thread.b.eflags = 0x202;
    asm volatile("movl %%cr4, %%eax; orl $0x10, %%eax; movl %%eax, %%cr4; movl %0, %%cr3;"
                 "movl %%cr0, %%eax; orl $0x80010000, %%eax; movl %%eax, %%cr0" ::"r"(threads[0].table) : "eax");
    out(0x20, 0x11); out(0xa0, 0x11); out(0x21, 32); out(0xa1, 40); out(0x21, 4); out(0xa1, 2);
    out(0x21, 1); out(0xa1, 1); out(0x21, 0xfe); out(0xa1, 0xff);
    out(0x43, 0x34); out(0x40, (1193182 / 1000) & 0xff); out(0x40, (1193182 / 1000) >> 8);
    leave(0);
}
