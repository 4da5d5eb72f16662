/* Interrupt gates for what a task handles itself; task gates (in kernel.c) for what it must not notice. */
    .section .multiboot, "a"
    .long 0x1badb002, 0, -0x1badb002

    .text
    .globl start
start:
    movl $boot_stack, %esp
    xorl %ebp, %ebp
    call kernel
    hlt

    /* FS and GS are nobody's but the task's: its TSS keeps them. */
.macro gate n, code
gate\n:
    .if !\code
    pushl $0
    .endif
    pushl $\n
    jmp common
    .pushsection .rodata
    .long \n, gate\n
    .popsection
.endm
    .section .rodata
    .globl gates
gates:
    .text
    gate 0, 0
    gate 6, 0
    gate 7, 0
    gate 10, 1
    gate 11, 1
    gate 12, 1
    gate 13, 1
    gate 14, 1
    gate 32, 0
    gate 39, 0
    gate 128, 0
    .section .rodata
    .long 0, 0

    .text
common:
    pushl %eax
    pushl %ecx
    pushl %edx
    pushl %ebx
    pushl %ebp
#ifdef BUG_STUB_ESI
    pushl %edi
#else
    pushl %esi
#endif
    pushl %edi
    pushl %ds
    pushl %es
    movw $0x10, %ax
    movw %ax, %ds
    movw %ax, %es
    cld
    pushl %esp
    call trap
    addl $4, %esp
    popl %es
    popl %ds
    popl %edi
    popl %esi
    popl %ebp
    popl %ebx
    popl %edx
    popl %ecx
    popl %eax
    addl $8, %esp
    iretl

    /* The watchdog: a task gate leads here at every tick of the RTC, and on from its own iret. */
    .globl watchdog
watchdog:
    call watch
    iretl
    jmp watchdog

    /* Real-mode code for the task in virtual-8086 mode; it is copied to 1000:0000. */
    .globl old_code, old_code_end
old_code:
    .code16
    movw $0x1000, %ax
    movw %ax, %ds
    movw %ax, %gs
    xorw %bx, %bx
1:  incw %bx
    movw $3000, %cx
2:  decw %cx
    jnz 2b
    movw $0x1234, %dx
    int $0x21
    cmpw $0x1235, %dx
    jne 4f
    pushfw
    cli
    popfw
    testw $15, %bx
    jnz 1b
    hlt
    jmp 1b
4:  int $0x22
    jmp 4b
    .org old_code + 0x100
    incw %dx        /* the service behind INT 21h */
    iretw
old_code_end:
    .code32

    .bss
    .balign 4096
    .space 8192
boot_stack:
