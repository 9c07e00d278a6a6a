"""From the bytes of a body to what is valid: the part of reading a request that endpoints share."""
