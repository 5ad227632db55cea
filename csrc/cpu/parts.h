// The division of a head's query rows.
#pragma once
#include "pack.h"

namespace rsattn {
namespace {

// Equal parts of whole register tiles. Their number does not depend on the number of threads. Sums over rows are added
// in the order of the parts, so they have the same bits for any number of threads.
struct Parts {
    int64_t rows, count;
    Parts(int64_t length, int64_t rows_at_least, int64_t count_at_most) {
        const int64_t wanted = divide_up(length, rows_at_least);
        rows = round_up(divide_up(length, wanted < count_at_most ? wanted : count_at_most), TILE_ROWS);
        count = divide_up(length, rows);
    }
    int64_t end(int64_t part, int64_t length) const { return (part + 1) * rows < length ? (part + 1) * rows : length; }
};

// The tasks of a call: (sample, group of heads, part) in order. The number of heads in a group affects only how memory
// is read, never a result: as many as fit in `cache` with `bytes` of packed operands each, and few enough that every
// thread has work.
struct Tasks {
    int64_t heads, parts, group, groups, count;

    Tasks(int64_t samples, int64_t heads, int64_t parts, int64_t bytes, int64_t cache) : heads(heads), parts(parts) {
        group = MOST_HEADS;
        while (group > 1 && (group * bytes > cache || samples * divide_up(heads, group) * parts < 4 * threads()))
            --group;
        groups = divide_up(heads, group);
        count = samples * groups * parts;
    }
    HeadGroup heads_of(int64_t task) const {
        const int64_t b = task / parts / groups, first = task / parts % groups * group;
        return {b, first, first + group < heads ? group : heads - first};
    }
};

}  // namespace
}  // namespace rsattn
