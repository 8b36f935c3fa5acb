// The digest of the sources this library was built from, read back through ctypes.
#include "build_digest.h"

extern "C" __attribute__((visibility("default"))) const char* d2det_build_digest() {
  return D2DET_BUILD_DIGEST;
}
