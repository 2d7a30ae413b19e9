"""The network: operations with their adjoints, parameters as one flat vector, the U-Net, the optimiser."""
