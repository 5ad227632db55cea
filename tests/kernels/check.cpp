// The portable kernels against explicit sums in float64, without Python, for processors in an emulator:
//
//   aarch64-linux-gnu-g++ -O3 -std=gnu++17 -ffp-contract=fast -fno-math-errno -fno-trapping-math -Wno-psabi -static
//       -DRSATTN_VARIANT=portable -Icsrc/cpu tests/kernels/check.cpp csrc/cpu/variant.cpp -o /tmp/check
//   qemu-aarch64-static /tmp/check
//
// Prints the largest errors of each shape; exits with 1 if one exceeds 1e-5, float32's rounding of sums of up to 300
// terms of size up to 10.
#include <cmath>
#include <cstdio>

#include "tensor.h"

namespace rsattn {
extern const Kernels kernels_portable;
void parallel(int64_t tasks, int64_t, const void* context, Body body) {
    body(context, 0, tasks / 2);
    body(context, tasks / 2, tasks);
}
int64_t threads() { return 2; }
}  // namespace rsattn
using namespace rsattn;

constexpr float SCALE = 0.15f;

double dot(const double* a, const float* b, int64_t count) {
    double sum = 0;
    for (int64_t e = 0; e < count; ++e) sum += a[e] * b[e];
    return sum;
}

void worst(double& error, double a, double b) { error = std::max(error, std::fabs(a - b)); }

bool check(int64_t N, int64_t M, int64_t E) {
    std::mt19937 generator;
    Tensor query(H, N, E), key(H, M, E), value(H, M, E), output(H, N, E), grad(H, N, E), grad_best(1, N, E);
    Tensor grad_query(H, N, E), grad_key(H, M, E), grad_value(H, M, E), mask(H, N, M), grad_mask(H, N, M);
    for (Tensor* tensor : {&query, &key, &value, &mask, &grad, &grad_best}) tensor->fill(generator);
    mask.view.size[0] = grad_mask.view.size[0] = 1;  // all samples share it
    std::vector<float> statistics(B * H * 2 * N), norms(B * H), received(B * H * M);
    std::vector<int64_t> best(B);

    ForwardCall forward;
    forward.query = query.view, forward.key = key.view, forward.value = value.view, forward.output = output.view;
    forward.mask = mask.view, forward.received = received.data();
    forward.scale = SCALE, forward.statistics = statistics.data(), forward.norms = norms.data();
    forward.best_head = best.data();
    kernels_portable.forward(forward);
    BackwardCall backward;
    static_cast<Attention&>(backward) = forward;
    backward.grad_output = grad.view, backward.grad_best = grad_best.view;
    backward.grad_query = grad_query.view, backward.grad_key = grad_key.view, backward.grad_value = grad_value.view;
    backward.grad_mask = grad_mask.view;
    kernels_portable.backward(backward);

    double errors[7] = {};
    std::vector<double> slopes(H * N * M);
    for (int64_t b = 0; b < B; ++b)
        for (int64_t h = 0; h < H; ++h) {
            std::vector<double> columns(M), dk(M * E), dv(M * E);
            for (int64_t i = 0; i < N; ++i) {
                const std::vector<double> q(query.row(b, h, i), query.row(b, h, i) + E);
                std::vector<double> p(M), g(E), o(E), dq(E);
                double sum = 0, delta = 0;
                for (int64_t j = 0; j < M; ++j)
                    sum += p[j] = std::exp(SCALE * dot(q.data(), key.row(b, h, j), E) + mask.row(0, h, i)[j]);
                for (int64_t j = 0; j < M; ++j) columns[j] += p[j] /= sum;
                for (int64_t e = 0; e < E; ++e) {
                    for (int64_t j = 0; j < M; ++j) o[e] += p[j] * value.row(b, h, j)[e];
                    g[e] = grad.row(b, h, i)[e] + (best[b] == h ? grad_best.row(b, 0, i)[e] : 0.0f);
                    delta += g[e] * o[e];
                    worst(errors[0], o[e], output.row(b, h, i)[e]);
                }
                for (int64_t j = 0; j < M; ++j) {
                    const double own = p[j] * (dot(g.data(), value.row(b, h, j), E) - delta), slope = SCALE * own;
                    slopes[(h * N + i) * M + j] += own;
                    for (int64_t e = 0; e < E; ++e) {
                        dq[e] += slope * key.row(b, h, j)[e];
                        dk[j * E + e] += slope * q[e];
                        dv[j * E + e] += p[j] * g[e];
                    }
                }
                for (int64_t e = 0; e < E; ++e) worst(errors[2], dq[e], grad_query.row(b, h, i)[e]);
            }
            worst(errors[1], *std::max_element(columns.begin(), columns.end()), norms[b * H + h]);
            for (int64_t j = 0; j < M; ++j) worst(errors[5], columns[j], received[(b * H + h) * M + j]);
            for (int64_t j = 0; j < M; ++j)
                for (int64_t e = 0; e < E; ++e) {
                    worst(errors[3], dk[j * E + e], grad_key.row(b, h, j)[e]);
                    worst(errors[4], dv[j * E + e], grad_value.row(b, h, j)[e]);
                }
        }
    for (int64_t k = 0; k < H * N * M; ++k) worst(errors[6], slopes[k], grad_mask.data[k]);
    std::printf("N %lld, M %lld, E %lld: output %.1e, norm %.1e, dQ %.1e, dK %.1e, dV %.1e, received %.1e, mask %.1e\n",
                (long long)N, (long long)M, (long long)E, errors[0], errors[1], errors[2], errors[3], errors[4],
                errors[5], errors[6]);
    return *std::max_element(errors, errors + 7) < 1e-5;
}

int main() {
    bool right = true;
    for (const auto& shape : {std::vector<int64_t>{197, 197, 64}, {7, 300, 17}, {65, 33, 80}, {1, 1, 1}})
        right = check(shape[0], shape[1], shape[2]) && right;
    return right ? 0 : 1;
}
