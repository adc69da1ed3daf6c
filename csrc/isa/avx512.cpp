#define SK_ISA avx512
#include "isa/instantiate.h"
