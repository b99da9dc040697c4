// The kernels for any processor: 16-byte vectors are SSE2 on x86-64 and NEON on aarch64.
#define CMSLAP_ISA portable
#define CMSLAP_VECTOR_BYTES 16
#ifdef __aarch64__
#define CMSLAP_VECTOR_REGISTERS 32
#else
#define CMSLAP_VECTOR_REGISTERS 16
#endif
#include "table.h"
