/* What every kernel here has: ports, descriptors, gates, PIC, PIT, local APIC, a loop that notices lost registers. */
typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned char u8;
typedef unsigned long long u64;
#define ASM asm volatile
#define APIC(r) (*(volatile u32 *)(0xfee00000u + (r)))
#define ALIGNED(n) __attribute__((aligned(n)))

static inline void outb(u16 p, u8 v) { ASM("outb %0, %1" ::"a"(v), "d"(p)); }
static inline u8 inb(u16 p) { u8 v; ASM("inb %1, %0" : "=a"(v) : "d"(p)); return v; }
static inline void wrmsr(u32 m, u32 v) { ASM("wrmsr" ::"c"(m), "a"(v), "d"(0) : "memory"); }
#include "serial.h"

static u64 segment(u32 base, u32 access)
{
    return (base & 0xffffff) * 0x10000ull | (u64)(base >> 24) << 56 | (u64)access << 40 | 0x00cf00000000ffffull;
}
static inline u64 task_segment(u32 base)
{
    return (base & 0xffffff) * 0x10000ull | (u64)(base >> 24) << 56 | 0x890000000067ull;
}
static u64 idt[256];
static inline void gate(u32 n, u32 at, u32 kind) { idt[n] = (at & 0xffff) | 8u << 16 | (u64)(kind | (at & 0xffff0000)) << 32; }
static inline void load_tables(u64 *gdt, u32 bytes, u32 task)
{
    struct { u16 limit; u32 base; } __attribute__((packed)) g = {bytes - 1, (u32)gdt}, d = {sizeof idt - 1, (u32)idt};
    ASM("lgdt %0; lidt %1; ljmp $8, $1f; 1: movw %w2, %%ds; movw %w2, %%es; movw %w2, %%ss; ltr %w3;"
        "xorl %%eax, %%eax; movw %%ax, %%fs; movw %%ax, %%gs" ::"m"(g), "m"(d), "r"(0x10), "r"(task) : "eax", "memory");
}
static inline void pic(u32 mask)
{
    outb(0x20, 0x11); outb(0xa0, 0x11); outb(0x21, 32); outb(0xa1, 40); outb(0x21, 4); outb(0xa1, 2);
    outb(0x21, 1); outb(0xa1, 1); outb(0x21, (u8)mask); outb(0xa1, (u8)(mask >> 8));
}
static inline void pit(u32 hz)
{
    outb(0x43, 0x34); outb(0x40, (u8)(1193182 / hz)); outb(0x40, (u8)((1193182 / hz) >> 8));
}
static inline void apic_timer(u32 vector, u32 count)
{
    APIC(0xf0) = 0x1ff; APIC(0x3e0) = 3; APIC(0x320) = 0x20000 | vector; APIC(0x380) = count;
}
static inline void start_others(void)
{
    extern char boot16[], boot16_end[];
    for (u32 i = 0; i < (u32)(boot16_end - boot16); i++)
        ((volatile u8 *)0x8000)[i] = (u8)boot16[i];
    APIC(0xf0) = 0x1ff;
    APIC(0x310) = 0; APIC(0x300) = 0xc4500;
    for (volatile u32 i = 0; i < 2000000; i++) ;
    APIC(0x310) = 0; APIC(0x300) = 0xc4608;
}
