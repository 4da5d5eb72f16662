/* What C code must know of this architecture. */
#ifndef MACHINE_H
#define MACHINE_H

#define MAX_CPUS 4

/* A whole context; slots as in layout.h. */
#ifdef STYLE_SEL4
struct save_area {
    u64 rax, rbx, rcx, rdx, rsi, rdi, rbp, r8, r9, r10, r11, r12, r13, r14, r15, fault_ip;
    u64 error, rip, cs, rflags, rsp, ss, fs_base, gs_base;
    u8 fxsave[512];
} __attribute__((aligned(16)));
#else
struct save_area {
    u64 rax, rbx, rcx, rdx, rsi, rdi, rbp, rsp, r8, r9, r10, r11, r12, r13, r14, r15;
    u64 rip, rflags, ss;
#ifdef BUG_SLOT_CLASH
    union {
        u64 fs_base, cs;
    };
    u64 unused_slot;
#else
    u64 fs_base, cs;
#endif
    u64 by_syscall, unused[2];
    u8 fxsave[512];
} __attribute__((aligned(16)));
#endif
#define SYSCALL_ARGUMENTS(area) (area)->rdi, (area)->rsi, (area)->rdx

struct tss {
    u32 reserved0;
    u64 rsp0, rsp1, rsp2, reserved1, ist[8], reserved2;
    u16 reserved3, iomap;
} __attribute__((packed));

/* Per-CPU block; the kernel's GS base points here. The first fields are known to assembly. */
struct cpu {
    struct cpu *self;
    struct save_area *save;   /* nrk style: where the next entry saves the interrupted context */
    u64 stack;                /* stack that SYSCALL switches to */
    u64 user_rsp;             /* scratch: the user's RSP while SYSCALL switches stacks */
    struct thread *current;
    struct save_area *nested; /* nrk style: &nested_area */
    struct save_area *last;   /* only for BUG_STALE_SLOT: the area saved to last */
    u32 id;
    u32 resched;
    u32 slice;
    u32 drop;                 /* nrk style: the system call is to be ended, see end_system_call */
    u32 paranoid_entries;
    u32 in_breakpoint;
    struct thread *idle;
    struct thread *fpu_owner; /* only with LAZY_FPU: whose x87 and SSE state is in the registers */
    struct tss tss;
    u64 gdt[8];
    struct save_area nested_area; /* nrk style: for an exception inside the kernel's handlers */
};

static inline u64 rdmsr(u32 msr)
{
    u32 low, high;
    __asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(msr));
    return (u64)high << 32 | low;
}
static inline void wrmsr(u32 msr, u64 value)
{
    __asm__ volatile("wrmsr" ::"c"(msr), "a"((u32)value), "d"((u32)(value >> 32)) : "memory");
}
static inline struct cpu *this_cpu(void)
{
    struct cpu *cpu;
    __asm__ volatile("movq %%gs:%c1, %0" : "=r"(cpu) : "i"(CPU_SELF));
    return cpu;
}
static inline struct thread *current_thread(void)
{
    struct thread *thread;
    __asm__ volatile("movq %%gs:%c1, %0" : "=r"(thread) : "i"(CPU_CURRENT));
    return thread;
}
static inline void set_entry_stack(struct cpu *cpu, u64 top) { cpu->tss.rsp0 = top; }
static inline int is_user_address(u64 address) { return !(address >> 47); }

#endif
