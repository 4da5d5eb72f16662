/* What every workload has at hand. A workload is one function; it returns when all is well and calls fail() if not. */
#pragma once

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

/* How much work: 1 is a second or two under TCG (`rounds=N` on the kernel's command line). */
extern int rounds;

/* Say what is wrong and end the workload. */
_Noreturn void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
#define check(condition, ...)                                                                                         \
    do {                                                                                                              \
        if (!(condition))                                                                                             \
            fail(__VA_ARGS__);                                                                                        \
    } while (0)

/* Start a child that runs `body(index)`; reap() waits for it and fails if it did. */
pid_t start(void (*body)(int), int index);
void reap(pid_t child);

/* Send SIGALRM every `microseconds`; 0 ends it. */
void tick(long microseconds);

typedef void handler(int signal, siginfo_t *info, void *context);
void handle(int signal, handler *function, int flags);

/* All general registers but the stack pointer, full of values of one's own. See regs.S. */
#ifdef __x86_64__
enum { AX, BX, CX, DX, SI, DI, BP, R8, R9, R10, R11, R12, R13, R14, R15, REGISTERS };
#else
enum { AX, BX, CX, DX, SI, DI, BP, REGISTERS };
#endif
extern const char *const register_names[REGISTERS];

struct regs {
    unsigned long reg[REGISTERS];
    unsigned long flags;
};

/* Load `in`, call `op`, store what is there then to `out`. */
void regs_run(const struct regs *in, struct regs *out, void (*op)(void));

/* Operations, to be called by regs_run() alone. */
void op_spin(void);    /* count CX down to zero: touches no flag and no other register */
void op_spin_end(void);
void op_syscall(void); /* the fastest system call instruction of this mode */
void op_int80(void);
void op_int3(void);
void op_icebp(void);
void op_ud2(void);
void op_hlt(void);
void op_divide(void); /* by DX:AX / CX; CX is 0 */

/* Fill with values that tell register, `seed` and bit position apart; flags: CF PF AF ZF SF OF by the seed. */
void regs_fill(struct regs *regs, unsigned seed);

/* Fail unless `got` is `want`, but for the registers whose bit is set in `except` (bit REGISTERS: the flags). */
void regs_check(const char *what, const struct regs *got, const struct regs *want, unsigned except);

/* What a system call may change. */
#ifdef __x86_64__
#define SYSCALL_CHANGES (1u << AX | 1u << CX | 1u << R11)
#else
#define SYSCALL_CHANGES (1u << AX | 1u << REGISTERS) /* sysenter loses flags, whatever the kernel does */
#endif

/* A saved context's register by the numbers above; its program counter. */
greg_t *context_reg(void *context, int index);
greg_t *context_ip(void *context);
