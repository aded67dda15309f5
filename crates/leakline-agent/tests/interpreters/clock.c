/* A library that tells the time in the C library's place, as libfaketime does: it allocates while it has a lock, which here
   is a flag, and ends the process where it would wait for itself. */
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static __thread int locked;

int clock_gettime(clockid_t clock, struct timespec *time)
{
    if (locked)
        abort();
    locked = 1;
    void *volatile block = malloc(5000);
    free(block);
    locked = 0;
    return syscall(SYS_clock_gettime, clock, time);
}
