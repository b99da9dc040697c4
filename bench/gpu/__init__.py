"""What a CUDA GPU is asked, and what the compilers make for one."""
