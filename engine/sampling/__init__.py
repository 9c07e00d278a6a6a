"""From one row of logits per sequence to one token each; `sampler.CpuSampler` is the way in."""
