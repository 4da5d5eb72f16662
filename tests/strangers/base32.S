/* Multiboot; the other CPUs come to 8000h in real mode. */
    .section .multiboot, "a"
    .long 0x1badb002, 0, -0x1badb002
    .text
    .globl start, boot16, boot16_end
start:
    movl $boot_stack + 8192, %esp
    xorl %ebp, %ebp
    pushl $0
    popfl
    call kernel
1:  hlt
    jmp 1b
    .code16
boot16:
    cli
    xorw %ax, %ax
    movw %ax, %ds
    lgdtl 0x8000 + (boot_gdtr - boot16)
    movl %cr0, %eax
    orl $1, %eax
    movl %eax, %cr0
    ljmpl $8, $boot32
boot_gdtr:
    .word 23
    .long boot_gdt
boot16_end:
    .code32
boot32:
    movw $16, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movl $1, %eax
    lock xaddl %eax, cpus_up
    incl %eax
    movl %eax, %ecx
    incl %eax
    shll $13, %eax
    leal boot_stack(%eax), %esp
    xorl %ebp, %ebp
    pushl %ecx
    call other
1:  hlt
    jmp 1b
    .weak other
    .data
    .balign 8
boot_gdt:
    .quad 0, 0x00cf9a000000ffff, 0x00cf92000000ffff
    .globl cpus_up
cpus_up: .long 0
    .bss
    .balign 4096
boot_stack: .space 8192 * 8
