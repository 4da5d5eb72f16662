/* Restartable sequences: a section that is preempted ends at its abort address, every other register kept. So does one
 * that a thread on another CPU interrupts on purpose: there is no switch then. */
#include "check.h"

#include <linux/membarrier.h>
#include <pthread.h>
#include <sys/rseq.h>

extern const char op_rseq_end[], op_rseq_abort[];
void op_rseq(void);

static int over;

static void *interrupt_others(void *unused)
{
    while (!__atomic_load_n(&over, __ATOMIC_ACQUIRE)) {
        syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED_RSEQ, 0, 0);
        usleep(2000);
    }
    return unused;
}

void workload_rseq(void)
{
    pthread_t other;
    static struct rseq_cs __attribute__((aligned(32))) section;
    volatile struct rseq *registered = (void *)((char *)__builtin_thread_pointer() + __rseq_offset);
    int aborted = 0;

    check(__rseq_size != 0, "the C library has registered nothing");
    check(syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_RSEQ, 0, 0) == 0, "membarrier");
    check(pthread_create(&other, NULL, interrupt_others, NULL) == 0, "pthread_create");
    section.start_ip = (uintptr_t)op_rseq;
    section.post_commit_offset = op_rseq_end - (const char *)op_rseq;
    section.abort_ip = (uintptr_t)op_rseq_abort;
    for (unsigned i = 0; i < 80u * rounds || (aborted < 6 && i < 5000); i++) {
        struct regs in, out;
        regs_fill(&in, i);
        in.reg[CX] = 1000000;
        registered->rseq_cs = (uintptr_t)&section;
        regs_run(&in, &out, op_rseq);
        registered->rseq_cs = 0;
        regs_check("after the section", &out, &in, 1u << CX);
        aborted += out.reg[CX] != 0;
    }
    __atomic_store_n(&over, 1, __ATOMIC_RELEASE);
    pthread_join(other, NULL);
    check(aborted > 0, "no section was aborted"); /* few are where the tick is off (nohz_full) */
}
