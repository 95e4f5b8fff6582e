"""`bitnet bench`: the machine, kernels, generation, servers, rivals and quality, measured and kept."""
