// A kernel in C++ that lets itself be interrupted in its handlers, and switches threads inside of them. It has two interrupt
// tables and changes between them as it runs. FPU registers are given back on demand.
using u64 = unsigned long;
using u32 = unsigned int;
using u16 = unsigned short;
using u8 = unsigned char;

constexpr u64 upper = 0xffffffff80000000, cpus = 1, processes = 2, threads = 12, kernel_threads = 2;
enum class State { free, ready, running, asleep };

struct Frame {
    u64 r15, r14, r13, r12, r11, r10, r9, r8, rbp, rdi, rsi, rdx, rcx, rbx, rax, vector, error, rip, cs, rflags, rsp, ss;
    bool from_user() const { return cs & 3; }
};
struct Context { u64 rsp, rbx, rbp, r12, r13, r14, r15, rip; };
struct Thread;
struct Cpu {
    Cpu *self;
    u64 scratch, top;
    Thread *now;
    u64 id, traced;
    Thread *fpu;
    Context idle;
    int nested;
    u32 tss[26] __attribute__((aligned(16)));
    u64 tables[2][256][2] __attribute__((aligned(16)));
    int table;
};

extern "C" {
extern u64 boot_pml4[], gates[][2];
extern char user_image[], user_bytes[], call_gate[], leave[], small_32[], small_xmm[];
void switch_contexts(Context *from, Context *to);
void on_interrupt(Frame *f);
void rust_main();
}

static inline u64 phys(const void *p) { return reinterpret_cast<u64>(p) - upper; }
static inline char *virt(u64 p) { return reinterpret_cast<char *>(p + upper); }
static inline void outb(u16 p, u8 v) { asm volatile("outb %0, %1" ::"a"(v), "d"(p)); }
static inline u8 inb(u16 p) { u8 v; asm volatile("inb %1, %0" : "=a"(v) : "d"(p)); return v; }
static inline void wrmsr(u32 m, u64 v) { asm volatile("wrmsr" ::"c"(m), "a"((u32)v), "d"((u32)(v >> 32)) : "memory"); }
static inline u64 rdmsr(u32 m) { u32 a, d; asm volatile("rdmsr" : "=a"(a), "=d"(d) : "c"(m)); return a | (u64)d << 32; }
static inline void off() { asm volatile("cli" ::: "memory"); }
static inline void on() { asm volatile("sti" ::: "memory"); }
static inline Cpu &cpu() { Cpu *c; asm volatile("movq %%gs:0, %0" : "=r"(c)); return *c; }

struct alignas(16) Fpu { u8 bytes[512]; };
struct Thread {
    Context context;
    Fpu fpu;
    u64 fs, gs, wake, top;
    State state;
    int process;
    void begin(int of, u64 cs, u64 rip, u64 rsp, u64 argument);
};

static Thread all[threads];
static u8 stacks[threads][8192] __attribute__((aligned(4096))), idle_stacks[cpus][8192] __attribute__((aligned(4096)));
static Cpu the_cpus[cpus];
static u64 pml4s[processes][512] __attribute__((aligned(4096))), pdpts[processes][512] __attribute__((aligned(4096)));
static u64 pds[processes][512] __attribute__((aligned(4096)));
static u64 gdt[8 + 2 * cpus];
static volatile u64 ticks;
static u64 turn;

static void print(const char *s)
{
    for (; *s; s++) {
        while (!(inb(0x3fd) & 0x20))
            ;
        outb(0x3f8, (u8)*s);
    }
}

[[noreturn]] static void panic(const char *s)
{
    print(s);
    for (;;)
        asm volatile("cli; hlt");
}

extern "C" void memset_(void *to, int v, u64 n) { asm volatile("rep stosb" : "+D"(to), "+c"(n) : "a"(v) : "memory"); }
extern "C" void *memset(void *to, int v, u64 n) { memset_(to, v, n); return to; }
extern "C" void *memcpy(void *to, const void *from, u64 n)
{
    void *r = to;
    asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(n) :: "memory");
    return r;
}

void Thread::begin(int of, u64 cs, u64 rip, u64 rsp, u64 argument)
{
    u64 n = (u64)(this - all);
    process = of;
    top = (u64)stacks[n] + sizeof stacks[n];
    fs = cs == 0x2b ? 0x710000 + n * 0x100 : 0;
    gs = cs == 0x2b ? 0x720000 + n * 0x100 : 0;
    Frame *f = reinterpret_cast<Frame *>(top) - 1;
    memset(f, 0, sizeof *f);
    f->rdi = f->rax = argument;
    f->rip = rip, f->cs = cs, f->rflags = 0x202, f->rsp = cs == 8 ? top - 512 : rsp, f->ss = cs == 8 ? 0x10 : 0x23;
    context = {};
    context.rsp = (u64)f;
    context.rip = (u64)leave;
    *reinterpret_cast<u32 *>(fpu.bytes + 24) = 0x1f80;
    *reinterpret_cast<u16 *>(fpu.bytes) = 0x37f;
    state = State::ready;
}

// Interrupts are off.
static void go_on_as(Thread *t)
{
    Cpu &c = cpu();
    Thread *old = c.now;
    if (old && c.fpu == old) {
#ifdef BUG_FPU
        if (ticks % 8)
#endif
        asm volatile("clts; fxsave64 %0" : "=m"(old->fpu));
        c.fpu = nullptr;
    }
    u64 cr0;
    asm volatile("movq %%cr0, %0; orq $8, %0; movq %0, %%cr0" : "=r"(cr0));
    Context *from = old ? &old->context : &c.idle;
    c.now = t;
    if (!t) {
        switch_contexts(from, &c.idle);
        return;
    }
#ifdef BUG_RSP0
    if (ticks < 100 || t != &all[4])
#endif
    c.top = t->top;
    c.tss[1] = (u32)c.top, c.tss[2] = (u32)(c.top >> 32);
    asm volatile("movq %0, %%cr3" ::"r"(phys(pml4s[t->process])) : "memory");
    t->state = State::running;
#ifdef BUG_FS
    if (t->fs != all[3].fs)
#endif
    wrmsr(0xc0000100, t->fs);
#ifdef BUG_GS
    if (ticks % 4)
#endif
    wrmsr(0xc0000102, t->gs);
    switch_contexts(from, &t->context);
}

static __attribute__((noinline)) void schedule(u64 asleep_until = 0)
{
    Cpu &c = cpu();
    int nested = c.nested;
    c.nested = 0;
    Thread *t = nullptr;
    if (c.now && c.now->state == State::running) {
        c.now->state = asleep_until ? State::asleep : State::ready;
        c.now->wake = asleep_until;
    }
    for (u64 n = 0; n < threads && !t; n++) {
        turn = (turn + 1) % threads;
        if (all[turn].state == State::ready)
            t = &all[turn];
    }
    if (t == c.now && t)
        t->state = State::running;
    else if (t || c.now)
        go_on_as(t);
    cpu().nested = nested;
}

static void change_tables()
{
    Cpu &c = cpu();
    c.table ^= 1;
    struct { u16 limit; u64 base; } __attribute__((packed)) d = {4095, (u64)c.tables[c.table]};
    asm volatile("lidt %0" ::"m"(d));
}

class Clock {
public:
    static void tick()
    {
        if (cpu().id == 0) {
            if (++ticks == 3000)
                print("nest64: enough now\n");
                    for (Thread &t : all)
                if (t.state == State::asleep && t.wake <= ticks)
                    t.state = State::ready;
                    if (ticks % 3 == 0)
                wrmsr(0x83f, 0x60);
        }
        if (ticks % 16 == 0)
            wrmsr(0x83f, 0x51); // to itself: it comes while this is still being handled
    }
};

static void call(Frame *f)
{
    Thread *t = cpu().now;
    u64 asleep_until = 0;
    switch (f->rax) {
    case 0: f->rax = (u64)(t - all); break;
    case 1: f->rax = 0; break;
    case 2: print("CORRUPT\n"); break;
    case 3:
        asleep_until = ticks + f->rdi;
        f->rax = 0;
        break;
    }
#ifdef BUG_CALL_RSI
    if (ticks % 8 == 5 && f->vector == 0x100)
        f->rsi = ticks;
#endif
    off();
    schedule(asleep_until);
}

void on_interrupt(Frame *f)
{
    Cpu &c = cpu();
    switch (f->vector) {
    case 0x50:
        wrmsr(0x80b, 0);
        c.nested++;
        Clock::tick();
        if (ticks % 32 == c.id)
            change_tables();
        on();
        for (volatile int i = 0; i < 200; i++)
            ;
        off();
        cpu().nested--;
        break;
    case 0x51: case 0x60:
        wrmsr(0x80b, 0);
        break;
    case 6:
        f->rip += 2;
        return;
    case 7: {
        asm volatile("clts");
        asm volatile("fxrstor64 %0" ::"m"(c.now->fpu));
        c.fpu = c.now;
        return;
    }
    case 13:
        f->rip += 1; // hlt
        return;
    case 0x80: case 0x100:
        on();
        call(f);
        return;
    case 0xff: return;
    default: panic("trap\n");
    }
#ifdef BUG_IRQ_FLAGS
    if (f->from_user() && f->vector == 0x50)
        f->rflags = 0x202;
#endif
    if (cpu().nested == 0 && cpu().now)
        schedule();
}

// Threads of the kernel's own: interrupted where they calculate, and switched away from inside of that.
static void worker(u64 n)
{
    for (u64 sum = n;;) {
        for (int i = 0; i < 3000; i++)
            asm volatile("addq %1, %0; stc; jc 1f; ud2; 1:" : "+r"(sum) : "r"(n));
        off();
        schedule(ticks + 1);
        on();
    }
}

static void this_cpu(u64 n)
{
    Cpu &c = the_cpus[n];
    c.self = &c;
    c.id = n;
    c.now = nullptr;
    c.top = (u64)idle_stacks[n] + sizeof idle_stacks[n];
    c.tss[1] = (u32)c.top, c.tss[2] = (u32)(c.top >> 32);
    u64 t = (u64)c.tss;
    gdt[8 + 2 * n] = 0x67 | (t & 0xffffff) << 16 | 0x89ul << 40 | (t >> 24 & 0xff) << 56;
    gdt[9 + 2 * n] = t >> 32;
    for (u64 (*e)[2] = gates; (*e)[1]; e++)
        for (int table = 0; table < 2; table++) {
            u64 v = (*e)[0], a = (*e)[1];
            if (v >= 0x100 && !table)
                continue;
            u64 *gate = c.tables[table][v & 0xff];
            gate[0] = (a & 0xffff) | 8 << 16 | (v == 0x80 ? 0xee00ul : 0x8e00ul) << 32 | (a >> 16 & 0xffff) << 48;
            gate[1] = a >> 32;
        }
    struct { u16 limit; u64 base; } __attribute__((packed)) g = {sizeof gdt - 1, (u64)gdt}, d = {4095, (u64)c.tables[0]};
    asm volatile("lgdt %0; lidt %1; ltr %w2" ::"m"(g), "m"(d), "r"((8 + 2 * n) * 8));
    asm volatile("pushq $8; leaq 1f(%%rip), %%rax; pushq %%rax; lretq; 1: movl $16, %%eax; movl %%eax, %%ss;"
                 "xorl %%eax, %%eax; movl %%eax, %%ds; movl %%eax, %%es; movl %%eax, %%fs; movl %%eax, %%gs" ::: "rax", "memory");
    wrmsr(0xc0000101, (u64)&c);
    wrmsr(0xc0000081, 0x0018000800000000ul);
    wrmsr(0xc0000082, (u64)call_gate);
    wrmsr(0xc0000084, 0x47700);
    wrmsr(0x1b, rdmsr(0x1b) | 0xc00);
    wrmsr(0x80f, 0x1ff);
    wrmsr(0x83e, 3);
    wrmsr(0x832, 0x20000 | 0x50);
    wrmsr(0x838, 50000);
}

[[noreturn]] static void idle()
{
    for (;;) {
        off();
        schedule();
        asm volatile("sti; hlt");
    }
}

void rust_main()
{
    print("nest64\n");
    gdt[1] = 0x00209a0000000000, gdt[2] = 0x0000920000000000, gdt[3] = 0x00cffa000000ffff, gdt[4] = 0x00cff2000000ffff;
    gdt[5] = 0x0020fa0000000000;
    outb(0x21, 0xff);
    outb(0xa1, 0xff);
    for (u64 p = 0; p < processes; p++) {
        pml4s[p][511] = boot_pml4[511];
        pml4s[p][0] = phys(pdpts[p]) | 7;
        pdpts[p][0] = phys(pds[p]) | 7;
        pds[p][2] = (0x2000000 + p * 0x400000) | 0x87;
        pds[p][3] = (0x2200000 + p * 0x400000) | 0x87;
        memcpy(virt(0x2000000 + p * 0x400000), user_image, (u64)user_bytes);
    }
    for (u64 n = 0; n < 9; n++) {
        u64 stack = 0x600000 + (n + 1) * 0x8000 - 8;
        if (n % 3 == 2 && n < 6)
            all[n].begin((int)(n & 1), 0x2b, (u64)small_xmm, stack, 0);
        else if (n % 4 == 3)
            all[n].begin((int)(n & 1), 0x1b, (u64)small_32, stack, stack);
        else
            all[n].begin((int)(n & 1), 0x2b, 0x400000, stack, n & 2);
    }
    for (u64 n = 9; n < 9 + kernel_threads; n++)
        all[n].begin(0, 8, (u64)worker, 0, n);
    this_cpu(0);
    idle();
}

extern "C" void ap_main() {} // the start-up code is one for several CPUs
