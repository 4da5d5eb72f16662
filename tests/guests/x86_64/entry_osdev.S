/*
 * Save style "osdev": an entry pushes only the registers that C functions may change (the compiler
 * preserves the others) on the thread's kernel stack. Only when the timer takes the CPU away is the
 * rest copied, with the frame, to the thread's save area. A thread that gives up the CPU of its own
 * accord goes through taskswitch_asm, which leaves all on its stack.
 */
#include "layout.h"

.macro PUSH_SCRATCH
        pushq %rax
        pushq %rcx
        pushq %rdx
        pushq %rsi
        pushq %rdi
        pushq %r8
        pushq %r9
        pushq %r10
        pushq %r11
.endm

.macro POP_SCRATCH
        popq %r11
        popq %r10
        popq %r9
        popq %r8
        popq %rdi
        popq %rsi
        popq %rdx
        popq %rcx
        popq %rax
.endm

        .text
/*
 * From the stubs. osdev_interrupt gets a struct trap; it may set the two pointers that lie lowest in
 * it: the thread whose context is to be saved and the one to go on with.
 */
        .globl interrupt_entry
        .type interrupt_entry, @function
interrupt_entry:
        testb $3, 24(%rsp)
        jnz 1f
        cmpq $.Lint80_iret, 16(%rsp)
        je iret_faulted
        jmp 2f
1:      SWAPGS
2:      PUSH_SCRATCH
        pushq $0                                /* save */
        pushq $0                                /* load */
        cld
        movq %rsp, %rdi
        call osdev_interrupt
        popq %rsi                               /* load */
        popq %rdi                               /* save */
        testq %rsi, %rsi
        jnz 4f
        POP_SCRATCH
        addq $16, %rsp                          /* vector and error code */
        testb $3, 8(%rsp)
        jz 3f
        SWAPGS
3:      iretq

        /* Preempted: all of the context goes to the save area of the thread at RDI. */
4:      popq SLOT_R11(%rdi)
        popq SLOT_R10(%rdi)
        popq SLOT_R9(%rdi)
        popq SLOT_R8(%rdi)
        popq SLOT_RDI(%rdi)
        popq SLOT_RSI(%rdi)
        popq SLOT_RDX(%rdi)
        popq SLOT_RCX(%rdi)
        popq SLOT_RAX(%rdi)
        movq %rbx, SLOT_RBX(%rdi)
        movq %rbp, SLOT_RBP(%rdi)
        movq %r12, SLOT_R12(%rdi)
        movq %r13, SLOT_R13(%rdi)
        movq %r14, SLOT_R14(%rdi)
        movq %r15, SLOT_R15(%rdi)
        addq $16, %rsp
        movq %rsp, THREAD_KSP(%rdi)             /* where the frame lies, and will lie again */
        popq SLOT_RIP(%rdi)
        popq SLOT_CS(%rdi)
        popq SLOT_RFLAGS(%rdi)
        popq SLOT_RSP(%rdi)
        popq SLOT_SS(%rdi)
        movl $1, THREAD_PREEMPTED(%rdi)
        jmp resume

        /*
         * An IRETQ to user mode faulted: the user's registers and GS base are back already, only the
         * return itself did not happen. Let it look like a fault of the user's: swap, and put vector
         * and error code under the frame that IRETQ could not use, which begins at the RSP it had.
         */
iret_faulted:
#ifndef BUG_IRET_FAULT_PARITY /* BUG: the SWAPGS before the IRETQ is not undone, but its exit swaps again */
        SWAPGS
#endif
        pushq %rax
        pushq %rbx
        movq 16+40(%rsp), %rbx                  /* that RSP */
        movq 16+8(%rsp), %rax
        movq %rax, -8(%rbx)                     /* error code */
        movq 16(%rsp), %rax
        movq %rax, -16(%rbx)                    /* vector */
        movq 8(%rsp), %rax
        leaq -16(%rbx), %rbx
        movq %rbx, 8(%rsp)
        popq %rbx
        popq %rsp
        jmp 2b
        .size interrupt_entry, . - interrupt_entry

/*
 * void resume(struct thread *old, struct thread *next): leave the stack of `old`, which is saved, and
 * go on with `next` where it stopped. Interrupts are off.
 */
        .globl resume
        .type resume, @function
resume:
        movq THREAD_KSP(%rsi), %rsp
#ifdef BUG_EARLY_LOAD    /* put_back has done that */
        cmpq %rdi, offered(%rip)
        je 3f
        movl $0, THREAD_ON_CPU(%rdi)
        jmp 4f
3:      movq $0, offered(%rip)
4:
#else
        movl $0, THREAD_ON_CPU(%rdi)
#endif
        cmpl $0, THREAD_PREEMPTED(%rsi)
        jne 1f
        popfq
        popq %r15
        popq %r14
        popq %r13
        popq %r12
        popq %rbp
#ifndef BUG_CALLEE_LOST
        popq %rbx
#endif
        ret

1:      addq $40, %rsp                          /* the frame, again where the CPU had pushed it */
        pushq SLOT_SS(%rsi)
        pushq SLOT_RSP(%rsi)
        pushq SLOT_RFLAGS(%rsi)
        pushq SLOT_CS(%rsi)
        pushq SLOT_RIP(%rsi)
        movq SLOT_RAX(%rsi), %rax
        movq SLOT_RBX(%rsi), %rbx
        movq SLOT_RCX(%rsi), %rcx
        movq SLOT_RDX(%rsi), %rdx
        movq SLOT_RDI(%rsi), %rdi
        movq SLOT_RBP(%rsi), %rbp
        movq SLOT_R8(%rsi), %r8
        movq SLOT_R9(%rsi), %r9
        movq SLOT_R10(%rsi), %r10
        movq SLOT_R11(%rsi), %r11
        movq SLOT_R12(%rsi), %r12
        movq SLOT_R13(%rsi), %r13
        movq SLOT_R14(%rsi), %r14
        movq SLOT_R15(%rsi), %r15
#ifdef BUG_EARLY_LOAD
        movq %rsi, loaded(%rip)
#endif
        movq SLOT_RSI(%rsi), %rsi
        testb $3, 8(%rsp)
        jz 2f
        SWAPGS
2:      iretq
        .size resume, . - resume

/* void taskswitch_asm(struct thread *old, struct thread *next): a voluntary switch. */
        .globl taskswitch_asm
        .type taskswitch_asm, @function
taskswitch_asm:
#ifndef BUG_CALLEE_LOST /* BUG: RBX is not kept (nor restored, in resume): it is whatever the last thread had */
        pushq %rbx
#endif
        pushq %rbp
        pushq %r12
        pushq %r13
        pushq %r14
        pushq %r15
        pushfq
        movq %rsp, THREAD_KSP(%rdi)
        movl $0, THREAD_PREEMPTED(%rdi)
        jmp resume
        .size taskswitch_asm, . - taskswitch_asm

/*
 * Page faults have an entry of their own: they never preempt, so nothing but the scratch registers is
 * ever needed. 0(%rsp) is the error code, 16(%rsp) CS.
 */
        .globl page_fault_entry
        .type page_fault_entry, @function
page_fault_entry:
        testb $3, 16(%rsp)
        jz 1f
        SWAPGS
1:      PUSH_SCRATCH
        subq $8, %rsp                           /* align for the call */
        cld
        leaq 8(%rsp), %rdi
        call osdev_page_fault
        addq $8, %rsp
        POP_SCRATCH
#ifdef BUG_SWAPGS_ERRCODE /* BUG: CS lies here only when there is no error code; this is RIP */
        testb $3, 8(%rsp)
#else
        testb $3, 16(%rsp)
#endif
        jz 2f
        addq $8, %rsp                           /* error code */
        SWAPGS
        iretq

        /* To the kernel: a system call had touched the user's memory. */
2:
#ifndef BUG_FRAME_UNBALANCED /* BUG: the error code stays, and is taken for RIP */
        addq $8, %rsp
#endif
        iretq
        .size page_fault_entry, . - page_fault_entry

/* The call itself, with the arguments already where C wants them. Result in RAX. */
.macro DISPATCH
        cld
        lock incq count_calls
        cmpq $SYS_COUNT, %rax
        jae 1f
        call *syscall_table(, %rax, 8)
        jmp 2f
1:      movq $-EFAULT, %rax
2:
.endm

/* int 0x80: only ever from user mode. */
        .globl int80_entry
        .type int80_entry, @function
int80_entry:
#ifndef BUG_SWAPGS_MISSING /* BUG: here and below: GS is the user's during the call */
        SWAPGS
#endif
        PUSH_SCRATCH
        DISPATCH
        movq %rax, 64(%rsp)                     /* the pushed RAX: the result */
        POP_SCRATCH
#ifndef BUG_SWAPGS_MISSING
        SWAPGS
#endif
.Lint80_iret:
        iretq
        .size int80_entry, . - int80_entry

/* SYSCALL: RCX holds the user's RIP, R11 its RFLAGS, RSP is still the user's. */
        .globl syscall_entry
        .type syscall_entry, @function
syscall_entry:
        SWAPGS
        movq %rsp, %gs:CPU_USER_RSP
        movq %gs:CPU_STACK, %rsp
        pushq %gs:CPU_USER_RSP                  /* jump_user knows these three places */
        pushq %r11
        pushq %rcx
        pushq %rdx
        pushq %rsi
        pushq %rdi
        pushq %r8
        pushq %r9
        pushq %r10
        subq $8, %rsp                           /* align for the call */
        DISPATCH
        addq $8, %rsp
        popq %r10
        popq %r9
        popq %r8
        popq %rdi
        popq %rsi
        popq %rdx
#ifdef BUG_SYSCALL_CLOBBER /* BUG: cleared so that nothing of the kernel's leaks; but it is the user's */
        xorl %edx, %edx
#endif
        popq %rcx
        popq %r11
#ifdef BUG_IRQ_IN_WINDOW /* BUG: a timer interrupt that waits comes with GS and RSP the user's */
        SWAPGS
        sti
        popq %rsp
#else
#ifdef BUG_WRONG_THREAD /* BUG: this CPU may have run other threads' system calls since the entry */
        movq %gs:CPU_USER_RSP, %rsp
#else
        popq %rsp
#endif
        SWAPGS
#endif
        sysretq
        .size syscall_entry, . - syscall_entry

/*
 * u64 sys_copy_end(u64 pointer, u64 length, u64): copy_or_end, with a way back for a fault in it. What
 * the caller's registers were can not be found in the frames that are dropped, so it is kept here.
 */
        .globl sys_copy_end
        .type sys_copy_end, @function
sys_copy_end:
        pushq %rbx
        pushq %rbp
        pushq %r12
        pushq %r13
        pushq %r14
        pushq %r15
        subq $8, %rsp
        movq %gs:CPU_CURRENT, %rax
        movq %rsp, THREAD_BAIL(%rax)
        call copy_or_end
1:      addq $8, %rsp
        popq %r15
        popq %r14
        popq %r13
        popq %r12
        popq %rbp
        popq %rbx
        ret
        .size sys_copy_end, . - sys_copy_end

/*
 * void end_system_call(void): from the page fault handler. Two kernel frames go at once: the fault's,
 * from which there will be no return, and the interrupted copy's.
 */
        .globl end_system_call
        .type end_system_call, @function
end_system_call:
        movq %gs:CPU_CURRENT, %rax
        movq THREAD_BAIL(%rax), %rsp
        movq $-EFAULT, %rax
        jmp 1b
        .size end_system_call, . - end_system_call
