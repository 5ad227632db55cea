// How a head's query rows are shared out.
#pragma once
#include "product.h"

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
};

}  // namespace
}  // namespace rsattn
