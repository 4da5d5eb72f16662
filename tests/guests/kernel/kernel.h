/* Everything the kernel's C files share. */
#ifndef KERNEL_H
#define KERNEL_H

#include <stddef.h>
#include <stdint.h>

#include "layout.h"

#ifndef TICKS
#define TICKS 2500 /* timer interrupts, over all CPUs, until `guest: done` */
#endif
#ifndef HZ
#define HZ 1000
#endif
#define MAX_CPUS 4
#define PAGE_SIZE 4096
#define KERNEL_STACK_SIZE (2 * PAGE_SIZE)

typedef uint64_t u64;
typedef uint32_t u32;
typedef uint16_t u16;
typedef uint8_t u8;

/* A stack of the kernel's; paging_init unmaps the guard, so that an overflow ends in a double fault. */
struct kernel_stack {
    u8 guard[PAGE_SIZE];
    u8 bytes[KERNEL_STACK_SIZE];
} __attribute__((aligned(PAGE_SIZE)));
#define STACKS __attribute__((section(".stacks,\"aw\",@nobits#"))) /* `#`: the compiler's own flags are a comment */

/* A whole context; slots as in layout.h. */
struct save_area {
    u64 rax, rbx, rcx, rdx, rsi, rdi, rbp, rsp, r8, r9, r10, r11, r12, r13, r14, r15;
    u64 rip, rflags, ss, fs_base, cs, by_syscall, unused[2];
    u8 fxsave[512];
} __attribute__((aligned(16)));

enum thread_state { THREAD_UNUSED, THREAD_READY, THREAD_SLEEPING, THREAD_DEAD };

struct thread {
    struct save_area area;
    u64 ksp;       /* osdev style: kernel stack pointer while switched out */
    u64 bail;      /* osdev style: stack pointer to go back to when a system call is ended early */
    u32 preempted; /* osdev style: 1 = `area` holds the context, 0 = the stack at `ksp` does */
    u32 on_cpu;    /* 1 from being picked until its context is completely saved again */
    enum thread_state state;
    u32 pid;
    u64 wake;      /* tick at which a sleeper becomes ready */
    u64 kstack;    /* top of its kernel stack */
    u64 cr3;
    u64 fs_base, gs_base; /* the user's; unused for kernel threads */
    u64 kernel_gs;        /* only for BUG_KERNEL_GS_OTHER_CPU */
    const char *name;
};

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
    u32 id;
    u32 resched;
    u32 slice;
    u32 drop;                 /* nrk style: the system call is to be ended, see end_system_call */
    u32 paranoid_entries;
    u32 in_breakpoint;
    struct thread *idle;
    struct tss tss;
    u64 gdt[8];
    struct save_area nested_area; /* nrk style: for an exception inside the kernel's handlers */
};

/* print.c */
void serial_init(void);
void print(const char *format, ...); /* %s %u %x */
void panic(const char *format, ...) __attribute__((noreturn));
void halt(void) __attribute__((noreturn));

/* sched.c */
extern u64 ticks, count_calls, count_faults, count_impossible, count_corrupt;
struct thread *make_thread(const char *name, void (*entry)(void), u64 argument, int user);
void make_idle(struct cpu *cpu);
struct thread *pick_next(struct cpu *cpu);
void sleep_until(struct thread *thread, u64 tick);
void tick(struct cpu *cpu);

/* traps.c */
void handle_trap(u64 vector, u64 error, u64 *rip, u64 cs);
extern u64 (*const syscall_table[SYS_COUNT])(u64, u64, u64);

/* Style: entry_*.S and style_*.c. */
extern const char style_name[];
void start_scheduling(struct cpu *cpu) __attribute__((noreturn));
void reschedule(void);               /* let another thread run; from a system call or a kernel thread */
void kthread_sleep(u64 for_ticks);
void end_system_call(void);          /* drop the kernel's frames; see the styles */
u64 report_corrupt(u64 what, u64 where, u64 unused);
u64 sys_copy_end(u64 pointer, u64 length, u64 unused);
void bad_return(struct thread *thread, u64 ss);
void jump_user(struct thread *thread, u64 rip, u64 rsp, u64 rflags);

/* cpu.c, lapic.c, paging.c */
extern struct cpu cpus[MAX_CPUS];
void cpu_init(struct cpu *cpu, u32 id);
void activate(struct cpu *cpu, struct thread *next);
void lapic_init(void);
void lapic_timer_start(void);
void lapic_eoi(void);
void start_other_cpus(void);
extern volatile u32 cpus_running;
void paging_init(void);
void drop_identity_map(void);
u64 new_address_space(void);
u64 kernel_address_space(void);
int demand_page(u64 cr3, u64 address);
void unmap_page(u64 cr3, u64 address);

/* uaccess.S */
int copy_from_user(void *to, u64 from, u64 length);        /* 0, or 1 after a fault */
void copy_from_user_or_end(void *to, u64 from, u64 length); /* a fault ends the system call */

/* Small pieces of machine access. */
static inline void outb(u16 port, u8 value) { __asm__ volatile("outb %0, %1" ::"a"(value), "Nd"(port)); }
static inline void outw(u16 port, u16 value) { __asm__ volatile("outw %0, %1" ::"a"(value), "Nd"(port)); }
static inline u8 inb(u16 port)
{
    u8 value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}
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
static inline u64 irq_save(void)
{
    u64 flags;
    __asm__ volatile("pushfq; popq %0; cli" : "=r"(flags)::"memory");
    return flags;
}
/* Around long work in a system call. The nrk style's handlers are not preemptible. */
static inline void interrupts_on(void)
{
#ifdef STYLE_OSDEV
    __asm__ volatile("sti" ::: "memory");
#endif
}
static inline void interrupts_off(void) { __asm__ volatile("cli" ::: "memory"); }
static inline void irq_restore(u64 flags)
{
    if (flags & RFLAGS_IF)
        __asm__ volatile("sti" ::: "memory");
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
static inline u64 stack_top(struct kernel_stack *stack) { return (u64)(stack + 1); }
static inline void *virt(u64 physical) { return (void *)(physical + KERNEL_BASE); }
static inline u64 phys(const void *virtual) { return (u64)virtual - KERNEL_BASE; }

typedef volatile u32 spinlock;
static inline void lock(spinlock *l)
{
    while (__atomic_exchange_n(l, 1, __ATOMIC_ACQUIRE))
        __asm__ volatile("pause");
}
static inline void unlock(spinlock *l) { __atomic_store_n(l, 0, __ATOMIC_RELEASE); }

#endif
