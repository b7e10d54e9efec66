#define _GNU_SOURCE
#include "memory/ending.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define EXITING UINT64_C(4) /* PF_EXITING of linux/sched.h; field 9 of stat shows the flags */

enum { TASKS_MAX = 256, STAT_BYTES = 2048 };
enum { FLAGS = 9, START_TIME = 22, EXIT_CODE = 52, FIELDS };

/* The numbers of a stat file of /proc by their place, from 1 on: 0, or an errno. */
static int read_stat(const char *path, uint64_t *fields)
{
    char text[STAT_BYTES];
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return errno;
    ssize_t len = read(fd, text, sizeof text - 1);
    int error = len > 0 ? 0 : len < 0 ? errno : ESRCH;
    close(fd);
    if (error)
        return error;
    text[len] = 0;
    memset(fields, 0, FIELDS * sizeof *fields);
    const char *at = strrchr(text, ')'); /* the command may hold spaces and brackets */
    for (int n = 3; at && n < FIELDS; n++) {
        at = strchr(at + 1, ' ');
        if (at)
            fields[n] = strtoull(at + 1, NULL, 10);
    }
    return 0;
}

/* The tasks of a process; -1: it has gone, or has more than there is room for. */
static int list_tasks(int pid, int *tasks)
{
    char path[40];
    int count = 0;
    snprintf(path, sizeof path, "/proc/%d/task", pid);
    DIR *directory = opendir(path);
    if (!directory)
        return -1;
    for (const struct dirent *entry; count >= 0 && (entry = readdir(directory));) {
        if (entry->d_name[0] == '.')
            continue;
        if (count < TASKS_MAX)
            tasks[count++] = (int)strtol(entry->d_name, NULL, 10);
        else
            count = -1;
    }
    closedir(directory);
    return count;
}

/* Has the task let go of the process's memory, as one that exits does? Whoever reads its stat file while it has not may be
 * the last to let go of that memory instead, and is then the one who frees it. */
static enum shm_ending task_ending(int pid, int task)
{
    char path[64], target[1];
    snprintf(path, sizeof path, "/proc/%d/task/%d/exe", pid, task);
    if (readlink(path, target, sizeof target) >= 0)
        return SHM_ENDING_SOON;
    return errno == ENOENT || errno == ESRCH ? SHM_ENDING_SURE : SHM_ENDING_NOT;
}

static bool is_exiting(int pid, int task)
{
    char path[64];
    uint64_t fields[FIELDS];
    snprintf(path, sizeof path, "/proc/%d/task/%d/stat", pid, task);
    int error = read_stat(path, fields);
    return error ? error == ENOENT || error == ESRCH : (fields[FLAGS] & EXITING) != 0;
}

static enum shm_ending tasks_ending(int pid)
{
    int tasks[TASKS_MAX], again[TASKS_MAX];
    int count = list_tasks(pid, tasks);
    if (count <= 0)
        return SHM_ENDING_NOT;
    for (int i = 0; i < count; i++) {
        enum shm_ending ending = task_ending(pid, tasks[i]);
        if (ending != SHM_ENDING_SURE)
            return ending;
    }
    for (int i = 0; i < count; i++)
        if (!is_exiting(pid, tasks[i]))
            return SHM_ENDING_SOON;
    /* One of them may have made another before it was seen exiting: that one is in the list by now. */
    int left = list_tasks(pid, again);
    for (int i = 0; i < left; i++) {
        bool known = false;
        for (int n = 0; n < count && !known; n++)
            known = tasks[n] == again[i];
        if (!known)
            return SHM_ENDING_SOON;
    }
    return left >= 0 ? SHM_ENDING_SURE : SHM_ENDING_NOT;
}

enum shm_ending shm_process_ending(int pid, uint64_t start_time, uint32_t *wait_status)
{
    char path[40];
    uint64_t fields[FIELDS];
    enum shm_ending ending = pid > 0 ? tasks_ending(pid) : SHM_ENDING_NOT;
    if (ending != SHM_ENDING_SURE)
        return ending;
    /* It is that process still, so it was all the time. */
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    if (read_stat(path, fields) != 0 || fields[START_TIME] != start_time || !(fields[FLAGS] & EXITING))
        return SHM_ENDING_NOT;
    *wait_status = (uint32_t)fields[EXIT_CODE] & 0xFFFF;
    return SHM_ENDING_SURE;
}
