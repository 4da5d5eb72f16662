/* Boot, trap stubs, the switch. */
#include "teach.h"

    .section .multiboot, "a"
    .long 0x1badb002, 0, -0x1badb002

    .text
    .globl entry
entry:
    movl %cr4, %eax
    orl $0x10, %eax /* PSE */
    movl %eax, %cr4
    movl $(bootdir - KERNBASE), %eax
    movl %eax, %cr3
    movl %cr0, %eax
    orl $0x80010000, %eax
    movl %eax, %cr0
    movl $bootstack_end, %esp
    movl $kmain, %eax
    jmp *%eax

    .globl alltraps
alltraps:
    pushl %ds
    pushl %es
#ifdef BUG_FS_NOT_SAVED
    subl $4, %esp
#else
    pushl %fs
#endif
    pushl %gs
    pushal
#ifndef BUG_DF_LEAK
    cld
#endif
    movw $(SEG_KDATA << 3), %ax
    movw %ax, %ds
    movw %ax, %es
    pushl %esp
    call trap
    addl $4, %esp
    .globl trapret
trapret:
#ifdef BUG_EXCHANGED
    popl %edi
    popl %esi
    popl %ebp
    popl %eax
    popl %edx
    popl %ebx
    popl %ecx
    popl %eax
#else
    popal
#endif
    popl %gs
#ifdef BUG_FS_NOT_SAVED
    addl $4, %esp
#else
    popl %fs
#endif
    popl %es
    popl %ds
    addl $8, %esp /* trapno, err */
    iret

#ifdef BUG_SHORT_STUB
    .lcomm nticks, 4
/* The tick is frequent: a stub of its own that saves what the C function may use. But not all of it. */
    .globl quicktick
quicktick:
    pushl %eax
    pushl %edx
    pushl %ds
    pushl %es
    movw $(SEG_KDATA << 3), %ax
    movw %ax, %ds
    movw %ax, %es
    cld
    call tick
    movl nticks, %ecx
    incl %ecx
    movl %ecx, nticks
    popl %es
    popl %ds
    popl %edx
    popl %eax
    iret
#endif

/* void swtch(struct context **old, struct context *new) */
    .globl swtch
swtch:
    movl 4(%esp), %eax
    movl 8(%esp), %edx
    pushl %ebp
    pushl %ebx
    pushl %esi
#ifdef BUG_SWTCH
    subl $4, %esp
#else
    pushl %edi
#endif
    movl %esp, (%eax)
    movl %edx, %esp
#ifdef BUG_SWTCH
    addl $4, %esp
#else
    popl %edi
#endif
    popl %esi
    popl %ebx
    popl %ebp
    ret

.macro vector n
    .text
vector\n:
    .if \n == 8 || (\n >= 10 && \n <= 14) || \n == 17
#ifdef BUG_ERROR_CODE
    .if \n == 14
    pushl $0
    .endif
#endif
    .else
    pushl $0
    .endif
    pushl $\n
    jmp alltraps
    .section .rodata
    .long vector\n
.endm

    .section .rodata
    .globl vectors
vectors:
    .altmacro
    .set i, 0
    .rept 65
    vector %i
    .set i, i + 1
    .endr

    .bss
    .balign 4096
    .space 4096
bootstack_end:
