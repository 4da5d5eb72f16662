/* One CPU's tables and MSRs: GDT, TSS, IDT, SYSCALL, GS bases. */
#include "kernel.h"

#define SAME(offset, type, field) _Static_assert((offset) == offsetof(type, field), #field)
SAME(SLOT_RSP, struct save_area, rsp);
SAME(SLOT_R15, struct save_area, r15);
SAME(SLOT_RIP, struct save_area, rip);
#ifndef STYLE_SEL4
SAME(SLOT_BY_SYSCALL, struct save_area, by_syscall);
#endif
SAME(SLOT_FXSAVE, struct save_area, fxsave);
#ifdef STYLE_OSDEV
SAME(AREA_SIZE, struct thread, ksp);
SAME(THREAD_BAIL, struct thread, bail);
SAME(THREAD_PREEMPTED, struct thread, preempted);
SAME(THREAD_ON_CPU, struct thread, on_cpu);
#endif
SAME(CPU_SAVE, struct cpu, save);
SAME(CPU_STACK, struct cpu, stack);
SAME(CPU_USER_RSP, struct cpu, user_rsp);
SAME(CPU_CURRENT, struct cpu, current);
SAME(CPU_NESTED, struct cpu, nested);
SAME(CPU_LAST, struct cpu, last);

struct cpu cpus[MAX_CPUS];
static STACKS struct kernel_stack cpu_stacks[MAX_CPUS], ist_stacks[MAX_CPUS][3];

/* A 64-bit gate is 16 bytes (SDM vol. 3, 6.14.1). */
struct gate {
    u16 offset_low, selector;
    u8 ist, type;
    u16 offset_middle;
    u32 offset_high, reserved;
} __attribute__((packed));
static struct gate idt[256];

struct table_register {
    u16 limit;
    u64 base;
} __attribute__((packed));

extern char vector_stubs[]; /* stubs.S: 256 stubs of 16 bytes */
extern char int80_entry[], nmi_entry[], debug_entry[], breakpoint_entry[], double_fault_entry[];
extern char syscall_entry[], page_fault_entry[];

static void set_gate(u32 vector, const char *target, u8 ist, u8 dpl)
{
    u64 offset = (u64)target;
    idt[vector] = (struct gate){
        .offset_low = (u16)offset,
        .selector = KERNEL_CS,
        .ist = ist,
        .type = (u8)(0x8e | dpl << 5), /* present, 64-bit interrupt gate: IF is cleared */
        .offset_middle = (u16)(offset >> 16),
        .offset_high = (u32)(offset >> 32),
    };
}

static void fill_idt(void)
{
    for (u32 vector = 0; vector < 256; vector++)
        set_gate(vector, vector_stubs + 16 * vector, 0, 0);
    set_gate(VECTOR_NMI, nmi_entry, IST_NMI, 0);
    set_gate(VECTOR_BREAKPOINT, vector_stubs + 16 * VECTOR_BREAKPOINT, 0, 3);
#ifdef BUG_IST_REUSED /* BUG: its handler meets a breakpoint itself, and starts again at the stack's top */
    set_gate(VECTOR_BREAKPOINT, breakpoint_entry, IST_DEBUG, 3);
#endif
#ifndef BUG_MDB_SYSRET /* BUG: #DB and #DF use the stack that RSP happens to point to */
    set_gate(VECTOR_DEBUG, debug_entry, IST_DEBUG, 0);
#ifndef BUG_TRIPLE_FAULT
    set_gate(VECTOR_DOUBLE_FAULT, double_fault_entry, IST_DOUBLE_FAULT, 0);
#endif
#endif
    set_gate(VECTOR_SYSCALL, int80_entry, 0, 3);
#ifdef STYLE_OSDEV
    set_gate(VECTOR_PAGE_FAULT, page_fault_entry, 0, 0);
#endif
}

static void load_gdt_and_tss(struct cpu *cpu)
{
    struct table_register gdtr = {sizeof cpu->gdt - 1, (u64)cpu->gdt};
    u64 base = (u64)&cpu->tss, limit = sizeof cpu->tss - 1;

    cpu->gdt[KERNEL_CS / 8] = 0x00af9a000000ffff;
    cpu->gdt[KERNEL_SS / 8] = 0x00cf92000000ffff;
    cpu->gdt[USER_SS / 8] = 0x00cff2000000ffff;
    cpu->gdt[USER_CS / 8] = 0x00affa000000ffff;
    cpu->gdt[TSS_SELECTOR / 8] =
        limit | (base & 0xffffff) << 16 | (u64)0x89 << 40 | (base >> 24 & 0xff) << 56;
    cpu->gdt[TSS_SELECTOR / 8 + 1] = base >> 32;
    cpu->gdt[ABSENT_SS / 8] = cpu->gdt[USER_SS / 8] & ~((u64)1 << 47);

    cpu->tss.rsp0 = cpu->stack;
    for (u32 ist = 1; ist <= 3; ist++) {
        u64 *top = (u64 *)stack_top(&ist_stacks[cpu->id][ist - 1]) - 2;
        *top = (u64)cpu; /* paranoid_entry finds it above the frame */
        cpu->tss.ist[ist - 1] = (u64)top;
    }
    cpu->tss.iomap = sizeof cpu->tss;

    __asm__ volatile("lgdt %0\n\t"
                     "pushq %1\n\t"
                     "leaq 1f(%%rip), %%rax\n\t"
                     "pushq %%rax\n\t"
                     "lretq\n"
                     "1:\tmovl %2, %%ss\n\t"
                     "movl %3, %%ds\n\t"
                     "movl %3, %%es\n\t"
                     "movl %3, %%fs\n\t"
                     "movl %3, %%gs\n\t"
                     "ltr %w4" ::"m"(gdtr),
                     "i"(KERNEL_CS), "r"(KERNEL_SS), "r"(0), "r"(TSS_SELECTOR)
                     : "rax", "memory");
}

void cpu_init(struct cpu *cpu, u32 id)
{
    struct table_register idtr = {sizeof idt - 1, (u64)idt};

    cpu->self = cpu;
    cpu->id = id;
    cpu->stack = stack_top(&cpu_stacks[id]);
    cpu->nested = &cpu->nested_area;
    cpu->save = cpu->nested;
    load_gdt_and_tss(cpu);
    if (id == 0) /* the others' interrupts go through it already */
        fill_idt();
    __asm__ volatile("lidt %0" ::"m"(idtr));

    wrmsr(MSR_GS_BASE, (u64)cpu);
#ifdef EQUAL_GS
    wrmsr(MSR_KERNEL_GS_BASE, (u64)cpu);
#else
    wrmsr(MSR_KERNEL_GS_BASE, 0);
#endif
#ifdef FSGSBASE
    __asm__ volatile("movq %%cr4, %%rax; btsq $16, %%rax; movq %%rax, %%cr4" ::: "rax");
#endif
    wrmsr(MSR_FS_BASE, 0);
    wrmsr(MSR_EFER, rdmsr(MSR_EFER) | 1); /* SCE */
    wrmsr(MSR_STAR, (u64)KERNEL_CS << 32 | (u64)STAR_USER << 48);
    wrmsr(MSR_LSTAR, (u64)syscall_entry);
    wrmsr(MSR_FMASK, 0x47700); /* AC NT IOPL DF IF TF */
}

const char *const register_names[] = {
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", "r8",  "r9",      "r10",
    "r11", "r12", "r13", "r14", "r15", "rflags", "xmm", "fs base", "gs base", "result", "rip",
};
const u64 register_count = sizeof register_names / sizeof *register_names;

/* A thread that has never run looks like one that was interrupted just before its first instruction. */
void init_context(struct thread *t, void (*entry)(void), u64 argument, int user)
{
    t->ksp = t->kstack - 40;
    t->preempted = 1;
    t->area.rip = (u64)entry;
    t->area.rdi = argument;
    t->area.rflags = 0x2 | RFLAGS_IF;
    t->area.fs_base = t->fs_base;
    t->area.cs = user ? USER_CS : KERNEL_CS;
    t->area.ss = user ? USER_SS : KERNEL_SS;
    /* As after a CALL: the stack is 8 off a multiple of 16. No two programs have the same RSP. */
    t->area.rsp = (user ? USER_STACK + USER_STACK_SIZE - t->pid * 256 : t->kstack - 64) - 8;
#ifdef BUG_SLOT_CLASH /* begins by SYSRET, which gets CS from elsewhere: so both are right, at first */
    if (user) {
        t->area.by_syscall = 1;
        t->area.fs_base = t->fs_base;
    }
#endif
    init_fpu(t->area.fxsave);
}

/*
 * Make `next` this CPU's thread, as far as both styles do it alike: address space and the user's GS
 * base, which waits in KERNEL_GS_BASE until the SWAPGS on the way out. Interrupts are off.
 */
void activate(struct cpu *cpu, struct thread *next)
{
#ifdef FSGSBASE
    if (cpu->current->gs_base)
        cpu->current->gs_base = rdmsr(MSR_KERNEL_GS_BASE);
#endif
#ifdef BUG_USER_GS_LOST /* BUG: forgotten when the timer switches */
    if (next->gs_base && !cpu->resched)
#else
    if (next->gs_base)
#endif
        wrmsr(MSR_KERNEL_GS_BASE, next->gs_base);
    cpu->current = next;
    write_cr3(next->cr3);
}

#ifdef BUG_NMI_NESTED
/* BUG: each breakpoint's IRETQ lets the next NMI in, onto this one's stack, long before this one ends. */
static void look_around(void)
{
    for (u32 cpu = 0; cpu < 1000; cpu++) {
        __asm__ volatile("int3");
        for (volatile u32 i = 0; i < 5000; i++) /* short: a debugger's breakpoints on this page make it slow */
            ;
    }
}
#endif

/* NMI and #DB: nothing to do but to count them and come back. Called by paranoid_entry. */
void handle_paranoid(u64 vector)
{
    struct cpu *cpu = this_cpu();
    cpu->paranoid_entries++;
#ifdef BUG_NMI_NESTED
    if (vector == VECTOR_NMI)
        look_around();
#endif
#ifdef BUG_IST_REUSED
    if (vector == VECTOR_BREAKPOINT && !cpu->in_breakpoint) {
        cpu->in_breakpoint = 1;
        __asm__ volatile("int3");
        cpu->in_breakpoint = 0;
    }
#endif
    (void)vector;
}

void handle_double_fault(u64 rip, u64 rsp)
{
    panic("double fault, rip %x rsp %x", rip, rsp);
}
