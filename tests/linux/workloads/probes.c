/* Code that the kernel patches while it runs: traced functions, probes in kernel code, probes in our own. */
#include "check.h"

#include <elf.h>
#include <fcntl.h>
#include <stdarg.h>
#include <sys/auxv.h>
#include <sys/mount.h>

#define TRACING "/sys/kernel/tracing/"
#define PROBED "__task_pid_nr_ns" /* getppid calls it */

/* What probes single-step elsewhere, and what the kernel does in their place: pushes, calls and jumps. */
#ifdef __x86_64__
#define BP "%rbp"
#else
#define BP "%ebp"
#endif
__asm__("op_probed: xchg %cx, %cx\n"
        "op_probed_push: push " BP "\n"
        "op_probed_call: call 1f\n"
        "pop " BP "\n"
        "op_probed_jump: jmp 2f\n"
        "ud2\n"
        "1: nop\n"
        "op_probed_back: ret\n"
        "2: ret\n");
void op_probed(void);
extern const char op_probed_push[], op_probed_call[], op_probed_jump[], op_probed_back[];

static int put(const char *file, const char *format, ...)
{
    char path[200], text[300];
    va_list arguments;
    int target, length, done;

    snprintf(path, sizeof path, TRACING "%s", file);
    va_start(arguments, format);
    length = vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    target = open(path, O_WRONLY | O_APPEND);
    check(target >= 0, "%s: %s", path, strerror(errno));
    done = write(target, text, length) == length;
    close(target);
    return done;
}

static unsigned long offset_in_file(const void *address)
{
    typedef __typeof__(__builtin_choose_expr(sizeof(long) == 8, (Elf64_Phdr){0}, (Elf32_Phdr){0})) header;
    const header *part = (const void *)getauxval(AT_PHDR);
    uintptr_t at = (uintptr_t)address;

    for (unsigned long left = getauxval(AT_PHNUM); left; left--, part++)
        if (part->p_type == PT_LOAD && at >= part->p_vaddr && at < part->p_vaddr + part->p_filesz)
            return at - part->p_vaddr + part->p_offset;
    fail("no part of the program holds %lx", (unsigned long)at);
}

static void run_probed(int index)
{
    struct regs in, out;

    for (unsigned i = 0;; i++) {
        regs_fill(&in, index * 1000 + i);
        regs_run(&in, &out, op_probed);
        regs_check("probed code", &out, &in, 0);
        in.reg[AX] = SYS_getppid;
        regs_run(&in, &out, op_syscall);
        regs_check("a probed call", &out, &in, SYSCALL_CHANGES);
        usleep(500); /* or there is nothing but probes */
    }
}

static void toggle(const char *event)
{
    char file[60];

    snprintf(file, sizeof file, "events/ctx/%s/enable", event);
    check(put(file, "1"), "%s: %s", file, strerror(errno));
    usleep(20000);
    check(put(file, "0"), "%s: %s", file, strerror(errno));
}

/* A probe behind the function's first instructions, where one begins: the kernel refuses the others. */
static void probe_inside(const char *function)
{
    int at = 6;

    while (!put("kprobe_events", "p:ctx/inside %s+%d", function, at))
        check(++at < 40, "inside: %s", strerror(errno));
}

void workload_probes(void)
{
    const void *const places[] = {op_probed, op_probed_push, op_probed_call, op_probed_jump, op_probed_back};
    const char *const events[] = {"u0", "u1", "u2", "u3", "u4", "entry", "inside", "back"};
    enum { PLACES = sizeof places / sizeof *places, EVENTS = sizeof events / sizeof *events };
    char program[100] = "";
    pid_t children[2];
    int status;

    check(mount("tracing", TRACING, "tracefs", 0, NULL) == 0 || errno == EBUSY, "tracefs: %s", strerror(errno));
    check(readlink("/proc/self/exe", program, sizeof program - 1) > 0, "no name of our own");
    for (int i = 0; i < PLACES; i++)
        check(put("uprobe_events", "p:ctx/u%d %s:0x%lx", i, program, offset_in_file(places[i])), "u%d: %s", i,
              strerror(errno));
    check(put("kprobe_events", "p:ctx/entry " PROBED), "entry: %s", strerror(errno));
    check(put("kprobe_events", "r:ctx/back " PROBED), "back: %s", strerror(errno));
    probe_inside(PROBED);
    check(put("set_ftrace_filter", "*pid*"), "set_ftrace_filter: %s", strerror(errno));
    for (int i = 0; i < 2; i++)
        children[i] = start(run_probed, i);
    for (int round = 0; round < rounds; round++) {
        for (int i = 0; i < EVENTS; i++)
            toggle(events[i]);
        check(put("current_tracer", "function"), "function: %s", strerror(errno));
        usleep(20000);
        check(put("current_tracer", "nop"), "nop: %s", strerror(errno));
    }
    for (int i = 0; i < 2; i++) {
        kill(children[i], SIGKILL);
        check(waitpid(children[i], &status, 0) == children[i], "waitpid: %s", strerror(errno));
        if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL)
            fail("probed code ended with status %x", status);
    }
    for (int i = 0; i < EVENTS; i++)
        check(put(i < PLACES ? "uprobe_events" : "kprobe_events", "-:ctx/%s", events[i]), "-%s: %s", events[i],
              strerror(errno));
}
