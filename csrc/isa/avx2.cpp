#define SK_ISA avx2
#include "isa/instantiate.h"
