// The kernels on a GPU and their launches; one library has machine code for several architectures.
#include <cuda.h>
#include <cuda_runtime.h>
#include <dlfcn.h>

#include <climits>

#include "kernels.h"
#include "sm90.h"

// CMake defines RSATTN_CUDA_ARCHS, a string such as "80;90a", and RSATTN_HAS_SM90A, 1 or 0.

namespace rsattn::cuda {
namespace {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
template <class Element, int WIDTH>
using Stream = Stream90<Element, WIDTH>;
#else
template <class Element, int WIDTH>
using Stream = Stream80<Element, WIDTH>;
#endif

template <class Kernel>
struct StreamOf {
    using type = void;
};
template <template <class, int, bool> class Kernel, class Element, int WIDTH, bool EXTRAS>
struct StreamOf<Kernel<Element, WIDTH, EXTRAS>> {
    using type = Stream<Element, WIDTH>;
};

template <class Kernel>
__global__ void __launch_bounds__(Kernel::BLOCK_THREADS, Kernel::BLOCKS_RESIDENT)
    kernel(const __grid_constant__ typename Kernel::Parameters parameters) {
    Kernel::template run<typename StreamOf<Kernel>::type>(parameters);
}

std::string said(cudaError_t error) { return error == cudaSuccess ? "" : cudaGetErrorString(error); }

// PyTorch's current device and stream do not change.
class OnDevice {
public:
    explicit OnDevice(int device) {
        fault = cudaGetDevice(&before_);
        if (fault == cudaSuccess && before_ != device) fault = cudaSetDevice(device);
        changed_ = fault == cudaSuccess && before_ != device;
    }
    ~OnDevice() {
        if (changed_) cudaSetDevice(before_);
    }
    cudaError_t fault;

private:
    int before_ = 0;
    bool changed_ = false;
};

template <class Kernel>
std::string launch(const Gpu& gpu, int64_t blocks, int threads, int shared_bytes,
                   const typename Kernel::Parameters& parameters) {
    if (blocks > INT_MAX) return "take fewer than 2^31 blocks";
    const OnDevice on(gpu.device);
    if (on.fault != cudaSuccess) return said(on.fault);
    // The limit is the same for every call, because another thread may be starting this kernel too.
    const cudaError_t fault =
        cudaFuncSetAttribute(kernel<Kernel>, cudaFuncAttributeMaxDynamicSharedMemorySize, gpu.shared_memory);
    if (fault != cudaSuccess) return said(fault);
    kernel<Kernel><<<unsigned(blocks), threads, shared_bytes, static_cast<cudaStream_t>(gpu.stream)>>>(parameters);
    return said(cudaGetLastError());
}

// The driver's function, looked up by name so that the library loads without a driver.
std::string encode(TensorMap& map, const View& view) {
    using Encode = decltype(&cuTensorMapEncodeTiled);
    static const Encode encode_tiled = [] {
        void* found = nullptr;
        cudaDriverEntryPointQueryResult result;
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result);
        return reinterpret_cast<Encode>(result == cudaDriverEntryPointSuccess ? found : nullptr);
    }();
    if (encode_tiled == nullptr) return "need a driver for CUDA 12.0 or later on this GPU";
    cuuint64_t size[4], stride[3];
    for (int d = 0; d < 4; ++d) size[d] = cuuint64_t(view.size[3 - d]);
    // The stride of a dimension of size 1 is never used, but it has to be valid.
    for (int d = 0; d < 3; ++d)
        stride[d] = cuuint64_t(view.size[2 - d] == 1 ? view.size[3] : view.stride[2 - d]) * 2;
    const cuuint32_t box[4] = {PANEL, ROWS, 1, 1}, step[4] = {1, 1, 1, 1};
    const CUresult result = encode_tiled(
        &map, view.type == Type::float16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 4,
        view.data, size, stride, box, step, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
        CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (result == CUDA_SUCCESS) return "";
    return "could not describe a tensor to the copy engine: CUDA error " + std::to_string(result);
}

int attribute(cudaDeviceAttr which, int device) {
    int value = 0;
    cudaDeviceGetAttribute(&value, which, device);
    return value;
}

int capability(int device) {
    return 10 * attribute(cudaDevAttrComputeCapabilityMajor, device) +
           attribute(cudaDevAttrComputeCapabilityMinor, device);
}

// PyTorch's function for its current stream, looked up in the library of a PyTorch built for CUDA, because this library
// also builds and loads with a PyTorch without CUDA.
using CurrentStream = int32_t (*)(int32_t device, void** stream);
CurrentStream current_stream() {
    static const CurrentStream found = [] {
        void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
        return reinterpret_cast<CurrentStream>(
            library ? dlsym(library, "aoti_torch_get_current_cuda_stream") : nullptr);
    }();
    return found;
}

}  // namespace
}  // namespace rsattn::cuda

#include "launch.h"

namespace rsattn::cuda {

std::string build() {
    return std::to_string(CUDART_VERSION / 1000) + "." + std::to_string(CUDART_VERSION % 1000 / 10) + " " +
           RSATTN_CUDA_ARCHS;
}

std::string missing(int device) {
    if (current_stream() == nullptr) return "this PyTorch is not built for CUDA";
    cudaFuncAttributes attributes;
    const OnDevice on(device);
    std::string fault = said(on.fault);
    // Fails if the library has neither machine code nor PTX for this GPU.
    if (fault.empty()) fault = said(cudaFuncGetAttributes(&attributes, kernel<AddBestHead>));
    if (fault.empty()) return "";
    return "the CUDA kernels were built with CUDA " + build() + ", and this GPU, of compute capability " +
           std::to_string(capability(device) / 10) + "." + std::to_string(capability(device) % 10) +
           ", cannot run them: " + fault;
}

Gpu gpu(int device) {
    Gpu found;
    found.device = device;
    found.sm90 = RSATTN_HAS_SM90A && capability(device) == 90;
    found.shared_memory = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    if (current_stream() != nullptr) current_stream()(device, &found.stream);
    return found;
}

}  // namespace rsattn::cuda
