// The 16-bit numbers of maps, on the host.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace cmslap::cuda::model {

template <class To, class From>
To bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

inline float from_bfloat16(uint16_t word) { return bits<float>(uint32_t{word} << 16); }

inline uint16_t to_bfloat16(float value) {  // to nearest, ties to even
  if (std::isnan(value)) return 0x7fff;
  const uint32_t word = bits<uint32_t>(value);
  return static_cast<uint16_t>((word + 0x7fff + ((word >> 16) & 1)) >> 16);
}

inline float from_float16(uint16_t word) {
  const int exponent = word >> 10 & 31, mantissa = word & 1023;
  float magnitude;
  if (exponent == 31) {
    magnitude = mantissa == 0 ? INFINITY : NAN;
  } else if (exponent == 0) {
    magnitude = static_cast<float>(mantissa) * 0x1p-24f;
  } else {
    magnitude = bits<float>(static_cast<uint32_t>(exponent + 112) << 23 | static_cast<uint32_t>(mantissa) << 13);
  }
  return word >> 15 ? -magnitude : magnitude;
}

inline uint16_t to_float16(float value) {  // to nearest, ties to even
  if (std::isnan(value)) return 0x7fff;
  const float magnitude = std::fabs(value);
  uint32_t word;
  if (magnitude >= 65520.0f) {  // half a unit beyond the largest number
    word = 0x7c00;
  } else if (magnitude < 0x1p-14f) {  // a multiple of 2^-24, as adding 0.5 leaves it in the last bits of a float
    word = bits<uint32_t>(magnitude + 0.5f) - bits<uint32_t>(0.5f);
  } else {
    word = bits<uint32_t>(magnitude) - (112u << 23);  // exponent bias 127 to 15
    word = (word + 0xfff + ((word >> 13) & 1)) >> 13;
  }
  return static_cast<uint16_t>(word | (std::signbit(value) ? 0x8000 : 0));
}

}  // namespace cmslap::cuda::model
