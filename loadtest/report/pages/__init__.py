"""A report for readers: pictures, and the pages around them."""
