"""XLNet: configuration, layers, attention and its kernels, weights."""
