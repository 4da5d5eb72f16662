/*
 * Save style "sel4": a context lives at the start of its thread's control block (TCB). From user mode the
 * CPU pushes its frame right there, because TSS.RSP0 points behind the slots; the rest is pushed below. The
 * idle thread's RSP points into its own TCB, so that the frame of an interrupt falls into the right slots,
 * too: it has no stack. Kernel threads have one; their context is copied. The kernel itself has one stack,
 * is not preempted, and forgets its stack whenever it leaves. See also i386/entry_sel4.S.
 */
#include "layout.h"

        .text
/* From the stubs: vector and error code lie below the frame, in the places of FaultIP and Error. */
        .globl interrupt_entry
        .type interrupt_entry, @function
interrupt_entry:
        pushq %r15
        pushq %r14
        pushq %r13
        pushq %r12
        pushq %r11
        pushq %r10
        pushq %r9
        pushq %r8
        pushq %rbp
        pushq %rdi
        pushq %rsi
        pushq %rdx
        pushq %rcx
        pushq %rbx
        pushq %rax
        cld
        movzbl SLOT_FAULT_IP(%rsp), %edi        /* vector */
        movq SLOT_ERROR(%rsp), %rsi             /* error code */
        movq SLOT_RIP(%rsp), %rax
        movq %rax, SLOT_FAULT_IP(%rsp)
        movq ksCurThread, %rbx
        testb $3, SLOT_CS(%rsp)
        jz from_kernel
saved:  fxsave SLOT_FXSAVE(%rbx)
        movq %gs:CPU_STACK, %rsp
        call sel4_interrupt
        movq %rax, %rdi
        jmp restore_context

from_kernel:
        cmpl $0, kernel_depth
        jne nested_exception
        cmpl $32, %edi
        jb kernel_exception
        cmpq ksIdleThread, %rbx
        je saved                                /* all is in its TCB already */
        popq SLOT_RAX(%rbx)
        popq SLOT_RBX(%rbx)
        popq SLOT_RCX(%rbx)
        popq SLOT_RDX(%rbx)
        popq SLOT_RSI(%rbx)
        popq SLOT_RDI(%rbx)
        popq SLOT_RBP(%rbx)
        popq SLOT_R8(%rbx)
        popq SLOT_R9(%rbx)
        popq SLOT_R10(%rbx)
        popq SLOT_R11(%rbx)
        popq SLOT_R12(%rbx)
        popq SLOT_R13(%rbx)
        popq SLOT_R14(%rbx)
        popq SLOT_R15(%rbx)
        popq SLOT_FAULT_IP(%rbx)
        popq SLOT_ERROR(%rbx)
        popq SLOT_RIP(%rbx)
        popq SLOT_CS(%rbx)
        popq SLOT_RFLAGS(%rbx)
        popq SLOT_RSP(%rbx)
        popq SLOT_SS(%rbx)
        jmp saved
        .size interrupt_entry, . - interrupt_entry

/* A fault inside one of the kernel's handlers, on the kernel's stack. */
        .type nested_exception, @function
nested_exception:
        leaq SLOT_RIP(%rsp), %rdx
        call sel4_nested
        movq %rsp, %rdi
        testq %rax, %rax
        jz restore_registers
        movq %rax, %rdi                         /* the system call is over */
        jmp restore_context
        .size nested_exception, . - nested_exception

/* A fault of the entry or exit paths, or of a kernel thread: there is no way back. */
        .type kernel_exception, @function
kernel_exception:
        movq SLOT_RIP(%rsp), %rdx
        call sel4_kernel_exception
        ud2
        .size kernel_exception, . - kernel_exception

        .globl int80_entry
        .type int80_entry, @function
int80_entry:
        pushq $0
        pushq $VECTOR_SYSCALL - 256
        jmp interrupt_entry
        .size int80_entry, . - int80_entry

/* SYSCALL: RCX holds the user's RIP, R11 its RFLAGS, RSP is still the user's. Push what an interrupt would have. */
        .globl syscall_entry
        .type syscall_entry, @function
syscall_entry:
        movq %rsp, %gs:CPU_USER_RSP
        movq ksCurThread, %rsp
        leaq FRAME_END(%rsp), %rsp
        pushq $USER_SS
        pushq %gs:CPU_USER_RSP
        pushq %r11
        pushq $USER_CS
        pushq %rcx
        jmp int80_entry
        .size syscall_entry, . - syscall_entry

/* void restore_context(struct save_area *area): resume what is saved there. Interrupts are off. */
        .globl restore_context
        .type restore_context, @function
restore_context:
        movl SLOT_FS_BASE(%rdi), %eax
        movl SLOT_FS_BASE+4(%rdi), %edx
        movl $MSR_FS_BASE, %ecx
        wrmsr
        fxrstor SLOT_FXSAVE(%rdi)
restore_registers:
        movq %rdi, %rsp
        popq %rax
        popq %rbx
        popq %rcx
        popq %rdx
        popq %rsi
        popq %rdi
        popq %rbp
        popq %r8
        popq %r9
        popq %r10
        popq %r11
        popq %r12
        popq %r13
        popq %r14
        popq %r15
        addq $16, %rsp                          /* FaultIP, Error */
        iretq
        .size restore_context, . - restore_context

/*
 * void kthread_sleep(u64 for_ticks): a kernel thread gives up the CPU of its own accord. It stores what
 * a function must preserve; when it is resumed, it looks like a return from here.
 */
        .globl kthread_sleep
        .type kthread_sleep, @function
kthread_sleep:
        pushfq
        cli
        movq ksCurThread, %rax
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
        call sel4_sleep
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
