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

/* activate(), and what this style keeps per thread rather than per save: stack, FS base, x87/SSE. */
static __attribute__((noinline)) void enter_thread(struct cpu *cpu, struct thread *old, struct thread *next)
{
    activate(cpu, next);
    cpu->tss.rsp0 = cpu->stack = next->kstack;
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
    __asm__ volatile("fxsave %0" : "=m"(old->area.fxsave));
    __asm__ volatile("fxrstor %0" ::"m"(next->area.fxsave));
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
    if (cpu->resched) {
        struct thread *old = cpu->current, *next = pick_next(cpu);
        if (next != old) {
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
