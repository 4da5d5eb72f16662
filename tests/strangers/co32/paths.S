/* Without rings and without paging. Whoever was interrupted goes on like whoever gave way: by popa, popf and ret. */
    .section .multiboot, "a"
    .balign 4
    .long 0x1badb002, 0, -0x1badb002

    .text
    .globl start
start:
    movl $first_stack_end, %esp
    movl %cr4, %eax
    orl $0x600, %eax
    movl %eax, %cr4
    movl %cr0, %eax
    andl $~0xc, %eax
    orl $2, %eax
    movl %eax, %cr0
    xorl %ebp, %ebp
    call kmain

    .globl tick_gate
tick_gate: /* EIP, CS, EFLAGS: made EFLAGS, EIP, a word further up */
    pushl %eax
    movl 4(%esp), %eax
    xchgl %eax, 12(%esp)
#ifdef BUG_FLAGS
    movl $0x202, %eax
#endif
    movl %eax, 8(%esp)
    popl %eax
    leal 4(%esp), %esp
    pusha
    cld
    pushl %esp
    call on_tick
resume:
    movl %eax, %esp
#ifdef BUG_TICK_ECX
    popl %edi
    popl %esi
    popl %ebp
    addl $4, %esp
    popl %ebx
    popl %edx
    addl $4, %esp
    popl %eax
#else
    popa
#endif
    popf
    ret

/* give_way(): as if a tick had come. */
    .globl give_way
give_way:
    pushf
    cli
    pusha
    pushl %esp
    call on_give_way
    jmp resume

/* co_switch(u32 *from, u32 to): another coroutine of this task. */
    .globl co_switch
co_switch:
    movl 4(%esp), %eax
    movl 8(%esp), %edx
    pushl %ebx
    pushl %esi
    pushl %edi
    pushl %ebp
    movl %esp, (%eax)
    movl %edx, %esp
    popl %ebp
    popl %edi
    popl %esi
#ifdef BUG_CO_EBX
    popl %ecx
#else
    popl %ebx
#endif
    ret

    .globl divide_gate, undefined_gate, protection_gate, other_gate, device_gate
divide_gate: /* idiv ECX has two bytes */
    pushl %ebx
    movl 4(%esp), %ebx
    addl $2, %ebx
    movl %ebx, 4(%esp)
    popl %ebx
    iret

undefined_gate:
    addl $2, (%esp)
    iret

protection_gate: /* a code, and an instruction of two bytes (a selector load) */
#ifndef BUG_CODE
    addl $4, %esp
    addl $2, (%esp)
#else
    addl $2, 4(%esp)
#endif
    iret

device_gate: /* interrupts are let in again: a tick may come and take the task away */
    pusha
    cld
    movb $0x20, %al
    outb %al, $0xa0
    outb %al, $0x20
    sti
    call on_device
    cli
#ifdef BUG_DEVICE_EDX
    popl %edi
    popl %esi
    popl %ebp
    addl $4, %esp
    popl %ebx
    popl %eax
    popl %ecx
    popl %eax
#else
    popa
#endif
    iret

other_gate:
    pushl $0
    call on_other

    .bss
    .balign 16
    .space 8192
first_stack_end:
