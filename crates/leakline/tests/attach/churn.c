/* Allocates, grows and frees in threads of its own, in every way that there is, and writes down what it has kept. Built
 * as a library that a Python loads long after leakline came into it. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <malloc.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { PLACES = 400 };

struct worker {
    pthread_t thread;
    unsigned long long random;
    long rounds;
    char *kept[PLACES];
    size_t bytes[PLACES];
    /* It is a mapping of our own, and none of malloc's blocks. */
    char mapped[PLACES];
};

/* As somebody looked it up before leakline came. */
static void (*free_by_pointer)(void *);
/* Of a library that is loaded after that, by names that the C++ compiler gives them. */
static void *(*operator_new)(size_t);
static void (*operator_delete)(void *);

static unsigned long long next(struct worker *worker) {
    worker->random ^= worker->random << 13;
    worker->random ^= worker->random >> 7;
    worker->random ^= worker->random << 17;
    return worker->random;
}

static char *make(struct worker *worker, size_t bytes) {
    void *block = NULL;
    switch (next(worker) % 9) {
    case 0: return calloc(1, bytes);
    case 1: return realloc(NULL, bytes);
    case 2: return posix_memalign(&block, 16, bytes) ? NULL : block;
    case 3: return posix_memalign(&block, 256, bytes) ? NULL : block;
    case 4: return memalign(16, bytes);
    case 5: return aligned_alloc(64, bytes);
    case 6: return reallocarray(NULL, 1, bytes);
    case 7: return operator_new(bytes);
    default: return malloc(bytes);
    }
}

/* The C library itself frees it. */
static void free_inside(char *block) {
    char *line = block;
    size_t room = malloc_usable_size(block);
    FILE *input = fmemopen("a line\n", 7, "r");
    /* A line that has room is read into the block. */
    if (getline(&line, &room, input) < 0) abort();
    fclose(input);
    free(line);
}

/* Whole pages. */
static size_t pages(size_t bytes) { return (bytes + 4095) & ~(size_t)4095; }

static char *map(size_t bytes) {
    char *start = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (start == MAP_FAILED) abort();
    return start;
}

/* Makes one longer or shorter, or gives it back: all at once, or the first page, the rest, in any order. */
static void work_on_mapping(struct worker *worker, int place, size_t bytes) {
    char *start = worker->kept[place];
    size_t before = worker->bytes[place];
    if (next(worker) % 3 == 0) {
        worker->kept[place] = mremap(start, before, bytes, MREMAP_MAYMOVE);
        if (worker->kept[place] == MAP_FAILED) abort();
        worker->bytes[place] = bytes;
        return;
    }
    switch (before > 4096 ? next(worker) % 3 : 0) {
    case 0: munmap(start, before); break;
    case 1: munmap(start, 4096), munmap(start + 4096, before - 4096); break;
    case 2: munmap(start + 4096, before - 4096), munmap(start, 4096); break;
    }
    worker->kept[place] = NULL;
}

static void *work(void *argument) {
    struct worker *worker = argument;
    for (long round = 0; round < worker->rounds; round++) {
        int place = next(worker) % PLACES;
        size_t bytes = 1 + next(worker) % (round % 500 ? 12000 : 300000);
        if (worker->kept[place] && worker->mapped[place]) {
            work_on_mapping(worker, place, pages(bytes));
        } else if (!worker->kept[place] && next(worker) % 8 == 0) {
            worker->mapped[place] = 1;
            worker->bytes[place] = pages(bytes);
            worker->kept[place] = map(pages(bytes));
        } else if (!worker->kept[place]) {
            worker->mapped[place] = 0;
            worker->kept[place] = make(worker, bytes);
            worker->bytes[place] = bytes;
        } else if (next(worker) % 3 == 0) {
            worker->kept[place] = realloc(worker->kept[place], bytes);
            worker->bytes[place] = bytes;
        } else {
            switch (next(worker) % 8) {
            case 0: free_inside(worker->kept[place]); break;
            case 1: free_by_pointer(worker->kept[place]); break;
            case 2: operator_delete(worker->kept[place]); break;
            case 3: if (realloc(worker->kept[place], 0)) abort(); break;
            default: free(worker->kept[place]);
            }
            worker->kept[place] = NULL;
        }
    }
    return NULL;
}

/* What frees, for later. */
void *remember(void) { return dlsym(RTLD_DEFAULT, "free"); }

/* Writes `ADDRESS BYTES` for each block that is kept. */
int churn(int threads, long rounds, const char *path, void *remembered) {
    struct worker *workers = calloc(threads, sizeof *workers);
    free_by_pointer = (void (*)(void *))remembered;
    void *library = dlopen("libstdc++.so.6", RTLD_NOW);
    operator_new = library ? (void *(*)(size_t))dlsym(library, "_Znwm") : malloc;
    operator_delete = library ? (void (*)(void *))dlsym(library, "_ZdlPv") : free;
    if (!operator_new || !operator_delete) return 2;
    for (int i = 0; i < threads; i++) {
        workers[i].random = 88172645463325252ull + 977 * i;
        workers[i].rounds = rounds;
        if (pthread_create(&workers[i].thread, NULL, work, &workers[i])) return 1;
    }
    for (int i = 0; i < threads; i++) pthread_join(workers[i].thread, NULL);
    FILE *file = fopen(path, "w");
    if (!file) return 1;
    for (int i = 0; i < threads; i++)
        for (int place = 0; place < PLACES; place++)
            if (workers[i].kept[place])
                fprintf(file, "%lu %zu\n", (unsigned long)workers[i].kept[place], workers[i].bytes[place]);
    return fclose(file);
}
