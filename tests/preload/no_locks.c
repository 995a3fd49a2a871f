/* Preloaded into the programs by a test, this is a file system like some NFS and FUSE mounts: it has neither flock nor
 * the flags of renameat2. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <sys/file.h>

int flock(int file, int operation)
{
    (void)file;
    (void)operation;
    errno = ENOSYS;
    return -1;
}

int renameat2(int old_folder, const char *old_path, int new_folder, const char *new_path, unsigned int flags)
{
    if (flags != 0) {
        errno = EINVAL;
        return -1;
    }
    return renameat(old_folder, old_path, new_folder, new_path);
}
