"""`bitnet bench`: the machine, kernels, generation, rivals and quality, measured and kept."""
