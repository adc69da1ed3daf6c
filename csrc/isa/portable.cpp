#define SK_ISA portable
#include "isa/instantiate.h"
