/*
 * A guest that stores into its local APIC once a table with a gate is loaded, and then asks the APIC whether anybody has read
 * a register that it does not have: ud2 if so, int3 if not. Ends by isa-debug-exit.
 */
#include "boot.h"

#define APIC 0xfee00000
#define ERRORS 0x280

main:
        gate 3, next
        gate 6, skip
        mov $APIC, %ebx
        movl $0, 0xb0(%BX) /* end of interrupt */
        movl $0, 0x80(%BX) /* task priority */
        mov ERRORS(%BX), %eax
        test %eax, %eax
        jnz 1f
        int3
        jmp 2f
1:      ud2
2:      mov $0xf4, %edx
        out %al, %dx
3:      hlt
        jmp 3b

        .balign 64
skip:
#if BITS == 64
        addq $2, (%rsp)
#else
        addl $2, (%esp)
#endif
next:   IRET
