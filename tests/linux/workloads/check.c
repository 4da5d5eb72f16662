/* The workloads' common tools. */
#include "check.h"

#include <stdarg.h>
#include <sys/prctl.h>
#include <sys/time.h>

int rounds = 1;

void fail(const char *format, ...)
{
    char text[200];
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    /* One write: several children may fail at once. */
    char line[220];
    int length = snprintf(line, sizeof line, "wrong: %s\n", text);
    if (write(1, line, length) < 0)
        _exit(2);
    _exit(1);
}

pid_t start(void (*body)(int), int index)
{
    pid_t parent = getpid(), child = fork();

    check(child >= 0, "fork: %s", strerror(errno));
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent)
            _exit(1);
        body(index);
        _exit(0);
    }
    return child;
}

void reap(pid_t child)
{
    int status;

    while (waitpid(child, &status, 0) < 0)
        check(errno == EINTR, "waitpid: %s", strerror(errno));
    check(!WIFSIGNALED(status), "a child died of signal %d", WTERMSIG(status));
    if (WEXITSTATUS(status))
        _exit(1); /* it has said why */
}

void tick(long microseconds)
{
    struct itimerval timer = {{0, microseconds}, {0, microseconds}};

    check(setitimer(ITIMER_REAL, &timer, NULL) == 0, "setitimer: %s", strerror(errno));
}

void handle(int signal, handler *function, int flags)
{
    struct sigaction action = {.sa_sigaction = function, .sa_flags = SA_SIGINFO | flags};

    check(sigaction(signal, &action, NULL) == 0, "sigaction: %s", strerror(errno));
}

const char *const register_names[REGISTERS] = {
    [AX] = "ax", [BX] = "bx", [CX] = "cx", [DX] = "dx", [SI] = "si", [DI] = "di", [BP] = "bp",
#ifdef __x86_64__
    [R8] = "r8", [R9] = "r9", [R10] = "r10", [R11] = "r11", [R12] = "r12", [R13] = "r13", [R14] = "r14", [R15] = "r15",
#endif
};

#define ARITHMETIC 0x8d5ul /* CF PF AF ZF SF OF */
#define ALWAYS 0x202ul     /* bit 1, IF */

void regs_fill(struct regs *regs, unsigned seed)
{
    for (int i = 0; i < REGISTERS; i++) {
        regs->reg[i] = (unsigned long)0x9e3779b97f4a7c15ull * (seed * REGISTERS + i + 1);
        regs->reg[i] = (regs->reg[i] & ~0xfful) | (i << 4) | (seed & 0xf);
    }
    regs->flags = ALWAYS | (regs->reg[BX] >> 8 & ARITHMETIC);
}

void regs_check(const char *what, const struct regs *got, const struct regs *want, unsigned except)
{
    for (int i = 0; i < REGISTERS; i++)
        check(except & 1u << i || got->reg[i] == want->reg[i], "%s: %s is %lx, not %lx", what, register_names[i],
              got->reg[i], want->reg[i]);
    check(except & 1u << REGISTERS || got->flags == want->flags, "%s: flags are %lx, not %lx", what, got->flags,
          want->flags);
}

#ifdef __x86_64__
static const int greg_of[REGISTERS] = {REG_RAX, REG_RBX, REG_RCX, REG_RDX, REG_RSI, REG_RDI, REG_RBP, REG_R8,
                                       REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
#define GREG_IP REG_RIP
#else
static const int greg_of[REGISTERS] = {REG_EAX, REG_EBX, REG_ECX, REG_EDX, REG_ESI, REG_EDI, REG_EBP};
#define GREG_IP REG_EIP
#endif

greg_t *context_reg(void *context, int index)
{
    return &((ucontext_t *)context)->uc_mcontext.gregs[greg_of[index]];
}

greg_t *context_ip(void *context)
{
    return &((ucontext_t *)context)->uc_mcontext.gregs[GREG_IP];
}
