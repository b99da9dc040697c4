// Maps as the 16-bit words that kernels read and write, eight elements in 16 bytes at a time.
#pragma once

#include "ptx.h"

namespace cmslap::cuda {

inline const uint16_t* halves(const void* map) { return static_cast<const uint16_t*>(map); }
inline uint16_t* halves(void* map) { return static_cast<uint16_t*>(map); }

template <class T>
DEVICE void unpack_eight(const uint4& packed, float (&values)[8]) {
  const uint32_t pairs[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 pair = unpack<T>(pairs[i]);
    values[2 * i] = pair.x;
    values[2 * i + 1] = pair.y;
  }
}

template <class T>
DEVICE uint4 pack_eight(const float (&values)[8]) {
  return make_uint4(pack<T>(values[0], values[1]), pack<T>(values[2], values[3]), pack<T>(values[4], values[5]),
                    pack<T>(values[6], values[7]));
}

template <class T>
DEVICE void load_eight(const uint16_t* from, float (&values)[8]) {
  unpack_eight<T>(load_16(from), values);
}

template <class T>
DEVICE void store_eight(uint16_t* to, const float (&values)[8]) {
  store_16(to, pack_eight<T>(values));
}

}  // namespace cmslap::cuda
