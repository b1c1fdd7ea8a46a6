#include "base/standard_files.h"

#include <fcntl.h>
#include <unistd.h>

status standard_files_open(err *e) {
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++) {
        if (fcntl(fd, F_GETFD) >= 0) continue;
        /* Those before it are open, so this takes the first free number: its own. */
        if (open("/dev/null", fd == STDIN_FILENO ? O_WRONLY : O_RDONLY) != fd)
            return fail_errno(e, STATUS_IO, "opening /dev/null in the place of a closed standard file");
    }
    return STATUS_OK;
}
