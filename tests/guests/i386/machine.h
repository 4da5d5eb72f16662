/* What C code must know of this architecture. */
#ifndef MACHINE_H
#define MACHINE_H

#define MAX_CPUS 1

/* A whole context; slots as in layout.h. The osdev style uses the last two members only. */
struct save_area {
    u32 rax, rbx, rcx, rdx, rsi, rdi, rbp, fault_ip;
    u32 error, rip, cs, rflags, rsp, ss, fs_base, gs_base;
    u32 ds, es, fs, gs;
    u8 fxsave[512];
} __attribute__((aligned(16)));

#define SYSCALL_ARGUMENTS(area) (area)->rbx, (area)->rsi, (area)->rdi

/* SDM vol. 3, 8.2.1; only what an entry from user mode needs. */
struct tss {
    u32 link, esp0, ss0, unused[22];
    u16 trap, iomap;
};

/* The first fields are known to assembly. */
struct cpu {
    u32 stack; /* sel4 style: the kernel's */
    struct thread *current;
    u32 id;
    u32 resched;
    u32 slice;
    u32 drop;  /* sel4 style: the system call is to be ended, see end_system_call */
    struct thread *idle;
    u32 sysenter_stack[16]; /* for an NMI at the first instruction after SYSENTER, whose stack begins in the TSS */
    struct tss tss;
    u64 gdt[TSS_SELECTOR / 8 + 1];
};

extern struct cpu cpus[MAX_CPUS];
static inline struct cpu *this_cpu(void) { return &cpus[0]; }
static inline struct thread *current_thread(void) { return cpus[0].current; }
static inline void set_entry_stack(struct cpu *cpu, u32 top) { cpu->tss.esp0 = top; }
static inline int is_user_address(u32 address) { return address < KERNEL_BASE; }
static inline void wrmsr(u32 msr, u32 value) { __asm__ volatile("wrmsr" ::"c"(msr), "a"(value), "d"(0) : "memory"); }

#endif
