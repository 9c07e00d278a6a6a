"""One model over several processes: shards of its weights, the group that computes them, the commands its ranks run."""
