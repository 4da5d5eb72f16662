/*
 * A guest that raises an exception, keeps what it interrupted, and has the machine reset: by PORT and VALUE, or without
 * them by a triple fault.
 */
#include "boot.h"

main:
        gate 6, handler
        ud2

        .balign 64
handler:
#ifdef PORT
        mov $PORT, %edx
        mov $VALUE, %eax
        out %al, %dx
#else
        movl $0, idt + 4 + (13 << GATE_SHIFT)
        int $13
#endif
1:      hlt
        jmp 1b
