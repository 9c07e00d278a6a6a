"""From one row of logits per sequence to one token each; `sampler.Sampler` is the way in."""
