// Memory and a view of it, for programs that call the kernels without PyTorch.
#pragma once
#include <algorithm>
#include <random>
#include <vector>

#include "kernels.h"

constexpr int64_t B = 2, H = 3;

struct Tensor {
    std::vector<float> data;
    rsattn::View view;
    Tensor(int64_t heads, int64_t rows, int64_t width) : data(B * heads * rows * width) {
        const int64_t size[] = {B, heads, rows, width}, stride[] = {heads * rows * width, rows * width, width, 1};
        view.data = data.data();
        std::copy(size, size + 4, view.size);
        std::copy(stride, stride + 4, view.stride);
    }
    const float* row(int64_t b, int64_t h, int64_t i) const {
        return data.data() + b * view.stride[0] + h * view.stride[1] + i * view.stride[2];
    }
    void fill(std::mt19937& generator) {
        std::normal_distribution<float> normal;
        for (float& x : data) x = normal(generator);
    }
};
