/* Records what a process asks of the files in one folder, so that a test can rebuild what a loss of power may leave of them.
 *
 * Loaded with LD_PRELOAD. RECORD_FOLDER is the folder, RECORD_LOG the file that gets the records, in the order in which
 * things were done: a struct record, then its bytes. Standard output is recorded as well: what was said, was said by then.
 * A way of changing files that is not recorded ends the process. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#define FILES_MAX 4096

struct record {
    uint32_t kind;
    int32_t file;
    uint64_t offset;
    uint64_t len;
};

static pthread_mutex_t in_order = PTHREAD_MUTEX_INITIALIZER;
static char recorded[FILES_MAX];
static int log_file = -1;

static void give_up(const char *what) {
    dprintf(2, "record_writes: %s is not recorded\n", what);
    abort();
}

static void note(char kind, int file, uint64_t offset, const void *bytes, uint64_t len) {
    if (log_file < 0) {
        log_file = syscall(SYS_openat, AT_FDCWD, getenv("RECORD_LOG"), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
        if (log_file < 0) give_up("this without a log");
    }
    struct record record = { kind, file, offset, len };
    struct iovec parts[2] = { { &record, sizeof record }, { (void *)bytes, len } };
    if (syscall(SYS_writev, log_file, parts, 2) != (ssize_t)(sizeof record + len)) give_up("this on a full disk");
}

static int is_recorded(int file) {
    return file >= 0 && file < FILES_MAX && recorded[file];
}

/* The name in the folder that a path means, or the folder itself as ".". */
static const char *name_in_folder(const char *path) {
    const char *folder = getenv("RECORD_FOLDER");
    size_t len = folder ? strlen(folder) : 0;
    if (len == 0 || strncmp(path, folder, len) != 0) return NULL;
    if (path[len] == 0) return ".";
    return path[len] == '/' ? path + len + 1 : NULL;
}

static int open_file(int at, const char *path, int flags, mode_t mode) {
    const char *name = name_in_folder(path);
    if (name == NULL) return syscall(SYS_openat, at, path, flags, mode);
    pthread_mutex_lock(&in_order);
    int made = (flags & O_CREAT) && syscall(SYS_faccessat, AT_FDCWD, path, F_OK) != 0;
    if ((flags & O_TRUNC) && !made) give_up("O_TRUNC");
    int file = syscall(SYS_openat, at, path, flags, mode);
    int error = errno;
    if (file >= FILES_MAX) give_up("a file of such a number");
    if (file >= 0) {
        recorded[file] = 1;
        note(made ? 'c' : 'o', file, 0, name, strlen(name));
    }
    pthread_mutex_unlock(&in_order);
    errno = error;
    return file;
}

#define MODE(flags, mode)                     \
    mode_t mode = 0;                          \
    if ((flags) & (O_CREAT | O_TMPFILE)) {    \
        va_list rest;                         \
        va_start(rest, flags);                \
        mode = va_arg(rest, mode_t);          \
        va_end(rest);                         \
    }

int open(const char *path, int flags, ...) { MODE(flags, mode) return open_file(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(flags, mode) return open_file(AT_FDCWD, path, flags, mode); }
int openat(int at, const char *path, int flags, ...) { MODE(flags, mode) return open_file(at, path, flags, mode); }
int openat64(int at, const char *path, int flags, ...) { MODE(flags, mode) return open_file(at, path, flags, mode); }

int close(int file) {
    if (!is_recorded(file)) return syscall(SYS_close, file);
    pthread_mutex_lock(&in_order);
    recorded[file] = 0;
    note('x', file, 0, "", 0);
    int result = syscall(SYS_close, file);
    pthread_mutex_unlock(&in_order);
    return result;
}

static ssize_t write_at(int file, const void *bytes, size_t len, off_t offset) {
    pthread_mutex_lock(&in_order);
    ssize_t written = syscall(SYS_pwrite64, file, bytes, len, offset);
    int error = errno;
    if (written > 0) note('w', file, offset, bytes, written);
    pthread_mutex_unlock(&in_order);
    errno = error;
    return written;
}

ssize_t pwrite64(int file, const void *bytes, size_t len, off_t offset) {
    if (!is_recorded(file)) return syscall(SYS_pwrite64, file, bytes, len, offset);
    return write_at(file, bytes, len, offset);
}

ssize_t pwrite(int file, const void *bytes, size_t len, off_t offset) {
    return pwrite64(file, bytes, len, offset);
}

ssize_t write(int file, const void *bytes, size_t len) {
    if (file == 1 && getenv("RECORD_LOG")) {
        pthread_mutex_lock(&in_order);
        ssize_t written = syscall(SYS_write, file, bytes, len);
        int error = errno;
        if (written > 0) note('s', file, 0, bytes, written);
        pthread_mutex_unlock(&in_order);
        errno = error;
        return written;
    }
    if (!is_recorded(file)) return syscall(SYS_write, file, bytes, len);
    off_t offset = syscall(SYS_lseek, file, 0, SEEK_CUR);
    ssize_t written = write_at(file, bytes, len, offset);
    if (written > 0) syscall(SYS_lseek, file, written, SEEK_CUR);
    return written;
}

int ftruncate64(int file, off_t len) {
    if (!is_recorded(file)) return syscall(SYS_ftruncate, file, len);
    pthread_mutex_lock(&in_order);
    int result = syscall(SYS_ftruncate, file, len);
    int error = errno;
    if (result == 0) note('t', file, len, "", 0);
    pthread_mutex_unlock(&in_order);
    errno = error;
    return result;
}

int ftruncate(int file, off_t len) { return ftruncate64(file, len); }

/* Noted once it is done: one thread uses a file, and what others say meanwhile does not depend on it. */
static int flush(long how, int file) {
    int result = syscall(how, file);
    if (result == 0 && is_recorded(file)) {
        pthread_mutex_lock(&in_order);
        note('f', file, 0, "", 0);
        pthread_mutex_unlock(&in_order);
    }
    return result;
}

int fsync(int file) { return flush(SYS_fsync, file); }
int fdatasync(int file) { return flush(SYS_fdatasync, file); }

int unlink(const char *path) {
    const char *name = name_in_folder(path);
    if (name == NULL) return syscall(SYS_unlinkat, AT_FDCWD, path, 0);
    pthread_mutex_lock(&in_order);
    int result = syscall(SYS_unlinkat, AT_FDCWD, path, 0);
    int error = errno;
    if (result == 0) note('u', -1, 0, name, strlen(name));
    pthread_mutex_unlock(&in_order);
    errno = error;
    return result;
}

/* What SQLite does not use today. Should it begin to, the test must learn of it. */

int rename(const char *from, const char *to) {
    if (name_in_folder(from) || name_in_folder(to)) give_up("rename");
    return syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);
}

ssize_t writev(int file, const struct iovec *parts, int count) {
    if (is_recorded(file) || file == 1) give_up("writev");
    return syscall(SYS_writev, file, parts, count);
}

int fallocate(int file, int mode, off_t offset, off_t len) {
    if (is_recorded(file)) give_up("fallocate");
    return syscall(SYS_fallocate, file, mode, offset, len);
}

int posix_fallocate(int file, off_t offset, off_t len) {
    if (is_recorded(file)) give_up("posix_fallocate");
    return syscall(SYS_fallocate, file, 0, offset, len) == 0 ? 0 : errno;
}

static void *map(void *at, size_t len, int protection, int flags, int file, off_t offset) {
    if (is_recorded(file) && (flags & MAP_SHARED) && (protection & PROT_WRITE)) give_up("mmap");
    return (void *)syscall(SYS_mmap, at, len, protection, flags, file, offset);
}

void *mmap(void *at, size_t len, int protection, int flags, int file, off_t offset) {
    return map(at, len, protection, flags, file, offset);
}

void *mmap64(void *at, size_t len, int protection, int flags, int file, off_t offset) {
    return map(at, len, protection, flags, file, offset);
}
