/* Uses the whole family of malloc and dlsym's errors, and says what it has found wrong. Built with -rdynamic and a
 * VERSION it passes for a Python of that version. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <malloc.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef VERSION
int Py_IsInitialized(void) { return 0; }
const char *Py_GetVersion(void) { return VERSION; }
#endif

#define CHECK(condition) \
    do { \
        if (!(condition)) { \
            fprintf(stderr, "line %d: %s\n", __LINE__, #condition); \
            exit(1); \
        } \
    } while (0)

static void *early;

__attribute__((constructor)) static void before_main(void) { early = calloc(10, 10); }

static void *churn(void *unused) {
    for (int round = 0; round < 20000; round++) {
        char *block = malloc(round % 3000);
        block = realloc(block, 2 * (round % 3000) + 1);
        CHECK(block);
        block[2 * (round % 3000)] = 1;
        free(block);
    }
    return unused;
}

int main(void) {
    CHECK(early && ((char *)early)[99] == 0);
    free(early);
    /* dlsym reports an error in memory of its own. */
    for (int round = 0; round < 100; round++) {
        CHECK(!dlsym(RTLD_DEFAULT, "no_such_function_anywhere") && dlerror());
        CHECK(!dlopen("/no/such/library.so", RTLD_NOW) && dlerror());
    }
    free(NULL);
    /* Sizes that no compiler can see through. */
    volatile size_t huge = SIZE_MAX / 2 + 2, none = 0;
    errno = 0;
    CHECK(!calloc(huge, 2) && errno == ENOMEM);
    CHECK(!malloc(SIZE_MAX - 64 + none));
    void *block = malloc(100);
    errno = 0;
    CHECK(!reallocarray(block, huge, 2) && errno == ENOMEM);
    CHECK(!realloc(block, SIZE_MAX - 64 + none));
    block = reallocarray(block, 1000, 10);
    CHECK(block && malloc_usable_size(block) >= 10000);
    CHECK(!realloc(block, none));
    void *aligned = NULL;
    CHECK(posix_memalign(&aligned, 24, 100) == EINVAL);
    CHECK(posix_memalign(&aligned, 4096, 100) == 0 && (uintptr_t)aligned % 4096 == 0);
    aligned = realloc(aligned, 500000);
    CHECK(aligned);
    free(aligned);
    aligned = aligned_alloc(256, 512);
    CHECK(aligned && (uintptr_t)aligned % 256 == 0);
    free(aligned);
    aligned = memalign(64, 10);
    CHECK(aligned && (uintptr_t)aligned % 64 == 0);
    free(aligned);
    aligned = valloc(10);
    CHECK(aligned && (uintptr_t)aligned % 4096 == 0);
    free(aligned);
    aligned = pvalloc(10);
    CHECK(aligned && malloc_usable_size(aligned) >= 4096);
    free(aligned);
    pthread_t threads[4];
    for (int thread = 0; thread < 4; thread++) CHECK(pthread_create(&threads[thread], NULL, churn, NULL) == 0);
    for (int thread = 0; thread < 4; thread++) CHECK(pthread_join(threads[thread], NULL) == 0);
    puts("untouched");
    return 7;
}
