/* Files: written, read back, renamed and removed by three processes at once; directories listed. */
#include "check.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>

enum { BYTES = 40000 };

static void one_file(const char *path, unsigned seed)
{
    static unsigned char out[BYTES], in[BYTES];
    char renamed[100];

    for (int i = 0; i < BYTES; i++)
        out[i] = seed * 131 + i * 7 + (i >> 8);
    int file = open(path, O_CREAT | O_TRUNC | O_RDWR, 0600);
    check(file >= 0, "open %s: %s", path, strerror(errno));
    check(write(file, out, BYTES) == BYTES, "write %s: %s", path, strerror(errno));
    check(lseek(file, 0, SEEK_SET) == 0, "lseek: %s", strerror(errno));
    check(read(file, in, BYTES) == BYTES && memcmp(in, out, BYTES) == 0, "%s holds something else", path);
    const unsigned char *mapped = mmap(NULL, BYTES, PROT_READ, MAP_PRIVATE, file, 0);
    check(mapped != MAP_FAILED && memcmp(mapped, out, BYTES) == 0, "%s maps to something else", path);
    munmap((void *)mapped, BYTES);
    close(file);
    snprintf(renamed, sizeof renamed, "%s.renamed", path);
    check(rename(path, renamed) == 0 && unlink(renamed) == 0, "rename and unlink %s: %s", path, strerror(errno));
}

static void writer(int index)
{
    char directory[50], path[80];

    snprintf(directory, sizeof directory, "/tmp/files%d", index);
    check(mkdir(directory, 0700) == 0, "mkdir %s: %s", directory, strerror(errno));
    for (int i = 0; i < 60 * rounds; i++) {
        snprintf(path, sizeof path, "%s/%d", directory, i);
        one_file(path, index * 1000 + i);
    }
    DIR *listing = opendir(directory);
    int entries = 0;
    while (readdir(listing))
        entries++;
    closedir(listing);
    check(entries == 2, "%s is not empty", directory);
    check(rmdir(directory) == 0, "rmdir: %s", strerror(errno));
}

void workload_files(void)
{
    pid_t children[3];

    for (int i = 0; i < 3; i++)
        children[i] = start(writer, i);
    for (int i = 0; i < 3; i++)
        reap(children[i]);
}
