/* What programs rely on in calls on sockets: results and errno, interruption by signals, cancellation of threads, and what
 * a vforked child does. `check` returns the number of the line that was not as expected, 0 if all were. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(condition) \
    do { \
        if (!(condition)) return __LINE__; \
    } while (0)

/* A connection over 127.0.0.1: ends[0] was connected, ends[1] accepted. */
static int connection(int ends[2]) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    int listening = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(listening >= 0 && bind(listening, (struct sockaddr *)&address, length) == 0 && listen(listening, 1) == 0);
    CHECK(getsockname(listening, (struct sockaddr *)&address, &length) == 0);
    ends[0] = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(connect(ends[0], (struct sockaddr *)&address, length) == 0);
    ends[1] = accept4(listening, NULL, NULL, SOCK_CLOEXEC);
    CHECK(ends[1] >= 0 && close(listening) == 0);
    return 0;
}

static void interrupted(int number) { (void)number; }

static void *receive(void *end) {
    char byte;
    recv(*(int *)end, &byte, 1, 0);
    return NULL;
}

static volatile long interruptions;

static void *receive_until_interrupted(void *end) {
    char byte;
    if (read(*(int *)end, &byte, 1) == -1 && errno == EINTR) interruptions = 1;
    return NULL;
}

int check(void) {
    int ends[2];
    int line = connection(ends);
    if (line) return line;
    char bytes[64] = "0123456789", part[4], rest[64];

    errno = 0;
    CHECK(recv(ends[0], part, sizeof part, MSG_DONTWAIT) == -1 && errno == EAGAIN);
    errno = 0;
    CHECK(send(-1, bytes, 1, 0) == -1 && errno == EBADF);
    CHECK(write(1 << 20, bytes, 1) == -1 && errno == EBADF);
    CHECK(recv(ends[0], NULL, 5, MSG_DONTWAIT) == -1 && errno == EAGAIN);
    CHECK(readv(ends[0], NULL, 3) == -1 && errno == EFAULT);
    CHECK(sendmsg(ends[0], NULL, 0) == -1 && errno == EFAULT);
    CHECK(close(1 << 20) == -1 && errno == EBADF);
    CHECK(accept(ends[0], NULL, NULL) == -1 && errno == EINVAL);

    /* What succeeds leaves errno alone, and moves what it should. */
    errno = 77;
    struct iovec parts[2] = {{bytes, 3}, {bytes + 3, 4}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
    CHECK(sendmsg(ends[1], &message, 0) == 7 && writev(ends[1], parts, 2) == 7 && send(ends[1], bytes, 10, 0) == 10);
    CHECK(sendto(ends[1], bytes, 10, 0, NULL, 0) == 10 && write(ends[1], bytes, 10) == 10);
    CHECK(recv(ends[0], rest, 14, MSG_PEEK | MSG_WAITALL) == 14);
    CHECK(recv(ends[0], rest, 44, MSG_WAITALL) == 44);
    CHECK(memcmp(rest, "01234560123456012345678901234567890123456789", 44) == 0);
    char path[] = "/tmp/leakline-sockets-XXXXXX";
    int file = mkstemp(path);
    CHECK(file >= 0 && unlink(path) == 0 && pwrite(file, bytes, 10, 0) == 10);
    off_t offset = 4;
    CHECK(sendfile(ends[1], file, &offset, 1000) == 6 && offset == 10);
    CHECK(recvfrom(ends[0], rest, sizeof rest, 0, NULL, NULL) == 6 && memcmp(rest, "456789", 6) == 0);
    struct iovec into = {rest, sizeof rest};
    struct msghdr received = {.msg_iov = &into, .msg_iovlen = 1};
    CHECK(write(ends[1], bytes, 5) == 5 && recvmsg(ends[0], &received, 0) == 5);
    CHECK(write(ends[1], bytes, 5) == 5 && readv(ends[0], &into, 1) == 5 && errno == 77);
    struct mmsghdr several[2] = {{.msg_hdr = message}, {.msg_hdr = received}};
    CHECK(sendmmsg(ends[1], several, 1, 0) == 1 && several[0].msg_len == 7);
    CHECK(recvmmsg(ends[0], several + 1, 1, MSG_WAITFORONE, NULL) == 1 && several[1].msg_len == 7);
    CHECK(memcmp(rest, bytes, 7) == 0);
    int pipe_ends[2];
    loff_t from = 4;
    CHECK(pipe(pipe_ends) == 0 && splice(file, &from, pipe_ends[1], NULL, 1000, 0) == 6 && from == 10);
    CHECK(splice(pipe_ends[0], NULL, ends[1], NULL, 6, 0) == 6 && errno == 77);
    CHECK(recv(ends[0], rest, sizeof rest, 0) == 6 && memcmp(rest, "456789", 6) == 0);
    CHECK(sendmmsg(-1, several, 1, 0) == -1 && errno == EBADF);
    CHECK(recvmmsg(ends[0], several + 1, 1, MSG_DONTWAIT, NULL) == -1 && errno == EAGAIN);
    errno = 77;
    CHECK(close(pipe_ends[0]) == 0 && close(pipe_ends[1]) == 0);
    CHECK(close(file) == 0 && errno == 77);

    /* A signal interrupts the call, and a thread may be cancelled in it. */
    struct sigaction action = {.sa_handler = interrupted}, before;
    CHECK(sigaction(SIGUSR2, &action, &before) == 0);
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, receive_until_interrupted, &ends[0]) == 0);
    while (!interruptions) {
        CHECK(pthread_kill(thread, SIGUSR2) == 0);
        usleep(1000);
    }
    CHECK(pthread_join(thread, NULL) == 0 && sigaction(SIGUSR2, &before, NULL) == 0);
    for (int round = 0; round < 20; round++) {
        void *result;
        CHECK(pthread_create(&thread, NULL, receive, &ends[0]) == 0);
        usleep(round * 100);
        CHECK(pthread_cancel(thread) == 0 && pthread_join(thread, &result) == 0 && result == PTHREAD_CANCELED);
    }

    /* A child that works in our memory closes its copy and not ours. */
    pid_t child = vfork();
    if (child == 0) {
        close(ends[1]);
        _exit(0);
    }
    int status;
    CHECK(child > 0 && waitpid(child, &status, 0) == child && status == 0);
    CHECK(write(ends[1], bytes, 5) == 5 && recv(ends[0], rest, sizeof rest, 0) == 5);

    CHECK(close(ends[0]) == 0 && recv(ends[1], rest, sizeof rest, 0) == 0);
    signal(SIGPIPE, SIG_IGN);
    CHECK(send(ends[1], bytes, 1, MSG_NOSIGNAL) == 1);
    usleep(1000);
    errno = 0;
    CHECK(send(ends[1], bytes, 1, MSG_NOSIGNAL) == -1 && (errno == EPIPE || errno == ECONNRESET));
    CHECK(syscall(SYS_close, ends[1]) == 0);
    errno = 0;
    CHECK(syscall(SYS_close, ends[1]) == -1 && errno == EBADF);
    CHECK(syscall(SYS_getpid) == getpid());
    /* All seven arguments. */
    void *page = (void *)syscall(SYS_mmap, NULL, 4096L, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0L);
    CHECK(page != MAP_FAILED && *(char *)page == 0 && munmap(page, 4096) == 0);
    return 0;
}
