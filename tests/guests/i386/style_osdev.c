/* The C side of the osdev save style. */
#include "kernel.h"

const char style_name[] = "osdev";

/* What interrupt_entry leaves on the stack, lowest address first. */
struct trap {
    u32 gs, fs, es, ds;
    u32 rdi, rsi, rbp, unused, rbx, rdx, rcx, rax;
    u32 vector, error;
    u32 rip, cs, rflags;
    u32 rsp, ss; /* only from user mode */
};

/* What taskswitch_asm leaves on the stack of a thread that has never run. */
struct switched {
    u32 rflags, gs, fs, ebp, edi, esi, ebx;
    void *return_address;
};

extern char interrupt_exit[];
void taskswitch_asm(struct thread *old, struct thread *next);

/* A thread that has never run looks like one that was interrupted just before its first instruction. */
void init_context(struct thread *t, void (*entry)(void), u32 argument, int user)
{
    struct trap *trap;
    struct switched *switched;

    /* A kernel thread's frame is two words shorter, and its stack must not begin at the very end. */
    trap = (struct trap *)(t->kstack - sizeof *trap);
    *trap = (struct trap){
        .rip = (u32)entry,
        .cs = user ? USER_CS : KERNEL_CS,
        .rflags = 0x2 | RFLAGS_IF,
        .ds = user ? USER_SS : KERNEL_SS,
        .es = user ? USER_SS : KERNEL_SS,
        .fs = user ? TLS_A : 0,
        .gs = user ? TLS_B : 0,
        .rax = argument,
    };
    if (user) {
        trap->rsp = USER_STACK + USER_STACK_SIZE;
        trap->ss = USER_SS;
    }
    switched = (struct switched *)trap - 1;
    *switched = (struct switched){.rflags = 0x2, .return_address = interrupt_exit};
    t->ksp = (u32)switched;
    init_fpu(t->area.fxsave);
}

/* Interrupts are off. */
void reschedule(void)
{
    struct cpu *cpu = this_cpu();
    struct thread *old = cpu->current, *next = pick_next(cpu);
    cpu->resched = 0;
    if (next == old)
        return;
    activate(cpu, next);
    set_entry_stack(cpu, next->kstack);
    __asm__ volatile("fxsave %0" : "=m"(old->area.fxsave));
    __asm__ volatile("fxrstor %0" ::"m"(next->area.fxsave));
    taskswitch_asm(old, next);
}

void osdev_interrupt(struct trap *trap)
{
    if ((u8)trap->vector == VECTOR_SYSCALL) {
        count_calls++;
        trap->rax = trap->rax < SYS_COUNT ? syscall_table[trap->rax](SYSCALL_ARGUMENTS(trap)) : (u32)-EFAULT;
    } else {
        handle_trap((u8)trap->vector, trap->error, &trap->rip, trap->cs);
    }
    if (this_cpu()->resched)
        reschedule();
}

void kthread_sleep(u32 for_ticks)
{
    u32 flags = irq_save();
    sleep_until(current_thread(), ticks + for_ticks);
    reschedule();
    irq_restore(flags);
}

/* The frame of the system call is the first thing on the thread's kernel stack. */
void jump_user(struct thread *thread, u32 rip, u32 rsp, u32 rflags)
{
    struct trap *trap = (struct trap *)thread->kstack - 1;
    trap->rip = rip;
    trap->rsp = rsp;
    trap->rflags = rflags;
}

/* Not in this style. */
void bad_return(struct thread *thread, u32 ss) { (void)thread, (void)ss; }

void start_scheduling(struct cpu *cpu)
{
    static struct thread boot; /* gets the context of the start-up code, never resumed */
    cpu->current = &boot;
    reschedule();
    panic("the start-up code was resumed");
}
