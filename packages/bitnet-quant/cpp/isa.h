// Which instruction sets this processor has.
#pragma once

#include <string_view>
#include <vector>

#include "kernels.h"

namespace bitnet {

// The tables that can run here, the best first; the last is scalar.
const std::vector<const Kernels*>& usable();

// The names of all tables in this build, usable or not.
std::vector<const char*> built();

}  // namespace bitnet
