/* Bytes of a shared segment that anybody may have written: the corpus of make fuzz once more, and a sweep over each
 * field of each shared struct, without libFuzzer.
 *
 *     test_hostile [CORPUS]       what the gate runs
 *     test_hostile --full         every item and value, now and at kill points
 *     test_hostile --count        each case in a process of its own: which fail, and how many
 */
#include "hostile.h"

#include <dirent.h>

static const char *corpus;
static unsigned long cases, failed;
static bool full, counts;

/* Every operation, those that end something last. */
static const unsigned char all_operations[] = {
    27, 16, 24, 25, 26, 4,  2,  3,  1, 8, 9, 10, 11, 14, 12, 15, 13, 21, 23, 17, 28, 5,  0,  0, 0,
    0,  32, 34, 34, 33, 35, 36, 37, 7, 6, 0, 18, 19, 35, 34, 33, 32, 20, 8,  0,  22, 29, 30, 31};

static void run_case(const char *what, const unsigned char *script, size_t len_bytes)
{
    cases++;
    if (!counts) {
        check_running = what;
        hostile_run(script, len_bytes);
        return;
    }
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        int quiet = open("/dev/null", O_WRONLY);
        dup2(quiet, 2);
        hostile_run(script, len_bytes);
        _exit(0);
    }
    int status = check_wait(pid);
    if (status) {
        failed++;
        printf("%s: status %x\n", what, (unsigned)status);
    }
}

/* A generator of our own: the same cases on every machine. */
static uint64_t random_state = 88172645463325252u;

static uint64_t random_next(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

/* One write to one field of one item, then everything. `point`: at that kill point; -1: at once. */
static void sweep_case(unsigned field, unsigned item, unsigned mode, int point)
{
    unsigned char script[16 + sizeof all_operations], *at = script;
    char what[100];
    *at++ = 0x80;
    *at++ = field & 0xFF;
    *at++ = (unsigned char)(field >> 8);
    *at++ = (unsigned char)item;
    *at++ = (unsigned char)(mode | (point >= 0 ? 8 : 0));
    if (mode == 7)
        *at++ = (unsigned char)random_next();
    for (int i = 0; i < (mode == 5 ? 8 : mode >= 4); i++)
        *at++ = (unsigned char)random_next();
    if (point >= 0) {
        *at++ = (unsigned char)point;
        *at++ = (unsigned char)random_next();
    }
    memcpy(at, all_operations, sizeof all_operations);
    snprintf(what, sizeof what, "%s of item %u, mode %u, kill point %s", hostile_fields[field].name, item,
             mode, point < 0 ? "none" : shm_kill_point_names[point]);
    run_case(what, script, (size_t)(at - script) + sizeof all_operations);
}

static void the_corpus_is_answered_with_a_status(void)
{
    DIR *folder = corpus ? opendir(corpus) : NULL;
    unsigned files = 0;
    if (!corpus)
        return;
    CHECK(folder);
    for (struct dirent *entry; (entry = readdir(folder));) {
        static unsigned char bytes[65536];
        char path[1024];
        if (entry->d_name[0] == '.')
            continue;
        snprintf(path, sizeof path, "%s/%s", corpus, entry->d_name);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        ssize_t len = read(fd, bytes, sizeof bytes);
        CHECK(fd >= 0 && len >= 0);
        close(fd);
        run_case(path, bytes, (size_t)len);
        files++;
    }
    closedir(folder);
    CHECK(files >= 24); /* it is there */
}

static void a_sound_system_does_everything_without_a_complaint(void)
{
    memset(hostile.statuses, 0, sizeof hostile.statuses);
    hostile_run(all_operations, sizeof all_operations);
    CHECK_EQ(hostile.statuses[-SHM_CORRUPTED], 0);
    CHECK(hostile.statuses[0] > 50);
}

static void each_field_of_each_struct_may_hold_anything(void)
{
    for (unsigned field = 0; field < HOSTILE_FIELDS; field++) {
        unsigned items = hostile_items_count[hostile_fields[field].of];
        for (unsigned item = 0; item < items; item += full || items < 2 ? 1 : (items + 1) / 2)
            for (unsigned mode = 0; mode < 8; mode++)
                for (int again = 0; again < (full && mode >= 4 ? 4 : 1); again++)
                    sweep_case(field, item, mode, -1);
    }
}

static void a_field_may_change_between_two_steps(void)
{
    for (unsigned field = 0; field < HOSTILE_FIELDS; field++) {
        unsigned items = hostile_items_count[hostile_fields[field].of];
        for (int point = 0; point < SHM_KILL_POINT_COUNT; point += full ? 1 : 1 + (int)(random_next() % 16))
            sweep_case(field, (unsigned)(random_next() % items), (unsigned)(random_next() % 8), point);
    }
}

int main(int count, char **arguments)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (int i = 1; i < count; i++) {
        full |= strcmp(arguments[i], "--full") == 0;
        counts |= strcmp(arguments[i], "--count") == 0;
        if (arguments[i][0] != '-')
            corpus = arguments[i];
    }
    hostile_open();
    hostile_seconds = counts ? 2 : 10;
    RUN(a_sound_system_does_everything_without_a_complaint);
    RUN(the_corpus_is_answered_with_a_status);
    RUN(each_field_of_each_struct_may_hold_anything);
    RUN(a_field_may_change_between_two_steps);
    printf("%lu cases, %lu failed\n", cases, failed);
    return failed != 0;
}
