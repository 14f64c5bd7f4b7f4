#!/bin/sh
# Compiles and links the program with the feature `cuda`, on a machine with or without a GPU.
#
#   tests/cuda/check.sh [FOLDER]     FOLDER keeps CUDA, the stub and the build (default: target/cuda)
#
# CUDA's compiler and libraries come from the wheels of PyPI. What only a driver has, libcuda.so, is
# replaced by a stub for the linker. CUDA_COMPUTE_CAP is the generation of the GPU (default: 90, Hopper).
set -eu
cd "$(dirname "$0")/../.."
folder=$(mkdir -p "${1:-target/cuda}" && cd "${1:-target/cuda}" && pwd)
release=13.0

cuda=$folder/wheels/nvidia/cu13
if [ ! -x "$cuda/bin/nvcc" ]; then
	command -v pip3 >/dev/null || { echo "pip3 is missing: apt-get install python3-pip" >&2; exit 1; }
	pip3 install --quiet --target "$folder/wheels" \
		"nvidia-cuda-nvcc==$release.*" "nvidia-cuda-crt==$release.*" "nvidia-nvvm==$release.*" \
		"nvidia-cuda-cccl==$release.*" "nvidia-cuda-runtime==$release.*" "nvidia-cublas==$release.*" \
		"nvidia-curand==10.4.0.*" "nvidia-cuda-nvrtc==$release.*"
fi
# The wheels name libraries by version only, and know no lib64.
ln -sfn lib "$cuda/lib64"
for library in cublas cublasLt curand nvrtc cudart; do
	versioned=$(find "$cuda/lib" -name "lib$library.so.*" | sort | head -n 1)
	ln -sf "$(basename "$versioned")" "$cuda/lib/lib$library.so"
done

# Every function of the driver that cudarc may call, empty.
stubs=$folder/stubs
mkdir -p "$stubs"
cargo fetch --locked --quiet
manifest=$(cargo metadata --locked --format-version 1 --features cuda |
	grep -o '"manifest_path":"[^"]*/cudarc-[^"]*"' | head -n 1 | cut -d '"' -f 4)
sources=$(dirname "$manifest")/src/driver/sys
grep -rhoE 'fn cu[A-Z][A-Za-z0-9_]*' "$sources" | sort -u | sed 's/^fn \(.*\)$/void \1(void) {}/' >"$stubs/cuda.c"
[ -s "$stubs/cuda.c" ] || { echo "no driver functions in $sources" >&2; exit 1; }
cc -shared -fPIC -Wno-builtin-declaration-mismatch -Wl,-soname,libcuda.so.1 -o "$stubs/libcuda.so" "$stubs/cuda.c"
ln -sf libcuda.so "$stubs/libcuda.so.1"

export CUDA_HOME="$cuda" CUDA_PATH="$cuda" CUDA_ROOT="$cuda" PATH="$cuda/bin:$PATH"
export CUDA_COMPUTE_CAP="${CUDA_COMPUTE_CAP:-90}" NVCC_CCBIN="${NVCC_CCBIN:-g++}"
export LIBRARY_PATH="$stubs:$cuda/lib${LIBRARY_PATH:+:$LIBRARY_PATH}"
cargo build --release --locked --features cuda --target-dir "$folder/build"
ls -l "$folder/build/release/vitscope"
