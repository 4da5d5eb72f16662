/* The C side of the osdev save style. */
#include "kernel.h"

const char style_name[] = "osdev";

/* What interrupt_entry leaves on the stack, lowest address first. */
struct trap {
    struct thread *load, *save; /* set by the handler to switch threads */
    u64 r11, r10, r9, r8, rdi, rsi, rdx, rcx, rax;
    u64 vector, error;
    u64 rip, cs, rflags, rsp, ss;
};

/* The same for page_fault_entry. */
struct page_fault {
    u64 r11, r10, r9, r8, rdi, rsi, rdx, rcx, rax;
    u64 error;
    u64 rip, cs, rflags, rsp, ss;
};

void resume(struct thread *old, struct thread *next) __attribute__((noreturn));
void taskswitch_asm(struct thread *old, struct thread *next);

#ifdef LAZY_FPU
/* x87 and SSE state stays in the registers until another thread touches them, which CR0.TS makes a fault (#NM). */
static void switch_fpu(struct cpu *cpu, struct thread *old, struct thread *next)
{
    u64 cr0;
    (void)old;
    __asm__ volatile("movq %%cr0, %0" : "=r"(cr0));
    cr0 = next == cpu->fpu_owner ? cr0 & ~CR0_TS : cr0 | CR0_TS;
    __asm__ volatile("movq %0, %%cr0" ::"r"(cr0));
}

void take_fpu(struct cpu *cpu)
{
    __asm__ volatile("clts");
    if (cpu->fpu_owner)
        __asm__ volatile("fxsave %0" : "=m"(cpu->fpu_owner->area.fxsave));
    cpu->fpu_owner = cpu->current;
    __asm__ volatile("fxrstor %0" ::"m"(cpu->current->area.fxsave));
}
#else
static __attribute__((noinline)) void switch_fpu(struct cpu *cpu, struct thread *old, struct thread *next)
{
    (void)cpu, (void)old;
#ifndef BUG_XMM_LOST /* BUG: nothing is saved; a thread is given again what it began with */
    __asm__ volatile("fxsave %0" : "=m"(old->area.fxsave));
#endif
    __asm__ volatile("fxrstor %0" ::"m"(next->area.fxsave));
}
#endif

#ifdef BUG_EARLY_LOAD
struct thread *volatile offered, *volatile loaded;

/*
 * BUG: a program is left to the other CPUs while its registers are still here, on its stack. They find an
 * older context in its save area. What is a matter of luck elsewhere is made certain: once there is such a
 * context, the other CPU takes the program (see pick_next), and this one waits until it has loaded it.
 */
static __attribute__((noinline)) void put_back(struct thread *old, struct trap *trap)
{
    if (ticks < 100 || !old->preempted || !__sync_bool_compare_and_swap(&offered, NULL, old))
        return;
    loaded = NULL;
    old->ksp = (u64)&trap->rip;
    __atomic_store_n(&old->on_cpu, 0, __ATOMIC_RELEASE);
    while (loaded != old && ticks < TICKS)
        __asm__ volatile("pause");
}
#endif

#ifdef BUG_FRAME_OVERWRITTEN
/* BUG: when a program ran last, noted at the top of its kernel stack; but there lies the frame of its interrupt. */
static __attribute__((noinline)) void stamp_stack(struct thread *thread)
{
    ((u64 *)thread->kstack)[-2] = ticks;
}
#endif

/* activate(), and what this style keeps per thread rather than per save: stack, FS base, x87/SSE. */
static __attribute__((noinline)) void enter_thread(struct cpu *cpu, struct thread *old, struct thread *next)
{
    activate(cpu, next);
    cpu->stack = next->kstack;
#ifdef BUG_RSP0_STALE /* BUG: forgotten when a program gives up the CPU of its own accord */
    if (cpu->resched || !old->fs_base)
#endif
        cpu->tss.rsp0 = cpu->stack;
#ifdef BUG_TRIPLE_FAULT /* BUG: the stack is gone, and #DF has none of its own (cpu.c): nothing can be delivered */
    if (ticks > 100)
        cpu->tss.rsp0 = UNMAPPED;
#endif
#ifdef BUG_FS_BASE_LOST /* BUG: forgotten when the timer switches */
    if (next->fs_base && !cpu->resched)
#else
    if (next->fs_base)
#endif
        wrmsr(MSR_FS_BASE, next->fs_base);
#ifdef BUG_KERNEL_GS_OTHER_CPU /* BUG: the kernel's GS base is the CPU's, not the thread's; it may have moved */
    if (!next->kernel_gs)
        next->kernel_gs = rdmsr(MSR_GS_BASE);
    wrmsr(MSR_GS_BASE, next->kernel_gs);
#endif
    switch_fpu(cpu, old, next);
}

void osdev_interrupt(struct trap *trap)
{
    struct cpu *cpu;
    /*
     * The fault of an IRETQ, which interrupt_entry turned into one of the user's (see bad_return). An
     * absent SS gives #SS (SDM vol. 2, IRET); QEMU gives #NP.
     */
    if ((trap->vector == VECTOR_STACK_FAULT || trap->vector == VECTOR_NOT_PRESENT) && trap->ss == ABSENT_SS) {
        trap->ss = USER_SS;
        trap->rax = -EFAULT;
        return;
    }
    handle_trap((u8)trap->vector, trap->error, &trap->rip, trap->cs);
    cpu = this_cpu();
#ifdef BUG_FRAME_OVERWRITTEN
    if (ticks % 16 == 0 && trap->cs & 3)
        stamp_stack(cpu->current);
#endif
    if (cpu->resched) {
        struct thread *old = cpu->current, *next = pick_next(cpu);
        if (next != old) {
#ifdef BUG_EARLY_LOAD
            if (trap->cs & 3)
                put_back(old, trap);
#endif
            enter_thread(cpu, old, next);
            trap->save = old;
            trap->load = next;
        }
        cpu->resched = 0;
    }
}

/* Interrupts are off. */
void reschedule(void)
{
    struct cpu *cpu = this_cpu();
    struct thread *old = cpu->current, *next = pick_next(cpu);
    cpu->resched = 0;
    if (next == old)
        return;
    enter_thread(cpu, old, next);
#ifdef BUG_KERNEL_GS_ZERO /* BUG: "clears the unused selectors"; loading GS clears its base as well */
    __asm__ volatile("movw %w0, %%ds; movw %w0, %%es; movw %w0, %%gs" ::"r"(0));
#endif
    taskswitch_asm(old, next);
}

void osdev_page_fault(struct page_fault *fault)
{
    handle_trap(VECTOR_PAGE_FAULT, fault->error, &fault->rip, fault->cs);
    if (this_cpu()->resched) /* it was killed */
        reschedule();
}

void kthread_sleep(u64 for_ticks)
{
    u64 flags = irq_save();
    sleep_until(current_thread(), ticks + for_ticks);
    reschedule();
    irq_restore(flags);
}

/* The three words that syscall_entry pushed first. */
void jump_user(struct thread *thread, u64 rip, u64 rsp, u64 rflags)
{
    u64 *top = (u64 *)thread->kstack;
#ifdef BUG_WRONG_THREAD
    this_cpu()->user_rsp = rsp;
#endif
    top[-1] = rsp;
    top[-2] = rflags;
    top[-3] = rip;
}

/* SS is the highest word of the frame that int 0x80 pushed. The IRETQ will fault. */
void bad_return(struct thread *thread, u64 ss) { ((u64 *)thread->kstack)[-1] = ss; }

void start_scheduling(struct cpu *cpu)
{
    static struct thread boot[MAX_CPUS]; /* gets the context of the start-up code, never resumed */
    struct thread *next;
    cpu->current = cpu->idle;
    next = pick_next(cpu);
    enter_thread(cpu, &boot[cpu->id], next);
    resume(&boot[cpu->id], next);
}
