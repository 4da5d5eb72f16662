/* One CPU. User and kernel threads, preempted in the kernel, too. The stubs keep what functions may change, a switch
 * the rest. A bad pointer in a system call is a signal: its handler runs in the caller's place, the call fails. */
#include "../base32.h"
#include "../spin32.h"
#define REG __attribute__((regparm(3)))
#define THREADS 8
#define USER 0x4000000u
enum { FREE, READY, ASLEEP };
struct frame { u32 eip, cs, eflags, esp, ss; };
struct thread { u32 sp, state, wake, top, handler, pending, kernel, id; };
void tick(void), page(void), call(void), illegal(void), nested(void), first(void), to_user(void);
extern char copy_at[], copy_failed[];
REG void swtch(u32 *from, u32 to);
REG u32 copy_in(void *to, const void *from, u32 n);
static struct thread threads[THREADS], *now;
static u8 stacks[THREADS][4096] ALIGNED(4096), user_stacks[THREADS][4096] ALIGNED(4096);
static u32 dir[1024] ALIGNED(4096), low[2048] ALIGNED(4096);
static u64 gdt[8];
static u32 tss[26];
static volatile u32 ticks, keys, slow, seconds, checks;

static void schedule(void)
{
    u32 flags;
    ASM("pushfl; popl %0; cli" : "=r"(flags));
    struct thread *was = now, *t = now;
    u32 n = now->id;
    for (u32 i = 0; i < THREADS; i++) {
        n = (n + 1) % THREADS;
        if (threads[n].state == READY) { t = &threads[n]; break; }
    }
    if (t != was) {
        now = t;
        tss[1] = t->top;
        swtch(&was->sp, t->sp);
    }
    ASM("pushl %0; popfl" ::"r"(flags) : "cc", "memory");
}

void die(void) { panic("rod32: a thread ended\n"); }
static void sleep(u32 n) { now->wake = ticks + n; now->state = ASLEEP; schedule(); }

void on_tick(void)
{
    outb(0x20, 0x20);
    if (++ticks == 2500) print("rod32: done\n");
    for (u32 n = 0; n < THREADS; n++)
        if (threads[n].state == ASLEEP && threads[n].wake <= ticks) threads[n].state = READY;
    if (ticks % 5 == 0) outb(0x64, 0xd2), outb(0x60, (u8)ticks); /* a key is pressed */
    schedule();
}

void on_slow(void)
{
    slow++;
    (void)inb(0x60);
    for (volatile u32 i = 0; i < 3000; i++) ;
}

#ifdef BUG_PLAIN
void on_clock(void) { outb(0x70, 0x0c); (void)inb(0x71); outb(0xa0, 0x20); outb(0x20, 0x20); seconds++; ASM("leave; iretl"); }
#else
/* Nothing in assembly: the compiler saves what it uses. */
__attribute__((interrupt)) void on_clock(struct frame *f)
{
    (void)f;
    outb(0x70, 0x0c); (void)inb(0x71);
    outb(0xa0, 0x20); outb(0x20, 0x20);
    seconds++;
    for (u32 i = 0; i < seconds % 9; i++) checks += seconds * i ^ ticks;
}
#endif
__attribute__((interrupt)) void on_break(struct frame *f) { (void)f; checks++; }
__attribute__((interrupt)) void on_protection(struct frame *f, u32 code)
{
    if (code || (f->cs & 3) != 3 || *(u8 *)f->eip != 0xf4) panic("rod32: #GP\n");
    f->eip++;
    checks += f->esp;
}

REG void on_page(struct frame *f, u32 code)
{
    u32 at; ASM("movl %%cr2, %0" : "=r"(at));
    if (at >= USER && at < USER + 0x400000 && !(at & 0x100000)) { low[1024 + (at >> 12 & 0x3ff)] = (0x2000000 + (at & 0xff000)) | 7; return; }
    if (f->eip == (u32)copy_at && !(code & 4)) { f->eip = (u32)copy_failed; now->pending = 11; return; }
    panic("rod32: #PF\n");
}
REG void on_illegal(struct frame *f) { f->eip += 2; }

/* In front of a return to user mode: the frame lies on top of the kernel stack. */
void before_user(void)
{
    if (!now->pending || !now->handler) return;
    struct frame *f = (struct frame *)(now->top - sizeof *f);
    u32 *sp = (u32 *)f->esp - 3;
    sp[2] = f->eip; sp[1] = f->eflags; sp[0] = now->pending;
    f->esp = (u32)sp;
    f->eip = now->handler;
    now->pending = 0;
}

REG u32 on_call(u32 nr, u32 a, u32 b)
{
    u8 buffer[16];
    ASM("sti");
    u32 r = 0;
    switch (nr) {
    case 0: r = now->id; break;
    case 1: sleep(a); break;
    case 2: print("CORRUPT\n"); break;
    case 3: now->handler = a; break;
    case 4: r = copy_in(buffer, (void *)a, b); r = r ? 0xfffffff2u : buffer[0]; break;
    case 5: low[1024 + (a >> 12 & 0x3ff)] = 0; ASM("movl %0, %%cr3" ::"r"(dir) : "memory"); break;
    }
    ASM("cli");
    return r;
}

static u32 sys(u32 nr, u32 a, u32 b)
{
    u32 r;
    ASM("int $0x80" : "=a"(r) : "0"(nr), "b"(a), "c"(b) : "memory");
    return r;
}
__attribute__((used)) static volatile u32 signals;
__attribute__((naked)) static void handler(void)
{
    ASM("pushl %eax; pushl %ecx; incl signals; movl signals, %ecx; popl %ecx; popl %eax; addl $4, %esp; popfl; ret");
}
static void user(u32 n)
{
    for (u32 i = 0;; i++) {
        u32 bad = 0, keep = i * 13;
        switch (n) {
        case 1: bad = spin(i, 20000); sys(1, 1, 0); break;
        case 2: bad = spin(i * 3, 70000); break;
        case 3: *(volatile u32 *)(USER + 0x3000) = i; bad = spin(i * 7, 9000); sys(5, USER + 0x3000, 0); ASM("hlt"); break;
        case 4:
            sys(3, (u32)handler, 0);
            bad = sys(4, USER + 0x100000, 8) != 0xfffffff2u;
            bad |= spin(i * 5, 5000); sys(1, 1, 0); break;
        case 5: *(volatile u8 *)(USER + 0x5000) = 77; sys(5, USER + 0x5000, 0); sys(4, USER + 0x5000, 3); ASM("ud2"); ASM("int3"); bad = spin(i, 3000); sys(1, 2, 0); break;
        }
        ASM("" : "+r"(keep));
        if (bad || keep != i * 13) sys(2, 0, 0);
    }
}
REG void worker(u32 n)
{
    for (u32 i = 0;; i++) {
        if (spin(i * n, 30000)) print("CORRUPT kernel\n");
        if (n == 6) sleep(1); else if (i % 8 == 0) sleep(3);
    }
}

void kernel(void)
{
    print("rod32\n");
    pic(0xfefc & ~4u);
    gdt[1] = segment(0, 0x9a); gdt[2] = segment(0, 0x92); gdt[3] = segment(0, 0xfa); gdt[4] = segment(0, 0xf2);
    gdt[5] = task_segment((u32)tss);
    tss[2] = 0x10; tss[25] = 0x680000;
    gate(3, (u32)on_break, 0xee00); gate(6, (u32)illegal, 0x8e00); gate(13, (u32)on_protection, 0x8e00);
    gate(14, (u32)page, 0x8e00); gate(32, (u32)tick, 0x8e00); gate(33, (u32)nested, 0x8e00);
    gate(40, (u32)on_clock, 0x8e00); gate(128, (u32)call, 0xee00);
    load_tables(gdt, sizeof gdt, 0x28);
    for (u32 i = 0; i < 16; i++) dir[i] = i << 22 | 0x87;
    dir[16] = (u32)(low + 1024) | 7;
    for (u32 n = 0; n < THREADS; n++) {
        struct thread *t = &threads[n];
        t->id = n; t->state = READY; t->top = (u32)stacks[n] + 4096;
        u32 *sp = (u32 *)t->top;
        if (n && n < 6) {
            u32 *us = (u32 *)(user_stacks[n] + 4096) - 4;
            us[1] = n;
            *--sp = 0x23; *--sp = (u32)us; *--sp = 0x202; *--sp = 0x1b; *--sp = (u32)user;
            *--sp = 0x23; *--sp = 0x23; *--sp = 0x23;
            *--sp = (u32)to_user;
            *--sp = 2; *--sp = 0; *--sp = 0; *--sp = 0; *--sp = 0;
        } else {
            *--sp = 0; *--sp = (u32)first; *--sp = 2; *--sp = 0; *--sp = n; *--sp = (u32)worker; *--sp = 0;
        }
        t->sp = (u32)sp;
    }
    now = &threads[0];
    tss[1] = now->top;
    pit(1000);
    outb(0x70, 0x8b); u8 b = inb(0x71); outb(0x70, 0x8b); outb(0x71, b | 0x40); outb(0x70, 0x0c); (void)inb(0x71);
    ASM("movl %%cr4, %%eax; orl $0x10, %%eax; movl %%eax, %%cr4; movl %0, %%cr3; movl %%cr0, %%eax; orl $0x80010000, %%eax; movl %%eax, %%cr0; sti" ::"r"(dir) : "eax", "memory");
    for (;;) ASM("hlt");
}
