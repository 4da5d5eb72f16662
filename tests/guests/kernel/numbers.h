/* Numbers that C and assembly share, the same on every architecture. */
#ifndef NUMBERS_H
#define NUMBERS_H

#define VECTOR_DEBUG 1
#define VECTOR_NMI 2
#define VECTOR_BREAKPOINT 3
#define VECTOR_NO_FPU 7
#define VECTOR_DOUBLE_FAULT 8
#define VECTOR_NOT_PRESENT 11
#define VECTOR_STACK_FAULT 12
#define VECTOR_PAGE_FAULT 14
#define VECTOR_TIMER 0x40
#define VECTOR_SYSCALL 0x80
#define VECTOR_SPURIOUS 0xff

#define RFLAGS_IF 0x200
#define RFLAGS_DF 0x400
#define RFLAGS_IOPL 0x3000
#define RFLAGS_USER 0xcd5 /* CF PF AF ZF SF DF OF: what a program may set as it likes */

/* System calls: number in RAX; arguments in RDI, RSI, RDX (ia32: EBX, ESI, EDI); result in RAX. */
#define SYS_YIELD 0
#define SYS_SLEEP 1
#define SYS_GETPID 2
#define SYS_CORRUPT 3    /* (register, where): a self-check failed */
#define SYS_IMPOSSIBLE 4 /* the branch that cannot be taken was taken */
#define SYS_COPY 5       /* (pointer, length): sum of the bytes, or -EFAULT by the fixup table */
#define SYS_COPY_END 6   /* the same, but a fault ends the system call on the spot */
#define SYS_UNMAP 7      /* (page): give a page back; the next touch faults it in again */
#define SYS_JUMP 8       /* (rip, rsp, rflags): go on elsewhere, as a sigreturn does */
#define SYS_WORK 9       /* something that takes longer than the timer's period, interrupts off */
#define SYS_BAD_RETURN 10 /* only by int 0x80, osdev style: return with the SS given (ABSENT_SS); -EFAULT */
#define SYS_COUNT 11
#define EFAULT 14

/* Where a self-check failed. */
#define WHERE_COMPUTING 0
#define WHERE_SYSCALL 1

/* User addresses, the same in every address space. */
#define USER_TEXT 0x400000
#define USER_DATA 0x500000
#define USER_TLS 0x600000  /* FS and GS bases point into this region */
#define USER_HEAP 0x800000
#define USER_HEAP_SIZE 0x10000
#define USER_STACK 0x7ff00000
#define USER_STACK_SIZE 0x10000

#endif
