"""A device that runs the CuPy backend's kernels on the CPU: see `host_device`."""
