/* An executive for one CPU, linked with what it runs. Tasks are preempted; some of them are full of coroutines. */
typedef unsigned int u32;
typedef unsigned long long u64;
typedef unsigned short u16;
typedef unsigned char u8;
#define ASM asm volatile
#define TASKS 8
#define COS 5

struct task {
    u32 sp, wake;
    int state;
    u8 fpu[512] __attribute__((aligned(16)));
};
struct saved { u32 edi, esi, ebp, esp, ebx, edx, ecx, eax, eflags, eip; };
enum { READY, ASLEEP };

extern char tick_gate[], divide_gate[], undefined_gate[], protection_gate[], other_gate[], device_gate[];
void give_way(void), co_switch(u32 *from, u32 to);

static u64 gdt[3], idt[256];
static struct task tasks[TASKS], *now;
static u8 stacks[TASKS][4096] __attribute__((aligned(16))), co_stacks[2 * COS][2048] __attribute__((aligned(16)));
static volatile u32 ticks, devices;
static u32 turn;

static inline void outb(u16 p, u8 v) { ASM("outb %0, %1" ::"a"(v), "d"(p)); }
static inline u8 inb(u16 p) { u8 v; ASM("inb %1, %0" : "=a"(v) : "d"(p)); return v; }
#include "../serial.h"

static void wrong(void) { print("CORRUPT\n"); }

static __attribute__((noinline)) u32 next(u32 sp)
{
    struct task *from = now;
    from->sp = sp;
    do {
        turn = (turn + 1) % TASKS;
        if (tasks[turn].state == ASLEEP && tasks[turn].wake <= ticks)
            tasks[turn].state = READY;
    } while (tasks[turn].state != READY);
    now = &tasks[turn];
    if (now != from) {
        ASM("fxsave %0" : "=m"(from->fpu));
        ASM("fxrstor %0" ::"m"(now->fpu));
    }
    return now->sp;
}

__attribute__((used)) u32 on_tick(u32 sp)
{
    outb(0x20, 0x20);
    if (++ticks == 3000)
        print("co32: coasted\n");
    return next(sp);
}

__attribute__((used)) u32 on_give_way(u32 sp) { return next(sp); }
__attribute__((used)) void on_other(void) { panic("trap\n"); }
__attribute__((used)) void on_device(void)
{
    devices++;
    inb(0x71);
    outb(0x70, 0x0c); /* the clock's register C: lets it interrupt again */
    inb(0x71);
}

static void sleep(u32 n)
{
    now->wake = ticks + n;
    now->state = ASLEEP;
    give_way();
}

/* ---- what runs ---- */

static void spin(u32 seed, u32 rounds)
{
    u32 bad;
    ASM("pushl %%ebp; movl %%ebx, %%ebp\n"
        "leal 1(%%eax), %%ebx; leal 2(%%eax), %%ecx; leal 3(%%eax), %%edx; leal 4(%%eax), %%esi; leal 5(%%eax), %%edi; std\n"
        "1: stc; leal (%%ecx), %%ecx; jnc 3f; decl %%ebp; jnz 1b; cld\n"
        "subl $1, %%ebx; subl $2, %%ecx; subl $3, %%edx; subl $4, %%esi; subl $5, %%edi\n"
        "subl %%eax, %%ebx; subl %%eax, %%ecx; subl %%eax, %%edx; subl %%eax, %%esi; subl %%eax, %%edi\n"
        "orl %%ecx, %%ebx; orl %%edx, %%ebx; orl %%esi, %%ebx; orl %%edi, %%ebx; jmp 4f\n"
        "3: cld; movl $1, %%ebx\n4: popl %%ebp; movl %%ebx, %%eax"
        : "=a"(bad), "+b"(rounds) : "0"(seed) : "ecx", "edx", "esi", "edi", "memory", "cc");
    if (bad)
        wrong();
}

static void idle(u32 n) { (void)n; for (;;) ASM("sti; hlt"); }

static void compute(u32 n)
{
    for (u32 r = 0;; r++) {
        spin(n * 777 + r, 20000);
        if (r % 4 == 0)
            give_way();
        if (r % 9 == 0)
            sleep(2);
    }
}

static void floats(u32 n)
{
    double a = n + 1, x;
    for (u32 r = 0;; r++) {
        x = a;
        for (int i = 0; i < 5000; i++)
            x += a;
        if (x != a * 5001)
            wrong();
        if (r % 8 == 0)
            sleep(1);
    }
}

static void faults(u32 n)
{
    for (u32 r = 0;; r++) {
        u32 a = r + 5, d = 0x80000000u - 1, s = 0x2b8;
        ASM("idivl %2" : "+a"(a), "+d"(d) : "c"(1) : "cc");
        if (a != r + 5 || d != 0x7fffffff)
            wrong();
        ASM("ud2");
        ASM("movl %0, %%gs" :: "r"(s)); /* refused */
        spin(r, 3000 + n);
        if (r % 5 == 0)
            sleep(1);
    }
}

/* Each task of this kind has coroutines that pass the turn around. */
static u32 co_sp[2][COS];
static u32 passed[2][COS];

static void co_body(u32 set, u32 me)
{
    u32 keep = me * 1000;
    for (u32 r = 0;; r++) {
        spin(r + me, 500 + 100 * me);
        u32 a = keep + r, b = a * 3, c = a ^ 0x55555555;
        ASM("" : "+b"(a), "+S"(b), "+D"(c));
        passed[set][me]++;
        co_switch(&co_sp[set][me], co_sp[set][(me + 1) % COS]);
        ASM("" : "+b"(a), "+S"(b), "+D"(c));
        if (a != keep + r || b != a * 3 || c != (a ^ 0x55555555))
            wrong();
        if (me == 0 && r % 8 == 0)
            sleep(1);
    }
}

static void reactor(u32 n)
{
    u32 set = n & 1, here;
    for (u32 c = 0; c < COS; c++) {
        u32 *sp = (u32 *)(co_stacks[set * COS + c] + sizeof co_stacks[0]);
        *--sp = c, *--sp = set, *--sp = 0, *--sp = (u32)co_body, *--sp = 0, *--sp = 0, *--sp = 0, *--sp = 0;
        co_sp[set][c] = (u32)sp;
    }
    co_switch(&here, co_sp[set][0]);
    panic("reactor\n");
}

static void (*const bodies[TASKS])(u32) = {idle, compute, compute, floats, floats, faults, reactor, reactor};

static void gate(u32 n, char *to) { idt[n] = ((u32)to & 0xffff) | 8u << 16 | (u64)(0x8e00 | ((u32)to & 0xffff0000)) << 32; }

void kmain(void)
{
    print("co32\n");
    gdt[1] = 0x00cf9a000000ffff, gdt[2] = 0x00cf92000000ffff;
    struct { u16 limit; u32 base; } __attribute__((packed)) g = {sizeof gdt - 1, (u32)gdt}, d = {sizeof idt - 1, (u32)idt};
    for (u32 n = 0; n < 256; n++)
        gate(n, other_gate);
    gate(0, divide_gate), gate(6, undefined_gate), gate(13, protection_gate), gate(0x20, tick_gate), gate(0x28, device_gate);
    ASM("lgdt %0; lidt %1; pushl $8; pushl $1f; lret; 1: movl %2, %%ds; movl %2, %%es; movl %2, %%ss; movl %2, %%gs; movl %2, %%fs"
        ::"m"(g), "m"(d), "r"(16) : "memory");
    outb(0x20, 0x11), outb(0x21, 0x20), outb(0x21, 4), outb(0x21, 1), outb(0x21, 0xfa);
    outb(0xa0, 0x11), outb(0xa1, 0x28), outb(0xa1, 2), outb(0xa1, 1), outb(0xa1, 0xfe);
    outb(0x43, 0x34), outb(0x40, 1193 & 255), outb(0x40, 1193 >> 8);
    outb(0x70, 0x0a), outb(0x71, 0x26), outb(0x70, 0x0b); /* the clock: 1024 a second */
    u8 b = inb(0x71);
    outb(0x70, 0x0b), outb(0x71, b | 0x40), outb(0x70, 0x0c), inb(0x71);
    for (u32 n = 0; n < TASKS; n++) {
        u32 *sp = (u32 *)(stacks[n] + sizeof stacks[n]);
        *--sp = n, *--sp = 0;
        struct saved *s = (struct saved *)sp - 1;
        *s = (struct saved){.eip = (u32)bodies[n], .eflags = 0x202};
        tasks[n].sp = (u32)s;
        *(u16 *)tasks[n].fpu = 0x37f;
        *(u32 *)(tasks[n].fpu + 24) = 0x1f80;
    }
    now = &tasks[0];
    turn = 0;
    ASM("movl %0, %%esp; popa; popf; ret" ::"r"(tasks[0].sp));
    __builtin_unreachable();
}

void *memcpy(void *to, const void *from, u32 n)
{
    void *r = to;
    ASM("rep movsb" : "+D"(to), "+S"(from), "+c"(n) :: "memory");
    return r;
}

void *memset(void *to, int v, u32 n)
{
    void *r = to;
    ASM("rep stosb" : "+D"(to), "+c"(n) : "a"(v) : "memory");
    return r;
}
