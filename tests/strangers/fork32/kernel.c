/* A Unix for one CPU: fork with pages copied when they are written to, exec, signals, a lazily switched FPU, TLS by a
 * descriptor, user memory through FS, a call gate beside int 80h, interrupts on in the kernel. */
typedef unsigned int u32;
typedef unsigned long long u64;
typedef unsigned short u16;
typedef unsigned char u8;

#define UPPER 0xc0000000u
#define TASKS 14
#define USER 0x8000000u
#define PAGES 64 /* of a process, from USER on */
#define FRAMES 1024
#define FRAME(n) (0x800000u + (u32)(n) * 4096)
#define ASM __asm__ volatile

enum { FREE, READY, ASLEEP, WAITING, ZOMBIE };
struct regs { u32 ebx, ecx, edx, esi, edi, ebp, eax, ds, es, fs, gs, orig, eip, cs, eflags, esp, ss; };
struct task {
    u8 fx[512] __attribute__((aligned(16)));
    u32 sp, wake, alarm, pending, handler, restorer, tls, pid;
    int state;
    struct task *parent;
};

extern char user_image[], user_size[];
extern char call_80[], call_gate[], on_breakpoint[], on_protection[], on_page[], on_no_fpu[], on_timer[], on_clock[], on_nothing[];
extern char return_from_fork[];
struct task *switch_stacks(u32 *from, u32 to, struct task *last);

u32 boot_dir[1024] __attribute__((aligned(4096))) = {
    [0] = 0x83, [768] = 0x83, [769] = 0x400083, [770] = 0x800083, [771] = 0xc00083,
};
static struct task tasks[TASKS], *current, *fpu_owner;
static u8 stacks[TASKS][4096] __attribute__((aligned(4096)));
static u32 dirs[TASKS][1024] __attribute__((aligned(4096))), tables[TASKS][1024] __attribute__((aligned(4096)));
static u16 refs[FRAMES];
static u64 gdt[8], idt[256];
static u32 tss[26], next_pid = 1;
static volatile u32 ticks, seconds, need_resched;

static inline void outb(u16 p, u8 v) { ASM("outb %0, %1" ::"a"(v), "Nd"(p)); }
static inline u8 inb(u16 p) { u8 v; ASM("inb %1, %0" : "=a"(v) : "Nd"(p)); return v; }
static inline u32 off(void) { u32 f; ASM("pushfl; popl %0; cli" : "=r"(f) :: "memory"); return f; }
static inline void on(u32 f) { ASM("pushl %0; popfl" ::"r"(f) : "memory", "cc"); }
static inline void flush(void) { u32 d; ASM("movl %%cr3, %0; movl %0, %%cr3" : "=r"(d) :: "memory"); }

#include "../serial.h"

static u64 segment(u32 base, u32 access)
{
    return (base & 0xffffff) * 0x10000ull | (u64)(base >> 24) << 56 | (u64)access << 40 | 0x00cf00000000ffffull;
}

static u32 from_user(u32 at) { u32 v; ASM("movl %%fs:(%1), %0" : "=r"(v) : "r"(at)); return v; }
static void to_user(u32 at, u32 v) { ASM("movl %0, %%fs:(%1)" ::"r"(v), "r"(at) : "memory"); }

/* ---- pages ---- */

static u32 new_frame(void)
{
    for (u32 n = 0; n < FRAMES; n++)
        if (!refs[n]) {
            refs[n] = 1;
            return FRAME(n);
        }
    panic("no memory\n");
    return 0;
}

static void copy(void *to, const void *from, u32 n) { ASM("rep movsb" : "+D"(to), "+S"(from), "+c"(n) :: "memory"); }
static void zero(void *to, u32 n) { ASM("rep stosb" : "+D"(to), "+c"(n) : "a"(0) : "memory"); }
static u32 frame_number(u32 entry) { return (entry - 0x800000u) >> 12; }

static void free_pages(struct task *t)
{
    u32 *table = tables[t - tasks];
    for (u32 n = 0; n < PAGES; n++) {
        if (table[n])
            refs[frame_number(table[n])]--;
        table[n] = 0;
    }
}

static void share_pages(struct task *from, struct task *to)
{
    u32 *a = tables[from - tasks], *b = tables[to - tasks];
    for (u32 n = 0; n < PAGES; n++) {
        if (a[n]) {
            a[n] &= ~2u;
            refs[frame_number(a[n])]++;
        }
        b[n] = a[n];
    }
    flush();
}

void do_page(struct regs *r, u32 code)
{
    u32 at;
    (void)code;
    ASM("movl %%cr2, %0" : "=r"(at));
    u32 f = off(), n = (at - USER) >> 12;
    if (n >= PAGES || (r->cs & 3 && r->eip - USER >= PAGES * 4096))
        panic("page fault\n");
    u32 *entry = &tables[current - tasks][n], old = *entry;
    if (!old) {
        *entry = new_frame() | 7;
        zero((void *)((*entry & ~4095u) + UPPER), 4096);
    } else if (refs[frame_number(old)] == 1) {
        *entry |= 2;
    } else {
        *entry = new_frame() | 7;
        copy((void *)((*entry & ~4095u) + UPPER), (void *)((old & ~4095u) + UPPER), 4096);
        refs[frame_number(old)]--;
    }
    ASM("invlpg (%0)" ::"r"(at) : "memory");
    on(f);
}

/* ---- tasks ---- */

static void schedule(void)
{
    static u32 turn;
    u32 f = off();
    struct task *from = current, *to = 0;
    need_resched = 0;
    for (u32 n = 0; n < TASKS && !to; n++) {
        turn = turn % (TASKS - 1) + 1;
        if (tasks[turn].state == READY)
            to = &tasks[turn];
    }
    if (!to)
        to = &tasks[0];
    if (to != from) {
        current = to;
#ifdef BUG_ESP0
        if (ticks < 200 || to != &tasks[3])
#endif
        tss[1] = (u32)stacks[to - tasks] + sizeof stacks[0];
#ifdef BUG_TLS
        if (to->tls)
#endif
        gdt[6] = segment(to->tls, 0xf2);
#ifdef BUG_CR3
        if (ticks < 200 || to != &tasks[3])
#endif
        ASM("movl %0, %%cr3" ::"r"((u32)dirs[to - tasks] - UPPER) : "memory");
        u32 cr0;
        ASM("movl %%cr0, %0" : "=r"(cr0));
#ifndef BUG_FPU_TS
        cr0 = fpu_owner == to ? cr0 & ~8u : cr0 | 8;
#endif
        ASM("movl %0, %%cr0" ::"r"(cr0));
        switch_stacks(&from->sp, to->sp, from);
    }
    on(f);
}

void schedule_tail(void) { ASM("sti"); }

void fpu_for_current(void)
{
    ASM("clts");
    if (fpu_owner == current)
        return;
#ifndef BUG_FPU_SAVE
    if (fpu_owner)
        ASM("fxsave %0" : "=m"(fpu_owner->fx));
#endif
    ASM("fxrstor %0" ::"m"(current->fx));
    fpu_owner = current;
}

static struct task *new_task(struct regs *r)
{
    u32 f = off();
    for (u32 n = 1; n < TASKS; n++) {
        struct task *t = &tasks[n];
        if (t->state != FREE)
            continue;
        struct regs *own = (struct regs *)(stacks[n] + sizeof stacks[0]) - 1;
        *own = *r;
        own->eax = 0;
#ifdef BUG_FORK_EDI
        own->edi = 0;
#endif
        u32 *sp = (u32 *)own;
        *--sp = (u32)return_from_fork;
        *--sp = 2;
        for (int i = 0; i < 4; i++)
            *--sp = 0;
        t->sp = (u32)sp;
        t->parent = current;
        t->pid = next_pid++;
        t->alarm = t->pending = 0;
        if (fpu_owner == current)
            ASM("clts; fxsave %0; fwait" : "=m"(current->fx));
        if (current != &tasks[0]) {
            copy(t->fx, current->fx, sizeof t->fx);
            t->handler = current->handler, t->restorer = current->restorer, t->tls = current->tls;
        }
        share_pages(current, t);
        t->state = READY;
        on(f);
        return t;
    }
    on(f);
    return 0;
}

static void sleep(int state)
{
    current->state = state;
    schedule();
}

static void wake_parent(struct task *p)
{
    if (p && p->state == WAITING)
        p->state = READY;
}

/* ---- system calls ---- */

static void send_signal(struct regs *r)
{
    u32 at = r->esp - sizeof *r - 4;
    current->pending = 0;
    to_user(at, current->restorer);
    for (u32 n = 0; n < sizeof *r / 4; n++)
        to_user(at + 4 + n * 4, ((u32 *)r)[n]);
    r->esp = at;
    r->eip = current->handler;
    r->eflags &= ~0x500u;
}

static void signal_return(struct regs *r)
{
    struct regs n;
    for (u32 i = 0; i < sizeof n / 4; i++)
        ((u32 *)&n)[i] = from_user(r->esp + i * 4);
    n.cs |= 3;
    n.ss |= 3;
    n.eflags = (n.eflags & 0xcd5) | 0x202;
#ifdef BUG_SIGNAL_FLAGS
    n.eflags = (r->eflags & 0xcd5) | 0x202;
#endif
#ifdef BUG_SIGNAL_IOPL
    n.eflags |= 0x3000;
#endif
#ifdef BUG_SIGNAL_ECX
    n.ecx = ticks;
#endif
#ifdef BUG_SIGNAL_ESP
    n.esp += 4;
#endif
#ifdef BUG_SIGNAL_IF
    n.eflags &= ~0x200u;
#endif
    *r = n;
}

void system_call(struct regs *r)
{
    u32 f;
    switch (r->eax) {
    case 0: { /* fork */
        struct task *t = new_task(r);
        r->eax = t ? t->pid : ~0u;
        break;
    }
    case 1: /* exit */
        f = off();
        free_pages(current);
        flush();
        if (fpu_owner == current)
            fpu_owner = 0;
        wake_parent(current->parent);
        sleep(ZOMBIE);
        on(f);
        break;
    case 2: { /* wait */
        f = off();
        u32 pid = 0;
        while (!pid) {
            for (u32 n = 1; n < TASKS; n++)
                if (tasks[n].state == ZOMBIE && tasks[n].parent == current) {
                    tasks[n].state = FREE;
                    pid = tasks[n].pid;
                    break;
                }
            if (!pid)
                sleep(WAITING);
        }
        on(f);
        r->eax = pid;
        break;
    }
    case 3: r->eax = current->pid; break;
    case 4: /* nap; a signal ends it */
        f = off();
        current->wake = ticks + r->ebx;
        sleep(ASLEEP);
        on(f);
        r->eax = 0;
        break;
    case 5: current->handler = r->ebx, current->restorer = r->ecx, r->eax = 0; break;
    case 6: current->alarm = r->ebx, r->eax = 0; break;
    case 7: signal_return(r); break;
    case 8: /* exec: the same program, from the beginning, with another number */
        f = off();
        r->ecx = r->edx = r->esi = r->edi = r->ebp = 0;
        r->eax = r->ebx;
        r->ebx = 0;
        r->eip = USER;
        r->esp = USER + PAGES * 4096 - 16;
        r->eflags = 0x202;
        on(f);
        break;
    case 9:
        f = off();
        current->tls = r->ebx;
        gdt[6] = segment(r->ebx, 0xf2);
        on(f);
        r->eax = 0;
        break;
    case 10: print("CORRUPT\n"); break;
    case 11: { /* the sum of some words, read through an FS that is the kernel's for the while */
        u32 sum = 0, buffer[64];
        for (u32 n = 0; n < 64; n++)
            buffer[n] = from_user(r->ebx + n * 4);
        ASM("movl %0, %%fs" ::"r"(0x10));
        for (u32 m = 0; m < 40; m++)
            for (u32 n = 0; n < 64; n++)
                sum += from_user((u32)&buffer[n]) * (m == 0);
        ASM("movl %0, %%fs" ::"r"(0x23));
        r->eax = sum;
        break;
    }
    default: r->eax = ~0u;
    }
#ifdef BUG_CALL_EDX
    if (r->orig == 3)
        r->edx = seconds;
#endif
}

/* On the way out of everything but the clock. */
void before_return(struct regs *r)
{
    if (!(r->cs & 3))
        return;
    ASM("cli");
    while (need_resched)
        schedule();
    ASM("sti");
    if (current->pending && current->handler)
        send_signal(r);
    ASM("cli");
}

/* ---- interrupts ---- */

void do_timer(struct regs *r, u32 code)
{
    (void)r, (void)code;
    outb(0x20, 0x20);
    if (++ticks == 5000)
        print("fork32: forked enough\n");
    need_resched = 1;
    ASM("sti");
    for (u32 n = 1; n < TASKS; n++) {
        u32 f = off();
        struct task *t = &tasks[n];
        if (t->alarm && !--t->alarm) {
            t->pending = 1;
            t->wake = ticks;
        }
        if (t->state == ASLEEP && (int)(ticks - t->wake) >= 0)
            t->state = READY;
        on(f);
    }
#ifdef BUG_TIMER_EAX
    if (r->cs & 3)
        r->eax = (u32)tasks;
#endif
}

void do_clock(void)
{
    outb(0x70, 12);
    inb(0x71);
    outb(0xa0, 0x20);
    outb(0x20, 0x20);
    seconds += inb(0x3fd) != 0;
}

void do_breakpoint(struct regs *r, u32 code) { (void)r, (void)code; }

void do_protection(struct regs *r, u32 code)
{
    (void)code;
    if (!(r->cs & 3))
        panic("protection\n");
    r->eip++; /* a cli in user code: nothing */
}

/* ---- start ---- */

static void gate(u32 n, void *to, u32 type)
{
    u32 a = (u32)to;
    idt[n] = (a & 0xffff) | 8u << 16 | (u64)(type << 8 | (a & 0xffff0000)) << 32;
}

void start_kernel(void)
{
    print("fork32\n");
    gdt[1] = segment(0, 0x9a), gdt[2] = segment(0, 0x92), gdt[3] = segment(0, 0xfa), gdt[4] = segment(0, 0xf2);
    gdt[5] = ((u32)tss & 0xffffff) * 0x10000ull | (u64)((u32)tss >> 24) << 56 | 0x890000000067ull;
    gdt[6] = segment(0, 0xf2);
    gdt[7] = ((u32)call_gate & 0xffff) | 8u << 16 | (u64)(0xec00 | ((u32)call_gate & 0xffff0000)) << 32;
    tss[2] = 0x10;
    tss[25] = 0x680000;
    for (u32 n = 0; n < 48; n++)
        gate(n, on_nothing, 0x8e);
    gate(3, on_breakpoint, 0xef);
    gate(7, on_no_fpu, 0x8e);
    gate(13, on_protection, 0x8f);
    gate(14, on_page, 0x8e);
    gate(32, on_timer, 0x8e);
    gate(40, on_clock, 0x8e);
    gate(128, call_80, 0xef);
    struct { u16 limit; u32 base; } __attribute__((packed)) g = {sizeof gdt - 1, (u32)gdt}, d = {sizeof idt - 1, (u32)idt};
    ASM("lgdt %0; lidt %1; ljmp $8, $1f; 1: movl %2, %%ds; movl %2, %%es; movl %2, %%ss; movl %3, %%fs; movl %4, %%gs; ltr %w5" ::"m"(g),
        "m"(d), "r"(0x10), "r"(0x23), "r"(0), "r"(0x28));
    for (u32 n = 0; n < TASKS; n++) {
        copy(dirs[n], boot_dir, 4096);
        dirs[n][0] = 0;
        dirs[n][USER >> 22] = ((u32)tables[n] - UPPER) | 7;
        *(u32 *)(tasks[n].fx + 24) = 0x1f80;
        *(u16 *)tasks[n].fx = 0x37f;
    }
    for (u32 n = 0; n * 4096 < (u32)user_size; n++) {
        tables[0][n] = new_frame() | 7;
        copy((void *)((tables[0][n] & ~4095u) + UPPER), user_image + n * 4096, 4096);
    }
    current = &tasks[0];
    ASM("movl %0, %%cr3" ::"r"((u32)dirs[0] - UPPER) : "memory");
    struct regs r = {.ds = 0x23, .es = 0x23, .fs = 0x23, .gs = 0x33, .eip = USER, .cs = 0x1b, .ss = 0x23, .eflags = 0x202};
    r.esp = USER + PAGES * 4096 - 16;
    new_task(&r);
    outb(0x20, 0x11); outb(0xa0, 0x11); outb(0x21, 32); outb(0xa1, 40); outb(0x21, 4); outb(0xa1, 2);
    outb(0x21, 1); outb(0xa1, 1); outb(0x21, 0xfa); outb(0xa1, 0xfe);
    outb(0x43, 0x34); outb(0x40, (1193182 / 1500) & 0xff); outb(0x40, (1193182 / 1500) >> 8);
    outb(0x70, 0x8a); outb(0x71, 0x26);
    outb(0x70, 0x8b); u8 b = inb(0x71); outb(0x70, 0x8b); outb(0x71, b | 0x40);
    outb(0x70, 12); inb(0x71);
    for (;;) {
        ASM("sti; hlt; cli");
        schedule();
    }
}
