/* Follows frames, one event a line, all numbers hexadecimal:
 * `push FRAME MODE WORDS REGISTER CR3 WORD...` an entry; `pop FRAME MODE CS REGISTER CR3 WORD...` an iret, prints whether
 * the frame was changed; `store ADDRESS VALUE SIZE RSP` prints the frame that it changes, or 0; `stand FRAME WORD WORD WORD`
 * whether a live frame with these words lies there. */
#include <stdio.h>
#include <string.h>

#include "frames.h"

static void read_row(ctx_row *row, unsigned words)
{
    unsigned long long value;

    if (scanf("%llx", &value) == 1) {
        row->rbx = value;
    }
    if (scanf("%llx", &value) == 1) {
        row->cr3 = value;
    }
    for (unsigned i = 0; i < words && scanf("%llx", &value) == 1; i++) {
        row->stack[i] = value;
    }
}

int main(void)
{
    char what[8];
    unsigned long long a, b, c, d;

    while (scanf("%7s %llx %llx %llx", what, &a, &b, &c) == 4) {
        ctx_row row = {.frame = a, .mode = (uint8_t)b, .size = (uint8_t)(b / 8)};
        if (strcmp(what, "push") == 0) {
            row.flags = c == FRAME_LEAST ? CTX_FLAG_NO_STACK : 0;
            read_row(&row, (unsigned)c);
            row.cs = (uint16_t)row.stack[1];
            frame_pushed(&row);
        } else if (strcmp(what, "pop") == 0) {
            row.cs = (uint16_t)c;
            read_row(&row, FRAME_MOST);
            printf("%d\n", frame_popped(&row));
        } else if (scanf("%llx", &d) != 1) {
            return 1;
        } else if (strcmp(what, "stand") == 0) {
            printf("%d\n", frame_stands(a, (const uint64_t[]){b, c, d}));
        } else {
            printf("%llx\n", frame_may_lie(a) ? (unsigned long long)frame_changed_by(a, b, (unsigned)c, d) : 0);
        }
    }
    return 0;
}
