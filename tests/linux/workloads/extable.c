/* Copies into and out of bad pointers: the kernel's own faults, ended by its exception table; and faults it mends. */
#include "check.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>

enum { PAGE = 4096 };

static char *page; /* one page that is there, followed by one that is not */

static void kernel_copies(void)
{
    int ends[2];
    char *bad = page + PAGE, *last = page + PAGE - 100;

    check(pipe2(ends, O_NONBLOCK) == 0, "pipe: %s", strerror(errno));
    memset(page, 0x5a, PAGE);
    check(write(ends[1], bad, 50) < 0 && errno == EFAULT, "write from nowhere: %s", strerror(errno));
    ssize_t got = write(ends[1], last, 200);
    check(got == 100 || (got < 0 && errno == EFAULT), "write across the end gave %zd", got);
    if (got < 0)
        got = write(ends[1], last, 100);
    check(read(ends[0], bad, 10) < 0 && errno == EFAULT, "read to nowhere: %s", strerror(errno));
    memset(page, 0, PAGE);
    got = read(ends[0], page + PAGE - 60, 100);
    check(got == 60 || (got < 0 && errno == EFAULT), "read across the end gave %zd", got);
    for (int i = 0; got == 60 && i < 60; i++)
        check(page[PAGE - 60 + i] == 0x5a, "byte %d read is wrong", i);
    close(ends[0]);
    close(ends[1]);
    check(syscall(SYS_futex, bad, FUTEX_WAIT, 0, NULL) < 0 && errno == EFAULT, "futex: %s", strerror(errno));
    check(syscall(SYS_uname, bad) < 0 && errno == EFAULT, "uname: %s", strerror(errno));
    check(open(bad, O_RDONLY) < 0 && errno == EFAULT, "open: %s", strerror(errno));
    check(syscall(SYS_sigaltstack, bad, NULL) < 0 && errno == EFAULT, "sigaltstack: %s", strerror(errno));
#ifdef __x86_64__
    char *noncanonical = (char *)0x800000000000ul;
    check(syscall(SYS_uname, noncanonical) < 0 && errno == EFAULT, "uname, noncanonical: %s", strerror(errno));
    check(syscall(SYS_uname, -4096l) < 0 && errno == EFAULT, "uname, kernel: %s", strerror(errno));
#endif
    struct iovec local = {page, PAGE}, remote = {bad, PAGE};
    got = process_vm_readv(getpid(), &local, 1, &remote, 1, 0);
    check(got < 0 && (errno == EFAULT || errno == ENOSYS), "process_vm_readv gave %zd", got);
}

static volatile sig_atomic_t mended;

static void on_fault(int signal, siginfo_t *info, void *context)
{
    (void)signal, (void)context;
    check((char *)info->si_addr >= page + PAGE && (char *)info->si_addr < page + 2 * PAGE, "a fault at %p",
          info->si_addr);
    check(mprotect(page + PAGE, PAGE, PROT_READ | PROT_WRITE) == 0, "mprotect: %s", strerror(errno));
    mended++;
}

static void user_faults(unsigned seed)
{
    struct regs in, out;

    regs_fill(&in, seed);
    in.reg[CX] = 100;
    regs_run(&in, &out, op_spin);
    in.reg[CX] = 0;
    regs_check("beside faults", &out, &in, 0);
    page[PAGE + seed % PAGE] = seed; /* the handler maps it and the store is done again */
    check(page[PAGE + seed % PAGE] == (char)seed, "the mended store is lost");
    check(mprotect(page + PAGE, PAGE, PROT_NONE) == 0, "mprotect: %s", strerror(errno));
}

static void fresh_pages(void)
{
    enum { MANY = 64 };
    char *many = mmap(NULL, MANY * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    int zero = open("/dev/zero", O_RDONLY);

    check(many != MAP_FAILED, "mmap: %s", strerror(errno));
    if (zero >= 0) { /* the kernel touches them first: faults inside a copy, mended */
        check(read(zero, many, MANY * PAGE / 2) == MANY * PAGE / 2, "read /dev/zero: %s", strerror(errno));
        close(zero);
    }
    for (int i = 0; i < MANY; i++)
        check(many[i * PAGE + i] == 0, "a fresh page is not clean");
    munmap(many, MANY * PAGE);
}

void workload_extable(void)
{
    page = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    check(page != MAP_FAILED && mprotect(page + PAGE, PAGE, PROT_NONE) == 0, "mmap: %s", strerror(errno));
    handle(SIGSEGV, on_fault, 0);
    for (int i = 0; i < 150 * rounds; i++) {
        kernel_copies();
        user_faults(i);
        fresh_pages();
    }
    check(mended == 150 * rounds, "%d faults were mended", (int)mended);
}
