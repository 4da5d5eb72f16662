/* Nothing lives on a kernel stack: every way in saves to the area of who runs, every way out loads from one. */
#include "../base32.h"
#include "../spin32.h"
#define CPUS 4
#define THREADS 10
enum { READY, RUNNING, ASLEEP };
struct area {
    u32 eax, ebx, ecx, edx, esi, edi, ebp, number, error, eip, cs, eflags, esp, ss, fs, gs, ds, es, how, state, wake, tls, id, pad[9];
    u8 fpu[512];
} ALIGNED(128);
struct cpu { struct area *now; u8 *stack; u32 scratch, id, last_esp, turn; u64 gdt[8]; u32 tss[26]; u8 kstack[2048] ALIGNED(16); };
extern u32 vectors[];
void fast(void);
__attribute__((regparm(1), noreturn)) void resume(struct area *a);
static struct cpu cpus[CPUS];
static struct area areas[THREADS];
static u8 stacks[THREADS][2048] ALIGNED(16);
static volatile u32 kernel_lock, ticks, locals[THREADS];

static struct cpu *me(void) { u32 n; ASM("movl %%fs:12, %0" : "=r"(n)); return &cpus[n]; }

static __attribute__((noreturn)) void leave(struct cpu *c)
{
    struct area *a = c->now;
    if (a && a->state == RUNNING) { __sync_lock_release(&kernel_lock); resume(a); }
    for (u32 n = 1; n <= THREADS; n++) {
        struct area *k = &areas[(c->turn + n) % THREADS];
        if (k->state == READY) {
            c->turn = (c->turn + n) % THREADS;
            k->state = RUNNING;
#ifdef BUG_CURRENT
            if (ticks % 64 != 9 || !c->now)
#endif
            c->now = k;
            c->gdt[6] = segment(k->tls, 0xf2);
            __sync_lock_release(&kernel_lock);
            resume(k);
        }
    }
    c->now = 0;
    __sync_lock_release(&kernel_lock);
    for (;;) ASM("sti; hlt");
}

__attribute__((noreturn)) void on_trap(u32 number)
{
    while (__sync_lock_test_and_set(&kernel_lock, 1)) ASM("pause");
    struct cpu *c = me();
    struct area *a = c->now;
    switch (number) {
    case 48:
        APIC(0xb0) = 0;
        if (!c->id && ++ticks == 2500) print("sep32: done\n");
        for (u32 n = 0; !c->id && n < THREADS; n++)
            if (areas[n].state == ASLEEP && areas[n].wake <= ticks) areas[n].state = READY;
        if (a) a->state = READY;
        leave(c);
    case 3: leave(c);
    case 6: a->eip += 2; leave(c);
    case 128:
        c->last_esp = a->esp;
        switch (a->ebx) {
        case 0: a->eax = a->id; break;
        case 1: a->eax = 0; a->state = ASLEEP; a->wake = ticks + a->esi; break;
        case 2: print("CORRUPT\n"); break;
        case 3: a->eax = 0; a->state = READY; break;
        case 4: a->tls = a->esi; a->gs = 0x33; c->gdt[6] = segment(a->tls, 0xf2); a->eax = 0; break;
        }
        leave(c);
    }
    panic("sep32: trap\n");
}

static __attribute__((noinline)) u32 call(u32 nr, u32 a)
{
    u32 r;
    ASM("movl %%esp, %%ecx; movl $1f, %%edx; sysenter; 1:" : "=a"(r) : "b"(nr), "S"(a) : "ecx", "edx", "memory");
    return r;
}
static u32 floats(u32 seed, u32 rounds)
{
    u32 bad;
    ASM("movd %%eax, %%xmm3; cvtsi2sd %%eax, %%xmm4; movd %%eax, %%xmm7; fildl %2\n"
        "1: movd %%xmm3, %%ecx; cmpl %%eax, %%ecx; jne 2f; movd %%xmm7, %%ecx; cmpl %%eax, %%ecx; jne 2f; decl %%edx; jnz 1b\n"
        "cvtsd2si %%xmm4, %%ecx; 2: xorl %%eax, %%ecx; fistpl %2"
        : "=c"(bad), "+d"(rounds), "+m"(seed) : "a"(seed) : "memory", "cc");
    return bad;
}
static void user(u32 n)
{
    u32 seen;
    for (u32 i = 0;; i++) {
        u32 bad = 0, keep = i * 7;
        switch (n) {
        case 0: bad = spin(i, 30000); call(1, 2); break;
        case 1: bad = floats(i + 5, 40000); call(3, 0); break;
        case 2: bad = floats(i * 3 + 1, 20000); call(1, 1); break;
        case 3: locals[3] = ~i; call(4, (u32)&locals[3]); bad = spin(i, 60000); ASM("movl %%gs:0, %0" : "=r"(seen)); bad |= seen != ~i; call(1, 1); break;
        case 4: bad = spin(i * 9, 100000); break;
        case 5: ASM("int3"); ASM("ud2"); bad = spin(i * 3, 3000); call(1, 1 + i % 4); break;
        case 6: locals[6] = i; call(4, (u32)&locals[6]); bad = floats(i, 60000); ASM("movl %%gs:0, %0" : "=r"(seen)); bad |= seen != i; call(3, 1); break;
        default: bad = spin(i + n, 4000 * n); call(i & 1, 1 + n % 3);
        }
        ASM("" : "+r"(keep));
        if (bad || keep != i * 7) call(2, 0);
    }
}
static void enter(u32 id)
{
    struct cpu *c = &cpus[id];
    c->id = id; c->stack = c->kstack + sizeof c->kstack; c->turn = id * 3;
    c->gdt[1] = segment(0, 0x9a); c->gdt[2] = segment(0, 0x92); c->gdt[3] = segment(0, 0xfa); c->gdt[4] = segment(0, 0xf2);
    c->gdt[5] = task_segment((u32)c->tss); c->gdt[6] = segment(0, 0xf2); c->gdt[7] = segment((u32)c, 0x92);
    c->tss[1] = (u32)c->stack; c->tss[2] = 0x10; c->tss[25] = 0x680000;
    load_tables(c->gdt, sizeof c->gdt, 0x28);
    ASM("movw %w0, %%fs" ::"r"(0x38));
    wrmsr(0x174, 8); wrmsr(0x175, (u32)c->tss); wrmsr(0x176, (u32)fast);
    ASM("movl %%cr4, %%eax; orl $0x600, %%eax; movl %%eax, %%cr4; movl %%cr0, %%eax; andl $~0xc, %%eax; orl $2, %%eax; movl %%eax, %%cr0; fninit" ::: "eax");
    apic_timer(48, 62500);
    while (__sync_lock_test_and_set(&kernel_lock, 1)) ASM("pause");
    ASM("movl %0, %%esp; xorl %%ebp, %%ebp; pushl %1; call *%2" ::"r"(c->stack), "r"(c), "r"(leave));
    __builtin_unreachable();
}
void other(u32 id) { enter(id); }
void kernel(void)
{
    print("sep32\n");
    pic(0xffff);
    for (u32 *v = vectors; v[1]; v += 2) gate(v[0], v[1], v[0] == 3 ? 0xee00 : 0x8e00);
    for (u32 n = 0; n < THREADS; n++) {
        struct area *a = &areas[n];
        u32 *sp = (u32 *)(stacks[n] + sizeof stacks[n]) - 4;
        sp[1] = n;
        a->id = n; a->eip = (u32)user; a->cs = 0x1b; a->ss = a->ds = a->es = a->fs = 0x23; a->gs = 0x33; a->eflags = 0x202; a->esp = (u32)sp;
        *(u16 *)a->fpu = 0x37f; *(u32 *)(a->fpu + 24) = 0x1f80;
    }
    kernel_lock = 1;
    start_others();
    for (volatile u32 i = 0; i < 3000000; i++) ;
    __sync_lock_release(&kernel_lock);
    enter(0);
}
