/* One function for each of malloc's family: what it takes stays, and is what the test is told. A function that is inlined
   into its caller, too: debug information knows both. */
#define _GNU_SOURCE
#include <malloc.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define KEEP(block) (*(volatile char *)(block) = 1)

void by_malloc(size_t bytes) { KEEP(malloc(bytes)); }
void by_calloc(size_t bytes) { KEEP(calloc(bytes / 8, 8)); }
void by_realloc(size_t bytes) { KEEP(realloc(malloc(bytes / 2), bytes)); }
void by_reallocarray(size_t bytes) { KEEP(reallocarray(NULL, bytes / 8, 8)); }
void by_aligned_alloc(size_t bytes) { KEEP(aligned_alloc(64, bytes)); }
void by_memalign(size_t bytes) { KEEP(memalign(128, bytes)); }
void by_valloc(size_t bytes) { KEEP(valloc(bytes)); }
void by_pvalloc(size_t bytes) { KEEP(pvalloc(bytes)); }
void by_posix_memalign(size_t bytes) {
    void *block;
    if (posix_memalign(&block, 32, bytes) == 0) KEEP(block);
}
void by_strdup(size_t bytes) {
    char text[bytes];
    memset(text, 'x', bytes - 1);
    text[bytes - 1] = 0;
    KEEP(strdup(text));
}
/* Past malloc: what is mapped is lengthened, its front is given back again, and so is all of another mapping, in pieces. */
void by_mmap(size_t bytes) {
    char *block = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    KEEP(block);
}
void by_mremap(size_t bytes) {
    char *block = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    block = mremap(block, bytes, 4 * bytes, MREMAP_MAYMOVE);
    memset(block, 1, 4 * bytes);
    if (munmap(block, bytes) || munmap(block + 2 * bytes, 2 * bytes)) abort();
}
void unmapped(size_t bytes) {
    char *block = mmap(NULL, 4 * bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    KEEP(block);
    /* Mapped anew, and then all of it at once. */
    if (mmap(block, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != block) abort();
    if (munmap(block + 3 * bytes, bytes) || munmap(block, 3 * bytes)) abort();
    /* Neither addresses that are only set aside are memory, nor is a file. */
    mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
}
void given_back(size_t bytes) {
    void *block = malloc(bytes);
    KEEP(block);
    if (malloc_usable_size(block) < bytes) abort();
    free(block);
}
/* It does something else besides: compilers fold functions that are the same, and one name is lost. */
static inline __attribute__((always_inline)) void inlined(size_t bytes) { memset(malloc(bytes), 1, bytes); }
void by_inlined(size_t bytes) { inlined(bytes); }
