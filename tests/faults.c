// Preloaded into a process (tests/faults.py): the n-th call of one kind on a file of the project fails with a chosen error.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

enum { OPEN, WRITE, FSYNC, RENAME, FLOCK, KINDS };

static char project[4096], failed[4096];  // failed: the file of the call that did
static long counts[KINDS], nth;
static int kind = -1, code, armed;

void faults_arm(const char *folder, int which, long call, int error) {
    snprintf(project, sizeof project, "%s/", folder);
    memset(counts, 0, sizeof counts);
    failed[0] = 0, kind = which, nth = call, code = error, armed = 1;
}
void faults_disarm(void) { armed = 0; }
long faults_count(int which) { return counts[which]; }
const char *faults_failed(void) { return failed; }

static int fails(int which, const char *path) {
    int inside = path[0] == '/' ? !strncmp(path, project, strlen(project)) : path[0] && strncmp(path, "..", 2);
    if (!armed || !inside) return 0;
    if (++counts[which] != nth || which != kind) return 0;
    snprintf(failed, sizeof failed, "%s", path[0] == '/' ? path + strlen(project) : path);
    errno = code;
    return 1;
}

static int fails_fd(int which, int fd) {
    char link[64], path[4096];
    if (!armed) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length <= 0) return 0;
    path[length] = 0;
    return path[0] == '/' && fails(which, path);
}

#define REAL(name) __typeof__(&name) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
#define OPENS(name, ...)                                                  \
    mode_t mode = 0;                                                      \
    if (flags & (O_CREAT | __O_TMPFILE)) {                                \
        va_list rest;                                                     \
        va_start(rest, flags), mode = va_arg(rest, mode_t), va_end(rest); \
    }                                                                     \
    REAL(name);                                                           \
    return fails(OPEN, path) ? -1 : real(__VA_ARGS__, flags, mode)

int open(const char *path, int flags, ...) { OPENS(open, path); }
int open64(const char *path, int flags, ...) { OPENS(open64, path); }
int openat(int at, const char *path, int flags, ...) { OPENS(openat, at, path); }
int openat64(int at, const char *path, int flags, ...) { OPENS(openat64, at, path); }

#define OF_FD(type, which, name, fd, parameters, arguments) \
    type name parameters {                                  \
        REAL(name);                                         \
        return fails_fd(which, fd) ? -1 : real arguments;   \
    }

struct iovec;
ssize_t writev(int, const struct iovec *, int);
ssize_t sendfile64(int, int, off64_t *, size_t);
int flock(int, int);
OF_FD(ssize_t, WRITE, write, fd, (int fd, const void *data, size_t n), (fd, data, n))
OF_FD(ssize_t, WRITE, pwrite64, fd, (int fd, const void *data, size_t n, off64_t at), (fd, data, n, at))
OF_FD(ssize_t, WRITE, writev, fd, (int fd, const struct iovec *parts, int n), (fd, parts, n))
OF_FD(ssize_t, WRITE, sendfile64, out, (int out, int in, off64_t *at, size_t n), (out, in, at, n))
OF_FD(ssize_t, WRITE, copy_file_range, out,
      (int in, off64_t *from, int out, off64_t *to, size_t n, unsigned flags), (in, from, out, to, n, flags))
OF_FD(int, WRITE, ftruncate64, fd, (int fd, off64_t size), (fd, size))
OF_FD(int, FSYNC, fsync, fd, (int fd), (fd))
OF_FD(int, FSYNC, fdatasync, fd, (int fd), (fd))
OF_FD(int, FLOCK, flock, fd, (int fd, int operation), (fd, operation))

int rename(const char *old, const char *new) {
    REAL(rename);
    return fails(RENAME, old) ? -1 : real(old, new);
}
int renameat(int from, const char *old, int to, const char *new) {
    REAL(renameat);
    return fails(RENAME, old) ? -1 : real(from, old, to, new);
}
