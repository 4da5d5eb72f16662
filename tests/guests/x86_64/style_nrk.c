/* The C side of the nrk save style: which area an entry saves to, and which one the exit resumes. */
#include "kernel.h"

const char style_name[] = "nrk";

void restore_context(struct save_area *area) __attribute__((noreturn));

/* End of a handler: switch threads if somebody asked for it, and say whose area to resume. */
static struct save_area *leave(struct cpu *cpu)
{
    struct thread *old = cpu->current;
    if (cpu->resched) {
        struct thread *next = pick_next(cpu);
        cpu->resched = 0;
        if (next != old) {
            activate(cpu, next);
            /* Its context is complete in its area, and this is the CPU's stack: others may have it. */
            __atomic_store_n(&old->on_cpu, 0, __ATOMIC_RELEASE);
        }
    }
    cpu->save = &cpu->current->area;
    return cpu->save;
}

static void system_call(struct save_area *area)
{
    __atomic_add_fetch(&count_calls, 1, __ATOMIC_RELAXED);
    area->rax = area->rax < SYS_COUNT ? syscall_table[area->rax](area->rdi, area->rsi, area->rdx) : (u64)-EFAULT;
}

struct save_area *nrk_interrupt(u64 vector, u64 error)
{
    struct cpu *cpu = this_cpu();
    struct save_area *area = cpu->save;

    if (area == &cpu->nested_area) { /* a fault inside one of the handlers below */
        handle_trap(vector, error, &area->rip, area->cs);
        if (!cpu->drop)
            return area;
        cpu->drop = 0;
        cpu->current->area.rax = -EFAULT;
        return leave(cpu);
    }
    cpu->save = &cpu->nested_area;
    if (vector == VECTOR_SYSCALL)
        system_call(area);
    else
        handle_trap(vector, error, &area->rip, area->cs);
    return leave(cpu);
}

struct save_area *nrk_syscall(void)
{
    struct cpu *cpu = this_cpu();
    struct save_area *area = cpu->save;
    cpu->save = &cpu->nested_area;
    system_call(area);
    return leave(cpu);
}

struct save_area *nrk_sleep(u64 for_ticks)
{
    struct cpu *cpu = this_cpu();
    sleep_until(cpu->current, ticks + for_ticks);
    cpu->resched = 1;
    return leave(cpu);
}

void reschedule(void) { this_cpu()->resched = 1; }

/* The nested exception's frame and the system call's are both dropped when its handler leaves. */
void end_system_call(void) { this_cpu()->drop = 1; }

void jump_user(struct thread *thread, u64 rip, u64 rsp, u64 rflags)
{
    thread->area.rip = rip;
    thread->area.rsp = rsp;
    thread->area.rflags = rflags;
}

/* Not in this style. */
void bad_return(struct thread *thread, u64 ss)
{
    (void)ss;
    thread->area.rax = -EFAULT;
}

void start_scheduling(struct cpu *cpu)
{
    cpu->current = cpu->idle;
    cpu->resched = 1;
    restore_context(leave(cpu));
}
