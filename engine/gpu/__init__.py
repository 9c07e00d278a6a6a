"""The CUDA backend: its number formats, memory plan, weights, CUDA graphs, sampler and worker."""
