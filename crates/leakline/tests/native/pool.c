/* What libraries do behind Python's back: threads of their own that keep memory for each job, and memory that comes from no
   allocator. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static size_t pending, job_bytes;
static void *volatile kept;

__attribute__((noinline)) void digest(size_t bytes) {
    kept = memset(malloc(bytes), 1, bytes);
}

static void *work(void *nothing) {
    for (;;) {
        pthread_mutex_lock(&lock);
        while (!pending) pthread_cond_wait(&changed, &lock);
        pending--;
        size_t bytes = job_bytes;
        pthread_mutex_unlock(&lock);
        digest(bytes);
        pthread_mutex_lock(&lock);
        pthread_cond_broadcast(&changed);
        pthread_mutex_unlock(&lock);
    }
    return nothing;
}

int start(int threads) {
    pthread_t thread;
    for (int i = 0; i < threads; i++)
        if (pthread_create(&thread, NULL, work, NULL)) return 1;
    return 0;
}

void submit(size_t bytes) {
    pthread_mutex_lock(&lock);
    job_bytes = bytes;
    pending++;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
}

void map_pages(size_t bytes) {
    kept = memset(mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), 1, bytes);
}
