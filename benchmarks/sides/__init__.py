"""What is compared: one module for ours, one for PyTorch's, each imported in a process of its own alone."""
