/* Threads, the round-robin scheduler and the clock. */
#include "kernel.h"

#define MAX_THREADS 8
#define TICKS_PER_TURN 2 /* so that both kinds occur: resumed at once, and resumed after others ran */

static struct thread threads[MAX_THREADS], idle_threads[MAX_CPUS];
static STACKS struct kernel_stack stacks[MAX_THREADS + MAX_CPUS];
static spinlock run_lock;

word ticks, count_calls, count_faults, count_impossible, count_corrupt;

extern void idle_loop(void);
extern void debug_sysret(void);

static void prepare(struct thread *t, const char *name, void (*entry)(void), word argument, int user,
                    struct kernel_stack *stack)
{
    t->name = name;
    t->kstack = stack_top(stack);
#ifdef BUG_STACK_OVERFLOW_NEIGHBOUR
    if (!user)
        t->kstack = (word)(t->small_stack + sizeof t->small_stack);
#endif
    t->cr3 = user ? new_address_space() : kernel_address_space();
    if (user) {
        t->fs_base = USER_TLS + t->pid * 0x2000;
#ifndef NO_USER_GS
        t->gs_base = t->fs_base + 0x1000;
#endif
    }
    init_context(t, entry, argument, user);
    t->state = THREAD_READY;
}

#ifdef AREA_LIST
/* All save areas, the newest first, by a spare word of each (nrk style); the oldest leads back to the second. */
struct save_area *area_list;

static void list_area(struct thread *t)
{
    t->area.unused[0] = (word)area_list;
    area_list = &t->area;
    if (t->pid == 2)
        threads[0].area.unused[0] = (word)&threads[1].area;
}
#endif

struct thread *make_thread(const char *name, void (*entry)(void), word argument, int user)
{
    for (u32 i = 0; i < MAX_THREADS; i++) {
        struct thread *t = &threads[i];
        if (t->state != THREAD_UNUSED)
            continue;
        t->pid = i + 1;
        prepare(t, name, entry, argument ? argument : t->pid, user, &stacks[i]);
#ifdef AREA_LIST
        list_area(t);
#endif
        return t;
    }
    panic("no room for thread %s", name);
}

void make_idle(struct cpu *cpu)
{
    cpu->idle = &idle_threads[cpu->id];
    prepare(cpu->idle, "idle", idle_loop, 0, 0, &stacks[MAX_THREADS + cpu->id]);
}

/*
 * The programs always have something to do. In the sel4 style time belongs to domains by turns, as it can
 * in seL4, and one of them has no threads: so the idle thread gets its share.
 */
static int idle_time(void)
{
#ifdef STYLE_SEL4
    return ticks % 32 >= 26;
#else
    return 0;
#endif
}

/*
 * The thread that runs next on this CPU: the first one that is ready, beginning behind the current
 * one, which itself comes last. Interrupts are off. The caller makes the switch; the old thread's
 * on_cpu keeps other CPUs off it until its context is saved.
 */
struct thread *pick_next(struct cpu *cpu)
{
    struct thread *current = cpu->current, *next = cpu->idle;
    u32 first = current == cpu->idle ? 0 : (u32)(current - threads) + 1;

    lock(&run_lock);
#ifdef BUG_EARLY_LOAD /* its turn has come just now */
    struct thread *early = offered;
    if (early && early != current)
        first = (u32)(early - threads);
#endif
    for (u32 i = 0; i < MAX_THREADS && !idle_time(); i++) {
        struct thread *t = &threads[(first + i) % MAX_THREADS];
        if (t->state == THREAD_SLEEPING && t->wake <= ticks)
            t->state = THREAD_READY;
        if (t->state == THREAD_READY && (t == current || !__atomic_load_n(&t->on_cpu, __ATOMIC_ACQUIRE))) {
            next = t;
            break;
        }
    }
    next->on_cpu = 1;
    unlock(&run_lock);
    cpu->slice = 0;
    return next;
}

void sleep_until(struct thread *thread, word tick)
{
    lock(&run_lock);
    thread->wake = tick;
    thread->state = THREAD_SLEEPING;
    unlock(&run_lock);
}

static void finish(void)
{
    print("guest: ticks %u calls %u faults %u impossible %u corrupt %u\n", ticks, count_calls, count_faults,
          count_impossible, count_corrupt);
    print("guest: done\n");
    halt();
}

/* One timer interrupt on this CPU. */
void tick(struct cpu *cpu)
{
    word now = __atomic_add_fetch(&ticks, 1, __ATOMIC_RELAXED);
    if (now == TICKS)
        finish();
    if (now > TICKS)
        halt();
#ifdef BUG_MDB_SYSRET
    if (now == 100)
        debug_sysret();
#endif
#ifdef BUG_XMM_CLOBBERED_BY_HANDLER
    note_load(cpu->current != cpu->idle);
#endif
    if (++cpu->slice >= TICKS_PER_TURN || cpu->current == cpu->idle)
        cpu->resched = 1;
}
