"""What of a text has been encoded before."""
