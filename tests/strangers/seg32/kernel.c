/* Processes without paging, each in segments of its own that begin at 0, in one order of privilege: the kernel in ring 0,
 * tasks in ring 1 with the kernel's own memory and the right to use ports, programs in ring 3. They exchange messages. */
typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned char u8;
typedef unsigned long long u64;

#define BASE 0x100000u
#define HZ 3000
#define ASM asm volatile
enum { IDLE, CLOCK, PRINTER, TASKS, PROGRAMS = 4, PROCESSES = TASKS + PROGRAMS };
enum { SEND = 1, RECEIVE = 2, BOTH = 3, SENDING = 4, RECEIVING = 8, ANY = 99, HARDWARE = 98 };
enum { PROGRAM_BYTES = 0x10000 };

struct message { int source, type, a, b; };
struct process {
    u32 gs, fs, es, ds, edi, esi, ebp, none, ebx, edx, ecx, eax, back, eip, cs, eflags, esp, ss;
    u16 ldt_selector;
    u64 ldt[2];
    int flags, to, from, ticks_due;
    struct message *buffer;
    struct process *senders, *next;
    u32 base;
};

extern u64 gdt[];
extern char program[], program_size[];
void restart(void), irq0(void), irq4(void), invalid(void), protection(void), call_gate(void);

struct process table[PROCESSES], *current;
u32 tss[26];
int depth;
static u64 idt[0x60];
static u8 stacks[TASKS][1024];
static volatile u32 ticks;
static u32 wake[PROCESSES];

static inline void outb(u16 p, u8 v) { ASM("outb %0, %1" ::"a"(v), "d"(p)); }
static inline u8 inb(u16 p) { u8 v; ASM("inb %1, %0" : "=a"(v) : "d"(p)); return v; }

static void copy(u32 to, u32 from, u32 n) /* linear addresses */
{
    ASM("pushl %%ds; pushl %%es; movw %w3, %%ds; movw %w3, %%es; rep movsb; popl %%es; popl %%ds"
        : "+D"(to), "+S"(from), "+c"(n) : "r"(0x18) : "memory");
}

static void put(const char *s)
{
    for (; *s; s++) {
        while (!(inb(0x3fd) & 0x20))
            ;
        outb(0x3f8, (u8)*s);
    }
}

static void choose(void)
{
    static int turn;
    for (int i = CLOCK; i < TASKS; i++)
        if (!table[i].flags) {
            current = &table[i];
            return;
        }
    for (int i = 0; i < PROGRAMS; i++) {
        turn = (turn + 1) % PROGRAMS;
        if (!table[TASKS + turn].flags) {
            current = &table[TASKS + turn];
            return;
        }
    }
    current = &table[IDLE];
}

/* ---- messages; interrupts are off ---- */

static void hand_over(int source, struct process *from, struct message *m, struct process *to)
{
    copy(to->base + (u32)to->buffer, (from ? from->base : BASE) + (u32)m, sizeof *m);
    copy(to->base + (u32)to->buffer, BASE + (u32)&source, sizeof source);
    to->flags &= ~RECEIVING;
}

static int send(struct process *from, int to, struct message *m)
{
    struct process *d = &table[to];
    if (d->flags & RECEIVING && (d->from == ANY || d->from == from - table)) {
        hand_over(from - table, from, m, d);
        return 0;
    }
    from->buffer = m;
    from->flags |= SENDING;
    from->next = 0;
    struct process **last = &d->senders;
    while (*last)
        last = &(*last)->next;
    *last = from;
    return 0;
}

static int receive(struct process *p, int from, struct message *m)
{
    p->buffer = m;
    if (p->ticks_due && !(p->flags & SENDING)) {
        struct message due = {HARDWARE, p->ticks_due, 0, 0};
        p->ticks_due = 0;
        hand_over(HARDWARE, 0, &due, p);
        return 0;
    }
    if (!(p->flags & SENDING))
        for (struct process **at = &p->senders; *at; at = &(*at)->next)
            if (from == ANY || from == *at - table) {
                struct process *s = *at;
                *at = s->next;
                struct message *its = s->buffer;
                hand_over(s - table, s, its, p);
                s->flags &= ~SENDING;
                return 0;
            }
    p->from = from;
    p->flags |= RECEIVING;
    return 0;
}

int ipc(u32 what, int whom, struct message *m)
{
    struct process *me = current;
    int result = 0;
    ASM("cli");
#ifdef BUG_CALL_EBX
    if (what == RECEIVE)
        me->ebx = (u32)whom;
#endif
#ifdef BUG_IF
    if (ticks > 100 && me - table == TASKS)
        me->eflags &= ~0x200u;
#endif
#ifdef BUG_IOPL
    if (ticks > 100)
        me->eflags |= 0x3000;
#endif
    if (what & SEND)
        result = send(me, whom, m);
    if (what & RECEIVE)
        result = receive(me, what == BOTH ? whom : ANY, m);
    choose();
    ASM("sti");
    return result;
}

void irq(u32 n)
{
    outb(0x20, 0x20);
    if (n != 0)
        return;
    ticks++;
    ASM("sti");
    for (volatile int i = 0; i < (ticks % 16 ? 40 : 4000); i++)
        ;
    ASM("cli");
    if (depth)
        return;
    struct process *c = &table[CLOCK];
#ifdef BUG_PAST_END
    struct { int pending[1]; } *where = (void *)&table[TASKS + 1].edi;
    if (ticks % 64 == 0)
        where->pending[4] = (int)ticks;
#endif
    c->ticks_due++;
    if (c->flags == RECEIVING && c->from == ANY) {
        struct message due = {HARDWARE, c->ticks_due, 0, 0};
        c->ticks_due = 0;
        hand_over(HARDWARE, 0, &due, c);
    }
#ifdef BUG_FLAGS
    if (ticks % 8 == 0)
        current->eflags = (current->eflags & 0x3000) | 0x202;
#endif
    choose();
}

void exception(u32 number, u32 error)
{
    (void)error;
    if (depth) {
        put("exception in the kernel\n");
        for (;;)
            ASM("cli; hlt");
    }
    current->eip += number == 6 ? 2 : 1; /* ud2, hlt */
}

/* ---- tasks, in ring 1 ---- */

static int call(u32 what, u32 whom, struct message *m)
{
    int r;
    ASM("int $0x21" : "=a"(r) : "0"(whom), "b"(m), "c"(what) : "memory");
    return r;
}

static void clock_task(void)
{
    struct message m;
    u32 now = 0;
    for (;;) {
        call(RECEIVE, ANY, &m);
        if (m.source == HARDWARE) {
            now += (u32)m.type;
            if (now > 6000) {
                put("seg32: the last message\n");
                now = 0;
            }
            for (int i = 0; i < PROCESSES; i++)
                if (wake[i] && wake[i] <= ticks) {
                    wake[i] = 0;
                    m.type = (int)now;
                    call(SEND, (u32)i, &m);
                }
        } else {
            wake[m.source] = ticks + (u32)m.a;
        }
    }
}

static void printer_task(void)
{
    struct message m;
    for (;;) {
        call(RECEIVE, ANY, &m);
        if (m.type == 1)
            put("CORRUPT\n");
        for (volatile int i = 0; i < m.a; i++)
            ;
        call(SEND, (u32)m.source, &m);
    }
}

static void idle_task(void)
{
    for (u32 n = 0;; n++)
        ASM("" ::"r"(n));
}

/* ---- start ---- */

static void gate(int n, void (*to)(void), u32 kind)
{
    idt[n] = ((u32)to & 0xffff) | 8u << 16 | (u64)(kind << 8 | ((u32)to & 0xffff0000)) << 32;
}

static u64 segment(u32 base, u32 limit, u32 access)
{
    return (limit & 0xffff) | (u64)(base & 0xffffff) << 16 | (u64)access << 40 | (u64)(limit >> 16 & 15) << 48 |
           (u64)(base >> 24) << 56;
}

void main(void)
{
    static void (*const tasks[TASKS])(void) = {idle_task, clock_task, printer_task};
    put("seg32\n");
    gdt[4] = segment(BASE + (u32)tss, sizeof tss - 1, 0x89);
    tss[2] = 0x10;
    tss[25] = 0x680000;
    ASM("ltr %w0" ::"r"(0x20));
    for (int i = 0; i < PROCESSES; i++) {
        struct process *p = &table[i];
        u32 ring = i < TASKS ? 1 : 3;
        p->base = i < TASKS ? BASE : 0x400000u + (u32)i * PROGRAM_BYTES;
        u32 limit = (i < TASKS ? 0x100000 : PROGRAM_BYTES) - 1;
        p->ldt[0] = segment(p->base, limit, 0x9a | ring << 5) | 1ull << 54;
        p->ldt[1] = segment(p->base, limit, 0x92 | ring << 5) | 1ull << 54;
        gdt[5 + i] = segment(BASE + (u32)p->ldt, sizeof p->ldt - 1, 0x82);
        p->ldt_selector = (u16)((5 + i) * 8);
        p->cs = 4 | ring;
        p->ds = p->es = p->fs = p->gs = p->ss = 12 | ring;
        p->eflags = i < TASKS ? 0x1202 : 0x202;
        if (i < TASKS) {
            p->eip = (u32)tasks[i];
            p->esp = (u32)stacks[i] + sizeof stacks[i];
        } else {
            copy(p->base, BASE + (u32)program, (u32)program_size);
            p->esp = PROGRAM_BYTES - 16;
            p->eax = (u32)(i - TASKS);
        }
    }
    gate(0x50, irq0, 0x8e), gate(0x54, irq4, 0x8e), gate(6, invalid, 0x8e), gate(13, protection, 0x8e);
    gate(0x21, call_gate, 0xee);
    struct { u16 limit; u32 base; } __attribute__((packed)) d = {sizeof idt - 1, BASE + (u32)idt};
    ASM("lidt %0" ::"m"(d));
    outb(0x20, 0x11); outb(0xa0, 0x11); outb(0x21, 0x50); outb(0xa1, 0x70); outb(0x21, 4); outb(0xa1, 2);
    outb(0x21, 1); outb(0xa1, 1); outb(0x21, 0xfe); outb(0xa1, 0xff);
    outb(0x43, 0x34); outb(0x40, (1193182 / HZ) & 0xff); outb(0x40, (1193182 / HZ) >> 8);
    choose();
    restart();
}
