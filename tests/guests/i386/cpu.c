/* The CPU's tables and MSRs: GDT, TSS, IDT, SYSENTER. */
#include "kernel.h"

#define SAME(offset, type, field) _Static_assert((offset) == offsetof(type, field), #field)
SAME(SLOT_EBP, struct save_area, rbp);
SAME(SLOT_ERROR, struct save_area, error);
SAME(SLOT_SS, struct save_area, ss);
SAME(SLOT_GS, struct save_area, gs);
SAME(SLOT_FXSAVE, struct save_area, fxsave);
SAME(AREA_SIZE, struct thread, ksp);
SAME(THREAD_BAIL, struct thread, bail);
SAME(THREAD_ON_CPU, struct thread, on_cpu);
SAME(CPU_STACK, struct cpu, stack);
SAME(CPU_CURRENT, struct cpu, current);
SAME(102, struct tss, iomap);

struct cpu cpus[MAX_CPUS];
static STACKS struct kernel_stack cpu_stack;

/* A 32-bit gate is 8 bytes (SDM vol. 3, 6.11). */
struct gate {
    u16 offset_low, selector;
    u8 unused, type;
    u16 offset_high;
};
static struct gate idt[256];

struct table_register {
    u16 limit;
    u32 base;
} __attribute__((packed));

extern char vector_stubs[]; /* stubs.S: 256 stubs of 16 bytes */
extern char nmi_entry[], sysenter_entry[];

static void set_gate(u32 vector, const char *target, u8 dpl)
{
    u32 offset = (u32)target;
    idt[vector] = (struct gate){
        .offset_low = (u16)offset,
        .selector = KERNEL_CS,
        .type = (u8)(0x8e | dpl << 5), /* present, 32-bit interrupt gate: IF is cleared */
        .offset_high = (u16)(offset >> 16),
    };
}

static void load_idt(void)
{
    struct table_register idtr = {sizeof idt - 1, (u32)idt};
    for (u32 vector = 0; vector < 256; vector++)
        set_gate(vector, vector_stubs + 16 * vector, 0);
    set_gate(VECTOR_NMI, nmi_entry, 0);
    set_gate(VECTOR_BREAKPOINT, vector_stubs + 16 * VECTOR_BREAKPOINT, 3);
    set_gate(VECTOR_SYSCALL, vector_stubs + 16 * VECTOR_SYSCALL, 3);
    __asm__ volatile("lidt %0" ::"m"(idtr));
}

/* A data segment for user mode from `base` to the end of the address space (SDM vol. 3, 3.4.5). */
static u64 tls_descriptor(u32 base)
{
    return 0x00cff2000000ffff | (u64)(base & 0xffffff) << 16 | (u64)(base >> 24) << 56;
}

static void load_gdt_and_tss(struct cpu *cpu)
{
    struct table_register gdtr = {sizeof cpu->gdt - 1, (u32)cpu->gdt};
    u32 base = (u32)&cpu->tss, limit = sizeof cpu->tss - 1;

    cpu->gdt[KERNEL_CS / 8] = 0x00cf9a000000ffff;
    cpu->gdt[KERNEL_SS / 8] = 0x00cf92000000ffff;
    cpu->gdt[USER_CS / 8] = 0x00cffa000000ffff;
    cpu->gdt[USER_SS / 8] = tls_descriptor(0);
    cpu->gdt[USER_ES / 8] = tls_descriptor(0);
    cpu->gdt[TSS_SELECTOR / 8] = limit | (u64)(base & 0xffffff) << 16 | (u64)0x89 << 40 | (u64)(base >> 24) << 56;

    cpu->tss.ss0 = KERNEL_SS;
    cpu->tss.iomap = sizeof cpu->tss;

    __asm__ volatile("lgdt %0\n\t"
                     "ljmp %1, $1f\n"
                     "1:\tmovl %2, %%ss\n\t"
                     "movl %2, %%ds\n\t"
                     "movl %2, %%es\n\t"
                     "movl %3, %%fs\n\t"
                     "movl %3, %%gs\n\t"
                     "ltr %w4" ::"m"(gdtr),
                     "i"(KERNEL_CS), "r"(KERNEL_SS), "r"(0), "r"(TSS_SELECTOR)
                     : "memory");
}

void cpu_init(struct cpu *cpu, u32 id)
{
    cpu->id = id;
    cpu->stack = stack_top(&cpu_stack);
    load_gdt_and_tss(cpu);
    load_idt();
    /* SYSENTER gives a stack of one word: the place where ESP0 is read from. */
    wrmsr(MSR_SYSENTER_CS, KERNEL_CS);
    wrmsr(MSR_SYSENTER_ESP, (u32)&cpu->tss.esp0);
    wrmsr(MSR_SYSENTER_EIP, (u32)sysenter_entry);
}

const char *const register_names[] = {
    "eax", "ebx", "ecx", "edx", "esi", "edi", "ebp", "esp", "eflags",
    "xmm", "fs base", "gs base", "result", "eip", "ds", "es", "fs", "gs",
};
const u32 register_count = sizeof register_names / sizeof *register_names;

#ifdef STYLE_SEL4
/* A thread that has never run looks like one that was interrupted just before its first instruction. */
void init_context(struct thread *t, void (*entry)(void), u32 argument, int user)
{
    struct save_area *a = &t->area;
    a->rip = (u32)entry;
    a->rax = argument;
    a->rflags = 0x2 | RFLAGS_IF;
    a->cs = user ? USER_CS : KERNEL_CS;
    a->ss = a->ds = a->es = user ? USER_SS : KERNEL_SS;
    a->fs = user ? TLS_A : 0;
    a->gs = user ? TLS_B : 0;
    a->rsp = USER_STACK + USER_STACK_SIZE;
    if (!user) { /* it begins as if it had been called: what lies above the frame of its first interrupt is the stack's */
        u32 *top = (u32 *)t->kstack;
        top[-1] = argument;
        top[-2] = (u32)halt;
        a->rsp = (u32)(top - 2);
    }
    a->fs_base = t->fs_base;
    a->gs_base = t->gs_base;
    init_fpu(a->fxsave);
}
#endif

/* Make `next` this CPU's thread, as far as both styles do it alike. Interrupts are off. */
void activate(struct cpu *cpu, struct thread *next)
{
    cpu->current = next;
    write_cr3(next->cr3);
    cpu->gdt[TLS_A / 8] = tls_descriptor(next->fs_base);
    cpu->gdt[TLS_B / 8] = tls_descriptor(next->gs_base);
}

/* This kernel runs on one. */
void start_other_cpus(void) {}
