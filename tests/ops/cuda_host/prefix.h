// Included before each kernel file when it is compiled for the processor: after torch's headers,
// the two names under which ops are registered are replaced, so that the emulated kernels live
// beside the real ones, as the CPU kernels of `d2det_emulated`.
#pragma once

#define USE_CUDA
#include <cuda_runtime.h>

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/Dispatch_v2.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>

#define d2det_ops d2det_emulated
#define CUDA CPU
