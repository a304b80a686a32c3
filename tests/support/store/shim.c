/* Preloaded under a test: the Nth call that writes or syncs a file fails, is short, or is torn and everything after it is dead.
 *
 * shim_arm(n, mode, error): mode 0 fails the Nth call with errno = error, once; 1 lets the Nth write do half of its bytes and report that;
 * 2 lets it do half, then it and every later call fail with `error`, as if the machine had stopped there.
 * shim_disarm() returns how many calls there were; shim_fired() whether the Nth came.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static atomic_int armed, calls, at, mode, code, fired;

void shim_arm(int n, int how, int error) {
    calls = 0; at = n; mode = how; code = error; fired = 0; armed = 1;
}
int shim_disarm(void) { armed = 0; return calls; }
int shim_fired(void) { return fired; }

/* 0: go on; 1: fail; 2: half */
static int fate(int can_halve) {
    if (!armed) return 0;
    int now = ++calls;
    if (now < at) return 0;
    if (now > at) return mode == 2;
    fired = 1;
    return mode == 0 || !can_halve ? (mode == 1 ? 0 : 1) : 2;
}

typedef ssize_t (*pwrite_fn)(int, const void *, size_t, off_t);

static ssize_t halved(const char *name, int fd, const void *data, size_t size, off_t offset) {
    pwrite_fn real = (pwrite_fn)dlsym(RTLD_NEXT, name);
    int what = fate(size > 1);
    if (what == 1) { errno = code; return -1; }
    if (what == 2) {
        size_t half = size / 2;
        if (half >= 512) half = half / 512 * 512; /* a direct write is cut between sectors */
        ssize_t done = real(fd, data, half, offset);
        if (mode == 1) return done;
        errno = code;
        return -1;
    }
    return real(fd, data, size, offset);
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) { return halved("pwrite", fd, data, size, offset); }
ssize_t pwrite64(int fd, const void *data, size_t size, off_t offset) { return halved("pwrite64", fd, data, size, offset); }

typedef ssize_t (*pwritev_fn)(int, const struct iovec *, int, off_t, int);

static ssize_t halved_v(const char *name, int fd, const struct iovec *parts, int count, off_t offset, int flags) {
    pwritev_fn real = (pwritev_fn)dlsym(RTLD_NEXT, name);
    int what = fate(count > 1);
    if (what == 1) { errno = code; return -1; }
    if (what == 2) {
        ssize_t done = real(fd, parts, count / 2, offset, flags);
        if (mode == 1) return done;
        errno = code;
        return -1;
    }
    return real(fd, parts, count, offset, flags);
}

#define VECTOR(name)                                                                         \
    ssize_t name(int fd, const struct iovec *parts, int count, off_t offset, int flags) {    \
        return halved_v(#name, fd, parts, count, offset, flags);                             \
    }
VECTOR(pwritev2)
VECTOR(pwritev64v2)

#define SIMPLE(name, params, args)                                  \
    int name params {                                               \
        int (*real) params = (int (*) params)dlsym(RTLD_NEXT, #name); \
        if (fate(0) == 1) { errno = code; return -1; }              \
        return real args;                                           \
    }
SIMPLE(fdatasync, (int fd), (fd))
SIMPLE(fsync, (int fd), (fd))
SIMPLE(ftruncate, (int fd, off_t length), (fd, length))
SIMPLE(ftruncate64, (int fd, off_t length), (fd, length))
SIMPLE(rename, (const char *from, const char *to), (from, to))
