/* The scenes of the search: what each makes true, and what must hold at every state and every end. */
#ifndef MODEL_SCENES_H
#define MODEL_SCENES_H

#include "search.h"

extern const struct scene model_scenes[];
extern const int model_scenes_count;

#endif
