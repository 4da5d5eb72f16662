/*
 * Save style "osdev": an entry pushes all registers on the thread's kernel stack, the exit pops them. The
 * kernel is preemptible; threads are switched inside the handlers, by taskswitch_asm, which leaves all on
 * the old thread's stack.
 */
#include "layout.h"

        .text
/* From the stubs: vector and error code lie below the frame. osdev_interrupt gets a struct trap. */
        .globl interrupt_entry
        .type interrupt_entry, @function
interrupt_entry:
        pushal
        pushl %ds
        pushl %es
        pushl %fs
        pushl %gs
        movl $KERNEL_SS, %eax
        movl %eax, %ds
        movl %eax, %es
        cld
        pushl %esp
        call osdev_interrupt
        addl $4, %esp
        .size interrupt_entry, . - interrupt_entry
        /* goes on here; also where a new thread begins */

        .globl interrupt_exit
        .type interrupt_exit, @function
interrupt_exit:
        cmpl $BY_SYSENTER, 52(%esp)             /* the error code */
        je exit_by_sysexit
        popl %gs
        popl %fs
#ifdef BUG_SELECTOR_LOST /* BUG: ES keeps the kernel's selector, which IRET to user mode clears */
        addl $4, %esp
#else
        popl %es
#endif
        popl %ds
        popal
        addl $8, %esp                           /* vector, error code */
        iretl
        .size interrupt_exit, . - interrupt_exit

/* ECX and EDX carry ESP and EIP. Interrupts come on with SYSEXIT, not before. */
        .type exit_by_sysexit, @function
exit_by_sysexit:
        popl %gs
        popl %fs
        popl %es
        popl %ds
        popal
        addl $8, %esp                           /* vector, error code */
        movl (%esp), %edx                       /* EIP */
        movl 12(%esp), %ecx                     /* ESP */
        addl $8, %esp
        andl $~RFLAGS_IF, (%esp)
        popfl
        sti
        sysexit
        .size exit_by_sysexit, . - exit_by_sysexit

/*
 * SYSENTER: by convention with our programs, ECX holds the user's ESP and EDX where to go on. ESP points to
 * TSS.ESP0. Push what an interrupt would have pushed, EFLAGS with the IF that SYSENTER has cleared.
 */
        .globl sysenter_entry
        .type sysenter_entry, @function
sysenter_entry:
        movl (%esp), %esp
        pushl $USER_SS
        pushl %ecx
        pushfl
        orl $RFLAGS_IF, (%esp)
        pushl $USER_CS
        pushl %edx
        pushl $BY_SYSENTER
        pushl $VECTOR_SYSCALL
        jmp interrupt_entry
        .size sysenter_entry, . - sysenter_entry

/* void taskswitch_asm(struct thread *old, struct thread *next). Interrupts are off. */
        .globl taskswitch_asm
        .type taskswitch_asm, @function
taskswitch_asm:
        movl 4(%esp), %eax
        movl 8(%esp), %edx
        pushl %ebx
        pushl %esi
        pushl %edi
        pushl %ebp
        pushl %fs
        pushl %gs
        pushfl
        movl %esp, THREAD_KSP(%eax)
        movl THREAD_KSP(%edx), %esp
        movl $0, THREAD_ON_CPU(%eax)
        popfl
        popl %gs
        popl %fs
        popl %ebp
        popl %edi
        popl %esi
        popl %ebx
        ret
        .size taskswitch_asm, . - taskswitch_asm

/*
 * word sys_copy_end(word pointer, word length, word): copy_or_end, with a way back for a fault in it. What
 * the caller's registers were can not be found in the frames that are dropped, so it is kept here.
 */
        .globl sys_copy_end
        .type sys_copy_end, @function
sys_copy_end:
        movl 4(%esp), %eax
        movl 8(%esp), %edx
        pushl %ebx
        pushl %esi
        pushl %edi
        pushl %ebp
        movl cpus+CPU_CURRENT, %ecx
        movl %esp, THREAD_BAIL(%ecx)
        pushl %edx
        pushl %eax
        call copy_or_end
        addl $8, %esp
1:      popl %ebp
        popl %edi
        popl %esi
        popl %ebx
        ret
        .size sys_copy_end, . - sys_copy_end

/*
 * void end_system_call(void): from the page fault handler. Two kernel frames go at once: the fault's,
 * from which there will be no return, and the interrupted copy's.
 */
        .globl end_system_call
        .type end_system_call, @function
end_system_call:
        movl cpus+CPU_CURRENT, %eax
        movl THREAD_BAIL(%eax), %esp
        movl $-EFAULT, %eax
        jmp 1b
        .size end_system_call, . - end_system_call

        .globl idle_loop
        .type idle_loop, @function
idle_loop:
        hlt
        jmp idle_loop
        .size idle_loop, . - idle_loop
