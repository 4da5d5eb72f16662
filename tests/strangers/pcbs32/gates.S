/* Multiboot and start-up IPI to paged code; gates that save on the CPU's one stack, from where C copies contexts away. */
#define UPPER 0xc0000000
#define PHYS(x) ((x) - UPPER)

    .section .multiboot, "a"
    .long 0x1badb002, 0, -0x1badb002

    .section .boot, "ax"
    .globl start
start:
    movl $PHYS(first_stack_end), %esp
    movl $PHYS(boot_pd), %edi
    movl $0x83, %eax
1:  movl %eax, (%edi)
    movl $0, 4(%edi)
    addl $0x200000, %eax
    addl $8, %edi
    cmpl $PHYS(boot_pd) + 4096 - 16, %edi
    jb 1b
    movl $0xfee00093, (%edi) /* the local APIC, in the last but one entry */
    movl $0, 4(%edi)
    movl $PHYS(boot_pd) + 1, PHYS(boot_pdpt)
    movl $PHYS(boot_pd) + 1, PHYS(boot_pdpt) + 24
    movl $paged - UPPER, %eax
    call *%eax
    addl $UPPER, %esp
    xorl %ebp, %ebp
    call kmain

/* Returns to its caller's address in the upper half. */
paged:
    movl %cr4, %eax
    orl $0x620, %eax /* PAE, OSFXSR */
    movl %eax, %cr4
    movl $PHYS(boot_pdpt), %eax
    movl %eax, %cr3
    movl %cr0, %eax
    andl $~0xc, %eax
    orl $0x80010022, %eax
    movl %eax, %cr0
    addl $UPPER, (%esp)
    ret

    .code16
    .globl ap_start, ap_start_end
ap_start:
    cli
    xorw %ax, %ax
    movw %ax, %ds
    lgdtl 0x8000 + ap_gdt_ptr - ap_start
    movl %cr0, %eax
    orl $1, %eax
    movl %eax, %cr0
    ljmpl $8, $0x8000 + ap_32 - ap_start
    .code32
ap_32:
    movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl PHYS(ap_stack), %esp
    subl $UPPER, %esp
    movl $paged - UPPER, %eax
    call *%eax
    movl $ap_upper, %eax
    jmp *%eax
    .balign 8
ap_gdt:
    .quad 0, 0x00cf9a000000ffff, 0x00cf92000000ffff
ap_gdt_ptr:
    .word 23
    .long 0x8000 + ap_gdt - ap_start
ap_start_end:

    .text
    .globl ap_upper
ap_upper:
    movl ap_stack, %esp
    xorl %ebp, %ebp
    call ap_main

/* Words from ESP: gs fs es ds, edi esi ebp esp ebx edx ecx eax, vector, code, eip cs eflags, esp ss */
all:
    pusha
    pushl %ds
    pushl %es
#ifdef BUG_FS
    pushl $0
#else
    pushl %fs
#endif
    pushl %gs
    movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl $0x30, %eax
    movl %eax, %gs
#ifndef BUG_DF
    cld
#endif
    movl %esp, %eax
    testb $3, 60(%esp)
    jz 1f
    call on_trap /* EAX: what was saved; returns what to load, below the top of this stack */
    jmp leave
1:  call on_trap_in_idle
    .globl leave
leave:
    movl %eax, %esp
    testl %eax, %eax
    jz to_idle
    popl %gs
    popl %fs
    popl %es
    popl %ds
    cmpl $0x100, 32(%esp)
    je 2f
#ifdef BUG_EXCHANGED
    popl %edi
    popl %esi
    popl %ebp
    addl $4, %esp
    popl %edx
    popl %ebx
    popl %ecx
    popl %eax
#else
    popa
#endif
    leal 8(%esp), %esp
    iret
2:  popa /* a fast call: EDX and ECX for sysexit */
    movl 8(%esp), %edx
    movl 20(%esp), %ecx
    addl $16, %esp
    andl $~0x200, (%esp)
    popf
#ifndef BUG_SYSEXIT_IF
    sti
#endif
    sysexit

to_idle:
    movl %gs:8, %esp
    pushl $0
    pushl $0
    enter $16, $0
1:  sti
    hlt
    jmp 1b

    .globl fast_gate
fast_gate: /* EDX: where from, ECX: on which stack */
    pushl $0x23
    pushl %ecx
    pushf
    orl $0x200, (%esp)
    pushl $0x1b
    pushl %edx
    pushl $0
    pushl $0x100
#ifdef BUG_CALL_EBP
    movl %esp, %ebp
#endif
    jmp all

.macro GATE n, code
gate_\n:
    .if !\code
    pushl $0
    .endif
    pushl $\n
    jmp all
    .pushsection .rodata
    .long \n, gate_\n
    .popsection
.endm
    .section .rodata
    .balign 4
    .globl gates
gates:
    .text
#ifdef BUG_BREAK_CODE
    GATE 3, 1
#else
    GATE 3, 0
#endif
    GATE 6, 0
    GATE 13, 1
    GATE 14, 1
    GATE 0x40, 0
    GATE 0x41, 0
    GATE 0x80, 0
    GATE 0xff, 0
    .section .rodata
    .long 0, 0
    .text

    .data
    .globl ap_stack
    .balign 4
ap_stack: .long 0
    .bss
    .balign 4096
    .globl boot_pd, boot_pdpt
boot_pd: .space 4096
boot_pdpt: .space 32
    .space 4064
first_stack_end:
