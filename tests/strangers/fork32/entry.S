/* Entries after the manner of Linux 2.0. From ESP: ebx ecx edx esi edi ebp eax ds es fs gs orig eip cs eflags esp ss.
 * In the kernel FS is the user's data, unless it was told to be the kernel's. */
    .set UPPER, 0xc0000000
    .set KDS, 0x10
    .set UDS, 0x23

    .section .multiboot, "a"
    .long 0x1badb002, 0, -0x1badb002

    .text
    .globl start
start:
    movl %cr4, %eax
    orl $0x610, %eax /* PSE, OSFXSR */
    movl %eax, %cr4
    movl $(boot_dir - UPPER), %eax
    movl %eax, %cr3
    movl %cr0, %eax
    andl $~4, %eax
    orl $0x80010022, %eax /* PG, WP, NE, MP */
    movl %eax, %cr0
    movl $boot_stack_end, %esp
    xorl %ebp, %ebp
    movl $start_kernel, %eax
    jmp *%eax

.macro SAVE_ALL
#ifndef BUG_DF
    cld
#endif
    pushl %gs
    pushl %fs
    pushl %es
    pushl %ds
    pushl %eax
    pushl %ebp
    pushl %edi
    pushl %esi
    pushl %edx
    pushl %ecx
    pushl %ebx
    movl $KDS, %edx
    movl %edx, %ds
    movl %edx, %es
    movl $UDS, %edx
    movl %edx, %fs
.endm

    .globl return_from_fork
return_from_fork:
    call schedule_tail
return_all:
    movl %esp, %eax
    pushl %eax
    call before_return
    addl $4, %esp
restore:
    popl %ebx
    popl %ecx
    popl %edx
    popl %esi
    popl %edi
    popl %ebp
    popl %eax
    popl %ds
    popl %es
#ifdef BUG_KERNEL_FS
    testl $3, 16(%esp)
    jnz 1f
    addl $4, %esp
    jmp 2f
1:  popl %fs
2:
#else
    popl %fs
#endif
    popl %gs
    addl $4, %esp
    iretl

    .globl call_80
call_80: /* a trap gate: interrupts are on */
    pushl %eax
    SAVE_ALL
    pushl %esp
    call system_call
    addl $4, %esp
#ifdef BUG_SCRATCH
    movl (%esp), %eax
    movl %eax, scratch
    movl %esp, %eax
    pushl %eax
    call before_return
    addl $4, %esp
    sti
    movl scratch, %eax
    movl %eax, (%esp)
    jmp restore
    .lcomm scratch, 4
#endif
    jmp return_all

    .globl call_gate
call_gate: /* a far call: EIP, CS, ESP and SS are there; the flags are still the caller's */
    pushfl
    pushl %eax
    SAVE_ALL
    movl 48(%esp), %eax
    movl 52(%esp), %edx
    movl 56(%esp), %ecx
    movl %edx, 48(%esp)
    movl %ecx, 52(%esp)
    movl %eax, 56(%esp)
    pushl %esp
    call system_call
    addl $4, %esp
    jmp return_all

.macro TRAP name, handler, code
    .globl \name
\name:
    .if !\code
    pushl $0
    .endif
    SAVE_ALL
    movl 44(%esp), %ecx /* the error code */
    movl $-1, 44(%esp)
    movl %esp, %eax
    pushl %ecx
    pushl %eax
    call \handler
    addl $8, %esp
    jmp return_all
.endm
    TRAP on_breakpoint, do_breakpoint, 0
    TRAP on_protection, do_protection, 1
    TRAP on_timer, do_timer, 0

    .globl on_page
on_page:
    SAVE_ALL
    movl 44(%esp), %ecx
    movl $-1, 44(%esp)
    movl %esp, %eax
    pushl %ecx
    pushl %eax
    call do_page
    addl $8, %esp
#ifdef BUG_PAGE_ESI
    movl %cr2, %esi
    movl %esi, 12(%esp)
#endif
#ifdef BUG_PAGE_CODE
    movl %esp, %eax
    pushl %eax
    call before_return
    addl $4, %esp
    popl %ebx
    popl %ecx
    popl %edx
    popl %esi
    popl %edi
    popl %ebp
    popl %eax
    popl %ds
    popl %es
    popl %fs
    popl %gs
    iretl
#endif
    jmp return_all

    .globl on_no_fpu
on_no_fpu:
    pushl $-1
    SAVE_ALL
    call fpu_for_current
    jmp return_all

    /* The clock of the date: quick, with interrupts off, and no look at what else there is to do. */
    .globl on_clock
on_clock:
    pushl %eax
    pushl %ecx
#ifndef BUG_CLOCK_EDX
    pushl %edx
#endif
    pushl %ds
    pushl %es
    movl $KDS, %eax
    movl %eax, %ds
    movl %eax, %es
    cld
    call do_clock
#ifdef BUG_CLOCK_ES
    addl $4, %esp
#else
    popl %es
#endif
    popl %ds
#ifndef BUG_CLOCK_EDX
    popl %edx
#endif
    popl %ecx
    popl %eax
    iretl

    .globl on_nothing
on_nothing:
    iretl

/* struct task *switch_stacks(u32 *from, u32 to, struct task *last) */
    .globl switch_stacks
switch_stacks:
    movl 4(%esp), %ecx
    movl 8(%esp), %edx
    movl 12(%esp), %eax
    pushfl
    pushl %ebp
    pushl %edi
    pushl %esi
    pushl %ebx
    movl %esp, (%ecx)
    movl %edx, %esp
#ifdef BUG_SWITCH_EBX
    addl $4, %esp
#else
    popl %ebx
#endif
    popl %esi
    popl %edi
#ifdef BUG_SWITCH_EBP
    addl $4, %esp
    movl %edi, %ebp
#else
    popl %ebp
#endif
    popfl
    ret

    .bss
    .balign 4096
    .space 4096
boot_stack_end:
