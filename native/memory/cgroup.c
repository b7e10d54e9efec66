#include "memory/cgroup.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PATH_BYTES = 1024 };

/* The files of one version: where they are, and what they are called. */
struct version {
    const char *mount, *limit, *usage;
    const char *cache[2]; /* lines of memory.stat */
};

static const struct version V1 = {"/sys/fs/cgroup/memory",
                                  "memory.limit_in_bytes",
                                  "memory.usage_in_bytes",
                                  {"total_active_file ", "total_inactive_file "}};
static const struct version V2 = {
    "/sys/fs/cgroup", "memory.max", "memory.current", {"active_file ", "inactive_file "}};

static FILE *open_file(const char *root, const char *mount, const char *group, const char *name)
{
    char path[2 * PATH_BYTES];
    int n = snprintf(path, sizeof path, "%s%s%s/%s", root, mount, group, name);
    return n > 0 && (size_t)n < sizeof path ? fopen(path, "re") : NULL;
}

/* The number in a file; false: there is none, as in "max". */
static bool read_number(const char *root, const struct version *version, const char *group, const char *name,
                        uint64_t *value)
{
    FILE *file = open_file(root, version->mount, group, name);
    unsigned long long number;
    bool found = file && fscanf(file, "%llu", &number) == 1;
    if (file)
        fclose(file);
    if (found)
        *value = number;
    return found;
}

static uint64_t read_cache(const char *root, const struct version *version, const char *group)
{
    FILE *file = open_file(root, version->mount, group, "memory.stat");
    char line[256];
    uint64_t sum = 0;
    while (file && fgets(line, sizeof line, file))
        for (int i = 0; i < 2; i++)
            if (strncmp(line, version->cache[i], strlen(version->cache[i])) == 0)
                sum += strtoull(line + strlen(version->cache[i]), NULL, 10);
    if (file)
        fclose(file);
    return sum;
}

/* The least that `group` and those above it have left. */
static uint64_t free_of(const char *root, const struct version *version, char *group)
{
    uint64_t least = UINT64_MAX;
    for (;;) {
        uint64_t limit, usage;
        if (read_number(root, version, group, version->limit, &limit) && limit < INT64_MAX / 2 &&
            read_number(root, version, group, version->usage, &usage)) {
            uint64_t most = limit + read_cache(root, version, group);
            uint64_t left = most > usage ? most - usage : 0;
            left = left < limit ? left : limit;
            least = left < least ? left : least;
        }
        char *slash = strrchr(group, '/');
        if (!slash)
            return least;
        *slash = 0; /* in a container the path may be the host's, and nothing is found but at its mount */
    }
}

/* Is "memory" among the controllers of a line? */
static bool has_memory(const char *controllers, const char *end)
{
    for (const char *at = controllers; at < end;) {
        const char *comma = memchr(at, ',', (size_t)(end - at));
        const char *stop = comma ? comma : end;
        if (stop - at == 6 && memcmp(at, "memory", 6) == 0)
            return true;
        at = stop + 1;
    }
    return false;
}

uint64_t shm_cgroup_free(const char *root)
{
    char line[PATH_BYTES];
    uint64_t least = UINT64_MAX;
    root = root ? root : "";
    FILE *groups = open_file(root, "/proc/self", "", "cgroup");
    while (groups && fgets(line, sizeof line, groups)) { /* number:controllers:path */
        line[strcspn(line, "\n")] = 0;
        char *controllers = strchr(line, ':'), *path = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!path)
            continue;
        bool second = path == controllers + 1;
        if (!second && !has_memory(controllers + 1, path))
            continue;
        path++;
        if (strcmp(path, "/") == 0)
            *path = 0;
        uint64_t left = free_of(root, second ? &V2 : &V1, path);
        least = left < least ? left : least;
    }
    if (groups)
        fclose(groups);
    return least;
}
