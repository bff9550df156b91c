/* Chains: steps that are computed together, one band of the last one's plane after another. What lies between two of them is then
 * in the second cache when it is read, and never goes to memory: only a window of it is kept, which moves along the plane. A place
 * is a number of values from where a plane begins; before it and behind the plane are zeros. A step's results are made in units,
 * the same ones whatever the bands and threads are: rows, or pieces of a convolution's plane. */

enum { LONGEST = 12, CHAIN_PARTS = 4 };

typedef struct {
    int64_t begin, end;
} span;

typedef struct { /* of a step: so many units are done, and have to be next; places of the window that they are in */
    int64_t done, until, low, high;
} progress;

static int by_rows(const step *s) { return s->kind == SPLIT || s->kind == STRIDED; }

static int64_t units_of(const network *net, const step *s) {
    const layout *to = net->layouts + s->to;
    return by_rows(s) ? to->shape.height : quotient_up(vectors_of(to), MOST_OF_CHAINS);
}

/* Where a unit begins. */
static int64_t place_of(const network *net, const step *s, int64_t unit) {
    const layout *to = net->layouts + s->to;
    return by_rows(s) ? unit * to->row : vectors_of(to) * unit / units_of(net, s) * LANES;
}

/* How many units there are up to a place; the last one may end behind it. */
static int64_t units_to(const network *net, const step *s, int64_t place) {
    const layout *to = net->layouts + s->to;
    int64_t units = units_of(net, s);
    int64_t found = by_rows(s) ? quotient_up(place, to->row) : quotient_up(quotient_up(place, LANES) * units, vectors_of(to));
    return found < 0 ? 0 : found < units ? found : units;
}

/* The unit that a place is in. */
static int64_t unit_at(const network *net, const step *s, int64_t place) {
    const layout *to = net->layouts + s->to;
    if (place <= 0) return 0;
    return by_rows(s) ? place / to->row : quotient_up((place / LANES + 1) * units_of(net, s), vectors_of(to)) - 1;
}

/* What a step reads for its units `begin` to `end`. */
static span read_for(const network *net, const step *s, int64_t begin, int64_t end) {
    const layout *from = net->layouts + s->from, *to = net->layouts + s->to;
    int64_t stride = by_rows(s) ? s->stride * from->row : 0;
    if (s->kind == SPLIT) return (span){begin * stride, end * stride};
    step own = plain(s);
    int64_t down = (own.kernel_height - 1) * (own.spread + 1) - own.pad;
    int64_t right = (own.kernel_width - 1) * (own.spread + 1) - own.pad - own.left;
    int64_t before = floored(-own.pad, own.stride) * from->row + floored(-own.pad - own.left, across(&own));
    int64_t behind = floored(down, own.stride) * from->row + floored(right, across(&own));
    if (s->kind == STRIDED)
        return (span){begin * stride + before, (end - 1) * stride + across(s) * (to->shape.width - 1) + behind + 1};
    return (span){place_of(net, s, begin) + before, place_of(net, s, end) + behind};
}

/* Where the steps of a chain stand before unit `begin` of the last one. */
static void begun(const network *net, const step *steps, const chain *c, int64_t begin, progress *at) {
    at[c->steps - 1].done = begin;
    for (int64_t k = c->steps - 2; k >= 0; k--) {
        int64_t low = read_for(net, steps + k + 1, at[k + 1].done, at[k + 1].done).begin;
        at[k].done = unit_at(net, steps + k, low);
        int64_t place = place_of(net, steps + k, at[k].done);
        at[k].low = floored(low < place ? low : place, LANES) * LANES;
    }
}

/* Where they have to come, for units of the last one up to `until`. */
static void aimed(const network *net, const step *steps, const chain *c, int64_t until, progress *at) {
    at[c->steps - 1].until = until;
    for (int64_t k = c->steps - 2; k >= 0; k--) {
        span read = read_for(net, steps + k + 1, at[k + 1].done, at[k + 1].until);
        int64_t units = units_to(net, steps + k, read.end);
        at[k].until = units > at[k].done ? units : at[k].done;
        int64_t done = place_of(net, steps + k, at[k].done);
        int64_t made = place_of(net, steps + k, at[k].until);
        int64_t low = floored(read.begin < done ? read.begin : done, LANES) * LANES;
        if (low > at[k].low) at[k].low = low;
        at[k].high = read.end > made ? read.end : made;
    }
}

/* The unit of the last step that band `i` begins with. */
static int64_t band(const network *net, const step *steps, const chain *c, int64_t i) {
    return units_of(net, steps + c->steps - 1) * i / c->bands;
}

/* Numbers of a plane that each window has to hold, wherever a part begins. */
static void windows_of(const network *net, const step *steps, const chain *c, int64_t *held) {
    progress at[LONGEST];
    for (int64_t k = 0; k < c->steps - 1; k++) held[k] = 0;
    for (int64_t i = 0; i < c->bands; i++) {
        begun(net, steps, c, band(net, steps, c, i), at);
        aimed(net, steps, c, band(net, steps, c, i + 1), at);
        for (int64_t k = 0; k < c->steps - 1; k++)
            if (at[k].high - at[k].low > held[k]) held[k] = at[k].high - at[k].low;
    }
}

/* Whether nothing but the step behind reads what a step makes, and that in no other way than as what it computes from. */
static int passed_on(const network *net, int64_t i) {
    const step *steps = net->steps, *made = steps + i, *next = made + 1;
    if (next->from != made->to || next->residual == made->to + 1 || next->to == made->to || made->residual) return 0;
    for (const step *s = next + 1; s < steps + net->step_count; s++) {
        if (s->from == made->to || s->residual == made->to + 1) return 0;
        if (s->to == made->to && s->kind != OUTPUT) return s->kind != MOVE; /* a move may leave some of it */
    }
    return 1;
}

static int joins_chains(const network *net, const step *s) {
    return (s->kind == CONVOLUTION || by_rows(s)) && net->layouts[s->to].shape.height;
}

/* Steps as a chain, in about as few bands as let its windows stay in the second cache; of no bands: they are none. It is worth it
 * where more lies inside of it than it reads and makes. */
static chain chain_of(const network *net, int64_t i, int64_t count) {
    const step *steps = net->steps + i, *last = steps + count - 1;
    chain made = {.steps = count};
    if (last->kind == SPLIT || last->to == steps->from) return made;
    double inside = 0, outside = bytes_of(net, steps->from) + bytes_of(net, last->to);
    if (last->residual) outside += bytes_of(net, last->residual - 1);
    for (int64_t k = 0; k < count; k++) {
        if (!joins_chains(net, steps + k) || steps[k].residual == last->to + 1) return made;
        if (k < count - 1 && !passed_on(net, i + k)) return made;
        if (k < count - 1) inside += bytes_of(net, steps[k].to);
    }
    if (inside < outside) return made;
    int64_t units = units_of(net, last), held[LONGEST];
    for (int64_t bands = 2; bands < units + units / 2 && units <= LARGEST; bands += bands / 2) {
        int64_t even = quotient_up(bands, CHAIN_PARTS) * CHAIN_PARTS, bytes = 0;
        made.bands = even < units ? even : units;
        windows_of(net, steps, &made, held);
        for (int64_t k = 0; k < count - 1; k++)
            bytes += net->layouts[steps[k].to].shape.channels * rounded(held[k]) * (int64_t)sizeof(number);
        if (bytes <= FAR) return made;
    }
    made.bands = 0;
    return made;
}

/* Whether a step's phases are read by a convolution of single channels alone, which needs none: every second value will do. */
static int needs_no_phases(const network *net, int64_t i) {
    const step *s = net->steps + i, *next = s + 1;
    if (s->kind != SPLIT || next->kind != CONVOLUTION || !passed_on(net, i) || next->residual) return 0;
    shape in = net->layouts[s->from].shape, out = net->layouts[next->to].shape;
    int64_t down = (next->kernel_height - 1) * (next->spread + 1), right = (next->kernel_width - 1) * (next->spread + 1);
    return s->stride == 2 && across(s) == 2 && next->stride == 2 && across(next) == 2 && !next->transposed &&
           next->groups == in.channels && out.channels == in.channels && net->layouts[s->to].shape.channels == 4 * in.channels &&
           next->to != s->from && next->pad <= in.pad && next->pad + next->left <= in.pad && down - next->pad <= in.pad &&
           right - next->pad - next->left <= in.pad;
}

static void without_phases(network *net) {
    for (int64_t i = 0; i + 1 < net->step_count; i++) {
        if (!needs_no_phases(net, i)) continue;
        net->steps[i + 1].kind = STRIDED, net->steps[i + 1].from = net->steps[i].from;
        memmove(net->steps + i, net->steps + i + 1, sizeof *net->steps * (--net->step_count - i));
    }
}

/* Joins steps to chains so that as few bytes as can be go to memory between them; what lies inside of them gets windows. */
static int linked(network *net) {
    without_phases(net);
    double *least = calloc(net->step_count + 1, sizeof *least);
    chain *ending = calloc(net->step_count + 1, sizeof *ending); /* by the step behind it */
    if (!least || !ending) {
        free(least), free(ending);
        return 0;
    }
    for (int64_t end = 1; end <= net->step_count; end++) {
        double beyond = bytes_beyond(net, net->steps + end - 1);
        least[end] = least[end - 1] + beyond, ending[end] = (chain){.steps = 1};
        for (int64_t count = 2; beyond < least[end] && count <= end && count <= LONGEST; count++) {
            if (!passed_on(net, end - count)) break;
            if (least[end - count] + beyond >= least[end]) continue;
            chain found = chain_of(net, end - count, count);
            if (found.bands) least[end] = least[end - count] + beyond, ending[end] = found;
        }
    }
    for (int64_t end = net->step_count; end > 0; end -= ending[end].steps) {
        int64_t count = ending[end].steps, first = end - count, held[LONGEST], size = 0;
        net->chains[first] = ending[end];
        if (count == 1) continue;
        windows_of(net, net->steps + first, ending + end, held);
        for (int64_t k = 0; k < count - 1; k++) {
            layout window = laid_out(net->layouts[net->steps[first + k].to].shape);
            window.first = 0, window.plane = rounded(held[k]), window.size = 0;
            size += window.shape.channels * window.plane;
            net->steps[first + k].to = net->steps[first + k + 1].from = net->activation_count;
            net->layouts[net->activation_count++] = window;
        }
        if (size > net->windows) net->windows = size;
    }
    char *used = calloc(net->activation_count, 1);
    for (const step *s = net->steps; used && s < net->steps + net->step_count; s++) {
        used[s->from] = used[s->to] = 1;
        if (s->residual) used[s->residual - 1] = 1;
    }
    for (int64_t i = 0; used && i < net->activation_count; i++)
        if (!used[i]) net->layouts[i].size = 0;
    int done = used != NULL;
    free(least), free(ending), free(used);
    return done;
}

/* Makes the units of one step of a chain that it has to. */
static void continued(const network *net, int64_t i, number **activations, const progress *at) {
    const step *s = net->steps + i;
    const layer *l = net->layers + i;
    const layout *from = net->layouts + s->from, *to = net->layouts + s->to;
    if (s->kind == SPLIT) {
        split(s, from, to, activations[s->from], activations[s->to], 0, from->shape.channels, at->done, at->until);
        return;
    }
    if (s->kind == STRIDED) {
        strided(s, l, from, to, activations[s->from], activations[s->to], 0, to->shape.channels, at->done, at->until);
        return;
    }
    for (int64_t unit = at->done; unit < at->until; unit++) {
        int64_t first = place_of(net, s, unit) / LANES, vectors = place_of(net, s, unit + 1) / LANES - first;
        int64_t pieces = quotient_up(vectors, most_of(l->rows));
        for (int64_t p = 0; p < pieces; p++) {
            int64_t v = vectors * p / pieces;
            piece_of(net, s, l, activations, first + v, vectors * (p + 1) / pieces - v, 0, groups_of(l));
        }
    }
}

typedef struct { /* where a part of a chain has come to, and in which memory */
    progress at[LONGEST];
    number *windows[LONGEST];
    int ended;
} stand;

/* Begins with band `begin` in windows of its own, in `memory`. */
static void entered(const network *net, int64_t i, number *memory, int64_t begin, stand *now) {
    const chain *c = net->chains + i;
    const step *steps = net->steps + i;
    begun(net, steps, c, band(net, steps, c, begin), now->at);
    for (int64_t k = 0; k < c->steps - 1; k++) {
        const layout *window = net->layouts + steps[k].to;
        now->windows[k] = memory;
        memory += window->shape.channels * window->plane;
        for (int64_t channel = 0; now->at[k].low < 0 && channel < window->shape.channels; channel++)
            memset(now->windows[k] + channel * window->plane, 0, sizeof(number) * -now->at[k].low);
    }
}

/* Goes on to where band `end` begins. */
static void chained(const network *net, int64_t i, number **activations, int64_t begin, int64_t end, stand *now) {
    const chain *c = net->chains + i;
    const step *steps = net->steps + i;
    for (int64_t b = begin; b < end; b++) {
        int64_t lows[LONGEST], last = c->steps - 1;
        for (int64_t k = 0; k < last; k++) lows[k] = now->at[k].low;
        aimed(net, steps, c, band(net, steps, c, b + 1), now->at);
        for (int64_t k = 0; k < last; k++) {
            const layout *window = net->layouts + steps[k].to;
            const progress *at = now->at + k;
            int64_t done = place_of(net, steps + k, at->done);
            int64_t made = place_of(net, steps + k, at->until);
            for (int64_t channel = 0; at->low > lows[k] && channel < window->shape.channels; channel++) {
                number *plane = now->windows[k] + channel * window->plane;
                memmove(plane, plane + (at->low - lows[k]), sizeof(number) * (done - at->low));
            }
            activations[steps[k].to] = now->windows[k] - at->low;
            continued(net, i + k, activations, at);
            for (int64_t channel = 0; at->high > made && channel < window->shape.channels; channel++)
                memset(now->windows[k] + channel * window->plane + made - at->low, 0, sizeof(number) * (at->high - made));
        }
        continued(net, i + last, activations, now->at + last);
        for (int64_t k = 0; k <= last; k++) now->at[k].done = now->at[k].until;
    }
}

typedef struct { /* a chain of one inference, in parts for several threads */
    const network *net;
    const workspace *space;
    int64_t first, parts; /* the step that begins it */
    stand stands[CHAIN_PARTS];
} chain_work;

/* A part goes on in the windows of the one before, if that has ended. */
static void chain_part(void *given, size_t part) {
    chain_work *w = given;
    const network *net = w->net;
    stand *now = w->stands + part;
    int64_t bands = net->chains[w->first].bands, begin = bands * (int64_t)part / w->parts;
    if (part && __atomic_load_n(&now[-1].ended, __ATOMIC_ACQUIRE))
        memcpy(now, now - 1, offsetof(stand, ended));
    else
        entered(net, w->first, w->space->windows + part * net->windows, begin, now);
    number **activations = w->space->activations + part * net->activation_count;
    chained(net, w->first, activations, begin, bands * ((int64_t)part + 1) / w->parts, now);
    __atomic_store_n(&now->ended, 1, __ATOMIC_RELEASE);
}
