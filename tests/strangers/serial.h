/* Included where u8, ASM, inb() and outb() are: the first serial port. */
static void print(const char *s)
{
    for (; *s; s++) {
        while (!(inb(0x3fd) & 0x20))
            ;
        outb(0x3f8, (u8)*s);
    }
}

static void panic(const char *s)
{
    print(s);
    for (;;)
        ASM("cli; hlt");
}
