/* Signals by a fast timer into code with every register full; handlers that change registers, nest, use another stack. */
#include "check.h"

static volatile sig_atomic_t alarms, changed, nested, redirected, depth;
static unsigned long change;
static struct regs in;
static char *alternate;

enum { STACK = 1 << 16 };

static int on_alternate(const void *place)
{
    return (const char *)place >= alternate && (const char *)place < alternate + STACK;
}

static int in_spin(void *context)
{
    return *context_ip(context) >= (greg_t)op_spin && *context_ip(context) < (greg_t)op_spin_end;
}

static void on_user(int signal, siginfo_t *info, void *context)
{
    (void)signal, (void)info;
    check(on_alternate(context), "a nested handler's frame is not on the alternate stack");
    nested++;
}

static void on_alarm(int signal, siginfo_t *info, void *context)
{
    (void)signal, (void)info;
    check(on_alternate(context), "the handler's frame is not on the alternate stack");
    alarms++;
    if (depth++ == 0 && alarms % 3 == 0)
        raise(SIGUSR1);
    depth--;
    if (!in_spin(context))
        return;
    for (int i = 0; i < REGISTERS; i++)
        check(i == CX || *context_reg(context, i) == (greg_t)in.reg[i] || (i == DX && changed),
              "the handler sees %s as %lx, not %lx", register_names[i], (long)*context_reg(context, i), in.reg[i]);
    if (alarms % 2) {
        *context_reg(context, DX) = change;
        changed = 1;
    }
    if (alarms % 16 == 0) { /* leave the loop from here, its count not done */
        *context_ip(context) = (greg_t)op_spin_end;
        redirected = 1;
    }
}

void workload_signals(void)
{
    alternate = mmap(NULL, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    stack_t stack = {.ss_sp = alternate, .ss_size = STACK};
    check(alternate != MAP_FAILED && sigaltstack(&stack, NULL) == 0, "sigaltstack: %s", strerror(errno));
    handle(SIGALRM, on_alarm, SA_ONSTACK | SA_NODEFER | SA_RESTART);
    handle(SIGUSR1, on_user, SA_ONSTACK);
    tick(2000);
    for (unsigned i = 0; i < 60u * rounds || ((alarms < 21 || nested < 6) && i < 5000); i++) {
        struct regs out;
        regs_fill(&in, i);
        in.reg[CX] = 1000000;
        change = ~in.reg[DX];
        changed = redirected = 0;
        regs_run(&in, &out, op_spin);
        regs_check("after signals", &out, &in, 1u << CX | 1u << DX);
        check(out.reg[DX] == (changed ? change : in.reg[DX]), "dx is %lx after the handler left %lx", out.reg[DX],
              changed ? change : in.reg[DX]);
        check(redirected || out.reg[CX] == 0, "the loop ended early");
    }
    tick(0);
    check(alarms > 20 && nested > 5, "only %d signals, %d nested", (int)alarms, (int)nested);
}
