/* The C side of the sel4 save style: which TCB an entry saves to, and which one the exit resumes. */
#include "kernel.h"

const char style_name[] = "sel4";

void restore_context(struct save_area *area) __attribute__((noreturn));

/* What assembly goes by; the names are seL4's. */
struct thread *ksCurThread, *ksIdleThread;
u32 kernel_depth; /* nonzero: one of the kernel's handlers is running */

static void enter_thread(struct cpu *cpu, struct thread *next)
{
    activate(cpu, next);
    ksCurThread = next;
    set_entry_stack(cpu, (word)&next->area + FRAME_END);
}

/* End of a handler: switch threads if somebody asked for it, and say whose context to resume. */
static struct save_area *leave(struct cpu *cpu)
{
    struct thread *old = cpu->current;
    if (cpu->resched) {
        struct thread *next = pick_next(cpu);
        cpu->resched = 0;
        if (next != old) {
            enter_thread(cpu, next);
            old->on_cpu = 0;
        }
    }
    kernel_depth = 0;
    return &cpu->current->area;
}

static void system_call(struct save_area *area)
{
    count_calls++;
    area->rax = area->rax < SYS_COUNT ? syscall_table[area->rax](SYSCALL_ARGUMENTS(area)) : (word)-EFAULT;
}

struct save_area *sel4_interrupt(word vector, word error)
{
    struct save_area *area = &ksCurThread->area;
    kernel_depth = 1;
    if ((u8)vector == VECTOR_SYSCALL)
        system_call(area);
    else
        handle_trap((u8)vector, error, &area->rip, area->cs);
    return leave(this_cpu());
}

/* A fault inside a handler. Returns what to resume instead of the handler, or 0. */
struct save_area *sel4_nested(word vector, word error, word *rip)
{
    struct cpu *cpu = this_cpu();
    handle_trap((u8)vector, error, rip, KERNEL_CS);
    if (!cpu->drop)
        return 0;
    cpu->drop = 0;
    ksCurThread->area.rax = -EFAULT;
    return leave(cpu);
}

void sel4_kernel_exception(word vector, word error, word rip)
{
    panic("vector %u error %x rip %x cr2 %x", vector, error, rip, read_cr2());
}

struct save_area *sel4_sleep(word for_ticks)
{
    struct cpu *cpu = this_cpu();
    kernel_depth = 1;
    sleep_until(cpu->current, ticks + for_ticks);
    cpu->resched = 1;
    return leave(cpu);
}

void reschedule(void) { this_cpu()->resched = 1; }

/* The nested exception's frame and the system call's are both dropped when its handler leaves. */
void end_system_call(void) { this_cpu()->drop = 1; }

void jump_user(struct thread *thread, word rip, word rsp, word rflags)
{
    thread->area.rip = rip;
    thread->area.rsp = rsp;
    thread->area.rflags = rflags;
}

/* Not in this style. */
void bad_return(struct thread *thread, word ss)
{
    (void)ss;
    thread->area.rax = -EFAULT;
}

void start_scheduling(struct cpu *cpu)
{
    cpu->current = ksIdleThread = cpu->idle;
    /* Its stack pointer, so that the frame of an interrupt falls into its own slots. (ia32: it has that from IRET.) */
    cpu->idle->area.rsp = (word)&cpu->idle->area + FRAME_END;
    enter_thread(cpu, cpu->idle);
    cpu->resched = 1;
    restore_context(leave(cpu));
}
