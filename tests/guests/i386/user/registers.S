/* Nothing but registers, flags, selectors and XMM registers that must survive the timer. */
#include "program.h"

        .section .user_text, "ax"
        .globl registers_main
        .type registers_main, @function
registers_main:
        START
registers_again:
        PATTERN_RUN want, (TURNS_PER_MS*2), registers_failed
        CHECK_BASES registers_failed
        jmp registers_again
        FAIL registers_failed, WHERE_COMPUTING, registers_again
        .size registers_main, . - registers_main

        .section .user_data, "aw"
        .balign 16
want:   .skip WANT_SIZE
