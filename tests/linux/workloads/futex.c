/* Threads that hand a token to and fro: by futex, by condition variable, by yielding. */
#include "check.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>

static int turn, handed, holder;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t passed = PTHREAD_COND_INITIALIZER;
static __thread long own;

static void wait_turn(int me)
{
    while (__atomic_load_n(&turn, __ATOMIC_ACQUIRE) != me)
        syscall(SYS_futex, &turn, FUTEX_WAIT, !me, NULL, NULL, 0);
}

static void pass_turn(int me)
{
    __atomic_store_n(&turn, !me, __ATOMIC_RELEASE);
    syscall(SYS_futex, &turn, FUTEX_WAKE, 1, NULL, NULL, 0);
}

static void *player(void *argument)
{
    int me = (int)(intptr_t)argument, count = 1500 * rounds;

    own = me * 1000003l;
    for (int i = 0; i < count; i++) {
        wait_turn(me);
        check(handed == 2 * i + me, "the token came %d times, not %d", handed, 2 * i + me);
        handed++;
        pass_turn(me);
        check(own == me * 1000003l, "a thread reads another's variable");
    }
    for (int i = 0; i < count / 3; i++) {
        pthread_mutex_lock(&lock);
        while (holder != me)
            pthread_cond_wait(&passed, &lock);
        holder = !me;
        pthread_cond_signal(&passed);
        pthread_mutex_unlock(&lock);
        sched_yield();
        check(own == me * 1000003l, "a thread reads another's variable");
    }
    return NULL;
}

void workload_futex(void)
{
    pthread_t threads[2];

    for (int i = 0; i < 2; i++)
        check(pthread_create(&threads[i], NULL, player, (void *)(intptr_t)i) == 0, "pthread_create");
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    check(handed == 3000 * rounds, "the token was handed on %d times", handed);
}
