/* Kernel code runs in segments that begin at 1 MB. A context is pushed by the CPU itself into the process table, where
 * ESP0 points; only then comes the kernel's one stack. Nested interrupts keep theirs on that stack.
 * In the table, upwards: gs fs es ds edi esi ebp - ebx edx ecx eax, the way back, eip cs eflags esp ss. */
    .set BASE, 0x100000
    .set KDATA, 0x10
    .set FRAME, 18 * 4

    .section .multiboot, "a"
    .long 0x1badb002, 0, -0x1badb002

    .text
    .globl begin
begin:
    lgdt gdtr + BASE
    ljmp $8, $1f
1:  movl $KDATA, %eax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    xorl %eax, %eax
    movw %ax, %fs
    movw %ax, %gs
    movl $stack_top, %esp
    call main

    .globl restart
restart:
    cli
    movl current, %esp
    lldt FRAME(%esp)
    leal FRAME(%esp), %eax
#ifdef BUG_ESP0
    incl restarts
    testb $63, restarts
    jz restart_nested
#endif
    movl %eax, tss + 4
restart_nested:
    decl depth
    popl %gs
#ifdef BUG_FS
    addl $4, %esp
#else
    popl %fs
#endif
    popl %es
    popl %ds
#ifdef BUG_EXCHANGED
    popl %esi
    popl %edi
    popl %ebp
    addl $4, %esp
    popl %ebx
    popl %edx
    popl %ecx
    popl %eax
#else
    popal
#endif
    addl $4, %esp
    iret

save:
#ifndef BUG_DF
    cld
#endif
#ifdef BUG_EDX
    movw %ss, %dx
    pushal
#else
    pushal
    movw %ss, %dx
#endif
    pushl %ds
    pushl %es
    pushl %fs
    pushl %gs
    movw %dx, %ds
    movw %dx, %es
    movl %esp, %eax
    incl depth
    jnz 1f
    movl $stack_top, %esp
    pushl $restart
    xorl %ebp, %ebp
    jmp *48(%eax)
1:
#ifdef BUG_NESTED
    pushl $restart_other
#else
    pushl $restart_nested
#endif
    jmp *48(%eax)

#ifdef BUG_NESTED
restart_other:
    decl depth
    popl %gs
    popl %fs
    popl %es
    popl %ds
    popl %edi
    popl %esi
    popl %ebp
    addl $4, %esp
    popl %ebx
    popl %edx
    addl $4, %esp
    popl %eax
    addl $4, %esp
    iret
#endif

.macro IRQ n
    .globl irq\n
irq\n:
    call save
    pushl $\n
    call irq
    addl $4, %esp
    cli
    ret
.endm
    IRQ 0
    IRQ 4

    .globl invalid, protection
invalid:
    pushl $6
    jmp exception_without
protection:
    pushl $13
    popl %ss:number
#ifndef BUG_ERROR_CODE
    popl %ss:code
#endif
    jmp 1f
exception_without:
    popl %ss:number
1:  call save
    pushl code
    pushl number
    call exception
    addl $8, %esp
    cli
    ret

    .globl call_gate
call_gate:
    cld
    subl $4, %esp
    pushl %eax
    pushl %ecx
    pushl %edx
    pushl %ebx
    subl $4, %esp
#ifdef BUG_CALL_EBP
    subl $4, %esp
#else
    pushl %ebp
#endif
    pushl %esi
    pushl %edi
    pushl %ds
    pushl %es
    pushl %fs
    pushl %gs
    movw %ss, %si
    movw %si, %ds
    movw %si, %es
    incl depth
    movl %esp, %esi
    movl $stack_top, %esp
    xorl %ebp, %ebp
    sti
    pushl %ebx
    pushl %eax
    pushl %ecx
    call ipc
    movl %eax, 44(%esi)
    jmp restart

    .data
    .globl gdt
    .balign 8
gdt:
    .quad 0
    .quad 0x00cf9a100000ffff /* code and data from 1 MB on */
    .quad 0x00cf92100000ffff
    .quad 0x00cf92000000ffff /* all of memory */
    .space 8 * 12
gdtr: .word 16 * 8 - 1
    .long gdt + BASE
number: .long 0
code: .long 0
restarts: .long 0
    .bss
    .balign 16
    .space 2048
stack_top:
