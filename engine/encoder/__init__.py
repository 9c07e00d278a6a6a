"""Bidirectional encoders (BERT and its like): vectors and scores of whole texts, on a CPU or a GPU."""
