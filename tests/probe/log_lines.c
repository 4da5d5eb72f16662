/* A log as QEMU writes it, read to its end: what it tells of, what is done where it did not fit, and how it is muted. */
#define _GNU_SOURCE
#include "log.h"

static log_reader own;
static FILE *stream; /* QEMU's; NULL before there is need of it */
int qemu_loglevel = LEVEL_LEFT_OUT;
static bool obeys; /* does QEMU look at that? */

/* Write `text` where QEMU stands in the file. */
static void say(const char *text)
{
    size_t length = strlen(text);
    if (obeys && !qemu_loglevel) {
        return;
    }
    if (stream) {
        fprintf(stream, "%.*s", (int)length, text); /* as QEMU does: puts would not look whether it may */
        fflush(stream);
    } else if (write(own.theirs, text, length) != (ssize_t)length) {
        abort();
    }
}

static void record(unsigned vector)
{
    char text[256];
    snprintf(text, sizeof(text), "     7: v=%02x e=0004 i=0 cpl=0 IP=0008:10 pc=10 SP=0010:20\nRAX=1 RSP=%x\n"
             "ES =0010 0\nEFER=0\n", vector, vector);
    say(text);
}

/* How many deliveries are read now, and the last one's vector. */
static unsigned heard(unsigned *vector)
{
    log_record r;
    unsigned count = 0;

    while (log_look(&own) && log_next(&own, &r)) {
        *vector = r.vector;
        count++;
    }
    return count;
}

/* What becomes of what QEMU prints. */
static void print(void)
{
    log_skip(&own);
    say("text\n");
    printf("way: %d, muted: %d, left: %d, level: %#x, mark: %.13s\n", own.way, own.muted, log_look(&own), qemu_loglevel,
           own.text + LOG_BYTES - LOG_MARK + 1);
}

static void mute_and_print(void)
{
    log_try_muting(&own, say);
    log_mute(&own);
    print();
    log_unmute(&own);
    log_unmark(&own);
    print();
}

int main(int argc, char **argv)
{
    unsigned vector = 0, count;
    bool left;

    own.theirs = argc > 1 ? open(argv[1], O_RDWR | O_CREAT | O_TRUNC, 0600) : -1;
    if (own.theirs < 0 || ftruncate(own.theirs, LOG_BYTES)) {
        return 1;
    }
    own.text = mmap(NULL, LOG_BYTES + LOG_END, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    mmap(own.text, LOG_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, own.theirs, 0);
    record(14), record(6);
    count = heard(&vector);
    printf("%u, last %u\n", count, vector);
    for (unsigned i = 0; i < LOG_BYTES / 64; i++) {
        record(3);
    }
    count = heard(&vector);
    left = log_look(&own);
    printf("%s, left: %d, whole: %d\n", count > 100 ? "many" : "few", left, log_rewind(&own));
    record(13);
    count = heard(&vector);
    printf("%u, last %u, whole: %d\n", count, vector, log_rewind(&own));
    stream = fdopen(own.theirs, "w");
    if (!stream) {
        return 1;
    }
    mute_and_print();
    obeys = true;
    mute_and_print();
    return 0;
}
