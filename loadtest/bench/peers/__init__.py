"""Our server beside servers of others on one machine: in turn, the others stopped, medians of all rounds."""
