/* One TSS a task, switched by far jumps; the watchdog and the double fault have tasks of their own behind task gates. */
typedef unsigned long long u64;
typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned char u8;

#define TASKS 7
#define USER 0x40000000u
#define OLD 3   /* the one in virtual-8086 mode */
#define NATIVE 5 /* from here on they run in the kernel */
#define MEMORY(n) (0x800000u + (n) * 0x400000u)
#define TSS(n) (0x40 + 8 * (n))
#define LDT(n) (0x80 + 8 * (n))
#define IF 0x200u
#define VM 0x20000u

struct tss {
    u32 backlink, esp0, ss0, stacks[4], cr3, eip, eflags, eax, ecx, edx, ebx, esp, ebp, esi, edi;
    u32 es, cs, ss, ds, fs, gs, ldt, map;
};

struct frame {
    u32 es, ds, edi, esi, ebp, ebx, edx, ecx, eax, number, error, eip, cs, eflags, esp, ss, v_es, v_ds, v_fs, v_gs;
};

extern u32 gates[];
extern char user_image[], user_size[], old_code[], old_code_end[];
extern void watchdog(void);

static u64 gdt[32], idt[256], ldts[TASKS][5];
static struct tss tasks[TASKS], boot_tss, watchdog_tss, fault_tss;
static u32 tables[TASKS][1024] __attribute__((aligned(4096))), low[TASKS][1024] __attribute__((aligned(4096)));
static u8 stacks[TASKS + 2][4096] __attribute__((aligned(16))), fpu[TASKS][512] __attribute__((aligned(16)));
static u32 current, fpu_owner, virtual_if;
static volatile u32 ticks, watched;

static inline void out(u16 p, u8 v) { asm volatile("outb %0, %1" ::"a"(v), "d"(p)); }
static inline u8 in(u16 p) { u8 v; asm volatile("inb %1, %0" : "=a"(v) : "d"(p)); return v; }

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

static u64 segment(u32 base, u32 limit, u32 access)
{
    return (limit & 0xffff) | (u64)(base & 0xffffff) << 16 | (u64)(access & 0xff) << 40 | (u64)(limit >> 16 & 15) << 48 |
           (u64)(access >> 8) << 52 | (u64)(base >> 24) << 56;
}

static __attribute__((noinline)) void go(u32 n)
{
    struct { u32 offset; u16 selector; } __attribute__((packed)) to = {0, (u16)TSS(n)};
    if (n == current)
        return;
    current = n;
#ifdef BUG_SWITCH_EDI
    if (ticks > 300)
        tasks[n].edi++;
#endif
#ifdef BUG_SWITCH_FLAGS
    if (ticks > 300)
        tasks[n].eflags |= IF;
#endif
#ifdef BUG_SWITCH_FS
    if (ticks > 300 && !(tasks[n].eflags & VM))
        tasks[n].fs = 0x23;
#endif
#ifdef BUG_CR3
    if (ticks > 300 && n == 1)
        tasks[n].cr3 = tasks[0].cr3;
#endif
#ifdef BUG_ESP0
    if (ticks > 300 && n == 1)
        tasks[n].esp0 = tasks[0].esp0;
#endif
#ifdef BUG_LDT
    tasks[1].ldt = ticks & 64 ? LDT(2) : LDT(1);
#endif
    asm volatile("ljmp *%0" ::"m"(to) : "memory");
}

static void next(void)
{
    go((current + 1) % TASKS);
}

/* What runs in virtual-8086 mode cannot touch IF or the interrupt vectors: done for it. */
static void emulate(struct frame *f)
{
    u8 *code = (u8 *)((f->cs << 4) + (f->eip & 0xffff));
    u16 *stack = (u16 *)((f->ss << 4) + (f->esp & 0xffff));
    switch (*code) {
    case 0xcd:
        if (code[1] != 0x21)
            stop("hard32: CORRUPT in old code\n");
        stack[-1] = (u16)((f->eflags & ~IF) | (virtual_if ? IF : 0));
        stack[-2] = (u16)f->cs;
        stack[-3] = (u16)(f->eip + 2);
        f->esp -= 6;
        f->eip = 0x100;
#ifdef BUG_VM_GS
        f->v_gs++;
#endif
        return;
    case 0xcf:
        f->eip = stack[0];
        f->cs = stack[1];
        f->eflags = (f->eflags & ~0xcd5u) | (stack[2] & 0xcd5u);
        f->esp += 6;
        return;
    case 0x9c:
        stack[-1] = (u16)((f->eflags & ~IF) | (virtual_if ? IF : 0));
        f->esp -= 2;
        f->eip++;
        return;
    case 0x9d:
        virtual_if = stack[0] & IF;
        f->esp += 2;
        f->eip++;
        return;
    case 0xfa: virtual_if = 0; f->eip++; return;
    case 0xfb: virtual_if = 1; f->eip++; return;
    case 0xf4: f->eip++; next(); return;
    }
    stop("hard32: unknown old code\n");
}

/* Whoever has loaded the descriptor already has the new base at once. */
static void set_local(u32 base)
{
    ldts[current][1] = segment(base, 0xfffff, 0xcf2);
    asm volatile("movw %%fs, %%ax; movw %%ax, %%fs; movw %%gs, %%ax; movw %%ax, %%gs" ::: "eax", "memory");
}

void trap(struct frame *f)
{
    switch (f->number) {
    case 7: /* every task switch sets TS */
        asm volatile("clts");
        if (fpu_owner != current) {
            asm volatile("fxsave %0" : "=m"(fpu[fpu_owner]));
#ifndef BUG_FPU
            asm volatile("fxrstor %0" ::"m"(fpu[current]));
#endif
            fpu_owner = current;
        }
        return;
    case 13:
        if (f->eflags & VM) {
            emulate(f);
            return;
        }
        break;
    case 32:
        out(0x20, 0x20);
        if (++ticks == 4000)
            say("hard32: done\n");
#ifdef BUG_IF
        if (ticks > 300 && f->cs == 0x1b)
            f->eflags &= ~IF;
#endif
        next();
        return;
    case 39:
        return;
    case 128:
        if (f->eax == 1)
            next();
        else if (f->eax == 2)
            say("CORRUPT\n");
        else if (f->eax == 3)
            set_local(f->ebx);
        f->eax = ticks;
#ifdef BUG_CALL_EBX
        f->ebx = ticks;
#endif
        return;
    }
    stop("hard32: unexpected trap\n");
}

/* Runs in the watchdog's own task: what it interrupted lies whole in the TSS that its own names. */
void watch(void)
{
    struct tss *was = (struct tss *)((u32)(gdt[watchdog_tss.backlink / 8] >> 16 & 0xffffff));
    out(0x70, 0x0c);
    in(0x71);
    out(0xa0, 0x20);
    out(0x20, 0x20);
    watched++;
    (void)was;
#if defined BUG_TSS_FLAGS || defined BUG_TSS_ES || defined BUG_TSS_ECX || defined BUG_TSS_ESP
    if (watched > 200 && was->cs == 0x1b) {
#ifdef BUG_TSS_FLAGS
        was->eflags = IF | 2;
#elif defined BUG_TSS_ES
        was->es = 0x10 | 3;
#elif defined BUG_TSS_ECX
        was->ecx = watched;
#else
        was->esp -= 4;
#endif
    }
#endif
}

/* A task in the kernel that gives way by itself: what the far jump leaves in its TSS is all there is of it. */
static void worker(void)
{
    for (u32 n = 1;; n++) {
        u32 a = n * 3, b = n ^ 0x5555, c = ~n;
        asm volatile("" : "+S"(a), "+D"(b), "+b"(c));
        asm volatile("cli" ::: "memory");
        next();
        asm volatile("sti" ::: "memory");
        asm volatile("" : "+S"(a), "+D"(b), "+b"(c));
        if (a != n * 3 || b != (n ^ 0x5555) || c != ~n)
            say("CORRUPT\n");
    }
}

static void idle(void)
{
    for (;;)
        asm volatile("hlt");
}

static void task(u32 n)
{
    struct tss *t = &tasks[n];
    u32 *pages = low[n], *table = tables[n];
    for (u32 i = 0; i < 1024; i++)
        pages[i] = i << 12 | (n == OLD && (i < 1 || (i >= 16 && i < 32)) ? 7 : 3);
    table[0] = (u32)pages | 7;
    for (u32 i = 1; i < 16; i++)
        table[i] = i << 22 | 0x83;
    table[USER >> 22] = MEMORY(n) | 0x87;
    t->cr3 = (u32)table;
    t->esp0 = (u32)stacks[n] + sizeof stacks[n];
    t->ss0 = 0x10;
    t->eflags = IF | 2;
    t->map = 104u << 16;
    t->ldt = LDT(n);
    gdt[TSS(n) / 8] = segment((u32)t, sizeof *t - 1, 0x89);
    gdt[LDT(n) / 8] = segment((u32)ldts[n], sizeof ldts[n] - 1, 0x82);
    ldts[n][1] = segment(USER + n * 0x1000, 0xfffff, 0xcf2);
    ldts[n][2] = segment(USER, 0xffff, 0x0fa); /* 16-bit code */
    ldts[n][3] = segment(USER + 0x20000, 0xffff, 0x0f2);
    *(u32 *)(fpu[n] + 24) = 0x1f80;
    *(u16 *)fpu[n] = 0x37f;
    if (n == OLD) {
        t->eflags |= VM;
        t->cs = t->ss = t->ds = t->es = 0x1000;
        t->fs = 0x1800, t->gs = 0x1400;
        t->esp = 0xff00;
        for (u32 i = 0; old_code + i < old_code_end; i++)
            ((u8 *)0x10000)[i] = (u8)old_code[i];
    } else if (n >= NATIVE) {
        t->eip = (u32)(n == NATIVE ? worker : idle);
        t->cs = 8, t->ss = t->ds = t->es = t->fs = t->gs = 0x10;
        t->esp = (u32)stacks[n] + sizeof stacks[n] - 64;
    } else {
        t->eip = USER;
        t->cs = 0x1b, t->ss = t->ds = t->es = 0x23;
        t->fs = t->gs = 0x0f;
        t->esp = USER + 0x30000 - 16;
        t->ebx = n;
        for (u32 i = 0; i < (u32)user_size; i++)
            ((u8 *)MEMORY(n))[i] = (u8)user_image[i];
    }
}

static void own_task(u32 slot, struct tss *t, u32 stack, void (*run)(void))
{
    t->cr3 = tasks[NATIVE].cr3;
    t->eip = (u32)run;
    t->eflags = 2;
    t->esp = (u32)stacks[stack] + sizeof stacks[stack] - 64;
    t->cs = 8, t->ss = t->ds = t->es = 0x10;
    t->map = 104u << 16;
    gdt[slot] = segment((u32)t, sizeof *t - 1, 0x89);
}

static void lost(void) { stop("hard32: double fault\n"); }

void kernel(void)
{
    say("hard32\n");
    gdt[1] = segment(0, 0xfffff, 0xc9a), gdt[2] = segment(0, 0xfffff, 0xc92);
    gdt[3] = segment(0, 0xfffff, 0xcfa), gdt[4] = segment(0, 0xfffff, 0xcf2);
    gdt[5] = segment((u32)&boot_tss, sizeof boot_tss - 1, 0x89);
    for (u32 n = 0; n < TASKS; n++)
        task(n);
    own_task(6, &watchdog_tss, TASKS, watchdog);
    own_task(7, &fault_tss, TASKS + 1, lost);
    for (u32 *g = gates; g[1]; g += 2)
        idt[g[0]] = (g[1] & 0xffff) | 8u << 16 | (u64)((g[1] & 0xffff0000) | (g[0] == 128 ? 0xee00 : 0x8e00)) << 32;
    idt[8] = 7u * 8 << 16 | (u64)0x8500 << 32;
    idt[40] = 6u * 8 << 16 | (u64)0x8500 << 32;
    struct { u16 limit; u32 base; } __attribute__((packed)) g = {sizeof gdt - 1, (u32)gdt}, d = {sizeof idt - 1, (u32)idt};
    asm volatile("lgdt %0; lidt %1; ljmp $8, $1f; 1: movw %w2, %%ds; movw %w2, %%es; movw %w2, %%ss; movw %w2, %%fs;"
                 "movw %w2, %%gs; ltr %w3" ::"m"(g), "m"(d), "r"(0x10), "r"(5 * 8));
    asm volatile("movl %%cr4, %%eax; orl $0x610, %%eax; movl %%eax, %%cr4; movl %0, %%cr3;"
                 "movl %%cr0, %%eax; andl $~4, %%eax; orl $0x80010022, %%eax; movl %%eax, %%cr0" ::"r"(tables[NATIVE]) : "eax");
    out(0x20, 0x11); out(0xa0, 0x11); out(0x21, 32); out(0xa1, 40); out(0x21, 4); out(0xa1, 2);
    out(0x21, 1); out(0xa1, 1); out(0x21, 0xfa); out(0xa1, 0xfe);
    out(0x43, 0x34); out(0x40, (1193182 / 2000) & 0xff); out(0x40, (1193182 / 2000) >> 8);
    out(0x70, 0x8a); out(0x71, 0x26);
    out(0x70, 0x8b); out(0x71, 0x42);
    out(0x70, 0x0c); in(0x71);
    current = TASKS;
    go(0);
}
