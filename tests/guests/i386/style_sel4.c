/* The C side of the sel4 save style: which TCB an entry saves to, and which one the exit resumes. */
#include "kernel.h"

const char style_name[] = "sel4";

void restore_context(struct save_area *area) __attribute__((noreturn, regparm(1)));

/* What assembly goes by; the names are seL4's. */
struct thread *ksCurThread, *ksIdleThread;
u32 kernel_depth; /* nonzero: one of the kernel's handlers is running */

void init_context(struct thread *t, void (*entry)(void), u32 argument, int user)
{
    struct save_area *a = &t->area;
    a->rip = (u32)entry;
    a->eax = argument;
    a->rflags = 0x2 | RFLAGS_IF;
    a->cs = user ? USER_CS : KERNEL_CS;
    a->ss = a->ds = a->es = user ? USER_SS : KERNEL_SS;
    a->fs = user ? TLS_A : 0;
    a->gs = user ? TLS_B : 0;
    a->rsp = user ? USER_STACK + USER_STACK_SIZE : t->kstack;
    a->fs_base = t->fs_base;
    a->gs_base = t->gs_base;
    init_fpu(a->fxsave);
}

static void enter_thread(struct cpu *cpu, struct thread *next)
{
    activate(cpu, next);
    ksCurThread = next;
    cpu->tss.esp0 = (u32)&next->area + FRAME_END;
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
    area->eax = area->eax < SYS_COUNT ? syscall_table[area->eax](area->ebx, area->esi, area->edi) : (u32)-EFAULT;
}

struct save_area *sel4_interrupt(u32 vector, u32 error)
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
struct save_area *sel4_nested(u32 vector, u32 error, u32 *rip)
{
    struct cpu *cpu = this_cpu();
    handle_trap((u8)vector, error, rip, KERNEL_CS);
    if (!cpu->drop)
        return 0;
    cpu->drop = 0;
    ksCurThread->area.eax = -EFAULT;
    return leave(cpu);
}

void sel4_kernel_exception(u32 vector, u32 error, u32 rip)
{
    panic("vector %u error %x eip %x cr2 %x", vector, error, rip, read_cr2());
}

struct save_area *sel4_sleep(u32 for_ticks)
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

void jump_user(struct thread *thread, u32 rip, u32 rsp, u32 rflags)
{
    thread->area.rip = rip;
    thread->area.rsp = rsp;
    thread->area.rflags = rflags;
}

/* Not in this style. */
void bad_return(struct thread *thread, u32 ss)
{
    (void)ss;
    thread->area.eax = -EFAULT;
}

void start_scheduling(struct cpu *cpu)
{
    cpu->current = ksIdleThread = cpu->idle;
    enter_thread(cpu, cpu->idle);
    cpu->resched = 1;
    restore_context(leave(cpu));
}
