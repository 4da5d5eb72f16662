/* Tasks, ticks, semaphores, all of it in ring 0: there is no user mode, and no swapgs. The FPU changes hands by #NM. */
typedef unsigned long u64;
typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned char u8;

#define TASKS 10
#define UPPER 0xffffffff80000000ul
#define PHYS(p) ((u64)(p) - UPPER)
#define ASM asm volatile

struct task {
    u64 sp, wake, fs, number;
    int waits;
    u8 fpu[512] __attribute__((aligned(16)));
};
struct saved { u64 r15, r14, r13, r12, r11, r10, r9, r8, rdi, rsi, rbp, rbx, rdx, rcx, rax, rip, cs, rflags, rsp, ss; };

extern u64 boot_pml4[], first_pd[];
extern char tick_gate[], device_gate[], quick_gate[], nmi_gate[], yield_gate[], divide_gate[], break_gate[];
extern char undefined_gate[], no_fpu_gate[], page_gate[], protection_gate[], task_start[], peek_at[], peek_fixup[];
extern void (*const bodies[])(u64);
void swap(u64 *old, u64 sp);

static struct task tasks[TASKS], *now = &tasks[0], *fpu_owner;
static u8 stacks[TASKS * 4096] __attribute__((aligned(4096)));
static u8 ist[3][2048] __attribute__((aligned(16)));
static u64 tls[TASKS];
static u64 gdt[6], idt[256][2];
static u32 tss[26] __attribute__((aligned(16)));
static volatile u64 ticks, devices, nmis, semaphore;
static u64 locked;

static inline void outb(u16 p, u8 v) { ASM("outb %0, %1" ::"a"(v), "d"(p)); }
static inline u8 inb(u16 p) { u8 v; ASM("inb %1, %0" : "=a"(v) : "d"(p)); return v; }
static inline void wrmsr(u32 m, u64 v) { ASM("wrmsr" ::"c"(m), "a"((u32)v), "d"((u32)(v >> 32)) : "memory"); }
static inline u64 rdmsr(u32 m) { u32 a, d; ASM("rdmsr" : "=a"(a), "=d"(d) : "c"(m)); return a | (u64)d << 32; }
static inline u64 lock(void) { u64 f; ASM("pushfq; popq %0; cli" : "=r"(f)::"memory"); return f; }
static inline void unlock(u64 f) { if (f & 0x200) ASM("sti" ::: "memory"); }

void print(const char *s)
{
    for (; *s; s++) {
        while (!(inb(0x3fd) & 0x20))
            ;
        outb(0x3f8, (u8)*s);
    }
}

static void panic(const char *s)
{
    print(s);
    for (;;)
        ASM("cli; hlt");
}

static void switch_to(struct task *t)
{
    struct task *old = now;
    if (t == old)
        return;
    now = t;
#ifdef BUG_FS
    if (ticks < 200 || t != &tasks[2])
#endif
    wrmsr(0xc0000100, t->fs);
    u64 cr0;
    ASM("movq %%cr0, %0" : "=r"(cr0));
#ifdef BUG_FPU_TS
    if (ticks < 200 || t->number != 6)
#endif
    ASM("movq %0, %%cr0" ::"r"(t == fpu_owner ? cr0 & ~8ul : cr0 | 8));
    swap(&old->sp, t->sp);
}

/* With interrupts off. The idle task is number 0. */
static void schedule(void)
{
    for (u64 n = now->number + 1;; n++) {
        struct task *t = &tasks[n % TASKS];
        if (n % TASKS == 0 && n < now->number + 1 + TASKS)
            continue;
        if (n >= now->number + 1 + TASKS) {
            switch_to(!now->waits && !now->wake ? now : &tasks[0]);
            return;
        }
        if (t->waits && semaphore) {
            t->waits = 0;
            semaphore--;
        }
        if (!t->waits && !t->wake) {
            switch_to(t);
            return;
        }
    }
}

void sleep(u64 n)
{
    u64 f = lock();
    now->wake = ticks + n;
    wrmsr(0x830, 0x40000 | 0x31); /* what the device does is not ours to say */
    schedule();
    unlock(f);
}

void down(void)
{
    u64 f = lock();
    if (semaphore) {
        semaphore--;
    } else {
        now->waits = 1;
        schedule();
    }
    unlock(f);
}

void up(void)
{
    u64 f = lock();
    semaphore++;
    unlock(f);
}

void on_tick(void)
{
    wrmsr(0x80b, 0);
    if (++ticks == 2500)
        print("ring64: all rung\n");
    for (int n = 0; n < TASKS; n++)
        if (tasks[n].wake && tasks[n].wake <= ticks)
            tasks[n].wake = 0;
    if (ticks % 3 == 0)
        wrmsr(0x830, 0x40000 | 0x31);
    if (ticks % 4 == 0)
        wrmsr(0x830, 0x40000 | 0x32);
    if (ticks % 7 == 0)
        wrmsr(0x830, 0x400);
    schedule();
}

/* Of lower priority than the tick, which must not wait. */
void on_device(void)
{
    devices++;
    wrmsr(0x80b, 0);
    for (volatile int i = 0; i < 60000; i++)
        ;
    up();
}

void on_quick(void)
{
    wrmsr(0x80b, 0);
    if (++devices % 5 == 0)
        wrmsr(0x830, 0x400);
}

void on_nmi(void) { nmis++; }
u64 on_yield(void) { schedule(); return ticks; }

static void give_fpu(void)
{
    ASM("clts");
    if (fpu_owner == now)
        return;
#ifdef BUG_FPU_SAVE
    if (fpu_owner && (ticks < 200 || fpu_owner->number != 5))
#else
    if (fpu_owner)
#endif
        ASM("fxsave64 %0" : "=m"(fpu_owner->fpu));
    ASM("fxrstor64 %0" ::"m"(now->fpu));
    fpu_owner = now;
}

void on_fault(struct saved *s, u64 number, u64 code)
{
    if (number == 7) {
        give_fpu();
    } else if (number == 14 && s->rip == (u64)peek_at) {
        s->rip = (u64)peek_fixup;
    } else if (number == 14) {
        u64 at;
        ASM("movq %%cr2, %0" : "=r"(at));
        if (at >> 21 != 40)
            panic("page fault\n");
        first_pd[40] = 0x2000083;
#ifdef BUG_PAGE_R12
        s->r12 = code;
#endif
    } else if (number == 0) {
        s->rip += 3; /* div %r64 */
        s->rax = 0;
    } else if (number != 3) {
        (void)code;
        panic("fault\n");
    }
}

/* The page that comes and goes. */
void forget_page(void)
{
    first_pd[40] = 0;
    ASM("invlpg (%0)" ::"r"(0x5000000ul) : "memory");
}

static void gate(int n, const char *at, int stack)
{
    u64 a = (u64)at;
    idt[n][0] = (a & 0xffff) | 8 << 16 | (u64)stack << 32 | 0x8e00ul << 32 | (a >> 16 & 0xffff) << 48;
    idt[n][1] = a >> 32;
}

void ap_main(void) { panic("who started this?\n"); }

void rust_main(void)
{
    print("ring64\n");
    gdt[1] = 0x00209a0000000000, gdt[2] = 0x0000920000000000;
    u64 t = (u64)tss;
    gdt[4] = 0x67 | (t & 0xffffff) << 16 | 0x89ul << 40 | (t >> 24 & 0xff) << 56;
    gdt[5] = t >> 32;
    for (int n = 0; n < 3; n++) {
        u64 top = (u64)ist[n] + sizeof ist[n];
        tss[9 + 2 * n] = (u32)top, tss[10 + 2 * n] = (u32)(top >> 32);
    }
    struct { u16 limit; u64 base; } __attribute__((packed)) g = {sizeof gdt - 1, (u64)gdt}, d = {sizeof idt - 1, (u64)idt};
    ASM("lgdt %0; lidt %1; ltr %w2" ::"m"(g), "m"(d), "r"(32));
    ASM("pushq $8; leaq 1f(%%rip), %%rax; pushq %%rax; lretq; 1: movl $16, %%eax; movl %%eax, %%ss; movl %%eax, %%ds;"
        "movl %%eax, %%es; xorl %%eax, %%eax; movl %%eax, %%fs; movl %%eax, %%gs" ::: "rax", "memory");
    gate(0, divide_gate, 0), gate(3, break_gate, 0), gate(6, undefined_gate, 0), gate(7, no_fpu_gate, 0);
    gate(13, protection_gate, 0), gate(14, page_gate, 0);
    gate(0x50, tick_gate, 0), gate(0x31, device_gate, 0), gate(0x81, yield_gate, 0);
#ifdef BUG_IST_SHARED
    gate(2, nmi_gate, 2);
#else
    gate(2, nmi_gate, 1);
#endif
    gate(0x32, quick_gate, 2);
    outb(0x21, 0xff);
    outb(0xa1, 0xff);
    u64 end = (u64)stacks + sizeof stacks;
    for (u64 n = 0; n < TASKS; n++) {
        tasks[n].number = n;
        tasks[n].fs = (u64)&tls[n];
        tls[n] = n;
        *(u16 *)tasks[n].fpu = 0x37f;
        *(u32 *)(tasks[n].fpu + 24) = 0x1f80;
        u64 *sp = (u64 *)end;
        end -= 4096;
        *--sp = (u64)task_start;
        *--sp = 2; /* rflags */
        sp -= 6;   /* rbp rbx r12 to r15 */
        sp[5] = sp[4] = sp[3] = sp[2] = 0, sp[1] = n, sp[0] = (u64)bodies[n];
        tasks[n].sp = (u64)sp;
    }
    wrmsr(0x1b, rdmsr(0x1b) | 0xc00);
    wrmsr(0x80f, 0x1ff);
    wrmsr(0x83e, 3);
    wrmsr(0x832, 0x20000 | 0x50);
    wrmsr(0x838, 40000);
    locked = lock();
    wrmsr(0xc0000100, tasks[0].fs);
    u64 nowhere;
    swap(&nowhere, tasks[0].sp);
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
