/* SSE, AVX and x87 state across switches and signals whose handlers use the same registers. */
#include "check.h"

#include <fenv.h>

#ifdef __x86_64__
enum { VECTORS = 16 };
#else
enum { VECTORS = 8 };
#endif

typedef unsigned char vectors[VECTORS][32];

void simd_run(const vectors in, vectors out, long count);
void simd_run_avx(const vectors in, vectors out, long count);
void simd_clear(void);

static volatile sig_atomic_t alarms;

static void on_alarm(int signal, siginfo_t *info, void *context)
{
    (void)signal, (void)info, (void)context;
    simd_clear();
    fesetround(FE_TOWARDZERO);
    alarms++;
}

static const int roundings[] = {FE_TONEAREST, FE_DOWNWARD, FE_UPWARD, FE_TOWARDZERO};

static void worker(int index)
{
    int avx = __builtin_cpu_supports("avx"), width = avx ? 32 : 16;
    vectors in, out;

    handle(SIGALRM, on_alarm, 0);
    tick(3000 + 500 * index);
    for (int i = 0; i < 40 * rounds || (alarms < 6 && i < 100000); i++) {
        int rounding = roundings[(index + i) % 4];
        for (int v = 0; v < VECTORS; v++)
            for (int b = 0; b < 32; b++)
                in[v][b] = index * 89 + i * 31 + v * 32 + b;
        fesetround(rounding);
        volatile long double third = 1.0L / (3 + index), kept = third;
        (avx ? simd_run_avx : simd_run)(in, out, 400000);
        check(kept == third, "an x87 value changed");
        check(fegetround() == rounding, "the rounding mode is %x, not %x", fegetround(), rounding);
        for (int v = 0; v < VECTORS; v++)
            check(memcmp(in[v], out[v], width) == 0, "vector register %d changed", v);
    }
    tick(0);
    check(alarms > 5, "only %d signals", (int)alarms);
}

void workload_simd(void)
{
    pid_t children[3];

    for (int i = 0; i < 3; i++)
        children[i] = start(worker, i);
    for (int i = 0; i < 3; i++)
        reap(children[i]);
}
