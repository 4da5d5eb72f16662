/* The serial console (COM1, polled) and a very small formatted print. */
#include <stdarg.h>

#include "kernel.h"

#define COM1 0x3f8

static spinlock console;

void serial_init(void)
{
    outb(COM1 + 1, 0);    /* no interrupts */
    outb(COM1 + 3, 0x83); /* 8n1, divisor latch */
    outb(COM1 + 0, 1);    /* 115200 */
    outb(COM1 + 1, 0);
    outb(COM1 + 3, 0x03);
    outb(COM1 + 2, 0x07); /* FIFO on */
}

static void put(char c)
{
    while (!(inb(COM1 + 5) & 0x20))
        ;
    outb(COM1, c);
}

static void put_string(const char *s)
{
    while (*s)
        put(*s++);
}

static void put_number(word value, unsigned base)
{
    char digits[24];
    int n = 0;
    do {
        digits[n++] = "0123456789abcdef"[value % base];
        value /= base;
    } while (value);
    while (n)
        put(digits[--n]);
}

static void vprint(const char *format, va_list args)
{
    for (; *format; format++) {
        if (*format != '%') {
            put(*format);
            continue;
        }
        switch (*++format) {
        case 's':
            put_string(va_arg(args, const char *));
            break;
        case 'u':
            put_number(va_arg(args, word), 10);
            break;
        case 'x':
            put_number(va_arg(args, word), 16);
            break;
        }
    }
}

/* One line, whole, also when several CPUs print. %u and %x take a word. */
void print(const char *format, ...)
{
    va_list args;
    word flags = irq_save();
    lock(&console);
    va_start(args, format);
    vprint(format, args);
    va_end(args);
    unlock(&console);
    irq_restore(flags);
}

void halt(void)
{
    for (;;)
        __asm__ volatile("cli; hlt");
}

/* The console lock is not taken: whoever holds it may be the one that failed. */
void panic(const char *format, ...)
{
    va_list args;
    (void)irq_save();
    va_start(args, format);
    put_string("guest: PANIC ");
    vprint(format, args);
    put('\n');
    va_end(args);
    halt();
}
