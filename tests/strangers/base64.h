/* What 64-bit kernels for several CPUs begin with; included where CPUS is said. Selectors: 8 and 10h the kernel's, 1Bh
 * and 23h the user's data and code. */
typedef unsigned long u64;
typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned char u8;

#define UPPER 0xffffffff80000000ul
#define PHYS(p) ((u64)(p) - UPPER)
#define VIRT(p) ((void *)((u64)(p) + UPPER))
#define ASM asm volatile
#define MSR_FS 0xc0000100
#define MSR_GS 0xc0000101
#define MSR_KGS 0xc0000102

extern u64 boot_pml4[], ap_stack, ap_number;
extern char ap_start[], ap_start_end[];

static u64 gdt[6 + 2 * CPUS], idt[256][2];
static u32 tss[CPUS][28] __attribute__((aligned(128)));
static volatile u64 cpus_up;

static inline void outb(u16 p, u8 v) { ASM("outb %0, %1" ::"a"(v), "d"(p)); }
static inline u8 inb(u16 p) { u8 v; ASM("inb %1, %0" : "=a"(v) : "d"(p)); return v; }
static inline void wrmsr(u32 m, u64 v) { ASM("wrmsr" ::"c"(m), "a"((u32)v), "d"((u32)(v >> 32)) : "memory"); }
static inline u64 rdmsr(u32 m) { u32 a, d; ASM("rdmsr" : "=a"(a), "=d"(d) : "c"(m)); return a | (u64)d << 32; }
static inline void spin_take(int *l) { while (__atomic_exchange_n(l, 1, __ATOMIC_ACQUIRE)) ASM("pause"); }
static inline void spin_drop(int *l) { __atomic_store_n(l, 0, __ATOMIC_RELEASE); }
static inline u64 irq_off(void) { u64 f; ASM("pushfq; popq %0; cli" : "=r"(f)::"memory"); return f; }
static inline void irq_back(u64 f) { if (f & 0x200) ASM("sti" ::: "memory"); }

#include "serial.h"

static inline void set_rsp0(u64 n, u64 sp) { tss[n][1] = (u32)sp; tss[n][2] = (u32)(sp >> 32); }

static void gate(u64 n, const void *to, u64 type)
{
    u64 a = (u64)to;
    idt[n][0] = (a & 0xffff) | 8 << 16 | type << 32 | (a >> 16 & 0xffff) << 48;
    idt[n][1] = a >> 32;
}

static void load_tables(u64 n)
{
    u64 t = (u64)tss[n];
    gdt[1] = 0x00209a0000000000;
    gdt[2] = 0x0000920000000000;
    gdt[3] = 0x0000f20000000000;
    gdt[4] = 0x0020fa0000000000;
    gdt[6 + 2 * n] = 0x67 | (t & 0xffffff) << 16 | 0x89ul << 40 | (t >> 24 & 0xff) << 56;
    gdt[7 + 2 * n] = t >> 32;
    tss[n][25] = 0x680000;
    struct { u16 limit; u64 base; } __attribute__((packed)) g = {sizeof gdt - 1, (u64)gdt}, d = {sizeof idt - 1, (u64)idt};
    ASM("lgdt %0; lidt %1; ltr %w2" ::"m"(g), "m"(d), "r"((6 + 2 * n) * 8));
    ASM("pushq $8; leaq 1f(%%rip), %%rax; pushq %%rax; lretq; 1: movl $16, %%eax; movl %%eax, %%ss; movl %%eax, %%ds;"
        "movl %%eax, %%es; xorl %%eax, %%eax; movl %%eax, %%fs; movl %%eax, %%gs" ::: "rax", "memory");
    wrmsr(0x1b, rdmsr(0x1b) | 0xc00);
    wrmsr(0x80f, 0x1ff);
}

static void ticks_on(u64 vector, u64 count)
{
    wrmsr(0x83e, 3);
    wrmsr(0x832, 0x20000 | vector);
    wrmsr(0x838, count);
}

static void start_others(u8 *stacks, u64 size)
{
    __builtin_memcpy(VIRT(0x8000), ap_start, (u64)(ap_start_end - ap_start));
    for (u64 n = 1; n < CPUS; n++) {
        ap_stack = (u64)stacks + (n + 1) * size;
        ap_number = n;
        wrmsr(0x830, n << 32 | 0x4500);
        for (volatile int i = 0; i < 200000; i++)
            ;
        wrmsr(0x830, n << 32 | 0x4608);
        while (cpus_up != n)
            ASM("pause");
    }
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
