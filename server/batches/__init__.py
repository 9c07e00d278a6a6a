"""Files that clients upload, and batches of requests that are run from them on what nobody else needs; kept in a folder."""
