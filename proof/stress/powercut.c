/* A recorder of what a program does to the files of one directory.
 *
 * Preloaded (LD_PRELOAD), it appends one record per change to a log, in one order over all threads and processes
 * that run under it. powercut.py replays that log to build what a disk may hold after a power cut, and kill.py uses
 * the same library to end a process at a chosen write.
 *
 *   RECORDER_DIR      the directory (its -shm files are left out: SQLite builds them anew)
 *   RECORDER_LOG      the log; without it nothing is recorded
 *   RECORDER_LIES     set: a sync is neither done nor recorded, and answers that it was: a disk that lies
 *   RECORDER_KILL_AT  n: the process kills itself (SIGKILL) in place of its n-th write, truncation or sync
 *   RECORDER_TEAR     set: if that n-th change is a write, its first half is still done
 *
 * A change is logged under a lock that is held until it has been made, so the log's order is the order on the disk.
 * Not followed: duplicated descriptors, a fork without exec, writes through mmap.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum op { OPENED = 1, CREATED, WRITTEN, TRUNCATED, SYNCED, NAMES_SYNCED, UNLINKED, RENAMED, ACKNOWLEDGED };

struct record { /* followed by the name, then by the data; powercut.py knows this layout */
    uint32_t op, name_length;
    uint64_t inode;
    int64_t offset;
    uint64_t data_length;
};

#define DESCRIPTORS 4096
#define ACK_FILE UINT64_MAX /* what is written to a file *.ack is no file content but a note in the log */

static uint64_t inode_of[DESCRIPTORS]; /* 0: a descriptor that is not ours to follow */
static char directory[PATH_MAX];
static size_t directory_length;
static int log_descriptor = -1, lies, tears;
static long kill_at, changes;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void set_up(void) {
    const char *dir = getenv("RECORDER_DIR"), *log = getenv("RECORDER_LOG"), *kill = getenv("RECORDER_KILL_AT");
    if (!dir || !realpath(dir, directory)) return;
    directory_length = strlen(directory);
    lies = getenv("RECORDER_LIES") != NULL;
    tears = getenv("RECORDER_TEAR") != NULL;
    kill_at = kill ? atol(kill) : 0;
    if (log) {
        int low = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
        if (low < 0) abort();
        log_descriptor = fcntl(low, F_DUPFD_CLOEXEC, 900); /* out of the way of programs that close all low ones */
        syscall(SYS_close, low);
        if (log_descriptor < 0) abort();
    }
}

static void lock(void) {
    pthread_mutex_lock(&mutex);
    if (log_descriptor >= 0) flock(log_descriptor, LOCK_EX);
}

static void unlock(void) {
    int saved = errno;
    if (log_descriptor >= 0) flock(log_descriptor, LOCK_UN);
    pthread_mutex_unlock(&mutex);
    errno = saved;
}

static void note(enum op op, uint64_t inode, const char *name, int64_t offset, const void *data, size_t length) {
    if (log_descriptor < 0) return;
    int saved = errno;
    struct record head = {op, (uint32_t)strlen(name), inode, offset, length};
    struct iovec parts[3] = {{&head, sizeof head}, {(void *)name, head.name_length}, {(void *)data, length}};
    ssize_t whole = (ssize_t)(sizeof head + head.name_length + length);
    if (syscall(SYS_writev, log_descriptor, parts, 3) != whole) abort();
    errno = saved;
}

/* The name below the directory, "" for the directory itself, or NULL for a path that is not followed. */
static const char *followed(const char *path, char resolved[PATH_MAX]) {
    pthread_once(&once, set_up);
    if (!directory_length || !path) return NULL;
    char parent[PATH_MAX];
    const char *slash = strrchr(path, '/'), *base = slash ? slash + 1 : path;
    size_t length = slash ? (size_t)(slash - path) : 0;
    if (length >= sizeof parent || strlen(base) > NAME_MAX) return NULL;
    memcpy(parent, path, length);
    parent[length] = 0;
    if (!realpath(slash ? (length ? parent : "/") : ".", resolved)) return NULL;
    size_t used = strlen(resolved);
    if (used + strlen(base) + 2 > PATH_MAX) return NULL;
    if (*base) sprintf(resolved + used, "/%s", base);
    if (strncmp(resolved, directory, directory_length)) return NULL;
    const char *rest = resolved + directory_length;
    if (!*rest) return rest;
    size_t rest_length = strlen(rest);
    if (*rest != '/' || (rest_length > 4 && !strcmp(rest + rest_length - 4, "-shm"))) return NULL;
    return rest + 1;
}

static uint64_t inode(int descriptor) {
    return descriptor >= 0 && descriptor < DESCRIPTORS ? inode_of[descriptor] : 0;
}

/* Counts a change, and dies of the one that was asked for. */
static void count_change(int descriptor, const void *data, size_t length, off64_t offset) {
    if (!kill_at || __atomic_add_fetch(&changes, 1, __ATOMIC_SEQ_CST) != kill_at) return;
    if (tears && data) syscall(SYS_pwrite64, descriptor, data, length / 2, offset);
    syscall(SYS_kill, getpid(), SIGKILL);
}

static int do_open(int at, const char *path, int flags, mode_t mode) {
    char resolved[PATH_MAX];
    const char *name = at == AT_FDCWD || (path && *path == '/') ? followed(path, resolved) : NULL;
    if (!name) {
        int other = syscall(SYS_openat, at, path, flags, mode);
        if (other >= 0 && other < DESCRIPTORS) inode_of[other] = 0;
        return other;
    }
    lock();
    struct stat before, now;
    int existed = !lstat(resolved, &before);
    int descriptor = syscall(SYS_openat, at, path, flags, mode);
    if (descriptor >= DESCRIPTORS) abort();
    if (descriptor >= 0 && !fstat(descriptor, &now)) {
        size_t length = strlen(name);
        int ack = length > 4 && !strcmp(name + length - 4, ".ack");
        inode_of[descriptor] = ack ? ACK_FILE : now.st_ino;
        if (!ack && !S_ISDIR(now.st_mode)) {
            note(existed ? OPENED : CREATED, now.st_ino, name, 0, NULL, 0);
            if (existed && (flags & O_TRUNC)) note(TRUNCATED, now.st_ino, "", 0, NULL, 0);
        }
    }
    unlock();
    return descriptor;
}

#define MODE_OF(flags)                               \
    mode_t mode = 0;                                 \
    if ((flags) & (O_CREAT | __O_TMPFILE)) {         \
        va_list rest;                                \
        va_start(rest, flags);                       \
        mode = (mode_t)va_arg(rest, unsigned);       \
        va_end(rest);                                \
    }

int open(const char *path, int flags, ...) { MODE_OF(flags) return do_open(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE_OF(flags) return do_open(AT_FDCWD, path, flags, mode); }
int openat(int at, const char *path, int flags, ...) { MODE_OF(flags) return do_open(at, path, flags, mode); }
int openat64(int at, const char *path, int flags, ...) { MODE_OF(flags) return do_open(at, path, flags, mode); }

int close(int descriptor) {
    if (descriptor >= 0 && descriptor == log_descriptor) return 0;
    if (descriptor >= 0 && descriptor < DESCRIPTORS) inode_of[descriptor] = 0;
    return syscall(SYS_close, descriptor);
}

static int make_node(const char *path, mode_t mode, dev_t device) {
    char resolved[PATH_MAX];
    const char *name = followed(path, resolved);
    if (!name) return syscall(SYS_mknodat, AT_FDCWD, path, mode, device);
    lock();
    struct stat now;
    int result = syscall(SYS_mknodat, AT_FDCWD, path, mode, device);
    if (!result && !lstat(resolved, &now)) note(CREATED, now.st_ino, name, 0, NULL, 0);
    unlock();
    return result;
}

int mknod(const char *path, mode_t mode, dev_t device) { return make_node(path, mode, device); }
int __xmknod(int version, const char *path, mode_t mode, dev_t *device) { /* of programs built for glibc < 2.33 */
    (void)version;
    return make_node(path, mode, *device);
}

ssize_t pwrite64(int descriptor, const void *data, size_t length, off64_t offset) {
    uint64_t file = inode(descriptor);
    if (!file) return syscall(SYS_pwrite64, descriptor, data, length, offset);
    count_change(descriptor, data, length, offset);
    lock();
    note(WRITTEN, file, "", offset, data, length);
    ssize_t result = syscall(SYS_pwrite64, descriptor, data, length, offset);
    unlock();
    return result;
}

ssize_t pwrite(int descriptor, const void *data, size_t length, off_t offset) {
    return pwrite64(descriptor, data, length, offset);
}

ssize_t write(int descriptor, const void *data, size_t length) {
    uint64_t file = inode(descriptor);
    if (!file) return syscall(SYS_write, descriptor, data, length);
    if (file == ACK_FILE && log_descriptor < 0) return syscall(SYS_write, descriptor, data, length);
    off64_t offset = lseek(descriptor, 0, fcntl(descriptor, F_GETFL) & O_APPEND ? SEEK_END : SEEK_CUR);
    if (file != ACK_FILE) count_change(descriptor, data, length, offset);
    lock();
    note(file == ACK_FILE ? ACKNOWLEDGED : WRITTEN, file, "", offset, data, length);
    ssize_t result = file == ACK_FILE ? (ssize_t)length : syscall(SYS_write, descriptor, data, length);
    unlock();
    return result;
}

int ftruncate64(int descriptor, off64_t length) {
    uint64_t file = inode(descriptor);
    if (!file) return syscall(SYS_ftruncate, descriptor, length);
    count_change(descriptor, NULL, 0, 0);
    lock();
    note(TRUNCATED, file, "", length, NULL, 0);
    int result = syscall(SYS_ftruncate, descriptor, length);
    unlock();
    return result;
}

int ftruncate(int descriptor, off_t length) { return ftruncate64(descriptor, length); }

static int do_sync(int descriptor, long call) {
    uint64_t file = inode(descriptor);
    if (!file) return syscall(call, descriptor);
    count_change(descriptor, NULL, 0, 0);
    if (lies) return 0;
    lock();
    struct stat now;
    int result = syscall(call, descriptor);
    if (!result && !fstat(descriptor, &now)) note(S_ISDIR(now.st_mode) ? NAMES_SYNCED : SYNCED, file, "", 0, NULL, 0);
    unlock();
    return result;
}

int fsync(int descriptor) { return do_sync(descriptor, SYS_fsync); }
int fdatasync(int descriptor) { return do_sync(descriptor, SYS_fdatasync); }

int unlink(const char *path) {
    char resolved[PATH_MAX];
    const char *name = followed(path, resolved);
    if (!name) return syscall(SYS_unlinkat, AT_FDCWD, path, 0);
    lock();
    int result = syscall(SYS_unlinkat, AT_FDCWD, path, 0);
    if (!result) note(UNLINKED, 0, name, 0, NULL, 0);
    unlock();
    return result;
}

int rename(const char *from, const char *to) {
    char from_resolved[PATH_MAX], to_resolved[PATH_MAX];
    const char *old = followed(from, from_resolved), *new = followed(to, to_resolved);
    if (!old || !new) return syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);
    lock();
    int result = syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);
    if (!result) note(RENAMED, 0, old, 0, new, strlen(new));
    unlock();
    return result;
}
