/*
 * Save style "nrk": every entry stores the whole context in the save area that the per-CPU block
 * points to (GS base + 8); every exit builds a fresh frame from a save area. The kernel runs on one
 * stack per CPU, is not preempted, and forgets its stack whenever it leaves.
 */
#include "layout.h"

/* RAX = FS base; changes RCX and RDX. */
.macro READ_FS_BASE
#ifdef FSGSBASE
        rdfsbase %rax
#else
        movl $MSR_FS_BASE, %ecx
        rdmsr
        shlq $32, %rdx
        orq %rdx, %rax
#endif
.endm

/* FS base = RAX; changes RCX and RDX. */
.macro WRITE_FS_BASE
#ifdef FSGSBASE
        wrfsbase %rax
#else
        movl $MSR_FS_BASE, %ecx
        movq %rax, %rdx
        shrq $32, %rdx
        wrmsr
#endif
.endm

/* REG = the current save area */
.macro SAVE_AREA reg
#ifdef FSGSBASE
        rdgsbase \reg
        movq CPU_SAVE(\reg), \reg
#else
        movq %gs:CPU_SAVE, \reg
#endif
.endm

/*
 * Store all general registers but RAX (on the stack, popped here) and RSP into the area at RAX. But not
 * register `lost`, if one is named.
 */
.macro SAVE_REGISTERS lost
        movq %rbx, SLOT_RBX(%rax)
        movq %rcx, SLOT_RCX(%rax)
        movq %rdx, SLOT_RDX(%rax)
        movq %rsi, SLOT_RSI(%rax)
        movq %rdi, SLOT_RDI(%rax)
        .ifnc \lost, rbp
        movq %rbp, SLOT_RBP(%rax)
        .endif
        movq %r8, SLOT_R8(%rax)
        movq %r9, SLOT_R9(%rax)
        movq %r10, SLOT_R10(%rax)
        movq %r11, SLOT_R11(%rax)
        movq %r12, SLOT_R12(%rax)
        .ifnc \lost, r13
        movq %r13, SLOT_R13(%rax)
        .endif
        movq %r14, SLOT_R14(%rax)
        movq %r15, SLOT_R15(%rax)
        popq %r15
        movq %r15, SLOT_RAX(%rax)
.endm

        .text
/* From the stubs: vector and error code lie below the frame (stubs.S). */
        .globl interrupt_entry
        .type interrupt_entry, @function
interrupt_entry:
#ifdef BUG_SWAPGS_DOUBLED /* BUG: this is not CS but RFLAGS, whose bit 1 is always set: swaps every time */
        testb $3, 32(%rsp)
#else
        testb $3, 24(%rsp)
#endif
        jz 1f
        SWAPGS
1:      pushq %rax
        SAVE_AREA %rax
#if defined(BUG_GPR_LOST) /* BUG: R13 is not stored; the slot keeps that of an earlier system call */
        SAVE_REGISTERS lost=r13
#elif defined(BUG_STALE_SLOT)
        SAVE_REGISTERS lost=rbp
        /* BUG: if nothing was saved since to another area, RBP is thought to be still in this one */
        cmpq %rax, %gs:CPU_LAST
        je 1f
        movq %rbp, SLOT_RBP(%rax)
        movq %rax, %gs:CPU_LAST
1:
#else
        SAVE_REGISTERS
#endif
#ifndef BUG_DF_LEAK     /* BUG: C code runs with the DF of whatever was interrupted */
        cld
#endif
        movq 16(%rsp), %r15
        movq %r15, SLOT_RIP(%rax)
#ifndef BUG_NRK_RFLAGS  /* BUG: RFLAGS are not stored; the slot keeps those of an earlier system call */
        movq 32(%rsp), %r15
        movq %r15, SLOT_RFLAGS(%rax)
#endif
        movq 40(%rsp), %r15
        movq %r15, SLOT_RSP(%rax)
        movq 48(%rsp), %r15
        movq %r15, SLOT_SS(%rax)
        movq $0, SLOT_BY_SYSCALL(%rax)
        movq %rax, %rbx
        READ_FS_BASE
        movq %rax, SLOT_FS_BASE(%rbx)
        movq 24(%rsp), %rax
        movq %rax, SLOT_CS(%rbx)
        fxsave SLOT_FXSAVE(%rbx)

        movzbl (%rsp), %edi                     /* vector */
        movq 8(%rsp), %rsi                      /* error code */
        /* An exception inside a handler stays on the handler's stack; all else starts the CPU's afresh. */
        cmpq %gs:CPU_NESTED, %rbx
        je 2f
        movq %gs:CPU_STACK, %rsp
2:      andq $-16, %rsp
        call nrk_interrupt
        movq %rax, %rdi
        jmp restore_context
        .size interrupt_entry, . - interrupt_entry

        .globl int80_entry
        .type int80_entry, @function
int80_entry:
        pushq $0
        pushq $VECTOR_SYSCALL
        jmp interrupt_entry
        .size int80_entry, . - int80_entry

/* SYSCALL: RCX holds the user's RIP, R11 its RFLAGS, RSP is still the user's. */
        .globl syscall_entry
        .type syscall_entry, @function
syscall_entry:
        SWAPGS
        movq %rsp, %gs:CPU_USER_RSP
        movq %gs:CPU_STACK, %rsp
        pushq %rax
        SAVE_AREA %rax
        SAVE_REGISTERS
        movq %rcx, SLOT_RIP(%rax)
#ifdef BUG_IF_CLEAR     /* BUG: not the user's flags but those after SYSCALL, which has cleared IF */
        pushfq
        popq SLOT_RFLAGS(%rax)
#else
        movq %r11, SLOT_RFLAGS(%rax)
#endif
        movq %gs:CPU_USER_RSP, %r15
        movq %r15, SLOT_RSP(%rax)
        movq $USER_CS, SLOT_CS(%rax)
        movq $USER_SS, SLOT_SS(%rax)
        movq $1, SLOT_BY_SYSCALL(%rax)
        movq %rax, %rbx
        READ_FS_BASE
        movq %rax, SLOT_FS_BASE(%rbx)
        fxsave SLOT_FXSAVE(%rbx)
        call nrk_syscall
        movq %rax, %rdi
        jmp restore_context
        .size syscall_entry, . - syscall_entry

/* void restore_context(struct save_area *area): resume what is saved there. Interrupts are off. */
        .globl restore_context
        .type restore_context, @function
restore_context:
        movq SLOT_FS_BASE(%rdi), %rax
        WRITE_FS_BASE
        fxrstor SLOT_FXSAVE(%rdi)
        cmpq $0, SLOT_BY_SYSCALL(%rdi)
        jne restore_by_sysret

        movq SLOT_RAX(%rdi), %rax
        movq SLOT_RBX(%rdi), %rbx
        movq SLOT_RCX(%rdi), %rcx
        movq SLOT_RDX(%rdi), %rdx
        movq SLOT_RSI(%rdi), %rsi
        movq SLOT_RBP(%rdi), %rbp
        movq SLOT_R8(%rdi), %r8
        movq SLOT_R9(%rdi), %r9
        movq SLOT_R10(%rdi), %r10
        movq SLOT_R11(%rdi), %r11
        movq SLOT_R12(%rdi), %r12
        movq SLOT_R13(%rdi), %r13
#ifdef BUG_GPR_SWAPPED  /* BUG: each gets the other's slot */
        movq SLOT_R15(%rdi), %r14
        movq SLOT_R14(%rdi), %r15
#else
        movq SLOT_R14(%rdi), %r14
        movq SLOT_R15(%rdi), %r15
#endif
        pushq SLOT_SS(%rdi)
        pushq SLOT_RSP(%rdi)
        pushq SLOT_RFLAGS(%rdi)
        pushq SLOT_CS(%rdi)
        pushq SLOT_RIP(%rdi)
        movq SLOT_RDI(%rdi), %rdi
        testb $3, 8(%rsp)
        jz 1f
        SWAPGS
1:      iretq
        .size restore_context, . - restore_context

/* The same for a context that was saved at a SYSCALL: RCX and R11 are free to carry RIP and RFLAGS. */
        .type restore_by_sysret, @function
restore_by_sysret:
#ifdef WIDE_WINDOW
        SWAPGS
        movl $FLUSH_TURNS, %ecx
1:      loop 1b
#endif
        movq SLOT_RAX(%rdi), %rax
        movq SLOT_RBX(%rdi), %rbx
        movq SLOT_RDX(%rdi), %rdx
        movq SLOT_RSI(%rdi), %rsi
        movq SLOT_RBP(%rdi), %rbp
        movq SLOT_R8(%rdi), %r8
        movq SLOT_R9(%rdi), %r9
        movq SLOT_R10(%rdi), %r10
        movq SLOT_R12(%rdi), %r12
        movq SLOT_R13(%rdi), %r13
        movq SLOT_R14(%rdi), %r14
        movq SLOT_R15(%rdi), %r15
        movq SLOT_RIP(%rdi), %rcx
        movq SLOT_RFLAGS(%rdi), %r11
        movq SLOT_RSP(%rdi), %rsp
        movq SLOT_RDI(%rdi), %rdi
#ifndef WIDE_WINDOW
        SWAPGS
#endif
.Lsysret:
        sysretq
        .size restore_by_sysret, . - restore_by_sysret

#ifdef BUG_MDB_SYSRET
/* void debug_sysret(void) -- BUG: a breakpoint (DR0) where RSP and GS base are already the user's. */
        .globl debug_sysret
        .type debug_sysret, @function
debug_sysret:
        leaq .Lsysret(%rip), %rax
        movq %rax, %dr0
        movl $0x402, %eax                       /* DR7: DR0 on, instruction execution */
        movq %rax, %dr7
        ret
        .size debug_sysret, . - debug_sysret
#endif

/*
 * void kthread_sleep(u64 for_ticks): a kernel thread gives up the CPU of its own accord. It stores what
 * a function must preserve; when it is resumed, it looks like a return from here.
 */
        .globl kthread_sleep
        .type kthread_sleep, @function
kthread_sleep:
        pushfq
        cli
        SAVE_AREA %rax
        popq SLOT_RFLAGS(%rax)
        popq SLOT_RIP(%rax)                     /* the return address */
        movq %rsp, SLOT_RSP(%rax)
        movq %rbx, SLOT_RBX(%rax)
        movq %rbp, SLOT_RBP(%rax)
        movq %r12, SLOT_R12(%rax)
        movq %r13, SLOT_R13(%rax)
        movq %r14, SLOT_R14(%rax)
        movq %r15, SLOT_R15(%rax)
        movq $KERNEL_CS, SLOT_CS(%rax)
        movq $KERNEL_SS, SLOT_SS(%rax)
        fxsave SLOT_FXSAVE(%rax)
        movq %gs:CPU_STACK, %rsp
        call nrk_sleep
        movq %rax, %rdi
        jmp restore_context
        .size kthread_sleep, . - kthread_sleep

/*
 * u64 sys_copy_end(u64 pointer, u64 length, u64): in this style there is nothing to remember, the stack
 * being forgotten anyway.
 */
        .globl sys_copy_end
        .type sys_copy_end, @function
sys_copy_end:
        jmp copy_or_end
        .size sys_copy_end, . - sys_copy_end
