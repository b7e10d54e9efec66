/* shm_models            the short form of every scene
 * shm_models --whole    the whole, hours at worst
 * shm_models --bugs     each injected bug must be found by its scene
 * shm_models [--bound N] [--bug NUMBER] SCENE...
 */
#include "scenes.h"

#include <stdio.h>
#include <string.h>

static const struct bug {
    const char *name, *scene;
    int bound;
    const char *failure;
} bugs[] = {
#include "bugs.inc"
};

enum { BUGS = sizeof bugs / sizeof bugs[0], STATES_MAX = 60000000 };

static const struct scene *scene_named(const char *name)
{
    for (int s = 0; s < model_scenes_count; s++)
        if (strcmp(name, model_scenes[s].name) == 0)
            return &model_scenes[s];
    return NULL;
}

/* As it is searched in the short form. */
static struct scene short_form(const struct scene *scene)
{
    struct scene less = *scene;
    if (scene->short_mortal)
        less.mortal = scene->short_mortal;
    return less;
}

static void print_bound(int bound)
{
    if (bound == MODEL_UNBOUNDED)
        printf("any switches ");
    else
        printf("%3d switches ", bound);
}

static bool search_scene(const struct scene *scene, int bound)
{
    struct result r = model_search(scene, bound, STATES_MAX, true);
    printf("%-17s %-52s ", scene->name, scene->what);
    print_bound(bound);
    printf("%9lu states %8lu ends %6.1f s  %s%s\n", r.states, r.ends, r.seconds,
           r.failed      ? "FAILS: "
           : r.exhausted ? "holds"
                         : "holds as far as it was searched",
           r.failed ? r.failure : "");
    fflush(stdout);
    return !r.failed;
}

static bool find_bugs(void)
{
    bool all_found = true;
    for (int b = 0; b < BUGS; b++) {
        const struct scene *scene = scene_named(bugs[b].scene);
        if (!scene)
            return false;
        model_bug = b + 1;
        struct scene less = short_form(scene);
        struct result r = model_search(&less, bugs[b].bound, STATES_MAX, false);
        bool found = r.failed && strstr(r.failure, bugs[b].failure);
        printf("%2d %-56s %-15s %9lu states %6.1f s  %s%s\n", b + 1, bugs[b].name, scene->name, r.states,
               r.seconds,
               found      ? "found: "
               : r.failed ? "FOUND AS ANOTHER: "
                          : "NOT FOUND",
               r.failed ? r.failure : "");
        fflush(stdout);
        all_found &= found;
    }
    return all_found;
}

int main(int count, char **words)
{
    bool whole = false, holds = true;
    int bound = -1, named = 0;
    for (int i = 1; i < count; i++) {
        if (strcmp(words[i], "--bugs") == 0)
            return find_bugs() ? 0 : 1;
        if (strcmp(words[i], "--whole") == 0) {
            whole = true;
        } else if (strcmp(words[i], "--bound") == 0 && i + 1 < count) {
            bound = atoi(words[++i]);
        } else if (strcmp(words[i], "--bug") == 0 && i + 1 < count) {
            model_bug = atoi(words[++i]);
        } else {
            const struct scene *scene = scene_named(words[i]);
            if (!scene) {
                fprintf(stderr, "no scene %s\n", words[i]);
                return 2;
            }
            holds &= search_scene(scene, bound >= 0 ? bound : scene->bound < 0 ? 0 : scene->bound);
            named++;
        }
    }
    for (int s = 0; named == 0 && s < model_scenes_count; s++) {
        const struct scene *scene = &model_scenes[s];
        struct scene less = short_form(scene);
        int b = whole ? scene->full : scene->bound;
        if (b >= 0)
            holds &= search_scene(whole ? scene : &less, b);
    }
    return holds ? 0 : 1;
}
