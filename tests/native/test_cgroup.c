/* What is left to the control group, read from trees of files as the kernel makes them. */
#include "memory/cgroup.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "check.h"

static char root[64];

static void put(const char *path, const char *text)
{
    char full[512];
    snprintf(full, sizeof full, "%s%s", root, path);
    for (char *slash = strchr(full + strlen(root) + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = 0;
        mkdir(full, 0700);
        *slash = '/';
    }
    FILE *file = fopen(full, "w");
    CHECK(file != NULL);
    fputs(text, file);
    fclose(file);
}

static void open_root(void)
{
    strcpy(root, "/tmp/shmipc-cgroup-XXXXXX");
    CHECK(mkdtemp(root) != NULL);
}

static void close_root(void)
{
    char command[128];
    snprintf(command, sizeof command, "rm -r '%s'", root);
    CHECK_EQ(system(command), 0);
}

static void tightest_limit_of_the_groups_above_counts(void)
{
    open_root();
    CHECK_EQ(shm_cgroup_free(root), UINT64_MAX);
    put("/proc/self/cgroup", "0::/outer/inner\n");
    put("/sys/fs/cgroup/outer/inner/memory.max", "max\n");
    put("/sys/fs/cgroup/outer/inner/memory.current", "900\n");
    CHECK_EQ(shm_cgroup_free(root), UINT64_MAX);
    put("/sys/fs/cgroup/outer/memory.max", "1000\n");
    put("/sys/fs/cgroup/outer/memory.current", "900\n");
    CHECK_EQ(shm_cgroup_free(root), 100);
    put("/sys/fs/cgroup/outer/inner/memory.max", "950\n");
    CHECK_EQ(shm_cgroup_free(root), 50);
    put("/sys/fs/cgroup/outer/inner/memory.current", "1200\n");
    CHECK_EQ(shm_cgroup_free(root), 0);
    close_root();
}

static void page_cache_of_files_counts_as_free(void)
{
    open_root();
    put("/proc/self/cgroup", "0::/\n");
    put("/sys/fs/cgroup/memory.max", "1000\n");
    put("/sys/fs/cgroup/memory.current", "1000\n");
    put("/sys/fs/cgroup/memory.stat", "anon 5\nfile 700\nshmem 300\ninactive_file 250\nactive_file 150\n");
    CHECK_EQ(shm_cgroup_free(root), 400);
    close_root();
}

static void first_version_is_read_too_also_when_the_path_is_the_hosts(void)
{
    open_root();
    put("/proc/self/cgroup", "9:name=systemd:/\n4:cpu,memory:/of/the/host\n0::/\n");
    put("/sys/fs/cgroup/memory/memory.limit_in_bytes", "5000\n");
    put("/sys/fs/cgroup/memory/memory.usage_in_bytes", "3000\n");
    put("/sys/fs/cgroup/memory/memory.stat",
        "inactive_file 999\ntotal_inactive_file 100\ntotal_active_file 11\n");
    CHECK_EQ(shm_cgroup_free(root), 2111);
    put("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
    CHECK_EQ(shm_cgroup_free(root), UINT64_MAX);
    close_root();
}

int main(void)
{
    RUN(tightest_limit_of_the_groups_above_counts);
    RUN(page_cache_of_files_counts_as_free);
    RUN(first_version_is_read_too_also_when_the_path_is_the_hosts);
    return 0;
}
