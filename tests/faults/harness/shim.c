/* calls that change the disk under one folder -> counted, written down, and one of them struck.

   Loaded with LD_PRELOAD. A process arms it after fork; until then every call passes. It does not see what the
   C library does inside itself (fopen, fwrite), nor direct system calls. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { COUNT, KILL, ERROR, SHORT, FULL, TORN };
enum { PASS, FAIL, PART };

static char root[PATH_MAX];
static size_t root_length;
static volatile long counter, target;
static volatile int armed, action, number, starved;
static int journal = -1, with_data;

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

void fault_arm(const char *folder, long at, int what, int error) {
    snprintf(root, sizeof root, "%s", folder);
    root_length = strlen(root);
    counter = 0, target = at, action = what, number = error, starved = 0, armed = root_length > 0;
}

long fault_count(void) { return counter; }

void fault_journal(int descriptor, int data) { journal = descriptor, with_data = data; }

static void put(const void *bytes, size_t length) {
    while (length > 0) {
        long done = syscall(SYS_write, journal, bytes, length);
        if (done <= 0) return;
        bytes = (const char *)bytes + done, length -= (size_t)done;
    }
}

static void note(const char *kind, const char *path, const char *other, long offset, const void *data, size_t length) {
    if (journal < 0) return;
    int saved = errno;
    char line[3 * PATH_MAX];
    int size = snprintf(line, sizeof line, "%s\t%s\t%s\t%ld\t%zu\n", kind, path, other, offset, with_data ? length : 0);
    put(line, (size_t)size);
    if (with_data && length) put(data, length);
    errno = saved;
}

void fault_mark(const char *text) { note("mark", text, "", 0, "", 0); }

static int inside(const char *path) {
    return strncmp(path, root, root_length) == 0 && (path[root_length] == '/' || path[root_length] == 0);
}

static int of_descriptor(int descriptor, char *out) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t size = syscall(SYS_readlink, link, out, PATH_MAX - 1);
    if (size < 0) return 0;
    out[size] = 0;
    return inside(out);
}

static int of_path(int folder, const char *path, char *out) {
    if (path == NULL) return 0;
    if (path[0] == '/') {
        snprintf(out, PATH_MAX, "%s", path);
        return inside(out);
    }
    char base[PATH_MAX];
    if (folder == AT_FDCWD) {
        if (syscall(SYS_getcwd, base, sizeof base) < 0) return 0;
    } else {
        of_descriptor(folder, base);
    }
    while (strncmp(path, "./", 2) == 0) path += 2;
    snprintf(out, PATH_MAX, "%s/%s", base, path);
    return inside(out);
}

/* PASS: do it. FAIL: errno is set. PART: do half of it. */
static int strike(int writes, int creates, size_t length) {
    long now = __sync_add_and_fetch(&counter, 1);
    if (starved && writes) {
        errno = ENOSPC;
        return FAIL;
    }
    if (action == FULL && now >= target && (writes || creates)) {
        errno = number;
        return FAIL;
    }
    if (now != target) return PASS;
    if (action == KILL) kill(getpid(), SIGKILL);
    if (action == ERROR) {
        errno = number;
        return FAIL;
    }
    if ((action == SHORT || action == TORN) && writes && length > 1) {
        starved = action == SHORT;
        return PART;
    }
    return PASS;
}

static void torn(void) {
    if (action == TORN) kill(getpid(), SIGKILL);
}

static long place(int descriptor) {
    struct stat found;
    if (fcntl(descriptor, F_GETFL) & O_APPEND) return fstat(descriptor, &found) ? 0 : (long)found.st_size;
    return (long)lseek(descriptor, 0, SEEK_CUR);
}

static int do_open(int folder, const char *path, int flags, mode_t mode) {
    char full[PATH_MAX];
    struct stat found;
    int changes = flags & (O_CREAT | O_WRONLY | O_RDWR | O_TRUNC);
    if (!armed || !changes || !of_path(folder, path, full)) return (int)syscall(SYS_openat, folder, path, flags, mode);
    int fresh = (flags & O_CREAT) && lstat(full, &found) != 0;
    if (strike(0, fresh, 0) == FAIL) return -1;
    int result = (int)syscall(SYS_openat, folder, path, flags, mode);
    note(result < 0 ? "failed" : fresh ? "create" : flags & O_TRUNC ? "empty" : "open", full, "", 0, "", 0);
    return result;
}

#define MODE(flags, last) \
    mode_t mode = 0; \
    if ((flags) & (O_CREAT | O_TMPFILE)) { \
        va_list list; \
        va_start(list, last); \
        mode = va_arg(list, mode_t); \
        va_end(list); \
    }

int open(const char *path, int flags, ...) { MODE(flags, flags) return do_open(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(flags, flags) return do_open(AT_FDCWD, path, flags, mode); }
int openat(int at, const char *path, int flags, ...) { MODE(flags, flags) return do_open(at, path, flags, mode); }
int openat64(int at, const char *path, int flags, ...) { MODE(flags, flags) return do_open(at, path, flags, mode); }
int creat(const char *path, mode_t mode) { return do_open(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }

ssize_t write(int descriptor, const void *data, size_t length) {
    char full[PATH_MAX];
    if (!armed || descriptor < 3 || descriptor == journal || !of_descriptor(descriptor, full))
        return syscall(SYS_write, descriptor, data, length);
    int verdict = strike(1, 0, length);
    if (verdict == FAIL) return -1;
    long offset = place(descriptor);
    ssize_t done = syscall(SYS_write, descriptor, data, verdict == PART ? length / 2 : length);
    note(done < 0 ? "failed" : "write", full, "", offset, data, done < 0 ? 0 : (size_t)done);
    if (verdict == PART) torn();
    return done;
}

static ssize_t do_pwrite(int descriptor, const void *data, size_t length, off_t offset) {
    char full[PATH_MAX];
    if (!armed || !of_descriptor(descriptor, full)) return syscall(SYS_pwrite64, descriptor, data, length, offset);
    int verdict = strike(1, 0, length);
    if (verdict == FAIL) return -1;
    ssize_t done = syscall(SYS_pwrite64, descriptor, data, verdict == PART ? length / 2 : length, offset);
    note(done < 0 ? "failed" : "write", full, "", (long)offset, data, done < 0 ? 0 : (size_t)done);
    if (verdict == PART) torn();
    return done;
}

ssize_t pwrite(int descriptor, const void *data, size_t length, off_t offset) {
    return do_pwrite(descriptor, data, length, offset);
}
ssize_t pwrite64(int descriptor, const void *data, size_t length, off64_t offset) {
    return do_pwrite(descriptor, data, length, offset);
}

ssize_t writev(int descriptor, const struct iovec *parts, int count) {
    char full[PATH_MAX];
    if (!armed || descriptor < 3 || !of_descriptor(descriptor, full))
        return syscall(SYS_writev, descriptor, parts, count);
    size_t total = 0;
    for (int i = 0; i < count; i++) total += parts[i].iov_len;
    int verdict = strike(1, 0, total);
    if (verdict == FAIL) return -1;
    long offset = place(descriptor);
    if (verdict == PART) count = (count + 1) / 2;
    ssize_t done = syscall(SYS_writev, descriptor, parts, count);
    ssize_t left = done;
    if (done < 0) note("failed", full, "", offset, "", 0);
    for (int i = 0; i < count && left > 0; i++) {
        size_t here = (size_t)left < parts[i].iov_len ? (size_t)left : parts[i].iov_len;
        note(i == 0 ? "write" : "more", full, "", offset, parts[i].iov_base, here);
        offset += (long)here, left -= (ssize_t)here;
    }
    if (verdict == PART) torn();
    return done;
}

#define ON_DESCRIPTOR(kind, writes, call, offset) \
    char full[PATH_MAX]; \
    if (!armed || !of_descriptor(descriptor, full)) return call; \
    if (strike(writes, 0, 0) == FAIL) return -1; \
    int result = (int)(call); \
    note(result == 0 ? kind : "failed", full, "", offset, "", 0); \
    return result;

int fsync(int descriptor) { ON_DESCRIPTOR("fsync", 0, (int)syscall(SYS_fsync, descriptor), 0) }
int fdatasync(int descriptor) { ON_DESCRIPTOR("fsync", 0, (int)syscall(SYS_fdatasync, descriptor), 0) }
int ftruncate(int descriptor, off_t size) {
    ON_DESCRIPTOR("truncate", 1, (int)syscall(SYS_ftruncate, descriptor, size), (long)size)
}
int ftruncate64(int descriptor, off64_t size) {
    ON_DESCRIPTOR("truncate", 1, (int)syscall(SYS_ftruncate, descriptor, size), (long)size)
}
int fchmod(int descriptor, mode_t mode) { ON_DESCRIPTOR("chmod", 0, (int)syscall(SYS_fchmod, descriptor, mode), 0) }
int fallocate(int descriptor, int mode, off_t offset, off_t size) {
    ON_DESCRIPTOR("allocate", 1, (int)syscall(SYS_fallocate, descriptor, mode, offset, size), (long)(offset + size))
}
int posix_fallocate(int descriptor, off_t offset, off_t size) {
    char full[PATH_MAX];
    if (armed && of_descriptor(descriptor, full) && strike(1, 0, 0) == FAIL) return errno;
    int result = REAL(posix_fallocate)(descriptor, offset, size);
    if (armed && inside(full)) note(result == 0 ? "allocate" : "failed", full, "", (long)(offset + size), "", 0);
    return result;
}
int posix_fallocate64(int descriptor, off64_t offset, off64_t size) {
    return posix_fallocate(descriptor, offset, size);
}

#define ON_PATH(kind, creates, folder, path, call) \
    char full[PATH_MAX]; \
    if (!armed || !of_path(folder, path, full)) return call; \
    if (strike(0, creates, 0) == FAIL) return -1; \
    int result = (int)(call); \
    note(result == 0 ? kind : "failed", full, "", 0, "", 0); \
    return result;

int unlink(const char *path) { ON_PATH("unlink", 0, AT_FDCWD, path, (int)syscall(SYS_unlinkat, AT_FDCWD, path, 0)) }
int rmdir(const char *path) {
    ON_PATH("rmdir", 0, AT_FDCWD, path, (int)syscall(SYS_unlinkat, AT_FDCWD, path, AT_REMOVEDIR))
}
int unlinkat(int at, const char *path, int flags) {
    ON_PATH(flags & AT_REMOVEDIR ? "rmdir" : "unlink", 0, at, path, (int)syscall(SYS_unlinkat, at, path, flags))
}
int mkdir(const char *path, mode_t mode) {
    ON_PATH("mkdir", 1, AT_FDCWD, path, (int)syscall(SYS_mkdirat, AT_FDCWD, path, mode))
}
int mkdirat(int at, const char *path, mode_t mode) {
    ON_PATH("mkdir", 1, at, path, (int)syscall(SYS_mkdirat, at, path, mode))
}
int chmod(const char *path, mode_t mode) {
    ON_PATH("chmod", 0, AT_FDCWD, path, (int)syscall(SYS_fchmodat, AT_FDCWD, path, mode))
}
int symlink(const char *text, const char *path) {
    ON_PATH("symlink", 1, AT_FDCWD, path, (int)syscall(SYS_symlinkat, text, AT_FDCWD, path))
}

#define TWO_PATHS(kind, at, from, to_at, to, call) \
    char full[PATH_MAX], other[PATH_MAX]; \
    int first = armed && of_path(at, from, full), second = armed && of_path(to_at, to, other); \
    if (!first && !second) return call; \
    if (strike(0, 1, 0) == FAIL) return -1; \
    int result = (int)(call); \
    note(result == 0 ? kind : "failed", full, other, 0, "", 0); \
    return result;

int rename(const char *from, const char *to) {
    TWO_PATHS("rename", AT_FDCWD, from, AT_FDCWD, to, (int)syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0))
}
int renameat(int at, const char *from, int to_at, const char *to) {
    TWO_PATHS("rename", at, from, to_at, to, (int)syscall(SYS_renameat2, at, from, to_at, to, 0))
}
int renameat2(int at, const char *from, int to_at, const char *to, unsigned flags) {
    TWO_PATHS("rename", at, from, to_at, to, (int)syscall(SYS_renameat2, at, from, to_at, to, flags))
}
int link(const char *from, const char *to) {
    TWO_PATHS("link", AT_FDCWD, from, AT_FDCWD, to, (int)syscall(SYS_linkat, AT_FDCWD, from, AT_FDCWD, to, 0))
}

static ssize_t copied(int descriptor, ssize_t done, const char *full) {
    char *data = done > 0 && with_data ? malloc((size_t)done) : NULL;
    long offset = (long)lseek(descriptor, 0, SEEK_CUR) - done;
    size_t length = data && syscall(SYS_pread64, descriptor, data, done, offset) == done ? (size_t)done : 0;
    note(done < 0 ? "failed" : "write", full, "", offset, data ? data : "", length);
    free(data);
    return done;
}

ssize_t sendfile64(int descriptor, int from, off64_t *offset, size_t length) {
    char full[PATH_MAX];
    if (!armed || !of_descriptor(descriptor, full)) return syscall(SYS_sendfile, descriptor, from, offset, length);
    int verdict = strike(1, 0, length);
    if (verdict == FAIL) return -1;
    ssize_t done = syscall(SYS_sendfile, descriptor, from, offset, verdict == PART ? length / 2 : length);
    if (verdict == PART) torn();
    return copied(descriptor, done, full);
}
ssize_t sendfile(int descriptor, int from, off_t *offset, size_t length) {
    return sendfile64(descriptor, from, offset, length);
}

ssize_t copy_file_range(int from, off64_t *at, int descriptor, off64_t *to, size_t length, unsigned flags) {
    char full[PATH_MAX];
    if (!armed || !of_descriptor(descriptor, full))
        return syscall(SYS_copy_file_range, from, at, descriptor, to, length, flags);
    if (strike(1, 0, length) == FAIL) return -1;
    ssize_t done = syscall(SYS_copy_file_range, from, at, descriptor, to, length, flags);
    if (to != NULL) note(done < 0 ? "failed" : "write", full, "", (long)*to, "", 0);
    return to == NULL ? copied(descriptor, done, full) : done;
}
