"""Pictures: files, colour, MATLAB-compatible resizing. Depends on nothing of ours but ``errors`` and ``files``."""
