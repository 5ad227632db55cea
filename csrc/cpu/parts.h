// How a head's query rows are shared out.
#pragma once
#include "pack.h"

namespace rsattn {
namespace {

// Equal parts of whole register tiles. Their number does not depend on the number of threads: what is summed over rows
// is summed part by part in the parts' order, the same bits however they were shared out.
struct Parts {
    int64_t rows, count;
    Parts(int64_t length, int64_t rows_at_least, int64_t count_at_most) {
        const int64_t wanted = divide_up(length, rows_at_least);
        rows = round_up(divide_up(length, wanted < count_at_most ? wanted : count_at_most), TILE_ROWS);
        count = divide_up(length, rows);
    }
    int64_t end(int64_t part, int64_t length) const { return (part + 1) * rows < length ? (part + 1) * rows : length; }
};

// The work of a call: (sample, group of heads, part), one after the other. How many heads are a group decides only how
// memory is read, never a result: as many as `bytes` of packed operands a head leave room for in `cache`, and few
// enough that every thread has work.
struct Tasks {
    int64_t heads, parts, group, groups, count;

    Tasks(const View& query, int64_t parts, int64_t bytes, int64_t cache) : heads(query.size[1]), parts(parts) {
        group = MOST_HEADS;
        while (group > 1 && (group * bytes > cache || query.size[0] * divide_up(heads, group) * parts < 4 * threads()))
            --group;
        groups = divide_up(heads, group);
        count = query.size[0] * groups * parts;
    }
    HeadGroup heads_of(int64_t task) const {
        const int64_t b = task / parts / groups, first = task / parts % groups * group;
        return {b, first, first + group < heads ? group : heads - first};
    }
};

}  // namespace
}  // namespace rsattn
