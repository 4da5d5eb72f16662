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
#define PAGE_SIZE 4096
#define KERNEL_STACK_SIZE (2 * PAGE_SIZE)

typedef uint64_t u64;
typedef uint32_t u32;
typedef uint16_t u16;
typedef uint8_t u8;
typedef uintptr_t word; /* what a register, a slot or an address holds */

#include "machine.h" /* the architecture's: struct save_area, struct cpu, pieces of machine access */

/* A stack of the kernel's; paging_init unmaps the guard, so that an overflow faults. */
struct kernel_stack {
    u8 guard[PAGE_SIZE];
    u8 bytes[KERNEL_STACK_SIZE];
} __attribute__((aligned(PAGE_SIZE)));
#define STACKS __attribute__((section(".bss.stacks")))

enum thread_state { THREAD_UNUSED, THREAD_READY, THREAD_SLEEPING, THREAD_DEAD };

struct thread {
#ifdef BUG_STACK_OVERFLOW_NEIGHBOUR /* BUG: much too small; and what lies below is another thread's save area */
    u8 small_stack[256];
#else
    struct save_area area;
#endif
    word ksp;      /* osdev style: kernel stack pointer while switched out */
    word bail;     /* osdev style: stack pointer to go back to when a system call is ended early */
    u32 preempted; /* osdev style: 1 = `area` holds the context, 0 = the stack at `ksp` does */
    u32 on_cpu;    /* 1 from being picked until its context is completely saved again */
    enum thread_state state;
    u32 pid;
    word wake;     /* tick at which a sleeper becomes ready */
    word kstack;   /* top of its kernel stack */
    word cr3;
    word fs_base, gs_base; /* the user's; unused for kernel threads */
    word kernel_gs;        /* only for BUG_KERNEL_GS_OTHER_CPU */
    const char *name;
#ifdef BUG_STACK_OVERFLOW_NEIGHBOUR
    struct save_area area;
#endif
};

/* print.c */
void serial_init(void);
void print(const char *format, ...); /* %s, and %u %x with a word */
void panic(const char *format, ...) __attribute__((noreturn));
void halt(void) __attribute__((noreturn));

/* sched.c */
extern word ticks, count_calls, count_faults, count_impossible, count_corrupt;
struct thread *make_thread(const char *name, void (*entry)(void), word argument, int user);
void make_idle(struct cpu *cpu);
struct thread *pick_next(struct cpu *cpu);
void sleep_until(struct thread *thread, word tick);
void tick(struct cpu *cpu);
void note_load(int busy); /* load.c */
extern struct thread *volatile offered, *volatile loaded; /* only for BUG_EARLY_LOAD, see style_osdev.c */

/* traps.c */
void handle_trap(word vector, word error, word *rip, word cs);
extern word (*const syscall_table[SYS_COUNT])(word, word, word);

/* Style: entry_*.S and style_*.c. */
extern const char style_name[];
void start_scheduling(struct cpu *cpu) __attribute__((noreturn));
void reschedule(void);               /* let another thread run; from a system call or a kernel thread */
void kthread_sleep(word for_ticks);
void end_system_call(void);          /* drop the kernel's frames; see the styles */
word report_corrupt(word what, word where, word unused);
word sys_copy_end(word pointer, word length, word unused);
void bad_return(struct thread *thread, word ss);
void take_fpu(struct cpu *cpu);      /* only with LAZY_FPU, osdev style */
void jump_user(struct thread *thread, word rip, word rsp, word rflags);

/* cpu.c, smp.c, lapic.c, paging.c */
extern struct cpu cpus[MAX_CPUS];
extern const char *const register_names[]; /* by the numbers that SYS_CORRUPT gets */
extern const word register_count;
void cpu_init(struct cpu *cpu, u32 id);
void init_context(struct thread *thread, void (*entry)(void), word argument, int user);
void activate(struct cpu *cpu, struct thread *next);
void start_other_cpus(void);
void lapic_init(void);
void lapic_timer_start(void);
void lapic_eoi(void);
void paging_init(void);
void drop_identity_map(void);
word new_address_space(void);
word kernel_address_space(void);
int demand_page(word cr3, word address);
void unmap_page(word cr3, word address);

/* uaccess.S */
int copy_from_user(void *to, word from, word length);        /* 0, or 1 after a fault */
void copy_from_user_or_end(void *to, word from, word length); /* a fault ends the system call */

/* Small pieces of machine access that are the same everywhere. */
static inline void outb(u16 port, u8 value) { __asm__ volatile("outb %0, %1" ::"a"(value), "Nd"(port)); }
static inline void outw(u16 port, u16 value) { __asm__ volatile("outw %0, %1" ::"a"(value), "Nd"(port)); }
static inline u8 inb(u16 port)
{
    u8 value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}
static inline word read_cr2(void)
{
    word cr2;
    __asm__ volatile("mov %%cr2, %0" : "=r"(cr2));
    return cr2;
}
static inline void write_cr3(word cr3) { __asm__ volatile("mov %0, %%cr3" ::"r"(cr3) : "memory"); }
static inline void flush_tlb(void)
{
    word cr3;
    __asm__ volatile("mov %%cr3, %0; mov %0, %%cr3" : "=r"(cr3)::"memory");
}
/* A state of x87 and SSE as after a reset, but with all exceptions masked (MXCSR = 1F80h). */
static inline void init_fpu(u8 *fxsave)
{
    __asm__ volatile("fninit; fxsave %0" : "=m"(*(u8(*)[512])fxsave));
    fxsave[24] = 0x80;
    fxsave[25] = 0x1f;
}
static inline word irq_save(void)
{
    word flags;
    __asm__ volatile("pushf; pop %0; cli" : "=r"(flags)::"memory");
    return flags;
}
/* Around long work in a system call. Only the osdev style's handlers are preemptible. */
static inline void interrupts_on(void)
{
#ifdef STYLE_OSDEV
    __asm__ volatile("sti" ::: "memory");
#endif
}
static inline void interrupts_off(void) { __asm__ volatile("cli" ::: "memory"); }
static inline void irq_restore(word flags)
{
    if (flags & RFLAGS_IF)
        __asm__ volatile("sti" ::: "memory");
}
static inline word stack_top(struct kernel_stack *stack) { return (word)(stack + 1); }
static inline void *virt(word physical) { return (void *)(physical + KERNEL_BASE); }
static inline word phys(const void *virtual) { return (word)virtual - KERNEL_BASE; }

typedef volatile u32 spinlock;
static inline void lock(spinlock *l)
{
    while (__atomic_exchange_n(l, 1, __ATOMIC_ACQUIRE))
        __asm__ volatile("pause");
}
static inline void unlock(spinlock *l) { __atomic_store_n(l, 0, __ATOMIC_RELEASE); }

#endif
