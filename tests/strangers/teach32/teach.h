/* teach32: a small teaching kernel for one ia32 CPU, after the manner of Unix V6. */
#pragma once

#define KERNBASE 0x80000000u
#define SEG_KCODE 1
#define SEG_KDATA 2
#define SEG_UCODE 3
#define SEG_UDATA 4
#define SEG_TSS 5
#define SEG_UTLS 6 /* its base is the running process's */
#define T_PGFLT 14
#define T_IRQ0 32
#define T_SYSCALL 64
#define FL_IF 0x200u

#ifndef __ASSEMBLER__
typedef unsigned int uint;
typedef unsigned short ushort;
typedef unsigned char uchar;

enum { SYS_fork = 1, SYS_exit, SYS_wait, SYS_getpid, SYS_sleep, SYS_yield, SYS_puts, SYS_settls, SYS_uptime, SYS_over };

struct trapframe {
    uint edi, esi, ebp, oesp, ebx, edx, ecx, eax;
    uint gs, fs, es, ds;
    uint trapno, err;
    uint eip, cs, eflags, esp, ss;
};

struct context {
    uint edi, esi, ebx, ebp, eip;
};
#endif
