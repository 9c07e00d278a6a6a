"""HTTP/1.1 on a socket: heads and bodies from bytes, one request at a time a connection, limits and deadlines for all of them."""
