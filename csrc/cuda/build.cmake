# The CUDA kernels, if there is an nvcc that can compile them. Without one only the rest is built.
#
# The environment variable RSATTN_CUDA_ARCHS sets the architectures: default "80;90a", "none" for no CUDA kernels. The
# first is also stored as PTX, which a driver compiles for later GPUs.

set(RSATTN_CUDA_ARCHS "$ENV{RSATTN_CUDA_ARCHS}")
if(RSATTN_CUDA_ARCHS STREQUAL "")
  set(RSATTN_CUDA_ARCHS "80;90a")
endif()
if(RSATTN_CUDA_ARCHS STREQUAL "none")
  return()
endif()
if(DEFINED ENV{CUDACXX})
  set(RSATTN_NVCC "$ENV{CUDACXX}")
endif()
find_program(RSATTN_NVCC nvcc HINTS "$ENV{CUDA_HOME}/bin" "$ENV{CUDA_PATH}/bin" PATHS /usr/local/cuda/bin)
if(NOT RSATTN_NVCC)
  message(STATUS "no nvcc: backend=\"cuda\" is left out")
  return()
endif()

list(GET RSATTN_CUDA_ARCHS 0 first)
set(has_sm90a 0)
set(code)
foreach(architecture IN LISTS RSATTN_CUDA_ARCHS)
  list(APPEND code -gencode=arch=compute_${architecture},code=sm_${architecture})
  if(architecture STREQUAL "90a")
    set(has_sm90a 1)
  endif()
endforeach()
list(APPEND code -gencode=arch=compute_${first},code=compute_${first})
set(nvcc "${RSATTN_NVCC}" -std=c++17 -O3 --threads 2 -ccbin "${CMAKE_CXX_COMPILER}" -Xcompiler=-fPIC,-fvisibility=hidden
    ${code})

# An nvcc that is too old for an architecture, for the C++ compiler or for the kernels (CUDA 12.5) is detected first,
# because a failure during the build would cost the CPU kernels too.
set(trial "${CMAKE_CURRENT_BINARY_DIR}/trial.cu")
file(WRITE "${trial}" "#include <cuda.h>
#include <cuda_runtime.h>
__global__ void nothing(const __grid_constant__ CUtensorMap map) {}
auto entry_point = cudaGetDriverEntryPointByVersion;
")
execute_process(COMMAND ${nvcc} -c "${trial}" -o "${trial}.o" RESULT_VARIABLE fault ERROR_VARIABLE words OUTPUT_QUIET)
get_filename_component(toolkit "${RSATTN_NVCC}" REALPATH)
get_filename_component(toolkit "${toolkit}" DIRECTORY)
find_library(RSATTN_CUDART cudart_static HINTS "${toolkit}/.." "${toolkit}/../targets/${CMAKE_SYSTEM_PROCESSOR}-linux"
             PATHS /usr/local/cuda PATH_SUFFIXES lib64 lib NO_DEFAULT_PATH)
if(fault OR NOT RSATTN_CUDART)
  message(WARNING "backend=\"cuda\" is left out: ${RSATTN_NVCC} cannot compile for ${RSATTN_CUDA_ARCHS} (set "
                  "RSATTN_CUDA_ARCHS to what it can), or has no libcudart_static.a beside it. ${words}")
  return()
endif()

set(cuda "${CMAKE_CURRENT_SOURCE_DIR}/csrc/cuda")
file(GLOB headers CONFIGURE_DEPENDS "${cuda}/*.h" "${cuda}/../calls.h")
set(object "${CMAKE_CURRENT_BINARY_DIR}/cuda_kernels.o")
add_custom_command(
  OUTPUT "${object}" DEPENDS "${cuda}/kernels.cu" ${headers}
  COMMAND ${nvcc} "-DRSATTN_CUDA_ARCHS=\"${RSATTN_CUDA_ARCHS}\"" -DRSATTN_HAS_SM90A=${has_sm90a}
          -c "${cuda}/kernels.cu" -o "${object}"
  COMMENT "CUDA kernels for ${RSATTN_CUDA_ARCHS}" VERBATIM)
target_sources(_C PRIVATE "${cuda}/operators.cpp" "${object}")
target_link_libraries(_C PRIVATE "${RSATTN_CUDART}" dl rt pthread)
