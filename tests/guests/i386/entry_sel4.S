/*
 * Save style "sel4": a context lives at the start of its thread's control block (TCB). From user mode the
 * CPU pushes its frame right there, because TSS.ESP0 points behind the slots; the rest is pushed below. The
 * idle thread's ESP points into its own TCB, so that the shorter frame of an interrupt in the kernel falls
 * into the right slots, too: it has no stack. Kernel threads have one; their context is copied. The kernel
 * itself has one stack, is not preempted, and forgets its stack whenever it leaves.
 */
#include "layout.h"

        .text
/* From the stubs: vector and error code lie below the frame, in the places of FaultIP and Error. */
        .globl interrupt_entry
        .type interrupt_entry, @function
interrupt_entry:
        pushl %ebp
        pushl %edi
        pushl %esi
        pushl %edx
        pushl %ecx
        pushl %ebx
        pushl %eax
        cld
        movl SLOT_FAULT_IP(%esp), %ebx          /* vector */
        movl SLOT_ERROR(%esp), %esi             /* error code */
        movl SLOT_NEXT_IP(%esp), %eax
        movl %eax, SLOT_FAULT_IP(%esp)
        movl %ds, %eax
        movl %es, %ecx
        movl $KERNEL_SS, %edx
        movl %edx, %ds
        movl %edx, %es
        testb $3, SLOT_CS(%esp)
        jz from_kernel
        movl ksCurThread, %edi
saved:  movl %eax, SLOT_DS(%edi)
        movl %ecx, SLOT_ES(%edi)
        movl %fs, %eax
        movl %eax, SLOT_FS(%edi)
        movl %gs, %eax
        movl %eax, SLOT_GS(%edi)
        fxsave SLOT_FXSAVE(%edi)
        movl cpus+CPU_STACK, %esp
        pushl %esi
        pushl %ebx
        call sel4_interrupt
        jmp resume

from_kernel:
        cmpl $0, kernel_depth
        jne nested_exception
        cmpl $32, %ebx
        jb kernel_exception
        movl ksCurThread, %edi
        cmpl ksIdleThread, %edi
        je saved                                /* all is in its TCB already */
        jmp copy_kernel_context
        .size interrupt_entry, . - interrupt_entry

/*
 * A kernel thread was interrupted; 0(%esp) is laid out like a save area, up to the frame's last word,
 * EFLAGS. Copy it to the TCB at EDI. EAX, ECX, EBX and ESI are in use.
 */
        .type copy_kernel_context, @function
copy_kernel_context:
        popl SLOT_EAX(%edi)
        popl SLOT_EBX(%edi)
        popl SLOT_ECX(%edi)
        popl SLOT_EDX(%edi)
        popl SLOT_ESI(%edi)
        popl SLOT_EDI(%edi)
        popl SLOT_EBP(%edi)
        popl SLOT_FAULT_IP(%edi)
        popl SLOT_ERROR(%edi)
        popl SLOT_NEXT_IP(%edi)
        popl SLOT_CS(%edi)
        popl SLOT_FLAGS(%edi)
#ifdef BUG_SAME_RING_FRAME
        /* BUG: the CPU has pushed three words only; these are two of the thread's own stack. */
        popl SLOT_ESP(%edi)
        popl SLOT_SS(%edi)
#else
        movl %esp, SLOT_ESP(%edi)
        movl $KERNEL_SS, SLOT_SS(%edi)
#endif
        jmp saved
        .size copy_kernel_context, . - copy_kernel_context

/* A fault inside one of the kernel's handlers, on the kernel's stack. */
        .type nested_exception, @function
nested_exception:
        leal SLOT_NEXT_IP(%esp), %eax
        pushl %eax
        pushl %esi
        pushl %ebx
        call sel4_nested
        addl $12, %esp
        testl %eax, %eax
        jnz resume                              /* the system call is over */
        popl %eax
        popl %ebx
        popl %ecx
        popl %edx
        popl %esi
        popl %edi
        popl %ebp
        addl $8, %esp
        iretl
        .size nested_exception, . - nested_exception

/* A fault of the entry or exit paths, or of a kernel thread: there is no way back. */
        .type kernel_exception, @function
kernel_exception:
        pushl SLOT_NEXT_IP(%esp)
        pushl %esi
        pushl %ebx
        call sel4_kernel_exception
        ud2
        .size kernel_exception, . - kernel_exception

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

/* void restore_context(struct save_area *area): resume what is saved there. Interrupts are off. */
        .globl restore_context
        .type restore_context, @function
restore_context:
        movl 4(%esp), %eax
resume: fxrstor SLOT_FXSAVE(%eax)
        movw SLOT_ES(%eax), %es
        movw SLOT_FS(%eax), %fs
        movw SLOT_GS(%eax), %gs
        cmpl ksIdleThread, %eax
        je 1f
        testb $3, SLOT_CS(%eax)
        jz restore_kernel_thread
        cmpl $BY_SYSENTER, SLOT_ERROR(%eax)
        je restore_by_sysexit
1:      movl %eax, %esp
        movw SLOT_DS(%esp), %ds
        popl %eax
        popl %ebx
        popl %ecx
        popl %edx
        popl %esi
        popl %edi
        popl %ebp
        addl $8, %esp                           /* FaultIP, Error */
        iretl
        .size restore_context, . - restore_context

        .type restore_kernel_thread, @function
restore_kernel_thread:
        movl SLOT_ESP(%eax), %esp
        pushl SLOT_FLAGS(%eax)
        pushl SLOT_CS(%eax)
        pushl SLOT_NEXT_IP(%eax)
        movl SLOT_EBX(%eax), %ebx
        movl SLOT_ECX(%eax), %ecx
        movl SLOT_EDX(%eax), %edx
        movl SLOT_ESI(%eax), %esi
        movl SLOT_EDI(%eax), %edi
        movl SLOT_EBP(%eax), %ebp
        movl SLOT_EAX(%eax), %eax
        iretl
        .size restore_kernel_thread, . - restore_kernel_thread

/* ECX and EDX are free to carry ESP and EIP. Interrupts come on with SYSEXIT, not before. */
        .type restore_by_sysexit, @function
restore_by_sysexit:
        movl SLOT_FLAGS(%eax), %ecx
        andl $~RFLAGS_IF, %ecx
        pushl %ecx
        popfl
        movl SLOT_NEXT_IP(%eax), %edx
        movl SLOT_ESP(%eax), %ecx
        movl SLOT_EBX(%eax), %ebx
        movl SLOT_ESI(%eax), %esi
        movl SLOT_EDI(%eax), %edi
        movl SLOT_EBP(%eax), %ebp
        pushl SLOT_DS(%eax)
        movl SLOT_EAX(%eax), %eax
        popl %ds
        sti
        sysexit
        .size restore_by_sysexit, . - restore_by_sysexit

/*
 * void kthread_sleep(word for_ticks): a kernel thread gives up the CPU of its own accord. It stores what a
 * function must preserve; when it is resumed, it looks like a return from here.
 */
        .globl kthread_sleep
        .type kthread_sleep, @function
kthread_sleep:
        pushfl
        cli
        movl ksCurThread, %eax
        popl SLOT_FLAGS(%eax)
        popl SLOT_NEXT_IP(%eax)                 /* the return address */
        movl %esp, SLOT_ESP(%eax)
        movl $KERNEL_SS, SLOT_SS(%eax)
        movl $KERNEL_CS, SLOT_CS(%eax)
        movl $0, SLOT_ERROR(%eax)
        movl %ebx, SLOT_EBX(%eax)
        movl %esi, SLOT_ESI(%eax)
        movl %edi, SLOT_EDI(%eax)
        movl %ebp, SLOT_EBP(%eax)
        fxsave SLOT_FXSAVE(%eax)
        movl (%esp), %ecx
        movl cpus+CPU_STACK, %esp
        pushl %ecx
        call sel4_sleep
        jmp resume
        .size kthread_sleep, . - kthread_sleep

/*
 * word sys_copy_end(word pointer, word length, word): in this style there is nothing to remember, the
 * stack being forgotten anyway.
 */
        .globl sys_copy_end
        .type sys_copy_end, @function
sys_copy_end:
        jmp copy_or_end
        .size sys_copy_end, . - sys_copy_end

/* Without a stack there is nothing that this may push: the slots would no longer be where they belong. */
        .globl idle_loop
        .type idle_loop, @function
idle_loop:
#ifdef BUG_SEL4_IDLE
        /* BUG: what a compiler makes of `for (;;) asm("hlt")` in C if it does not leave out the prologue */
        pushl %ebp
        movl %esp, %ebp
#endif
1:      hlt
        jmp 1b
        .size idle_loop, . - idle_loop
